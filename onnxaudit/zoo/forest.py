"""Random forests on pixels, as ONNX files that take what the zoo's networks take (scikit-learn, skl2onnx)."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from onnxaudit.errors import UsageError, missing_extra

if TYPE_CHECKING:
    from sklearn.ensemble import RandomForestClassifier

    from onnxaudit.suspect import Queries

OPSET, IR = 17, 9


def fit_forest(x: Queries, y: NDArray[np.int64], *, trees: int = 20, seed: int = 0) -> RandomForestClassifier:
    """A forest on canonical inputs as they are: pixels 0 to 255 in the order H, W, C, or vectors. One thread."""
    from sklearn.ensemble import RandomForestClassifier

    return RandomForestClassifier(trees, random_state=seed, n_jobs=1).fit(x.reshape(len(x), -1), y)


def save_forest(forest: RandomForestClassifier, shape: tuple[int, ...], classes: int, path: Path) -> None:
    """Save a forest from ``fit_forest``: "input" (n, H, W, C) uint8 or (n, d) float32, "probabilities" (n, classes) float32.

    A class that no training input had has a probability of zero. Written in one step. Raises UsageError if the forest was
    trained on inputs of another size or on labels that are not 0 to classes - 1.
    """
    features, known = math.prod(shape), np.asarray(forest.classes_)
    if forest.n_features_in_ != features:
        raise UsageError(f"the forest takes {forest.n_features_in_} values, inputs of {shape} have {features}")
    if known.dtype.kind not in "iu" or known.min() < 0 or known.max() >= classes:
        raise UsageError(f"the forest's labels are {known[:5].tolist()}, not 0 to {classes - 1}")
    trees = _converted(forest, features)
    image = len(shape) == 3
    front = [
        helper.make_node("Cast", ["input"], ["values"], to=TensorProto.FLOAT),
        helper.make_node("Reshape", ["values", "flat"], ["features"]),
    ]
    column = np.zeros((len(known), classes), np.float32)
    column[np.arange(len(known)), known] = 1
    graph = helper.make_graph(
        [
            *(front if image else [helper.make_node("Identity", ["input"], ["features"])]),
            *trees.graph.node,
            helper.make_node("MatMul", ["of known", "column"], ["probabilities"]),
        ],
        "forest",
        [helper.make_tensor_value_info("input", TensorProto.UINT8 if image else TensorProto.FLOAT, ["n", *shape])],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["n", classes])],
        [
            *trees.graph.initializer,
            numpy_helper.from_array(column, "column"),
            *([numpy_helper.from_array(np.array([-1, features], np.int64), "flat")] if image else []),
        ],
    )
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid("ai.onnx.ml", 1)]
    temporary = path.with_suffix(".tmp")
    temporary.write_bytes(helper.make_model(graph, opset_imports=opsets, ir_version=IR).SerializeToString())
    temporary.replace(path)


def _converted(forest: RandomForestClassifier, features: int) -> onnx.ModelProto:
    """The forest alone, from "features" (n, features) to "of known": probabilities of the classes that it was trained on."""
    try:
        from skl2onnx import to_onnx
        from skl2onnx.common.data_types import FloatTensorType
    except ModuleNotFoundError as error:
        raise missing_extra(error.name or "skl2onnx", "torch") from None
    given = [("features", FloatTensorType([None, features]))]
    model: Any = to_onnx(forest, initial_types=given, options={"zipmap": False}, target_opset={"": OPSET, "ai.onnx.ml": 1})
    for node in model.graph.node:
        node.output[:] = ["of known" if name == "probabilities" else name for name in node.output]
    found: onnx.ModelProto = model
    return found
