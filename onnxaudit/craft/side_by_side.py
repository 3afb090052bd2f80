"""Independent points in as many parts as there are cores, and as memory wants (torch)."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from onnxaudit.craft.room import BATCH
from onnxaudit.craft.sample import Material
from onnxaudit.suspect import Queries

Walk = Callable[..., tuple[Tensor, ...]]

FEWEST = 16
"""Points that are worth a thread of their own."""


def side_by_side(
    walk: Walk, *tensors: Tensor, at_once: int = BATCH, watch: Callable[..., None] | None = None
) -> tuple[Tensor, ...]:
    """``walk(*tensors)`` for tensors with one row a point, ``at_once`` at most; on a CPU side by side on its cores.

    Points must not depend on each other. Results are concatenated. watch: called with those of each part as they come, in order.
    Small networks gain nothing from several threads working on one operation.
    """
    first = tensors[0]
    threads = max(1, min(os.cpu_count() or 1, len(first) // FEWEST)) if first.device.type == "cpu" else 1
    count = max(threads, -(-len(first) // at_once))
    pieces = list(zip(*(tensor.tensor_split(count) for tensor in tensors), strict=True))
    results = []
    with _each(walk, pieces, threads) as done:
        for result in done:
            results.append(result)
            if watch:
                watch(*result)
    return results[0] if count == 1 else tuple(torch.cat(columns) for columns in zip(*results, strict=True))


def walk_queries(
    material: Material, starts: Queries, walk: Walk, *tensors: Tensor, watch: Callable[..., None] | None = None
) -> tuple[Any, ...]:
    """``walk(x, *tensors)`` for canonical starts, by ``side_by_side``: its points as canonical queries, then its other results.

    Only the points that are being walked are held as floats, which take four times as much memory, and several times that.
    """
    victim, space = material.victim, material.space

    def step(rows: Tensor, *parts: Tensor) -> tuple[Tensor, ...]:
        points, *more = walk(victim.pixels(starts[rows.cpu().numpy()]), *parts)
        return torch.from_numpy(space.queries(points)), *more

    rows = torch.arange(len(starts), device=victim.device)
    points, *more = side_by_side(step, rows, *tensors, at_once=victim.at_once, watch=watch)
    return points.numpy(), *more


@contextmanager
def _each(walk: Walk, pieces: list[tuple[Tensor, ...]], threads: int) -> Iterator[Iterator[tuple[Tensor, ...]]]:
    """The walks of all pieces, one after the other as they are done."""
    if threads == 1:
        yield (walk(*piece) for piece in pieces)
        return
    with ThreadPoolExecutor(
        threads, initializer=torch.set_num_threads, initargs=(max(1, torch.get_num_threads() // threads),)
    ) as pool:
        yield pool.map(lambda piece: walk(*piece), pieces)
