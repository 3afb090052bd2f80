"""Hugging Face's own schemas, with ``make peers``: they say what tests/huggingface_task.py restates, real replies fit them."""

from __future__ import annotations

import base64
import json
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft6Validator
from referencing import Registry, Resource

from onnxaudit.suspect import InputSpec
from onnxaudit_adapters.http.huggingface import HuggingFace
from onnxaudit_adapters.http.options import parse_address
from tests.bundles import CLASSES, SHAPE
from tests.huggingface_task import ALLOWED_REPLIES, ANY_REPLIES, ANY_REQUESTS, allowed_reply, allowed_request, encoded
from tests.peer_bundle import copy_of_victim
from tests.peers import starting
from tests.peers.environments import CannotInstallError
from tests.peers.record import RECORDED
from tests.peers.schemas import schemas

pytestmark = pytest.mark.peers


@pytest.fixture(scope="module")
def validators() -> dict[str, Draft6Validator]:
    """Of requests ("input") and replies ("output")."""
    try:
        documents = schemas()
    except CannotInstallError as error:
        pytest.skip(str(error))
    registry: Registry[Any] = Registry().with_resources(
        (document["$id"], Resource.from_contents(document)) for document in documents.values()
    )
    return {name: Draft6Validator(documents[name], registry=registry) for name in ("input", "output")}


@given(document=st.one_of(ANY_REPLIES, ALLOWED_REPLIES))
@settings(max_examples=1000, deadline=None)
def test_the_restated_reply_is_that_of_the_schema(validators: dict[str, Draft6Validator], document: object) -> None:
    assert validators["output"].is_valid(document) == allowed_reply(document)


@given(document=ANY_REQUESTS)
@settings(max_examples=1000, deadline=None)
def test_the_restated_request_is_that_of_the_schema(validators: dict[str, Draft6Validator], document: object) -> None:
    assert validators["input"].is_valid(document) == allowed_request(document)


@given(channels=st.sampled_from([1, 3]), num_classes=st.none() | st.integers(2, 10**6), seed=st.integers(0, 99))
@settings(max_examples=50, deadline=None)
def test_our_requests_fit_the_schema(
    validators: dict[str, Draft6Validator], channels: int, num_classes: int | None, seed: int
) -> None:
    validators["input"].validate(encoded(channels, num_classes, seed)[0])


def test_replies_of_the_recipe_fit_the_schema(validators: dict[str, Draft6Validator], tmp_path: Path) -> None:
    model = copy_of_victim(tmp_path / "model.onnx")
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    queries = np.random.default_rng(0).integers(0, 256, (3, *SHAPE), np.uint8)
    with starting.litserve(model, tmp_path, "hf") as origin:
        for num_classes in (None, 2, CLASSES):
            for row in range(len(queries)):
                sent = HuggingFace(parse_address(f"{origin}/hf"), num_classes).encode(queries[row : row + 1], InputSpec(SHAPE))
                request = urllib.request.Request(sent.address.url, sent.body, dict(sent.headers))
                with direct.open(request, timeout=30) as reply:
                    said = json.load(reply)
                validators["output"].validate(said)
                assert len(said) == (num_classes or 5)


@pytest.mark.parametrize(("peer", "names"), [("litserve", ("hf",)), ("huggingface", ("all", "best"))])
def test_recorded_replies_fit_the_schema(validators: dict[str, Draft6Validator], peer: str, names: tuple[str, ...]) -> None:
    kept = json.loads((RECORDED / f"{peer}.json").read_text())
    for name in names:
        validators["output"].validate(json.loads(base64.b64decode(kept[name]["reply"]["body"])))
        refused = json.loads(base64.b64decode(kept[f"{name}-refused"]["reply"]["body"]))
        assert not validators["output"].is_valid(refused)
