"""A benchmark's results as JSON, as tables, and as files in a folder."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from onnxaudit.regular import write_in_one_step
from onnxaudit.report.text import markdown_table, table

SCHEMA = "onnxaudit.bench/2"
STANDARD = 100
"""The budget that tables and plots show if there is one: most papers'."""
ALL, INDEPENDENT, SIBLING, COMBINED = "all", "independent", "sibling", "combined"
DEPLOYED = f"{INDEPENDENT}, deployed"
SHOWN = 30
"""Compositions in results.md; results.json has all."""
Results = Mapping[str, Any]


def results_json(result: Any, zoo: str) -> str:
    """Everything as one JSON document; what is not defined is null."""
    parts = {
        "rows": [dataclasses.asdict(row) for row in result.rows],
        "grid": [dataclasses.asdict(cell) for cell in result.cells],
        "models": list(result.models),
        "scores": list(result.scores),
    }
    listed = ",\n".join(
        f'"{name}": [\n' + ",\n".join(json.dumps(item, separators=(",", ":"), allow_nan=False) for item in items) + "\n]"
        for name, items in parts.items()
    )
    facts = json.dumps({"zoo": zoo, **result.facts}, allow_nan=False, ensure_ascii=False)
    return f'{{"schema": "{SCHEMA}",\n"facts": {facts},\n{listed}}}\n'


def write_results(result: Any, zoo: str, output: Path) -> list[str]:
    """results.json, results.md and the plots in a folder, each replaced in one step; their names."""
    from onnxaudit.report.plots import draw_all

    text = results_json(result, zoo)
    found = json.loads(text)
    write_in_one_step(output / "results.json", text.encode())
    write_in_one_step(output / "results.md", results_markdown(found).encode())
    return ["results.json", "results.md", *draw_all(found, output)]


def standard_budget(results: Results) -> int:
    """The budget that tables and plots show: 100, or the one that is next to it."""
    budgets: list[int] = results["facts"]["budgets"]
    return min(budgets, key=lambda budget: (abs(budget - STANDARD), budget))


def innocent(task: str) -> bool:
    """Whether a row is one of innocents, of whatever label set, which tells how many are accused."""
    return task.partition(" (")[0] in (INDEPENDENT, DEPLOYED, SIBLING)


def rows_of(results: Results, **wanted: Any) -> list[dict[str, Any]]:
    """The rows whose fields have these values."""
    return [row for row in results["rows"] if all(row[name] == value for name, value in wanted.items())]


# --------------------------------------------------------------------------------------------------------------------- terminal


def summary(result: Any) -> str:
    """What a terminal shows: every scheme over all tasks at one budget, then the finding task by task."""
    results = json.loads(results_json(result, ""))
    facts, budget = results["facts"], standard_budget(results)
    lines = [f"All tasks together, {_budget_words(results, budget)}:"]
    schemes = _overall(results, budget, _plain)
    lines += [table(SCHEME_HEAD, schemes), "", _finding_words(facts, budget)]
    lines.append(table(FINDING_HEAD, findings(results, budget)))
    if results["grid"]:
        lines += ["", f"The best of {len({cell['scheme'] for cell in results['grid']})} compositions, {GRID_WORDS}:"]
        lines.append(table(grid_head(facts), grid_rows(results, facts["accesses"][0], 10, _plain)))
    return "\n".join([*lines, "", *left_out(facts)])


def _budget_words(results: Results, budget: int) -> str:
    seeds = results["facts"]["seeds"]
    return f"{budget} queries a scheme" + (f", mean of {seeds} seeds" if seeds > 1 else "")


def _finding_words(facts: Mapping[str, Any], budget: int) -> str:
    return (
        f"The finding, {budget} queries a scheme ({', '.join(facts['combined'])}; {facts['references']} references, "
        f"alpha {facts['alpha']:g}):"
    )


GRID_WORDS = "references counted among the innocents"
SCHEME_HEAD = ("scheme", "access", "queries", "AUC", "TPR@5%", "ARUC", "innocents", "highest", "craft s", "check s")
FINDING_HEAD = ("task", "access", "models", "AUC", "TPR@5%", "derived", "accused", "at most")

Show = Callable[[float | None, float | None], str]


def _plain(value: float | None, deviation: float | None = None) -> str:
    return "-" if value is None else f"{value:.2f}"


def with_deviation(value: float | None, deviation: float | None = None) -> str:
    return "-" if value is None else f"{value:.2f}" + ("" if deviation is None else f" ± {deviation:.2f}")


def _overall(results: Results, budget: int, show: Show) -> list[tuple[str, ...]]:
    """Cells of ``SCHEME_HEAD``: a scheme that takes all of its queries or none is shown at its only budget."""
    shown: list[tuple[str, ...]] = []
    for access in results["facts"]["accesses"]:
        rows = rows_of(results, task=ALL, access=access)
        for scheme in dict.fromkeys(row["scheme"] for row in rows):
            mine = [row for row in rows if row["scheme"] == scheme]
            row = min(mine, key=lambda row: (abs(row["budget"] - budget), row["budget"]))
            shown.append(
                (
                    scheme,
                    access,
                    f"{row['queries']:.0f}",
                    show(row["auc"], row["auc_sd"]),
                    show(row["tpr_at_5"], row["tpr_at_5_sd"]),
                    show(row["aruc"], row["aruc_sd"]),
                    _plain(row["innocent_mean"]),
                    _plain(row["innocent_max"]),
                    _plain(row["craft_seconds"]),
                    _plain(row["check_seconds"]),
                )
            )
    return shown


def findings(results: Results, budget: int, show: Show = _plain) -> list[tuple[str, ...]]:
    """Cells of ``FINDING_HEAD``, innocents last."""
    shown: list[tuple[str, ...]] = []
    for access in results["facts"]["accesses"]:
        for row in rows_of(results, scheme=COMBINED, budget=budget, access=access):
            honest = innocent(row["task"])
            shown.append(
                (
                    row["task"],
                    access,
                    str(row["files"] if honest else row["positives"]),
                    show(row["auc"], row["auc_sd"]),
                    show(row["tpr_at_5"], row["tpr_at_5_sd"]),
                    "-" if honest or row["derived"] is None else f"{row['derived']:.0%}",
                    f"{row['accused']}" if honest else "-",
                    f"{row['bound']:.0%}" if honest and row["bound"] is not None else "-",
                )
            )
    return shown


def grid_head(facts: Mapping[str, Any]) -> tuple[str, ...]:
    last = facts["budgets"][-1]
    return ("queries + representation + detector", *(f"TPR@5% {budget}" for budget in facts["budgets"]), f"AUC ≤ {last}")


def grid_rows(results: Results, access: str, most: int, show: Show) -> list[tuple[str, ...]]:
    """The best compositions by TPR@5% at the standard budget, ties by AUC; the area is that at each one's largest budget."""
    of: dict[str, dict[int, dict[str, Any]]] = {}
    for cell in results["grid"]:
        if cell["access"] == access:
            of.setdefault(cell["scheme"], {})[cell["budget"]] = cell
    budget = standard_budget(results)

    def rank(name: str) -> tuple[float, float]:
        cell = of[name].get(budget)
        return (1.0, 1.0) if cell is None or cell["tpr_at_5"] is None else (-cell["tpr_at_5"], -cell["auc"])

    return [
        (
            name,
            *(show(*_pair(of[name].get(size), "tpr_at_5")) for size in results["facts"]["budgets"]),
            show(*_pair(of[name][max(of[name])], "auc")),
        )
        for name in sorted(of, key=rank)[:most]
    ]


def _pair(cell: Mapping[str, Any] | None, name: str) -> tuple[float | None, float | None]:
    return (None, None) if cell is None else (cell[name], cell[f"{name}_sd"])


def left_out(facts: Mapping[str, Any]) -> list[str]:
    """What the figures do not hold, in words."""
    reasons: dict[str, list[str]] = {}
    for name, why in facts["left_out"].items():
        reasons.setdefault(why, []).append(name)
    said = [f"left out, {why}: {', '.join(names)}" for why, names in reasons.items()]
    said += [f"found fewer queries than asked: {name}, {count}" for name, count in facts["found_fewer"].items()]
    by_cap: dict[int, list[str]] = {}
    for name, cap in facts["capped"].items():
        by_cap.setdefault(cap, []).append(name)
    said += [f"to {cap} queries only (--full lifts it): {', '.join(names)}" for cap, names in sorted(by_cap.items())]
    return said


# --------------------------------------------------------------------------------------------------------------------- Markdown


def results_markdown(results: Results) -> str:
    """All tables of results.json that people read."""
    facts, budget = results["facts"], standard_budget(results)
    parts = [f"# Benchmark on {facts['zoo'] or 'a zoo'}", setting(results)]
    parts += [f"## All tasks together, {_budget_words(results, budget)}", OVERALL_WORDS]
    parts.append(markdown_table(SCHEME_HEAD, _overall(results, budget, with_deviation)))
    parts += [f"## The finding, {budget} queries a scheme", _finding_words(facts, budget) + " " + FINDING_WORDS]
    parts.append(markdown_table(FINDING_HEAD, findings(results, budget, with_deviation)))
    parts += ["## The finding by budget", markdown_table(*finding_by_budget(results))]
    for access in facts["accesses"]:
        parts += [f"## TPR@5% by task, {budget} queries, access {access}", markdown_table(*by_task(results, access, budget))]
        parts += [f"## TPR@5% of all tasks by budget, access {access}", markdown_table(*_by_budget(results, access))]
        if results["grid"]:
            parts += [f"## The best {SHOWN} compositions, access {access}", f"In the grid, {GRID_WORDS}."]
            parts.append(markdown_table(grid_head(facts), grid_rows(results, access, SHOWN, with_deviation)))
    parts += ["## Seconds to craft", markdown_table(*costs(facts))]
    parts += ["## Left out", "\n".join(f"- {line}" for line in left_out(facts)) or "Nothing."]
    return "\n\n".join(parts) + "\n"


OVERALL_WORDS = (
    "Models of the victim's label set. `innocents` and `highest` are the mean and the largest score of the independent models; "
    "`craft s` makes the queries, in proportion to the budget; `check s` opens a suspect and asks it. "
    "± is the standard deviation over seeds."
)
FINDING_WORDS = (
    "`derived`: share of the models with that finding. `accused`: innocent files with it, the most at one seed; "
    "`at most`: the upper end of the exact 95 % interval of that rate."
)


def setting(results: Results) -> str:
    facts, models = results["facts"], results["models"]
    kinds = {kind: sum(model["kind"] == kind for model in models) for kind in ("positive", "negative", "sibling", "reference")}
    return "\n".join(
        [
            f"- onnxaudit {facts['tool']}, victim `{facts['victim_sha256'][:16]}`, {facts['seeds']} seeds from {facts['seed']}",
            f"- {kinds['positive']} derived models, {kinds['negative']} independent ones, {kinds['sibling']} siblings; "
            f"{facts['references']} references calibrate",
            "- Thresholds of schemes come from the independent models, which calibrate nothing; "
            f"those of compositions from these and {kinds['reference']} references.",
            "- A model that gives less than an access level is compared at what it gives.",
            f"- A suspect was opened in {facts['opening_seconds']:.3f} s, asked in {1e3 * facts['query_seconds']:.2f} ms a "
            f"query, judged in {facts['judging_seconds']:.3f} s; this run asked {facts['asked']} queries, the others were known.",
        ]
    )


def by_task(results: Results, access: str, budget: int) -> tuple[list[str], list[list[str]]]:
    """Schemes by tasks: TPR@5%."""
    rows = rows_of(results, access=access)
    tasks = [task for task in dict.fromkeys(row["task"] for row in rows) if task == SIBLING or not innocent(task)]
    shown = []
    for scheme in dict.fromkeys(row["scheme"] for row in rows):
        mine = [row for row in rows if row["scheme"] == scheme]
        at = min((row["budget"] for row in mine), key=lambda size: (abs(size - budget), size))
        known = {row["task"]: row for row in mine if row["budget"] == at}
        shown.append([scheme, *(with_deviation(*_pair(known.get(task), "tpr_at_5")) for task in tasks)])
    return ["scheme", *tasks], shown


def _by_budget(results: Results, access: str) -> tuple[list[str], list[list[str]]]:
    budgets, rows = results["facts"]["budgets"], rows_of(results, access=access, task=ALL)
    known = {(row["scheme"], row["budget"]): row for row in rows}
    schemes = dict.fromkeys(row["scheme"] for row in rows)
    cells = [[name, *(with_deviation(*_pair(known.get((name, size)), "tpr_at_5")) for size in budgets)] for name in schemes]
    return ["scheme", *map(str, budgets)], cells


def finding_by_budget(results: Results) -> tuple[list[str], list[list[str]]]:
    """Share of derived models that are found, and innocents of every kind that are accused, by budget."""
    combined = rows_of(results, scheme=COMBINED)
    innocents = [task for task in dict.fromkeys(row["task"] for row in combined) if innocent(task)]
    shown = []
    for access in results["facts"]["accesses"]:
        for budget in results["facts"]["budgets"]:
            rows = {row["task"]: row for row in combined if (row["budget"], row["access"]) == (budget, access)}
            if ALL not in rows:
                continue
            accused = [f"{rows[task]['accused']} of {rows[task]['files']}" if task in rows else "-" for task in innocents]
            found = with_deviation(rows[ALL]["derived"], rows[ALL]["derived_sd"])
            shown.append([access, str(budget), found, with_deviation(*_pair(rows[ALL], "tpr_at_5")), *accused])
    return ["access", "queries a scheme", "derived", "TPR@5%", *(f"accused: {task}" for task in innocents)], shown


def costs(facts: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    rows = [
        [name, f"{cost['queries']:.0f}", f"{cost['seconds']:.2f}", f"{1e3 * cost['seconds'] / cost['queries']:.1f}"]
        for name, cost in sorted(facts["craft_seconds"].items(), key=lambda item: -item[1]["seconds"])
    ]
    return ["queries of", "queries", "seconds", "ms a query"], rows
