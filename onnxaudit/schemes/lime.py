"""LIME weights: how much each segment of an image counts for each class (ZestOfLIME; Jia et al. 2022)."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from onnxaudit.answers import Answers
from onnxaudit.schemes.feeds import fed, unit

SINGULAR = 1e-10
"""Smaller eigenvalues of M'M, relative to the largest, are rounding: those of counts that are 0 come out at 1e-14."""


def lime_weights(answers: Answers, columns: Mapping[str, NDArray[np.generic]], *, feed: str = "centred") -> NDArray[np.float64]:
    """Least squares weights of each image's segments for each class, stacked over images, (all segments, C) (Zest section 3).

    For each group of queries, W = pinv(M'M) M'Y, without intercept: M (queries, segments) says which segments a query shows
    (column "mask", padded with zeros to the most segments), Y are the outputs. With fewer queries than segments it is the
    smallest of the weights that fit. Segments that no answered query shows are left out, and images are not padded (QuRD pads
    them, which gives a model a distance from itself). feed: see ``fed``; the artefact takes raw logits.
    """
    outputs, group = fed(answers, feed), columns["group"]
    order = np.argsort(group, kind="stable")
    starts = np.flatnonzero(np.concatenate([[True], group[order][1:] != group[order][:-1]]))
    number = np.repeat(np.arange(len(starts)), np.diff(np.append(starts, len(order))))
    place = np.arange(len(order)) - starts[number]
    shape = (len(starts), int(place.max(initial=-1)) + 1)
    # groups of which not all queries were answered get rows of zeros, which change neither M'M nor M'Y
    shown = np.zeros((*shape, columns["mask"].shape[1]))
    said = np.zeros((*shape, outputs.shape[1]))
    shown[number, place], said[number, place] = columns["mask"][order], outputs[order]
    transposed = shown.transpose(0, 2, 1)
    counts = transposed @ shown
    weights = np.linalg.pinv(counts, SINGULAR, hermitian=True) @ (transposed @ said)
    return np.asarray(weights[np.diagonal(counts, axis1=1, axis2=2) > 0])


def align_classes(victim: NDArray[np.float64], suspect: NDArray[np.float64], distance: str) -> NDArray[np.float64]:
    """The suspect's columns in the order in which they are nearest to the victim's, (rows, C) (Zest section 3, class alignment).

    For suspects whose classes may come in another order. distance between columns: "cosine", "l1" or "l2", that of the
    detector. Raises ValueError for representations that are no tables of classes.
    """
    if victim.ndim != 2 or victim.shape != suspect.shape:
        raise ValueError("classes can be aligned in tables of rows by classes only")
    one, two = victim.T, suspect.T
    if distance == "l1":
        cost = np.stack([np.abs(column - two).sum(axis=1) for column in one])
    elif distance == "l2":
        cost = np.square(one).sum(axis=1)[:, None] + np.square(two).sum(axis=1) - 2 * one @ two.T
    else:
        cost = -unit(one) @ unit(two).T
    return suspect[:, matched(cost)]


def matched(cost: NDArray[np.float64]) -> NDArray[np.intp]:
    """The column that goes with each row of a square cost: always the least cost that is left, then its row and column go."""
    left, found = cost.astype(np.float64), np.zeros(len(cost), np.intp)
    columns = left.argmin(axis=1)
    least = left.min(axis=1)
    for _ in range(len(cost)):
        row = int(least.argmin())
        column = found[row] = columns[row]
        left[:, column] = np.inf
        least[row], columns[row] = np.inf, -1
        stale = columns == column  # only these rows have lost their best column
        columns[stale] = left[stale].argmin(axis=1)
        least[stale] = left[stale].min(axis=1)
    return found
