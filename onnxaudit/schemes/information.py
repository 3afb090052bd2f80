"""Detectors from information theory."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def joint_counts(one: NDArray[np.float64], two: NDArray[np.float64]) -> NDArray[np.int64]:
    """How often each pair of categories occurs in two arrays of as many whole numbers: (p,), only for the p pairs that do occur.

    Its size does not depend on how many categories there might be. In the order of the pairs.
    """
    first, second = one.astype(np.int64).ravel(), two.astype(np.int64).ravel()
    second = second - second.min()
    return occurrences((first - first.min()) * (int(second.max()) + 1) + second)


def occurrences(categories: NDArray[Any]) -> NDArray[np.int64]:
    """How often each value occurs that does, (values,), in their order; ``np.unique`` takes long to import what it needs."""
    values = np.sort(categories, axis=None)
    begins = np.flatnonzero(np.append(True, values[1:] != values[:-1]))
    return np.diff(begins, append=len(values))


def entropy(counts: NDArray[np.int64]) -> float:
    """Plug-in entropy in nats of counts."""
    shares = counts[counts > 0] / counts.sum()
    return -float((shares * np.log(shares)).sum())


def mutual_information(victim: NDArray[np.float64], suspect: NDArray[np.float64]) -> float:
    """I(V; S) / min(H(V), H(S)) of two vectors of categories, in [0, 1]; NaN where either is constant (FBI section 4).

    Plug-in, so biased upwards where there are many categories for few queries: give it ranks or few classes.
    """
    one, two = entropy(occurrences(victim)), entropy(occurrences(suspect))
    least = min(one, two)
    return min(1.0, max(0.0, (one + two - entropy(joint_counts(victim, suspect))) / least)) if least > 0 else float("nan")


def jensen_shannon(victim: NDArray[np.float64], suspect: NDArray[np.float64]) -> float:
    """Minus the mean Jensen-Shannon divergence of rows of probabilities in nats, in [-ln 2, 0] (DeepJudge's JSD, not rooted)."""
    middle = (victim + suspect) / 2
    return -float((_divergence(victim, middle) + _divergence(suspect, middle)).mean() / 2)


def _divergence(p: NDArray[np.float64], q: NDArray[np.float64]) -> NDArray[np.float64]:
    """Kullback-Leibler divergence of each row."""
    ratio = np.where(p > 0, p / np.where(q > 0, q, 1), 1)
    return np.asarray((p * np.log(ratio)).sum(axis=-1))
