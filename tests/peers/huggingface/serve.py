"""A model folder behind the code of Hugging Face's own inference service: serve.py FOLDER PORT; runs in its own environment.

Requests are read, checked and answered by api-inference-community; the picture is prepared and classified by the pipeline of
transformers. Here is only what each of the service's images writes: which model, and that every path is its own.
"""

import os
import sys

os.environ |= {"TASK": "image-classification", "HF_HUB_OFFLINE": "1"}

import uvicorn  # type: ignore[import-not-found]
from api_inference_community.routes import pipeline_route, status_ok  # type: ignore[import-not-found]
from starlette.applications import Starlette  # type: ignore[import-not-found]
from starlette.routing import Route  # type: ignore[import-not-found]
from transformers import pipeline  # type: ignore[import-not-found]

if __name__ == "__main__":
    classify = pipeline("image-classification", model=sys.argv[1], device="cpu")
    app = Starlette(routes=[Route("/{path:path}", status_ok), Route("/{path:path}", pipeline_route, methods=["POST"])])
    app.get_pipeline = lambda: classify
    uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[2]), log_level="warning")
