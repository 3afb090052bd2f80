"""What a run spent that did not end: answers, repeats, and queries that came to nothing, each counted once."""

from __future__ import annotations

import dataclasses
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onnxaudit.answers import Access, Answers
from onnxaudit.errors import ArtefactError, SuspectError, UsageError
from onnxaudit.suspect import InputSpec
from onnxaudit.transcript import Probe, Record, Transcript
from onnxaudit_adapters.access import Reduced
from tests.http_script import METADATA, PATH, QUERIES, Script, as_json, opened, scores, served, sometimes

HEADER = {"schema": "onnxaudit.transcript/1"}
SPEC = InputSpec((3,), layout="NC")


def answers(n: int) -> Answers:
    return Answers.from_labels(np.zeros(n, np.int64), 4)


def reopened(path: Path) -> int:
    transcript = Transcript(path, HEADER, resume=True)
    transcript.close()
    return transcript.spent


def begun(path: Path) -> Transcript:
    transcript = Transcript(path, HEADER, resume=True)
    transcript.begin({})
    return transcript


def test_answers_repeats_and_what_came_to_nothing_are_counted_over_all_runs(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    first = begun(path)
    first.lose(5)
    first.record(np.arange(4), answers(4))
    first.lose(9)  # so far
    first.close()
    assert reopened(path) == 13
    second = begun(path)  # its own count begins at none
    second.lose(2)
    second.record(np.arange(4, 7), answers(3))
    second.repeat(np.arange(2), answers(2))
    second.close()
    assert reopened(path) == 13 + 2 + 3 + 2
    third = begun(path)
    third.end(6, 1)  # as it counted itself, whatever its lines would come to
    third.close()
    assert reopened(path) == 20 + 6


def vouched(path: Path) -> bool:
    transcript = Transcript(path, HEADER, resume=True)
    transcript.close()
    return transcript.vouched


@pytest.mark.parametrize("ended", [False, True])
def test_answers_are_one_suspects_if_one_run_gave_them_or_the_last_that_added_asked_some_again(
    tmp_path: Path, ended: bool
) -> None:
    path = tmp_path / "t.jsonl"

    def run(*rows: int, again: bool = False, refused: bool = False) -> bool:
        transcript = begun(path)
        if rows:
            transcript.record(np.array(rows), answers(len(rows)))
        if again:
            transcript.repeat(np.arange(1), answers(1))
        if refused:
            transcript.refuse_repeat()
        if ended:
            transcript.end(1, 0)
        transcript.close()
        return vouched(path)

    assert not vouched(path)  # nobody gave any
    assert run(0, 1)
    assert run()  # adds none
    assert not run(2)  # of whom?
    assert not run()
    assert run(again=True)
    assert run()
    assert not run(3)
    assert run(4, again=True)
    assert not run(again=True, refused=True)  # began to answer again, and did not go on
    assert not run()
    assert run(again=True)


def test_a_transcript_that_does_not_say_what_came_to_nothing_is_read_as_before(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    old = begun(path)
    old.probe(Probe(SPEC, "", np.arange(2), answers(2)))
    old.probe(Probe(dataclasses.replace(SPEC, scale=1.0), "", np.arange(2), None))
    old.record(np.arange(4), answers(4))
    old.close()
    assert reopened(path) == 2 + 2 + 4
    new = begun(path)
    new.lose(3)  # the refused probe among them
    new.probe(Probe(SPEC, "", np.arange(3), None))
    new.close()
    assert reopened(path) == 8 + 3


def test_what_comes_to_nothing_after_the_transcript_was_closed_is_written_nowhere(tmp_path: Path) -> None:
    """A request that Ctrl-C did not wait for ends late: its descriptor may be another file's by then."""
    path = tmp_path / "t.jsonl"
    transcript = begun(path)
    transcript.close()
    before = path.read_bytes()
    other = (tmp_path / "other").open("wb")
    transcript.lose(3)
    other.close()
    assert path.read_bytes() == before
    assert (tmp_path / "other").read_bytes() == b""


def test_lines_from_several_threads_follow_each_other(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    transcript = begun(path)

    def lose() -> None:
        for n in range(50):
            transcript.lose(n)

    threads = [threading.Thread(target=lose) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    transcript.close()
    assert reopened(path) == 49


@pytest.mark.parametrize("value", [-1, True, "7", None, 1.5])
def test_a_forged_count_is_damage(value: object) -> None:
    record = Record()
    record.add(b'{"previous":"","schema":"s"}\n', "line 1")
    with pytest.raises(ArtefactError):
        record.add(as_json({"previous": record.digest, "lost": value})[2] + b"\n", "line 2")


def lost(script: Script, queries: Any = QUERIES, **options: Any) -> tuple[list[int], int, Exception | None]:
    """What was told as lost, what the server was sent, and how it ended."""
    told: list[int] = []
    ended = None
    with served(script) as url, opened(url + PATH, **options) as suspect:
        suspect.tell_lost(told.append)
        try:
            suspect.ask(queries)
        except (SuspectError, UsageError) as error:
            ended = error
        return told, suspect.queries_sent, ended


def test_every_try_that_fails_is_told_before_the_next() -> None:
    assert lost(sometimes(503, 429, 500), batch=4) == ([4, 8, 12], len(QUERIES) + 12, None)


def test_what_fills_up_a_fixed_batch_is_told() -> None:
    fixed = {**METADATA, "inputs": [{"name": "x", "datatype": "FP32", "shape": [8, 3]}]}
    told, sent, _ = lost(Script(lambda _, body: scores(body), {PATH: as_json(fixed)}))
    assert (told, sent) == ([4], 24)  # 20 queries in three requests of 8


def test_answers_that_cannot_be_used_are_told() -> None:
    """Another label set ends the check: what was paid for that is not in the transcript, and counts all the same."""
    wide = {"outputs": [{"name": "y", "datatype": "FP32", "shape": [4, 7], "data": list(range(28))}]}
    told, sent, ended = lost(Script(lambda _, __: as_json(wide)), batch=4)
    assert (told, sent) == ([4], 4)
    assert "7 classes" in str(ended)


def test_less_access_than_was_asked_for_is_told() -> None:
    told: list[int] = []
    labels = {"outputs": [{"name": "y", "datatype": "INT64", "shape": [4], "data": [0, 1, 2, 3]}]}
    with served(Script(lambda _, __: as_json(labels))) as url, opened(url + PATH, batch=4) as suspect:
        narrow = Reduced(suspect, Access.PROBS)
        narrow.tell_lost(told.append)
        with pytest.raises(UsageError, match="gives label only"):
            narrow.ask(QUERIES[:4])
    assert told == [4]
