"""Commitments: a few digests that bind their author to a bundle, a transcript or a report, without showing what is in it.

A bundle is bound twice: by its id, and by a Merkle root over its queries and the victim's answers, of which an expert can be
shown some and be sure that they were among all those that were committed to, while the others stay unknown.
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import hmac
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from onnxaudit import __version__
from onnxaudit.bundle import QueryBundle
from onnxaudit.decode import canonical, decode, parse
from onnxaudit.errors import ArtefactError
from onnxaudit.evidence.merkle import leaf_hash, proof_of, root_by, root_of

COMMITMENT, OPENING = "onnxaudit.commitment/1", "onnxaudit.opening/1"
SALT = b"onnxaudit.commitment/1 salt\0"
DTYPES = ("|u1", "<f4", "<i4")
MAX_VALUES = 1 << 26


@dataclass(frozen=True, slots=True)
class Commitment:
    """What is published. kind: "bundle", "transcript" or "report". sha256: of the file. date: only where the author gave one.

    manifest, size, root: of a bundle: digest of its manifest, number of its queries, and the Merkle root over them. bundle: the
    id that a transcript or report names. digest: of all else in this document.
    """

    kind: str
    sha256: str
    bundle: str
    manifest: str | None = None
    size: int | None = None
    root: str | None = None
    date: str | None = None
    tool: str = __version__
    digest: str = ""
    schema: str = COMMITMENT


@dataclass(frozen=True, slots=True)
class Values:
    """An array. data: base64 of its bytes, C order, little-endian."""

    dtype: str
    shape: tuple[int, ...]
    data: str


@dataclass(frozen=True, slots=True)
class Opened:
    """One query with the victim's answer (scores, or a label), the salt that hid it, and the proof that it was committed to."""

    row: int
    query: Values
    answer: Values
    salt: str
    proof: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Opening:
    """Some of the queries that a commitment covers. size: how many there are in all. digest: of all else in this document."""

    bundle: str
    size: int
    opened: tuple[Opened, ...]
    tool: str = __version__
    digest: str = ""
    schema: str = OPENING


D = TypeVar("D", bound=Commitment | Opening)


def to_text(document: Commitment | Opening) -> str:
    """The document as it is written, one line of canonical JSON, with its digest."""
    return canonical(_sealed(document)) + "\n"


def _sealed(document: D) -> D:
    """The document with its digest."""
    blank = dataclasses.replace(document, digest="")
    return dataclasses.replace(blank, digest=hashlib.sha256(canonical(blank).encode()).hexdigest())


def commitment_of(text: str, where: str) -> Commitment:
    """A commitment, read back. Raises ArtefactError if a byte of it is not as it was written."""
    found = decode(Commitment, parse(text, where), where)
    _check(found, text, where, COMMITMENT)
    return found


def opening_of(text: str, where: str) -> Opening:
    """An opening, read back. Raises ArtefactError if a byte of it is not as it was written."""
    found = decode(Opening, parse(text, where), where)
    _check(found, text, where, OPENING)
    return found


def _check(found: Commitment | Opening, text: str, where: str, schema: str) -> None:
    if found.schema != schema:
        raise ArtefactError(f"{where} has the schema {found.schema[:40]!r}, this version reads {schema}", "Update onnxaudit.")
    if to_text(found) != text:
        raise ArtefactError(f"{where} does not match its own digest", "It was changed after it was written.")


def commit(bundle: QueryBundle, data: bytes, manifest: str, date: str | None) -> Commitment:
    """The commitment to a bundle. data: the bytes of its file. manifest: the digest of its manifest."""
    hashes = [_leaf(bundle, row, secret_of(data)) for row in range(len(bundle.queries))]
    return _sealed(Commitment("bundle", bundle.id, bundle.id, manifest, len(hashes), root_of(hashes).hex(), date))


def commit_file(kind: str, sha256: str, bundle: str, date: str | None) -> Commitment:
    """The commitment to a transcript or a report. bundle: the id that it names."""
    return _sealed(Commitment(kind, sha256, bundle, date=date))


def open_rows(bundle: QueryBundle, data: bytes, rows: Sequence[int]) -> Opening:
    """What shows that the given queries are among those committed to. data: the bytes of the bundle's file."""
    secret = secret_of(data)
    hashes = [_leaf(bundle, row, secret) for row in range(len(bundle.queries))]
    opened = tuple(
        Opened(
            row,
            _values(bundle.queries[row]),
            _values(_answer(bundle, row)),
            _salt(secret, row).hex(),
            tuple(node.hex() for node in proof_of(hashes, row)),
        )
        for row in rows
    )
    return _sealed(Opening(bundle.id, len(hashes), opened))


def check_opening(opening: Opening, commitment: Commitment, where: str) -> None:
    """Raise ArtefactError unless every query of the opening was committed to."""
    if commitment.kind != "bundle" or opening.bundle != commitment.bundle or opening.size != commitment.size:
        raise ArtefactError(f"{where} is of another bundle than the commitment", "Give the commitment of that bundle.")
    if not opening.opened:
        raise ArtefactError(f"{where} opens nothing")
    for item in opening.opened:
        try:
            proof, salt = [bytes.fromhex(node) for node in item.proof], bytes.fromhex(item.salt)
        except ValueError as error:
            raise ArtefactError(f"{where}, row {item.row}: {error}") from None
        leaf = leaf_hash(_content(item.row, salt, to_array(item.query, where), to_array(item.answer, where)))
        root = root_by(leaf, item.row, opening.size, proof)
        if root is None or root.hex() != commitment.root:
            raise ArtefactError(
                f"{where}: row {item.row} was not committed to", "The query, the answer or the proof was changed."
            )


def secret_of(data: bytes) -> bytes:
    """The key of a bundle's salts, from all the bytes of its file; its id, which is published, does not tell it.

    Whoever has the bundle can work out the root again, so that there is no second file to keep, or to lose.
    """
    return hmac.digest(SALT, data, "sha256")


def to_array(values: Values, where: str) -> NDArray[Any]:
    """The array. Raises ArtefactError where it is none."""
    try:
        if values.dtype not in DTYPES or min(values.shape, default=1) < 0 or int(np.prod(values.shape)) > MAX_VALUES:
            raise ValueError("its type or shape is unknown")
        return np.frombuffer(base64.b64decode(values.data, validate=True), values.dtype).reshape(values.shape)
    except (ValueError, OverflowError) as error:
        raise ArtefactError(f"{where}: an array is damaged: {error}") from None


def _values(array: NDArray[Any]) -> Values:
    return Values(array.dtype.str, array.shape, base64.b64encode(array.tobytes()).decode())


def _answer(bundle: QueryBundle, row: int) -> NDArray[Any]:
    """What the victim said to a query: scores by class (C,), or a label ()."""
    answers = bundle.answers["victim"]
    part = answers.take(np.array([row]))
    return np.asarray(part.labels[0]) if part.scores is None else part.dense()[0]


def _salt(secret: bytes, row: int) -> bytes:
    return hmac.digest(secret, str(row).encode(), "sha256")


def _leaf(bundle: QueryBundle, row: int, secret: bytes) -> bytes:
    return leaf_hash(_content(row, _salt(secret, row), bundle.queries[row], _answer(bundle, row)))


def _content(row: int, salt: bytes, query: NDArray[Any], answer: NDArray[Any]) -> bytes:
    """What a leaf is the hash of: row, salt, and digests of the query and of the victim's answer, as canonical JSON."""
    return canonical([row, salt.hex(), _digest(query), _digest(answer)]).encode()


def _digest(array: NDArray[Any]) -> str:
    """As a bundle's manifest has it of a tensor."""
    head = canonical([array.dtype.str, list(array.shape)]).encode()
    return hashlib.sha256(head + array.tobytes()).hexdigest()
