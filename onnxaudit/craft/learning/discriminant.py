"""Linear discriminants from fewer models than queries, with a covariance that is shrunk. NumPy only."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

RIDGE = 1.0
"""How much of each query's own variance, and of the mean of all, is added to the covariance: as much as there is."""
EVEN = 0.25
"""How much of the mean variance is added to a query's own when queries are ranked."""


def within(groups: Sequence[Floats]) -> Floats:
    """Each model's deviation from the mean of its group, scaled so that its square is the covariance, (models, n)."""
    deviations = np.concatenate([group - group.mean(axis=0) for group in groups])
    freedom = max(1, len(deviations) - len(groups))
    return np.asarray(deviations / np.sqrt(freedom))


def separation(derived: Floats, others: Floats, deviations: Floats) -> Floats:
    """Difference of the kinds' means over the shrunk standard deviation of each query, (n,)."""
    variance = np.square(deviations).sum(axis=0)
    return np.asarray((derived.mean(axis=0) - others.mean(axis=0)) / np.sqrt(variance + EVEN * variance.mean() + 1e-12))


def weights(derived: Floats, others: Floats, deviations: Floats) -> Floats:
    """w = (S + D)^-1 (m_derived - m_others) (Fisher 1936), S the covariance within groups, D its diagonal and mean, (n,).

    S has no more ranks than there are models, so it is inverted in as many dimensions (Woodbury). A direction in which models
    of one kind differ among themselves, such as that of their architecture, gets little weight.
    """
    variance = np.square(deviations).sum(axis=0)
    diagonal = RIDGE * (variance + max(float(variance.mean()), 1e-6))
    shift = (derived.mean(axis=0) - others.mean(axis=0)) / diagonal
    inner = np.eye(len(deviations)) + (deviations / diagonal) @ deviations.T
    return np.asarray(shift - (deviations.T @ np.linalg.solve(inner, deviations @ shift)) / diagonal)
