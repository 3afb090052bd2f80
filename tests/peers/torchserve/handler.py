"""TorchServe's handler for one ONNX file: an image in, the best five classes out; runs in TorchServe's environment."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from PIL import Image

_session: Any = None


def _scores(image: bytes) -> dict[str, float]:
    pixels = np.asarray(Image.open(io.BytesIO(image)), np.float32) / 255
    rows = pixels[None, None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)[None]
    scores = _session.run(None, {_session.get_inputs()[0].name: rows})[0][0].astype(np.float64)
    chances = np.exp(scores - scores.max())
    chances /= chances.sum()
    return {str(i): float(chances[i]) for i in np.argsort(-chances)[:5]}


def handle(data: Any, context: Any) -> Any:
    """Called once without data to load the model, then with one entry a request."""
    global _session
    if _session is None:
        path = Path(context.system_properties["model_dir"]) / "model.onnx"
        _session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return None if data is None else [_scores(bytes(row.get("body") or row.get("data"))) for row in data]
