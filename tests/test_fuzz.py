"""Every parser with damaged and forged input: it returns or raises an error of ours, in bounded time. See benchmarks/fuzz."""

from __future__ import annotations

import copy
import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from benchmarks.fuzz.parsers import PARSERS, tried

CORPUS = Path(__file__).resolve().parent.parent / "benchmarks/fuzz/corpus"
SEEDS = {name: [file.read_bytes() for file in sorted((CORPUS / name).iterdir())] for name in PARSERS}
HOSTILE: list[Any] = [
    *(None, True, 0, 1, -1, 2**31, 2**63, 2**64, -(2**63), 10**400, 1e308, 1.5, -0.0),
    *("", "0", "../x", "/etc/passwd", "\x1b[2J", "\ud800", "é" * 50, "x" * 5000, "victim", "reference", "<f4", "|O8", "logits"),
    *([], {}, [[]], [0] * 100, {"a": {"b": []}}, [[1], [1, 2]], "AAAA"),
]
BURSTS = [b"\xff" * 8, b"\0" * 8, b"[" * 2000, b'{"a":' * 2000, b"\x7f\xff\xff\xff", b"9" * 5000, b"\\ud800"]
_ROUNDS = settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])


def _places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place in a JSON document, as the keys that lead there."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, part in inner for place in _places(part, (*path, key)))]


def _forged(document: Any, draw: st.DataObject) -> Any:
    """The document with something in it replaced, removed or doubled."""
    place = draw.draw(st.sampled_from(_places(document)))
    what = copy.deepcopy(draw.draw(st.sampled_from(HOSTILE)))  # it may be changed in its turn
    if not place:
        return what
    holder = document
    for key in place[:-1]:
        holder = holder[key]
    match draw.draw(st.sampled_from(["replace", "remove", "add"])):
        case "replace":
            holder[place[-1]] = what
        case "remove":
            del holder[place[-1]]
        case "add" if isinstance(holder, list):
            holder.append(what)
        case _:
            holder["another"] = what
    return document


def _documents(data: bytes) -> tuple[bytes, list[Any]] | None:
    """What stands before the JSON, and the documents; None if it is no JSON. A server's reply has two bytes before it."""
    for start in (0, 2):
        try:
            return data[:start], [json.loads(line) for line in data[start:].splitlines() if line]
        except ValueError:
            try:
                return data[:start], [json.loads(data[start:])]
            except ValueError:
                continue
    return None


@pytest.mark.parametrize("name", PARSERS)
@_ROUNDS
@given(data=st.data())
def test_damage(name: str, data: st.DataObject) -> None:
    seed = bytearray(data.draw(st.sampled_from(SEEDS[name])))
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, max(0, len(seed) - 1)))
        match data.draw(st.sampled_from(["flip", "cut", "insert", "repeat"])):
            case "flip":
                seed[place : place + 1] = data.draw(st.binary(min_size=1, max_size=1))
            case "cut":
                del seed[place : place + data.draw(st.integers(1, 64))]
            case "insert":
                seed[place:place] = data.draw(st.sampled_from(BURSTS))
            case _:
                seed[place:place] = seed[place : place + 200]
    tried(name, bytes(seed))


@pytest.mark.parametrize("name", [name for name in PARSERS if any(_documents(seed) for seed in SEEDS[name])])
@_ROUNDS
@given(data=st.data())
def test_forgery(name: str, data: st.DataObject) -> None:
    seed = data.draw(st.sampled_from([seed for seed in SEEDS[name] if _documents(seed)]))
    found = _documents(seed)
    assert found is not None
    before, documents = found
    for _ in range(data.draw(st.integers(1, 3))):
        number = data.draw(st.integers(0, len(documents) - 1))
        documents[number] = _forged(documents[number], data)
    tried(name, before + b"\n".join(json.dumps(document).encode() for document in documents))


@pytest.mark.parametrize("name", PARSERS)
@_ROUNDS
@given(data=st.binary(max_size=300))
def test_noise(name: str, data: bytes) -> None:
    tried(name, data)


@pytest.mark.parametrize("name", PARSERS)
def test_the_corpus_in_bounded_memory(name: str) -> None:
    """Sound inputs, and those that once broke something: none takes more than a few times its own size."""
    for data in SEEDS[name]:
        tried(name, data)  # what is imported and made once does not count
        tracemalloc.start()
        try:
            tried(name, data)
            assert tracemalloc.get_traced_memory()[1] < 64 * 2**20
        finally:
            tracemalloc.stop()
