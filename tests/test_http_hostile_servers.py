"""A server that means harm: memory, connections that are used again, cookies, label sets that change halfway."""

from __future__ import annotations

import json
import resource
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

from onnxaudit.errors import SuspectError
from onnxaudit.suspect import Target
from onnxaudit_adapters.http import open_http
from onnxaudit_adapters.http.binary import split
from onnxaudit_adapters.http.deadlines import MOST_BYTES
from onnxaudit_adapters.http.names import ClassNames
from onnxaudit_adapters.http.strict_json import MAX_CONTAINERS, ReplyError, as_array, parse
from tests.http_script import EXPECTED, PATH, QUERIES, SPEC, WEIGHTS, Answer, Script, as_json, opened, scores, served

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
