"""check(): ask a suspect, and have what it said judged."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxaudit import __version__
from onnxaudit.answers import Answers
from onnxaudit.audit.calibrating import add_models, model_files
from onnxaudit.audit.exhibiting import exhibits_of
from onnxaudit.audit.insights import Insights, askable, insights_of, look_inside
from onnxaudit.audit.judging.comparing import Comparison
from onnxaudit.audit.judging.conditions import GIVEN
from onnxaudit.audit.judging.judging import judge, look_through, planned_order
from onnxaudit.audit.judging.looking import Schedule, asking_order
from onnxaudit.audit.label_spaces import UNKNOWN, with_references_of_any
from onnxaudit.audit.once import once
from onnxaudit.audit.progress import Progress
from onnxaudit.audit.wiring import Searched, explained, wire
from onnxaudit.bundle import QueryBundle
from onnxaudit.early import recover, refuse_leftover
from onnxaudit.errors import BudgetSpent, SuspectError, UsageError
from onnxaudit.interview import Interview, interview
from onnxaudit.registry import open_suspect
from onnxaudit.report.model import Report
from onnxaudit.sandbox.limits import Limits
from onnxaudit.sandbox.opening import Confining
from onnxaudit.suspect import Suspect, SuspectCard, Target
from onnxaudit.transcript import SCHEMA, Batch, Transcript

REPEATS = 8
"""Queries asked again after resuming."""
REPEATED = 0.01
"""Share of the queries asked twice, where any are, to see whether answers are stable."""


@dataclass(frozen=True, slots=True, eq=False)
class CheckOptions:
    """How a check is to be done. alpha None: the bundle's. repeat: so many queries at least are asked twice, to
    see whether answers are stable.

    looks: so many queries of the schemes are asked between looks at the answers; None: all at once. exhibits: single queries are
    wanted in the report. access, target: recorded in the transcript; target is a digest of all that says which suspect a URL and
    its headers mean. label_space: "unknown" where the suspect's labels are not the victim's, so that none is compared. sandbox:
    limits of the process that a suspect's runtime is confined to, and of each reference's; None: they run here. concurrency:
    requests on their way at once; None: asked in the thread that calls. autofix: find the wiring, from control queries alone.
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
    looks: tuple[int, ...] | None = None
    exhibits: bool = False
    sandbox: Limits | None = None
    label_space: str | None = None
    concurrency: int | None = None
    autofix: bool = False

    @property
    def label_free(self) -> bool:
        """Whether nothing is compared by label."""
        return self.label_space == UNKNOWN


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
    clock, own = _Clock({"open": round(opened, 4)}), bundle
    if options.references:
        bundle = _with_references_of(
            bundle, options.references, options.device, progress, label_free=options.label_free, sandbox=options.sandbox
        )
        clock.lap("references")
    before = suspect.card.input
    result, stable, inside, search = _interview(bundle, suspect, options, progress)
    clock.lap("ask")
    judged = partial(
        judge,
        card=suspect.card,
        answers=result.answers,
        alpha=options.alpha,
        stable=stable,
        looks=result.looks,
        inside=inside,
        planned=options.looks,
        label_free=options.label_free,
    )
    report = judged(bundle)
    report = dataclasses.replace(report, conditions=(*report.conditions, *result.wavering))
    if own is not bundle and own.manifest.of_role("reference"):
        report = dataclasses.replace(report, own_pool=beside(judged(own)))
    clock.lap("detect")
    queries = {"sent": result.sent, "reused": result.reused, "failed": result.failed}
    report = explained(report, bundle, result.answers, before, search)
    exhibits = exhibits_of(bundle, result.answers) if options.exhibits and not options.label_free else ()
    sealed = result.transcript_sha256
    return dataclasses.replace(report, queries=queries, seconds=clock.seconds, transcript_sha256=sealed, exhibits=exhibits)


def beside(report: Report) -> Mapping[str, Any]:
    """What the bundle's own references say, to be shown beside what others do; it decides nothing."""
    return {
        "references": report.bundle["references"],
        "finding": report.finding,
        "p_value": report.p_value,
        "p_floor": report.p_floor,
        "reasons": list(report.reasons),
    }


def _with_references_of(
    bundle: QueryBundle,
    folder: Path,
    device: str,
    progress: Progress,
    *,
    label_free: bool = False,
    sandbox: Limits | None = None,
) -> QueryBundle:
    """The bundle with its references replaced by the models in a folder: a judge's own pool. It keeps its id.

    sandbox: each of them is confined so, and notes say what was applied.
    """
    confining = Confining(sandbox) if sandbox else None
    opening = confining or open_suspect
    spec, classes, origin = bundle.manifest.input, bundle.manifest.victim.num_classes, f"{GIVEN}, in {folder}"
    if label_free:
        filled = with_references_of_any(without_references(bundle), folder, device, progress, opening)
    else:
        targets = [(Target(str(file), spec, classes, device), origin) for file in model_files(folder)]
        filled = add_models(without_references(bundle), targets, "reference", progress, strict=False, opening=opening)
    if not filled.manifest.of_role("reference"):
        raise UsageError(f"none of the models in {folder} can serve as a reference", "See the notes above; nothing was asked.")
    notes = confining.words(f"the references in {folder}") if confining else []
    manifest = dataclasses.replace(filled.manifest, pool_notes=(*filled.manifest.pool_notes, *notes))
    return dataclasses.replace(filled, manifest=manifest, id=bundle.id)


def without_references(bundle: QueryBundle) -> QueryBundle:
    """The bundle without its references and all that was said of them, for others to take their place."""
    others = tuple(m for m in bundle.manifest.models if m.role != "reference")
    manifest = dataclasses.replace(bundle.manifest, models=others, shortfall=None, pool_notes=())
    kept = {model.id for model in others}
    answers = {name: a for name, a in bundle.answers.items() if name in kept}
    insights = {name: seen for name, seen in bundle.insights.items() if name.split("/")[1] in kept}
    return dataclasses.replace(bundle, manifest=manifest, answers=answers, insights=insights)


def _interview(
    bundle: QueryBundle, suspect: Suspect, options: CheckOptions, progress: Progress
) -> tuple[Interview, bool, Insights, Searched | None]:
    """Ask, in an order fixed by the bundle where the budget may end early; then repeat some. True: the same answers
    again.

    Also what the suspect shows of its inside, if a scheme looks there, and how its wiring was found, if that is wanted. All of
    it is in the transcript before it is judged.
    """
    if _mends(options) and not bundle.manifest.labelled:
        raise UsageError(
            "--autofix needs controls whose labels are known, and this bundle's are what the victim says of them",
            "Craft it with labelled data, or say how the suspect is wired: --scale, --layout, --channel-order.",
        )
    plan = None if options.looks is None else planned_order(bundle, options.looks)
    order = _order(bundle, plan, options)
    transcript = None
    if options.evidence:
        refuse_leftover(options.evidence, resume=options.resume)
        transcript = Transcript(options.evidence, _header(bundle, suspect.card, options), resume=options.resume)
    reserve, whole = (repeat := _repeats(options, len(order))), options.budget
    try:
        if transcript:
            recover(transcript)
            repeat = max(repeat, REPEATS) if transcript.kept else repeat
            reserve = reserve if transcript.unfinished else repeat  # gone on with, it asks what it would have asked at once
            if options.budget is not None:
                options = dataclasses.replace(options, budget=max(0, options.budget - transcript.unfinished))
                suspect.spent(transcript.unfinished)
            _begin(transcript, bundle, suspect.card, options)
        report = progress.task("asking the suspect", len(order))
        budget = options.budget
        if budget is not None and budget > reserve:
            budget -= reserve  # kept for asking some twice
        wired = wire(bundle, suspect, whole, transcript, progress) if _mends(options) else None
        if wired:
            suspect = wired.suspect
            budget = wired.budget_left(budget, order, transcript)
        inside = look_inside(bundle, suspect.inside)
        if transcript:
            transcript.show(inside)
        result = interview(
            suspect,
            bundle.queries,
            order=order,
            budget=budget,
            transcript=transcript,
            progress=report,
            pauses=plan.stops if plan else (),
            enough=_enough(bundle, options, inside) if plan else None,
            concurrency=options.concurrency,
        )
        if wired:
            result = wired.settled(result)
        if options.budget is not None:
            repeat = min(repeat, max(0, options.budget - result.sent))
        result, again = _repeat(bundle, suspect, result, repeat, transcript)
        repeats = transcript.repeats if transcript else again
        stable = steady(result.answers, repeats) and (bool(again) or not result.reused)
        result = dataclasses.replace(result, wavering=wavering(result.answers, repeats))
        if transcript:
            transcript.end(result.sent, result.failed)
            result = dataclasses.replace(result, transcript_sha256=transcript.sha256)
    finally:
        if transcript:
            transcript.close()
    return result, stable, inside, wired.searched if wired else None


def _mends(options: CheckOptions) -> bool:
    """Whether the wiring is to be found: without labels that can be compared, controls cannot be right."""
    return options.autofix and not options.label_free


def _order(bundle: QueryBundle, plan: Schedule | None, options: CheckOptions) -> NDArray[np.int64]:
    if plan is not None:
        return plan.order
    return asking_order(bundle) if options.budget is not None else np.flatnonzero(once(askable, bundle))


def _repeats(options: CheckOptions, n: int) -> int:
    return max(options.repeat, math.ceil(REPEATED * n)) if options.repeat else 0


def asked_at_most(bundle: QueryBundle, options: CheckOptions) -> tuple[NDArray[np.int64], int]:
    """The rows that a check would ask, in their order, and how many of them twice; it may end sooner."""
    plan = None if options.looks is None else planned_order(bundle, options.looks)
    order = _order(bundle, plan, options)
    return order, _repeats(options, len(order))


def _enough(bundle: QueryBundle, options: CheckOptions, inside: Insights) -> Callable[[Answers], bool]:
    """Whether what was answered so far decides."""
    level, looks = options.alpha or bundle.manifest.alpha, options.looks or ()
    known: dict[int, Comparison] = {}

    def enough(answers: Answers) -> bool:
        seen = look_through(bundle, answers, level, looks, inside, known, label_free=options.label_free)
        return seen is not None and seen.decided

    return enough


def _begin(transcript: Transcript, bundle: QueryBundle, card: SuspectCard, options: CheckOptions) -> None:
    """Put into the transcript what this run judges by and the bundle does not have."""
    pool_notes = bundle.manifest.pool_notes if options.references else None
    transcript.begin({"tool": __version__, "alpha": options.alpha, "runtime": dict(card.runtime), "pool_notes": pool_notes})
    for entry in bundle.manifest.of_role("reference") if options.references else ():
        transcript.refer(entry, bundle.answers[entry.id])
        transcript.show(insights_of(bundle, entry.id), entry.id)


def _repeat(
    bundle: QueryBundle, suspect: Suspect, result: Interview, repeat: int, transcript: Transcript | None
) -> tuple[Interview, list[Batch]]:
    """Ask the first so many answered queries once more; nothing comes back where the budget does not allow it.

    Some are always repeated after resuming, to see that the suspect is still the one that gave the kept answers.
    """
    rows = np.flatnonzero(result.answers.answered)[:repeat]
    if not len(rows):
        return result, []
    again: list[Batch] = []
    asked = 0
    try:
        for answers in suspect.parts(bundle.queries[rows]):
            part = rows[asked : asked + len(answers)]
            asked += len(part)
            if transcript:
                transcript.repeat(part, answers)
            again.append((part, answers))
    except BudgetSpent:  # retries used up what was kept for this
        pass
    except SuspectError:
        if not again:
            raise
    sent = getattr(suspect, "queries_sent", result.sent + asked)
    return dataclasses.replace(result, sent=sent), again


def steady(answers: Answers, repeats: Sequence[Batch]) -> bool:
    """Whether all queries that were asked twice got the same label again, in whichever run."""
    return all(bool((again.labels == answers.labels[rows]).all()) for rows, again in repeats)


def wavering(answers: Answers, repeats: Sequence[Batch]) -> tuple[str, ...]:
    """What to say of queries that were asked twice and got other scores, in whichever run; nothing where none did."""
    asked, other, most = 0, 0, 0.0
    for rows, again in repeats:
        first = answers.take(rows)
        asked += len(rows)
        if first.scores is None or again.scores is None or first.num_classes is None or again.num_classes is None:
            continue
        apart = np.abs(first.dense() - again.dense()).max(axis=1, initial=0.0)
        other, most = other + int((apart > 0).sum()), max(most, float(apart.max(initial=0.0)))
    return (f"of {asked} queries asked twice, {other} got other scores, by up to {most:.2g}",) if other else ()


def _header(bundle: QueryBundle, card: SuspectCard, options: CheckOptions) -> dict[str, Any]:
    """What a transcript must agree on to be gone on with: whom it asked, how, and how much of the answers it kept."""
    files = {name: value for name, value in card.runtime.items() if "sha256" in name}
    return {
        "schema": SCHEMA,
        "bundle": bundle.id,
        "suspect": {"source": card.source, "sha256": card.sha256, "kind": card.kind, "files": files, "target": options.target},
        "input": dataclasses.asdict(card.input),
        "access": options.access,
        "looks": None if options.looks is None else list(options.looks),
        "label_space": options.label_space,
        **({"autofix": True} if _mends(options) else {}),
    }
