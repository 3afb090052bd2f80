"""Detection against a server that answers what a test lets it answer: the order of the probes, and the trail in the error."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from onnxaudit.errors import SuspectError, UsageError
from tests.http_script import EXPECTED, QUERIES, WEIGHTS, Answer, Script, as_json, opened, served

PROBES = ["/v2", "/v1/models", "/ping", "/openapi.json"]


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def scored(key: str, wrapped: str) -> Any:
    """A server that takes rows in one field and gives scores in another."""

    def answer(_: int, body: bytes) -> Answer:
        return as_json({wrapped: (np.array(json.loads(body)[key], np.float32) @ WEIGHTS).tolist()})

    return answer


@pytest.mark.parametrize(
    ("says", "path", "keys", "dialect", "probed"),
    [
        ({"/v1/models": as_json({"models": ["m"]})}, "", ("instances", "predictions"), "tfserving", 2),
        ({"/ping": (200, {}, b"\n")}, "", ("inputs", "predictions"), "invocations", 3),
        ({"/openapi.json": as_json({"paths": {"/ask": {"post": {}}, "/": {"get": {}}}})}, "", ("input", "output"), "plain", 4),
        ({"/openapi.json": as_json({"paths": {"/ask": {"post": {}}, "/b": {"post": {}}}})}, "/b", ("input", "y"), "plain", 4),
        ({path: (403, {}, b"Missing Authentication Token") for path in PROBES}, "/ask", ("input", "output"), "plain", 4),
        ({}, "/ask", ("input", "output"), "plain", 4),
        ({}, "/models/m:predict", ("instances", "outputs"), "tfserving", 0),
        ({}, "/x/invocations", ("inputs", "scores"), "invocations", 0),
    ],
)
def test_what_a_server_says_tells_its_dialect(
    says: dict[str, Answer], path: str, keys: tuple[str, str], dialect: str, probed: int
) -> None:
    script = Script(scored(*keys), says)
    with served(script) as url, opened(url + path) as suspect:
        np.testing.assert_array_equal(suspect.ask(QUERIES).dense(), EXPECTED)
        assert suspect.card.runtime["dialect"] == dialect
    assert [place for place in script.gets if place != "/v1/models/m/metadata"] == PROBES[:probed]


def test_the_dialect_that_is_named_asks_for_the_model_s_metadata_alone() -> None:
    script = Script(scored("instances", "predictions"))
    with served(script) as url, opened(url + "/v1/models/m", dialect="tfserving") as suspect:
        np.testing.assert_array_equal(suspect.ask(QUERIES).dense(), EXPECTED)
    assert script.gets == ["/v1/models/m/metadata"]


@pytest.mark.parametrize(
    ("says", "path", "message"),
    [
        (
            {},
            "",
            r"the URL names no path; GET .*/v2 answered 404; GET .*/v1/models answered 404; .*/ping.*/openapi.json.*--dialect",
        ),
        ({"/v2": as_json({"name": "s", "version": "1"})}, "/ask", r"names no model of it.*/v2/models/NAME"),
        ({"/v1/models": as_json({"models": ["a", "b"]})}, "", "does not tell how it wants to be asked"),
        ({"/ping": as_json({"status": "Healthy"})}, "", "does not tell how it wants to be asked"),
        ({"/openapi.json": as_json({"paths": {"/a": {"post": {}}, "/b": {"post": {}}}})}, "", "It takes POST at /a, /b"),
        ({"/openapi.json": as_json({"paths": {"/a": {"post": {}}}})}, "/other", "It takes POST at /a"),
        ({"/openapi.json": as_json({"paths": [1]})}, "", "does not tell"),
    ],
)
def test_what_cannot_be_found_out_is_said_with_the_trail(says: dict[str, Answer], path: str, message: str) -> None:
    script = Script(scored("input", "output"), says)
    with served(script) as url, pytest.raises(UsageError, match=message), opened(url + path):
        pass
    assert script.posts == []


def test_a_key_that_is_missing_is_said_before_any_query() -> None:
    script = Script(scored("input", "output"), dict.fromkeys(PROBES, (401, {}, b"who are you")))
    with served(script) as url, pytest.raises(SuspectError, match=r"401.*Authorization header is missing"), opened(url + "/ask"):
        pass
    assert (script.gets, script.posts) == (PROBES[:1], [])


def test_a_misspelt_dialect_is_guessed() -> None:
    with pytest.raises(UsageError, match=r"Did you mean huggingface\?"), opened("http://127.0.0.1:9/x", dialect="hugingface"):
        pass
    with pytest.raises(UsageError, match="--target file"), opened("http://127.0.0.1:9/x", dialect="template"):
        pass
