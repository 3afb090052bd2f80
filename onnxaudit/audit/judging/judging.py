"""judge(): what recorded answers support: controls, statistics, doubts, conditions, and the finding. It asks nothing."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from onnxaudit import __version__
from onnxaudit.answers import Answers
from onnxaudit.audit.insights import Insights, askable
from onnxaudit.audit.judging.comparing import ALIKE, FEWEST_QUERIES, Comparison, compare, has_places, lined_up_in
from onnxaudit.audit.judging.conditions import conditions_of
from onnxaudit.audit.judging.controls import controls_of, references_of, stronger, weak_references
from onnxaudit.audit.judging.exports import export_agreements
from onnxaudit.audit.judging.label_free import STATISTIC as LABEL_FREE_STATISTIC
from onnxaudit.audit.judging.label_free import compare_label_free, label_free_controls, named_classes, other_task
from onnxaudit.audit.judging.looking import Schedule, Seen, schedule, walk
from onnxaudit.audit.once import once
from onnxaudit.bundle import QueryBundle
from onnxaudit.evidence.calibration import TOLERANCE, WIDE_TOLERANCE, p_floor, p_value, spread_of
from onnxaudit.evidence.multiple import holm
from onnxaudit.evidence.siblings import STATISTIC as SIBLING_STATISTIC
from onnxaudit.evidence.siblings import e_value, line_up_p, typical
from onnxaudit.report.model import DERIVED, INCONCLUSIVE, NOT_SHOWN, Controls, LineUp, Look, ReferenceScore, Report, SchemeResult
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
    known. None: judged once, at the end. looks: how often answers of this suspect were judged as they came in without a plan; p
    is multiplied by it (Bonferroni), because looking again until something is found would otherwise accuse innocents.
    """
    manifest = bundle.manifest
    level = manifest.alpha if alpha is None else alpha
    terms = _terms(bundle, label_free=label_free)
    references, siblings, tolerance = terms.references, terms.siblings, terms.tolerance
    answers = named_classes(bundle, answers, label_free=label_free)
    seen = None if planned is None else look_through(bundle, answers, level, planned, inside, label_free=label_free)
    answers = answers if seen is None else seen.answers
    comparison = seen.comparison if seen else _compared(bundle, answers, inside, label_free=label_free)
    controls = label_free_controls(bundle, answers) if label_free else controls_of(bundle, answers)
    p = seen.p if seen else None
    if planned is None and comparison.statistics is not None and references:
        p = p_value(comparison.statistics, tolerance, comparison.unrelated)
        if siblings:
            p = max(p, 1.0 if comparison.twins is None else p_value(comparison.twins))
            if terms.placed:
                p = max(p, 1.0 if comparison.places is None else p_value(comparison.places))
        p = min(1.0, looks * p)
    if p is not None and not siblings and comparison.twins is not None:
        # too few siblings for the bundle's alpha: none of them may be as close all the same
        among = p_value(comparison.twins)
        p = p if among <= p_floor(len(comparison.twins) - 1) + 1e-12 else max(p, among)
    floor = min(1.0, looks * max(p_floor(len(references)), p_floor(siblings) if siblings else 0.0))
    complete = bool(answers.answered[once(askable, bundle)].all()) if planned is None else seen is not None and seen.decided
    reasons = _doubts(
        floor,
        len(references),
        siblings,
        level,
        comparison,
        controls,
        answers,
        stable=stable,
        complete=complete,
        label_free=label_free,
    )
    if label_free:
        reasons += other_task(bundle, references, answers, level)
    finding = INCONCLUSIVE
    if p is not None and not reasons:
        finding = DERIVED if p <= level else NOT_SHOWN
    if not reasons and finding != DERIVED and not complete:
        reasons.append("the budget was spent before all queries were asked, and what was asked does not show derivation")
        finding = INCONCLUSIVE
    line_up = _line_up(bundle, comparison, early=seen is not None and not _is_whole(seen), label_free=label_free)
    return Report(
        finding=finding,
        p_value=p,
        p_floor=floor,
        alpha=level,
        score=float(comparison.statistics[-1]) if p is not None and comparison.statistics is not None else None,
        reasons=tuple(reasons),
        bundle={
            "id": bundle.id,
            "victim_sha256": manifest.victim.sha256,
            "references": len(references),
            "pool_sha256": once(_pool_digest, bundle),
        },
        suspect=_suspect_facts(card, answers),
        controls=controls,
        schemes=_scheme_results(comparison, tolerance, len(references)),
        queries={"sent": int(answers.answered.sum()), "reused": 0, "failed": 0},
        seconds={},
        statistic=LABEL_FREE_STATISTIC if label_free else manifest.statistic,
        tolerance=tolerance,
        margin=_margin(comparison, tolerance) if p is not None else None,
        p_exchangeable=p_value(comparison.statistics) if comparison.statistics is not None and references else None,
        conditions=tuple(
            conditions_of(
                bundle,
                controls,
                answers,
                weak=terms.weak,
                tolerance=tolerance,
                looks=looks,
                level=level,
                seen=seen,
                line_up=line_up,
                label_free=label_free,
            )
        ),
        references=_reference_scores(bundle, comparison),
        line_up=line_up,
        exports=() if label_free else export_agreements(bundle, answers),
        looks=_looks(seen),
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
    terms = _terms(bundle, label_free=label_free)
    references, siblings = terms.references, terms.siblings
    answers = named_classes(bundle, answers, label_free=label_free)

    def doubtful(cut: Answers, comparison: Comparison) -> bool:
        controls, floor = (label_free_controls if label_free else controls_of)(bundle, cut), p_floor(len(references))
        doubts = _doubts(
            floor, len(references), siblings, level, comparison, controls, cut, stable=True, complete=True, label_free=label_free
        )
        return bool(doubts or (label_free and other_task(bundle, references, cut, level)))

    return walk(
        planned_order(bundle, planned),
        answers,
        lambda cut: _compared(bundle, cut, inside, FEWEST_AT_LOOKS, label_free=label_free),
        doubtful,
        len(references),
        level,
        terms.tolerance,
        {} if known is None else known,
        siblings=siblings,
        placed=terms.placed,
    )


def _compared(
    bundle: QueryBundle, answers: Answers, inside: Insights | None, fewest: int = FEWEST_QUERIES, *, label_free: bool
) -> Comparison:
    """The suspect and the bundle's references on the same queries, with labels or without."""
    references = once(references_of, bundle)
    if label_free:
        return compare_label_free(bundle, references, answers, fewest)
    return compare(bundle, references, answers, inside, fewest)


@dataclass(frozen=True, slots=True, eq=False)
class _Terms:
    """What a bundle's own contents fix before any suspect is asked, whatever alpha a check is called with.

    weak: the references are less accurate than the victim. siblings: so many a suspect is ranked among as well: all, if they are
    enough for the bundle's alpha, else 0. placed: also by its place in the line-up. tolerance: how many standard deviations of a
    head start references get; where a suspect is placed, that covers the innocents that the tolerance is for.
    """

    references: Sequence[Answers]
    weak: bool
    siblings: int
    placed: bool
    tolerance: float


def _terms(bundle: QueryBundle, *, label_free: bool) -> _Terms:
    manifest, weak = bundle.manifest, once(weak_references, bundle)
    count = len(manifest.of_role("sibling")) if manifest.statistic == SIBLING_STATISTIC else 0
    siblings = count if count and p_floor(count) <= manifest.alpha + 1e-12 else 0
    placed = not label_free and bool(siblings) and once(has_places, bundle)
    plain, wide = (0.0, TOLERANCE) if placed else (TOLERANCE, WIDE_TOLERANCE)
    return _Terms(once(references_of, bundle), weak, siblings, placed, wide if weak else plain)


def planned_order(bundle: QueryBundle, planned: Sequence[int]) -> Schedule:
    """In which order a suspect is asked, and after which rows its answers are looked at; the same whatever the references are."""
    begin, end = bundle.manifest.controls
    return schedule(bundle, planned, bundle.answers["victim"].labels[begin:end] == bundle.control_labels)


def _looks(seen: Seen | None) -> tuple[Look, ...]:
    if seen is None:
        return ()
    standings = dict(zip(seen.judged, seen.standings, strict=False))
    return tuple(
        Look(queries, score, standings[i].closer if i in standings else None, seen.p if i == len(seen.queries) - 1 else None)
        for i, (queries, score) in enumerate(zip(seen.queries, seen.scores, strict=True))
    )


def _margin(comparison: Comparison, tolerance: float) -> float | None:
    """The tolerance in units of the combined statistic, as ``p_value`` counts it."""
    if comparison.statistics is None:
        return None
    return tolerance * spread_of(comparison.statistics[:-1], comparison.unrelated)


def _is_whole(seen: Seen) -> bool:
    """Whether the last planned look is the one that is reported."""
    return bool(seen.standings) and seen.standings[-1].p is not None and seen.final


def _line_up(bundle: QueryBundle, comparison: Comparison, *, early: bool, label_free: bool) -> LineUp | None:
    """What is reported of the line-up.

    Its p and e are 1 where they would not hold: when a look ended asking because the victim was close, on queries that were made
    from the victim, and without labels.
    """
    found = (comparison.schemes[0], None) if label_free else lined_up_in(bundle, comparison.schemes)
    if found is None or (lined_up := found[0].line_up) is None:
        return None
    holds = not early and found[1] is not None and found[1].sampler in ALIKE
    return LineUp(
        lined_up.victim,
        lined_up.siblings,
        line_up_p(lined_up.victim, lined_up.siblings) if holds else 1.0,
        e_value(lined_up.victim, lined_up.siblings) if holds else 1.0,
        bundle.manifest.drawn is not None,
        typical(lined_up.centrality),
        1.0 if comparison.twins is None else p_value(comparison.twins),
    )


def _reference_scores(bundle: QueryBundle, comparison: Comparison) -> tuple[ReferenceScore, ...]:
    if comparison.statistics is None:
        return ()
    models = bundle.manifest.of_role("reference")
    return tuple(
        ReferenceScore(model.id, model.source, float(score), model.accuracy, model.origin)
        for model, score in zip(models, comparison.statistics[:-1], strict=True)
    )


def _pool_digest(bundle: QueryBundle) -> str:
    """One digest of the references that calibrated: the bundle's own, or those given with the check."""
    names = sorted(f"{model.source} {model.sha256}" for model in bundle.manifest.of_role("reference"))
    return hashlib.sha256("\n".join(names).encode()).hexdigest()


def _suspect_facts(card: SuspectCard, answers: Answers) -> Mapping[str, Any]:
    return {
        "source": card.source,
        "kind": card.kind,
        "access": answers.access.word,
        "sha256": card.sha256,
        "runtime": dict(card.runtime),
        "input": dataclasses.asdict(card.input),
    }


def _doubts(
    floor: float,
    references: int,
    siblings: int,
    alpha: float,
    comparison: Comparison,
    controls: Controls,
    answers: Answers,
    *,
    stable: bool,
    complete: bool,
    label_free: bool,
) -> list[str]:
    """Everything that forbids a finding, in words."""
    found = []
    if floor > alpha + 1e-12:
        short = siblings if 0 < siblings < references else references
        looks = round(floor * (short + 1))
        needed = int(np.ceil(looks / alpha - 1e-9)) - 1
        has = f"{short} {'siblings' if short != references else 'references'}" if short else "no references"
        said = f" after {looks} looks" if looks > 1 else ""
        found.append(f"{has}{said}: p cannot fall below {floor:.3g}, alpha {alpha:g} needs at least {needed}")
    if comparison.statistics is None:
        found.append("no scheme could run: " + "; ".join(f"{s.name}: {s.skipped}" for s in comparison.schemes))
    if controls.ok is False and controls.related is not None:
        found.append(
            "the suspect's labels tell nothing of what the control queries show: wrong preprocessing, or a task that has nothing "
            "to do with the victim's"
        )
    elif controls.ok is False:
        found.append(
            f"the suspect gets {controls.agreement:.0%} of {controls.n} easy controls right: "
            "wrong preprocessing or label order, or another task"
        )
    if label_free and controls.ok is None:
        found.append("too few control queries were answered to see what the suspect's labels tell of them")
    elif controls.ok is None and controls.n is not None and not complete and controls.victim_accuracy is not None:
        found.append("the budget was spent before enough control queries were answered")
    if not comparison.adjusted and stronger(controls):
        found.append("the suspect is more accurate than nearly all references, too few to adjust the scores for it")
    if not stable:
        found.append("the suspect gives different labels to queries that it answered before, or could not be asked again")
    given = answers.labels[answers.answered]
    if len(given) and given.min() == given.max():
        found.append("the suspect gives the same label to every query")
    return found


def _scheme_results(comparison: Comparison, tolerance: float, references: int) -> tuple[SchemeResult, ...]:
    ran = [scheme for scheme in comparison.schemes if scheme.standardised is not None]
    p_values = [p_value(s.standardised, tolerance) for s in ran if s.standardised is not None] if references else []
    adjusted = dict(zip((s.name for s in ran), zip(p_values, holm(p_values), strict=True), strict=True)) if references else {}
    results = []
    for scheme in comparison.schemes:
        if scheme.scores is None:
            results.append(SchemeResult(scheme.name, skipped=scheme.skipped))
            continue
        p, p_adjusted = adjusted.get(scheme.name, (None, None))
        others = scheme.scores[:-1]
        results.append(
            SchemeResult(
                scheme.name,
                float(scheme.scores[-1]),
                p,
                p_adjusted,
                scheme.queries,
                scheme.access,
                None,
                float(others.mean()) if references else None,
                float(others.max()) if references else None,
            )
        )
    return tuple(results)
