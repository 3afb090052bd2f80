"""Real servers of the normal run: LitServe in three forms, and nginx in front of it. Each gives the finding of the file."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onnxaudit.answers import Access
from onnxaudit.bundle import QueryBundle
from onnxaudit.errors import SuspectError, UsageError
from onnxaudit.registry import open_suspect
from onnxaudit.suspect import Target
from onnxaudit_adapters.http import HttpSuspect
from tests.bundles import CLASSES
from tests.peer_bundle import copy_of_victim, found, linear_bundle
from tests.peers import starting

KEY = "s3cr3t-key-of-a-test"

pytestmark = pytest.mark.servers


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture(scope="module")
def bundle() -> QueryBundle:
    return linear_bundle()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copy_of_victim(tmp_path_factory.mktemp("model") / "model.onnx")


@pytest.fixture(scope="module")
def litserve(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with starting.litserve(model, tmp_path_factory.mktemp("litserve"), "tensor", "hf", "label") as origin:
        yield origin


def test_litserve_gives_the_finding_of_the_file(litserve: str, bundle: QueryBundle, model: Path) -> None:
    expected = found(bundle, str(model))
    assert expected[0] == "derived"
    assert found(bundle, f"{litserve}/tensor") == expected
    with pytest.raises(UsageError, match=r"GET .*/v2 answered 404.*It takes POST at /tensor, /hf, /label"):
        found(bundle, litserve)


@pytest.mark.parametrize(("form", "access", "dialect"), [("hf", Access.PROBS, "huggingface"), ("label", Access.LABEL, None)])
def test_litserve_with_less_access_gives_the_finding_of_the_file_with_as_much(
    litserve: str, form: str, access: Access, dialect: str | None, bundle: QueryBundle, model: Path
) -> None:
    assert found(bundle, f"{litserve}/{form}", dialect=dialect) == found(bundle, str(model), access)


@pytest.fixture(scope="module")
def nginx_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("nginx")


@pytest.fixture(scope="module")
def nginx(litserve: str, nginx_folder: Path) -> Iterator[str]:
    with starting.nginx(litserve, nginx_folder, KEY) as origin:
        yield f"{origin}/tensor"


def test_nginx_wants_a_key_and_the_error_does_not_show_the_wrong_one(nginx: str, bundle: QueryBundle) -> None:
    for headers in ({}, {"Authorization": "Bearer not-the-right-one"}):
        with pytest.raises(SuspectError, match=r"401 Unauthorized.*Authorization") as caught:
            found(bundle, nginx, dialect="plain", headers=headers)
        assert "not-the-right-one" not in str(caught.value)


def test_nginx_limits_rate_and_size_and_the_finding_stays_that_of_the_file(
    nginx: str, nginx_folder: Path, bundle: QueryBundle, model: Path
) -> None:
    target = Target(
        nginx, bundle.manifest.input, CLASSES, options={"headers": {"Authorization": f"Bearer {KEY}"}, "dialect": "plain"}
    )
    with open_suspect(target) as suspect, open_suspect(Target(str(model), bundle.manifest.input, CLASSES)) as file:
        assert isinstance(suspect, HttpSuspect)
        np.testing.assert_allclose(suspect.ask(bundle.queries).dense(), file.ask(bundle.queries).dense(), atol=1e-5)
        assert suspect.card.max_batch is not None
        assert suspect.card.max_batch < 16  # 413: half as much, and again
        assert suspect.queries_sent > len(bundle.queries)  # what was refused with 413 or 429 was sent all the same
    options: dict[str, Any] = {"headers": {"Authorization": f"Bearer {KEY}"}, "dialect": "plain"}
    # another client's first request, on the heels of this one's last, would be refused, and that is the end of it
    time.sleep(0.5)
    assert found(bundle, nginx, **options) == found(bundle, str(model))
    said = (nginx_folder / "error.log").read_text()
    assert "too large body" in said  # 413
    assert "limiting requests" in said  # 429
