"""Small suspects made on the spot: one network in every format, and files that mean harm."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from onnxaudit.answers import Answers
from onnxaudit.suspect import InputSpec

CLASSES = 4
SHAPE = (8, 8, 3)
SPEC = InputSpec(SHAPE)
ONNX_TYPES = {
    "float32": TensorProto.FLOAT,
    "float16": TensorProto.FLOAT16,
    "float64": TensorProto.DOUBLE,
    "uint8": TensorProto.UINT8,
}


def colour_queries(n: int = 24) -> NDArray[np.uint8]:
    """Images (n, 8, 8, 3) of one colour each, with noise, so that a colour-blind network is told from a mis-wired one."""
    rng = np.random.default_rng(7)
    colours = rng.integers(0, 256, (n, 1, 1, 3))
    images: NDArray[np.uint8] = np.clip(colours + rng.integers(-20, 20, (n, *SHAPE)), 0, 255).astype(np.uint8)
    return images


@cache
def weights() -> dict[str, NDArray[np.float32]]:
    """The network's parameters: a 3x3 convolution to 6 channels and a dense layer to 4 classes."""
    rng = np.random.default_rng(3)
    return {
        "kernel": rng.normal(size=(6, 3, 3, 3)).astype(np.float32),
        "shift": rng.normal(size=6).astype(np.float32),
        "dense": rng.normal(size=(6, CLASSES)).astype(np.float32) * 2,
        "bias": rng.normal(size=CLASSES).astype(np.float32),
    }


def expected_answers(queries: NDArray[np.uint8]) -> Answers:
    """What the network says, worked out in NumPy."""
    w = weights()
    padded = np.pad(queries.astype(np.float64) / 255, ((0, 0), (1, 1), (1, 1), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(1, 2))
    mapped = np.maximum(np.einsum("nhwcab,ocab->nhwo", windows, w["kernel"]) + w["shift"], 0).mean(axis=(1, 2))
    return Answers.from_scores((mapped @ w["dense"] + w["bias"]).astype(np.float32))


def make_onnx(
    dims: Sequence[int | str] = ("n", 3, 8, 8), layout: str = "NCHW", dtype: str = "float32", end: str = "logits"
) -> onnx.ModelProto:
    """The network as ONNX. dims: the input's shape as declared. end: logits, softmax, labels, or decoys around logits."""
    real = "float32" if dtype in ("uint8", "float64") else dtype  # the runtime has no convolution in float64
    w = {name: numpy_helper.from_array(value.astype(real), name) for name, value in weights().items()}
    nodes, last = [], "x"
    if dtype != real:
        w["scale"] = numpy_helper.from_array(np.array(1 / 255 if dtype == "uint8" else 1, np.float32), "scale")
        nodes += [
            helper.make_node("Cast", [last], ["cast"], to=TensorProto.FLOAT),
            helper.make_node("Mul", ["cast", "scale"], ["scaled"]),
        ]
        last = "scaled"
    if layout == "NHWC":
        nodes.append(helper.make_node("Transpose", [last], ["nchw"], perm=[0, 3, 1, 2]))
        last = "nchw"
    nodes += [
        helper.make_node("Conv", [last, "kernel", "shift"], ["mapped"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["mapped"], ["active"]),
        helper.make_node("GlobalAveragePool", ["active"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["features"]),
        helper.make_node("Gemm", ["features", "dense", "bias"], ["logits"]),
    ]
    outputs = {"logits": (ONNX_TYPES[real], [dims[0], CLASSES])}
    if end == "softmax":
        nodes.append(helper.make_node("Softmax", ["logits"], ["probabilities"]))
        outputs = {"probabilities": (ONNX_TYPES[real], [dims[0], CLASSES])}
    elif end == "labels":
        nodes.append(helper.make_node("ArgMax", ["logits"], ["label"], axis=1, keepdims=0))
        outputs = {"label": (TensorProto.INT64, [dims[0]])}
    elif end == "decoys":
        nodes.append(helper.make_node("ArgMax", ["logits"], ["label"], axis=1, keepdims=0))
        outputs = {"label": (TensorProto.INT64, [dims[0]]), "features": (ONNX_TYPES[real], [dims[0], 6])} | outputs
    return assemble(nodes, {"x": (ONNX_TYPES[dtype], dims)}, outputs, list(w.values()))


def assemble(nodes: list[Any], inputs: dict[str, Any], outputs: dict[str, Any], tensors: list[TensorProto]) -> onnx.ModelProto:
    """A checked model of one graph; inputs and outputs by name: (element type, shape)."""
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info(name, kind, list(dims)) for name, (kind, dims) in inputs.items()],
        [helper.make_tensor_value_info(name, kind, list(dims)) for name, (kind, dims) in outputs.items()],
        tensors,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def save_onnx(path: Path, **options: Any) -> Path:
    """The network in a file; options as for make_onnx."""
    path.write_bytes(make_onnx(**options).SerializeToString())
    return path


def torch_network() -> Any:
    """The network as a torch.nn.Module."""
    import torch

    w = {name: torch.from_numpy(value.copy()) for name, value in weights().items()}
    convolution, dense = torch.nn.Conv2d(3, 6, 3, padding=1), torch.nn.Linear(6, CLASSES)
    with torch.no_grad():
        convolution.weight.copy_(w["kernel"])
        convolution.bias.copy_(w["shift"])  # type: ignore[union-attr]
        dense.weight.copy_(w["dense"].T)
        dense.bias.copy_(w["bias"])
    pool = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
    return torch.nn.Sequential(convolution, torch.nn.ReLU(), *pool, dense).eval()


def save_torchscript(path: Path, module: Any = None) -> Path:
    """A module, by default the network, as a TorchScript archive (traced)."""
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced: Any = torch.jit.trace(module or torch_network(), torch.zeros(2, 3, 8, 8), strict=False)
        traced.save(str(path))
    return path


def save_exported(path: Path, batch: int | None = None, module: Any = None) -> Path:
    """A module, by default the network, as a torch.export program; batch: fixed, or any if None."""
    import torch

    shapes = ({0: torch.export.Dim("n", min=1, max=4096)},) if batch is None else None
    program = torch.export.export(module or torch_network(), (torch.zeros(batch or 2, 3, 8, 8),), dynamic_shapes=shapes)
    torch.export.save(program, path)
    return path


@cache
def forest(strings: bool = False) -> Any:
    """A random forest on 6 values and 3 classes, whose classes are 0, 1, 2 or ant, bee, cat."""
    from sklearn.ensemble import RandomForestClassifier

    x = vectors(200)
    y = (x[:, 0] > 0).astype(int) + (x[:, 1] > 0)
    return RandomForestClassifier(8, random_state=0, max_depth=4).fit(x, np.array(["ant", "bee", "cat"])[y] if strings else y)


def vectors(n: int) -> NDArray[np.float32]:
    """Inputs of the forest, (n, 6)."""
    return np.random.default_rng(5).normal(size=(n, 6)).astype(np.float32)


def save_forest(path: Path, zipmap: bool, strings: bool = False) -> Path:
    """The forest as skl2onnx exports it: labels, and scores as maps or as a tensor."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from skl2onnx import to_onnx

        model = to_onnx(forest(strings), vectors(1), options={"zipmap": zipmap}, target_opset=17)
    path.write_bytes(model.SerializeToString())
    return path
