"""No part of a secret is shown, wherever in a server's words it stands: words are cleaned before they are cut."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from onnxaudit.errors import OnnxauditError, UsageError
from onnxaudit.suspect import InputSpec, Target
from onnxaudit_adapters.http import open_http
from onnxaudit_adapters.http.redaction import Redaction
from tests.http_script import METADATA, PATH, QUERIES, Answer, Script, as_json, fail, opened, scores, served

TOKEN = "Qz7vKp2mXw9rTb4s"
HEADERS = {"Authorization": TOKEN}
KEY = "sk-live-" + "0123456789abcdef" * 3
LONG = "eyJ" + "Qk3" * 260


def plain(document: object) -> Script:
    return Script(lambda _, __: as_json(document), {})


def v2_reply(**output: Any) -> Script:
    whole = {"name": "y", "datatype": "FP32", "shape": [1, 4], "data": [1, 2, 3, 4]} | output
    return Script(lambda _, __: as_json({"outputs": [whole]}))


def metadata(**said: Any) -> Script:
    return Script(lambda _, body: scores(body), {PATH: as_json({**METADATA, **said})})


PLACES: dict[str, tuple[Callable[[str], Script], str, dict[str, Any]]] = {
    "a label": (lambda word: plain({"label": word}), "/predict", {"dialect": "plain"}),
    "names of a ranking": (lambda word: plain([{"label": word, "score": 0.5}]), "/p", {"dialect": "huggingface-png"}),
    "fields": (lambda word: plain({word: None, "b": None}), "/predict", {"dialect": "plain"}),
    "many fields": (lambda word: plain({"a": [0.1, 0.2], word: [0.3, 0.4]}), "/predict", {"dialect": "plain", "batch": 2}),
    "fields that are not the one": (lambda word: plain({word: 1}), "/predict", {"dialect": "plain", "output_name": "z"}),
    "keys by class": (lambda word: plain({word: 0.5, "b": 0.5}), "/predictions/m", {"dialect": "torchserve"}),
    "an output's name": (lambda word: v2_reply(name=word, shape=[3]), PATH, {}),
    "an output's type": (lambda word: v2_reply(datatype=word), PATH, {}),
    "an output's words": (lambda word: v2_reply(datatype="BYTES", shape=[1], data=[word]), PATH, {}),
    "outputs that are not the one": (lambda word: v2_reply(name=word), PATH, {"output_name": "z"}),
    "an input's type": (lambda word: metadata(inputs=[{"name": "x", "datatype": word, "shape": [-1, 3]}]), PATH, {}),
    "inputs": (lambda word: metadata(inputs=[{"name": word}, {"name": "x"}]), PATH, {}),
    "inputs that are not the one": (lambda word: metadata(inputs=[{"name": word}]), PATH, {"input_name": "z"}),
    "outputs to rank": (lambda word: metadata(outputs=[{"name": word}, {"name": "b"}]), PATH, {"dialect": "v2-classes"}),
    "paths": (
        lambda word: Script(
            lambda _, __: as_json({}),
            {"/openapi.json": as_json({"paths": {f"/{word}": {"post": {}}, "/b": {"post": {}}}})},
        ),
        "",
        {},
    ),
    "one path": (
        lambda word: Script(lambda _, __: (404, {}, b""), {"/openapi.json": as_json({"paths": {f"/{word}": {"post": {}}}})}),
        "",
        {},
    ),
    "one model": (
        lambda word: Script(lambda _, __: (404, {}, b""), {"/v1/models": as_json({"models": [word]})}),
        "",
        {},
    ),
    "an error": (lambda word: Script(lambda _, __: (500, {}, word.encode())), PATH, {}),
    "a redirect": (lambda word: Script(lambda _, __: (302, {"Location": f"/{word}"}, b"")), PATH, {}),
}


def parts_of(text: str, size: int = 6) -> list[str]:
    """Pieces of the token in a text."""
    return [piece for i in range(len(TOKEN) - size + 1) if (piece := TOKEN[i : i + size]) in text]


@pytest.mark.parametrize("place", PLACES)
def test_no_half_of_a_secret_is_shown(place: str) -> None:
    make, path, options = PLACES[place]
    images = "png" in str(options) or "torchserve" in str(options)
    queries: Any = np.zeros((1, 4, 4, 1), np.uint8) if images else QUERIES[:1]
    opener: Callable[..., Any] = opened_images if images else opened
    for before in (0, 12, 30, 60, 75, 150, 190, 1990, 3960, 3990):
        with served(make("x" * before + TOKEN)) as url:
            error, shown = ended(lambda: opener(url + path, headers=HEADERS, **options), queries)
        assert not parts_of(str(error) + shown), (before, str(error), shown)
        assert len(str(error)) < 5000


def ended(make: Callable[[], Any], queries: Any) -> tuple[OnnxauditError, str]:
    """The error that opening or asking ends with, and the exchange that a dry run would show."""
    shown: dict[str, str] = {}
    try:
        with make() as suspect:
            try:
                suspect.ask(queries)
            finally:
                shown = dict(suspect.exchange())
    except OnnxauditError as error:
        return error, json.dumps(shown)
    raise AssertionError("it did not fail")


def opened_images(url: str, **options: object) -> Any:
    """As ``opened``, for a suspect that takes images."""
    return open_http(Target(url, InputSpec((4, 4, 1)), num_classes=4, options=options))


def test_a_redirect_is_cleaned_before_its_query_is_left_out() -> None:
    script = Script(lambda _, __: (302, {"Location": "/x/Qz7vKp2m?Xw9rTb4s"}, b""))
    with served(script) as url:
        error, _ = ended(lambda: opened(url + PATH, headers={"X-Key": "Qz7vKp2m?Xw9rTb4s"}), QUERIES[:1])
    assert "redirects" in error.what
    assert "Qz7v" not in str(error)


def test_a_long_word_is_cut_and_its_message_still_says_what_to_do() -> None:
    with served(plain({"label": "y" * 9000})) as url:
        error, _ = ended(lambda: opened(url + "/predict", dialect="plain"), QUERIES[:1])
    assert "y" * 150 in error.what
    assert "y" * 201 not in error.what
    assert "and nothing says which number" in error.what
    assert "labels = " in error.hint


def test_a_usage_error_of_detection_names_what_the_server_said() -> None:
    script = metadata(inputs=[{"name": "first"}, {"name": "second"}])
    with served(script) as url, pytest.raises(UsageError, match="several inputs: first, second"):
        opened(url + PATH, headers=HEADERS).__enter__()


@pytest.mark.parametrize("spaces", [0, 100, 250, 400, 1000])
@pytest.mark.parametrize("secret", [KEY, LONG])
def test_no_secret_is_cut_in_half_because_cleaning_made_room_for_it(secret: str, spaces: int) -> None:
    redaction = Redaction({"Authorization": f"Bearer {secret}"}, ())
    for pad in range(0, 400, 7):
        echo = {"error": {"request": {"X-A": "b" * pad, "Authorization": f"Bearer {secret}", "again": f"Bearer {secret}"}}}
        body = b" " * spaces + json.dumps(echo, indent=8).encode()
        assert secret[:6] not in redaction.quote(body)


def test_no_secret_is_cut_in_half_where_the_reply_is_cut() -> None:
    redaction = Redaction({"Authorization": KEY}, ())
    for kept in (1, 8, 20, len(KEY) - 1):
        said = b"no" + b" " * (2**16 - 2 - kept) + KEY.encode()
        for body in (said, said[: 2**16]):  # of an error the transport keeps so much
            assert redaction.quote(body) == "'no'"
    cut = redaction.quote(b"no" + b" " * (2**16 - 3) + "é".encode())
    assert cut.startswith("'no")


def test_an_echo_in_an_error_or_in_what_a_dry_run_shows_has_no_half_secret() -> None:
    def echo(number: int, body: bytes) -> Answer:
        said = f"bad token '{LONG}' in header Authorization: '{LONG}'"
        status, headers, rows = scores(body)
        return (status, headers, said.encode()) if number > 1 else (status, headers, rows[:-1] + f', "x": "{said}"}}'.encode())

    assert LONG[:6] not in str(fail(Script(echo), headers={"X-Key": LONG}, batch=10))
    with served(Script(echo)) as url, opened(url + PATH, headers={"X-Key": LONG}, batch=1) as suspect:
        suspect.ask(QUERIES[:1])
        assert LONG[:6] not in str(suspect.exchange())


ESCAPES: dict[str, Callable[[str], str]] = {
    "as it is": lambda c: c,
    "JSON": lambda c: f"\\u{ord(c):04x}",
    "JSON in capitals": lambda c: f"\\u{ord(c):04X}",
    "JSON in JSON": lambda c: f"\\\\u{ord(c):04x}",
    "URL": lambda c: f"%{ord(c):02x}",
    "URL twice": lambda c: f"%25{ord(c):02X}",
    "HTML": lambda c: f"&#{ord(c)};",
    "HTML in hexadecimal": lambda c: f"&#x{ord(c):X};",
}


@pytest.mark.parametrize("way", ESCAPES)
@pytest.mark.parametrize("secret", ["t0psecretT0ken", "pa+ss/wo=rd", "back\\slash\\\\word", "\\\\\\\\words"])
def test_a_secret_of_which_every_letter_is_escaped_is_found(secret: str, way: str) -> None:
    said = "".join(map(ESCAPES[way], secret))
    assert Redaction({}, [secret]).clean(f"you sent {said}, really") == "you sent ***, really"


@pytest.mark.parametrize("secret", ["\\" * 12 + "ab", "\\a" * 12, "ab" + "\\" * 12, "\\\\u" * 8])
def test_backslashes_in_a_secret_do_not_hold_anybody_up(secret: str) -> None:
    redaction = Redaction({}, [secret])
    begun = time.process_time()
    for text in ("\\" * 60_000, "\\u005c" * 10_000, "\\a" * 30_000, "%5c&bsol;\\" * 5_000):
        redaction.clean(text)
    assert time.process_time() - begun < 5
