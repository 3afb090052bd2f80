"""What of a model's scores is fed into a representation, so that a model that ends in softmax equals one that does not."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from onnxaudit.answers import Access, Answers

LEAST = 1e-6
"""Smaller probabilities are rounding in half precision and INT8."""


def fed(answers: Answers, feed: str) -> NDArray[np.float64]:
    """Scores of n queries, (n, C). Labels are one-hot whatever the feed; top-k: the missing mass is spread evenly.

    feed: "probs"; "centred", log-probabilities less their mean over classes, which are logits up to a constant; "logits", raw
    where they are known, else "centred". Raises ValueError for another, or where the number of classes is not known.
    """
    if feed not in ("probs", "centred", "logits"):
        raise ValueError(f"unknown feed {feed!r}")
    if feed == "logits" and answers.access == Access.LOGITS:
        return answers.dense().astype(np.float64)
    probabilities = answers.degrade(Access.PROBS).dense().astype(np.float64)
    if feed == "probs" or answers.access == Access.LABEL:
        return probabilities
    logs = np.log(np.maximum(probabilities, LEAST))
    return np.asarray(logs - logs.mean(axis=1, keepdims=True))


def unit(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """Rows scaled to length 1, (n, m); rows of zeros, which have no direction, stay zeros."""
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.asarray(rows / np.where(norms > 0, norms, 1))
