"""scan: a line for each suspect and bundle that holds among all of them, whatever is damaged, doubled, moved or interrupted."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onnxaudit.answers import Access, Answers
from onnxaudit.audit.judging.comparing import compare
from onnxaudit.audit.progress import Silent
from onnxaudit.audit.scan.scanning import ScanOptions, scan
from onnxaudit.audit.scan.sources import gathered
from onnxaudit.bundle import QueryBundle
from onnxaudit.errors import UsageError
from onnxaudit.report.scanned import Summary
from tests.linear_scan import linear_bundle, near, save_bundle, save_suspect, save_suspects, weights_of

ONE = ScanOptions(jobs=1)


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, QueryBundle]]:
    """Bundles by name: with many references, with other queries, and with few."""
    folder = tmp_path_factory.mktemp("bundles")
    wanted = {"many": (239, 0), "other": (239, 1), "few": (19, 0)}
    return {name: (folder / f"{name}.oab", save_bundle(folder / f"{name}.oab", *how)) for name, how in wanted.items()}


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def by_source(path: Path, bundle: QueryBundle | None = None) -> dict[str, dict[str, Any]]:
    return {
        Path(line["suspect"]["source"]).name: line
        for line in lines_of(path)
        if bundle is None or line["bundle"]["id"] == bundle.id
    }


def scanned(
    folder: Path, output: Path, *bundles: QueryBundle, options: ScanOptions = ONE, notes: Silent | None = None
) -> Summary:
    return scan(gathered([str(folder)]), bundles, output, options, notes or Silent())


def timeless(line: dict[str, Any]) -> dict[str, Any]:
    return line | {"seconds": None}


def test_lines_are_reports_that_hold_for_all_tests(tmp_path: Path, bundles: dict[str, tuple[Path, QueryBundle]]) -> None:
    """Eight tests at 0.05 need 159 references; there are 239."""
    save_suspects(tmp_path / "m", 3, 1)
    many, other = bundles["many"][1], bundles["other"][1]
    summary = scanned(tmp_path / "m", tmp_path / "f.jsonl", many, other)
    lines = lines_of(tmp_path / "f.jsonl")
    assert (len(lines), summary.tests, summary.exit_code) == (8, 8, 10)
    assert dict(summary.counts) == {"derived": 2, "not-shown": 6}
    for line in lines:
        assert line["schema"] == "onnxaudit.report/1"
        assert (line["status"], line["tests"], line["alpha"], line["reasons"]) == ("complete", 8, 0.05, [])
        assert (line["finding"] == "derived") == (line["p_adjusted"] <= 0.05) == ("derived" in line["suspect"]["source"])
        assert line["p_value"] <= line["p_adjusted"]
    derived = by_source(tmp_path / "f.jsonl", many)["derived-0.onnx"]
    assert derived["p_value"] == pytest.approx(1 / 240)
    assert derived["p_adjusted"] == pytest.approx(8 / 240)  # the smallest of eight, twice: 8/240, then max(8/240, 7/240)
    assert list(derived)[:6] == ["schema", "status", "finding", "p_value", "p_adjusted", "tests"]


def test_a_line_says_what_check_says(tmp_path: Path, bundles: dict[str, tuple[Path, QueryBundle]]) -> None:
    path, bundle = bundles["many"]
    file = save_suspect(tmp_path / "a.onnx", near(1))
    command = [sys.executable, "-m", "onnxaudit", "check", str(file), "--bundle", str(path), "--json", "--device", "cpu"]
    report = json.loads(subprocess.run(command, capture_output=True, text=True, check=False).stdout)
    scan([str(file)], [bundle], tmp_path / "f.jsonl", ONE, Silent())
    (line,) = lines_of(tmp_path / "f.jsonl")
    assert (line["tests"], line["p_adjusted"]) == (1, line["p_value"])
    report["controls"]["reference_accuracy"] = report["references"] = []
    del report["digest"]  # of what check wrote
    assert timeless({name: line[name] for name in report}) == timeless(report)
    assert set(line) - set(report) == {"p_adjusted", "tests", "scan"}


def test_few_references_accuse_nobody_among_many(tmp_path: Path, bundles: dict[str, tuple[Path, QueryBundle]]) -> None:
    save_suspects(tmp_path / "m", 1, 1)
    few, notes = bundles["few"][1], Silent()
    summary = scanned(tmp_path / "m", tmp_path / "f.jsonl", few, notes=notes)
    assert summary.exit_code == 11
    line = by_source(tmp_path / "f.jsonl")["derived-0.onnx"]
    assert (line["finding"], line["p_value"], line["p_adjusted"]) == ("inconclusive", 0.05, 0.1)
    assert line["reasons"] == [
        "alone it would be derived (p = 0.05), but it is one of 2 tests: adjusted, p is 0.1; alpha 0.05 among so many needs at "
        "least 39 references; to check it again alone, now that it is known to be near, would be selection"
    ]
    assert by_source(tmp_path / "f.jsonl")["independent-0.onnx"]["finding"] == "not-shown"
    assert notes.notes == [
        "2 tests: with alpha 0.05 even the closest suspect can be called derived only with 39 references or more; "
        "a bundle here has 19"
    ]


def test_bad_files_are_reported_and_skipped(tmp_path: Path, bundles: dict[str, tuple[Path, QueryBundle]]) -> None:
    good, *_ = save_suspects(tmp_path / "m", 1, 0)
    (tmp_path / "m/text.onnx").write_text("a letter, not a model")
    (tmp_path / "m/empty.onnx").write_bytes(b"")
    (tmp_path / "m/cut.onnx").write_bytes(good.read_bytes()[:100])
    (tmp_path / "m/weights.pt").write_bytes(b"PK\x03\x04 nothing")
    (tmp_path / "m/notes.txt").write_text("no suffix of a model")
    (tmp_path / "m/link.onnx").symlink_to(tmp_path / "nowhere.onnx")
    listing = tmp_path / "list.txt"
    listing.write_text(f"# a comment\n{tmp_path}/m/missing.onnx\n\n{tmp_path}/m/notes.txt\n")
    summary = scan(gathered([str(tmp_path / "m")], listing), [bundles["many"][1]], tmp_path / "f.jsonl", ONE, Silent())
    found = by_source(tmp_path / "f.jsonl")
    bad = {"text.onnx", "empty.onnx", "cut.onnx", "weights.pt", "missing.onnx", "notes.txt"}
    assert set(found) == bad | {"independent-0.onnx"}
    for name in bad:
        assert (found[name]["status"], found[name]["finding"], found[name]["p_value"]) == ("failed", "inconclusive", None)
        assert name in found[name]["error"]
        assert "\n" not in found[name]["error"]
    assert found["independent-0.onnx"]["status"] == "complete"
    assert (summary.counts["failed"], summary.exit_code, summary.tests) == (6, 0, 7)


def test_exit_code_4_only_if_all_failed(tmp_path: Path, bundles: dict[str, tuple[Path, QueryBundle]]) -> None:
    (tmp_path / "m").mkdir()
    for i in range(3):
        (tmp_path / f"m/{i}.onnx").write_text(str(i))
    command = [sys.executable, "-m", "onnxaudit", "scan", "m", "--bundle", str(bundles["many"][0]), "--jobs", "1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (4, ""), done.stderr
    assert "m/0.onnx: 0.onnx cannot be run as an ONNX model" in done.stdout
    assert len(lines_of(tmp_path / "findings.jsonl")) == 3
    save_suspects(tmp_path / "m", 1, 0)
    done = subprocess.run([*command, "--json"], capture_output=True, text=True, check=False, cwd=tmp_path)
    said = json.loads(done.stdout)
    assert (done.returncode, said["failed"], said["not-shown"], said["tests"]) == (0, 3, 1, 4)


def test_copies_are_asked_once_and_are_one_test(tmp_path: Path, bundles: dict[str, tuple[Path, QueryBundle]]) -> None:
    files = save_suspects(tmp_path / "m", 1, 1)
    for i in range(5):
        shutil.copy(files[1], tmp_path / f"m/copy-{i}.onnx")
    output = tmp_path / "f.jsonl"
    summary = scanned(tmp_path / "m", output, bundles["many"][1])
    assert (summary.tests, summary.reused) == (2, 5)
    found = by_source(output)
    assert len(found) == 7
    first = found["copy-0.onnx"]
    for i in range(1, 5):  # to the last digit of the seconds: nobody asked again
        assert found[f"copy-{i}.onnx"] == first | {"suspect": found[f"copy-{i}.onnx"]["suspect"]}
    assert first["p_adjusted"] == pytest.approx(2 / 240)


def test_a_rerun_asks_what_is_new_or_changed_and_nothing_else(
    tmp_path: Path, bundles: dict[str, tuple[Path, QueryBundle]]
) -> None:
    many, output, folder = bundles["many"][1], tmp_path / "f.jsonl", tmp_path / "m"
    save_suspects(folder, 3, 1)
    assert scanned(folder, output, many).reused == 0
    before = output.read_bytes()
    assert scanned(folder, output, many).reused == 4
    assert output.read_bytes() == before  # seconds too
    (folder / "deep").mkdir()
    (folder / "derived-0.onnx").rename(folder / "deep/moved.onnx")
    save_suspect(folder / "independent-0.onnx", weights_of(77))  # changed
    save_suspect(folder / "new.onnx", weights_of(78))
    old = {name: timeless(line) for name, line in by_source(output).items()}
    summary = scanned(folder, output, many)
    found = by_source(output)
    assert (summary.reused, summary.tests, summary.left) == (3, 6, 1)  # what was there before it changed stays a test
    assert len(lines_of(output)) == 6
    assert found["moved.onnx"]["seconds"] == json.loads(before.splitlines()[0])["seconds"]
    assert found["moved.onnx"]["scan"]["content"] == old["derived-0.onnx"]["scan"]["content"]
    of_name = [line for line in lines_of(output) if line["suspect"]["source"].endswith("independent-0.onnx")]
    assert [line["scan"]["listed"] for line in of_name] == [True, False]
    assert of_name[1]["suspect"]["sha256"] == old["independent-0.onnx"]["suspect"]["sha256"] != of_name[0]["suspect"]["sha256"]
    assert found["moved.onnx"]["p_adjusted"] == pytest.approx(6 / 240)  # all lines are adjusted for the tests there are now
    again = scanned(folder, output, many, options=dataclasses.replace(ONE, access="label"))
    assert (again.reused, again.tests, again.left) == (0, 11, 6)
    assert {line["suspect"]["access"] for line in lines_of(output) if line["scan"]["listed"]} == {"label"}


def test_what_was_tested_once_stays_a_test(tmp_path: Path, bundles: dict[str, tuple[Path, QueryBundle]]) -> None:
    """Else whoever scans many, and then the closest alone, would have it called derived."""
    few, output = bundles["few"][1], tmp_path / "f.jsonl"
    save_suspects(tmp_path / "m", 2, 1)
    scanned(tmp_path / "m", output, few)
    (tmp_path / "alone").mkdir()
    shutil.move(tmp_path / "m/derived-0.onnx", tmp_path / "alone/derived-0.onnx")
    summary = scanned(tmp_path / "alone", output, few)
    assert (summary.tests, summary.left, summary.exit_code) == (3, 2, 11)
    lines = lines_of(output)
    assert [line["scan"]["listed"] for line in lines] == [True, False, False]
    assert lines[0]["finding"] == "inconclusive"
    assert "one of 3 tests" in lines[0]["reasons"][0]


def test_another_file_under_the_same_name_is_another_test(tmp_path: Path, bundles: dict[str, tuple[Path, QueryBundle]]) -> None:
    """Else whoever tries one after another has the first that looks near called derived."""
    few, output, file = bundles["few"][1], tmp_path / "f.jsonl", tmp_path / "suspect.onnx"
    for tests, weights in enumerate((weights_of(500), weights_of(501), near(0)), 1):
        save_suspect(file, weights)
        summary = scan([str(file)], [few], output, ONE, Silent())
        assert (summary.tests, summary.left, len(lines_of(output))) == (tests, tests - 1, tests)
    line = lines_of(output)[0]
    assert (line["finding"], line["p_value"], line["p_adjusted"]) == ("inconclusive", 0.05, pytest.approx(0.15))
    save_suspect(file, weights_of(500))  # the first again: known, and no test more
    assert (scan([str(file)], [few], output, ONE, Silent()).tests, summary.exit_code) == (3, 11)


def test_another_way_of_asking_is_another_test(tmp_path: Path, bundles: dict[str, tuple[Path, QueryBundle]]) -> None:
    few, output, notes = bundles["few"][1], tmp_path / "f.jsonl", Silent()
    file = str(save_suspect(tmp_path / "suspect.onnx", near(0)))
    assert scan([file], [few], output, ONE, Silent()).exit_code == 10
    for tests, access in enumerate(("probs", "topk:2"), 2):
        summary = scan([file], [few], output, dataclasses.replace(ONE, access=access), notes)
        assert (summary.tests, summary.left, summary.exit_code) == (tests, tests - 1, 11)
        assert notes.notes[-1].startswith(f"{tests} tests: with alpha 0.05")
    assert {line["finding"] for line in lines_of(output)} == {"inconclusive"}


@pytest.mark.parametrize(
    "content",
    [
        b"a,b\n1,2\n",
        b'{"schema": "onnxaudit.report/1"}\n',
        b"no newline",
        b'{\n "schema": "onnxaudit.report/1"\n}\n',
        b"\x00\xff\n",
    ],
)
def test_a_file_of_other_content_is_refused_before_anything_runs(
    tmp_path: Path, bundles: dict[str, tuple[Path, QueryBundle]], content: bytes
) -> None:
    save_suspects(tmp_path / "m", 1, 0)
    output = tmp_path / "f.jsonl"
    output.write_bytes(content)
    with pytest.raises(UsageError, match="is not the output of a scan"):
        scanned(tmp_path / "m", output, bundles["few"][1])
    assert output.read_bytes() == content
    assert {path.name for path in tmp_path.iterdir()} == {"m", "f.jsonl"}


def test_what_cannot_be_begun_says_so(tmp_path: Path, bundles: dict[str, tuple[Path, QueryBundle]]) -> None:
    few = bundles["few"][1]
    (tmp_path / "none").mkdir()
    with pytest.raises(UsageError, match="there are no models in what was given"):
        gathered([str(tmp_path / "none")])
    with pytest.raises(UsageError, match="nothing to scan"):
        gathered([])
    with pytest.raises(UsageError, match=r"models/ does not exist"):
        gathered(["models/"])
    with pytest.raises(UsageError, match="given twice"):
        scan(["a.onnx"], [few, few], tmp_path / "f.jsonl", ONE, Silent())
    strict = dataclasses.replace(few, manifest=dataclasses.replace(few.manifest, alpha=0.01), id="e" * 64)
    with pytest.raises(UsageError, match=r"different alphas: 0\.01, 0\.05"):
        scan(["a.onnx"], [few, strict], tmp_path / "f.jsonl", ONE, Silent())
    with pytest.raises(UsageError, match="cannot be written"):
        scan(["a.onnx"], [few], tmp_path / "no/f.jsonl", ONE, Silent())
    with pytest.raises(UsageError, match="is not a file"):
        scan(["a.onnx"], [few], tmp_path, ONE, Silent())


def start(folder: Path, bundle: Path, *options: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "onnxaudit", "scan", "m", "--bundle", str(bundle), "-o", "f.jsonl", "--jobs", "2", *options]
    return subprocess.Popen(
        command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def wait_for_lines(path: Path, count: int, process: subprocess.Popen[str]) -> None:
    limit = time.monotonic() + 60
    while not path.exists() or path.read_bytes().count(b"\n") < count:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < limit
        time.sleep(0.005)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_scan_that_was_ended_goes_on(
    tmp_path: Path, bundles: dict[str, tuple[Path, QueryBundle]], number: signal.Signals
) -> None:
    """kill -9 of the whole scan, a polite kill and Ctrl-C: lines stay, workers end, and the same command finishes."""
    for count in (120, 480):  # a busy machine may have asked a few before the signal comes
        folder = tmp_path / str(count)
        folder.mkdir()
        if ended_and_gone_on(folder, *bundles["many"], number, count) < count:
            return
    raise AssertionError("every scan was done before it could be ended")


def ended_and_gone_on(folder: Path, path: Path, bundle: QueryBundle, number: signal.Signals, count: int) -> int:
    """How many lines the command that goes on found, of a scan of so many that was ended."""
    save_suspects(folder / "m", count - 1, 1)
    process = start(folder, path)
    output = folder / "f.jsonl"
    wait_for_lines(output, 10, process)
    if number == signal.SIGINT:
        os.killpg(process.pid, number)  # as a terminal does: to the workers as well
    else:
        process.send_signal(number)
    _, said = process.communicate(timeout=120)
    done = output.read_bytes().count(b"\n") == count
    assert process.returncode == (-9 if number == signal.SIGKILL else 130) or done
    if process.returncode == 130:
        assert "the same command goes on from there" in said
    assert "Traceback" not in said
    _workers_are_gone(process.pid)
    kept = output.read_bytes()
    for line in map(json.loads, kept[: kept.rindex(b"\n")].split(b"\n")):
        assert line["tests"] == count  # what was written holds already
        assert line["finding"] != "derived" or done
    output.write_bytes(kept + b'{"schema":"onnxaudit.report/1","status":"comp')  # cut off by the crash
    summary = scanned(folder / "m", output, bundle)
    assert 10 <= kept.count(b"\n") <= summary.reused
    assert len({line["suspect"]["source"] for line in lines_of(output)}) == len(lines_of(output)) == count
    assert not list(folder.glob("*.tmp"))
    return summary.reused


def _workers_are_gone(group: int) -> None:
    limit = time.monotonic() + 60
    while time.monotonic() < limit:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return
        time.sleep(0.02)
    raise AssertionError("workers outlive the scan")


def test_cached_scores_of_references_are_the_same_bits() -> None:
    used = linear_bundle(30)
    references = [used.answers[model.id] for model in used.manifest.of_role("reference")]
    for seed in range(6):
        scores = np.random.default_rng(seed).normal(size=(len(used.queries), 5)).astype(np.float32)
        whole = Answers.from_scores(scores, Access.LOGITS)
        part = dataclasses.replace(whole, classes=np.where(np.arange(len(scores))[:, None] < 3, -1, whole.classes))
        for answers in (whole, part, whole.degrade(Access.LABEL), whole.degrade(Access.TOPK, 2), whole.degrade(Access.PROBS)):
            fresh = dataclasses.replace(used)
            one, two = compare(used, references, answers), compare(fresh, references, answers)
            assert one.statistics is not None
            assert two.statistics is not None
            assert (one.statistics == two.statistics).all()
            for scheme, again in zip(one.schemes, two.schemes, strict=True):
                assert scheme.skipped == again.skipped
                assert scheme.scores is None or (scheme.scores == again.scores).all()
