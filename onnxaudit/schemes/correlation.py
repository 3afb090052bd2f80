"""Listwise representations: which queries a model finds alike (SAC; Guan et al. 2022)."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from onnxaudit.answers import Access, Answers
from onnxaudit.schemes.feeds import fed, unit


def correlation(
    answers: Answers,
    columns: Mapping[str, NDArray[np.generic]],
    *,
    kernel: str = "cosine",
    feed: str = "probs",
    smooth: str = "epsilon",
    epsilon: float = 0.1,
    normalise: bool = True,
    two_delta_squared: float = 1.0,
) -> NDArray[np.float64]:
    """How alike a model finds each pair of queries: SAC's correlation matrix, (n, n).

    kernel: "cosine", o_a.o_b / (|o_a| |o_b|) (SAC eq. 2), or "rbf", exp(-|o_a - o_b|^2 / (2 delta^2)) (eq. 3). The paper leaves
    delta open; the authors' code has 2 delta^2 = 1 for outputs of length 1, which is what ``normalise`` makes of them. feed: see
    ``fed``; "probs" in the paper, raw "logits" in the code, whose cosine is also halved, (1 - cos) / 2, so that its distances are
    half of these. Labels: smooth labels, (1 - epsilon) onehot + epsilon / C (eq. 5), or with smooth="softmax" the softmax of 1 at
    the label and 0.01 elsewhere (code). top-k: the missing mass is spread evenly. Raises ValueError for another value.
    """
    if kernel not in ("cosine", "rbf"):
        raise ValueError(f"unknown kernel {kernel!r}")
    if two_delta_squared <= 0:
        raise ValueError(f"two_delta_squared must be positive, not {two_delta_squared}")
    scaled = normalise or kernel == "cosine"
    width = two_delta_squared if kernel == "rbf" else None
    if answers.access > Access.LABEL:
        return _kernel(fed(answers, feed), width, scaled=scaled)
    # smooth labels take two values only: that of equal labels, which is 1, and that of two that differ
    apart = _kernel(_smooth_pair(answers.num_classes, smooth, epsilon), width, scaled=scaled)[0, 1]
    return np.where(_same(answers), 1.0, apart)


def hard_correlation(answers: Answers, columns: Mapping[str, NDArray[np.generic]]) -> NDArray[np.float64]:
    """Which pairs of queries get the same label, (n, n) of 0 and 1 (QuRD's HardSAC)."""
    return _same(answers).astype(np.float64)


def _same(answers: Answers) -> NDArray[np.bool_]:
    return np.asarray(answers.labels[:, None] == answers.labels[None, :])


def _kernel(outputs: NDArray[np.float64], width: float | None, *, scaled: bool) -> NDArray[np.float64]:
    """Inner products of outputs (n, C), scaled to length 1 or not; or, with a width, the Gaussian of their squared distances."""
    rows = unit(outputs) if scaled else outputs
    products = rows @ rows.T
    if width is None:
        return np.asarray(products)
    squares = np.diagonal(products)
    return np.exp(-np.maximum(squares[:, None] + squares[None, :] - 2 * products, 0) / width)


def _smooth_pair(classes: int | None, smooth: str, epsilon: float) -> NDArray[np.float64]:
    """The smooth labels of two classes, (2, C)."""
    if classes is None:
        raise ValueError("the number of classes is not known")
    if smooth == "epsilon":
        if not 0 <= epsilon <= 1:
            raise ValueError(f"epsilon must lie in [0, 1], not {epsilon}")
        return (1 - epsilon) * np.eye(2, classes) + epsilon / classes
    if smooth == "softmax":
        powers = np.exp(np.where(np.eye(2, classes) > 0, 1.0, 0.01))
        return np.asarray(powers / powers.sum(axis=1, keepdims=True))
    raise ValueError(f"unknown smooth {smooth!r}")
