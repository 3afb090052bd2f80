"""An ONNX file behind LitServe, in three forms; runs in its own environment: serve.py MODEL PORT [FORM…]."""

import base64
import io
import sys
from typing import Any

import litserve  # type: ignore[import-not-found]
import numpy as np
import onnxruntime as ort
from PIL import Image


class Classifier(litserve.LitAPI):  # type: ignore[misc]
    """tensor: rows to rows. hf: an image in base64 to a ranking, as Hugging Face's API has it. label: one row to its class."""

    mode = "tensor"

    def setup(self, device: str) -> None:  # noqa: ARG002
        self._session = ort.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])

    def decode_request(self, request: dict[str, Any]) -> Any:
        if self.mode != "hf":
            rows = np.asarray(request["input"], np.float32)
            return rows[:1] if self.mode == "label" else rows, 0
        pixels: Any = np.asarray(Image.open(io.BytesIO(base64.b64decode(request["inputs"]))), np.float32) / 255
        rows = pixels[None, None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)[None]
        return rows, request.get("parameters", {}).get("top_k", 5)

    def predict(self, given: Any) -> Any:
        rows, top = given
        return self._session.run(None, {self._session.get_inputs()[0].name: rows})[0], top

    def encode_response(self, output: Any) -> Any:
        scores, top = output
        if self.mode == "label":
            return {"label": int(scores[0].argmax())}
        if self.mode == "tensor":
            return {"output": scores.tolist()}
        chances = np.exp(scores[0].astype(np.float64) - scores[0].max())
        chances /= chances.sum()
        return [{"label": f"LABEL_{i}", "score": float(chances[i])} for i in np.argsort(-chances)[:top]]


def at(mode: str, path: str) -> Classifier:
    """The classifier in one form at one path."""
    api = Classifier(api_path=path)
    api.mode = mode
    return api


if __name__ == "__main__":
    forms = sys.argv[3:]
    apis = [at(mode, f"/{mode}") for mode in forms] or at("tensor", "/predict")
    server = litserve.LitServer(apis, accelerator="cpu", workers_per_device=1)
    server.run(host="127.0.0.1", port=int(sys.argv[2]), generate_client_file=False, log_level="warning")
