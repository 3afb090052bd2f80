"""Planned looks at a suspect: in which order it is asked, when asking ends, and that nothing of it depends on interruptions."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import binom

from onnxaudit.answers import Access, Answers
from onnxaudit.audit.checking import CheckOptions, check
from onnxaudit.audit.judging.judging import judge, planned_order
from onnxaudit.audit.progress import Silent
from onnxaudit.bundle import QueryBundle
from onnxaudit.errors import SuspectError, UsageError
from tests.bundles import CONTROLS, QUERIES, Recorded, simulated_bundle
from tests.simulated import BUNDLE, INNOCENT, VICTIM, checked, judged, with_references

LOOKS = (10, 20, 30)


def test_every_look_has_its_share_of_each_scheme_and_controls_enough() -> None:
    plan = planned_order(BUNDLE, LOOKS)
    assert sorted(plan.order.tolist()) == list(range(QUERIES))
    assert plan.queries == (10, 20, 30, 44)
    assert plan.stops[-1] == QUERIES
    for stop, queries in zip(plan.stops, plan.queries, strict=True):
        asked = plan.order[:stop]
        controls = (asked >= CONTROLS[0]).sum()
        assert stop == queries + controls
        assert controls >= min(12, 40)
        akh = (asked < 24).sum()
        assert abs(akh - queries * 24 / 44) <= 1
    assert np.array_equal(plan.order, planned_order(BUNDLE, LOOKS).order)
    other = dataclasses.replace(BUNDLE, manifest=dataclasses.replace(BUNDLE.manifest, seed=1))
    assert not np.array_equal(plan.order, planned_order(other, LOOKS).order)


def test_looks_beyond_the_queries_there_are_do_not_count() -> None:
    assert planned_order(BUNDLE, (10, 44, 1000)).queries == (10, 44)
    assert planned_order(BUNDLE, ()).queries == (44,)


@pytest.mark.parametrize("access", [Access.LOGITS, Access.LABEL])
def test_a_copy_is_known_early_and_no_further_query_is_sent(access: Access) -> None:
    bundle = _apart(BUNDLE)
    suspect = Recorded(bundle, VICTIM.degrade(access), batch=16)
    report = check(bundle, suspect, CheckOptions(looks=LOOKS), Silent())
    assert report.finding == "derived"
    assert report.needed in LOOKS
    assert len(set(suspect.rows)) == report.queries["sent"] < QUERIES
    assert report.looks[-1].queries == report.needed
    assert report.p_value == report.looks[-1].p_value
    assert judged(VICTIM.degrade(access), bundle, planned=LOOKS).p_value == report.p_value  # the rest would not change it


def test_an_innocent_is_not_asked_to_the_end_and_not_accused() -> None:
    suspect = Recorded(BUNDLE, INNOCENT)
    report = check(BUNDLE, suspect, CheckOptions(looks=LOOKS), Silent())
    assert report.finding == "not-shown"
    assert report.p_value == 1.0 or len(suspect.rows) == QUERIES
    assert report.needed is None


def test_a_look_that_is_the_only_one_is_the_check_without_looks() -> None:
    for answers in (VICTIM, INNOCENT):
        planned, plain = judged(answers, planned=()), judged(answers)
        assert (planned.finding, planned.p_value, planned.score) == (plain.finding, plain.p_value, plain.score)


def test_what_broke_off_goes_on_to_the_same_report(tmp_path: Path) -> None:
    whole = checked(INNOCENT, looks=LOOKS)
    for after in (3, 15, 25):
        path = tmp_path / f"{after}.jsonl"
        broken = Recorded(BUNDLE, INNOCENT, fails_after=after, batch=10)
        with pytest.raises(SuspectError):
            check(BUNDLE, broken, CheckOptions(evidence=path, looks=LOOKS), Silent())
        resumed = checked(INNOCENT, evidence=path, resume=True, looks=LOOKS)
        assert (resumed.finding, resumed.p_value) == (whole.finding, whole.p_value)
        assert list(map(dataclasses.asdict, resumed.looks)) == list(map(dataclasses.asdict, whole.looks))
        assert not any("looked" in condition or "judged" in condition for condition in resumed.conditions)


def test_another_plan_cannot_go_on_with_it(tmp_path: Path) -> None:
    path = tmp_path / "e.jsonl"
    checked(VICTIM, evidence=path, looks=LOOKS)
    with pytest.raises(UsageError, match="another"):
        checked(VICTIM, evidence=path, resume=True)


def test_a_budget_between_two_looks_shows_the_last_one_only(tmp_path: Path) -> None:
    plan = planned_order(BUNDLE, LOOKS)
    mixed = _mixed(0.7)
    report = checked(mixed, budget=plan.stops[1] + 3, looks=LOOKS)
    assert [look.queries for look in report.looks] == [10, 20]
    if report.finding != "derived":
        assert any("budget" in reason for reason in report.reasons) or report.p_value == 1.0


def test_before_the_first_look_nothing_is_known() -> None:
    report = checked(VICTIM, budget=8, looks=LOOKS)
    assert (report.finding, report.p_value, report.looks) == ("inconclusive", None, ())
    assert report.reasons


@pytest.mark.parametrize("count", [0, 1, 18])
def test_too_few_references_are_said_before_anything_else(count: int) -> None:
    report = judged(VICTIM, with_references(count), planned=LOOKS)
    assert report.finding == "inconclusive"
    assert "references" in report.reasons[0]


def test_one_label_for_everything_is_no_finding() -> None:
    report = checked(Answers.from_labels(np.zeros(QUERIES), 5), looks=LOOKS)
    assert report.finding == "inconclusive"


def test_independent_models_are_accused_no_more_often_than_alpha() -> None:
    """The whole way, from answers to findings: each reference in turn is the suspect of a bundle without it."""
    accused = trials = 0
    for seed in range(6):
        pool = simulated_bundle(40, seed=seed)
        for name in [model.id for model in pool.manifest.of_role("reference")]:
            report = judge(_without(pool, name), Recorded(pool, VICTIM).card, pool.answers[name], 0.1, planned=LOOKS)
            accused += report.finding == "derived"
            trials += 1
    assert accused <= binom.ppf(0.999, trials, 0.1)


def _apart(bundle: QueryBundle) -> QueryBundle:
    """The bundle with references that are right on the controls, but rarely agree with the victim on the schemes' queries."""
    rng, answers = np.random.default_rng(4), dict(bundle.answers)
    for model in bundle.manifest.of_role("reference"):
        assert answers[model.id].scores is not None
        rows = answers[model.id].dense().copy()
        rows[: CONTROLS[0]] = rng.normal(0, 2, (CONTROLS[0], rows.shape[1]))
        answers[model.id] = Answers.from_scores(rows, Access.LOGITS)
    return dataclasses.replace(bundle, answers=answers)


def _without(bundle: QueryBundle, name: str) -> QueryBundle:
    models = tuple(model for model in bundle.manifest.models if model.id != name)
    answers = {model.id: bundle.answers[model.id] for model in models}
    return dataclasses.replace(bundle, manifest=dataclasses.replace(bundle.manifest, models=models), answers=answers)


def _mixed(share: float) -> Answers:
    """The victim's label on so many queries, an innocent's on the others."""
    rng = np.random.default_rng(3)
    labels = np.where(rng.random(QUERIES) < share, VICTIM.labels, INNOCENT.labels)
    return Answers.from_labels(labels, VICTIM.num_classes)
