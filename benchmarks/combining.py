"""What combining schemes gains over the best of them at an equal number of queries, on a zoo of models whose origin is known.

    python benchmarks/combining.py zoo/zoo.json --victim zoo/victim.pt --data zoo/craft.npz
                                   [--scheme NAME …] [--budgets 100,400] [--seeds 3] [--train-surrogates 12] [-o combining.json]

Each scheme alone with all queries of a budget; and all of them together with an equal part each, by ``--combine mean-z``, and
by ``--combine learned``, with the same references. Every seed divides the data anew into those that networks are trained on and
those that queries are made of. Judged are the models of the zoo that are behind no server and have the victim's label set.
Prints for each kind of derived model AUC and TPR at 5 % against the independent ones, means and deviations over the seeds; and
the shares that are called derived.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from onnxaudit.answers import Access
from onnxaudit.audit.crafting import CraftOptions, craft
from onnxaudit.audit.judging.judging import judge
from onnxaudit.audit.pools import LEARNED
from onnxaudit.audit.progress import Silent
from onnxaudit.bundle import QueryBundle
from onnxaudit.cli.console import parse_counts
from onnxaudit.evidence.metrics import auc, tpr_at_fpr
from onnxaudit.interview import interview
from onnxaudit.registry import open_suspect
from onnxaudit.report.text import table
from onnxaudit.suspect import Target
from onnxaudit.zoo.manifest import ZooEntry, load_zoo

HEAD = ("queries", "access", "kind", "schemes", "AUC", "±", "TPR@5%", "±", "derived")
ALL = "all derived"
Score = tuple[float, bool]


def bundles(given: argparse.Namespace, references: Sequence[Path], seed: int, budget: int) -> Iterator[tuple[str, QueryBundle]]:
    """Every way to spend a budget."""
    with np.load(given.data) as known:
        order = np.random.default_rng(seed).permutation(len(known["x"]))
        shuffled = given.work / f"data-{seed}.npz"
        if not shuffled.exists():
            np.savez(shuffled, x=known["x"][order], y=known["y"][order])
    alone = [(name, (name,), "mean-z") for name in given.scheme]
    together = [("mean-z", tuple(given.scheme), "mean-z"), (LEARNED, tuple(given.scheme), LEARNED)]
    for name, schemes, combine in (*alone, *together):
        options = CraftOptions(
            given.victim,
            shuffled,
            schemes,
            queries=budget // len(schemes),
            reference_files=references,
            train_surrogates=given.train_surrogates,
            surrogate_folder=given.work / f"surrogates-{seed}",
            combine=combine,
            seed=seed,
            device="cpu",
        )
        yield name, craft(options, Silent())


def judged(bundle: QueryBundle, models: Sequence[tuple[Path, ZooEntry]]) -> dict[str, dict[str, list[Score]]]:
    """For scores and for labels, by kind of model, each one's statistic and whether it is called derived."""
    found: dict[str, dict[str, list[Score]]] = {"scores": defaultdict(list), "labels": defaultdict(list)}
    manifest = bundle.manifest
    for file, entry in models:
        target = Target(str(file), manifest.input, manifest.victim.num_classes, "cpu", options={"threads": 1})
        with open_suspect(target) as suspect:
            answers, card = interview(suspect, bundle.queries).answers, suspect.card
        for said, access in (("scores", answers.access), ("labels", Access.LABEL)):
            report = judge(bundle, card, answers.degrade(access), None)
            row = (float("nan") if report.score is None else report.score, report.finding == "derived")
            for kind in (entry.task, *((ALL,) if entry.kind == "positive" else ())):
                found[said][kind].append(row)
    return found


def rows_of(found: dict[str, dict[str, list[Score]]], kinds: Sequence[str], setting: dict[str, Any]) -> list[dict[str, Any]]:
    rows = []
    for said, by_kind in found.items():
        innocent = [score for score, _ in by_kind["independent"]]
        for kind in kinds:
            scores = [score for score, _ in by_kind[kind]]
            derived = float(np.mean([derived for _, derived in by_kind[kind]]))
            derivable = kind not in ("independent", "sibling")
            rates = (
                {"auc": auc(scores, innocent), "tpr": tpr_at_fpr(scores, innocent)} if derivable else {"auc": None, "tpr": None}
            )
            rows.append({**setting, "access": said, "kind": kind, "models": len(scores), "derived": derived, **rates})
    return rows


def shown(rows: Sequence[dict[str, Any]]) -> list[list[str]]:
    """Means and deviations over the seeds."""
    grouped: dict[tuple[int, str, str, str], list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        grouped[row["queries"], row["access"], row["kind"], row["schemes"]].append(row)
    lines = []
    for key, same in sorted(grouped.items(), key=lambda item: item[0][:3]):
        cells = []
        for name in ("auc", "tpr"):
            values = [row[name] for row in same]
            cells += (
                ["-", "-"] if values[0] is None else [f"{np.mean(values):.2f}", f"{np.std(values, ddof=len(values) > 1):.2f}"]
            )
        lines.append([*map(str, key), *cells, f"{np.mean([row['derived'] for row in same]):.0%}"])
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("zoo", type=Path)
    parser.add_argument("--victim", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--scheme", action="append")
    parser.add_argument("--budgets", default="100,400")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--train-surrogates", type=int, default=12)
    parser.add_argument("--work", type=Path, help="folder for what is trained; default: a temporary one")
    parser.add_argument("-o", "--output", type=Path)
    given = parser.parse_args()
    given.scheme = given.scheme or ["ipguard-tl", "sac-m", "akh", "contrast"]
    zoo = [(Path(entry.file), entry) for entry in load_zoo(given.zoo)]
    references = [file for file, entry in zoo if entry.kind == "reference"]
    models = [(file, entry) for file, entry in zoo if entry.kind != "reference" and not entry.labels and not entry.deployed]
    kinds = [*dict.fromkeys(entry.task for _, entry in models), ALL]
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        given.work = given.work or Path(folder)
        given.work.mkdir(parents=True, exist_ok=True)
        for seed in range(given.seeds):
            for budget in parse_counts(given.budgets, "--budgets"):
                for name, bundle in bundles(given, references, seed, budget):
                    setting = {"seed": seed, "queries": budget, "schemes": name}
                    rows += rows_of(judged(bundle, models), kinds, setting)
                    print(f"seed {seed}, {budget} queries, {name}", flush=True)
    if given.output:
        given.output.write_text(json.dumps(rows, indent=1), encoding="utf-8")
    print(table(HEAD, shown(rows)))


if __name__ == "__main__":
    main()
