"""Detectors that were learned while crafting, from models that never calibrate: frozen numbers or a frozen network."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Graph: TypeAlias = Callable[[NDArray[np.float32]], NDArray[np.float32]]
"""A frozen network: (rows, features) to (rows, outputs)."""


def contrastive(victim: NDArray[np.float64], suspect: NDArray[np.float64], *, graph: Graph) -> float:
    """Mean over views of the cosine between the encoder's outputs for victim and suspect (FUAP section 4.4).

    The rows of a table are its views, as (views, features); any other representation is one view.
    """
    one, two = graph(_rows(victim)), graph(_rows(suspect))
    norms = np.linalg.norm(one, axis=1) * np.linalg.norm(two, axis=1)
    return float(((one * two).sum(axis=1) / np.maximum(norms, 1e-12)).mean())


def verifier(victim: NDArray[np.float64], suspect: NDArray[np.float64], *, graph: Graph) -> float:
    """The meta-verifier's logit for all of the suspect's outputs (MetaV): above 0 for those like derived models'.

    The victim's outputs are not looked at: what derived models have in common was learned while crafting.
    """
    return float(graph(suspect.reshape(1, -1).astype(np.float32))[0, 0])


def logistic(victim: NDArray[np.float64], suspect: NDArray[np.float64], *, graph: Graph, exact: bool) -> float:
    """Logit of a logistic regression on how near each entry is: equal or not (``exact``), else minus the absolute difference."""
    near = (victim == suspect).astype(np.float32) if exact else -np.abs(victim - suspect).astype(np.float32)
    return float(graph(near.reshape(1, -1))[0, 0])


def welch(victim: NDArray[np.float64], suspect: NDArray[np.float64], *, mean: float, variance: float, count: int) -> float:
    """Welch's t of the suspect's similarities by view against those of one's own references (FUAP section 5.1).

    Similarity of a view: cosine with the victim's. mean, variance, count: of the references' views, frozen while crafting.
    Views of one model are not independent, so no p-value may be read off it; here it is a score like any other.
    """
    one, two = _rows(victim), _rows(suspect)
    norms = np.linalg.norm(one, axis=1) * np.linalg.norm(two, axis=1)
    similarity = (one * two).sum(axis=1) / np.maximum(norms, 1e-12)
    if len(similarity) < 2:
        return float("nan")
    error = similarity.var(ddof=1) / len(similarity) + variance / max(1, count)
    return float((similarity.mean() - mean) / np.sqrt(max(error, 1e-12)))


def _rows(representation: NDArray[np.float64]) -> NDArray[np.float32]:
    """As rows of one view each: tables as they are; anything else is one row."""
    table = representation if representation.ndim == 2 else representation.reshape(1, -1)
    return table.astype(np.float32)
