"""A Dask cluster: an existing one by the address of its scheduler, or one on this machine."""

from __future__ import annotations

import logging
import queue
import signal
import threading
import time
import uuid
from collections import deque
from concurrent.futures import CancelledError
from contextlib import suppress
from types import TracebackType
from typing import Any, Self

import dask
from distributed import Client, Future, KilledWorker, LocalCluster, WorkerPlugin, get_worker
from distributed.comm.addressing import resolve_address

from onnxaudit.engines import Lost, Work
from onnxaudit.errors import UsageError

PATIENCE = 30
"""Seconds to wait for a scheduler."""
_LOOK = 5.0
"""Seconds without news after which a look is taken whether there are workers."""
_FRESH = 10.0
"""Seconds for which the number of workers is taken as known: those of a batch system come and go."""


def open_engine(function: Work, shared: Any, *, jobs: int | None, address: str | None) -> DaskEngine:
    """Connect to a scheduler, or start a cluster of single-threaded processes here. Raises UsageError if nothing answers."""
    _hush()
    cluster = None if address is not None else _local(jobs)
    try:
        if address is not None:
            resolve_address(address)  # before a client, whose threads outlive an address that it cannot read
        client = Client(cluster or address, timeout=PATIENCE, set_as_default=False)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0][:120]
        raise UsageError(f"no Dask scheduler answers at {address}: {reason}", "Start one with: dask scheduler") from None
    _hush()  # once more: starting sets levels
    return DaskEngine(function, shared, client, cluster)


def _hush() -> None:
    """Dask reports each lost worker in pages; the result says it in a line. Its configuration gives each logger a level."""
    for name in ("distributed", *logging.root.manager.loggerDict):
        if name.split(".")[0] in ("distributed", "tornado"):
            logging.getLogger(name).setLevel(logging.CRITICAL)


def _local(jobs: int | None) -> LocalCluster:
    """A cluster of this machine; its configuration sets one thread for the linear algebra of each worker by itself."""
    main = threading.current_thread() is threading.main_thread()
    # what is started now leaves Ctrl-C, which reaches all of a terminal's processes, to the one that started it
    before = signal.signal(signal.SIGINT, signal.SIG_IGN) if main else None
    try:
        with dask.config.set({"distributed.scheduler.allowed-failures": 1}):
            return LocalCluster(
                n_workers=jobs, threads_per_worker=1, processes=True, dashboard_address=":0", silence_logs=logging.CRITICAL
            )
    finally:
        if main:
            signal.signal(signal.SIGINT, before)


class _Shared(WorkerPlugin):
    """Carries the function and what is shared to every worker once, also to those that join later or replace one that died."""

    def __init__(self, name: str, function: Work, shared: Any, *, quiet: bool) -> None:
        self.name = name
        self.state = (function, shared)
        self._quiet = quiet

    def setup(self, worker: object) -> None:  # noqa: ARG002
        """In the worker: one of ours need not tell the terminal that its work was given up."""
        if self._quiet:
            _hush()


def _call(name: str, item: Any) -> Any:
    plugin: Any = get_worker().plugins[name]
    function, shared = plugin.state
    return function(shared, item)


class DaskEngine:
    """Dask runs again what a worker that died had taken, and gives a piece up that was there too often (KilledWorker).

    That counts what waited on the worker as well as what ran. So what is given up is tried once more with nothing of ours beside
    it, and is lost only if it kills its workers then.
    """

    def __init__(self, function: Work, shared: Any, client: Client, cluster: LocalCluster | None) -> None:
        self._client = client
        self._cluster = cluster
        self._jobs = len(cluster.workers) if cluster is not None else 0
        self._name = f"onnxaudit-{uuid.uuid4().hex}"
        self._active: dict[Any, tuple[int, Any, Future[Any]]] = {}
        self._blamed: deque[tuple[int, Any]] = deque()
        self._held: deque[tuple[int, Any]] = deque()
        self._alone = False
        self._count = 0
        self._done: queue.SimpleQueue[Future[Any]] = queue.SimpleQueue()
        self._slots, self._asked = 1, -_FRESH
        client.register_plugin(_Shared(self._name, function, shared, quiet=cluster is not None))

    @property
    def slots(self) -> int:
        """Threads of all workers; at least one, where they are still to come."""
        if time.monotonic() - self._asked > _FRESH:
            self._slots = max(1, sum(self._client.nthreads().values()))
            self._asked = time.monotonic()
        return self._slots

    def submit(self, ticket: int, item: Any) -> None:
        """As the protocol; held back while a piece is tried alone, or too many want to be."""
        if self._alone or len(self._blamed) >= self.slots:
            self._held.append((ticket, item))
        else:
            self._start(ticket, item)

    def wait(self) -> tuple[int, Any]:
        """As the protocol."""
        while True:
            if not self._active:
                self._next()
            try:
                future = self._done.get(timeout=_LOOK)
            except queue.Empty:
                self._revive()
                continue
            outcome = self._outcome(future)
            if outcome is not None:
                return outcome

    def _outcome(self, future: Future[Any]) -> tuple[int, Any] | None:
        """Ticket and result; None where there is none yet after all."""
        ticket, item, _ = self._active.pop(future.key)
        alone, self._alone = self._alone, False
        try:
            return ticket, future.result(timeout=_LOOK)
        except TimeoutError:
            if future.status != "error":  # else it is the function's own
                self._active[future.key], self._alone = (ticket, item, future), alone
                future.add_done_callback(self._done.put)
                self._revive()  # the worker died that kept the result, which is made again
                return None
            raise
        except CancelledError:
            raise UsageError("the Dask scheduler went away", "What is done is kept; go on with the same command.") from None
        except KilledWorker as error:
            if alone:
                last = getattr(error.last_worker, "address", "unknown")
                return ticket, Lost(f"every worker that took it died (last: {last})")
            self._blamed.append((ticket, item))
            return None

    def _revive(self) -> None:
        """A local cluster gives a worker up that dies while it starts."""
        if self._cluster is not None and len(self._client.nthreads()) < self._jobs:
            self._cluster.scale(self._jobs)

    def _next(self) -> None:
        """Nothing of ours runs: try what was blamed, one by one; then go on."""
        if self._blamed:
            self._alone = True
            self._start(*self._blamed.popleft())
            return
        while self._held:
            self._start(*self._held.popleft())

    def _start(self, ticket: int, item: Any) -> None:
        self._count += 1
        key = f"{self._name}-{self._count}"
        future = self._client.submit(_call, self._name, item, key=key, pure=False)
        self._active[key] = (ticket, item, future)
        future.add_done_callback(self._done.put)

    def __enter__(self) -> Self:
        """The engine itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Give up what runs, take what was shared from the workers, and stop those that it started."""
        with suppress(Exception):  # the cluster may be gone, which is no reason to hide what happened
            self._client.cancel([future for _, _, future in self._active.values()], force=True)
            if self._cluster is None:
                self._client.unregister_worker_plugin(self._name)
        self._client.close()
        if self._cluster is not None:
            self._cluster.close()
