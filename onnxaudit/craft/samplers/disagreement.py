"""The line-up's queries: inputs on which models by one recipe disagree most, chosen alike for all of them (torch)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from onnxaudit.craft.sample import Material, Peer, Sample
from onnxaudit.craft.samplers.attacks import cross_entropy_pull, input_gradient, per_point
from onnxaudit.craft.samplers.cutmix import cutmix
from onnxaudit.craft.space import Space
from onnxaudit.craft.walking import walk_queries
from onnxaudit.errors import UsageError
from onnxaudit.suspect import Queries

STEPS = 10
"""Bisections of the line between two inputs: to a thousandth of it."""
MIXED, EDGES, PUSHED = 12, 2, 2
"""Candidates for each query that natural inputs do not give: mixtures, points on boundaries, adversarial inputs."""
PUSHES, PUSH = 8, 2 / 255
"""Steps along a gradient's sign, and their length in box widths, that make an input adversarial for one of the models."""


@dataclass(frozen=True, slots=True)
class _Family:
    """The victim and its siblings; nothing depends on their order."""

    members: Sequence[Callable[[Queries], NDArray[np.float32]]]

    def labels(self, queries: Queries) -> NDArray[np.int64]:
        """What each calls each query, (K, n)."""
        return np.stack([member(queries).argmax(1) for member in self.members])


def sample_disagreement(material: Material, n: int, rng: np.random.Generator, progress: Callable[[int], None]) -> Sample:
    """n inputs with the largest mutual information between the model and its answer, over victim and siblings alike.

    For labels of equally likely models that is the entropy of the labels they give, H(Y), since each gives one label for
    certain: I(Y; K) = H(Y) - H(Y | K) = H(Y). Natural inputs come first: at equal number they tell derived models from
    independent ones best. Where too few of them divide the line-up, CutMix mixtures of them (of images), points on the boundary
    of each model in turn, and inputs that are adversarial for each model in turn (if all have gradients) fill up. Nothing depends
    on which of the models is the victim, so an independent model is as close to any of them. Inputs that all call the same are
    never taken; a note says how many were found.
    Raises UsageError without siblings or data.
    """
    family = _family(material)
    data = material.inputs()
    if len(data) < 2:
        raise UsageError("choosing queries takes at least two inputs", "Give more data.")
    found = _dividing(family, data.x, n)
    progress(len(found))
    said = f"the line-up's {len(family.members)} disagree most on {len(found)} of {len(data)} natural candidates"
    if len(found) < n:
        further: list[Queries] = [cutmix(material.draw(MIXED * n, rng).astype(np.uint8), rng)] if data.x.ndim == 4 else []
        further += _edges(family, data.x, EDGES * n, rng)
        pushed, why = _pushed(material, data.x, PUSHED * n, rng)
        further += pushed
        more = _dividing(family, cast("Queries", np.concatenate(further)), n - len(found))
        said += f", and on {len(more)} of {sum(map(len, further))} {'mixtures, ' if data.x.ndim == 4 else ''}{why}"
        found = cast("Queries", np.concatenate([found, more]))
    if len(found) < 2:
        raise UsageError("the victim and its siblings agree on all candidates", "Give more, or more difficult, data.")
    progress(len(found))
    notes = [said] if len(found) == n else [f"{len(found)} queries instead of {n}: {said}"]
    return Sample(found[rng.permutation(len(found))], tuple(notes))


def _dividing(family: _Family, candidates: Queries, n: int) -> Queries:
    """The n candidates, or fewer, on which the family disagrees most.

    At least two of them must differ from the others: where one alone does, it is that one's input, and the suspect's own are
    never chosen.
    """
    labels = family.labels(candidates)
    information, agreeing = entropy(labels), (labels[None] == labels[:, None]).sum(axis=1).max(axis=0)
    order = np.argsort(-information, kind="stable")
    chosen: Queries = candidates[order[agreeing[order] <= len(labels) - 2][:n]]
    return chosen


def entropy(labels: NDArray[np.int64]) -> NDArray[np.float64]:
    """Entropy in nats of the labels (K, n) that K models give to each of n inputs, (n,)."""
    shares = (labels[None] == labels[:, None]).mean(axis=1)  # of models that say the same as each one
    return np.asarray(-np.log(shares).mean(axis=0))


def _family(material: Material) -> _Family:
    if not material.siblings:
        raise UsageError(
            "this scheme needs siblings, models by the victim's own recipe",
            "Give --siblings DIR, or --train-siblings 19 --recipe.",
        )
    siblings: Sequence[Peer] = material.siblings
    return _Family([material.victim.answer, *(sibling.answer for sibling in siblings)])


def _edges(family: _Family, x: Queries, count: int, rng: np.random.Generator) -> list[Queries]:
    """About so many points on boundaries, the same number of each model's."""
    each = max(1, count // len(family.members))
    return [_boundary(member, x, each, rng) for member in family.members]


def _pushed(material: Material, x: Queries, count: int, rng: np.random.Generator) -> tuple[list[Queries], str]:
    """About so many inputs that are adversarial for one of the models, the same number for each; and words for the note.

    None, for none of the models, unless all have gradients: queries against some would be chosen against these.
    """
    victim, space = material.victim, material.space
    each = max(1, count // (1 + len(material.siblings)))
    found: list[Queries] = []
    for logits in (victim.logits, *(sibling.logits for sibling in material.siblings)):
        start = x[rng.choice(len(x), each, replace=len(x) < each)]
        try:
            (points,) = walk_queries(material, start, partial(_push, logits, space))
        except UsageError:
            return [], "boundary points (not all have gradients, so no adversarial inputs)"
        found.append(points)
    return found, "boundary points and adversarial inputs"


def _push(logits: Callable[[Tensor], Tensor], space: Space, x: Tensor) -> tuple[Tensor, ...]:
    """x, each moved until the model calls it otherwise, along the sign of the gradient of its cross-entropy (IGSM)."""
    with torch.no_grad():
        label = logits(x).argmax(1)
    for _ in range(PUSHES):
        x = x.detach().requires_grad_(True)
        said = logits(x)
        moving = per_point((said.argmax(1) == label).float(), x)
        step = input_gradient(said, x, cross_entropy_pull(said, label)).sign()
        x = space.clip(x.detach() + PUSH * space.width * moving * step)
    return (x,)


def _boundary(answer: Callable[[Queries], NDArray[np.float32]], x: Queries, count: int, rng: np.random.Generator) -> Queries:
    """Where the line between two inputs that a model tells apart crosses its boundary, on the canonical grid, (≤ count, …)."""
    start = x[rng.choice(len(x), count, replace=len(x) < count)]
    end = x[rng.choice(len(x), count, replace=len(x) < count)]
    said = answer(start).argmax(1)
    apart = said != answer(end).argmax(1)
    start, end, said = start[apart].astype(np.float32), end[apart].astype(np.float32), said[apart]
    low, high = np.zeros(len(start), np.float32), np.ones(len(start), np.float32)
    for _ in range(STEPS if len(start) else 0):
        middle = ((low + high) / 2).astype(np.float32)
        same = answer(_between(start, end, middle, x.dtype)).argmax(1) == said
        low, high = np.where(same, middle, low).astype(np.float32), np.where(same, high, middle).astype(np.float32)
    return _between(start, end, high, x.dtype)


def _between(
    start: NDArray[np.float32], end: NDArray[np.float32], share: NDArray[np.float32], dtype: np.dtype[np.generic]
) -> Queries:
    weight = share.reshape(-1, *[1] * (start.ndim - 1))
    mixed = start + weight * (end - start)
    found: Queries = np.rint(mixed).astype(np.uint8) if dtype == np.uint8 else mixed.astype(np.float32)
    return found
