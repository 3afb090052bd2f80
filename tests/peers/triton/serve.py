"""An ONNX file behind Triton's own server through pytriton; runs in its own environment: serve.py MODEL PORT GRPC METRICS."""

import sys
from typing import Any

import numpy as np
import onnxruntime as ort
from pytriton.decorators import batch  # type: ignore[import-not-found]
from pytriton.model_config import ModelConfig, Tensor  # type: ignore[import-not-found]
from pytriton.triton import Triton, TritonConfig  # type: ignore[import-not-found]

SESSION = ort.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
INPUT, OUTPUT = SESSION.get_inputs()[0], SESSION.get_outputs()[0]


@batch  # type: ignore[untyped-decorator]
def infer(**inputs: Any) -> Any:
    """Scores of one batch."""
    return {OUTPUT.name: SESSION.run([OUTPUT.name], {INPUT.name: inputs[INPUT.name]})[0]}


if __name__ == "__main__":
    http, grpc, metrics = map(int, sys.argv[2:5])
    here = {f"{kind}_address": "127.0.0.1" for kind in ("http", "grpc", "metrics")}
    with Triton(config=TritonConfig(**here, http_port=http, grpc_port=grpc, metrics_port=metrics)) as triton:
        triton.bind(
            model_name="suspect",
            infer_func=infer,
            inputs=[Tensor(name=INPUT.name, dtype=np.float32, shape=tuple(INPUT.shape[1:]))],
            outputs=[Tensor(name=OUTPUT.name, dtype=np.float32, shape=tuple(OUTPUT.shape[1:]))],
            config=ModelConfig(max_batch_size=32),
        )
        triton.serve()
