"""When a suspect is called derived, when not, and when nothing can be said."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from onnxaudit.answers import Access, Answers
from onnxaudit.audit.checking import CheckOptions, check
from onnxaudit.audit.judging.looking import asking_order, only
from onnxaudit.audit.progress import Silent
from onnxaudit.bundle import QueryBundle
from onnxaudit.evidence.calibration import TOLERANCE, WIDE_TOLERANCE, look_price, p_value
from onnxaudit.evidence.multiple import holm
from onnxaudit.suspect import Queries
from tests.bundles import QUERIES, SPANS, Recorded, simulated_bundle
from tests.simulated import BUNDLE, INNOCENT, POOL, VICTIM, checked, judged, replaced, with_references


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
        reason, *others = report.reasons
        stronger = "the suspect is more accurate than nearly all references, too few to adjust the scores for it"
        assert others == ([stronger] if references == 1 else [])
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
        assert suspect.rows[QUERIES:] == [0, 1, 2, 3]


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
    assert skipped.skipped == "only 0 of its queries were answered"
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
    assert dataclasses.asdict(one) == dataclasses.asdict(two)
    for name, classes in kept:
        assert np.array_equal(BUNDLE.answers[name].classes, classes)
    online = checked(VICTIM)
    same = dataclasses.replace(online, queries=one.queries, seconds=one.seconds, suspect=one.suspect)
    assert dataclasses.asdict(same) == dataclasses.asdict(one)


def test_the_order_of_the_references_changes_nothing_that_matters() -> None:
    models = (BUNDLE.manifest.victim, *reversed(BUNDLE.manifest.of_role("reference")))
    turned = dataclasses.replace(BUNDLE, manifest=dataclasses.replace(BUNDLE.manifest, models=models))
    one, two = judged(INNOCENT), judged(INNOCENT, turned)
    assert (one.finding, one.p_value, one.p_exchangeable) == (two.finding, two.p_value, two.p_exchangeable)
    assert one.score == pytest.approx(two.score)


def test_p_and_its_floor_are_multiplied_by_the_looks() -> None:
    once = judged(INNOCENT)
    assert once.p_value is not None
    for looks in (1, 2, 3, 40, 100):
        copy, innocent = judged(VICTIM, looks=looks), judged(INNOCENT, looks=looks)
        assert copy.p_value == copy.p_floor == innocent.p_floor == pytest.approx(min(1.0, looks / 40))
        assert innocent.p_value == min(1.0, looks * once.p_value)
        assert copy.finding == ("derived" if looks <= 2 else "inconclusive")
        assert any("p is multiplied by" in condition for condition in copy.conditions) == (looks > 1)
    assert judged(VICTIM, looks=4, alpha=0.1).finding == "derived"


def test_a_look_before_all_was_asked_costs_more_for_more_may_follow() -> None:
    early = only(VICTIM, asking_order(BUNDLE)[:70])
    for looks, times in ((1, 2), (2, 6), (3, 12)):
        report = judged(early, looks=looks, alpha=0.5)
        assert report.p_value == report.p_floor == pytest.approx(times / 40)
        assert report.finding == "derived"
        assert any(f"which may be done again with more: p is multiplied by {times}" in said for said in report.conditions)
    assert (
        judged(early, looks=2).reasons[0].startswith("39 references at look 2, before all was asked: p cannot fall below 0.15, ")
    )


def test_whoever_stops_at_the_first_look_that_accuses_is_wrong_no_more_often_than_alpha() -> None:
    """Answers of each model add up like a random walk; nobody planned the looks."""
    rng, trials, m = np.random.default_rng(1), 2000, 199
    sizes = np.unique(np.round(10 * 1.6 ** np.arange(8)).astype(int))
    accused = 0
    for _ in range(trials):
        walk = rng.normal(size=(m + 1, sizes[-1])).cumsum(axis=1)
        found = [
            look_price(k, last=k == len(sizes)) * p_value(walk[:, size - 1] / np.sqrt(size))
            for k, size in enumerate(sizes, start=1)
        ]
        accused += min(found) <= 0.05
    assert sum(1 / look_price(k, last=k == 50) for k in range(1, 51)) == pytest.approx(1)
    assert accused / trials <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / trials)
    assert accused > 0


@pytest.mark.parametrize("labelled", [True, False])
def test_a_budget_that_ends_before_the_controls_accuses_nobody(labelled: bool) -> None:
    """Nothing is known of the suspect then, not even whether it is wired right."""
    pool = simulated_bundle(39, labelled=labelled)
    start, _ = pool.manifest.controls
    for controls in (0, 5, 9):
        asked = np.r_[0:start, start : start + controls]
        report = judged(only(pool.answers["victim"], asked), pool, alpha=0.5)
        assert report.finding == "inconclusive"
        assert "the budget was spent before enough control queries were answered" in report.reasons
    assert judged(pool.answers["victim"], pool, alpha=0.5).finding == "derived"


def test_an_alpha_of_one_s_own_is_told() -> None:
    said = "alpha 0.2 was chosen with the check; the bundle was made for 0.05"
    assert said in judged(VICTIM, alpha=0.2).conditions
    lax = dataclasses.replace(BUNDLE, manifest=dataclasses.replace(BUNDLE.manifest, alpha=0.2))
    warned = "alpha 0.2: up to 20% of independent suspects are called derived at it"
    assert warned in judged(VICTIM, alpha=0.2).conditions
    assert warned in judged(VICTIM, lax).conditions
    assert not any("are called derived at it" in condition for condition in judged(VICTIM, alpha=0.1).conditions)
    assert not any(
        "was chosen with the check" in condition for alpha in (None, 0.05) for condition in judged(VICTIM, alpha=alpha).conditions
    )


def test_notes_on_the_pool_are_conditions() -> None:
    manifest = dataclasses.replace(BUNDLE.manifest, pool_notes=("left out: x.onnx is reference-000 again",))
    report = judged(VICTIM, dataclasses.replace(BUNDLE, manifest=manifest))
    assert "left out: x.onnx is reference-000 again" in report.conditions
