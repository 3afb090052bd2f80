"""--sandbox through every door: what a runtime needs is there, and answers are those without it, to the last bit."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from onnxaudit.registry import open_suspect
from onnxaudit.sandbox.limits import Limits
from onnxaudit.sandbox.suspect import open_confined
from onnxaudit.suspect import InputSpec, Target
from onnxaudit.testing import assert_same
from tests.models import CLASSES, SPEC, colour_queries, forest, save_exported, save_onnx, vectors

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="no other kernel has these walls")


def _made(door: str, folder: Path) -> Path:
    path = folder / f"m.{door}"
    if door == "pt2":
        return save_exported(path)
    if door == "ort":
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.optimized_model_filepath = str(path)
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        onnxruntime.InferenceSession(str(save_onnx(folder / "m.onnx")), options, providers=["CPUExecutionProvider"])
        return path
    if door == "xml":
        openvino = pytest.importorskip("openvino", reason="needs the extra openvino")
        openvino.save_model(openvino.Core().read_model(str(save_onnx(folder / "m.onnx"))), str(path))
        return path
    pytest.importorskip("ai_edge_litert", reason="needs the extra litert")
    from tests.tflite_files import converted

    return converted(save_onnx(folder / "m.onnx"), path)


@pytest.mark.parametrize("door", ["ort", "xml", "tflite", "pt2"])
def test_answers_are_the_same_to_the_last_bit(door: str, tmp_path: Path) -> None:
    target, queries = Target(str(_made(door, tmp_path)), SPEC, CLASSES, "cpu", options={"threads": 1}), colour_queries()
    with open_suspect(target) as free, open_confined(target, Limits(wall=120)) as confined:
        assert confined.card.sha256 == free.card.sha256
        assert (
            "files outside the suspect unreadable" in confined.card.runtime["sandbox"] or "sandbox lacks" in confined.card.runtime
        )
        assert_same(confined.ask(queries), free.ask(queries), 0.0)


def test_a_forest(tmp_path: Path) -> None:
    skops_io = pytest.importorskip("skops.io", reason="needs the extra sklearn")
    skops_io.dump(forest(), tmp_path / "m.skops")
    target = Target(str(tmp_path / "m.skops"), InputSpec((6,), layout="NC"), 3, "cpu")
    with open_suspect(target) as free, open_confined(target, Limits(wall=120)) as confined:
        assert_same(confined.ask(vectors(20)), free.ask(vectors(20)), 0.0)
