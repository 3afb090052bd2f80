"""Which of the victim's classes each of a suspect's labels means, from answers to controls whose classes are known."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

RIGHT, GUESSED = 0.95, 0.35
"""How often a model that is wired right, or wrong, gets an easy control right."""
AGAIN = 0.93
"""How often a model whose labels have another order gives a class the label that it gave it before."""
NEW, COLLAPSED = 0.95, 0.55
"""How often it gives a class that was not seen before a label of its own; models that are wired wrong repeat a few."""
UNUSUAL = 2.5
"""Log odds against another order of labels beforehand."""
MOST_CLASSES = 2000
"""Among more classes no controls tell an order, and the table of all pairs would not fit."""

Seen = Sequence[tuple[int, int]]
"""(true class, label that was given), in the order of asking."""


@dataclass(frozen=True, slots=True)
class Labelling:
    """classes[j]: the victim's class that the suspect's label j means; () if the order is the same. right: of the controls."""

    classes: tuple[int, ...]
    right: int
    of: int


def log_odds(seen: Seen) -> float:
    """Log odds that a model is wired right and has the victim's labels, against wired wrong."""
    right, wrong = math.log(RIGHT / GUESSED), math.log((1 - RIGHT) / (1 - GUESSED))
    return sum(right if label == truth else wrong for truth, label in seen)


def log_odds_permuted(seen: Seen) -> float:
    """Log odds that a model is wired right and has its labels in some other order, against wired wrong."""
    total, given = -UNUSUAL, dict[int, list[int]]()
    for truth, label in seen:
        before = given.setdefault(truth, [])
        if before:
            same = label == max(before, key=before.count)
            total += math.log(AGAIN / GUESSED) if same else math.log((1 - AGAIN) / (1 - GUESSED))
        elif len(given) > 1:
            own = all(label not in labels for other, labels in given.items() if other != truth)
            total += math.log(NEW / COLLAPSED) if own else math.log((1 - NEW) / (1 - COLLAPSED))
        before.append(label)
    return total


def best_labelling(seen: Seen, classes: int) -> Labelling | None:
    """The order of labels under which most controls are right, the victim's own on ties; None where it is not determined.

    An assignment of labels to classes (H. W. Kuhn 1955, as SciPy solves it). A label that no control speaks for keeps its
    place if that is free; it is determined if it is the only one left.
    """
    if classes > MOST_CLASSES:
        return None
    from scipy.optimize import linear_sum_assignment

    counts = np.zeros((classes, classes))
    for truth, label in seen:
        counts[label, truth] += 1
    own: NDArray[np.float64] = np.eye(classes) / (classes + 1)  # less than one control all together: ties stay as they are
    labels, meant = linear_sum_assignment(counts + own, maximize=True)
    order = np.empty(classes, int)
    order[labels] = meant
    supported = counts[np.arange(classes), order] > 0
    if (~supported & (order != np.arange(classes))).sum() > 1:
        return None
    right = int(counts[np.arange(classes), order].sum())
    changed = tuple(order.tolist()) if (order != np.arange(classes)).any() else ()
    return Labelling(changed, right, len(seen))
