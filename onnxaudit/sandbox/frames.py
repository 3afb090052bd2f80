"""What passes between a confined process and this one: a length, a JSON head, and the bytes of arrays. It cannot carry code."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Sequence
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

MAX_HEAD = 1 << 23
"""Bytes: a card may have the names of a million classes, or of thousands of files."""
MAX_ARRAYS = 2
MAX_BYTES = 1 << 30
"""Of all arrays of a message together."""
DTYPES = ("<i4", "<f2", "<f4", "<f8", "|u1")


class FrameError(Exception):
    """What came is no message."""


def write(stream: IO[bytes], head: dict[str, Any], arrays: Sequence[NDArray[Any]] = ()) -> None:
    """Send one message. Raises FrameError for arrays that could not be read back, OSError if the other side is gone."""
    arrays = [np.ascontiguousarray(array) for array in arrays]
    described = [[array.dtype.newbyteorder("<").str, list(array.shape)] for array in arrays]
    # names of files may be no text at all, and half characters are what Python makes of them
    text = json.dumps({**head, "arrays": described}, allow_nan=False, ensure_ascii=False).encode("utf-8", "surrogatepass")
    known = all(dtype in DTYPES for dtype, _ in described)
    if not known or len(text) > MAX_HEAD or len(arrays) > MAX_ARRAYS or sum(array.nbytes for array in arrays) > MAX_BYTES:
        raise FrameError("it is too large, or holds what is no plain number")
    stream.write(struct.pack("<I", len(text)) + text)
    for array in arrays:
        stream.write(array.astype(array.dtype.newbyteorder("<"), copy=False).data.cast("B") if array.size else b"")
    stream.flush()


def read(stream: IO[bytes], most: int = MAX_BYTES) -> tuple[dict[str, Any], list[NDArray[Any]]]:
    """Receive one message whose arrays have at most ``most`` bytes. Raises EOFError at the end, FrameError for anything else.

    Nothing is allocated for what was only announced: memory grows with the bytes that came.
    """
    start = stream.read(4)
    if not start:
        raise EOFError
    if len(start) < 4 or not 0 < (length := struct.unpack("<I", start)[0]) <= MAX_HEAD:
        raise FrameError("its head has no sound length")
    try:
        head = json.loads(_exactly(stream, length), parse_constant=_refuse)
    except (ValueError, RecursionError):
        raise FrameError("its head is not JSON") from None
    described = head.pop("arrays", None) if isinstance(head, dict) else None
    if not isinstance(described, list) or len(described) > MAX_ARRAYS:
        raise FrameError("it does not describe its arrays")
    layouts = [_layout(entry) for entry in described]
    sizes = [math.prod(shape) * np.dtype(dtype).itemsize for dtype, shape in layouts]
    if sum(sizes) > min(most, MAX_BYTES):
        raise FrameError("it is larger than an answer can be")
    found = [
        np.frombuffer(_exactly(stream, size), dtype).reshape(shape) for size, (dtype, shape) in zip(sizes, layouts, strict=True)
    ]
    return head, [array.astype(array.dtype.newbyteorder("="), copy=False) for array in found]


def _layout(entry: object) -> tuple[str, list[int]]:
    if not isinstance(entry, list) or len(entry) != 2 or entry[0] not in DTYPES or not isinstance(entry[1], list):
        raise FrameError("an array is of no known type")
    dtype, shape = entry
    if len(shape) > 8 or not all(type(size) is int and 0 <= size <= MAX_BYTES for size in shape):
        raise FrameError("an array has no sound shape")
    return dtype, shape


def _exactly(stream: IO[bytes], size: int) -> bytearray:
    data = bytearray()
    while len(data) < size:
        part = stream.read(min(size - len(data), 1 << 20))
        if not part:
            raise EOFError
        data += part
    return data


def _refuse(token: str) -> float:
    raise ValueError(token)
