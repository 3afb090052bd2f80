"""IPGuard: points close to the victim's decision boundary (Cao, Jia, Gong 2021), all of them in one batch (torch)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import cast

import numpy as np
import torch
from torch import Tensor

from onnxaudit.craft.sample import Material, Sample
from onnxaudit.craft.space import Space
from onnxaudit.craft.victim import Victim
from onnxaudit.craft.walking import walk_apart, walk_queries
from onnxaudit.errors import UsageError
from onnxaudit.suspect import Queries

BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8
ROUNDS = 8
LARGEST_MARGIN = 10.0
GREY_LEVEL = 1 / 255
"""Adam's step moves every pixel by about the learning rate; less than a grey level is lost in rounding to 8 bits."""


def sample_boundary(
    material: Material,
    n: int,
    rng: np.random.Generator,
    progress: Callable[[int], None],
    *,
    start: str = "training",
    target: str = "least-likely",
    k: float | None = None,
    lr: float = GREY_LEVEL,
    iterations: int = 1000,
) -> Sample:
    """n boundary points on the 8-bit grid.

    start: "training" inputs or "random" noise in [0, 1]; target: "random" or "least-likely" class (IPGuard Table 3). k: margin
    in logits by which the target beats the start's class; None: the victim's median margin on its starts, at most 10, since
    how large a logit is differs from victim to victim. lr: of Adam; the paper has
    0.001, which rounding to 8 bits swallows. Starts that do not get there in ``iterations`` are replaced.
    Raises UsageError if hardly any does.
    """
    victim = material.victim
    found: list[Queries] = []
    tried = reached = 0
    missing = n

    def watch(points: Tensor, converged: Tensor) -> None:
        nonlocal reached
        reached += int(converged.sum())
        progress(reached)

    for _ in range(ROUNDS):
        starts = _starts(material, missing, rng, start)
        k = median_margin(victim, starts) if k is None else k
        tried += len(starts)
        walk = partial(walk_to_boundary, victim, material.space, k=k, lr=lr, iterations=iterations)
        points, converged = walk_queries(material, starts, walk, targets(victim, starts, rng, target), watch=watch)
        found.append(points[converged.cpu().numpy()])
        missing = n - reached
        if not missing:
            break
    queries = cast("Queries", np.concatenate(found))
    if len(queries) < max(1, n // 2):
        raise UsageError(
            f"only {len(queries)} of {tried} starts reached the boundary with margin {k:.3g}",
            "Lower --margin, or leave IPGuard out.",
        )
    notes = (f"{tried - len(queries)} of {tried} starts did not converge and were replaced",) if tried > n else ()
    return Sample(queries, notes, {"k": k, "lr": lr, "iterations": iterations})


def boundary_points(
    material: Material, x: Tensor, target: Tensor, *, k: float, lr: float, iterations: int
) -> tuple[Tensor, Tensor]:
    """``walk_to_boundary`` for all points, ``walk_apart``."""
    walk = partial(walk_to_boundary, material.victim, material.space, k=k, lr=lr, iterations=iterations)
    points, converged = walk_apart(walk, x, target, at_once=material.victim.at_once)
    return points, converged


def walk_to_boundary(
    victim: Victim, space: Space, x: Tensor, target: Tensor, *, k: float, lr: float, iterations: int
) -> tuple[Tensor, Tensor]:
    """Move each x until IPGuard's loss is 0, by Adam on x with the paper's stop rule per point.

    x: pixels (n, C, H, W) in [0, 1] or vectors (n, d). target: (n,) class indices. Returns points and (n,) bool, converged.

    Eq. 5: L(x) = ReLU(Z_i - Z_j + k) + ReLU(max_{t != i, j} Z_t - Z_i), i the victim's label of the start, j the target.
    Images are rounded to 8 bits before the victim sees them, in every step (gradients pass straight through), so that a point
    that stops has the property as a uint8 image. Points that stop leave the batch; the rest keep their own moments.
    """
    source = victim.predict(x).argmax(1)
    points = x.clone()
    converged = torch.zeros(len(x), dtype=torch.bool, device=x.device)
    active = torch.arange(len(x), device=x.device)
    first, second = torch.zeros_like(x), torch.zeros_like(x)
    for step in range(1, iterations + 1):
        shown = space.snapped(x)
        loss, gradient = _loss_and_gradient(victim, shown, source[active], target[active], k)
        done = loss <= 0
        if done.any():
            points[active[done]] = shown[done]
            converged[active[done]] = True
            going = ~done
            active, x, gradient = active[going], x[going], gradient[going]
            first, second = first[going], second[going]
            if not len(active):
                break
        first.mul_(BETA1).add_(gradient, alpha=1 - BETA1)
        second.mul_(BETA2).addcmul_(gradient, gradient, value=1 - BETA2)
        rate = lr * (1 - BETA2**step) ** 0.5 / (1 - BETA1**step)
        stride = first / second.sqrt().add_(EPSILON * (1 - BETA2**step) ** 0.5)
        x = x.sub(stride if space.image else stride * space.width, alpha=rate)
        x = space.clip(x)
    return points, converged


def _loss_and_gradient(victim: Victim, x: Tensor, source: Tensor, target: Tensor, k: float) -> tuple[Tensor, Tensor]:
    losses, gradients = [], []
    for part, i, j in zip(*(tensor.split(victim.at_once) for tensor in (x, source, target)), strict=True):
        part = part.detach().requires_grad_(True)
        loss = boundary_loss(victim.logits(part), i, j, k)
        (gradient,) = torch.autograd.grad(loss.sum(), part)
        losses.append(loss.detach())
        gradients.append(gradient)
    return torch.cat(losses), torch.cat(gradients)


def boundary_loss(logits: Tensor, source: Tensor, target: Tensor, k: float) -> Tensor:
    """IPGuard eq. 5 for each row of logits (n, C), (n,); the second term is absent for two classes."""
    z_i = logits.gather(1, source[:, None])[:, 0]
    z_j = logits.gather(1, target[:, None])[:, 0]
    loss = torch.relu(z_i - z_j + k)
    if logits.shape[1] > 2:
        others = logits.scatter(1, torch.stack([source, target], 1), -torch.inf).amax(1)
        loss = loss + torch.relu(others - z_i)
    return loss


def median_margin(victim: Victim, x: Tensor | Queries) -> float:
    """The victim's median margin in logits between first and second class, at most LARGEST_MARGIN."""
    best = victim.predict(x).topk(2, dim=1).values
    return round(min(float((best[:, 0] - best[:, 1]).median()), LARGEST_MARGIN), 3)


def _starts(material: Material, n: int, rng: np.random.Generator, start: str) -> Queries:
    if start == "training":
        return material.draw(n, rng)
    if start == "random":
        return material.space.random(n, rng)
    raise UsageError(f"start={start!r} is not known", "Use training or random.")


def targets(victim: Victim, x: Tensor | Queries, rng: np.random.Generator, target: str) -> Tensor:
    """A class to walk to for each start, (n,): its "least-likely", or a "random" one of the others (IPGuard Table 3)."""
    logits = victim.predict(x)
    if target == "least-likely":
        return logits.argmin(1)
    if target == "random":
        step = torch.from_numpy(rng.integers(1, logits.shape[1], len(x))).to(victim.device)
        return (logits.argmax(1) + step) % logits.shape[1]
    raise UsageError(f"target={target!r} is not known", "Use least-likely or random.")
