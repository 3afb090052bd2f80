"""ONNX files of plain float networks as programs that gradients can be taken of (torch)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from onnxaudit.craft.victim import Victim, choose_device
from onnxaudit.errors import UsageError
from onnxaudit.suspect import InputSpec

Attributes = Mapping[str, Any]
Operator = Callable[..., Tensor]


class OnnxProgram:
    """A graph as a function of its first input, its float constants on one device. Raises UsageError for what is not covered."""

    def __init__(self, path: Path, device: torch.device) -> None:
        import onnx
        from onnx import numpy_helper

        graph = onnx.load(str(path)).graph
        constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
        self._nodes: list[tuple[str, Attributes, list[str], str]] = []
        for node in graph.node:
            known = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
            if node.op_type == "Constant" and "value" in known:
                constants[node.output[0]] = numpy_helper.to_array(known["value"])
                continue
            if node.op_type not in OPERATORS or known.get("auto_pad", b"NOTSET") != b"NOTSET":
                raise UsageError(f"no gradients are taken through the operator {node.op_type} of {path.name}")
            self._nodes.append((node.op_type, known, list(node.input), node.output[0]))
        self._constants = {name: torch.tensor(np.array(value)).to(device) for name, value in constants.items()}
        self._input = next(entry.name for entry in graph.input if entry.name not in constants)
        self._output = graph.output[0].name

    def __call__(self, x: Tensor) -> Tensor:
        """The first output."""
        known = {**self._constants, "": None, self._input: x}
        for kind, attributes, inputs, output in self._nodes:
            known[output] = OPERATORS[kind](attributes, *(known[name] for name in inputs))
        found = known[self._output]
        assert found is not None
        return found


def open_onnx_program(path: Path, spec: InputSpec, num_classes: int, device: str) -> Victim:
    """An ONNX file as a model with differentiable logits. spec: what it takes, as its suspect's card says.

    Raises UsageError for operators that are not covered, and for other shapes than the card's.
    """
    where = choose_device(device)
    if spec.dtype == "uint8":  # a cast to whole numbers has no gradient; the graph casts them back
        spec = dataclasses.replace(spec, dtype="float32")
    return Victim(OnnxProgram(path, where), spec, where, "onnx", "", path.name, num_classes).probed()


def _symmetric(attributes: Attributes) -> list[int]:
    pads = list(attributes.get("pads", (0, 0, 0, 0)))
    if len(pads) != 4 or pads[:2] != pads[2:]:
        raise UsageError("no gradients are taken through pooling with uneven padding")
    return pads[:2]


def _convolution(a: Attributes, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    top, left, bottom, right = a.get("pads", (0, 0, 0, 0))
    padded = functional.pad(x, (left, right, top, bottom))
    return functional.conv2d(
        padded, weight, bias, a.get("strides", (1, 1)), dilation=a.get("dilations", (1, 1)), groups=a.get("group", 1)
    )


def _max_pool(a: Attributes, x: Tensor) -> Tensor:
    return functional.max_pool2d(
        x,
        a["kernel_shape"],
        a.get("strides", (1, 1)),
        _symmetric(a),
        a.get("dilations", (1, 1)),
        ceil_mode=bool(a.get("ceil_mode", 0)),
    )


def _average_pool(a: Attributes, x: Tensor) -> Tensor:
    return functional.avg_pool2d(
        x,
        a["kernel_shape"],
        a.get("strides", (1, 1)),
        _symmetric(a),
        ceil_mode=bool(a.get("ceil_mode", 0)),
        count_include_pad=bool(a.get("count_include_pad", 0)),
    )


def _normalised(a: Attributes, x: Tensor, scale: Tensor, shift: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    return functional.batch_norm(x, mean, variance, scale, shift, eps=a.get("epsilon", 1e-5))


def _flattened(a: Attributes, x: Tensor) -> Tensor:
    if a.get("axis", 1) != 1:
        raise UsageError("no gradients are taken through flattening of the batch")
    return x.flatten(1)


def _gemm(a: Attributes, x: Tensor, y: Tensor, z: Tensor | None = None) -> Tensor:
    left, right = (x.T if a.get("transA", 0) else x), (y.T if a.get("transB", 0) else y)
    product = (left @ right).mul(a.get("alpha", 1.0))
    return product if z is None else product + z.mul(a.get("beta", 1.0))


def _reshaped(a: Attributes, x: Tensor, shape: Tensor) -> Tensor:
    return x.reshape([x.shape[place] if size == 0 else size for place, size in enumerate(shape.tolist())])


def _pooled(a: Attributes, x: Tensor) -> Tensor:
    return x.mean(dim=tuple(range(2, x.ndim)), keepdim=True)


def _joined(a: Attributes, *parts: Tensor) -> Tensor:
    return torch.cat(parts, dim=a["axis"])


def _turned(a: Attributes, x: Tensor) -> Tensor:
    order: Sequence[int] = a.get("perm", tuple(reversed(range(x.ndim))))
    return x.permute(*order)


OPERATORS: Mapping[str, Operator] = {
    "Add": lambda _, x, y: x + y,
    "AveragePool": _average_pool,
    "BatchNormalization": _normalised,
    "Cast": lambda _, x: x,
    "Concat": _joined,
    "Conv": _convolution,
    "Div": lambda _, x, y: x / y,
    "Flatten": _flattened,
    "Gemm": _gemm,
    "GlobalAveragePool": _pooled,
    "Identity": lambda _, x: x,
    "MatMul": lambda _, x, y: x @ y,
    "MaxPool": _max_pool,
    "Mul": lambda _, x, y: x * y,
    "Relu": lambda _, x: x.relu(),
    "Reshape": _reshaped,
    "Sigmoid": lambda _, x: x.sigmoid(),
    "Softmax": lambda a, x: x.softmax(a.get("axis", -1)),
    "Sub": lambda _, x, y: x - y,
    "Transpose": _turned,
}
"""What small image classifiers are made of; anything else has no gradients here."""
