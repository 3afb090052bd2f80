"""Rankings of named classes with scores, as most public APIs give them, and the answers that they are."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TypeAlias

import numpy as np

from onnxaudit.answers import Access, Answers
from onnxaudit_adapters.http.names import ClassNames
from onnxaudit_adapters.http.strict_json import ReplyError

Ranking: TypeAlias = Sequence[tuple[int, float]]
"""Class and score, for one query, in any order."""

_LABELS = ("label", "class", "class_name", "name", "index")
_SCORES = ("score", "probability", "confidence", "prob")
_SLACK = 0.03  # what rounding to two digits, or an 8-bit softmax, adds to a sum of one


def answers_of(rankings: Sequence[Ranking], num_classes: int | None) -> Answers:
    """Answers from one ranking a query: all classes with scores, the top k, or labels where the scores are no probabilities.

    Rankings of different lengths are cut to the shortest. Raises ReplyError where one is empty, repeats a class, or has a score
    that is not finite.
    """
    ordered = [_ordered(ranking) for ranking in rankings]
    width = min(len(ranking) for ranking in ordered)
    classes = np.array([[label for label, _ in ranking[:width]] for ranking in ordered], np.int32)
    with np.errstate(over="ignore"):
        scores = np.array([[score for _, score in ranking[:width]] for ranking in ordered], np.float32)
    if not np.isfinite(scores).all():
        raise ReplyError("the reply contains numbers that are no finite score")
    if width == num_classes and classes.max() < width:
        dense = np.empty_like(scores)
        np.put_along_axis(dense, classes, scores, axis=1)
        return Answers.from_scores(dense)
    if scores.min() < 0 or scores.sum(axis=1).max() > 1 + _SLACK:
        # The top of a list of logits says which class is best; how much lies below it, it does not say.
        return Answers.from_labels(classes[:, 0], num_classes)
    return Answers(classes, scores, Access.TOPK, num_classes)


def of_all_classes(ranking: Ranking) -> bool:
    """Whether as many labels as there are classes are the probabilities of all of them, and not the best of a query each.

    The best of C probabilities is 1/C or more, so C best ones sum to one only where each of them is just that.
    """
    scores = [score for _, score in ranking]
    distinct = len({label for label, _ in ranking}) == len(ranking)
    return distinct and 0 <= min(scores) <= 1 / len(scores) and abs(sum(scores) - 1) <= _SLACK


def _ordered(ranking: Ranking) -> list[tuple[int, float]]:
    """Best first; equal scores in the order of the classes."""
    if not ranking:
        raise ReplyError("the reply ranks no class at all")
    labels = [label for label, _ in ranking]
    if len(set(labels)) < len(labels):
        raise ReplyError("the reply ranks a class twice")
    return sorted(ranking, key=lambda entry: (-entry[1], entry[0]))


def listed(value: object, names: ClassNames) -> list[tuple[int, float]] | None:
    """The ranking in a list of objects such as ``{"label": "cat", "score": 0.9}``; None if it is no such list."""
    if not isinstance(value, list) or not value or not all(isinstance(entry, dict) for entry in value):
        return None
    label = next((key for key in _LABELS if all(key in entry for entry in value)), None)
    score = next((key for key in _SCORES if all(key in entry for entry in value)), None)
    if label is None or score is None or not all(_is_word(entry[label]) and _is_number(entry[score]) for entry in value):
        return None
    return [(names.index(str(entry[label])), float(entry[score])) for entry in value]


def paired(labels: object, scores: object, names: ClassNames, fewest: int = 2) -> list[tuple[int, float]] | None:
    """The ranking in two lists of the same length, ``fewest`` or more; None if they are no such lists."""
    if not isinstance(labels, list) or not isinstance(scores, list) or len(labels) != len(scores) or len(labels) < fewest:
        return None
    if not all(map(_is_word, labels)) or not all(map(_is_number, scores)):
        return None
    return [(names.index(str(label)), float(score)) for label, score in zip(labels, scores, strict=True)]


def keyed(value: object, names: ClassNames) -> list[tuple[int, float]] | None:
    """The ranking in an object such as ``{"cat": 0.9, "dog": 0.1}``; None if it is no such object."""
    if not isinstance(value, Mapping) or len(value) < 2 or not all(map(_is_number, value.values())):
        return None
    return [(names.index(str(label)), float(score)) for label, score in value.items()]


def _is_word(value: object) -> bool:
    return isinstance(value, str) or (isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**31)


def _is_number(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number too large for a float
        return False
