"""A real MLServer, installed on demand in an environment that it shares and started on loopback."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.peers.environments import SMALL
from tests.peers.starting import RECIPES, free_ports, installed, started


@contextmanager
def running(models: Mapping[str, tuple[Path, Mapping[str, Any]]], folder: Path) -> Iterator[str]:
    """The origin of a server with these models: name to (ONNX file, further settings such as its inputs)."""
    shutil.copy(RECIPES / "mlserver" / "onnx_runtime.py", folder)
    for name, (path, more) in models.items():
        settings = {"name": name, "implementation": "onnx_runtime.OnnxModel", "parameters": {"uri": str(path)}, **more}
        (folder / name).mkdir()
        (folder / name / "model-settings.json").write_text(json.dumps(settings))
    http, grpc, metrics = free_ports(3)
    ports = {"http_port": http, "grpc_port": grpc, "metrics_port": metrics}
    (folder / "settings.json").write_text(json.dumps({"debug": False, "host": "127.0.0.1", "parallel_workers": 0, **ports}))
    command: list[str | Path] = [installed(SMALL) / "mlserver", "start", folder]
    origin = f"http://127.0.0.1:{http}"
    with started(command, f"{origin}/v2/health/ready", folder, {"PYTHONPATH": str(folder)}):
        yield origin
