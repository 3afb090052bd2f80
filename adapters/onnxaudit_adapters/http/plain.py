"""The dialect of hand-made servers: an array in a JSON object, and rows or labels back in one of the usual forms."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxaudit.answers import Answers
from onnxaudit.errors import UsageError
from onnxaudit.suspect import InputSpec, Queries
from onnxaudit_adapters.http.dialects import OneAnswerError, Reply, Request, answers_from, encode_batch, is_labels, is_scores
from onnxaudit_adapters.http.options import Address
from onnxaudit_adapters.http.strict_json import ReplyError, as_array, parse

_LABEL_FIELDS = ("labels", "label", "predictions", "classes")  # which of several integer arrays are the labels


@dataclass(frozen=True, slots=True)
class Plain:
    """``{"input": rows}`` or, with input_name "", a bare array. Replies: see ``decode``."""

    address: Address
    input_name: str = "input"
    output_name: str | None = None
    num_classes: int | None = None

    @property
    def name(self) -> str:
        """The name for ``--dialect``."""
        return "plain"

    @property
    def first(self) -> int:
        """Two queries are enough to learn whether the server answers more than one a request."""
        return 2

    def encode(self, queries: Queries, spec: InputSpec) -> Request:
        """One array with an axis for the queries, also for a single one."""
        rows = encode_batch(queries, spec).tolist()
        document = {self.input_name: rows} if self.input_name else rows
        return Request(self.address, json.dumps(document, allow_nan=False).encode(), len(queries))

    def decode(self, reply: Reply, n: int) -> Answers:
        """Answers from bare rows, rows in a field, ``{"label": 3}``, ``{"labels": […]}`` or a list of objects of these.

        Scores are preferred to labels. Raises OneAnswerError for one answer to several queries, ReplyError for any other
        number than n, UsageError where several fields may be meant.
        """
        values = as_array(self._found(parse(reply.body), n, self.output_name))
        if values.dtype.kind == "f" and values.ndim == 1 and len(values) > 1:
            values = values[np.newaxis]  # the scores of one example, without an axis for the examples
        answers = answers_from(values, self.num_classes)
        if len(answers) == n:
            return answers
        if len(answers) == 1:
            raise OneAnswerError(
                f"the reply holds 1 answer to {n} queries", "Pass --batch 1 if the server takes one example a request."
            )
        raise ReplyError(f"the reply holds {len(answers)} answers to {n} queries")

    def _found(self, value: object, n: int, wanted: str | None) -> object:
        """The array of answers in a document; goes no deeper than the parser allowed."""
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

    def _choice(self, fields: Mapping[str, object], n: int) -> str | None:
        """The field that holds the answers: rows, else labels, else the scores of one example; None if there is none."""
        arrays = {name: array for name, value in fields.items() if (array := _array_or_none(value)) is not None}
        rows = [name for name, array in arrays.items() if is_scores(array)]
        single = [name for name, array in arrays.items() if array.dtype.kind == "f" and array.ndim == 1 and len(array) > 1]
        labels = [name for name, array in arrays.items() if is_labels(array)]
        labels = [name for name in _LABEL_FIELDS if name in labels][:1] or labels
        if not rows and single and labels and len(arrays[labels[0]]) == len(arrays[single[0]]) != n:
            raise ReplyError(
                f"the reply is a ranking of {len(arrays[labels[0]])} classes, which the plain dialect does not read",
                "Let the server return the scores of all classes in their order, or one label.",
            )
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
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict)
