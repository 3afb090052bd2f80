"""Files under names that others may have taken: reading only what is a file, and putting a whole file in another's place.

A pipe would keep its reader waiting for ever, a device would fill all memory, and a link would have another file written over.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import threading
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


def write_in_one_step(path: Path, data: bytes) -> None:
    """Put a file with this content in the place: whoever looks there sees the old one or the new one, whole. Raises OSError.

    It is written first under a name of this thread's own, in a file that is made for it: what has that name is not written over.
    """
    new = path.with_name(f"{path.name}.{os.getpid()}-{threading.get_native_id()}.tmp")
    new.unlink(missing_ok=True)
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
    try:
        with open(descriptor, "wb") as file:  # noqa: PTH123 - a descriptor is no path
            file.write(data)
        os.replace(new, path)  # noqa: PTH105 - the atomic one
    except BaseException:
        with contextlib.suppress(OSError):
            new.unlink()
        raise


def _check(path: Path, mode: int) -> None:
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(mode):
        raise ArtefactError(f"{path.name} is a pipe or a device, not a file", "Give a file.")
