"""What a file is, by its bytes; and archives that are not safe to hand to a loader."""

from __future__ import annotations

import io
import pickle
import subprocess
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from onnxaudit.archives import Kind, open_archive, screen_exported, screen_torchscript, sniff
from onnxaudit.errors import ArtefactError
from tests.models import save_exported, save_onnx, save_torchscript, torch_network


def _checkpoint(path: Path) -> None:
    network = torch_network()
    optimiser = torch.optim.Adam(network.parameters())
    network(torch.zeros(1, 3, 8, 8)).sum().backward()
    optimiser.step()
    torch.save({"state_dict": network.state_dict(), "optimiser": optimiser.state_dict(), "epoch": 3, "name": "x"}, path)


def _text(path: Path) -> None:
    path.write_text("not a model\n")


MAKERS: dict[str, tuple[Kind, Callable[[Path], object]]] = {
    "torchscript": ("torchscript", save_torchscript),
    "exported": ("exported", save_exported),
    "state dict": ("weights", lambda path: torch.save(torch_network().state_dict(), path)),
    "ordered": ("weights", lambda path: torch.save(OrderedDict(w=torch.zeros(3, dtype=torch.float16)), path)),
    "parameter": ("weights", lambda path: torch.save(torch.nn.Parameter(torch.zeros(3)), path)),
    "checkpoint": ("weights", _checkpoint),
    "old state dict": (
        "weights",
        lambda path: torch.save(torch_network().state_dict(), path, _use_new_zipfile_serialization=False),
    ),
    "module": ("pickle", lambda path: torch.save(torch_network(), path)),
    "old module": ("pickle", lambda path: torch.save(torch_network(), path, _use_new_zipfile_serialization=False)),
    "named on the stack": ("pickle", lambda path: torch.save(torch_network(), path, pickle_protocol=4)),
    "plain pickle": ("pickle", lambda path: path.write_bytes(pickle.dumps([1, 2]))),
    "broken pickle": ("pickle", lambda path: path.write_bytes(b"\x80\x04\x95\xff")),
    "safetensors": ("safetensors", lambda path: save_file({"w": np.zeros(3, np.float32)}, path)),
    "onnx": ("onnx", save_onnx),
    "text": ("unknown", _text),
    "empty": ("unknown", lambda path: path.write_bytes(b"")),
    "other zip": ("unknown", lambda path: _zip(path, {"a.txt": b"x"})),
}


def _zip(path: Path, members: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


@pytest.mark.parametrize("made", MAKERS)
def test_a_file_is_what_its_bytes_say(tmp_path: Path, made: str) -> None:
    kind, make = MAKERS[made]
    make(tmp_path / "file.bin")
    assert sniff(tmp_path / "file.bin") == kind


@pytest.mark.parametrize("name", ["../x", "m/../../x", "/etc/x", "C:/x", "m\\x"])
def test_members_that_lead_outside(tmp_path: Path, name: str) -> None:
    path = _zip(tmp_path / "m.pt", {"m/code/a.py": b"", "m/constants.pkl": b"", "placeholder": b""})
    data = path.read_bytes().replace(b"placeholder", name.encode().ljust(11, b"x"))
    path.write_bytes(data)
    with pytest.raises(ArtefactError, match="leads outside") as caught:
        sniff(path)
    assert caught.value.exit_code == 3


def test_two_members_of_one_name(tmp_path: Path) -> None:
    path = _zip(tmp_path / "m.pt", {"m/code/a.py": b"", "m/constants.pkl": b"", "m/CODE/a.py": b"import os"})
    with pytest.raises(ArtefactError, match="two members"):
        sniff(path)


def test_bombs(tmp_path: Path) -> None:
    bomb = _zip(tmp_path / "m.pt", {"m/data.pkl": bytes(100 * 2**20)}, zipfile.ZIP_DEFLATED)
    assert bomb.stat().st_size < 2**20
    with pytest.raises(ArtefactError, match="would unpack to"):
        sniff(bomb)
    large = _zip(tmp_path / "n.pt", {"m/data.pkl": bytes(65 * 2**20)})
    with pytest.raises(ArtefactError, match="larger than"):
        sniff(large)


@pytest.mark.parametrize("keep", [10, 100, 0.5, 0.99])
def test_truncated_archives(tmp_path: Path, keep: float) -> None:
    data = save_torchscript(tmp_path / "m.pt").read_bytes()
    (tmp_path / "t.pt").write_bytes(data[: int(keep if keep >= 1 else len(data) * keep)])
    with pytest.raises(ArtefactError, match="damaged"):
        sniff(tmp_path / "t.pt")


def test_damaged_members(tmp_path: Path) -> None:
    path = tmp_path / "m.pt"
    torch.save(torch_network().state_dict(), path)
    with zipfile.ZipFile(path) as archive:
        offset = archive.getinfo("m/data.pkl").header_offset
    data = bytearray(path.read_bytes())
    data[offset + 80 : offset + 160] = bytes(80)
    path.write_bytes(data)
    with pytest.raises(ArtefactError, match=r"damaged at m/data\.pkl"):
        sniff(path)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    for path in (tmp_path / "gone.pt", tmp_path):
        with pytest.raises(ArtefactError, match="cannot be read"):
            sniff(path)


class Harm:
    """An object whose unpickling would raise."""

    def __reduce__(self) -> tuple[Any, ...]:
        return exec, ("raise SystemExit('unpickled')",)


@pytest.mark.parametrize("protocol", [0, 1, 2, 4, 5])
def test_pickles_are_read_and_never_run(tmp_path: Path, protocol: int) -> None:
    hostile = _zip(tmp_path / "m.pt", {"m/data.pkl": pickle.dumps({"w": Harm()}, protocol=protocol), "m/version": b"3"})
    assert sniff(hostile) == "pickle"


@pytest.mark.parametrize("member", ["data/aotinductor/model/x.so", "data/constants/custom_obj_0", "data/constants/opaque_obj_0"])
def test_exported_programs_with_compiled_code_or_objects(tmp_path: Path, member: str) -> None:
    path = _zip(tmp_path / "m.pt2", {"m/models/model.json": b"{}", f"m/{member}": b"x"})
    assert sniff(path) == "exported"
    with pytest.raises(ArtefactError, match="compiled code or foreign objects"):
        screen_exported(path)


def test_exported_programs_that_are_not_json(tmp_path: Path) -> None:
    path = _zip(tmp_path / "m.pt2", {"m/models/model.json": b"[" * 100_000})
    with pytest.raises(ArtefactError, match="not JSON"):
        screen_exported(path)


@pytest.mark.parametrize(
    "program",
    [
        '{"tensor_values": {"metadata": {"sizes": [{"expr_str": "open(1)"}]}}}',
        '{"tensor_values": {"target": "torch.ops.aten.relu.default", "metadata": {"sizes": [{"expr_str": "open(1)"}]}}}',
        '{"guards_code": {"expr_str": "x.y"}}',
        '{"range_constraints": {"a b; import os": 1}}',
        '{"in_spec": "[1, {\\"\\\\u0064efault\\": 1}]"}',
    ],
)
def test_nothing_hides_from_the_screen(tmp_path: Path, program: str) -> None:
    with pytest.raises(ArtefactError, match="unexpected"):
        screen_exported(_zip(tmp_path / "m.pt2", {"m/models/model.json": program.encode()}))


def test_honest_programs_pass_the_screen(tmp_path: Path) -> None:
    screen_torchscript(save_torchscript(tmp_path / "m.pt"))
    screen_exported(save_exported(tmp_path / "m.pt2"))
    screen_exported(save_exported(tmp_path / "f.pt2", batch=3))

    class Shapes(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            pooled = torch.nn.functional.interpolate(x, scale_factor=2, mode="bilinear")
            return torch.einsum("nchw,nchw->nc", pooled, pooled).reshape(x.shape[0] * 3 // 3, -1).softmax(1)

    screen_exported(save_exported(tmp_path / "s.pt2", module=Shapes()))
    with open_archive(tmp_path / "m.pt") as archive:
        assert isinstance(archive.fp, io.BufferedReader)


def test_sniffing_needs_neither_numpy_nor_torch() -> None:
    program = "import sys, onnxaudit.archives; assert not {'numpy', 'torch'} & set(sys.modules)"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (run.returncode, run.stderr) == (0, "")
