"""What onnxaudit itself reads of a suspect before a runtime does: OpenVINO's XML, LiteRT's tables, a .skops file's schema."""

from __future__ import annotations

import base64
import binascii
import io
import json
import zipfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from benchmarks.fuzz.scratch import put
from onnxaudit.archives import open_archive, sniff
from onnxaudit_adapters.litert import check_model
from onnxaudit_adapters.openvino import check_ir
from onnxaudit_adapters.skops_schema import screen_schema

WEIGHTS = bytes(1 << 12)
"""What lies beside every .xml that is tried."""


def openvino(data: bytes) -> None:
    """The XML of an IR. What comes through has its constants inside of the weights, and no entities."""
    check_ir(data, WEIGHTS, Path("m.xml"))
    assert b"<!ENTITY" not in data
    for element in ElementTree.fromstring(data).iter():
        if {"offset", "size"} <= set(element.keys()):
            start, size = int(element.attrib["offset"]), int(element.attrib["size"])
            assert 0 <= start <= start + size <= len(WEIGHTS)


def litert(data: bytes) -> None:
    """A .tflite file's list of buffers. It is not run."""
    if find_spec("ai_edge_litert") is not None:  # the extra is not everywhere
        check_model(data, Path("m.tflite"))


def skops(data: bytes) -> None:
    """A .skops file: as it is, or, from ``{"schema": …, "files": {name: base64}}``, put together with sums that fit."""
    path = put("a.skops", _archived(data))
    if sniff(path) != "unknown":
        return
    whole = path.read_bytes()
    if not whole.startswith(b"PK\x03\x04"):
        return
    with open_archive(path) as archive:
        listed = "schema.json" in archive.namelist()
    if listed:
        screen_schema(whole, path)


def _archived(data: bytes) -> bytes:
    try:
        value = json.loads(data)
        parts: dict[str, Any] = {"schema.json": json.dumps(value["schema"]).encode()}
        parts |= {name: base64.b64decode(part) for name, part in value["files"].items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, binascii.Error):
        return data
    stream = io.BytesIO()
    try:
        with zipfile.ZipFile(stream, "w") as archive:
            for name, part in parts.items():
                archive.writestr(name, part)
    except (ValueError, OSError, UserWarning):
        return data
    return stream.getvalue()
