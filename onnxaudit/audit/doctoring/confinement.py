"""What ``--sandbox`` can take away from a suspect on this machine, and what it means where it cannot."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Mapping
from types import MappingProxyType

from onnxaudit.audit.doctoring.signs import Sign
from onnxaudit.sandbox.trying import Trial, try_out

_PART = "sandbox"
_ELSEWHERE = "Run hostile suspects in a virtual machine, or a container, "
MEANING: Mapping[str, tuple[str, str, str]] = MappingProxyType(
    {
        "memory": ("kept to its limit", "a suspect can fill all memory", f"{_ELSEWHERE}that has a limit of its own."),
        "network": (
            "none",
            "a suspect that takes over its runtime can send out what it reads",
            f"{_ELSEWHERE}without a network; or let the kernel's seccomp or user namespaces through.",
        ),
        "processes": (
            "no others",
            "a suspect that takes over its runtime can start programs",
            f"{_ELSEWHERE}that lets seccomp through, on x86-64 or ARM64.",
        ),
        "reading": (
            "Python, its packages, libraries and the suspect",
            "a suspect that takes over its runtime can read what you can read",
            f"{_ELSEWHERE}with nothing else in it; or use Linux 5.13 or newer with Landlock.",
        ),
        "writing": ("nothing", "a suspect that takes over its runtime can change files", f"{_ELSEWHERE}with nothing else in it."),
    }
)
"""Of each wall: what is left behind it, what it means where there is none, and what to do then."""


def confinement() -> Iterator[Sign]:
    """Each wall, as a confined process found it that tried to get past it."""
    try:
        trial = try_out()
    except (OSError, ValueError, KeyError, subprocess.SubprocessError) as error:
        words = f"a confined process could not be started: {type(error).__name__}"
        yield Sign(_PART, "starting", "warning", words, "check --sandbox does not work here; leave it out, or run it elsewhere.")
        return
    for name, (left, missing, advice) in MEANING.items():
        if trial.held[name]:
            yield Sign(_PART, name, "ok", f"{left} ({how})" if (how := _how(name, trial)) else left)
        else:
            yield Sign(_PART, name, "absent", f"not limited: {missing}", advice)
    if any(words.startswith("CPU time") for words in trial.applied):
        yield Sign(_PART, "CPU time", "ok", "kept to its limit (RLIMIT_CPU)")
    else:
        yield Sign(_PART, "CPU time", "absent", "not limited: only time on the clock is", "None is needed: what hangs is ended.")


def _how(name: str, trial: Trial) -> str:
    """By what means a wall stands, as far as that is known."""
    if name == "network":
        return next((words.partition("(")[2].rstrip(")") for words in trial.applied if words.startswith("no network")), "")
    landlock = f"Landlock, version {trial.landlock}" if trial.landlock and "unreadable" not in " ".join(trial.lacking) else ""
    means = {"memory": "RLIMIT_DATA", "processes": "seccomp", "reading": landlock, "writing": landlock or "RLIMIT_FSIZE"}
    return means[name]
