"""A real MLServer, installed on demand in an environment of its own and started on loopback."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
RECIPE = Path(__file__).parent / "peers" / "mlserver"
PINS = ("mlserver==1.7.1", "onnxruntime==1.31.1")


def installed() -> Path:
    """The mlserver command. A venv that was not finished is made again; processes that come at the same time wait."""
    venv = ROOT / ".venv-peers" / "mlserver"
    venv.parent.mkdir(exist_ok=True)
    (venv.parent / ".gitignore").write_text("*\n")
    with (venv.parent / "mlserver.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        finished = venv / "pins.txt"
        if not finished.exists() or finished.read_text() != "\n".join(PINS):
            subprocess.run([sys.executable, "-m", "venv", "--clear", str(venv)], check=True)
            command = [str(venv / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *PINS]
            subprocess.run(command, check=True)
            finished.write_text("\n".join(PINS))
    return venv / "bin" / "mlserver"


@contextmanager
def running(models: Mapping[str, tuple[Path, Mapping[str, Any]]], folder: Path) -> Iterator[str]:
    """The origin of a server with these models: name to (ONNX file, further settings such as its inputs)."""
    shutil.copy(RECIPE / "onnx_runtime.py", folder)
    for name, (path, more) in models.items():
        settings = {"name": name, "implementation": "onnx_runtime.OnnxModel", "parameters": {"uri": str(path)}, **more}
        (folder / name).mkdir()
        (folder / name / "model-settings.json").write_text(json.dumps(settings))
    http, grpc, metrics = _free_ports(3)
    ports = {"http_port": http, "grpc_port": grpc, "metrics_port": metrics}
    (folder / "settings.json").write_text(json.dumps({"debug": False, "host": "127.0.0.1", "parallel_workers": 0, **ports}))
    log = folder / "log.txt"
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    command = [str(installed()), "start", str(folder)]
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, cwd=folder, env=environment)
        try:
            _wait_until_ready(process, f"http://127.0.0.1:{http}/v2/health/ready", log)
            yield f"http://127.0.0.1:{http}"
        finally:
            process.terminate()
            process.wait(timeout=30)


def _free_ports(count: int) -> list[int]:
    """Ports that nothing listens on; held together so that they differ."""
    sockets = [socket.socket() for _ in range(count)]
    for free in sockets:
        free.bind(("127.0.0.1", 0))
    ports = [free.getsockname()[1] for free in sockets]
    for free in sockets:
        free.close()
    return ports


def _wait_until_ready(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    """Somebody else's process: there is nothing to wait on but its port and its end."""
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    for _ in range(600):
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
    pytest.fail(f"MLServer did not become ready:\n{log.read_text()[-2000:]}")
