"""What real servers said, byte for byte: requests are still what they understood, replies are still understood.

Made by ``python -m tests.peers.record``.
"""

from __future__ import annotations

import base64
import json
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

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
from tests.peer_bundle import linear_bundle, linear_weights
from tests.peers.record import CASES, ORIGIN, RECORDED

KEPT: dict[str, Any] = {
    peer: json.loads((RECORDED / f"{peer}.json").read_text()) for peer in CASES if (RECORDED / f"{peer}.json").exists()
}
ALL = [(peer, name) for peer in KEPT for name in CASES[peer]]
IMAGES = ("hf", "body", "form")
SIX_DECIMALS = {("triton", "v2-classes")}


def reply_of(entry: dict[str, Any]) -> Reply:
    headers = {name.lower(): value for name, value in entry["headers"].items()}
    return Reply(entry["status"], base64.b64decode(entry["body"]), headers)


def expected(n: int) -> NDArray[np.float64]:
    """The victim's scores of the first queries, computed here."""
    pixels = linear_bundle().queries[:n].reshape(n, -1).astype(np.float64) / 255
    scores: NDArray[np.float64] = pixels @ linear_weights().astype(np.float64)
    return scores


def test_every_peer_is_recorded() -> None:
    assert set(KEPT) == set(CASES)


@pytest.mark.parametrize(("peer", "name"), ALL)
def test_the_request_is_the_one_that_the_server_understood(peer: str, name: str) -> None:
    case, bundle = CASES[peer][name], linear_bundle()
    request = case.dialect(parse_address(ORIGIN + case.path)).encode(bundle.queries[: case.n], bundle.manifest.input)
    sent = base64.b64decode(KEPT[peer][name]["sent"])
    if name in IMAGES:  # another version of the image library may compress differently
        assert len(request.body) == pytest.approx(len(sent), rel=0.5)
    else:
        assert request.body == sent
    assert request.queries == case.n


@pytest.mark.parametrize(("peer", "name"), ALL)
def test_the_reply_is_what_the_model_says(peer: str, name: str) -> None:
    case = CASES[peer][name]
    reply = reply_of(KEPT[peer][name]["reply"])
    assert reply.ok
    answers = case.dialect(parse_address(ORIGIN + case.path)).decode(reply, case.n)
    scores = expected(case.n)
    assert answers.labels.tolist() == scores.argmax(1).tolist()
    if answers.access == Access.LOGITS:
        np.testing.assert_allclose(answers.dense(), scores, atol=2e-6 if (peer, name) in SIX_DECIMALS else 1e-5)
    elif answers.access == Access.PROBS:
        chances = np.exp(scores - scores.max(1, keepdims=True))
        np.testing.assert_allclose(answers.dense(), chances / chances.sum(1, keepdims=True), atol=1e-6)
    else:
        assert (peer, name, answers.access) == ("litserve", "label", Access.LABEL)


@pytest.mark.parametrize(("peer", "name"), ALL)
def test_a_refusal_is_no_answer(peer: str, name: str) -> None:
    case = CASES[peer][name]
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
]


@pytest.mark.parametrize(("peer", "name", "options", "dialect"), FOUND)
def test_the_dialect_is_found_from_what_the_server_said_of_itself(
    peer: str, name: str, options: dict[str, str], dialect: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    case, bundle = CASES[peer][name], linear_bundle()
    with served(_script(peer, name)) as url:
        target = Target(url + case.path, InputSpec(SHAPE), CLASSES, shape=SHAPE, options=options)
        with open_http(target) as suspect:
            assert suspect.card.runtime["dialect"] == dialect
            n = min(case.n, suspect.card.max_batch or case.n)
            if n == case.n:
                assert suspect.ask(bundle.queries[:n]).labels.tolist() == expected(n).argmax(1).tolist()


def test_what_servers_say_of_themselves() -> None:
    said = {peer: read_server(reply_of(kept["gets"]["/v2"])) for peer, kept in KEPT.items() if "/v2" in kept["gets"]}
    assert said["mlserver"] == ({"server": "mlserver 1.7.1"}, ())
    assert said["litserve"] == ({}, ())
    assert said["kserve"][0]["server"].startswith("kserve")
    assert "binary_tensor_data" not in said["kserve"][1]
    assert read_metadata(reply_of(KEPT["kserve"]["gets"]["/v2/models/suspect"])).inputs == {}
    if "triton" in said:
        assert "binary_tensor_data" in said["triton"][1]
        assert read_metadata(reply_of(KEPT["triton"]["gets"]["/v2/models/suspect"])).outputs == ("logits",)


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
