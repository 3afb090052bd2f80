"""Listwise representations: which queries a model finds alike (SAC; Guan et al. 2022)."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from onnxaudit.answers import Access, Answers
from onnxaudit.schemes.feeds import fed


def correlation(
    answers: Answers,
    columns: Mapping[str, NDArray[np.generic]],
    *,
    kernel: str = "cosine",
    feed: str = "probs",
    smooth: str = "epsilon",
    epsilon: float = 0.1,
    two_delta_squared: float = 1.0,
) -> NDArray[np.float64]:
    """How alike a model finds each pair of queries: SAC's correlation matrix, (n, n).

    kernel: "cosine", o_a.o_b / (|o_a| |o_b|) (SAC eq. 2), or "rbf", exp(-|o_a - o_b|^2 / (2 delta^2)) (eq. 3) of the outputs
    scaled to unit length, as the authors' code does. feed: see ``fed``; "probs" in the paper, raw
    "logits" in the authors' code. Labels: smooth labels, (1 - epsilon) onehot + epsilon / C (eq. 5), or with smooth="softmax" the
    softmax of 1 at the label and 0.01 elsewhere (authors' code). top-k: the missing mass is spread evenly.
    """
    outputs = _smooth(answers, smooth, epsilon) if answers.access == Access.LABEL else fed(answers, feed)
    norms = np.linalg.norm(outputs, axis=1, keepdims=True)
    outputs = outputs / np.maximum(norms, 1e-12)
    cosine = outputs @ outputs.T
    if kernel == "cosine":
        return np.asarray(cosine)
    if kernel == "rbf":
        return np.asarray(np.exp(-(2 - 2 * cosine) / two_delta_squared))
    raise ValueError(f"unknown kernel {kernel!r}")


def hard_correlation(answers: Answers, columns: Mapping[str, NDArray[np.generic]]) -> NDArray[np.float64]:
    """Which pairs of queries get the same label, (n, n) of 0 and 1 (QuRD's HardSAC)."""
    return np.asarray(answers.labels[:, None] == answers.labels[None, :], dtype=np.float64)


def _smooth(answers: Answers, smooth: str, epsilon: float) -> NDArray[np.float64]:
    onehot, classes = answers.dense().astype(np.float64), answers.num_classes or 1
    if smooth == "epsilon":
        return (1 - epsilon) * onehot + epsilon / classes
    if smooth == "softmax":
        powers = np.where(onehot > 0, np.e, np.exp(0.01))
        return np.asarray(powers / powers.sum(axis=1, keepdims=True))
    raise ValueError(f"unknown smooth {smooth!r}")
