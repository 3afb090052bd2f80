"""Pairs for ``contrast``: networks extracted from the victim, and the same extracted from references instead (torch).

Both of a pair have the same architecture, first weights, inputs and order of inputs. Only who was asked differs, so what tells
them apart is what a network takes over from the one it was extracted from, not that it is small, hardened or badly trained.
They learn natural inputs only, as others would: what they are taught beyond these, such as answers to mixtures of inputs, nobody
else takes over, and queries chosen by it find nobody else.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from onnxaudit.craft.data import Data
from onnxaudit.craft.pools.peers import open_peers
from onnxaudit.craft.pools.surrogates import (
    EXTRACTIONS,
    HARDENING,
    IMAGES_SEEN,
    MOST_EPOCHS,
    TEMPERATURES,
    Lesson,
    Plan,
    logits_of,
    train_one,
)
from onnxaudit.craft.victim import Victim
from onnxaudit.errors import UsageError
from onnxaudit.suspect import Queries
from onnxaudit.zoo.training import Recipe

FEWEST = 100
"""Inputs; a network extracted from fewer took over nothing."""
LEAST = 1e-6
"""Smaller probabilities count as this one when a reference gives no logits."""
CLOSE = 0.03
"""Rows of probabilities sum to one, with the slack that an 8-bit softmax needs."""


@dataclass(frozen=True, slots=True)
class TrainedPair:
    """Two ONNX files that take raw 8-bit pixels: extracted from the victim, and from a reference; and by which method."""

    derived: Path
    other: Path
    task: str
    teacher: str


def train_pairs(
    data: Data,
    test: Data,
    victim: Victim,
    teachers: Sequence[Path],
    count: int,
    seed: int,
    folder: Path,
    *,
    jobs: int | None,
    progress: Callable[[int], None],
) -> list[TrainedPair]:
    """Train ``count`` pairs on what the victim and the teachers say to ``data``, in parallel processes.

    Methods, architectures and teachers take turns; ``test`` measures agreement with the victim. What is already in ``folder``
    from the same victim, teachers, data and seed is not trained again. Raises UsageError with too little data or no teacher.
    """
    from joblib import Parallel, delayed

    if len(data) < FEWEST or not teachers:
        raise UsageError(
            f"{len(data)} inputs and {len(teachers)} references are too few to train pairs on",
            f"Give at least {FEWEST} inputs and a reference, or leave contrast out.",
        )
    folder.mkdir(parents=True, exist_ok=True)
    asked = [teachers[index % len(teachers)] for index in range(count)]
    pairs = [_pair(data, victim, file, seed, index, folder) for index, file in enumerate(asked)]
    missing = [
        (plan, who)
        for pair, file in zip(pairs, asked, strict=True)
        for plan, who in zip(pair, (None, file), strict=True)
        if plan.found() is None
    ]
    whole = sum(all(plan.found() for plan in pair) for pair in pairs)
    progress(whole)
    if missing:
        scores = {who: _scores(who, victim, data.x) for who in {who for _, who in missing}}
        labels = logits_of(victim, data.x).argmax(1)
        said = logits_of(victim, test.x).argmax(1)
        workers = Parallel(n_jobs=jobs or os.cpu_count() or 1, return_as="generator", batch_size=1)
        calls = (delayed(train_one)(plan, Lesson(data.x, labels, scores[who], test.x, said), None) for plan, who in missing)
        for done, _ in enumerate(workers(calls), start=1):
            progress(whole + done // 2)
    return [
        TrainedPair(derived.path, other.path, derived.task, file.name)
        for (derived, other), file in zip(pairs, asked, strict=True)
    ]


def _scores(teacher: Path | None, victim: Victim, x: Queries) -> NDArray[np.float32]:
    """The victim's logits for all inputs (n, C), or a reference's, up to a constant; of labels, those of near certainty."""
    if teacher is None:
        return logits_of(victim, x)
    (peer,) = open_peers([teacher], victim.spec, victim.num_classes, victim.device.type)
    rows = peer.answer(x)
    probabilities = rows.min() >= 0 and np.abs(rows.sum(axis=1) - 1).max() < CLOSE
    return np.log(np.maximum(rows, LEAST)) if probabilities else rows


def _pair(data: Data, victim: Victim, teacher: Path, seed: int, index: int, folder: Path) -> tuple[Plan, Plan]:
    """What both of a pair are: one plan under two names."""
    image = len(data.shape) == 3
    tasks = EXTRACTIONS if image else EXTRACTIONS[:2]  # the radius of hardening is one of pixels
    names = ("vgg", "resnet", "lenet") if image else ("mlp",)
    turn, place = divmod(index, len(tasks))
    task, arch = tasks[place], names[(turn + place) % len(names)]
    rng = np.random.default_rng([seed, index])
    recipe = Recipe(
        arch=arch,
        width=float(rng.choice([0.8, 1.0, 1.25])),
        epochs=min(MOST_EPOCHS, max(3, round(IMAGES_SEEN[arch] / len(data)))),
        lr=float(rng.choice([3e-3, 5e-3])),
        batch=128 if len(data) >= 2000 else 32,
        shift=1,
        seed=int(rng.integers(2**31)),
    )
    strength = {"extract-probabilities": float(rng.choice(TEMPERATURES)), "extract-adversarially": HARDENING}.get(task, 0.0)
    said = repr((victim.sha256, victim.spec, data.sha256, seed, index, task, recipe, strength))
    digest = hashlib.sha256(said.encode()).hexdigest()[:12]
    with teacher.open("rb") as file:
        other = hashlib.sha256(digest.encode() + hashlib.file_digest(file, "sha256").digest()).hexdigest()[:12]
    stem = f"pair-{index:03d}-{task}-{arch}"
    return (
        Plan(task, recipe, strength, folder / f"{stem}-victim-{digest}"),
        Plan(task, recipe, strength, folder / f"{stem}-reference-{other}"),
    )
