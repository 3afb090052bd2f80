"""Finding the answers in a JSON document of free form: rows of scores, labels, or rankings, in whatever they are wrapped."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxaudit.answers import Answers
from onnxaudit.errors import UsageError
from onnxaudit_adapters.http.dialects import OneAnswerError, answers_from, is_labels, is_scores
from onnxaudit_adapters.http.names import ClassNames
from onnxaudit_adapters.http.rankings import Ranking, answers_of, keyed, listed, of_all_classes, paired
from onnxaudit_adapters.http.strict_json import ReplyError, as_array

_LABEL_FIELDS = ("labels", "label", "predictions", "classes")  # which of several integer arrays are the labels
_SCORE_FIELDS = ("scores", "probabilities", "confidences")


@dataclass(frozen=True, slots=True)
class _Rankings:
    """One ranking a query."""

    rows: list[Ranking]


@dataclass(frozen=True, slots=True)
class Reader:
    """What to look for. output_name: the field that holds the answers, where several may; num_classes: the victim's.

    by_class: an object of numbers is a ranking, its keys the names of the classes.
    """

    output_name: str | None = None
    num_classes: int | None = None
    names: ClassNames = field(default_factory=ClassNames, compare=False)
    by_class: bool = False

    def answers(self, document: object, n: int) -> Answers:
        """Answers from bare rows, rows in a field, ``{"label": 3}``, ``{"labels": […]}``, rankings, or a list of any of these.

        Scores are preferred to labels. Raises OneAnswerError for one answer to several queries, ReplyError for any other
        number than n, UsageError where several fields may be meant.
        """
        found = self._found(document, n, self.output_name)
        if isinstance(found, _Rankings):
            answers = answers_of(found.rows, self.num_classes)
        else:
            values = as_array(found)
            if values.dtype.kind == "f" and values.ndim == 1 and len(values) > 1:
                values = values[np.newaxis]  # the scores of one example, without an axis for the examples
            answers = answers_from(values, self.num_classes, self.names)
        if len(answers) == n:
            return answers
        if len(answers) == 1:
            raise OneAnswerError(
                f"the reply holds 1 answer to {n} queries", "Pass --batch 1 if the server takes one example a request."
            )
        raise ReplyError(
            f"the reply holds {len(answers)} answers to {n} {'query' if n == 1 else 'queries'}",
            "If they are the classes of one query, best first, say so in a --target file: reply = { items, label }." * (n == 1),
        )

    def _found(self, value: object, n: int, wanted: str | None) -> object:
        """The array of answers in a document, or its rankings; goes no deeper than the parser allowed."""
        if wanted is None and (rankings := self._rankings(value, n)) is not None:
            return rankings
        if isinstance(value, list) and value and all(isinstance(entry, dict) for entry in value):
            shared = set(value[0]).intersection(*value)
            value = {key: [entry[key] for entry in value] for key in value[0] if key in shared}
        if not isinstance(value, dict):
            return value
        if wanted is not None and wanted not in value:
            raise UsageError(f"the reply has no field {wanted!r}", f"It has {', '.join(map(str, list(value)[:8]))}.")
        if wanted is not None:
            chosen = value[wanted]
            return self._found(chosen if isinstance(chosen, list | dict) else [chosen], n, None)
        if "label" in value and isinstance(value["label"], int | str):
            value["label"] = [value["label"]]
        name = self._choice(value, n)
        if name is not None:
            return value[name]
        wrapped = [inner for inner in value.values() if isinstance(inner, dict) or _has_objects(inner)]
        if len(wrapped) == 1:
            return self._found(wrapped[0], n, None)
        fields = ", ".join(map(str, list(value)[:8])) or "none"
        raise ReplyError(
            f"the reply has no field with class scores or labels; its fields: {fields}", "Choose with --output-name."
        )

    def _rankings(self, value: object, n: int) -> _Rankings | None:
        """The rankings that a document is. A list of as many labels as queries is labels, though each may have its score.

        Raises OneAnswerError where they are the classes of one query, of which there are as many.
        """
        if isinstance(value, list):
            if len(value) != n or n == 1:
                single = listed(value, self.names)
                if single is not None:
                    return _Rankings([single])
            elif n in self._counts():
                self._refuse_one(listed(value, self.names))
            nested = [self._one(entry) for entry in value] if value and all(map(_is_nested, value)) else []
            rows = [row for row in nested if row is not None]
            return _Rankings(rows) if rows and len(rows) == len(value) else None
        ranking = self._one(value)
        if ranking is None or len(ranking) == n > 1:
            self._refuse_one(ranking if n in self._counts() else None)
            return None
        return _Rankings([ranking])

    def _counts(self) -> tuple[int | None, int]:
        """How many classes there are, as the victim has them and by name."""
        return self.num_classes, self.names.count

    def _refuse_one(self, ranking: Ranking | None) -> None:
        if ranking is not None and of_all_classes(ranking):
            raise OneAnswerError(
                f"the reply ranks the {len(ranking)} classes once, and as many queries were sent",
                "Pass --batch 1 if the server takes one example a request.",
            )

    def _one(self, value: object) -> Ranking | None:
        if isinstance(value, list):
            return listed(value, self.names)
        if self.by_class and (ranking := keyed(value, self.names)) is not None:
            return ranking
        if not isinstance(value, Mapping):
            return None
        labels = next((value[key] for key in _LABEL_FIELDS if key in value), None)
        return paired(labels, next((value[key] for key in _SCORE_FIELDS if key in value), None), self.names)

    def _choice(self, fields: Mapping[str, object], n: int) -> str | None:
        """The field that holds the answers: rows, else labels, else the scores of one example; None if there is none."""
        arrays = {name: array for name, value in fields.items() if (array := _array_or_none(value)) is not None}
        rows = [name for name, array in arrays.items() if is_scores(array)]
        single = [name for name, array in arrays.items() if array.dtype.kind == "f" and array.ndim == 1 and len(array) > 1]
        labels = [name for name, array in arrays.items() if is_labels(array)]
        labels = [name for name in _LABEL_FIELDS if name in labels][:1] or labels
        if single and n == 1 and not rows:
            rows = single
        candidates = rows or labels or single
        fitting = [name for name in candidates if arrays[name].shape[-1] == self.num_classes and candidates is rows]
        if len(candidates) > 1 and len(fitting) != 1:
            raise UsageError(
                f"several fields of the reply may be the answers: {', '.join(candidates)}", "Choose with --output-name."
            )
        return next(iter(fitting or candidates), None)


def _array_or_none(value: object) -> NDArray[Any] | None:
    if not isinstance(value, list):
        return None
    try:
        return as_array(value)
    except ReplyError:
        return None


def _has_objects(value: object) -> bool:
    """Whether a list holds objects, or lists of them."""
    return isinstance(value, list) and bool(value) and (isinstance(value[0], dict) or _has_objects(value[0]))


def _is_nested(value: object) -> bool:
    return isinstance(value, dict) or _has_objects(value)
