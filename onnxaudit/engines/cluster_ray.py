"""Ray: an existing cluster by its address, or one on this machine."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
import uuid
from types import TracebackType
from typing import Any, Self

import ray
from ray.exceptions import LocalRayletDiedError, NodeDiedError, OutOfMemoryError, RayError, RayTaskError, WorkerCrashedError

from onnxaudit.engines import ONE_THREAD, Lost, Work
from onnxaudit.errors import UsageError

RETRIES = 2
"""So many more workers may die of an item before it is given up."""
_FRESH = 10.0
"""Seconds for which the number of cores is taken as known: clusters grow and shrink."""


def open_engine(function: Work, shared: Any, *, jobs: int | None, address: str | None) -> RayEngine:
    """Connect to a cluster, or start one here. Raises UsageError if nothing answers."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nobody is told of an audit
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    main = threading.current_thread() is threading.main_thread()
    on_term = signal.getsignal(signal.SIGTERM) if main else None
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.CRITICAL, "ignore_reinit_error": True}
    environment = {"env_vars": dict(ONE_THREAD)}
    owned = not ray.is_initialized()
    try:
        if address is None:
            ray.init("local", num_cpus=jobs, include_dashboard=False, runtime_env=environment, **quiet)
        else:
            ray.init(address, runtime_env=environment, **quiet)
    except (ConnectionError, RuntimeError, ValueError, RayError) as error:
        reason = str(error).splitlines()[0][:120]
        raise UsageError(
            f"no Ray cluster answers at {address or 'this machine'}: {reason}", "Start one: ray start --head"
        ) from None
    if main and on_term is not None:
        signal.signal(signal.SIGTERM, on_term)  # Ray puts its own in place, which would end with another exit code
    return RayEngine(function, shared, owned)


class RayEngine:
    """A Ray worker runs one task at a time, so that whoever dies of one does not harm another; Ray itself tries again."""

    def __init__(self, function: Work, shared: Any, owned: bool) -> None:
        self._owned = owned
        self._name = uuid.uuid4().hex
        self._shared = ray.put((function, shared))
        self._call = ray.remote(num_cpus=1, max_retries=RETRIES)(_call)
        self._active: dict[Any, int] = {}
        self._slots, self._asked = 1, -_FRESH

    @property
    def slots(self) -> int:
        """Cores of the cluster."""
        if time.monotonic() - self._asked > _FRESH:
            self._slots = max(1, int(ray.cluster_resources().get("CPU", 1)))
            self._asked = time.monotonic()
        return self._slots

    def submit(self, ticket: int, item: Any) -> None:
        """As the protocol."""
        # in a list, a reference is passed on as it is: a worker fetches what is shared once, not with every item
        self._active[self._call.remote(self._name, [self._shared], item)] = ticket

    def wait(self) -> tuple[int, Any]:
        """As the protocol."""
        (done,), _ = ray.wait(list(self._active), num_returns=1)
        ticket = self._active.pop(done)
        try:
            return ticket, ray.get(done)
        except RayTaskError as error:
            raise error.cause from error
        except (WorkerCrashedError, NodeDiedError, OutOfMemoryError) as error:
            kind = "ran out of memory" if isinstance(error, OutOfMemoryError) else "died"
            return ticket, Lost(f"every worker that took it {kind} ({RETRIES + 1} tries)")
        except LocalRayletDiedError:
            raise UsageError("Ray on this machine went away", "What is done is kept; go on with the same command.") from None

    def __enter__(self) -> Self:
        """The engine itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Give up what runs; leave the cluster, and stop one that was started here."""
        for task in self._active:
            ray.cancel(task, force=True)
        self._active.clear()
        del self._shared
        if self._owned:
            ray.shutdown()


_STATE: dict[str, Any] = {}
"""In a worker: the function and what is shared, by the engine that they belong to."""


def _call(name: str, shared: list[Any], item: Any) -> Any:
    if name not in _STATE:
        _STATE.clear()
        _STATE[name] = ray.get(shared[0])
    function, value = _STATE[name]
    return function(value, item)
