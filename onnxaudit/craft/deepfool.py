"""DeepFool: the nearest decision boundary by repeated linearisation (Moosavi-Dezfooli et al. 2016), a whole batch at a time (torch)."""

from __future__ import annotations

import torch
from torch import Tensor

from onnxaudit.craft.space import Space
from onnxaudit.craft.victim import BATCH, Victim

PUSH = 1e-4
"""Added to each step's length, as in the authors' PyTorch code: a point that lies on the boundary moves off it."""
TINY = 1e-12


def deepfool(
    victim: Victim,
    space: Space,
    x: Tensor,
    *,
    overshoot: float,
    iterations: int,
    classes: int,
    target: Tensor | None = None,
    clip: bool = False,
) -> tuple[Tensor, Tensor]:
    """The perturbation (1 + overshoot) r that takes each x across a boundary, like x, and whether it did, (n,) bool.

    x: pixels (n, C, H, W) or vectors (n, d), on the victim's device. Only the ``classes`` best classes of a start are tried.
    target: (n,) classes to reach instead of any other than the victim's label of x; the boundary to the best of the
    others is then the one crossed. clip: stay in the space's box, which the paper's algorithm leaves; else the perturbation
    takes no notice of it. Steps are shortest in units of ``space.width``. Points that have crossed leave the batch.
    """
    parts = [
        _walk(victim, space, part, goal, overshoot, iterations, classes, clip)
        for part, goal in zip(x.split(BATCH), _split(target, x), strict=True)
    ]
    perturbations, converged = zip(*parts, strict=True)
    return torch.cat(perturbations), torch.cat(converged)


def _split(target: Tensor | None, x: Tensor) -> tuple[Tensor | None, ...]:
    return (None,) * len(x.split(BATCH)) if target is None else target.split(BATCH)


def _walk(
    victim: Victim, space: Space, x: Tensor, target: Tensor | None, overshoot: float, iterations: int, classes: int, clip: bool
) -> tuple[Tensor, Tensor]:
    perturbation, converged = torch.zeros_like(x), torch.zeros(len(x), dtype=torch.bool, device=x.device)
    active = torch.arange(len(x), device=x.device)
    with torch.no_grad():
        logits = victim.logits(x)
    source, rivals = _classes(logits, classes, target)
    start, here, total = x, x, torch.zeros_like(x)
    crossed = _crossed(logits, source, target)
    for _ in range(iterations + 1):
        if crossed.any():
            gone = active[crossed]
            perturbation[gone], converged[gone] = (here - start)[crossed], True
            going = ~crossed
            active, start, here, total = active[going], start[going], here[going], total[going]
            source, rivals = source[going], rivals[going]
            target = target[going] if target is not None else None
        if not len(active) or not iterations:
            break
        iterations -= 1
        total = total + _step(victim, space, here, source if target is None else None, rivals, clip)
        here = start + (1 + overshoot) * total
        if clip:
            total, here = space.clip(start + total) - start, space.clip(here)
        with torch.no_grad():
            crossed = _crossed(victim.logits(here), source, target)
    perturbation[active] = here - start
    return perturbation, converged


def _classes(logits: Tensor, classes: int, target: Tensor | None) -> tuple[Tensor, Tensor]:
    """The label of each row, (n,), and the classes to try, (n, K - 1), best first."""
    source = logits.argmax(1)
    if target is not None:
        return source, target[:, None]
    others = logits.scatter(1, source[:, None], -torch.inf)
    return source, others.topk(min(max(classes, 2), logits.shape[1]) - 1, dim=1).indices


def _crossed(logits: Tensor, source: Tensor, target: Tensor | None) -> Tensor:
    label = logits.argmax(1)
    return label != source if target is None else label == target


def _step(victim: Victim, space: Space, here: Tensor, source: Tensor | None, rivals: Tensor, clip: bool) -> Tensor:
    """The shortest of the steps to the rivals' boundaries, linearised: |f| w / |w|^2 with f = Z_k - Z_source, w its gradient."""
    here = here.detach().requires_grad_(True)
    logits = victim.logits(here)
    if source is None:  # a target: away from whatever class is ahead of it
        source = logits.detach().scatter(1, rivals, -torch.inf).argmax(1)
    width = space.width
    apart = (logits.gather(1, rivals) - logits.gather(1, source[:, None])).detach().abs() + TINY
    shortest = torch.full((len(here),), torch.inf, device=here.device)
    step = torch.zeros_like(here)
    last = rivals.shape[1] - 1
    for column, rival in enumerate(rivals.unbind(1)):
        pull = torch.zeros_like(logits).scatter_(1, rival[:, None], 1.0).scatter_(1, source[:, None], -1.0)
        (slope,) = torch.autograd.grad(logits, here, grad_outputs=pull, retain_graph=column < last)
        slope = slope * width
        if clip:
            slope = slope * _free(space, here, slope)
        norm = slope.flatten(1).norm(dim=1)
        length = torch.where(norm > TINY, apart[:, column] / norm.clamp_min(TINY), torch.inf)
        shorter = length < shortest
        shortest = torch.where(shorter, length, shortest)
        scale = torch.where(shorter, (length + PUSH) / norm.clamp_min(TINY), 0.0)
        step = torch.where(_per_point(shorter, here), slope * _per_point(scale, here), step)
    return step * width


def _free(space: Space, here: Tensor, slope: Tensor) -> Tensor:
    """Which features can move up the slope: those that do not lie on the side of the box it points to."""
    here = here.detach()
    return torch.where(slope > 0, here < space.high, here > space.low)


def _per_point(values: Tensor, like: Tensor) -> Tensor:
    return values.reshape(-1, *(1,) * (like.ndim - 1))
