"""judge(): what recorded answers support: controls, statistics, doubts, conditions, and the finding. It asks nothing."""

from __future__ import annotations

from collections.abc import Sequence

from onnxaudit import __version__
from onnxaudit.answers import Answers
from onnxaudit.audit.insights import Insights
from onnxaudit.audit.judging.case import Case, terms_of
from onnxaudit.audit.judging.comparing import FEWEST_QUERIES, Comparison, compare
from onnxaudit.audit.judging.conditions import conditions_of
from onnxaudit.audit.judging.controls import controls_of
from onnxaudit.audit.judging.doubts import doubts_of
from onnxaudit.audit.judging.exports import export_agreements
from onnxaudit.audit.judging.label_free import STATISTIC as LABEL_FREE_STATISTIC
from onnxaudit.audit.judging.label_free import compare_label_free, label_free_controls, named_classes
from onnxaudit.audit.judging.looking import Schedule, Seen, schedule, walk
from onnxaudit.audit.judging.results import (
    bundle_facts,
    line_up_of,
    looks_of,
    margin_of,
    reference_scores,
    scheme_results,
    suspect_facts,
)
from onnxaudit.bundle import QueryBundle
from onnxaudit.evidence.calibration import p_value
from onnxaudit.report.model import DERIVED, INCONCLUSIVE, NOT_SHOWN, Report
from onnxaudit.suspect import SuspectCard

FEWEST_AT_LOOKS = 3
"""Queries that a scheme needs at a planned look."""


def judge(
    bundle: QueryBundle,
    card: SuspectCard,
    answers: Answers,
    alpha: float | None,
    *,
    stable: bool = True,
    looks: int = 1,
    inside: Insights | None = None,
    planned: Sequence[int] | None = None,
    label_free: bool = False,
) -> Report:
    """The report on recorded answers: a pure function of its arguments, that anyone can repeat offline.

    label_free: the suspect's label set is another one, or not known: nothing is compared by label, see ``label_free``.
    planned: looks that were fixed before anything was asked, in queries of the schemes; p then holds however early it was
    known. None: judged at the end. looks: how often answers of this suspect were judged as they came in without a plan; p is
    multiplied by ``look_price``, because looking again until something is found would otherwise accuse innocents.
    """
    level = bundle.manifest.alpha if alpha is None else alpha
    answers = named_classes(bundle, answers, label_free=label_free)
    seen = None if planned is None else look_through(bundle, answers, level, planned, inside, label_free=label_free)
    if seen:
        answers, comparison = seen.answers, seen.comparison
    else:
        comparison = _compared(bundle, answers, inside, label_free=label_free)
    case = _case(bundle, answers, comparison, level, planned=planned is not None, seen=seen, looks=looks, label_free=label_free)
    finding, reasons = _finding(case, stable=stable)
    return _report(case, card, finding, reasons)


def _case(
    bundle: QueryBundle,
    answers: Answers,
    comparison: Comparison,
    level: float,
    *,
    planned: bool,
    seen: Seen | None = None,
    looks: int = 1,
    label_free: bool,
) -> Case:
    controls = (label_free_controls if label_free else controls_of)(bundle, answers)
    terms = terms_of(bundle, label_free=label_free)
    return Case(bundle, terms, answers, comparison, controls, level, label_free, planned, seen, looks)


def _finding(case: Case, *, stable: bool) -> tuple[str, list[str]]:
    """The finding, and why it is inconclusive if it is."""
    complete, p = case.complete, case.p
    reasons = doubts_of(case, stable=stable, complete=complete)
    if reasons or p is None:
        if not reasons and not complete:
            reasons = [_UNSPENT]
        return INCONCLUSIVE, reasons
    if p <= case.level:
        return DERIVED, []
    return (NOT_SHOWN, []) if complete else (INCONCLUSIVE, [_UNSPENT])


_UNSPENT = "the budget was spent before all queries were asked, and what was asked does not show derivation"
"""Why a suspect is not said to be unlike the victim by half of the queries."""


def _report(case: Case, card: SuspectCard, finding: str, reasons: Sequence[str]) -> Report:
    """The finding, and all that is told with it."""
    p, statistics, seen = case.p, case.comparison.statistics, case.seen
    line_up = line_up_of(case)
    return Report(
        finding=finding,
        p_value=p,
        p_floor=case.floor,
        alpha=case.level,
        score=float(statistics[-1]) if p is not None and statistics is not None else None,
        reasons=tuple(reasons),
        bundle=bundle_facts(case.bundle),
        suspect=suspect_facts(card, case.answers),
        controls=case.controls,
        schemes=scheme_results(case),
        queries={"sent": int(case.answers.answered.sum()), "reused": 0, "failed": 0},
        seconds={},
        statistic=LABEL_FREE_STATISTIC if case.label_free else case.bundle.manifest.statistic,
        tolerance=case.terms.tolerance,
        margin=margin_of(case) if p is not None else None,
        p_exchangeable=p_value(statistics) if statistics is not None and case.terms.references else None,
        conditions=tuple(conditions_of(case, line_up)),
        references=reference_scores(case),
        line_up=line_up,
        exports=() if case.label_free else export_agreements(case.bundle, case.answers),
        looks=looks_of(seen),
        needed=seen.queries[-1] if seen and finding == DERIVED else None,
        tool=__version__,
    )


def look_through(
    bundle: QueryBundle,
    answers: Answers,
    level: float,
    planned: Sequence[int],
    inside: Insights | None = None,
    known: dict[int, Comparison] | None = None,
    *,
    label_free: bool = False,
) -> Seen | None:
    """What planned looks at the answers show so far; None before the first. A pure function, as ``judge``.

    known: what earlier calls found at looks at the beginning of the same answers; it is added to.
    """
    terms = terms_of(bundle, label_free=label_free)

    def doubtful(cut: Answers, comparison: Comparison) -> bool:
        case = _case(bundle, cut, comparison, level, planned=True, label_free=label_free)
        return bool(doubts_of(case, stable=True, complete=True))

    return walk(
        planned_order(bundle, planned),
        named_classes(bundle, answers, label_free=label_free),
        lambda cut: _compared(bundle, cut, inside, FEWEST_AT_LOOKS, label_free=label_free),
        doubtful,
        len(terms.references),
        level,
        terms.tolerance,
        {} if known is None else known,
        siblings=terms.siblings,
        placed=terms.placed,
    )


def _compared(
    bundle: QueryBundle, answers: Answers, inside: Insights | None, fewest: int = FEWEST_QUERIES, *, label_free: bool
) -> Comparison:
    """The suspect and the bundle's references on the same queries, with labels or without."""
    references = terms_of(bundle, label_free=label_free).references
    if label_free:
        return compare_label_free(bundle, references, answers, fewest)
    return compare(bundle, references, answers, inside, fewest)


def planned_order(bundle: QueryBundle, planned: Sequence[int]) -> Schedule:
    """In which order a suspect is asked, and after which rows its answers are looked at; the same whatever the references are."""
    begin, end = bundle.manifest.controls
    return schedule(bundle, planned, bundle.answers["victim"].labels[begin:end] == bundle.control_labels)
