"""Transferred models: does a copy of the victim that was taught other classes show, with scores, top-3 and labels?

    python benchmarks/transferred.py zoo/zoo.json --victim zoo/victim.pt --data zoo/craft.npz --made made/
                                     [--parents 24] [--copies 6] [-o transferred.json]

The zoo's transferred models, and further ones that are made here and kept in made/: ``copies`` of the victim, and as many
innocents as ``parents`` says, each an independent reference of the zoo. All are taught the zoo's other label set (``labels``)
by the zoo's own recipes, their last layer only or all layers. Half a minute a model. What is made here starts from
TorchScript, which holds batch norms as they are; the zoo's starts from the network itself.

A bundle of the standard schemes is crafted for the victim. Prints, for each kind of transfer and access, AUC of the derived
models against innocents transferred alike and against innocents trained from scratch on the other label set: of the comparison
without labels (pairs/1) and of SAC-m as published. Then shares that are called derived: of the derived with all innocents of the
label set as references ("found") and with the bundle's own, which are of the victim's task ("found, own"); of the innocents with
either ("accused", each left out of the references).
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from onnxaudit.answers import Access, Answers
from onnxaudit.audit.crafting import CraftOptions, craft
from onnxaudit.audit.judging.comparing import compare
from onnxaudit.audit.judging.judging import judge
from onnxaudit.audit.judging.label_free import compare_label_free
from onnxaudit.audit.progress import Silent
from onnxaudit.bundle import ModelEntry, QueryBundle
from onnxaudit.craft.data import load_data
from onnxaudit.craft.readers import fitted
from onnxaudit.evidence.metrics import auc
from onnxaudit.interview import interview
from onnxaudit.registry import open_suspect
from onnxaudit.report.text import table
from onnxaudit.suspect import SuspectCard, Target
from onnxaudit.zoo import recipes
from onnxaudit.zoo.manifest import ZooEntry, load_zoo
from onnxaudit.zoo.saving import DIFFERENTIABLE, copy_of, save_uint8_onnx
from onnxaudit.zoo.training import Recipe, to_pixels

TASKS = ("transfer-last", "transfer-all")
SCRATCH = "independent-transfer"
LEVELS = (Access.LOGITS, Access.TOPK, Access.LABEL)
TOP = 3
HEAD = ("transferred", "access", "against", "derived", "innocent", "AUC pairs", "AUC SAC-m", "found", "found, own", "accused")


@dataclass(frozen=True, slots=True, eq=False)
class Judged:
    """A model that was asked. derived: from the victim."""

    name: str
    task: str
    derived: bool
    answers: Answers


def recipe_of(zoo: Sequence[ZooEntry], task: str) -> Recipe:
    """How the zoo's own models of a task were trained."""
    known = next(entry.recipe for entry in zoo if entry.task == task)
    return Recipe(**{field.name: known[field.name] for field in dataclasses.fields(Recipe) if field.name in known})


def make(given: argparse.Namespace, zoo: Sequence[ZooEntry], shape: tuple[int, ...]) -> None:
    """Transfer the victim and independent models to the zoo's other label set, with the zoo's training part of it."""
    data = fitted(load_data(Path(given.labels)), shape)
    assert data.y is not None
    order = np.random.default_rng(int(data.sha256[:8], 16)).permutation(len(data))[len(data) // 4 :]
    x, y, classes = to_pixels(data.x[order]), torch.from_numpy(data.y[order]), int(data.y.max()) + 1
    trained = [(e.name, Path(e.file).with_suffix(DIFFERENTIABLE)) for e in zoo if e.kind == "reference"]
    trained = [(name, file) for name, file in trained if file.is_file()]
    count = min(given.parents, len(trained))
    sources = [(f"of-{name}", file) for name, file in (trained[i * len(trained) // count] for i in range(count))]
    sources += [(f"of-victim-{number}", given.victim) for number in range(given.copies)]
    for task in TASKS:
        recipe = recipe_of(zoo, task)
        for name, source in sources:
            path = given.made / f"{task}-{name}.onnx"
            if not path.exists():
                seed = int(hashlib.sha256(path.stem.encode()).hexdigest()[:8], 16)
                parent = copy_of(source.read_bytes(), torch.device("cpu"))
                own = dataclasses.replace(recipe, seed=seed)
                save_uint8_onnx(recipes.transfer(parent, x, y, own, classes, last=task == TASKS[0]), shape, path)
                print(f"made {path.name}", flush=True)


def asked(bundle: QueryBundle, given: argparse.Namespace, zoo: Sequence[ZooEntry]) -> list[Judged]:
    """What every transferred model says, and every innocent of the other label set."""
    files = [(Path(e.file), e.name, e.task, e.kind == "positive") for e in zoo if e.task in (*TASKS, SCRATCH) and not e.deployed]
    for file in sorted(given.made.glob("*.onnx")):
        task = next(task for task in TASKS if file.stem.startswith(task))
        files.append((file, file.stem, task, "-of-victim-" in file.stem))
    found = []
    for file, name, task, derived in files:
        with open_suspect(Target(str(file), bundle.manifest.input, None, "cpu", options={"threads": 1})) as suspect:
            found.append(Judged(name, task, derived, interview(suspect, bundle.queries).answers))
    return found


def with_references(bundle: QueryBundle, models: Sequence[Judged]) -> QueryBundle:
    """The bundle with these as its references."""
    kept = [model for model in bundle.manifest.models if model.role != "reference"]
    known = {f"reference-{number:03d}": model.answers for number, model in enumerate(models)}
    entries = [ModelEntry(i, "reference", i, None, "onnx", a.access.word, a.num_classes or 0) for i, a in known.items()]
    answers = {model.id: bundle.answers[model.id] for model in kept} | known
    return dataclasses.replace(bundle, manifest=dataclasses.replace(bundle.manifest, models=(*kept, *entries)), answers=answers)


def is_found(bundle: QueryBundle, answers: Answers) -> bool:
    """Whether a check without labels calls these answers derived."""
    return judge(bundle, SuspectCard("", "onnx", bundle.manifest.input), answers, None, label_free=True).finding == "derived"


def rows(bundle: QueryBundle, models: Sequence[Judged]) -> Iterator[dict[str, Any]]:
    """A row for each kind of transfer, access, and kind of innocents."""
    for level in LEVELS:
        cut = [dataclasses.replace(model, answers=model.answers.degrade(level, TOP)) for model in models]
        pairs = compare_label_free(bundle, [m.answers for m in cut], cut[0].answers).schemes[0].scores
        published = next(s for s in compare(bundle, [m.answers for m in cut], cut[0].answers).schemes if s.name == "sac-m").scores
        assert pairs is not None
        assert published is not None
        for task in TASKS:
            derived = [i for i, m in enumerate(cut) if m.derived and m.task == task]
            all_innocent = [m for m in cut if not m.derived and m.task in (task, SCRATCH)]
            found = [is_found(with_references(bundle, all_innocent), cut[i].answers) for i in derived]
            own = [is_found(bundle, cut[i].answers) for i in derived]
            for kind in (task, SCRATCH):
                innocent = [i for i, m in enumerate(cut) if not m.derived and m.task == kind]
                accused = [
                    is_found(with_references(bundle, [m for m in all_innocent if m is not cut[i]]), cut[i].answers)
                    or is_found(bundle, cut[i].answers)
                    for i in innocent
                ]
                yield {
                    "transferred": task,
                    "access": level.word,
                    "against": "transferred alike" if kind == task else "from scratch",
                    "derived": len(derived),
                    "innocent": len(innocent),
                    "auc": auc(pairs[derived].tolist(), pairs[innocent].tolist()),
                    "auc_sac_m": auc(published[derived].tolist(), published[innocent].tolist()),
                    "found": float(np.mean(found)),
                    "found_own": float(np.mean(own)),
                    "accused": float(np.mean(accused)),
                }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("zoo", type=Path)
    parser.add_argument("--victim", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--made", type=Path, required=True)
    parser.add_argument("--labels", default="sklearn:digits")
    parser.add_argument("--parents", type=int, default=24)
    parser.add_argument("--copies", type=int, default=6)
    parser.add_argument("-o", "--output", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    given.made.mkdir(parents=True, exist_ok=True)
    zoo = load_zoo(given.zoo)
    references = [Path(entry.file) for entry in zoo if entry.kind == "reference"]
    bundle = craft(CraftOptions(given.victim, given.data, reference_files=references, device="cpu"), Silent())
    make(given, zoo, bundle.manifest.input.shape)
    found = list(rows(bundle, asked(bundle, given, zoo)))
    if given.output:
        given.output.write_text(json.dumps(found, indent=1), encoding="utf-8")
    print(
        table(HEAD, [[str(value) if not isinstance(value, float) else f"{value:.2f}" for value in row.values()] for row in found])
    )


if __name__ == "__main__":
    main()
