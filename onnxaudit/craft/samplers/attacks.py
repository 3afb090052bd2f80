"""What the gradient attacks share: starts, gradients by the input, batches, and what holds on the grid (torch)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

import numpy as np
import torch
from torch import Tensor

from onnxaudit.craft.sample import Material
from onnxaudit.craft.space import GREY_LEVELS, Space
from onnxaudit.craft.victim import Victim
from onnxaudit.craft.walking import walk_apart
from onnxaudit.errors import UsageError
from onnxaudit.suspect import Queries

ROUNDS = 8
"""How often starts that led nowhere are replaced by fresh ones."""


def input_gradient(logits: Tensor, x: Tensor, pull: Tensor, *, again: bool = False) -> Tensor:
    """The gradient by x of sum(pull * logits), like x; pull is like logits, (n, C). again: another one of them will follow.

    Raises UsageError if the logits do not depend on x in a way that can be differentiated.
    """
    if not logits.requires_grad:
        raise UsageError(
            "the victim gives no gradients", "Give it as a differentiable PyTorch model, or take a scheme without them."
        )
    (gradient,) = torch.autograd.grad(logits, x, grad_outputs=pull.to(logits.dtype), retain_graph=again)
    return gradient


def cross_entropy_pull(logits: Tensor, labels: Tensor) -> Tensor:
    """The gradient by the logits (n, C) of the cross-entropy to the labels (n,): softmax - onehot."""
    pull = logits.detach().softmax(1)
    return pull.scatter_add_(1, labels[:, None], torch.full_like(pull[:, :1], -1.0))


def on_grid(space: Space, x: Tensor) -> Tensor:
    """x, which lies in the box, and for images exactly on the 8-bit grid; without a gradient."""
    return x.detach().mul(GREY_LEVELS).round_().div_(GREY_LEVELS) if space.image else x.detach()


def per_point(values: Tensor, like: Tensor) -> Tensor:
    """values (n,) in a shape that broadcasts over a batch (n, …)."""
    return values.reshape(-1, *(1,) * (like.ndim - 1))


def spread(victim: Victim, walk: Callable[..., tuple[Tensor, ...]], *tensors: Tensor) -> tuple[Tensor, ...]:
    """``walk(*tensors)`` for tensors with one row a point: side by side on a CPU's cores, in batches that fit into memory."""
    return walk_apart(walk, *tensors, at_once=victim.at_once)


def joined(results: Sequence[tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
    """The results of parts of a batch as those of the whole."""
    return tuple(torch.cat(columns) for columns in zip(*results, strict=True))


def as_asked(material: Material, x: Tensor) -> Tensor:
    """x exactly as a suspect will be asked it: clipped, rounded to 8 bits, stored, read again."""
    return material.victim.pixels(material.space.queries(x))


def starts_of(material: Material, rng: np.random.Generator, start: str) -> Callable[[int], Queries]:
    """Gives the next n starts: "training" inputs in random order until there are no more, or "random" points."""
    if start == "random":
        return lambda n: material.space.random(n, rng)
    if start != "training":
        raise UsageError(f"start={start!r} is not known", "Use training or random.")
    data = material.inputs()
    rows = iter(rng.permutation(len(data)).tolist())
    return lambda n: data.x[[row for row, _ in zip(rows, range(n), strict=False)]]


def successes(
    material: Material,
    n: int,
    starts: Callable[[int], Queries],
    attack: Callable[[Queries, Callable[..., None]], tuple[Queries, Tensor]],
    progress: Callable[[int], None],
) -> tuple[Queries, int]:
    """Up to n queries on which the attack succeeds, and how many starts that took.

    attack: starts to points and which of them succeed as 8-bit images, (n,) bool; the second argument is called with points and
    successes of every part of the starts. Starts that lead nowhere are replaced by fresh ones, in at most ``ROUNDS`` rounds.
    Raises UsageError if none succeeds.
    """
    found: list[Queries] = []
    tried, missing, seen = 0, n, 0

    def watch(points: Tensor, succeeded: Tensor, *_: Tensor) -> None:
        nonlocal seen
        seen += int(succeeded.sum())
        progress(min(seen, n - 1))

    for _ in range(ROUNDS):
        x = starts(missing)
        if not len(x):
            break
        points, succeeded = attack(x, watch)
        found.append(points[succeeded.cpu().numpy()])
        tried += len(x)
        missing -= int(succeeded.sum())
        seen = n - missing
        progress(seen)
        if not missing:
            break
    if missing == n:
        raise UsageError(f"the attack succeeds on none of {tried} starts", "Give it more steps or room, or take another scheme.")
    return cast("Queries", np.concatenate(found)), tried


def shortfall(n: int, found: int, tried: int) -> tuple[str, ...]:
    """What to say of starts on which the attack failed."""
    if found < n:
        return (f"only {found} of {n} queries: the attack succeeded on {found} of the {tried} starts there were",)
    return (f"the attack failed on {tried - found} of {tried} starts, which were replaced",) if tried > found else ()
