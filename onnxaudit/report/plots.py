"""A benchmark's plots, one column of a paper wide: ROC, score distributions, TPR by budget, and cost, each as SVG and PNG.

The same results give the same bytes. Colours are told apart with any kind of colour vision, and lines by their dashes too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from onnxaudit.evidence.metrics import roc
from onnxaudit.report.benchmark import ALL, COMBINED, DEPLOYED, INDEPENDENT, SIBLING, innocent, rows_of, standard_budget

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's, without yellow, which is too light for lines."""
DASHES: tuple[Any, ...] = (
    "-",
    (0, (5, 1.5)),
    (0, (1.2, 1.2)),
    (0, (5, 1.2, 1.2, 1.2)),
    (0, (3, 1, 1, 1, 1, 1)),
    (0, (8, 2)),
    "-",
)
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
WIDTH = 3.4
"""Inches: a column of a two-column page."""
STYLE: Mapping[str, Any] = {
    "font.size": 8,
    "axes.labelsize": 8,
    "axes.titlesize": 8,
    "legend.fontsize": 7,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "lines.linewidth": 1.3,
    "legend.frameon": False,
    "svg.hashsalt": "onnxaudit",
    "savefig.facecolor": "white",
}
BEST = 4
"""Schemes in a plot besides the combined statistic and chance."""
CHANCE = "random"
LEAST_RATE = 0.004
Results = Mapping[str, Any]


def draw_all(results: Results, output: Path) -> list[str]:
    """Every plot that the results allow, at every access; the names of the files."""
    written: list[str] = []
    for access in results["facts"]["accesses"]:
        word = access.replace(":", "-")
        plots: dict[str, Callable[[Results, str], Figure | None]] = {
            "roc": plot_roc,
            "scores": plot_scores,
            "budget": plot_budgets,
            "cost": plot_cost,
        }
        for name, plot in plots.items():
            with mpl.rc_context(cast("Any", STYLE)):
                figure = plot(results, access)
                if figure is not None:
                    written += _save(figure, output / f"{name}-{word}")
    return written


def chosen(results: Results, access: str) -> list[str]:
    """The schemes in a plot: the combined statistic, the best by TPR@5% and then AUC at the budget shown, and chance."""
    budget = standard_budget(results)
    rows = [row for row in rows_of(results, task=ALL, access=access, budget=budget) if row["tpr_at_5"] is not None]
    ranked = sorted(rows, key=lambda row: (-row["tpr_at_5"], -row["auc"], row["scheme"]))
    names = [row["scheme"] for row in ranked]
    best = [name for name in names if name not in (COMBINED, CHANCE)][:BEST]
    return [name for name in (COMBINED, *best, CHANCE) if name in names]


def choice_in_words(results: Results, access: str) -> str:
    """How ``chosen`` chose, for a caption."""
    known = {row["scheme"] for row in rows_of(results, task=ALL, access=access)} - {COMBINED, CHANCE}
    count = len([name for name in chosen(results, access) if name in known])
    few = f"the best {count} of {len(known)} schemes by TPR@5% at {standard_budget(results)} queries"
    return f"{few}, the combined statistic{', and random inputs' if CHANCE in chosen(results, access) else ''}"


# ------------------------------------------------------------------------------------------------------------------------ plots


def plot_roc(results: Results, access: str) -> Figure | None:
    """Mean ROC over seeds of the chosen schemes, over all tasks; the false positive rate on a scale that shows small ones."""
    names, budget = chosen(results, access), standard_budget(results)
    if not names:
        return None
    figure, axes = _figure(2.7)
    rates = np.concatenate([[0.0], np.geomspace(LEAST_RATE, 1, 400)])
    for place, name in enumerate(names):
        curves = []
        for scores in _seeds(results, name, access, budget):
            high, low = _sides(results, scores)
            if len(high) and len(low):
                false, true = roc(high, low)
                curves.append(true[np.searchsorted(false, rates, side="right") - 1])
        axes.plot(rates, np.mean(curves, axis=0), drawstyle="steps-post", label=name, **_look(place))
    axes.axvline(0.05, color="0.75", linewidth=0.6, zorder=0)
    axes.plot(rates, rates, color="0.75", linewidth=0.6, zorder=0)
    axes.annotate("chance", (0.3, 0.3), xytext=(4, -8), textcoords="offset points", fontsize=6.5, color="0.45")
    axes.set(xscale="symlog", xlim=(0, 1), ylim=(0, 1.02), xlabel="independent models flagged", ylabel="derived models found")
    axes.set_xscale("symlog", linthresh=0.02, linscale=0.35)
    axes.set_xticks([0, 0.05, 0.1, 0.2, 0.5, 1], ["0", "5%", "10%", "20%", "50%", "100%"])
    axes.set_xticks([], minor=True)
    axes.set_yticks(np.linspace(0, 1, 6), [f"{share:.0%}" for share in np.linspace(0, 1, 6)])
    _legend(figure, axes)
    return figure


def plot_scores(results: Results, access: str) -> Figure | None:
    """Every model's score by task, one panel for each of the first chosen schemes, of the first seed."""
    names, budget = [name for name in chosen(results, access) if name != CHANCE][:3], standard_budget(results)
    if not names:
        return None
    groups = _groups(results)
    figure = Figure(figsize=(2 * WIDTH + 0.2, 0.5 + 0.165 * len(groups)), layout="constrained")
    panels = figure.subplots(1, len(names), sharey=True, squeeze=False)[0]
    spread = np.random.default_rng(0)
    for axes, name in zip(panels, names, strict=True):
        scores = _seeds(results, name, access, budget)[0]
        innocents: list[float] = []
        for height, (task, members) in enumerate(groups.items()):
            values = scores[members][np.isfinite(scores[members])]
            honest = innocent(task) or task == "reference"
            offsets = spread.uniform(-0.22, 0.22, len(values)) if len(values) > 1 else np.zeros(len(values))
            colour, marker = (COLOURS[0], "o") if honest else (COLOURS[1], "D")
            axes.plot(values, height + offsets, marker, color=colour, markersize=2.6, alpha=0.65, markeredgewidth=0)
            innocents += values.tolist() if task == INDEPENDENT else []
        if innocents:
            allowed = sorted(innocents, reverse=True)[int(0.05 * len(innocents) + 1e-9)]
            axes.axvline(allowed, color="0.6", linewidth=0.7, linestyle=(0, (2, 2)), zorder=0)
        axes.set_title(name)
        axes.grid(axis="y", color="0.93", linewidth=0.5)
        axes.set_axisbelow(True)
    panels[0].set_yticks(range(len(groups)), list(groups))
    panels[0].set_ylim(len(groups) - 0.4, -0.6)
    figure.supxlabel("score (larger is closer to the victim)", fontsize=8)
    return figure


def plot_budgets(results: Results, access: str) -> Figure | None:
    """TPR@5% against queries, mean and standard deviation over seeds."""
    budgets = results["facts"]["budgets"]
    names = chosen(results, access)
    if len(budgets) < 2 or not names:
        return None
    figure, axes = _figure(2.5)
    for place, name in enumerate(names):
        rows = sorted(rows_of(results, scheme=name, task=ALL, access=access), key=lambda row: row["budget"])
        rows = [row for row in rows if row["tpr_at_5"] is not None]
        x = np.array([row["budget"] for row in rows])
        mean = np.array([row["tpr_at_5"] for row in rows])
        deviation = np.array([row["tpr_at_5_sd"] or 0.0 for row in rows])
        look = _look(place)
        axes.plot(x, mean, marker=MARKERS[place % len(MARKERS)], markersize=3, label=name, **look)
        band = np.clip([mean - deviation, mean + deviation], 0, 1)
        axes.fill_between(x, *band, color=look["color"], alpha=0.13, linewidth=0)
    axes.set(xscale="log", xlabel="queries a scheme", ylabel="TPR at 5% FPR", ylim=(0, 1.02))
    axes.set_xticks(budgets, [str(budget) for budget in budgets])
    axes.set_xticks([], minor=True)
    _legend(figure, axes)
    return figure


def plot_cost(results: Results, access: str) -> Figure | None:
    """TPR@5% against the seconds to craft and to check one suspect; the schemes that no other beats in both are named."""
    budget = standard_budget(results)
    rows = [row for row in rows_of(results, task=ALL, access=access, budget=budget) if row["tpr_at_5"] is not None]
    if not rows:
        return None
    cost = {row["scheme"]: (row["craft_seconds"] or 0.0) + (row["check_seconds"] or 0.0) for row in rows}
    gain = {row["scheme"]: row["tpr_at_5"] for row in rows}
    front = pareto(cost, gain)
    figure, axes = _figure(2.5)
    others = [name for name in cost if name not in front and name != COMBINED]
    axes.plot([cost[name] for name in others], [gain[name] for name in others], "o", color="0.6", markersize=3.2, label="scheme")
    axes.plot(
        [cost[name] for name in front],
        [gain[name] for name in front],
        "o-",
        color=COLOURS[0],
        drawstyle="steps-post",
        markersize=4,
        linewidth=0.8,
        label="no other is better and cheaper",
    )
    if COMBINED not in front and COMBINED in cost:
        axes.plot([cost[COMBINED]], [gain[COMBINED]], "s", color=COLOURS[1], markersize=4, label=COMBINED)
    axes.set(xscale="log", xlabel="seconds to craft, and to check one suspect", ylabel="TPR at 5% FPR", ylim=(0, 1.05))
    low, high = min(cost.values()), max(cost.values())
    axes.set_xlim(low / 1.6, high * 2.5)
    axes.xaxis.set_major_formatter("{x:g}")
    for name in front:  # the last one above its point, the others below, clear of the line
        last = name == front[-1]
        edge = cost[name] < low * 2
        where, side = ((-2 if edge else 0, 5), "left" if edge else "center") if last else ((4, -8), "left")
        axes.annotate(name, (cost[name], gain[name]), where, textcoords="offset points", fontsize=6.5, ha=side)
    _legend(figure, axes)
    return figure


def pareto(cost: Mapping[str, float], gain: Mapping[str, float]) -> list[str]:
    """Those that no other beats in cost and gain, cheapest first; of two alike the first in the alphabet."""
    front: list[str] = []
    for name in sorted(cost, key=lambda name: (cost[name], -gain[name], name)):
        if not front or gain[name] > gain[front[-1]]:
            front.append(name)
    return front


# ------------------------------------------------------------------------------------------------------------------------ parts


def _figure(height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    return figure, figure.subplots()


def _look(place: int) -> dict[str, Any]:
    return {"color": COLOURS[place % len(COLOURS)], "linestyle": DASHES[place % len(DASHES)]}


def _legend(figure: Figure, axes: Axes) -> None:
    """Above the plot, where it hides nothing."""
    handles, labels = axes.get_legend_handles_labels()
    columns = 3 if max(map(len, labels)) < 16 else 2
    figure.legend(handles, labels, loc="outside upper center", ncols=columns, handlelength=2.2, columnspacing=1.0)


def _seeds(results: Results, scheme: str, access: str, budget: int) -> list[NDArray[np.float64]]:
    """Scores of all models, one array a seed, NaN where there is none."""
    (found,) = (
        item["seeds"]
        for item in results["scores"]
        if (item["scheme"], item["access"], item["budget"]) == (scheme, access, budget)
    )
    return [np.array([np.nan if value is None else value for value in scores]) for scores in found]


def _sides(results: Results, scores: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Scores of derived and of independent models of the victim's label set, the latter behind no server, as for figures."""
    kinds = np.array([model["kind"] if not model["labels"] else "" for model in results["models"]])
    bare = np.array([not model["deployed"] for model in results["models"]])
    known = np.isfinite(scores)
    return scores[known & (kinds == "positive")], scores[known & bare & (kinds == "negative")]


def _groups(results: Results) -> dict[str, NDArray[np.intp]]:
    """Places of models by task: innocents first, then how they were derived, those behind servers and other label sets last."""
    found: dict[str, list[int]] = {INDEPENDENT: [], DEPLOYED: [], SIBLING: [], "reference": []}
    order: list[tuple[int, str, int]] = []
    for place, model in enumerate(results["models"]):
        if model["kind"] != "positive":
            independent = DEPLOYED if model["deployed"] else INDEPENDENT
            name = independent if model["kind"] == "negative" else model["kind"]
            name = f"{name} ({model['labels']})" if model["labels"] else name
            order.append((0 if not model["labels"] else 3, name, place))
        elif model["labels"]:
            order.append((3, f"{model['task']} ({model['labels']})", place))
        else:
            order.append((2 if model["deployed"] else 1, _task(model), place))
    for _, name, place in sorted(order, key=lambda item: item[0]):
        found.setdefault(name, []).append(place)
    return {name: np.array(places, np.intp) for name, places in found.items() if places}


def _task(model: Mapping[str, Any]) -> str:
    deployed: Sequence[str] = model["deployed"]
    return f"behind {', '.join(deployed)}" if deployed else str(model["task"])


def _save(figure: Figure, path: Path) -> list[str]:
    figure.savefig(path.with_suffix(".svg"), metadata={"Date": None})
    figure.savefig(path.with_suffix(".png"), dpi=200, metadata={"Software": None})
    return [path.with_suffix(suffix).name for suffix in (".svg", ".png")]
