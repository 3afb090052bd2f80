"""FUAP's views: inputs spread over all regions of the victim's outputs, in sets that are variations of each other."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onnxaudit.craft.sample import Material
from onnxaudit.errors import UsageError


@dataclass(frozen=True, slots=True, eq=False)
class Views:
    """rows: of the data, (views, anchors) int64: the entries of a column are neighbours of one anchor, each another input."""

    rows: NDArray[np.int64]
    notes: tuple[str, ...] = ()


def embed(material: Material, embedding: str) -> NDArray[np.float64]:
    """Where the victim puts each of the data's inputs, (n, C): its "logits" (the authors' code) or "probabilities".

    Victims that end in softmax have log-probabilities for logits. Raises UsageError for another word.
    """
    victim = material.victim
    logits = victim.predict(material.inputs().x).double()
    if embedding == "probabilities":
        logits = logits.softmax(1)
    elif embedding != "logits":
        raise UsageError(f"embedding={embedding!r} is not known", "Use logits or probabilities.")
    result: NDArray[np.float64] = logits.cpu().numpy()
    return result


def choose_views(embedded: NDArray[np.float64], anchors: int, views: int, rng: np.random.Generator, pool: str = "knn") -> Views:
    """``views`` sets of ``anchors`` inputs: K-means, a random member of each cluster, and inputs near it (FUAP section 4.3).

    embedded: (n, features). pool: where an anchor's variations come from, "knn", its nearest inputs, itself among them (the
    authors' code), or "cluster", random members of its cluster (algorithm 1), topped up with the nearest others where there are
    too few. Each view takes one variation of every anchor, in random order, without replacement. Fewer anchors, with a note,
    where there are not so many different inputs. Raises UsageError for fewer inputs than views.
    """
    if pool not in ("knn", "cluster"):
        raise UsageError(f"pool={pool!r} is not known", "Use knn or cluster.")
    different = len(np.unique(embedded, axis=0))
    if len(embedded) < views or anchors < 1:
        raise UsageError(
            f"{views} views of {anchors} inputs cannot be had from {len(embedded)} inputs", "Give more data or queries."
        )
    notes: tuple[str, ...] = ()
    if different < anchors:
        notes = (f"the victim tells only {different} inputs apart, so views have {different} inputs, not {anchors}",)
        anchors = different
    cluster = _clusters(embedded, anchors, rng)
    members = [np.flatnonzero(cluster == index) for index in range(anchors)]
    chosen = np.array([rng.choice(rows) for rows in members])
    nearest = _nearest(embedded, chosen)
    if pool == "cluster":
        inside = [rng.permutation(rows[rows != anchor]) for rows, anchor in zip(members, chosen, strict=True)]
        nearest = [
            np.concatenate([[anchor], rows, near[~np.isin(near, [anchor, *rows])]])
            for anchor, rows, near in zip(chosen, inside, nearest, strict=True)
        ]
        small = sum(len(rows) < views for rows in members)
        notes += (f"{small} of {anchors} clusters have fewer than {views} inputs; the nearest others fill up",) if small else ()
    return Views(np.stack([rng.permutation(near[:views]) for near in nearest], axis=1), notes)


def _clusters(embedded: NDArray[np.float64], count: int, rng: np.random.Generator) -> NDArray[np.int64]:
    from sklearn.cluster import KMeans

    fitted = KMeans(count, n_init=10, random_state=int(rng.integers(2**31))).fit(embedded)
    labels: NDArray[np.int64] = fitted.labels_.astype(np.int64)
    return labels


def _nearest(embedded: NDArray[np.float64], anchors: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """All inputs from nearest to farthest for each anchor, the anchor first."""
    squares = np.square(embedded).sum(axis=1)
    distance = squares[anchors, None] + squares[None] - 2 * embedded[anchors] @ embedded.T
    distance[np.arange(len(anchors)), anchors] = -np.inf
    return list(np.argsort(distance, axis=1, kind="stable"))
