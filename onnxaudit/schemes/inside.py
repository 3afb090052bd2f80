"""What models show of their inside, and how far two of them are apart: ModelGiF, DeepJudge's white-box part."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray


def gradient_field(
    insight: NDArray[np.floating[Any]],
    columns: Mapping[str, NDArray[np.generic]],
    *,
    nodes: int = 10,
    baseline: float = 0.0,
    score: str = "centred",
    sketch: int = 1024,
) -> NDArray[np.float64]:
    """Cumulative integrated gradients G_1 … G_K of each query, (n, nodes, values) (ModelGiF).

    insight: "gradients", (n, nodes, values): what the model showed at the Gauss-Legendre nodes on the way from the baseline to
    the query. G_j sums the first j of them with the weights of the quadrature, so that G_K are the integrated gradients. The
    parameters are those of the insight; ``craft.insight.gradients`` says what they mean.
    """
    weights = np.polynomial.legendre.leggauss(insight.shape[1])[1] / 2
    return np.asarray(np.cumsum(insight.astype(np.float64) * weights[:, None], axis=1))


def layer_means(insight: NDArray[np.floating[Any]], columns: Mapping[str, NDArray[np.generic]]) -> NDArray[np.float64]:
    """What each query's layer says, (n, 1 + channels): the neuron that the query was made for, then all of the layer's channels.

    insight: "layers", rows of: number of layers, channels of each, mean output of each channel. columns: "sizes", the victim's
    channels of each layer, (n, layers); "layer" and "neuron", (n,), the place of the query's own. Raises ValueError where
    the model has other layers than the victim.
    """
    sizes = columns["sizes"][0].astype(np.int64)
    found = insight[0, 1 : 1 + int(insight[0, 0])].astype(np.int64)
    if found.tolist() != sizes.tolist():
        raise ValueError(f"its layers differ from the victim's: {_words(found)}, not {_words(sizes)}")
    layer = columns["layer"].astype(np.int64)
    if (layer != layer[0]).any():
        raise ValueError("its queries are for several layers")
    start = 1 + len(sizes) + int(sizes[: layer[0]].sum())
    means = insight[:, start : start + sizes[layer[0]]].astype(np.float64)
    own = np.take_along_axis(means, columns["neuron"].astype(np.int64)[:, None], axis=1)
    return np.concatenate([own, means], axis=1)


def layer_distance(
    victim: NDArray[np.float64], suspect: NDArray[np.float64], *, metric: str = "all", theta: float = 0.5
) -> float:
    """Minus the distance between what a layer says in two models, over queries made for its neurons (DeepJudge).

    metric: "nod", mean |difference| of the query's own neuron; "lod", mean Euclidean distance of the layer's outputs; "nad",
    how often the own neuron is active in one model only; "lad", mean number of neurons that are; or "all", the mean of the four,
    NOD and LOD divided by the mean size of the victim's, LAD by the number of neurons. A neuron is active if its output,
    scaled to [0, 1] over its layer, is above ``theta``. Raises ValueError for another metric.
    """
    own, layer = np.abs(victim[:, 0] - suspect[:, 0]), np.linalg.norm(victim[:, 1:] - suspect[:, 1:], axis=1)
    one, two = _active(victim, theta), _active(suspect, theta)
    switched = one != two
    distances = {
        "nod": own.mean(),
        "lod": layer.mean(),
        "nad": switched[:, 0].mean(),
        "lad": switched[:, 1:].sum(axis=1).mean(),
    }
    if metric == "all":
        scale = np.abs(victim[:, 0]).mean(), np.linalg.norm(victim[:, 1:], axis=1).mean()
        relative = [distances["nod"] / max(scale[0], 1e-12), distances["lod"] / max(scale[1], 1e-12)]
        return -float(np.mean([*relative, distances["nad"], switched[:, 1:].mean()]))
    if metric not in distances:
        raise ValueError(f"unknown metric {metric!r}")
    return -float(distances[metric])


def _active(rows: NDArray[np.float64], theta: float) -> NDArray[np.bool_]:
    """Which outputs are active, in the layout of ``layer_means``."""
    low, high = rows[:, 1:].min(axis=1, keepdims=True), rows[:, 1:].max(axis=1, keepdims=True)
    return np.asarray((rows - low) / (high - low + 1e-6) > theta)


def _words(sizes: NDArray[np.int64]) -> str:
    shown = ", ".join(map(str, sizes[:8]))
    return f"{len(sizes)} ({shown}{', …' if len(sizes) > 8 else ''})"
