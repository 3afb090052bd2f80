"""Pairwise representations: how far a model moves between the two queries of a pair (ModelDiff; Li et al. 2021)."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from onnxaudit.answers import Access, Answers
from onnxaudit.schemes.feeds import fed, unit


def decision_distances(
    answers: Answers, columns: Mapping[str, NDArray[np.generic]], *, feed: str = "centred"
) -> NDArray[np.float64]:
    """The decision distance vector: 1 - cos(o(x), o(u)) of each whole pair (x, u), (pairs,) (ModelDiff section 4.2; QuRD eq. 8).

    feed: see ``fed``; the artefact takes raw logits. Labels: 0 where both get the same label, else 1.
    """
    first, second = members(columns["pair"])
    if answers.access == Access.LABEL:
        return np.asarray(answers.labels[first] != answers.labels[second], np.float64)
    outputs = unit(fed(answers, feed))
    # of unit vectors this is 1 - cos, without its rounding error, and 0 for equal outputs even where they have no direction
    return np.asarray(np.square(outputs[first] - outputs[second]).sum(axis=1) / 2)


def label_distances(answers: Answers, columns: Mapping[str, NDArray[np.generic]]) -> NDArray[np.float64]:
    """(y(u) - y(x)) mod C of each whole pair (x, u), (pairs,) (QuRD's HardDDV). Raises ValueError if C is not known."""
    if answers.num_classes is None:
        raise ValueError("the number of classes is not known")
    first, second = members(columns["pair"])
    moved = answers.labels[second].astype(np.int64) - answers.labels[first]
    return np.asarray(moved % answers.num_classes, dtype=np.float64)


def members(pair: NDArray[np.generic]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Rows of the first and of the second member of every pair that is whole, from the pair's number of each row."""
    order = np.argsort(pair, kind="stable")
    whole = np.flatnonzero(pair[order][:-1] == pair[order][1:])
    return order[whole], order[whole + 1]
