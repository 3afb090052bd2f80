"""Real servers on loopback, started from the recipes beside this file, in environments of their own."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sysconfig
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.peers import environments

RECIPES = Path(__file__).parent
_TRIES = 900  # of a fifth of a second: a busy machine takes its time to import a serving framework


def installed(name: str) -> Path:
    """The bin folder of a server's environment; skips the test where it cannot be had."""
    try:
        return environments.installed(name)
    except environments.CannotInstallError as error:
        pytest.skip(str(error))


def free_ports(count: int) -> list[int]:
    """Ports that nothing listens on; held together so that they differ."""
    sockets = [socket.socket() for _ in range(count)]
    for free in sockets:
        free.bind(("127.0.0.1", 0))
    ports = [free.getsockname()[1] for free in sockets]
    for free in sockets:
        free.close()
    return ports


def _address() -> tuple[str, str]:
    """A free port, and the origin of a server there."""
    (port,) = free_ports(1)
    return str(port), f"http://127.0.0.1:{port}"


def _prepare(command: Sequence[str | Path], folder: Path, variables: Mapping[str, str]) -> None:
    """A step before a server can start; it has to succeed."""
    parts, environment = [str(part) for part in command], {**os.environ, **variables}
    done = subprocess.run(parts, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


@contextmanager
def started(
    command: Sequence[str | Path], ready: str, folder: Path, environment: Mapping[str, str] | None = None
) -> Iterator[None]:
    """A server as long as the context lasts, from when ``ready`` answers 2xx; its children end with it."""
    log = folder / "log.txt"
    variables = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST", "COV"))}
    with log.open("wb") as output:
        process = subprocess.Popen(
            [str(part) for part in command],
            stdout=output,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            cwd=folder,
            env={**variables, **(environment or {})},
            start_new_session=True,
        )
        try:
            _wait_until_ready(process, ready, log)
            yield
        finally:
            _stop(process)


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End the server and whatever it started: all of its session, which is ours."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
            process.wait(timeout=15)
        except subprocess.TimeoutExpired:
            continue
        except ProcessLookupError:
            break
    process.wait(timeout=15)


def _wait_until_ready(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    """Somebody else's process: there is nothing to wait on but its port and its end."""
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    for _ in range(_TRIES):
        try:
            with direct.open(url, timeout=5):
                return
        except (urllib.error.URLError, OSError):
            pass
        try:
            process.wait(timeout=0.2)
        except subprocess.TimeoutExpired:
            continue
        break
    pytest.fail(f"{process.args!r} did not become ready:\n{log.read_text(errors='replace')[-2000:]}")


@contextmanager
def litserve(model: Path, folder: Path, *forms: str) -> Iterator[str]:
    """The origin of LitServe. It takes POST at a path of the name of each form: tensor, hf, label; without any, at /predict."""
    python = installed(environments.SMALL) / "python"
    port, origin = _address()
    with started([python, RECIPES / "litserve" / "serve.py", model, port, *forms], f"{origin}/health", folder):
        yield origin


@contextmanager
def kserve(model: Path, folder: Path) -> Iterator[str]:
    """The origin of KServe; the model is called suspect, as in all peers that have names."""
    python = installed("kserve") / "python"
    port, origin = _address()
    with started([python, RECIPES / "kserve" / "serve.py", model, port], f"{origin}/v2/models/suspect/ready", folder):
        yield origin


@contextmanager
def triton(model: Path, folder: Path) -> Iterator[str]:
    """The origin of Triton. Its Python stub must meet the libpython of this interpreter, not the system's."""
    python = installed("triton") / "python"
    ports = [str(port) for port in free_ports(3)]
    origin = f"http://127.0.0.1:{ports[0]}"
    libraries = {"LD_LIBRARY_PATH": str(sysconfig.get_config_var("LIBDIR"))}
    command: list[str | Path] = [python, RECIPES / "triton" / "serve.py", model, *ports]
    with started(command, f"{origin}/v2/models/suspect/ready", folder, libraries):
        yield origin


@contextmanager
def mlflow(model: Path, folder: Path) -> Iterator[str]:
    """The origin of MLflow's scoring server."""
    bin_folder = installed("mlflow")
    port, origin = _address()
    variables = {"PATH": f"{bin_folder}{os.pathsep}{os.environ['PATH']}", "MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "1"}
    _prepare([bin_folder / "python", RECIPES / "mlflow" / "save.py", model, folder / "model"], folder, variables)
    command: list[str | Path] = [
        bin_folder / "mlflow",
        "models",
        "serve",
        "-m",
        folder / "model",
        "--env-manager",
        "local",
        "-h",
        "127.0.0.1",
    ]
    with started([*command, "-p", port], f"{origin}/ping", folder, variables):
        yield origin


@contextmanager
def bentoml(model: Path, folder: Path) -> Iterator[str]:
    """The origin of BentoML; it takes POST /predict."""
    program = installed("bentoml") / "bentoml"
    port, origin = _address()
    shutil.copy(RECIPES / "bentoml" / "service.py", folder)
    variables = {"DO_NOT_TRACK": "1", "PEER_MODEL": str(model), "BENTOML_HOME": str(folder / "home")}
    command: list[str | Path] = [program, "serve", "service:Suspect", "--host", "127.0.0.1", "--port", port]
    with started(command, f"{origin}/readyz", folder, variables):
        yield origin


@contextmanager
def torchserve(model: Path, folder: Path) -> Iterator[str]:
    """The origin of TorchServe."""
    bin_folder = installed("torchserve")
    ports = free_ports(5)
    origin = f"http://127.0.0.1:{ports[0]}"
    names = ("inference_address", "management_address", "metrics_address")
    lines = [f"{name}=http://127.0.0.1:{port}" for name, port in zip(names, ports, strict=False)]
    lines += ["grpc_inference_address=127.0.0.1", "grpc_management_address=127.0.0.1", "default_workers_per_model=1"]
    lines += [f"grpc_inference_port={ports[3]}", f"grpc_management_port={ports[4]}", "disable_system_metrics=true"]
    (folder / "config.properties").write_text("\n".join(lines))
    (folder / "store").mkdir()
    shutil.copy(model, folder / "model.onnx")
    variables = {
        "PATH": f"{bin_folder}{os.pathsep}{os.environ['PATH']}",
        "TEMP": str(folder),
        "LOG_LOCATION": str(folder / "logs"),
    }
    archive: list[str | Path] = [bin_folder / "torch-model-archiver", "--model-name", "suspect", "--version", "1.0"]
    archive += ["--export-path", "store", "--serialized-file", "model.onnx", "--handler", RECIPES / "torchserve" / "handler.py"]
    _prepare(archive, folder, variables)
    command: list[str | Path] = [
        bin_folder / "torchserve",
        "--start",
        "--foreground",
        "--ncs",
        "--model-store",
        "store",
        "--disable-token-auth",
    ]
    command += ["--models", "suspect=suspect.mar", "--ts-config", "config.properties"]
    with started(command, f"{origin}/ping", folder, variables):
        yield origin


def vision_transformer(folder: Path, noise: float, size: int, names: Sequence[str]) -> Path:
    """Make the folder of a small classifier for huggingface(): its ``model.onnx``. noise 0: the victim; a little: a copy."""
    make: list[str | Path] = [installed("huggingface") / "python", RECIPES / "huggingface" / "make.py", folder]
    _prepare([*make, str(noise), str(size), *names], folder.parent, {"HF_HUB_OFFLINE": "1"})
    return folder / "model.onnx"


@contextmanager
def huggingface(model: Path, folder: Path) -> Iterator[str]:
    """The origin of Hugging Face's server with the folder that vision_transformer() made; it takes POST at every path."""
    python = installed("huggingface") / "python"
    port, origin = _address()
    variables = {"HF_HOME": str(folder / "home"), "HF_HUB_DISABLE_TELEMETRY": "1"}
    with started([python, RECIPES / "huggingface" / "serve.py", model.parent, port], origin, folder, variables):
        yield origin


@contextmanager
def nginx(behind: str, folder: Path, key: str) -> Iterator[str]:
    """The origin of nginx in front of another peer: a key, 20 requests a second, 2 kB a request."""
    try:
        program = environments.nginx()
    except environments.CannotInstallError as error:
        pytest.skip(str(error))
    port, origin = _address()
    filled = (RECIPES / "nginx" / "nginx.conf").read_text()
    for name, value in {"FOLDER": str(folder), "PORT": port, "KEY": key, "BEHIND": behind}.items():
        filled = filled.replace(name, value)
    (folder / "nginx.conf").write_text(filled)
    with started([program, "-p", folder, "-c", folder / "nginx.conf", "-e", folder / "error.log"], f"{origin}/ready", folder):
        yield origin
