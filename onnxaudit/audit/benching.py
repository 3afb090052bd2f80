"""bench(): every scheme over a zoo. References calibrate, negatives judge; every model is asked once."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from onnxaudit import __version__
from onnxaudit.answers import Access, Answers, parse_access
from onnxaudit.audit.comparing import compare
from onnxaudit.audit.insights import Insights, look_inside
from onnxaudit.audit.judging import judge
from onnxaudit.audit.progress import Progress
from onnxaudit.bundle import QueryBundle
from onnxaudit.errors import UsageError
from onnxaudit.evidence.metrics import aruc, auc, tpr_at_fpr
from onnxaudit.interview import interview
from onnxaudit.registry import open_suspect
from onnxaudit.report.model import DERIVED, Report
from onnxaudit.suspect import SuspectCard, Target
from onnxaudit.zoo.manifest import ZooEntry

COMBINED = "combined"
ALL = "all"


@dataclass(frozen=True, slots=True, eq=False)
class Asked:
    """One suspect of the zoo with its answers. seconds: to open and ask it."""

    entry: ZooEntry
    card: SuspectCard
    answers: Answers
    seconds: float
    inside: Insights = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Row:
    """Figures of one scheme at one access level for one task (or all). derived: share with that finding; seconds: mean a suspect.

    aruc: only for matching rates. derived: only for the combined statistic, which carries the finding.
    """

    scheme: str
    access: str
    task: str
    positives: int
    negatives: int
    auc: float
    tpr_at_5: float
    aruc: float | None
    derived: float | None
    seconds: float


@dataclass(frozen=True, slots=True)
class BenchResult:
    """rows: the table; scores: every model's, for plots: (scheme, access, task, kind, file, score, finding)."""

    rows: tuple[Row, ...]
    scores: tuple[dict[str, Any], ...]
    craft_seconds: float
    facts: dict[str, Any]


def bench(
    bundle: QueryBundle, zoo: Sequence[ZooEntry], accesses: Sequence[str], craft_seconds: float, progress: Progress, device: str
) -> BenchResult:
    """Ask every positive and negative once, then score it at every access level by every scheme and by the combined statistic.

    bundle: crafted with the zoo's references. Raises UsageError if the zoo lacks a kind.
    """
    of = by_kind(zoo)
    rates = {entry.name for entry in bundle.manifest.schemes if entry.detector in ("matching-rate", "hamming")}
    asked = list(ask_zoo(bundle, [*of["positive"], *of["negative"]], device, progress))
    rows: list[Row] = []
    scores: list[dict[str, Any]] = []
    for access in accesses:
        level, k = parse_access(access)
        found = [score for item in asked for score in _scores(bundle, item, level, k, access)]
        scores += found
        rows += _rows(found, access, rates, float(np.mean([item.seconds for item in asked])))
    facts = {"bundle": bundle.id, "references": len(bundle.manifest.of_role("reference")), "tool": __version__}
    return BenchResult(tuple(rows), tuple(scores), craft_seconds, facts)


def by_kind(zoo: Sequence[ZooEntry]) -> dict[str, list[ZooEntry]]:
    """The zoo's models by kind. Raises UsageError if it lacks references, positives or negatives."""
    of = {kind: [entry for entry in zoo if entry.kind == kind] for kind in ("reference", "positive", "negative")}
    for kind, entries in of.items():
        if not entries:
            raise UsageError(f"the zoo has no {kind}s", "bench needs references to calibrate, positives and negatives to judge.")
    return of


def ask_zoo(bundle: QueryBundle, entries: Sequence[ZooEntry], device: str, progress: Progress) -> Iterator[Asked]:
    """Every model of the zoo, asked all queries once."""
    report = progress.task("asking suspects", len(entries))
    for number, entry in enumerate(entries):
        started = time.perf_counter()
        target = Target(entry.file, bundle.manifest.input, bundle.manifest.victim.num_classes, device)
        with open_suspect(target) as suspect:
            answers = interview(suspect, bundle.queries).answers
            inside = look_inside(bundle, suspect.inside)
            yield Asked(entry, suspect.card, answers, time.perf_counter() - started, inside)
        report(number + 1)


def _scores(bundle: QueryBundle, item: Asked, level: Access, k: int, access: str) -> Iterator[dict[str, Any]]:
    """One record a scheme, and one for the combined statistic with the finding."""
    answers = dataclasses.replace(item.answers.degrade(level, k), num_classes=bundle.manifest.victim.num_classes)
    references = [bundle.answers[model.id] for model in bundle.manifest.of_role("reference")]
    inside = item.inside if level >= item.answers.access else {}  # who gives labels only does not show its inside
    report: Report = judge(bundle, item.card, answers, None, inside=inside)
    base = {"access": access, "task": item.entry.task, "kind": item.entry.kind, "file": item.entry.file}
    for scheme in compare(bundle, references, answers, inside).schemes:
        if scheme.scores is not None:
            yield {**base, "scheme": scheme.name, "score": float(scheme.scores[-1]), "queries": scheme.queries, "finding": None}
    yield {**base, "scheme": COMBINED, "score": report.score, "queries": len(bundle.queries), "finding": report.finding}


def _rows(scores: Sequence[dict[str, Any]], access: str, rates: set[str], seconds: float) -> Iterator[Row]:
    tasks = list(dict.fromkeys(score["task"] for score in scores if score["kind"] == "positive"))
    for scheme in dict.fromkeys(score["scheme"] for score in scores):
        mine = [score for score in scores if score["scheme"] == scheme and score["score"] is not None]
        negatives = [score for score in mine if score["kind"] == "negative"]
        for task in [*tasks, ALL]:
            positives = [s for s in mine if s["kind"] == "positive" and task in (ALL, s["task"])]
            yield _row(scheme, access, task, positives, negatives, seconds, rate=scheme in rates)
        yield _row(scheme, access, "independent", negatives, negatives, seconds, rate=False)


def _row(
    scheme: str,
    access: str,
    task: str,
    positives: Sequence[dict[str, Any]],
    negatives: Sequence[dict[str, Any]],
    seconds: float,
    *,
    rate: bool,
) -> Row:
    high, low = [s["score"] for s in positives], [s["score"] for s in negatives]
    innocent = task == "independent"
    return Row(
        scheme,
        access,
        task,
        0 if innocent else len(positives),
        len(negatives),
        float("nan") if innocent else auc(high, low),
        float("nan") if innocent else tpr_at_fpr(high, low),
        aruc(_counts(positives), _counts(negatives)) if rate and not innocent else None,
        float(np.mean([s["finding"] == DERIVED for s in positives])) if scheme == COMBINED and positives else None,
        round(seconds, 4),
    )


def _counts(scores: Sequence[dict[str, Any]]) -> list[tuple[int, int]]:
    """Matching rates as (matched, asked)."""
    return [(round(score["score"] * score["queries"]), score["queries"]) for score in scores]
