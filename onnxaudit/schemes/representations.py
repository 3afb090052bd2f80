"""Representations: what of a model's recorded answers is compared. Pure functions of answers; none runs a model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from types import MappingProxyType
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from onnxaudit.answers import Access, Answers
from onnxaudit.schemes.contrast import COLUMNS, log_ratios
from onnxaudit.schemes.correlation import correlation, hard_correlation
from onnxaudit.schemes.feeds import fed
from onnxaudit.schemes.inside import gradient_field, layer_means
from onnxaudit.schemes.lime import lime_weights
from onnxaudit.schemes.pairs import decision_distances, label_distances

Columns: TypeAlias = Mapping[str, NDArray[np.generic]]
"""What a sampler knows of its queries, by name, one row a query: "truth", "pair", "group", "mask", "view"."""


class Kind(Enum):
    """What the numbers of a representation are, which says what detectors make of them."""

    CATEGORIES = "categories"
    INDICATORS = "indicators"
    NUMBERS = "numbers"
    DISTRIBUTIONS = "distributions"
    RATIOS = "ratios"


@dataclass(frozen=True, slots=True, eq=False)
class Representation:
    """A representation by name. access: what it is made for; all are defined below it as well, and say how.

    function: (answers to n queries, their columns, and parameters by name) to an array whose shape is the same for every model
    that was asked the same queries. columns: those that it cannot do without. inside: what of a model it looks at instead of
    its answers, "gradients" or "layers"; ``function`` is then given an array of that, one row a query.
    """

    function: Callable[..., NDArray[np.float64]]
    kind: Kind
    access: Access = Access.LABEL
    columns: frozenset[str] = frozenset()
    inside: str = ""


def labels(answers: Answers, columns: Columns) -> NDArray[np.float64]:
    """The best class of each query, (n,)."""
    return answers.labels.astype(np.float64)


def topk(answers: Answers, columns: Columns, *, k: int = 3) -> NDArray[np.float64]:
    """The k best classes of each query in order, (n, k); fewer columns if less is known."""
    return _best(answers, k).astype(np.float64)


def probabilities(answers: Answers, columns: Columns) -> NDArray[np.float64]:
    """Class probabilities, (n, C). top-k: the missing mass is spread evenly. Labels: one-hot."""
    return fed(answers, "probs")


def logits(answers: Answers, columns: Columns) -> NDArray[np.float64]:
    """Logits (n, C); from probabilities, their logarithms less the mean over classes, which are logits up to a constant.

    top-k: the same of the probabilities with the missing mass spread evenly. Labels: one-hot.
    """
    return fed(answers, "logits")


def ranks(answers: Answers, columns: Columns, *, k: int = 5) -> NDArray[np.float64]:
    """The place of the true class in the list of the k best, (n,): 0 is first, k means not in it (FBI section 4).

    Less is known: in the list of those that are; labels: 0 is right, 1 is wrong.
    """
    listed = _best(answers, k)
    hit = np.asarray(listed == columns["truth"][:, None])
    return np.asarray(np.where(hit.any(axis=1), hit.argmax(axis=1), listed.shape[1]), np.float64)


def correct(answers: Answers, columns: Columns) -> NDArray[np.float64]:
    """1 where the best class is the true one, else 0, (n,) (DeepJudge's robustness)."""
    return np.asarray(answers.labels == columns["truth"], np.float64)


def views(answers: Answers, columns: Columns) -> NDArray[np.float64]:
    """Probabilities by view, (views, queries of a view x C), in the order asked (FUAP eq. 6); views cut short are left out."""
    rows = probabilities(answers, columns)
    view = columns["view"]
    parts = [rows[view == number].ravel() for number in dict.fromkeys(view.tolist())]
    longest = max(map(len, parts))
    return np.stack([part for part in parts if len(part) == longest])


def _best(answers: Answers, k: int) -> NDArray[np.int32]:
    if k < 1:
        raise ValueError(f"k must be at least 1, not {k}")
    return answers.classes[:, :k]


_TRUTH, _PAIR, _LIME, _VIEW = frozenset({"truth"}), frozenset({"pair"}), frozenset({"group", "mask"}), frozenset({"view"})
_NEURON, _RATIO = frozenset({"layer", "neuron", "sizes"}), frozenset(COLUMNS)

REPRESENTATIONS: Mapping[str, Representation] = MappingProxyType(
    {
        "labels": Representation(labels, Kind.CATEGORIES),
        "topk": Representation(topk, Kind.CATEGORIES, Access.TOPK),
        "probabilities": Representation(probabilities, Kind.DISTRIBUTIONS, Access.PROBS),
        "logits": Representation(logits, Kind.NUMBERS, Access.LOGITS),
        "correlation": Representation(correlation, Kind.NUMBERS, Access.PROBS),
        "hard-correlation": Representation(hard_correlation, Kind.INDICATORS),
        "ddv": Representation(decision_distances, Kind.NUMBERS, Access.PROBS, _PAIR),
        "hard-ddv": Representation(label_distances, Kind.CATEGORIES, Access.LABEL, _PAIR),
        "lime": Representation(lime_weights, Kind.NUMBERS, Access.PROBS, _LIME),
        "ranks": Representation(ranks, Kind.CATEGORIES, Access.TOPK, _TRUTH),
        "correct": Representation(correct, Kind.INDICATORS, Access.LABEL, _TRUTH),
        "views": Representation(views, Kind.NUMBERS, Access.PROBS, _VIEW),
        "log-ratios": Representation(log_ratios, Kind.RATIOS, Access.PROBS, _RATIO),
        "gradient-field": Representation(gradient_field, Kind.NUMBERS, inside="gradients"),
        "layer-means": Representation(layer_means, Kind.NUMBERS, columns=_NEURON, inside="layers"),
    }
)
