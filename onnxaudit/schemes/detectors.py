"""Detectors: how close two representations are. Larger is closer, always; every one broadcasts over leading axes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Vectors: TypeAlias = NDArray[np.float64]
Detector: TypeAlias = Callable[[Vectors, Vectors], NDArray[np.float64]]
"""(…, d) of the victim and (…, d) of suspects to (…,) similarities."""


def matching_rate(victim: Vectors, suspect: Vectors) -> NDArray[np.float64]:
    """Share of queries with the same label (IPGuard section 4.1; 1 minus QuRD's Hamming distance), in [0, 1]."""
    return np.asarray((victim == suspect).mean(axis=-1))


def l1(victim: Vectors, suspect: Vectors) -> NDArray[np.float64]:
    """Minus the mean absolute difference over all n^2 pairs (SAC eq. 4), from the n (n-1) / 2 pairs above the diagonal.

    In [-2, 0]; 0 is identical. The diagonal of a correlation matrix is 1 in every model and adds nothing.
    """
    pairs = victim.shape[-1]
    n = (1 + np.sqrt(1 + 8 * pairs)) / 2
    return np.asarray(-np.abs(victim - suspect).sum(axis=-1) * 2 / n**2)


DETECTORS: Mapping[str, Detector] = MappingProxyType({"matching-rate": matching_rate, "l1": l1})
