"""Models other than the victim: opened from any format, derived from its answers or weights, kept from one run to the next."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from torch import Tensor, nn

from onnxaudit.audit.calibrating import model_files
from onnxaudit.craft.data import Data, load_data
from onnxaudit.craft.pools.peers import has_gradients, open_peers
from onnxaudit.craft.pools.references import split
from onnxaudit.craft.pools.surrogates import TrainedSurrogate, train_surrogates
from onnxaudit.craft.sample import Peer
from onnxaudit.craft.victim import Victim, open_victim
from onnxaudit.errors import UsageError
from onnxaudit.suspect import InputSpec
from onnxaudit.zoo.saving import DIFFERENTIABLE, copy_of, save_network
from onnxaudit.zoo.training import Recipe, build, fit, to_pixels
from tests.models import (
    CLASSES,
    SPEC,
    colour_queries,
    expected_answers,
    save_exported,
    save_onnx,
    save_torchscript,
    torch_network,
)

QUERIES = colour_queries()
PIXELS = torch.tensor(QUERIES).permute(0, 3, 1, 2).float() / 255
CPU = torch.device("cpu")


def quiet(done: int) -> None:
    """Progress that nobody watches."""


def peer(path: Path, spec: InputSpec = SPEC, classes: int = CLASSES) -> Peer:
    (opened,) = open_peers([path], spec, classes, "cpu")
    return opened


def gradient(logits: Any, pixels: Tensor) -> NDArray[np.float32]:
    """Of the sum of the largest logits by the pixels."""
    x = pixels.clone().requires_grad_(True)
    (found,) = torch.autograd.grad(logits(x).amax(1).sum(), x)
    result: NDArray[np.float32] = found.numpy()
    return result


@pytest.mark.parametrize("suffix", [".pt", ".pt2"])
def test_a_program_answers_as_a_suspect_and_has_the_networks_gradients(tmp_path: Path, suffix: str) -> None:
    path = save_torchscript(tmp_path / "one.pt") if suffix == ".pt" else save_exported(tmp_path / "one.pt2")
    one = peer(path)
    assert one.source == path.name
    assert has_gradients(path)
    np.testing.assert_allclose(one.answer(QUERIES), expected_answers(QUERIES).dense(), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(one.logits(PIXELS).detach(), expected_answers(QUERIES).dense(), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(gradient(one.logits, PIXELS), gradient(torch_network(), PIXELS), rtol=1e-3, atol=1e-6)


def test_a_file_without_gradients_answers_and_says_what_to_give_instead(tmp_path: Path) -> None:
    path = save_onnx(tmp_path / "plain.onnx")
    plain = peer(path)
    assert not has_gradients(path)
    np.testing.assert_allclose(plain.answer(QUERIES), expected_answers(QUERIES).dense(), rtol=1e-4, atol=1e-4)
    with pytest.raises(UsageError, match=r"plain.onnx gives no gradients: .*Give TorchScript or .pt2.*--train-references"):
        plain.logits(PIXELS)


def test_labels_are_one_hot_scores(tmp_path: Path) -> None:
    scores = peer(save_onnx(tmp_path / "labels.onnx", end="labels")).answer(QUERIES)
    np.testing.assert_array_equal(scores, np.eye(CLASSES, dtype=np.float32)[expected_answers(QUERIES).labels])


class TakesBytes(nn.Module):
    """The network behind 8-bit NHWC inputs: whatever it is given is rounded, so nothing can be differentiated."""

    def __init__(self) -> None:
        super().__init__()
        self.network = torch_network()

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.network(x.to(torch.uint8).float().permute(0, 3, 1, 2) / 255)
        return scores


def test_programs_that_take_other_inputs_than_the_victim_are_not_differentiated(tmp_path: Path) -> None:
    bytes_only = tmp_path / "bytes.pt2"
    program = torch.export.export(
        TakesBytes(), (torch.zeros(2, 8, 8, 3, dtype=torch.uint8),), dynamic_shapes=({0: torch.export.Dim("n", min=1, max=512)},)
    )
    torch.export.save(program, bytes_only)
    asked = peer(bytes_only)
    np.testing.assert_allclose(asked.answer(QUERIES), expected_answers(QUERIES).dense(), rtol=1e-4, atol=1e-4)
    with pytest.raises(UsageError, match=r"bytes.pt2 gives no gradients"):
        asked.logits(PIXELS)

    class Rounds(nn.Module):
        """Takes what the victim takes, and quantises it."""

        def __init__(self) -> None:
            super().__init__()
            self.network = torch_network()

        def forward(self, x: Tensor) -> Tensor:
            scores: Tensor = self.network(torch.round(x * 255) / 255)
            return scores

    with pytest.raises(UsageError, match=r"rounds.pt gives no gradients: its scores do not change"):
        peer(save_torchscript(tmp_path / "rounds.pt", Rounds())).logits(PIXELS)


def test_a_peer_of_another_task_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"one.pt has 4 classes, the victim 7"):
        peer(save_torchscript(tmp_path / "one.pt"), classes=7).logits(PIXELS)
    with pytest.raises(UsageError, match="gives no gradients: it does not take its inputs as the victim does"):
        peer(save_torchscript(tmp_path / "two.pt"), InputSpec((8, 8, 1))).logits(PIXELS[:, :1])


def test_what_is_trained_here_is_listed_once_and_has_gradients_whatever_the_victim_takes(tmp_path: Path) -> None:
    network = build(Recipe("lenet", seed=2), (8, 8, 3), CLASSES).eval()
    save_network(network, (8, 8, 3), tmp_path / "trained.onnx")
    (path,) = model_files(tmp_path)
    trained = peer(path, InputSpec((8, 8, 3), "NHWC", mean=(0.5,), std=(0.25,)))
    assert has_gradients(path)
    with torch.no_grad():
        expected = network(PIXELS).numpy()
    np.testing.assert_allclose(trained.answer(QUERIES), expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(gradient(trained.logits, PIXELS), gradient(network, PIXELS), rtol=1e-3, atol=1e-5)
    other = build(Recipe("lenet", seed=3), (8, 8, 3), CLASSES).eval()
    save_network(other, (8, 8, 3), tmp_path / "else.onnx")
    (tmp_path / "else.onnx").replace(path)  # a network lies next to another one's answers
    with pytest.raises(UsageError, match="as a network it does not say what it answers"):
        peer(path).logits(PIXELS)


@pytest.fixture(scope="module")
def digits() -> tuple[Data, Data]:
    """150 images of 8x8 to train on, and others."""
    loaded = load_digits()
    images = np.rint(loaded.images * (255 / 16)).astype(np.uint8)[..., None]
    whole = Data(images, loaded.target.astype(np.int64), (), "digits")
    return whole.take(np.arange(150)), whole.take(np.arange(1000, 1600))


def trained(data: Data) -> nn.Module:
    """A small network trained on the data."""
    assert data.y is not None
    recipe = Recipe("lenet" if len(data.shape) == 3 else "mlp", width=0.5, epochs=30, batch=16, flip=False, seed=1)
    return fit(build(recipe, data.shape, 10), to_pixels(data.x), torch.from_numpy(data.y), recipe)


@pytest.fixture(scope="module")
def network(digits: tuple[Data, Data]) -> nn.Module:
    return trained(digits[0])


@pytest.fixture(scope="module")
def victim(network: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Victim:
    path = tmp_path_factory.mktemp("victim") / "victim.pt"
    torch.jit.save(torch.jit.trace(network, torch.zeros(2, 1, 8, 8)), str(path))
    return open_victim(path, InputSpec((8, 8, 1)), device="cpu").probed()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("surrogates")


@pytest.fixture(scope="module")
def surrogates(digits: tuple[Data, Data], victim: Victim, folder: Path) -> list[TrainedSurrogate]:
    return train_surrogates(*digits, victim, 5, 7, folder, jobs=1, progress=quiet)


def zeros(path: Path) -> float:
    """The share of zeros among the weights of a trained network."""
    weights = [w for w in torch.jit.load(str(path.with_suffix(DIFFERENTIABLE))).parameters() if w.ndim > 1]
    return float(torch.cat([(w == 0).float().flatten() for w in weights]).mean())


def test_surrogates_are_derived_in_every_way_and_resemble_the_victim(
    surrogates: list[TrainedSurrogate], digits: tuple[Data, Data], victim: Victim
) -> None:
    tasks = ["extract-probabilities", "extract-labels", "extract-adversarially", "fine-tune", "prune"]
    assert [s.task for s in surrogates] == tasks
    assert len({s.recipe.arch for s in surrogates[:3]}) == 3
    _, test = digits
    said = victim.answer(test.x).argmax(1)
    for surrogate, one in zip(surrogates, open_peers([s.path for s in surrogates], victim.spec, 10, "cpu"), strict=True):
        agreement = (one.answer(test.x).argmax(1) == said).mean()
        assert agreement == pytest.approx(surrogate.agreement, abs=0.01)
        assert agreement > 0.4  # chance is 0.1
        assert one.logits(victim.pixels(test.x[:3])).requires_grad is False  # its weights are fixed
        assert np.abs(gradient(one.logits, victim.pixels(test.x[:3]))).max() > 0
    assert zeros(surrogates[4].path) == pytest.approx(surrogates[4].strength, abs=0.03)
    assert zeros(surrogates[3].path) < 0.01
    assert json.loads(surrogates[4].path.with_suffix(".json").read_text())["task"] == "prune"


def test_surrogates_are_not_trained_twice_and_an_interrupted_run_goes_on(
    surrogates: list[TrainedSurrogate], digits: tuple[Data, Data], victim: Victim, folder: Path
) -> None:
    before = {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.iterdir()}
    heard: list[int] = []
    begun = time.process_time()
    again = train_surrogates(*digits, victim, 5, 7, folder, jobs=1, progress=heard.append)
    assert time.process_time() - begun < 2
    assert again == surrogates
    assert heard == [5]
    assert {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.iterdir()} == before
    lost = surrogates[3].path
    lost.with_suffix(".json").unlink()  # written last, so this one was interrupted
    lost.write_bytes(b"half of a file")
    heard.clear()
    assert train_surrogates(*digits, victim, 5, 7, folder, jobs=1, progress=heard.append) == surrogates
    assert heard == [4, 5]
    assert lost.read_bytes() == before[lost.name][1]  # training is deterministic
    others = {path.name: path.stat().st_mtime_ns for path in folder.iterdir() if path.stem != lost.stem}
    assert others == {name: stamp for name, (stamp, _) in before.items() if not name.startswith(lost.stem)}
    more = train_surrogates(*digits, victim, 4, 7, folder, jobs=1, progress=heard.append)
    assert more == surrogates[:4]


def test_a_victim_without_weights_is_known_by_its_answers_alone(victim: Victim, tmp_path: Path) -> None:
    """A frozen program holds constants: nothing can be fine-tuned."""
    assert victim.file is not None
    torch.jit.freeze(torch.jit.load(str(victim.file)).eval()).save(str(tmp_path / "frozen.pt"))
    frozen = open_victim(tmp_path / "frozen.pt", InputSpec((8, 8, 1)), device="cpu").probed()
    assert frozen.portable() is None
    loaded = load_digits()
    vectors = Data(loaded.data.astype(np.float32) / 4, loaded.target.astype(np.int64), (), "vectors")
    part = vectors.take(np.arange(150))
    torch.jit.save(torch.jit.trace(trained(part), torch.zeros(2, 64)), str(tmp_path / "v.pt"))
    tabular = open_victim(tmp_path / "v.pt", InputSpec((64,), "NC"), device="cpu").probed()
    derived = train_surrogates(part, vectors.take(np.arange(1000, 1600)), tabular, 5, 0, tmp_path / "s", jobs=1, progress=quiet)
    assert [s.task for s in derived] == ["extract-probabilities", "extract-labels", "fine-tune", "prune", "extract-probabilities"]
    assert min(s.agreement for s in derived) > 0.6


@pytest.mark.parametrize("softmax", [False, True])
@pytest.mark.parametrize("script", [False, True])
def test_a_portable_victim_is_the_victim_and_can_be_trained(
    digits: tuple[Data, Data], network: nn.Module, tmp_path: Path, softmax: bool, script: bool
) -> None:
    module = nn.Sequential(network, nn.Softmax(1)).eval() if softmax else network
    saved: Any = torch.jit.script(module) if script else torch.jit.trace(module, torch.zeros(2, 1, 8, 8))
    saved.save(str(tmp_path / "v.pt"))
    victim = open_victim(tmp_path / "v.pt", InputSpec((8, 8, 1), mean=(0.1,), std=(0.5,)), device="cpu").probed()
    assert victim.normalised == softmax
    portable = victim.portable()
    assert portable is not None
    x = victim.pixels(digits[1].x[:9])
    one, two = copy_of(portable, CPU), copy_of(portable, CPU)
    torch.testing.assert_close(one(x), victim.logits(x), rtol=1e-3, atol=1e-3)
    assert digits[0].y is not None
    fit(one, to_pixels(digits[0].x), torch.from_numpy(digits[0].y), Recipe(epochs=1, batch=16, lr=1e-2))
    assert (one(x) - two(x)).abs().max() > 0.1  # neither shares its weights
    torch.testing.assert_close(two(x), victim.logits(x), rtol=1e-3, atol=1e-3)


def test_exported_victims_are_portable_if_their_batch_is_free(tmp_path: Path) -> None:
    free = open_victim(save_exported(tmp_path / "free.pt2"), SPEC, device="cpu").probed()
    portable = free.portable()
    assert portable is not None
    torch.testing.assert_close(copy_of(portable, CPU)(PIXELS), free.logits(PIXELS))
    assert open_victim(save_exported(tmp_path / "four.pt2", batch=4), SPEC, device="cpu").probed().portable() is None


def test_bad_data_for_surrogates_is_a_sentence(digits: tuple[Data, Data], victim: Victim, tmp_path: Path) -> None:
    train, test = digits
    with pytest.raises(UsageError, match="60 inputs are too few to train surrogates on"):
        train_surrogates(train.take(np.arange(60)), test, victim, 2, 0, tmp_path, jobs=1, progress=quiet)
    assert train.y is not None
    with pytest.raises(UsageError, match="the data has label 12, the victim 10 classes"):
        train_surrogates(Data(train.x, train.y + 3, (), "x"), test, victim, 2, 0, tmp_path, jobs=1, progress=quiet)
    assert not list(tmp_path.iterdir())


def test_the_split_keeps_queries_from_surrogates() -> None:
    whole = load_data(Path(__file__).resolve().parent.parent / "fixtures/fashion/test.npz")
    training, aside = split(whole)
    assert not {image.tobytes() for image in training.x} & {image.tobytes() for image in aside.x}
