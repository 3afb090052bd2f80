"""What Hugging Face's published schemas allow of its image classification task, restated; and ways to make such documents."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
from hypothesis import strategies as st

from onnxaudit.suspect import InputSpec
from onnxaudit_adapters.http.huggingface import HuggingFace
from onnxaudit_adapters.http.options import parse_address

ADDRESS = parse_address("https://host/models/m")


def allowed_request(document: object) -> bool:
    """``inputs`` is text, and demanded; of the ``parameters`` ``top_k`` is whole, ``function_to_apply`` one of three words."""
    if not isinstance(document, dict) or not isinstance(document.get("inputs"), str):
        return False
    parameters = document.get("parameters", {})
    if not isinstance(parameters, dict):
        return False
    functions = ("sigmoid", "softmax", "none")
    return _is_whole(parameters.get("top_k", 1)) and parameters.get("function_to_apply", "none") in functions


def allowed_reply(document: object) -> bool:
    """An array, which may be empty, of objects: ``label`` text and ``score`` a number, both demanded; anything else besides."""
    return isinstance(document, list) and all(
        isinstance(entry, dict) and isinstance(entry.get("label"), str) and _is_number(entry.get("score")) for entry in document
    )


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_whole(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and float(value).is_integer()


ANYTHING = st.one_of(
    st.none(), st.booleans(), st.integers(-9, 9), st.floats(-9, 9), st.text(max_size=5), st.just([]), st.just({}), st.just("none")
)
NUMBERS = st.one_of(st.integers(-(10**6), 10**6), st.floats(-1e30, 1e30))
MORE = st.dictionaries(st.sampled_from(["class", "name", "index", "confidence", "box", "id"]), ANYTHING, max_size=2)
ENTRIES = st.builds(lambda label, score, more: {**more, "label": label, "score": score}, st.text(max_size=30), NUMBERS, MORE)
ALLOWED_REPLIES = st.lists(ENTRIES, max_size=12)
ANY_REPLIES = st.one_of(
    ANYTHING, st.lists(st.one_of(ANYTHING, ENTRIES, st.fixed_dictionaries({}, optional={"label": ANYTHING, "score": ANYTHING})))
)
_FUNCTIONS = st.one_of(ANYTHING, st.sampled_from(["softmax", "tanh"]))
ANY_REQUESTS = st.one_of(
    ANYTHING,
    st.fixed_dictionaries(
        {},
        optional={
            "inputs": st.one_of(st.text(max_size=9), ANYTHING),
            "parameters": st.one_of(
                ANYTHING,
                st.fixed_dictionaries(
                    {},
                    optional={"top_k": ANYTHING, "function_to_apply": _FUNCTIONS},
                ),
            ),
        },
    ),
)


def encoded(channels: int, num_classes: int | None, seed: int = 0) -> tuple[dict[str, Any], np.ndarray[Any, np.dtype[np.uint8]]]:
    """A request of ours, and the pixels that it should carry."""
    pixels = np.random.default_rng(seed).integers(0, 256, (1, 5, 7, channels), np.uint8)
    request = HuggingFace(ADDRESS, num_classes).encode(pixels, InputSpec((5, 7, channels), mean=(0.5,), std=(0.25,)))
    document: dict[str, Any] = json.loads(request.body)
    return document, pixels[0]
