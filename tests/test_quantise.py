"""Exports of less precision: what is in them, that they answer alike, and that nothing is left behind."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from onnxaudit.errors import ArtefactError, UsageError
from onnxaudit.registry import open_suspect, quantise
from onnxaudit.suspect import InputSpec, Queries, Target
from onnxaudit.testing import check_adapter
from tests.models import SPEC, assemble, colour_queries, save_forest, save_onnx

FIXTURES = Path(__file__).resolve().parent.parent / "fixtures"
COPY = FIXTURES / "zoo/suspects/copy.onnx"
KINDS = ("fp16", "int8-static", "int8-dynamic")
CLOSE = {"fp16": 0.05, "int8-static": 2.0, "int8-dynamic": 1.0}
"""How far the logits of the shipped victim, which reach about 20, may move."""


@pytest.fixture(scope="module")
def images() -> NDArray[np.uint8]:
    """Real images (1000, 28, 28, 1)."""
    found: NDArray[np.uint8] = np.load(FIXTURES / "fashion/train.npz")["x"][:1000]
    return found


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped victim's copy behind nodes that take uint8 images, NHWC, as exports of the zoo do."""
    model = onnx.load(str(COPY))
    names = {"input": "scaled"}
    for node in model.graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
    front = [
        helper.make_node("Cast", ["images"], ["cast"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["cast"], ["nchw"], perm=[0, 3, 1, 2]),
        helper.make_node("Div", ["nchw", "most"], ["scaled"]),
    ]
    nodes = [*front, *model.graph.node]
    del model.graph.node[:], model.graph.input[:], model.graph.value_info[:]
    model.graph.node.extend(nodes)
    model.graph.input.append(helper.make_tensor_value_info("images", TensorProto.UINT8, ["n", 28, 28, 1]))
    model.graph.initializer.append(numpy_helper.from_array(np.array(255, np.float32), "most"))
    onnx.checker.check_model(model)
    path = tmp_path_factory.mktemp("raw") / "raw.onnx"
    onnx.save(model, str(path))
    return path


@pytest.fixture(autouse=True)
def _nothing_is_left(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Temporary files go to a folder that is empty afterwards; the root logger is as it was."""
    folder = tmp_path_factory.mktemp("temporary")
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    before = list(logging.getLogger().handlers), list(logging.getLogger().filters)
    yield
    assert not list(folder.iterdir())
    assert (list(logging.getLogger().handlers), list(logging.getLogger().filters)) == before


def answers(path: Path, queries: Queries, spec: InputSpec | None = None, classes: int = 10) -> Any:
    with open_suspect(Target(str(path), spec or InputSpec((28, 28, 1)), classes, "cpu")) as suspect:
        return suspect.ask(queries)


def large(path: Path, kind: int) -> list[TensorProto]:
    """The initialisers of a type that are weights of layers."""
    return [tensor for tensor in onnx.load(str(path)).graph.initializer if tensor.data_type == kind and len(tensor.dims) >= 2]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layout", ["float-nchw", "uint8-nhwc"])
def test_an_export_takes_the_same_inputs_and_answers_nearly_alike(
    kind: str, layout: str, raw: Path, images: NDArray[np.uint8], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    source, target = raw if layout == "uint8-nhwc" else COPY, tmp_path / "export.onnx"
    quantise(kind, source, target, images[:200])
    assert capfd.readouterr() == ("", "")
    assert [file.name for file in tmp_path.iterdir()] == ["export.onnx"]
    weights = large(target, TensorProto.FLOAT16 if kind == "fp16" else TensorProto.INT8)
    assert len(weights) == len(large(source, TensorProto.FLOAT)) == 7
    assert not large(target, TensorProto.FLOAT)
    before, after = onnx.load(str(source)).graph, onnx.load(str(target)).graph
    assert before.input == after.input
    assert before.output[0].type.tensor_type.elem_type == after.output[0].type.tensor_type.elem_type == TensorProto.FLOAT
    plain, found = answers(source, images), answers(target, images)
    assert (plain.labels == found.labels).mean() >= 0.99
    assert 0 < np.abs(plain.dense() - found.dense()).max() < CLOSE[kind]


def test_half_precision_computes_in_half_precision(tmp_path: Path) -> None:
    quantise("fp16", COPY, tmp_path / "half.onnx")
    graph = onnx.load(str(tmp_path / "half.onnx")).graph
    kinds = {value.name: value.type.tensor_type.elem_type for value in graph.value_info}
    convolved = [kinds[node.output[0]] for node in graph.node if node.op_type == "Conv"]
    assert convolved
    assert set(convolved) == {TensorProto.FLOAT16}


def test_static_ranges_come_from_the_calibration_and_weights_have_a_scale_a_channel(
    images: NDArray[np.uint8], tmp_path: Path
) -> None:
    quantise("int8-static", COPY, tmp_path / "natural.onnx", images[:200])
    quantise("int8-static", COPY, tmp_path / "dark.onnx", np.zeros_like(images[:200]))
    graph = onnx.load(str(tmp_path / "natural.onnx")).graph
    assert {"QuantizeLinear", "DequantizeLinear"} < {node.op_type for node in graph.node}
    per_channel = [tensor.dims[0] for tensor in graph.initializer if tensor.name.endswith("_scale") and len(tensor.dims) == 1]
    assert {16, 32} <= set(per_channel)
    scale = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}["input_scale"]
    assert float(scale) == pytest.approx(1 / 255, rel=1e-3)  # the extremes: 0 and 1
    plain = answers(COPY, images).labels
    agreement = [(answers(tmp_path / f"{name}.onnx", images).labels == plain).mean() for name in ("natural", "dark")]
    assert agreement[0] > 0.99 > 0.8 > agreement[1]


def test_calibration_is_encoded_as_the_spec_says(images: NDArray[np.uint8], tmp_path: Path) -> None:
    spec = InputSpec((28, 28, 1), mean=(0.5,), std=(0.25,))
    quantise("int8-static", COPY, tmp_path / "wide.onnx", images[:50], spec)
    scales = {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(str(tmp_path / "wide.onnx")).graph.initializer}
    assert float(scales["input_scale"]) == pytest.approx(4 / 255, rel=1e-3)


def test_a_model_with_one_batch_size_is_calibrated_on_full_batches(tmp_path: Path) -> None:
    path = save_onnx(tmp_path / "fixed.onnx", dims=(5, 3, 8, 8))
    quantise("int8-static", path, tmp_path / "static.onnx", colour_queries(13), SPEC)
    check_adapter(lambda: open_suspect(Target(str(tmp_path / "static.onnx"), SPEC, 4, "cpu")), colour_queries())


@pytest.mark.parametrize("kind", KINDS)
def test_vectors_are_taken_too(kind: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    tensors = [numpy_helper.from_array(rng.normal(size=(6, 40)).astype(np.float32), "first")]
    tensors.append(numpy_helper.from_array(rng.normal(size=(40, 3)).astype(np.float32), "second"))
    nodes = [
        helper.make_node("MatMul", ["x", "first"], ["hidden"]),
        helper.make_node("Relu", ["hidden"], ["active"]),
        helper.make_node("MatMul", ["active", "second"], ["logits"]),
    ]
    model = assemble(nodes, {"x": (TensorProto.FLOAT, ("n", 6))}, {"logits": (TensorProto.FLOAT, ("n", 3))}, tensors)
    onnx.save(model, str(tmp_path / "vectors.onnx"))
    x = rng.normal(size=(300, 6)).astype(np.float32)
    quantise(kind, tmp_path / "vectors.onnx", tmp_path / "export.onnx", x[:200])
    spec = InputSpec((6,), layout="NC")
    plain, found = (answers(tmp_path / name, x, spec, 3) for name in ("vectors.onnx", "export.onnx"))
    assert (plain.labels == found.labels).mean() > 0.95


def test_the_bytes_depend_on_the_inputs_alone(images: NDArray[np.uint8], tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", images[:60])
    code = "import sys, numpy, pathlib; from onnxaudit.registry import quantise; "
    code += "quantise(sys.argv[1], *map(pathlib.Path, sys.argv[2:4]), numpy.load(sys.argv[4]))"
    for kind in KINDS:
        quantise(kind, COPY, tmp_path / "here.onnx", images[:60])
        command = [sys.executable, "-c", code, kind, str(COPY), str(tmp_path / "there.onnx"), str(tmp_path / "x.npy")]
        done = subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ, "PYTHONHASHSEED": "77"})
        assert (done.stdout, done.stderr) == ("", "")
        assert (tmp_path / "here.onnx").read_bytes() == (tmp_path / "there.onnx").read_bytes(), kind


def test_what_cannot_be_converted_is_said_and_nothing_is_written(images: NDArray[np.uint8], tmp_path: Path) -> None:
    target = tmp_path / "export.onnx"
    cases: list[tuple[str, Path, Any, type[Exception], str]] = [
        ("int4", COPY, None, UsageError, "there is no export 'int4'. Choose from: fp16, int8-static, int8-dynamic."),
        ("int8-static", COPY, None, UsageError, "int8-static needs inputs to calibrate on"),
        ("int8-static", COPY, images[:0], UsageError, "int8-static needs inputs to calibrate on"),
        ("fp16", tmp_path / "missing.onnx", None, UsageError, "missing.onnx is not a file"),
        ("int8-static", COPY, np.zeros((4, 28, 28, 3), np.uint8), UsageError, "the model takes inputs of 28x28x1"),
        ("int8-static", COPY, np.zeros((4, 10), np.float32), UsageError, "the model takes 28x28x1 values|vectors of 10"),
    ]
    noise = tmp_path / "noise.onnx"
    noise.write_bytes(b"\xff" * 100)
    cases.append(("fp16", noise, None, ArtefactError, "noise.onnx is not a readable ONNX file"))
    half = tmp_path / "half.onnx"
    quantise("fp16", COPY, half)
    cases.append(("int8-dynamic", half, None, UsageError, "half.onnx has no float32 weights"))
    forest = save_forest(tmp_path / "forest.onnx", zipmap=False)
    cases += [(kind, forest, None, UsageError, "forest.onnx has no (float32 )?weights") for kind in ("fp16", "int8-dynamic")]
    weights = numpy_helper.from_array(np.full((6, 3), np.inf, np.float32), "w")
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    endless = assemble([node], {"x": (TensorProto.FLOAT, ("n", 6))}, {"y": (TensorProto.FLOAT, ("n", 3))}, [weights])
    onnx.save(endless, str(tmp_path / "endless.onnx"))
    message = "endless.onnx cannot be converted to fp16: the export answered NaN or infinity"
    cases.append(("fp16", tmp_path / "endless.onnx", np.ones((3, 6), np.float32), ArtefactError, message))
    for kind, source, calibration, error, message in cases:
        with pytest.raises(error, match=message) as caught:
            quantise(kind, source, target, calibration)
        assert "\n" not in str(caught.value)
        assert not target.exists()
    assert not list(tmp_path.glob("*.tmp"))
    with pytest.raises(ArtefactError, match=r"nowhere/export.onnx cannot be written: No such file or directory"):
        quantise("fp16", COPY, tmp_path / "nowhere/export.onnx")
