"""An MLServer runtime for one ONNX file; runs inside MLServer's own environment."""

import onnxruntime as ort
from mlserver import MLModel  # type: ignore[import-not-found]
from mlserver.codecs import NumpyCodec  # type: ignore[import-not-found]
from mlserver.types import InferenceRequest, InferenceResponse  # type: ignore[import-not-found]


class OnnxModel(MLModel):  # type: ignore[misc]
    """Takes the first tensor of a request, gives every output of the graph under its own name."""

    async def load(self) -> bool:
        """Open the file that model-settings.json names."""
        self._session = ort.InferenceSession(self.settings.parameters.uri, providers=["CPUExecutionProvider"])
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """One run of the session."""
        feed = {self._session.get_inputs()[0].name: NumpyCodec.decode_input(payload.inputs[0])}
        names = [output.name for output in self._session.get_outputs()]
        outputs = [
            NumpyCodec.encode_output(name, value) for name, value in zip(names, self._session.run(names, feed), strict=True)
        ]
        return InferenceResponse(model_name=self.name, outputs=outputs)
