"""One process at a time on one output."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from onnxaudit.errors import UsageError


@contextlib.contextmanager
def alone(path: Path) -> Iterator[None]:
    """Have an output for oneself, however this process ends. path: of a file that says so, removed afterwards.

    Raises UsageError if another process has it, or the file cannot be made. A network file system may not tell machines apart.
    """
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror}", "Choose another output.") from None
    try:
        # another process may have removed the file between opening and locking: then this lock is on nothing
        if not locked(descriptor) or not path.exists() or path.stat().st_ino != os.fstat(descriptor).st_ino:
            raise UsageError(f"another process is at work on this output ({path})", "Wait for it, or give another output.")
        try:
            yield
        finally:
            with contextlib.suppress(OSError):  # Windows does not remove what is open
                path.unlink()
    finally:
        os.close(descriptor)


if sys.platform == "win32":
    import msvcrt

    def locked(descriptor: int) -> bool:
        """Whether the file is this process's alone from now on, until it is closed."""
        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True

else:
    import fcntl

    def locked(descriptor: int) -> bool:
        """Whether the file is this process's alone from now on, until it is closed."""
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:  # some network file systems have no locks: then nothing is known, and nothing is refused
            return True
        return True
