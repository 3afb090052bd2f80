"""One model of a zoo: ask it what is not known yet, score it by everything at every budget and access, and judge it.

What is sent to a worker is names of files; what comes back is numbers.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxaudit.answers import Access, Answers, parse_access
from onnxaudit.audit import gram
from onnxaudit.audit.insights import Insights, askable, insight_key, insights_of, look_inside
from onnxaudit.audit.judging import judge
from onnxaudit.audit.remembering import Digest, digests_of, memory_name, recall
from onnxaudit.bundle import QueryBundle, SchemeEntry, load
from onnxaudit.errors import ArtefactError, OnnxauditError
from onnxaudit.registry import deployed_as, open_graph, open_suspect
from onnxaudit.schemes.compositions import compositions
from onnxaudit.schemes.detectors import DETECTORS
from onnxaudit.schemes.representations import REPRESENTATIONS
from onnxaudit.suspect import InputSpec, Queries, SuspectCard, Target
from onnxaudit.zoo.manifest import ZooEntry

ENOUGH = 0.9
"""A sampler that found less than this share of a budget has no figure there."""
DIGITS = 12
"""Decimals of a score: rounding errors must not break ties."""
HELD = 512 << 20
"""Bytes of crafted queries that a worker keeps from one model to the next."""
FINDINGS = ("inconclusive", "not-shown", "derived")

Scores = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Source:
    """Crafted queries of one sampler and seed, in a bundle without references. composed: score all its compositions."""

    path: Path
    composed: bool


@dataclass(frozen=True, slots=True)
class Sweep:
    """What every worker is told. judged: a bundle a seed that the combined statistic is taken of. cache: where answers are kept.

    input, classes: the victim's.
    """

    sources: tuple[Source, ...]
    judged: tuple[Path, ...]
    budgets: tuple[int, ...]
    accesses: tuple[str, ...]
    input: InputSpec
    classes: int
    cache: Path
    device: str = "auto"


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


def measure(sweep: Sweep, entry: ZooEntry) -> Measured:
    """Open one model, ask it all that is not remembered, and score and judge it. A model that fails is a result, not an error."""
    started = time.perf_counter()
    # a model with another label set may have another number of classes
    classes = None if entry.labels else sweep.classes
    target = Target(entry.file, sweep.input, classes, sweep.device, options={"threads": 1})
    try:
        with deployed_as(open_suspect(target), entry.deployed) as suspect:
            opening = time.perf_counter() - started
            memory = recall(sweep.cache / memory_name(suspect.card))
            asked = memory.ask(suspect, _wanted(sweep))
            if asked:
                memory.save()
            insights = {path: look_inside(held(path).bundle, suspect.inside) for path in _paths(sweep)}
            card = suspect.card
    except OnnxauditError as error:
        return Measured(None, error=str(error))
    scores = []
    for source in sweep.sources:
        part = held(source.path)
        answers = _answers(part, memory.said)
        scores.append(part_scores(part.bundle, answers, insights[source.path], sweep.budgets, sweep.accesses, source.composed))
    combined, findings, judging = _judged(sweep, entry, card, memory.said, insights)
    pace = memory.seconds / memory.asked if memory.asked else 0.0
    return Measured(card, tuple(scores), combined, findings, asked, opening, pace, judging)


# ------------------------------------------------------------------------------------------------------------ crafted queries


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """A bundle with the digests of those of its queries that are worth an answer; rows: which these are."""

    bundle: QueryBundle
    rows: NDArray[np.int64]
    digests: Sequence[Digest]
    cuts: dict[int, QueryBundle] = field(default_factory=dict)


_HELD: dict[Path, Part] = {}


def held(path: Path) -> Part:
    """A crafted bundle, kept for the next model as long as there is room."""
    found = _HELD.get(path)
    if found is None:
        bundle = load(path)
        rows = np.flatnonzero(askable(bundle))
        found = Part(bundle, rows, digests_of(bundle.queries[rows]))
        if sum(part.bundle.queries.nbytes for part in _HELD.values()) > HELD:
            _HELD.clear()
        _HELD[path] = found
    return found


def forget() -> None:
    """Let go of what is kept from one model to the next: the files were replaced."""
    _HELD.clear()


def _paths(sweep: Sweep) -> list[Path]:
    return [*(source.path for source in sweep.sources), *sweep.judged]


def _wanted(sweep: Sweep) -> Iterator[tuple[Queries, Sequence[Digest]]]:
    for path in _paths(sweep):
        part = held(path)
        yield part.bundle.queries[part.rows], part.digests


def _answers(part: Part, said: Any) -> Answers:
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


# --------------------------------------------------------------------------------------------------------------------- scores


def entries_of(bundle: QueryBundle, *, composed: bool) -> list[SchemeEntry]:
    """What is scored on a sampler's queries, those of one representation together: its schemes, and all its compositions."""
    schemes = list(bundle.manifest.schemes)
    if composed:
        carrier = next(entry for entry in schemes if not DETECTORS[entry.detector].trainer)
        schemes = [entry for entry in schemes if "+" not in entry.name]
        schemes += [
            dataclasses.replace(
                carrier,
                name=scheme.name,
                representation=scheme.representation,
                detector=scheme.detector,
                representing={},
                detecting={},
            )
            for scheme in compositions()
            if scheme.sampler == carrier.sampler
        ]
    return schemes


def part_scores(
    bundle: QueryBundle, answers: Answers, insights: Insights, budgets: Sequence[int], accesses: Sequence[str], composed: bool
) -> Scores:
    """One model's scores on one sampler's queries, (schemes, budgets, accesses); NaN where a score is not defined.

    At each access both sides are cut to it, or to what the model or the victim gives, if that is less.
    """
    entries = entries_of(bundle, composed=composed)
    found = np.full((len(entries), len(budgets), len(accesses)), np.nan)
    for place, access in enumerate(accesses):
        level, k = parse_access(access)
        least = min(level, answers.access, bundle.answers["victim"].access)
        width = k if level == Access.TOPK else answers.classes.shape[1]
        pair = [side.degrade(least, width) for side in (bundle.answers["victim"], answers)]
        number = 0
        for _, group in groupby(entries, lambda entry: (entry.representation, sorted(entry.representing.items()))):
            alike = list(group)
            seen = insights if level >= answers.access else {}  # who gives less than it could does not show its inside
            found[number : number + len(alike), :, place] = _group(bundle, alike, pair, seen, budgets)
            number += len(alike)
    return np.round(found, DIGITS)


def _group(
    bundle: QueryBundle, entries: Sequence[SchemeEntry], pair: Sequence[Answers], insights: Insights, budgets: Sequence[int]
) -> Scores:
    """Scores of schemes with one representation, (schemes, budgets)."""
    found = np.full((len(entries), len(budgets)), np.nan)
    first = entries[0]
    key = insight_key(first)
    for place, count in enumerate(counts_of(first, budgets)):
        columns = {name: column[:count] for name, column in bundle.columns_of(first).items()}
        try:
            if count and key:
                found[:, place] = _inside(bundle, entries, key, insights, columns)
            elif count:
                rows = np.arange(first.rows[0], first.rows[0] + count)
                found[:, place] = _compared(bundle, entries, [side.take(rows) for side in pair], columns)
        except (ValueError, IndexError):  # another number of classes, or a parameter that these answers have nothing for
            continue
    return found


def whole(entry: SchemeEntry) -> bool:
    """Whether a scheme takes all of its queries or none: what it learned, or looks at inside, was made with these."""
    return bool(DETECTORS[entry.detector].trainer) or bool(REPRESENTATIONS[entry.representation].inside)


def counts_of(entry: SchemeEntry, budgets: Sequence[int]) -> list[int]:
    """How many of its queries a scheme uses at each budget; 0 where it has too few of them.

    One that takes all of its queries is listed once, at the smallest budget that has room for them.
    """
    count = entry.rows[1] - entry.rows[0]
    if whole(entry):
        only = next((place for place, budget in enumerate(budgets) if budget >= count), len(budgets) - 1)
        return [count if place == only else 0 for place in range(len(budgets))]
    return [min(count, budget) if count >= ENOUGH * budget else 0 for budget in budgets]


def _compared(
    bundle: QueryBundle, entries: Sequence[SchemeEntry], pair: Sequence[Answers], columns: Mapping[str, NDArray[Any]]
) -> list[float]:
    """Scores on the same rows."""
    first = entries[0]
    quick = gram.scores(first.representation, first.representing, *pair)
    if all(entry.detector in quick and not entry.detecting for entry in entries):
        return [quick[entry.detector] for entry in entries]
    found = []
    represent = REPRESENTATIONS[first.representation].function
    sides: dict[bool, list[NDArray[np.float64]]] = {}
    for entry in entries:
        detector = DETECTORS[entry.detector]
        learned = bool(detector.trainer)
        if learned not in sides:  # what learns, learned from probabilities
            cut = [side.degrade(Access.PROBS) for side in pair] if learned else pair
            sides[learned] = [represent(side, columns, **entry.representing) for side in cut]
        own, other = sides[learned]
        extra = {"graph": open_graph(bundle.graphs[entry.name])} if entry.name in bundle.graphs else {}
        found.append(detector.function(own, other, **entry.detecting, **extra) if own.size else float("nan"))
    return found


def _inside(
    bundle: QueryBundle, entries: Sequence[SchemeEntry], key: str, insights: Insights, columns: Mapping[str, NDArray[Any]]
) -> list[float]:
    own = insights_of(bundle, "victim").get(key)
    if own is None or key not in insights:
        return [float("nan")] * len(entries)
    part = REPRESENTATIONS[entries[0].representation]
    pair = [part.function(seen, columns, **entries[0].representing) for seen in (own, insights[key])]
    return [DETECTORS[entry.detector].function(*pair, **entry.detecting) for entry in entries]


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
    sweep: Sweep, entry: ZooEntry, card: SuspectCard, said: Any, insights: Mapping[Path, Insights]
) -> tuple[Scores, NDArray[np.int8], float]:
    """The combined statistic and the finding for every seed, budget and access, and the mean seconds to judge."""
    shape = (len(sweep.judged), len(sweep.budgets), len(sweep.accesses))
    scores, findings = np.full(shape, np.nan), np.zeros(shape, np.int8)
    if entry.kind == "reference":
        return scores, findings, 0.0
    started = time.perf_counter()
    for seed, path in enumerate(sweep.judged):
        part = held(path)
        answers = _answers(part, said)
        for place, budget in enumerate(sweep.budgets):
            bundle = part.cuts.get(budget) or part.cuts.setdefault(budget, cut_to(part.bundle, budget))
            for column, access in enumerate(sweep.accesses):
                level, k = parse_access(access)
                inside = insights[path] if level >= answers.access else {}
                try:
                    report = judge(bundle, card, answers.degrade(level, k), None, inside=inside)
                except (ArtefactError, ValueError, IndexError):  # a model with more classes than the victim
                    continue
                findings[seed, place, column] = FINDINGS.index(report.finding)
                scores[seed, place, column] = np.nan if report.score is None else report.score
    return scores, findings, (time.perf_counter() - started) / max(1, scores.size)
