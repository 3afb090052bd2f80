"""In what a check differs from the transcript that it would go on with is said in its user's words, whatever a file says."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import typer.main

from onnxaudit.audit.checking import CheckOptions, check
from onnxaudit.audit.progress import Silent
from onnxaudit.cli.check import check as command
from onnxaudit.errors import UsageError
from onnxaudit.header import _WORDS, _flat, differences
from onnxaudit.suspect import InputSpec
from onnxaudit.transcript import Transcript
from tests.bundles import Recorded, simulated_bundle

BUNDLE = simulated_bundle()
VICTIM = BUNDLE.answers["victim"]


def test_every_key_of_a_header_has_words(tmp_path: Path) -> None:
    path = tmp_path / "e.jsonl"
    check(BUNDLE, Recorded(BUNDLE, VICTIM), CheckOptions(evidence=path, autofix=True), Silent())
    header = json.loads(path.read_bytes().splitlines()[0])
    del header["previous"]
    assert set(_flat(header)) == set(_WORDS)
    assert {f"input.{field.name}" for field in dataclasses.fields(InputSpec)} <= set(_WORDS)


def test_the_options_that_are_named_exist() -> None:
    app = typer.Typer()
    app.command()(command)
    known = {name for option in typer.main.get_command(app).params for name in option.opts}
    named = {word.strip(",") for words in _WORDS.values() for word in words.split() if word.startswith("--")}
    assert len(named) > 10
    assert named <= known


@pytest.mark.parametrize(
    ("then", "now", "words"),
    [
        ({"bundle": "a" * 64}, {"bundle": "b" * 64}, "--bundle (aaaaaaaaaaaa then, bbbbbbbbbbbb now)"),
        ({"looks": []}, {"looks": None}, "--looks (none then, not given now)"),
        ({"input": {"shape": [28, 28, 1]}}, {"input": {"shape": [32, 32, 3]}}, "--input (28x28x1 then, 32x32x3 now)"),
        ({"input": {"mean": [0.5, 0.25]}}, {"input": {"mean": []}}, "--mean (0.5,0.25 then, none now)"),
        (
            {"suspect": "x"},
            {"suspect": {"kind": "onnx"}},
            "the kind of suspect (not given then, onnx now); what it calls 'suspect'",
        ),
        ({"schema": "x/2"}, {"schema": "x/1"}, "the form of the transcript (x/2 then, x/1 now)"),
    ],
)
def test_words(then: dict[str, Any], now: dict[str, Any], words: str) -> None:
    assert differences(then, now).startswith(words)


def test_much_is_said_in_short() -> None:
    then = {f"key {number}": number for number in range(1000)} | {"access": "label"}
    assert differences(then, {}).startswith(
        "--access (label then, not given now); what it calls 'key 0' (0 then, not given now); "
    )
    assert differences(then, {}).endswith("; 997 more")


@pytest.mark.parametrize(
    "hostile",
    [
        {"\x1b[2J\nfinding: derived" * 9000: "x"},
        {"access": "\x1b[2J\nfinding: derived" * 9000},
        {"looks": [["x" * 900] * 90] * 9},
        {"suspect": {"source": {"a": ["\u202e"] * 9000}}},
        {"input": {"scale": "9" * 9000, "mean": "\ud800"}},
    ],
)
def test_a_hostile_header_is_told_of_on_one_short_line(tmp_path: Path, hostile: dict[str, Any]) -> None:
    path = tmp_path / "e.jsonl"
    path.write_text(json.dumps({"schema": "s", "previous": "", **hostile}) + "\n")
    with pytest.raises(UsageError, match="another bundle or suspect") as caught:
        Transcript(path, {"schema": "s"}, resume=True)
    assert len(str(caught.value)) < 700
    assert not any(letter in str(caught.value) for letter in "\x1b\n\u202e")
