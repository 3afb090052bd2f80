"""The learned combination: a weighted mean of schemes' standardised scores, whose weights were fixed while crafting."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence

import numpy as np
from numpy.typing import NDArray

from onnxaudit.evidence.calibration import Floats, combined

STATISTIC = "learned/1"
"""The pre-registered statistic: see ``weighted``, with the weights of the bundle's network ``GRAPH``."""
GRAPH = "combination"
"""The name that a bundle keeps the network by: (rows, schemes) to (rows, 2), linear, for labels and for more than labels."""
Graph = Callable[[NDArray[np.float32]], NDArray[np.float32]]


def weights_of(graph: Graph, schemes: int, *, labels: bool) -> Floats:
    """What the network gives to each scheme, (schemes,): its answers to unit vectors.

    Only these are used, in a weighted mean, so whatever the network is the statistic is linear. A negative weight would make a
    model that is less like the victim look more so: raises ValueError for one, for none above 0, and for a network that does
    not fit.
    """
    given = np.asarray(graph(np.eye(schemes, dtype=np.float32)), np.float64)
    if given.shape != (schemes, 2) or not np.isfinite(given).all():
        raise ValueError(f"it has outputs of shape {given.shape} for {schemes} schemes")
    weights = given[:, 0 if labels else 1]
    if weights.min(initial=0) < 0 or not weights.any():
        raise ValueError("its weights must not be negative, nor all 0")
    return np.asarray(weights / weights.sum())


def weighted(standardised: Sequence[Floats], weights: Sequence[float]) -> Floats:
    """The weighted mean over schemes of the models' studentised scores, (m + 1,).

    One fixed function of each model's own scores: it treats the m + 1 models alike, so ranks among them stay exact. weights:
    those of the schemes that ran; they need not sum to 1. Where all of these are 0 the plain mean is taken.
    """
    if min(weights) == max(weights):
        return combined(standardised)
    share = shares(weights)
    return np.asarray(sum((w * z for w, z in zip(share, standardised, strict=True)), np.zeros_like(standardised[0])))


def shares(weights: Sequence[float]) -> Floats:
    """Weights of the schemes that ran, divided by their sum; all the same if that is 0."""
    given = np.asarray(weights, np.float64)
    total = float(given.sum())
    return np.asarray(given / total if total > 0 else np.full(len(given), 1 / len(given)))


def unrelated(groups: Sequence[Hashable], weights: Sequence[float]) -> float:
    """How many unrelated schemes have a mean that varies as much as this weighted one: 1 / sum of (weight of a group)^2.

    groups: the same for schemes that rise and fall together. With equal weights it is K^2 / sum of n_g^2.
    """
    together: dict[Hashable, float] = defaultdict(float)
    for group, share in zip(groups, shares(weights).tolist(), strict=True):
        together[group] += share
    return float(1 / sum(share**2 for share in together.values()))
