"""Where many independent pieces of work run: processes here, a Dask cluster, or Ray. One small seam, the same results."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType, TracebackType
from typing import Any, Protocol, Self, TypeAlias

from onnxaudit.errors import UsageError, missing_extra

Work: TypeAlias = Callable[[Any, Any], Any]
"""``function(shared, item)``: importable by name in the workers; items and results can be pickled."""
ONE_THREAD: Mapping[str, str] = MappingProxyType(
    dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS"), "1")
)
"""The environment of workers of which there is one a core. ONNX Runtime does not read it: it is told by ``threads``, an option
of a Target."""


@dataclass(frozen=True, slots=True)
class Lost:
    """Instead of a result: every worker that took this piece of work died. reason: in words."""

    reason: str


class Engine(Protocol):
    """Runs ``function(shared, item)`` for items somewhere; what a worker that died had taken runs on another.

    An item that keeps killing workers is given up, and no other item with it.
    """

    @property
    def slots(self) -> int:
        """How many items run at once, at present; to hand in about twice as many keeps every worker busy and memory flat."""

    def submit(self, ticket: int, item: Any) -> None:
        """Hand in one item under a number of the caller's, unique among those in flight."""

    def wait(self) -> tuple[int, Any]:
        """Ticket and result of an item that is done, or ``Lost``; in no fixed order. Raises what the function raised."""

    def __enter__(self) -> Self:
        """The engine itself."""

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Stop the workers that it started; what is in flight is given up."""


ENGINES: Mapping[str, str] = MappingProxyType({"local": "local", "dask": "cluster_dask", "ray": "cluster_ray"})


def open_engine(name: str, function: Work, shared: Any, *, jobs: int | None = None, address: str | None = None) -> Engine:
    """An engine for ``function``, which must be importable by name; ``shared`` is sent to every worker once.

    jobs: processes of a local engine or local cluster (default: one a core). address: of an existing cluster (dask: its
    scheduler; ray: its head, or "auto"); None starts a local one. Raises UsageError for an unknown name, a missing package, or
    an address where nothing answers.
    """
    check_engine(name, jobs, address)
    try:
        module = importlib.import_module(f"onnxaudit.engines.{ENGINES[name]}")
    except ModuleNotFoundError as error:
        raise missing_extra(error.name or name, name) from None
    engine: Engine = module.open_engine(function, shared, jobs=jobs, address=address)
    return engine


def check_engine(name: str, jobs: int | None, address: str | None) -> None:
    """Raise UsageError for what no engine can be opened with."""
    if name not in ENGINES:
        raise UsageError(f"--engine {name!r} is not known", f"Use {', '.join(ENGINES)}.")
    if name == "local" and address is not None:
        raise UsageError("--engine local has no --address", "Give --engine dask or ray, or leave --address out.")
    if jobs is not None and jobs < 1:
        raise UsageError(f"--jobs {jobs} leaves nobody to work", "Give a positive number.")
