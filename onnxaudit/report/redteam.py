"""A red team's results as JSON, as tables for a terminal, and as Markdown, all from the same cells."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from onnxaudit.evidence.metrics import clopper_pearson
from onnxaudit.regular import write_in_one_step
from onnxaudit.report.text import markdown_table, table

SCHEMA = "onnxaudit.redteam/1"
Results = Mapping[str, Any]

ACCUSED_HEAD = (
    "attack",
    "innocents",
    "queries",
    "match",
    "references",
    "binomial, chance",
    "binomial, references",
    "finding",
    "judge's references",
    "reproduced",
    "judge's queries",
)
WAYS_HEAD = ("weights", "accuracy", "lost", "statistic", "p", "finding")
SERVERS_HEAD = ("server", "models", "access", "accuracy lost", "statistic lost", "found", "before")


def redteam_json(result: Any) -> str:
    """Everything as one JSON document."""
    value = {
        "schema": SCHEMA,
        "facts": result.facts,
        "accused": [dataclasses.asdict(claim) for claim in result.claims],
        "hidden": [dataclasses.asdict(hidden) for hidden in result.hidden],
    }
    return json.dumps(value, indent=1, allow_nan=False, ensure_ascii=False) + "\n"


def write_redteam(result: Any, output: Path) -> list[str]:
    """redteam.json and redteam.md in a folder, each replaced in one step; their names."""
    text = redteam_json(result)
    for name, content in (("redteam.json", text), ("redteam.md", redteam_markdown(json.loads(text)))):
        write_in_one_step(output / name, content.encode())
    return ["redteam.json", "redteam.md"]


def redteam_text(result: Any) -> str:
    """What a terminal shows."""
    results = json.loads(redteam_json(result))
    parts = [f"{title}\n{table(head, rows)}" for title, head, rows in _tables(results)]
    return "\n\n".join([*parts, *_words(results)])


def redteam_markdown(results: Results) -> str:
    """The same as a page."""
    parts = ["# Red team"]
    for title, head, rows in _tables(results):
        parts += [f"## {title.rstrip(':')}", markdown_table(head, rows)]
    return "\n\n".join([*parts, *_words(results)]) + "\n"


def _tables(results: Results) -> list[tuple[str, Sequence[str], list[tuple[str, ...]]]]:
    facts = results["facts"]
    alpha, bundle = facts["alpha"], facts["bundle"]
    accuser = f"Innocents accused by an accuser who cheats, at alpha {alpha:g} (in brackets: limits of the rate, 95 %):"
    ways = (
        f"Derived models, their weights changed to hide it ({', '.join(bundle['schemes'])}; {bundle['references']} references):"
    )
    servers = "Derived models behind servers that hide it, losses against the same model served plainly:"
    return [
        (accuser, ACCUSED_HEAD, accused_rows(results)),
        (ways, WAYS_HEAD, ways_rows(results)),
        (servers, SERVERS_HEAD, servers_rows(results)),
    ]


def accused_rows(results: Results) -> list[tuple[str, ...]]:
    """Cells of ``ACCUSED_HEAD``, one row an attack."""
    rows: list[tuple[str, ...]] = []
    alpha = results["facts"]["alpha"]
    for attack in results["facts"]["attacks"]:
        claims = [claim for claim in results["accused"] if claim["attack"] == attack]
        if not claims:
            continue
        of = len(claims)

        def rate(said: Callable[[Mapping[str, Any]], bool], claims: Sequence[Mapping[str, Any]] = claims) -> str:
            found = sum(map(said, claims))
            low, high = clopper_pearson(found, len(claims))
            return f"{found} ({low:.0%}-{high:.0%})"

        rows.append(
            (
                attack,
                str(of),
                f"{_mean([claim['queries'] for claim in claims]):.0f}",
                f"{_mean([claim['matched'] / claim['queries'] for claim in claims]):.0%}",
                f"{_mean([claim['usual'] for claim in claims]):.0%}",
                str(sum(claim["p_chance"] <= alpha for claim in claims)),
                str(sum(claim["p_usual"] <= alpha for claim in claims)),
                rate(lambda claim: claim["derived"]),
                rate(lambda claim: claim["judges_derived"]),
                f"{sum(claim['reproduced'] for claim in claims)} of {of}",
                rate(lambda claim: claim["again_derived"]),
            )
        )
    return rows


def ways_rows(results: Results) -> list[tuple[str, ...]]:
    """Cells of ``WAYS_HEAD``: the models themselves, behind no server."""
    plain = [one for one in results["hidden"] if one["server"] == results["facts"]["plain"]]
    best = plain[0]["accuracy"] if plain else 0.0
    return [
        (
            one["way"],
            f"{one['accuracy']:.1%}",
            _points(best - one["accuracy"]),
            _number(one["score"], ".2f"),
            _number(one["p_value"], ".3f"),
            one["finding"],
        )
        for one in plain
    ]


def servers_rows(results: Results) -> list[tuple[str, ...]]:
    """Cells of ``SERVERS_HEAD``, one row a server: means over the models that are found when they are served plainly."""
    plain = {one["way"]: one for one in results["hidden"] if one["server"] == results["facts"]["plain"]}
    rows: list[tuple[str, ...]] = []
    for server in dict.fromkeys(one["server"] for one in results["hidden"]):
        mine = [one for one in results["hidden"] if one["server"] == server and server != results["facts"]["plain"]]
        if not mine:
            continue
        scored = [plain[one["way"]]["score"] - one["score"] for one in mine if one["score"] is not None]
        rows.append(
            (
                server,
                str(len(mine)),
                mine[0]["access"],
                _points(_mean([plain[one["way"]]["accuracy"] - one["accuracy"] for one in mine])),
                f"{_mean(scored):.2f}" if scored else "-",
                str(sum(one["finding"] == "derived" for one in mine)),
                str(sum(plain[one["way"]]["finding"] == "derived" for one in mine)),
            )
        )
    return rows


def _words(results: Results) -> list[str]:
    """What the columns are."""
    facts = results["facts"]
    how = "held out" if facts["held_out"] else "references, each in turn left out of its own case"
    mine, theirs = facts["references"] - facts["judges_references"], facts["judges_references"]
    return [
        f"Innocents: {len(facts['innocents'])}, {how}. Finding: with the accuser's {mine} references; "
        f"the column after it: with the judge's {theirs}.",
        "Reproduced: the queries come out again from the victim, the data and the method that the bundle states. "
        "Judge's queries: crafted by that method from all of the data with another seed, judged with the judge's references.",
    ]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _points(value: float) -> str:
    """A difference of shares in points."""
    return f"{100 * value:.1f}"


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
