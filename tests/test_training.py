"""References that craft trains: apart from the queries, resumable, honest about how good they are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from onnxaudit.audit.crafting import CraftOptions, craft
from onnxaudit.audit.progress import Silent
from onnxaudit.craft.data import Data, load_data
from onnxaudit.craft.pools import references
from onnxaudit.craft.pools.references import TrainedReference, choose, split
from onnxaudit.errors import UsageError
from onnxaudit.zoo.architectures import ARCHITECTURES
from onnxaudit.zoo.training import Recipe, build, fit, to_pixels


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """900 of scikit-learn's digits, images of 8x8, as the owner's data."""
    loaded = load_digits()
    path = tmp_path_factory.mktemp("digits") / "digits.npz"
    np.savez(path, x=np.rint(loaded.images[:900] * (255 / 16)).astype(np.uint8), y=loaded.target[:900].astype(np.int64))
    return path


@pytest.fixture(scope="module")
def victim(digits: Path) -> Path:
    """A small network trained on three quarters of them: it is wrong on some of the rest."""
    data, _ = split(load_data(digits))
    assert data.y is not None
    recipe = Recipe(arch="lenet", epochs=12, batch=32, flip=False, seed=3)
    network = fit(build(recipe, data.shape, 10), to_pixels(data.x), torch.from_numpy(data.y), recipe)
    path = digits.parent / "victim.pt"
    torch.jit.save(torch.jit.trace(network, torch.zeros(2, 1, 8, 8)), str(path))
    return path


def test_the_two_parts_share_nothing(digits: Path) -> None:
    data = load_data(digits)
    training, aside = split(data)
    assert len(training) + len(aside) == len(data)
    assert len(aside) == len(data) // 4
    images = [{image.tobytes() for image in part.x} for part in (training, aside)]
    repeated = len(data) - len({image.tobytes() for image in data.x})
    assert len(images[0] & images[1]) <= repeated
    again, _ = split(load_data(digits))
    assert again.sha256 == training.sha256


def test_trained_references_calibrate_and_are_not_trained_twice(
    digits: Path, victim: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(references, "IMAGES_SEEN", dict.fromkeys(references.IMAGES_SEEN, 10_000))
    options = CraftOptions(
        victim, digits, ("akh", "random"), 20, 40, train_references=2, reference_folder=tmp_path / "refs", device="cpu", jobs=1
    )
    heard = Silent()
    first = craft(options, heard)
    files = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "refs").iterdir()}
    assert len(first.manifest.of_role("reference")) == 2
    assert first.manifest.pool_notes
    assert set(first.manifest.pool_notes) <= set(heard.notes)
    assert [entry.rows for entry in first.manifest.schemes] == [(0, 20), (20, 40)]
    assert any(note.startswith("references trained: median accuracy") for note in heard.notes)
    assert first.manifest.shortfall is not None
    assert {entry.kind for entry in first.manifest.of_role("reference")} == {"onnx"}
    second = craft(options, Silent())
    assert {path.name: path.stat().st_mtime_ns for path in (tmp_path / "refs").iterdir()} == files
    assert first.save(tmp_path / "a.oab").id == second.save(tmp_path / "b.oab").id
    # no query was ever shown to a reference
    training, _ = split(load_data(digits))
    seen = {image.tobytes() for image in training.x}
    everything = load_data(digits)
    unique = {image.tobytes() for image in everything.x}
    if len(unique) == len(everything):
        assert not {query.tobytes() for query in first.queries[20:]} & seen


def test_weak_references_are_kept_apart_while_enough_are_left() -> None:
    trained = [TrainedReference(Path(f"{i}.onnx"), Recipe(), accuracy) for i, accuracy in enumerate([0.9, 0.8, 0.89, 0.7])]
    assert [r.path.name for r in choose(trained, 0.9, least=2)] == ["0.onnx", "2.onnx"]
    assert [r.path.name for r in choose(trained, 0.99, least=3)] == ["0.onnx", "2.onnx"]  # the median is 0.89
    assert [r.path.name for r in choose(trained, 0.83, least=2)] == ["0.onnx", "1.onnx", "2.onnx"]
    assert [r.path.name for r in choose(trained, 0.83, least=4)] == ["0.onnx", "2.onnx"]  # too few of the goal, so the median's
    assert [r.path.name for r in choose(trained, 0.5, least=4)] == ["0.onnx", "1.onnx", "2.onnx", "3.onnx"]


def test_training_references_needs_labels(digits: Path, victim: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "unlabelled.npz", x=load_data(digits).x)
    with pytest.raises(UsageError, match="needs labelled data"):
        craft(CraftOptions(victim, tmp_path / "unlabelled.npz", train_references=2, device="cpu"), Silent())


@pytest.mark.parametrize("arch", sorted(ARCHITECTURES))
@pytest.mark.parametrize("shape", [(28, 28, 1), (32, 24, 3), (9, 9, 1)])
def test_every_architecture_takes_every_shape(arch: str, shape: tuple[int, ...]) -> None:
    network = build(Recipe(arch), shape, 7).eval()
    pixels = to_pixels(np.zeros((2, *shape), np.uint8))
    assert network(pixels).shape == (2, 7)


def test_training_is_deterministic(digits: Path) -> None:
    data: Data = load_data(digits)
    assert data.y is not None
    recipe = Recipe(arch="mlp", epochs=1, seed=4)
    x, y = to_pixels(data.x[:300]), torch.from_numpy(data.y[:300])
    one, two = (fit(build(recipe, data.shape, 10), x, y, recipe)(x[:5]) for _ in range(2))
    assert torch.equal(one, two)
