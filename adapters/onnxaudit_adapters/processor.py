"""What of the processor INT8 arithmetic depends on: with other instructions the same file answers a little otherwise."""

from __future__ import annotations

import platform
from functools import cache
from pathlib import Path

TELLING = ("avx2", "avx_vnni", "avx512f", "avx512_vnni", "amx_int8", "asimddp", "i8mm")
"""Instructions that ONNX Runtime multiplies 8-bit integers with, in the words of Linux. Without VNNI, sums of two products are
cut off at 16 bits."""
CPUINFO = Path("/proc/cpuinfo")


@cache
def int8_instructions(source: Path = CPUINFO) -> str:
    """The machine and its telling instructions, as "x86_64 avx2 avx512_vnni"; the machine alone where they are not told."""
    try:
        lines = source.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    said = next((line.partition(":")[2] for line in lines if line.lower().startswith(("flags", "features"))), "")
    known = set(said.split())
    return " ".join([platform.machine(), *(name for name in TELLING if name in known)])
