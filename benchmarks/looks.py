"""How many queries a finding takes when answers are judged as they come in.

    python benchmarks/looks.py zoo/zoo.json victim.oab [--looks 10,20,50,100,200]

Every model of a zoo that is not deployed behind a server, and has the victim's label set, answers all queries of the bundle once.
Its answers are then judged as if they came in one after another, with the bundle's planned looks, and once as a whole. Prints for
each task how many are derived either way, the median number of the schemes' queries at the look that decided, and how many were
asked before asking ended for all. The bundle's references are those of the zoo.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from onnxaudit.answers import Access, Answers
from onnxaudit.audit.judging.judging import judge
from onnxaudit.bundle import QueryBundle, load
from onnxaudit.cli.console import parse_counts
from onnxaudit.interview import interview
from onnxaudit.registry import open_suspect
from onnxaudit.report.text import table
from onnxaudit.suspect import SuspectCard, Target
from onnxaudit.zoo.manifest import load_zoo

WEIGHTS = ("same", "quantise", "fine-tune-", "retrain", "prune-", "weight-noise", "int8", "finetune", "prune")
"""Tasks whose models have the victim's weights, all or most of them."""


def answered(zoo: Path, bundle: QueryBundle) -> Iterator[tuple[str, str, SuspectCard, Answers]]:
    """Kind, task, card and answers of every model that is judged."""
    spec, classes = bundle.manifest.input, bundle.manifest.victim.num_classes
    for entry in load_zoo(zoo):
        if entry.kind == "reference" or entry.labels or entry.deployed:
            continue
        target = Target(entry.file, spec, classes, "cpu", options={"threads": 1})
        with open_suspect(target) as suspect:
            yield entry.kind, entry.task, suspect.card, interview(suspect, bundle.queries).answers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("zoo", type=Path)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--looks", help="Default: the bundle's.")
    given = parser.parse_args()
    bundle = load(given.bundle)
    looks = tuple(parse_counts(given.looks, "--looks")) if given.looks else bundle.manifest.looks
    found: dict[tuple[str, str, str], list[tuple[bool, bool, int | None, int]]] = defaultdict(list)
    for kind, task, card, answers in answered(given.zoo, bundle):
        for access in (answers.access, Access.LABEL):
            cut = answers.degrade(access)
            early, whole = judge(bundle, card, cut, None, planned=looks), judge(bundle, card, cut, None)
            row = early.finding == "derived", whole.finding == "derived", early.needed, early.looks[-1].queries
            said = "labels" if access == Access.LABEL else "scores"
            found[kind, task, said].append(row)
            if kind == "positive" and task.startswith(WEIGHTS):
                found[kind, "all with the victim's weights", said].append(row)
    rows: list[list[str]] = []
    for names, models in sorted(found.items()):
        needed = [count for *_, count, _ in models if count is not None]
        counts = len(models), sum(row[0] for row in models), sum(row[1] for row in models)
        middle = f"{np.median(needed):g}" if needed else "-"
        rows.append([*names, *map(str, counts), middle, f"{np.median([row[-1] for row in models]):g}"])
    references, words = len(bundle.manifest.of_role("reference")), ", ".join(map(str, looks))
    print(f"{references} references, alpha {bundle.manifest.alpha:g}, looks after {words} queries and all")
    print(table(("kind", "task", "access", "models", "derived", "asked all", "needed", "asked"), rows))


if __name__ == "__main__":
    main()
