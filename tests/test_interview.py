"""The interview: nothing is asked twice, nothing that was paid for is lost, and a transcript is what was answered, or refused."""

from __future__ import annotations

import base64
import hashlib
import itertools
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onnxaudit.answers import Access, Answers
from onnxaudit.errors import ArtefactError, BudgetSpent, SuspectError, UsageError
from onnxaudit.interview import BATCH, Interview, interview
from onnxaudit.suspect import Queries
from onnxaudit.transcript import Transcript
from tests.bundles import QUERIES, Recorded, simulated_bundle

BUNDLE = simulated_bundle(0)
ANSWERS = BUNDLE.answers["victim"]
HEADER = {"schema": "onnxaudit.transcript/1", "bundle": "b" * 64, "suspect": {"source": "ü.onnx", "sha256": None}}
SIZE = 10
"""Queries that the suspects here take at once."""


def suspect(access: Access = Access.LOGITS) -> Recorded:
    return Recorded(BUNDLE, ANSWERS.degrade(access, 3), batch=SIZE)


def run(path: Path, asked: Recorded, *, resume: bool = False, **options: Any) -> Interview:
    transcript = Transcript(path, HEADER, resume=resume)
    try:
        return interview(asked, BUNDLE.queries, transcript=transcript, **options)
    finally:
        transcript.close()


def assert_exact(one: Answers, two: Answers) -> None:
    assert (one.access, one.num_classes) == (two.access, two.num_classes)
    assert np.array_equal(one.classes, two.classes)
    assert (one.scores is None) == (two.scores is None)
    if one.scores is not None and two.scores is not None:
        assert one.scores.dtype == two.scores.dtype == np.float32
        assert np.array_equal(one.scores, two.scores, equal_nan=True)


def test_every_query_is_asked_once_in_batches() -> None:
    asked = Recorded(BUNDLE, ANSWERS)
    seen: list[int] = []
    result = interview(asked, BUNDLE.queries, progress=seen.append)
    assert_exact(result.answers, ANSWERS)
    assert asked.rows == list(range(QUERIES))
    assert max(asked.batches) <= BATCH
    assert (result.sent, result.reused, result.failed) == (QUERIES, 0, 0)
    assert result.transcript_sha256 is None
    assert seen == list(np.cumsum(asked.batches))


@pytest.mark.parametrize("access", list(Access))
def test_a_transcript_holds_exactly_what_was_answered(tmp_path: Path, access: Access) -> None:
    path = tmp_path / "t.jsonl"
    first = run(path, suspect(access))
    assert_exact(first.answers, ANSWERS.degrade(access, 3))
    silent = suspect(access)
    again = run(path, silent, resume=True)
    assert silent.rows == []
    assert_exact(again.answers, first.answers)
    assert (again.sent, again.reused, again.failed) == (0, QUERIES, 0)
    assert again.transcript_sha256 == first.transcript_sha256


def test_lines_are_chained_and_the_last_one_seals_them(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    result = run(path, suspect())
    lines = path.read_bytes().splitlines(keepends=True)
    assert json.loads(lines[0]) == {**HEADER, "previous": ""}
    for before, line in itertools.pairwise(lines):
        assert json.loads(line)["previous"] == hashlib.sha256(before).hexdigest()
    assert result.transcript_sha256 == hashlib.sha256(lines[-1]).hexdigest()
    assert [row for line in lines[1:-1] for row in json.loads(line)["rows"]] == list(range(QUERIES))
    assert json.loads(lines[-1]) == {"look": QUERIES, "previous": hashlib.sha256(lines[-2]).hexdigest()}
    assert len(lines) == 1 + -(-QUERIES // SIZE) + 1
    assert result.looks == 1


def test_every_line_is_forced_to_disk_before_anything_else_happens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "t.jsonl"
    forced: list[int] = []
    real = os.fsync

    def fsync(descriptor: int) -> None:
        real(descriptor)
        forced.append(path.read_bytes().count(b"\n") if path.exists() else 1)  # the first line is made beside it

    monkeypatch.setattr(os, "fsync", fsync)
    run(path, suspect())
    assert forced == list(range(1, path.read_bytes().count(b"\n") + 1))


@pytest.mark.parametrize(("limit", "asked_at_once"), [(1, 1), (7, 7), (20, 20), (1000, 20), (None, 20)])
def test_no_more_is_asked_at_once_than_the_suspect_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int | None, asked_at_once: int
) -> None:
    """Its own splitting would pay for a second request before the first one's answers are on disk."""
    monkeypatch.setattr("onnxaudit.interview.BATCH", 20)  # the simulated bundle is smaller than the real size
    path = tmp_path / "t.jsonl"
    asked = Recorded(BUNDLE, ANSWERS, batch=limit)
    run(path, asked)
    lines = [json.loads(line) for line in path.read_bytes().splitlines()[1:-1]]
    assert [len(line["rows"]) for line in lines] == asked.batches
    assert max(asked.batches) == asked_at_once


def test_an_unfinished_interview_was_not_looked_at(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    with pytest.raises(SuspectError):
        run(path, Recorded(BUNDLE, ANSWERS, fails_after=37, batch=SIZE))
    assert not any("look" in json.loads(line) for line in path.read_bytes().splitlines())
    assert run(path, suspect(), resume=True).looks == 1


def test_looking_again_at_the_same_answers_is_free_and_at_more_is_counted(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    looks = [run(path, suspect(), resume=True, budget=budget).looks for budget in (20, 30, 34, 30, None)]
    assert looks == [1, 2, 3, 3, 3]
    transcript = Transcript(path, HEADER, resume=True)
    transcript.close()
    assert transcript.looks == {20, 50, QUERIES}
    noted = [entry["look"] for line in path.read_bytes().splitlines() if "look" in (entry := json.loads(line))]
    assert noted == [20, 50, QUERIES]
    assert interview(suspect(), BUNDLE.queries).looks == 1


def test_each_batch_is_on_disk_before_the_next_is_asked(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    recorded: list[int] = []

    class Watching(Recorded):
        def _ask(self, queries: Queries) -> Answers:
            lines = path.read_bytes().splitlines()
            recorded.append(sum(len(json.loads(line)["rows"]) for line in lines[1:]))
            return super()._ask(queries)

    run(path, Watching(BUNDLE, ANSWERS, batch=SIZE))
    assert recorded == list(range(0, QUERIES, SIZE))


@pytest.mark.parametrize("fails_after", [0, 5, SIZE, 37, 83])
@pytest.mark.parametrize(("failure", "raised"), [(OSError, SuspectError), (KeyboardInterrupt, KeyboardInterrupt)])
def test_after_a_crash_only_what_is_missing_is_asked(
    tmp_path: Path, fails_after: int, failure: type[BaseException], raised: type[BaseException]
) -> None:
    whole, path = tmp_path / "whole.jsonl", tmp_path / "t.jsonl"
    run(whole, suspect())
    broken = Recorded(BUNDLE, ANSWERS, fails_after=fails_after, batch=SIZE, failure=failure)
    with pytest.raises(raised, match="went dead"):
        run(path, broken)
    assert len(broken.rows) == fails_after // SIZE * SIZE
    rest = suspect()
    result = run(path, rest, resume=True)
    assert rest.rows == list(range(len(broken.rows), QUERIES))
    assert_exact(result.answers, ANSWERS)
    assert (result.sent, result.reused) == (QUERIES - len(broken.rows), len(broken.rows))
    assert path.read_bytes() == whole.read_bytes()


def test_a_last_line_that_was_cut_off_is_asked_again(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    run(path, suspect())
    whole = path.read_bytes()
    lines = whole.splitlines(keepends=True)
    look = len(whole) - len(lines[-1])
    last = look - len(lines[-2])
    rows = json.loads(lines[-2])["rows"]
    for begin, end, missing in ((last, look, rows), (look, len(whole), [])):
        for length in (begin, begin + 1, begin + 30, end - 2, end - 1):
            path.write_bytes(whole[:length])
            asked = suspect()
            assert run(path, asked, resume=True).looks == 1
            assert asked.rows == missing
            assert path.read_bytes() == whole
    path.write_bytes(b"")  # not even the header was begun
    asked = suspect()
    run(path, asked, resume=True)
    assert len(asked.rows) == QUERIES
    assert path.read_bytes() == whole


def test_what_never_became_a_transcript_is_not_overwritten(tmp_path: Path) -> None:
    """Without one whole line nothing tells a begun transcript from somebody's notes."""
    path = tmp_path / "t.jsonl"
    run(path, suspect())
    header = path.read_bytes().splitlines(keepends=True)[0]
    for content in (header[:1], header[:-1], b"my notes", b"{", b"\x00\xff"):
        path.write_bytes(content)
        asked = suspect()
        with pytest.raises(UsageError, match=r"t\.jsonl is not a transcript.*--evidence"):
            run(path, asked, resume=True)
        assert asked.rows == []
        assert path.read_bytes() == content


def test_resuming_what_was_never_begun_begins_it(tmp_path: Path) -> None:
    asked = suspect()
    run(tmp_path / "t.jsonl", asked, resume=True)
    assert len(asked.rows) == QUERIES


def test_any_changed_byte_before_the_last_line_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    run(path, suspect())
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    before_the_last = whole.rindex(b"\n", 0, -1)
    places = [*range(0, 300, 7), *rng.integers(0, before_the_last, 200).tolist()]
    changes = [(place, whole[place] ^ int(rng.integers(1, 256))) for place in places]
    # what other readers take for the end of a line is no end of one that was cut off, else all that follows would be lost
    changes += [(place, byte) for place in rng.integers(0, before_the_last, 10).tolist() for byte in b"\r\v\f\x1c"]
    for place, byte in changes:
        damaged = bytearray(whole)
        damaged[place] = byte
        path.write_bytes(damaged)
        asked = suspect()
        with pytest.raises((ArtefactError, UsageError)):
            run(path, asked, resume=True)
        assert asked.rows == []


@pytest.mark.parametrize("what", ["dropped", "swapped", "repeated", "blank"])
def test_lines_out_of_order_are_noticed(tmp_path: Path, what: str) -> None:
    path = tmp_path / "t.jsonl"
    run(path, suspect())
    a, b, c, *rest = path.read_bytes().splitlines(keepends=True)
    lines = {"dropped": [a, c], "swapped": [a, c, b], "repeated": [a, b, b, c], "blank": [a, b, b"\n", c]}[what]
    path.write_bytes(b"".join([*lines, *rest]))
    with pytest.raises(ArtefactError, match=r"t\.jsonl line"):
        run(path, suspect(), resume=True)


def coded(values: Any, dtype: str) -> str:
    return base64.b64encode(np.asarray(values, dtype).tobytes()).decode()


DAMAGE: dict[str, Callable[[dict[str, Any]], object]] = {
    "row beyond the queries": lambda entry: entry["rows"].__setitem__(0, QUERIES),
    "row before the queries": lambda entry: entry["rows"].__setitem__(0, -1),
    "row twice": lambda entry: entry["rows"].__setitem__(0, entry["rows"][1]),
    "row that was answered before": lambda entry: entry["rows"].__setitem__(0, 0),
    "fraction of a row": lambda entry: entry["rows"].__setitem__(0, 80.5),
    "nested rows": lambda entry: entry.update(rows=[entry["rows"]]),
    "no rows": lambda entry: entry.update(rows=[]),
    "rows missing": lambda entry: entry.pop("rows"),
    "fewer rows than answers": lambda entry: entry.update(rows=entry["rows"][:3]),
    "classes that are not base64": lambda entry: entry.update(classes="%%%"),
    "classes of half a number": lambda entry: entry.update(classes=base64.b64encode(b"123").decode()),
    "class beyond the last": lambda entry: entry.update(classes=coded(np.full((4, 5), 5), "<i4")),
    "class before the first": lambda entry: entry.update(classes=coded(np.full((4, 5), -2), "<i4")),
    "classes missing": lambda entry: entry.pop("classes"),
    "fewer scores than classes": lambda entry: entry.update(scores=coded(np.zeros(3), "<f4")),
    "scores that are not numbers": lambda entry: entry.update(scores=coded(np.full((4, 5), np.nan), "<f4")),
    "logits without scores": lambda entry: entry.update(scores=None),
    "unknown access": lambda entry: entry.update(access="all"),
    "access that is a number": lambda entry: entry.update(access=4),
    "number of classes as text": lambda entry: entry.update(num_classes="5"),
    "another number of classes": lambda entry: entry.update(num_classes=50),
}


@pytest.mark.parametrize("look", [False, True], ids=["last", "followed by a look"])
@pytest.mark.parametrize("what", DAMAGE)
def test_a_last_line_that_cannot_be_is_refused(tmp_path: Path, what: str, look: bool) -> None:
    """No secret seals the lines, so what they say has to make sense; NaN, above all, must not become evidence."""
    path = tmp_path / "t.jsonl"
    run(path, suspect())
    *lines, last, _ = path.read_bytes().splitlines(keepends=True)
    entry = json.loads(last)
    assert len(entry["rows"]) == 4
    DAMAGE[what](entry)
    lines.append(json.dumps(entry).encode() + b"\n")
    if look:
        lines.append(json.dumps({"look": QUERIES, "previous": hashlib.sha256(lines[-1]).hexdigest()}).encode() + b"\n")
    path.write_bytes(b"".join(lines))
    asked = suspect()
    with pytest.raises(ArtefactError):
        run(path, asked, resume=True)
    assert asked.rows == []


@pytest.mark.parametrize("look", ["many", None, [84], -3, 1.5, True])
def test_a_look_that_cannot_be_is_refused(tmp_path: Path, look: object) -> None:
    path = tmp_path / "t.jsonl"
    run(path, suspect())
    *lines, last = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines) + json.dumps({**json.loads(last), "look": look}).encode() + b"\n")
    with pytest.raises(ArtefactError):
        run(path, suspect(), resume=True)


def test_an_existing_transcript_is_not_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    run(path, suspect())
    before = path.read_bytes()
    with pytest.raises(UsageError, match=r"exists already.*--resume"):
        run(path, suspect())
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    "change",
    [
        {"bundle": "c" * 64},
        {"suspect": {"source": "other.onnx", "sha256": None}},
        {"schema": "x/2"},
        {"access": "label"},
        {"input": {"scale": 1.0}},
    ],
)
def test_a_transcript_of_another_bundle_or_suspect_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    path = tmp_path / "t.jsonl"
    run(path, suspect())
    before = path.read_bytes()
    with pytest.raises(UsageError, match="another bundle or suspect"):
        Transcript(path, {**HEADER, **change}, resume=True)
    assert path.read_bytes() == before


def test_a_foreign_file_is_neither_resumed_nor_changed(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    for content in (b"my notes\nmore of them\n", b"\x00\xff\xfe\n\n", b"[1]\n"):
        path.write_bytes(content)
        with pytest.raises((ArtefactError, UsageError)):
            Transcript(path, HEADER, resume=True)
        assert path.read_bytes() == content


def test_a_transcript_that_cannot_be_written_is_the_user_s_mistake(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be written"):
        Transcript(tmp_path / "missing" / "t.jsonl", HEADER, resume=False)


@pytest.mark.parametrize("access", list(Access))
def test_the_budget_ends_the_interview_and_the_rest_has_no_answer(access: Access) -> None:
    order = np.random.default_rng(3).permutation(QUERIES)
    asked = suspect(access)
    result = interview(asked, BUNDLE.queries, order=order, budget=23)
    assert asked.rows == order[:23].tolist()
    assert (result.sent, result.failed) == (23, 0)
    assert np.flatnonzero(result.answers.answered).tolist() == sorted(order[:23].tolist())
    expected = ANSWERS.degrade(access, 3)
    assert np.array_equal(result.answers.classes[order[:23]], expected.classes[order[:23]])
    assert (result.answers.classes[order[23:]] == -1).all()
    if result.answers.scores is not None:
        assert np.isnan(result.answers.scores[order[23:]]).all()


def test_the_budget_is_for_new_queries_and_a_resumed_interview_ends_with_all_answers(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    order = np.random.default_rng(3).permutation(QUERIES)
    rows: list[int] = []
    for looks, budget in enumerate((23, 23, 1, 100), start=1):
        asked = suspect()
        result = run(path, asked, resume=True, order=order, budget=budget)
        assert asked.rows == order[len(rows) : len(rows) + budget].tolist()
        assert (result.sent, result.reused) == (len(asked.rows), len(rows))
        rows += asked.rows
        assert result.looks == looks
    assert rows == order.tolist()
    assert_exact(result.answers, ANSWERS)


@pytest.mark.parametrize("budget", [0, -3])
def test_no_budget_at_all_is_the_user_s_mistake(budget: int) -> None:
    asked = suspect()
    with pytest.raises(UsageError, match="budget"):
        interview(asked, BUNDLE.queries, budget=budget)
    assert asked.rows == []


class Metered(Recorded):
    """Stops with BudgetSpent after 30 queries, each of which took two attempts."""

    @property
    def queries_sent(self) -> int:
        return 2 * len(self.rows)

    def _ask(self, queries: Queries) -> Answers:
        if len(self.rows) >= 30:
            raise BudgetSpent("spent")
        return super()._ask(queries)


def test_a_suspect_that_spends_the_budget_on_retries_ends_the_interview(tmp_path: Path) -> None:
    result = run(tmp_path / "t.jsonl", Metered(BUNDLE, ANSWERS, batch=SIZE))
    assert int(result.answers.answered.sum()) == 30
    assert (result.sent, result.reused, result.failed) == (60, 0, 30)


def test_batches_of_different_access_are_joined_at_the_least() -> None:
    class Fading(Recorded):
        def _ask(self, queries: Queries) -> Answers:
            full = super()._ask(queries)
            return full if len(self.rows) <= SIZE else full.degrade(Access.TOPK, 2)

    result = interview(Fading(BUNDLE, ANSWERS, batch=SIZE), BUNDLE.queries)
    assert_exact(result.answers, ANSWERS.degrade(Access.TOPK, 2))
