"""Small ``.tflite`` files from ONNX files of plain convolutional networks, written with the schema that LiteRT brings along.

Weights keep their values. Layout becomes NHWC, padding a step of its own, batch normalisation a product and a sum.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from ai_edge_litert import schema_py_generated as schema
from flatbuffers import Builder
from numpy.typing import NDArray
from onnx import numpy_helper

Quantised = tuple[str, float, int]
"""An element type ("INT8", "UINT8"), a scale and a zero point."""
_TYPES = {"float32": "FLOAT32", "int32": "INT32", "int64": "INT64"}


class Writer:
    """One graph in the making. Tensors are known by the number that they have in the file."""

    def __init__(self) -> None:
        self.tensors: list[Any] = []
        self.buffers: list[Any] = [schema.BufferT()]  # the first is empty by convention
        self.operators: list[Any] = []
        self.codes: list[int] = []

    def tensor(
        self, shape: Sequence[int], kind: str = "FLOAT32", quantised: Quantised | None = None, dynamic: bool = False
    ) -> int:
        """A tensor without values. dynamic: its first size may be any."""
        made = schema.TensorT()
        made.name, made.type = f"t{len(self.tensors)}", getattr(schema.TensorType, quantised[0] if quantised else kind)
        made.shape, made.buffer, made.hasRank = list(shape), 0, True
        if dynamic:
            made.shapeSignature = [-1, *shape[1:]]
        if quantised:
            made.quantization = schema.QuantizationParametersT()
            made.quantization.scale, made.quantization.zeroPoint = [quantised[1]], [quantised[2]]
        self.tensors.append(made)
        return len(self.tensors) - 1

    def constant(self, values: NDArray[Any]) -> int:
        """A tensor of these values."""
        place = self.tensor(values.shape, _TYPES[values.dtype.name])
        buffer = schema.BufferT()
        buffer.data = np.frombuffer(np.ascontiguousarray(values).tobytes(), np.uint8)
        self.tensors[place].buffer = len(self.buffers)
        self.buffers.append(buffer)
        return place

    def add(self, name: str, inputs: Sequence[int], output: int, options: str = "", **fields: Any) -> int:
        """An operation, whose only output is given back. options: the name of its table of options."""
        code = getattr(schema.BuiltinOperator, name)
        if code not in self.codes:
            self.codes.append(code)
        made = schema.OperatorT()
        made.opcodeIndex, made.inputs, made.outputs = self.codes.index(code), list(inputs), [output]
        if options:
            made.builtinOptionsType = getattr(schema.BuiltinOptions, options)
            made.builtinOptions = getattr(schema, f"{options}T")()
            for field, value in fields.items():
                setattr(made.builtinOptions, field, value)
        self.operators.append(made)
        return output

    def model(self, given: int, answers: Sequence[int]) -> Any:
        """The whole model."""
        graph, model = schema.SubGraphT(), schema.ModelT()
        graph.tensors, graph.operators, graph.inputs, graph.outputs = self.tensors, self.operators, [given], list(answers)
        model.version, model.subgraphs, model.buffers, model.operatorCodes = 3, [graph], self.buffers, []
        for code in self.codes:
            entry = schema.OperatorCodeT()
            entry.builtinCode, entry.deprecatedBuiltinCode, entry.version = code, min(code, 127), 1
            model.operatorCodes.append(entry)
        return model


def packed(model: Any) -> bytes:
    """A model's bytes."""
    builder = Builder(1 << 16)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def converted(
    source: Path,
    path: Path,
    *,
    batch: int | None = 1,
    given: Quantised | None = None,
    answer: Quantised | None = None,
    softmax: bool = False,
) -> Path:
    """An ONNX file (n, C, H, W) as ``.tflite``. batch: None for any; given, answer: quantised inputs and outputs."""
    graph = onnx.load(str(source)).graph
    values = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    channels, height, width = (size.dim_value for size in graph.input[0].type.tensor_type.shape.dim[1:])
    writer, n, dynamic = Writer(), batch or 1, batch is None
    shape = (n, height, width, channels)
    first = writer.tensor(shape, quantised=given, dynamic=dynamic)
    last = writer.add("DEQUANTIZE", [first], writer.tensor(shape, dynamic=dynamic)) if given else first
    places = {graph.input[0].name: last}
    shapes: dict[str, tuple[int, ...]] = {graph.input[0].name: shape}
    for node in graph.node:
        shapes[node.output[0]] = _shape(node, values, shapes)
        places[node.output[0]] = _convert(writer, node, values, places, shapes, dynamic)
    end = graph.node[-1].output[0]
    last = places[end]
    if softmax:
        last = writer.add("SOFTMAX", [last], writer.tensor(shapes[end], dynamic=dynamic), "SoftmaxOptions", beta=1.0)
    if answer:
        last = writer.add("QUANTIZE", [last], writer.tensor(shapes[end], quantised=answer, dynamic=dynamic), "QuantizeOptions")
    path.write_bytes(packed(writer.model(first, [last])))
    return path


def _attributes(node: onnx.NodeProto) -> dict[str, Any]:
    return {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}


def _padded(node: onnx.NodeProto, shape: Sequence[int]) -> tuple[int, ...]:
    top, left, bottom, right = _attributes(node).get("pads", (0, 0, 0, 0))
    return shape[0], shape[1] + top + bottom, shape[2] + left + right, shape[3]


def _shape(node: onnx.NodeProto, values: dict[str, NDArray[Any]], shapes: dict[str, Any]) -> tuple[int, ...]:
    """The shape of a node's output, NHWC."""
    shape = tuple(shapes[node.input[0]])
    if node.op_type in ("Conv", "MaxPool"):
        attributes = _attributes(node)
        kernel = values[node.input[1]].shape[2:] if node.op_type == "Conv" else attributes["kernel_shape"]
        strides = attributes.get("strides", (1, 1))
        _, height, width, _ = _padded(node, shape)
        filters = values[node.input[1]].shape[0] if node.op_type == "Conv" else shape[3]
        return shape[0], (height - kernel[0]) // strides[0] + 1, (width - kernel[1]) // strides[1] + 1, filters
    if node.op_type == "GlobalAveragePool":
        return shape[0], 1, 1, shape[3]
    if node.op_type == "Flatten":
        return shape[0], int(np.prod(shape[1:]))
    if node.op_type == "Gemm":
        return shape[0], len(values[node.input[2]])
    return shape


def _convert(
    writer: Writer,
    node: onnx.NodeProto,
    values: dict[str, NDArray[Any]],
    places: dict[str, int],
    shapes: dict[str, Any],
    dynamic: bool,
) -> int:
    """One node as one or a few operations; the tensor that holds its output."""
    source, shape = places[node.input[0]], shapes[node.input[0]]
    constants = [np.asarray(values[name], np.float32) for name in node.input if name in values]
    attributes = _attributes(node)

    def made(size: Sequence[int] = shapes[node.output[0]]) -> int:
        return writer.tensor(size, dynamic=dynamic)

    if node.op_type == "Relu":
        return writer.add("RELU", [source], made())
    if node.op_type == "Add":
        return writer.add("ADD", [source, places[node.input[1]]], made(), "AddOptions")
    if node.op_type == "BatchNormalization":
        gain, shift, mean, variance = constants
        gain = (gain / np.sqrt(variance + attributes.get("epsilon", 1e-5))).astype(np.float32)
        scaled = writer.add("MUL", [source, writer.constant(gain)], made(), "MulOptions")
        return writer.add("ADD", [scaled, writer.constant(shift - mean * gain)], made(), "AddOptions")
    if node.op_type == "GlobalAveragePool":
        axes = writer.constant(np.array([1, 2], np.int32))
        return writer.add("MEAN", [source, axes], made(), "ReducerOptions", keepDims=True)
    if node.op_type == "Flatten":
        order = writer.constant(np.array([0, 3, 1, 2], np.int32))
        moved = made((shape[0], shape[3], shape[1], shape[2]))
        source = writer.add("TRANSPOSE", [source, order], moved, "TransposeOptions")
        size = writer.constant(np.array([-1, int(np.prod(shape[1:]))], np.int32))
        return writer.add("RESHAPE", [source, size], made(), "ReshapeOptions")
    if node.op_type == "Gemm":
        weights = constants[0] if attributes.get("transB") else constants[0].T
        inputs = [source, writer.constant(weights), writer.constant(constants[1])]
        return writer.add("FULLY_CONNECTED", inputs, made(), "FullyConnectedOptions")
    padded = _padded(node, shape)
    if padded != tuple(shape):
        top, left, bottom, right = attributes["pads"]
        assert node.op_type == "Conv", "zeros are not what pooling pads with"
        pads = writer.constant(np.array([[0, 0], [top, bottom], [left, right], [0, 0]], np.int32))
        source = writer.add("PAD", [source, pads], made(padded), "PadOptions")
    down, across = attributes.get("strides", (1, 1))
    steps = {"strideH": down, "strideW": across, "padding": schema.Padding.VALID}
    if node.op_type == "MaxPool":
        high, wide = attributes["kernel_shape"]
        return writer.add("MAX_POOL_2D", [source], made(), "Pool2DOptions", filterHeight=high, filterWidth=wide, **steps)
    assert node.op_type == "Conv", node.op_type
    inputs = [source, writer.constant(constants[0].transpose(0, 2, 3, 1)), writer.constant(constants[1])]
    return writer.add("CONV_2D", inputs, made(), "Conv2DOptions", **steps)
