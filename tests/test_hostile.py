"""Files from adversaries: small ones that claim terabytes, lead elsewhere, or would run code: each is refused at once."""

from __future__ import annotations

import base64
import json
import os
import resource
import struct
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper

from onnxaudit.bundle import load
from onnxaudit.errors import ArtefactError, OnnxauditError, UsageError
from onnxaudit.evidence.merkle import root_by
from onnxaudit.registry import open_suspect, read_target_file
from onnxaudit.report.contents import contents
from onnxaudit.suspect import InputSpec, Target
from onnxaudit.transcript import Record
from onnxaudit.zoo.manifest import load_zoo
from tests.bundles import rewrite, simulated_bundle
from tests.models import SPEC, make_onnx, save_torchscript

TERA = 1 << 40
LIMIT = 400 << 20
"""Bytes that refusing all of these files together may take: the libraries that look into them, and a copy or two."""


def _safetensors(path: Path, shape: list[int], start: bytes = b"") -> None:
    size = int(np.prod(shape, dtype=object))
    header = json.dumps({"x": {"dtype": "U8", "shape": shape, "data_offsets": [0, size]}}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + start + b"\0" * 100)


def _npy(shape: str) -> bytes:
    header = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}, }}".encode().ljust(118) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + b"\0" * 100


def _npz(path: Path, member: bytes, method: int = zipfile.ZIP_STORED) -> None:
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr("x.npy", member)


def _initializer(path: Path, dims: list[int]) -> None:
    model = make_onnx()
    del model.graph.initializer[0].dims[:]
    model.graph.initializer[0].dims.extend(dims)
    path.write_bytes(model.SerializeToString())


def _external(path: Path, **entries: str) -> None:
    model = make_onnx()
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in {"location": "w.bin", **entries}.items():
        tensor.external_data.add(key=key, value=value)
    path.with_name("w.bin").write_bytes(b"\0" * 100)
    path.write_bytes(model.SerializeToString())


def _sparse(path: Path, head: bytes, size: int, tail: bytes = b"") -> None:
    with path.open("wb") as file:
        file.write(head)
        file.truncate(size - len(tail))
        file.seek(0, os.SEEK_END)
        file.write(tail)


def _sparse_weights(path: Path) -> None:
    _external(path)
    _sparse(path.with_name("w.bin"), b"", TERA)


def _listed(path: Path) -> None:
    """A zip file whose list of members has 100 MiB, for nothing."""
    size = 100 << 20
    end = b"PK\x05\x06" + struct.pack("<HHHHIIH", 0, 0, 65535, 65535, size, 0, 0)
    _sparse(path, b"PK\x03\x04", size + len(end), end)


def _bitmap(path: Path) -> None:
    path.mkdir()
    chunk = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    head = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + b"IHDR" + chunk + struct.pack(">I", zlib.crc32(b"IHDR" + chunk))
    (path / "a.png").write_bytes(head + struct.pack(">I", 0) + b"IDAT" + struct.pack(">I", zlib.crc32(b"IDAT")))


FILES: dict[str, Callable[[Path], object]] = {
    "tera.oab": lambda path: _safetensors(path, [TERA]),
    "wrapped.oab": lambda path: _safetensors(path, [1 << 33, 1 << 33]),
    "header.oab": lambda path: path.write_bytes(struct.pack("<Q", 1 << 62) + b"{}"),
    "sparse.oab": lambda path: _sparse(path, b"", TERA),
    "tera.safetensors": lambda path: _safetensors(path, [TERA]),
    "tera.npy.npz": lambda path: path.write_bytes(_npy(f"({TERA},)")),
    "tera.npz": lambda path: _npz(path, _npy(f"({TERA},)")),
    "wrapped.npz": lambda path: _npz(path, _npy(f"({1 << 33}, {1 << 33})")),
    "objects.npz": lambda path: _npz(path, _npy("(3,)").replace(b"|u1", b"|O ")),
    "bomb.npz": lambda path: _npz(path, _npy("(3,)") + bytes(300 << 20), zipfile.ZIP_DEFLATED),
    "pictures": _bitmap,
    "tera.onnx": lambda path: _initializer(path, [TERA]),
    "wrapped.onnx": lambda path: _initializer(path, [1 << 33, 1 << 33]),
    "negative.onnx": lambda path: _initializer(path, [-1, 3, 3, 3]),
    "offset.onnx": lambda path: _external(path, offset=str(TERA), length="648"),
    "length.onnx": lambda path: _external(path, length=str(TERA)),
    "minus.onnx": lambda path: _external(path, offset="-8", length="648"),
    "weights.onnx": _sparse_weights,
    "sparse.onnx": lambda path: _sparse(path, b"\x08\x07\x12\x00", TERA),
    "sparse.pt": lambda path: _sparse(path, b"PK\x03\x04", TERA),
    "listed.pt": _listed,
    "listed.pt2": _listed,
}
LOOK = """
import resource, sys, time
from pathlib import Path
import onnxruntime, onnxaudit_adapters.onnx, onnxaudit_adapters.external, onnx, PIL.Image, safetensors.numpy
from onnxaudit.bundle import load
from onnxaudit.craft.data import load_data
from onnxaudit.errors import OnnxauditError
from onnxaudit.registry import open_suspect, read_target_file
from onnxaudit.suspect import InputSpec, Target
start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for name in sys.argv[1:]:
    path, began = Path(name), time.process_time()
    try:
        if path.suffix == ".oab":
            load(path)
        elif path.suffix in (".npz", ".safetensors", ""):
            load_data(path)
        else:
            open_suspect(Target(name, InputSpec((8, 8, 3)), 4, device="cpu")).close()
        print(path.name, "opened")
    except OnnxauditError as error:
        assert time.process_time() - began < 10, (name, time.process_time() - began)
        print(path.name, type(error).__name__, str(error))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - start)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="sparse files, and memory counted in KiB")
def test_small_files_that_claim_to_be_large_are_refused_cheaply(tmp_path: Path) -> None:
    for name, make in FILES.items():
        folder = tmp_path / name.replace(".", "-")
        folder.mkdir()
        make(folder / name)
    paths = [str(tmp_path / name.replace(".", "-") / name) for name in FILES]
    done = subprocess.run([sys.executable, "-c", LOOK, *paths], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    *lines, grown = done.stdout.splitlines()
    said = dict(line.split(" ", 1) for line in lines)
    assert {name: words for name, words in said.items() if not words.startswith(("ArtefactError", "UsageError"))} == {}
    assert set(said) == set(FILES)
    assert int(grown) << 10 < LIMIT, f"it took {grown} KiB"


@pytest.mark.parametrize("dims", [(10**6, 10**6), (2**40, 1), (1, 2**62)])
def test_a_model_that_says_it_takes_enormous_inputs(tmp_path: Path, dims: tuple[int, int]) -> None:
    (tmp_path / "m.onnx").write_bytes(make_onnx(dims=("n", 3, *dims)).SerializeToString())
    with pytest.raises(OnnxauditError, match=r"more than 67108864 values|cannot be run"):
        open_suspect(Target(str(tmp_path / "m.onnx"), SPEC, 4, device="cpu"))


def test_a_bundle_that_says_so(tmp_path: Path) -> None:
    simulated_bundle(2).save(tmp_path / "a.oab")

    def edit(manifest: dict[str, Any], tensors: dict[str, NDArray[Any]]) -> None:
        manifest["input"]["shape"] = [10**6, 10**6, 1]

    rewrite(tmp_path / "a.oab", edit)
    with pytest.raises(ArtefactError, match="has more than"):
        load(tmp_path / "a.oab")


def _with_name(path: Path, name: str) -> Path:
    """A bundle whose first class has another name, with digests that fit."""
    simulated_bundle(2).save(path)

    def edit(manifest: dict[str, Any], tensors: dict[str, NDArray[Any]]) -> None:
        manifest["notes"] = [name]

    rewrite(path, edit)
    return path


def test_what_a_bundle_says_cannot_steer_a_terminal(tmp_path: Path) -> None:
    said = contents(load(_with_name(tmp_path / "a.oab", "\x1b[2J\x1b]0;derived\x07 \u202eterced\r\x9b1A")))
    assert all(letter.isprintable() or letter == "\n" for letter in said)
    assert "]0;derived" in said, "the words stay"


@pytest.mark.parametrize("escape", [rb"\ud800", rb"\udfff", rb"a\ud83d"])
def test_a_bundle_with_half_a_character(tmp_path: Path, escape: bytes) -> None:
    path = _with_name(tmp_path / "a.oab", "PLACEHOLDER")
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = data[8 : 8 + length].replace(b"PLACEHOLDER", escape.replace(b"\\", b"\\\\"))
    path.write_bytes(struct.pack("<Q", len(header)) + header + data[8 + length :])
    with pytest.raises(ArtefactError, match="does not match its digest"):
        load(path)


@pytest.mark.parametrize(
    "file", ["../secret.onnx", "a/../../secret.onnx", "..\\secret.onnx", "C:secret.onnx", "", "link.onnx", "x\0y", "\ud800"]
)
@pytest.mark.parametrize("absolute", [False, True])
def test_a_zoo_manifest_stays_in_its_folder(tmp_path: Path, file: str, absolute: bool) -> None:
    (tmp_path / "zoo").mkdir()
    (tmp_path / "secret.onnx").write_bytes(b"x")
    (tmp_path / "zoo/link.onnx").symlink_to(tmp_path / "secret.onnx")
    entry = {"file": str(tmp_path / "secret.onnx") if absolute else file, "kind": "positive"}
    (tmp_path / "zoo/zoo.json").write_text(json.dumps([entry]))
    with pytest.raises(ArtefactError, match="leads out of the manifest's folder"):
        load_zoo(tmp_path / "zoo/zoo.json")


def test_names_longer_than_names_can_be(tmp_path: Path) -> None:
    (tmp_path / "zoo.json").write_text(json.dumps([{"file": "x" * 5000, "kind": "positive"}]))
    with pytest.raises(UsageError, match="is not there"):
        load_zoo(tmp_path / "zoo.json")
    _external(tmp_path / "m.onnx", location="x" * 5000)
    with pytest.raises(ArtefactError, match="is not there"):
        open_suspect(Target(str(tmp_path / "m.onnx"), SPEC, 4, device="cpu"))


def test_a_large_zoo_manifest(tmp_path: Path) -> None:
    _sparse(tmp_path / "zoo.json", b"[", TERA)
    with pytest.raises(ArtefactError, match="no list of models"):
        load_zoo(tmp_path / "zoo.json")


@pytest.mark.parametrize(
    ("dtype", "shape", "data"),
    [
        ("<f4", [1], zlib.compress(bytes(200 << 20))),
        ("100000000<f4", [1], zlib.compress(bytes(4))),
        ("(1000,1000)<f4", [1], zlib.compress(bytes(4))),
        ("O", [1], zlib.compress(bytes(8))),
        ("<f4", [2**31, 2**31], zlib.compress(bytes(4))),
        ("<f4,<f4", [1], zlib.compress(bytes(8))),
        (["<f4"], [1], zlib.compress(bytes(4))),
    ],
)
def test_a_transcript_that_unpacks_to_more_than_it_says(dtype: object, shape: list[int], data: bytes) -> None:
    record = Record()
    entry = {"inside": "layers", "of": "suspect", "dtype": dtype, "shape": shape, "data": base64.b64encode(data).decode()}
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    begun: list[dict[str, Any]] = [{"schema": "x"}, {"run": {}}]
    for value in begun:
        record.add(json.dumps({**value, "previous": record.digest}).encode() + b"\n", "a line")
    with pytest.raises(ArtefactError, match="damaged"):
        record.add(json.dumps({**entry, "previous": record.digest}).encode() + b"\n", "the last line")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < (100 << 10)


def test_a_proof_without_end() -> None:
    assert root_by(bytes(32), 0, 1 << 20_000, [bytes(32)] * 20_000) is None


@pytest.mark.parametrize("name", ["a.png", "a.jpg"])
@pytest.mark.parametrize(
    "data",
    [
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n(made) (w) file closefile\nshowpage\n",
        b"\x89PNG\r\n\x1a\n" + b"\0" * 40,
        b"\xff\xd8\xff\xe0" + b"\0" * 40,
        b"",
    ],
)
def test_pictures_are_what_they_are_called_or_refused(tmp_path: Path, name: str, data: bytes) -> None:
    from onnxaudit.craft.data import load_data

    (tmp_path / "d").mkdir()
    (tmp_path / "d" / name).write_bytes(data)
    with pytest.raises(ArtefactError, match="not a readable image"):
        load_data(tmp_path / "d")


def test_a_victim_whose_program_reads_files(tmp_path: Path) -> None:
    import torch

    from onnxaudit.craft.victim import open_victim

    class Reader(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + torch.from_file("/etc/hostname", shared=False, size=1)

    torch.jit.save(torch.jit.script(Reader()), tmp_path / "v.pt")
    with pytest.raises(ArtefactError, match="touches files"):
        open_victim(tmp_path / "v.pt", SPEC, device="cpu")


@pytest.mark.parametrize("place", [0.2, 0.9])
def test_a_victim_with_a_hole(tmp_path: Path, place: float) -> None:
    from onnxaudit.craft.victim import open_victim

    data = bytearray(save_torchscript(tmp_path / "v.pt").read_bytes())
    start = int(len(data) * place)
    data[start : start + len(data) // 4] = bytes(len(data) // 4)
    (tmp_path / "v.pt").write_bytes(data)
    with pytest.raises(ArtefactError, match=r"damaged|cannot be loaded"):
        open_victim(tmp_path / "v.pt", SPEC, device="cpu")


def test_external_weights_by_a_link(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    _external(tmp_path / "m/m.onnx")
    (tmp_path / "m/w.bin").unlink()
    (tmp_path / "secret").write_bytes(bytes(648))
    (tmp_path / "m/w.bin").symlink_to(tmp_path / "secret")
    with pytest.raises(ArtefactError, match="outside its own folder"):
        open_suspect(Target(str(tmp_path / "m/m.onnx"), SPEC, 4, device="cpu"))


def test_operators_from_elsewhere_are_not_loaded(tmp_path: Path) -> None:
    """A model cannot name a library of operators; only code that opens a session can."""
    node = helper.make_node("Harm", ["x"], ["y"], domain="evil", library="/tmp/harm.so")
    given = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 8, 8])
    made = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4])
    domains = [helper.make_opsetid("", 13), helper.make_opsetid("evil", 1)]
    graph = helper.make_graph([node], "g", [given], [made])
    onnx.save(helper.make_model(graph, opset_imports=domains, ir_version=8), tmp_path / "m.onnx")
    with pytest.raises(ArtefactError, match="cannot be run"):
        open_suspect(Target(str(tmp_path / "m.onnx"), SPEC, 4, device="cpu"))


def test_input_specs_have_bounds() -> None:
    assert InputSpec((4096, 4096, 3)).problem() is None
    assert "more than" in str(InputSpec((2**14, 2**14, 3)).problem())


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"9" * 4090, "is not TOML"),
        (b"a=" + b"9" * 4094, "is not known"),
        (b"a" + b".a" * 20_000 + b" = 1", "a line of more than 4096 bytes"),
        (b"a = 1\n" * 20_000, "larger than a target file can be"),
        (b'url = "http://x"\ndialect = "plain"\nlabels = "a\\u0000b"', "labels has to be a file in the folder"),
        (b'url = "http://x"\ndialect = "plain"\nlabels = "../names"', "labels has to be a file in the folder"),
        (b"a = " + b"[" * 4000, "is not TOML"),
        (b"\xff\xfe", "is not TOML"),
    ],
)
def test_a_hostile_target_file(tmp_path: Path, text: bytes, words: str) -> None:
    (tmp_path / "t.toml").write_bytes(text)
    with pytest.raises(OnnxauditError, match=words):
        read_target_file(tmp_path / "t.toml", {})
