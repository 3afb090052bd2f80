"""Chance that depends on a query alone: the same query draws the same numbers, whatever it is asked together with."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import numpy as np

from onnxaudit.suspect import Queries


def generators(queries: Queries, purpose: str) -> Iterator[np.random.Generator]:
    """One generator a query, seeded with what the query holds and with what the numbers are for."""
    for query in queries:
        digest = hashlib.sha256(purpose.encode() + b"\0" + np.ascontiguousarray(query).tobytes()).digest()
        yield np.random.default_rng(int.from_bytes(digest, "little"))
