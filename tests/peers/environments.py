"""Environments of real servers under .venv-peers, made on demand; ``python -m tests.peers`` makes them all."""

from __future__ import annotations

import fcntl
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
HOME = ROOT / ".venv-peers"
_RUNTIME = "onnxruntime==1.31.1"
_TORCH = "torch==2.13.0+cpu"
SMALL = "servers"
"""MLServer and LitServe, which every run starts: one environment, since reading the index of each package takes longest."""
PINS: dict[str, tuple[str, ...]] = {
    SMALL: ("mlserver==1.7.1", "litserve==0.2.19", "pillow", _RUNTIME),
    "kserve": ("kserve==0.21.0", _RUNTIME),
    "triton": ("nvidia-pytriton==0.7.0", _RUNTIME),
    "mlflow": ("mlflow==3.17.2", "onnx", _RUNTIME),
    "bentoml": ("bentoml==1.4.39", _RUNTIME),
    "torchserve": (
        "torchserve==0.12.0",
        "torch-model-archiver==0.12.0",
        _TORCH,
        "setuptools<81",
        "pyyaml",
        "pillow",
        _RUNTIME,
    ),
    "huggingface": ("api-inference-community==0.0.37", "transformers==5.23.0", _TORCH, "onnx"),
}
NGINX = "nginx"


class CannotInstallError(Exception):
    """A server cannot be had on this machine; the text says why."""


@dataclass(frozen=True, slots=True)
class Place:
    """A folder that is filled once. finished: the file that is written last; lock: held by whoever fills it."""

    folder: Path
    finished: Path
    lock: int

    def run(self, *command: str | Path) -> None:
        """One step of the filling. Raises CannotInstallError with what the program said."""
        # The lock is handed on: a step that outlives us, killed, keeps others out until it has ended.
        done = subprocess.run(
            [str(part) for part in command],
            capture_output=True,
            text=True,
            cwd=self.folder if self.folder.exists() else None,
            pass_fds=(self.lock,),
            check=False,
        )
        if done.returncode:
            said = f"{Path(command[0]).name} said {_reason(done.stderr)}"
            raise CannotInstallError(f"{self.folder.name} cannot be installed here: {said}")


def _reason(said: str) -> str:
    """The first line that calls itself an error, else the last one."""
    lines = [line.strip() for line in said.splitlines() if line.strip()] or ["nothing"]
    return next((line for line in lines if line.lower().startswith(("error", "npm error", "e:"))), lines[-1])[:300]


@contextmanager
def filling(name: str, contents: str) -> Iterator[Place | None]:
    """The place to fill under this name, empty; None if it is whole already. Others that want it wait.

    contents: what is to be in it. A place that was not finished, holds something else, was moved, or is another Python's is
    emptied and filled again.
    """
    wanted = f"{contents}\n{HOME}\n{sys.version}\n"
    HOME.mkdir(exist_ok=True)
    (HOME / ".gitignore").write_text("*\n")
    folder = HOME / name
    finished = folder / "finished.txt"
    with (HOME / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if finished.exists() and finished.read_text() == wanted:
            yield None
            return
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        yield Place(folder, finished, lock.fileno())
        finished.write_text(wanted)


def installed(name: str) -> Path:
    """The bin folder of a server's environment. Raises CannotInstallError."""
    if name == "torchserve" and shutil.which("java") is None:
        raise CannotInstallError("torchserve cannot be installed here: it needs Java 11 or newer, and there is no java")
    with filling(name, "\n".join(PINS[name])) as place:
        if place:
            _fill(place, PINS[name], bare=name == SMALL)
    return HOME / name / "bin"


def _fill(place: Place, pins: tuple[str, ...], bare: bool) -> None:
    """bare: with our pip instead of one of its own, and nothing compiled but what is imported; a third of the time."""
    python = place.folder / "bin" / "python"
    if bare:
        place.run(sys.executable, "-m", "venv", "--without-pip", place.folder)
        install: list[str | Path] = [sys.executable, "-m", "pip", "--python", python, "install", "--no-compile"]
    else:
        place.run(sys.executable, "-m", "venv", place.folder)
        install = [python, "-m", "pip", "install"]
    place.run(*install, "--quiet", "--disable-pip-version-check", *pins)


def nginx() -> Path:
    """The nginx program: the system's, else that of Debian's package, unpacked without root. Raises CannotInstallError."""
    here = shutil.which(NGINX) or shutil.which(NGINX, path="/usr/sbin:/usr/local/sbin")
    if here:
        return Path(here)
    if not (shutil.which("apt-get") and shutil.which("dpkg-deb")):
        raise CannotInstallError("nginx is not installed, and there is no apt-get to fetch it with")
    with filling(NGINX, "Debian's package") as place:
        if place:
            _unpack_nginx(place)
    return HOME / NGINX / "usr" / "sbin" / NGINX


def _unpack_nginx(place: Place) -> None:
    """Lists and cache of our own: those of the system belong to root."""
    for part in ("lists/partial", "cache/archives/partial"):
        (place.folder / part).mkdir(parents=True)
    apt = ["apt-get", "-qq", "-o", f"Dir::State::Lists={place.folder}/lists", "-o", f"Dir::Cache={place.folder}/cache"]
    apt += ["-o", "APT::Sandbox::User="]  # its user for downloads may not read our folder
    place.run(*apt, "update")
    place.run(*apt, "download", NGINX)
    (package,) = place.folder.glob("nginx_*.deb")
    place.run("dpkg-deb", "-x", package, place.folder)
