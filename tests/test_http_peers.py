"""A real MLServer in its own environment: over the wire it gives what ONNX Runtime gives here."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from onnxaudit.answers import Access
from onnxaudit.errors import SuspectError, UsageError
from onnxaudit.suspect import InputSpec, Target
from onnxaudit_adapters.http import open_http
from tests.mlserver_peer import running
from tests.peer_bundle import copy_of_victim, found, linear_bundle, other_model

SPEC = InputSpec((8, 8, 3))
QUERIES = np.random.default_rng(3).integers(0, 256, (40, 8, 8, 3), np.uint8)

pytestmark = pytest.mark.servers


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small classifier with both logits and labels: convolution, pooling, a linear layer."""
    helper: Any = onnx.helper
    rng = np.random.default_rng(0)
    weights = {"k": rng.normal(size=(4, 3, 3, 3)), "w": rng.normal(size=(4, 5))}
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["input", "k"], ["c"], pads=[1, 1, 1, 1]),
            helper.make_node("Relu", ["c"], ["r"]),
            helper.make_node("GlobalAveragePool", ["r"], ["g"]),
            helper.make_node("Flatten", ["g"], ["f"]),
            helper.make_node("MatMul", ["f", "w"], ["logits"]),
            helper.make_node("ArgMax", ["logits"], ["label"], axis=1, keepdims=0),
        ],
        "classifier",
        [helper.make_tensor_value_info("input", onnx.TensorProto.FLOAT, ["n", 3, 8, 8])],
        [
            helper.make_tensor_value_info("label", onnx.TensorProto.INT64, ["n"]),
            helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, ["n", 5]),
        ],
        [onnx.numpy_helper.from_array(values.astype(np.float32), name) for name, values in weights.items()],
    )
    path = tmp_path_factory.mktemp("peer") / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), str(path))
    return path


@pytest.fixture(scope="module")
def server(model: Path) -> Iterator[str]:
    """The origin of a running MLServer with that classifier, once with metadata ("suspect") and once without ("mute").

    Beside it: a copy of a bundle's victim, and another model of the same task.
    """
    inputs = {"inputs": [{"name": "input", "datatype": "FP32", "shape": [-1, 3, 8, 8]}]}
    linear = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 1, 4, 4]}]}
    models = {"copy": copy_of_victim(model.parent / "copy.onnx"), "another": other_model(model.parent / "another.onnx")}
    served = {name: (path, linear) for name, path in models.items()}
    with running({"suspect": (model, inputs), "mute": (model, {}), **served}, model.parent) as origin:
        yield origin


def _local(model: Path) -> np.ndarray[Any, np.dtype[np.float32]]:
    session = ort.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    result: np.ndarray[Any, np.dtype[np.float32]] = session.run(["logits"], {"input": SPEC.encode(QUERIES)})[0]
    return result


@pytest.mark.parametrize("tail", ["", "/", "/infer"])
def test_mlserver_gives_the_scores_of_onnx_runtime(server: str, model: Path, tail: str) -> None:
    with open_http(Target(f"{server}/v2/models/suspect{tail}", SPEC, 5)) as suspect:
        answers = suspect.ask(QUERIES)
        assert suspect.card.runtime["server"] == "mlserver 1.7.1"
        assert (suspect.card.input.layout, suspect.card.input.shape, suspect.card.input.dtype) == ("NCHW", (8, 8, 3), "float32")
        assert getattr(suspect, "queries_sent", None) == 40
    assert answers.access == Access.LOGITS
    np.testing.assert_allclose(answers.dense(), _local(model), atol=1e-6, rtol=0)


@pytest.mark.parametrize(("name", "finding"), [("copy", "derived"), ("another", "not-shown")])
def test_mlserver_gives_the_finding_of_the_file(server: str, model: Path, name: str, finding: str) -> None:
    bundle = linear_bundle()
    expected = found(bundle, str(model.parent / f"{name}.onnx"))
    assert expected[0] == finding
    assert found(bundle, f"{server}/v2/models/{name}") == expected


def test_mlserver_gives_labels_alone_when_they_are_chosen(server: str, model: Path) -> None:
    with open_http(Target(f"{server}/v2/models/suspect", SPEC, 5, options={"output_name": "label"})) as suspect:
        answers = suspect.ask(QUERIES)
    assert answers.access == Access.LABEL
    assert answers.labels.tolist() == _local(model).argmax(axis=1).tolist()


def test_mlserver_without_metadata_needs_the_input(server: str, model: Path) -> None:
    url = f"{server}/v2/models/mute"
    with pytest.raises(UsageError, match="--input-name"):
        open_http(Target(url, SPEC, 5))
    with open_http(Target(url, SPEC, 5, shape=(8, 8, 3), options={"input_name": "input"})) as suspect:
        np.testing.assert_allclose(suspect.ask(QUERIES).dense(), _local(model), atol=1e-6, rtol=0)


def test_mlserver_refusals_are_one_line(server: str) -> None:
    with pytest.raises(UsageError, match=r"404.*--input"):
        open_http(Target(f"{server}/v2/models/other", SPEC, 5))
    wrong = Target(f"{server}/v2/models/mute", SPEC, 5, shape=(4, 4, 3), options={"input_name": "input"})
    with open_http(wrong) as suspect, pytest.raises(SuspectError, match="to the first request"):
        suspect.ask(QUERIES[:2])
    with pytest.raises(UsageError, match="/v2/models/NAME"):
        open_http(Target(server, SPEC, 5))
