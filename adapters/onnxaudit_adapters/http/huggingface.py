"""The image classification task of Hugging Face's inference API and endpoints: one image, a ranking of named classes."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from onnxaudit.answers import Answers
from onnxaudit.suspect import InputSpec, Queries
from onnxaudit_adapters.http.dialects import Reply, Request
from onnxaudit_adapters.http.names import ClassNames
from onnxaudit_adapters.http.options import Address
from onnxaudit_adapters.http.payloads import base64_text, png
from onnxaudit_adapters.http.rankings import answers_of, listed
from onnxaudit_adapters.http.strict_json import ReplyError, parse

_HOSTS = ("huggingface.co", "huggingface.cloud", "hf.space")


def is_hugging_face(address: Address) -> bool:
    """Whether the host is one of Hugging Face's."""
    host = (urlsplit(address.url).hostname or "").lower()
    return any(host == known or host.endswith(f".{known}") for known in _HOSTS)


@dataclass(frozen=True, slots=True)
class HuggingFace:
    """A PNG, base64 in JSON with the number of classes wanted, else (raw) as the body, which gives the server's best five."""

    address: Address
    num_classes: int | None = None
    names: ClassNames = field(default_factory=ClassNames, compare=False)
    raw: bool = False

    @property
    def name(self) -> str:
        """The name for ``--dialect``."""
        return "huggingface-png" if self.raw else "huggingface"

    @property
    def first(self) -> int:
        """A request is one image."""
        return 1

    def encode(self, queries: Queries, spec: InputSpec) -> Request:
        """One request with the first query."""
        image = png(queries, spec)
        if self.raw:
            return Request(self.address, image, len(queries), {"Content-Type": "image/png", "Accept": "application/json"})
        document: dict[str, Any] = {"inputs": base64_text(image)}
        if self.num_classes is not None:
            document["parameters"] = {"top_k": self.num_classes}
        return Request(self.address, json.dumps(document).encode(), len(queries))

    def decode(self, reply: Reply, n: int) -> Answers:
        """Answers from ``[{"label": …, "score": …}, …]``; an axis for the only image is dropped."""
        document = parse(reply.body)
        if isinstance(document, list) and len(document) == 1 and isinstance(document[0], list):
            document = document[0]
        ranking = listed(document, self.names)
        if ranking is None or n != 1:
            raise ReplyError("the reply is no list of labels with scores, which this task demands")
        return answers_of([ranking], self.num_classes)
