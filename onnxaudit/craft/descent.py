"""Adam on points, each on its own, seen by the loss as they will be stored (torch)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor

from onnxaudit.craft.room import BATCH
from onnxaudit.craft.space import Space

BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8

Loss: TypeAlias = Callable[..., Tensor]
"""(points, and the rows that go with them) to one number a point, (n,); may depend on a point and its rows alone."""


def descend(
    loss: Loss,
    space: Space,
    x: Tensor,
    *rows: Tensor,
    lr: float,
    iterations: int,
    decay: bool = False,
    project: Callable[..., Tensor] | None = None,
    enough: float = -torch.inf,
) -> tuple[Tensor, Tensor]:
    """Where the loss of each point was least, (n, …), in the box and on the 8-bit grid, and that loss (n,).

    rows: tensors with one row a point, given to ``loss`` and ``project``. lr: in units of the space's width; decay: it falls
    linearly to 0. project(points, *rows): where points are moved after each step. Points whose loss is ``enough`` or less are
    done and leave the batch.
    """
    best = space.snapped(x).detach().clone()
    least = torch.full((len(x),), torch.inf, device=x.device)
    active = torch.arange(len(x), device=x.device)
    first, second = torch.zeros_like(x), torch.zeros_like(x)
    for step in range(1, iterations + 1):
        shown = space.snapped(x)
        value, gradient = _value_and_gradient(loss, shown, *(row[active] for row in rows))
        better = value < least[active]
        best[active[better]], least[active[better]] = shown[better], value[better]
        going = value > enough
        if not going.all():
            active, x, gradient, first, second = active[going], x[going], gradient[going], first[going], second[going]
            if not len(active):
                break
        first.mul_(BETA1).add_(gradient, alpha=1 - BETA1)
        second.mul_(BETA2).addcmul_(gradient, gradient, value=1 - BETA2)
        rate = lr * (1 - (step - 1) / iterations if decay else 1.0) * (1 - BETA2**step) ** 0.5 / (1 - BETA1**step)
        stride = first / second.sqrt().add_(EPSILON * (1 - BETA2**step) ** 0.5)
        x = space.clip(x - rate * (stride if space.image else stride * space.width))
        if project is not None:
            x = project(x, *(row[active] for row in rows))
    return best, least


def _value_and_gradient(loss: Loss, x: Tensor, *rows: Tensor) -> tuple[Tensor, Tensor]:
    values, gradients = [], []
    for part, *others in zip(x.split(BATCH), *(row.split(BATCH) for row in rows), strict=True):
        part = part.detach().requires_grad_(True)
        value = loss(part, *others)
        (gradient,) = torch.autograd.grad(value.sum(), part)
        values.append(value.detach())
        gradients.append(gradient)
    return torch.cat(values), torch.cat(gradients)
