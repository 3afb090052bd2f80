"""The binary extension of the Open Inference Protocol: JSON, then the tensors' bytes, little-endian, one after the other."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxaudit_adapters.http.strict_json import ReplyError, as_array, parse

LENGTH = "inference-header-content-length"
_DTYPES = {"FP16": "<f2", "FP32": "<f4", "FP64": "<f8", "INT8": "<i1", "INT16": "<i2", "INT32": "<i4", "INT64": "<i8"}
_DTYPES |= {"UINT8": "<u1", "UINT16": "<u2", "UINT32": "<u4", "UINT64": "<u8"}
_SIZE = "binary_data_size"


def join(document: Mapping[str, Any], batch: NDArray[np.generic]) -> tuple[bytes, dict[str, str]]:
    """Body and headers of a request: the document, whose only input has no data, and the batch."""
    tensor = np.ascontiguousarray(batch, batch.dtype.newbyteorder("<")).tobytes()
    (described,) = document["inputs"]
    inputs = [{**described, "parameters": {_SIZE: len(tensor)}}]
    head = json.dumps({**document, "inputs": inputs}, allow_nan=False).encode()
    headers = {"Content-Type": "application/octet-stream", "Inference-Header-Content-Length": str(len(head))}
    return head + tensor, headers


def split(body: bytes, headers: Mapping[str, str]) -> tuple[object, dict[str, NDArray[Any]]]:
    """The document of a reply, and the outputs that came as bytes, by name, flat. headers: lower-case names.

    A reply without the header is JSON alone, which a server may choose. Raises ReplyError where sizes do not add up.
    """
    said = headers.get(LENGTH, "").strip()
    if not said:
        return parse(body), {}
    if not (said.isascii() and said.isdecimal() and len(said) < 12 and int(said) <= len(body)):
        raise ReplyError("the reply says a length of its JSON that it does not have")
    document, rest = parse(body[: int(said)]), memoryview(body)[int(said) :]
    outputs = document.get("outputs") if isinstance(document, dict) else None
    tensors: dict[str, NDArray[Any]] = {}
    start = 0
    for output in outputs if isinstance(outputs, list) else []:
        parameters = output.get("parameters") if isinstance(output, dict) else None
        size = parameters.get(_SIZE) if isinstance(parameters, dict) else None
        if size is None:
            continue
        if isinstance(size, bool) or not isinstance(size, int) or not 0 <= size <= len(rest) - start:
            raise ReplyError("an output of the reply says a size that its bytes do not have")
        tensors[str(output.get("name"))] = _values(bytes(rest[start : start + size]), output)
        start += size
    if start != len(rest):
        raise ReplyError(f"the reply holds {len(rest) - start} bytes that belong to no output")
    return document, tensors


def _values(data: bytes, output: Mapping[str, Any]) -> NDArray[Any]:
    """The values of an output, flat: numbers, or text from BYTES."""
    datatype, shape = output.get("datatype"), output.get("shape")
    if datatype == "BYTES":
        count = math.prod(shape) if isinstance(shape, list) and all(isinstance(size, int) for size in shape) else -1
        return as_array(_texts(data, count))
    dtype = _DTYPES.get(str(datatype))
    if dtype is None or len(data) % np.dtype(dtype).itemsize:
        raise ReplyError(f"an output of the reply has {len(data)} bytes of {datatype}, which cannot be read")
    values = np.frombuffer(data, dtype)
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise ReplyError("the reply contains NaN or infinity", "They are no scores; they cannot be used as evidence.")
    return values


def _texts(data: bytes, count: int) -> list[str]:
    """Strings, each after its length in four bytes; as many as the shape says."""
    texts: list[str] = []
    start = 0
    while start < len(data) and len(texts) <= count:
        size = int.from_bytes(data[start : start + 4], "little")
        text = data[start + 4 : start + 4 + size]
        if len(text) != size or size > 1024 or start + 4 > len(data):
            break
        texts.append(text.decode("utf-8", "replace"))
        start += 4 + size
    if start != len(data) or len(texts) != count:
        raise ReplyError("an output of the reply has text that is not as long as it says")
    return texts
