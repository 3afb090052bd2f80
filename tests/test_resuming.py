"""Evidence kept on disk: going on after a break, with the same suspect only, and what every further look costs."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onnxaudit.answers import Answers
from onnxaudit.audit.checking import REPEATS, CheckOptions, check
from onnxaudit.audit.progress import Silent
from onnxaudit.audit.running import run_check
from onnxaudit.audit.verifying.verifying import VerifyOptions, verify_file
from onnxaudit.bundle import load
from onnxaudit.errors import BudgetSpent, SuspectError, UsageError
from onnxaudit.report.model import Report
from onnxaudit.suspect import Queries, SuspectCard
from onnxaudit_adapters.callable import CallableSuspect
from tests.bundles import QUERIES, Recorded, save_linear, simulated_bundle
from tests.http_script import METADATA, PATH, Script, as_json, served
from tests.simulated import BUNDLE, INNOCENT, VICTIM, checked


def test_evidence_is_kept_and_a_resumed_check_gives_the_same_finding(tmp_path: Path) -> None:
    path = tmp_path / "e.jsonl"
    broken = Recorded(BUNDLE, VICTIM, fails_after=45, batch=10)
    with pytest.raises(SuspectError):
        check(BUNDLE, broken, CheckOptions(evidence=path), Silent())
    resumed = checked(VICTIM, evidence=path, resume=True)
    assert resumed.queries == {"sent": QUERIES - 40 + REPEATS, "reused": 40, "failed": 0}
    plain = checked(VICTIM)
    assert plain.queries == {"sent": QUERIES, "reused": 0, "failed": 0}
    assert resumed.reasons == plain.reasons == ()
    assert resumed.conditions == plain.conditions  # what was interrupted was not looked at
    assert (resumed.finding, resumed.p_value, resumed.score) == (plain.finding, plain.p_value, plain.score)
    assert resumed.transcript_sha256 is not None
    assert plain.transcript_sha256 is None
    with pytest.raises(UsageError, match="another bundle or suspect"):
        checked(VICTIM, dataclasses.replace(BUNDLE, id="0" * 64), evidence=path, resume=True)
    silent = Recorded(BUNDLE, VICTIM, batch=10)
    again = check(BUNDLE, silent, CheckOptions(evidence=path, resume=True), Silent())
    assert silent.rows == list(range(REPEATS)) == list(range(8))
    assert again.queries == {"sent": REPEATS, "reused": QUERIES, "failed": 0}
    assert (again.finding, again.p_value) == (plain.finding, plain.p_value)  # the same answers are no second look
    more = Recorded(BUNDLE, VICTIM, batch=10)
    check(BUNDLE, more, CheckOptions(evidence=path, resume=True, repeat=12), Silent())
    assert more.rows == list(range(12))


def test_the_transcript_says_whom_it_asked_and_how(tmp_path: Path) -> None:
    path = tmp_path / "e.jsonl"
    suspect = Recorded(BUNDLE, VICTIM, batch=10)
    suspect.card = dataclasses.replace(suspect.card, runtime={"weights sha256": "c" * 64, "version": "7"})
    check(BUNDLE, suspect, CheckOptions(evidence=path, access="label", target="t" * 64), Silent())
    header = json.loads(path.read_bytes().splitlines()[0])
    assert header == {
        "schema": "onnxaudit.transcript/1",
        "bundle": BUNDLE.id,
        "suspect": {
            "source": "recorded",
            "sha256": "a" * 64,
            "kind": "recorded",
            "files": {"weights sha256": "c" * 64},
            "target": "t" * 64,
        },
        "input": json.loads(json.dumps(dataclasses.asdict(BUNDLE.manifest.input))),
        "access": "label",
        "looks": None,
        "label_space": None,
        "previous": "",
    }


def change_card(**values: Any) -> Callable[[Recorded], None]:
    def change(suspect: Recorded) -> None:
        suspect.card = dataclasses.replace(suspect.card, **values)

    return change


@pytest.mark.parametrize(
    ("change", "options", "words"),
    [
        (change_card(), {"access": "probs"}, "--access (label then, probs now)"),
        (change_card(), {"access": None}, "--access (label then, not given now)"),
        (change_card(), {"target": "u" * 64}, "the endpoint, by --url, --header, --dialect, "),
        (change_card(input=dataclasses.replace(BUNDLE.manifest.input, scale=1.0)), {}, "--scale (0.00392157 then, 1 now)"),
        (change_card(input=dataclasses.replace(BUNDLE.manifest.input, layout="NHWC")), {}, "--layout (NCHW then, NHWC now)"),
        (change_card(sha256="d" * 64), {}, "the content of the suspect's file"),
        (change_card(sha256=None), {}, "the content of the suspect's file"),
        (change_card(kind="other"), {}, "the kind of suspect (recorded then, other now)"),
        (change_card(source="other"), {}, "the suspect's name (recorded then, other now)"),
        (change_card(runtime={"sha256 of data": "e" * 64}), {}, "files beside the suspect"),
        (change_card(), {"label_space": "unknown"}, "--label-space (not given then, unknown now)"),
        (change_card(), {"looks": (20, 30)}, "--looks (not given then, 20,30 now)"),
        (change_card(), {"autofix": True}, "--autofix (not given then, given now)"),
    ],
)
def test_what_was_asked_otherwise_is_not_gone_on_with(
    tmp_path: Path, change: Callable[[Recorded], None], options: dict[str, Any], words: str
) -> None:
    path = tmp_path / "e.jsonl"
    given: dict[str, Any] = {"evidence": path, "access": "label", "target": "t" * 64}
    check(BUNDLE, Recorded(BUNDLE, VICTIM), CheckOptions(**given), Silent())
    before = path.read_bytes()
    suspect = Recorded(BUNDLE, VICTIM)
    change(suspect)
    with pytest.raises(UsageError, match="is of another bundle or suspect") as caught:
        check(BUNDLE, suspect, CheckOptions(**{**given, **options, "resume": True}), Silent())
    assert f"asked otherwise: {words}" in caught.value.what
    assert ";" not in caught.value.what  # nothing else is said to differ
    assert caught.value.hint == "Give what was given then, or give --evidence another name."
    assert suspect.rows == []
    assert path.read_bytes() == before
    version = Recorded(BUNDLE, VICTIM)
    version.card = dataclasses.replace(version.card, runtime={"version": "8"}, max_batch=5)  # may change between runs
    assert check(BUNDLE, version, CheckOptions(**given, resume=True), Silent()).finding == "derived"


def as_function(answers: Answers) -> CallableSuspect:
    """A Python function, of which nothing is known but its name."""
    spec = BUNDLE.manifest.input
    rows = {query.tobytes(): row for row, query in enumerate(spec.encode(BUNDLE.queries))}

    def function(batch: Any) -> object:
        return answers.dense()[[rows[query.tobytes()] for query in batch]]

    return CallableSuspect(function, SuspectCard("model:predict", "python", spec, 5, max_batch=10))


@pytest.mark.parametrize("budget", [None, 40])
def test_going_on_with_another_suspect_s_transcript_is_inconclusive(tmp_path: Path, budget: int | None) -> None:
    """A function has no digest: only its answers tell that it is not the one that was asked before."""
    answers = {"copy": VICTIM, "innocent": INNOCENT}
    for first, second in itertools.product(answers, repeat=2):
        path = tmp_path / f"{first}-{second}.jsonl"
        with as_function(answers[first]) as suspect:
            begun = check(BUNDLE, suspect, CheckOptions(evidence=path, budget=budget), Silent())
        with as_function(answers[second]) as suspect:
            assert suspect.card.sha256 is None
            report = check(BUNDLE, suspect, CheckOptions(evidence=path, resume=True), Silent())
        assert report.queries["reused"] == (budget or QUERIES)
        assert report.queries["sent"] == QUERIES - (budget or QUERIES) + REPEATS
        different = [reason for reason in report.reasons if "different labels to queries that it answered before" in reason]
        if first != second:
            assert report.finding == "inconclusive"
            assert len(different) == 1
        else:
            assert begun.finding in (report.finding, "inconclusive")
            assert report.finding == ("derived" if first == "copy" else "not-shown")
            assert different == []


def test_a_suspect_that_cannot_be_asked_again_after_resuming_is_inconclusive(tmp_path: Path) -> None:
    class Spent(Recorded):
        def _ask(self, queries: Queries) -> Answers:
            if len(self.rows) + len(queries) > QUERIES - 40:
                raise BudgetSpent(f"no budget for {len(queries)}")
            return super()._ask(queries)

    path = tmp_path / "e.jsonl"
    checked(VICTIM, evidence=path, budget=40)
    report = check(BUNDLE, Spent(BUNDLE, VICTIM), CheckOptions(evidence=path, resume=True), Silent())
    assert (report.finding, report.queries["sent"], report.queries["reused"]) == ("inconclusive", QUERIES - 40, 40)
    assert any("could not be asked again" in reason for reason in report.reasons)


def found(report: Report) -> dict[str, Any]:
    """All that a report says but for what this one run did."""
    said = json.loads(report.to_json())
    return {name: value for name, value in said.items() if name not in ("queries", "seconds", "transcript_sha256", "digest")}


@pytest.mark.parametrize("repeat", [0, 4])
def test_a_budget_is_for_all_runs_and_none_is_sent_for_repeats_alone(tmp_path: Path, repeat: int) -> None:
    path = tmp_path / "e.jsonl"
    first = checked(VICTIM, evidence=path, budget=40, repeat=repeat)
    assert first.queries["sent"] == 40
    for budget in (10, 40, 40 + REPEATS):
        told = Silent()
        options = CheckOptions(evidence=path, resume=True, budget=budget, repeat=repeat)
        again = check(BUNDLE, Recorded(BUNDLE, VICTIM), options, told)
        said = f"--budget {budget} counts all runs of e.jsonl, which sent 40 queries: none is sent now; with more, at least 49, "
        assert told.notes == [said + "it asks on"]
        assert again.queries == {"sent": 0, "reused": 40 - repeat, "failed": 0}
        assert found(again) == found(first)
    further = checked(VICTIM, evidence=path, resume=True, budget=49, repeat=repeat)
    assert further.queries == {"sent": 9, "reused": 40 - repeat, "failed": 0}
    assert checked(VICTIM, evidence=path, resume=True, repeat=repeat).queries["reused"] == 41 - repeat


def test_every_look_at_growing_answers_costs(tmp_path: Path) -> None:
    """Else whoever stops as soon as something is found would accuse innocents far more often than alpha says."""
    path = tmp_path / "e.jsonl"
    budgets = [12, *range(17, 24)]
    reports = [checked(VICTIM, evidence=path, resume=True, budget=budget) for budget in itertools.accumulate(budgets)]
    last = reports[-1]
    assert [report.queries["sent"] for report in reports] == [*budgets[:-1], QUERIES - 81 + REPEATS]
    assert last.queries["reused"] == 81
    assert (last.finding, last.exit_code, last.p_floor, last.p_value) == ("inconclusive", 11, 0.2, 0.2)
    assert last.reasons == ("39 references at look 8: p cannot fall below 0.2, alpha 0.05 needs at least 159",)
    assert "answers were judged 8 times as they came in: p is multiplied by 8" in last.conditions
    for look, report in enumerate(reports, start=1):
        assert report.p_floor == pytest.approx(min(1, (look if look == 8 else look * (look + 1)) / 40))
        assert report.p_value is None or report.p_value >= report.p_floor
        assert any(f"at look {look}" in reason for reason in report.reasons) == (look > 1)
    assert checked(VICTIM).finding == "derived"


def test_answers_that_were_judged_by_several_pools_of_references_say_so(tmp_path: Path) -> None:
    """Whoever tries pools until one accuses does not hide it."""
    simulated_bundle(20, labelled=False).save(tmp_path / "b.oab")
    bundle, evidence, reports = load(tmp_path / "b.oab"), tmp_path / "e.jsonl", []
    for seed, folder in enumerate(("one", "two")):
        (tmp_path / folder).mkdir()
        save_linear(tmp_path / folder / "m.onnx", classes=5, seed=seed, size=4)
    for name in (None, None, "one", "one", "two", None):
        references = None if name is None else tmp_path / name
        reports.append(checked(VICTIM, bundle, evidence=evidence, resume=True, references=references))
    said = [[words for words in report.conditions if "pools of references" in words] for report in reports]
    many = "these answers were judged by {} pools of references, one after the other: alpha holds for one of them"
    assert said == [[], [], [many.format(2)], [many.format(2)], [many.format(3)], [many.format(3)]]
    (tmp_path / "r.json").write_text(reports[-1].to_json() + "\n", encoding="utf-8")
    told = list(verify_file(tmp_path / "r.json", VerifyOptions(lambda: tmp_path / "b.oab", evidence)))
    assert any("the same words and numbers" in words for words in told)


def answer_linear(number: int, body: bytes) -> Any:
    """A server of 4x4 images whose five scores are the first five pixels."""
    sent = json.loads(body)["inputs"][0]
    rows = np.array(sent["data"], np.float32).reshape(-1, 16)[:, :5]
    output = {"name": "y", "datatype": "FP32", "shape": list(rows.shape), "data": rows.ravel().tolist()}
    return as_json({"outputs": [output]})


def over_http(url: str, headers: dict[str, str] | None = None, **options: Any) -> Report:
    http = {"dialect": "v2", "headers": headers or {}, "timeout": 5.0, "budget": options.get("budget")}
    return run_check(BUNDLE, url, None, CheckOptions(**options), {}, http, Silent(), 0.0)


def test_a_url_has_a_transcript_of_its_own_by_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    metadata = {**METADATA, "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 1, 4, 4]}]}
    with served(Script(answer_linear, {PATH: as_json(metadata), "/v2": as_json({"name": "test-server"})})) as base:
        url = base + PATH
        first = over_http(url, budget=30)
        assert (first.status, first.queries["sent"]) == ("complete", 30)
        (path,) = tmp_path.iterdir()
        header = json.loads(path.read_bytes().splitlines()[0])
        assert path.name == f"onnxaudit-{BUNDLE.id[:8]}-{header['suspect']['target'][:8]}.jsonl"
        again = over_http(url)
        assert (again.status, again.exit_code) == ("failed", 2)
        assert again.error is not None
        assert "exists already" in again.error
        resumed = over_http(url, {"Authorization": "renewed-word"}, resume=True)  # who asks may change, whom it asks may not
        assert resumed.queries == {"sent": QUERIES - 30 + REPEATS, "reused": 30, "failed": 0}
        assert over_http(url, {"X-Tenant": "secret-word"}).status == "complete"  # another target, another file
        assert over_http(url, {"X-Tenant": "another"}).status == "complete"
        kept = sorted(tmp_path.iterdir())
        assert len(kept) == 3
        assert not any(word in file.read_bytes() for file in kept for word in (b"secret-word", b"renewed-word"))
        other = over_http(url, {"X-Tenant": "third"}, evidence=path, resume=True)
        assert other.error is not None
        assert "another bundle or suspect" in other.error
        assert "the endpoint, by --url, --header" in other.error
        assert not any(word in other.error for word in ("secret-word", "third", "another-word"))
