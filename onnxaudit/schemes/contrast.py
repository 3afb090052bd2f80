"""``contrast``: what each query says for "extracted from the victim" against "extracted from another model". NumPy only.

A query's *margin* is the model's log-probability of the victim's label less that of its best other class, divided by the median
size of the model's own margins and squashed by tanh: networks differ in how sure they are, which says nothing here.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from onnxaudit.answers import Access, Answers
from onnxaudit.schemes.feeds import LEAST

Floats = NDArray[np.float64]
COLUMNS = ("said", "share", "share_weight", "margin", "margin_weight", "margin_spread")
"""said: the victim's label. share: probability that a model extracted from another gives it. margin: the mean margin of those.

share_weight, margin_weight: of the discriminant. margin_spread: the variance of margins within one kind of model.
"""


def margins(answers: Answers, said: NDArray[np.integer]) -> Floats:
    """Squashed margins in [-1, 1] of the label ``said`` (n,); top-k: the missing mass is spread evenly. Not for labels."""
    logs = np.log(np.maximum(answers.degrade(Access.PROBS).dense().astype(np.float64), LEAST))
    at = np.arange(len(logs))
    own = logs[at, said]
    logs[at, said] = -np.inf
    found = own - logs.max(axis=1)
    ranked = np.sort(np.abs(found))  # NumPy's median loads its masked arrays, a tenth of a small check
    usual = float((ranked[(len(ranked) - 1) // 2] + ranked[len(ranked) // 2]) / 2) if len(ranked) else 0.0
    return np.asarray(np.tanh(found / usual) if usual > 0 else np.sign(found))


def log_ratios(answers: Answers, columns: Mapping[str, NDArray[np.generic]]) -> Floats:
    """Each query's part of the log-likelihood ratio, and the variance it would have if queries were independent, (n, 2).

    Of two normal distributions with one covariance the ratio is linear, w (x - x_other), up to a constant. x is the margin; for
    labels, whether the label is the victim's.
    """
    said = np.asarray(columns["said"], np.int64)
    kind = "share" if answers.access == Access.LABEL else "margin"
    centre, weight = (np.asarray(columns[name], np.float64) for name in (kind, f"{kind}_weight"))
    if answers.access == Access.LABEL:
        given, spread = (answers.labels == said).astype(np.float64), centre * (1 - centre)
    else:
        given, spread = margins(answers, said), np.asarray(columns["margin_spread"], np.float64)
    return np.stack([weight * (given - centre), weight**2 * spread], axis=1)


def evidence(victim: Floats, suspect: Floats) -> float:
    """The summed log-likelihood ratio of the suspect, in units of the deviation that it would have if queries were independent.

    Those put to one model are not, so the score is no p-value, only a unit in which one is much. The victim's own ratios are not
    looked at. NaN where no query tells the two kinds apart.
    """
    spread = float(np.sqrt(suspect[:, 1].sum()))
    return float(suspect[:, 0].sum() / spread) if spread > 0 else float("nan")
