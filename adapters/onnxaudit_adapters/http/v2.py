"""The Open Inference Protocol, as Triton, MLServer, KServe, OpenVINO Model Server and TorchServe speak it."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray

from onnxaudit.answers import Answers
from onnxaudit.errors import UsageError
from onnxaudit.suspect import InputSpec, Queries
from onnxaudit_adapters.http import binary
from onnxaudit_adapters.http.dialects import (
    JSON_HEADERS,
    OtherRequestError,
    Reply,
    Request,
    answers_from,
    encode_batch,
    is_labels,
    is_scores,
)
from onnxaudit_adapters.http.names import ClassNames
from onnxaudit_adapters.http.options import Address
from onnxaudit_adapters.http.rankings import answers_of
from onnxaudit_adapters.http.strict_json import ReplyError, as_array, parse

DATATYPES = {"float32": "FP32", "float16": "FP16", "float64": "FP64", "uint8": "UINT8"}
_DTYPES = {datatype: dtype for dtype, datatype in DATATYPES.items()}
_PATH = re.compile(r"(?P<model>(?P<root>.*)/v2/models/[^/]+(?:/versions/[^/]+)?)(?:/infer)?/?\Z")
_MAX_AXES = 8
_RANKED = re.compile(r"(?P<score>-?\d[\d.eE+-]{0,40}):(?P<index>\d{1,9})(?::.*)?\Z", re.DOTALL)
_TOP = 5  # classes asked of a server that ranks, where nobody knows how many it has
_FLOATS = ("FP16", "FP32", "FP64", "BF16")
_INTEGERS = tuple(f"{sign}INT{bits}" for sign in ("", "U") for bits in (8, 16, 32, 64))


@dataclass(frozen=True, slots=True)
class Endpoints:
    """The addresses of one model. server: GET tells what the server is; model: GET gives metadata; infer: POST asks."""

    server: Address
    model: Address
    infer: Address


def endpoints(address: Address) -> Endpoints | None:
    """The endpoints of ``…/v2/models/NAME[/versions/V][/infer]``, None for any other path."""
    match = _PATH.match(urlsplit(address.url).path)
    if match is None:
        return None
    return Endpoints(address.at(match["root"] + "/v2"), address.at(match["model"]), address.at(match["model"] + "/infer"))


@dataclass(frozen=True, slots=True)
class Metadata:
    """What a server says of a model. inputs: name -> (dims, datatype), dims None where symbolic; max_batch: if declared.

    outputs: their names.
    """

    inputs: Mapping[str, tuple[tuple[int | None, ...], str]] = field(default_factory=dict)
    outputs: tuple[str, ...] = ()
    max_batch: int | None = None
    facts: Mapping[str, str] = field(default_factory=dict)


def read_metadata(reply: Reply) -> Metadata:
    """Metadata from the reply to GET …/v2/models/NAME; servers leave out what they like. Raises ReplyError if it is no object."""
    document = parse(reply.body)
    if not isinstance(document, dict):
        raise ReplyError("the metadata is no JSON object")
    tensors = document.get("inputs")
    inputs = {}
    for tensor in tensors if isinstance(tensors, list) else []:
        if isinstance(tensor, dict) and isinstance(tensor.get("name"), str):
            inputs[tensor["name"]] = (_dims(tensor.get("shape")), str(tensor.get("datatype", "")))
    parameters = document.get("parameters")
    declared = [part.get("max_batch_size") for part in (document, parameters) if isinstance(part, dict)]
    limits = [limit for limit in declared if isinstance(limit, int) and limit > 0]
    platform = document.get("platform")
    facts = {"platform": platform} if isinstance(platform, str) and platform else {}
    given = document.get("outputs")
    outputs = [output.get("name") for output in given if isinstance(output, dict)] if isinstance(given, list) else []
    return Metadata(inputs, tuple(name for name in outputs if isinstance(name, str)), min(limits, default=None), facts)


def _dims(shape: object) -> tuple[int | None, ...]:
    """Dimensions, batch first; empty where nothing usable is said. Servers leave the batch axis out of some fixed shapes."""
    if not isinstance(shape, list) or not all(isinstance(size, int) and -1 <= size < 2**31 for size in shape):
        return ()
    dims = tuple(size if size > 0 else None for size in shape)
    if len(dims) == 1:
        return (None, dims[0]) if dims[0] else ()
    return (None, *dims) if len(dims) == 3 and None not in dims and {dims[0], dims[2]} & {1, 3} else dims


def dtype_of(datatype: str) -> str | None:
    """The NumPy type of an input, None where the server does not say. Raises UsageError for one that takes no numbers."""
    if datatype in _DTYPES or not datatype:
        return _DTYPES.get(datatype)
    raise UsageError(f"the model takes {datatype}, not pixels or numbers", f"What can be sent: {', '.join(_DTYPES)}.")


@dataclass(frozen=True, slots=True)
class V2:
    """``POST …/infer`` with one flat, row-major tensor. dims: the shape of one example where it is not the spec's own.

    form: "json", "binary" (tensors as bytes, both ways) or "classes" (Triton ranks the classes of the output itself).
    """

    address: Address
    input_name: str
    output_name: str | None = None
    num_classes: int | None = None
    dims: tuple[int, ...] | None = None
    names: ClassNames = field(default_factory=ClassNames, compare=False)
    form: str = "json"

    @property
    def name(self) -> str:
        """The name for ``--dialect``."""
        return "v2" if self.form == "json" else f"v2-{self.form}"

    @property
    def first(self) -> None:
        """The protocol has batches, so the first request is like any other."""
        return

    def encode(self, queries: Queries, spec: InputSpec) -> Request:
        """One request; its id is the digest of the batch, since some servers fail without an id."""
        batch = encode_batch(queries, spec)
        batch = batch if self.dims is None else batch.reshape(len(batch), *self.dims)
        tensor: dict[str, object] = {
            "name": self.input_name,
            "shape": list(batch.shape),
            "datatype": DATATYPES[batch.dtype.name],
        }
        name = hashlib.sha256(batch.tobytes()).hexdigest()[:16]
        document: dict[str, object] = {"id": name, "inputs": [tensor]}
        if self.output_name is not None:
            wanted: dict[str, object] = {"name": self.output_name}
            if self.form == "classes":
                wanted["parameters"] = {"classification": self.num_classes or _TOP}
            document["outputs"] = [wanted]
        if self.form == "binary":
            if self.output_name is None:
                document["parameters"] = {"binary_data_output": True}
            else:
                document["outputs"] = [{"name": self.output_name, "parameters": {"binary_data": True}}]
            body, headers = binary.join(document, batch)
            return Request(self.address, body, len(queries), {**JSON_HEADERS, **headers}, name)
        tensor["data"] = batch.ravel().tolist()
        return Request(self.address, json.dumps(document, allow_nan=False).encode(), len(queries), id=name)

    def decode(self, reply: Reply, n: int) -> Answers:
        """Answers from the output with class scores (n, C), else the one with labels (n,) or (n, 1), or Triton's rankings."""
        document, tensors = binary.split(reply.body, reply.headers)
        if not isinstance(document, dict) or not isinstance(document.get("outputs"), list):
            raise ReplyError("the reply has no outputs, which the Open Inference Protocol demands")
        if reply.asked and document.get("id") not in (None, "", reply.asked):
            raise OtherRequestError(f"the reply has the id {str(document['id'])!r}, and the request had {reply.asked!r}")
        outputs = dict(_tensor(output, tensors) for output in document["outputs"])
        if len(outputs) < len(document["outputs"]):
            raise ReplyError("the reply has two outputs of one name")
        name = self._choice(outputs)
        values = outputs[name]
        ranked = values.dtype.kind == "U" and all(_RANKED.match(str(word)) for word in values.ravel())
        answers = self._ranked(values) if ranked else answers_from(values, self.num_classes, self.names)
        if len(answers) != n:
            raise ReplyError(f"output {name} holds {len(answers)} answers to {n} queries")
        return answers

    def _ranked(self, values: NDArray[Any]) -> Answers:
        """Answers from Triton's ``value:index[:label]``, (n, k) or (k,) for one query; values have six decimals."""
        rows = values.reshape(len(values), -1) if values.ndim > 1 else values[np.newaxis]
        found = [[_RANKED.match(str(word)) for word in row] for row in rows]
        try:
            rankings = [[(int(match["index"]), float(match["score"])) for match in row if match] for row in found]
        except ValueError:
            raise ReplyError("a ranking of the reply has a score that is no number") from None
        return answers_of(rankings, self.num_classes)

    def _choice(self, outputs: Mapping[str, NDArray[Any]]) -> str:
        if self.output_name is not None:
            if self.output_name not in outputs:
                raise UsageError(f"the model has no output {self.output_name!r}", f"It has {', '.join(outputs) or 'none'}.")
            return self.output_name
        scores = [name for name, values in outputs.items() if is_scores(values)]
        labels = [name for name, values in outputs.items() if is_labels(values)]
        fitting = [name for name in scores if outputs[name].shape[1] == self.num_classes]
        candidates = fitting or scores or labels or list(outputs)
        if not candidates:
            raise ReplyError("the reply has no output with a tensor in it")
        if len(candidates) > 1:
            found = ", ".join(f"{name} {list(outputs[name].shape)}" for name in candidates)
            raise UsageError(f"several outputs of the model may be the answers: {found}", "Choose with --output-name.")
        return candidates[0]


def _is_size(size: object) -> bool:
    return isinstance(size, int) and 0 < size < 2**31


def _tensor(output: object, tensors: Mapping[str, NDArray[Any]]) -> tuple[str, NDArray[Any]]:
    """Name and values of an output, in its shape. Raises ReplyError where name, datatype, shape and data do not agree."""
    if not isinstance(output, dict) or not isinstance(output.get("name"), str):
        raise ReplyError("the reply has an output without a name")
    name, datatype, shape, data = output["name"], output.get("datatype"), output.get("shape"), output.get("data")
    if not isinstance(shape, list) or not 0 < len(shape) <= _MAX_AXES or not all(map(_is_size, shape)):
        raise ReplyError(f"output {name} has no usable shape")
    if name not in tensors and not isinstance(data, list):
        raise ReplyError(f"output {name} has no data")
    values = tensors[name] if name in tensors else as_array(data).ravel()
    kinds = "iuf" if datatype in _FLOATS else "iu" if datatype in _INTEGERS else "U" if datatype == "BYTES" else ""
    if values.dtype.kind not in kinds:
        raise ReplyError(f"output {name} says its data are {datatype}, and they are not")
    if math.prod(shape) != values.size:
        raise ReplyError(f"output {name} says its shape is {shape[:8]}, and has {values.size} values")
    return name, values.astype(np.float64 if datatype in _FLOATS else values.dtype).reshape(shape)
