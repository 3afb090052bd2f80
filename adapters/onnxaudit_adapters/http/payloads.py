"""One query as the bytes of a file: PNG for images, .npy for anything."""

from __future__ import annotations

import base64
import io
from dataclasses import replace

import numpy as np

from onnxaudit.errors import UsageError
from onnxaudit.suspect import InputSpec, Queries
from onnxaudit_adapters.http.dialects import encode_batch


def png(queries: Queries, spec: InputSpec) -> bytes:
    """A single query as a PNG of the size that the spec names, pixels as they are: the server scales and normalises.

    Raises UsageError where the queries are no images.
    """
    from PIL import Image

    if queries.ndim != 4 or len(spec.shape) != 3:
        raise UsageError(
            "this dialect sends images, and the bundle's queries are none", "Choose a dialect that sends numbers with --dialect."
        )
    # RGB whatever the model wants: a PNG has one order, and its reader knows it.
    pixels = replace(spec, dtype="uint8", layout="NHWC", channels="RGB").encode(queries[:1])[0]
    if pixels.shape[2] not in (1, 3):
        raise UsageError(f"images of {pixels.shape[2]} channels cannot be sent as PNG", "Choose a dialect that sends numbers.")
    file = io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels).save(file, "PNG")
    return file.getvalue()


def npy(queries: Queries, spec: InputSpec) -> bytes:
    """The encoded batch (n, …) as a .npy file."""
    file = io.BytesIO()
    np.save(file, encode_batch(queries, spec), allow_pickle=False)
    return file.getvalue()


def base64_text(data: bytes) -> str:
    """Bytes as they go into JSON."""
    return base64.b64encode(data).decode("ascii")
