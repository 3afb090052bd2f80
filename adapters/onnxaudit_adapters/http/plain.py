"""The dialect of hand-made servers: an array in a JSON object, and rows, labels or rankings back in one of the usual forms."""

from __future__ import annotations

import json
from dataclasses import dataclass, field

from onnxaudit.answers import Answers
from onnxaudit.suspect import InputSpec, Queries
from onnxaudit_adapters.http.dialects import Reply, Request, encode_batch
from onnxaudit_adapters.http.names import ClassNames
from onnxaudit_adapters.http.options import Address
from onnxaudit_adapters.http.reading import Reader
from onnxaudit_adapters.http.strict_json import parse


@dataclass(frozen=True, slots=True)
class Plain:
    """``{"input": rows}`` or, with input_name "", a bare array. Replies: see ``Reader.answers``."""

    address: Address
    input_name: str = "input"
    output_name: str | None = None
    num_classes: int | None = None
    names: ClassNames = field(default_factory=ClassNames, compare=False)

    @property
    def name(self) -> str:
        """The name for ``--dialect``."""
        return "plain"

    @property
    def first(self) -> int:
        """One query: whether a reply to several is read rightly depends on what is said to one."""
        return 1

    def encode(self, queries: Queries, spec: InputSpec) -> Request:
        """One array with an axis for the queries, also for a single one."""
        rows = encode_batch(queries, spec).tolist()
        document = {self.input_name: rows} if self.input_name else rows
        return Request(self.address, json.dumps(document, allow_nan=False).encode(), len(queries))

    def decode(self, reply: Reply, n: int) -> Answers:
        """Answers from rows of scores, labels or rankings, in whatever these are wrapped."""
        return Reader(self.output_name, self.num_classes, self.names).answers(parse(reply.body), n)
