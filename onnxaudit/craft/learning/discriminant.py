"""Linear discriminants from fewer models than queries, with a covariance that is shrunk. NumPy only."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

RIDGE = 1.0
"""How much of each query's own variance, and of the mean of all, is added to the covariance: as much as there is."""
COPY = 0.05
"""How far the mean of derived models is moved towards the victim, as a share of the victim's distance from the others."""
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


def weights(derived: Floats, others: Floats, victim: Floats, deviations: Floats, ignorant: float) -> Floats:
    """w = (S + D)^-1 (m_derived - m_others) (Fisher 1936), S the covariance within groups, D its diagonal and mean, (n,).

    A direction in which models of one kind differ among themselves, such as that of their architecture, gets little weight.
    victim: its own scores, (n,), towards which m_derived is moved by ``COPY``, so that copies of it are not missed.
    ignorant: what a model that knows nothing scores on every query. It must not look derived by that: where it would score more
    than ``others`` do on average, w is moved as little as it takes for it to score as much.
    """
    centre = others.mean(axis=0)
    variance = np.square(deviations).sum(axis=0)
    diagonal = RIDGE * (variance + max(float(variance.mean()), 1e-6))
    found = _solved(derived.mean(axis=0) - centre + COPY * (victim - centre), deviations, diagonal)
    lost = ignorant - centre
    if (excess := float(found @ lost)) > 0:
        direction = _solved(lost, deviations, diagonal)
        found = found - direction * excess / float(direction @ lost)
    return found


def _solved(right: Floats, deviations: Floats, diagonal: Floats) -> Floats:
    """(S + D)^-1 of a vector; S has no more ranks than there are models, so it takes as many dimensions (Woodbury)."""
    part = right / diagonal
    inner = np.eye(len(deviations)) + (deviations / diagonal) @ deviations.T
    return np.asarray(part - (deviations.T @ np.linalg.solve(inner, deviations @ part)) / diagonal)
