"""What real servers said, byte for byte: requests are still what they understood, replies are still understood.

Made by ``python -m tests.peers.record``, which starts each server and asks it; nothing here is written by hand.
"""

from __future__ import annotations

import base64
import io
import json
import re
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from onnxaudit.answers import Access
from onnxaudit.errors import SuspectError, UsageError
from onnxaudit.suspect import InputSpec, Target
from onnxaudit_adapters.http import open_http
from onnxaudit_adapters.http.dialects import Reply
from onnxaudit_adapters.http.options import parse_address
from onnxaudit_adapters.http.probes import read_server
from onnxaudit_adapters.http.v2 import read_metadata
from tests.bundles import CLASSES, SHAPE
from tests.http_script import EXPECTED, PATH, QUERIES, Answer, Script, Time, fail, opened, scores, served
from tests.peer_bundle import ANIMALS, PICTURES, linear_bundle, linear_weights, pictures
from tests.peers.record import CASES, HUGGINGFACE, ORIGIN, RECORDED

ASKED = {**CASES, "huggingface": HUGGINGFACE}
KEPT: dict[str, Any] = {peer: json.loads((RECORDED / f"{peer}.json").read_text()) for peer in ASKED}
ALL = [(peer, name) for peer, cases in ASKED.items() for name in cases]
SIX_DECIMALS = {("triton", "v2-classes")}
SENT_AS_PICTURES = {
    ("litserve", "hf"),
    *(("torchserve", n) for n in ("body", "form")),
    *(("huggingface", n) for n in HUGGINGFACE),
}
ASKED_ONE_FIRST = {("litserve", "tensor"), ("kserve", "v1"), ("mlflow", "inputs"), ("bentoml", "plain")}
PNG = re.compile(rb"\x89PNG\r\n.*?IEND....", re.DOTALL)


def reply_of(entry: dict[str, Any]) -> Reply:
    headers = {name.lower(): value for name, value in entry["headers"].items()}
    return Reply(entry["status"], base64.b64decode(entry["body"]), headers)


def queries_of(peer: str) -> tuple[NDArray[np.uint8], InputSpec]:
    """What the peer was asked, and what its model wants."""
    if peer == "huggingface":
        return pictures(), PICTURES
    return np.asarray(linear_bundle().queries, np.uint8), InputSpec(SHAPE)


def expected(peer: str, n: int) -> NDArray[np.float64]:
    """The victim's scores of the first queries: computed here, or kept as ONNX Runtime computed them from the exported file."""
    if peer == "huggingface":
        return np.array([KEPT[peer]["scores"]])[:n]
    pixels = queries_of(peer)[0][:n].reshape(n, -1).astype(np.float64) / 255
    scores: NDArray[np.float64] = pixels @ linear_weights().astype(np.float64)
    return scores


def pictures_in(body: bytes) -> tuple[bytes, list[NDArray[np.uint8]]]:
    """A body with its PNGs cut out, and their pixels: another version of the image library may compress differently."""
    if body.startswith(b'{"inputs": "iVBOR'):
        document = json.loads(body)
        body = json.dumps({**document, "inputs": ""}).encode() + base64.b64decode(document["inputs"])
    rest = re.sub(rb"--[0-9a-f]{32}", b"--boundary", PNG.sub(b"", body))  # which is the digest of the image
    return rest, [np.asarray(Image.open(io.BytesIO(png))) for png in PNG.findall(body)]


def test_every_recording_is_read() -> None:
    assert {path.stem for path in RECORDED.glob("*.json")} == {*ASKED, "nginx"}


@pytest.mark.parametrize(("peer", "name"), ALL)
def test_the_request_is_the_one_that_the_server_understood(peer: str, name: str) -> None:
    case, (queries, spec) = ASKED[peer][name], queries_of(peer)
    request = case.dialect(parse_address(ORIGIN + case.path)).encode(queries[: case.n], spec)
    rest, pixels = pictures_in(request.body)
    rest_sent, pixels_sent = pictures_in(base64.b64decode(KEPT[peer][name]["sent"]))
    assert rest == rest_sent
    assert len(pixels) == len(pixels_sent) == ((peer, name) in SENT_AS_PICTURES)
    for ours, theirs in zip(pixels, pixels_sent, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert request.queries == case.n


@pytest.mark.parametrize(("peer", "name"), ALL)
def test_the_reply_is_what_the_model_says(peer: str, name: str) -> None:
    case = ASKED[peer][name]
    reply = reply_of(KEPT[peer][name]["reply"])
    assert reply.ok
    answers = case.dialect(parse_address(ORIGIN + case.path)).decode(reply, case.n)
    scores = expected(peer, case.n)
    chances = np.exp(scores - scores.max(1, keepdims=True))
    chances /= chances.sum(1, keepdims=True)
    assert answers.labels.tolist() == scores.argmax(1).tolist()
    if answers.access == Access.LOGITS:
        np.testing.assert_allclose(answers.dense(), scores, atol=2e-6 if (peer, name) in SIX_DECIMALS else 1e-5)
    elif answers.access == Access.PROBS:
        np.testing.assert_allclose(answers.dense(), chances, atol=1e-6)
    elif answers.access == Access.TOPK:
        assert (peer, name) == ("huggingface", "best")
        best = (-chances).argsort(1)[:, :5]
        assert answers.classes.tolist() == best.tolist()
        assert answers.scores is not None
        np.testing.assert_allclose(answers.scores, np.take_along_axis(chances, best, axis=1), atol=1e-6)
    else:
        assert (peer, name, answers.access) == ("litserve", "label", Access.LABEL)


@pytest.mark.parametrize(("peer", "name"), ALL)
def test_a_refusal_is_no_answer(peer: str, name: str) -> None:
    case = ASKED[peer][name]
    reply = reply_of(KEPT[peer][f"{name}-refused"]["reply"])
    assert not reply.ok
    with pytest.raises((SuspectError, UsageError)):
        case.dialect(parse_address(ORIGIN + case.path)).decode(reply, case.n)


def _script(peer: str, name: str) -> Script:
    """A server that says of itself what the peer said, and answers as it did."""

    def answer(entry: dict[str, Any]) -> Answer:
        return entry["status"], dict(entry["headers"]), base64.b64decode(entry["body"])

    return Script(
        lambda *_: answer(KEPT[peer][name]["reply"]), {path: answer(entry) for path, entry in KEPT[peer]["gets"].items()}
    )


FOUND = [
    ("mlserver", "v2", {}, "v2"),
    ("litserve", "tensor", {}, "plain"),
    ("litserve", "hf", {"dialect": "huggingface"}, "huggingface"),
    ("litserve", "label", {}, "plain"),
    ("kserve", "v1", {}, "tfserving"),
    ("kserve", "v2", {"input_name": "x"}, "v2"),
    ("triton", "v2-binary", {}, "v2-binary"),
    ("triton", "v2", {"dialect": "v2"}, "v2"),
    ("triton", "v2-classes", {"dialect": "v2-classes"}, "v2-classes"),
    ("mlflow", "inputs", {}, "invocations"),
    ("bentoml", "plain", {}, "plain"),
    ("torchserve", "body", {}, "torchserve"),
    ("huggingface", "all", {"dialect": "huggingface"}, "huggingface"),
    ("huggingface", "best", {"dialect": "huggingface-png"}, "huggingface-png"),
]


@pytest.mark.parametrize(("peer", "name", "options", "dialect"), FOUND)
def test_the_dialect_is_found_from_what_the_server_said_of_itself(
    peer: str, name: str, options: dict[str, Any], dialect: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    case, (queries, spec) = ASKED[peer][name], queries_of(peer)
    classes, said = (7, {"class_names": ANIMALS}) if peer == "huggingface" else (CLASSES, {})
    with served(_script(peer, name)) as url:
        target = Target(url + case.path, spec, classes, shape=spec.shape, options={**options, **said})
        with open_http(target) as suspect:
            assert suspect.card.runtime["dialect"] == dialect
            if (peer, name) in ASKED_ONE_FIRST:  # by one query; what is kept answers three
                assert suspect.card.max_batch == 1
                return
            assert suspect.ask(queries[: case.n]).labels.tolist() == expected(peer, case.n).argmax(1).tolist()


def test_what_servers_say_of_themselves() -> None:
    said = {peer: read_server(reply_of(kept["gets"]["/v2"])) for peer, kept in KEPT.items() if "/v2" in kept["gets"]}
    assert said["mlserver"] == ({"server": "mlserver 1.7.1"}, ())
    assert said["litserve"] == ({}, ())
    assert said["kserve"][0]["server"].startswith("kserve")
    assert "binary_tensor_data" not in said["kserve"][1]
    assert read_metadata(reply_of(KEPT["kserve"]["gets"]["/v2/models/suspect"])).inputs == {}
    assert "binary_tensor_data" in said["triton"][1]
    assert read_metadata(reply_of(KEPT["triton"]["gets"]["/v2/models/suspect"])).outputs == ("logits",)
    assert said["huggingface"] == ({}, ())  # it says "ok" at every path, which is not the name of a server


def test_what_nginx_says_is_obeyed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    said = json.loads((RECORDED / "nginx.json").read_text())
    no_key, fast, large = (
        (said[name]["status"], dict(said[name]["headers"]), base64.b64decode(said[name]["body"]))
        for name in ("no-key", "too-fast", "too-large")
    )
    assert "401 Unauthorized" in str(fail(Script(lambda *_: no_key)))
    script = Script(lambda number, body: fast if number == 2 else large if number == 3 else scores(body))
    time = Time()
    with served(script) as url, opened(url + PATH, time, batch=8) as suspect:
        np.testing.assert_array_equal(suspect.ask(QUERIES).dense(), EXPECTED)
        assert suspect.card.max_batch == 4
    assert time.slept == [1.0]  # as Retry-After said
