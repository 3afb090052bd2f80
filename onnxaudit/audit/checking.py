"""check(): ask a suspect, and have what it said judged."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxaudit import __version__
from onnxaudit.answers import Answers
from onnxaudit.audit.calibrating import add_models, model_files
from onnxaudit.audit.concluding import Heard, conclude
from onnxaudit.audit.exhibiting import exhibits_of
from onnxaudit.audit.insights import Insights, askable, insights_of, look_inside
from onnxaudit.audit.judging.case import terms_of
from onnxaudit.audit.judging.comparing import Comparison
from onnxaudit.audit.judging.conditions import GIVEN
from onnxaudit.audit.judging.judging import look_through, planned_order
from onnxaudit.audit.judging.looking import Schedule, asking_order
from onnxaudit.audit.label_spaces import with_references_of_any
from onnxaudit.audit.once import once
from onnxaudit.audit.progress import Progress
from onnxaudit.audit.repeating import Repeats, check_repeats, repeatable
from onnxaudit.audit.wiring import wire
from onnxaudit.bundle import QueryBundle
from onnxaudit.early import recover, refuse_leftover
from onnxaudit.errors import UsageError
from onnxaudit.interview import Interview, assemble, interview
from onnxaudit.registry import open_suspect
from onnxaudit.report.model import Report
from onnxaudit.sandbox.limits import Limits
from onnxaudit.sandbox.opening import Confining
from onnxaudit.suspect import Suspect, SuspectCard, Target
from onnxaudit.transcript import CHECK, SCHEMA, Transcript, Wording

UNKNOWN = "unknown"
"""What ``--label-space`` says of a suspect whose labels are not the victim's, or private."""
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
    wording: what a user of the command may do about the transcript.
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
    wording: Wording = CHECK

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
    _say_what_cannot_be_found(bundle, options, progress)
    result, heard = _interview(bundle, suspect, options, progress)
    clock.lap("ask")
    report = conclude(bundle, own, suspect.card, heard, alpha=options.alpha, planned=options.looks, label_free=options.label_free)
    clock.lap("detect")
    queries = {"sent": result.sent, "reused": result.reused, "failed": result.failed}
    exhibits = exhibits_of(bundle, heard.trusted) if options.exhibits and not options.label_free else ()
    sealed = result.transcript_sha256
    return dataclasses.replace(report, queries=queries, seconds=clock.seconds, transcript_sha256=sealed, exhibits=exhibits)


def _say_what_cannot_be_found(bundle: QueryBundle, options: CheckOptions, progress: Progress) -> None:
    """Before anything is paid for."""
    level, floor = options.alpha or bundle.manifest.alpha, terms_of(bundle, label_free=options.label_free).floor
    if floor > level + 1e-12:
        progress.note(f"p cannot fall below {floor:.3g}, alpha is {level:g}: whatever is answered, the finding is inconclusive")


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


def _interview(bundle: QueryBundle, suspect: Suspect, options: CheckOptions, progress: Progress) -> tuple[Interview, Heard]:
    """What was asked, and all that was heard: in the transcript, if one is kept, before it is judged."""
    if _mends(options) and not bundle.manifest.labelled:
        raise UsageError(
            "--autofix needs controls whose labels are known, and this bundle's are what the victim says of them",
            "Craft it with labelled data, or say how the suspect is wired: --scale, --layout, --channel-order.",
        )
    if options.evidence is None:
        return _ask(bundle, suspect, options, None, progress)
    refuse_leftover(options.evidence, options.wording)
    header = _header(bundle, suspect.card, options)
    with closing(Transcript(options.evidence, header, resume=options.resume, wording=options.wording)) as transcript:
        return _ask(bundle, suspect, options, transcript, progress)


def _ask(
    bundle: QueryBundle, suspect: Suspect, options: CheckOptions, transcript: Transcript | None, progress: Progress
) -> tuple[Interview, Heard]:
    """Ask, in an order fixed by the bundle where the budget may end early; and some of it again.

    Also what the suspect shows of its inside, if a scheme looks there, and how its wiring was found, if that is wanted.
    """
    plan = None if options.looks is None else planned_order(bundle, options.looks)
    order, before = _order(bundle, plan, options), suspect.card.input
    if transcript:
        recover(transcript)
        if transcript.repeats:
            check_repeats(transcript.repeats, assemble(transcript.kept, len(bundle.queries)), transcript.path.name)
    means = _means(options, len(order), transcript, progress)
    if transcript:
        suspect.spent(means.gone)
        _begin(transcript, bundle, suspect.card, options)
        suspect.tell_lost(transcript.lose)
    report = progress.task("asking the suspect", len(order))
    wired = wire(bundle, suspect, options.budget, transcript, progress) if _mends(options) else None
    first = means.first
    if wired:
        suspect, first = wired.suspect, wired.budget_left(first, order, transcript)
    inside = look_inside(bundle, suspect.inside)
    if transcript:
        transcript.show(inside)
    again = Repeats(bundle.queries, suspect, means.repeat, means.reserve, means.budget, transcript)
    result = interview(
        suspect,
        bundle.queries,
        order=order,
        budget=first,
        transcript=transcript,
        progress=report,
        pauses=plan.stops if plan else (),
        enough=_enough(bundle, options, inside, again) if plan else None,
        concurrency=options.concurrency,
    )
    result = again.counted(wired.settled(result) if wired else result)
    if transcript:
        transcript.end(result.sent, result.failed)
        result = dataclasses.replace(result, transcript_sha256=transcript.sha256)
    fresh = int(result.answers.answered.sum()) - result.reused
    heard = Heard(
        result.answers,
        tuple(again.batches),
        again.refused,
        again.asked > 0 or (transcript is not None and transcript.vouched and fresh == 0),
        result.reused,
        result.looks,
        inside,
        (before, wired.searched if wired else None),
        len({_pool(bundle, options), *(transcript.pools if transcript else ())}),
    )
    return result, heard


def _pool(bundle: QueryBundle, options: CheckOptions) -> frozenset[str]:
    """As ``Run.pool`` says it."""
    return frozenset(str(model.sha256) for model in bundle.manifest.of_role("reference") if options.references)


@dataclass(frozen=True, slots=True)
class _Means:
    """What a run may spend. budget: queries it may send in all, None: any number; gone: those that earlier runs sent of it.

    repeat: so many are asked a second time, and ``reserve`` of them before all others were asked. first: so many others.
    """

    budget: int | None
    gone: int
    repeat: int
    reserve: int
    first: int | None


def _means(options: CheckOptions, n: int, transcript: Transcript | None, progress: Progress) -> _Means:
    """What a run may spend of n queries: all that the runs before it on the same transcript left of the budget.

    Gone on with after a kill it asks what it would have asked at once. After its end, answers to further queries are worth
    nothing without repeats that tell whether it is still the same suspect: where no more than those is left, nothing is asked.
    """
    reserve = repeat = _repeats(options, n)
    spent, budget = transcript.spent if transcript else 0, options.budget
    if transcript:
        repeat = max(repeat, REPEATS) if transcript.kept else repeat
        reserve = repeat if transcript.ended_once else reserve
        reserve = max(min(1, reserve), reserve - transcript.repeated)
    if budget is None:
        return _Means(None, 0, repeat, reserve, None)
    left = max(0, budget - spent)
    if transcript and transcript.ended and left <= reserve:
        runs = f"all runs of {transcript.path.name}, which sent {spent} queries"
        progress.note(f"--budget {budget} counts {runs}: none is sent now; with more, at least {spent + reserve + 1}, it asks on")
        left = 0
    first = max(0, left - reserve) if left > reserve or spent else left
    return _Means(left, budget - left, repeat, reserve, first)


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


def _enough(bundle: QueryBundle, options: CheckOptions, inside: Insights, again: Repeats) -> Callable[[Answers], bool]:
    """Whether what was answered so far decides, and also what of it came the same way again."""
    level, looks = options.alpha or bundle.manifest.alpha, options.looks or ()
    known: dict[int, Comparison] = {}

    def decided(answers: Answers, known: dict[int, Comparison]) -> bool:
        seen = look_through(bundle, answers, level, looks, inside, known, label_free=options.label_free)
        return seen is not None and seen.decided

    def enough(answers: Answers) -> bool:
        if not decided(answers, known):
            return False
        again.ask(answers)
        trusted = repeatable(answers, again.batches)
        return trusted is answers or decided(trusted, {})

    return enough


def _begin(transcript: Transcript, bundle: QueryBundle, card: SuspectCard, options: CheckOptions) -> None:
    """Put into the transcript what this run judges by and the bundle does not have."""
    pool_notes = bundle.manifest.pool_notes if options.references else None
    transcript.begin({"tool": __version__, "alpha": options.alpha, "runtime": dict(card.runtime), "pool_notes": pool_notes})
    for entry in bundle.manifest.of_role("reference") if options.references else ():
        transcript.refer(entry, bundle.answers[entry.id])
        transcript.show(insights_of(bundle, entry.id), entry.id)


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
