"""Scores of one model on one sampler's queries: every scheme and composition, at every budget and access."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from onnxaudit.answers import Access, Answers, parse_access
from onnxaudit.audit.benchmark import gram
from onnxaudit.audit.insights import Insights, insight_key, insights_of
from onnxaudit.bundle import QueryBundle, SchemeEntry
from onnxaudit.registry import open_graph
from onnxaudit.schemes.compositions import compositions
from onnxaudit.schemes.detectors import DETECTORS
from onnxaudit.schemes.representations import REPRESENTATIONS

ENOUGH = 0.9
"""A sampler that found less than this share of a budget has no figure there."""
DIGITS = 12
"""Decimals of a score: rounding errors must not break ties."""
FROM_LABELS = frozenset({"labels", "hard-correlation", "hard-ddv", "correct"})
"""Representations that labels alone go into: the same at every access."""

Scores: TypeAlias = NDArray[np.float64]


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
    bundle: QueryBundle,
    entries: Sequence[SchemeEntry],
    answers: Answers,
    insights: Insights,
    budgets: Sequence[int],
    accesses: Sequence[str],
) -> Scores:
    """One model's scores on one sampler's queries, (schemes, budgets, accesses); NaN where a score is not defined.

    At each access both sides are cut to it, or to what the model or the victim gives, if that is less.
    """
    found = np.full((len(entries), len(budgets), len(accesses)), np.nan)
    for place, access in enumerate(accesses):
        level, k = parse_access(access)
        least = min(level, answers.access, bundle.answers["victim"].access)
        width = k if level == Access.TOPK else answers.classes.shape[1]
        pair = [side.degrade(least, width) for side in (bundle.answers["victim"], answers)]
        number = 0
        for _, group in groupby(entries, lambda entry: (entry.representation, sorted(entry.representing.items()))):
            alike = list(group)
            mine = slice(number, number + len(alike))
            number += len(alike)
            if place and alike[0].representation in FROM_LABELS:
                found[mine, :, place] = found[mine, :, 0]
                continue
            seen = insights if level >= answers.access else {}  # who gives less than it could does not show its inside
            found[mine, :, place] = _group(bundle, alike, pair, seen, budgets)
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
