"""CW-L2: the smallest perturbation that reaches a class with a margin (Carlini and Wagner 2017), in whole batches (torch)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor

from onnxaudit.craft.sample import Material, Sample
from onnxaudit.craft.samplers.attacks import input_gradient, on_grid, shortfall, starts_of, successes
from onnxaudit.craft.samplers.boundary import BETA1, BETA2, EPSILON, median_margin, targets
from onnxaudit.craft.space import Space
from onnxaudit.craft.victim import Victim
from onnxaudit.craft.walking import walk_queries
from onnxaudit.errors import UsageError
from onnxaudit.suspect import Queries

INSIDE = 0.999999
"""Starts are drawn in by this much, so that the inverse of tanh is finite (authors' code)."""
CHECKS = 10
STALLED = 0.9999
"""A search for one constant stops for a point whose loss has not fallen below this share of what it was a tenth earlier."""
MOST = 1e10


def sample_cw_l2(
    material: Material,
    n: int,
    rng: np.random.Generator,
    progress: Callable[[int], None],
    *,
    start: str = "training",
    target: str = "least-likely",
    k: float | None = None,
    lr: float = 0.1,
    iterations: int = 100,
    searches: int = 9,
    constant: float = 1e-3,
    abort_early: bool = True,
) -> Sample:
    """n starts moved as little as possible (L2) into the target class with margin k, on the 8-bit grid (IPGuard section 5.1).

    start: "training" inputs or "random" noise; target: "least-likely" or "random" class, as for IPGuard. k: confidence in logits;
    None: the victim's median margin on its starts, at most 10. lr, iterations: of Adam, for each of the ``searches`` values of
    the constant, of which ``constant`` is the first; the paper has lr 0.001 (or 0.1), and the authors' code 10,000 iterations.
    Starts that do not get there are replaced. Raises UsageError if none does.
    """
    if lr <= 0 or iterations < 1 or searches < 1 or constant <= 0:
        raise UsageError("cw-l2 takes lr, iterations, searches and constant that are more than 0")
    victim = material.victim
    margin = k

    def attack(x: Queries, watch: Callable[..., None]) -> tuple[Queries, Tensor]:
        nonlocal margin
        margin = median_margin(victim, x) if margin is None else margin
        goal = targets(victim, x, rng, target)
        search = partial(
            carlini,
            victim,
            material.space,
            k=margin,
            lr=lr,
            iterations=iterations,
            searches=searches,
            constant=constant,
            abort_early=abort_early,
        )
        points, reached = walk_queries(material, x, search, goal, watch=watch)
        return points, reached & (victim.predict(points).argmax(1) == goal)

    queries, tried = successes(material, n, starts_of(material, rng, start), attack, progress)
    return Sample(queries, shortfall(n, len(queries), tried), {"k": margin, "starts": tried})


def carlini(
    victim: Victim,
    space: Space,
    x: Tensor,
    target: Tensor,
    *,
    k: float,
    lr: float,
    iterations: int,
    searches: int = 9,
    constant: float = 1e-3,
    abort_early: bool = True,
) -> tuple[Tensor, Tensor]:
    """The nearest points found to each x that are the target class (n,) by k, and whether any was, (n,) bool.

    x: pixels (n, C, H, W) or vectors (n, d). Minimises |x' - x|^2 + c max(max_{t != target} Z_t - Z_target + k, 0) over w with
    x' = low + width (tanh w + 1) / 2, by Adam; c is found for each point by bisection (times 10 until something succeeds).
    Distances are in units of ``space.width``. The victim sees images on the 8-bit grid, and the best of those is returned.
    """
    best, nearest = x.clone(), torch.full((len(x),), torch.inf, device=x.device)
    c = torch.full_like(nearest, constant)
    lower, upper = torch.zeros_like(c), torch.full_like(c, MOST)
    for _ in range(searches):
        found, distance, reached = _descend(victim, space, x, target, c, k, lr, iterations, abort_early)
        better = distance < nearest
        best[better], nearest[better] = found[better], distance[better]
        upper = torch.where(reached, torch.minimum(upper, c), upper)
        lower = torch.where(reached, lower, torch.maximum(lower, c))
        c = torch.where(upper < MOST, (lower + upper) / 2, c * 10)
    return best, nearest.isfinite()


def _descend(
    victim: Victim, space: Space, x: Tensor, target: Tensor, c: Tensor, k: float, lr: float, iterations: int, abort_early: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The nearest successes for one constant each: points, their distances (n,), else inf, and whether there are any."""
    width, span = space.width, (space.high - space.low) / 2
    middle = space.low + span
    found, nearest = x.clone(), torch.full_like(c, torch.inf)
    w = torch.atanh(((x - space.low) / width * 2 - 1) * INSIDE)
    first, second = torch.zeros_like(w), torch.zeros_like(w)
    active, before, lowest = torch.arange(len(x), device=x.device), torch.full_like(c, torch.inf), torch.full_like(c, torch.inf)
    for step in range(1, iterations + 1):
        bent = w.tanh()
        shown = on_grid(space, torch.addcmul(middle, bent, span)).requires_grad_(True)
        apart = (shown.detach() - x).div_(width)
        distance = apart.flatten(1).norm(dim=1)
        hinge, pull, logits = _hinge(victim, shown, target, k)
        closer = (hinge <= 0) & (distance < nearest[active])
        if closer.any():
            chosen = active[closer]
            found[chosen], nearest[chosen] = shown.detach()[closer], distance[closer]
        gradient = input_gradient(logits, shown, pull * c[:, None]).addcdiv_(apart, width, value=2)
        gradient.mul_(bent.square_().neg_().add_(1)).mul_(span)
        first.lerp_(gradient, 1 - BETA1)
        second.mul_(BETA2).addcmul_(gradient, gradient, value=1 - BETA2)
        rate = lr * (1 - BETA2**step) ** 0.5 / (1 - BETA1**step)
        w.addcdiv_(first, second.sqrt().add_(EPSILON * (1 - BETA2**step) ** 0.5), value=-rate)
        lowest = torch.minimum(lowest, distance.square() + c * hinge)
        if abort_early and step % max(1, iterations // CHECKS) == 0:
            going = lowest < STALLED * before
            before = lowest
            if not going.all():
                x, target, c, w, first, second, active, before, lowest = (
                    part[going] for part in (x, target, c, w, first, second, active, before, lowest)
                )
                if not len(active):
                    break
    return found, nearest, nearest.isfinite()


def _hinge(victim: Victim, shown: Tensor, target: Tensor, k: float) -> tuple[Tensor, Tensor, Tensor]:
    """max(Z_other - Z_target + k, 0) for the best other class, (n,); its gradient by the logits; and the logits, (n, C)."""
    logits = victim.logits(shown)
    values = logits.detach()
    others, rival = values.scatter(1, target[:, None], -torch.inf).max(1)
    hinge = (others - values.gather(1, target[:, None])[:, 0] + k).clamp_min_(0)
    short = (hinge > 0).to(values.dtype)[:, None]
    pull = torch.zeros_like(values).scatter_(1, rival[:, None], short).scatter_(1, target[:, None], -short)
    return hinge.float(), pull, logits
