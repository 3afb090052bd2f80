"""Records what real servers say, byte for byte, for tests/test_http_recorded.py: ``python -m tests.peers.record [PEER…]``."""

from __future__ import annotations

import base64
import json
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onnxaudit.suspect import InputSpec, Queries
from onnxaudit_adapters.http.dialects import Dialect
from onnxaudit_adapters.http.huggingface import HuggingFace
from onnxaudit_adapters.http.invocations import Invocations
from onnxaudit_adapters.http.names import ClassNames
from onnxaudit_adapters.http.options import Address, parse_address
from onnxaudit_adapters.http.plain import Plain
from onnxaudit_adapters.http.tfserving import TfServing
from onnxaudit_adapters.http.torchserve import TorchServe
from onnxaudit_adapters.http.v2 import V2
from tests.bundles import CLASSES, save_linear
from tests.mlserver_peer import running as mlserver
from tests.peer_bundle import ANIMALS, PICTURES, linear_bundle, linear_weights, pictures, scores_of
from tests.peers import starting

RECORDED = Path(__file__).parent / "recorded"
_V2 = "/v2/models/suspect/infer"


@dataclass(frozen=True, slots=True)
class Case:
    """One request to a peer. dialect: from the address to the dialect; n: queries in the request."""

    path: str
    dialect: Callable[[Address], Dialect]
    n: int = 3


CASES: dict[str, dict[str, Case]] = {
    "mlserver": {"v2": Case(_V2, lambda at: V2(at, "x", None, CLASSES))},
    "litserve": {
        "tensor": Case("/tensor", lambda at: Plain(at, num_classes=CLASSES)),
        "hf": Case("/hf", lambda at: HuggingFace(at, CLASSES), 1),
        "label": Case("/label", lambda at: Plain(at, num_classes=CLASSES), 1),
    },
    "kserve": {
        "v1": Case("/v1/models/suspect:predict", lambda at: TfServing(at, num_classes=CLASSES)),
        "v2": Case(_V2, lambda at: V2(at, "x", None, CLASSES)),
        "v2-binary": Case(_V2, lambda at: V2(at, "x", None, CLASSES, form="binary")),
    },
    "triton": {
        "v2": Case(_V2, lambda at: V2(at, "x", None, CLASSES)),
        "v2-binary": Case(_V2, lambda at: V2(at, "x", None, CLASSES, form="binary")),
        "v2-classes": Case(_V2, lambda at: V2(at, "x", "logits", CLASSES, form="classes")),
    },
    "mlflow": {
        "inputs": Case("/invocations", lambda at: Invocations(at, num_classes=CLASSES)),
        "instances": Case("/invocations", lambda at: Invocations(at, "instances", num_classes=CLASSES)),
    },
    "bentoml": {"plain": Case("/predict", lambda at: Plain(at, num_classes=CLASSES))},
    "torchserve": {
        "body": Case("/predictions/suspect", lambda at: TorchServe(at, num_classes=CLASSES), 1),
        "form": Case("/predictions/suspect", lambda at: TorchServe(at, "data", num_classes=CLASSES), 1),
    },
}
_PICTURE = "/models/owner/suspect"
HUGGINGFACE = {
    "all": Case(_PICTURE, lambda at: HuggingFace(at, len(ANIMALS), ClassNames(ANIMALS)), 1),
    "best": Case(_PICTURE, lambda at: HuggingFace(at, len(ANIMALS), ClassNames(ANIMALS), raw=True), 1),
}
"""What a Vision Transformer is asked: it sees colours, which the linear model of the others does not."""
GETS = ("/v2", "/v1/models", "/ping", "/openapi.json", "/v2/models/suspect")
_LONGEST = 8000  # of a description in base64: longer ones are documentation
_HEADERS = ("content-type", "inference-header-content-length", "retry-after", "www-authenticate")
ORIGIN = "http://127.0.0.1:8000"
"""Stands for the origin of every peer in what is recorded."""


def _started(peer: str, model: Path, folder: Path) -> AbstractContextManager[str]:
    if peer == "mlserver":
        inputs = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 1, 4, 4]}]}
        return mlserver({"suspect": (model, inputs)}, folder)
    forms = ("tensor", "hf", "label") if peer == "litserve" else ()
    start: Callable[..., AbstractContextManager[str]] = getattr(starting, peer)
    return start(model, folder, *forms)


def _sent(url: str, body: bytes | None, headers: dict[str, str]) -> dict[str, Any]:
    """Status, headers and body of the reply, whatever the status."""
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    request = urllib.request.Request(url, body, headers)
    try:
        with direct.open(request, timeout=60) as reply:
            status, found, content = reply.status, dict(reply.headers), reply.read()
    except urllib.error.HTTPError as error:
        status, found, content = error.code, dict(error.headers), error.read()
    kept = {name: value for name, value in found.items() if name.lower() in _HEADERS}
    return {"status": status, "headers": kept, "body": base64.b64encode(content).decode()}


def _recorded(cases: Mapping[str, Case], queries: Queries, spec: InputSpec, origin: str) -> Iterator[tuple[str, dict[str, Any]]]:
    for name, case in cases.items():
        request = case.dialect(parse_address(origin + case.path)).encode(queries[: case.n], spec)
        reply = _sent(request.address.url, request.body, dict(request.headers))
        yield name, {"sent": base64.b64encode(request.body).decode(), "reply": reply}
        wrong = _sent(request.address.url, b'{"nonsense": [1]}', dict(request.headers))
        yield f"{name}-refused", {"reply": wrong}
    gets = {path: _sent(origin + path, None, {"Accept": "application/json"}) for path in GETS}
    yield "gets", {path: reply for path, reply in gets.items() if len(reply["body"]) < _LONGEST}


def record_huggingface() -> None:
    """What Hugging Face's server says of a picture, and beside it what ONNX Runtime says of it, since nothing here is linear."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = starting.vision_transformer(folder / "model", 0, PICTURES.shape[0], ANIMALS)
        with starting.huggingface(model, folder) as origin:
            replies = dict(_recorded(HUGGINGFACE, pictures(), PICTURES, origin))
        replies["scores"] = scores_of(model, pictures()[:1])[0].tolist()
    _write("huggingface", replies, origin)


def record_nginx() -> None:
    """What nginx says to a missing key, to requests that come too fast, and to one that is too large."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = save_linear(folder / "victim.onnx", CLASSES, weights=linear_weights(), size=4)
        for part in ("server", "proxy"):
            (folder / part).mkdir()
        with starting.litserve(model, folder / "server") as behind, starting.nginx(behind, folder / "proxy", "key") as origin:
            url, headers = f"{origin}/predict", {"Authorization": "Bearer key", "Content-Type": "application/json"}
            replies = {"no-key": _sent(url, b"{}", {}), "too-large": _sent(url, b" " * 4096, headers)}
            fast = [_sent(url, b"{}", headers) for _ in range(20)]
            replies["too-fast"] = next(reply for reply in fast if reply["status"] == 429)
    _write("nginx", replies, origin)


def record(peer: str) -> None:
    """Start a peer with the victim's file, ask it everything, write ``recorded/PEER.json``."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = save_linear(folder / "victim.onnx", CLASSES, weights=linear_weights(), size=4)
        (folder / "server").mkdir()
        with _started(peer, model, folder / "server") as origin:
            bundle = linear_bundle()
            replies = dict(_recorded(CASES[peer], bundle.queries, bundle.manifest.input, origin))
    _write(peer, replies, origin)


def _write(peer: str, replies: Mapping[str, Any], origin: str) -> None:
    text = json.dumps(replies, indent=1, sort_keys=True)
    (RECORDED / f"{peer}.json").write_text(text.replace(origin, ORIGIN) + "\n")


_OTHERS = {"nginx": record_nginx, "huggingface": record_huggingface}


if __name__ == "__main__":
    for chosen in sys.argv[1:] or [*CASES, *_OTHERS]:
        print(f"{chosen} ...", flush=True)
        if chosen in _OTHERS:
            _OTHERS[chosen]()
        else:
            record(chosen)
