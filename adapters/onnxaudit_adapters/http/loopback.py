"""A small real server for demonstrations and tests: an ONNX file behind the Open Inference Protocol, on this machine only."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from onnxaudit.errors import OnnxauditError
from onnxaudit_adapters.http.strict_json import as_array, parse

_MAX_BODY = 16 * 2**20
_DATATYPES = {"float": "FP32", "float16": "FP16", "double": "FP64", "uint8": "UINT8", "int64": "INT64", "int32": "INT32"}
_NUMPY = {"FP32": np.float32, "FP16": np.float16, "FP64": np.float64, "UINT8": np.uint8, "INT64": np.int64, "INT32": np.int32}
_MODEL = "/v2/models/suspect"


@dataclass(frozen=True, slots=True)
class Served:
    """The model behind the server. labels_only: it gives the best class away and nothing more."""

    session: Any
    labels_only: bool

    def metadata(self) -> dict[str, object]:
        """What GET on the model answers."""
        session = self.session
        outputs = (
            [{"name": "label", "datatype": "INT64", "shape": [-1]}] if self.labels_only else _describe(session.get_outputs())
        )
        inputs = _describe(session.get_inputs())
        return {"name": "suspect", "versions": [], "platform": "onnxruntime", "inputs": inputs, "outputs": outputs}

    def infer(self, document: Any) -> dict[str, object]:
        """The reply to an inference request. Raises KeyError, TypeError, ValueError or an error of ONNX Runtime on nonsense."""
        feed = {}
        for tensor in document["inputs"]:
            values = as_array(tensor["data"]).ravel().astype(_NUMPY[tensor["datatype"]])
            feed[str(tensor["name"])] = values.reshape(tensor["shape"])
        names = [output.name for output in self.session.get_outputs()]
        given = {
            name: value for name, value in zip(names, self.session.run(None, feed), strict=True) if isinstance(value, np.ndarray)
        }
        if self.labels_only:
            given = {"label": _labels(given)}
        wanted = {output["name"] for output in document.get("outputs", [])} or set(given)
        outputs = [_tensor(name, value) for name, value in given.items() if name in wanted]
        return {"model_name": "suspect", "id": document.get("id", ""), "outputs": outputs}


def _labels(given: dict[str, NDArray[Any]]) -> NDArray[np.int64]:
    scores = next((value for value in given.values() if value.dtype.kind == "f" and value.ndim == 2), None)
    best = next(iter(given.values())).reshape(-1) if scores is None else scores.argmax(axis=1)
    return best.astype(np.int64)


def _describe(nodes: Any) -> list[dict[str, object]]:
    described = []
    for node in nodes:
        datatype = _DATATYPES.get(node.type.removeprefix("tensor(").removesuffix(")"))
        if datatype is not None:
            shape = [size if isinstance(size, int) else -1 for size in node.shape]
            described.append({"name": node.name, "datatype": datatype, "shape": shape})
    return described


def _tensor(name: str, value: NDArray[Any]) -> dict[str, object]:
    datatype = next(key for key, dtype in _NUMPY.items() if dtype == value.dtype)
    return {"name": name, "datatype": datatype, "shape": list(value.shape), "data": value.ravel().tolist()}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 30  # seconds; an idle connection gives its thread back
    wbufsize = -1  # head and body leave in one packet
    disable_nagle_algorithm = True
    served: ClassVar[Served]

    def do_GET(self) -> None:
        """Metadata of server and model, and readiness."""
        if self.path == "/v2":
            self._answer(200, {"name": "onnxaudit-loopback", "version": ort.__version__, "extensions": []})
        elif self.path == _MODEL:
            self._answer(200, self.served.metadata())
        elif self.path in ("/v2/health/ready", f"{_MODEL}/ready"):
            self._answer(200, {"ready": True})
        else:
            self._answer(404, {"error": "not found"})

    def do_POST(self) -> None:
        """Inference."""
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal() or len(length) > 18 or int(length) > _MAX_BODY:
            self.close_connection = True  # the body stays unread, so the connection cannot be used again
            self._answer(413 if length.isdecimal() else 411, {"error": f"a body of at most {_MAX_BODY} bytes, with its length"})
            return
        body = self.rfile.read(int(length))
        if self.path != f"{_MODEL}/infer":
            self._answer(404, {"error": "not found"})
            return
        try:
            self._answer(200, self.served.infer(parse(body)))
        except (OnnxauditError, KeyError, TypeError, ValueError, AttributeError) as error:
            self._answer(400, {"error": f"{type(error).__name__}: {error}"})
        except Exception as error:  # ONNX Runtime's errors share no base class; a server answers whatever happens
            self._answer(500, {"error": str(error)})

    def _answer(self, status: int, document: dict[str, object]) -> None:
        body = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        try:
            self.wfile.write(body)
            self.wfile.flush()
        except OSError:  # the client has gone; nobody is left to tell
            self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:
        """Quiet: stderr belongs to the command that started the server."""


@contextmanager
def serve_onnx(path: str, *, labels_only: bool = False) -> Iterator[str]:
    """Serve an ONNX file on a free port of 127.0.0.1 while the context lasts; yields the URL to audit.

    labels_only: the reply is one INT64 label a query. Raises what ONNX Runtime raises where the file cannot be loaded.
    """
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    handler = type("Handler", (_Handler,), {"served": Served(session, labels_only)})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True  # an idle kept-alive connection must not hold up the end
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}{_MODEL}"
        finally:
            server.shutdown()
            thread.join()
