"""References trained on the owner's data: small models of different architectures, never shown the victim (torch)."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from onnxaudit.craft.data import Data
from onnxaudit.errors import UsageError
from onnxaudit.zoo.saving import DIFFERENTIABLE, save_network
from onnxaudit.zoo.training import Recipe, accuracy, build, fit, to_pixels

CLOSE = 0.02
"""A reference this close to the victim's accuracy, or better, is not tried again."""
OUT_OF_REACH = 0.05
"""Nor one that is further off than any longer training makes up for."""
POOR = 0.03
"""A reference further below the victim than this is weak: it would make strong innocents look suspicious."""
ASIDE = 4
"""One in so many inputs is kept from training, for queries and for measuring accuracy."""
IMAGES_SEEN = {"vgg": 50_000, "resnet": 60_000, "lenet": 120_000, "mlp": 120_000}
"""Length of a first training in images: architectures that learn well from few of them, each for about the same time."""


@dataclass(frozen=True, slots=True)
class TrainedReference:
    """One trained reference. path: an ONNX file that takes raw 8-bit pixels. accuracy: on inputs kept from training.

    Next to it lies the same network as TorchScript, for schemes that take gradients of references.
    """

    path: Path
    recipe: Recipe
    accuracy: float


def split(data: Data) -> tuple[Data, Data]:
    """The part that references are trained on, and the part that queries are drawn from and accuracy is measured on.

    They must not overlap: a reference that was trained on a query knows its true label, so on the victim's errors it would look
    more independent than any innocent model does.
    """
    order = np.random.default_rng(int(data.sha256[:8], 16)).permutation(len(data))
    part = len(data) // ASIDE
    return data.take(np.sort(order[part:])), data.take(np.sort(order[:part]))


def train_references(
    data: Data,
    test: Data,
    classes: int,
    count: int,
    goal: float,
    seed: int,
    folder: Path,
    *,
    jobs: int | None,
    progress: Callable[[int], None],
) -> list[TrainedReference]:
    """Train ``count`` references on ``data`` to about the accuracy ``goal`` (the victim's on ``test``), in parallel processes.

    What is already in ``folder`` from the same data, seed and goal is not trained again. Raises UsageError without labels.
    """
    from joblib import Parallel, delayed

    if data.y is None:
        raise UsageError("--train-references needs labelled data", "Give y with the data, or --references DIR.")
    if len(data) < 50 * classes:
        raise UsageError(f"{len(data)} inputs are too few to train references of {classes} classes", "Give at least 50 a class.")
    folder.mkdir(parents=True, exist_ok=True)
    workers = Parallel(n_jobs=jobs or os.cpu_count() or 1, return_as="generator", batch_size=1)
    results: list[TrainedReference] = []
    for result in workers(delayed(_train)(data, test, classes, goal, seed, index, folder) for index in range(count)):
        results.append(result)
        progress(len(results))
    return results


def choose(trained: list[TrainedReference], goal: float, least: int) -> list[TrainedReference]:
    """The references within three points of ``goal``; if those are fewer than ``least``, within three points of the median.

    Weak references would make strong innocents look suspicious; too few could not show anything at all.
    """
    good = [reference for reference in trained if reference.accuracy >= goal - POOR]
    if len(good) >= least:
        return good
    middle = sorted(reference.accuracy for reference in trained)[len(trained) // 2]
    return [reference for reference in trained if reference.accuracy >= middle - POOR]


def _train(data: Data, test: Data, classes: int, goal: float, seed: int, index: int, folder: Path) -> TrainedReference:
    torch.set_num_threads(1)
    recipe_of = [data.sha256, test.sha256, classes, round(goal, 4), seed, index, IMAGES_SEEN]
    key = hashlib.sha256(json.dumps(recipe_of).encode()).hexdigest()[:12]
    found = sorted(folder.glob(f"*-{key}.json"))
    if found and all(found[0].with_suffix(suffix).exists() for suffix in (".onnx", DIFFERENTIABLE)):
        kept = json.loads(found[0].read_text())
        return TrainedReference(found[0].with_suffix(".onnx"), Recipe(**kept["recipe"]), kept["accuracy"])
    assert data.y is not None
    assert test.y is not None
    x, x_test = to_pixels(data.x), to_pixels(test.x)
    y, y_test = torch.from_numpy(data.y), torch.from_numpy(test.y)
    best: tuple[float, Recipe, nn.Module] | None = None
    for recipe in _attempts(data, seed, index):
        model = fit(build(recipe, data.shape, classes), x, y, recipe)
        reached = accuracy(model, x_test, y_test)
        if best is None or reached > best[0]:
            best = (reached, recipe, model)
        if not goal - OUT_OF_REACH < reached < goal - CLOSE:
            break
    assert best is not None
    reached, recipe, model = best
    path = folder / f"{index:03d}-{recipe.arch}-{key}.onnx"
    save_network(model, data.shape, path)
    facts = {"accuracy": reached, "recipe": dataclasses.asdict(recipe), "data_sha256": data.sha256}
    path.with_suffix(".json").write_text(json.dumps(facts))
    return TrainedReference(path, recipe, reached)


def _attempts(data: Data, seed: int, index: int) -> list[Recipe]:
    """Two recipes for one reference: a quick one, and a wider network trained for longer if that falls a little short."""
    names = ("vgg", "resnet", "lenet") if len(data.shape) == 3 else ("mlp",)
    rng = np.random.default_rng([seed, index])
    n, arch = len(data), names[index % len(names)]
    first = Recipe(
        arch=arch,
        width=float(rng.choice([0.8, 1.0, 1.25])),
        epochs=max(3, round(IMAGES_SEEN[arch] / n)),
        lr=float(rng.choice([3e-3, 5e-3])),
        batch=128 if n >= 2000 else 32,
        shift=1,
        seed=int(rng.integers(2**31)),
    )
    return [first, dataclasses.replace(first, epochs=round(1.5 * first.epochs), width=1.25 * first.width, seed=first.seed + 1)]
