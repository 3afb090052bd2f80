"""Whether two models are one: the same weights in another format, in half precision or in INT8."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from onnxaudit.answers import Access, Answers

SAME = 1e-3
"""Probabilities that differ by less, to all queries, are those of one model in two formats."""
NEARER = 0.1
"""A model whose distance to another is less than this share of its median distance to the rest is that other, rounded.

On the fixtures INT8 exports are at 0.01 to 0.06, honest models of one family and data at 0.2 or more.
"""
FEWEST_LABELS = 50
"""Answers that two models must share, all of them, to be taken for one where only labels are known."""
FEWEST_MISSES = 20
"""Rows on which most pairs of models must differ before labels can tell a rounded copy."""


def copied(answers: Answers, known: Sequence[Answers], others: Sequence[Answers], *, rounded: bool = True) -> int | None:
    """The place in ``known`` of the model that these answers are a copy of, or None. rounded: also one of less precision.

    others: further models of the task, to know how far apart two of them usually are. How near two good models are depends on the
    queries, so nothing but an exact copy is judged by a distance alone: an honest model that errs as rarely as another must stay.
    """
    if not known:
        return None
    own = _probabilities(answers)
    distance = np.array([_distance(answers, own, model) for model in (*known, *others)])
    nearest = int(distance[: len(known)].argmin())
    rest = np.sort(np.delete(distance, nearest))
    labels = answers.scores is None or known[nearest].scores is None
    if labels and len(rest) and rest[len(rest) // 2] * len(answers) < FEWEST_MISSES:
        return None  # all models agree on nearly everything, so agreement says nothing
    if (rounded and len(rest) and distance[nearest] <= NEARER * rest[len(rest) // 2]) or _same(answers, known[nearest]):
        return nearest
    return None


def _distance(one: Answers, own: NDArray[np.float32] | None, two: Answers) -> float:
    """Mean total variation distance of probabilities, or the share of other labels where only those are known.

    own: what ``one`` says as rows of probabilities, if it does.
    """
    theirs = None if own is None else _probabilities(two)
    if own is None or theirs is None:
        return float((one.labels != two.labels).mean())
    return float(np.abs(own - theirs).sum(axis=1).mean() / 2)


def _probabilities(answers: Answers) -> NDArray[np.float32] | None:
    """Rows of probabilities by class, (n, C); None where only labels are known."""
    return None if answers.scores is None else answers.degrade(Access.PROBS).dense()


def _same(one: Answers, two: Answers) -> bool:
    """Whether two models gave the same answers. Labels alone are evidence only if there are several, and many of them."""
    if not np.array_equal(one.labels, two.labels):
        return False
    first, second = _probabilities(one), _probabilities(two)
    if first is None or second is None:
        return len(one) >= FEWEST_LABELS
    return bool(np.allclose(first, second, atol=SAME))
