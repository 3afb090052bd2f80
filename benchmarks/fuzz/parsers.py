"""Every way in for a stranger's bytes, each as a function of bytes: it may only return, or raise an error of ours.

A digest would keep random changes from ever getting past it, so where a forger could write one that fits, so does this.
"""

from __future__ import annotations

import functools
import hashlib
import io
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from benchmarks.fuzz.doors import litert, openvino, skops
from benchmarks.fuzz.scratch import folder, put
from onnxaudit.answers import Access, Answers
from onnxaudit.archives import screen_exported, screen_torchscript, sniff
from onnxaudit.audit.verifying.attesting import _committed
from onnxaudit.audit.verifying.records import kind_of
from onnxaudit.audit.verifying.replaying import replay, sealed_report
from onnxaudit.bundle import KEY, QueryBundle, load
from onnxaudit.craft.data import load_data
from onnxaudit.decode import canonical
from onnxaudit.errors import OnnxauditError
from onnxaudit.evidence.commitment import check_opening, commitment_of, opening_of
from onnxaudit.registry import open_graph, read_target_file, weights_beside
from onnxaudit.report.contents import contents
from onnxaudit.report.findings import Findings
from onnxaudit.report.model import seal, written
from onnxaudit.sandbox.frames import FrameError, read
from onnxaudit.sandbox.suspect import read_answers
from onnxaudit.transcript import Record
from onnxaudit.zoo.manifest import load_zoo
from onnxaudit_adapters.http.dialects import Reply
from onnxaudit_adapters.http.options import parse_address
from onnxaudit_adapters.http.plain import Plain
from onnxaudit_adapters.http.template import Template, Templated
from onnxaudit_adapters.http.v2 import V2, read_metadata
from tests.bundles import simulated_bundle

CLASSES = 5
MOST = 1 << 20
"""Longer inputs say nothing that shorter ones do not."""


@functools.cache
def _own() -> QueryBundle:
    """A sound bundle, saved."""
    return simulated_bundle(4).save(folder() / "own.oab", force=True)


def _json(data: bytes) -> Any:
    """JSON in which a forger is to work out digests; anything else is of no interest."""
    try:
        return json.loads(data.decode())
    except (ValueError, RecursionError):
        return None


def bundle(data: bytes) -> None:
    """A bundle's file, as it is."""
    _loaded(put("a.oab", data))


def manifest(data: bytes) -> None:
    """A bundle's manifest, with digests that fit. ``{"manifest": …, "shapes": {tensor: [dtype, shape]}}`` changes tensors too."""
    from safetensors.numpy import load_file, save_file

    value = _json(data)
    if not isinstance(value, dict) or not isinstance(value.get("manifest"), dict):
        return
    _own()
    tensors = load_file(folder() / "own.oab")
    shapes = value.get("shapes")
    for name, layout in shapes.items() if isinstance(shapes, dict) else ():
        try:
            dtype, shape = layout
            if np.dtype(dtype).kind in "biuf" and int(np.prod(shape)) < 10_000:
                tensors[name] = np.ones(shape, dtype)
        except (TypeError, ValueError, OverflowError, SyntaxError):
            continue
    said = value["manifest"]
    try:
        said["tensors"] = {
            name: hashlib.sha256(canonical([t.dtype.str, list(t.shape)]).encode() + t.tobytes()).hexdigest()
            for name, t in tensors.items()
        }
        said["digest"] = hashlib.sha256(canonical({k: v for k, v in said.items() if k != "digest"}).encode()).hexdigest()
        save_file(tensors, folder() / "b.oab", {KEY: canonical(said)})
    except (ValueError, RecursionError, TypeError):  # what cannot be written cannot be read
        return
    _loaded(folder() / "b.oab")


def _loaded(path: Path) -> None:
    found = load(path)
    n = len(found.queries)
    assert found.queries.dtype in (np.uint8, np.float32)
    assert all(answers.classes.shape[0] == n for answers in found.answers.values())
    start, stop = found.manifest.controls
    assert 0 <= start <= stop <= n
    assert found.manifest.input.problem() is None
    assert all(0 <= scheme.rows[0] <= scheme.rows[1] <= n for scheme in found.manifest.schemes)
    assert not _steering(contents(found).replace("\n", "")), "it steers a terminal"


def transcript(data: bytes) -> None:
    """Lines of a transcript, each with the digest of the line before; then the report that follows from them."""
    record, digest = Record(), ""
    for number, line in enumerate(data.split(b"\n")[:64]):
        value = _json(line)
        if isinstance(value, dict):
            value["previous"] = digest
            if number == 0 and value.get("bundle") is not None:
                value["bundle"] = _own().id
            try:
                line = json.dumps(value).encode()
            except (ValueError, RecursionError):
                return
        record.add(line + b"\n", f"line {number + 1}")
        digest = hashlib.sha256(line + b"\n").hexdigest()
    for _, answers in record.kept:
        _sound(answers, len(answers))
    replay(_own(), record, "the transcript").to_json()


def report(data: bytes) -> None:
    """A report, with a digest that fits."""
    value = _json(data)
    if isinstance(value, dict):
        try:
            value["digest"] = seal(value)
            data = written(value).encode("utf-8", "surrogatepass")
        except (ValueError, RecursionError):
            return
    path = put("r.json", data)
    kind_of(path)
    sealed_report(path)


def commitment(data: bytes) -> None:
    """A commitment, with a digest that fits, of another file."""
    found = commitment_of(_sealed(data), "c.json")
    _own()
    list(_committed(found, "c.json", folder() / "own.oab"))


def opening(data: bytes) -> None:
    """An opening, with a digest that fits, against a commitment that says the same."""
    found = opening_of(_sealed(data), "o.json")
    bound = {"kind": "bundle", "sha256": "", "bundle": found.bundle, "size": found.size, "root": "00" * 32}
    try:
        text = _sealed(json.dumps(bound).encode())
    except ValueError:
        return
    check_opening(found, commitment_of(text, "c.json"), "o.json")


def _sealed(data: bytes) -> str:
    value = _json(data)
    if not isinstance(value, dict):
        return data.decode("utf-8", "replace")
    try:
        value["digest"] = ""
        kind = "opening" if "opened" in value else "commitment"
        value = {"tool": "0", "schema": f"onnxaudit.{kind}/1", **value}
        if kind == "commitment":
            value = {"manifest": None, "size": None, "root": None, "date": None, **value}
        value["digest"] = hashlib.sha256(canonical(value).encode()).hexdigest()
        return canonical(value) + "\n"
    except (ValueError, RecursionError):
        return ""


def envelope(data: bytes) -> None:
    """A signed commitment."""
    from onnxaudit.evidence.signing import signed_payload

    signed_payload(data.decode("utf-8", "replace"), _public_key(), "e.json", "key.pem")


@functools.cache
def _public_key() -> bytes:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    key = Ed25519PrivateKey.from_private_bytes(bytes(32)).public_key()
    return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def zoo(data: bytes) -> None:
    """A zoo manifest."""
    if not (folder() / "zoo/a.onnx").exists():
        (folder() / "zoo").mkdir(exist_ok=True)
        for name in "ab":
            put(f"zoo/{name}.onnx", name.encode())
    for entry in load_zoo(put("zoo/zoo.json", data)):
        inside = Path(entry.file).resolve().is_relative_to((folder() / "zoo").resolve())
        assert inside, f"a manifest leads to {entry.file}"


def external(data: bytes) -> None:
    """An ONNX model with weights in other files; it is parsed, not run."""
    (folder() / "onnx").mkdir(exist_ok=True)
    put("onnx/w.bin", b"weights")
    for place in weights_beside(data, folder() / "onnx/m.onnx"):
        assert (folder() / "onnx" / place).resolve().is_relative_to((folder() / "onnx").resolve())


def graph(data: bytes) -> None:
    """A learned detector's network, as bundles hold them; a small one that passes is run."""
    rows = open_graph(data)
    try:
        out = rows(np.zeros((2, 3), np.float32))
    except ValueError:
        return
    assert out.ndim == 2
    assert len(out) == 2


def archive(data: bytes) -> None:
    """A file that PyTorch might be asked to open: told by its bytes and screened, not opened."""
    path = put("a.pt", data)
    kind = sniff(path)
    if kind == "torchscript":
        screen_torchscript(path)
    elif kind == "exported":
        screen_exported(path)


def arrays(data: bytes) -> None:
    """A file of data: .npz, .npy, .safetensors, IDX."""
    for name in ("d.npz", "d.safetensors", "d.idx"):
        try:
            found = load_data(put(name, data))
        except OnnxauditError:
            continue
        assert found.x.size
        assert found.y is None or len(found.y) == len(found)


def http(data: bytes) -> None:
    """A server's reply: the first byte chooses the dialect, the second how many were asked."""
    if len(data) < 2:
        return
    dialects = _dialects()
    dialect, n = dialects[data[0] % len(dialects)], data[1] % 4 + 1
    body = data[2:]
    headers = {"content-type": "application/json"}
    length, _, rest = body.partition(b"\n")
    if length.isdigit():  # the v2 dialect's binary form says in a header where its JSON ends
        body, headers = (
            rest,
            {"inference-header-content-length": length[:30].decode(), "content-type": "application/octet-stream"},
        )
    _sound(dialect.decode(Reply(200, body, headers), n), n)


@functools.cache
def _dialects() -> list[Any]:
    import importlib

    address = parse_address("http://localhost/v2/models/m")
    found: list[Any] = [Plain(address, num_classes=CLASSES), Plain(address)]
    found += [V2(address, "x", num_classes=CLASSES), V2(address, "x")]
    for module, name, options in (
        ("v2", "V2", {"input_name": "x", "form": "binary"}),
        ("v2", "V2", {"input_name": "x", "form": "classes"}),
        ("tfserving", "TfServing", {}),
        ("torchserve", "TorchServe", {}),
        ("huggingface", "HuggingFace", {}),
        ("invocations", "Invocations", {}),
    ):
        make = getattr(importlib.import_module(f"onnxaudit_adapters.http.{module}"), name)
        found.append(make(address, num_classes=CLASSES, **options))
    paths = ({"scores": "$.a[*].s"}, {"items": "$.a[*]", "label": "$.l", "score": "$.s"}, {"label": "$.l"})
    sent = {"body": '{"x": {{json}}}'}
    return [*found, *(Templated(address, Template.read(sent, path), CLASSES, one=False) for path in paths)]


def scan(data: bytes) -> None:
    """The lines of a scan that is gone on with, which are read and written again."""
    with Findings(put("scan.jsonl", data)) as kept:
        lines = [line for _, line in kept.lines()]
        kept.rewrite(iter(lines))


def target(data: bytes) -> None:
    """A target.toml; it may name variables, and one of them is set."""
    put("names.txt", b"cat\ndog")
    found = read_target_file(put("target.toml", data), {"TOKEN": "t"})
    assert str(found["url"]).lower().startswith(("http://", "https://"))


def metadata(data: bytes) -> None:
    """What a server says of its model."""
    found = read_metadata(Reply(200, data))
    assert found.max_batch is None or found.max_batch > 0


def frames(data: bytes) -> None:
    """A message of a confined process, taken as the answers to two queries."""
    try:
        head, values = read(io.BytesIO(data), MOST)
    except (FrameError, EOFError):
        return
    assert sum(value.nbytes for value in values) <= len(data)
    _sound(read_answers(head, values, 2, "s"), 2)


def stamp(data: bytes) -> None:
    """A time-stamp authority's reply."""
    from onnxaudit.evidence.timestamp import check_stamp

    check_stamp(data, b"stamped", _certificate(), "reply.tsr", "tsa.pem")


@functools.cache
def _certificate() -> bytes:
    from datetime import UTC, datetime

    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import Encoding

    key = Ed25519PrivateKey.from_private_bytes(bytes(32))
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "authority")])
    made = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key()).serial_number(1)
    made = made.not_valid_before(datetime(2020, 1, 1, tzinfo=UTC)).not_valid_after(datetime(2040, 1, 1, tzinfo=UTC))
    return made.sign(key, None).public_bytes(Encoding.PEM)


def _sound(answers: Answers, n: int) -> None:
    """What counts as answers, however hostile it was on the way."""
    assert len(answers) == n
    assert answers.classes.ndim == 2
    assert answers.classes.shape[1] > 0
    assert (answers.scores is None) == (answers.access == Access.LABEL)
    if answers.scores is not None:
        assert answers.scores.shape == answers.classes.shape
        assert np.isfinite(answers.scores).all()


PARSERS: Mapping[str, Callable[[bytes], None]] = MappingProxyType(
    {
        parser.__name__: parser
        for parser in (
            *(bundle, manifest, transcript, report, commitment, opening, envelope, zoo, external, graph, archive, arrays),
            *(http, target, scan, metadata, frames, stamp, openvino, litert, skops),
        )
    }
)


def _steering(text: str) -> list[str]:
    """Characters that are not to be printed; halves of characters are what names of files have that are no text."""
    return [letter for letter in text if not letter.isprintable() and not "\ud800" <= letter <= "\udfff"]


def tried(name: str, data: bytes) -> str:
    """What a parser makes of bytes: "accepted", or the class of our own error. Raises whatever else it does."""
    try:
        PARSERS[name](data[:MOST])
    except OnnxauditError as error:
        said, kind = str(error), type(error).__name__
    else:
        return "accepted"
    assert not _steering(said), "an error is one line, and cannot steer a terminal"
    assert len(said) < 5000, "an error is short"
    return kind
