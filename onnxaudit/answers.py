"""What a model said: a ranked list of classes for each query, of which every API's reply is a truncation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from onnxaudit.errors import UsageError


class Access(IntEnum):
    """How much of the answer a suspect gives away, least first."""

    LABEL = 1
    TOPK = 2
    PROBS = 3
    LOGITS = 4

    @property
    def word(self) -> str:
        """The name used on the command line and in reports."""
        return self.name.lower()


def parse_access(text: str) -> tuple[Access, int]:
    """``label``, ``topk:K``, ``probs`` or ``logits`` as (access, k); k is 1 where it has no meaning.

    Raises UsageError for anything else.
    """
    name, _, count = text.partition(":")
    if name == "topk" and count.isdecimal() and int(count) > 0:
        return Access.TOPK, int(count)
    if text in ("label", "probs", "logits"):
        return Access[name.upper()], 1
    raise UsageError(f"--access {text!r} is not known", "Use label, topk:K (as topk:3), probs or logits.")


@dataclass(frozen=True, slots=True, eq=False)
class Answers:
    """Answers to n queries.

    classes: (n, k) int32, best first; -1 where there is no answer. scores: (n, k) float32, or None for labels.
    num_classes: C, or None where an API never says.
    """

    classes: NDArray[np.int32]
    scores: NDArray[np.float32] | None
    access: Access
    num_classes: int | None

    @classmethod
    def from_scores(cls, rows: ArrayLike, access: Access | None = None) -> Self:
        """Dense score rows (n, C), ranked; ties go to the lower class. Access None: probabilities if all rows look like it."""
        dense = np.asarray(rows, dtype=np.float32)
        order = np.argsort(-dense, axis=1, kind="stable").astype(np.int32)
        found = access or (Access.PROBS if _look_like_probabilities(dense) else Access.LOGITS)
        return cls(order, dense[np.arange(len(dense))[:, None], order], found, dense.shape[1])

    @classmethod
    def from_labels(cls, labels: ArrayLike, num_classes: int | None) -> Self:
        """One class index a query, (n,)."""
        return cls(np.asarray(labels, dtype=np.int32).reshape(-1, 1), None, Access.LABEL, num_classes)

    @classmethod
    def concatenate(cls, parts: Sequence[Answers]) -> Self:
        """The answers to several batches of one suspect, in order; the least access of any part."""
        access = min(part.access for part in parts)
        if access >= Access.PROBS and any(part.access != access for part in parts):
            access = Access.LOGITS  # rows that do not sum to one are not probabilities, whatever another batch looked like
        else:
            parts = [part.degrade(access, part.classes.shape[1]) for part in parts]
        width = min(part.classes.shape[1] for part in parts)
        scores = None if access == Access.LABEL else np.concatenate([p.scores[:, :width] for p in parts if p.scores is not None])
        known = [part.num_classes for part in parts if part.num_classes is not None]
        classes = np.concatenate([part.classes[:, :width] for part in parts])
        return cls(classes, scores, access, max(known, default=None))

    def __len__(self) -> int:
        return len(self.classes)

    @property
    def labels(self) -> NDArray[np.int32]:
        """The best class of each query, (n,); -1 where there is no answer."""
        return self.classes[:, 0]

    @property
    def answered(self) -> NDArray[np.bool_]:
        """Which queries have an answer, (n,)."""
        return self.classes[:, 0] >= 0

    def take(self, rows: NDArray[np.integer] | slice) -> Answers:
        """The answers at the given rows."""
        scores = None if self.scores is None else self.scores[rows]
        return Answers(self.classes[rows], scores, self.access, self.num_classes)

    def degrade(self, access: Access, k: int = 1) -> Answers:
        """The same answers as a suspect with less access would give them; never adds what is not there."""
        if access >= self.access and access != Access.TOPK:
            return self
        if access == Access.LABEL or self.scores is None:
            return Answers(self.classes[:, :1], None, Access.LABEL, self.num_classes)
        scores = _softmax(self.scores) if self.access == Access.LOGITS else self.scores
        if access == Access.PROBS:
            return Answers(self.classes, scores, Access.PROBS, self.num_classes)
        return Answers(self.classes[:, :k], scores[:, :k], Access.TOPK, self.num_classes)

    def dense(self) -> NDArray[np.float32]:
        """Scores by class, (n, C); NaN rows where there is no answer.

        top-k: the missing mass is spread evenly over the other classes. Labels: one-hot. Raises ValueError if C is not known.
        """
        if self.num_classes is None:
            raise ValueError("the number of classes is not known")
        n, k = self.classes.shape
        given = np.ones((n, k), np.float32) if self.scores is None else self.scores
        rows = np.zeros((n, self.num_classes), np.float32)
        if self.access == Access.TOPK and k < self.num_classes:
            rest = np.clip(1 - given.sum(axis=1, keepdims=True), 0, None) / (self.num_classes - k)
            rows += rest
        np.put_along_axis(rows, np.maximum(self.classes, 0), given, axis=1)
        rows[~self.answered] = np.nan
        return rows


def _softmax(scores: NDArray[np.float32]) -> NDArray[np.float32]:
    shifted = np.exp(scores.astype(np.float64) - scores.max(axis=1, keepdims=True))
    result: NDArray[np.float32] = (shifted / shifted.sum(axis=1, keepdims=True)).astype(np.float32)
    return result


def _look_like_probabilities(rows: NDArray[np.float32]) -> bool:
    """Non-negative rows that sum to one, with the slack that an 8-bit softmax needs."""
    return bool(rows.size and rows.min() >= 0 and np.abs(rows.sum(axis=1) - 1).max() < 0.03)
