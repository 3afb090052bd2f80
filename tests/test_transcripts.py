"""Transcripts hold all that a check was judged by, of every run, and nothing that is secret."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onnxaudit import __version__
from onnxaudit.answers import Access, Answers
from onnxaudit.audit.checking import REPEATS, CheckOptions, check
from onnxaudit.audit.progress import Silent
from onnxaudit.audit.running import run_check
from onnxaudit.audit.verifying.records import read_transcript
from onnxaudit.decode import canonical
from onnxaudit.errors import ArtefactError, SuspectError
from onnxaudit.report.model import Report
from onnxaudit.suspect import Queries
from onnxaudit.transcript import Transcript
from tests.bundles import QUERIES, Recorded, save_linear, simulated_bundle
from tests.http_script import METADATA, PATH, Script, as_json, served
from tests.simulated import BUNDLE, VICTIM, checked


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def kinds(path: Path) -> list[str]:
    """What each line is, in short."""
    names = ("schema", "run", "rows", "inside", "reference", "look", "again", "sent")
    return [next(name for name in names if name in line) for line in lines_of(path)]


def test_every_run_notes_what_it_was_called_with_what_was_repeated_and_its_end(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    suspect = Recorded(BUNDLE, VICTIM, batch=50)
    suspect.card = dataclasses.replace(suspect.card, runtime={"version": "7"})
    first = check(BUNDLE, suspect, CheckOptions(evidence=path, alpha=0.1, budget=60, repeat=4), Silent())
    assert kinds(path) == ["schema", "run", "rows", "rows", "look", "again", "sent"]
    _, run, *_, look, again, end = lines_of(path)
    assert run["run"] == {"tool": __version__, "alpha": 0.1, "runtime": {"version": "7"}, "pool_notes": None}
    assert look["look"] == 56
    assert len(again["again"]) == 4
    assert (end["sent"], end["failed"]) == (60, 0)
    assert first.transcript_sha256 == hashlib.sha256(path.read_bytes().splitlines(keepends=True)[-1]).hexdigest()
    second = checked(VICTIM, evidence=path, resume=True)
    assert kinds(path)[7:] == ["run", "rows", "rows", "rows", "look", "again", "sent"]
    assert len(lines_of(path)[-2]["again"]) == REPEATS
    assert lines_of(path)[-1]["sent"] == second.queries["sent"]


def test_what_broke_has_no_end(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    with pytest.raises(SuspectError):
        check(BUNDLE, Recorded(BUNDLE, VICTIM, fails_after=45, batch=20), CheckOptions(evidence=path), Silent())
    assert kinds(path) == ["schema", "run", "rows", "rows"]


class Forgetful(Recorded):
    """Answers otherwise from the given query on."""

    other_from = QUERIES

    def _ask(self, queries: Queries) -> Answers:
        wavers = len(self.rows) >= self.other_from
        answers = super()._ask(queries)
        return Answers.from_scores(-answers.dense(), Access.LOGITS) if wavers else answers


def test_a_suspect_that_wavered_once_stays_unstable_however_often_the_check_is_gone_on_with(tmp_path: Path) -> None:
    """Else whoever wants a finding would go on until the answers happen to agree."""
    path = tmp_path / "t.jsonl"
    suspect = Forgetful(BUNDLE, VICTIM, batch=20)
    assert check(BUNDLE, suspect, CheckOptions(evidence=path, repeat=4), Silent()).finding == "inconclusive"
    again = checked(VICTIM, evidence=path, resume=True)
    assert again.finding == "inconclusive"
    assert any("different labels to queries that it answered before" in reason for reason in again.reasons)
    assert checked(VICTIM, repeat=4).finding == "derived"


def former(path: Path) -> None:
    """The file as the version before this one wrote it: no runs, no repeats, no end, and one key less in the header."""
    previous, text = "", b""
    for line in lines_of(path):
        if "run" in line or "again" in line or "sent" in line:
            continue
        kept = {name: value for name, value in line.items() if name != "looks"}
        whole = (canonical({**kept, "previous": previous}) + "\n").encode()
        previous, text = hashlib.sha256(whole).hexdigest(), text + whole
    path.write_bytes(text)


def test_a_transcript_of_before_runs_were_recorded_is_gone_on_with(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    checked(VICTIM, evidence=path)
    former(path)
    silent = Recorded(BUNDLE, VICTIM, batch=10)
    report = check(BUNDLE, silent, CheckOptions(evidence=path, resume=True), Silent())
    assert silent.rows == list(range(REPEATS))
    assert (report.finding, report.queries["reused"]) == ("derived", QUERIES)
    assert kinds(path)[-3:] == ["run", "again", "sent"]


def test_given_references_answers_are_kept_with_what_is_known_of_them(tmp_path: Path) -> None:
    pool = tmp_path / "pool"
    pool.mkdir()
    for seed in range(3):
        save_linear(pool / f"m{seed}.onnx", classes=5, seed=seed, size=4, end="labels" if seed == 2 else "logits")
    bundle = simulated_bundle(20, labelled=False)
    checked(VICTIM, bundle, evidence=tmp_path / "t.jsonl", references=pool)
    record, _ = read_transcript(tmp_path / "t.jsonl")
    (run,) = record.runs
    assert [entry["source"] for entry, _ in run.references] == ["m0.onnx", "m1.onnx", "m2.onnx"]
    assert [answers.access for _, answers in run.references] == [Access.LOGITS, Access.LOGITS, Access.LABEL]
    assert all(len(answers) == QUERIES for _, answers in run.references)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_what_is_seen_inside_comes_back_to_the_last_bit(tmp_path: Path, dtype: str) -> None:
    seen = np.random.default_rng(0).normal(size=(5, 2, 3)).astype(dtype)
    transcript = Transcript(tmp_path / "t.jsonl", {"schema": "x"}, resume=False)
    transcript.begin({})
    transcript.show({"gradients/0-5": seen}, "reference-003")
    transcript.close()
    record, _ = read_transcript(tmp_path / "t.jsonl")
    ((model, kind, back),) = record.runs[0].shown
    assert (model, kind, back.dtype) == ("reference-003", "gradients/0-5", seen.dtype)
    assert np.array_equal(back, seen)


def shown(**values: Any) -> dict[str, Any]:
    data = base64.b64encode(zlib.compress(np.zeros(4, "<f4").tobytes())).decode()
    return {"inside": "layers/0-2", "of": "suspect", "dtype": "<f4", "shape": [2, 2], "data": data, **values}


ONE = {"classes": "AAAAAA==", "scores": None, "access": "label", "num_classes": 5}
"""One answer: the class 0."""
BOMB = base64.b64encode(zlib.compress(bytes(50_000_000))).decode()
UNSOUND: dict[str, dict[str, Any]] = {
    "more than it says": shown(data=BOMB),
    "less than it says": shown(shape=[2, 3]),
    "a shape beyond memory": shown(shape=[1 << 40, 1 << 40]),
    "a negative shape": shown(shape=[-2, -2]),
    "a shape of words": shown(shape=["a"]),
    "no shape": shown(shape=None),
    "objects": shown(dtype="|O"),
    "no type": shown(dtype="wrong"),
    "not compressed": shown(data="AAAA"),
    "not base64": shown(data="%"),
    "NaN": shown(data=base64.b64encode(zlib.compress(np.full(4, np.nan, "<f4").tobytes())).decode()),
    "a run that is a number": {"run": 3},
    "a reference that is a word": {"reference": "x", "classes": "", "scores": None, "access": "label", "num_classes": 5},
    "a reference of no classes": {
        "reference": {},
        "classes": "AAAAAA==",
        "scores": "AAAAAA==",
        "access": "logits",
        "num_classes": 0,
    },
    "an end of words": {"sent": "many", "failed": 0},
    "an end that is true": {"sent": True, "failed": 0},
    "half an end": {"sent": 3},
    "no repeats": {"again": None, "classes": "", "scores": None, "access": "label", "num_classes": 5},
}


@pytest.mark.parametrize("what", UNSOUND)
def test_lines_that_cannot_be_are_refused_in_bounded_memory(tmp_path: Path, what: str) -> None:
    path = tmp_path / "t.jsonl"
    transcript = Transcript(path, {"schema": "x"}, resume=False)
    transcript.begin({})
    transcript.close()
    digest = hashlib.sha256(path.read_bytes().splitlines(keepends=True)[-1]).hexdigest()
    with path.open("ab") as file:
        file.write((canonical({**UNSOUND[what], "previous": digest}) + "\n").encode())
    with pytest.raises(ArtefactError, match=r"t\.jsonl line 3"):
        read_transcript(path)


@pytest.mark.parametrize("line", [{"again": [0]}, {"sent": 1, "failed": 0}, {"reference": {}}])
def test_lines_of_a_run_need_one(tmp_path: Path, line: dict[str, Any]) -> None:
    path = tmp_path / "t.jsonl"
    Transcript(path, {"schema": "x"}, resume=False).close()
    with path.open("ab") as file:
        file.write((canonical({**ONE, **line, "previous": hashlib.sha256(path.read_bytes()).hexdigest()}) + "\n").encode())
    with pytest.raises(ArtefactError, match="belongs to no run"):
        read_transcript(path)


# Secrets: what the user gives to be let in, wherever the server may echo it.

SECRETS = {
    "header": "hd-s3cret-word",
    "password": "pw-s3cret-word",
    "user": "us-s3cret-word",
    "query": "qu-s3cret-word",
    "cookie": "ck-s3cret-word",
    "plain": "pl-s3cret-word",
}


def answer(number: int, body: bytes) -> Any:
    """A server of 4x4 images whose five scores are the first five pixels; it echoes what it should not."""
    sent = json.loads(body)["inputs"][0]
    rows = np.array(sent["data"], np.float32).reshape(-1, 16)[:, :5]
    output = {"name": SECRETS["header"], "datatype": "FP32", "shape": list(rows.shape), "data": rows.ravel().tolist()}
    return as_json({"outputs": [output], "model_name": SECRETS["header"], "parameters": SECRETS})


def over_http(path: Path, change: Callable[[str], str] = lambda url: url, **options: Any) -> Report:
    echo = " ".join(SECRETS.values())
    metadata = {**METADATA, "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 1, 4, 4]}], "platform": f"test {echo}"}
    server = {"name": f"server {echo}", "version": echo}
    headers = {"Authorization": f"Bearer {SECRETS['header']}", "Cookie": f"id={SECRETS['cookie']}", "X-Tenant": SECRETS["plain"]}
    with served(Script(answer, {PATH: as_json(metadata), "/v2": as_json(server)})) as base:
        url = change(base + PATH)
        http = {"dialect": "v2", "headers": headers, "timeout": 5.0, "budget": options.get("budget")}
        return run_check(BUNDLE, url, None, CheckOptions(evidence=path, **options), {}, http, Silent(), 0.0)


def with_credentials(url: str) -> str:
    scheme, _, rest = url.partition("://")
    return f"{scheme}://{SECRETS['user']}:{SECRETS['password']}@{rest}?key={SECRETS['query']}"


def test_nothing_secret_is_in_a_transcript_or_a_report(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    report = over_http(path, repeat=4)
    assert report.status == "complete", report.error
    text = path.read_text(encoding="utf-8") + report.to_json()
    assert "***" in text  # it was echoed, and taken out
    for name in ("header", "cookie", "plain"):
        assert SECRETS[name] not in text, name


def test_nothing_secret_of_an_address_is_in_a_transcript_or_a_report(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    report = over_http(path, with_credentials)
    assert report.status == "complete", report.error
    text = report.to_json() + path.read_text(encoding="utf-8")
    for name in ("password", "query"):
        assert SECRETS[name] not in text, name
