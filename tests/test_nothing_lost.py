"""Nothing that was answered is asked again: killed at every moment, interrupted, or out of disk; counted at the server."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onnxaudit.audit.checking import REPEATS
from onnxaudit.audit.verifying.verifying import VerifyOptions, verify_file
from onnxaudit.transcript import Transcript
from tests.bundles import QUERIES
from tests.http_script import METADATA, PATH, Answer, Script, as_json, served
from tests.linear_scan import near, save_bundle

BATCH = 14
CHANGING = ("queries", "seconds", "digest", "transcript_sha256")
"""Keys of a report that say how it came about, not what was found."""


class Server:
    """An honest server of 4x4 images that counts what it was asked. late: seconds that every other reply waits for the next."""

    def __init__(self, bundle: Any, *, late: float = 0.0) -> None:
        self.rows = {query.tobytes(): row for row, query in enumerate(bundle.queries)}
        self.weights = near(0)
        self.late = late
        self.replied = threading.Condition()
        self.places: set[int] = set()
        metadata = {**METADATA, "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 1, 4, 4]}]}
        self.script = Script(lambda _, body: self.answer(body), {PATH: as_json(metadata), "/v2": as_json({"name": "test"})})

    def read(self, body: bytes) -> tuple[Any, list[int]]:
        sent = json.loads(body)["inputs"][0]
        x = np.array(sent["data"], np.float32).reshape(-1, 16)
        return x, [self.rows[np.rint(one * 255).astype(np.uint8).tobytes()] for one in x]

    def asked(self, run: str) -> Counter[int]:
        """How often a run asked each query."""
        bodies = [body for headers, body in self.script.requests if headers["Authorization"] == run]
        return Counter(row for body in bodies for row in self.read(body)[1])

    def answer(self, body: bytes) -> Answer:
        x, rows = self.read(body)
        place = rows[0] // BATCH
        with self.replied:
            if self.late and place % 2 and place < QUERIES // BATCH - 1:
                self.replied.wait_for(lambda: place + 1 in self.places, timeout=self.late)
            self.places.add(place)
            self.replied.notify_all()
        said = x @ self.weights
        return as_json({"outputs": [{"name": "y", "datatype": "FP32", "shape": list(said.shape), "data": said.ravel().tolist()}]})


class Killer:
    """Runs checks in children of ``tests/killing.py``."""

    def __init__(self, folder: Path, url: str) -> None:
        command = [sys.executable, "-m", "tests.killing"]
        root = Path(__file__).resolve().parent.parent
        self.process = subprocess.Popen(command, cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.folder, self.url = folder, url

    def run(self, evidence: Path, concurrency: int, moment: int = 0, run: str = "", **order: Any) -> dict[str, Any] | None:
        """The report, None where the child was killed."""
        report = self.folder / "report.json"
        said = {"bundle": str(self.folder / "b.oab"), "evidence": str(evidence), "report": str(report), "url": self.url}
        order = {**said, "concurrency": concurrency, "moment": moment, "run": run or evidence.name, **order}
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        code = int(self.process.stdout.readline())
        assert code in (0, -9)
        document: dict[str, Any] | None = json.loads(report.read_text()) if code == 0 else None
        return document

    def close(self) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.wait(20)
        self.process.stdout.close()


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lost")
    save_bundle(folder / "b.oab", 39)
    return folder


@pytest.fixture
def bundle(folder: Path) -> Any:
    from onnxaudit.bundle import load

    return load(folder / "b.oab")


def recorded(evidence: Path) -> list[int]:
    """Rows whose answers are on disk: whole lines of the transcript, and of what is beside it."""
    rows: list[int] = []
    for path in (evidence, evidence.with_name(evidence.name + ".early")):
        for line in path.read_bytes().split(b"\n")[:-1] if path.exists() else []:
            rows += json.loads(line).get("rows", [])
    return sorted(set(rows))


def lines(evidence: Path, kind: str = "rows") -> list[list[int]]:
    return [entry[kind] for line in evidence.read_bytes().split(b"\n")[:-1] if kind in (entry := json.loads(line))]


def found(report: dict[str, Any] | None) -> dict[str, Any]:
    assert report is not None
    assert report["status"] == "complete", report["error"]
    return {name: value for name, value in report.items() if name not in CHANGING}


@pytest.fixture(params=[1, 4])
def concurrency(request: pytest.FixtureRequest) -> int:
    return int(request.param)


def killed_everywhere(
    killer: Killer, server: Server, folder: Path, concurrency: int, first: int = 1
) -> Iterator[tuple[list[int], Counter[int], Any]]:
    """For each moment: rows on disk when it was killed, how often each was asked after that, and the report in the end."""
    for moment in range(first, 200, 1 if concurrency == 1 else 3):
        evidence = folder / f"{concurrency}-{moment}.jsonl"
        server.places = set()
        if killer.run(evidence, concurrency, moment) is not None:
            return  # it was never killed: all moments were tried
        kept = recorded(evidence)
        server.places = {row // BATCH for row in kept}
        report = killer.run(evidence, concurrency, run=f"again {concurrency} {moment}")
        assert not evidence.with_name(evidence.name + ".early").exists()
        yield kept, server.asked(f"again {concurrency} {moment}"), report
    raise AssertionError("there are more moments than were tried")


def test_killed_at_any_moment_nothing_answered_is_asked_again_and_the_report_is_the_same(
    folder: Path, bundle: Any, concurrency: int
) -> None:
    server = Server(bundle, late=2.0 if concurrency > 1 else 0.0)
    with served(server.script) as base:
        killer = Killer(folder, base + PATH)
        try:
            whole = found(killer.run(folder / f"whole-{concurrency}.jsonl", concurrency, run="whole"))
            assert server.asked("whole") == Counter([*range(QUERIES), *range(4)])
            moments, early = 0, 0
            for first in (1,) if concurrency == 1 else (1, 2, 3):
                for kept, asked, report in killed_everywhere(killer, server, folder, concurrency, first):
                    missing = [row for row in range(QUERIES) if row not in kept]
                    # some are asked twice on purpose: whether it is still the same suspect
                    assert asked == Counter([*missing, *range(REPEATS if kept else 4)])
                    assert found(report) == whole
                    moments += 1
                    early += kept != list(range(len(kept)))
                if early:  # else on to the moments in between: where a kill falls among early replies is chance
                    break
        finally:
            killer.close()
    assert moments > (20 if concurrency == 1 else 7)
    assert bool(early) == (concurrency > 1)  # with several at once some answers were kept before those that they follow


def test_a_budget_holds_over_a_kill_as_if_there_had_been_none(folder: Path, bundle: Any, concurrency: int) -> None:
    server = Server(bundle, late=0.05 if concurrency > 1 else 0.0)
    with served(server.script) as base:
        killer = Killer(folder, base + PATH)
        try:
            whole = found(killer.run(folder / f"budget-{concurrency}.jsonl", concurrency, run="whole", budget=64))
            assert server.asked("whole").total() == 64
            among_repeats = 0
            for moment in range(7, 99, 2):
                evidence = folder / f"budget-{concurrency}-{moment}.jsonl"
                server.places = set()
                if killer.run(evidence, concurrency, moment, budget=64) is not None:
                    break  # it was never killed
                kept, again = recorded(evidence), sum(map(len, lines(evidence, "again")))
                among_repeats += again > 0
                server.places = set()
                assert found(killer.run(evidence, concurrency, run=f"again {moment}", budget=64)) == whole
                assert len(kept) + again + server.asked(f"again {moment}").total() <= 64
        finally:
            killer.close()
    assert among_repeats or concurrency > 1  # with several at once, where a kill falls is chance


class Grudging(Server):
    """Answers one POST in four with 503 or 429, never the first. refused: queries of each run that came to nothing."""

    def __init__(self, bundle: Any) -> None:
        super().__init__(bundle)
        self.refused: Counter[str] = Counter()
        self.script.answer = self.sometimes
        self.turn = threading.Lock()
        self.posts = 0

    def sometimes(self, number: int, body: bytes) -> Answer:
        headers, _ = self.script.requests[number - 1]
        with self.turn:
            self.posts += 1
            bad = self.posts % 4 == 3
        if not bad:
            return self.answer(body)
        self.refused[headers["Authorization"]] += len(self.read(body)[1])
        return (503 if self.posts % 8 == 3 else 429), {}, b"later"


def test_tries_that_failed_before_a_kill_count_against_the_budget_of_the_run_that_goes_on(
    folder: Path, bundle: Any, concurrency: int
) -> None:
    server, budget, spent_before = Grudging(bundle), 100, 0
    with served(server.script) as base:
        killer = Killer(folder, base + PATH)
        try:
            for moment in range(13, 34, 3):
                if moment > 19 and spent_before >= 2 * BATCH:
                    break  # else on: with several at once, how much was noted before a kill is chance
                server.posts = 0
                evidence = folder / f"grudging-{concurrency}-{moment}.jsonl"
                assert killer.run(evidence, concurrency, moment, run=f"killed {moment}", budget=budget) is None
                kept, refused = len(recorded(evidence)), server.refused[f"killed {moment}"]
                noted = max((json.loads(line).get("lost", 0) for line in evidence.read_bytes().split(b"\n")[:-1]), default=0)
                server.posts = 0
                report = killer.run(evidence, concurrency, run=f"again {moment}", budget=budget)
                again = server.asked(f"again {moment}").total()
                assert again <= budget - kept - noted
                assert refused - noted in (0, BATCH)  # the killed write may have been the note itself
                if concurrency == 1:  # and all of the budget is used
                    assert report is not None
                    assert again == budget - kept - noted
                spent_before += noted
                said = list(verify_file(folder / "report.json", VerifyOptions(lambda: folder / "b.oab", evidence)))
                assert any("the same words and numbers" in words for words in said)
        finally:
            killer.close()
    assert spent_before >= 2 * BATCH


def test_several_at_once_keep_the_order_whatever_order_replies_come_in(folder: Path, bundle: Any) -> None:
    transcripts = []
    for late in (0.0, 0.05):
        server = Server(bundle, late=late)
        with served(server.script) as base:
            killer = Killer(folder, base + PATH)
            try:
                for width in (1, 8):
                    path = folder / f"order-{late}-{width}.jsonl"
                    killer.run(path, width)
                    transcripts.append(lines(path))
            finally:
                killer.close()
    assert transcripts[0] == [list(range(i, min(i + BATCH, QUERIES))) for i in range(0, QUERIES, BATCH)]
    assert all(one == transcripts[0] for one in transcripts)


def test_two_processes_do_not_write_one_transcript(tmp_path: Path) -> None:
    from onnxaudit.errors import UsageError

    header = {"schema": "onnxaudit.transcript/1"}
    first = Transcript(tmp_path / "t.jsonl", header, resume=True)
    with pytest.raises(UsageError, match="being written by another process"):
        Transcript(tmp_path / "t.jsonl", header, resume=True)
    first.close()
    Transcript(tmp_path / "t.jsonl", header, resume=True).close()


def command(url: str, evidence: Path, folder: Path, *more: str) -> list[str]:
    given = [
        "--url",
        url,
        "--dialect",
        "v2",
        "--bundle",
        str(folder / "b.oab"),
        "--evidence",
        str(evidence),
        "--batch",
        str(BATCH),
    ]
    return [sys.executable, "-m", "onnxaudit", "check", *given, *more]


class Stuck(Server):
    """Answers all but the third batch, which it holds until it is let go."""

    def __init__(self, bundle: Any) -> None:
        super().__init__(bundle)
        self.held = threading.Event()
        self.go = threading.Event()

    def answer(self, body: bytes) -> Answer:
        if self.read(body)[1][0] == 2 * BATCH and not self.go.is_set():
            self.held.set()
            self.go.wait(60)
        return super().answer(body)


def test_ctrl_c_writes_an_interrupted_report_keeps_every_answer_and_ends_with_130(
    folder: Path, bundle: Any, concurrency: int, tmp_path: Path
) -> None:
    server, evidence, report = Stuck(bundle), tmp_path / "t.jsonl", tmp_path / "r.json"
    with served(server.script) as base:
        line = command(base + PATH, evidence, folder, "--concurrency", str(concurrency), "-o", str(report))
        process = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        try:
            assert server.held.wait(60)
            answered = 2 if concurrency == 1 else -(-QUERIES // BATCH) - 1  # the others went past the one that hangs
            with server.replied:
                assert server.replied.wait_for(lambda: len(server.places) == answered, 60)
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=60)
        finally:
            server.go.set()
            process.kill()
        assert process.returncode == 130, err
        assert out == ""
        assert err.startswith("error: interrupted; what was answered is kept in ")
        assert err.count("\n") == 1
        written = json.loads(report.read_text())
        assert (written["status"], written["finding"]) == ("interrupted", "inconclusive")
        kept = recorded(evidence)
        assert kept == [row for row in range(QUERIES) if row // BATCH != 2][: answered * BATCH]
        assert not evidence.with_name("t.jsonl.early").exists()
        before = len(server.script.requests)
        again = subprocess.run([*line[:-2], "--resume", "--json"], capture_output=True, text=True, check=False, timeout=60)
        assert again.returncode in (0, 10), again.stderr
        asked = Counter(row for _, body in server.script.requests[before:] for row in server.read(body)[1])
        assert asked == Counter([row for row in range(QUERIES) if row not in kept] + list(range(REPEATS)))


def limited(size: int) -> Callable[[], None]:
    """No file may grow larger: what a full disk does, to this process alone."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

    return limit


@pytest.mark.parametrize("size", [300, 3000])
def test_a_full_disk_is_one_clear_line_and_the_transcript_stays_intact(
    folder: Path, bundle: Any, concurrency: int, size: int, tmp_path: Path
) -> None:
    server, evidence = Server(bundle, late=0.05 if concurrency > 1 else 0.0), tmp_path / "t.jsonl"
    with served(server.script) as base:
        line = command(base + PATH, evidence, folder, "--concurrency", str(concurrency))
        full = subprocess.run(line, capture_output=True, text=True, check=False, timeout=60, preexec_fn=limited(size))
        assert (full.returncode, full.stdout) == (2, "")
        assert full.stderr.startswith("error: ")
        assert "cannot be written: File too large" in full.stderr
        assert full.stderr.count("\n") == 1
        kept, before = recorded(evidence), len(server.script.requests)
        if size < 1000:  # not even its first line had room: nothing was asked
            assert (before, evidence.exists()) == (0, False)
        else:
            assert "go on with --resume" in full.stderr
            assert evidence.read_bytes().endswith(b"\n")
        again = subprocess.run([*line, "--resume"], capture_output=True, text=True, check=False, timeout=60)
        assert again.returncode in (0, 10), again.stderr
        asked = Counter(row for _, body in server.script.requests[before:] for row in server.read(body)[1])
        assert asked == Counter([row for row in range(QUERIES) if row not in kept] + list(range(REPEATS if kept else 4)))


def read_only(tmp_path: Path) -> Path:
    """A folder that cannot be written to, not even by root."""
    if os.geteuid():
        tmp_path.chmod(0o555)
        return tmp_path
    return Path("/sys/kernel")


@pytest.mark.skipif(not Path("/sys/kernel").exists(), reason="a folder that root cannot write to is Linux's")
def test_a_read_only_folder_is_said_before_anything_is_asked(folder: Path, bundle: Any, tmp_path: Path) -> None:
    server, place = Server(bundle), read_only(tmp_path)
    with served(server.script) as base:
        line = command(base + PATH, place / "t.jsonl", folder)
        done = subprocess.run(line, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {place}/t.jsonl cannot be written: ")
    assert "--evidence" in done.stderr
    assert server.script.requests == []


def test_a_closed_pipe_costs_no_answer(folder: Path, bundle: Any, tmp_path: Path) -> None:
    server, evidence = Server(bundle), tmp_path / "t.jsonl"
    reading, writing = os.pipe()
    os.close(reading)
    with served(server.script) as base:
        line = command(base + PATH, evidence, folder)
        done = subprocess.run(line, stdout=writing, stderr=subprocess.PIPE, text=True, check=False, timeout=60)
    os.close(writing)
    assert (done.returncode, done.stderr) == (130, "")
    assert recorded(evidence) == list(range(QUERIES))
    assert json.loads(evidence.read_bytes().splitlines()[-1])["sent"] == QUERIES + 4


def test_a_failure_with_several_at_once_keeps_what_came_in_after_it(folder: Path, bundle: Any, tmp_path: Path) -> None:
    class Refusing(Server):
        """Says 400 to the third batch once the others were answered."""

        def answer(self, body: bytes) -> Answer:
            if self.read(body)[1][0] != 2 * BATCH:
                return super().answer(body)
            with self.replied:
                self.replied.wait_for(lambda: len(self.places) == 5, 20)
            return as_json({"error": "no"}, 400)

    server, evidence = Refusing(bundle), tmp_path / "t.jsonl"
    with served(server.script) as base:
        line = command(base + PATH, evidence, folder, "--concurrency", "6")
        done = subprocess.run(line, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 4
    assert "answered 400 Bad Request" in done.stderr
    assert recorded(evidence) == [row for row in range(QUERIES) if row // BATCH != 2]


def test_before_the_first_answer_one_request_goes_alone_however_many_may(folder: Path, bundle: Any, tmp_path: Path) -> None:
    script = Script(lambda *_: as_json({"error": "wrong shape"}, 500), Server(bundle).script.metadata)
    with served(script) as base:
        line = command(base + PATH, tmp_path / "t.jsonl", folder, "--concurrency", "8")
        done = subprocess.run(line, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 4
    assert len(script.posts) == 1
