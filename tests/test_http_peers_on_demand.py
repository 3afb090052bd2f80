"""The larger servers, with ``make peers``: each, asked in every dialect that it speaks, gives the finding of the model's file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from onnxaudit.answers import Access
from onnxaudit.bundle import QueryBundle
from onnxaudit.errors import SuspectError
from tests.bundles import SHAPE
from tests.peer_bundle import copy_of_victim, found, linear_bundle
from tests.peers import starting

pytestmark = pytest.mark.peers


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
def kserve(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with starting.kserve(model, tmp_path_factory.mktemp("kserve")) as origin:
        yield origin


@pytest.fixture(scope="module")
def triton(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with starting.triton(model, tmp_path_factory.mktemp("triton")) as origin:
        yield origin


@pytest.mark.parametrize("path", ["/v1/models/suspect", "/v1/models/suspect:predict"])
def test_kserve_v1(kserve: str, path: str, bundle: QueryBundle, model: Path) -> None:
    assert found(bundle, kserve + path) == found(bundle, str(model))


@pytest.mark.parametrize("dialect", ["v2", "v2-binary"])
def test_kserve_v2_says_nothing_of_its_input(kserve: str, dialect: str, bundle: QueryBundle, model: Path) -> None:
    said: dict[str, Any] = {"dialect": dialect, "input_name": "x"}
    assert found(bundle, f"{kserve}/v2/models/suspect", shape=SHAPE, **said) == found(bundle, str(model))


@pytest.mark.parametrize("dialect", [None, "v2", "v2-binary", "v2-classes"])
def test_triton(triton: str, dialect: str | None, bundle: QueryBundle, model: Path) -> None:
    asked = found(bundle, f"{triton}/v2/models/suspect", dialect=dialect, batch=64)  # more than its 32: it is halved
    assert asked[:3] == found(bundle, str(model))[:3]
    if dialect != "v2-classes":  # which has six decimals
        assert asked == found(bundle, str(model))


@pytest.mark.parametrize("more", [{}, {"input_name": "instances"}, {"output_name": "logits"}])
def test_mlflow(mlflow: str, more: dict[str, Any], bundle: QueryBundle, model: Path) -> None:
    expected = found(bundle, str(model))
    assert found(bundle, f"{mlflow}/invocations", **more) == expected
    assert found(bundle, mlflow, **more) == expected  # /ping tells


@pytest.fixture(scope="module")
def mlflow(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with starting.mlflow(model, tmp_path_factory.mktemp("mlflow")) as origin:
        yield origin


def test_bentoml(model: Path, bundle: QueryBundle, tmp_path: Path) -> None:
    with starting.bentoml(model, tmp_path) as origin:
        assert found(bundle, f"{origin}/predict") == found(bundle, str(model))
        with pytest.raises(SuspectError, match="400"):
            found(bundle, f"{origin}/predict", input_name="other")


def test_torchserve(model: Path, bundle: QueryBundle, tmp_path: Path) -> None:
    with starting.torchserve(model, tmp_path) as origin:
        expected = found(bundle, str(model), Access.PROBS)
        assert found(bundle, f"{origin}/predictions/suspect") == expected
        assert found(bundle, f"{origin}/predictions/suspect/1.0", input_name="data") == expected
        with pytest.raises(SuspectError, match="404"):
            found(bundle, f"{origin}/predictions/other")
