"""A server that means harm: memory, connections that are used again, cookies, label sets that change halfway."""

from __future__ import annotations

import json
import resource
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

from onnxaudit.errors import SuspectError, Unreachable, UsageError
from onnxaudit.suspect import Target
from onnxaudit_adapters.http import open_http
from onnxaudit_adapters.http.binary import split
from onnxaudit_adapters.http.deadlines import MOST_BYTES
from onnxaudit_adapters.http.names import ClassNames
from onnxaudit_adapters.http.options import HttpOptions
from onnxaudit_adapters.http.pacing import retry_after
from onnxaudit_adapters.http.reading import Reader
from onnxaudit_adapters.http.strict_json import MAX_CONTAINERS, ReplyError, as_array, parse
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
)

TEXTS = b'["' + b"x" * 20000 + b'"' + b',"a"' * 50000 + b"]"
"""Of 170 KB; as a NumPy array of texts, 4 GB."""


@pytest.mark.parametrize(
    "body",
    [
        TEXTS,
        b"[" + b",".join([TEXTS[:25000] + b'"]' if not TEXTS[:25000].endswith(b"]") else TEXTS] * 2) + b"]",
        b"[1" + b",1" * (1 << 20) + b',"a"]',
        b"[" + b"[]," * 5_000_000 + b"[]]",
        b"[" + b"{}," * (MAX_CONTAINERS - 1) + b"{},{}]",
        b"[" * (1 << 23),
        b'{"a":' * (1 << 20),
    ],
)
def test_a_small_reply_does_not_take_much_memory(body: bytes) -> None:
    code = (
        "import sys, resource\n"
        "from onnxaudit_adapters.http.strict_json import ReplyError, as_array, parse\n"
        "body = sys.stdin.buffer.read()\n"
        "used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "try:\n    as_array(parse(body))\nexcept ReplyError as error:\n    print(error.what)\n"
        "print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - used) // 1024)"
    )
    done = subprocess.run([sys.executable, "-c", code], input=body, capture_output=True, check=True, timeout=60)
    said, grown = done.stdout.decode().splitlines()
    assert said.startswith("the reply")
    assert int(grown) < 200  # MB


def test_binary_texts_are_bounded_too() -> None:
    data = (1000).to_bytes(4, "little") + b"x" * 1000 + (0).to_bytes(4, "little") * 200_000
    output = {"name": "y", "datatype": "BYTES", "shape": [200_001], "parameters": {"binary_data_size": len(data)}}
    head = json.dumps({"outputs": [output]}).encode()
    with pytest.raises(ReplyError, match="too long and too many"):
        split(head + data, {"inference-header-content-length": str(len(head))})


def test_what_is_honest_passes() -> None:
    ranking = [{"label": f"class {i}", "score": 0.001} for i in range(1000)]
    assert parse(json.dumps([ranking] * 256).encode()) == [ranking] * 256
    assert as_array([["a"] * 1000] * 16).shape == (16, 1000)
    assert as_array([f"a rather long name of a class, as some have {i}" for i in range(20000)]).shape == (20000,)
    assert as_array([[0.5] * 21841] * 16).shape == (16, 21841)


@contextmanager
def raw(*replies: bytes, forever: bytes = b"") -> Iterator[tuple[str, list[bytes]]]:
    """A server that sends these bytes, one a request on whatever connection, the last again and again; then ``forever``."""
    seen: list[bytes] = []
    listener = socket.create_server(("127.0.0.1", 0))

    def read(connection: socket.socket) -> bytes:
        text = b""
        while b"\r\n\r\n" not in text:
            if not (piece := connection.recv(65536)):
                return b""
            text += piece
        head, _, body = text.partition(b"\r\n\r\n")
        length = next((int(line[15:]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")), 0)
        while len(body) < length:
            body += connection.recv(65536)
        return head + b"\r\n\r\n" + body

    def talk(connection: socket.socket) -> None:
        with connection:
            try:
                while request := read(connection):
                    seen.append(request)
                    connection.sendall(replies[min(len(seen), len(replies)) - 1])
                    while forever:
                        connection.sendall(forever)
            except OSError:
                return

    def accept() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=talk, args=(connection,), daemon=True).start()

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", seen
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(5)


def http(body: bytes, status: str = "200 OK") -> bytes:
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


LINE = b"x: " + b"y" * 1000 + b"\r\n"


def rows(*values: list[float]) -> bytes:
    return json.dumps({"predictions": list(values)}).encode()


@pytest.mark.parametrize(
    ("head", "piece"),
    [
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"0" * 65536),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n", b"x" * 65536),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n", LINE * 64),
        (b"HTTP/1.1 200 OK\r\n", LINE * 64),
        (b"", (b"HTTP/1.1 100 Continue\r\n" + LINE * 8 + b"\r\n") * 8),
    ],
)
def test_what_surrounds_a_reply_is_bounded_too(head: bytes, piece: bytes) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with (
        raw(head, forever=piece) as (url, _),
        open_http(Target(url + "/x", SPEC, 4, options={"dialect": "plain", "timeout": 20})) as suspect,
        pytest.raises(SuspectError),
    ):
        suspect.ask(QUERIES[:1])
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024 < 3 * MOST_BYTES / 2**20


def test_what_follows_an_early_hint_is_not_the_next_request_s_reply() -> None:
    """A status below 200 is no end: its real reply comes after it, on the same connection."""
    metadata = b"HTTP/1.1 103 Early Hints\r\n\r\n" + http(rows([9.0, 0.0, 0.0, 0.0]))
    with (
        raw(metadata, http(rows([0.0, 0.0, 0.0, 9.0]))) as (url, seen),
        open_http(Target(url + "/v1/models/m", SPEC, 4, options={})) as suspect,
    ):
        assert suspect.ask(QUERIES[:1]).labels.tolist() == [3]
    assert [text.split()[0] for text in seen] == [b"GET", b"POST"]


def test_cookies_are_not_kept() -> None:
    def answer(number: int, body: bytes) -> Answer:
        status, _, text = scores(body)
        return status, {"Set-Cookie": f"c{number}={'x' * 4000}; Path=/"}, text

    script = Script(answer)
    with served(script) as url, opened(url + PATH, batch=1) as suspect:
        np.testing.assert_array_equal(suspect.ask(QUERIES).dense(), EXPECTED)
    assert {headers.get("Cookie") for headers, _ in script.requests} == {None}


def test_scores_of_another_number_of_classes_halfway_are_garbage() -> None:
    """Where nobody knows how many classes there are, nothing else would tell: rows would be cut to the narrowest."""

    def answer(number: int, body: bytes) -> Answer:
        n = len(json.loads(body)["input"])
        return as_json({"output": [[0.1, 0.2, 0.3] if number == 1 else [0.1, 0.2, 0.3, 0.4]] * n})

    with (
        served(Script(answer, {})) as url,
        open_http(Target(url + "/x", SPEC, options={"dialect": "plain", "batch": 1}), sleep=lambda _: None) as suspect,
        pytest.raises(SuspectError, match="scores 4 classes, and an earlier one 3"),
    ):
        suspect.ask(QUERIES[:2])


@pytest.mark.parametrize(
    ("path", "options", "busy"),
    [
        ("/x", {"dialect": "plain", "output_name": "output"}, {"error": "busy"}),
        ("/x", {"dialect": "plain"}, {"a": [[0.5, 0.5]] * 4, "b": [[0.5, 0.5]] * 4}),
        (PATH, {"output_name": "y"}, {"outputs": [{"name": "error", "datatype": "BYTES", "shape": [1], "data": ["busy"]}]}),
    ],
)
def test_a_strange_reply_after_good_ones_is_asked_for_again_and_no_option_is_asked_for(
    path: str, options: dict[str, Any], busy: dict[str, Any]
) -> None:
    def honest(body: bytes) -> Answer:
        if path == PATH:
            return scores(body)
        return as_json({"output": (np.array(json.loads(body)["input"], np.float32) @ WEIGHTS).tolist()})

    script = Script(lambda number, body: as_json(busy) if number == 4 else honest(body))
    with served(script) as url, opened(url + path, batch=4, **options) as suspect:
        np.testing.assert_array_equal(suspect.ask(QUERIES).dense(), EXPECTED)
        assert suspect.queries_sent == len(QUERIES) + 4


def test_more_classes_than_any_classifier_has_are_garbage() -> None:
    wide: Callable[[int, bytes], Any] = lambda *_: as_json({"output": [[0.5] * 200_000]})  # noqa: E731 - one expression, typed
    with (
        served(Script(wide, {})) as url,
        open_http(Target(url + "/x", SPEC, options={"dialect": "plain"})) as suspect,
        pytest.raises(SuspectError, match="200000 classes"),
    ):
        suspect.ask(QUERIES[:1])


def test_half_a_character_is_a_name_like_others() -> None:
    names = ClassNames(discover=True)
    assert names.index("\ud800") == names.index("\ud800") != names.index("\ud801")


def _twice(document: dict[str, Any]) -> str:
    return '{"outputs": [],' + json.dumps(document)[1:]


def _two_outputs(document: dict[str, Any]) -> str:
    return json.dumps({"outputs": [*document["outputs"], {**document["outputs"][0], "shape": [1, 4], "data": [0.0] * 4}]})


def _true(document: dict[str, Any]) -> str:
    document["outputs"][0]["data"][0] = True
    return json.dumps(document)


@pytest.mark.parametrize(
    ("change", "words"), [(_twice, "a field twice"), (_two_outputs, "two outputs of one name"), (_true, "true or false")]
)
def test_a_reply_that_can_be_read_in_several_ways_is_garbage(change: Callable[[dict[str, Any]], str], words: str) -> None:
    script = Script(lambda number, body: (200, {}, change(json.loads(scores(body)[2])).encode()) if number == 2 else scores(body))
    with served(script) as url, opened(url + PATH) as suspect:
        np.testing.assert_array_equal(suspect.ask(QUERIES).dense(), EXPECTED)
        assert suspect.attempts == 3
    script = Script(lambda _, body: (200, {}, change(json.loads(scores(body)[2])).encode()))
    assert words in str(fail(script))


def test_labels_that_are_true_or_false_are_no_classes() -> None:
    for reply in ({"labels": [1, True]}, {"labels": [[1], [False]]}, {"label": True}, [True, False]):
        with pytest.raises(SuspectError):
            Reader(num_classes=4).answers(reply, 2 if "label" not in reply else 1)


def test_a_mark_of_the_byte_order_is_no_garbage() -> None:
    script = Script(lambda _, body: (200, {}, b"\xef\xbb\xbf" + scores(body)[2]))
    with served(script) as url, opened(url + PATH) as suspect:
        np.testing.assert_array_equal(suspect.ask(QUERIES).dense(), EXPECTED)


def test_a_chunk_of_a_negative_size_is_tried_again_and_counted_as_lost() -> None:
    lost: list[int] = []
    with (
        raw(
            http(rows(*EXPECTED[:1].tolist())),
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-5\r\n",
            http(rows(*EXPECTED[1:2].tolist())),
        ) as (url, seen),
        opened(url + "/x", dialect="plain", batch=1, timeout=5.0) as suspect,
    ):
        suspect.tell_lost(lost.append)
        np.testing.assert_array_equal(suspect.ask(QUERIES[:2]).dense(), EXPECTED[:2])
    assert (len(seen), lost) == (3, [1])


@pytest.mark.parametrize("reply", [b"\x15\x03\x01\x00\x02\x02P", b"220 mail.example.com ESMTP\r\n", b"HTTP/2 200 OK\r\n\r\n"])
def test_what_is_not_http_is_called_that(reply: bytes) -> None:
    with (
        raw(reply + b"\r\n" * 2) as (url, _),
        opened(url + "/x", dialect="plain", timeout=5.0) as suspect,
        pytest.raises(Unreachable, match=r"what came back is not HTTP/1 .*https"),
    ):
        suspect.ask(QUERIES[:1])


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_server_that_is_busy_when_it_is_asked_what_it_takes_is_no_mistake_of_the_user(status: int) -> None:
    busy = Script(lambda _, body: scores(body), {PATH: (status, {}, b"")})
    with served(busy) as url, pytest.raises(Unreachable, match=f"answered {status} when it was asked"), opened(url + PATH):
        pass
    with served(busy) as url, opened(url + PATH, input_name=METADATA["inputs"][0]["name"], shape=(3,)) as suspect:  # type: ignore[index]
        np.testing.assert_array_equal(suspect.ask(QUERIES).dense(), EXPECTED)


@pytest.mark.parametrize("name", ["Content-Length", "transfer-encoding"])
def test_no_header_of_the_user_says_where_a_request_ends(name: str) -> None:
    with pytest.raises(UsageError, match=f"{name} says where a request ends"):
        HttpOptions.read({"headers": {name: "5"}})


@pytest.mark.parametrize("zone", ["UTC", "America/New_York", "Asia/Tokyo"])
@pytest.mark.parametrize("date", ["Sun, 06 Nov 1994 08:49:37 GMT", "Sunday, 06-Nov-94 08:49:37 GMT", "Sun Nov  6 08:49:37 1994"])
def test_all_three_forms_of_dates_are_greenwich_s_wherever_this_machine_is(
    zone: str, date: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TZ", zone)
    time.tzset()
    try:
        assert retry_after({"retry-after": date, "date": "Sun, 06 Nov 1994 08:49:00 GMT"}, 0.0) == 37
    finally:
        monkeypatch.undo()
        time.tzset()
