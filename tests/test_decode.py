"""Strict, bounded reading of JSON into dataclasses, and the canonical text that digests are taken of."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxaudit.bundle import Manifest
from onnxaudit.decode import canonical, decode, parse
from onnxaudit.errors import ArtefactError


@dataclass(frozen=True, slots=True)
class Leaf:
    """A field of every scalar kind."""

    name: str
    count: int
    rate: float
    yes: bool
    maybe: float | None = None


@dataclass(frozen=True, slots=True)
class Tree:
    """Nesting of every kind."""

    leaves: tuple[Leaf, ...]
    pair: tuple[int, int] = (0, 1)
    table: Mapping[str, int] = field(default_factory=dict)
    anything: Any = None


LEAF = {"name": "a", "count": 2, "rate": 0.5, "yes": True}

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
    max_leaves=12,
)


def test_canonical_text_is_sorted_without_spaces_in_utf8() -> None:
    assert canonical({"b": 1, "a": [True, None, 0.1], "é": "ü"}) == '{"a":[true,null,0.1],"b":1,"é":"ü"}'
    assert canonical(Leaf("a", 2, 0.5, True)) == '{"count":2,"maybe":null,"name":"a","rate":0.5,"yes":true}'
    assert canonical(Tree((Leaf("a", 1, 1.0, False),), table={"z": 1})) == (
        '{"anything":null,"leaves":[{"count":1,"maybe":null,"name":"a","rate":1.0,"yes":false}],"pair":[0,1],"table":{"z":1}}'
    )


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {"a": [float("-inf")]}])
def test_canonical_text_has_no_nan(value: object) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        canonical(value)


def test_canonical_text_of_other_objects_is_a_bug_and_says_so() -> None:
    with pytest.raises(TypeError, match="set has no JSON form"):
        canonical({"a": {1}})


@given(json_values)
def test_what_is_written_is_read_back(value: Any) -> None:
    assert parse(canonical(value), "x") == json.loads(json.dumps(value))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        '{"a":NaN}',
        "[Infinity]",
        "[-Infinity]",
        b"\xff\xfe{",
        b'{"a":"\xc3"}',
        "[" * 100_000,
        '{"a":' * 100_000,
        "9" * (sys.get_int_max_str_digits() + 1),
        "[1,]",
        "{'a':1}",
    ],
    ids=range(12),
)
def test_bad_json_is_an_artefact_error(text: str | bytes) -> None:
    with pytest.raises(ArtefactError, match=r"here\.json is not valid JSON"):
        parse(text, "here.json")


@pytest.mark.parametrize("number", ["1e999", "-1e999", "1" + "0" * 400])
def test_numbers_too_large_for_a_float_are_refused(number: str) -> None:
    """1e999 is valid JSON that Python reads as infinity, which no report can be written with."""
    with pytest.raises(ArtefactError):
        decode(Leaf, parse(json.dumps(LEAF).replace("0.5", number), "x"), "x")


def test_nested_dataclasses_and_defaults() -> None:
    tree = decode(Tree, {"leaves": [LEAF, {**LEAF, "maybe": 1}], "table": {"k": 3}, "anything": [1, {"x": None}]}, "x")
    assert tree == Tree((Leaf("a", 2, 0.5, True), Leaf("a", 2, 0.5, True, 1.0)), (0, 1), {"k": 3}, [1, {"x": None}])
    assert isinstance(tree.leaves[1].maybe, float)


def test_a_whole_number_is_a_fine_float() -> None:
    leaf = decode(Leaf, {**LEAF, "rate": 1}, "x")
    assert isinstance(leaf.rate, float)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"name": 1}, r"x.leaves\[0\].name must be str, not int"),
        ({"name": None}, "name must be str"),
        ({"count": 1.0}, "count must be int, not float"),
        ({"count": True}, "count must be int, not bool"),
        ({"count": "1"}, "count must be int, not str"),
        ({"rate": "1"}, "rate must be float, not str"),
        ({"rate": True}, "rate must be float, not bool"),
        ({"yes": 1}, "yes must be bool, not int"),
        ({"maybe": "1"}, "maybe must be float, not str"),
        ({"nam": "b"}, "unknown field 'nam', did you mean 'name'"),
        ({"zzz": "b"}, "unknown field 'zzz'$"),
    ],
)
def test_wrong_fields_are_named(change: dict[str, object], said: str) -> None:
    with pytest.raises(ArtefactError, match=said):
        decode(Tree, {"leaves": [{**LEAF, **change}]}, "x")


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ([], "x must be an object, not list"),
        (None, "x must be an object"),
        ({}, "x lacks the field 'leaves'"),
        ({"leaves": {}}, "x.leaves must be a list, not dict"),
        ({"leaves": [3]}, r"x.leaves\[0\] must be an object"),
        ({"leaves": [], "pair": [1]}, "x.pair must be a list of 2"),
        ({"leaves": [], "pair": [1, 2, 3]}, "x.pair must be a list of 2"),
        ({"leaves": [], "pair": [1, "2"]}, r"x.pair\[1\] must be int"),
        ({"leaves": [], "table": []}, "x.table must be an object"),
        ({"leaves": [], "table": {"k": "v"}}, "x.table.k must be int"),
        ({"leaves": [{"name": "a"}]}, r"x.leaves\[0\] lacks the field 'count'"),
    ],
)
def test_wrong_shapes_are_named(value: object, said: str) -> None:
    with pytest.raises(ArtefactError, match=said):
        decode(Tree, value, "x")


@given(json_values)
def test_any_json_at_all_gives_a_manifest_or_an_artefact_error(value: Any) -> None:
    with pytest.raises(ArtefactError):
        decode(Manifest, value, "x")


@given(st.dictionaries(st.sampled_from(["leaves", "pair", "table", "anything"]), json_values))
def test_decoding_gives_what_was_asked_for_or_an_artefact_error(value: Any) -> None:
    try:
        tree = decode(Tree, value, "x")
    except ArtefactError:
        return
    assert decode(Tree, json.loads(canonical(tree)), "x") == tree
