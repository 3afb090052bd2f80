"""A real MLServer in its own environment: over the wire it gives what ONNX Runtime gives here."""

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
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from onnxaudit.answers import Access
from onnxaudit.errors import SuspectError, UsageError
from onnxaudit.suspect import InputSpec, Target
from onnxaudit_adapters.http import open_http

pytestmark = pytest.mark.peers

ROOT = Path(__file__).parents[1]
RECIPE = Path(__file__).parent / "peers" / "mlserver"
PINS = ("mlserver==1.7.1", "onnxruntime==1.31.1")
SPEC = InputSpec((8, 8, 3))
QUERIES = np.random.default_rng(3).integers(0, 256, (40, 8, 8, 3), np.uint8)


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture(scope="module")
def mlserver() -> Path:
    """The mlserver command, installed on demand. A venv that was not finished is made again."""
    venv = ROOT / ".venv-peers" / "mlserver"
    venv.parent.mkdir(exist_ok=True)
    (venv.parent / ".gitignore").write_text("*\n")
    with (venv.parent / "mlserver.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # workers of pytest-xdist come here at the same time
        _install(venv)
    return venv / "bin" / "mlserver"


def _install(venv: Path) -> None:
    finished = venv / "pins.txt"
    if not finished.exists() or finished.read_text() != "\n".join(PINS):
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(venv)], check=True)
        command = [str(venv / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *PINS]
        subprocess.run(command, check=True)
        finished.write_text("\n".join(PINS))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small classifier with both logits and labels: convolution, pooling, a linear layer."""
    helper: Any = onnx.helper
    rng = np.random.default_rng(0)
    weights = {"k": rng.normal(size=(4, 3, 3, 3)), "w": rng.normal(size=(4, 5))}
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["input", "k"], ["c"], pads=[1, 1, 1, 1]),
            helper.make_node("Relu", ["c"], ["r"]),
            helper.make_node("GlobalAveragePool", ["r"], ["g"]),
            helper.make_node("Flatten", ["g"], ["f"]),
            helper.make_node("MatMul", ["f", "w"], ["logits"]),
            helper.make_node("ArgMax", ["logits"], ["label"], axis=1, keepdims=0),
        ],
        "classifier",
        [helper.make_tensor_value_info("input", onnx.TensorProto.FLOAT, ["n", 3, 8, 8])],
        [
            helper.make_tensor_value_info("label", onnx.TensorProto.INT64, ["n"]),
            helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, ["n", 5]),
        ],
        [onnx.numpy_helper.from_array(values.astype(np.float32), name) for name, values in weights.items()],
    )
    path = tmp_path_factory.mktemp("peer") / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), str(path))
    return path


@pytest.fixture(scope="module")
def server(mlserver: Path, model: Path) -> Iterator[str]:
    """The origin of a running MLServer with that classifier, once with metadata ("suspect") and once without ("mute")."""
    folder = model.parent
    shutil.copy(RECIPE / "onnx_runtime.py", folder)
    for name in ("suspect", "mute"):
        tensors = {"inputs": [{"name": "input", "datatype": "FP32", "shape": [-1, 3, 8, 8]}]} if name == "suspect" else {}
        settings = {"name": name, "implementation": "onnx_runtime.OnnxModel", "parameters": {"uri": str(model)}, **tensors}
        (folder / name).mkdir()
        (folder / name / "model-settings.json").write_text(json.dumps(settings))
    http, grpc, metrics = _free_ports(3)
    ports = {"http_port": http, "grpc_port": grpc, "metrics_port": metrics}
    (folder / "settings.json").write_text(json.dumps({"debug": False, "host": "127.0.0.1", "parallel_workers": 0, **ports}))
    log = folder / "log.txt"
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    with log.open("wb") as output:
        process = subprocess.Popen(
            [str(mlserver), "start", str(folder)], stdout=output, stderr=subprocess.STDOUT, cwd=folder, env=environment
        )
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


def _local(model: Path) -> np.ndarray[Any, np.dtype[np.float32]]:
    session = ort.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    result: np.ndarray[Any, np.dtype[np.float32]] = session.run(["logits"], {"input": SPEC.encode(QUERIES)})[0]
    return result


@pytest.mark.parametrize("tail", ["", "/", "/infer"])
def test_mlserver_gives_the_scores_of_onnx_runtime(server: str, model: Path, tail: str) -> None:
    with open_http(Target(f"{server}/v2/models/suspect{tail}", SPEC, 5)) as suspect:
        answers = suspect.ask(QUERIES)
        assert suspect.card.runtime["server"] == "mlserver 1.7.1"
        assert (suspect.card.input.layout, suspect.card.input.shape, suspect.card.input.dtype) == ("NCHW", (8, 8, 3), "float32")
        assert getattr(suspect, "queries_sent", None) == 40
    assert answers.access == Access.LOGITS
    np.testing.assert_allclose(answers.dense(), _local(model), atol=1e-6, rtol=0)


def test_mlserver_gives_labels_alone_when_they_are_chosen(server: str, model: Path) -> None:
    with open_http(Target(f"{server}/v2/models/suspect", SPEC, 5, options={"output_name": "label"})) as suspect:
        answers = suspect.ask(QUERIES)
    assert answers.access == Access.LABEL
    assert answers.labels.tolist() == _local(model).argmax(axis=1).tolist()


def test_mlserver_without_metadata_needs_the_input(server: str, model: Path) -> None:
    url = f"{server}/v2/models/mute"
    with pytest.raises(UsageError, match="--input-name"):
        open_http(Target(url, SPEC, 5))
    with open_http(Target(url, SPEC, 5, shape=(8, 8, 3), options={"input_name": "input"})) as suspect:
        np.testing.assert_allclose(suspect.ask(QUERIES).dense(), _local(model), atol=1e-6, rtol=0)


def test_mlserver_refusals_are_one_line(server: str) -> None:
    with pytest.raises(UsageError, match=r"404.*--input"):
        open_http(Target(f"{server}/v2/models/other", SPEC, 5))
    wrong = Target(f"{server}/v2/models/mute", SPEC, 5, shape=(4, 4, 3), options={"input_name": "input"})
    with open_http(wrong) as suspect, pytest.raises(SuspectError, match="to the first request"):
        suspect.ask(QUERIES[:2])
    with pytest.raises(UsageError, match="/v2/models/NAME"):
        open_http(Target(server, SPEC, 5))
