"""Options of endpoints are the same in every command that asks one, and what is assumed without them is said in one place."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer.main

from onnxaudit.bundle import load
from onnxaudit.cli.calibrate import calibrate
from onnxaudit.cli.check import check
from onnxaudit.cli.scan import scan
from onnxaudit.endpoints import BATCH, TIMEOUT
from onnxaudit_adapters.http.options import DIALECTS, HttpOptions
from tests.http_script import METADATA, PATH, Answer, Script, as_json, served
from tests.linear_scan import near, save_bundle, save_suspect


def _options(command: Callable[..., Any]) -> dict[str, Any]:
    app = typer.Typer()
    app.command()(command)
    return {name: option for option in typer.main.get_command(app).params for name in option.opts}


def test_the_adapter_assumes_what_the_help_says() -> None:
    assert HttpOptions.read({}) == HttpOptions() == HttpOptions(timeout=TIMEOUT, batch=BATCH)
    for command in (check, scan, calibrate):
        known = _options(command)
        assert f"Default: {TIMEOUT:g}." in known["--timeout"].help
        assert f"Default: {BATCH}" in known["--batch"].help
        assert known["--timeout"].default is known["--batch"].default is None
        assert all(name in DIALECTS for name in ("v2", "tfserving", "plain"))
        assert "v2, tfserving, plain …" in known["--dialect"].help


def test_commands_say_the_same_of_the_same_option() -> None:
    one, others = _options(check), (_options(scan), _options(calibrate))
    http = [name for name, option in one.items() if (option.help or "").startswith("HTTP:")]
    assert len(http) >= 9
    for name in set(http) - {"--rate", "--concurrency"}:  # the rate of a scan is each host's
        for other in others:
            assert other[name].help == one[name].help, name
            assert other[name].default == one[name].default, name
    assert _options(calibrate)["--device"].help == one["--device"].help
    assert "processor" in _options(scan)["--device"].help  # why it is another there


def _run(*arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "onnxaudit", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60, cwd=cwd)


def test_a_model_behind_an_endpoint_is_added_with_the_headers_that_it_wants(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("MODEL_TOKEN", "secret-word")
    save_bundle(tmp_path / "b.oab", 39)
    weights, file = near(3), save_suspect(tmp_path / "m.onnx", near(3))
    metadata = {**METADATA, "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 1, 4, 4]}]}

    def answer(number: int, body: bytes) -> Answer:
        headers, _ = script.requests[number - 1]
        if headers.get("Authorization") != "Bearer secret-word":
            return 401, {}, b"who are you?"
        said = np.array(json.loads(body)["inputs"][0]["data"], np.float32).reshape(-1, 16) @ weights
        return as_json({"outputs": [{"name": "y", "datatype": "FP32", "shape": list(said.shape), "data": said.ravel().tolist()}]})

    script = Script(answer, {PATH: as_json(metadata), "/v2": as_json({"name": "test"})})
    common = ("--bundle", "b.oab", "--role", "surrogate", "-o", "new.oab")
    with served(script) as base:
        refused = _run("calibrate", base + PATH, *common, cwd=tmp_path)
        assert (refused.returncode, "--header" in refused.stderr) == (4, True)
        assert not (tmp_path / "new.oab").exists()
        token = ("--header", "Authorization: Bearer $MODEL_TOKEN", "--dialect", "v2", "--batch", "30")
        done = _run("calibrate", base + PATH, *token, *common, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert len(script.posts) == 1 + 3
    assert b"secret-word" not in (tmp_path / "new.oab").read_bytes()
    added = load(tmp_path / "new.oab")
    of_file = _run("calibrate", file, "--bundle", "b.oab", "--role", "surrogate", "-o", "file.oab", cwd=tmp_path)
    assert of_file.returncode == 0, of_file.stderr
    name = added.manifest.of_role("surrogate")[-1].id
    np.testing.assert_allclose(added.answers[name].dense(), load(tmp_path / "file.oab").answers[name].dense(), atol=1e-4)
    wrong = _run("calibrate", file, "--header", "A: b", "--dialect", "v2", *common, "--force", cwd=tmp_path)
    assert (wrong.returncode, "--dialect, --header can only be used with URLs" in wrong.stderr) == (2, True)
