"""Crafting: what each sampler promises of its queries, which victims are taken, and that the same inputs give the same bytes."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor, nn

from onnxaudit.audit.crafting import CraftOptions, craft
from onnxaudit.audit.progress import Silent
from onnxaudit.bundle import QueryBundle, load
from onnxaudit.craft.data import Data, load_data
from onnxaudit.craft.sample import Material
from onnxaudit.craft.samplers.boundary import boundary_loss, boundary_points, sample_boundary, walk_to_boundary
from onnxaudit.craft.samplers.cutmix import cutmix, flipped
from onnxaudit.craft.samplers.natural import draw_controls, sample_negative
from onnxaudit.craft.victim import Victim, open_victim
from onnxaudit.errors import ArtefactError, UsageError
from onnxaudit.suspect import InputSpec
from onnxaudit.zoo.training import Recipe, build

FIXTURES = Path(__file__).resolve().parent.parent / "fixtures"
VICTIM = FIXTURES / "zoo/victim.pt"
TRAIN = FIXTURES / "fashion/train.npz"
SHAPE = (28, 28, 1)


def quiet(done: int) -> None:
    """Progress that nobody watches."""


@pytest.fixture(scope="module")
def data() -> Data:
    return load_data(TRAIN)


@pytest.fixture(scope="module")
def victim() -> Victim:
    return open_victim(VICTIM, InputSpec(SHAPE), device="cpu").probed()


def as_victim(module: nn.Module, spec: InputSpec) -> Victim:
    """A module of the test's own as a victim."""
    return Victim(module.eval().requires_grad_(False), spec, torch.device("cpu"), "test", "", "test").probed()


@pytest.mark.parametrize("start", ["training", "random"])
@pytest.mark.parametrize("target", ["least-likely", "random"])
def test_boundary_points_have_the_property_as_8_bit_images(victim: Victim, data: Data, start: str, target: str) -> None:
    sample = sample_boundary(Material(victim, data), 24, np.random.default_rng(5), quiet, start=start, target=target, k=2.0)
    assert sample.queries.dtype == np.uint8
    assert sample.queries.shape == (24, *SHAPE)
    logits = victim.answer(sample.queries)
    best, second = np.sort(logits, axis=1)[:, :-3:-1].T
    assert ((best - second) >= 2.0 - 1e-4).all()  # the target beats the start's class, the runner-up, by k
    assert ((best - second) < 12.0).all()  # and no more than a step or so beyond
    assert len({image.tobytes() for image in sample.queries}) == 24


def test_boundary_loss_is_equation_5_of_ipguard() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(50, 6)).astype(np.float32)
    source, target = rng.integers(0, 3, 50), rng.integers(3, 6, 50)
    expected = [
        max(z[i] - z[j] + 0.5, 0) + max(max(z[t] for t in range(6) if t not in (i, j)) - z[i], 0)
        for z, i, j in zip(logits, source, target, strict=True)
    ]
    loss = boundary_loss(torch.from_numpy(logits), torch.from_numpy(source), torch.from_numpy(target), 0.5)
    np.testing.assert_allclose(loss.numpy(), expected, rtol=1e-5, atol=1e-6)
    two = boundary_loss(torch.tensor([[1.0, 3.0]]), torch.tensor([0]), torch.tensor([1]), 1.0)
    assert two.tolist() == [0.0]


def test_points_in_a_batch_go_where_they_go_alone(victim: Victim, data: Data) -> None:
    material = Material(victim, data)
    x = victim.pixels(data.x[:40])
    target = victim.logits(x).argmin(1)
    together, converged = boundary_points(material, x, target, k=1.0, lr=1 / 255, iterations=400)
    assert converged.all()
    for index in (0, 17, 39):
        one = slice(index, index + 1)
        alone, _ = walk_to_boundary(victim, material.space, x[one], target[one], k=1.0, lr=1 / 255, iterations=400)
        assert float((alone[0] - together[index]).abs().mean()) < 2 / 255


def test_the_boundary_of_a_linear_victim_is_met_within_a_step() -> None:
    """For a linear victim of two classes the margin is known in closed form: w.x + b crosses k by less than one step."""
    rng = np.random.default_rng(1)
    linear = nn.Linear(12, 2)
    victim = as_victim(linear, InputSpec((12,), "NC"))
    x = torch.from_numpy(rng.normal(size=(30, 12)).astype(np.float32))
    target = victim.logits(x).argmin(1)
    wide = Data(np.array([[-50.0] * 12, [50.0] * 12], np.float32), None, (), "")  # steps are in units of the data's range
    points, converged = boundary_points(Material(victim, wide), x, target, k=0.3, lr=0.01 / 100, iterations=2000)
    assert converged.all()
    z = victim.logits(points)
    margin = z.gather(1, target[:, None])[:, 0] - z.gather(1, 1 - target[:, None])[:, 0]
    step = 0.01 * float((linear.weight[0] - linear.weight[1]).abs().sum())
    assert (margin >= 0.3).all()
    assert (margin <= 0.3 + 1.1 * step).all()


def test_a_margin_out_of_reach_is_an_error(victim: Victim, data: Data) -> None:
    with pytest.raises(UsageError, match="reached the boundary"):
        sample_boundary(Material(victim, data), 4, np.random.default_rng(0), quiet, k=1e6, iterations=3)


def test_every_pixel_of_a_cutmix_comes_from_one_of_two_images() -> None:
    rng = np.random.default_rng(3)
    images = np.arange(40, dtype=np.uint8)[:, None, None, None].repeat(16, 1).repeat(20, 2)
    mixed = cutmix(images, rng)
    for index, image in enumerate(mixed):
        values = set(np.unique(image)) - {index}
        assert len(values) <= 1
        inside = (image[..., 0] != index).nonzero()
        if len(inside[0]):  # the foreign part is one rectangle
            assert len(inside[0]) == (np.ptp(inside[0]) + 1) * (np.ptp(inside[1]) + 1)


def test_the_corner_box_is_that_of_the_authors_code() -> None:
    """32x32: 121 of 1024 centres, 26.85 pixels replaced on average."""
    images = np.stack([np.zeros((32, 32, 1), np.uint8), np.ones((32, 32, 1), np.uint8)])
    rng = np.random.default_rng(0)
    areas = [int(cutmix(images, rng, "corner")[0].sum()) for _ in range(4000)]
    assert np.mean(areas) == pytest.approx(26.85, abs=0.3)


def test_flips() -> None:
    image = np.arange(6, dtype=np.uint8).reshape(1, 2, 3, 1)
    assert flipped(image, "horizontal")[0, :, :, 0].tolist() == [[2, 1, 0], [5, 4, 3]]
    assert flipped(image, "vertical")[0, :, :, 0].tolist() == [[3, 4, 5], [0, 1, 2]]
    square = np.arange(4, dtype=np.uint8).reshape(1, 2, 2, 1)
    assert flipped(square, "transpose")[0, :, :, 0].tolist() == [[0, 2], [1, 3]]


def test_akh_asks_errors_only_and_says_when_they_run_out(victim: Victim, data: Data) -> None:
    truth = {image.tobytes(): label for image, label in zip(data.x, data.y if data.y is not None else [], strict=True)}
    sample = sample_negative(Material(victim, data), 50, np.random.default_rng(0), quiet)
    said = victim.answer(sample.queries).argmax(1)
    assert all(truth[image.tobytes()] != label for image, label in zip(sample.queries, said, strict=True))
    assert sample.notes == ()
    few = data.take(np.arange(150))
    filled = sample_negative(Material(victim, few), 50, np.random.default_rng(0), quiet)
    assert len(filled.queries) == 50
    assert "CutMix mixtures of errors fill up" in filled.notes[0]


def test_controls_of_unlabelled_data_carry_the_victims_labels(victim: Victim, data: Data) -> None:
    bare = Data(data.x[:80], None, (), "")
    queries, labels = draw_controls(victim, bare, 30, np.random.default_rng(0))
    assert labels.tolist() == victim.answer(queries).argmax(1).tolist()


def test_controls_of_unlabelled_data_are_those_that_the_victim_is_most_certain_of(victim: Victim, data: Data) -> None:
    bare = Data(data.x[:80], None, (), "")
    certainty = victim.predict(bare.x).softmax(1).amax(1)
    queries, _ = draw_controls(victim, bare, 30, np.random.default_rng(0))
    assert len(queries) == 30
    assert float(victim.predict(queries).softmax(1).amax(1).min()) >= float(certainty.sort(descending=True).values[29]) - 1e-6
    drawn, _ = draw_controls(victim, bare, 30, np.random.default_rng(0), surest=False)
    assert float(victim.predict(drawn).softmax(1).amax(1).min()) < 0.9 * float(certainty.sort().values[40])


class Wanting(nn.Module):
    """The shipped victim behind another input convention."""

    def __init__(self, factor: float, offset: float, *, nhwc: bool) -> None:
        super().__init__()
        self.inner = torch.jit.load(str(VICTIM))
        self.factor, self.offset, self.nhwc = factor, offset, nhwc

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.inner((x.permute(0, 3, 1, 2) if self.nhwc else x) * self.factor + self.offset)
        return scores


@pytest.fixture(scope="module")
def straight() -> QueryBundle:
    """Of the victim as it is."""
    return craft(CraftOptions(VICTIM, TRAIN, ("akh",), 20, device="cpu"), Silent())


@pytest.mark.parametrize(
    ("factor", "offset", "nhwc", "words"),
    [
        (0.5, 0.5, False, "pixels in [-1, 1], NCHW"),
        (1 / 255, 0.0, True, "pixels in [0, 255], NHWC"),
        (0.3530, 0.2860, True, "Fashion-MNIST mean and std, NHWC"),
    ],
)
def test_the_convention_is_found_and_said(
    tmp_path: Path, factor: float, offset: float, nhwc: bool, words: str, straight: QueryBundle
) -> None:
    example = torch.zeros(2, *(SHAPE if nhwc else (1, 28, 28)))
    path = tmp_path / "wanting.pt"
    torch.jit.save(torch.jit.trace(Wanting(factor, offset, nhwc=nhwc), example), str(path))
    heard = Silent()
    bundle = craft(CraftOptions(path, TRAIN, ("akh",), 20, device="cpu"), heard)
    assert any(words in note for note in heard.notes), heard.notes
    np.testing.assert_array_equal(bundle.queries, straight.queries)
    np.testing.assert_allclose(bundle.answers["victim"].dense(), straight.answers["victim"].dense(), atol=1e-3)


def test_channel_order_is_found(tmp_path: Path) -> None:
    """Red things are class 0, blue ones class 1, and the victim was trained on BGR."""
    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, 400)
    x = rng.integers(0, 120, (400, 6, 6, 3), dtype=np.uint8)
    x[np.arange(400), :, :, np.where(y == 0, 0, 2)] += 100
    np.savez(tmp_path / "colours.npz", x=x, y=y)
    head = nn.Linear(3 * 36, 2)
    with torch.no_grad():
        head.weight.zero_()
        head.weight[0, 72:] = 1.0  # the last plane is red in BGR
        head.weight[1, :36] = 1.0
        head.bias.zero_()
    path = tmp_path / "bgr.pt"
    torch.jit.save(torch.jit.trace(nn.Sequential(nn.Flatten(), head).eval(), torch.zeros(2, 3, 6, 6)), str(path))
    heard = Silent()
    bundle = craft(CraftOptions(path, tmp_path / "colours.npz", ("random",), 20, device="cpu"), heard)
    assert bundle.manifest.input.channels == "BGR"
    assert any("BGR" in note for note in heard.notes)


def test_a_victim_at_chance_is_an_error(tmp_path: Path, data: Data) -> None:
    assert data.y is not None
    np.savez(tmp_path / "wrong.npz", x=data.x[:600], y=np.random.default_rng(0).permutation(data.y[:600]))
    with pytest.raises(UsageError, match="at chance under every common input convention"):
        craft(CraftOptions(VICTIM, tmp_path / "wrong.npz", device="cpu"), Silent())


def factory() -> nn.Module:
    """What ``--model tests.test_craft:factory`` makes."""
    return build(Recipe(arch="resnet"), SHAPE, 10)


def state() -> dict[str, Tensor]:
    """The shipped victim's weights."""
    weights: dict[str, Tensor] = torch.jit.load(str(VICTIM)).state_dict()
    return weights


@pytest.mark.parametrize("name", ["weights.pt", "weights.pth", "weights.safetensors", "nested.pt", "program.pt2"])
def test_every_kind_of_victim_answers_alike(tmp_path: Path, name: str, victim: Victim, data: Data) -> None:
    path = tmp_path / name
    if name.endswith(".safetensors"):
        save_file(state(), str(path))
    elif name.endswith(".pt2"):
        module = factory()
        module.load_state_dict(state())
        torch.export.save(torch.export.export(module.eval(), (torch.zeros(3, 1, 28, 28),)), path)  # a fixed batch of 3
    else:
        torch.save({"state_dict": state(), "epoch": 3} if name == "nested.pt" else state(), path)
    model = None if name.endswith(".pt2") else "tests.test_craft:factory"
    opened = open_victim(path, InputSpec(SHAPE), device="cpu", model=model).probed()
    np.testing.assert_allclose(opened.answer(data.x[:7]), victim.answer(data.x[:7]), atol=1e-4)
    sample = sample_boundary(Material(opened, data), 4, np.random.default_rng(0), quiet, k=1.0)
    assert len(sample.queries) == 4


def test_weights_without_a_factory_and_pickles_are_refused(tmp_path: Path) -> None:
    torch.save(state(), tmp_path / "weights.pt")
    with pytest.raises(UsageError, match="--model module:factory"):
        open_victim(tmp_path / "weights.pt", InputSpec(SHAPE))
    torch.save(nn.Linear(2, 2), tmp_path / "module.pt")
    with pytest.raises(ArtefactError, match="--allow-pickle"):
        open_victim(tmp_path / "module.pt", InputSpec((2,), "NC"))
    allowed = open_victim(tmp_path / "module.pt", InputSpec((2,), "NC"), allow_pickle=True).probed()
    assert allowed.num_classes == 2
    (tmp_path / "text.pt").write_text("no model")
    with pytest.raises(ArtefactError, match="not a PyTorch model"):
        open_victim(tmp_path / "text.pt", InputSpec(SHAPE))


def test_the_portfolio_follows_the_inputs(tmp_path: Path, data: Data) -> None:
    np.savez(tmp_path / "unlabelled.npz", x=data.x[:300])
    heard = Silent()
    blind = craft(CraftOptions(VICTIM, None, input=SHAPE, queries=6, device="cpu"), heard)
    assert [entry.name for entry in blind.manifest.schemes] == ["ipguard-rl"]
    assert blind.manifest.controls == (6, 6)
    assert any("not tested" in note for note in heard.notes)
    unlabelled = craft(CraftOptions(VICTIM, tmp_path / "unlabelled.npz", queries=6, device="cpu"), Silent())
    assert [entry.name for entry in unlabelled.manifest.schemes] == ["ipguard-tl", "sac-m"]
    assert not unlabelled.manifest.labelled
    with pytest.raises(UsageError, match="input size is not known"):
        craft(CraftOptions(VICTIM), Silent())


def test_float_vectors_are_a_victims_input_too(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    head = nn.Linear(5, 3)
    x: NDArray[np.float32] = rng.normal(size=(400, 5)).astype(np.float32)
    with torch.no_grad():
        y = head(torch.from_numpy(x)).argmax(1).numpy()
    y[:60] = (y[:60] + 1) % 3  # errors to ask about
    np.savez(tmp_path / "table.npz", x=x, y=y)
    torch.jit.save(torch.jit.trace(head.eval(), torch.zeros(2, 5)), str(tmp_path / "linear.pt"))
    bundle = craft(CraftOptions(tmp_path / "linear.pt", tmp_path / "table.npz", queries=20, margin=0.2, device="cpu"), Silent())
    assert [entry.name for entry in bundle.manifest.schemes] == ["ipguard-tl", "akh"]
    assert bundle.queries.dtype == np.float32
    saved = bundle.save(tmp_path / "table.oab")
    assert load(tmp_path / "table.oab").id == saved.id


def test_the_same_inputs_give_the_same_bytes(tmp_path: Path) -> None:
    options = CraftOptions(VICTIM, TRAIN, queries=20, seed=7, device="cpu")
    first = craft(options, Silent()).save(tmp_path / "a.oab")
    second = craft(options, Silent()).save(tmp_path / "b.oab")
    assert (tmp_path / "a.oab").read_bytes() == (tmp_path / "b.oab").read_bytes()
    assert first.id == second.id
    other = craft(CraftOptions(VICTIM, TRAIN, queries=20, seed=8, device="cpu"), Silent())
    assert not np.array_equal(other.queries, first.queries)


def test_the_number_of_cores_changes_no_bit(tmp_path: Path, data: Data, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sums of several threads, and batches of other sizes, end in other bits: each sum has one thread, parts are the same."""
    torch.manual_seed(0)
    dense = nn.Sequential(nn.Flatten(), nn.Linear(784, 10)).eval()
    x = torch.from_numpy(data.x[:40]).permute(0, 3, 1, 2) / 255
    said, before = [], torch.get_num_threads()
    torch.jit.save(torch.jit.trace(dense, x[:2]), str(tmp_path / "dense.pt"))
    np.savez(tmp_path / "unlabelled.npz", x=data.x)
    schemes = ("ipguard-tl", "random")
    options = CraftOptions(tmp_path / "dense.pt", tmp_path / "unlabelled.npz", schemes, queries=130, controls=0, device="cpu")
    try:
        for cores in (1, 2, 5):
            monkeypatch.setattr(os, "cpu_count", lambda cores=cores: cores)
            torch.set_num_threads(cores)
            said.append(dense(x).detach().numpy().tobytes())
            craft(options, Silent()).save(tmp_path / f"{cores}.oab")
            assert torch.get_num_threads() == cores
    finally:
        torch.set_num_threads(before)
    assert len({(tmp_path / f"{cores}.oab").read_bytes() for cores in (1, 2, 5)}) == 1
    if len(set(said)) == 1:
        pytest.skip("on this processor the number of threads changes no sum")


def test_a_scheme_more_leaves_the_others_queries_as_they_were() -> None:
    one = craft(CraftOptions(VICTIM, TRAIN, ("akh",), 20, device="cpu"), Silent())
    two = craft(CraftOptions(VICTIM, TRAIN, ("random", "akh"), 20, device="cpu"), Silent())
    np.testing.assert_array_equal(one.queries[:20], two.queries[20:40])
