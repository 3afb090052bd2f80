"""A confined process as its parent sees it: started, spoken with, watched and ended; its death is a SuspectError."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from onnxaudit.errors import SuspectError
from onnxaudit.sandbox.frames import MAX_BYTES, FrameError, read, write
from onnxaudit.sandbox.limits import Limits

_WATCH = 0.05
"""Seconds between looks at a process that is being waited for."""
_KEPT = (
    *("PATH", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "SYSTEMROOT", "LD_LIBRARY_PATH", "MALLOC_ARENA_MAX"),
    *("CUDA_VISIBLE_DEVICES", "CUBLAS_WORKSPACE_CONFIG", "NVIDIA_TF32_OVERRIDE"),
)
_KEPT_PREFIXES = ("OMP_", "GOMP_", "KMP_", "MKL_", "OPENBLAS_", "ONEDNN_", "DNNL_", "ATEN_", "ORT_")
"""What decides how a runtime computes: with other instructions or threads scores are a little different."""
_LIMITS_HINT = "It may be hostile, or large: raise a limit with --sandbox-limits, as memory=16,cpu=3600,wall=600."


class Confined:
    """One child process. applied, lacking: what it said of its confinement before it saw anything of the suspect.

    readable, devices: as of ``confine``; here: as of ``packages``.
    """

    def __init__(self, shown: str, limits: Limits, readable: Sequence[str], devices: Sequence[str], here: bool) -> None:
        self._shown = shown
        self._limits = limits
        self._left = float(limits.wall)
        self._cause = ""
        settings = json.dumps({"limits": asdict(limits), "readable": list(readable), "devices": list(devices)})
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "onnxaudit.sandbox.child", settings],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment(here),
            start_new_session=True,  # Ctrl-C is for this process, which ends the other
        )
        try:
            head, _ = self.receive(0)
            self.applied, self.lacking = ([str(words) for words in head[name]] for name in ("applied", "lacking"))
        except (KeyError, TypeError):
            self.end()
            raise SuspectError("the sandbox could not be started", "Check that this Python can run onnxaudit.") from None
        except BaseException:
            self.end()
            raise

    def exchange(
        self, head: dict[str, Any], arrays: Sequence[NDArray[Any]] = (), most: int = MAX_BYTES
    ) -> tuple[dict[str, Any], list[NDArray[Any]]]:
        """Send a message and wait for its answer. Raises SuspectError if the process crashes, hangs or says nonsense."""
        with self._watched(), contextlib.suppress(BrokenPipeError):
            assert self._process.stdin is not None
            try:
                write(self._process.stdin, head, arrays)
            except (FrameError, ValueError):
                raise SuspectError(f"{self._shown} was not asked: the queries are too large for the sandbox") from None
        return self.receive(most)

    def receive(self, most: int) -> tuple[dict[str, Any], list[NDArray[Any]]]:
        """The next message, of arrays with at most ``most`` bytes."""
        assert self._process.stdout is not None
        try:
            with self._watched():
                return read(self._process.stdout, most)
        except (EOFError, OSError):
            raise self._died() from None
        except FrameError as error:
            self.end()
            raise SuspectError(f"the runtime of {self._shown} sent nonsense from the sandbox: {error}") from None

    @contextlib.contextmanager
    def _watched(self) -> Any:
        """While this process waits, another thread ends the child if it takes too long, or too much."""
        done = threading.Event()
        started = time.monotonic()
        watcher = threading.Thread(target=self._watch, args=(done, started + self._left), daemon=True)
        watcher.start()
        try:
            yield
        finally:
            done.set()
            watcher.join()
            self._left -= time.monotonic() - started

    def _watch(self, done: threading.Event, until: float) -> None:
        while not done.wait(min(_WATCH, max(0.0, until - time.monotonic()))):
            if time.monotonic() >= until:
                self._cause = f"did not answer within the {self._limits.wall} s that it may take in all"
            elif resident(self._process.pid) > self._limits.bytes:
                self._cause = f"took more than {self._limits.memory} GiB of memory"
            else:
                continue
            self._process.kill()
            return

    def _died(self) -> SuspectError:
        """What ended the process, in words."""
        self.end()
        code, cause = self._process.returncode, self._cause
        if not cause and os.name == "posix" and code == -signal.SIGXCPU:
            cause = f"took more than {self._limits.cpu} s of CPU time"
        if cause:
            return SuspectError(f"the runtime of {self._shown} {cause}, and was ended", _LIMITS_HINT)
        if code < 0:
            name = signal.Signals(-code).name if -code in signal.Signals.__members__.values() else f"signal {-code}"
            return SuspectError(f"the runtime crashed on {self._shown} ({name}), in the sandbox", "Nothing was found out.")
        return SuspectError(f"the runtime ended itself on {self._shown} (exit {code}), in the sandbox", "Nothing was found out.")

    def end(self) -> None:
        """End the process, however it is."""
        if self._process.poll() is None:
            # at the end of its output it is about to die of what it did; that is what is to be reported
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(0 if self._cause else 1)
            self._process.kill()
        self.close()

    def close(self) -> None:
        """Let the process go: it has nothing to put in order."""
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()


def environment(here: bool) -> dict[str, str]:
    """The variables that a runtime needs; all others, which may be secret, stay here. here: as of ``packages``."""
    kept = {name: value for name, value in os.environ.items() if name in _KEPT or name.startswith(_KEPT_PREFIXES)}
    return {"MALLOC_ARENA_MAX": "4", **kept, "PYTHONPATH": os.pathsep.join(packages(here))}


def packages(here: bool) -> list[str]:
    """Where this process finds packages, so that the confined one finds the same.

    here: also in the current folder, where a Python function is looked for. ``python -m`` puts it on the path in full; for other
    suspects it is left out, unless onnxaudit itself lies there, for it may hold anything.
    """
    left = set() if here else {Path.cwd()} - {Path(__file__).resolve().parents[2]}
    return [path for path in sys.path if Path(path).is_absolute() and Path(path).resolve() not in left]


def resident(process: int) -> int:
    """Bytes of memory that a process has at the moment; 0 where that cannot be known."""
    try:
        pages = Path(f"/proc/{process}/statm").read_text(encoding="ascii").split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError, ValueError):
        return 0
