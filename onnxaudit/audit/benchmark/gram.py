"""Detectors of correlation matrices, without the matrices.

A sweep compares matrices of all pairs of queries some ten thousand times a model. What is compared follows from far less: labels
from how often each pair of labels occurs, products of rows from the rows. The values are those of ``schemes.detectors`` up to the
order of summation, which the tests check.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxaudit.answers import Access, Answers
from onnxaudit.schemes.correlation import correlation
from onnxaudit.schemes.feeds import fed, unit

BLOCK = 128
"""Rows of a matrix that are held at once, so that they stay in the processor's cache."""


def scores(representation: str, representing: Mapping[str, Any], victim: Answers, model: Answers) -> dict[str, float]:
    """The detectors of a representation that can be had this way, by name; none for another representation or parameters."""
    if representing or representation not in ("correlation", "hard-correlation"):
        return {}
    if victim.access == Access.LABEL or representation == "hard-correlation":
        return _of_labels(victim, model, _apart(victim, representation), hard=representation == "hard-correlation")
    return _of_rows(unit(fed(victim, "probs")), unit(fed(model, "probs")))


def _apart(answers: Answers, representation: str) -> float:
    """What stands in the matrix for two queries of different labels; for equal labels it is 1."""
    if representation == "hard-correlation":
        return 0.0
    return float(correlation(Answers.from_labels(np.array([0, 1]), answers.num_classes), {})[0, 1])


def _of_labels(victim: Answers, model: Answers, apart: float, *, hard: bool) -> dict[str, float]:
    """Matrices with two values. Each query belongs to one pair of labels, and all queries of a pair have the same rows."""
    own, others = (np.unique(answers.labels, return_inverse=True)[1] for answers in (victim, model))
    both = np.zeros((own.max() + 1, others.max() + 1))
    np.add.at(both, (own, others), 1)
    first, second, n = both.sum(1, keepdims=True), both.sum(0, keepdims=True), len(own)
    differ = float((first**2).sum() + (second**2).sum() - 2 * (both**2).sum()) / n**2
    dots = apart**2 * (n - first - second + both) + apart * (first + second - 2 * both) + both
    norms = np.sqrt(first + apart**2 * (n - first)) * np.sqrt(second + apart**2 * (n - second))
    found = {"cosine": float((both * dots / norms).sum()) / n, "l1": -(1 - apart) * differ, "l2": -(1 - apart) * differ**0.5}
    return found | ({"matching-rate": 1 - differ} if hard else {})


def _of_rows(own: NDArray[np.float64], other: NDArray[np.float64]) -> dict[str, float]:
    """Matrices of the inner products of rows, (n, C) of length 1 or 0."""
    n, mixed = len(own), own.T @ other
    dots = ((own @ mixed) * other).sum(axis=1)
    norms = np.sqrt(((own @ (own.T @ own)) * own).sum(axis=1) * ((other @ (other.T @ other)) * other).sum(axis=1))
    absolute = squared = 0.0
    for start in range(0, n, BLOCK):
        block = slice(start, start + BLOCK)
        difference = own[block] @ own.T - other[block] @ other.T
        absolute += float(np.abs(difference, out=difference).sum())
        squared += float(np.vdot(difference, difference))
    cosine = float((dots / np.where(norms > 0, norms, 1)).mean()) if own.any() else float("nan")
    return {"cosine": cosine, "l1": -absolute / n**2, "l2": -((squared / n**2) ** 0.5)}
