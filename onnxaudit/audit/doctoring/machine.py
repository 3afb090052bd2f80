"""The machine: processor, memory, and where it may be written."""

from __future__ import annotations

import os
import platform
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from onnxaudit.audit.doctoring.signs import Sign
from onnxaudit.processor import EXACT, instructions

LITTLE_MEMORY = 2 * 2**30
LITTLE_DISK = 2**30
_CGROUP = Path("/sys/fs/cgroup")


def machine() -> Iterator[Sign]:
    """System, processor, cores and memory."""
    yield Sign("machine", "system", "ok", f"{platform.system()} {platform.release()}, {platform.machine()}")
    total = os.cpu_count() or 1
    usable = cores()
    yield Sign("machine", "cores", "ok", f"{usable:g}" if usable == total else f"{usable:g} of {total} may be used")
    memory = memory_bytes()
    if memory is not None:
        words = f"{memory / 2**30:.1f} GiB free"
        few = memory < LITTLE_MEMORY
        advice = "Large models may not fit; give --batch or a smaller suspect." if few else ""
        yield Sign("machine", "memory", "warning" if few else "ok", words, advice)
    yield int8(instructions())


def int8(flags: frozenset[str]) -> Sign:
    """Whether INT8 models answer here as they do on newer processors."""
    found = [flag for flag in EXACT if flag in flags]
    if found:
        return Sign("machine", "INT8", "ok", f"exact 8-bit sums ({', '.join(found)})")
    if not flags:
        return Sign("machine", "INT8", "ok", "this system does not say what its processor can do")
    advice = "Compare INT8 suspects on a processor with VNNI if their finding is close."
    return Sign("machine", "INT8", "warning", "no VNNI: 8-bit sums may saturate, INT8 answers may differ a little", advice)


def writing(folder: Path) -> Iterator[Sign]:
    """Whether transcripts and reports can be written to the current folder, and fetched models to the temporary one."""
    for name, place in (("current folder", folder), ("temporary folder", Path(tempfile.gettempdir()))):
        problem = _cannot_write(place)
        free = shutil.disk_usage(place).free if not problem else 0
        if problem:
            advice = "Run from a folder of your own, or give -o and --evidence elsewhere."
            advice = advice if place == folder else "Set TMPDIR to a folder that can be written."
            yield Sign("writing", name, "warning", f"{place}: {problem}", advice)
        elif free < LITTLE_DISK:
            yield Sign("writing", name, "warning", f"{place}: {free / 2**20:.0f} MiB free", "Make room.")
        else:
            yield Sign("writing", name, "ok", f"{place}, {free / 2**30:.0f} GiB free")


def cores() -> float:
    """Cores that this process may use: by its affinity, and by its container's quota."""
    found = float(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    quota, _, period = _text(_CGROUP / "cpu.max").partition(" ")
    if quota.isdecimal() and period.strip().isdecimal() and int(period) > 0:
        found = min(found, round(int(quota) / int(period), 1))
    return found


def memory_bytes() -> int | None:
    """Bytes of memory that this process may still use, or all there are where only that is known; None if nothing is."""
    for line in _text(Path("/proc/meminfo")).splitlines():
        if line.startswith("MemAvailable:"):
            found = int(line.split()[1]) * 1024
            break
    else:
        try:
            found = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        except (AttributeError, ValueError, OSError):  # Windows
            return None
    limit, used = _text(_CGROUP / "memory.max").strip(), _text(_CGROUP / "memory.current").strip()
    if limit.isdecimal() and used.isdecimal():
        found = min(found, max(0, int(limit) - int(used)))
    return found


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _cannot_write(folder: Path) -> str:
    """Why nothing can be written there; "" if it can. Permissions alone do not tell: disks are full or read-only."""
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"onnxaudit")
    except OSError as error:
        return error.strerror or str(error)
    return ""
