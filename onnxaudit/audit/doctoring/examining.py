"""The examination itself."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from onnxaudit.audit.doctoring import confinement, machine, packages, runtimes
from onnxaudit.audit.doctoring.signs import Examination, Sign, one_line


def examine(folder: Path, *, full: bool = False) -> Examination:
    """Look at everything that decides what works here; ``folder``: where the user would work. Raises nothing of its own.

    full: also import PyTorch and every adapter, which takes seconds.
    """
    parts: tuple[tuple[str, Callable[[], Iterable[Sign]]], ...] = (
        ("versions", packages.python),
        ("versions", packages.required),
        ("ONNX Runtime", runtimes.onnx_runtime),
        ("PyTorch", lambda: runtimes.torch(full)),
        ("extras", packages.extras),
        ("adapters", lambda: runtimes.adapters(full)),
        ("machine", machine.machine),
        ("sandbox", confinement.confinement),
        ("writing", lambda: machine.writing(folder)),
    )
    return Examination(tuple(sign for part, look in parts for sign in _looked(part, look)), full)


def _looked(part: str, look: Callable[[], Iterable[Sign]]) -> Iterator[Sign]:
    """The signs of one part; a part that cannot be looked at must not hide the others."""
    try:
        yield from look()
    except Exception as error:  # where so much is broken that looking fails, that is what was found
        yield Sign(part, "examination", "warning", one_line(error), "Please report it with the output of --debug.")
