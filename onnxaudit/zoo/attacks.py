"""What a party that hides a derived model does to its weights: trainings from a copy of the victim, each done once (torch)."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from onnxaudit.decode import canonical
from onnxaudit.suspect import Queries
from onnxaudit.zoo import recipes
from onnxaudit.zoo.making import file_digest
from onnxaudit.zoo.saving import copy_of, save_uint8_onnx
from onnxaudit.zoo.training import Recipe, to_pixels

VERSION = 1
"""Part of every key: raised when the same way comes to make other models."""
GENTLE = Recipe(epochs=2, lr=1e-3)
HARD = Recipe(epochs=4, lr=5e-3)
HEALING = Recipe(epochs=4, lr=3e-3)
HARDENED = Recipe(epochs=2, lr=2e-3, adversarial=8 / 255, attack_steps=5)


@dataclass(frozen=True, slots=True)
class Way:
    """A way to change the victim's weights. method: "copy", "fine-tune" or "prune"; share: of the weights pruned.

    last, reset: as in ``recipes.fine_tune``. quick: among those that a quick run tries.
    """

    name: str
    method: str
    recipe: Recipe = GENTLE
    share: float = 0.0
    reset: bool = False
    quick: bool = False


WAYS: tuple[Way, ...] = (
    Way("copy", "copy", quick=True),
    Way("fine-tuned", "fine-tune", quick=True),
    Way("fine-tuned hard", "fine-tune", HARD),
    Way("last layer drawn anew, all trained", "fine-tune", HARD, reset=True),
    Way("pruned 30 %", "prune", HEALING, share=0.3),
    Way("pruned 60 %", "prune", HEALING, share=0.6, quick=True),
    Way("pruned 80 %", "prune", HEALING, share=0.8),
    Way("adversarially trained, 4/255", "fine-tune", dataclasses.replace(HARDENED, adversarial=4 / 255)),
    Way("adversarially trained, 8/255", "fine-tune", HARDENED),
    Way("adversarially trained, 16/255", "fine-tune", dataclasses.replace(HARDENED, adversarial=16 / 255)),
)
"""From gentle to hard; each begins with a copy of the victim."""


def derive(
    ways: Sequence[Way],
    portable: bytes,
    victim: str,
    data: tuple[Queries, NDArray[np.int64], str],
    seed: int,
    folder: Path,
    *,
    jobs: int | None,
    progress: Callable[[int], None],
) -> dict[str, Path]:
    """The models of these ways as ONNX files, by name, trained in parallel processes; what is there is not trained again.

    portable: the victim, see ``Victim.portable``; victim: all that its weights and its input convention depend on. data: inputs,
    labels and a digest of both.
    """
    from joblib import Parallel, delayed

    folder.mkdir(parents=True, exist_ok=True)
    x, y, digest = data
    paths = {way.name: folder / f"{way.method}-{_key(way, victim, digest, seed)}.onnx" for way in ways}
    missing = [way for way in ways if not _whole(paths[way.name])]
    done = len(ways) - len(missing)
    progress(done)
    workers = Parallel(n_jobs=jobs or os.cpu_count() or 1, return_as="generator", batch_size=1)
    for _ in workers(delayed(_make)(way, portable, x, y, seed, paths[way.name]) for way in missing):
        done += 1
        progress(done)
    return paths


def _key(way: Way, victim: str, data: str, seed: int) -> str:
    made_of = [VERSION, way.method, dataclasses.asdict(way.recipe), way.share, way.reset, victim, data, seed]
    return hashlib.sha256(canonical(made_of).encode()).hexdigest()[:12]


def _whole(path: Path) -> bool:
    """Whether an earlier run completed this file, and it is as it was written."""
    facts = path.with_suffix(".json")
    try:
        return bool(json.loads(facts.read_text())["sha256"] == file_digest(path))
    except (OSError, ValueError, KeyError):
        return False


def _make(way: Way, portable: bytes, x: Queries, y: NDArray[np.int64], seed: int, path: Path) -> None:
    """Train and save one, in a process of its own; what says that it is complete is written last."""
    torch.set_num_threads(1)
    # a process is handed large arrays as files that cannot be written to, so vectors are copied
    pixels = to_pixels(x if x.dtype == np.uint8 else x.copy())
    model = _changed(way, portable, pixels, torch.tensor(y), seed)
    save_uint8_onnx(model, tuple(x.shape[1:]), path)
    temporary = path.with_suffix(".json.tmp")
    temporary.write_text(json.dumps({"way": way.name, "sha256": file_digest(path), "recipe": dataclasses.asdict(way.recipe)}))
    temporary.replace(path.with_suffix(".json"))


def _changed(way: Way, portable: bytes, x: Tensor, y: Tensor, seed: int) -> nn.Module:
    copy = copy_of(portable, torch.device("cpu"))
    recipe = dataclasses.replace(way.recipe, seed=seed, batch=128 if len(x) >= 2000 else 32)
    if way.method == "copy":
        return copy
    if way.method == "prune":
        return recipes.prune_weights(copy, x, y, recipe, way.share)
    return recipes.fine_tune(copy, x, y, recipe, reset=way.reset)
