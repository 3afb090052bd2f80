"""The ONNX file named by PEER_MODEL behind BentoML; runs in its own environment."""

import os

import bentoml  # type: ignore[import-not-found]
import numpy as np
import onnxruntime as ort


@bentoml.service(workers=1, traffic={"timeout": 30})
class Suspect:
    """Rows to rows."""

    def __init__(self) -> None:
        self._session = ort.InferenceSession(os.environ["PEER_MODEL"], providers=["CPUExecutionProvider"])

    @bentoml.api  # type: ignore[untyped-decorator]
    def predict(self, input: np.ndarray) -> np.ndarray:
        """The first output of the graph."""
        scores: np.ndarray = self._session.run(None, {self._session.get_inputs()[0].name: input.astype(np.float32)})[0]
        return scores
