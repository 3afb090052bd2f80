"""Files of evidence, read with suspicion: what kind a file is, JSON documents, and transcripts up to a line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from onnxaudit.bundle import MAX_HEADER
from onnxaudit.decode import parse
from onnxaudit.errors import ArtefactError, UsageError
from onnxaudit.regular import open_regular
from onnxaudit.transcript import Record

KINDS = {
    "report": "onnxaudit.report/",
    "transcript": "onnxaudit.transcript/",
    "commitment": "onnxaudit.commitment/",
    "opening": "onnxaudit.opening/",
    "envelope": "application/vnd.onnxaudit",
}
MAX_DOCUMENT = 64 << 20


def read_bytes(path: Path, limit: int = 4 << 30) -> bytes:
    """A file's content. Raises UsageError if it cannot be read, ArtefactError if it is larger than ``limit``."""
    try:
        if path.stat().st_size > limit:
            raise ArtefactError(f"{path.name} is larger than {limit} bytes")
        with open_regular(path) as file:
            return file.read()
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}", "Check the path.") from None


def kind_of(path: Path) -> str:
    """ "report", "transcript", "commitment", "opening" or "envelope", by content; "bundle" for all that is no JSON.

    Raises ArtefactError for JSON of no kind known here.
    """
    try:
        with open_regular(path) as file:
            head = file.read(9)
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}", "Check the path.") from None
    if head[:1] != b"{" or (head[8:] == b"{" and int.from_bytes(head[:8], "little") < MAX_HEADER):
        return "bundle"
    data = read_bytes(path)
    lines = data[:2] == b'{"'
    value = parse(data.split(b"\n", 1)[0] if lines else data, path.name)
    schema = str(value.get("schema", value.get("payloadType"))) if isinstance(value, dict) else ""
    for kind, begin in KINDS.items():
        if schema.startswith(begin):
            return kind
    raise ArtefactError(f"{path.name} is nothing that onnxaudit writes, or damaged", "verify takes reports, bundles and the like")


def read_text(path: Path) -> str:
    """A document's text. Raises ArtefactError if it is none."""
    try:
        return read_bytes(path, MAX_DOCUMENT).decode()
    except UnicodeDecodeError as error:
        raise ArtefactError(f"{path.name} is damaged: {error}") from None


def read_json(path: Path) -> tuple[str, dict[str, Any]]:
    """A JSON object, as text and parsed. Raises ArtefactError for anything else."""
    text = read_text(path)
    value = parse(text, path.name)
    if not isinstance(value, dict):
        raise ArtefactError(f"{path.name} is not a JSON object")
    return text, value


def read_transcript(path: Path, digest: object = None) -> tuple[Record, int]:
    """A transcript up to the line with this digest, and how many lines follow; without one, all of it.

    Raises ArtefactError if a line does not follow the one before, the last is cut off, or none has that digest.
    """
    *lines, rest = read_bytes(path).split(b"\n")
    if rest:
        raise ArtefactError(
            f"{path.name} is cut off in line {len(lines) + 1}", "check --resume drops that line and goes on from there."
        )
    if not lines:
        raise ArtefactError(f"{path.name} is empty")
    whole, sealed, left = Record(), None, 0
    for number, line in enumerate(lines, 1):
        whole.add(line + b"\n", f"{path.name} line {number}")
        if whole.digest == digest:
            sealed = number
    if digest is None or sealed == len(lines):
        return whole, 0
    if sealed is None:
        raise ArtefactError(
            f"no line of {path.name} has the digest that the report names",
            "It is another transcript, or one that was changed or shortened.",
        )
    record, left = Record(), len(lines) - sealed
    for number, line in enumerate(lines[:sealed], 1):
        record.add(line + b"\n", f"{path.name} line {number}")
    return record, left
