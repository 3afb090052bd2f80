"""Pairwise representations: how far a model moves between the two queries of a pair (ModelDiff; Li et al. 2021)."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from onnxaudit.answers import Access, Answers
from onnxaudit.schemes.feeds import fed


def decision_distances(
    answers: Answers, columns: Mapping[str, NDArray[np.generic]], *, feed: str = "centred"
) -> NDArray[np.float64]:
    """The decision distance vector: 1 - cos(o(x), o(u)) of each whole pair (x, u), (pairs,) (ModelDiff section 4.2; QuRD eq. 8).

    feed: see ``fed``; the artefact takes raw logits. Labels: 0 where both get the same label, else 1.
    """
    first, second = members(columns["pair"])
    if answers.access == Access.LABEL:
        return (answers.labels[first] != answers.labels[second]).astype(np.float64)
    outputs = fed(answers, feed)
    norms = np.linalg.norm(outputs, axis=1)
    dots = (outputs[first] * outputs[second]).sum(axis=1)
    return np.asarray(1 - dots / np.maximum(norms[first] * norms[second], 1e-12))


def label_distances(answers: Answers, columns: Mapping[str, NDArray[np.generic]]) -> NDArray[np.float64]:
    """(y(u) - y(x)) mod C of each whole pair (x, u), (pairs,) (QuRD's HardDDV)."""
    first, second = members(columns["pair"])
    moved = answers.labels[second].astype(np.int64) - answers.labels[first]
    return np.asarray(moved % max(1, answers.num_classes or 1), dtype=np.float64)


def members(pair: NDArray[np.generic]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Rows of the first and of the second member of every pair that is whole, from the pair's number of each row."""
    order = np.argsort(pair, kind="stable")
    whole = np.flatnonzero(pair[order][:-1] == pair[order][1:])
    return order[whole], order[whole + 1]
