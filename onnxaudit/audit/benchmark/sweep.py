"""bench(): every scheme over a zoo, at several budgets, accesses and seeds. References calibrate, negatives judge."""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Self

from onnxaudit.answers import Access, Answers
from onnxaudit.audit.benchmark.drawing import Crafted, combine, craft_draw
from onnxaudit.audit.benchmark.measuring import Item, Kept, Measured, Source, Sweep, measure
from onnxaudit.audit.benchmark.preparing import Prepared, check_apart, combined_names, prepare
from onnxaudit.audit.benchmark.remembering import digests_of, memory_name, recall
from onnxaudit.audit.benchmark.results import BenchResult, results
from onnxaudit.audit.calibrating import control_accuracy, refusal, with_models
from onnxaudit.audit.crafting import CraftOptions
from onnxaudit.audit.insights import Insights, insight_key, look_inside
from onnxaudit.audit.progress import Progress
from onnxaudit.bundle import ModelEntry, QueryBundle
from onnxaudit.engines import Engine, Lost, Work, open_engine
from onnxaudit.errors import UsageError
from onnxaudit.registry import open_suspect
from onnxaudit.schemes.catalogue import Scheme
from onnxaudit.schemes.samplers import Need
from onnxaudit.suspect import SuspectCard, Target
from onnxaudit.zoo.manifest import KINDS, ZooEntry

FEW = 8
"""Fewer samplers than this are run where they are: a process of their own takes seconds to start."""


@dataclass(frozen=True, slots=True)
class BenchOptions:
    """What the user asked for. chosen: None for the whole catalogue. composed: all compositions too. full: no budget is capped.

    output: where results go; crafted queries and answers are kept in ``cache``. jobs, engine, address: who asks the models.
    """

    chosen: tuple[Scheme, ...] | None
    budgets: tuple[int, ...]
    accesses: tuple[str, ...]
    seeds: int
    output: Path
    cache: Path
    composed: bool = False
    full: bool = False
    jobs: int | None = None
    engine: str = "local"
    address: str | None = None


def bench(crafting: CraftOptions, zoo: Sequence[ZooEntry], options: BenchOptions, progress: Progress) -> BenchResult:
    """Craft every sampler's queries for every seed, ask every model what it has not been asked before, and compare.

    Raises UsageError if the zoo lacks a kind, a model that helps is judged too, or a chosen scheme cannot be crafted.
    """
    # a worker may run in another folder
    options = dataclasses.replace(options, output=options.output.resolve(), cache=options.cache.resolve())
    of = by_kind([dataclasses.replace(entry, file=str(Path(entry.file).resolve())) for entry in zoo])
    crafting = dataclasses.replace(crafting, reference_files=[Path(entry.file) for entry in of["reference"]])
    suspects = [*of["positive"], *of["negative"], *of["sibling"]]
    check_apart(crafting, suspects)
    prepared = prepare(
        crafting,
        options.chosen,
        options.budgets,
        options.seeds,
        options.cache / "queries",
        progress,
        composed=options.composed,
        full=options.full,
    )
    crafted = _craft(prepared, options, progress)
    names = combined_names(options.chosen, crafting)
    bundles = [combine(prepared.crafting, prepared.draws, names, crafting.seed + place) for place in range(options.seeds)]
    sweep, drafts = _sweep(prepared, crafted, options, crafting.device), _drafts(bundles, prepared.crafting.folder)
    with _workers(measure, sweep, len(suspects), options) as workers:
        references = _ask(workers, of["reference"], drafts, progress, "asking references")
        usable = _screened(bundles[0], sweep, of["reference"], references, progress)
        helped = {str(file) for file in prepared.crafting.training}
        innocents = [place for place in usable if of["reference"][place].file not in helped]
        calibrating = innocents if _learns(bundles[0]) else usable
        ready = [_calibrated(bundle, sweep, [(of["reference"][i], references[i]) for i in calibrating]) for bundle in bundles]
        paths = [options.output / f"bundle-seed{bundle.manifest.seed}.oab" for bundle in ready]
        ready = [bundle.save(path, force=True) for bundle, path in zip(ready, paths, strict=True)]
        judged = [Kept(path, bundle.id) for bundle, path in zip(ready, paths, strict=True)]
        measured = _ask(workers, suspects, judged, progress, "asking suspects")
    models = [*suspects, *(of["reference"][place] for place in innocents)]
    return results(prepared, crafted, sweep, ready, models, [*measured, *(references[place] for place in innocents)])


def by_kind(zoo: Sequence[ZooEntry]) -> dict[str, list[ZooEntry]]:
    """The zoo's models by kind. Raises UsageError if it lacks references, positives or negatives."""
    of = {kind: [entry for entry in zoo if entry.kind == kind] for kind in KINDS}
    for kind in ("reference", "positive", "negative"):
        if not of[kind]:
            raise UsageError(f"the zoo has no {kind}s", "bench needs references to calibrate, positives and negatives to judge.")
    if any(entry.labels for entry in of["reference"]):
        raise UsageError("a reference of the zoo has another label set than the victim", "List it as a negative.")
    return of


# ------------------------------------------------------------------------------------------------------------ crafting, asking


def _craft(prepared: Prepared, options: BenchOptions, progress: Progress) -> list[Crafted]:
    """Every draw, crafted now or before. Raises UsageError for a chosen scheme that cannot be crafted."""
    on_device = prepared.device != "cpu" or len(prepared.draws) < FEW
    one = dataclasses.replace(options, engine="local", address=None, jobs=1 if on_device else options.jobs)
    with _workers(craft_draw, prepared.crafting, len(prepared.draws), one) as workers:
        made = _all(workers, prepared.draws, "crafting queries", progress)
    found: list[Crafted] = []
    for draw, result in zip(prepared.draws, made, strict=True):
        crafted = Crafted(0, 0.0, why=result.reason) if isinstance(result, Lost) else result
        if not crafted.queries and options.chosen is not None:
            raise UsageError(f"{draw.schemes[0].name}: {crafted.why}", "Leave it out, or give what it needs.")
        found.append(crafted)
    return found


def _drafts(bundles: Sequence[QueryBundle], folder: Path) -> list[Kept]:
    """The bundles, still without references, saved for the workers named by content: other runs use the folder too."""
    found = []
    with TemporaryDirectory(dir=folder) as place:
        for bundle in bundles:
            saved = bundle.save(Path(place) / "draft.oab", force=True)
            path = folder / f"combined-seed{bundle.manifest.seed}-{saved.id[:12]}.oab"
            found.append(Kept((Path(place) / "draft.oab").replace(path), saved.id))
    return found


def _sweep(prepared: Prepared, crafted: Sequence[Crafted], options: BenchOptions, device: str) -> Sweep:
    """What the workers are told."""
    folder = prepared.crafting.folder
    sources = [
        Source(Kept(folder / f"{draw.name}.oab"), draw.composed)
        for draw, result in zip(prepared.draws, crafted, strict=True)
        if result.queries
    ]
    return Sweep(
        tuple(sources),
        options.budgets,
        options.accesses,
        prepared.crafting.input,
        prepared.classes,
        options.cache / "answers",
        device,
    )


def _ask(workers: Engine, entries: Sequence[ZooEntry], bundles: Sequence[Kept], progress: Progress, words: str) -> list[Measured]:
    """Every model measured; what fails is said, and has no card."""
    found = []
    items = [Item(entry, tuple(bundles)) for entry in entries]
    for entry, result in zip(entries, _all(workers, items, words, progress), strict=True):
        measured = Measured(None, error=result.reason) if isinstance(result, Lost) else result
        if measured.card is None:
            progress.note(f"left out: {entry.name or Path(entry.file).name}: {measured.error}")
        found.append(measured)
    return found


def _workers(function: Work, shared: Any, items: int, options: BenchOptions) -> Engine:
    """An engine, or this process where one job is enough."""
    if options.engine == "local" and options.address is None and (options.jobs == 1 or items < 2):
        return _Here(function, shared)
    return open_engine(options.engine, function, shared, jobs=options.jobs, address=options.address)


def _all(workers: Engine, items: Sequence[Any], words: str, progress: Progress) -> list[Any]:
    """The results of all items, in their order."""
    report = progress.task(words, len(items))
    found: list[Any] = [None] * len(items)
    sent = done = 0
    while done < len(items):
        while sent < len(items) and sent - done < 2 * workers.slots:
            workers.submit(sent, items[sent])
            sent += 1
        place, result = workers.wait()
        found[place] = result
        done += 1
        report(done)
    return found


class _Here:
    """An engine without processes: an item is done when its result is waited for."""

    slots = 1

    def __init__(self, function: Work, shared: Any) -> None:
        self._work = partial(function, shared)
        self._waiting: deque[tuple[int, Any]] = deque()

    def submit(self, ticket: int, item: Any) -> None:
        self._waiting.append((ticket, item))

    def wait(self) -> tuple[int, Any]:
        ticket, item = self._waiting.popleft()
        return ticket, self._work(item)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._waiting.clear()


# ----------------------------------------------------------------------------------------------------------------- calibrating


def _learns(bundle: QueryBundle) -> bool:
    """Whether a scheme of the bundle was made with the help of references."""
    return any(Need.REFERENCES in _needs(entry.sampler, entry.sampling, entry.detector) for entry in bundle.manifest.schemes)


def _needs(sampler: str, sampling: Mapping[str, Any], detector: str) -> Need:
    return Scheme("", "", sampler, "", detector, sampling).needs


def _known(bundle: QueryBundle, sweep: Sweep, measured: Measured) -> Answers:
    """What a measured model answered to a bundle, as the bundle keeps it."""
    assert measured.card is not None
    memory = recall(sweep.cache / memory_name(measured.card))
    answers = memory.said(digests_of(bundle.queries))
    if answers.access == Access.TOPK:
        answers = answers.degrade(Access.LABEL)
    return dataclasses.replace(answers, num_classes=bundle.manifest.victim.num_classes)


def _entry(bundle: QueryBundle, card: SuspectCard, answers: Answers, name: str) -> ModelEntry:
    classes = bundle.manifest.victim.num_classes
    accuracy = control_accuracy(bundle, answers)
    return ModelEntry(
        name,
        "reference",
        Path(card.source).name,
        card.sha256,
        card.kind,
        answers.access.word,
        classes,
        accuracy,
        "reference of the zoo",
    )


def _screened(
    bundle: QueryBundle, sweep: Sweep, entries: Sequence[ZooEntry], measured: Sequence[Measured], progress: Progress
) -> list[int]:
    """Places of the references that can serve as such, as craft would take them: no copies of the victim or of each other."""
    asked = {place: _known(bundle, sweep, item) for place, item in enumerate(measured) if item.card is not None}
    taken: list[int] = []
    for place, answers in asked.items():
        card = measured[place].card
        assert card is not None
        entry = _entry(bundle, card, answers, f"reference-{len(taken):03d}")
        reason = refusal(bundle, entry, answers, [other for number, other in asked.items() if number != place])
        if reason is not None:
            progress.note(f"left out: {entries[place].file} {reason}")
            continue
        bundle = with_models(bundle, [(entry, answers, {})])
        taken.append(place)
    return taken


def _calibrated(bundle: QueryBundle, sweep: Sweep, references: Sequence[tuple[ZooEntry, Measured]]) -> QueryBundle:
    """The bundle with the references in it."""
    found = []
    for place, (entry, measured) in enumerate(references):
        assert measured.card is not None
        answers = _known(bundle, sweep, measured)
        insights: Insights = {}
        if any(map(insight_key, bundle.manifest.schemes)):
            with open_suspect(Target(entry.file, sweep.input, sweep.classes, sweep.device)) as model:
                insights = look_inside(bundle, model.inside)
        found.append((_entry(bundle, measured.card, answers, f"reference-{place:03d}"), answers, insights))
    return with_models(bundle, found)
