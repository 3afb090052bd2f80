"""Independent points in as many parts as there are cores (torch)."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

FEWEST = 16
"""Points that are worth a thread of their own."""


def side_by_side(walk: Callable[..., tuple[Tensor, ...]], *tensors: Tensor) -> tuple[Tensor, ...]:
    """``walk(*tensors)`` for tensors with one row a point; on a CPU in as many parts as there are cores, results concatenated.

    Points must not depend on each other. Small networks gain nothing from several threads working on one operation.
    """
    first = tensors[0]
    parts = max(1, min(os.cpu_count() or 1, len(first) // FEWEST)) if first.device.type == "cpu" else 1
    if parts == 1:
        return walk(*tensors)
    pieces = list(zip(*(tensor.tensor_split(parts) for tensor in tensors), strict=True))
    with ThreadPoolExecutor(
        parts, initializer=torch.set_num_threads, initargs=(max(1, torch.get_num_threads() // parts),)
    ) as pool:
        results = list(pool.map(lambda piece: walk(*piece), pieces))
    return tuple(torch.cat(columns) for columns in zip(*results, strict=True))
