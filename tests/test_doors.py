"""What all optional doors share: found by their entry points, one line where their runtime is missing or their file damaged."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import pytest

from onnxaudit.registry import GROUP, adapters, suffixes
from tests.models import forest, save_onnx

BUNDLE_FREE = """
import sys
from onnxaudit.errors import OnnxauditError
from onnxaudit.registry import open_suspect
from onnxaudit.suspect import InputSpec, Target
for path in sys.argv[1:]:
    try:
        open_suspect(Target(path, InputSpec((8, 8, 3)), 4, "cpu"))
    except OnnxauditError as error:
        print(f"{error.exit_code} {error}")
"""
"""The part of ``check`` that opens a suspect: the same errors, without a bundle to craft."""


def made_xml(folder: Path) -> Path:
    openvino = pytest.importorskip("openvino", reason="needs the extra openvino")
    openvino.save_model(openvino.Core().read_model(str(save_onnx(folder / "m.onnx"))), str(folder / "m.xml"))
    return folder / "m.xml"


def made_tflite(folder: Path) -> Path:
    pytest.importorskip("ai_edge_litert", reason="needs the extra litert")
    from tests.tflite_files import converted

    return converted(save_onnx(folder / "m.onnx"), folder / "m.tflite")


def made_skops(folder: Path) -> Path:
    pytest.importorskip("skops.io", reason="needs the extra sklearn").dump(forest(), folder / "m.skops")
    return folder / "m.skops"


DOORS: dict[str, tuple[Callable[[Path], Path], str, str]] = {
    "xml": (made_xml, "openvino", "openvino"),
    "tflite": (made_tflite, "ai_edge_litert", "litert"),
    "skops": (made_skops, "skops", "sklearn"),
}
"""By suffix: how a file is made, the package that runs it, and the extra that brings the package."""


def opened(*paths: Path, site: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, **({"PYTHONPATH": str(site)} if site else {})}
    command = [sys.executable, "-c", BUNDLE_FREE, *map(str, paths)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=120)


def test_each_is_one_entry_point_and_known_by_its_suffix() -> None:
    points = {point.name: point.dist.name for point in metadata.entry_points(group=GROUP) if point.dist}
    assert {name: points.get(name) for name in DOORS} == dict.fromkeys(DOORS, "onnxaudit")
    assert {f".{name}" for name in DOORS} <= suffixes()
    assert all(adapters()[name][1] == "onnxaudit" for name in DOORS)


@pytest.mark.parametrize("name", DOORS)
def test_without_its_runtime_one_line_says_what_to_install(name: str, tmp_path: Path) -> None:
    make, package, extra = DOORS[name]
    path = make(tmp_path)
    site = tmp_path / "site" / package
    site.mkdir(parents=True)
    (site / "__init__.py").write_text(f"raise ImportError('no module named {package}')\n")
    done = opened(path, site=site.parent)
    assert done.stdout.startswith("2 this needs "), done.stdout + done.stderr
    assert done.stdout.endswith(f"Install it with: pip install 'onnxaudit[{extra}]'\n")
    assert (done.stdout.count("\n"), done.stderr) == (1, "")


@pytest.mark.parametrize("name", DOORS)
def test_nothing_is_printed_by_a_runtime(name: str, tmp_path: Path) -> None:
    """Native libraries greet on stderr, and damaged files make them talk: stdout is the result's, stderr ours."""
    make, _, _ = DOORS[name]
    path = make(tmp_path)
    damaged = tmp_path / "damaged" / path.name
    damaged.parent.mkdir()
    damaged.write_bytes(path.read_bytes()[:-200])
    done = opened(path, damaged)
    assert (done.stdout[:2], done.stdout.count("\n"), done.stderr) == ("3 ", 1, ""), done.stdout + done.stderr
