"""What siblings are worth: power and false findings against their number and the number of queries.

    python benchmarks/siblings.py zoo/zoo.json --victim zoo/victim.pt --data zoo/craft.npz --siblings siblings/
                                  [--counts 5,10,20] [--queries 50,100,400,1000] [-o siblings.json] [--plot siblings.png]

siblings/: models by the recipe of the zoo's victim, none of them in the zoo. For each number of siblings (with 100 queries),
and each number of queries (with the most siblings), a bundle of ``line-up`` and ``line-up-cos`` is crafted with the zoo's
references. Every model of the zoo that is not behind a server, and has the victim's label set, is judged with scores and with
labels. Prints for each kind of model AUC against the independent ones, the share that is called derived, and the share at the
same alpha by rank among the references alone; of independent models and honest twins, the shares that are accused.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from onnxaudit.answers import Access
from onnxaudit.audit.crafting import CraftOptions, craft
from onnxaudit.audit.judging.judging import judge
from onnxaudit.audit.progress import Silent
from onnxaudit.bundle import QueryBundle
from onnxaudit.cli.console import parse_counts
from onnxaudit.evidence.metrics import auc, tpr_at_fpr
from onnxaudit.interview import interview
from onnxaudit.registry import open_suspect
from onnxaudit.report.text import table
from onnxaudit.suspect import Target
from onnxaudit.zoo.manifest import ZooEntry, load_zoo
from onnxaudit.zoo.saving import DIFFERENTIABLE

FEW = 100
HEAD = ("siblings", "queries", "access", "kind", "task", "models", "AUC", "TPR@5%", "derived", "by rank")


def crafted(given: argparse.Namespace, references: Sequence[Path], count: int, queries: int) -> QueryBundle:
    """A bundle with the first so many siblings."""
    files = sorted(file for file in given.siblings.iterdir() if file.suffix in (".onnx", ".pt"))[:count]
    with tempfile.TemporaryDirectory() as folder:
        for file in files:
            (Path(folder) / file.name).symlink_to(file.resolve())
            if (trained := file.with_suffix(DIFFERENTIABLE)).is_file():
                (Path(folder) / trained.name).symlink_to(trained.resolve())
        options = CraftOptions(
            given.victim,
            given.data,
            ("line-up", "line-up-cos"),
            queries=queries,
            reference_files=references,
            siblings=Path(folder),
            device="cpu",
        )
        return craft(options, Silent())


def measured(bundle: QueryBundle, entries: Sequence[tuple[Path, ZooEntry]], setting: tuple[int, int]) -> list[dict[str, Any]]:
    """A row for each task and access."""
    found: dict[tuple[str, str, str], list[tuple[float, bool, bool]]] = defaultdict(list)
    manifest = bundle.manifest
    for file, entry in entries:
        target = Target(str(file), manifest.input, manifest.victim.num_classes, "cpu", options={"threads": 1})
        with open_suspect(target) as suspect:
            answers, card = interview(suspect, bundle.queries).answers, suspect.card
        for access in (answers.access, Access.LABEL):
            report = judge(bundle, card, answers.degrade(access), None)
            by_rank = report.p_exchangeable is not None and report.p_exchangeable <= report.alpha
            row = (report.score if report.score is not None else float("nan"), report.finding == "derived", by_rank)
            found["labels" if access == Access.LABEL else "scores", entry.kind, entry.task].append(row)
    rows = []
    for (said, kind, task), models in sorted(found.items()):
        scores = [row[0] for row in models]
        innocent = [row[0] for (a, k, _), others in found.items() if a == said and k == "negative" for row in others]
        rows.append(
            {
                "siblings": setting[0],
                "queries": setting[1],
                "access": said,
                "kind": kind,
                "task": task,
                "models": len(models),
                "auc": auc(scores, innocent) if kind == "positive" else None,
                "tpr": tpr_at_fpr(scores, innocent) if kind == "positive" else None,
                "derived": float(np.mean([row[1] for row in models])),
                "by_rank": float(np.mean([row[2] for row in models])),
            }
        )
    return rows


SHOWN = (
    "adversarial-fine-tune",
    "prune-filters",
    "extract-probabilities",
    "extract-top-k",
    "extract-labels",
    "extract-adversarially",
)


def draw(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Share called derived against the number of siblings, and of queries; independent models and twins in black."""
    figure = Figure(figsize=(9, 6), layout="constrained")
    panels = figure.subplots(2, 2, sharey=True)
    most = max(row["siblings"] for row in rows)
    for across, access in enumerate(("scores", "labels")):
        for down, (name, fixed, value) in enumerate((("siblings", "queries", FEW), ("queries", "siblings", most))):
            axes = panels[down][across]
            for task in (*SHOWN, "independent", "sibling"):
                mine = [row for row in rows if row["task"] == task and row["access"] == access and row[fixed] == value]
                points = sorted((row[name], row["derived"]) for row in mine)
                innocent = task in ("independent", "sibling")
                style = {"color": "black", "ls": "--" if task == "sibling" else ":"} if innocent else {}
                axes.plot(*zip(*points, strict=True), marker="o", ms=3, lw=1.2, label=task, **style)
            axes.set(xlabel=name, title=f"{access}, {value} {fixed}", ylim=(-0.03, 1.03))
            if name == "queries":
                axes.set_xscale("log")
        panels[0][0].set_ylabel("share called derived")
    panels[0][1].legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(path, dpi=110, metadata={"Software": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("zoo", type=Path)
    parser.add_argument("--victim", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--siblings", type=Path, required=True)
    parser.add_argument("--counts", default="5,10,20")
    parser.add_argument("--queries", default="50,100,400,1000")
    parser.add_argument("-o", "--output", type=Path)
    parser.add_argument("--plot", type=Path)
    given = parser.parse_args()
    counts, budgets = parse_counts(given.counts, "--counts"), parse_counts(given.queries, "--queries")
    zoo = [(Path(entry.file), entry) for entry in load_zoo(given.zoo)]
    references = [file for file, entry in zoo if entry.kind == "reference"]
    judged = [(file, entry) for file, entry in zoo if entry.kind != "reference" and not entry.labels and not entry.deployed]
    rows: list[dict[str, Any]] = []
    for count, queries in dict.fromkeys([*((count, FEW) for count in counts), *((counts[-1], budget) for budget in budgets)]):
        bundle = crafted(given, references, count, queries)
        asked = bundle.manifest.schemes[0].rows[1]
        rows += measured(bundle, judged, (len(bundle.manifest.of_role("sibling")), asked))
        print(f"{count} siblings, {asked} queries", flush=True)
    if given.output:
        given.output.write_text(json.dumps(rows, indent=1), encoding="utf-8")
    if given.plot:
        draw(rows, given.plot)
    cells = [
        [str(row[name]) if not isinstance(row[name], float) else f"{row[name]:.2f}" for name in row]
        for row in sorted(rows, key=lambda row: (str(row["task"]), str(row["access"]), str(row["siblings"]), str(row["queries"])))
    ]
    print(table(HEAD, [["-" if cell == "None" else cell for cell in row] for row in cells]))


if __name__ == "__main__":
    main()
