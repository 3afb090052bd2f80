"""The box that valid inputs lie in, and the grid that queries are stored on (torch)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from torch import Tensor

from onnxaudit.craft.data import Data
from onnxaudit.craft.victim import Victim
from onnxaudit.suspect import Queries

GREY_LEVELS = 255
PART = 8
"""Points drawn together where there are many."""


@dataclass(frozen=True, slots=True, eq=False)
class Space:
    """low, high: bounds that broadcast over a batch, (1, …). image: whether inputs are pixels on the 8-bit grid.

    Radii and steps of attacks are given in units of ``width`` = high - low, which is 1 for pixels.
    """

    low: Tensor
    high: Tensor
    image: bool

    @property
    def width(self) -> Tensor:
        """high - low, (1, …); 1 where a feature never varies."""
        return torch.where(self.high > self.low, self.high - self.low, 1.0)

    def clip(self, x: Tensor) -> Tensor:
        """x moved into the box."""
        return torch.minimum(torch.maximum(x, self.low), self.high)

    def snapped(self, x: Tensor) -> Tensor:
        """x in the box and on the grid that queries are stored on; gradients pass straight through the rounding."""
        if not self.image:
            return self.clip(x)
        clipped = self.clip(x)
        return clipped + (clipped.detach().mul(GREY_LEVELS).round().div(GREY_LEVELS) - clipped.detach())

    def uniform(self, n: int, rng: np.random.Generator) -> Tensor:
        """n points drawn uniformly from the box (from the grid, for images)."""
        shape = (n, *self.low.shape[1:])
        drawn = rng.integers(0, GREY_LEVELS + 1, shape) / GREY_LEVELS if self.image else rng.random(shape)
        drawn = drawn.astype(np.float32)
        return self.low + torch.from_numpy(drawn).to(self.low.device) * (self.high - self.low)

    def noise(self, n: int, size: float, rng: np.random.Generator) -> Tensor:
        """n times uniform noise in [-size, size], like points."""
        drawn = np.empty((n, *self.low.shape[1:]), np.float32)
        for start in range(0, n, PART):
            part = drawn[start : start + PART]
            part[:] = rng.uniform(-size, size, part.shape)
        return torch.from_numpy(drawn).to(self.low.device)

    def random(self, n: int, rng: np.random.Generator) -> Queries:
        """``uniform`` as canonical queries, never all of them as floats."""
        sizes = [min(PART, n - start) for start in range(0, n, PART)] or [0]
        return cast("Queries", np.concatenate([self.queries(self.uniform(size, rng)) for size in sizes]))

    def queries(self, x: Tensor) -> Queries:
        """x as canonical queries: uint8 (n, H, W, C), or float32 (n, d)."""
        x = self.clip(x.detach())
        if not self.image:
            vectors: Queries = x.float().cpu().numpy()
            return vectors
        pixels: Queries = x.mul(GREY_LEVELS).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous().cpu().numpy()
        return pixels


def space_of(victim: Victim, data: Data | None) -> Space:
    """The space of a victim's inputs. Vectors have no natural range but that of the data; without data it is [0, 1]."""
    shape = victim.spec.shape
    if len(shape) == 3:
        size = (1, shape[2], shape[0], shape[1])
        return Space(torch.zeros(size, device=victim.device), torch.ones(size, device=victim.device), True)
    if data is None:
        return Space(torch.zeros((1, *shape), device=victim.device), torch.ones((1, *shape), device=victim.device), False)
    low, high = (
        torch.from_numpy(np.asarray(bound, np.float32)[None]).to(victim.device) for bound in (data.x.min(0), data.x.max(0))
    )
    return Space(low, high, False)
