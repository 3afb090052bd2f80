"""LIME weights: how much each segment of an image counts for each class (ZestOfLIME; Jia et al. 2022)."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from onnxaudit.answers import Answers
from onnxaudit.schemes.feeds import fed


def lime_weights(answers: Answers, columns: Mapping[str, NDArray[np.generic]], *, feed: str = "centred") -> NDArray[np.float64]:
    """Least squares weights of each image's segments for each class, stacked over images, (all segments, C) (Zest section 3).

    For each group of queries, W = pinv(M) Y, without intercept: M (queries, segments) says which segments a query shows
    (column "mask", padded with zeros to the most segments), Y are the outputs. feed: see ``fed``; the artefact
    takes raw logits.
    """
    outputs = fed(answers, feed)
    group, mask = columns["group"], columns["mask"].astype(np.float64)
    parts = []
    for number in dict.fromkeys(group.tolist()):
        shown = mask[group == number]
        used = shown.any(axis=0)
        parts.append(np.linalg.lstsq(shown[:, used], outputs[group == number], rcond=None)[0])
    return np.concatenate(parts)

