"""What a sweep found: the scores of all models of a zoo as rows of figures, with everything that is needed to read them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxaudit import __version__
from onnxaudit.audit.benchmark import figures
from onnxaudit.audit.benchmark.drawing import Crafted, Draw
from onnxaudit.audit.benchmark.figures import COMBINED, Cell, Floats, Row, Scored, contests
from onnxaudit.audit.benchmark.measuring import FINDINGS, Measured, Sweep, held
from onnxaudit.audit.benchmark.preparing import Prepared
from onnxaudit.audit.benchmark.scoring import ENOUGH, counts_of, whole
from onnxaudit.bundle import QueryBundle, SchemeEntry
from onnxaudit.errors import UsageError
from onnxaudit.report.model import DERIVED
from onnxaudit.zoo.manifest import ZooEntry

RATES = ("matching-rate", "hamming")
KEPT = 6
"""Significant digits of a model's score in results."""


@dataclass(frozen=True, slots=True, eq=False)
class BenchResult:
    """rows: schemes and the combined statistic. cells: compositions. models: suspects, then references, in the order of scores.

    scores: by scheme, access and budget, a list of models' scores for each seed; of the combined statistic also findings.
    """

    rows: tuple[Row, ...]
    cells: tuple[Cell, ...]
    models: tuple[dict[str, Any], ...]
    scores: tuple[dict[str, Any], ...]
    facts: dict[str, Any] = field(default_factory=dict)


def results(
    prepared: Prepared,
    crafted: Sequence[Crafted],
    sweep: Sweep,
    bundles: Sequence[QueryBundle],
    models: Sequence[ZooEntry],
    measured: Sequence[Measured],
) -> BenchResult:
    """Figures of every scheme and composition. models: suspects, then references that count as innocents for compositions.

    Raises UsageError if no derived or no independent model could be asked, or nothing could be scored.
    """
    fit = [place for place, item in enumerate(measured) if item.card is not None]
    models, measured = [models[place] for place in fit], [measured[place] for place in fit]
    if not {"positive", "negative"} <= {entry.kind for entry in models}:
        raise UsageError("no derived or no independent model of the zoo could be asked", "See the notes above.")
    opening = float(np.mean([item.opening for item in measured]))
    pace = float(np.mean([item.a_query for item in measured]))
    games, wide = contests(models), contests(models, references=True)
    files = [entry.file for entry in models]
    derived = np.stack([item.findings for item in measured], axis=-1) == FINDINGS.index(DERIVED)
    table: list[Row] = []
    cells: list[Cell] = []
    scores: list[dict[str, Any]] = []
    for scored in _scored(prepared, crafted, sweep, bundles, measured):
        if scored.composed:
            cells += figures.cells(scored, wide, sweep.accesses, sweep.budgets)
            continue
        findings = derived if scored.name == COMBINED else None
        table += figures.rows(
            scored, games, sweep.accesses, sweep.budgets, findings, files, lambda queries: opening + pace * queries
        )
        scores += _lists(scored, sweep, findings)
    if not table and not cells:
        raise UsageError("no scheme could be scored", "Give larger --budgets.")
    facts = _facts(prepared, crafted, sweep, bundles, measured) | {"opening_seconds": opening, "query_seconds": pace}
    return BenchResult(tuple(table), tuple(cells), tuple(map(_model, models)), tuple(scores), facts)


def _scored(
    prepared: Prepared,
    crafted: Sequence[Crafted],
    sweep: Sweep,
    bundles: Sequence[QueryBundle],
    measured: Sequence[Measured],
) -> Iterator[Scored]:
    """Every scheme and composition, then the combined statistic."""
    shape = (len(bundles), len(sweep.budgets), len(sweep.accesses), len(measured))
    scores: dict[str, Floats] = {}
    entries: dict[str, list[SchemeEntry]] = {}
    times: dict[str, list[tuple[float, int]]] = {}
    first = prepared.crafting.options.seed
    grid = any(source.composed for source in sweep.sources)
    for number, (source, draw, result) in enumerate(_made(prepared, crafted, sweep)):
        for place, entry in enumerate(held(source.kept).entries(composed=source.composed)):
            mine = scores.setdefault(entry.name, np.full(shape, np.nan))
            mine[draw.seed - first] = np.stack([item.scores[number][place] for item in measured], axis=-1)
            entries.setdefault(entry.name, []).append(entry)
            times.setdefault(entry.name, []).append((result.seconds, result.queries))
    for name, mine in scores.items():
        counts = np.array([counts_of(entry, sweep.budgets) for entry in entries[name]], np.float64)
        used = [float(column[column > 0].mean()) if column.any() else 0.0 for column in counts.T]
        seconds, queries = (float(value) for value in np.mean(times[name], axis=0))
        yield Scored(name, mine, used, entries[name][0].detector in RATES, grid and "+" in name, seconds, queries)
    judged = bundles[0].manifest
    most = [entry.rows[1] - entry.rows[0] for entry in judged.schemes]
    used = [
        float(sum(count if whole(entry) else min(count, budget) for entry, count in zip(judged.schemes, most, strict=True)))
        + judged.controls[1]
        - judged.controls[0]
        for budget in sweep.budgets
    ]
    crafting = sum(float(np.mean([seconds for seconds, _ in times[entry.name]])) for entry in judged.schemes)
    combined = np.stack([item.combined for item in measured], axis=-1)
    yield Scored(COMBINED, combined, used, crafting=crafting, crafted=used[-1])


def _made(prepared: Prepared, crafted: Sequence[Crafted], sweep: Sweep) -> Iterator[tuple[Any, Draw, Crafted]]:
    """The sources of a sweep with what they were made from."""
    made = [(draw, result) for draw, result in zip(prepared.draws, crafted, strict=True) if result.queries]
    return ((source, *pair) for source, pair in zip(sweep.sources, made, strict=True))


def _lists(scored: Scored, sweep: Sweep, derived: NDArray[np.bool_] | None) -> Iterator[dict[str, Any]]:
    """Every model's score, as it is kept in results."""
    for column, access in enumerate(sweep.accesses):
        for place, budget in enumerate(sweep.budgets):
            values = scored.scores[:, place, column]
            if not scored.queries[place] or not np.isfinite(values).any():
                continue
            found = {"scheme": scored.name, "access": access, "budget": budget, "seeds": [_plain(row) for row in values]}
            if derived is not None:
                found["derived"] = derived[:, place, column].astype(int).tolist()
            yield found


def _plain(values: Floats) -> list[float | None]:
    return [float(f"{value:.{KEPT}g}") if np.isfinite(value) else None for value in values]


def _model(entry: ZooEntry) -> dict[str, Any]:
    return {
        "name": entry.name or Path(entry.file).name,
        "file": Path(entry.file).name,
        "kind": entry.kind,
        "task": entry.task,
        "labels": entry.labels,
        "deployed": list(entry.deployed),
        "arch": entry.arch,
        "accuracy": entry.accuracy,
        "share": entry.recipe.get("share"),
    }


def _facts(
    prepared: Prepared,
    crafted: Sequence[Crafted],
    sweep: Sweep,
    bundles: Sequence[QueryBundle],
    measured: Sequence[Measured],
) -> dict[str, Any]:
    """What the figures depend on, what was left out, and what it cost."""
    failed = {
        draw.schemes[0].name: result.why for draw, result in zip(prepared.draws, crafted, strict=True) if not result.queries
    }
    short: dict[str, list[int]] = {}
    costs: dict[str, list[tuple[int, float]]] = {}
    for draw, result in zip(prepared.draws, crafted, strict=True):
        if result.queries:
            name = draw.schemes[0].name.partition("+")[0] if "+" in draw.schemes[0].name else draw.schemes[0].name
            costs.setdefault(name, []).append((result.queries, result.seconds))
        if 0 < result.queries < ENOUGH * draw.queries:
            short.setdefault(draw.schemes[0].name, []).append(result.queries)
    return {
        "tool": __version__,
        "victim_sha256": prepared.victim_sha256,
        "seed": prepared.crafting.options.seed,
        "seeds": len(bundles),
        "budgets": list(sweep.budgets),
        "accesses": list(sweep.accesses),
        "references": len(bundles[0].manifest.of_role("reference")),
        "helpers": len(prepared.crafting.training),
        "alpha": bundles[0].manifest.alpha,
        "combined": [entry.name for entry in bundles[0].manifest.schemes],
        "bundles": [bundle.id for bundle in bundles],
        "left_out": {**prepared.left_out, **failed},
        "capped": dict(prepared.capped),
        "found_fewer": {name: round(float(np.mean(counts))) for name, counts in short.items()},
        "notes": list(prepared.notes),
        "craft_seconds": {
            name: {"queries": float(np.mean([n for n, _ in runs])), "seconds": round(float(np.mean([s for _, s in runs])), 3)}
            for name, runs in costs.items()
        },
        "asked": int(sum(item.asked for item in measured)),
        "judging_seconds": round(float(np.mean([item.judging for item in measured if item.judging] or [0.0])), 4),
    }
