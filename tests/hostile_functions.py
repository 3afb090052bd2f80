"""Suspects that mean harm, for the sandbox: copied into a folder of their own, and named as ``hostile:NAME``."""

from __future__ import annotations

import ctypes
import fcntl
import json
import mmap
import os
import platform
import resource
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

CLASSES = 5


def harmless(batch: NDArray[Any]) -> NDArray[np.float32]:
    """Scores by class that depend on every pixel; prints, as runtimes do."""
    print("not a message")
    os.write(1, b"\xff\xff\xff\xff")
    weights = np.random.default_rng(5).normal(size=(batch[0].size, CLASSES))
    return (batch.reshape(len(batch), -1) @ weights).astype(np.float32)


def segfault(batch: NDArray[Any]) -> object:
    """Read address 0."""
    return ctypes.string_at(0)


def hang(batch: NDArray[Any]) -> object:
    """Never answer."""
    time.sleep(3600)
    return None


def spin(batch: NDArray[Any]) -> object:
    """Never answer, and compute."""
    while True:
        pass


def leave(batch: NDArray[Any]) -> object:
    """End with the exit code of a finding."""
    os._exit(10)


def hoard(batch: NDArray[Any]) -> object:
    """Take 3 GiB."""
    return bytearray(3 << 30)


def share(batch: NDArray[Any]) -> object:
    """Take 3 GiB of the kind that RLIMIT_DATA does not count."""
    area = mmap.mmap(-1, 3 << 30)
    for place in range(0, len(area), mmap.PAGESIZE):
        area[place] = 1
    return area


def attempts(batch: NDArray[Any]) -> object:
    """Try to get out, and fail with the names of the attempts that worked; ``plan.json`` beside says where to try."""
    plan = json.loads(Path("plan.json").read_text(encoding="utf-8"))
    raise RuntimeError("worked: " + " ".join(name for name in ATTEMPTS if _worked(name, plan)))


def _worked(name: str, plan: dict[str, Any]) -> bool:
    try:
        return ATTEMPTS[name](plan) is not False
    except (OSError, subprocess.SubprocessError, ValueError):
        return False


def _connect(plan: dict[str, Any]) -> None:
    socket.create_connection(("127.0.0.1", plan["port"]), timeout=2).close()


def _datagram(plan: dict[str, Any]) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.sendto(b"x", ("127.0.0.1", plan["port"]))


def _fork(plan: dict[str, Any]) -> None:
    child = os.fork()
    if not child:
        os._exit(0)
    os.waitpid(child, 0)


def _more_memory(plan: dict[str, Any]) -> bool:
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    if hard == resource.RLIM_INFINITY:
        return True
    resource.setrlimit(resource.RLIMIT_DATA, (hard + 1, hard + 1))
    return True


def _core(plan: dict[str, Any]) -> bool:
    return resource.getrlimit(resource.RLIMIT_CORE)[1] != 0


def _run(plan: dict[str, Any]) -> None:
    subprocess.run([sys.executable, "-c", ""], check=True, timeout=20)


def _list(plan: dict[str, Any]) -> list[Path]:
    return list(Path(plan["secret"]).parent.iterdir())


def _write(plan: dict[str, Any]) -> None:
    Path("made").write_bytes(b"x")


def _write_elsewhere(plan: dict[str, Any]) -> None:
    Path(plan["secret"]).with_name("made").write_bytes(b"x")


def _remove(plan: dict[str, Any]) -> None:
    Path("spare").unlink()


def _environment(plan: dict[str, Any]) -> bool:
    return os.environ.get("HOSTILE_TEST_TOKEN") is not None


def _limits_of_another(plan: dict[str, Any]) -> None:
    parent = plan["parent"]
    resource.prlimit(parent, resource.RLIMIT_CORE, resource.prlimit(parent, resource.RLIMIT_CORE))


def _scheduler_of_another(plan: dict[str, Any]) -> None:
    parent = plan["parent"]
    os.sched_setscheduler(parent, os.sched_getscheduler(parent), os.sched_getparam(parent))


def _call(numbers: tuple[int, int], *arguments: int | bytes) -> int:
    """A system call by its number on x86_64 and aarch64. Raises OSError if it fails."""
    number = numbers[platform.machine() == "aarch64"]
    words = (ctypes.c_long(word) if isinstance(word, int) else word for word in arguments)
    result = int(ctypes.CDLL(None, use_errno=True).syscall(ctypes.c_long(number), *words))
    if result < 0:
        raise OSError(ctypes.get_errno(), "refused")
    return result


def _shared_segment(plan: dict[str, Any]) -> None:
    made = _call((29, 194), 0, 4096, 0o600)
    _call((31, 195), made, 0, 0)  # IPC_RMID


def _signal_by_pipe(plan: dict[str, Any]) -> None:
    ours, other = os.pipe()
    try:
        fcntl.fcntl(ours, fcntl.F_SETOWN, plan["parent"])
    finally:
        os.close(ours)
        os.close(other)


ATTEMPTS: dict[str, Callable[[dict[str, Any]], object]] = {
    "connect": _connect,
    "datagram": _datagram,
    "fork": _fork,
    "run": _run,
    "signal": lambda plan: os.kill(plan["parent"], 0),
    "read": lambda plan: Path(plan["secret"]).read_bytes(),
    "list": _list,
    "write": _write,
    "write-elsewhere": _write_elsewhere,
    "remove": _remove,
    "environment": _environment,
    "memory": _more_memory,
    "core": _core,
    "limits": _limits_of_another,
    "priority": lambda plan: os.setpriority(os.PRIO_PROCESS, plan["parent"], os.getpriority(os.PRIO_PROCESS, plan["parent"])),
    "affinity": lambda plan: os.sched_setaffinity(plan["parent"], os.sched_getaffinity(plan["parent"])),
    "scheduler": _scheduler_of_another,
    "ioprio": lambda plan: _call((251, 30), 1, plan["parent"], 4 | 2 << 13),  # of a process: the usual one
    "chmod": lambda plan: Path(plan["secret"]).chmod(0o640),
    "times": lambda plan: os.utime(plan["secret"], (0, 0)),
    "owner": lambda plan: os.chown(plan["secret"], os.getuid(), os.getgid()),
    "xattr": lambda plan: os.setxattr(plan["secret"], "user.onnxaudit", b"x"),
    "truncate": lambda plan: os.truncate(plan["secret"], 2),
    "shm": _shared_segment,
    "setown": _signal_by_pipe,
}
