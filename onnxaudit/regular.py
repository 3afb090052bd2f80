"""Opening files whose names came from others: a pipe would keep its reader waiting for ever, a device would fill all memory."""

from __future__ import annotations

import errno
import os
import stat
from io import BufferedReader
from pathlib import Path

from onnxaudit.errors import ArtefactError

_FLAGS = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)
"""Without waiting for whoever might write to a pipe."""


def open_regular(path: Path) -> BufferedReader:
    """An ordinary file, open for reading, links followed. Raises ArtefactError for pipes, devices and sockets; OSError."""
    _check(path, path.stat().st_mode)  # to open some devices is to use them
    descriptor = os.open(path, _FLAGS)
    try:
        _check(path, os.fstat(descriptor).st_mode)  # it may be another by now
        return open(descriptor, "rb")  # noqa: PTH123 - a descriptor is no path
    except BaseException:
        os.close(descriptor)
        raise


def _check(path: Path, mode: int) -> None:
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(mode):
        raise ArtefactError(f"{path.name} is a pipe or a device, not a file", "Give a file.")
