"""The dialects of public servers: what each is sent, and what its replies mean."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable
from email import message_from_bytes
from email.message import Message
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from onnxaudit.answers import Access
from onnxaudit.errors import SuspectError, UsageError
from onnxaudit.suspect import InputSpec
from onnxaudit_adapters.http.detect import by_url
from onnxaudit_adapters.http.dialects import Dialect, OneAnswerError, Reply
from onnxaudit_adapters.http.huggingface import HuggingFace
from onnxaudit_adapters.http.invocations import Invocations
from onnxaudit_adapters.http.names import ClassNames
from onnxaudit_adapters.http.options import parse_address
from onnxaudit_adapters.http.plain import Plain
from onnxaudit_adapters.http.strict_json import ReplyError
from onnxaudit_adapters.http.tfserving import TfServing, predict_address
from onnxaudit_adapters.http.torchserve import TorchServe
from onnxaudit_adapters.http.v2 import V2

ADDRESS = parse_address("http://host/v1/models/m:predict")
CLASSIFY = parse_address("http://host/v1/models/m:classify")
VECTOR = InputSpec((3,), layout="NC")
IMAGE = InputSpec((4, 4, 3), mean=(0.5,), channels="BGR")
PIXELS = np.random.default_rng(1).integers(0, 256, (2, 4, 4, 3), np.uint8)
NAMES = ("cat", "dog", "fish", "T-shirt/top")
ROWS = [[0.25, 0.5, 0.125, 0.125], [0.5, 0.25, 0.125, 0.125]]


def reply(document: object) -> Reply:
    return Reply(200, json.dumps(document).encode())


def named(dialect: Callable[..., Dialect], **more: Any) -> Dialect:
    """The dialect, told four classes and what they are called."""
    return dialect(ADDRESS, num_classes=4, names=ClassNames(NAMES), **more)


def as_pixels(png: bytes) -> NDArray[np.uint8]:
    return np.asarray(Image.open(io.BytesIO(png)))


# What is sent.


def test_tfserving_sends_instances_alone_or_by_name() -> None:
    queries = np.array([[1, 2, 0.1], [3, 4, 5]], np.float32)
    assert json.loads(TfServing(ADDRESS).encode(queries, VECTOR).body) == {"instances": queries.tolist()}
    rows = [{"x": row} for row in queries.tolist()]
    assert json.loads(TfServing(ADDRESS, "x").encode(queries, VECTOR).body) == {"instances": rows}
    assert json.loads(TfServing(CLASSIFY, "x").encode(queries, VECTOR).body) == {"examples": rows}
    with pytest.raises(UsageError, match="--input-name"):
        TfServing(CLASSIFY).encode(queries, VECTOR)


def test_tfserving_sends_images_as_bytes() -> None:
    sent = json.loads(TfServing(ADDRESS, images=True).encode(PIXELS, IMAGE).body)["instances"]
    for row, pixels in zip(sent, PIXELS, strict=True):
        np.testing.assert_array_equal(as_pixels(base64.b64decode(row["b64"])), pixels)


@pytest.mark.parametrize(
    ("name", "form"),
    [
        (None, lambda rows: {"inputs": rows}),
        ("instances", lambda rows: {"instances": rows}),
        ("x", lambda r: {"inputs": {"x": r}}),
    ],
)
def test_invocations_sends_inputs_instances_or_a_named_tensor(name: str | None, form: Callable[[object], object]) -> None:
    queries = np.array([[1, 2, 0.1]], np.float32)
    request = Invocations(ADDRESS, name).encode(queries, VECTOR)
    assert json.loads(request.body) == form(queries.tolist())
    assert request.headers["Content-Type"] == "application/json"


def test_invocations_sends_an_npy_file_or_an_image() -> None:
    request = Invocations(ADDRESS, form="npy").encode(PIXELS, IMAGE)
    assert request.headers["Content-Type"] == "application/x-npy"
    np.testing.assert_array_equal(np.load(io.BytesIO(request.body), allow_pickle=False), IMAGE.encode(PIXELS))
    request = Invocations(ADDRESS, form="png").encode(PIXELS[:1], IMAGE)
    assert request.headers["Content-Type"] == "image/png"
    np.testing.assert_array_equal(as_pixels(request.body), PIXELS[0])


def test_torchserve_sends_an_image_or_a_form() -> None:
    request = TorchServe(ADDRESS).encode(PIXELS[:1], IMAGE)
    np.testing.assert_array_equal(as_pixels(request.body), PIXELS[0])
    form = TorchServe(ADDRESS, "data").encode(PIXELS[:1], IMAGE)
    message = message_from_bytes(f"Content-Type: {form.headers['Content-Type']}\r\n\r\n".encode() + form.body)
    parts = message.get_payload()
    assert isinstance(parts, list)
    (part,) = parts
    assert isinstance(part, Message)
    assert part.get_param("name", header="content-disposition") == "data"
    png = part.get_payload(decode=True)
    assert isinstance(png, bytes)
    np.testing.assert_array_equal(as_pixels(png), PIXELS[0])


def test_huggingface_sends_base64_with_the_number_of_classes_or_the_image() -> None:
    sent = json.loads(named(HuggingFace).encode(PIXELS[:1], IMAGE).body)
    assert sent["parameters"] == {"top_k": 4}
    np.testing.assert_array_equal(as_pixels(base64.b64decode(sent["inputs"])), PIXELS[0])
    np.testing.assert_array_equal(as_pixels(HuggingFace(ADDRESS, raw=True).encode(PIXELS[:1], IMAGE).body), PIXELS[0])


def test_images_of_another_size_are_resized_and_grey_ones_stay_grey() -> None:
    assert as_pixels(HuggingFace(ADDRESS, raw=True).encode(PIXELS[:1], InputSpec((8, 6, 3))).body).shape == (8, 6, 3)
    grey = PIXELS[:1, ..., :1]
    body = HuggingFace(ADDRESS, raw=True).encode(grey, InputSpec((4, 4, 1))).body
    np.testing.assert_array_equal(as_pixels(body), grey[0, ..., 0])


@pytest.mark.parametrize("dialect", [TorchServe(ADDRESS), HuggingFace(ADDRESS), Invocations(ADDRESS, form="png")])
def test_vectors_are_no_images(dialect: Dialect) -> None:
    with pytest.raises(UsageError, match="sends images"):
        dialect.encode(np.zeros((1, 3), np.float32), VECTOR)


# What comes back.


@pytest.mark.parametrize(
    ("dialect", "document"),
    [
        (TfServing, {"predictions": ROWS}),
        (TfServing, {"predictions": ROWS, "deployedModelId": "7", "model": "m", "modelVersionId": "1"}),
        (TfServing, {"outputs": ROWS}),
        (TfServing, {"outputs": {"probabilities": ROWS}}),
        (TfServing, {"predictions": [{"probabilities": row, "class": 1} for row in ROWS]}),
        (Invocations, {"predictions": ROWS}),
        (Invocations, {"predictions": {"logits": ROWS}}),
        (Invocations, {"predictions": [{"scores": row} for row in ROWS]}),
        (Invocations, ROWS),
        (Invocations, {"predictions": ROWS, "labels": [1, 0]}),
        (TorchServe, [ROWS[0], ROWS[1]]),
        (Plain, {"output": ROWS}),
        (Plain, {"result": {"classes": [[{"label": n, "score": s} for n, s in zip(NAMES, row, strict=True)] for row in ROWS]}}),
    ],
)
def test_rows_of_scores(dialect: Callable[..., Dialect], document: object) -> None:
    answers = named(dialect).decode(reply(document), 2)
    assert answers.access == Access.PROBS
    assert answers.dense().tolist() == ROWS


@pytest.mark.parametrize(
    ("dialect", "document"),
    [
        (HuggingFace, [{"label": "dog", "score": 0.5}, {"label": "cat", "score": 0.25}]),
        (HuggingFace, [[{"label": "cat", "score": 0.25}, {"label": "dog", "score": 0.5}]]),
        (HuggingFace, [{"label": "LABEL_1", "score": 0.5}, {"label": "LABEL_0", "score": 0.25}]),
        (TorchServe, {"dog": 0.5, "cat": 0.25}),
        (TorchServe, {"1": 0.5, "0": 0.25}),
        (TorchServe, [{"1": 0.5, "0": 0.25}]),
        (Plain, [{"label": "class_1", "score": 0.5}, {"label": "class_0", "score": 0.25}]),
        (Plain, {"result": {"classes": [{"name": "DOG", "confidence": 0.5}, {"name": "cat", "confidence": 0.25}]}}),
        (Plain, {"labels": ["dog", "cat"], "scores": [0.5, 0.25], "took": 3}),
        (Invocations, {"predictions": [{"label": "dog", "probability": 0.5}, {"label": "cat", "probability": 0.25}]}),
    ],
)
def test_rankings_of_one_query(dialect: Callable[..., Dialect], document: object) -> None:
    answers = named(dialect).decode(reply(document), 1)
    assert (answers.access, answers.num_classes) == (Access.TOPK, 4)
    assert answers.classes.tolist() == [[1, 0]]
    assert answers.scores is not None
    assert answers.scores.tolist() == [[0.5, 0.25]]


def test_a_ranking_of_all_classes_is_a_row_of_scores_whatever_its_order() -> None:
    document = [{"label": name, "score": score} for name, score in zip(reversed(NAMES), reversed(ROWS[0]), strict=True)]
    for dialect in (named(HuggingFace), named(Plain)):
        assert dialect.decode(reply(document), 1).dense().tolist() == [ROWS[0]]
    shifted = [{"label": name, "score": score * 8 - 3} for name, score in zip(NAMES, ROWS[0], strict=True)]
    assert named(HuggingFace).decode(reply(shifted), 1).access == Access.LOGITS


def test_the_top_of_logits_or_sigmoids_is_a_label() -> None:
    for scores in ([7.5, 2.25], [0.9, 0.8], [0.5, -0.25]):
        document = [{"label": name, "score": score} for name, score in zip(("fish", "cat"), scores, strict=True)]
        answers = named(HuggingFace).decode(reply(document), 1)
        assert (answers.access, answers.labels.tolist()) == (Access.LABEL, [2])


def test_tfserving_classify_answers_pairs() -> None:
    dialect = TfServing(CLASSIFY, "x", num_classes=4, names=ClassNames(NAMES))
    answers = dialect.decode(reply({"results": [[["cat", 0.25], ["dog", 0.5]], [["fish", 0.75], ["cat", 0.125]]]}), 2)
    assert answers.classes.tolist() == [[1, 0], [2, 0]]
    for results in ([[["cat", 0.25]]] * 3, [[["cat"]], [["dog"]]], [3, 4], "x"):
        with pytest.raises(ReplyError):
            dialect.decode(reply({"results": results}), 2)


def test_labels_by_name() -> None:
    assert named(Plain).decode(reply({"label": "t-shirt/top"}), 1).labels.tolist() == [3]
    assert named(Plain).decode(reply({"labels": ["dog", "cat"]}), 2).labels.tolist() == [1, 0]
    assert named(TfServing).decode(reply({"predictions": ["dog", "cat"]}), 2).access == Access.LABEL


@pytest.mark.parametrize(
    ("dialect", "document"),
    [
        (TfServing, {"error": "x"}),
        (TfServing, {"predictions": [ROWS[0], [1.0]]}),
        (HuggingFace, {"error": "Model is loading", "estimated_time": 20.0}),
        (HuggingFace, []),
        (HuggingFace, [{"label": "cat"}]),
        (HuggingFace, [{"label": "cat", "score": "0.5"}]),
        (HuggingFace, [{"label": "cat", "score": True}]),
        (HuggingFace, [{"label": "cat", "score": 0.5}, {"label": "cat", "score": 0.25}]),
        (HuggingFace, [{"label": "cat", "score": 0.5}, {"label": "horse", "score": 0.25}]),
        (HuggingFace, [{"label": "cat", "score": 10**400}, {"label": "dog", "score": 0.25}]),
        (TorchServe, {"code": 503, "type": "InternalServerException"}),
        (TorchServe, {"cat": 0.5, "horse": 0.25}),
        (TorchServe, {}),
        (Plain, {"cat": 0.5, "dog": 0.25}),
        (Invocations, {"predictions": {"a": [[0.5, 0.5]] * 2}}),
    ],
)
def test_what_is_no_answer_is_refused(dialect: Callable[..., Dialect], document: object) -> None:
    with pytest.raises(SuspectError):
        named(dialect).decode(reply(document), 1)


def test_a_ranking_in_reply_to_several_queries_is_one_answer() -> None:
    document = [{"label": name, "score": 0.25} for name in NAMES]
    with pytest.raises(OneAnswerError):
        named(Plain).decode(reply(document), 2)
    with pytest.raises(OneAnswerError):
        named(Invocations).decode(reply({"predictions": document}), 2)


def test_names_that_nothing_explains_are_numbered_only_where_that_is_asked_for() -> None:
    with pytest.raises(ReplyError, match=r"'horse'.*nothing says"):
        ClassNames(NAMES).index("horse")
    found = ClassNames(discover=True)
    horse, seven, again, label = (found.index(name) for name in ("horse", "7", "horse", "LABEL_0"))
    assert horse == again
    assert len({horse, seven, label}) == 3


def test_names_that_differ_only_in_case_keep_their_numbers() -> None:
    names = ClassNames(("a", "A", "b_c"))
    assert [names.index(name) for name in ("a", "A", "B c", "2")] == [0, 1, 2, 2]


# Triton's extensions of the Open Inference Protocol.


def binary_reply(outputs: list[dict[str, Any]], *data: bytes) -> Reply:
    described = [{**output, "parameters": {"binary_data_size": len(d)}} for output, d in zip(outputs, data, strict=True)]
    head = json.dumps({"outputs": described}).encode()
    return Reply(200, head + b"".join(data), {"inference-header-content-length": str(len(head))})


@pytest.mark.parametrize("dtype", ["float32", "float16", "uint8"])
def test_v2_binary_sends_the_tensor_after_the_json(dtype: str) -> None:
    spec = InputSpec((4, 4, 3), dtype=dtype)
    request = V2(ADDRESS, "x", form="binary").encode(PIXELS, spec)
    length = int(request.headers["Inference-Header-Content-Length"])
    document = json.loads(request.body[:length])
    (sent,) = document["inputs"]
    assert sent["parameters"] == {"binary_data_size": len(request.body) - length}
    assert document["parameters"] == {"binary_data_output": True}
    assert document["id"]
    got = np.frombuffer(request.body[length:], np.dtype(dtype).newbyteorder("<")).reshape(sent["shape"])
    np.testing.assert_array_equal(got, spec.encode(PIXELS))
    chosen = json.loads(V2(ADDRESS, "x", "y", form="binary").encode(PIXELS, spec).body.partition(b"}]}")[0] + b"}]}")
    assert chosen["outputs"] == [{"name": "y", "parameters": {"binary_data": True}}]


def test_v2_binary_reads_tensors_and_text() -> None:
    rows = np.array(ROWS, np.float32)
    scores = {"name": "y", "datatype": "FP32", "shape": [2, 4]}
    words = {"name": "label", "datatype": "BYTES", "shape": [2]}
    text = b"".join(len(word).to_bytes(4, "little") + word for word in (b"dog", b"cat"))
    answers = V2(ADDRESS, "x", form="binary").decode(binary_reply([scores, words], rows.tobytes(), text), 2)
    np.testing.assert_array_equal(answers.dense(), rows)
    chosen = V2(ADDRESS, "x", "label", 4, names=ClassNames(NAMES), form="binary")
    assert chosen.decode(binary_reply([scores, words], rows.tobytes(), text), 2).labels.tolist() == [1, 0]
    in_json = reply({"outputs": [{**scores, "data": rows.ravel().tolist()}]})
    np.testing.assert_array_equal(V2(ADDRESS, "x", form="binary").decode(in_json, 2).dense(), rows)


@pytest.mark.parametrize(
    ("output", "data"),
    [
        ({"datatype": "FP32", "shape": [2, 2]}, b"\0" * 15),
        ({"datatype": "FP32", "shape": [2, 2]}, b"\0" * 12),
        ({"datatype": "FP32", "shape": [2, 2]}, np.array([1, np.nan, 0, 0], np.float32).tobytes()),
        ({"datatype": "BF16", "shape": [2, 2]}, b"\0" * 8),
        ({"datatype": "BYTES", "shape": [2]}, b"\xff\xff\xff\xff" + b"x" * 8),
        ({"datatype": "BYTES", "shape": [2]}, b"\1\0\0\0a"),
        ({"datatype": "BYTES", "shape": [2]}, b"\1\0\0\0a" * 3),
        ({"datatype": "BYTES", "shape": ["2"]}, b"\1\0\0\0a\1\0\0"),
    ],
)
def test_v2_binary_refuses_bytes_that_are_not_what_is_said(output: dict[str, Any], data: bytes) -> None:
    with pytest.raises(ReplyError):
        V2(ADDRESS, "x").decode(binary_reply([{"name": "y", **output}], data), 2)


@pytest.mark.parametrize("length", ["-1", "x", "99999", "9" * 30, "0"])
def test_v2_binary_refuses_a_length_that_the_reply_does_not_have(length: str) -> None:
    with pytest.raises(ReplyError):
        V2(ADDRESS, "x").decode(Reply(200, b'{"outputs":[]}', {"inference-header-content-length": length}), 1)


def test_v2_binary_refuses_bytes_of_no_output() -> None:
    good = binary_reply([{"name": "y", "datatype": "FP32", "shape": [1, 2]}], b"\0" * 8)
    with pytest.raises(ReplyError, match="belong to no output"):
        V2(ADDRESS, "x").decode(Reply(200, good.body + b"x", good.headers), 1)


def test_v2_classes_asks_for_a_ranking_and_reads_it() -> None:
    dialect = V2(ADDRESS, "x", "y", 4, form="classes")
    sent = json.loads(dialect.encode(np.zeros((2, 3), np.float32), VECTOR).body)
    assert sent["outputs"] == [{"name": "y", "parameters": {"classification": 4}}]
    data = ["0.500000:1", "0.250000:0", "0.125000:2", "0.125000:3", "0.500000:0", "0.250000:1:dog", "0.125000:2", "0.125000:3"]
    document = {"outputs": [{"name": "y", "datatype": "BYTES", "shape": [2, 4], "data": data}]}
    assert dialect.decode(reply(document), 2).dense().tolist() == ROWS
    document["outputs"][0].update(shape=[2, 2], data=["0.5:1", "0.25:0", "0.5:0:cat", "0.25:1:dog"])
    assert dialect.decode(reply(document), 2).classes.tolist() == [[1, 0], [0, 1]]
    for bad in (["0.5:1", "0.25:1", "0.5:0", "0.25:1"], ["1e:1", "0.25:0", "0.5:0", "0.25:1"]):
        document["outputs"][0]["data"] = bad
        with pytest.raises(ReplyError):
            dialect.decode(reply(document), 2)


# Which dialect a URL tells.


@pytest.mark.parametrize(
    ("url", "dialect"),
    [
        ("http://h/v2/models/m", "v2"),
        ("http://h/v1/models/m", "tfserving"),
        ("http://h/v1/models/m/versions/3:predict", "tfserving"),
        ("http://h/v1/models/m:classify", "tfserving"),
        ("https://h/v1/projects/p/locations/l/endpoints/7:predict", "tfserving"),
        ("http://h/invocations", "invocations"),
        ("https://h/endpoints/e/invocations", "invocations"),
        ("http://h/predictions/m", "torchserve"),
        ("http://h/predictions/m/2.0", "torchserve"),
        ("https://router.huggingface.co/hf-inference/models/a/b", "huggingface"),
        ("https://api-inference.huggingface.co/models/a/b", "huggingface"),
        ("https://nothuggingface.co/models/a/b", None),
        ("http://h/models/a/b", None),
        ("http://h/predict", None),
        ("http://h/predictions", None),
        ("http://h", None),
    ],
)
def test_what_a_url_tells(url: str, dialect: str | None) -> None:
    assert by_url(parse_address(url)) == dialect


def test_a_model_of_tfserving_is_asked_to_predict() -> None:
    place = predict_address(parse_address("http://h/v1/models/m/?key=1"))
    assert place is not None
    assert place.url == "http://h/v1/models/m:predict?key=1"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.sampled_from(["cat", "x"]),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(["predictions", "results", "label", "score", "cat", "dog", "outputs"]), inner)
    ),
    max_leaves=12,
)


@given(JSON, st.integers(1, 3))
@settings(max_examples=300, deadline=None)
def test_any_json_gives_n_answers_or_an_error_for_the_user(document: object, n: int) -> None:
    classify = TfServing(CLASSIFY, "x", num_classes=4, names=ClassNames(NAMES))
    for dialect in (classify, *map(named, (TfServing, Invocations, TorchServe, HuggingFace, Plain))):
        try:
            answers = dialect.decode(reply(document), n)
        except (SuspectError, UsageError):
            continue
        assert len(answers) == n


@given(st.binary(max_size=64), st.integers(0, 80))
@settings(max_examples=300, deadline=None)
def test_any_bytes_after_a_header_are_read_or_refused(body: bytes, length: int) -> None:
    head = b'{"outputs":[{"name":"y","datatype":"FP32","shape":[1,2],"parameters":{"binary_data_size":8}}]}'
    for whole, said in ((body, length), (head + body, len(head))):
        try:
            answers = V2(ADDRESS, "x").decode(Reply(200, whole, {"inference-header-content-length": str(said)}), 1)
        except (SuspectError, UsageError):
            continue
        assert len(answers) == 1
