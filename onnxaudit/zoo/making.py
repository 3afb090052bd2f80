"""Makes one model of a zoo, in a process of its own: training, export, and its accuracy as it is deployed (torch)."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from onnxaudit.decode import canonical, decode
from onnxaudit.errors import OnnxauditError
from onnxaudit.registry import deployed_as, open_suspect, quantise
from onnxaudit.suspect import InputSpec, Queries, Target
from onnxaudit.zoo import recipes
from onnxaudit.zoo.plan import CONVERSIONS, FROM_ANSWERS, FROM_WEIGHTS, Planned
from onnxaudit.zoo.saving import DIFFERENTIABLE, copy_of, save_network, save_uint8_onnx
from onnxaudit.zoo.training import Recipe, build, fit, logits, to_pixels

VERSION = 1
"""Part of every key: raised when the same plan comes to make other models."""
MEASURED = 2000
"""Test inputs that accuracy is measured on."""
CALIBRATION = 200
"""Inputs that an INT8 export is calibrated with."""
BATCH = 250


@dataclass(frozen=True, slots=True)
class Shelf:
    """Where the inputs and labels of one label set are. parts: rows from where to where; "test" is one of them."""

    folder: Path
    classes: int
    sha256: str
    parts: Mapping[str, tuple[int, int]]

    def take(self, part: str, rows: int | None = None) -> tuple[Queries, NDArray[np.int64]]:
        """Inputs and labels of a part, or of its first rows."""
        start, stop = self.parts[part]
        stop = stop if rows is None else min(stop, start + rows)
        x = np.load(self.folder / "x.npy", mmap_mode="r")[start:stop]
        return np.array(x), np.array(np.load(self.folder / "y.npy", mmap_mode="r")[start:stop])


@dataclass(frozen=True, slots=True)
class Workshop:
    """What every model of a zoo is made from. shelves: by label set, "" the victim's own. victim: the digest of its file.

    recipe: of a victim that was trained here; None: its program is an archive.
    """

    folder: Path
    shape: tuple[int, ...]
    shelves: Mapping[str, Shelf]
    victim: str
    recipe: Recipe | None
    device: str = "cpu"

    @property
    def work(self) -> Path:
        """Where what is not part of the zoo lies."""
        return self.folder / ".work"

    def victim_network(self) -> nn.Module:
        """The victim, its weights to be changed at will."""
        if self.recipe is None:
            return copy_of((self.work / "victim.ts").read_bytes(), torch.device(self.device))
        network = build(self.recipe, self.shape, self.shelves[""].classes)
        network.load_state_dict(torch.load(self.work / "victim.weights", weights_only=True))
        return network.to(self.device).eval()


@dataclass(frozen=True, slots=True)
class Made:
    """One model that was made. file: relative to the zoo; sha256: of it. accuracy: on its label set's test inputs, as deployed.

    seconds, cpu_seconds: that it took, measuring included.
    """

    key: str
    file: str
    sha256: str
    accuracy: float
    seconds: float
    cpu_seconds: float


def key_of(planned: Planned, workshop: Workshop, parent: str = "") -> str:
    """A digest of all that a model's weights, and its accuracy as it is deployed, depend on; its name is no part of it."""
    shelf = workshop.shelves[planned.labels]
    recipe = dataclasses.asdict(planned.recipe)
    derived = planned.method in (*CONVERSIONS, *FROM_WEIGHTS, *FROM_ANSWERS)
    made_of = [
        *(VERSION, planned.method, recipe, dict(planned.options), workshop.shape, shelf.sha256, shelf.classes),
        *(shelf.parts.get(planned.part), shelf.parts["test"], workshop.victim if derived else "", parent, planned.deployed),
    ]
    return hashlib.sha256(canonical(made_of).encode()).hexdigest()[:12]


def _is_differentiated(planned: Planned) -> bool:
    """Whether TorchScript lies beside it: of references, whose gradients schemes take, and of siblings, which may be victims."""
    return planned.kind in ("reference", "sibling") and planned.method == "train" and not planned.deployed


def found(planned: Planned, workshop: Workshop, key: str) -> Made | None:
    """What an earlier run left under this key, if it was completed and is still whole."""
    for facts in sorted((workshop.folder / "models").glob(f"*-{key}.json")):
        try:
            made = decode(Made, json.loads(facts.read_text(encoding="utf-8")), facts.name)
            file = workshop.folder / made.file
            if file_digest(file) == made.sha256 and (
                not _is_differentiated(planned) or file.with_suffix(DIFFERENTIABLE).is_file()
            ):
                return made
        except (OSError, ValueError, OnnxauditError):  # half written or damaged: it is made again
            continue
    return None


def attempt(planned: Planned, key: str, parent: str | None, workshop: Workshop) -> Made | str:
    """As ``make``; in words why not, where it cannot be made from this victim, answers nonsense, or is too large for memory."""
    try:
        return make(planned, key, parent, workshop)
    except OnnxauditError as error:
        return error.what
    except Exception as error:  # the exporter and the device have errors of their own; one model must not end the others
        return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0][:200]}"


def make(planned: Planned, key: str, parent: str | None, workshop: Workshop) -> Made:
    """Make a model and measure it; what says that it is complete is written last. parent: the file of the one behind a server."""
    torch.set_num_threads(1)
    started, worked = time.perf_counter(), time.process_time()
    file = f"models/{planned.name}-{key}.onnx" if parent is None else parent
    path = workshop.folder / file
    if parent is None:
        _write(planned, workshop, path)
    accuracy = _accuracy(planned, workshop, path)
    took = round(time.perf_counter() - started, 2), round(time.process_time() - worked, 2)
    made = Made(key, file, file_digest(path), accuracy, *took)
    facts = workshop.folder / "models" / f"{planned.name}-{key}.json"
    temporary = facts.with_suffix(".json.tmp")
    temporary.write_text(canonical(made), encoding="utf-8")
    temporary.replace(facts)
    return made


def _write(planned: Planned, workshop: Workshop, path: Path) -> None:
    """The model as an ONNX file, written in one step."""
    source = workshop.work / "victim.onnx"
    if planned.method == "export":
        shutil.copyfile(source, path.with_suffix(".tmp"))
        path.with_suffix(".tmp").replace(path)
    elif planned.method in CONVERSIONS:
        quantise(planned.method, source, path, workshop.shelves[""].take(planned.part, CALIBRATION)[0])
    elif planned.method == "forest":
        _grow_forest(planned, workshop, path)
    else:
        save = save_network if _is_differentiated(planned) else save_uint8_onnx
        save(network(planned, workshop).cpu(), workshop.shape, path)


def network(planned: Planned, workshop: Workshop) -> nn.Module:
    """The trained network of a plan."""
    shelf, recipe, options = workshop.shelves[planned.labels], planned.recipe, planned.options
    images, labels = shelf.take(planned.part or "train", options.get("rows"))
    x, y = to_pixels(images), torch.from_numpy(labels)
    if planned.method == "train":
        return fit(build(recipe, workshop.shape, shelf.classes).to(workshop.device), x, y, recipe)
    if planned.method in FROM_WEIGHTS:
        return _from_weights(planned, workshop.victim_network(), x, y, shelf.classes)
    said = torch.from_numpy(np.load(workshop.work / f"logits-{planned.part}.npy")[: len(x)]).to(workshop.device)
    return _from_answers(planned, said, x, workshop.shape)


def _from_weights(planned: Planned, victim: nn.Module, x: Tensor, y: Tensor, classes: int) -> nn.Module:
    recipe, options = planned.recipe, planned.options
    if planned.method == "fine-tune":
        return recipes.fine_tune(victim, x, y, recipe, last=options.get("last", False), reset=options.get("reset", False))
    if planned.method == "transfer":
        return recipes.transfer(victim, x, y, recipe, classes, last=options.get("last", False))
    if planned.method == "prune-weights":
        return recipes.prune_weights(victim, x, y, recipe, options["share"])
    if planned.method == "prune-filters":
        return recipes.prune_filters(victim, x, y, recipe, options["share"])
    if planned.method == "fine-prune":
        return recipes.fine_prune(victim, x, y, recipe, options["share"])
    return recipes.add_noise(victim, options["scale"], recipe.seed)


def _from_answers(planned: Planned, said: Tensor, x: Tensor, shape: tuple[int, ...]) -> nn.Module:
    recipe, options = planned.recipe, planned.options
    if planned.method == "extract-labels":
        return recipes.extract_labels(said, x, recipe, shape)
    if planned.method == "extract-probabilities":
        temperature, mixed = options.get("temperature", 20.0), options.get("mixed", 1.0)
        return recipes.extract_probabilities(said, x, recipe, shape, temperature, mixed)
    if planned.method == "extract-top":
        return recipes.extract_top(said, x, recipe, shape, options["k"])
    return recipes.extract_adversarially(said, x, recipe, shape, options.get("radius", 4 / 255), options.get("hardening", 2))


def _grow_forest(planned: Planned, workshop: Workshop, path: Path) -> None:
    from onnxaudit.zoo.forest import fit_forest, save_forest  # the converter takes a second to import

    shelf = workshop.shelves[planned.labels]
    images, labels = shelf.take(planned.part or "train", planned.options.get("rows"))
    forest = fit_forest(images, labels, trees=planned.options.get("trees", 20), seed=planned.recipe.seed % 2**31)
    save_forest(forest, workshop.shape, shelf.classes, path)


def victim_logits(workshop: Workshop, images: Queries) -> NDArray[np.float32]:
    """What the victim says to images, (n, C), in batches."""
    model = workshop.victim_network()
    parts = [logits(model, to_pixels(images[i : i + 1000])) for i in range(0, len(images), 1000)]
    said: NDArray[np.float32] = torch.cat(parts).float().numpy()
    return said


def _accuracy(planned: Planned, workshop: Workshop, path: Path) -> float:
    """Share of test inputs that the file, as it is deployed, gives the true label."""
    shelf = workshop.shelves[planned.labels]
    x, y = shelf.take("test", MEASURED)
    spec = InputSpec(workshop.shape, "NHWC" if len(workshop.shape) == 3 else "NC")
    with open_suspect(Target(str(path), spec, shelf.classes)) as model:
        suspect = deployed_as(model, planned.deployed) if planned.deployed else model
        right = [suspect.ask(x[i : i + BATCH]).labels == y[i : i + BATCH] for i in range(0, len(x), BATCH)]
    return float(np.concatenate(right).mean())


def file_digest(path: Path) -> str:
    """The sha256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()
