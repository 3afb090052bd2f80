"""Where a parser that reads files finds the bytes that it is to be tried with."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path


@functools.cache
def folder() -> Path:
    """A folder for what a parser reads from a file."""
    return Path(tempfile.mkdtemp(prefix="onnxaudit-fuzz-"))


def put(name: str, data: bytes) -> Path:
    """The bytes as a file of that name in the folder, in place of the last."""
    path = folder() / name
    path.write_bytes(data)
    return path
