"""Points that are walked on their own, in parts that fit into memory (torch)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from onnxaudit.craft.room import BATCH
from onnxaudit.craft.sample import Material
from onnxaudit.craft.threads import side_by_side
from onnxaudit.suspect import Queries

Walk = Callable[..., tuple[Tensor, ...]]

AT_ONCE = 64
"""Points that a core works on at once."""


def walk_apart(
    walk: Walk, *tensors: Tensor, at_once: int = BATCH, watch: Callable[..., None] | None = None
) -> tuple[Tensor, ...]:
    """``walk(*tensors)`` for tensors with one row a point, ``at_once`` at most; on a CPU side by side on its cores.

    Points must not depend on each other. Results are concatenated. watch: called with those of each part as they come, in order.
    Small networks gain nothing from several threads working on one operation.
    """
    first = tensors[0]
    alike = min(at_once, AT_ONCE) if first.device.type == "cpu" else at_once
    pieces = list(zip(*(tensor.tensor_split(max(1, -(-len(first) // alike))) for tensor in tensors), strict=True))
    results = []
    with side_by_side(lambda piece: walk(*piece), pieces, first.device) as done:
        for result in done:
            results.append(result)
            if watch:
                watch(*result)
    return results[0] if len(pieces) == 1 else tuple(torch.cat(columns) for columns in zip(*results, strict=True))


def walk_queries(
    material: Material, starts: Queries, walk: Walk, *tensors: Tensor, watch: Callable[..., None] | None = None
) -> tuple[Any, ...]:
    """``walk(x, *tensors)`` for canonical starts, by ``walk_apart``: its points as canonical queries, then its other results.

    Only the points that are being walked are held as floats, which take four times as much memory, and several times that.
    """
    victim, space = material.victim, material.space

    def step(rows: Tensor, *parts: Tensor) -> tuple[Tensor, ...]:
        points, *more = walk(victim.pixels(starts[rows.cpu().numpy()]), *parts)
        return torch.from_numpy(space.queries(points)), *more

    rows = torch.arange(len(starts), device=victim.device)
    points, *more = walk_apart(step, rows, *tensors, at_once=victim.at_once, watch=watch)
    return points.numpy(), *more
