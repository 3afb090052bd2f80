"""One transcript is one process's: however many begin it at once, wherever files are kept, one has it and the others are told."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onnxaudit.alone import locked
from onnxaudit.answers import Answers
from onnxaudit.early import recover, refuse_leftover
from onnxaudit.errors import ArtefactError, UsageError
from onnxaudit.transcript import Transcript, discard

HEADER = {"schema": "onnxaudit.transcript/1", "bundle": "b"}
ROUNDS, PROCESSES = 100, 5

RACE = """
import errno, os, sys
from pathlib import Path
import numpy as np
from onnxaudit.answers import Answers
from onnxaudit.errors import UsageError
from onnxaudit.transcript import Transcript

folder, own, resume, links = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3] == "resume", sys.argv[4] == "links"
if not links:
    def refused(*_):
        raise OSError(errno.EPERM, "no links here")
    os.link = refused
header = {"schema": "onnxaudit.transcript/1", "bundle": "b"}
held = []
print("ready", flush=True)
for line in sys.stdin:
    number = int(line)
    try:
        transcript = Transcript(folder / f"{number}.jsonl", header, resume=resume)
    except UsageError as error:
        print("busy" if "another process" in error.what else "exists" if "already" in error.what else error, flush=True)
    else:
        transcript.record(np.array([own]), Answers.from_labels([own], 9))
        held.append(transcript)
        print("has it", flush=True)
"""


def _raced(folder: Path, how: str, links: str, begin: Any = None) -> list[list[str]]:
    """What each process said in each round; all are let go at once, and keep what they have."""
    command = [sys.executable, "-c", RACE, str(folder)]
    started = [
        subprocess.Popen([*command, str(own), how, links], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for own in range(PROCESSES)
    ]
    try:
        assert [process.stdout.readline() for process in started if process.stdout] == ["ready\n"] * PROCESSES
        said = []
        for number in range(ROUNDS):
            if begin:
                begin(folder / f"{number}.jsonl")
            for process in started:
                assert process.stdin
                process.stdin.write(f"{number}\n")
            for process in started:
                assert process.stdin
                process.stdin.flush()
            said.append([process.stdout.readline().strip() for process in started if process.stdout])
        return said
    finally:
        for process in started:
            process.kill()
            process.communicate()


@pytest.mark.parametrize("links", ["links", "no links"])
@pytest.mark.parametrize(("how", "there"), [("new", None), ("new", "empty"), ("resume", None), ("resume", "empty")])
def test_of_processes_that_begin_one_at_once_one_has_it_and_its_answer_is_there(
    tmp_path: Path, how: str, there: str | None, links: str
) -> None:
    begin = None if there is None else (lambda path: path.write_bytes(b""))
    for number, said in enumerate(_raced(tmp_path, how, links, begin)):
        assert said.count("has it") == 1, (number, said)
        assert {word for word in said if word != "has it"} <= ({"busy", "exists"} if how == "new" else {"busy"}), (number, said)
        lines = (tmp_path / f"{number}.jsonl").read_text().splitlines()
        assert [json.loads(line).get("rows") for line in lines] == [None, [said.index("has it")]]
    assert len(list(tmp_path.iterdir())) == ROUNDS  # and nothing is left beside them


def test_threads_of_one_process_do_not_share_one_either(tmp_path: Path) -> None:
    for number in range(50):
        path, barrier, had = tmp_path / f"{number}.jsonl", threading.Barrier(4), list[Transcript]()

        def begin(path: Path = path, barrier: threading.Barrier = barrier, had: list[Transcript] = had) -> None:
            barrier.wait()
            with contextlib.suppress(UsageError):
                had.append(Transcript(path, HEADER, resume=True))

        threads = [threading.Thread(target=begin) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(had) == 1
        had[0].close()


def test_a_file_that_loses_its_name_before_it_is_locked_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a slow process has opened may be another's, or nobody's, by the time it locks it."""
    path, done = tmp_path / "t.jsonl", list[int]()
    Transcript(path, HEADER, resume=False).close()

    def later(descriptor: int) -> bool:
        if not done:
            done.append(path.stat().st_ino)
            other = tmp_path / "other"
            other.write_bytes(path.read_bytes())
            other.replace(path)
        return locked(descriptor)

    monkeypatch.setattr("onnxaudit.transcript.locked", later)
    transcript = Transcript(path, HEADER, resume=True)
    transcript.record(np.array([3]), Answers.from_labels([1], 9))
    transcript.close()
    assert path.stat().st_ino != done[0]
    assert len(path.read_bytes().splitlines()) == 2


def test_what_a_killed_process_left_is_never_emptied(tmp_path: Path) -> None:
    """Killed between two steps it leaves a second name of its transcript; a later process of that number meets it."""
    path = tmp_path / "t.jsonl"
    Transcript(path, HEADER, resume=False).close()
    kept = path.read_bytes()
    os.link(path, tmp_path / f"other.jsonl.{os.getpid()}-{threading.get_native_id()}.new")
    Transcript(tmp_path / "other.jsonl", {**HEADER, "bundle": "c"}, resume=False).close()
    assert path.read_bytes() == kept
    assert sorted(file.name for file in tmp_path.iterdir()) == ["other.jsonl", "t.jsonl"]


def test_a_link_to_a_transcript_is_the_transcript(tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / "t.jsonl").symlink_to(tmp_path / "kept/t.jsonl")
    first = Transcript(tmp_path / "t.jsonl", HEADER, resume=False)
    with pytest.raises(UsageError, match="another process"):
        Transcript(tmp_path / "kept/t.jsonl", HEADER, resume=True)
    first.close()
    assert (tmp_path / "t.jsonl").is_symlink()
    with pytest.raises(UsageError, match="exists already"):
        Transcript(tmp_path / "kept/t.jsonl", HEADER, resume=False)


@pytest.mark.parametrize("links", [True, False])
def test_a_full_disk_leaves_nothing_that_looks_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write" if links else "link", full)
    if not links:
        monkeypatch.setattr(os, "replace", full)
    path = tmp_path / "t.jsonl"
    with pytest.raises(UsageError, match=r"cannot be written: No space.*--evidence"):
        Transcript(path, HEADER, resume=False)
    assert not path.exists() or not path.stat().st_size
    monkeypatch.undo()
    Transcript(path, HEADER, resume=False).close()
    assert len(path.read_bytes().splitlines()) == 1


def test_a_transcript_that_another_process_goes_on_with_is_not_removed(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    held = Transcript(path, HEADER, resume=False)
    with pytest.raises(UsageError, match="another process"):
        discard(path)
    assert path.exists()
    held.close()
    discard(path)
    assert not path.exists()
    discard(path)


def test_early_answers_of_a_run_that_goes_on_are_nothing_to_be_removed(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    (tmp_path / "t.jsonl.early").write_text("{}\n")
    with pytest.raises(UsageError, match="whose transcript is gone"):
        refuse_leftover(path)
    Transcript(path, HEADER, resume=False).close()
    refuse_leftover(path)
    with pytest.raises(UsageError, match="exists already"):
        Transcript(path, HEADER, resume=False)


@pytest.mark.skipif(sys.platform == "win32", reason="has no pipes and devices under names")
def test_early_answers_under_a_name_that_is_no_file_are_refused(tmp_path: Path) -> None:
    transcript = Transcript(tmp_path / "t.jsonl", HEADER, resume=False)
    place = tmp_path / "t.jsonl.early"
    makers: list[Callable[[Path], object]] = [os.mkfifo, lambda path: path.symlink_to("/dev/zero"), lambda path: path.mkdir()]
    for make in makers:
        make(place)
        with pytest.raises((ArtefactError, UsageError), match=r"t\.jsonl\.early"):
            recover(transcript)
        place.rmdir() if place.is_dir() else place.unlink()
    transcript.close()


def test_a_link_to_itself_is_no_file_that_another_process_writes(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(UsageError, match="is no file"):
        Transcript(tmp_path / "loop", HEADER, resume=False)
    (tmp_path / "link").symlink_to("there.jsonl")  # one that leads to a file to be is followed
    Transcript(tmp_path / "link", HEADER, resume=False).close()
    assert (tmp_path / "there.jsonl").is_file()
