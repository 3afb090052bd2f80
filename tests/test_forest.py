"""Random forests in the zoo: the file answers as scikit-learn does, whatever classes the training data lacked."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from onnxaudit.answers import Access
from onnxaudit.errors import UsageError
from onnxaudit.registry import open_suspect
from onnxaudit.suspect import InputSpec, Target
from onnxaudit.testing import check_adapter
from onnxaudit.zoo.forest import fit_forest, save_forest

FIXTURES = Path(__file__).resolve().parent.parent / "fixtures"


def fashion(name: str, n: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    with np.load(FIXTURES / f"fashion/{name}.npz") as archive:
        return archive["x"][:n], archive["y"][:n]


@pytest.mark.parametrize("present", [range(10), (1, 3, 8), (2, 5), (4,)], ids=["all", "three", "two", "one"])
def test_the_file_answers_as_the_forest_does(present: tuple[int, ...], tmp_path: Path) -> None:
    x, y = fashion("train", 800)
    chosen = np.isin(y, list(present))
    forest = fit_forest(x[chosen], y[chosen], trees=9, seed=3)
    path = tmp_path / "forest.onnx"
    save_forest(forest, (28, 28, 1), 10, path)
    asked, _ = fashion("test", 300)
    expected = np.zeros((300, 10))
    expected[:, forest.classes_] = forest.predict_proba(asked.reshape(300, -1))
    with open_suspect(Target(str(path), InputSpec((28, 28, 1)), 10, "cpu")) as suspect:
        answers = suspect.ask(asked)
        assert suspect.card.input.dtype == "uint8"
    assert answers.access == Access.PROBS
    np.testing.assert_allclose(answers.dense(), expected, atol=1e-5)
    check_adapter(lambda: open_suspect(Target(str(path), InputSpec((28, 28, 1)), 10, "cpu")), asked[:20])
    onnx.checker.check_model(onnx.load(str(path)), full_check=True)
    assert [file.name for file in tmp_path.iterdir()] == ["forest.onnx"]


def test_colour_is_flattened_in_the_order_of_training_and_a_forest_learns(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (600, 5, 4, 3)).astype(np.uint8)
    y = (x[:, 2, 1, 0] > x[:, 2, 1, 2]).astype(np.int64) + (x[:, 0, 0, 1] > 128)
    forest = fit_forest(x, y, trees=20)
    save_forest(forest, (5, 4, 3), 3, tmp_path / "forest.onnx")
    with open_suspect(Target(str(tmp_path / "forest.onnx"), InputSpec((5, 4, 3)), 3, "cpu")) as suspect:
        assert (suspect.ask(x).labels == y).mean() > 0.95


def test_vectors_are_taken_as_they_are(tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(size=(400, 6)).astype(np.float32)
    y = (x[:, 0] > 0).astype(np.int64) + (x[:, 1] > 0)
    forest = fit_forest(x, y)
    save_forest(forest, (6,), 3, tmp_path / "forest.onnx")
    with open_suspect(Target(str(tmp_path / "forest.onnx"), InputSpec((6,), layout="NC"), 3, "cpu")) as suspect:
        np.testing.assert_allclose(suspect.ask(x).dense(), forest.predict_proba(x), atol=1e-5)


def test_equal_seeds_give_equal_bytes(tmp_path: Path) -> None:
    x, y = fashion("train", 300)
    for name, seed in (("one", 1), ("again", 1), ("other", 2)):
        save_forest(fit_forest(x, y, trees=4, seed=seed), (28, 28, 1), 10, tmp_path / name)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "again").read_bytes() != (tmp_path / "other").read_bytes()


def test_a_forest_of_another_task_is_refused(tmp_path: Path) -> None:
    x, y = fashion("train", 200)
    forest = fit_forest(x, y, trees=2)
    with pytest.raises(UsageError, match="the forest takes 784 values"):
        save_forest(forest, (8, 8, 1), 10, tmp_path / "forest.onnx")
    with pytest.raises(UsageError, match=r"the forest's labels are \[0, 1, 2, 3, 4\], not 0 to 8"):
        save_forest(forest, (28, 28, 1), 9, tmp_path / "forest.onnx")
    assert not list(tmp_path.iterdir())
