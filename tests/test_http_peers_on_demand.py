"""The larger servers, with ``make peers``: each, asked in every dialect that it speaks, gives the finding of the model's file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeAlias, cast

import pytest

from onnxaudit.answers import Access
from onnxaudit.bundle import QueryBundle
from onnxaudit.errors import SuspectError
from tests.bundles import SHAPE
from tests.peer_bundle import ANIMALS, PICTURES, copy_of_victim, found, linear_bundle, pictures_bundle
from tests.peers import starting

pytestmark = pytest.mark.peers
Scores: TypeAlias = tuple[tuple[str, str, float], ...]
"""Scheme, access and score, as found() has them."""


def assert_close(asked: tuple[object, ...], expected: tuple[object, ...]) -> None:
    """The same finding, p-value and controls; scores to 1e-5."""
    assert asked[:3] == expected[:3]
    for ours, theirs in zip(cast("Scores", asked[3]), cast("Scores", expected[3]), strict=True):
        assert ours[:2] == theirs[:2]
        assert ours[2] == pytest.approx(theirs[2], abs=1e-5)


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
def expected(bundle: QueryBundle, model: Path) -> tuple[object, ...]:
    """What a check says of the file."""
    said = found(bundle, str(model))
    assert said[:3] == ("derived", 1 / 20, 1.0)
    return said


@pytest.fixture(scope="module")
def kserve(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with starting.kserve(model, tmp_path_factory.mktemp("kserve")) as origin:
        yield origin


@pytest.fixture(scope="module")
def triton(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with starting.triton(model, tmp_path_factory.mktemp("triton")) as origin:
        yield origin


@pytest.mark.parametrize("path", ["/v1/models/suspect", "/v1/models/suspect:predict"])
def test_kserve_v1(kserve: str, path: str, bundle: QueryBundle, expected: tuple[object, ...]) -> None:
    assert found(bundle, kserve + path) == expected


@pytest.mark.parametrize("dialect", ["v2", "v2-binary"])
def test_kserve_v2_says_nothing_of_its_input(
    kserve: str, dialect: str, bundle: QueryBundle, expected: tuple[object, ...]
) -> None:
    said: dict[str, Any] = {"dialect": dialect, "input_name": "x"}
    assert found(bundle, f"{kserve}/v2/models/suspect", shape=SHAPE, **said) == expected


@pytest.mark.parametrize("dialect", [None, "v2", "v2-binary", "v2-classes"])
def test_triton(triton: str, dialect: str | None, bundle: QueryBundle, expected: tuple[object, ...]) -> None:
    asked = found(bundle, f"{triton}/v2/models/suspect", dialect=dialect, batch=64)  # more than its 32: it is halved
    if dialect == "v2-classes":  # whose strings have six decimals
        assert_close(asked, expected)
    else:
        assert asked == expected


@pytest.mark.parametrize("more", [{}, {"input_name": "instances"}, {"output_name": "logits"}])
def test_mlflow(mlflow: str, more: dict[str, Any], bundle: QueryBundle, expected: tuple[object, ...]) -> None:
    assert found(bundle, f"{mlflow}/invocations", **more) == expected
    assert found(bundle, mlflow, **more) == expected  # /ping tells


@pytest.fixture(scope="module")
def mlflow(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with starting.mlflow(model, tmp_path_factory.mktemp("mlflow")) as origin:
        yield origin


def test_bentoml(model: Path, bundle: QueryBundle, expected: tuple[object, ...], tmp_path: Path) -> None:
    with starting.bentoml(model, tmp_path) as origin:
        assert found(bundle, f"{origin}/predict") == expected
        with pytest.raises(SuspectError, match="400"):
            found(bundle, f"{origin}/predict", input_name="other")


def test_torchserve(model: Path, bundle: QueryBundle, tmp_path: Path) -> None:
    with starting.torchserve(model, tmp_path) as origin:
        expected = found(bundle, str(model), Access.PROBS)
        assert expected[0] == "derived"
        assert found(bundle, f"{origin}/predictions/suspect") == expected
        assert found(bundle, f"{origin}/predictions/suspect/1.0", input_name="data") == expected
        with pytest.raises(SuspectError, match="404"):
            found(bundle, f"{origin}/predictions/other")


@pytest.fixture(scope="module")
def transformers(tmp_path_factory: pytest.TempPathFactory) -> tuple[QueryBundle, Path]:
    """A bundle around a Vision Transformer, and a copy of it that was trained further, beside it as Hugging Face keeps it."""
    folder = tmp_path_factory.mktemp("transformers")
    victim, copy = (
        starting.vision_transformer(folder / name, noise, PICTURES.shape[0], ANIMALS)
        for name, noise in {"victim": 0, "copy": 0.02}.items()
    )
    return pictures_bundle(victim), copy


@pytest.fixture(scope="module")
def huggingface(transformers: tuple[QueryBundle, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with starting.huggingface(transformers[1], tmp_path_factory.mktemp("huggingface")) as origin:
        yield origin


@pytest.mark.parametrize(("dialect", "access", "k"), [("huggingface", Access.PROBS, 1), ("huggingface-png", Access.TOPK, 5)])
def test_hugging_face_prepares_the_picture_and_gives_the_finding_of_the_exported_file(
    huggingface: str, transformers: tuple[QueryBundle, Path], dialect: str, access: Access, k: int
) -> None:
    """Of seven classes: all of them where they are asked for, five of a bare picture."""
    bundle, copy = transformers
    expected = found(bundle, str(copy), access, k=k)
    assert expected[0] == "derived"
    asked = found(bundle, f"{huggingface}/models/owner/suspect", dialect=dialect)
    assert_close(asked, expected)  # PyTorch there, ONNX Runtime here


def test_hugging_face_names_classes_that_the_victim_does_not_have(
    huggingface: str, transformers: tuple[QueryBundle, Path]
) -> None:
    with pytest.raises(SuspectError, match=r"names classes \('\w{3}'\)"):
        found(transformers[0], f"{huggingface}/models/m", dialect="huggingface", class_names=("a", "b", "c", "d", "e", "f", "g"))
