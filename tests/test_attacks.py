"""Gradient attacks as samplers: closed forms, foolbox and ART as second opinions, and what holds after rounding to 8 bits."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from copy import deepcopy
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from onnxaudit.craft.data import Data, load_data
from onnxaudit.craft.sample import Material, Sample
from onnxaudit.craft.samplers.adversarial import pgd, sample_adversarial, sample_certain_adversarial, sample_negative_adversarial
from onnxaudit.craft.samplers.boundary import targets
from onnxaudit.craft.samplers.carlini import carlini, sample_cw_l2
from onnxaudit.craft.samplers.deepfool import deepfool, sample_deepfool
from onnxaudit.craft.samplers.gradient_sign import fgsm, igsm, sample_fgsm, sample_igsm
from onnxaudit.craft.space import Space
from onnxaudit.craft.victim import Victim, open_victim
from onnxaudit.errors import UsageError
from onnxaudit.suspect import InputSpec
from tests.models import torch_network

FIXTURES = Path(__file__).resolve().parent.parent / "fixtures"
QUICK_CW: dict[str, Any] = {"iterations": 30, "lr": 0.2, "searches": 4, "constant": 1.0, "k": 1.0}
SAMPLERS: list[tuple[Callable[..., Sample], dict[str, Any]]] = [
    (sample_fgsm, {}),
    (sample_igsm, {}),
    (sample_cw_l2, QUICK_CW),
    (sample_deepfool, {}),
    (sample_adversarial, {}),
    (sample_negative_adversarial, {}),
    (sample_certain_adversarial, {"epsilon": 0.15}),
]
NAMES = [sampler.__name__ for sampler, _ in SAMPLERS]


def quiet(done: int) -> None:
    """Progress that nobody watches."""


class Named(nn.Module):
    """A program as a module, which is what foolbox and ART take."""

    def __init__(self, program: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.program = program

    def forward(self, x: Tensor) -> Tensor:
        return self.program(x)


def foolbox_of(victim: Victim) -> tuple[Any, Any]:
    """foolbox, and the victim as one of its models."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        foolbox = import_module("foolbox")
    return foolbox, foolbox.PyTorchModel(Named(victim.logits).eval(), bounds=(0, 1), device="cpu")


def art_of(victim: Victim, shape: tuple[int, ...]) -> tuple[Any, Any]:
    """ART's evasion attacks, and the victim as one of its classifiers."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        evasion, classification = import_module("art.attacks.evasion"), import_module("art.estimators.classification")
    module, loss = Named(victim.logits).eval(), nn.CrossEntropyLoss()
    network = classification.PyTorchClassifier(module, loss, shape, victim.num_classes, clip_values=(0, 1))
    return evasion, network


@pytest.fixture(scope="module")
def data() -> Data:
    return load_data(FIXTURES / "fashion/train.npz").take(np.arange(800))


@pytest.fixture(scope="module")
def victim() -> Victim:
    return open_victim(FIXTURES / "zoo/victim.pt", InputSpec((28, 28, 1)), device="cpu").probed()


@pytest.fixture(scope="module")
def material(victim: Victim, data: Data) -> Material:
    return Material(victim, data)


def as_victim(module: nn.Module, spec: InputSpec) -> Victim:
    return Victim(module.eval().requires_grad_(False), spec, torch.device("cpu"), "test", "", "test").probed()


def linear(features: int, classes: int, seed: int = 0) -> nn.Linear:
    rng = np.random.default_rng(seed)
    module = nn.Linear(features, classes)
    module.weight.data = torch.from_numpy(rng.normal(size=(classes, features)).astype(np.float32))
    module.bias.data = torch.from_numpy(rng.normal(size=classes).astype(np.float32))
    return module


def vectors(n: int, features: int, seed: int = 1) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(n, features)).astype(np.float32))


def tabular(classes: int) -> Material:
    """Labelled vectors in boxes of very different width, and a victim that is nearly always right on them."""
    rng = np.random.default_rng(4)
    width = np.array([1, 10, 100, 0.1, 1, 1], np.float32)
    x = rng.random((240, 6)).astype(np.float32) * width
    module = linear(6, classes, seed=2)
    module.weight.data = 4 * module.weight.data / torch.from_numpy(width)
    module.bias.data = -(module.weight.data * torch.from_numpy(width)).sum(1) / 2
    with torch.no_grad():
        y = module(torch.from_numpy(x)).argmax(1).numpy()
    y[::5] = (y[::5] + 1) % classes
    return Material(as_victim(module, InputSpec((6,), "NC")), Data(x, y, (), ""))


def labels_of(victim: Victim, sample: Sample) -> np.ndarray[Any, np.dtype[np.int64]]:
    said: np.ndarray[Any, np.dtype[np.int64]] = victim.answer(sample.queries).argmax(1)
    return said


def norms(x: Tensor) -> Tensor:
    return x.flatten(1).square().sum(1).sqrt()


# closed forms


def nearest_boundary(module: nn.Linear, x: Tensor, width: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The shortest way from each x to another class of a linear classifier, in units of width: |f| w' / |w'|^2, w' = w width."""
    weight, bias = module.weight.detach().double().numpy(), module.bias.detach().double().numpy()
    moves = []
    for point in x.double().numpy():
        z = weight @ point + bias
        best = int(z.argmax())
        ways = []
        for k in set(range(len(z))) - {best}:
            w = (weight[k] - weight[best]) * width
            ways.append((z[best] - z[k]) * w / (w @ w))
        moves.append(min(ways, key=lambda way: float(way @ way)) * width)
    return np.stack(moves)


def test_deepfool_meets_the_nearest_boundary_of_a_linear_victim_in_one_iteration() -> None:
    module, x = linear(12, 5), vectors(300, 12)
    victim = as_victim(module, InputSpec((12,), "NC"))
    space = Space(torch.full((1, 12), -9.0), torch.full((1, 12), 9.0), False)
    unit = Space(torch.zeros(1, 12), torch.ones(1, 12), False)
    expected = nearest_boundary(module, x, np.ones(12))
    for overshoot in (0.0, 0.3):
        moves, converged = deepfool(victim, unit, x, overshoot=overshoot, iterations=1, classes=5)
        assert converged.all()
        np.testing.assert_allclose(moves.numpy(), (1 + overshoot) * expected, atol=3e-4)
    inside, _ = deepfool(victim, space, x, overshoot=0.0, iterations=1, classes=5, clip=True)
    np.testing.assert_allclose(inside.numpy(), expected, atol=3e-3)


def test_deepfool_is_shortest_in_units_of_the_boxs_width() -> None:
    module, x = linear(4, 3), vectors(40, 4)
    width = np.array([1, 5, 0.2, 1])
    low = torch.full((1, 4), -50.0)
    space = Space(low, low + torch.from_numpy(width.astype(np.float32)), False)
    moves, _ = deepfool(as_victim(module, InputSpec((4,), "NC")), space, x, overshoot=0.0, iterations=1, classes=3)
    np.testing.assert_allclose(moves.numpy(), nearest_boundary(module, x, width), atol=1e-3)


def test_deepfool_tries_only_the_best_classes_and_takes_zero_steps_in_zero_iterations() -> None:
    module, x = linear(6, 8), vectors(50, 6)
    victim = as_victim(module, InputSpec((6,), "NC"))
    unit = Space(torch.zeros(1, 6), torch.ones(1, 6), False)
    two, _ = deepfool(victim, unit, x, overshoot=0.0, iterations=1, classes=2)
    z = victim.predict(x)
    first, second = z.topk(2).indices.T
    w = module.weight[second] - module.weight[first]
    gap = z.gather(1, first[:, None]) - z.gather(1, second[:, None])
    np.testing.assert_allclose(two.numpy(), (gap * w / w.square().sum(1, keepdim=True)).numpy(), atol=3e-4)
    still, converged = deepfool(victim, unit, x, overshoot=0.0, iterations=0, classes=2)
    assert not still.any()
    assert not converged.any()


def test_targeted_deepfool_reaches_the_target_and_no_other() -> None:
    module, x = linear(10, 6), vectors(80, 10)
    victim = as_victim(module, InputSpec((10,), "NC"))
    unit = Space(torch.zeros(1, 10), torch.ones(1, 10), False)
    goal = victim.predict(x).argmin(1)
    moves, converged = deepfool(victim, unit, x, overshoot=0.02, iterations=50, classes=10, target=goal)
    assert converged.all()
    assert (victim.predict(x + moves).argmax(1) == goal).all()
    source, z = victim.predict(x).argmax(1), victim.predict(x)
    w = module.weight[goal] - module.weight[source]
    distance = (z.gather(1, source[:, None]) - z.gather(1, goal[:, None]))[:, 0] / norms(w)
    assert (norms(moves) >= distance - 1e-4).all()  # no shorter than to the boundary with the start's class


def test_cw_l2_finds_the_boundary_distance_of_a_linear_victim_of_two_classes() -> None:
    """With margin k the nearest point lies (f + k) / |w| away, where the box does not cut it off."""
    module = linear(5, 2)
    victim = as_victim(module, InputSpec((5,), "NC"))
    space = Space(torch.full((1, 5), -10.0), torch.full((1, 5), 10.0), False)
    x = vectors(12, 5)
    z = victim.predict(x)
    points, reached = carlini(victim, space, x, z.argmin(1), k=0.5, lr=0.01, iterations=300, searches=12, constant=1e-4)
    assert reached.all()
    w = (module.weight[0] - module.weight[1]).norm()
    distance = ((z[:, 0] - z[:, 1]).abs() + 0.5) / w
    assert (norms(points - x) >= distance - 1e-4).all()
    assert (norms(points - x) / distance).median() < 1.03


def test_fgsm_and_igsm_of_a_linear_victim_move_every_feature_along_the_weights_signs() -> None:
    module, x = linear(7, 2), vectors(20, 7).abs().clamp(0.3, 0.7)
    victim = as_victim(module, InputSpec((7,), "NC"))
    unit = Space(torch.zeros(1, 7), torch.ones(1, 7), False)
    goal = victim.predict(x).argmin(1)
    signs = (module.weight[goal] - module.weight[1 - goal]).sign()
    torch.testing.assert_close(fgsm(victim, unit, x, goal, epsilon=0.1, targeted=True)[0], x + 0.1 * signs)
    torch.testing.assert_close(fgsm(victim, unit, x, 1 - goal, epsilon=0.1, targeted=False)[0], x + 0.1 * signs)
    points, reached = igsm(victim, unit, x, goal, epsilon=1.0, step=0.01, iterations=20, clip_mode="total")
    z = victim.predict(x)
    gap = z.gather(1, 1 - goal[:, None]) - z.gather(1, goal[:, None])
    steps = (gap[:, 0] / (0.01 * (module.weight[0] - module.weight[1]).abs().sum())).ceil()
    near = steps <= 19
    assert (reached == near)[steps != 20].all()
    assert 0 < int(near.sum()) < 20
    torch.testing.assert_close(points[near], (x + 0.01 * steps[:, None] * signs)[near], atol=1e-4, rtol=0)
    bound, _ = igsm(victim, unit, x, goal, epsilon=0.004, step=0.01, iterations=1, clip_mode="step")
    torch.testing.assert_close(bound, x + 0.004 * signs)


# foolbox and ART on the same victim


def test_deepfool_goes_no_farther_than_foolboxs_and_arts(victim: Victim, data: Data) -> None:
    x = victim.pixels(data.x[:12])
    label = victim.predict(x).argmax(1)
    space = Material(victim, data).space
    foolbox, model = foolbox_of(victim)
    _, theirs, success = foolbox.attacks.L2DeepFoolAttack(overshoot=0.02)(model, x, label, epsilons=None)
    moves, converged = deepfool(victim, space, x, overshoot=0.02, iterations=50, classes=10, clip=True)
    assert bool(converged.all()) == bool(success.all()) is True
    assert float(norms(moves).mean()) <= 1.02 * float(norms(theirs - x).mean())
    small = as_victim(torch_network(), InputSpec((8, 8, 3)))
    y = torch.rand(12, 3, 8, 8, generator=torch.Generator().manual_seed(0)) / 2 + 0.25  # away from the box's sides
    evasion, network = art_of(small, (3, 8, 8))
    arts = torch.from_numpy(evasion.DeepFool(network, epsilon=0.02, nb_grads=4, verbose=False).generate(y.numpy())) - y
    ours, converged = deepfool(small, space_for(small), y, overshoot=0.02, iterations=50, classes=4)
    assert converged.all()
    assert float(norms(ours).mean()) == pytest.approx(float(norms(arts).mean()), rel=0.05)


def space_for(victim: Victim) -> Space:
    return Material(victim).space


def test_fgsm_is_foolboxs_and_arts(victim: Victim, data: Data) -> None:
    x = victim.pixels(data.x[:16])
    label, goal = victim.predict(x).argmax(1), victim.predict(x).argmin(1)
    space = Material(victim, data).space
    foolbox, model = foolbox_of(victim)
    one_step = foolbox.attacks.LinfPGD(steps=1, abs_stepsize=0.08, random_start=False)
    towards = foolbox.criteria.TargetedMisclassification(goal)
    evasion, network = art_of(victim, (1, 28, 28))
    for targeted, criterion, reference in ((False, label, label), (True, towards, goal)):
        ours = space.queries(fgsm(victim, space, x, reference, epsilon=0.08, targeted=targeted)[0])
        _, theirs, _ = one_step(model, x, criterion, epsilons=0.08)
        arts = evasion.FastGradientMethod(network, eps=0.08, targeted=targeted).generate(x.numpy(), reference.numpy())
        assert (ours == space.queries(theirs)).mean() > 0.999
        assert (ours == space.queries(torch.from_numpy(arts))).mean() > 0.999


def test_igsm_walks_as_arts_until_it_first_succeeds(victim: Victim, data: Data) -> None:
    x = victim.pixels(data.x[:6])
    goal = victim.predict(x).argmin(1)
    space = Material(victim, data).space
    points, reached = igsm(victim, space, x, goal, epsilon=0.5, step=1 / 255, iterations=200, clip_mode="total")
    assert reached.all()
    evasion, network = art_of(victim, (1, 28, 28))
    for row in range(6):
        previous = x[row : row + 1]
        for _ in range(40):
            attack = evasion.BasicIterativeMethod(network, eps=0.5, eps_step=1 / 255, max_iter=1, targeted=True, verbose=False)
            following = torch.from_numpy(attack.generate(previous.numpy(), goal[row : row + 1].numpy()))
            if victim.predict(following).argmax(1) == goal[row]:
                break
            previous = following
        assert victim.predict(previous).argmax(1) != goal[row]
        assert float((points[row] - following[0]).abs().mean()) < 0.5 / 255


def test_pgd_succeeds_as_often_as_foolboxs_and_arts_in_the_same_ball(victim: Victim, data: Data) -> None:
    x = victim.pixels(data.x[:48])
    label = victim.predict(x).argmax(1)
    space = Material(victim, data).space
    rng = np.random.default_rng(0)
    points = pgd(victim, space, x, label, rng, epsilon=8 / 255, step=8 / 255 / 30, iterations=40)
    ours = (victim.predict(points).argmax(1) != label).float().mean()
    foolbox, model = foolbox_of(victim)
    torch.manual_seed(0)
    attack = foolbox.attacks.LinfPGD(steps=40, abs_stepsize=8 / 255 / 30)
    _, _, success = attack(model, x, label, epsilons=8 / 255)
    evasion, network = art_of(victim, (1, 28, 28))
    options = {"eps": 8 / 255, "eps_step": 8 / 255 / 30, "max_iter": 40, "num_random_init": 1, "batch_size": 48, "verbose": False}
    arts = torch.from_numpy(evasion.ProjectedGradientDescentPyTorch(network, **options).generate(x.numpy(), label.numpy()))
    assert 0.2 < float(ours) < 0.9
    assert float(ours) >= float(success.float().mean()) - 1 / 24
    assert float(ours) >= float((victim.predict(arts).argmax(1) != label).float().mean()) - 1 / 24
    assert float((points - x).abs().max()) <= 8 / 255 + 1e-6
    early = pgd(victim, space, x, label, np.random.default_rng(0), epsilon=8 / 255, step=8 / 255 / 30, iterations=40, early=True)
    assert float((victim.predict(early).argmax(1) != label).float().mean()) >= float(ours) - 1 / 24
    assert float(norms(early - x).mean()) < float(norms(points - x).mean())


def test_cw_l2_goes_no_farther_than_foolboxs(victim: Victim, data: Data) -> None:
    x = victim.pixels(data.x[:4])
    goal = victim.predict(x).argmin(1)
    space = Material(victim, data).space
    foolbox, model = foolbox_of(victim)
    attack = foolbox.attacks.L2CarliniWagnerAttack(binary_search_steps=5, steps=60, stepsize=0.1, initial_const=0.1)
    _, theirs, success = attack(model, x, foolbox.criteria.TargetedMisclassification(goal), epsilons=None)
    options: dict[str, Any] = {"k": 0.0, "lr": 0.1, "iterations": 60, "searches": 5, "constant": 0.1}
    points, reached = carlini(victim, space, x, goal, **options)
    floats, _ = carlini(victim, Space(space.low, space.high, False), x, goal, **options)
    assert reached.tolist() == success.tolist() == [True] * 4
    assert (victim.predict(points).argmax(1) == goal).all()
    assert float(norms(floats - x).mean()) <= 1.01 * float(norms(theirs - x).mean())
    assert float(norms(points - x).mean()) <= 1.05 * float(norms(theirs - x).mean())  # and the grid costs little


# what a batch does to its points


def test_points_in_a_batch_go_where_they_go_alone() -> None:
    small = as_victim(torch_network(), InputSpec((8, 8, 3)))
    space = space_for(small)
    x = space.uniform(40, np.random.default_rng(3))
    label, goal = small.predict(x).argmax(1), small.predict(x).argmin(1)

    def cw(x: Tensor, goal: Tensor) -> Tensor:
        return carlini(small, space, x, goal, k=0.1, lr=0.1, iterations=20, searches=4, constant=1.0)[0] - x

    def stepped(x: Tensor, goal: Tensor) -> Tensor:
        return igsm(small, space, x, goal, epsilon=0.2, step=1 / 255, iterations=80, clip_mode="total")[0] - x

    def fooled(x: Tensor, goal: Tensor) -> Tensor:
        return deepfool(small, space, x, overshoot=0.02, iterations=20, classes=4, clip=True)[0]

    for attack in (cw, stepped, fooled):
        together = attack(x, goal)
        for row in (0, 17, 39):
            alone = attack(x[row : row + 1], goal[row : row + 1])
            assert float((alone[0] - together[row]).abs().mean()) < 0.5 / 255, attack.__name__
    whole = pgd(small, space, x, label, np.random.default_rng(0), epsilon=0.05, step=0.01, iterations=10)
    part = pgd(small, space, x[:3], label[:3], np.random.default_rng(0), epsilon=0.05, step=0.01, iterations=10)
    assert float((whole[:3] - part).abs().mean()) < 0.5 / 255  # the noise is drawn row by row


def test_more_points_than_a_batch_holds_come_back_in_order() -> None:
    module, x = linear(3, 3), vectors(600, 3)
    victim = as_victim(module, InputSpec((3,), "NC"))
    unit = Space(torch.zeros(1, 3), torch.ones(1, 3), False)
    goal = targets(victim, x, np.random.default_rng(0), "random")
    moves, converged = deepfool(victim, unit, x, overshoot=0.02, iterations=20, classes=3, target=goal)
    assert moves.shape == x.shape
    assert (victim.predict(x + moves).argmax(1) == goal)[converged].all()
    assert converged.float().mean() > 0.9


# what the samplers promise


@pytest.mark.parametrize(("sampler", "options"), SAMPLERS, ids=NAMES)
def test_a_seed_makes_the_same_queries_and_no_global_state(
    material: Material, sampler: Callable[..., Sample], options: dict[str, Any]
) -> None:
    torch.manual_seed(11)
    before = torch.get_rng_state()
    first, second, other = (sampler(material, 10, np.random.default_rng(seed), quiet, **options) for seed in (5, 5, 6))
    assert torch.equal(before, torch.get_rng_state())
    np.testing.assert_array_equal(first.queries, second.queries)
    assert first.parameters == second.parameters
    assert not np.array_equal(first.queries, other.queries)
    assert first.queries.dtype == np.uint8
    assert first.queries.shape == (10, 28, 28, 1)
    assert all(len(column) == 10 for column in first.columns.values())


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize(("sampler", "options"), SAMPLERS, ids=NAMES)
def test_vectors_and_two_classes_are_enough(sampler: Callable[..., Sample], options: dict[str, Any], classes: int) -> None:
    table = tabular(classes)
    sample = sampler(table, 12, np.random.default_rng(0), quiet, **options)
    assert sample.queries.dtype == np.float32
    assert sample.queries.shape == (12, 6)
    x = table.inputs().x
    assert (sample.queries >= x.min(0)).all()
    assert (sample.queries <= x.max(0)).all()


@pytest.mark.parametrize("end", ["softmax", "float64"])
@pytest.mark.parametrize(("sampler", "options"), SAMPLERS, ids=NAMES)
def test_probabilities_and_other_precisions_are_attacked_like_logits(
    sampler: Callable[..., Sample], options: dict[str, Any], end: str
) -> None:
    table = tabular(3)
    plain: Any = table.victim.program
    module = nn.Sequential(plain, nn.Softmax(1)) if end == "softmax" else deepcopy(plain).double()
    other = as_victim(module, InputSpec((6,), "NC", dtype="float64" if end == "float64" else "float32"))
    assert other.normalised == (end == "softmax")
    expected = sampler(table, 12, np.random.default_rng(0), quiet, **options)
    sample = sampler(Material(other, table.data), 12, np.random.default_rng(0), quiet, **options)
    width = np.ptp(table.inputs().x, axis=0)
    assert np.median(np.abs(sample.queries - expected.queries) / width) < 1e-3
    assert (labels_of(other, sample) == labels_of(table.victim, expected)).mean() >= 10 / 12


@pytest.mark.parametrize("target", ["nearest", "least-likely", "random"])
def test_deepfools_queries_lie_across_the_boundary_as_8_bit_images(material: Material, target: str) -> None:
    sample = sample_deepfool(material, 20, np.random.default_rng(1), quiet, target=target)
    victim = material.victim
    seeds = material.inputs().x
    distance = np.abs(sample.queries[:, None].astype(np.int16) - seeds[None]).reshape(20, len(seeds), -1).astype(np.int64)
    nearest = np.square(distance).sum(2).argmin(1)
    start = victim.answer(seeds[nearest])
    assert (labels_of(victim, sample) != start.argmax(1)).all()
    if target == "least-likely":
        assert (labels_of(victim, sample) == start.argmin(1)).all()
    best = np.sort(victim.answer(sample.queries), axis=1)
    margin, before = best[:, -1] - best[:, -2], np.sort(start, axis=1)
    assert np.median(margin) < 0.2 * np.median(before[:, -1] - before[:, -2])  # and close to it


def test_cw_l2s_queries_have_their_margin_as_8_bit_images(material: Material) -> None:
    sample = sample_cw_l2(material, 10, np.random.default_rng(1), quiet, **QUICK_CW)
    best = np.sort(material.victim.answer(sample.queries), axis=1)
    assert (best[:, -1] - best[:, -2] >= 1.0 - 1e-4).all()
    settled = sample_cw_l2(material, 4, np.random.default_rng(1), quiet, **{**QUICK_CW, "k": None})
    assert 0 < settled.parameters["k"] <= 10


@pytest.mark.parametrize("start", ["training", "random"])
def test_fgsm_says_how_many_succeeded_and_keeps_those_if_told(material: Material, start: str) -> None:
    rng = np.random.default_rng
    options: dict[str, Any] = {"start": start, "target": "random", "epsilon": 0.2}
    every = sample_fgsm(material, 40, rng(0), quiet, **options)
    assert len(every.queries) == 40
    kept = sample_fgsm(material, 40, rng(0), quiet, **options, successful=True)
    assert len(kept.queries) == round(40 * every.parameters["success"])
    assert f"only {len(kept.queries)} of 40" in kept.notes[0]
    if start == "random":
        assert len(np.unique(every.queries)) > 200


def test_igsm_reaches_its_targets_on_the_grid_and_total_bounds_the_way(material: Material) -> None:
    near = sample_igsm(material, 12, np.random.default_rng(0), quiet, clip_mode="total", epsilon=6 / 255, iterations=60)
    far = sample_igsm(material, 12, np.random.default_rng(0), quiet)
    assert far.parameters["success"] == 1.0
    assert near.parameters["success"] < 1.0
    seeds = material.inputs().x[np.random.default_rng(0).permutation(len(material.inputs()))[:12]]
    assert np.abs(near.queries.astype(int) - seeds).max() <= 6
    assert np.abs(far.queries.astype(int) - seeds).max() > 6
    assert (labels_of(material.victim, far) == material.victim.answer(seeds).argmin(1)).all()


def test_pairs_are_a_seed_and_its_adversarial_example(material: Material) -> None:
    sample = sample_adversarial(material, 21, np.random.default_rng(2), quiet)
    assert sample.columns["pair"].tolist() == [pair for pair in range(10) for _ in range(2)]
    seeds, adversarial = sample.queries[::2], sample.queries[1::2]
    known = {image.tobytes() for image in material.inputs().x}
    assert all(seed.tobytes() in known for seed in seeds)
    apart = np.abs(adversarial.astype(int) - seeds).max(axis=(1, 2, 3))
    assert (apart > 0).all()
    assert (apart <= 7).all()  # 0.03 of 255 is 7.65 grey levels
    labels = labels_of(material.victim, sample)
    assert float((labels[::2] != labels[1::2]).mean()) == sample.parameters["success"]


def test_negative_pairs_start_from_errors_and_say_when_they_run_out(material: Material) -> None:
    data, truth = material.labelled()
    of = {image.tobytes(): label for image, label in zip(data.x, truth, strict=True)}
    sample = sample_negative_adversarial(material, 20, np.random.default_rng(0), quiet)
    labels = labels_of(material.victim, sample)
    assert all(of[image.tobytes()] != label for image, label in zip(sample.queries[::2], labels[::2], strict=True))
    few = Material(material.victim, data.take(np.arange(100)))
    errors = int((few.victim.answer(few.inputs().x).argmax(1) != truth[:100]).sum())
    short = sample_negative_adversarial(few, 60, np.random.default_rng(0), quiet)
    assert len(short.queries) == 2 * errors < 60
    assert f"only {errors} natural errors in 100 inputs" in short.notes[0]
    filled = sample_negative_adversarial(few, 60, np.random.default_rng(0), quiet, fill="margin")
    assert len(filled.queries) == 60
    assert f"{30 - errors} right answers" in filled.notes[0]


def test_certain_cases_are_successes_from_the_surest_seeds(material: Material) -> None:
    sample = sample_certain_adversarial(material, 20, np.random.default_rng(0), quiet, epsilon=0.1)
    victim, truth = material.victim, sample.columns["truth"]
    assert (labels_of(victim, sample) != truth).all()
    data, labels = material.labelled()
    p = torch.from_numpy(victim.answer(data.x)).double().softmax(1).numpy()
    right = np.flatnonzero(p.argmax(1) == labels)
    surest = right[np.argsort(-np.square(p[right]).sum(1), kind="stable")][: sample.parameters["tried"]]
    for query, label in zip(sample.queries, truth, strict=True):
        apart = np.abs(data.x[surest].astype(int) - query).max(axis=(1, 2, 3))
        assert apart.min() <= 25  # 0.1 of 255 is 25.5 grey levels
        assert label in labels[surest[apart <= 25]]
    free = sample_certain_adversarial(material, 20, np.random.default_rng(0), quiet, project=False)
    assert free.parameters["step"] == 0.03
    apart = np.abs(data.x[surest].astype(int)[None] - free.queries.astype(int)[:, None]).max(axis=(2, 3, 4)).min(1)
    assert apart.max() > 8  # beyond epsilon, as the authors' code goes


# bad input


@pytest.mark.parametrize(
    ("sampler", "options", "message"),
    [
        (sample_fgsm, {"start": "moon"}, "start='moon' is not known"),
        (sample_fgsm, {"target": "moon"}, "target='moon' is not known"),
        (sample_fgsm, {"epsilon": 0.0}, "epsilon=0 must be more than 0"),
        (sample_fgsm, {"epsilon": 0.01, "successful": True}, "succeeds on none"),
        (sample_igsm, {"clip_mode": "moon"}, "clip_mode='moon' is not known"),
        (sample_deepfool, {"target": "moon"}, "target='moon' is not known"),
        (sample_deepfool, {"classes": 1}, "classes >= 2"),
        (sample_deepfool, {"iterations": 1, "target": "least-likely"}, "succeeds on none"),
        (sample_cw_l2, {"lr": 0.0}, "more than 0"),
        (sample_adversarial, {"epsilon": 0.003}, "move nothing"),
        (sample_negative_adversarial, {"fill": "moon"}, "fill='moon' is not known"),
        (sample_certain_adversarial, {"epsilon": 0.004, "iterations": 1, "seeds": 4}, "none of the"),
    ],
)
def test_what_cannot_be_done_is_said(
    material: Material, sampler: Callable[..., Sample], options: dict[str, Any], message: str
) -> None:
    few = Material(material.victim, material.inputs().take(np.arange(40)))
    with pytest.raises(UsageError, match=message):
        sampler(few, 4, np.random.default_rng(0), quiet, **options)


@pytest.mark.parametrize(("sampler", "options"), SAMPLERS, ids=NAMES)
def test_a_victim_without_gradients_is_refused(sampler: Callable[..., Sample], options: dict[str, Any]) -> None:
    table = tabular(3)

    class Detached(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = table.victim.logits(x)
            return logits.detach()

    blocked = Material(as_victim(Detached(), InputSpec((6,), "NC")), table.data)
    with pytest.raises(UsageError, match="gives no gradients"):
        sampler(blocked, 8, np.random.default_rng(0), quiet, **options)


def test_few_inputs_make_few_queries_and_a_note(material: Material) -> None:
    few = Material(material.victim, material.inputs().take(np.arange(6)))
    sample = sample_deepfool(few, 10, np.random.default_rng(0), quiet)
    assert len(sample.queries) == 6
    assert "only 6 of 10 queries" in sample.notes[0]
    assert "only 6 of 10 queries" in sample_fgsm(few, 10, np.random.default_rng(0), quiet).notes[0]
    with pytest.raises(UsageError, match="10 pairs asked for"):
        sample_adversarial(few, 20, np.random.default_rng(0), quiet)
