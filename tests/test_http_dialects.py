"""Dialects are pure: queries to bytes, bytes to answers, and nothing but exactly n answers gets through."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from onnxaudit.answers import Access
from onnxaudit.errors import SuspectError, UsageError
from onnxaudit.suspect import InputSpec
from onnxaudit_adapters.http.dialects import OneAnswerError, Reply
from onnxaudit_adapters.http.options import parse_address
from onnxaudit_adapters.http.plain import Plain
from onnxaudit_adapters.http.strict_json import ReplyError, parse
from onnxaudit_adapters.http.v2 import V2, dtype_of, endpoints, read_metadata

ADDRESS = parse_address("http://host/v2/models/m/infer")
VECTOR = InputSpec((3,), layout="NC")
IMAGE = InputSpec((4, 4, 3))
FLOATS = st.floats(-(2.0**100), 2.0**100, width=32)
ROWS = hnp.arrays(np.float32, st.tuples(st.integers(1, 5), st.integers(2, 6)), elements=FLOATS)


def reply(document: object) -> Reply:
    return Reply(200, json.dumps(document).encode())


def v2(*outputs: dict[str, object]) -> Reply:
    return reply({"model_name": "m", "outputs": list(outputs)})


def tensor(name: str, datatype: str, shape: list[int], data: object) -> dict[str, object]:
    return {"name": name, "datatype": datatype, "shape": shape, "data": data}


@given(hnp.arrays(np.float32, st.tuples(st.integers(1, 4), st.just(3)), elements=FLOATS))
@settings(max_examples=50, deadline=None)
def test_v2_sends_every_float_exactly(queries: NDArray[np.float32]) -> None:
    request = V2(ADDRESS, "x").encode(queries, VECTOR)
    document = json.loads(request.body)
    sent = document["inputs"][0]
    assert sent["name"] == "x"
    assert sent["datatype"] == "FP32"
    assert request.queries == len(queries)
    assert document["id"]
    np.testing.assert_array_equal(np.array(sent["data"], np.float32).reshape(sent["shape"]), queries)


@pytest.mark.parametrize(
    ("dtype", "datatype"), [("float32", "FP32"), ("float16", "FP16"), ("float64", "FP64"), ("uint8", "UINT8")]
)
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_v2_sends_images_as_the_spec_encodes_them(dtype: str, datatype: str, layout: str) -> None:
    queries = np.random.default_rng(1).integers(0, 256, (2, 4, 4, 3), np.uint8)
    spec = InputSpec((4, 4, 3), layout=layout, dtype=dtype)
    sent = json.loads(V2(ADDRESS, "x", output_name="y").encode(queries, spec).body)
    assert sent["outputs"] == [{"name": "y"}]
    assert sent["inputs"][0]["datatype"] == datatype
    got = np.array(sent["inputs"][0]["data"], dtype).reshape(sent["inputs"][0]["shape"])
    np.testing.assert_array_equal(got, spec.encode(queries))


def test_a_spec_that_makes_infinities_is_refused() -> None:
    broken = InputSpec((4, 4, 3), dtype="float16", scale=1e6)
    with pytest.raises(UsageError, match="NaN or infinity"), np.errstate(over="ignore"):
        V2(ADDRESS, "x").encode(np.full((1, 4, 4, 3), 255, np.uint8), broken)


@given(ROWS)
@settings(max_examples=50, deadline=None)
def test_scores_come_back_exactly_in_both_dialects(rows: NDArray[np.float32]) -> None:
    flat = v2(tensor("y", "FP32", list(rows.shape), rows.ravel().tolist()))
    nested = v2(tensor("y", "FP32", list(rows.shape), rows.tolist()))
    for answers in (V2(ADDRESS, "x").decode(flat, len(rows)), V2(ADDRESS, "x").decode(nested, len(rows))):
        np.testing.assert_array_equal(answers.dense(), rows)
    for form in (rows.tolist(), {"output": rows.tolist()}, {"predictions": {"logits": rows.tolist()}}):
        np.testing.assert_array_equal(Plain(ADDRESS).decode(reply(form), len(rows)).dense(), rows)


def test_v2_prefers_scores_to_labels_and_the_output_asked_for_to_both() -> None:
    both = v2(tensor("label", "INT64", [2], [1, 0]), tensor("probabilities", "FP32", [2, 2], [0.25, 0.75, 0.5, 0.5]))
    assert V2(ADDRESS, "x").decode(both, 2).access == Access.PROBS
    assert V2(ADDRESS, "x", output_name="label").decode(both, 2).access == Access.LABEL
    with pytest.raises(UsageError, match="no output 'other'"):
        V2(ADDRESS, "x", output_name="other").decode(both, 2)


def test_v2_chooses_between_score_outputs_by_the_number_of_classes() -> None:
    several = v2(tensor("features", "FP32", [1, 4], [1, 2, 3, 4]), tensor("logits", "FP32", [1, 2], [3, 4]))
    assert V2(ADDRESS, "x", num_classes=2).decode(several, 1).dense().tolist() == [[3, 4]]
    with pytest.raises(UsageError, match="features"):
        V2(ADDRESS, "x").decode(several, 1)


@pytest.mark.parametrize(
    "output",
    [
        tensor("y", "INT64", [3], [7, 0, 2]),
        tensor("y", "INT32", [3, 1], [7, 0, 2]),
        tensor("y", "BYTES", [3], ["7", "0", "2"]),
        tensor("y", "BYTES", [3, 1], ["7", "0", "2"]),
    ],
)
def test_v2_reads_labels(output: dict[str, object]) -> None:
    answers = V2(ADDRESS, "x", num_classes=10).decode(v2(output), 3)
    assert (answers.labels.tolist(), answers.access, answers.num_classes) == ([7, 0, 2], Access.LABEL, 10)


@pytest.mark.parametrize(
    "document",
    [
        [],
        {},
        {"error": "out of memory"},
        {"outputs": []},
        {"outputs": [3]},
        {"outputs": [{"name": "y"}]},
        {"outputs": [tensor("y", "FP32", [2, 2], [1, 2, 3])]},
        {"outputs": [tensor("y", "FP32", [3, 2], [1, 2, 3, 4, 5, 6])]},
        {"outputs": [tensor("y", "FP32", [1, 2], [1, 2])]},
        {"outputs": [tensor("y", "FP32", [2], [1, 2])]},
        {"outputs": [tensor("y", "FP32", [2, 2], [1, 2, 3, "4"])]},
        {"outputs": [tensor("y", "FP32", [2, 2], [1, 2, 3, None])]},
        {"outputs": [tensor("y", "FP32", [2, 2], [1, 2, 3, 1e39])]},
        {"outputs": [tensor("y", "FP32", [2, 2], [[1], [2, 3, 4]])]},
        {"outputs": [tensor("y", "FP32", [-1, -4], [1, 2, 3, 4])]},
        {"outputs": [tensor("y", "FP32", [1] * 70, [1])]},
        {"outputs": [tensor("y", "FP32", [2**30, 2**30], [1])]},
        {"outputs": [tensor("y", "INT64", [2, 2], [1, 2, 3, 4])]},
        {"outputs": [tensor("y", "INT64", [2], [1, -1])]},
        {"outputs": [tensor("y", "INT64", [2], [1, 2**80])]},
        {"outputs": [tensor("y", "INT64", [2], [1.5, 2.0])]},
        {"outputs": [tensor("y", "INT64", [2], [])]},
        {"outputs": [tensor("y", "BYTES", [2], ["cat", "dog"])]},
        {"outputs": [tensor("y", "BYTES", [2], ["1", "²"])]},
        {"outputs": [tensor("y", "BOOL", [2], [True, False])]},
    ],
)
def test_v2_refuses_what_is_not_two_answers(document: object) -> None:
    with pytest.raises(SuspectError):
        V2(ADDRESS, "x").decode(reply(document), 2)


@pytest.mark.parametrize(
    ("document", "n", "labels"),
    [
        ({"label": 3}, 1, [3]),
        ({"label": "3"}, 1, [3]),
        ({"label": 3, "score": 0.9}, 1, [3]),
        ({"labels": [3, 1]}, 2, [3, 1]),
        ({"labels": [3, 1], "scores": [0.9, 0.8]}, 2, [3, 1]),
        ([{"label": 3}, {"label": 1}], 2, [3, 1]),
        ({"predictions": [{"label": 3, "score": 0.5}, {"label": 1, "score": 0.4}]}, 2, [3, 1]),
        ({"predictions": [3, 1], "took_ms": [5, 6]}, 2, [3, 1]),
        ([[3], [1]], 2, [3, 1]),
    ],
)
def test_plain_reads_labels(document: object, n: int, labels: list[int]) -> None:
    answers = Plain(ADDRESS).decode(reply(document), n)
    assert (answers.labels.tolist(), answers.access) == (labels, Access.LABEL)


@pytest.mark.parametrize(
    "document",
    [
        [0.25, 0.75],
        {"output": [0.25, 0.75]},
        {"label": 1, "probabilities": [0.25, 0.75]},
        [{"label": 1, "probabilities": [0.25, 0.75]}],
        {"labels": [1], "scores": [[0.25, 0.75]]},
        {"result": {"scores": [[0.25, 0.75]]}},
    ],
)
def test_plain_reads_the_scores_of_a_single_query(document: object) -> None:
    assert Plain(ADDRESS).decode(reply(document), 1).dense().tolist() == [[0.25, 0.75]]


@pytest.mark.parametrize("document", [{"label": 3}, {"labels": [3]}, [[0.5, 0.5]], [0.5, 0.25, 0.25], [{"label": 3}]])
def test_plain_knows_one_answer_to_several_queries(document: object) -> None:
    with pytest.raises(OneAnswerError):
        Plain(ADDRESS).decode(reply(document), 2)


@pytest.mark.parametrize(
    "document",
    [
        None,
        3,
        "3",
        [],
        {},
        [[]],
        {"label": True},
        {"label": None},
        {"label": "cat"},
        {"label": -1},
        {"labels": [1, 2]},
        {"labels": [2, 0, 0], "scores": [0.5, 0.3, 0.2]},
        [{"label": 2, "score": 0.5}, {"label": "cat", "score": 0.3}],
        {"output": [[0.5, 0.5], [0.5, 0.5]]},
        {"output": [[1, 2, 3]]},
        {"output": [[0.5], [0.5, 0.5]]},
        {"detail": "model not loaded"},
        {"score": 0.7},
        {"a": {"b": 1}, "c": {"d": 2}},
    ],
)
def test_plain_refuses_what_is_not_one_answer(document: object) -> None:
    with pytest.raises(SuspectError):
        Plain(ADDRESS).decode(reply(document), 1)


def test_plain_asks_the_user_when_two_fields_may_be_meant() -> None:
    document = {"first": [[0.1, 0.9]], "second": [[0.5, 0.4]], "best": 1}
    with pytest.raises(UsageError, match="first, second"):
        Plain(ADDRESS).decode(reply(document), 1)
    assert Plain(ADDRESS, output_name="second").decode(reply(document), 1).labels.tolist() == [0]
    assert Plain(ADDRESS, output_name="best").decode(reply(document), 1).labels.tolist() == [1]
    with pytest.raises(UsageError, match="no field 'third'"):
        Plain(ADDRESS, output_name="third").decode(reply(document), 1)


def test_plain_sends_an_object_or_a_bare_array() -> None:
    queries = np.array([[1, 2, 0.1]], np.float32)
    assert json.loads(Plain(ADDRESS).encode(queries, VECTOR).body) == {"input": queries.tolist()}
    assert json.loads(Plain(ADDRESS, input_name="x").encode(queries, VECTOR).body) == {"x": queries.tolist()}
    assert json.loads(Plain(ADDRESS, input_name="").encode(queries, VECTOR).body) == queries.tolist()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["outputs", "label", "data", "name", "x"]), inner)
    ),
    max_leaves=12,
)


@given(JSON, st.integers(1, 3))
@settings(max_examples=300, deadline=None)
def test_any_json_gives_n_answers_or_an_error_for_the_user(document: object, n: int) -> None:
    for dialect in (Plain(ADDRESS), V2(ADDRESS, "x")):
        try:
            answers = dialect.decode(reply(document), n)
        except (SuspectError, UsageError):
            continue
        assert len(answers) == n


@given(st.binary(max_size=64))
@settings(max_examples=300, deadline=None)
def test_any_bytes_parse_or_are_refused(body: bytes) -> None:
    try:
        parse(body)
    except ReplyError:
        return
    json.loads(body)


@pytest.mark.parametrize("token", ["NaN", "Infinity", "-Infinity"])
def test_nan_and_infinity_tokens_are_refused(token: str) -> None:
    with pytest.raises(ReplyError, match="contains"):
        parse(f"[[{token}, 1.0]]".encode())


@pytest.mark.parametrize("body", [b"[" * 100_000, b"[" * 33 + b"]" * 33, b'{"a":' * 40 + b"1" + b"}" * 40])
def test_deep_json_is_refused_before_it_is_parsed(body: bytes) -> None:
    with pytest.raises(ReplyError, match="deeper"):
        parse(body)


def test_brackets_in_strings_are_not_depth_and_hostile_quotes_take_no_time() -> None:
    assert parse(json.dumps(["[" * 100, '\\"[[' * 50]).encode()) == ["[" * 100, '\\"[[' * 50]
    with pytest.raises(ReplyError):
        parse(b'"\\"' + b'\\"' * 2_000_000)


def test_a_web_page_is_called_one() -> None:
    with pytest.raises(ReplyError, match="web page"):
        parse(b"\n<!DOCTYPE html><html></html>")


def test_a_number_of_many_digits_is_refused() -> None:
    with pytest.raises(ReplyError):
        parse(b"[" + b"9" * 5000 + b"]")


@pytest.mark.parametrize(
    ("url", "model"),
    [
        ("http://h/v2/models/m", "http://h/v2/models/m"),
        ("http://h/v2/models/m/", "http://h/v2/models/m"),
        ("http://h:8/v2/models/m/versions/2/infer", "http://h:8/v2/models/m/versions/2"),
        ("https://h/prefix/v2/models/m/infer?key=1", "https://h/prefix/v2/models/m?key=1"),
    ],
)
def test_v2_urls(url: str, model: str) -> None:
    found = endpoints(parse_address(url))
    assert found is not None
    assert found.model.url == model
    assert found.infer.url == model.replace("?", "/infer?") if "?" in model else f"{model}/infer"


@pytest.mark.parametrize("url", ["http://h", "http://h/predict", "http://h/v2/models", "http://h/v2/models/m/ready"])
def test_other_urls_are_not_v2(url: str) -> None:
    assert endpoints(parse_address(url)) is None


@pytest.mark.parametrize(
    ("shape", "dims"),
    [
        ([-1, 3, 32, 32], (None, 3, 32, 32)),
        ([8, 3, 32, 32], (8, 3, 32, 32)),
        ([3, 32, 32], (None, 3, 32, 32)),
        ([-1, 28, 28], (None, 28, 28)),
        ([4], (None, 4)),
        ([-1], ()),
        ([], ()),
        ("3x32x32", ()),
        ([-1, "C"], ()),
    ],
)
def test_metadata_shapes(shape: object, dims: tuple[int | None, ...]) -> None:
    found = read_metadata(reply({"inputs": [{"name": "x", "datatype": "FP32", "shape": shape}], "max_batch_size": 8}))
    assert found.inputs == {"x": (dims, "FP32")}
    assert found.max_batch == 8


@pytest.mark.parametrize("document", [{}, {"inputs": []}, {"inputs": None}, {"inputs": [3, {"name": 4}]}, {"parameters": [1]}])
def test_poor_metadata_says_nothing(document: object) -> None:
    assert read_metadata(reply(document)).inputs == {}


def test_an_input_of_text_cannot_be_sent() -> None:
    assert dtype_of("UINT8") == "uint8"
    with pytest.raises(UsageError, match="BYTES"):
        dtype_of("BYTES")
