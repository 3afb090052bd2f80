"""Merkle trees of RFC 6962, section 2.1: leaves and inner nodes are hashed apart, so that neither passes for the other."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence


def leaf_hash(data: bytes) -> bytes:
    """SHA-256 of 0x00 and a leaf."""
    return hashlib.sha256(b"\x00" + data).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """SHA-256 of 0x01 and the hashes of the two subtrees below."""
    return hashlib.sha256(b"\x01" + left + right).digest()


def root_of(hashes: Sequence[bytes]) -> bytes:
    """The root over leaf hashes, in order (MTH of RFC 6962, 2.1); of none, the hash of nothing."""
    if not hashes:
        return hashlib.sha256().digest()
    if len(hashes) == 1:
        return hashes[0]
    split = _split(len(hashes))
    return node_hash(root_of(hashes[:split]), root_of(hashes[split:]))


def proof_of(hashes: Sequence[bytes], index: int) -> list[bytes]:
    """The hashes beside the way from a leaf to the root, lowest first (PATH of RFC 6962, 2.1.1)."""
    if len(hashes) <= 1:
        return []
    split = _split(len(hashes))
    if index < split:
        return [*proof_of(hashes[:split], index), root_of(hashes[split:])]
    return [*proof_of(hashes[split:], index - split), root_of(hashes[:split])]


MOST_STEPS = 64
"""Of a proof: there are no trees of more leaves than 2 to this."""


def root_by(leaf: bytes, index: int, size: int, proof: Sequence[bytes]) -> bytes | None:
    """The root that a leaf's hash and its proof lead to; None if the proof does not fit the leaf's place (RFC 9162, 2.1.3.2)."""
    if not 0 <= index < size or len(proof) > MOST_STEPS:
        return None
    if size == 1:
        return leaf if not proof else None
    if not proof:
        return None
    split, (*below, beside) = _split(size), proof
    if index < split:
        left = root_by(leaf, index, split, below)
        return None if left is None else node_hash(left, beside)
    right = root_by(leaf, index - split, size - split, below)
    return None if right is None else node_hash(beside, right)


def _split(size: int) -> int:
    """The largest power of two below ``size``."""
    return 1 << (size - 1).bit_length() - 1
