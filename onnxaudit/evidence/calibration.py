"""Reference calibration: where a suspect falls among models that are known to be independent."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

STATISTIC = "mean-z/1"
"""The pre-registered statistic: see ``combined``. A bundle names the one that it was made for."""
TOLERANCE = 1.0
"""Standard deviations by which innocents may be closer to the victim than the references are, before any is accused."""
WIDE_TOLERANCE = 2.0
"""The same where the references are known to be weaker than the innocents they stand for."""
COVARIATE_MODELS = 12
"""With fewer models than this no covariate is fitted: a slope from so few is noise."""

MOST_CODES = 4096
"""Labels in so wide a range are counted as they are, others by rank."""

Floats = NDArray[np.float64]


def mean_agreement(labels: NDArray[np.int32]) -> Floats:
    """Each model's mean agreement with the other models, (m,), from their labels of natural inputs, (m, n).

    It measures how good and how ordinary a model is without the victim: good models agree with all good models.
    """
    m, n = labels.shape
    low, high = int(labels.min(initial=0)), int(labels.max(initial=0))
    # how many models gave each label to each input, looked up for each model's own: time and memory grow with m, not its square
    codes, kinds = (labels - low, high - low + 1) if high - low < MOST_CODES else _coded(labels)
    cells = codes + np.arange(n) * kinds
    shared = np.bincount(cells.ravel(), minlength=n * kinds)[cells].sum(axis=1)
    return np.asarray((shared / max(1, n) - 1) / max(1, m - 1))


def _coded(labels: NDArray[np.int32]) -> tuple[NDArray[np.int64], int]:
    """Labels as numbers from 0, and how many there are."""
    known, codes = np.unique(labels, return_inverse=True)
    return codes.reshape(labels.shape), len(known)


def usable(covariate: Floats | None) -> bool:
    """Whether there are enough models, and differences between them, to fit a slope."""
    return covariate is not None and len(covariate) > COVARIATE_MODELS and bool(np.ptp(covariate) > 1e-9)


def studentised(scores: Floats, covariate: Floats | None, floor: float) -> Floats:
    """Scores of m + 1 models as residuals on a covariate in units of their own standard error, (m + 1,).

    Ordinary least squares over references and suspect together, residuals divided by s sqrt(1 - leverage): symmetric in all
    models, so ranks among them stay exact. Without a usable covariate these are z-scores. floor: the least s that counts.
    """
    n, fitted = len(scores), 1
    residual = scores - scores.mean()
    remaining: Floats | float = 1 - 1 / n
    if covariate is not None and usable(covariate):
        fitted = 2
        direction = covariate - covariate.mean()
        direction /= np.sqrt(direction @ direction)  # orthogonal to the constant: what is left of it is a plain projection
        residual = residual - direction * (direction @ residual)
        remaining = remaining - direction**2
    spread = max(float(np.sqrt(residual @ residual / max(1, n - fitted))), floor)
    return np.asarray(residual / (spread * np.sqrt(np.maximum(remaining, 1e-9))))


def standardise(scores: Floats, covariate: Floats | None, floor: float) -> Floats:
    """The smaller of each model's plain and covariate-adjusted studentised score, (m + 1,).

    The adjustment is there to protect innocents that agree with every good model. It must not be a way to look suspicious by
    agreeing with none: a suspect with a wrong label order has a low covariate, and its plain score counts.
    """
    return np.minimum(studentised(scores, None, floor), studentised(scores, covariate, floor))


def combined(standardised: Sequence[Floats]) -> Floats:
    """The mean over schemes of the models' studentised scores, (m + 1,)."""
    return np.asarray(np.mean(standardised, axis=0))


def p_value(statistics: Floats, tolerance: float = 0.0, schemes: float = 1) -> float:
    """Conformal p-value of the last of m + 1 statistics among the others: (1 + #{i : t_i + tolerance sd >= t}) / (m + 1).

    If the suspect is independent and exchangeable with the references, P(p <= a) <= a for every a; ties count against the
    claim. A positive tolerance only raises p: it keeps the level for innocents that are closer to the victim than the references
    by up to so many standard deviations. sd is that of the references' statistics, and at least 1 / sqrt(schemes), which
    the mean of so many unrelated z-scores has: references that all score alike do not make a small difference large.
    """
    references, suspect = statistics[:-1], statistics[-1]
    spread = spread_of(references, schemes)
    # a hair above equality, so that ties stay ties whatever the order of summation;
    # and not-less instead of at-least, so that a NaN counts against the claim
    reached = ~(references + tolerance * spread < suspect - 1e-9)
    return (1 + int(reached.sum())) / (len(references) + 1)


def spread_of(references: Floats, schemes: float = 1) -> float:
    """Standard deviation of the references' statistics, and at least 1 / sqrt(schemes): see ``p_value``."""
    return float(max(references.std(ddof=1) if len(references) > 1 else 0.0, 1 / schemes**0.5))


def look_price(look: int, *, last: bool) -> int:
    """What p is multiplied by at a look that nobody planned, counted from 1: k (k + 1), or k where nothing is left to ask.

    So look k is given the share 1 / (k (k + 1)) of alpha, and the last what is left, 1 / k: however many there will be, whoever
    stops at the first look that shows anything accuses an innocent with probability alpha at most (union bound).
    """
    return look if last else look * (look + 1)


def p_floor(references: int) -> float:
    """The smallest p-value that so many references can give."""
    return 1 / (references + 1)
