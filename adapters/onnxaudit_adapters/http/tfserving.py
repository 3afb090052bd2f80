"""TensorFlow Serving's REST dialect, which KServe's V1 and Vertex AI speak too."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from onnxaudit.answers import Answers
from onnxaudit.errors import UsageError
from onnxaudit.suspect import InputSpec, Queries
from onnxaudit_adapters.http.dialects import Reply, Request, encode_batch
from onnxaudit_adapters.http.names import ClassNames
from onnxaudit_adapters.http.options import Address
from onnxaudit_adapters.http.payloads import base64_text, png
from onnxaudit_adapters.http.rankings import answers_of, paired
from onnxaudit_adapters.http.reading import Reader
from onnxaudit_adapters.http.strict_json import ReplyError, parse

_MAX_AXES = 8
_PATH = re.compile(r"(?P<model>.*/v1/models/[^/:]+(?:/(?:versions|labels)/[^/:]+)?)/?(?P<verb>:predict|:classify)?\Z")
_SIZE = re.compile(r"(?:-1|[0-9]{1,9})\Z")
_DTYPES = {"DT_FLOAT": "float32", "DT_HALF": "float16", "DT_DOUBLE": "float64", "DT_UINT8": "uint8"}
_FIELDS = ("predictions", "outputs", "results")


def predict_address(address: Address) -> Address | None:
    """Where ``…/v1/models/NAME`` or ``…:predict``, ``…:classify`` is asked; None for any other path."""
    path = urlsplit(address.url).path
    match = _PATH.match(path)
    if match is not None:
        return address.at(match["model"] + (match["verb"] or ":predict"))
    return address.at(path) if path.endswith((":predict", ":classify")) else None


def metadata_address(address: Address) -> Address | None:
    """Where the model that is asked to predict tells of itself; None for a path that names no model, or asks to classify."""
    match = _PATH.match(urlsplit(address.url).path)
    return address.at(match["model"] + "/metadata") if match is not None and match["verb"] != ":classify" else None


def read_inputs(reply: Reply) -> dict[str, tuple[tuple[int | None, ...], str]]:
    """Inputs by name of the signature that is asked where none is named: (dims, type), dims () where nothing usable is said.

    Nothing for a reply that says nothing of it: KServe has no such address. Sizes are texts there, -1 for any.
    """
    document: object = parse(reply.body) if reply.ok else None
    for key in ("metadata", "signature_def", "signature_def", "serving_default", "inputs"):
        document = document.get(key) if isinstance(document, dict) else None
    if not isinstance(document, dict):
        return {}
    return {
        name: (_dims(said.get("tensor_shape")), str(said.get("dtype", "")))
        for name, said in document.items()
        if isinstance(said, dict)
    }


def _dims(shape: object) -> tuple[int | None, ...]:
    listed = shape.get("dim") if isinstance(shape, dict) and shape.get("unknown_rank") is not True else None
    sizes = [str(dim.get("size")) if isinstance(dim, dict) else "" for dim in listed] if isinstance(listed, list) else []
    if not 1 < len(sizes) <= _MAX_AXES or not all(map(_SIZE.match, sizes)):
        return ()
    return tuple(int(size) if int(size) > 0 else None for size in sizes)


def dtype_of(datatype: str) -> str | None:
    """The NumPy type of an input, None where the server does not say. Raises UsageError for one that takes no numbers."""
    if datatype in _DTYPES or not datatype:
        return _DTYPES.get(datatype)
    hint = "If it takes images as bytes, pass --dialect tfserving-png." if datatype == "DT_STRING" else ""
    raise UsageError(f"the model takes {datatype}, not pixels or numbers", hint or f"What can be sent: {', '.join(_DTYPES)}.")


@dataclass(frozen=True, slots=True)
class TfServing:
    """``{"instances": rows}``; with input_name ``{"instances": [{name: row}, …]}``. images: each row is a PNG as ``{"b64": …}``.

    dims: the shape of one example where it is not the spec's own.

    An address that ends in ``:classify`` is sent ``{"examples": …}`` and answers lists of pairs of label and score.
    """

    address: Address
    input_name: str | None = None
    output_name: str | None = None
    num_classes: int | None = None
    names: ClassNames = field(default_factory=ClassNames, compare=False)
    images: bool = False
    dims: tuple[int, ...] | None = None

    @property
    def name(self) -> str:
        """The name for ``--dialect``."""
        return "tfserving-png" if self.images else "tfserving"

    @property
    def first(self) -> int:
        """One query: whether a reply to several is read rightly depends on what is said to one."""
        return 1

    @property
    def _classifies(self) -> bool:
        return urlsplit(self.address.url).path.endswith(":classify")

    def encode(self, queries: Queries, spec: InputSpec) -> Request:
        """One request in the row format. Raises UsageError where ``:classify`` is not told the name of its feature."""
        rows: list[Any]
        if self.images:
            rows = [{"b64": base64_text(png(queries[row : row + 1], spec))} for row in range(len(queries))]
        else:
            batch = encode_batch(queries, spec)
            batch = batch if self.dims is None else batch.reshape(len(batch), *self.dims)
            rows = (batch.reshape(len(batch), -1) if self._classifies else batch).tolist()
        if self.input_name:
            rows = [{self.input_name: row} for row in rows]
        elif self._classifies:
            raise UsageError(":classify takes examples of named features", "Name the feature with --input-name, or use :predict.")
        document = {"examples" if self._classifies else "instances": rows}
        return Request(self.address, json.dumps(document, allow_nan=False).encode(), len(queries))

    def decode(self, reply: Reply, n: int) -> Answers:
        """Answers from ``predictions``, ``outputs`` or ``results``; other fields, such as Vertex AI's, are left alone."""
        document = parse(reply.body)
        if not isinstance(document, dict) or not (given := [name for name in _FIELDS if name in document]):
            raise ReplyError("the reply has no predictions, which TensorFlow Serving's protocol demands")
        if given[0] == "results":
            return self._classified(document["results"], n)
        wanted, inner = self.output_name, document[given[0]]
        single = isinstance(inner, dict) or (isinstance(inner, list) and any(isinstance(entry, dict) for entry in inner))
        if single and wanted is not None:
            return Reader(wanted, self.num_classes, self.names).answers(inner, n)
        return Reader(None, self.num_classes, self.names).answers({given[0]: inner}, n)

    def _classified(self, results: object, n: int) -> Answers:
        if not isinstance(results, list) or len(results) != n:
            raise ReplyError(f"the reply does not hold {n} results")
        rankings = []
        for result in results:
            pairs = result if isinstance(result, list) and all(isinstance(p, list) and len(p) == 2 for p in result) else []
            ranking = paired([label for label, _ in pairs], [score for _, score in pairs], self.names, fewest=1)
            if ranking is None:
                raise ReplyError("a result of the reply is no list of pairs of label and score")
            rankings.append(ranking)
        return answers_of(rankings, self.num_classes)
