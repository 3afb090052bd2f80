"""How many inputs one pass with gradients takes, so that crafting for large networks fits into memory (torch)."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

BATCH = 256
"""Largest number of queries in one pass; bounds memory, not results."""
ROOM = {"cpu": 64 * 2**20, "cuda": 4 * 2**30}
"""Bytes that one pass may keep, by type of device. On a CPU more is slower: it comes fresh from the system."""
STATE = 8
"""What goes along with an input in times its size: what is encoded, its gradient, its moments, where it was best."""


def fitting(run: Callable[[Tensor], Tensor], inputs: Tensor, batch: int | None) -> int:
    """How many inputs ``run`` takes within ``ROOM``: a power of two, at most ``BATCH``, or whole batches of a fixed size.

    inputs: two of them or more, on which it is measured what another input adds (what weights take does not count).
    """
    along = STATE * inputs[0].numel() * inputs.element_size()
    padded = -(-len(inputs) // batch) * batch if batch else 0
    each = _kept(run, inputs) / padded if padded else _kept(run, inputs[:2]) - _kept(run, inputs[:1])
    room = ROOM.get(inputs.device.type, ROOM["cuda"]) / (max(each, 0) + along)
    size = min(BATCH, 1 << int(math.log2(max(1.0, room))))
    return max(1, size // batch) * batch if batch else size


def _kept(run: Callable[[Tensor], Tensor], inputs: Tensor) -> int:
    """Bytes that a pass over these inputs keeps for the gradient by them; 0 if it has none."""
    found: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        found[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    try:
        with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            run(inputs.detach().requires_grad_(True))
    except (RuntimeError, ValueError):  # what cannot be differentiated says so where gradients are wanted
        return 0
    return sum(found.values())
