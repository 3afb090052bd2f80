"""HTTP suspects against a small real server: batches, budget, metadata, which dialect; and the server that ships."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from onnxaudit.answers import Access, Answers
from onnxaudit.errors import BudgetSpent, SuspectError, UsageError
from onnxaudit.suspect import InputSpec, Target
from onnxaudit.testing import check_adapter
from onnxaudit_adapters.http import open_http
from onnxaudit_adapters.http.loopback import serve_onnx
from tests.http_script import (
    EXPECTED,
    METADATA,
    PATH,
    QUERIES,
    SPEC,
    WEIGHTS,
    Answer,
    Script,
    as_json,
    fail,
    opened,
    scores,
    served,
    sometimes,
)


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def _at_most(limit: int, status: int, text: bytes) -> Script:
    def answer(_: int, body: bytes) -> Answer:
        return (status, {}, text) if json.loads(body)["inputs"][0]["shape"][0] > limit else scores(body)

    return Script(answer)


@pytest.mark.parametrize(("status", "text"), [(413, b""), (400, b"inference request Batch-size must be <= 5")])
def test_the_batch_is_halved_and_stays_small(status: int, text: bytes) -> None:
    script = _at_most(5, status, text)
    with served(script) as url, opened(url + PATH) as suspect:
        np.testing.assert_array_equal(suspect.ask(QUERIES).dense(), EXPECTED)
        assert suspect.card.max_batch == 4
        suspect.ask(QUERIES)
    sizes = [json.loads(body)["inputs"][0]["shape"][0] for body in script.posts]
    assert sizes == [16, 8] + [4] * 10


def test_halving_stops_at_one() -> None:
    script = _at_most(0, 413, b"too big")
    error = fail(script)
    assert "413" in str(error)
    assert "cannot be smaller" in str(error)
    assert len(script.posts) == 5


def test_a_batch_that_the_metadata_fixes_is_kept_to() -> None:
    metadata = {PATH: as_json({"inputs": [{"name": "x", "datatype": "FP32", "shape": [8, 3]}]})}
    script = Script(lambda _, body: scores(body), metadata)
    with served(script) as url, opened(url + PATH) as suspect:
        assert suspect.card.batch == 8
        np.testing.assert_array_equal(suspect.ask(QUERIES).dense(), EXPECTED)
        assert suspect.queries_sent == 24  # the padding counts, because it counts at the suspect
    assert all(json.loads(body)["inputs"][0]["shape"] == [8, 3] for body in script.posts)


def test_a_declared_limit_is_kept_to() -> None:
    script = Script(lambda _, body: scores(body), {PATH: as_json({**METADATA, "parameters": {"max_batch_size": 7}})})
    with served(script) as url, opened(url + PATH) as suspect:
        suspect.ask(QUERIES)
    assert [json.loads(body)["inputs"][0]["shape"][0] for body in script.posts] == [7, 7, 6]


def test_the_budget_is_never_exceeded_and_retries_count() -> None:
    with served(sometimes(503)) as url, opened(url + PATH, batch=10, budget=25) as suspect:
        with pytest.raises(BudgetSpent):
            suspect.ask(QUERIES)
        assert suspect.queries_sent == 20
        assert len(suspect.ask(QUERIES[:5])) == 5
        with pytest.raises(BudgetSpent):
            suspect.ask(QUERIES[:1])
        assert suspect.queries_sent == 25


def test_metadata_that_is_missing_asks_for_what_it_lacks() -> None:
    script = Script(lambda _, body: scores(body), {})
    with served(script) as url:
        with pytest.raises(UsageError, match=r"answered 404.*--input.*--input-name"), opened(url + PATH):
            pass
        with opened(url + PATH, shape=(3,), input_name="x") as suspect:
            np.testing.assert_array_equal(suspect.ask(QUERIES).dense(), EXPECTED)


def test_empty_metadata_asks_for_what_it_lacks() -> None:
    script = Script(lambda _, body: scores(body), {PATH: as_json({"name": "m", "inputs": []})})
    with served(script) as url, pytest.raises(UsageError, match="says nothing of its input"), opened(url + PATH):
        pass


def test_several_inputs_need_a_choice() -> None:
    inputs = [{"name": name, "datatype": "FP32", "shape": [-1, 3]} for name in ("a", "x")]
    script = Script(lambda _, body: scores(body), {PATH: as_json({"inputs": inputs})})
    with served(script) as url:
        with pytest.raises(UsageError, match="a, x"), opened(url + PATH):
            pass
        with pytest.raises(UsageError, match="no input 'z'"), opened(url + PATH, input_name="z"):
            pass
        with opened(url + PATH, input_name="x") as suspect:
            suspect.ask(QUERIES)


@pytest.mark.parametrize(
    ("shape", "datatype", "layout", "size"),
    [
        ([-1, 3, 32, 16], "FP32", "NCHW", (32, 16, 3)),
        ([-1, 32, 16, 3], "FP16", "NHWC", (32, 16, 3)),
        ([-1, 1, 28, 28], "FP64", "NCHW", (28, 28, 1)),
        ([-1, 3, -1, -1], "UINT8", "NCHW", (8, 9, 3)),
    ],
)
def test_images_are_read_from_the_metadata(shape: list[int], datatype: str, layout: str, size: tuple[int, ...]) -> None:
    script = Script(
        lambda _, body: scores(body), {PATH: as_json({"inputs": [{"name": "x", "datatype": datatype, "shape": shape}]})}
    )
    with served(script) as url, open_http(Target(url + PATH, InputSpec((8, 9, 3)), options={})) as suspect:
        spec = suspect.card.input
    assert (spec.layout, spec.shape) == (layout, size)
    assert spec.dtype == {"FP32": "float32", "FP16": "float16", "FP64": "float64", "UINT8": "uint8"}[datatype]


def plain(body: bytes, key: str = "output") -> Answer:
    return as_json({key: (np.array(json.loads(body)["input"], np.float32) @ WEIGHTS).tolist()})


def test_plain_is_taken_after_the_trail_and_starts_with_one_query_and_then_two() -> None:
    script = Script(lambda _, body: plain(body), {})
    with served(script) as url, opened(url + "/predict") as suspect:
        np.testing.assert_array_equal(suspect.ask(QUERIES).dense(), EXPECTED)
        assert dict(suspect.card.runtime) == {"dialect": "plain"}
    assert script.gets == ["/v2", "/v1/models", "/ping", "/openapi.json"]
    assert [len(json.loads(body)["input"]) for body in script.posts] == [1, 2, 16, 1]


@pytest.mark.parametrize("answer", [(404, {}, b"nope"), (200, {}, b'{"detail": "x"}')])
def test_a_failed_guess_shows_the_trail(answer: Answer) -> None:
    error = fail(Script(lambda *_: answer, {}), "/predict")
    assert "Asked in the plain dialect" in str(error)
    assert "/v2 answered 404" in str(error)


def test_a_v2_server_without_a_model_in_the_url_says_what_to_give() -> None:
    script = Script(lambda _, body: scores(body))
    assert "/v2/models/NAME" in str(fail(script, ""))
    assert "/v2/models/NAME" in str(fail(script, "/predict", dialect="v2"))
    assert script.posts == []


def test_a_server_of_one_example_a_request_is_asked_one_by_one() -> None:
    def answer(_: int, body: bytes) -> Answer:
        return as_json({"label": int((np.array(json.loads(body)["input"], np.float32) @ WEIGHTS)[0].argmax())})

    script = Script(answer)
    with served(script) as url, opened(url + "/predict", dialect="plain") as suspect:
        answers = suspect.ask(QUERIES)
        assert suspect.card.max_batch == 1
        assert suspect.queries_sent == 22  # two of them to see that it takes one
    assert answers.access == Access.LABEL
    assert answers.labels.tolist() == EXPECTED.argmax(axis=1).tolist()
    assert script.gets == []


def test_one_answer_later_on_is_an_error() -> None:
    script = Script(lambda number, body: plain(body) if number <= 2 else as_json({"output": [[1.5, 2.5, 3.5, 4.5]]}), {})
    assert "1 answer to 16 queries" in str(fail(script, "/predict"))


def test_an_endless_fake_of_another_label_set_is_refused() -> None:
    error = fail(Script(lambda _, body: as_json({"output": [[0.5, 0.5]] * len(json.loads(body)["input"])}), {}), "/predict")
    assert "2 classes" in str(error)


@pytest.mark.parametrize("dialect", ["v2", "plain", "labels"])
def test_http_suspects_keep_the_contract_of_adapters(tmp_path: Path, dialect: str) -> None:
    expected = Answers.from_scores(EXPECTED)
    if dialect == "plain":
        with served(Script(lambda _, body: plain(body), {})) as url:
            check_adapter(lambda: open_http(Target(url + "/predict", SPEC, 4)), QUERIES, expected)
        return
    with serve_onnx(model(tmp_path / "m.onnx"), labels_only=dialect == "labels") as url:
        check_adapter(lambda: open_http(Target(url, SPEC, 4)), QUERIES, expected)


def model(path: Path) -> str:
    """A linear classifier in ONNX."""
    helper: Any = onnx.helper
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "linear",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["n", 3])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["n", 4])],
        [onnx.numpy_helper.from_array(WEIGHTS, "w")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), str(path))
    return str(path)


@pytest.mark.parametrize("labels_only", [False, True])
def test_the_shipped_server_answers_as_the_file_does(tmp_path: Path, labels_only: bool) -> None:
    with serve_onnx(model(tmp_path / "m.onnx"), labels_only=labels_only) as url, opened(url) as suspect:
        answers = suspect.ask(QUERIES)
        assert suspect.card.runtime["server"].startswith("onnxaudit-loopback")
    assert answers.labels.tolist() == EXPECTED.argmax(axis=1).tolist()
    if labels_only:
        assert answers.access == Access.LABEL
    else:
        np.testing.assert_allclose(answers.dense(), EXPECTED, atol=1e-6)


def test_the_shipped_server_refuses_nonsense_and_goes_on(tmp_path: Path) -> None:
    with serve_onnx(model(tmp_path / "m.onnx")) as url:
        for path, queries in ((url, np.zeros((1, 5), np.float32)), (url + "x", QUERIES)):
            with pytest.raises(SuspectError), opened(path, shape=queries.shape[1:], input_name="x") as suspect:
                suspect.ask(queries)
        with pytest.raises(SuspectError, match="404"), opened(url + "/other", dialect="plain") as suspect:
            suspect.ask(QUERIES)
        with opened(url) as suspect:
            assert len(suspect.ask(QUERIES)) == 20
    with pytest.raises(SuspectError, match="could not be reached"), opened(url):
        pass


def test_the_library_for_http_is_imported_only_with_this_adapter() -> None:
    code = (
        "import sys, onnxaudit.registry as r; r.adapters(); assert 'requests' not in sys.modules; import onnxaudit_adapters.http"
    )
    code += "; assert 'requests' in sys.modules and 'torch' not in sys.modules and 'onnxruntime' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
