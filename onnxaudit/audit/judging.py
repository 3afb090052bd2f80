"""judge(): what recorded answers support: controls, statistics, doubts, conditions, and the finding. It asks nothing."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxaudit import __version__
from onnxaudit.answers import Answers
from onnxaudit.audit.calibrating import control_accuracy
from onnxaudit.audit.comparing import FEWEST_CONTROLS, Comparison, compare, labels_of
from onnxaudit.audit.insights import Insights, askable
from onnxaudit.audit.looking import Schedule, Seen, schedule, walk
from onnxaudit.audit.once import once
from onnxaudit.bundle import QueryBundle
from onnxaudit.evidence.calibration import TOLERANCE, WIDE_TOLERANCE, p_floor, p_value, spread_of
from onnxaudit.evidence.multiple import holm
from onnxaudit.report.model import DERIVED, INCONCLUSIVE, NOT_SHOWN, Controls, Look, ReferenceScore, Report, SchemeResult
from onnxaudit.suspect import SuspectCard

EASY = 0.75
"""A control counts as easy if the victim and this share of the references give its label."""
SANE = 0.8
"""A suspect that gets fewer of the easy controls than this is mis-wired, of another task, or broken."""
FEWEST_EASY = 10
FEWEST_AT_LOOKS = 3
"""Queries that a scheme needs at a planned look."""
FEWEST_OF_CLASS = 4
CONFUSED = 0.25
"""A suspect that gets no more than this of a class's easy controls right has another label order."""
SHORTFALL = 0.03
"""References whose median control accuracy is this far below the victim's are weak: the tolerance is widened."""


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
) -> Report:
    """The report on recorded answers: a pure function of its arguments, that anyone can repeat offline.

    planned: looks that were fixed before anything was asked, in queries of the schemes; p then holds however early it was
    known. None: judged once, at the end. looks: how often answers of this suspect were judged as they came in without a plan; p
    is multiplied by it (Bonferroni), because looking again until something is found would otherwise accuse innocents.
    """
    manifest = bundle.manifest
    level = manifest.alpha if alpha is None else alpha
    references = once(_references, bundle)
    answers = dataclasses.replace(answers, num_classes=manifest.victim.num_classes)
    weak = once(_weak, bundle)
    tolerance = WIDE_TOLERANCE if weak else TOLERANCE
    seen = None if planned is None else look_through(bundle, answers, level, planned, inside)
    answers = answers if seen is None else seen.answers
    comparison = compare(bundle, references, answers, inside) if seen is None else seen.comparison
    controls = _controls(bundle, answers)
    p = seen.p if seen else None
    if planned is None and comparison.statistics is not None and references:
        p = min(1.0, looks * p_value(comparison.statistics, tolerance, comparison.unrelated))
    floor = min(1.0, looks * p_floor(len(references)))
    complete = bool(answers.answered[once(askable, bundle)].all()) if planned is None else seen is not None and seen.decided
    reasons = _doubts(floor, len(references), level, comparison, controls, answers, stable=stable, complete=complete)
    finding = INCONCLUSIVE
    if p is not None and not reasons:
        finding = DERIVED if p <= level else NOT_SHOWN
    if not reasons and finding != DERIVED and not complete:
        reasons.append("the budget was spent before all queries were asked, and what was asked does not show derivation")
        finding = INCONCLUSIVE
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
        statistic=manifest.statistic,
        tolerance=tolerance,
        margin=_margin(comparison, tolerance) if p is not None else None,
        p_exchangeable=p_value(comparison.statistics) if comparison.statistics is not None and references else None,
        conditions=tuple(_conditions(bundle, controls, answers, weak=weak, looks=looks, level=level, seen=seen)),
        references=_reference_scores(bundle, comparison),
        looks=_looks(seen),
        needed=seen.queries[-1] if seen and finding == DERIVED else None,
        tool=__version__,
    )


def look_through(
    bundle: QueryBundle, answers: Answers, level: float, planned: Sequence[int], inside: Insights | None = None
) -> Seen | None:
    """What planned looks at the answers show so far; None before the first. A pure function, as ``judge``."""
    references = once(_references, bundle)
    answers = dataclasses.replace(answers, num_classes=bundle.manifest.victim.num_classes)

    def doubtful(cut: Answers, comparison: Comparison) -> bool:
        controls, floor = _controls(bundle, cut), p_floor(len(references))
        return bool(_doubts(floor, len(references), level, comparison, controls, cut, stable=True, complete=True))

    return walk(
        planned_order(bundle, planned),
        answers,
        lambda cut: compare(bundle, references, cut, inside, FEWEST_AT_LOOKS),
        doubtful,
        len(references),
        level,
        WIDE_TOLERANCE if once(_weak, bundle) else TOLERANCE,
    )


def planned_order(bundle: QueryBundle, planned: Sequence[int]) -> Schedule:
    """In which order a suspect is asked, and after which rows its answers are looked at."""
    return schedule(bundle, planned, once(_easy, bundle))


def _looks(seen: Seen | None) -> tuple[Look, ...]:
    if seen is None:
        return ()
    standings = dict(zip(seen.judged, seen.standings, strict=False))
    return tuple(
        Look(queries, score, standings[i].closer if i in standings else None, standings[i].p if i in standings else None)
        for i, (queries, score) in enumerate(zip(seen.queries, seen.scores, strict=True))
    )


def _margin(comparison: Comparison, tolerance: float) -> float | None:
    """The tolerance in units of the combined statistic, as ``p_value`` counts it."""
    if comparison.statistics is None:
        return None
    return tolerance * spread_of(comparison.statistics[:-1], comparison.unrelated)


def _reference_scores(bundle: QueryBundle, comparison: Comparison) -> tuple[ReferenceScore, ...]:
    if comparison.statistics is None:
        return ()
    models = bundle.manifest.of_role("reference")
    return tuple(
        ReferenceScore(model.id, model.source, float(score), model.accuracy, model.origin)
        for model, score in zip(models, comparison.statistics[:-1], strict=True)
    )


def _references(bundle: QueryBundle) -> list[Answers]:
    return [bundle.answers[model.id] for model in bundle.manifest.of_role("reference")]


def _accuracies(bundle: QueryBundle) -> tuple[float, ...]:
    """Accuracies of the references on the controls, where they are known."""
    return tuple(model.accuracy for model in bundle.manifest.of_role("reference") if model.accuracy is not None)


def _easy(bundle: QueryBundle) -> NDArray[np.bool_]:
    """Which controls the victim and most references get right, (c,)."""
    span = slice(*bundle.manifest.controls)
    right = bundle.answers["victim"].labels[span] == bundle.control_labels
    if references := _references(bundle):
        right &= np.mean(labels_of(bundle, references)[:, span] == bundle.control_labels, axis=0) >= EASY
    return np.asarray(right)


def _origins(bundle: QueryBundle) -> str:
    references = bundle.manifest.of_role("reference")
    origins = sorted({model.origin.split(":")[0] for model in references})
    return f"the {len(references)} references ({'; '.join(origins)}) are like the innocent models that could be accused"


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


def _controls(bundle: QueryBundle, answers: Answers) -> Controls:
    manifest = bundle.manifest
    start, stop = manifest.controls
    if start == stop:
        return Controls()
    span = slice(start, stop)
    easy = once(_easy, bundle) & answers.answered[span]
    matched: NDArray[np.bool_] = answers.labels[span] == bundle.control_labels
    agreement = float(matched[easy].mean()) if easy.any() else None
    confused = [
        manifest.class_names[label] if manifest.class_names else f"class {label}"
        for label in range(manifest.victim.num_classes)
        if (mine := easy & (bundle.control_labels == label)).sum() >= FEWEST_OF_CLASS and matched[mine].mean() <= CONFUSED
    ]
    return Controls(
        n=int(easy.sum()),
        agreement=agreement,
        ok=None if easy.sum() < FEWEST_EASY or agreement is None else agreement >= SANE,
        confused=", ".join(confused),
        answered=int(answers.answered[span].sum()),
        accuracy=control_accuracy(bundle, answers),
        reference_accuracy=once(_accuracies, bundle),
        victim_accuracy=manifest.victim.accuracy,
    )


def _weak(bundle: QueryBundle) -> bool:
    """Whether the references are clearly less accurate than the victim, which makes strong innocents look close to it.

    As measured when they were trained, or on the controls.
    """
    shortfall, victim, references = bundle.manifest.shortfall, bundle.manifest.victim.accuracy, once(_accuracies, bundle)
    if shortfall is not None and shortfall >= SHORTFALL / 2:
        return True
    return victim is not None and bool(references) and _quantile(references, 0.5) <= victim - SHORTFALL


def _stronger(controls: Controls) -> bool:
    """Whether the suspect is more accurate than nearly all references."""
    if controls.accuracy is None or not controls.reference_accuracy or controls.answered < FEWEST_CONTROLS:
        return False
    return controls.accuracy >= _quantile(controls.reference_accuracy, 0.95)


def _quantile(values: Sequence[float], share: float) -> float:
    """The value below which that share lies; plain, because NumPy's loads its masked arrays, a tenth of a small check."""
    return sorted(values)[round(share * (len(values) - 1))]


def _doubts(
    floor: float,
    references: int,
    alpha: float,
    comparison: Comparison,
    controls: Controls,
    answers: Answers,
    *,
    stable: bool,
    complete: bool,
) -> list[str]:
    """Everything that forbids a finding, in words."""
    found = []
    if floor > alpha + 1e-12:
        looks = round(floor * (references + 1))
        needed = int(np.ceil(looks / alpha - 1e-9)) - 1
        has = f"{references} references" if references else "no references"
        said = f" after {looks} looks" if looks > 1 else ""
        found.append(f"{has}{said}: p cannot fall below {floor:.3g}, alpha {alpha:g} needs at least {needed}")
    if comparison.statistics is None:
        found.append("no scheme could run: " + "; ".join(f"{s.name}: {s.skipped}" for s in comparison.schemes))
    if controls.ok is False:
        found.append(
            f"the suspect gets {controls.agreement:.0%} of {controls.n} easy controls right: "
            "wrong preprocessing or label order, or another task"
        )
    if controls.ok is None and controls.n is not None and not complete and controls.victim_accuracy is not None:
        found.append("the budget was spent before enough control queries were answered")
    if not comparison.adjusted and _stronger(controls):
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


def _conditions(
    bundle: QueryBundle, controls: Controls, answers: Answers, *, weak: bool, looks: int, level: float, seen: Seen | None
) -> list[str]:
    """What is assumed, and what weakens the finding, in words."""
    said = [*bundle.manifest.pool_notes, *bundle.manifest.notes]
    if once(_references, bundle):
        said.insert(0, once(_origins, bundle))
    if controls.reference_accuracy and controls.victim_accuracy is not None and controls.accuracy is not None:
        low, high = min(controls.reference_accuracy), max(controls.reference_accuracy)
        said.append(
            f"accuracy on the controls: suspect {controls.accuracy:.0%}, victim {controls.victim_accuracy:.0%}, "
            f"references {low:.0%} to {high:.0%}"
        )
        if _stronger(controls):
            said.append("the suspect is more accurate than nearly all references; scores are adjusted for it")
    if weak:
        said.append(
            "the references are weaker than the victim, so innocents may be closer to it than they are: "
            f"the tolerance is {WIDE_TOLERANCE:g} instead of {TOLERANCE:g}"
        )
    if level != bundle.manifest.alpha:
        said.append(f"alpha {level:g} was chosen with the check; the bundle was made for {bundle.manifest.alpha:g}")
    if looks > 1:
        said.append(f"answers were judged {looks} times as they came in: p is multiplied by {looks}")
    if seen is not None and seen.futile:
        said.append(
            f"asking ended after {seen.queries[-1]} queries of the schemes: {seen.standings[-1].closer} references are as close "
            "to the victim as the suspect, and more queries would hardly change that; p is given as 1"
        )
    if controls.confused:
        said.append(
            f"the suspect gets nearly all easy controls of {controls.confused} wrong: a weak model, or another label order"
        )
    if controls.ok is None and controls.n:
        said.append("too few control queries to tell a mis-wired suspect from an independent one")
    if answers.scores is None and any(scheme.representation == "correlation" for scheme in bundle.manifest.schemes):
        said.append("label-only answers: correlations are computed on smooth labels, which costs power")
    return said
