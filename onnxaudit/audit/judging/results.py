"""What a report says beside its finding: of the suspect, the references, each scheme, the line-up and the looks."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from typing import Any

from onnxaudit.answers import Answers
from onnxaudit.audit.judging.case import Case
from onnxaudit.audit.judging.comparing import ALIKE, lined_up_in
from onnxaudit.audit.judging.looking import Seen
from onnxaudit.audit.once import once
from onnxaudit.bundle import QueryBundle
from onnxaudit.evidence.calibration import p_value, spread_of
from onnxaudit.evidence.multiple import holm
from onnxaudit.evidence.siblings import e_value, line_up_p, typical
from onnxaudit.report.model import LineUp, Look, ReferenceScore, SchemeResult
from onnxaudit.suspect import SuspectCard


def bundle_facts(bundle: QueryBundle) -> Mapping[str, Any]:
    """Which bundle was asked, and what calibrated."""
    manifest = bundle.manifest
    return {
        "id": bundle.id,
        "victim_sha256": manifest.victim.sha256,
        "references": len(manifest.of_role("reference")),
        "pool_sha256": once(_pool_digest, bundle),
    }


def _pool_digest(bundle: QueryBundle) -> str:
    """One digest of the references that calibrated: the bundle's own, or those given with the check."""
    names = sorted(f"{model.source} {model.sha256}" for model in bundle.manifest.of_role("reference"))
    return hashlib.sha256("\n".join(names).encode()).hexdigest()


def suspect_facts(card: SuspectCard, answers: Answers) -> Mapping[str, Any]:
    """Who was asked, and how it answered."""
    return {
        "source": card.source,
        "kind": card.kind,
        "access": answers.access.word,
        "sha256": card.sha256,
        "runtime": dict(card.runtime),
        "input": dataclasses.asdict(card.input),
    }


def reference_scores(case: Case) -> tuple[ReferenceScore, ...]:
    """The combined statistic of each reference."""
    if case.comparison.statistics is None:
        return ()
    models = case.bundle.manifest.of_role("reference")
    return tuple(
        ReferenceScore(model.id, model.source, float(score), model.accuracy, model.origin)
        for model, score in zip(models, case.comparison.statistics[:-1], strict=True)
    )


def scheme_results(case: Case) -> tuple[SchemeResult, ...]:
    """Each scheme's own score and p-value, and that with Holm's correction; or why it did not run."""
    ran = [scheme for scheme in case.comparison.schemes if scheme.standardised is not None]
    calibrated = bool(case.terms.references)
    p_values = [p_value(s.standardised, case.terms.tolerance) for s in ran if s.standardised is not None] if calibrated else []
    adjusted = dict(zip((s.name for s in ran), zip(p_values, holm(p_values), strict=True), strict=True)) if calibrated else {}
    results = []
    for scheme in case.comparison.schemes:
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
                float(others.mean()) if calibrated else None,
                float(others.max()) if calibrated else None,
            )
        )
    return tuple(results)


def line_up_of(case: Case) -> LineUp | None:
    """What is reported of the line-up.

    Its p and e are 1 where they would not hold: when a look ended asking because the victim was close, on queries that were made
    from the victim, and without labels.
    """
    schemes, seen = case.comparison.schemes, case.seen
    found = (schemes[0], None) if case.label_free else lined_up_in(case.bundle, schemes)
    if found is None or (lined_up := found[0].line_up) is None:
        return None
    whole = seen is None or (bool(seen.standings) and seen.standings[-1].p is not None and seen.final)
    holds = whole and found[1] is not None and found[1].sampler in ALIKE
    return LineUp(
        lined_up.victim,
        lined_up.siblings,
        line_up_p(lined_up.victim, lined_up.siblings) if holds else 1.0,
        e_value(lined_up.victim, lined_up.siblings) if holds else 1.0,
        case.bundle.manifest.drawn is not None,
        typical(lined_up.centrality),
        1.0 if case.comparison.twins is None else p_value(case.comparison.twins),
    )


def looks_of(seen: Seen | None) -> tuple[Look, ...]:
    """What each planned look showed."""
    if seen is None:
        return ()
    standings = dict(zip(seen.judged, seen.standings, strict=False))
    return tuple(
        Look(queries, score, standings[i].closer if i in standings else None, seen.p if i == len(seen.queries) - 1 else None)
        for i, (queries, score) in enumerate(zip(seen.queries, seen.scores, strict=True))
    )


def margin_of(case: Case) -> float | None:
    """The tolerance in units of the combined statistic, as ``p_value`` counts it."""
    if case.comparison.statistics is None:
        return None
    return case.terms.tolerance * spread_of(case.comparison.statistics[:-1], case.comparison.unrelated)
