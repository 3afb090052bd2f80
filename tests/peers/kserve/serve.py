"""An ONNX file behind KServe, V1 and V2 with binary tensors; runs in its own environment: serve.py MODEL PORT."""

import asyncio
import sys
from typing import Any

import numpy as np
import onnxruntime as ort
from kserve import InferOutput, InferRequest, InferResponse, Model, ModelServer  # type: ignore[import-not-found]
from kserve.model_server import app  # type: ignore[import-not-found]
from kserve.protocol.rest.server import RESTServer  # type: ignore[import-not-found]


class Classifier(Model):  # type: ignore[misc]
    """Scores from the first output of the graph."""

    def __init__(self, path: str) -> None:
        super().__init__("suspect")
        self._session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
        self.ready = True

    def predict(self, payload: Any, headers: Any = None, response_headers: Any = None) -> Any:  # noqa: ARG002
        name = self._session.get_inputs()[0].name
        if not isinstance(payload, InferRequest):
            rows = np.asarray(payload["instances"], np.float32)
            return {"predictions": self._session.run(None, {name: rows})[0].tolist()}
        scores = self._session.run(None, {name: payload.inputs[0].as_numpy()})[0]
        output = InferOutput("logits", list(scores.shape), "FP32")
        output.set_data_from_numpy(scores, binary_data=False)
        return InferResponse(
            response_id=payload.id,
            model_name=self.name,
            infer_outputs=[output],
            use_binary_outputs=payload.use_binary_outputs,
            requested_outputs=payload.request_outputs,
        )


if __name__ == "__main__":
    server = ModelServer(enable_grpc=False)
    server.register_model(Classifier(sys.argv[1]))
    rest = RESTServer(app, server.dataplane, server.model_repository_extension, int(sys.argv[2]))
    rest.config.host = "127.0.0.1"  # started by ModelServer it would listen to everyone
    asyncio.run(rest.start())
