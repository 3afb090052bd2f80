"""What TensorFlow Serving says of a model's inputs: read where it is there, in the form that its documentation shows."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxaudit.errors import SuspectError, UsageError
from onnxaudit.suspect import InputSpec, Target
from onnxaudit_adapters.http import open_http
from onnxaudit_adapters.http.dialects import Reply
from onnxaudit_adapters.http.options import parse_address
from onnxaudit_adapters.http.strict_json import ReplyError
from onnxaudit_adapters.http.tfserving import metadata_address, read_inputs
from tests.http_script import Answer, Script, as_json, served

MODEL = "/v1/models/m"
IMAGES = InputSpec((4, 4, 1))
PIXELS = np.arange(5 * 16, dtype=np.uint8).reshape(5, 4, 4, 1)
WEIGHTS = np.random.default_rng(3).normal(size=(16, 4)).astype(np.float32)


def tensor(*sizes: int | str, dtype: str = "DT_FLOAT", **said: Any) -> dict[str, Any]:
    dim = [{"size": str(size), "name": ""} for size in sizes]
    return {"dtype": dtype, "tensor_shape": {"dim": dim, "unknown_rank": False, **said}, "name": "serving_default_x:0"}


def metadata(**inputs: Any) -> dict[str, Any]:
    """As the server words it; the signature's map is a message with one field, so its name stands there twice."""
    outputs = {"y": tensor(-1, 4)}
    signatures = {
        "serving_default": {"inputs": inputs, "outputs": outputs, "method_name": "tensorflow/serving/predict"},
        "__saved_model_init_op": {"inputs": {}, "outputs": {}, "method_name": ""},
    }
    spec = {"name": "m", "signature_name": "", "version": "1"}
    return {"model_spec": spec, "metadata": {"signature_def": {"signature_def": signatures}}}


def server(said: Answer | dict[str, Any], shape: tuple[int, ...] = (4, 4, 1)) -> Script:
    """It takes rows of one shape only."""

    def answer(_: int, body: bytes) -> Answer:
        rows = np.array(json.loads(body)["instances"], np.float32)
        if rows.shape[1:] != shape:
            return 400, {}, b"shape"
        return as_json({"predictions": (rows.reshape(len(rows), 16) @ WEIGHTS).tolist()})

    return Script(answer, {f"{MODEL}/metadata": as_json(said) if isinstance(said, dict) else said})


@pytest.mark.parametrize(
    ("sizes", "layout"),
    [((-1, 4, 4, 1), "NHWC"), ((-1, 1, 4, 4), "NCHW"), ((-1, 4, 4), "NHWC"), ((-1, 16), "NC"), (("-1", "-1", "-1", "1"), "NHWC")],
)
def test_the_model_s_own_shape_is_asked(sizes: tuple[int, ...], layout: str) -> None:
    taken = tuple(4 if int(size) == -1 else int(size) for size in sizes[1:])
    script = server(metadata(x=tensor(*sizes)), taken)
    with served(script) as url, open_http(Target(url + MODEL, IMAGES, 4)) as suspect:
        assert suspect.card.input.layout == layout
        answers = suspect.ask(PIXELS)
    expected = (PIXELS.reshape(5, 16).astype(np.float32) * np.float32(1 / 255)) @ WEIGHTS
    np.testing.assert_allclose(answers.dense(), expected, rtol=1e-5, atol=1e-6)
    assert script.gets == [f"{MODEL}/metadata"]


@pytest.mark.parametrize(("dtype", "numpy"), [("DT_HALF", "float16"), ("DT_DOUBLE", "float64"), ("DT_UINT8", "uint8")])
def test_its_type_is_taken(dtype: str, numpy: str) -> None:
    with (
        served(server(metadata(x=tensor(-1, 4, 4, 1, dtype=dtype)))) as url,
        open_http(Target(url + MODEL, IMAGES, 4)) as suspect,
    ):
        assert suspect.card.input.dtype == numpy


def test_a_fixed_batch_is_kept_to() -> None:
    script = server(metadata(x=tensor(4, 4, 4, 1)))
    with served(script) as url, open_http(Target(url + MODEL, IMAGES, 4)) as suspect:
        assert len(suspect.ask(PIXELS)) == 5
    assert [len(json.loads(body)["instances"]) for body in script.posts] == [4, 4]


@pytest.mark.parametrize(
    "said",
    [
        (404, {}, b'{"error":"not found"}'),
        (403, {}, b"Missing Authentication Token"),
        (500, {}, b""),
        (200, {}, b"<html>"),
        (200, {}, b"[" * 100),
        (200, {}, b"null"),
        as_json({"metadata": {"signature_def": None}}),
        as_json({"metadata": {"signature_def": {"signature_def": {"other": {"inputs": {"x": tensor(-1, 9)}}}}}}),
        metadata(),
        metadata(x=7, y=None),
        metadata(x=tensor(-1, 4, unknown_rank=True)),
        metadata(x={"dtype": "DT_FLOAT"}),
        metadata(x=tensor()),
        metadata(x=tensor("1e9", "x")),
        metadata(x=tensor("-1x", "9 ")),
        metadata(x=tensor(-1, "9" * 400)),
        metadata(x=tensor(*[2] * 40)),
        metadata(x={"dtype": "DT_FLOAT", "tensor_shape": {"dim": [{"size": True}, 3, None]}}),
    ],
)
def test_where_nothing_usable_is_said_it_is_as_without(said: Any) -> None:
    with served(server(said, (1, 4, 4))) as url, open_http(Target(url + MODEL, IMAGES, 4)) as suspect:
        assert suspect.card.input == IMAGES
        assert len(suspect.ask(PIXELS)) == 5


@pytest.mark.parametrize(
    ("said", "options", "message"),
    [
        (metadata(a=tensor(-1, 16), b=tensor(-1, 16)), {}, r"takes 2 inputs.*It has a, b: choose with --input-name"),
        (metadata(a=tensor(-1, 16)), {"input_name": "z"}, r"no input 'z'.*It has a"),
        (metadata(a=tensor(-1, dtype="DT_STRING")), {}, r"takes DT_STRING.*--dialect tfserving-png"),
        (metadata(a=tensor(-1, dtype="DT_INT64")), {}, r"takes DT_INT64.*What can be sent: DT_FLOAT"),
        (metadata(a=tensor(-1, 70000, 70000, 3)), {}, "more than 67108864 values"),
        (metadata(a=tensor(-1, 2, 2, 2, 2, 2)), {}, "neither images nor vectors"),
    ],
)
def test_what_cannot_be_filled_is_said_before_any_query(said: dict[str, Any], options: dict[str, Any], message: str) -> None:
    script = server(said)
    with served(script) as url, pytest.raises(UsageError, match=message):
        open_http(Target(url + MODEL, IMAGES, 4, options=options))
    assert script.posts == []


def test_a_missing_key_is_said_before_any_query() -> None:
    script = server((401, {}, b"who are you"))
    with served(script) as url, pytest.raises(SuspectError, match="Authorization header is missing"):
        open_http(Target(url + MODEL, IMAGES, 4))
    assert script.posts == []


def test_where_it_is_asked() -> None:
    places = {
        "http://h/v1/models/m": "http://h/v1/models/m/metadata",
        "http://h/a/v1/models/m/versions/3:predict?key=1": "http://h/a/v1/models/m/versions/3/metadata?key=1",
        "http://h/v1/models/m:classify": None,
        "https://h/v1/projects/p/endpoints/7:predict": None,
    }
    for url, place in places.items():
        found = metadata_address(parse_address(url))
        assert (found and found.url) == place


VALUES = st.recursive(st.none() | st.booleans() | st.integers() | st.text(max_size=5), lambda inner: st.lists(inner, max_size=4))
SHAPES = st.fixed_dictionaries(
    {}, optional={"dim": VALUES | st.lists(st.dictionaries(st.sampled_from(["size", "name"]), VALUES))}
)
INPUTS = st.dictionaries(
    st.text(max_size=5), VALUES | st.fixed_dictionaries({}, optional={"tensor_shape": SHAPES, "dtype": VALUES})
)


@settings(max_examples=200, deadline=None)
@given(INPUTS)
def test_whatever_is_said_is_read_or_left_alone(inputs: dict[str, Any]) -> None:
    try:
        found = read_inputs(Reply(200, json.dumps(metadata(**inputs)).encode()))
    except ReplyError:
        return
    for dims, datatype in found.values():
        assert isinstance(datatype, str)
        assert len(dims) <= 8
        assert all(size is None or 0 < size < 10**9 for size in dims)
