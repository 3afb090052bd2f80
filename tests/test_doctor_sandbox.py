"""What doctor says of the sandbox: that of this machine, and that of a kernel that keeps nothing from anybody."""

from __future__ import annotations

import ctypes
import json
import platform
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from onnxaudit.sandbox.confine import landlock_abi
from onnxaudit.sandbox.trying import WALLS, try_out

linux = pytest.mark.skipif(sys.platform != "linux", reason="no other kernel has these walls")


def _signs(folder: Path, **options: Any) -> dict[str, dict[str, str]]:
    command = [sys.executable, "-m", "onnxaudit", "doctor", "--json"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True, timeout=120, **options)
    return {sign["name"]: sign for sign in json.loads(done.stdout)["signs"] if sign["part"] == "sandbox"}


@linux
def test_what_is_said_is_what_was_tried(tmp_path: Path) -> None:
    """Whatever this kernel allows, doctor, the trial and what a report would say agree."""
    trial, found = try_out(), _signs(tmp_path)
    assert set(found) == {*WALLS, "CPU time"}
    for name in WALLS:
        assert (found[name]["state"] == "ok") == trial.held[name], found[name]
    assert found["memory"]["state"] == "ok", "every Linux has limits"
    said = " ".join(trial.lacking)
    assert trial.held["reading"] == ("unreadable" not in said)
    assert trial.held["processes"] == ("processes" not in said)
    assert trial.held["network"] or "network" in said
    assert (trial.landlock > 0) == (landlock_abi() > 0)


def _an_older_kernel() -> None:
    """In a new process: Landlock and seccomp are as if they were not there, and no namespace may be made."""
    unshare, seccomp = {"x86_64": (272, 317), "aarch64": (97, 277)}[platform.machine()]
    prctl = {"x86_64": 157, "aarch64": 167}[platform.machine()]

    def step(code: int, value: int, if_so: int = 0, if_not: int = 0) -> bytes:
        return struct.pack("<HBBI", code, if_so, if_not, value)

    refused = 0x00050000 | 38
    steps = [step(0x20, 0)]
    for number in (444, 445, 446, unshare, seccomp):
        steps += [step(0x15, number, 0, 1), step(0x06, refused)]
    steps += [step(0x15, prctl, 0, 3), step(0x20, 16), step(0x15, 22, 0, 1), step(0x06, refused)]  # PR_SET_SECCOMP
    program = b"".join([*steps, step(0x06, 0x7FFF0000)])
    text = ctypes.create_string_buffer(program, len(program))
    described = ctypes.create_string_buffer(struct.pack("@HxxxxxxP", len(program) // 8, ctypes.addressof(text)), 16)
    library = ctypes.CDLL(None, use_errno=True)
    library.prctl(38, 1, 0, 0, 0)
    if library.prctl(22, 2, ctypes.c_void_p(ctypes.addressof(described)), 0, 0):
        raise OSError(ctypes.get_errno(), "no filter")


@linux
@pytest.mark.skipif(platform.machine() not in ("x86_64", "aarch64"), reason="numbers of its calls are not known here")
def test_an_older_kernel_is_told_with_what_it_means(tmp_path: Path) -> None:
    found = _signs(tmp_path, preexec_fn=_an_older_kernel)
    assert {name: sign["state"] for name, sign in found.items()} == {
        **dict.fromkeys(("memory", "writing", "CPU time"), "ok"),
        **dict.fromkeys(("network", "processes", "reading"), "absent"),
    }
    assert "can read what you can read" in found["reading"]["found"]
    assert "Landlock" in found["reading"]["advice"]
    assert "RLIMIT_FSIZE" in found["writing"]["found"]
    assert all(sign["advice"] for sign in found.values() if sign["state"] == "absent")
