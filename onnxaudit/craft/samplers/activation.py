"""TAFA, reconstructed: points on the borders between the linear pieces of a ReLU network (Pan et al. 2021), torch."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from onnxaudit.craft.descent import descend
from onnxaudit.craft.layers import Inside, watched
from onnxaudit.craft.sample import Material, Sample
from onnxaudit.craft.walking import walk_queries
from onnxaudit.errors import UsageError
from onnxaudit.suspect import Queries

PROBES = 64
"""Random points that tell how much each unit varies."""
DEAD = 1e-3
"""Units that vary less than this share of what units do on average are not drawn."""


def sample_activation_boundary(
    material: Material,
    n: int,
    rng: np.random.Generator,
    progress: Callable[[int], None],
    *,
    start: str = "random",
    units: int = 64,
    within: float = 0.1,
    lr: float = 4 / 255,
    iterations: int = 200,
) -> Sample:
    """Up to n points at which ``units`` hidden units of the victim, drawn for each point, are about to switch on or off.

    A reconstruction from the abstract: Adam lowers the mean over the units of |pre-activation| in standard deviations, which are
    taken over 64 random points. start: "random" points, as there (it wants no data), or "training" inputs. Units are drawn by
    layer, then by unit. lr: in units of the space's width, falling to 0. Points for which this distance is over ``within`` as
    stored are left out.
    Raises UsageError for a victim without ReLUs, or if fewer than half of the points get there.
    """
    sums = watched(material.victim, pre_activations)
    x = _starts(material, n, rng, start)
    probes = material.space.uniform(PROBES, rng)
    with torch.no_grad():
        spread = _deviation(sums(part) for part in probes.split(material.victim.at_once))
        sizes = watched(material.victim, _sizes)(probes[:1])[0].long().cpu().numpy()
    chosen = torch.from_numpy(_draw(spread.cpu().numpy(), sizes, (n, units), rng)).to(spread.device)
    scale = spread[chosen]
    walk = partial(descend, partial(boundary_distance, sums), material.space, lr=lr, iterations=iterations, decay=True)
    points, distance = walk_queries(material, x, walk, chosen, scale)
    near = distance <= within
    count = int(near.sum())
    progress(count)
    if count < max(1, n // 2):
        raise UsageError(
            f"only {count} of {n} points come within {within:g} of {units} activation boundaries", "Lower units, or raise within."
        )
    notes = (f"{n - count} of {n} points stay more than {within:g} from activation boundaries, left out",) if count < n else ()
    return Sample(points[near.cpu().numpy()], notes, {"distance": round(float(distance[near].mean()), 4)})


def pre_activations(seen: Inside) -> Tensor:
    """Inputs of all ReLUs, (n, units), in order. Raises UsageError where there are none."""
    if not seen.hinges:
        raise UsageError("the victim has no ReLU, so its activations have no boundaries", "Take another scheme.")
    return torch.cat([hinge.flatten(1) for hinge in seen.hinges], 1)


def boundary_distance(sums: Callable[[Tensor], Tensor], x: Tensor, chosen: Tensor, scale: Tensor) -> Tensor:
    """Mean over the chosen units of |pre-activation| / scale, (n,). chosen, scale: (n, units)."""
    return sums(x).gather(1, chosen).div(scale).abs().mean(1)


def _deviation(parts: Iterable[Tensor]) -> Tensor:
    """The standard deviation of each column over all rows of the parts, which are never held together (Chan et al. 1979)."""
    count, mean, squares = 0, torch.zeros(()), torch.zeros(())
    for part in parts:
        new, centre = len(part), part.mean(0)
        apart = centre - mean
        squares = squares + (part - centre).square().sum(0) + apart.square() * (count * new / (count + new))
        mean = mean + apart * (new / (count + new))
        count += new
    return squares.div(count - 1).sqrt()


def _sizes(seen: Inside) -> Tensor:
    """How many units each layer of ReLUs has, the same for every row."""
    return torch.tensor([[hinge[0].numel() for hinge in seen.hinges]] * len(seen.hinges[0]))


def _draw(
    spread: NDArray[np.float32], sizes: NDArray[np.int64], shape: tuple[int, int], rng: np.random.Generator
) -> NDArray[np.int64]:
    """Numbers of units, each layer as likely as another, and of a layer each unit that is alive."""
    layer = np.repeat(np.arange(len(sizes)), sizes)
    alive = np.flatnonzero(spread > DEAD * spread.mean())
    counts = np.bincount(layer[alive], minlength=len(sizes))
    used = np.flatnonzero(counts)
    picked = rng.choice(used, shape)
    chosen: NDArray[np.int64] = alive[
        (np.cumsum(counts) - counts)[picked] + (rng.random(shape) * counts[picked]).astype(np.int64)
    ]
    return chosen


def _starts(material: Material, n: int, rng: np.random.Generator, start: str) -> Queries:
    if start == "random":
        return material.space.random(n, rng)
    if start == "training":
        return material.draw(n, rng)
    raise UsageError(f"start={start!r} is not known", "Use random or training.")
