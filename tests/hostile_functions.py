"""Suspects that mean harm, for the sandbox: copied into a folder of their own, and named as ``hostile:NAME``."""

from __future__ import annotations

import ctypes
import json
import mmap
import os
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
}
