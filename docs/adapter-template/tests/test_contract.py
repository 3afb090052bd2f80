"""The contract suite that every adapter must pass, with the right answers worked out by other means."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from onnxaudit.answers import Answers
from onnxaudit.errors import ArtefactError
from onnxaudit.registry import open_suspect
from onnxaudit.suspect import InputSpec, Target
from onnxaudit.testing import check_adapter

VICTIM = InputSpec((4, 4, 1))
"""What the bundle says of the victim's input; here grey images of 4x4 in [0, 1]."""


def save_linear(path: Path) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    weights, bias = rng.normal(size=(16, 3)).astype(np.float32), rng.normal(size=3).astype(np.float32)
    save_file({"weights": weights, "bias": bias}, path)
    return weights, bias


def test_contract(tmp_path: Path) -> None:
    path = tmp_path / "model.linear"
    weights, bias = save_linear(path)
    queries = np.random.default_rng(1).integers(0, 256, (20, 4, 4, 1), dtype=np.uint8)
    expected = Answers.from_scores(queries.reshape(20, 16) / 255 @ weights + bias)
    check_adapter(lambda: open_suspect(Target(str(path), VICTIM, num_classes=3)), queries, expected)


@pytest.mark.parametrize("keep", [0, 5, 100])
def test_a_damaged_file_is_one_line(keep: int, tmp_path: Path) -> None:
    path = tmp_path / "model.linear"
    save_linear(path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ArtefactError, match="no linear model"):
        open_suspect(Target(str(path), VICTIM, num_classes=3))
