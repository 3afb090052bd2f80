"""What the sandbox can do on this machine: a process of its own gives up its rights, then tries what it no longer may."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from onnxaudit.sandbox.confine import confine, landlock_abi
from onnxaudit.sandbox.limits import Limits

WALLS = ("memory", "network", "processes", "reading", "writing")
_LIMITS = Limits(memory=1, cpu=10, wall=20)


@dataclass(frozen=True, slots=True)
class Trial:
    """applied, lacking: as ``confine`` says. held: which of WALLS kept the process from what it tried. landlock: the version of
    the kernel's interface, 0 if there is none.
    """

    applied: tuple[str, ...]
    lacking: tuple[str, ...]
    held: Mapping[str, bool]
    landlock: int


def try_out() -> Trial:
    """Let a confined process try. Raises OSError, ValueError, KeyError or SubprocessError where it cannot be started or heard."""
    from onnxaudit.sandbox.process import environment
    from onnxaudit.sandbox.suspect import readable

    with tempfile.TemporaryDirectory() as folder:
        secret = Path(folder) / "secret"
        secret.write_text("42", encoding="ascii")
        said = {"limits": asdict(_LIMITS), "readable": readable(Path(__file__)), "secret": str(secret)}
        done = subprocess.run(
            [sys.executable, "-P", "-m", "onnxaudit.sandbox.trying", json.dumps(said)],
            capture_output=True,
            check=True,
            env=environment(here=False),
            timeout=_LIMITS.wall,
        )
    found = json.loads(done.stdout)
    return Trial(tuple(found["applied"]), tuple(found["lacking"]), {name: found["held"][name] for name in WALLS}, landlock_abi())


def main() -> None:
    """In the process of its own: the settings are the only argument, as JSON; what was found goes to standard output."""
    settings = json.loads(sys.argv[1])
    limits = Limits(**settings["limits"])
    applied, lacking = confine(limits, settings["readable"], [os.devnull])
    secret = Path(settings["secret"])
    attempts: Mapping[str, Callable[[], object]] = {
        "memory": lambda: bytearray(limits.bytes),
        "network": lambda: socket.create_connection(("127.0.0.1", 9), timeout=1).close(),
        "processes": lambda: subprocess.run([sys.executable, "-c", ""], check=True),
        "reading": secret.read_bytes,
        "writing": lambda: _write(secret),
    }
    held = {name: _refused(attempt) for name, attempt in attempts.items()}
    print(json.dumps({"applied": applied, "lacking": lacking, "held": held}))


def _refused(attempt: Callable[[], object]) -> bool:
    try:
        attempt()
    except ConnectionError:  # it got as far as another machine could: nobody was listening
        return False
    except (OSError, MemoryError):
        return True
    return False


def _write(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"43")


if __name__ == "__main__":
    main()
