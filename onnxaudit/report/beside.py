"""Our figures beside those that papers print: IPGuard, FUAP, SAC, QuRD, as Markdown.

Every function takes the runs of bench that are compared and what one paper prints, from docs/published.json.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from onnxaudit.evidence.metrics import aruc
from onnxaudit.report.benchmark import ALL, COMBINED, rows_of, standard_budget, with_deviation
from onnxaudit.report.text import markdown_table

DASH = "-"
# What the papers call tasks, and ours: the standard zoo's names, then those of the zoo under fixtures/.
TASKS: Mapping[str, tuple[str, ...]] = {
    "FTLL": ("fine-tune-last",),
    "FTAL": ("fine-tune-all",),
    "RTLL": ("retrain-last",),
    "RTAL": ("retrain-all",),
    "WP": ("prune-weights",),
    "FP": ("prune-filters",),
    "Finetune-A": ("fine-tune-all",),
    "Finetune-L": ("fine-tune-last",),
    "Pruning": ("fine-prune",),
    "Extract-L": ("extract-labels", "extract_label"),
    "Extract-P": ("extract-probabilities", "extract_prob"),
    "Extract-Adv": ("extract-adversarially", "extract_adv"),
    "Transfer-A": ("transfer-all (digits)",),
    "Transfer-L": ("transfer-last (digits)",),
    "same": ("same",),
    "quantize": ("quantise", "int8"),
    "finetune": ("fine-tune-last", "fine-tune-all", "finetune"),
    "transfer": ("transfer-last (digits)", "transfer-all (digits)"),
    "prune": ("prune-weights", "prune-filters", "fine-prune", "prune"),
    "probit extraction": ("extract-probabilities", "extract_prob"),
    "label extraction": ("extract-labels", "extract_label"),
    "adversarial extraction": ("extract-adversarially", "extract_adv"),
}
SAME_METHOD = {"Random": "random", "FGSM": "fgsm", "IGSM": "igsm", "CW-L2": "cw-l2", "IPGuard": "ipguard-tl", "CAE": "cae"}
SAME_METHOD |= {"SAC-w": "sac-w", "SAC-m": "sac-m", "AKH": "akh", "Random Sampling": "random", "ModelDiff": "modeldiff"}
SAME_METHOD |= {"SAC": "sac-source", "ZestOfLIME": "zest"}
POST_PROCESSED = ("FTLL", "FTAL", "RTLL", "RTAL", "WP", "FP")


@dataclass(frozen=True, slots=True)
class Ours:
    """One run of bench under the name that it has here."""

    name: str
    folder: Path
    results: Mapping[str, Any]

    @property
    def access(self) -> str:
        """The most that was given: the first level."""
        return str(self.results["facts"]["accesses"][0])

    @property
    def budget(self) -> int:
        """The budget that is compared."""
        return standard_budget(self.results)

    def pooled(self, scheme: str, task: str, figure: str, access: str = "") -> float | None:
        """A figure of one of the papers' tasks: the mean over ours, each counting as often as it has models.

        All of them have the same innocents and the same threshold, so that this is their figure together.
        """
        rows = [row for row in rows_of(self.results, scheme=scheme, access=access or self.access) if row[figure] is not None]
        at = min((row["budget"] for row in rows), key=lambda size: (abs(size - self.budget), size), default=0)
        rows = [row for row in rows if row["budget"] == at and row["task"] in TASKS[task]]
        weights = [row["positives"] for row in rows]
        return float(np.average([row[figure] for row in rows], weights=weights)) if rows else None

    def rates(self, scheme: str, wanted: Callable[[Mapping[str, Any]], bool]) -> list[list[float]]:
        """Scores of the models that are wanted, a list a seed; none if the scheme was not measured."""
        for item in self.results["scores"]:
            if (item["scheme"], item["access"], item["budget"]) == (scheme, self.access, self.budget):
                places = [i for i, model in enumerate(self.results["models"]) if not model["labels"] and wanted(model)]
                return [[seed[i] for i in places if seed[i] is not None] for seed in item["seeds"]]
        return []


def cell(value: float | None, digits: int = 2) -> str:
    """A figure, or a dash."""
    return DASH if value is None else f"{value:.{digits}f}"


def ipguard(runs: Sequence[Ours], paper: Mapping[str, Any]) -> list[str]:
    """Tables 4 to 7."""
    table = paper["table 4"]
    head = ["", *table["columns"], *(f"ours: {run.name}" for run in runs)]
    rows = [
        [name, *map(cell, row), *(cell(our_aruc(run, SAME_METHOD[name])) for run in runs)] for name, row in table["rows"].items()
    ]
    parts = ["### IPGuard, Table 4: ARUC", f"{paper['differences']} {table['words']}.", markdown_table(head, rows)]
    parts += ["### IPGuard, Tables 5 to 7: matching rates", paper["rates"]]
    for column, method in enumerate(paper["table 5"]["columns"]):
        tables = [paper[f"table {number}"] for number in (5, 6, 7)]
        head = [method, *(table["data"] for table in tables), *(f"ours: {run.name}" for run in runs)]
        names = sorted({name for table in tables for name in table["positives"]}, key=_in_order)
        rows = []
        for name in names:
            theirs = [table["positives"].get(name) for table in tables]
            rows.append(
                [
                    name,
                    *(cell(row and row[column]) for row in theirs),
                    *(our_rate(run, SAME_METHOD[method], name) for run in runs),
                ]
            )
        for name in INNOCENTS:
            theirs = [span(innocent_ranges(table, name, column)) for table in tables]
            rows.append([f"innocents: {name}", *theirs, *(our_range(run, SAME_METHOD[method], name) for run in runs)])
        parts.append(markdown_table(head, rows))
    return parts


INNOCENTS = ("same architecture", "other architectures", "random forest")


def _in_order(name: str) -> tuple[int, str]:
    """FTLL first, FP last, each with more removed after less."""
    return POST_PROCESSED.index(name.partition(" ")[0]), name


def our_aruc(run: Ours, scheme: str) -> float | None:
    """ARUC over the suspects that IPGuard has, a mean over seeds."""
    tasks = {task for name in POST_PROCESSED for task in TASKS[name]}
    positives = run.rates(scheme, lambda model: model["kind"] == "positive" and model["task"] in tasks and not model["deployed"])
    negatives = run.rates(scheme, lambda model: model["kind"] == "negative" and not model["deployed"])
    if not positives or not positives[0] or not negatives[0]:
        return None
    n = run.budget
    pairs = zip(positives, negatives, strict=True)
    return float(np.mean([aruc([(round(x * n), n) for x in high], [(round(x * n), n) for x in low]) for high, low in pairs]))


def our_rate(run: Ours, scheme: str, name: str) -> str:
    """The mean matching rate of a kind of suspect: "FTLL", "WP 0.1", "FP 3/16"."""
    kind, _, amount = name.partition(" ")
    share = float(amount.split("/")[0]) / float(amount.split("/")[1]) if "/" in amount else float(amount or 0)

    def wanted(model: Mapping[str, Any]) -> bool:
        alike = model["kind"] == "positive" and model["task"] in TASKS[kind] and not model["deployed"]
        return alike and (not amount or abs((model["share"] or 0) - share) < 1e-6)

    values = [value for seed in run.rates(scheme, wanted) for value in seed]
    return cell(float(np.mean(values)) if values else None)


def victim_arch(run: Ours) -> str:
    """The architecture of the copies that keep the victim's weights."""
    known = [model["arch"] for model in run.results["models"] if model["task"] in ("fine-tune-all", "finetune") and model["arch"]]
    return str(known[0]) if known else ""


def our_range(run: Ours, scheme: str, name: str) -> str:
    """The smallest and largest matching rate of independent models of a kind."""

    def wanted(model: Mapping[str, Any]) -> bool:
        if model["kind"] not in ("negative", "sibling") or model["deployed"]:
            return False
        arch = "same architecture" if model["arch"] in ("", victim_arch(run)) else "other architectures"
        return ("random forest" if model["arch"] == "forest" else arch) == name

    values = [value for seed in run.rates(scheme, wanted) for value in seed]
    return span([min(values), max(values)] if values else None)


def innocent_ranges(table: Mapping[str, Any], name: str, column: int) -> list[float] | None:
    """The published range of one kind of independent model; all other networks are other architectures."""
    kinds = {"same architecture", "random forest"}
    found = [
        item["ranges"][column] for kind, item in table["negatives"].items() if (kind if kind in kinds else INNOCENTS[1]) == name
    ]
    return [min(low for low, _ in found), max(high for _, high in found)] if found else None


def span(found: Sequence[float] | None) -> str:
    """A range."""
    return DASH if found is None else f"[{found[0]:.2f}, {found[1]:.2f}]"


def fuap(runs: Sequence[Ours], paper: Mapping[str, Any]) -> list[str]:
    """Tables 2 and 3: similarities of extracted models, and of independent ones, by architecture."""
    head = ["architecture", "extracted: mean ± std", "independent: mean ± std"]
    rows = []
    sides = [("Fashion-MNIST", paper["table 2"])] + [(data, paper["table 3"][data]) for data in ("CIFAR-10", "TinyImageNet")]
    for data, table in sides:
        for name, (mean, std, _) in table["piracy"].items():
            other, spread, _ = table["homologous"][name]
            rows.append([f"{data}, {name}", f"{mean:.4f} ± {std:.4f}", f"{other:.4f} ± {spread:.4f}"])
    rows += [
        [f"ours: {run.name}, {arch}", similarity(run, arch, derived=True), similarity(run, arch, derived=False)]
        for run in runs
        for arch in sorted({model["arch"] for model in run.results["models"] if model["arch"]})
    ]
    return ["### FUAP, Tables 2 and 3: similarities", paper["differences"], markdown_table(head, rows)]


def similarity(run: Ours, arch: str, *, derived: bool) -> str:
    """Mean and deviation of the encoder's similarity."""

    def wanted(model: Mapping[str, Any]) -> bool:
        kind = model["task"].startswith("extract") if derived else model["kind"] == "negative"
        return bool(kind and model["arch"] == arch and not model["deployed"])

    values = [value for seed in run.rates("fuap", wanted) for value in seed]
    return f"{np.mean(values):.4f} ± {np.std(values):.4f}" if values else DASH


def sac(runs: Sequence[Ours], paper: Mapping[str, Any]) -> list[str]:
    """Tables 1, 4 and 5."""
    table = paper["table 1"]
    names = [name for name in table["columns"] if name in SAME_METHOD]
    head = ["AUC", *(f"{name}, SAC's table" for name in table["columns"])]
    head += [f"{SAME_METHOD[name]}, {run.name}" for run in runs for name in names] + [f"combined, {run.name}" for run in runs]
    rows = []
    for task, row in table["rows"].items():
        tasks = list(table["rows"])[:6] if task == "Average" else [task]
        line = [task, *map(cell, row)]
        for run in runs:
            line += [cell(average(run, SAME_METHOD[name], tasks, "auc")) for name in names]
        rows.append(line + [cell(average(run, COMBINED, tasks, "auc")) for run in runs])
    parts = ["### SAC, Table 1: AUC", paper["differences"], markdown_table(head, rows)]
    table = paper["table 4"]
    head = [
        "AUC",
        *table["columns"],
        *(f"sac-m, {run.name}, {access}" for run in runs for access in run.results["facts"]["accesses"][::-1]),
    ]
    rows = [
        [task, *map(cell, row)]
        + [
            cell(average(run, "sac-m", [task], "auc", access))
            for run in runs
            for access in run.results["facts"]["accesses"][::-1]
        ]
        for task, row in table["rows"].items()
    ]
    parts += ["### SAC, Table 4: labels only", "Theirs is SAC-w, ours SAC-m.", markdown_table(head, rows)]
    head = ["seconds", "SAC's table", *(f"ours: {run.name}" for run in runs)]
    rows = [
        [name, cell(row[0]), *(seconds(run, SAME_METHOD.get(name, "")) for run in runs)]
        for name, row in paper["table 5"]["rows"].items()
    ]
    words = "To make 100 queries; theirs with the training of surrogates (SAC-w, CAE) and of the watermark (EWE)."
    return [*parts, "### SAC, Table 5: seconds", words, markdown_table(head, rows)]


def average(run: Ours, scheme: str, tasks: Sequence[str], figure: str, access: str = "") -> float | None:
    """The mean over tasks; none if one of them is lacking."""
    found = [run.pooled(scheme, task, figure, access) if task in TASKS else None for task in tasks]
    known = [value for value in found if value is not None]
    return float(np.mean(known)) if len(known) == len(found) else None


def seconds(run: Ours, scheme: str) -> str:
    """What crafting 100 queries took."""
    rows = [row for row in rows_of(run.results, scheme=scheme, task=ALL, access=run.access) if row["craft_seconds"] is not None]
    row = min(rows, key=lambda row: abs(row["budget"] - run.budget), default=None)
    return DASH if row is None else cell(row["craft_seconds"])


def qurd(runs: Sequence[Ours], paper: Mapping[str, Any]) -> list[str]:
    """Table 3 and Figure 4."""
    table = paper["table 3"]
    rows = []
    for name, row in table["rows"].items():
        rows.append([f"{name}, QuRD", *map(cell, row)])
        for run in runs:
            ours = [cell(run.pooled(SAME_METHOD[name], task, "tpr_at_5")) for task in table["columns"]]
            rows.append([f"{SAME_METHOD[name]}, {run.name}", *ours])
    rows += [
        [f"combined, {run.name}", *(cell(run.pooled(COMBINED, task, "tpr_at_5")) for task in table["columns"])] for run in runs
    ]
    parts = ["### QuRD, Table 3: TPR@5%", paper["differences"], markdown_table(["TPR@5%", *table["columns"]], rows)]
    table = paper["figure 4"]
    budgets = sorted({*table["columns"], *(size for run in runs for size in run.results["facts"]["budgets"])})
    rows = []
    for name, row in table["rows"].items():
        known = dict(zip(table["columns"], row, strict=True))
        rows.append([f"{name}, QuRD", *(cell(known.get(size)) for size in budgets)])
        for run in runs:
            mine = {row["budget"]: row for row in rows_of(run.results, scheme=SAME_METHOD[name], task=ALL, access=run.access)}
            ours = [
                with_deviation(mine[size]["tpr_at_5"], mine[size]["tpr_at_5_sd"]) if size in mine else DASH for size in budgets
            ]
            rows.append([f"{SAME_METHOD[name]}, {run.name}", *ours])
    words = table["words"][0].upper() + table["words"][1:] + ". Ours: all tasks of the victim's label set together."
    return [*parts, "### QuRD, Figure 4: TPR@5% by budget", words, markdown_table(["queries", *map(str, budgets)], rows)]
