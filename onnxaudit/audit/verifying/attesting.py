"""Commitments to bundles, transcripts and reports: made, opened in part, signed, time-stamped, and verified."""

from __future__ import annotations

import hashlib
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from onnxaudit.audit.verifying.records import kind_of, read_bytes, read_text, read_transcript
from onnxaudit.audit.verifying.replaying import sealed_report
from onnxaudit.bundle import KEY, QueryBundle, load
from onnxaudit.decode import parse
from onnxaudit.errors import ArtefactError, UsageError
from onnxaudit.evidence.commitment import (
    Commitment,
    Opening,
    check_opening,
    commit,
    commit_file,
    commitment_of,
    open_rows,
    opening_of,
    to_text,
)
from onnxaudit.regular import write_in_one_step

SHOWN = 12
"""Rows that a line names at most."""
SEND = "curl -H 'Content-Type: application/timestamp-query' --data-binary @{} -o reply.tsr URL"
"""How a request gets to an authority."""


@dataclass(frozen=True, slots=True)
class Binding:
    """What is to be written beside a commitment. sign: a private key. request: for a time-stamp."""

    path: Path
    day: str | None = None
    sign: Path | None = None
    request: Path | None = None
    force: bool = False


def bind(file: Path, binding: Binding) -> list[str]:
    """Write the commitment to a file, signed and with a request for a time-stamp where wanted; what was done, in words.

    The time-stamp is for what was written last: the signed envelope, else the commitment.
    """
    from onnxaudit.evidence import signing, timestamp

    commitment = commit_to(file, binding.day)
    text, last = to_text(commitment), binding.path
    outputs = {binding.path: text.encode()}
    root = f", root {commitment.root} over {commitment.size} queries" if commitment.root else ""
    said = [f"{binding.path}: commits to the {commitment.kind} with sha256 {commitment.sha256}{root}"]
    if binding.sign is not None:
        last = binding.path.with_suffix(".dsse.json")
        outputs[last] = signing.sign(text.encode(), read_bytes(binding.sign), binding.sign.name).encode()
        said.append(f"{last}: the same, signed")
    if binding.request is not None:
        outputs[binding.request] = timestamp.request(outputs[last])
        said.append(f"{binding.request}: asks for a time-stamp of {last}; send it with: {SEND.format(binding.request)}")
    _write(outputs, force=binding.force)
    return said


def show_rows(file: Path, rows: Sequence[int], path: Path, *, force: bool) -> list[str]:
    """Write an opening of a bundle's queries; what was done, in words."""
    opening = opening_to(file, rows)
    _write({path: to_text(opening).encode()}, force=force)
    return [f"{path}: shows {len(rows)} of {opening.size} queries, with the victim's answers and proofs"]


def _write(outputs: Mapping[Path, bytes], *, force: bool) -> None:
    """Write all files, each in one step, or none where one exists and not ``force``."""
    for path in outputs:
        if path.exists() and not force:
            raise UsageError(f"{path} exists already", "Give another name with -o, or --force to replace it.")
    for path, data in outputs.items():
        try:
            write_in_one_step(path, data)
        except OSError as error:
            raise UsageError(f"{path} cannot be written: {error.strerror}", "Choose another place.") from None


def commit_to(path: Path, day: str | None = None) -> Commitment:
    """The commitment to a bundle, transcript or report, which has to be sound. day: as the author says, YYYY-MM-DD."""
    if day is not None:
        try:
            date.fromisoformat(day)
        except ValueError:
            raise UsageError(f"--date {day!r} is not a date", "For example 2026-01-31.") from None
    kind = kind_of(path)
    if kind == "bundle":
        bundle, data = _bundle(path)
        return commit(bundle, data, _manifest_digest(data), day)
    if kind == "transcript":
        record, _ = read_transcript(path)
        named = str(record.header.get("bundle"))
    elif kind == "report":
        about = sealed_report(path).get("bundle")
        named = str(about.get("id")) if isinstance(about, dict) else ""
    else:
        raise UsageError(f"{path} is a {kind}", "commit takes a bundle, a transcript or a report.")
    return commit_file(kind, hashlib.sha256(read_bytes(path)).hexdigest(), named, day)


def opening_to(path: Path, rows: Sequence[int]) -> Opening:
    """Some queries of a bundle, with proofs that a commitment to it covers them."""
    if kind_of(path) != "bundle":
        raise UsageError(f"{path} is no bundle", "Only the queries of a bundle can be opened.")
    bundle, data = _bundle(path)
    if beyond := [row for row in rows if row >= len(bundle.queries)]:
        raise UsageError(f"--open: there is no query {beyond[0]}", f"{path} has 0 to {len(bundle.queries) - 1}.")
    return open_rows(bundle, data, rows)


def _bundle(path: Path) -> tuple[QueryBundle, bytes]:
    bundle, data = load(path), read_bytes(path)
    if hashlib.sha256(data).hexdigest() != bundle.id:
        raise ArtefactError(f"{path.name} was changed while it was read")
    return bundle, data


def _manifest_digest(data: bytes) -> str:
    """The manifest's own digest, from the bytes of a bundle that was found to be sound."""
    header = parse(data[8 : 8 + int.from_bytes(data[:8], "little")], "the bundle")
    return str(parse(header["__metadata__"][KEY], "the bundle")["digest"])


def verify_commitment(path: Path, of: Path | None) -> Iterator[str]:
    """What holds of a commitment. of: the file that it is said to bind, or None."""
    yield from _committed(commitment_of(read_text(path), path.name), path.name, of)


def _committed(commitment: Commitment, where: str, of: Path | None) -> Iterator[str]:
    root = f", root {commitment.root} over {commitment.size} queries" if commitment.root else ""
    yield f"it commits to the {commitment.kind} with sha256 {commitment.sha256}{root}"
    if commitment.date:
        yield f"its author dates it {commitment.date}; only a time-stamp proves a date"
    if of is None:
        yield "give the file itself with --of to see that it is the one"
        return
    again = commit_to(of, commitment.date)
    mine = {name: getattr(again, name) for name in ("kind", "sha256", "bundle", "manifest", "size", "root")}
    for name, value in mine.items():
        if value != getattr(commitment, name):
            raise ArtefactError(f"{where} is not of {of.name}: {name} is {value}, committed was {getattr(commitment, name)}")
    yield f"{of.name} is that {commitment.kind}, to the byte"


def verify_opening(path: Path, commitment: Path | None, public_key: Path | None) -> Iterator[str]:
    """What holds of an opening, against a commitment, which may be in a signed envelope."""
    opening = opening_of(read_text(path), path.name)
    if commitment is None:
        raise UsageError(f"{path.name} shows queries of a commitment", "Give that with --commitment F.commitment.json.")
    if kind_of(commitment) == "envelope":
        bound = yield from _signed(commitment, public_key)
    else:
        bound = commitment_of(read_text(commitment), commitment.name)
    check_opening(opening, bound, path.name)
    rows = [item.row for item in opening.opened]
    named = ", ".join(map(str, rows[:SHOWN])) + (" …" if len(rows) > SHOWN else "")
    yield f"{len(rows)} of the {opening.size} queries in {commitment.name} are opened, each with the victim's answer: {named}"


def verify_envelope(path: Path, public_key: Path | None, of: Path | None) -> Iterator[str]:
    """What holds of a signed commitment."""
    commitment = yield from _signed(path, public_key)
    yield from _committed(commitment, path.name, of)


def _signed(path: Path, public_key: Path | None) -> Generator[str, None, Commitment]:
    """Says who signed, and returns the commitment."""
    from onnxaudit.evidence.signing import signed_payload

    if public_key is None:
        raise UsageError(f"{path.name} is signed", "Give the signer's key with --public-key F.pem.")
    payload, key = signed_payload(read_text(path), read_bytes(public_key), path.name, public_key.name)
    try:
        commitment = commitment_of(payload.decode(), f"{path.name}: what was signed")
    except UnicodeDecodeError as error:
        raise ArtefactError(f"{path.name} is damaged: {error}") from None
    yield f"{path.name} was signed by the holder of the key in {public_key.name}, id {key}"
    return commitment


def verify_stamp(path: Path, reply: Path, certificates: Path | None) -> Iterator[str]:
    """What a time-stamp authority's reply says of a file, whatever kind it is."""
    from onnxaudit.evidence.timestamp import check_stamp

    if certificates is None:
        raise UsageError("--timestamp is nothing without a trusted authority", "Give its root certificate: --tsa-cert F.pem.")
    stamp = check_stamp(read_bytes(reply), read_bytes(path), read_bytes(certificates), reply.name, certificates.name)
    yield f"{reply.name}: {path.name} existed on {stamp.time:%Y-%m-%d %H:%M:%S} UTC, says {stamp.authority}"
