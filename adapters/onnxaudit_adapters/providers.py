"""Whether ONNX Runtime works here, and which of its execution providers really run a model: each gets a tiny one.

A provider that is listed may lack its libraries or its device, print from native code, hang or crash. So each but the CPU's is
tried in a process of its own: ``python -m onnxaudit_adapters.providers NAME`` prints why it cannot be used, or nothing.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from onnxaudit_adapters.devices import gpu_present

CPU = "CPUExecutionProvider"
PATIENCE = 60.0
"""Seconds for a provider to start; the first use of CUDA on a machine may take half a minute."""
TOLERANCE = 1e-3
_NVIDIA = ("CUDAExecutionProvider", "TensorrtExecutionProvider", "NvTensorRTRTXExecutionProvider")
_REMOTE = ("AzureExecutionProvider",)
_MARK = "onnxaudit: "
"""Before the answer of a child process, to tell it from what libraries print."""


def providers() -> Mapping[str, str]:
    """Every provider that ONNX Runtime lists: "" if it gives the CPU's answers, else why it cannot be used.

    Raises whatever importing ONNX Runtime raises, and RuntimeError if the CPU's own answers are wrong.
    """
    import onnxruntime

    problem = unusable(CPU)
    if problem:
        raise RuntimeError(problem)
    listed = [name for name in onnxruntime.get_available_providers() if name != CPU]
    found = {CPU: ""}
    children = {}
    for name in listed:
        if name in _REMOTE:
            found[name] = "it asks a remote service, and is not used"
        elif name in _NVIDIA and not gpu_present():
            found[name] = "no NVIDIA GPU is found"
        else:
            children[name] = _start(name)
    return found | {name: _ended(child) for name, child in children.items()}


def unusable(provider: str) -> str:
    """Why a provider cannot run a tiny model as NumPy does; "" if it can."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    if provider != CPU:
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        with contextlib.suppress(Exception):  # finds the CUDA libraries that pip installed, where there are any
            onnxruntime.preload_dlls()
    model, x, expected = _tiny()
    settings = {"use_tf32": "0"} if provider.startswith("CUDA") else {}
    try:
        session = onnxruntime.InferenceSession(model, options, providers=[(provider, settings)], enable_fallback=0)
        if session.get_providers()[0] != provider:
            return "it could not be started"
        (answer,) = session.run(None, {"x": x})
    except Exception as error:  # ONNX Runtime's errors share no base class
        return " ".join(str(error).split())[:200]
    apart = float(np.abs(np.asarray(answer) - expected).max())
    return "" if apart <= TOLERANCE else f"its answers are wrong by {apart:.3g}"


def _tiny() -> tuple[bytes, NDArray[np.float32], NDArray[np.float32]]:
    """A model of one convolution (1x1), a ReLU and a mean, an input, and NumPy's answer."""
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(0)
    kernel, x = rng.normal(size=(4, 3)).astype(np.float32), rng.normal(size=(2, 3, 8, 8)).astype(np.float32)
    nodes = [
        helper.make_node("Conv", ["x", "kernel"], ["mapped"]),
        helper.make_node("Relu", ["mapped"], ["active"]),
        helper.make_node("GlobalAveragePool", ["active"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 3, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 4, 1, 1])],
        [numpy_helper.from_array(kernel[:, :, None, None], "kernel")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    mapped = np.maximum(np.einsum("oc,nchw->nohw", kernel, x), 0)
    return model.SerializeToString(), x, mapped.mean(axis=(2, 3), keepdims=True).astype(np.float32)


def _start(provider: str) -> subprocess.Popen[str]:
    """A child that tries a provider, with the packages of this process; what lies in the current folder is none of them."""
    command = [sys.executable, "-P", "-m", "onnxaudit_adapters.providers", provider]
    known = [path for path in sys.path if Path(path).is_absolute() and Path(path).resolve() != Path.cwd()]
    paths = {**os.environ, "PYTHONPATH": os.pathsep.join(known)}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, errors="replace", env=paths)


def _ended(child: subprocess.Popen[str], patience: float = PATIENCE) -> str:
    """What a child said, or how it failed to say anything."""
    try:
        said, _ = child.communicate(timeout=patience)
    except subprocess.TimeoutExpired:
        child.kill()
        child.communicate()
        return f"it did not start within {patience:g} seconds"
    answers = [line.removeprefix(_MARK) for line in said.splitlines() if line.startswith(_MARK)]
    return answers[-1] if answers else f"it crashed (exit code {child.returncode})"


if __name__ == "__main__":
    print(f"\n{_MARK}{unusable(sys.argv[1])}", flush=True)
