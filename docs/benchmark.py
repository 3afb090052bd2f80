"""Writes docs/benchmark.md: what `onnxaudit bench` measured beside what the papers print, with the differences of setting named.

    python docs/benchmark.py [NAME=]DIR[+DIR ...] ...

Each DIR is the output of one run of bench; NAME says what it is ("Fashion-MNIST, standard zoo"). Runs on one zoo that are joined
by a plus make one column: what the first did not measure comes from the next. Published figures come from docs/published.json,
pictures go to docs/benchmark/. ``--output`` writes elsewhere.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from onnxaudit.report.benchmark import (
    ALL,
    FINDING_HEAD,
    FINDING_WORDS,
    costs,
    finding_by_budget,
    findings,
    grid_head,
    grid_rows,
    left_out,
    rows_of,
    setting,
    with_deviation,
)
from onnxaudit.report.beside import DASH, Ours, fuap, ipguard, qurd, sac
from onnxaudit.report.plots import choice_in_words
from onnxaudit.report.text import markdown_table

HERE = Path(__file__).resolve().parent
COMPOSITIONS = 20


def main(arguments: Sequence[str] | None = None) -> None:
    """The page and its pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", metavar="[NAME=]DIR")
    parser.add_argument("--output", type=Path, default=HERE / "benchmark.md")
    given = parser.parse_args(arguments)
    runs = []
    for text in given.folders:
        name, _, folders = text.rpartition("=")
        paths = [Path(folder) for folder in folders.split("+")]
        parts = [json.loads((path / "results.json").read_text(encoding="utf-8")) for path in paths]
        runs.append(Ours(name or paths[0].name, paths[0], joined(parts)))
    published = json.loads((HERE / "published.json").read_text(encoding="utf-8"))
    given.output.write_text(page(runs, published, given.output.with_suffix("")), encoding="utf-8")


def joined(parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Several runs on one zoo as one. The first says how the combined statistic is made; models that it lacks are left out."""
    first, *others = parts
    for other in others:
        if (first["facts"]["victim_sha256"], first["facts"]["seeds"]) != (
            other["facts"]["victim_sha256"],
            other["facts"]["seeds"],
        ):
            raise SystemExit("error: the runs that are joined are not of one victim and as many seeds")
        known = {row["scheme"] for row in first["rows"]}
        place = {model["name"]: i for i, model in enumerate(other["models"])}
        order = [place.get(model["name"]) for model in first["models"]]
        first["rows"] += [row for row in other["rows"] if row["scheme"] not in known]
        first["scores"] += [
            {**item, "seeds": [[None if i is None else seed[i] for i in order] for seed in item["seeds"]]}
            for item in other["scores"]
            if item["scheme"] not in known
        ]
        measured = {row["scheme"] for row in first["rows"]}
        for kind in ("left_out", "capped", "found_fewer", "craft_seconds"):
            first["facts"][kind] = {**other["facts"][kind], **first["facts"][kind]}
        first["facts"]["left_out"] = {name: why for name, why in first["facts"]["left_out"].items() if name not in measured}
    return first


def page(runs: Sequence[Ours], published: Mapping[str, Any], pictures: Path) -> str:
    """All of docs/benchmark.md."""
    seeds = str(runs[0].results["facts"]["seeds"])
    parts = [INTRODUCTION.strip().replace("SEEDS", seeds), "## Settings", settings(runs, published), DIFFERENCES.strip()]
    for run in runs:
        parts += [f"## {run.name}", *own_section(run, pictures)]
    parts += ["## Beside the papers", BESIDE.strip()]
    parts += ipguard(runs, published["ipguard"])
    parts += fuap(runs, published["fuap"])
    parts += sac(runs, published["sac"])
    parts += qurd(runs, published["qurd"])
    return "\n\n".join(parts) + "\n"


INTRODUCTION = """
# Benchmark

This page is written by a command, from the results of `onnxaudit bench`:

    onnxaudit zoo build --data fashion-mnist -o zoo
    onnxaudit bench zoo/zoo.json --victim zoo/victim.pt --data zoo/craft.npz --grid --seeds SEEDS -o bench-standard
    onnxaudit bench zoo/zoo.json --victim zoo/victim.pt --data zoo/craft.npz --seeds SEEDS --queries 100 --train-surrogates 6 \\
      --scheme sac-w --scheme fuap --scheme cae --scheme metav -o bench-learned --cache bench-standard/cache
    python docs/benchmark.py "Fashion-MNIST, standard zoo=bench-standard+bench-learned"

The second run is for schemes that learn from surrogates: six, trained on half of the data that queries are drawn from; and from a
third of the references, which then calibrate none of them.

[zoo](zoo.md) says how the models were made, [schemes](schemes.md) what is compared, [finding](finding.md) how a finding is
reached.
"""

DIFFERENCES = """
Where ours differs from all of them:

- Networks are small and images are 28 x 28; the papers' data sets are not shipped, and their models are not public.
- Independent models are as close to the victim as honest models get: its data, its architecture, more data, adversarial training.
- TPR@5% takes every point of the ROC curve. It moves in steps of one derived model; with N innocents, one in N flagged is the
  least that is not zero.
- Queries are 8-bit images, checked after rounding. All of a scheme's queries count, both members of a pair too.
- The finding (`derived`) is made of scores that are calibrated with references, at a level that holds for one suspect. It is
  stricter than TPR@5%, whose threshold is chosen with the answers at hand.
"""

BESIDE = """
Published figures are typed from the papers, in [published.json](published.json); a dash is what they do not print, or what was
not measured here. Ours are means over seeds, at 100 queries a scheme.
"""


def settings(runs: Sequence[Ours], published: Mapping[str, Any]) -> str:
    """On what everybody's figures were taken."""
    sides = [(published[name]["paper"], published[name]["setting"]) for name in ("ipguard", "fuap", "sac", "qurd")]
    sides += [(f"Ours: {run.name}", our_setting(run)) for run in runs]
    return "\n".join(
        line for name, said in sides for line in (f"- **{name}**", *(f"  - {field}: {words}" for field, words in said.items()))
    )


def our_setting(run: Ours) -> dict[str, str]:
    """The same of a run."""
    facts, models = run.results["facts"], run.results["models"]
    counts = {kind: sum(model["kind"] == kind for model in models) for kind in ("positive", "negative", "sibling")}
    served = sum(bool(model["deployed"]) for model in models)
    other = sum(bool(model["labels"]) for model in models)
    return {
        "data": run.name,
        "victim": f"`{facts['victim_sha256'][:12]}`",
        "positives": f"{counts['positive']}; of these and the negatives {served} behind servers, {other} of another label set",
        "negatives": f"{counts['negative']}, and {counts['sibling']} siblings apart; {facts['references']} references calibrate",
        "queries": ", ".join(map(str, facts["budgets"])),
        "metric": f"AUC, TPR@5%, ARUC, share of `derived`; {facts['seeds']} seeds",
        "threshold": "all independent models of the label set, behind no server",
    }


# ---------------------------------------------------------------------------------------------------------------------- ours


def own_section(run: Ours, pictures: Path) -> list[str]:
    """What was measured, in our own words: findings, schemes, compositions, cost, pictures."""
    results, facts = run.results, run.results["facts"]
    words = (
        f"Combined: {', '.join(facts['combined'])}; {facts['references']} references, alpha {facts['alpha']:g}. {FINDING_WORDS}"
    )
    parts = [setting(results), f"### The finding, {run.budget} queries a scheme", words]
    parts += [markdown_table(FINDING_HEAD, findings(results, run.budget, with_deviation))]
    parts += ["### The finding by budget", markdown_table(*finding_by_budget(results))]
    parts += [f"### Schemes, all tasks, {run.budget} queries", markdown_table(*schemes(run))]
    parts += [illustrated(run, pictures)]
    if results["grid"]:
        count = len({cell["scheme"] for cell in results["grid"]})
        parts += [f"### The best {COMPOSITIONS} of {count} compositions, access {run.access}", GRID]
        parts += [markdown_table(grid_head(facts), grid_rows(results, run.access, COMPOSITIONS, with_deviation))]
    parts += ["### Seconds to craft", "One thread each; the queries of a seed.", markdown_table(*costs(facts))]
    said = left_out(facts)
    return [*parts, *(["### Left out", "\n".join(f"- {line}" for line in said)] if said else [])]


GRID = "TPR@5% over all tasks; references count as innocents here, besides the independent models."


def schemes(run: Ours) -> tuple[list[str], list[list[str]]]:
    """AUC, TPR@5% at every access, and what innocents and siblings score."""
    accesses = run.results["facts"]["accesses"]
    head = ["scheme", *(f"{figure}, {access}" for access in accesses for figure in ("AUC", "TPR@5%"))]
    cells = []
    for name in dict.fromkeys(row["scheme"] for row in rows_of(run.results, task=ALL)):
        line = [name]
        for access in accesses:
            rows = rows_of(run.results, scheme=name, task=ALL, access=access)
            row = min(rows, key=lambda row: abs(row["budget"] - run.budget), default=None)
            line += [with_deviation(row[figure], row[f"{figure}_sd"]) if row else DASH for figure in ("auc", "tpr_at_5")]
        cells.append(line)
    return head, cells


def illustrated(run: Ours, pictures: Path) -> str:
    """The plots of a run, copied beside the page."""
    captions = {
        "roc": "ROC over all tasks, mean over seeds",
        "scores": "Scores by task; dotted, the threshold of 5 % of the independent models",
        "budget": "TPR at 5 % FPR by queries, mean and standard deviation over seeds",
        "cost": "TPR at 5 % FPR by the seconds to craft and to check one suspect",
    }
    lines = [f"Shown: {choice_in_words(run.results, run.access)}; in the last, all schemes."]
    pictures.mkdir(parents=True, exist_ok=True)
    for name, caption in captions.items():
        for suffix in (".png", ".svg"):
            source = run.folder / f"{name}-{run.access.replace(':', '-')}{suffix}"
            if source.is_file():
                shutil.copyfile(source, pictures / f"{run.folder.name}-{name}{suffix}")
                if suffix == ".png":
                    lines.append(
                        f"![{caption}]({pictures.name}/{run.folder.name}-{name}.png)\n\n*{caption}, access {run.access}.*"
                    )
    return "\n\n".join(lines)


if __name__ == "__main__":
    main()
