"""The QuRD grid: every valid composition of queries, representation and detector, over shared queries and recorded answers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np

from onnxaudit.answers import Access, Answers
from onnxaudit.audit.benching import ask_zoo, by_kind
from onnxaudit.audit.progress import Progress
from onnxaudit.bundle import QueryBundle, SchemeEntry
from onnxaudit.errors import UsageError
from onnxaudit.evidence.metrics import auc, tpr_at_fpr
from onnxaudit.schemes.catalogue import Scheme
from onnxaudit.schemes.compositions import compositions
from onnxaudit.schemes.detectors import DETECTORS
from onnxaudit.schemes.representations import REPRESENTATIONS
from onnxaudit.schemes.samplers import SAMPLERS, Need
from onnxaudit.zoo.manifest import ZooEntry

ENOUGH = 0.9
"""A sampler that found less than this share of a budget has no figure there."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One composition at one budget of queries. by_task: its TPR@5% for each way of deriving. None: not defined there."""

    scheme: str
    budget: int
    queries: int
    auc: float | None
    tpr_at_5: float | None
    by_task: Mapping[str, float]


@dataclass(frozen=True, slots=True, eq=False)
class _Known:
    """A model whose origin is known, with its answers. task: "" for an independent one."""

    task: str
    answers: Answers


def carriers(*, available: Need) -> list[Scheme]:
    """For every sampler that what is available allows, its first composition that learns nothing: it brings the queries."""
    found = groupby(compositions(), lambda scheme: scheme.sampler)
    return [next(schemes) for sampler, schemes in found if SAMPLERS[sampler].needs in available]


def grid(
    bundle: QueryBundle,
    zoo: Sequence[ZooEntry],
    budgets: Sequence[int],
    access: tuple[Access, int],
    progress: Progress,
    device: str,
) -> list[Cell]:
    """Every composition of the bundle's samplers at every budget, on one interview of every model.

    Thresholds come from the zoo's negatives and references, which are independent alike; nothing is calibrated here. Compositions
    that learn are left out: each would have to be trained. Raises UsageError if the zoo lacks a kind of model.
    """
    of = by_kind(zoo)
    level, k = access
    asked = ask_zoo(bundle, [*of["positive"], *of["negative"]], device, progress)
    models = [_Known(item.entry.task if item.entry.kind == "positive" else "", item.answers) for item in asked]
    models += [_Known("", bundle.answers[model.id]) for model in bundle.manifest.of_role("reference")]
    least = min(level, *(model.answers.access for model in models), bundle.answers["victim"].access)
    cut = [_Known(model.task, model.answers.degrade(least, k)) for model in models]
    victim = bundle.answers["victim"].degrade(least, k)
    report = progress.task("scoring compositions", len(bundle.manifest.schemes) * len(budgets))
    cells: list[Cell] = []
    for number, entry in enumerate(bundle.manifest.schemes):
        for place, budget in enumerate(budgets):
            cells += _cells(bundle, entry, budget, victim, cut)
            report(number * len(budgets) + place + 1)
    if not cells:
        raise UsageError("no composition could be scored", "Give larger --budgets.")
    return cells


def _cells(bundle: QueryBundle, entry: SchemeEntry, budget: int, victim: Answers, models: Sequence[_Known]) -> Iterator[Cell]:
    """All compositions of one sampler on the first ``budget`` of its queries."""
    start, stop = entry.rows
    rows = np.arange(start, min(stop, start + budget))
    if len(rows) < ENOUGH * budget:
        return
    columns = {name: column[: len(rows)] for name, column in bundle.columns_of(entry).items()}
    mine = [scheme for scheme in compositions() if scheme.sampler == entry.sampler]
    for name, schemes in groupby(mine, lambda scheme: scheme.representation):
        represent = REPRESENTATIONS[name].function
        reference = represent(victim.take(rows), columns)
        vectors = [represent(model.answers.take(rows), columns) for model in models] if reference.size else []
        for scheme in schemes:
            score: Callable[..., float] = DETECTORS[scheme.detector].function
            scores = np.array([score(reference, vector) for vector in vectors])
            yield _cell(scheme.name, budget, len(rows), scores, [model.task for model in models])


def _cell(name: str, budget: int, queries: int, scores: np.ndarray[tuple[int], np.dtype[np.float64]], tasks: list[str]) -> Cell:
    """The figures of one composition; a score that is not defined makes all of them undefined."""
    if not len(scores) or not np.isfinite(scores).all():
        return Cell(name, budget, queries, None, None, {})
    of = np.array(tasks)
    low, high = scores[of == ""], scores[of != ""]
    by_task = {task: tpr_at_fpr(scores[of == task], low) for task in dict.fromkeys(tasks) if task}
    return Cell(name, budget, queries, auc(high, low), tpr_at_fpr(high, low), by_task)
