"""What of the processor INT8 arithmetic depends on: with other instructions the same file answers a little otherwise."""

from __future__ import annotations

import platform
import subprocess
import sys
from functools import cache
from pathlib import Path

EXACT = ("avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm", "FEAT_DotProd", "FEAT_I8MM")
"""Instructions that sum products of 8-bit numbers exactly, in the words of Linux and macOS. Without them sums of two products
are cut off at 16 bits."""
TELLING = ("avx2", "avx_vnni", "avx512f", "avx512_vnni", "amx_int8", "asimddp", "i8mm", "FEAT_DotProd", "FEAT_I8MM")
"""Instructions that ONNX Runtime multiplies 8-bit integers with, in the order in which they are told."""
CPUINFO = Path("/proc/cpuinfo")
_SYSCTL = ("/usr/sbin/sysctl", "hw.optional.arm")


def instructions(source: Path = CPUINFO) -> frozenset[str]:
    """What the processor can do, in the system's own words; empty where the system does not say."""
    try:
        lines = source.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return _of_macos() if sys.platform == "darwin" else frozenset()
    said = next((line.partition(":")[2] for line in lines if line.lower().startswith(("flags", "features"))), "")
    return frozenset(said.split())


def _of_macos() -> frozenset[str]:
    try:
        said = subprocess.run(_SYSCTL, capture_output=True, text=True, check=False, timeout=5).stdout
    except (OSError, subprocess.SubprocessError):
        return frozenset()
    return frozenset(line.split(":")[0].rpartition(".")[2] for line in said.splitlines() if line.endswith(": 1"))


@cache
def int8_instructions(source: Path = CPUINFO) -> str:
    """The machine and its telling instructions, as "x86_64 avx2 avx512_vnni"; the machine alone where they are not told."""
    known = instructions(source)
    return " ".join([platform.machine(), *(name for name in TELLING if name in known)])
