"""build_zoo(): models to judge on, derived from a victim and independent of it, each made once and never again."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from onnxaudit.alone import alone
from onnxaudit.audit.crafting import CraftOptions, victim_of
from onnxaudit.audit.progress import Progress
from onnxaudit.craft.data import Data, load_data
from onnxaudit.craft.readers import fitted
from onnxaudit.craft.victim import Victim, choose_device
from onnxaudit.decode import canonical
from onnxaudit.errors import UsageError
from onnxaudit.suspect import Queries
from onnxaudit.zoo.making import MEASURED, Made, Shelf, Workshop, attempt, file_digest, found, key_of, network, victim_logits
from onnxaudit.zoo.manifest import ZooEntry, write_zoo
from onnxaudit.zoo.plan import CONVERSIONS, FROM_ANSWERS, FROM_WEIGHTS, Plan, Planned
from onnxaudit.zoo.recipe_file import find_plan, load_plan
from onnxaudit.zoo.saving import copy_of, save_differentiable, save_uint8_onnx

INPUTS_PER_CLASS = 50
TRANSFER_TEST = 4
"""One in so many inputs of another label set is kept for its test."""
ON_A_GPU = 4
"""Small trainings that share a GPU well."""


@dataclass(frozen=True, slots=True)
class ZooOptions:
    """What the user asked ``zoo build`` for. victim None: one is trained. victim_options: how it is opened, as for craft."""

    data: Path
    recipe: str
    output: Path
    victim: CraftOptions | None = None
    seed: int = 0
    jobs: int | None = None
    device: str = "auto"


@dataclass(frozen=True, slots=True)
class Built:
    """A zoo. entries: as in its manifest; left_out: names of models that fell short, or could not be made, with the reason.

    made: how many were made now; the others were there.
    """

    manifest: Path
    entries: tuple[ZooEntry, ...]
    left_out: Mapping[str, str]
    made: int


def build_zoo(options: ZooOptions, progress: Progress) -> Built:
    """Make every model of the plan that is not there yet, and write the manifest.

    Deterministic on one machine, and resumable: what was completed is found by a digest of all that it depends on. Raises
    UsageError for data, a victim or a plan that do not go together, and where another process builds in the same folder.
    """
    data = load_data(options.data)
    classes = _checked(data)
    plan = load_plan(find_plan(options.recipe), len(data), options.seed)
    _check_networks(plan, data.shape)
    options.output.mkdir(parents=True, exist_ok=True)
    with alone(options.output / ".lock"):
        return _build(options, plan, data, classes, progress)


def _build(options: ZooOptions, plan: Plan, data: Data, classes: int, progress: Progress) -> Built:
    for folder in (options.output / "models", options.output / ".work"):
        folder.mkdir(parents=True, exist_ok=True)
    shelves = {"": _shelve(options.output, "", data, _parts(plan, len(data)), classes)}
    shelves |= {name: _shelve_other(options.output, name, source, data.shape) for name, source in plan.labels.items()}
    device = choose_device(options.device).type
    empty = Workshop(options.output, data.shape, shelves, "", None, device)
    workshop, weights, accuracy = _with_victim(options, plan, empty, data, progress)
    models, left_out = _possible(plan.models, workshop, weights=weights, own_victim=options.victim is None)
    _answer(models, workshop)
    x, y = shelves[""].take("queries")
    np.savez_compressed(options.output / "craft.npz", x=x, y=y, names=np.array(data.names, np.str_))
    jobs = options.jobs or (ON_A_GPU if device == "cuda" else os.cpu_count() or 1)
    made, fresh = _make_all(models, workshop, jobs, left_out, progress)
    left_out |= _too_weak(models, made, accuracy)
    entries = tuple(_entry(planned, made[planned.name], workshop) for planned in models if planned.name not in left_out)
    if not entries:
        raise UsageError("none of the models could be made", "; ".join(sorted(set(left_out.values())))[:300])
    write_zoo(options.output / "zoo.json", entries)
    for array in (options.output / ".work").rglob("*.npy"):
        array.unlink()
    return Built(options.output / "zoo.json", entries, left_out, fresh)


def _checked(data: Data) -> int:
    """How many classes the data has. Raises UsageError where a zoo cannot be made from it."""
    if data.y is None:
        raise UsageError("a zoo needs labelled data", "Give y with the data.")
    classes = int(data.y.max()) + 1
    if len(data) < INPUTS_PER_CLASS * classes:
        raise UsageError(f"{len(data)} inputs are too few for {classes} classes", f"Give at least {INPUTS_PER_CLASS} a class.")
    return classes


def _too_weak(models: Sequence[Planned], made: Mapping[str, Made], victim: float) -> dict[str, str]:
    """Models that reach less of the victim's accuracy than they must, which nobody would deploy; nor are they behind servers."""
    weak = {
        planned.name: f"accuracy {made[planned.name].accuracy:.1%} is below {planned.least * victim:.1%}"
        for planned in models
        if planned.name in made and made[planned.name].accuracy < planned.least * victim
    }
    behind = [planned for planned in models if planned.deployed and planned.parent in weak]
    return weak | {planned.name: f"{planned.parent} is left out" for planned in behind}


def _parts(plan: Plan, inputs: int) -> dict[str, tuple[int, int]]:
    """Rows of the shuffled data, by the name of the part."""
    first = plan.data.queries + plan.data.test
    left = inputs - first
    shares = {name: (first + round(a * left), first + round(b * left)) for name, (a, b) in plan.data.parts.items()}
    return {"queries": (0, plan.data.queries), "test": (plan.data.queries, first), **shares}


def _shelve(folder: Path, name: str, data: Data, parts: dict[str, tuple[int, int]], classes: int) -> Shelf:
    """The data in an order of its own, as files that every process can read in place."""
    assert data.y is not None
    place = folder / ".work" / (name or "own")
    place.mkdir(exist_ok=True)
    order = np.random.default_rng(int(data.sha256[:8], 16)).permutation(len(data))
    np.save(place / "x.npy", data.x[order])
    np.save(place / "y.npy", data.y[order])
    return Shelf(place, classes, data.sha256, parts)


def _shelve_other(folder: Path, name: str, source: str, shape: tuple[int, ...]) -> Shelf:
    """Another label set's data, brought to the victim's size."""
    data = fitted(load_data(Path(source)), shape)
    if data.y is None:
        raise UsageError(f"the data of label set {name!r} has no labels", "Give y with it.")
    test = len(data) // TRANSFER_TEST
    return _shelve(folder, name, data, {"test": (0, test), "train": (test, len(data))}, int(data.y.max()) + 1)


def _with_victim(
    options: ZooOptions, plan: Plan, workshop: Workshop, data: Data, progress: Progress
) -> tuple[Workshop, bool, float]:
    """The workshop with the victim's files in it; whether its weights can be changed; its accuracy."""
    target = options.output / "victim.pt"
    x, y = workshop.shelves[""].take("test", MEASURED)
    if options.victim is None:
        workshop = _train_victim(plan, workshop, target, progress)
        return workshop, True, float((victim_logits(workshop, x).argmax(1) == y).mean())
    victim, notes = victim_of(options.victim, data)
    for note in notes:
        progress.note(note)
    if data.y is not None and data.y.max() >= victim.num_classes:
        raise UsageError(f"the data has label {data.y.max()}, the victim {victim.num_classes} classes", "Labels count from 0.")
    shelves = {**workshop.shelves, "": dataclasses.replace(workshop.shelves[""], classes=victim.num_classes)}
    known_as = hashlib.sha256(canonical([victim.sha256, victim.spec, options.victim.model]).encode()).hexdigest()
    workshop = dataclasses.replace(workshop, victim=known_as, shelves=shelves)
    accuracy = float((_said(victim, x).argmax(1) == y).mean())
    if options.victim.victim.resolve() != target.resolve():
        shutil.copyfile(options.victim.victim, target)
    for part in plan.data.parts:
        np.save(workshop.work / f"logits-{part}.npy", _said(victim, workshop.shelves[""].take(part)[0]))
    portable = victim.portable()
    if portable is None:
        return workshop, False, accuracy
    (workshop.work / "victim.ts").write_bytes(portable)
    try:
        save_uint8_onnx(copy_of(portable, torch.device("cpu")), data.shape, workshop.work / "victim.onnx")
    except Exception as error:  # the exporter has errors of its own for every operator that ONNX lacks
        raise UsageError(f"the victim cannot be exported to ONNX: {str(error).strip().splitlines()[0]}") from None
    return workshop, True, accuracy


def _said(victim: Victim, images: Queries) -> NDArray[np.float32]:
    parts = [victim.predict(victim.pixels(images[i : i + 1000])).float().cpu().numpy() for i in range(0, len(images), 1000)]
    return np.concatenate(parts)


def _train_victim(plan: Plan, workshop: Workshop, target: Path, progress: Progress) -> Workshop:
    """Train the plan's victim, unless it is there and whole, and save it as weights, TorchScript and ONNX.

    What is derived from it is known by its weights, not by its recipe: another machine may train it a little differently.
    """
    planned = Planned("victim", "positive", "victim", "train", "own", plan.victim)
    facts = workshop.work / "victim.json"
    files = [workshop.work / "victim.weights", workshop.work / "victim.onnx", target]
    made_of = {"key": key_of(planned, workshop)}
    if not _is_whole(facts, made_of, files):
        facts.unlink(missing_ok=True)
        done = progress.task("training the victim", 1)
        torch.set_num_threads(1)  # as all other models are trained: sums of several threads come out differently
        model = network(planned, workshop).cpu()
        torch.save(model.state_dict(), files[0])
        save_uint8_onnx(model, workshop.shape, files[1])
        save_differentiable(model, workshop.shape, target)
        facts.write_text(canonical({**made_of, "files": {file.name: file_digest(file) for file in files}}))
        done(1)
    weights = torch.load(files[0], weights_only=True)
    known_as = hashlib.sha256(b"".join(weights[name].numpy().tobytes() for name in sorted(weights))).hexdigest()
    return dataclasses.replace(workshop, victim=known_as, recipe=plan.victim)


def _is_whole(facts: Path, made_of: Mapping[str, str], files: Sequence[Path]) -> bool:
    """Whether a victim of this key is there, and its files are as they were written."""
    try:
        return bool(json.loads(facts.read_text()) == {**made_of, "files": {file.name: file_digest(file) for file in files}})
    except (OSError, ValueError):
        return False


def _possible(
    models: Sequence[Planned], workshop: Workshop, *, weights: bool, own_victim: bool
) -> tuple[list[Planned], dict[str, str]]:
    """The models that can be made from this victim, and why others cannot."""
    kept: list[Planned] = []
    left_out: dict[str, str] = {}
    for planned in models:
        if planned.parent in left_out:
            left_out[planned.name] = f"{planned.parent} is not there"
        elif not weights and planned.method in (*FROM_WEIGHTS, *CONVERSIONS):
            left_out[planned.name] = "the victim's weights cannot be changed (frozen, not float32, or of one batch size)"
        elif not own_victim and planned.kind == "sibling":
            left_out[planned.name] = "the recipe of a victim that was not trained here is not known"
        else:
            kept.append(planned)
    if not kept:
        raise UsageError("nothing of this recipe can be made from this victim", "; ".join(sorted(set(left_out.values()))))
    return kept, left_out


def _check_networks(plan: Plan, shape: tuple[int, ...]) -> None:
    """Raise UsageError for networks that do not take such inputs."""
    fresh = [model for model in plan.models if model.method in ("train", *FROM_ANSWERS)]
    wrong = next((model for model in fresh if len(shape) != 3 and model.recipe.arch != "mlp"), None)
    if wrong is not None:
        raise UsageError(
            f"{wrong.name}: {wrong.recipe.arch} takes images, the data is vectors", "Write a recipe with arch = mlp."
        )


def _answer(models: Sequence[Planned], workshop: Workshop) -> None:
    """The victim's logits for every part of the data that a model is extracted with."""
    if workshop.recipe is None:
        return
    for part in sorted({planned.part for planned in models if planned.method in FROM_ANSWERS}):
        np.save(workshop.work / f"logits-{part}.npy", victim_logits(workshop, workshop.shelves[""].take(part)[0]))


def _make_all(
    models: Sequence[Planned], workshop: Workshop, jobs: int, left_out: dict[str, str], progress: Progress
) -> tuple[dict[str, Made], int]:
    """Every model by name, made in parallel processes unless it is there, the longest first; how many were made.

    left_out: is told which could not be made, and why.
    """
    made: dict[str, Made] = {}
    report, fresh = progress.task("making models", len(models)), 0
    for behind in (False, True):
        jobs_left: dict[str, tuple[Planned, str, str | None]] = {}
        for planned in models:
            if planned.deployed and planned.parent in left_out:
                left_out[planned.name] = f"{planned.parent} is not there"
            elif bool(planned.deployed) == behind:
                parent = made[planned.parent] if behind else None
                key = key_of(planned, workshop, parent.key if parent else "")
                if (there := found(planned, workshop, key)) is not None:
                    made[planned.name] = there
                else:
                    jobs_left[planned.name] = planned, key, parent.file if parent else None
        report(len(made))
        for name, result in _parallel(jobs_left, workshop, jobs):
            if isinstance(result, str):
                left_out[name] = result
            else:
                made[name] = result
                fresh += 1
            report(len(made) + len(left_out))
    return made, fresh


def _parallel(
    todo: Mapping[str, tuple[Planned, str, str | None]], workshop: Workshop, jobs: int
) -> Iterator[tuple[str, Made | str]]:
    from joblib import Parallel, delayed

    order = sorted(todo, key=lambda name: -_effort(todo[name][0], workshop))
    workers = Parallel(n_jobs=jobs, return_as="generator", batch_size=1)
    yield from zip(order, workers(delayed(attempt)(*todo[name], workshop) for name in order), strict=True)


def _effort(planned: Planned, workshop: Workshop) -> float:
    """About how many inputs pass a network while a model is trained; long ones begin first, so that all end together."""
    if planned.deployed or planned.method in (*CONVERSIONS, "forest", "add-noise"):
        return 0.0
    start, stop = workshop.shelves[planned.labels].parts[planned.part or "train"]
    rows, recipe = min(stop - start, planned.options.get("rows", stop - start)), planned.recipe
    attacked = recipe.epochs if recipe.adversarial else planned.options.get("hardening", 2)
    hard = recipe.adversarial > 0 or planned.method == "extract-adversarially"
    return float(rows * (recipe.epochs + (attacked * recipe.attack_steps if hard else 0)))


def _entry(planned: Planned, made: Made, workshop: Workshop) -> ZooEntry:
    """The manifest's entry: with everything that the model was made with."""
    shelf = workshop.shelves[planned.labels]
    trained = planned.method not in CONVERSIONS
    derived = planned.method in (*CONVERSIONS, *FROM_WEIGHTS, *FROM_ANSWERS)
    part = planned.part or ("train" if trained else "")
    rows = shelf.parts.get(part)
    recipe = {
        "method": planned.method,
        **(dataclasses.asdict(planned.recipe) if trained and planned.method != "forest" else {}),
        **planned.options,
        **({"part": part, "rows_from": rows[0], "rows_to": rows[1]} if rows and trained else {}),
        "seconds": made.seconds,
        "cpu_seconds": made.cpu_seconds,
        "key": made.key,
    }
    arch = "" if planned.method in CONVERSIONS else "forest" if planned.method == "forest" else planned.recipe.arch
    return ZooEntry(
        file=made.file,
        kind=planned.kind,
        task=planned.task,
        arch=arch,
        accuracy=round(made.accuracy, 4),
        name=planned.name,
        deployed=planned.deployed,
        labels=planned.labels,
        parent=planned.parent or ("victim" if derived else ""),
        seed=planned.recipe.seed if trained else None,
        data_sha256=_part_digest(shelf, part) if rows and trained else None,
        recipe=recipe,
    )


def _part_digest(shelf: Shelf, part: str) -> str:
    """Of the whole data and the rows that were taken from it."""
    return hashlib.sha256(json.dumps([shelf.sha256, shelf.parts[part]]).encode()).hexdigest()
