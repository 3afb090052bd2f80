"""ONNX suspects: every kind of signature and output, and files that mean harm, through the registry as a user opens them."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_dynamic, quantize_static

from onnxaudit.answers import Access, Answers
from onnxaudit.errors import ArtefactError, SuspectError, UsageError
from onnxaudit.registry import open_suspect
from onnxaudit.suspect import InputSpec, Target
from onnxaudit.testing import assert_same, check_adapter
from onnxaudit_adapters.devices import gpu_present
from onnxaudit_adapters.onnx import OnnxSuspect
from tests.models import (
    CLASSES,
    SHAPE,
    SPEC,
    assemble,
    colour_queries,
    expected_answers,
    forest,
    make_onnx,
    save_forest,
    save_onnx,
    vectors,
)

QUERIES = colour_queries()
VECTOR_SPEC = InputSpec((6,), layout="NC")


def target(path: Path, **options: Any) -> Target:
    return Target(str(path), options.pop("spec", SPEC), options.pop("num_classes", CLASSES), **options)


def ask(path: Path, **options: Any) -> Answers:
    with open_suspect(target(path, **options)) as suspect:
        return suspect.ask(QUERIES)


@pytest.mark.parametrize(
    ("options", "tolerance"),
    [
        ({}, 1e-4),
        ({"dtype": "float16"}, 2e-2),
        ({"dtype": "float64"}, 1e-4),
        ({"dtype": "uint8"}, 1e-4),
        ({"dims": (1, 3, 8, 8)}, 1e-4),
        ({"dims": (7, 3, 8, 8)}, 1e-4),
        ({"dims": ("n", 8, 8, 3), "layout": "NHWC"}, 1e-4),
        ({"dims": (5, 8, 8, 3), "layout": "NHWC", "dtype": "uint8"}, 1e-4),
        ({"dims": ("n", 3, "h", "w")}, 1e-4),
        ({"dims": ("n", "h", "w", 3), "layout": "NHWC"}, 1e-4),
        ({"end": "softmax"}, 1e-4),
        ({"end": "labels"}, 1e-4),
        ({"end": "decoys"}, 1e-4),
    ],
)
def test_every_signature_keeps_the_contract(tmp_path: Path, options: dict[str, Any], tolerance: float) -> None:
    path = save_onnx(tmp_path / "m.onnx", **options)
    check_adapter(lambda: open_suspect(target(path)), QUERIES, expected_answers(QUERIES), tolerance)


def test_the_card_says_what_runs(tmp_path: Path) -> None:
    path = save_onnx(tmp_path / "m.onnx", dims=(7, 8, 8, 3), layout="NHWC", dtype="uint8")
    with open_suspect(target(path)) as suspect:
        card = suspect.card
    assert (card.kind, card.batch, card.input.shape, card.input.layout, card.input.dtype) == ("onnx", 7, SHAPE, "NHWC", "uint8")
    assert card.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert (
        card.runtime == {"onnxruntime": onnxruntime.__version__, "provider": "CPUExecutionProvider"}
        or "CUDA" in card.runtime["provider"]
    )


@pytest.mark.parametrize(("end", "access"), [("logits", Access.LOGITS), ("softmax", Access.PROBS), ("labels", Access.LABEL)])
def test_access_is_what_the_model_ends_in(tmp_path: Path, end: str, access: Access) -> None:
    assert ask(save_onnx(tmp_path / "m.onnx", end=end)).access == access


def test_an_ambiguous_layout_is_the_victims_unless_the_user_says(tmp_path: Path) -> None:
    path = save_onnx(tmp_path / "m.onnx", dims=("n", "a", "b", "c"))
    assert_same(ask(path), expected_answers(QUERIES))
    nhwc = save_onnx(tmp_path / "n.onnx", dims=("n", "a", "b", "c"), layout="NHWC")
    assert_same(ask(nhwc, layout="NHWC"), expected_answers(QUERIES))
    assert_same(ask(nhwc, spec=InputSpec(SHAPE, layout="NHWC")), expected_answers(QUERIES))


def test_a_three_by_three_image_is_ambiguous(tmp_path: Path) -> None:
    path = save_onnx(tmp_path / "m.onnx", dims=("n", 3, 3, 3))
    for layout in ("NCHW", "NHWC"):
        with open_suspect(target(path, spec=InputSpec((3, 3, 3), layout=layout))) as suspect:
            assert suspect.card.input.layout == layout


def test_grey_images_without_a_channel_axis(tmp_path: Path) -> None:
    weight = numpy_helper.from_array(np.random.default_rng(0).normal(size=(16, CLASSES)).astype(np.float32), "w")
    nodes = [helper.make_node("Flatten", ["x"], ["f"]), helper.make_node("MatMul", ["f", "w"], ["y"])]
    model = assemble(nodes, {"x": (TensorProto.FLOAT, ["n", 4, 4])}, {"y": (TensorProto.FLOAT, ["n", CLASSES])}, [weight])
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    queries = np.random.default_rng(1).integers(0, 256, (9, 4, 4, 1), dtype=np.uint8)
    expected = Answers.from_scores(queries.reshape(9, 16) / 255 @ numpy_helper.to_array(weight))
    check_adapter(lambda: open_suspect(target(tmp_path / "m.onnx", spec=InputSpec((4, 4, 1)))), queries, expected)


class _Calibration(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self) -> None:
        self.batches = iter([{"x": SPEC.encode(QUERIES)}])

    def get_next(self) -> dict[str, Any] | None:
        return next(self.batches, None)


def test_static_int8_with_qdq(tmp_path: Path) -> None:
    save_onnx(tmp_path / "m.onnx")
    quantize_static(tmp_path / "m.onnx", tmp_path / "q.onnx", _Calibration(), quant_format=QuantFormat.QDQ)
    assert b"QuantizeLinear" in (tmp_path / "q.onnx").read_bytes()
    check_adapter(lambda: open_suspect(target(tmp_path / "q.onnx")), QUERIES, expected_answers(QUERIES), 0.5)


def test_dynamic_int8_is_asked_one_by_one(tmp_path: Path) -> None:
    save_onnx(tmp_path / "m.onnx")
    quantize_dynamic(tmp_path / "m.onnx", tmp_path / "q.onnx", op_types_to_quantize=["MatMul", "Gemm", "Conv"])
    assert b"DynamicQuantizeLinear" in (tmp_path / "q.onnx").read_bytes()
    with open_suspect(target(tmp_path / "q.onnx")) as suspect:
        assert suspect.card.max_batch == 1
    check_adapter(lambda: open_suspect(target(tmp_path / "q.onnx")), QUERIES, tolerance=1e-6)
    assert np.mean(ask(tmp_path / "q.onnx").labels == expected_answers(QUERIES).labels) > 0.9


def test_ort_format(tmp_path: Path) -> None:
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "m.ort")
    options.add_session_config_entry("session.save_model_format", "ORT")
    onnxruntime.InferenceSession(make_onnx().SerializeToString(), options, providers=["CPUExecutionProvider"])
    check_adapter(lambda: open_suspect(target(tmp_path / "m.ort")), QUERIES, expected_answers(QUERIES))


@pytest.mark.parametrize("zipmap", [True, False])
def test_a_forest_gives_its_scores_not_its_labels(tmp_path: Path, zipmap: bool) -> None:
    path, queries = save_forest(tmp_path / "rf.onnx", zipmap), vectors(40)
    expected = Answers.from_scores(forest().predict_proba(queries))
    check_adapter(lambda: open_suspect(target(path, spec=VECTOR_SPEC, num_classes=3)), queries, expected)
    with open_suspect(target(path, spec=VECTOR_SPEC, num_classes=3)) as suspect:
        assert suspect.ask(queries).access == Access.PROBS


def test_named_classes_need_an_order(tmp_path: Path) -> None:
    path, queries = save_forest(tmp_path / "rf.onnx", zipmap=True, strings=True), vectors(40)
    with open_suspect(target(path, spec=VECTOR_SPEC, num_classes=3)) as suspect, pytest.raises(SuspectError, match="class_names"):
        suspect.ask(queries)
    options = {"class_names": "cat, ant, bee"}
    expected = Answers.from_scores(forest(strings=True).predict_proba(queries)[:, [2, 0, 1]])
    with open_suspect(target(path, spec=VECTOR_SPEC, num_classes=3, options=options)) as suspect:
        assert_same(suspect.ask(queries), expected)


def test_named_labels_alone(tmp_path: Path) -> None:
    path, queries = save_forest(tmp_path / "rf.onnx", zipmap=True, strings=True), vectors(40)
    options = {"output_name": "output_label", "class_names": ["ant", "bee", "cat"]}
    with open_suspect(target(path, spec=VECTOR_SPEC, num_classes=3, options=options)) as suspect:
        answers = suspect.ask(queries)
    assert answers.access == Access.LABEL
    assert (np.array(["ant", "bee", "cat"])[answers.labels] == forest(strings=True).predict(queries)).all()


def test_the_user_chooses_the_output(tmp_path: Path) -> None:
    path = save_onnx(tmp_path / "m.onnx", end="decoys")
    assert ask(path, options={"output_name": "label"}).access == Access.LABEL
    with pytest.raises(UsageError, match="label, features, logits"):
        ask(path, options={"output_name": "nonsense"})


def test_several_outputs_that_fit_nothing(tmp_path: Path) -> None:
    nodes = [helper.make_node("Identity", ["x"], ["a"]), helper.make_node("Neg", ["x"], ["b"])]
    shape = (TensorProto.FLOAT, ["n", 6])
    model = assemble(nodes, {"x": shape}, {"a": shape, "b": shape}, [])
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    with open_suspect(target(tmp_path / "m.onnx", spec=VECTOR_SPEC)) as suspect, pytest.raises(UsageError, match="output_name"):
        suspect.ask(vectors(5))


def test_another_number_of_classes_is_said(tmp_path: Path) -> None:
    with pytest.raises(SuspectError, match="4 classes, the bundle's victim has 9"):
        ask(save_onnx(tmp_path / "m.onnx"), num_classes=9)


def test_several_inputs_are_named(tmp_path: Path) -> None:
    shape = (TensorProto.FLOAT, ["n", 6])
    model = assemble([helper.make_node("Add", ["left", "right"], ["y"])], {"left": shape, "right": shape}, {"y": shape}, [])
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(UsageError, match="left, right"):
        open_suspect(target(tmp_path / "m.onnx"))


def test_other_inputs_than_numbers_are_refused(tmp_path: Path) -> None:
    text = (TensorProto.STRING, ["n", 6])
    model = assemble([helper.make_node("Identity", ["x"], ["y"])], {"x": text}, {"y": text}, [])
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(UsageError, match="string"):
        open_suspect(target(tmp_path / "m.onnx"))


def test_a_failing_run_is_the_suspects_error(tmp_path: Path) -> None:
    path = save_onnx(tmp_path / "m.onnx", dims=("n", "a", "b", "c"))
    with open_suspect(target(path, layout="NHWC")) as suspect, pytest.raises(SuspectError, match="failed") as caught:
        suspect.ask(QUERIES)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


def test_a_closed_suspect_answers_nothing(tmp_path: Path) -> None:
    suspect = open_suspect(target(save_onnx(tmp_path / "m.onnx")))
    suspect.close()
    with pytest.raises(SuspectError, match="closed"):
        suspect.ask(QUERIES)


def _external(path: Path, location: str, where: str = "initializer") -> Path:
    """The network with one tensor in another file, as an initializer, in a subgraph, in an attribute or in a function."""
    model = make_onnx()
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == "dense")
    (path.parent / "dense.bin").write_bytes(tensor.raw_data)
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    if where != "initializer":
        hidden = TensorProto()
        hidden.CopyFrom(tensor)
        tensor.CopyFrom(next(t for t in make_onnx().graph.initializer if t.name == "dense"))
        constant = helper.make_node("Constant", [], ["hidden"], value=hidden)
        if where == "subgraph":
            graph = helper.make_graph(
                [constant], "branch", [], [helper.make_tensor_value_info("hidden", TensorProto.FLOAT, [6, CLASSES])]
            )
            model.graph.node.append(helper.make_node("If", ["truth"], ["out"], then_branch=graph, else_branch=graph))
        elif where == "function":
            model.functions.append(helper.make_function("own", "F", [], ["hidden"], [constant], [helper.make_opsetid("", 17)]))
        else:
            model.graph.node.append(constant)
    path.write_bytes(model.SerializeToString())
    return path


def test_weights_beside_the_model(tmp_path: Path) -> None:
    path = _external(tmp_path / "m.onnx", "dense.bin")
    check_adapter(lambda: open_suspect(target(path)), QUERIES, expected_answers(QUERIES))
    with open_suspect(target(path)) as suspect:
        digest = hashlib.sha256((tmp_path / "dense.bin").read_bytes()).hexdigest()
        assert suspect.card.runtime["external:dense.bin"] == f"sha256:{digest}"


@pytest.mark.parametrize("where", ["initializer", "subgraph", "attribute", "function"])
@pytest.mark.parametrize(
    "location",
    ["../dense.bin", "/etc/hostname", "sub/../../dense.bin", "..\\dense.bin", "C:\\dense.bin", "*/_ORT_MEM_ADDR_/*", ""],
)
def test_weights_outside_the_folder_are_refused(tmp_path: Path, location: str, where: str) -> None:
    folder = tmp_path / "inner"
    folder.mkdir()
    (tmp_path / "dense.bin").write_bytes(bytes(96))
    with pytest.raises(ArtefactError, match="outside its own folder") as caught:
        open_suspect(target(_external(folder / "m.onnx", location, where)))
    assert caught.value.exit_code == 3


def test_weights_through_a_link_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "inner"
    folder.mkdir()
    path = _external(folder / "m.onnx", "link.bin")
    (folder / "dense.bin").rename(tmp_path / "dense.bin")
    (folder / "link.bin").symlink_to(tmp_path / "dense.bin")
    with pytest.raises(ArtefactError, match="outside its own folder"):
        open_suspect(target(path))


def test_missing_weights_are_named(tmp_path: Path) -> None:
    path = _external(tmp_path / "m.onnx", "gone.bin")
    with pytest.raises(ArtefactError, match=r"gone\.bin"):
        open_suspect(target(path))


@pytest.mark.parametrize("content", ["text", "truncated", "corrupt", "empty", "location"])
def test_what_is_not_a_model_is_refused_in_one_line(tmp_path: Path, content: str, capfd: pytest.CaptureFixture[str]) -> None:
    whole = make_onnx().SerializeToString()
    corrupt = bytes(byte ^ 0x5A for byte in whole)
    made = {
        "text": b"hello\nworld\n",
        "truncated": whole[:200],
        "corrupt": corrupt,
        "empty": b"",
        "location": b"a location\n" * 9,
    }
    path = tmp_path / "m.onnx"
    path.write_bytes(made[content])
    with pytest.raises(ArtefactError) as caught:
        open_suspect(target(path))
    assert "\n" not in str(caught.value)
    assert "[ONNXRuntimeError]" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_an_unknown_operator_is_an_artefact_error(tmp_path: Path) -> None:
    shape = (TensorProto.FLOAT, ["n", 6])
    model = assemble([helper.make_node("Unheard", ["x"], ["y"])], {"x": shape}, {"y": shape}, [])
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(ArtefactError, match="Unheard"):
        open_suspect(target(tmp_path / "m.onnx"))


def test_devices(tmp_path: Path) -> None:
    path = save_onnx(tmp_path / "m.onnx")
    with open_suspect(target(path, device="cpu")) as suspect:
        assert suspect.card.runtime["provider"] == "CPUExecutionProvider"
    with pytest.raises(UsageError, match="not known"):
        open_suspect(target(path, device="abacus"))
    if not gpu_present():  # said so, with exit code 2, rather than run on the CPU
        with pytest.raises(UsageError, match=r"--device cuda: no GPU is found|built without CUDA"):
            open_suspect(target(path, device="cuda"))
        return
    with open_suspect(target(path, device="cuda")) as suspect:
        assert suspect.card.runtime["provider"] == "CUDAExecutionProvider"
        assert_same(suspect.ask(QUERIES), expected_answers(QUERIES))


def test_opening_is_silent_and_imports_neither_onnx_nor_torch(tmp_path: Path) -> None:
    path = save_onnx(tmp_path / "m.onnx")
    program = (
        "import sys; from onnxaudit.registry import open_suspect; from onnxaudit.suspect import InputSpec, Target\n"
        f"open_suspect(Target({str(path)!r}, InputSpec((8, 8, 3))))\n"
        "assert not {'onnx', 'torch', 'scipy', 'sklearn'} & set(sys.modules), 'too much is imported'"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")


def test_only_the_output_that_is_read_is_asked_for(tmp_path: Path) -> None:
    with open_suspect(target(save_onnx(tmp_path / "m.onnx", end="decoys"))) as suspect:
        assert isinstance(suspect, OnnxSuspect)
        first = suspect.ask(QUERIES)
        assert suspect._output == "logits"
        assert_same(suspect.ask(QUERIES), first)


def test_the_models_are_valid() -> None:
    variants: list[dict[str, Any]] = [{}, {"layout": "NHWC", "dims": ("n", 8, 8, 3)}, {"dtype": "uint8"}, {"end": "decoys"}]
    for options in variants:
        onnx.checker.check_model(make_onnx(**options))
