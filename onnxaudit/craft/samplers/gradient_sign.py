"""FGSM and IGSM: steps along the sign of the loss's gradient, with which IPGuard compares itself (Cao et al. 2021, eq. 1, 2)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor

from onnxaudit.craft.sample import Material, Sample
from onnxaudit.craft.samplers.attacks import cross_entropy_pull, input_gradient, on_grid, starts_of
from onnxaudit.craft.samplers.boundary import targets
from onnxaudit.craft.space import Space
from onnxaudit.craft.victim import Victim
from onnxaudit.craft.walking import walk_queries
from onnxaudit.errors import UsageError
from onnxaudit.suspect import Queries


def sample_fgsm(
    material: Material,
    n: int,
    rng: np.random.Generator,
    progress: Callable[[int], None],
    *,
    start: str = "training",
    target: str = "least-likely",
    epsilon: float = 0.1,
    targeted: bool = True,
    successful: bool = False,
) -> Sample:
    """n starts moved by one step along the gradient's sign: x - epsilon sign(dJ(V, target; x)/dx), clipped (IPGuard eq. 1).

    start: "training" inputs or "random" noise; target: "least-likely" or "random" class, as for IPGuard. epsilon in box widths.
    targeted: False moves away from the victim's label instead. successful: keep only the queries that have become the target (or
    another class than the start's); the paper keeps all, whatever the victim calls them. Parameter "success": the share that has.
    """
    victim, space = material.victim, material.space
    x, notes = _starts(material, n, rng, start)
    goal = targets(victim, x, rng, target)
    source = victim.predict(x).argmax(1)
    _require_positive(epsilon=epsilon)
    walk = partial(fgsm, victim, space, epsilon=epsilon, targeted=targeted)
    (points,) = walk_queries(material, x, walk, goal if targeted else source)
    label = victim.predict(points).argmax(1)
    return _judged(points, label == goal if targeted else label != source, successful, notes, progress)


def sample_igsm(
    material: Material,
    n: int,
    rng: np.random.Generator,
    progress: Callable[[int], None],
    *,
    start: str = "training",
    target: str = "least-likely",
    epsilon: float = 0.1,
    step: float = 1 / 255,
    iterations: int = 1000,
    clip_mode: str = "step",
    successful: bool = False,
) -> Sample:
    """n starts moved along the gradient's sign until they are the target class (IPGuard eq. 2), on the 8-bit grid.

    start, target, successful: as for ``sample_fgsm``. step and epsilon in box widths. clip_mode: what epsilon bounds, "step",
    each step by itself (eq. 2 as printed; it binds only if less than ``step``), or "total", the distance to the start in
    L-infinity (the published attack). The gradient is taken at the point that has been reached; eq. 2 prints the start.
    """
    if clip_mode not in ("step", "total"):
        raise UsageError(f"clip_mode={clip_mode!r} is not known", "Use step or total.")
    _require_positive(epsilon=epsilon, step=step, iterations=iterations)
    x, notes = _starts(material, n, rng, start)
    goal = targets(material.victim, x, rng, target)
    walk = partial(igsm, material.victim, material.space, epsilon=epsilon, step=step, iterations=iterations, clip_mode=clip_mode)
    reached = 0

    def watch(points: Tensor, converged: Tensor) -> None:
        nonlocal reached
        reached += len(converged)
        progress(min(reached, n - 1))

    points, _ = walk_queries(material, x, walk, goal, watch=watch)
    label = material.victim.predict(points).argmax(1)
    return _judged(points, label == goal, successful, notes, progress)


def _starts(material: Material, n: int, rng: np.random.Generator, start: str) -> tuple[Queries, tuple[str, ...]]:
    x = starts_of(material, rng, start)(n)
    return x, (f"only {len(x)} of {n} queries: the data has no more inputs to start from",) if len(x) < n else ()


def _require_positive(**values: float) -> None:
    for name, value in values.items():
        if value <= 0:
            raise UsageError(f"{name}={value:g} must be more than 0")


def _judged(
    points: Queries, success: Tensor, successful: bool, notes: tuple[str, ...], progress: Callable[[int], None]
) -> Sample:
    """The points as queries, only the successes if wanted, with the share of them."""
    count = int(success.sum())
    if successful:
        if not count:
            raise UsageError(f"the attack succeeds on none of {len(points)} starts", "Change epsilon, or keep all.")
        notes += (f"only {count} of {len(points)} starts became what they should and were kept",) if count < len(points) else ()
        points = points[success.cpu().numpy()]
    progress(len(points))
    return Sample(points, notes, {"success": round(count / max(1, len(success)), 3)})


def fgsm(victim: Victim, space: Space, x: Tensor, labels: Tensor, *, epsilon: float, targeted: bool) -> tuple[Tensor]:
    """x moved by epsilon box widths in every feature towards the labels (n,), or away from them; on the grid."""
    signs = _signs(victim, x, labels)[0]
    return (on_grid(space, space.clip(x.add(signs * space.width, alpha=-epsilon if targeted else epsilon))),)


def igsm(
    victim: Victim, space: Space, x: Tensor, target: Tensor, *, epsilon: float, step: float, iterations: int, clip_mode: str
) -> tuple[Tensor, Tensor]:
    """Each x moved by steps until it is the target class (n,); points on the grid and whether they got there, (n,) bool."""
    stride = (min(step, epsilon) if clip_mode == "step" else step) * space.width
    low, high = space.low.expand_as(x), space.high.expand_as(x)
    if clip_mode == "total":
        low, high = torch.maximum(low, x - epsilon * space.width), torch.minimum(high, x + epsilon * space.width)
    points, reached = x.clone(), torch.zeros(len(x), dtype=torch.bool, device=x.device)
    active, here = torch.arange(len(x), device=x.device), x
    for _ in range(iterations):
        signs, done = _signs(victim, on_grid(space, here), target)
        if done.any():
            points[active[done]], reached[active[done]] = here[done], True
            active, here, signs, target, low, high = (part[~done] for part in (active, here, signs, target, low, high))
            if not len(active):
                break
        here = signs.mul_(stride).neg_().add_(here).clamp_(low, high)
    points[active] = here
    return on_grid(space, points), reached


def _signs(victim: Victim, x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The signs of the gradient of the cross-entropy to the labels, like x, and which x have their label, (n,) bool."""
    x = x.detach().requires_grad_(True)
    logits = victim.logits(x)
    gradient = input_gradient(logits, x, cross_entropy_pull(logits, labels))
    return gradient.sign_(), logits.detach().argmax(1) == labels
