"""Weights that an ONNX model keeps in other files: found, and refused unless they lie in the model's own folder."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path, PureWindowsPath
from typing import TYPE_CHECKING, Any

from onnxaudit.archives import MAX_UNPACKED
from onnxaudit.errors import ArtefactError

if TYPE_CHECKING:
    from onnx import TensorProto

MAY_HAVE = b"location"
"""Bytes without which a model has no external data: the key that each such tensor carries. Saves importing onnx."""


def external_files(data: bytes, path: Path) -> dict[str, str]:
    """Name and sha256 of every other file that a model's tensors lie in, wherever in the model the tensors are.

    Raises ArtefactError if the model cannot be parsed or a file is absolute, above or outside the model's folder (also through a
    link), missing, or not a plain file.
    """
    import onnx  # costs 0.1 s, which most models need not pay

    try:
        model = onnx.load_model_from_string(data)
    except Exception as error:  # protobuf's own classes of errors have moved between its releases
        raise ArtefactError(f"{path.name} is not a readable ONNX model: {error}", "Copy or export it again.") from None
    places = {place for tensor in _tensors(model) for place in _locations(tensor)}
    return {place: _sha256(_inside(place, path)) for place in sorted(places)}


def _tensors(message: Any) -> Iterator[TensorProto]:
    """Every tensor in a protobuf message: initializers, attributes, subgraphs, functions, sparse and training parts alike."""
    stack = [message]
    while stack:
        part = stack.pop()
        if part.DESCRIPTOR.name == "TensorProto":
            yield part
            continue
        for field, value in part.ListFields():
            if field.message_type is not None:
                stack.extend([value] if hasattr(value, "DESCRIPTOR") else value)


def _locations(tensor: TensorProto) -> Iterator[str]:
    if tensor.data_location == tensor.EXTERNAL or tensor.external_data:
        found = [entry.value for entry in tensor.external_data if entry.key == "location"]
        yield from found or [""]


def _inside(place: str, path: Path) -> Path:
    """The file a tensor lies in. Backslashes and drives are refused everywhere: the model may move to Windows."""
    folder = path.parent.resolve()
    windows = PureWindowsPath(place)
    # ONNX Runtime reads tensors "located" at _ORT_MEM_ADDR_ from any address in memory
    unsafe = not place or "\0" in place or "\\" in place or "_ORT_MEM_ADDR_" in place
    unsafe = unsafe or windows.drive != "" or windows.root != "" or ".." in windows.parts
    resolved = None if unsafe else (folder / place).resolve()
    if resolved is None or not resolved.is_relative_to(folder):
        raise ArtefactError(f"{path.name} keeps weights outside its own folder ({place[:80]!r})", "It is not safe to open.")
    try:
        there = resolved.is_file()
    except OSError:  # a name longer than names can be
        there = False
    if not there:
        raise ArtefactError(f"{path.name} keeps weights in {place[:80]!r}, which is not there", "Put the file beside the model.")
    if resolved.stat().st_size > MAX_UNPACKED:
        raise ArtefactError(f"{path.name} keeps weights in {place[:80]!r}, which is too large", "It is not safe to open.")
    return resolved


def _sha256(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ArtefactError(f"{path.name} cannot be read: {error.strerror or error}") from None
