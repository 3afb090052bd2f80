"""Environments of real servers, each of its own under .venv-peers, made on demand.

``python -m tests.peers.environments [NAME…]`` makes them beforehand.
"""

from __future__ import annotations

import fcntl
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
HOME = ROOT / ".venv-peers"
_RUNTIME = "onnxruntime==1.31.1"
PINS: dict[str, tuple[str, ...]] = {
    "mlserver": ("mlserver==1.7.1", _RUNTIME),
    "litserve": ("litserve==0.2.19", "pillow", _RUNTIME),
    "kserve": ("kserve==0.21.0", _RUNTIME),
    "triton": ("nvidia-pytriton==0.7.0", _RUNTIME),
    "mlflow": ("mlflow==3.17.2", "onnx", _RUNTIME),
    "bentoml": ("bentoml==1.4.39", _RUNTIME),
    "torchserve": (
        "torchserve==0.12.0",
        "torch-model-archiver==0.12.0",
        "torch==2.13.0+cpu",
        "setuptools<81",
        "pyyaml",
        "pillow",
        _RUNTIME,
    ),
}


class CannotInstallError(Exception):
    """A server cannot be had on this machine; the text says why."""


def installed(name: str) -> Path:
    """The bin folder of a server's environment. One that was not finished is made again; others that want it wait."""
    venv = HOME / name
    pins = PINS[name]
    HOME.mkdir(exist_ok=True)
    (HOME / ".gitignore").write_text("*\n")
    with (HOME / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        finished = venv / "pins.txt"
        if not finished.exists() or finished.read_text() != "\n".join(pins):
            _run(name, sys.executable, "-m", "venv", "--clear", str(venv))
            python = str(venv / "bin" / "python")
            _run(name, python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *pins)
            finished.write_text("\n".join(pins))
    return venv / "bin"


def nginx() -> Path:
    """The nginx program: the system's, else that of Debian's package, unpacked without root. Raises CannotInstallError."""
    here = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")
    if here:
        return Path(here)
    folder = HOME / "nginx"
    program = folder / "usr" / "sbin" / "nginx"
    HOME.mkdir(exist_ok=True)
    (HOME / ".gitignore").write_text("*\n")
    with (HOME / "nginx.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if program.exists():
            return program
        if not (shutil.which("apt-get") and shutil.which("dpkg-deb")):
            raise CannotInstallError("nginx is not installed, and there is no apt-get to fetch it with")
        shutil.rmtree(folder, ignore_errors=True)
        for part in ("lists/partial", "cache/archives/partial"):
            (folder / part).mkdir(parents=True)
        # Lists and cache of our own: those of the system belong to root.
        apt = ["apt-get", "-qq", "-o", f"Dir::State::Lists={folder}/lists", "-o", f"Dir::Cache={folder}/cache"]
        apt += ["-o", "APT::Sandbox::User="]  # its user for downloads may not read our folder
        _run("nginx", *apt, "update", folder=folder)
        _run("nginx", *apt, "download", "nginx", folder=folder)
        (package,) = folder.glob("nginx_*.deb")
        _run("nginx", "dpkg-deb", "-x", str(package), str(folder), folder=folder)
    return program


def _run(name: str, *command: str, folder: Path | None = None) -> None:
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, check=False)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise CannotInstallError(f"{name} cannot be installed here: {Path(command[0]).name} said {reason[:300]}")


if __name__ == "__main__":
    missing = False
    for peer in sys.argv[1:] or [*PINS, "nginx"]:
        print(f"{peer} ...", flush=True)
        try:
            nginx() if peer == "nginx" else installed(peer)
        except CannotInstallError as error:
            print(error)
            missing = True
    sys.exit(missing)
