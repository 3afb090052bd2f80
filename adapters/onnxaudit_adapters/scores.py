"""What servers do to a model's answers before they send them, and how many answers become one."""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import NDArray

from onnxaudit.answers import Access, Answers
from onnxaudit.errors import UsageError
from onnxaudit.suspect import Queries
from onnxaudit.zoo.naturalness import roughness
from onnxaudit_adapters.chance import generators

_SMALLEST = np.finfo(np.float32).tiny
"""Instead of a probability of zero, where its logarithm is needed."""


def rounded(answers: Answers, queries: Queries, *, digits: int = 2) -> Answers:
    """Scores rounded to so many decimals; probabilities then sum to one again. Classes that become equal go by their number."""
    if answers.scores is None:
        return answers
    if answers.access == Access.TOPK:  # a list that is ranked already
        return dataclasses.replace(answers, scores=np.round(answers.scores, digits))
    rows = np.round(answers.dense(), digits)
    if answers.access == Access.PROBS:
        rows = np.where(rows.any(axis=1, keepdims=True), rows, 1)  # all rounded to nothing: nothing is known
        rows /= rows.sum(axis=1, keepdims=True)
    return Answers.from_scores(rows, answers.access)


def tempered(answers: Answers, queries: Queries, *, t: float = 2.0) -> Answers:
    """Probabilities from logits that are divided by this temperature."""
    return Answers.from_scores(_logits(answers) / t, Access.LOGITS).degrade(Access.PROBS)


def perturbed(answers: Answers, queries: Queries, *, sigma: float = 0.1, seed: int = 0) -> Answers:
    """Probabilities from logits with Gaussian noise, this many times the standard deviation of the query's logits."""
    logits = _logits(answers)
    draws = np.stack([chance.standard_normal(logits.shape[1]) for chance in generators(queries, f"perturb {seed}")])
    noisy = logits + sigma * logits.std(axis=1, keepdims=True) * draws
    return Answers.from_scores(noisy, Access.LOGITS).degrade(Access.PROBS)


def best(answers: Answers, queries: Queries, *, k: int = 3) -> Answers:
    """The k best classes and their probabilities."""
    return answers.degrade(Access.TOPK, k)


def label(answers: Answers, queries: Queries) -> Answers:
    """The best class alone."""
    return answers.degrade(Access.LABEL)


def mislabelled(answers: Answers, queries: Queries, *, rate: float = 0.05, seed: int = 0) -> Answers:
    """The best class alone, and of this share of queries another class, drawn at random."""
    classes = answers.num_classes
    if classes is None or classes < 2:
        raise UsageError("labels cannot be flipped where the number of classes is not known, or is one")
    draws = [(chance.random(), chance.integers(1, classes)) for chance in generators(queries, f"flip-labels {seed}")]
    steps = [step if draw < rate else 0 for draw, step in draws]
    return Answers.from_labels((answers.labels + np.array(steps, np.int32)) % classes, classes)


def without_rough(answers: Answers, queries: Queries, *, energy: float = 0.01, seed: int = 0) -> Answers:
    """Images of more high-frequency energy than this get the answer to another class, drawn at random."""
    if queries.ndim != 4:
        raise UsageError("the step refuse-rough takes images, the queries are vectors")
    return _refused(answers, queries, roughness(queries.astype(np.uint8, copy=False)) > energy, f"refuse-rough {seed}")


def without_unsure(answers: Answers, queries: Queries, *, confidence: float = 0.5, seed: int = 0) -> Answers:
    """Inputs whose best class has less probability than this get the answer to another class, drawn at random."""
    best_of_each = answers.degrade(Access.PROBS).dense().max(axis=1)
    return _refused(answers, queries, best_of_each < confidence, f"refuse-unsure {seed}")


def _refused(answers: Answers, queries: Queries, odd: NDArray[np.bool_], purpose: str) -> Answers:
    """Answers whose classes are moved round by a random number where a query is odd: they look like any other answer."""
    classes = answers.num_classes
    if classes is None or classes < 2:
        raise UsageError("queries cannot be refused unseen where the number of classes is not known, or is one")
    steps = np.array([chance.integers(1, classes) for chance in generators(queries, purpose)], np.int32)
    moved = (answers.classes + np.where(odd, steps, 0)[:, None]) % classes
    return dataclasses.replace(answers, classes=moved.astype(np.int32))


def averaged(answers: Answers, copies: int) -> Answers:
    """One answer from those to so many copies in a row: of the mean of their logits, or the majority of their labels."""
    n = len(answers) // copies
    if answers.access < Access.PROBS:
        votes = answers.labels.reshape(n, copies)
        winners = [np.bincount(row).argmax() for row in votes]
        return Answers.from_labels(winners, answers.num_classes)
    means = _logits(answers).reshape(n, copies, -1).mean(axis=1)
    return Answers.from_scores(means, Access.LOGITS).degrade(answers.access)


def _logits(answers: Answers) -> NDArray[np.float64]:
    """Logits by class, (n, C); from probabilities they are known up to one constant a query, which changes nothing here."""
    rows = answers.dense().astype(np.float64)
    return rows if answers.access == Access.LOGITS else np.log(np.maximum(rows, _SMALLEST))
