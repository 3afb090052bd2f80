"""Worker processes on this machine."""

from __future__ import annotations

import os
import queue
import signal
import threading
import time
import warnings
from collections import deque
from concurrent.futures import BrokenExecutor, Future
from functools import partial
from types import TracebackType
from typing import Any, Self

from joblib.externals.loky import ProcessPoolExecutor, cpu_count

from onnxaudit.engines import ONE_THREAD, Lost, Work

TRIES = 3
"""So many workers may die of an item before it is given up."""
_ORPHANED = 1.0
"""Seconds between looks whether the process that started a worker is still there."""


def open_engine(function: Work, shared: Any, *, jobs: int | None, address: str | None) -> LocalEngine:
    """One process a core, unless told otherwise."""
    # loky recycles a worker whose memory grew, and says so to nobody who could do anything about it
    warnings.filterwarnings("ignore", message="A worker stopped while some jobs were given to the executor")
    return LocalEngine(function, shared, jobs or cpu_count())


class LocalEngine:
    """One loky executor of a single process for each slot.

    When a process dies, its executor breaks, and nothing but the one item that it ran is to blame; the others go on undisturbed.
    """

    def __init__(self, function: Work, shared: Any, jobs: int) -> None:
        self.slots = jobs
        self._begun = (function, shared)
        self._pools: list[ProcessPoolExecutor | None] = [None] * jobs
        self._idle = list(range(jobs))
        self._waiting: deque[tuple[int, Any]] = deque()
        self._deaths: dict[int, int] = {}
        self._done: queue.SimpleQueue[tuple[int, int, Any, Future[Any]]] = queue.SimpleQueue()
        self._lock = threading.RLock()

    def submit(self, ticket: int, item: Any) -> None:
        """As the protocol."""
        with self._lock:
            self._waiting.append((ticket, item))
            self._feed()

    def wait(self) -> tuple[int, Any]:
        """As the protocol."""
        while True:
            slot, ticket, item, future = self._done.get()
            if not isinstance(future.exception(), BrokenExecutor):
                self._deaths.pop(ticket, None)
                return ticket, future.result()
            died = self._deaths[ticket] = self._deaths.get(ticket, 0) + 1
            with self._lock:
                self._retire(slot)
                if died < TRIES:
                    self._waiting.append((ticket, item))
                self._feed()
            if died >= TRIES:
                del self._deaths[ticket]
                return ticket, Lost(f"it ended {died} worker processes (out of memory, or a crash of the runtime)")

    def _feed(self) -> None:
        while self._idle and self._waiting:
            slot = self._idle.pop()
            ticket, item = self._waiting.popleft()
            try:
                future = self._pool(slot).submit(_call, item)
            except BrokenExecutor:  # it died while it had nothing to do
                self._pools[slot] = None
                future = self._pool(slot).submit(_call, item)
            future.add_done_callback(partial(self._finished, slot, ticket, item))

    def _finished(self, slot: int, ticket: int, item: Any, future: Future[Any]) -> None:
        """Runs in the executor's own thread: the next item is handed on at once, before anybody looks at the result."""
        if not isinstance(future.exception(), BrokenExecutor):
            with self._lock:
                self._idle.append(slot)
                self._feed()
        self._done.put((slot, ticket, item, future))

    def _pool(self, slot: int) -> ProcessPoolExecutor:
        pool = self._pools[slot]
        if pool is None:
            pool = ProcessPoolExecutor(1, initializer=_begin, initargs=(os.getpid(), *self._begun), env=dict(ONE_THREAD))
            self._pools[slot] = pool
        return pool

    def _retire(self, slot: int) -> None:
        pool, self._pools[slot] = self._pools[slot], None
        if pool is not None:
            pool.shutdown(wait=False)
        self._idle.append(slot)

    def __enter__(self) -> Self:
        """The engine itself; processes start with the first items."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Kill the processes."""
        with self._lock:
            self._waiting.clear()
            self._idle.clear()
        for pool in filter(None, self._pools):
            # loky's own way, kill_workers, fails in its thread when an item was handed in a moment ago
            for process in list((pool._processes or {}).values()):
                process.terminate()
            pool.shutdown(wait=True)


_STATE: list[Any] = []
"""In a worker: the function and what is shared."""


def _begin(parent: int, function: Work, shared: Any) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all of a terminal's processes; the first ends the others
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    _STATE[:] = [function, shared]


def _end_with(parent: int) -> None:
    """A worker must not outlive the process that started it, however that died."""
    while os.getppid() == parent:
        time.sleep(_ORPHANED)
    os._exit(1)


def _call(item: Any) -> Any:
    function, shared = _STATE
    return function(shared, item)
