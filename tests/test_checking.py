"""Findings: when a suspect is called derived, when not, when nothing can be said, and what the report promises to its readers."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onnxaudit.answers import Access, Answers
from onnxaudit.audit.checking import FEWEST_EASY, CheckOptions, check, judge
from onnxaudit.audit.progress import Silent
from onnxaudit.audit.running import failed
from onnxaudit.bundle import QueryBundle
from onnxaudit.errors import ArtefactError, SuspectError, UsageError
from onnxaudit.evidence.calibration import TOLERANCE, WIDE_TOLERANCE
from onnxaudit.evidence.multiple import holm
from onnxaudit.interview import interview
from onnxaudit.registry import open_suspect
from onnxaudit.report.model import Report
from onnxaudit.suspect import Queries, Target
from onnxaudit.zoo.manifest import load_zoo
from tests.bundles import CONTROLS, QUERIES, SPANS, Recorded, simulated_bundle
from tests.conftest import ZOO

POOL = simulated_bundle(40)
VICTIM = POOL.answers["victim"]
INNOCENT = POOL.answers["reference-039"]
CLOSE = {"same", "int8", "finetune", "retrain", "prune"}
"""Thefts that keep the victim's weights, which every release must find; extraction is the open problem."""


def with_references(count: int, bundle: QueryBundle = POOL) -> QueryBundle:
    """The bundle with its first references only."""
    models = (bundle.manifest.victim, *bundle.manifest.of_role("reference")[:count])
    manifest = dataclasses.replace(bundle.manifest, models=models)
    return dataclasses.replace(bundle, manifest=manifest, answers={m.id: bundle.answers[m.id] for m in models}, id="f" * 64)


BUNDLE = with_references(39)


def judged(answers: Answers, bundle: QueryBundle = BUNDLE, alpha: float | None = None, **options: Any) -> Report:
    return judge(bundle, Recorded(bundle, answers).card, answers, alpha, **options)


def checked(answers: Answers, bundle: QueryBundle = BUNDLE, **options: Any) -> Report:
    return check(bundle, Recorded(bundle, answers, batch=10), CheckOptions(**options), Silent())


def replaced(answers: Answers, rows: slice, labels: Any) -> Answers:
    """Label answers with those of some rows replaced."""
    changed = answers.labels.copy()
    changed[rows] = labels
    return Answers.from_labels(changed, answers.num_classes)


def test_a_copy_is_derived_and_an_innocent_is_not() -> None:
    copy, innocent = judged(VICTIM), judged(INNOCENT)
    assert (copy.finding, copy.p_value, copy.exit_code, copy.reasons) == ("derived", 1 / 40, 10, ())
    assert (innocent.finding, innocent.exit_code, innocent.reasons) == ("not-shown", 0, ())
    assert innocent.p_value is not None
    assert innocent.p_value > 0.05
    assert copy.score is not None
    assert innocent.score is not None
    assert copy.score > innocent.score
    assert copy.p_floor == innocent.p_floor == 1 / 40
    assert copy.tolerance == TOLERANCE
    assert copy.p_exchangeable == copy.p_floor


@pytest.mark.parametrize("access", list(Access))
def test_a_copy_is_derived_at_every_access(access: Access) -> None:
    report = judged(VICTIM.degrade(access, 3))
    assert report.finding == "derived"
    assert report.suspect["access"] == access.word
    assert [scheme.access for scheme in report.schemes] == ["label", min(access, Access.PROBS).word]
    assert any("label-only" in condition for condition in report.conditions) == (access == Access.LABEL)


def test_innocents_of_the_same_kind_are_rarely_accused() -> None:
    """Each of the 40 simulated references in turn against the 39 others: at most 2 may fall at the level of 5 %."""
    references = POOL.manifest.of_role("reference")
    accused = exact = 0
    for suspect in references:
        models = tuple(model for model in POOL.manifest.models if model.id != suspect.id)
        others = dataclasses.replace(POOL, manifest=dataclasses.replace(POOL.manifest, models=models))
        report = judged(POOL.answers[suspect.id], others)
        accused += report.finding == "derived"
        assert report.p_exchangeable is not None
        exact += report.p_exchangeable <= 0.05
    assert exact <= 2  # leave-one-out ranks are a permutation: exactly the share that alpha says
    assert accused <= exact


@pytest.mark.parametrize(
    ("references", "alpha", "enough"),
    [
        (0, 0.05, False),
        (1, 0.05, False),
        (18, 0.05, False),
        (19, 0.05, True),
        (39, 0.02, False),
        (39, 0.025, True),
        (9, 0.1, True),
    ],
)
def test_too_few_references_for_alpha_are_inconclusive(references: int, alpha: float, enough: bool) -> None:
    report = judged(VICTIM, with_references(references), alpha)
    assert (report.finding, report.exit_code) == (("derived", 10) if enough else ("inconclusive", 11))
    assert report.p_floor == 1 / (references + 1)
    if enough:
        assert report.reasons == ()
    else:
        (reason,) = report.reasons
        has = f"{references} references" if references else "no references"
        assert reason.startswith(f"{has}: p cannot fall below")
        assert f"needs at least {round(1 / alpha) - 1}" in reason


def test_without_references_there_is_no_p_value_of_any_kind() -> None:
    report = judged(VICTIM, with_references(0))
    assert (report.p_value, report.p_exchangeable, report.score, report.p_floor) == (None, None, None, 1.0)
    assert [(scheme.p_value, scheme.p_adjusted, scheme.reference_max) for scheme in report.schemes] == [(None, None, None)] * 2
    assert report.schemes[0].score == 1.0


def test_p_equal_to_alpha_is_derived() -> None:
    for references, alpha in [(19, 0.05), (39, 0.025), (24, 0.04), (9, 0.1)]:
        report = judged(VICTIM, with_references(references), alpha)
        assert report.p_value == alpha
        assert report.finding == "derived"


def test_alpha_is_the_bundle_s_unless_given() -> None:
    assert judged(VICTIM).alpha == 0.05
    assert judged(VICTIM, alpha=0.2).alpha == 0.2


def test_a_suspect_that_fails_the_controls_is_inconclusive_even_if_it_matches_the_fingerprint() -> None:
    wrong = (VICTIM.labels[slice(*CONTROLS)] + 1) % 5
    report = judged(replaced(VICTIM, slice(*CONTROLS), wrong))
    assert report.controls.ok is False
    assert report.controls.agreement is not None
    assert report.controls.agreement < 0.2
    assert (report.finding, report.exit_code) == ("inconclusive", 11)
    assert "easy controls right" in report.reasons[0]


def test_another_label_order_is_inconclusive() -> None:
    order = np.array([1, 2, 3, 4, 0], np.int32)
    report = judged(Answers.from_labels(order[VICTIM.labels], 5))
    assert report.finding == "inconclusive"
    assert report.controls.ok is False


def test_easy_controls_are_those_that_the_victim_and_most_references_get_right() -> None:
    start, stop = CONTROLS
    truth = BUNDLE.control_labels
    right = np.mean([BUNDLE.answers[m.id].labels[start:stop] == truth for m in BUNDLE.manifest.of_role("reference")], axis=0)
    easy = (VICTIM.labels[start:stop] == truth) & (right >= 0.75)
    controls = judged(INNOCENT).controls
    assert controls.n == easy.sum() >= FEWEST_EASY
    assert controls.agreement == pytest.approx((INNOCENT.labels[start:stop] == truth)[easy].mean())
    assert controls.accuracy == pytest.approx((INNOCENT.labels[start:stop] == truth).mean())
    assert controls.ok is True
    assert len(controls.reference_accuracy) == 39


def test_too_few_controls_cannot_tell_and_say_so() -> None:
    manifest = dataclasses.replace(BUNDLE.manifest, controls=(CONTROLS[0], CONTROLS[0] + 5))
    few = dataclasses.replace(BUNDLE, manifest=manifest, control_labels=BUNDLE.control_labels[:5])
    none = dataclasses.replace(
        BUNDLE,
        manifest=dataclasses.replace(BUNDLE.manifest, controls=(QUERIES, QUERIES)),
        control_labels=BUNDLE.control_labels[:0],
    )
    for bundle in (few, none):
        report = judged(VICTIM, bundle)
        assert report.controls.ok is None
        assert any("too few control queries" in condition for condition in report.conditions)
        assert report.finding == "derived"


def test_a_constant_suspect_is_inconclusive() -> None:
    for label in range(5):
        report = judged(Answers.from_labels(np.full(QUERIES, label), 5))
        assert report.finding == "inconclusive"
        assert any("same label to every query" in reason for reason in report.reasons)


def test_a_suspect_that_changes_its_mind_is_inconclusive() -> None:
    class Moody(Recorded):
        def _ask(self, queries: Queries) -> Answers:
            again = len(self.rows) >= QUERIES
            answers = super()._ask(queries)
            return Answers.from_labels((answers.labels + 1) % 5, 5) if again else answers

    for kind, finding in ((Moody, "inconclusive"), (Recorded, "derived")):
        suspect = kind(BUNDLE, VICTIM.degrade(Access.LABEL))
        report = check(BUNDLE, suspect, CheckOptions(repeat=4), Silent())
        assert report.finding == finding
        assert report.queries["sent"] == QUERIES + 4
        assert any("different labels" in reason for reason in report.reasons) == (kind is Moody)


def test_a_spent_budget_can_show_derivation_but_not_its_absence() -> None:
    copy, innocent = checked(VICTIM, budget=50), checked(INNOCENT, budget=50)
    assert copy.finding == "derived"
    assert (innocent.finding, innocent.exit_code) == ("inconclusive", 11)
    assert "budget was spent" in innocent.reasons[0]
    assert copy.queries == innocent.queries == {"sent": 50, "reused": 0, "failed": 0}
    assert sum(scheme.queries for scheme in copy.schemes) < 50
    assert checked(INNOCENT, budget=QUERIES).finding == "not-shown"


def test_what_the_budget_takes_does_not_depend_on_the_suspect() -> None:
    """The order is the bundle's, so nobody can stop when it suits him."""
    rows = []
    for answers in (VICTIM, INNOCENT):
        suspect = Recorded(BUNDLE, answers, batch=10)
        check(BUNDLE, suspect, CheckOptions(budget=30), Silent())
        rows.append(suspect.rows)
    assert rows[0] == rows[1] != list(range(30))


def test_no_answers_at_all_are_inconclusive() -> None:
    report = judged(replaced(VICTIM, slice(None), -1))
    assert (report.finding, report.p_value, report.score) == ("inconclusive", None, None)
    assert any("no scheme could run" in reason for reason in report.reasons)


def test_a_scheme_that_cannot_run_is_listed_with_its_reason() -> None:
    report = judged(replaced(VICTIM, slice(*SPANS["sac-m"]), -1))
    matched, skipped = report.schemes
    assert (matched.name, matched.skipped, matched.queries) == ("akh", None, 24)
    assert matched.p_adjusted == matched.p_value  # one test is no family
    assert (skipped.name, skipped.score, skipped.p_value) == ("sac-m", None, None)
    assert skipped.skipped
    assert report.finding == "derived"


def test_each_scheme_shows_its_score_among_the_references_and_holm_over_all() -> None:
    report = judged(INNOCENT)
    start, stop = SPANS["akh"]
    victim = VICTIM.labels[start:stop]
    others = [(BUNDLE.answers[m.id].labels[start:stop] == victim).mean() for m in BUNDLE.manifest.of_role("reference")]
    akh = report.schemes[0]
    assert akh.score == pytest.approx((INNOCENT.labels[start:stop] == victim).mean())
    assert akh.reference_mean == pytest.approx(np.mean(others))
    assert akh.reference_max == pytest.approx(max(others))
    p_values = [scheme.p_value for scheme in report.schemes if scheme.p_value is not None]
    assert [scheme.p_adjusted for scheme in report.schemes] == pytest.approx(holm(p_values))


def test_references_weaker_than_the_victim_widen_the_tolerance() -> None:
    def with_accuracy(value: float) -> QueryBundle:
        models = tuple(m if m.role == "victim" else dataclasses.replace(m, accuracy=value) for m in BUNDLE.manifest.models)
        return dataclasses.replace(BUNDLE, manifest=dataclasses.replace(BUNDLE.manifest, models=models))

    victim = BUNDLE.manifest.victim.accuracy
    assert victim is not None
    weak, fair = judged(INNOCENT, with_accuracy(victim - 0.1)), judged(INNOCENT, with_accuracy(victim))
    assert (weak.tolerance, fair.tolerance) == (WIDE_TOLERANCE, TOLERANCE)
    assert any("weaker than the victim" in condition for condition in weak.conditions)
    assert not any("weaker than the victim" in condition for condition in fair.conditions)
    assert weak.p_value is not None
    assert fair.p_value is not None
    assert weak.p_value >= fair.p_value


def test_judging_is_a_pure_function() -> None:
    kept = [(name, answers.classes.copy()) for name, answers in BUNDLE.answers.items()]
    one, two = judged(VICTIM), judged(VICTIM)
    assert one.to_json() == two.to_json()
    assert one == two
    for name, classes in kept:
        assert np.array_equal(BUNDLE.answers[name].classes, classes)
    online = checked(VICTIM)
    same = dataclasses.replace(online, queries=one.queries, seconds=one.seconds, suspect=one.suspect)
    assert same == one


def test_the_order_of_the_references_changes_nothing_that_matters() -> None:
    models = (BUNDLE.manifest.victim, *reversed(BUNDLE.manifest.of_role("reference")))
    turned = dataclasses.replace(BUNDLE, manifest=dataclasses.replace(BUNDLE.manifest, models=models))
    one, two = judged(INNOCENT), judged(INNOCENT, turned)
    assert (one.finding, one.p_value, one.p_exchangeable) == (two.finding, two.p_value, two.p_exchangeable)
    assert one.score == pytest.approx(two.score)


def test_evidence_is_kept_and_a_resumed_check_gives_the_same_finding(tmp_path: Path) -> None:
    path = tmp_path / "e.jsonl"
    broken = Recorded(BUNDLE, VICTIM, fails_after=45, batch=10)
    with pytest.raises(SuspectError):
        check(BUNDLE, broken, CheckOptions(evidence=path), Silent())
    resumed = checked(VICTIM, evidence=path, resume=True)
    assert resumed.queries == {"sent": QUERIES - 40, "reused": 40, "failed": 0}
    plain = checked(VICTIM)
    assert (resumed.finding, resumed.p_value, resumed.score) == (plain.finding, plain.p_value, plain.score)
    assert resumed.transcript_sha256 is not None
    assert plain.transcript_sha256 is None
    with pytest.raises(UsageError, match="another bundle or suspect"):
        checked(VICTIM, dataclasses.replace(BUNDLE, id="0" * 64), evidence=path, resume=True)


CONTRACT = {
    "schema", "status", "finding", "p_value", "p_floor", "alpha", "score", "reasons", "bundle", "suspect", "controls", "schemes",
    "queries", "seconds",
}  # fmt: skip
ADDED = {"error", "statistic", "tolerance", "p_exchangeable", "conditions", "tool", "transcript_sha256"}


def strictly(text: str) -> Any:
    def refuse(name: str) -> None:
        raise AssertionError(f"{name} in a report")

    return json.loads(text, parse_constant=refuse)


REPORTS: dict[str, Callable[[], Report]] = {
    "derived": lambda: checked(VICTIM),
    "not shown": lambda: checked(INNOCENT),
    "labels": lambda: checked(INNOCENT.degrade(Access.LABEL)),
    "budget": lambda: checked(INNOCENT, budget=3),
    "no references": lambda: checked(VICTIM, with_references(0)),
    "one reference": lambda: checked(VICTIM, with_references(1)),
    "two references": lambda: checked(VICTIM, with_references(2)),
    "no labels": lambda: checked(VICTIM, simulated_bundle(20, labelled=False)),
    "constant": lambda: checked(Answers.from_labels(np.zeros(QUERIES), 5)),
    "failed": lambda: failed(BUNDLE, "x.onnx", None, SuspectError("it hung up", "Try again.")),
    "interrupted": lambda: failed(BUNDLE, "x.onnx", 0.1, KeyboardInterrupt()),
}


@pytest.mark.parametrize("what", REPORTS)
def test_the_json_has_exactly_the_keys_of_the_contract(what: str) -> None:
    report = strictly(REPORTS[what]().to_json())
    assert set(report) == CONTRACT | ADDED
    assert list(report)[:8] == ["schema", "status", "finding", "p_value", "p_floor", "alpha", "score", "reasons"]
    assert report["schema"] == "onnxaudit.report/1"
    assert report["finding"] in ("derived", "not-shown", "inconclusive")
    assert set(report["bundle"]) == {"id", "victim_sha256", "references"}
    assert set(report["suspect"]) >= {"source", "kind", "access", "sha256", "runtime"}
    assert set(report["controls"]) >= {"n", "agreement", "ok"}
    assert set(report["queries"]) == {"sent", "reused", "failed"}
    assert (report["finding"] == "inconclusive") == bool(report["reasons"])
    for scheme in report["schemes"]:
        assert set(scheme) >= {"name", "score", "p_value", "p_adjusted", "queries", "access", "skipped"}
    if report["status"] == "complete":
        assert set(report["seconds"]) >= {"open", "ask", "detect"}
        assert all(seconds >= 0 for seconds in report["seconds"].values())
        assert report["error"] is None
        assert len(report["schemes"]) == 2


def test_runs_that_did_not_end_are_reports_too() -> None:
    interrupted = failed(BUNDLE, "x.onnx", 0.1, KeyboardInterrupt())
    assert (interrupted.status, interrupted.exit_code, interrupted.alpha) == ("interrupted", 130, 0.1)
    refused = failed(BUNDLE, "x.onnx", None, SuspectError("it hung up", "Try again."))
    assert (refused.status, refused.error, refused.exit_code) == ("failed", "it hung up. Try again.", 4)
    assert (refused.finding, refused.p_value, refused.alpha) == ("inconclusive", None, 0.05)
    assert failed(BUNDLE, "x", None, ArtefactError("bad")).exit_code == 3
    assert failed(BUNDLE, "x", None, ZeroDivisionError("bug")).exit_code == 1


def test_close_thefts_of_the_shipped_zoo_are_derived_and_no_innocent_is(crafted: QueryBundle) -> None:
    wrong = []
    for entry in load_zoo(ZOO / "zoo.json"):
        if entry.kind != "negative" and entry.task not in CLOSE:
            continue
        with open_suspect(Target(entry.file, crafted.manifest.input, 10, "cpu")) as suspect:
            answers = interview(suspect, crafted.queries).answers
        for access in (Access.LOGITS, Access.LABEL):
            report = judge(crafted, suspect.card, answers.degrade(access), None)
            if report.finding != ("derived" if entry.kind == "positive" else "not-shown"):
                wrong.append((Path(entry.file).name, access.word, report.finding, report.p_value, report.reasons))
    assert wrong == []


@pytest.mark.parametrize(
    "wiring", [{"scale": 1.0}, {"scale": 1 / 255**2}, {"mean": (0.5,), "std": (0.1,)}, {"scale": -1 / 255, "mean": (-1.0,)}]
)
def test_a_copy_with_wrong_preprocessing_is_inconclusive_not_innocent(crafted: QueryBundle, wiring: dict[str, Any]) -> None:
    with open_suspect(Target(str(ZOO / "suspects/copy.onnx"), crafted.manifest.input, 10, "cpu", **wiring)) as suspect:
        report = check(crafted, suspect, CheckOptions(), Silent())
    assert report.finding == "inconclusive"
    assert any("wrong preprocessing" in reason for reason in report.reasons)


def test_a_judge_s_own_references_replace_those_of_the_bundle(crafted: QueryBundle, tmp_path: Path) -> None:
    for file in sorted((ZOO / "references").glob("*.onnx"))[:9]:
        shutil.copyfile(file, tmp_path / file.name)
    shutil.copyfile(ZOO / "suspects/copy.onnx", tmp_path / "zz-copy.onnx")
    progress = Silent()
    with open_suspect(Target(str(ZOO / "suspects/copy.onnx"), crafted.manifest.input, 10, "cpu")) as suspect:
        report = check(crafted, suspect, CheckOptions(references=tmp_path, device="cpu"), progress)
        lenient = check(crafted, suspect, CheckOptions(references=tmp_path, device="cpu", alpha=0.1), Silent())
    assert report.bundle == {"id": crafted.id, "victim_sha256": crafted.manifest.victim.sha256, "references": 9}
    assert (report.finding, report.p_floor) == ("inconclusive", 0.1)
    assert (lenient.finding, lenient.p_value) == ("derived", 0.1)
    assert any("zz-copy.onnx" in note for note in progress.notes)
    assert any("given with the check" in condition for condition in report.conditions)
    assert len(report.controls.reference_accuracy) == 9
