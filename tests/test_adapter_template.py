"""The template of a third party's adapter: installed like any package, it is found, used and examined."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.bundles import ridge_weights, save_linear

TEMPLATE = Path(__file__).resolve().parent.parent / "docs/adapter-template"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the template installed by pip, from a copy, so that nothing is left behind in docs/."""
    if importlib.util.find_spec("setuptools") is None:
        pytest.skip("needs setuptools to build the template without a network")
    folder = tmp_path_factory.mktemp("template")
    shutil.copytree(TEMPLATE, folder / "source")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    command += ["--disable-pip-version-check", "--target", str(folder / "site"), str(folder / "source")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    return folder / "site"


def run(*command: str | Path, site: Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(site)}
    words = [sys.executable, *map(str, command)]
    return subprocess.run(words, cwd=cwd, env=environment, capture_output=True, text=True, check=False, timeout=120)


def test_its_own_tests_pass(site: Path, tmp_path: Path) -> None:
    shutil.copytree(TEMPLATE / "tests", tmp_path / "tests")
    done = run("-m", "pytest", "-q", "-p", "no:cacheprovider", "tests", site=site, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "4 passed" in done.stdout


def test_it_is_found_and_examined(site: Path, tmp_path: Path) -> None:
    listed = run("-m", "onnxaudit", "adapters", site=site, cwd=tmp_path).stdout
    assert [line.split() for line in listed.splitlines() if line.startswith(".linear")] == [
        [".linear", "onnxaudit_linear:open_linear", "onnxaudit-linear"]
    ]
    document = json.loads(run("-m", "onnxaudit", "doctor", "--json", site=site, cwd=tmp_path).stdout)
    (sign,) = [sign for sign in document["signs"] if sign["name"] == ".linear"]
    assert (sign["state"], sign["found"]) == ("ok", "onnxaudit-linear 0.1.0")


def test_the_finding_is_that_of_the_onnx_file(site: Path, crafted_path: Path, tmp_path: Path) -> None:
    weights = ridge_weights()
    save_linear(tmp_path / "model.onnx", weights=weights)
    save_file({"weights": weights, "bias": np.zeros(10, np.float32)}, tmp_path / "model.linear")
    reports = []
    for name in ("model.onnx", "model.linear"):
        command = ("-m", "onnxaudit", "check", name, "--bundle", crafted_path, "--json")
        reports.append(json.loads(run(*command, site=site, cwd=tmp_path).stdout))
    assert [report["suspect"]["kind"] for report in reports] == ["onnx", "linear"]
    assert reports[0]["finding"] == reports[1]["finding"] == "not-shown"
    assert reports[0]["p_value"] == reports[1]["p_value"]
    damaged = tmp_path / "damaged.linear"
    damaged.write_bytes((tmp_path / "model.linear").read_bytes()[:50])
    done = run("-m", "onnxaudit", "check", damaged, "--bundle", crafted_path, site=site, cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (3, "", 1), done.stderr


def test_without_it_the_suffix_is_not_known(crafted_path: Path, tmp_path: Path) -> None:
    (tmp_path / "model.linear").write_bytes(b"")
    done = run("-m", "onnxaudit", "check", "model.linear", "--bundle", crafted_path, site=tmp_path, cwd=tmp_path)
    assert done.returncode == 2
    assert "nothing here opens 'model.linear'" in done.stderr
