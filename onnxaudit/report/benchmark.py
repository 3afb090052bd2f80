"""A benchmark's results: JSON, a table, a ROC plot and a plot of score distributions."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from onnxaudit.evidence.metrics import auc, roc
from onnxaudit.report.text import table


def results_json(rows: Sequence[Any], scores: Sequence[dict[str, Any]], facts: dict[str, Any]) -> str:
    """Everything as one JSON document; what is not defined is null."""
    plain = [{name: _finite(value) for name, value in dataclasses.asdict(row).items()} for row in rows]
    return json.dumps({"schema": "onnxaudit.bench/1", **facts, "rows": plain, "scores": list(scores)}, indent=1, allow_nan=False)


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and math.isnan(value) else value


def results_table(rows: Sequence[Any]) -> str:
    """The table for a terminal, one line a scheme, access and task."""
    head = ("scheme", "access", "task", "models", "AUC", "TPR@5%", "ARUC", "derived", "seconds")
    cells = [
        (
            row.scheme,
            row.access,
            row.task,
            str(row.positives or row.negatives),
            _cell(row.auc),
            _cell(row.tpr_at_5),
            _cell(row.aruc),
            "-" if row.derived is None else f"{row.derived:.0%}",
            f"{row.seconds:.2f}",
        )
        for row in rows
    ]
    return table(head, cells)


def _cell(value: float | None) -> str:
    return "-" if value is None or math.isnan(value) else f"{value:.2f}"


def _split(scores: Sequence[dict[str, Any]], scheme: str, access: str) -> tuple[list[float], list[float]]:
    mine = [s for s in scores if s["scheme"] == scheme and s["access"] == access and s["score"] is not None]
    return [s["score"] for s in mine if s["kind"] == "positive"], [s["score"] for s in mine if s["kind"] == "negative"]


def plot_roc(scores: Sequence[dict[str, Any]], access: str, path: Path) -> None:
    """ROC of every scheme at one access level over all tasks."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.5, 5), layout="constrained")
    axes = figure.add_subplot()
    for scheme in dict.fromkeys(score["scheme"] for score in scores):
        positives, negatives = _split(scores, scheme, access)
        if positives and negatives:
            false, true = roc(positives, negatives)
            axes.plot(false, true, drawstyle="steps-post", label=f"{scheme} (AUC {auc(positives, negatives):.2f})", linewidth=1.8)
    axes.axvline(0.05, color="0.7", linestyle=":", linewidth=1)
    axes.set(
        xlabel="share of independent models flagged", ylabel="share of derived models found", title=f"All tasks, access {access}"
    )
    axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.02))
    axes.legend(loc="lower right", fontsize="small")
    figure.savefig(path, dpi=130)


def plot_scores(scores: Sequence[dict[str, Any]], access: str, path: Path) -> None:
    """Every suspect's score by task, one panel a scheme."""
    from matplotlib.figure import Figure

    schemes = list(dict.fromkeys(score["scheme"] for score in scores))
    tasks = ["independent", *dict.fromkeys(score["task"] for score in scores if score["kind"] == "positive")]
    figure = Figure(figsize=(2.6 * len(schemes) + 1.6, 0.35 * len(tasks) + 1.4), layout="constrained")
    panels = figure.subplots(1, len(schemes), sharey=True, squeeze=False)[0]
    for axes, scheme in zip(panels, schemes, strict=True):
        for height, task in enumerate(tasks):
            innocent = task == "independent"
            values = [
                s["score"]
                for s in scores
                if s["scheme"] == scheme
                and s["access"] == access
                and s["score"] is not None
                and (s["kind"] == "negative" if innocent else s["kind"] == "positive" and s["task"] == task)
            ]
            axes.plot(values, [height] * len(values), "o" if innocent else "d", color="C0" if innocent else "C3", alpha=0.6)
        _, negatives = _split(scores, scheme, access)
        if negatives:
            axes.axvline(max(negatives), color="0.7", linestyle=":", linewidth=1)
        axes.set_title(scheme, fontsize="medium")
        axes.tick_params(labelsize="small")
    panels[0].set_yticks(range(len(tasks)), tasks)
    panels[0].invert_yaxis()
    figure.suptitle(f"Scores, access {access} (dotted: the closest innocent)", fontsize="medium")
    figure.savefig(path, dpi=130)


def grid_json(cells: Sequence[Any], facts: dict[str, Any]) -> str:
    """The grid as one JSON document, one cell a composition and budget."""
    plain = [dataclasses.asdict(cell) for cell in cells]
    return json.dumps({"schema": "onnxaudit.grid/1", **facts, "cells": plain}, indent=1, allow_nan=False)


def grid_table(cells: Sequence[Any], budgets: Sequence[int]) -> str:
    """TPR@5% of every composition at every budget, best at the largest budget first, ties by AUC there."""
    of: dict[str, dict[int, Any]] = {}
    for cell in cells:
        of.setdefault(cell.scheme, {})[cell.budget] = cell
    last = budgets[-1]

    def rank(name: str) -> tuple[float, float]:
        best = of[name].get(last)
        return (-best.tpr_at_5, -best.auc) if best is not None and best.tpr_at_5 is not None else (1.0, 1.0)

    rows = [
        (
            name,
            *(_cell(of[name][budget].tpr_at_5 if budget in of[name] else None) for budget in budgets),
            _cell(of[name][last].auc if last in of[name] else None),
        )
        for name in sorted(of, key=rank)
    ]
    return table(("queries + representation + detector", *(f"TPR@5% {budget}" for budget in budgets), f"AUC {last}"), rows)
