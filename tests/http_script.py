"""A small real server on loopback that behaves as a test tells it to, and a clock that only sleeping moves."""

from __future__ import annotations

import json
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from numpy.typing import NDArray

from onnxaudit.errors import OnnxauditError
from onnxaudit.suspect import InputSpec, Target
from onnxaudit_adapters.http import HttpSuspect, open_http

SPEC = InputSpec((3,), layout="NC")
# Eighths of whole numbers: products and sums are exact, so results are equal in every order of adding and every batch.
WEIGHTS = (np.random.default_rng(0).integers(-99, 100, (3, 4)) / 8).astype(np.float32)
QUERIES = (np.random.default_rng(1).integers(-99, 100, (20, 3)) / 8).astype(np.float32)
EXPECTED = QUERIES @ WEIGHTS
PATH = "/v2/models/m"
METADATA = {"name": "m", "platform": "test", "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 3]}], "outputs": []}

Answer = tuple[int, dict[str, str], bytes]


def as_json(document: object, status: int = 200, **headers: str) -> Answer:
    return status, headers, json.dumps(document).encode()


def scores(body: bytes) -> Answer:
    """What an honest V2 server says."""
    sent = json.loads(body)["inputs"][0]
    rows = np.array(sent["data"], np.float32).reshape(sent["shape"]) @ WEIGHTS
    return as_json({"outputs": [{"name": "y", "datatype": "FP32", "shape": list(rows.shape), "data": rows.ravel().tolist()}]})


class Script:
    """A server's behaviour: ``answer(number of the POST, body)``; what was asked is kept."""

    def __init__(self, answer: Callable[[int, bytes], Answer], metadata: dict[str, Answer] | None = None) -> None:
        self.answer = answer
        self.metadata = {PATH: as_json(METADATA), "/v2": as_json({"name": "test-server", "version": "7"})}
        self.metadata = self.metadata if metadata is None else metadata
        self.gets: list[str] = []
        self.posts: list[bytes] = []
        self.headers: list[dict[str, str]] = []
        self.requests: list[tuple[dict[str, str], bytes]] = []  # headers and body of each POST
        self.authorization: str | None = None


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # head and body in one packet: no waiting for acknowledgements
    script: Script

    def do_GET(self) -> None:
        self.script.gets.append(self.path)
        self.script.headers.append(dict(self.headers))
        self._send(self.script.metadata.get(self.path.partition("?")[0], (404, {}, b'{"error":"not found"}')))

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.script.posts.append(body)
        self.script.headers.append(dict(self.headers))
        self.script.requests.append((dict(self.headers), body))
        if self.script.authorization is not None and self.headers.get("Authorization") != self.script.authorization:
            echo = f"you sent {self.headers.get('Authorization')}".encode()
            self._send((401, {}, echo))
            return
        self._send(self.script.answer(len(self.script.posts), body))

    def _send(self, answer: Answer) -> None:
        status, headers, body = answer
        if status == 0:  # hang up
            self.close_connection = True
            return
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        try:
            self.wfile.write(body)
            self.wfile.flush()
        except OSError:  # the client had enough
            self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def served(script: Script, tls: ssl.SSLContext | None = None) -> Iterator[str]:
    handler = type("Scripted", (Handler,), {"script": script})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        if tls is not None:
            server.socket = tls.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"{'https' if tls else 'http'}://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


def self_signed(folder: Path, name: str) -> tuple[Path, Path]:
    """Key and certificate of a server on loopback, or of a client. Needs openssl."""
    key, certificate = folder / f"{name}.key", folder / f"{name}.pem"
    line = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", str(key), "-out", str(certificate)]
    names = ["-days", "2", "-subj", f"/CN={name}", "-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run([*line, *names], check=True, capture_output=True)
    return key, certificate


class Time:
    """A clock that only sleeping moves."""

    def __init__(self) -> None:
        self.now = 0.0
        self.slept: list[float] = []

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


@contextmanager
def opened(
    url: str, time: Time | None = None, *, shape: tuple[int, ...] | None = None, **options: object
) -> Iterator[HttpSuspect]:
    time = time or Time()
    target = Target(url, SPEC, num_classes=4, shape=shape, options=options)
    with open_http(target, clock=lambda: time.now, sleep=time.sleep, jitter=lambda: 0.0) as suspect:
        yield cast("HttpSuspect", suspect)


def fail(script: Script, path: str = PATH, queries: NDArray[np.float32] = QUERIES, **options: Any) -> OnnxauditError:
    """The error that asking such a server ends with."""
    with served(script) as url, pytest.raises(OnnxauditError) as caught, opened(url + path, **options) as suspect:
        suspect.ask(queries)
    assert "\n" not in str(caught.value)
    return caught.value


def sometimes(*statuses: int, **headers: str) -> Script:
    """Success first, then these statuses, then success."""
    bad = dict(enumerate(statuses, start=2))
    return Script(lambda number, body: (bad[number], headers, b"later") if number in bad else scores(body))
