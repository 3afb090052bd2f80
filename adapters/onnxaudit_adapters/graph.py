"""A learned detector's frozen network: a chain of dense layers in a bundle, which may come from anyone, run by ONNX Runtime."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from onnxaudit.errors import ArtefactError

MAX_BYTES = 16 << 20
MAX_NODES = 64
ACTIVATIONS = {"Relu": frozenset[str](), "LeakyRelu": frozenset({"alpha"})}
DENSE = frozenset({"alpha", "beta", "transB"})
_FATAL = 4


def open_graph(data: bytes) -> Callable[[NDArray[np.float32]], NDArray[np.float32]]:
    """A function of (rows, features) float32 to (rows, outputs) float32, on the CPU in one thread: the same bytes every time.

    Only a chain of Gemm, Relu and LeakyRelu with its weights inside is run, so that neither time nor memory can be much more than
    its size. Raises ArtefactError for anything else; the function raises ValueError for rows of another width.
    """
    features = _screened(data)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = _FATAL
    try:
        session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        node = session.get_inputs()[0]
        session.run(None, {node.name: np.zeros((2, features), np.float32)})
    except Exception as error:  # ONNX Runtime's errors share no base class
        raise _unsafe(f"it does not run: {' '.join(str(error).split())[:200]}") from None

    def run(rows: NDArray[np.float32]) -> NDArray[np.float32]:
        if rows.ndim != 2 or rows.shape[1] != features:
            raise ValueError(f"the network takes rows of {features} numbers, not an array of {rows.shape}")
        (outputs,) = session.run(None, {node.name: np.ascontiguousarray(rows, np.float32)})
        return np.asarray(outputs, np.float32)

    return run


def _screened(data: bytes) -> int:
    """The number of features of a network that is safe to run. Raises ArtefactError for any other."""
    import onnx

    if len(data) > MAX_BYTES:
        raise _unsafe(f"it has {len(data)} bytes")
    model = onnx.ModelProto()
    try:
        model.ParseFromString(data)
    except Exception as error:  # protobuf's errors differ by version
        raise _unsafe(f"it is not ONNX ({type(error).__name__})") from None
    graph = model.graph
    if model.functions or model.training_info or graph.sparse_initializer or any(o.domain for o in model.opset_import):
        raise _unsafe("it has functions, training, sparse weights or foreign operators")
    if len(graph.input) != 1 or len(graph.output) != 1 or not 1 <= len(graph.node) <= MAX_NODES:
        raise _unsafe(f"it has {len(graph.input)} inputs, {len(graph.output)} outputs and {len(graph.node)} nodes")
    weights = {tensor.name: tensor for tensor in graph.initializer}
    if any(t.data_location or t.external_data or t.data_type != onnx.TensorProto.FLOAT for t in weights.values()):
        raise _unsafe("its weights lie outside of it, or are not float32")
    return _chain(graph, {name: tuple(tensor.dims) for name, tensor in weights.items()})


def _chain(graph: Any, weights: dict[str, tuple[int, ...]]) -> int:
    """The features that a chain of layers takes, from its first weights. Raises ArtefactError where it is no such chain.

    As every layer has weights of its own on its second and third place, none can blow up what it is given.
    """
    last, features = graph.input[0].name, 0
    if last in weights:
        raise _unsafe("its input is a weight")
    for node in graph.node:
        known = {attribute.name for attribute in node.attribute}
        layer = node.op_type
        if node.domain or len(node.output) != 1 or not node.input or node.input[0] != last:
            raise _unsafe(f"{layer[:40]!r} is not a layer of a chain")
        if layer == "Gemm" and known <= DENSE and 2 <= len(node.input) <= 3 and all(n in weights for n in node.input[1:]):
            inputs, outputs = _sizes(node, weights)
            if len(node.input) == 3 and weights[node.input[2]] != (outputs,):
                raise _unsafe("a layer has another number of outputs than it adds to")
            features = features or inputs
        elif layer not in ACTIVATIONS or not known <= ACTIVATIONS[layer] or len(node.input) != 1:
            raise _unsafe(f"{layer[:40]!r} is not one of Gemm, Relu and LeakyRelu as detectors have them")
        last = node.output[0]
    if last != graph.output[0].name or not features:
        raise _unsafe("its output is not that of its last layer")
    return features


def _sizes(node: Any, weights: dict[str, tuple[int, ...]]) -> tuple[int, int]:
    """Inputs and outputs of a dense layer."""
    shape = weights[node.input[1]]
    if len(shape) != 2 or min(shape) < 1:
        raise _unsafe(f"a layer has weights of shape {shape}")
    turned = any(attribute.name == "transB" and attribute.i for attribute in node.attribute)
    return (shape[1], shape[0]) if turned else shape


def _unsafe(why: str) -> ArtefactError:
    return ArtefactError(
        f"a learned detector's network is refused: {why}", "The bundle was not made by onnxaudit, or is damaged."
    )
