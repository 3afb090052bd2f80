"""One model of a zoo: ask it what is not known yet, score it by everything at every budget and access, and judge it.

What is sent to a worker is names of files; what comes back is numbers.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from onnxaudit.answers import Answers, parse_access
from onnxaudit.audit.benchmark.remembering import Digest, digests_of, memory_name, recall
from onnxaudit.audit.benchmark.scoring import Scores, entries_of, part_scores, whole
from onnxaudit.audit.insights import Insights, askable, look_inside
from onnxaudit.audit.judging.judging import judge
from onnxaudit.bundle import QueryBundle, SchemeEntry, load
from onnxaudit.errors import ArtefactError, OnnxauditError
from onnxaudit.registry import deployed_as, open_suspect
from onnxaudit.suspect import InputSpec, Queries, SuspectCard, Target
from onnxaudit.zoo.manifest import ZooEntry

HELD = 512 << 20
"""Bytes of crafted queries that a worker keeps from one model to the next."""
Said: TypeAlias = Callable[[Sequence[Digest]], Answers]
"""What a model answered, by the digests of queries."""
FINDINGS = ("inconclusive", "not-shown", "derived")


@dataclass(frozen=True, slots=True)
class Kept:
    """A bundle in a file. id: its bundle's, as a worker may outlive what was in the file; "" where the name says it all."""

    path: Path
    id: str = ""


@dataclass(frozen=True, slots=True)
class Source:
    """Crafted queries of one sampler and seed, in a bundle without references. composed: score all its compositions."""

    kept: Kept
    composed: bool


@dataclass(frozen=True, slots=True)
class Sweep:
    """What every worker is told. cache: where answers are kept. input, classes: the victim's."""

    sources: tuple[Source, ...]
    budgets: tuple[int, ...]
    accesses: tuple[str, ...]
    input: InputSpec
    classes: int
    cache: Path
    device: str = "auto"


@dataclass(frozen=True, slots=True)
class Item:
    """One model to measure. bundles: one a seed that the combined statistic is taken of; a reference is only asked by them."""

    entry: ZooEntry
    bundles: tuple[Kept, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Measured:
    """What became of one model. scores: one array a source, (schemes, budgets, accesses), NaN where not defined.

    combined: (seeds, budgets, accesses); findings: the same, places in ``FINDINGS``. card: None where it failed, and ``error``
    says why. asked: queries that were not known. opening: seconds to open it; a_query: seconds to ask one; checking: seconds to
    judge it, a mean.
    """

    card: SuspectCard | None
    scores: tuple[Scores, ...] = ()
    combined: Scores = field(default_factory=lambda: np.zeros((0, 0, 0)))
    findings: NDArray[np.int8] = field(default_factory=lambda: np.zeros((0, 0, 0), np.int8))
    asked: int = 0
    opening: float = 0.0
    a_query: float = 0.0
    judging: float = 0.0
    error: str = ""


def measure(sweep: Sweep, item: Item) -> Measured:
    """Open one model, ask it all that is not remembered, and score and judge it. A model that fails is a result, not an error."""
    started, entry = time.perf_counter(), item.entry
    bundles = [*(source.kept for source in sweep.sources), *item.bundles]
    # a model with another label set may have another number of classes
    classes = None if entry.labels else sweep.classes
    target = Target(entry.file, sweep.input, classes, sweep.device, options={"threads": 1})
    try:
        with deployed_as(open_suspect(target), entry.deployed) as suspect:
            opening = time.perf_counter() - started
            memory = recall(sweep.cache / memory_name(suspect.card))
            before = memory.asked
            try:
                memory.ask(suspect, map(_wanted, bundles))
            finally:
                if memory.asked > before:
                    memory.save()
            insights = {kept: look_inside(held(kept).bundle, suspect.inside) for kept in bundles}
            card = suspect.card
    except OnnxauditError as error:
        return Measured(None, error=str(error))
    scores = []
    for source in sweep.sources:
        part = held(source.kept)
        answers = _answers(part, memory.said)
        entries = part.entries(composed=source.composed)
        scores.append(part_scores(part.bundle, entries, answers, insights[source.kept], sweep.budgets, sweep.accesses))
    combined, findings, judging = _judged(sweep, item, card, memory.said, insights)
    pace = memory.seconds / memory.asked if memory.asked else 0.0
    asked = memory.asked - before
    return Measured(card, tuple(scores), combined, findings, asked, opening, pace, judging)


# ------------------------------------------------------------------------------------------------------------ crafted queries


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """A bundle with the digests of those of its queries that are worth an answer; rows: which these are."""

    bundle: QueryBundle
    rows: NDArray[np.int64]
    digests: Sequence[Digest]
    cuts: dict[int, QueryBundle] = field(default_factory=dict)
    listed: dict[bool, list[SchemeEntry]] = field(default_factory=dict)

    def entries(self, *, composed: bool) -> list[SchemeEntry]:
        """``entries_of``, worked out once."""
        return self.listed.get(composed) or self.listed.setdefault(composed, entries_of(self.bundle, composed=composed))

    def cut(self, budget: int) -> QueryBundle:
        """``cut_to``, made once, so that what is worked out of a bundle's references is worked out once."""
        return self.cuts.get(budget) or self.cuts.setdefault(budget, cut_to(self.bundle, budget))


_HELD: dict[Kept, Part] = {}


def held(kept: Kept) -> Part:
    """A crafted bundle, kept for the next model as long as there is room. Raises ArtefactError if its file holds another now."""
    found = _HELD.get(kept)
    if found is None:
        bundle = load(kept.path)
        if kept.id not in ("", bundle.id):
            raise ArtefactError(f"{kept.path.name} was replaced while it was used", "Give every run an output of its own.")
        rows = np.flatnonzero(askable(bundle))
        found = Part(bundle, rows, digests_of(bundle.queries[rows]))
        if sum(part.bundle.queries.nbytes for part in _HELD.values()) > HELD:
            _HELD.clear()
        _HELD[kept] = found
    return found


def _wanted(kept: Kept) -> tuple[Queries, Sequence[Digest]]:
    part = held(kept)
    return part.bundle.queries[part.rows], part.digests


def _answers(part: Part, said: Said) -> Answers:
    """The model's answers to all rows of a bundle; -1 for those that only serve to look inside."""
    known: Answers = said(part.digests)
    n = len(part.bundle.queries)
    if len(part.rows) == n:
        return known
    classes = np.full((n, known.classes.shape[1]), -1, np.int32)
    classes[part.rows] = known.classes
    if known.scores is None:
        return Answers(classes, None, known.access, known.num_classes)
    scores = np.full(classes.shape, np.nan, np.float32)
    scores[part.rows] = known.scores
    return Answers(classes, scores, known.access, known.num_classes)


# ------------------------------------------------------------------------------------------------------------------- findings


def cut_to(bundle: QueryBundle, budget: int) -> QueryBundle:
    """The bundle as if no scheme had more than ``budget`` queries; the rows that nothing asks for stay, unused."""
    schemes, columns = [], dict(bundle.columns)
    for entry in bundle.manifest.schemes:
        start, stop = entry.rows
        short = entry if whole(entry) else dataclasses.replace(entry, rows=(start, min(stop, start + budget)))
        for name in entry.columns:
            columns[short.column(name)] = bundle.columns[entry.column(name)][: short.rows[1] - start]
        schemes.append(short)
    return dataclasses.replace(bundle, manifest=dataclasses.replace(bundle.manifest, schemes=tuple(schemes)), columns=columns)


def _judged(
    sweep: Sweep, item: Item, card: SuspectCard, said: Said, insights: Mapping[Kept, Insights]
) -> tuple[Scores, NDArray[np.int8], float]:
    """The combined statistic and the finding for every seed, budget and access, and the mean seconds to judge."""
    shape = (len(item.bundles), len(sweep.budgets), len(sweep.accesses))
    scores, findings = np.full(shape, np.nan), np.zeros(shape, np.int8)
    if item.entry.kind == "reference":
        return scores, findings, 0.0
    started = time.perf_counter()
    for seed, kept in enumerate(item.bundles):
        part = held(kept)
        answers = _answers(part, said)
        for place, budget in enumerate(sweep.budgets):
            bundle = part.cut(budget)
            for column, access in enumerate(sweep.accesses):
                level, k = parse_access(access)
                inside = insights[kept] if level >= answers.access else {}
                try:
                    report = judge(bundle, card, answers.degrade(level, k), None, inside=inside)
                except (ArtefactError, ValueError, IndexError):  # a model with more classes than the victim
                    continue
                findings[seed, place, column] = FINDINGS.index(report.finding)
                scores[seed, place, column] = np.nan if report.score is None else report.score
    return scores, findings, (time.perf_counter() - started) / max(1, scores.size)
