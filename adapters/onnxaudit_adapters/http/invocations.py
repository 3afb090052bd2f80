"""``POST /invocations``, as MLflow's scoring server and SageMaker's containers take it."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from onnxaudit.answers import Answers
from onnxaudit.suspect import InputSpec, Queries
from onnxaudit_adapters.http.dialects import JSON_HEADERS, Reply, Request, encode_batch
from onnxaudit_adapters.http.names import ClassNames
from onnxaudit_adapters.http.options import Address
from onnxaudit_adapters.http.payloads import npy, png
from onnxaudit_adapters.http.reading import Reader
from onnxaudit_adapters.http.strict_json import parse

_TYPES = {"npy": "application/x-npy", "png": "image/png"}


def invocations_address(address: Address) -> Address | None:
    """The address if its path ends in ``/invocations``, None for any other."""
    path = urlsplit(address.url).path.rstrip("/")
    return address.at(path) if path.endswith("/invocations") else None


@dataclass(frozen=True, slots=True)
class Invocations:
    """``{"inputs": rows}``, where input_name names the field ("instances") or else the tensor; or one .npy or PNG as the body."""

    address: Address
    input_name: str | None = None
    output_name: str | None = None
    num_classes: int | None = None
    names: ClassNames = field(default_factory=ClassNames, compare=False)
    form: str = "json"

    @property
    def name(self) -> str:
        """The name for ``--dialect``."""
        return "invocations" if self.form == "json" else f"invocations-{self.form}"

    @property
    def first(self) -> int:
        """One query: whether a reply to several is read rightly depends on what is said to one."""
        return 1

    def encode(self, queries: Queries, spec: InputSpec) -> Request:
        """One request; a PNG holds the first query only."""
        if self.form != "json":
            body = npy(queries, spec) if self.form == "npy" else png(queries, spec)
            headers = {"Content-Type": _TYPES[self.form], "Accept": JSON_HEADERS["Accept"]}
            return Request(self.address, body, len(queries), headers)
        rows = encode_batch(queries, spec).tolist()
        named = self.input_name not in (None, "", "inputs", "instances")
        document = {"inputs": {self.input_name: rows}} if named else {self.input_name or "inputs": rows}
        return Request(self.address, json.dumps(document, allow_nan=False).encode(), len(queries))

    def decode(self, reply: Reply, n: int) -> Answers:
        """Answers from a document of free form; what MLflow wraps in ``predictions`` is unwrapped before a field is chosen."""
        document = parse(reply.body)
        inner = document.get("predictions") if isinstance(document, dict) else None
        if self.output_name is not None and isinstance(inner, dict | list):
            document = inner
        return Reader(self.output_name, self.num_classes, self.names).answers(document, n)
