"""LiteRT files as suspects: the answers and the finding of the ONNX file they were made from, and files that mean harm."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onnxaudit.answers import Access, Answers
from onnxaudit.audit.checking import CheckOptions, check
from onnxaudit.audit.progress import Silent
from onnxaudit.bundle import QueryBundle
from onnxaudit.errors import ArtefactError, UsageError
from onnxaudit.registry import open_suspect
from onnxaudit.suspect import InputSpec, Suspect, Target
from onnxaudit.testing import assert_same, check_adapter
from tests.conftest import ZOO
from tests.models import CLASSES, SHAPE, SPEC, colour_queries, expected_answers, save_onnx

pytest.importorskip("ai_edge_litert", reason="needs the extra litert")

from ai_edge_litert import schema_py_generated as schema

from onnxaudit_adapters.litert import Quantisation
from tests.tflite_files import Quantised, Writer, converted, packed

QUERIES = colour_queries()
PIXELS: Quantised = ("UINT8", 1 / 255, 0)
SIGNED: Quantised = ("INT8", 1 / 255, -128)
FINE: Quantised = ("INT16", 1 / 1024, 0)


def opened(path: Path, **options: Any) -> Suspect:
    return open_suspect(
        Target(str(path), options.pop("spec", SPEC), options.pop("num_classes", CLASSES), options.pop("device", "cpu"), **options)
    )


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """The small network, for one image at a time."""
    return converted(save_onnx(tmp_path / "m.onnx"), tmp_path / "m.tflite")


@pytest.mark.parametrize(
    ("options", "tolerance"),
    [
        ({}, 1e-4),
        ({"batch": 5}, 1e-4),
        ({"batch": None}, 1e-4),
        ({"softmax": True}, 1e-4),
        ({"given": PIXELS}, 1e-4),
        ({"given": SIGNED, "batch": 7}, 1e-4),
        ({"answer": FINE}, 1e-3),
        ({"given": PIXELS, "answer": ("INT8", 1 / 8, -10)}, 0.07),
        ({"given": SIGNED, "answer": ("INT8", 1 / 256, -128), "softmax": True}, 5e-3),
    ],
)
def test_every_signature_keeps_the_contract(options: dict[str, Any], tolerance: float, tmp_path: Path) -> None:
    path = converted(save_onnx(tmp_path / "m.onnx"), tmp_path / "m.tflite", **options)
    expected = expected_answers(QUERIES)
    if options.get("softmax"):
        expected = expected.degrade(Access.PROBS)
    check_adapter(lambda: opened(path), QUERIES, expected, tolerance)


def test_it_answers_as_onnx_runtime_does(model: Path, tmp_path: Path) -> None:
    with opened(model) as one, opened(tmp_path / "m.onnx") as other:
        assert_same(one.ask(QUERIES), other.ask(QUERIES), 1e-5)
        assert (one.card.kind, one.card.batch, one.card.input.layout, one.card.input.shape) == ("litert", 1, "NHWC", SHAPE)
        assert set(one.card.runtime) == {"ai-edge-litert", "device"}


@pytest.mark.parametrize(
    ("name", "options"),
    [("copy", {}), ("copy", {"given": PIXELS, "answer": ("INT8", 0.25, 0)}), ("other-lenet", {"given": SIGNED})],
    ids=["copy", "quantised", "other"],
)
def test_the_finding_is_that_of_the_onnx_file(name: str, options: dict[str, Any], crafted: QueryBundle, tmp_path: Path) -> None:
    source = ZOO / f"suspects/{name}.onnx"
    reports = []
    for path in (source, converted(source, tmp_path / "m.tflite", **options)):
        with opened(path, spec=crafted.manifest.input, num_classes=10) as suspect:
            reports.append(check(crafted, suspect, CheckOptions(), Silent()))
    assert reports[0].finding == reports[1].finding == ("derived" if name == "copy" else "not-shown")
    if not options:
        assert reports[0].p_value == reports[1].p_value


def test_whole_numbers_stand_for_real_ones() -> None:
    found = Quantisation(0.5, 3, np.dtype(np.int8))
    np.testing.assert_array_equal(found.numbers(np.array([0.0, 0.5, -1.0, 1e9, -1e9])), [3, 4, 1, 127, -128])
    np.testing.assert_array_equal(found.reals(np.array([3, 4, 1], np.int8)), [0.0, 0.5, -1.0])


def test_preprocessing_comes_before_quantisation(tmp_path: Path) -> None:
    """A model of values in [-1, 1], in bytes: the byte is the pixel, almost."""
    writer = Writer()
    given = writer.tensor((1, 4), quantised=("UINT8", 1 / 127.5, 128))
    path = tmp_path / "m.tflite"
    path.write_bytes(packed(writer.model(given, [writer.add("DEQUANTIZE", [given], writer.tensor((1, 4)))])))
    spec = InputSpec((2, 2, 1), mean=(0.5,), std=(0.5,))
    queries = np.arange(0, 250, 10, dtype=np.uint8)[:24].reshape(6, 2, 2, 1)
    with opened(path, spec=spec, num_classes=4) as suspect:
        dense = suspect.ask(queries).dense()
    np.testing.assert_allclose(dense, queries.reshape(6, 4) / 127.5 - 1, atol=1 / 127.5)


def test_outputs_are_chosen_and_a_gpu_is_refused(tmp_path: Path) -> None:
    writer = Writer()
    given = writer.tensor((1, 4))
    twice = writer.add("ADD", [given, given], writer.tensor((1, 4)), "AddOptions")
    same = writer.add("RELU", [given], writer.tensor((1, 4)))
    path = tmp_path / "m.tflite"
    path.write_bytes(packed(writer.model(given, [twice, same])))
    x = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)
    spec = InputSpec((4,), layout="NC")
    with opened(path, spec=spec, options={"output_name": f"t{twice}"}) as suspect:
        assert_same(suspect.ask(x), Answers.from_scores(2 * x))
    with pytest.raises(UsageError, match="no output"):
        opened(path, spec=spec, options={"output_name": "nothing"})
    with pytest.raises(UsageError, match="--device cuda"):
        opened(path, spec=spec, device="cuda")


def test_what_takes_no_images_is_refused(tmp_path: Path) -> None:
    writer = Writer()
    given = writer.tensor((1, 4), "INT32")
    (tmp_path / "whole.tflite").write_bytes(packed(writer.model(given, [writer.add("RELU", [given], writer.tensor((1, 4)))])))
    with pytest.raises(UsageError, match="takes int32"):
        opened(tmp_path / "whole.tflite")


@pytest.mark.parametrize("keep", [0, 6, 100, 0.3, 0.9, 0.999])
def test_truncated_files_are_one_line(keep: float, model: Path) -> None:
    data = model.read_bytes()
    model.write_bytes(data[: int(keep if keep > 1 else keep * len(data))])
    with pytest.raises(ArtefactError) as caught:
        opened(model)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 3


def far(model: Any) -> None:
    """Weights at an offset that, with their size, overflows 64 bits: just before the file in memory."""
    buffer = max(model.buffers, key=lambda one: 0 if one.data is None else len(one.data))
    buffer.size, buffer.offset, buffer.data = len(buffer.data), 2**64 - 64, None


def elsewhere(model: Any) -> None:
    group, external = schema.ExternalBufferGroupT(), schema.ExternalBufferT()
    group.name, external.id, external.length = "../../etc/passwd", 1, 8
    model.externalBufferGroups, model.externalBuffers = [group], [external]


def custom(model: Any) -> None:
    code = model.operatorCodes[0]
    code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.CUSTOM
    code.customCode = "Evil"


def large(model: Any) -> None:
    tensor = model.subgraphs[0].tensors[max(range(5), key=lambda place: model.subgraphs[0].tensors[place].buffer)]
    tensor.shape = [2**31 - 1, 2**31 - 1, 3]


def nowhere(model: Any) -> None:
    model.subgraphs[0].operators[0].inputs = [99999, -7]


@pytest.mark.parametrize(
    ("forge", "why"),
    [
        (far, "outside of the file"),
        (elsewhere, "in other files"),
        (custom, "cannot be run"),
        (large, "cannot be run"),
        (nowhere, "cannot be run"),
    ],
)
def test_forged_files_are_one_line(forge: Callable[[Any], None], why: str, model: Path) -> None:
    forged = schema.ModelT.InitFromPackedBuf(bytearray(model.read_bytes()), 0)
    forge(forged)
    model.write_bytes(packed(forged))
    with pytest.raises(ArtefactError, match=why) as caught:
        opened(model)
    assert "\n" not in str(caught.value)


def test_a_model_that_wants_terabytes_is_refused(model: Path) -> None:
    forged = schema.ModelT.InitFromPackedBuf(bytearray(model.read_bytes()), 0)
    forged.subgraphs[0].tensors[0].shape = [1, 10**6, 10**6, 3]
    model.write_bytes(packed(forged))
    with pytest.raises((UsageError, ArtefactError)) as caught:
        opened(model)
    assert "\n" not in str(caught.value)


def test_another_format_in_disguise_is_refused(tmp_path: Path) -> None:
    path = save_onnx(tmp_path / "m.tflite")
    with pytest.raises(ArtefactError, match="no LiteRT model"):
        opened(path)
