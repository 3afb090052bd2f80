"""A suspect whose runtime is confined to a process of its own. What that says is believed no more than what a server says."""

from __future__ import annotations

import os
import sys
import sysconfig
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxaudit.answers import Access, Answers
from onnxaudit.archives import sha256_of
from onnxaudit.errors import SuspectError, UsageError
from onnxaudit.registry import kind_of
from onnxaudit.sandbox.limits import Limits
from onnxaudit.sandbox.process import Confined, packages
from onnxaudit.sandbox.telling import MAX_CLASSES, raise_error, read_card
from onnxaudit.suspect import InputSpec, Queries, Suspect, SuspectCard, Target

MAX_LABEL = (1 << 31) - 1
"""Where nothing says how many classes there are, a label may be any: one that stands for a name is 31 bits of its digest."""
_SYSTEM = (
    *("/usr", "/lib", "/lib64", "/etc/ld.so.cache", "/etc/localtime", "/etc/alternatives"),
    *("/proc", "/sys/devices", "/sys/bus/pci", "/sys/fs/cgroup", "/dev/urandom", "/dev/random", "/dev/zero"),
)
_ALONE = ("ort", "pt", "ts", "pt2", "tflite")
"""Kinds whose files need no other."""


def open_confined(target: Target, limits: Limits) -> ConfinedSuspect:
    """Open a file, or a Python function, in a confined process. The card's runtime facts say what was applied, and what not.

    Raises UsageError for a URL, and what opening raises without confinement; SuspectError (exit 4) where the runtime crashes,
    hangs, needs more than its limits, or says what cannot be.
    """
    kind = kind_of(target.source)
    if "://" in target.source:
        raise UsageError("--sandbox is for models that run here", "An endpoint runs elsewhere: leave it out.")
    path = None if kind == "python" else Path(target.source).absolute()
    if path is not None and not path.is_file():
        raise UsageError(f"{target.source} is not a file", "Check the path.")
    digest = None if path is None else sha256_of(path)
    devices = ["/dev/null"] if target.device == "cpu" else ["/dev/null", *map(str, Path("/dev").glob("nvidia*"))]
    process = Confined(target.source, limits, readable(path), devices, here=path is None)
    try:
        head, _ = process.exchange({"open": _told(target)}, most=0)
        raise_error(head, target.source, limits)
        card = read_card(head.get("card"), target, digest)
    except BaseException:
        process.close()
        raise
    facts = {"sandbox": ", ".join(process.applied)}
    if process.lacking:
        facts["sandbox lacks"] = ", ".join(process.lacking)
    return ConfinedSuspect(process, replace(card, runtime={**card.runtime, **facts}), limits)


class ConfinedSuspect(Suspect):
    """The parent's side. Every array that comes back is checked in shape, type and range before it counts as an answer."""

    def __init__(self, process: Confined, card: SuspectCard, limits: Limits) -> None:
        self.card = card
        self._process: Confined | None = process
        self._limits = limits

    def _ask(self, queries: Queries) -> Answers:
        """Answers to one batch. Raises SuspectError for what no suspect can say, or if the process dies."""
        head, arrays = self._exchange({"ask": True}, queries, len(queries) * MAX_CLASSES * 8)
        return read_answers(head, arrays, len(queries), self.card.source)

    def inside(self, kind: str, queries: Queries, **parameters: Any) -> NDArray[np.floating[Any]] | None:
        """As the suspect shows it; see ``Suspect.inside``. What is not finite is for the caller to drop, as without a sandbox."""
        head, arrays = self._exchange({"inside": kind, "parameters": parameters}, queries)
        if head.get("seen") is False:
            return None
        sound = len(arrays) == 1 and arrays[0].dtype.kind == "f" and arrays[0].ndim >= 2 and len(arrays[0]) == len(queries)
        if not sound:
            raise SuspectError(f"{self.card.source} showed its {kind} in a form that cannot be")
        return arrays[0]

    def _exchange(self, head: dict[str, Any], queries: Queries, most: int = 1 << 30) -> tuple[dict[str, Any], list[NDArray[Any]]]:
        if self._process is None:
            raise SuspectError(f"{self.card.source} is closed")
        head, arrays = self._process.exchange(head, [queries], most)
        raise_error(head, self.card.source, self._limits)
        return head, arrays

    def rewire(self, spec: InputSpec) -> None:
        """Have the confined suspect encode queries so."""
        if self._process is None:
            raise SuspectError(f"{self.card.source} is closed")
        head, _ = self._process.exchange({"rewire": asdict(spec)}, most=0)
        raise_error(head, self.card.source, self._limits)
        self.card = replace(self.card, input=spec)

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.close()
            self._process = None


def read_answers(head: Mapping[str, Any], arrays: Sequence[NDArray[Any]], n: int, source: str) -> Answers:
    """Answers to n queries from a message of the confined process. Raises SuspectError for what no suspect can say."""
    classes = arrays[0] if arrays else np.empty((0, 0), np.int32)
    scores = arrays[1] if len(arrays) > 1 else None
    word, count = head.get("access"), head.get("num_classes")
    access = {level.word: level for level in Access}.get(word) if isinstance(word, str) else None
    limit, top = (MAX_CLASSES, MAX_LABEL) if count is None else (count, count - 1 if type(count) is int else -1)
    sound = (
        access is not None
        and type(limit) is int
        and 0 < limit <= MAX_CLASSES
        and classes.dtype == np.int32
        and classes.ndim == 2
        and len(classes) == n
        and 0 < classes.shape[1] <= limit
        and (scores is None) == (access == Access.LABEL)
        and (scores is None or (scores.dtype == np.float32 and scores.shape == classes.shape))
        and (scores is not None or classes.shape[1] == 1)
    )
    if not sound or access is None:
        raise SuspectError(f"{source} gave answers that contradict themselves", "Nothing was found out.")
    distinct = bool((np.diff(np.sort(classes, axis=1), axis=1) > 0).all())
    ranked = scores is None or bool(np.isfinite(scores).all() and (scores[:, 1:] <= scores[:, :-1]).all())
    if not ranked or not distinct or int(classes.min()) < 0 or int(classes.max()) > top:
        raise SuspectError(f"{source} gave answers that no model gives", "They are not ranked, not finite, or name no class.")
    return Answers(classes, scores, access, count)


def readable(path: Path | None) -> list[str]:
    """Files and folders that the confined process may read: Python, its packages, the system's libraries, and the suspect.

    Of its folder only its own file, unless it may have weights in others. None: a function, found from the current folder.
    """
    scheme = sysconfig.get_paths()
    python = [sys.prefix, sys.base_prefix, *packages(here=path is None), scheme["platlib"]]
    libraries = os.environ.get("LD_LIBRARY_PATH", "").split(os.pathsep)
    own = [str(Path.cwd())] if path is None else [str(path)]
    if path is not None and _may_need_others(path):
        own.append(str(path.parent))
    shared = [entry for entry in libraries if Path(entry).is_absolute()]
    found = [*_SYSTEM, *python, *shared, str(Path(__file__).parents[2]), *own]
    return list(dict.fromkeys(os.path.realpath(entry) for entry in found))


def _may_need_others(path: Path) -> bool:
    kind = path.suffix[1:].lower()
    if kind != "onnx":
        return kind not in _ALONE
    tail = b""
    with path.open("rb") as file:
        while chunk := file.read(1 << 22):
            if b"location" in tail + chunk:  # the key that each tensor in another file carries
                return True
            tail = chunk[-8:]
    return False


def _told(target: Target) -> dict[str, Any]:
    """A target as it goes to the confined process; of the options only plain values, and nothing that is for a server."""
    options = {name: value for name, value in target.options.items() if name not in _SERVERS}
    plain: dict[str, Any] = {name: value for name, value in options.items() if isinstance(value, str | int | float)}
    names = target.options.get("class_names")
    if isinstance(names, list | tuple):
        plain["class_names"] = [str(name) for name in names]
    said = {name: getattr(target, name) for name in _SAID}
    return {**said, "spec": asdict(target.spec), "options": plain}


_SAID = ("source", "num_classes", "device", "shape", "layout", "dtype", "scale", "mean", "std", "channels")
_SERVERS = ("ca_bundle", "client_cert", "timeout", "rate", "budget", "dialect")
