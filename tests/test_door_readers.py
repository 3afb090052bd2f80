"""What is read of OpenVINO, LiteRT and skops files before a runtime reads them: a small file cannot cost much time or memory."""

from __future__ import annotations

import io
import struct
import time
import zipfile
from pathlib import Path

import pytest

from onnxaudit.errors import ArtefactError
from onnxaudit.registry import open_suspect
from onnxaudit.suspect import InputSpec, Target
from onnxaudit_adapters.openvino import check_ir
from onnxaudit_adapters.skops_schema import screen_schema

SPEC = InputSpec((8, 8, 3))
PATIENCE = 10.0
"""Seconds of processor time: what is refused late takes minutes."""


def constant(shape: str, size: int = 4) -> bytes:
    """An IR with one constant of a shape."""
    data = f'<data offset="0" size="{size}" element_type="f32" shape="{shape}"/>'
    return f'<net><layers><layer type="Const">{data}</layer></layers></net>'.encode()


@pytest.mark.parametrize("shape", [",".join(["9" * 4000] * 5000), ",".join(["65536"] * 64), "9" * 5000, str(1 << 49)])
def test_forged_shapes_cost_no_time(shape: str) -> None:
    """The product of thousands of numbers of thousands of digits takes minutes."""
    started = time.process_time()
    with pytest.raises(ArtefactError, match="a constant that"):
        check_ir(constant(shape), bytes(4), Path("m.xml"))
    assert time.process_time() - started < PATIENCE


def test_a_sound_constant_passes() -> None:
    check_ir(constant("1,1"), bytes(4), Path("m.xml"))
    with pytest.raises(ArtefactError, match="larger than its 4 bytes"):
        check_ir(constant("1,2"), bytes(8), Path("m.xml"))


@pytest.mark.parametrize("name", ["m.xml", "m.tflite", "m.skops", "m.onnx", "m.ort", "m.pt", "m.pt2"])
def test_sparse_files_are_refused_at_once(tmp_path: Path, name: str) -> None:
    with (tmp_path / name).open("wb") as file:
        file.write(b"\x1c\0\0\0TFL3" if name.endswith("tflite") else b"<net>")
        file.truncate(1 << 42)
    started = time.process_time()
    with pytest.raises(ArtefactError):
        open_suspect(Target(str(tmp_path / name), SPEC, 4, "cpu"))
    assert time.process_time() - started < PATIENCE


def test_weights_beside_an_ir_have_a_size(tmp_path: Path) -> None:
    (tmp_path / "m.xml").write_bytes(constant("1"))
    with (tmp_path / "m.bin").open("wb") as file:
        file.truncate(1 << 42)
    with pytest.raises(ArtefactError, match="more than such a model can have"):
        open_suspect(Target(str(tmp_path / "m.xml"), SPEC, 4, "cpu"))


def test_buffers_without_end_are_refused(tmp_path: Path) -> None:
    """A list of buffers that says it has millions, each the same one."""
    pytest.importorskip("ai_edge_litert", reason="needs the extra litert")
    from onnxaudit_adapters.litert import check_model

    count = 3_000_000
    # root at 20; its table says by a table of fields (12 bytes at 8) that the fifth field, buffers, is 4 bytes on
    fields = struct.pack("<8H", 16, 8, 0, 0, 0, 0, 4, 0)
    head = struct.pack("<I", 24) + b"TFL3" + fields + struct.pack("<iI", 24 - 8, 4)
    data = head + struct.pack("<I", count) + b"".join(struct.pack("<I", 0) for _ in range(count))
    started = time.process_time()
    with pytest.raises(ArtefactError, match="more buffers than a model has"):
        check_model(data, Path("m.tflite"))
    assert time.process_time() - started < PATIENCE


def test_a_schema_has_a_size() -> None:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("schema.json", b"[" + b"[]," * (12 << 20) + b"[]]")
    with pytest.raises(ArtefactError, match="schema of more bytes"):
        screen_schema(stream.getvalue(), Path("m.skops"))
