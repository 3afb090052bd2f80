"""Representations: what of a model's recorded answers is compared. Pure functions of answers; none runs a model."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from onnxaudit.answers import Access, Answers

Representation: TypeAlias = Callable[..., NDArray[np.float64]]
"""Answers to n queries (and parameters by name) to one vector; the same length for every model asked the same queries."""


def labels(answers: Answers) -> NDArray[np.float64]:
    """The best class of each query, (n,). Needs label access."""
    return answers.labels.astype(np.float64)


def correlation(
    answers: Answers, kernel: str = "cosine", feed: str = "probs", epsilon: float = 0.1, two_delta_squared: float = 1.0
) -> NDArray[np.float64]:
    """How alike a model finds each pair of queries: the upper triangle of SAC's correlation matrix, (n (n-1) / 2,).

    kernel: "cosine", o_a.o_b / (|o_a| |o_b|) (SAC eq. 2), or "rbf", exp(-|o_a - o_b|^2 / (2 delta^2)) (eq. 3) of the outputs
    scaled to unit length, as the authors' code does. feed: "probs" (paper), or "centred": log-probabilities minus their mean,
    which are the logits up to a constant and so the same whether a model ends in logits or in softmax.
    Labels: smooth labels (1 - epsilon) onehot + epsilon / C (eq. 5). top-k: the missing mass is spread evenly.
    """
    rows, columns = _pairs(len(answers))
    outputs = _fed(answers, feed, epsilon)
    norms = np.linalg.norm(outputs, axis=1, keepdims=True)
    outputs = outputs / np.maximum(norms, 1e-12)
    cosine = (outputs @ outputs.T)[rows, columns]
    if kernel == "cosine":
        return np.asarray(cosine)
    if kernel == "rbf":
        return np.asarray(np.exp(-(2 - 2 * cosine) / two_delta_squared))
    raise ValueError(f"unknown kernel {kernel!r}")


@functools.cache
def _pairs(n: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Row and column of each element above the diagonal; the same for every model."""
    return np.triu_indices(n, 1)


def _fed(answers: Answers, feed: str, epsilon: float) -> NDArray[np.float64]:
    if answers.access == Access.LABEL:
        return (1 - epsilon) * answers.dense().astype(np.float64) + epsilon / (answers.num_classes or 1)
    probabilities = answers.degrade(Access.PROBS).dense().astype(np.float64)
    if feed == "probs":
        return probabilities
    if feed == "centred":
        logs = np.log(np.maximum(probabilities, 1e-6))  # below this, rounding in half precision and INT8 is all there is
        return np.asarray(logs - logs.mean(axis=1, keepdims=True))
    raise ValueError(f"unknown feed {feed!r}")


REPRESENTATIONS: Mapping[str, Representation] = MappingProxyType({"labels": labels, "correlation": correlation})
