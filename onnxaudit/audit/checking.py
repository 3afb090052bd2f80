"""check(): ask a suspect, and have what it said judged."""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxaudit.audit.calibrating import add_models, model_files
from onnxaudit.audit.insights import Insights, askable, look_inside
from onnxaudit.audit.judging import judge
from onnxaudit.audit.once import once
from onnxaudit.audit.progress import Progress
from onnxaudit.bundle import QueryBundle
from onnxaudit.errors import BudgetSpent, UsageError
from onnxaudit.interview import Interview, interview
from onnxaudit.report.model import Report
from onnxaudit.suspect import Suspect, SuspectCard, Target
from onnxaudit.transcript import Transcript

TOGETHER = {"pair", "group", "view"}
"""Columns whose equal neighbours are worth little when asked alone."""
REPEATS = 8
"""Queries asked again after resuming."""


@dataclass(frozen=True, slots=True, eq=False)
class CheckOptions:
    """How a check is to be done. alpha None: the bundle's. repeat: queries asked twice, to see whether answers are stable.

    access, target: recorded in the transcript; target is a digest of all that says which suspect a URL and its headers mean.
    """

    alpha: float | None = None
    references: Path | None = None
    budget: int | None = None
    evidence: Path | None = None
    resume: bool = False
    repeat: int = 0
    device: str = "auto"
    access: str | None = None
    target: str | None = None


@dataclass(slots=True)
class _Clock:
    """Seconds by step."""

    seconds: dict[str, float] = field(default_factory=dict)
    last: float = field(default_factory=time.perf_counter)

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.seconds[name] = round(now - self.last, 4)
        self.last = now


def check(bundle: QueryBundle, suspect: Suspect, options: CheckOptions, progress: Progress, opened: float = 0.0) -> Report:
    """Ask the suspect the bundle's queries and report. opened: seconds it took to open, for the report.

    Whatever the suspect raises passes through; a transcript then holds the answers so far.
    """
    clock = _Clock({"open": round(opened, 4)})
    if options.references:
        bundle = _with_references_of(bundle, options.references, options.device, progress)
        clock.lap("references")
    result, stable, inside = _interview(bundle, suspect, options, progress)
    clock.lap("ask")
    report = judge(bundle, suspect.card, result.answers, options.alpha, stable=stable, looks=result.looks, inside=inside)
    clock.lap("detect")
    queries = {"sent": result.sent, "reused": result.reused, "failed": result.failed}
    return dataclasses.replace(report, queries=queries, seconds=clock.seconds, transcript_sha256=result.transcript_sha256)


def _with_references_of(bundle: QueryBundle, folder: Path, device: str, progress: Progress) -> QueryBundle:
    """The bundle with its references replaced by the models in a folder: a judge's own pool. It keeps its id."""
    others = tuple(m for m in bundle.manifest.models if m.role != "reference")
    manifest = dataclasses.replace(bundle.manifest, models=others, shortfall=None, pool_notes=())
    kept = {model.id for model in others}
    answers = {name: a for name, a in bundle.answers.items() if name in kept}
    insights = {name: seen for name, seen in bundle.insights.items() if name.split("/")[1] in kept}
    spec, classes = manifest.input, manifest.victim.num_classes
    targets = [(Target(str(file), spec, classes, device), f"given with the check, in {folder}") for file in model_files(folder)]
    emptied = dataclasses.replace(bundle, manifest=manifest, answers=answers, insights=insights)
    filled = add_models(emptied, targets, "reference", progress, strict=False)
    if not filled.manifest.of_role("reference"):
        raise UsageError(f"none of the models in {folder} can serve as a reference", "See the notes above; nothing was asked.")
    return dataclasses.replace(filled, id=bundle.id)


def _interview(
    bundle: QueryBundle, suspect: Suspect, options: CheckOptions, progress: Progress
) -> tuple[Interview, bool, Insights]:
    """Ask, in an order fixed by the bundle where the budget may end early; then repeat some. True: the same answers again.

    Also what the suspect shows of its inside, if a scheme looks there.

    Some are always repeated after resuming, to see that the suspect is still the one that gave the kept answers.
    """
    order = asking_order(bundle) if options.budget is not None else np.flatnonzero(once(askable, bundle))
    transcript = None
    if options.evidence:
        transcript = Transcript(options.evidence, _header(bundle, suspect.card, options), resume=options.resume)
    repeat = max(options.repeat, REPEATS) if transcript and transcript.kept else options.repeat
    try:
        report = progress.task("asking the suspect", len(order))
        budget = options.budget
        if budget is not None and budget > repeat:
            budget -= repeat  # kept for asking some twice
        result = interview(suspect, bundle.queries, order=order, budget=budget, transcript=transcript, progress=report)
        inside = look_inside(bundle, suspect.inside)
        if transcript and inside:
            transcript.show(inside)
            result = dataclasses.replace(result, transcript_sha256=transcript.sha256)
    finally:
        if transcript:
            transcript.close()
    if options.budget is not None:
        repeat = min(repeat, max(0, options.budget - result.sent))
    rows = np.flatnonzero(result.answers.answered)[:repeat]
    if not len(rows):
        return result, not result.reused, inside
    try:
        again = suspect.ask(bundle.queries[rows])
    except BudgetSpent:  # retries used up what was kept for this
        return result, not result.reused, inside
    sent = getattr(suspect, "queries_sent", result.sent + len(rows))
    return dataclasses.replace(result, sent=sent), bool((again.labels == result.answers.labels[rows]).all()), inside


def asking_order(bundle: QueryBundle) -> NDArray[np.int64]:
    """All rows worth asking in a random order fixed by the bundle; pairs, groups and views of one scheme stay together."""
    unit = np.arange(len(bundle.queries))
    for entry in bundle.manifest.schemes:
        start, stop = entry.rows
        for name in TOGETHER & set(entry.columns):
            values = bundle.columns[entry.column(name)]
            first = np.flatnonzero(np.r_[True, values[1:] != values[:-1]])
            unit[start:stop] = start + np.repeat(first, np.diff(np.r_[first, stop - start]))
    place = np.random.default_rng(bundle.manifest.seed).permutation(len(unit))
    order = np.argsort(place[unit], kind="stable")
    return order[askable(bundle)[order]]


def _header(bundle: QueryBundle, card: SuspectCard, options: CheckOptions) -> dict[str, Any]:
    """What a transcript must agree on to be gone on with: whom it asked, how, and how much of the answers it kept."""
    files = {name: value for name, value in card.runtime.items() if "sha256" in name}
    return {
        "schema": "onnxaudit.transcript/1",
        "bundle": bundle.id,
        "suspect": {"source": card.source, "sha256": card.sha256, "kind": card.kind, "files": files, "target": options.target},
        "input": dataclasses.asdict(card.input),
        "access": options.access,
    }
