"""TorchServe's ``POST /predictions/NAME``: one image a request, as its body or as a field of a form."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from onnxaudit.answers import Answers
from onnxaudit.suspect import InputSpec, Queries
from onnxaudit_adapters.http.dialects import Reply, Request
from onnxaudit_adapters.http.names import ClassNames
from onnxaudit_adapters.http.options import Address
from onnxaudit_adapters.http.payloads import png
from onnxaudit_adapters.http.reading import Reader
from onnxaudit_adapters.http.strict_json import parse


def predictions_address(address: Address) -> Address | None:
    """The address if it is ``…/predictions/NAME[/VERSION]``, None for any other."""
    path = urlsplit(address.url).path.rstrip("/")
    parts = path.split("/")
    return address.at(path) if "predictions" in (parts[-2:-1] + parts[-3:-2]) else None


@dataclass(frozen=True, slots=True)
class TorchServe:
    """A PNG as the body or, with input_name, in that field of a multipart form. max_batch is one."""

    address: Address
    input_name: str | None = None
    output_name: str | None = None
    num_classes: int | None = None
    names: ClassNames = field(default_factory=ClassNames, compare=False)

    @property
    def name(self) -> str:
        """The name for ``--dialect``."""
        return "torchserve"

    @property
    def first(self) -> int:
        """A request is one image."""
        return 1

    def encode(self, queries: Queries, spec: InputSpec) -> Request:
        """One request with the first query."""
        image = png(queries, spec)
        accept = {"Accept": "application/json"}
        if not self.input_name:
            return Request(self.address, image, len(queries), {"Content-Type": "image/png", **accept})
        boundary = hashlib.sha256(image).hexdigest()[:32]
        name = "".join(letter for letter in self.input_name if letter.isprintable() and letter not in '"\\')
        head = f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"; filename="query.png"\r\n'
        body = head.encode() + b"Content-Type: image/png\r\n\r\n" + image + f"\r\n--{boundary}--\r\n".encode()
        return Request(self.address, body, len(queries), {"Content-Type": f"multipart/form-data; boundary={boundary}", **accept})

    def decode(self, reply: Reply, n: int) -> Answers:
        """Answers from ``{class: probability}``, of the best five as a rule, or from a list of scores; the reply has no type."""
        return Reader(self.output_name, self.num_classes, self.names, by_class=True).answers(parse(reply.body), n)
