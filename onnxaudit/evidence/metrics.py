"""How well scores tell derived from independent models, as the papers measure it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray


def auc(positives: ArrayLike, negatives: ArrayLike) -> float:
    """P(positive > negative) + P(tie) / 2 over all pairs; NaN where one side is empty."""
    positive, negative = _floats(positives), _floats(negatives)
    if not positive.size or not negative.size:
        return float("nan")
    difference = positive[:, None] - negative[None, :]
    return float((difference > 0).mean() + (difference == 0).mean() / 2)


def roc(positives: ArrayLike, negatives: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """False and true positive rates at every distinct threshold, from (0, 0) to (1, 1)."""
    positive, negative = _floats(positives), _floats(negatives)
    thresholds = np.unique(np.concatenate([positive, negative]))[::-1]
    false = (negative[None, :] >= thresholds[:, None]).mean(axis=1)
    true = (positive[None, :] >= thresholds[:, None]).mean(axis=1)
    return np.concatenate([[0.0], false]), np.concatenate([[0.0], true])


def tpr_at_fpr(positives: ArrayLike, negatives: ArrayLike, limit: float = 0.05) -> float:
    """The largest true positive rate at a threshold whose false positive rate is at most ``limit`` (QuRD; no interpolation)."""
    if not _floats(positives).size or not _floats(negatives).size:
        return float("nan")
    false, true = roc(positives, negatives)
    return float(true[false <= limit].max())


def aruc(positives: Sequence[tuple[int, int]], negatives: Sequence[tuple[int, int]], steps: int = 100) -> float:
    """Area under the robustness-uniqueness curves (IPGuard eq. 6-7) of matching rates given as (matched, asked) counts.

    Mean over t = 1/steps … 1 of min(share of positives with rate >= t, share of negatives with rate < t); in integers.
    """
    if not positives or not negatives:
        return float("nan")
    t = np.arange(1, steps + 1)
    robust = np.mean([matched * steps >= t * asked for matched, asked in positives], axis=0)
    unique = np.mean([matched * steps < t * asked for matched, asked in negatives], axis=0)
    return float(np.minimum(robust, unique).mean())


def clopper_pearson(hits: int, trials: int, confidence: float = 0.95) -> tuple[float, float]:
    """Exact two-sided limits of a rate (Clopper and Pearson 1934); (0, 1) without a trial."""
    from scipy.special import betaincinv

    rest = (1 - confidence) / 2
    low = float(betaincinv(hits, trials - hits + 1, rest)) if hits else 0.0
    return low, float(betaincinv(hits + 1, trials - hits, 1 - rest)) if hits < trials else 1.0


def _floats(values: ArrayLike) -> NDArray[np.float64]:
    return np.asarray(values, dtype=np.float64)
