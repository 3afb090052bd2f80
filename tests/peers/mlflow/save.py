"""An ONNX file as an MLflow model; runs in MLflow's environment: save.py MODEL FOLDER."""

import sys

import mlflow.onnx  # type: ignore[import-not-found]
import numpy as np
import onnx
from mlflow.models.signature import ModelSignature  # type: ignore[import-not-found]
from mlflow.types import Schema, TensorSpec  # type: ignore[import-not-found]


def _tensor(node: onnx.ValueInfoProto) -> TensorSpec:
    sizes = [dim.dim_value or -1 for dim in node.type.tensor_type.shape.dim]
    return TensorSpec(np.dtype("float32"), tuple(sizes), name=None)


model = onnx.load(sys.argv[1])
inputs, outputs = Schema([_tensor(model.graph.input[0])]), Schema([_tensor(model.graph.output[0])])
mlflow.onnx.save_model(model, sys.argv[2], signature=ModelSignature(inputs=inputs, outputs=outputs))
