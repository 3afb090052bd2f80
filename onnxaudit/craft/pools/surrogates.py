"""Surrogates: models that the owner derives from the victim as others would, to know what derived models look like (torch)."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from onnxaudit.craft.data import Data
from onnxaudit.craft.room import BATCH
from onnxaudit.craft.victim import Victim
from onnxaudit.errors import UsageError
from onnxaudit.suspect import Queries
from onnxaudit.zoo import recipes
from onnxaudit.zoo.saving import DIFFERENTIABLE, copy_of, save_network, save_uint8_onnx
from onnxaudit.zoo.training import Recipe, accuracy, to_pixels

EXTRACTIONS = ("extract-probabilities", "extract-labels", "extract-adversarially")
DERIVATIONS = ("fine-tune", "prune")
IMAGES_SEEN = {"vgg": 20_000, "resnet": 25_000, "lenet": 60_000, "mlp": 80_000}
"""Length of an extraction in images: a few seconds on small ones, after which it agrees with the victim on most inputs."""
MOST_EPOCHS = 60
"""More passes over a few inputs teach nothing."""
TEMPERATURES = (1.0, 3.0, 20.0)
HARDENING = 4 / 255
"""L-infinity radius of adversarial training (SAC's Extract-Adv)."""
SHARES = (0.2, 0.4, 0.6)
"""Of a layer's weights that pruning sets to zero."""
FEWEST = 100
"""Inputs; a network extracted from fewer says nothing about derived models."""


@dataclass(frozen=True, slots=True)
class TrainedSurrogate:
    """One surrogate. path: an ONNX file that takes raw 8-bit pixels, next to it the network as TorchScript.

    strength: temperature of a distillation, radius of hardening, share of weights pruned; 0 where the task has none.
    agreement: share of inputs kept from training to which it gives the victim's label.
    """

    path: Path
    task: str
    recipe: Recipe
    strength: float
    agreement: float


@dataclass(frozen=True, slots=True, eq=False)
class Lesson:
    """What a worker trains and tests on. scores: the victim's logits for x; said: its labels for ``x_test``."""

    x: Queries
    y: NDArray[np.int64]
    scores: NDArray[np.float32]
    x_test: Queries
    said: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Plan:
    """One network to derive."""

    task: str
    recipe: Recipe
    strength: float
    stem: Path
    """The file's path without a suffix; its name ends in a digest of all that the weights depend on."""

    @property
    def path(self) -> Path:
        """The file that it is saved to."""
        return self.stem.with_suffix(".onnx")

    def found(self) -> TrainedSurrogate | None:
        """What an earlier run left, if it was completed."""
        path, facts = self.path, self.stem.with_suffix(".json")
        if not (facts.exists() and path.exists() and path.with_suffix(DIFFERENTIABLE).exists()):
            return None
        agreement = float(json.loads(facts.read_text())["agreement"])
        return TrainedSurrogate(path, self.task, self.recipe, self.strength, agreement)


def train_surrogates(
    data: Data,
    test: Data,
    victim: Victim,
    count: int,
    seed: int,
    folder: Path,
    *,
    jobs: int | None,
    progress: Callable[[int], None],
) -> list[TrainedSurrogate]:
    """Derive ``count`` surrogates from the victim with ``data``, in parallel processes; ``test`` measures how close they came.

    Tasks take turns (methods that extract from answers; then fine-tuned and pruned copies, if the victim's weights can be
    trained), and so do architectures. The victim answers here; processes get its answers, or its weights, never itself. What is
    already in ``folder`` from the same victim, data and seed is not trained again. Raises UsageError with too little data.
    """
    from joblib import Parallel, delayed

    if len(data) < FEWEST:
        raise UsageError(
            f"{len(data)} inputs are too few to train surrogates on", f"Give at least {FEWEST}, or --surrogates DIR."
        )
    if data.y is not None and data.y.max() >= victim.num_classes:
        raise UsageError(f"the data has label {data.y.max()}, the victim {victim.num_classes} classes", "Labels count from 0.")
    folder.mkdir(parents=True, exist_ok=True)
    portable = _trainable(victim, data.shape)
    plans = [_plan(data, test, victim, seed, index, folder, derive=portable is not None) for index in range(count)]
    found = {index: kept for index, plan in enumerate(plans) if (kept := plan.found()) is not None}
    progress(len(found))
    missing = [index for index in range(count) if index not in found]
    if missing:
        scores = logits_of(victim, data.x)
        labels = scores.argmax(1) if data.y is None else data.y
        lesson = Lesson(data.x, labels, scores, test.x, logits_of(victim, test.x).argmax(1))
        workers = Parallel(n_jobs=jobs or os.cpu_count() or 1, return_as="generator", batch_size=1)
        calls = (delayed(train_one)(plans[i], lesson, portable if plans[i].task in DERIVATIONS else None) for i in missing)
        for index, result in zip(missing, workers(calls), strict=True):
            found[index] = result
            progress(len(found))
    return [found[index] for index in range(count)]


def _trainable(victim: Victim, shape: tuple[int, ...]) -> bytes | None:
    """The victim to derive copies from, if it can be trained and what comes of it can be saved."""
    if (portable := victim.portable()) is None:
        return None
    with tempfile.TemporaryDirectory() as folder:
        try:
            save_uint8_onnx(copy_of(portable, torch.device("cpu")), shape, Path(folder) / "copy.onnx")
        except Exception:  # the exporter has errors of its own for every operator that ONNX lacks
            return None
    return portable


def logits_of(victim: Victim, x: Queries) -> NDArray[np.float32]:
    """The victim's logits for all inputs, (n, C)."""
    return np.concatenate(
        [victim.predict(victim.pixels(x[i : i + BATCH])).float().cpu().numpy() for i in range(0, len(x), BATCH)]
    )


def _plan(data: Data, test: Data, victim: Victim, seed: int, index: int, folder: Path, *, derive: bool) -> Plan:
    """What the surrogate with this number is: tasks in turn, and in every round each with the next architecture."""
    image = len(data.shape) == 3
    extractions = EXTRACTIONS if image else EXTRACTIONS[:2]  # the radius of hardening is one of pixels
    tasks = extractions + DERIVATIONS if derive else extractions
    names = ("vgg", "resnet", "lenet") if image else ("mlp",)
    turn, place = divmod(index, len(tasks))
    task = tasks[place]
    arch = "victim" if task in DERIVATIONS else names[(turn + place) % len(names)]
    rng = np.random.default_rng([seed, index])
    n = len(data)
    recipe = Recipe(
        arch=arch,
        width=float(rng.choice([0.8, 1.0, 1.25])),
        epochs=3 if task in DERIVATIONS else min(MOST_EPOCHS, max(3, round(IMAGES_SEEN[arch] / n))),
        lr=float(rng.choice([5e-4, 1e-3])) if task in DERIVATIONS else float(rng.choice([3e-3, 5e-3])),
        batch=128 if n >= 2000 else 32,
        shift=1,
        seed=int(rng.integers(2**31)),
    )
    strengths = {"extract-probabilities": TEMPERATURES, "extract-adversarially": (HARDENING,), "prune": SHARES}.get(task, (0.0,))
    strength = float(rng.choice(strengths))
    if task == "extract-adversarially":  # hardening takes as long again
        recipe = dataclasses.replace(recipe, epochs=max(2, recipe.epochs // 2))
    made_of = (victim.sha256, victim.spec, data.sha256, test.sha256, seed, index, task, recipe, strength)
    digest = hashlib.sha256(repr(made_of).encode()).hexdigest()[:12]
    return Plan(task, recipe, strength, folder / f"{index:03d}-{task}-{arch}-{digest}")


def train_one(plan: Plan, lesson: Lesson, portable: bytes | None) -> TrainedSurrogate:
    """Train and save one, in a process of its own; what says that it is complete is written last."""
    torch.set_num_threads(1)
    shape = tuple(lesson.x.shape[1:])
    model = _network(plan, lesson, shape, portable)
    agreement = accuracy(model, _pixels(lesson.x_test), torch.tensor(lesson.said))
    path = plan.path
    save_network(model, shape, path)
    facts = {"task": plan.task, "strength": plan.strength, "agreement": agreement, "recipe": dataclasses.asdict(plan.recipe)}
    temporary = plan.stem.with_suffix(".tmp")
    temporary.write_text(json.dumps(facts))
    temporary.replace(plan.stem.with_suffix(".json"))
    return TrainedSurrogate(path, plan.task, plan.recipe, plan.strength, agreement)


def _pixels(x: Queries) -> Tensor:
    """As ``to_pixels``; a process is handed large arrays as files that cannot be written to, so vectors are copied."""
    return to_pixels(x if x.dtype == np.uint8 else x.copy())


def _network(plan: Plan, lesson: Lesson, shape: tuple[int, ...], portable: bytes | None) -> nn.Module:
    """The plan's network, trained: the recipes of ``zoo.recipes``, for a victim that is known by its answers or as an archive."""
    recipe, x, scores = plan.recipe, _pixels(lesson.x), torch.tensor(lesson.scores)
    if portable is not None:
        copy, y = copy_of(portable, torch.device("cpu")), torch.tensor(lesson.y)
        return (
            recipes.prune_weights(copy, x, y, recipe, plan.strength)
            if plan.task == "prune"
            else recipes.fine_tune(copy, x, y, recipe)
        )
    if plan.task == "extract-probabilities":
        return recipes.extract_probabilities(scores, x, recipe, shape, plan.strength)
    if plan.task == "extract-labels":
        return recipes.extract_labels(scores, x, recipe, shape)
    return recipes.extract_adversarially(scores, x, recipe, shape, plan.strength, epochs=1)
