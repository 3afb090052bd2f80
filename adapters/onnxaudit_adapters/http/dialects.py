"""The seam between what a server speaks and what the audit asks: pure functions between queries, bytes and answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from onnxaudit.answers import Answers
from onnxaudit.errors import UsageError
from onnxaudit.suspect import InputSpec, Queries
from onnxaudit_adapters.http.names import ClassNames
from onnxaudit_adapters.http.options import Address
from onnxaudit_adapters.http.strict_json import ReplyError, as_labels, as_scores

MAX_CLASSES = 2**17
"""Of a suspect whose number of classes nobody knows: all scores of all queries are kept."""
JSON_HEADERS: Mapping[str, str] = MappingProxyType({"Content-Type": "application/json", "Accept": "application/json"})


@dataclass(frozen=True, slots=True)
class Request:
    """One POST. queries: how many queries the body holds, which is what a budget counts. id: its own name, if any."""

    address: Address
    body: bytes = field(repr=False)
    queries: int
    headers: Mapping[str, str] = field(default_factory=lambda: JSON_HEADERS)
    id: str = ""


@dataclass(frozen=True, slots=True)
class Reply:
    """What came back. headers: lower-case names; advice only, since servers send JSON under any type or none.

    asked: the id of the request that it has to be to; "": any.
    """

    status: int
    body: bytes = field(repr=False)
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    asked: str = ""

    @property
    def ok(self) -> bool:
        """Whether the status is 2xx."""
        return self.status // 100 == 2


class Dialect(Protocol):
    """How one kind of server is asked and how it answers. Holds no connection; the same input gives the same bytes."""

    @property
    def name(self) -> str:
        """The name for ``--dialect``."""

    @property
    def first(self) -> int | None:
        """The most queries that the first request should hold, None if it is as good as any other."""

    def encode(self, queries: Queries, spec: InputSpec) -> Request:
        """One request with all of these queries."""

    def decode(self, reply: Reply, n: int) -> Answers:
        """The answers to n queries. Raises ReplyError for anything but exactly n, UsageError where an option has to choose."""


class OneAnswerError(ReplyError):
    """One answer came back to several queries: this server takes one example a request."""


class OtherRequestError(ReplyError):
    """The reply says that it is to another request."""


def encode_batch(queries: Queries, spec: InputSpec) -> NDArray[np.generic]:
    """The batch a model wants, in a type whose JSON is exact. Raises UsageError where a value is not finite."""
    batch = spec.encode(queries)
    if not np.isfinite(np.asarray(batch, np.float64)).all():
        raise UsageError("the queries become NaN or infinity on the way to the suspect", "Check --scale, --mean and --std.")
    return batch


def answers_from(values: NDArray[Any], num_classes: int | None, names: ClassNames | None = None) -> Answers:
    """Answers from floats (n, C) or from labels (n,) or (n, 1), axes of one after these dropped. Raises ReplyError else.

    names: what labels that are words mean; None: only numbers do.
    """
    while values.ndim > 2 and values.shape[-1] == 1:
        values = values[..., 0]
    if is_scores(values):
        if values.shape[1] > MAX_CLASSES:
            raise ReplyError(f"the reply has scores of {values.shape[1]} classes, more than any classifier has")
        return Answers.from_scores(as_scores(values))
    if is_labels(values):
        words = values.dtype.kind == "U"
        labels = (names or ClassNames()).indices(values) if words else as_labels(values)
        return Answers.from_labels(labels, num_classes)
    kind = {"f": "numbers", "U": "words"}.get(values.dtype.kind, "whole numbers")
    raise ReplyError(
        f"the reply has {kind} in the shape {list(values.shape)}, which are neither rows of class scores nor labels",
        "Choose another output with --output-name if there is one.",
    )


def is_scores(values: NDArray[Any]) -> bool:
    """Whether an array can be rows of scores for two classes or more."""
    return values.dtype.kind == "f" and values.ndim >= 2 and values.size == values.shape[0] * values.shape[1] > len(values)


def is_labels(values: NDArray[Any]) -> bool:
    """Whether an array can be one label a query; whole numbers in rows may be rankings or quantised scores, so they are not."""
    return values.dtype.kind in "iuU" and values.size == values.shape[0]
