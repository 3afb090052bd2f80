"""Hugging Face's image classification task: all that we send is allowed by its schemas, and all that they allow is read.

What they allow is restated, so that it is held in every run; tests/test_http_huggingface_schemas.py compares it with the files.
"""

from __future__ import annotations

import base64
import io
import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from PIL import Image

from onnxaudit.answers import Access
from onnxaudit.suspect import InputSpec
from onnxaudit_adapters.http.dialects import Reply
from onnxaudit_adapters.http.huggingface import HuggingFace
from onnxaudit_adapters.http.names import ClassNames
from onnxaudit_adapters.http.strict_json import ReplyError
from tests.huggingface_task import ADDRESS, ALLOWED_REPLIES, ANY_REPLIES, allowed_reply, allowed_request, encoded


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("num_classes", [None, 2, 1000])
def test_what_we_send_is_a_request_of_the_task(channels: int, num_classes: int | None) -> None:
    document, pixels = encoded(channels, num_classes)
    assert allowed_request(document)
    assert set(document) <= {"inputs", "parameters"}
    assert document.get("parameters") == (None if num_classes is None else {"top_k": num_classes})
    image = np.asarray(Image.open(io.BytesIO(base64.b64decode(document["inputs"], validate=True))))
    np.testing.assert_array_equal(image.reshape(pixels.shape), pixels)


def test_the_raw_body_is_the_image_alone_since_there_are_no_parameters() -> None:
    pixels = np.zeros((1, 5, 7, 3), np.uint8)
    request = HuggingFace(ADDRESS, 10, raw=True).encode(pixels, InputSpec((5, 7, 3)))
    assert Image.open(io.BytesIO(request.body)).format == "PNG"
    assert request.headers["Content-Type"] == "image/png"


@given(ALLOWED_REPLIES)
@settings(max_examples=300, deadline=None)
def test_every_reply_that_the_task_allows_is_read_or_ranks_nothing(document: list[dict[str, Any]]) -> None:
    """Read, unless it is empty or names a class twice, which the schema allows and no ranking is."""
    assert allowed_reply(document)
    names = ClassNames(discover=True)
    dialect, reply = HuggingFace(ADDRESS, None, names), Reply(200, json.dumps(document).encode())
    labels = [entry["label"] for entry in document]
    if not document or len(set(labels)) < len(labels):
        with pytest.raises(ReplyError):
            dialect.decode(reply, 1)
        return
    answers = dialect.decode(reply, 1)
    best = max(float(entry["score"]) for entry in document)
    assert answers.labels[0] in {names.index(entry["label"]) for entry in document if entry["score"] == best}
    scores = np.array([entry["score"] for entry in document], np.float32)
    if answers.access != Access.LABEL:
        assert answers.scores is not None
        np.testing.assert_array_equal(answers.scores[0], -np.sort(-scores))
        said = {names.index(entry["label"]): np.float32(entry["score"]) for entry in document}
        assert dict(zip(answers.classes[0].tolist(), answers.scores[0], strict=True)) == said
    else:  # no probabilities, so that nothing but the order means anything
        assert scores.min() < 0 or math.fsum(scores) > 1


@pytest.mark.parametrize("score", [10**400, -(10**400), 3.5e38, -1e300])
def test_a_score_that_the_task_allows_and_single_precision_does_not_is_refused(score: float) -> None:
    document = [{"label": "1", "score": score}, {"label": "0", "score": 0.5}]
    assert allowed_reply(document)
    with pytest.raises(ReplyError):
        HuggingFace(ADDRESS, 2).decode(Reply(200, json.dumps(document).encode()), 1)


@given(ANY_REPLIES)
@settings(max_examples=300, deadline=None)
def test_what_the_task_does_not_allow_is_no_answer(document: object) -> None:
    """Beyond the schema we read whole numbers as labels, and the axis that a batch of one adds."""
    if allowed_reply(document) or _reads_more(document):
        return
    with pytest.raises(ReplyError):
        HuggingFace(ADDRESS, None, ClassNames(discover=True)).decode(Reply(200, json.dumps(document).encode()), 1)


def _reads_more(document: object) -> bool:
    if isinstance(document, list) and len(document) == 1 and isinstance(document[0], list):
        document = document[0]
    return isinstance(document, list) and allowed_reply([_worded(entry) for entry in document])


def _worded(entry: object) -> object:
    label = entry.get("label") if isinstance(entry, dict) else None
    whole = isinstance(label, int) and not isinstance(label, bool) and label >= 0
    return {**entry, "label": str(label)} if isinstance(entry, dict) and whole else entry
