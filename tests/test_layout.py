"""CONTRIBUTING.md lists every part of the package, and its layers are those that are enforced."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
PARTS = sorted(
    path.stem
    for path in (ROOT / "onnxaudit").iterdir()
    if not path.stem.startswith(("_", ".")) and (path.suffix == ".py" or (path / "__init__.py").is_file())
)


@pytest.mark.parametrize("part", PARTS)
def test_every_part_has_a_line_in_the_table(part: str) -> None:
    table = [line for line in PAGE.splitlines() if line.startswith("| `")]
    assert any(re.search(rf"`(onnxaudit/)?{part}(\.py)?`", line.split("|")[1]) for line in table)


def test_the_layers_are_those_that_are_enforced() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]["contracts"]
    (enforced,) = (contract["layers"] for contract in contracts if contract["type"] == "layers")
    (written,) = re.findall(r"`(cli\s+->.*?-> errors)`", PAGE, re.DOTALL)
    layers = [set(re.findall(r"\w+", layer)) for layer in written.split("->")]
    assert layers == [set(re.findall(r"\w+", layer)) for layer in enforced if layer != "__main__"]
