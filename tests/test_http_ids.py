"""A V2 reply that says it is to another request is not taken: it would be another query's answer."""

from __future__ import annotations

import base64
import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from onnxaudit.errors import SuspectError
from onnxaudit_adapters.http.dialects import OtherRequestError, Reply
from onnxaudit_adapters.http.options import parse_address
from onnxaudit_adapters.http.v2 import V2
from tests.http_script import EXPECTED, PATH, QUERIES, SPEC, Answer, Script, opened, scores, served
from tests.peers.record import CASES, ORIGIN, RECORDED


def named(body: bytes, **said: Any) -> Answer:
    """An honest reply, with these fields, or with the id that was sent."""
    document = json.loads(scores(body)[2])
    return 200, {}, json.dumps({**document, **(said or {"id": json.loads(body)["id"]})}).encode()


def test_the_reply_to_another_request_is_asked_for_again() -> None:
    """The server, or what is before it, mixes up two replies: rows and shapes are right, and the answers another batch's."""
    kept: list[bytes] = []

    def answer(number: int, body: bytes) -> Answer:
        kept.append(body)
        return named(kept[0]) if number in (3, 5) else named(body)

    script = Script(answer)
    with served(script) as url, opened(url + PATH, batch=4) as suspect:
        np.testing.assert_array_equal(suspect.ask(QUERIES).dense(), EXPECTED)
        assert suspect.queries_sent == len(QUERIES) + 8
    assert len(script.posts) == 7


def test_a_server_that_goes_on_mixing_them_up_is_an_error() -> None:
    script = Script(lambda number, body: named(body) if number == 1 else named(body, id="0123456789abcdef"))
    with (
        served(script) as url,
        opened(url + PATH, batch=10) as suspect,
        pytest.raises(SuspectError, match="the reply has the id '0123456789abcdef'"),
    ):
        suspect.ask(QUERIES)


@pytest.mark.parametrize("said", [{"id": None}, {"id": ""}, {"outputs": None}])
def test_a_server_that_does_not_echo_ids_is_believed(said: dict[str, Any]) -> None:
    fields = {} if "outputs" in said else said
    script = Script(lambda _, body: named(body, **fields) if fields else scores(body))
    with served(script) as url, opened(url + PATH, batch=4) as suspect:
        np.testing.assert_array_equal(suspect.ask(QUERIES).dense(), EXPECTED)
    assert len(script.posts) == 5


def test_a_server_that_has_names_of_its_own_is_believed() -> None:
    script = Script(lambda number, body: named(body, id=f"own-{number}"))
    with served(script) as url, opened(url + PATH, batch=4) as suspect:
        np.testing.assert_array_equal(suspect.ask(QUERIES).dense(), EXPECTED)
    assert len(script.posts) == 5


@pytest.mark.parametrize("said", [7, True, ["x"], {"a": 1}, "Y" * 4000])
def test_ids_that_are_no_words_are_no_bug(said: object) -> None:
    document = {"id": said, "outputs": [{"name": "y", "datatype": "FP32", "shape": [1, 2], "data": [1, 2]}]}
    with pytest.raises(OtherRequestError):
        V2(parse_address("http://h/v2/models/m/infer"), "x").decode(Reply(200, json.dumps(document).encode(), {}, "abc"), 1)


@pytest.mark.parametrize(("peer", "name"), [(peer, name) for peer in CASES for name in CASES[peer] if name.startswith("v2")])
def test_real_servers_echo_the_id_that_was_sent(peer: str, name: str) -> None:
    case = CASES[peer][name]
    entry = json.loads((RECORDED / f"{peer}.json").read_text())[name]["reply"]
    headers = {key.lower(): value for key, value in entry["headers"].items()}
    reply = Reply(entry["status"], base64.b64decode(entry["body"]), headers)
    assert b'"id"' in reply.body
    dialect = case.dialect(parse_address(ORIGIN + case.path))
    from tests.peer_bundle import linear_bundle

    bundle = linear_bundle()
    request = dialect.encode(bundle.queries[: case.n], bundle.manifest.input)
    assert len(dialect.decode(replace(reply, asked=request.id), case.n)) == case.n
    other = dialect.encode(bundle.queries[1 : case.n + 1], bundle.manifest.input)
    with pytest.raises(OtherRequestError):
        dialect.decode(replace(reply, asked=other.id), case.n)


def test_different_batches_have_different_ids() -> None:
    dialect = V2(parse_address("http://h/v2/models/m/infer"), "x")
    assert len({dialect.encode(QUERIES[i : i + 4], SPEC).id for i in range(0, 20, 4)}) == 5
