"""Universal perturbations and FUAP's views: closed forms, the published loop step by step, ART, and what holds after rounding."""

from __future__ import annotations

import random
import time
import warnings
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from onnxaudit.answers import Answers
from onnxaudit.craft.data import Data, load_data
from onnxaudit.craft.sample import Material, Sample
from onnxaudit.craft.samplers.deepfool import PUSH
from onnxaudit.craft.samplers.universal import fooling, fooling_rate, sample_uap, universal_perturbation
from onnxaudit.craft.samplers.views import choose_views, embed
from onnxaudit.craft.space import Space
from onnxaudit.craft.victim import Victim, open_victim
from onnxaudit.errors import UsageError
from onnxaudit.schemes.representations import views as by_view
from onnxaudit.suspect import InputSpec

FIXTURES = Path(__file__).resolve().parent.parent / "fixtures"
BOX = Space(torch.zeros(1, 12), torch.ones(1, 12), False)


def quiet(done: int) -> None:
    """Progress that nobody watches."""


@pytest.fixture(scope="module")
def material() -> Material:
    victim = open_victim(FIXTURES / "zoo/victim.pt", InputSpec((28, 28, 1)), device="cpu").probed()
    return Material(victim, load_data(FIXTURES / "fashion/train.npz").take(np.arange(1000)))


@pytest.fixture(scope="module")
def sample(material: Material) -> Sample:
    return sample_uap(material, 120, np.random.default_rng(0), quiet, algorithm="gradient", views=4)


def as_victim(module: nn.Module, shape: tuple[int, ...] = (12,)) -> Victim:
    spec = InputSpec(shape, "NC" if len(shape) == 1 else "NCHW")
    return Victim(module.eval().requires_grad_(False), spec, torch.device("cpu"), "test", "", "test").probed()


def linear(classes: int, bias: float = 0.0) -> nn.Linear:
    """A linear victim whose class 0 is ahead by ``bias``."""
    rng = np.random.default_rng(3)
    module = nn.Linear(12, classes)
    module.weight.data = torch.from_numpy(rng.normal(size=(classes, 12)).astype(np.float32))
    middle = module.weight.data @ torch.full((12,), 0.5)
    module.bias.data = -middle + bias * (torch.arange(classes) == 0)
    return module


def middling(n: int) -> Tensor:
    """Points far from the edges of the unit box, so that nothing is clipped."""
    return torch.from_numpy(np.random.default_rng(4).uniform(0.3, 0.7, (n, 12)).astype(np.float32))


# closed forms


@pytest.mark.parametrize("batch", [1, 32])
@pytest.mark.parametrize("algorithm", ["deepfool", "gradient"])
def test_a_linear_victim_of_two_classes_is_fooled_along_the_difference_of_its_weights(algorithm: str, batch: int) -> None:
    """Inputs of one class lie margin / |w| from the boundary; a perturbation of norm xi fools exactly those that lie nearer."""
    module = linear(2)
    victim, w = as_victim(module), (module.weight[1] - module.weight[0]).detach()
    x = middling(160)
    x = x[victim.predict(x).argmax(1) == 0]
    z = victim.predict(x)
    distance = (z[:, 0] - z[:, 1]) / w.norm()
    for share in (0.5, 0.9):
        xi = float(distance.quantile(share))
        v = universal_perturbation(
            victim, BOX, x, xi, np.random.default_rng(0), delta=0.0, algorithm=algorithm, batch=batch, passes=20
        )
        assert float(v.norm()) <= xi * (1 + 1e-5)
        assert float(v[0] @ w / v.norm() / w.norm()) > 0.9999
        assert fooling_rate(victim, BOX, x, v) == pytest.approx(float((distance < xi).float().mean()), abs=2 / len(x))
        same = universal_perturbation(victim, BOX, x, 2 * xi, np.random.default_rng(0), v, delta=0.6, algorithm=algorithm)
        assert (same == v).all()  # fools enough already


def test_with_a_batch_of_one_it_is_the_published_loop() -> None:
    """Moosavi-Dezfooli et al. 2017, algorithm 1, written out for a linear victim, where DeepFool's step is known."""
    module = linear(4, bias=1.0)
    victim, x, xi = as_victim(module), middling(60), 0.4
    found = universal_perturbation(victim, BOX, x, xi, np.random.default_rng(5), batch=1, passes=1, delta=0.0)
    weight, bias = (p.detach().double().numpy() for p in (module.weight, module.bias))
    points, v = x.double().numpy(), np.zeros(12)
    for row in np.random.default_rng(5).permutation(60):
        here = points[row] + v
        z = weight @ here + bias
        if z.argmax() != (weight @ points[row] + bias).argmax():
            continue
        ways = [(z[z.argmax()] - z[k], weight[k] - weight[z.argmax()]) for k in range(4) if k != z.argmax()]
        gap, normal = min(ways, key=lambda way: way[0] / np.linalg.norm(way[1]))
        size = np.linalg.norm(normal)
        v = v + 1.02 * (gap / size + PUSH) * normal / size
        v *= min(1, xi / np.linalg.norm(v))
    np.testing.assert_allclose(found[0].numpy(), v, atol=2e-5)


@pytest.mark.parametrize("algorithm", ["deepfool", "gradient"])
@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_the_perturbation_stays_in_its_ball_and_fools_more_than_noise_of_the_same_norm(
    material: Material, algorithm: str, norm: str
) -> None:
    victim, space = material.victim, material.space
    x = victim.pixels(material.inputs().x[:300])
    xi = 2.0 if norm == "l2" else 0.1
    v = universal_perturbation(victim, space, x[:150], xi, np.random.default_rng(0), norm=norm, algorithm=algorithm, passes=2)
    size = float(v.norm() if norm == "l2" else v.abs().max())
    assert size <= xi * (1 + 1e-5)
    noise = torch.from_numpy(np.random.default_rng(1).normal(size=v.shape).astype(np.float32))
    noise = noise * (v.norm() / noise.norm())
    assert fooling_rate(victim, space, x[150:], v) > 3 * fooling_rate(victim, space, x[150:], noise)


@pytest.mark.parametrize("algorithm", ["deepfool", "gradient"])
def test_radii_are_in_units_of_the_boxs_width(algorithm: str) -> None:
    width = torch.tensor([[1.0, 100.0, 0.01] * 4])
    module = linear(3)
    scaled = nn.Linear(12, 3)
    scaled.weight.data, scaled.bias.data = module.weight.data / width, module.bias.data
    wide, x = Space(torch.zeros(1, 12), width, False), middling(100)
    for norm in ("l2", "linf"):
        one, two = (
            universal_perturbation(
                as_victim(of), space, points, 0.2, np.random.default_rng(0), norm=norm, passes=3, delta=0.0, algorithm=algorithm
            )
            for of, space, points in ((module, BOX, x), (scaled, wide, x * width))
        )
        torch.testing.assert_close(two / width, one, rtol=1e-3, atol=1e-4)


def test_judges_end_the_search_and_the_best_pass_counts() -> None:
    victim, x = as_victim(linear(4, bias=1.0)), middling(200)
    start = torch.full((1, 12), 0.02)
    fooled = victim.predict(x + start).argmax(1) != victim.predict(x).argmax(1)
    assert 0 < int(fooled.sum()) < 100

    def search(xi: float = 0.4, judges: Tensor | None = None, **options: Any) -> Tensor:
        return universal_perturbation(victim, BOX, x, xi, np.random.default_rng(1), start, judges, **options)

    assert (search(judges=x[fooled]) == start).all()
    assert (search(judges=x[~fooled]) != start).any()
    rates = [fooling_rate(victim, BOX, x, search(passes=passes, delta=0.0, batch=50)) for passes in range(8)]
    assert rates == sorted(rates)


def test_at_least_as_many_are_fooled_as_by_art_in_no_more_time(material: Material) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        evasion, classification = import_module("art.attacks.evasion"), import_module("art.estimators.classification")

    class Named(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return victim.logits(x)

    victim, space, xi = material.victim, material.space, 2.0
    x = victim.pixels(material.inputs().x[:200])
    shown, aside = x[:40], x[40:]
    network = classification.PyTorchClassifier(Named().eval(), nn.CrossEntropyLoss(), (1, 28, 28), 10, clip_values=(0, 1))
    theirs = evasion.UniversalPerturbation(
        network,
        attacker_params={"max_iter": 10, "epsilon": 0.02, "nb_grads": 10, "verbose": False},
        delta=0.0,
        max_iter=1,
        eps=xi,
        norm=2,
        verbose=False,
    )
    state = random.getstate()
    random.seed(0)
    started = time.process_time()
    theirs.generate(shown.numpy())
    seconds = time.process_time() - started
    random.setstate(state)
    started = time.process_time()
    ours = universal_perturbation(victim, space, shown, xi, np.random.default_rng(0), delta=0.0, passes=10)
    assert time.process_time() - started < seconds
    noise = torch.from_numpy(theirs.noise)
    assert float(noise.norm()) <= xi * (1 + 1e-5)
    for part in (shown, aside):
        assert fooling_rate(victim, space, part, ours) >= fooling_rate(victim, space, part, noise)


def test_an_image_is_fooled_only_if_it_is_so_after_rounding() -> None:
    module = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    module[1].weight.data, module[1].bias.data = torch.tensor([[0.0] * 4, [1.0] * 4]), torch.tensor([2.001, 0.0])
    victim, x = as_victim(module, (2, 2, 1)), torch.full((3, 1, 2, 2), 128 / 255)
    x = x - torch.tensor([2 / 255, 0, 0, 0]).reshape(1, 1, 2, 2)
    space, v = Material(victim).space, torch.full((1, 1, 2, 2), 0.4 / 255)
    assert (victim.predict(x).argmax(1) != victim.predict(x + v).argmax(1)).all()
    assert fooling_rate(victim, space, x, v) == 0
    assert fooling_rate(victim, space, x, 2 * v) == 1


# views


def blobs() -> NDArray[np.float64]:
    """Eight clusters of 3 to 24 points each, far apart."""
    rng = np.random.default_rng(0)
    sizes = (3, 4, 9, 12, 15, 18, 21, 24)
    return np.concatenate([100 * rng.normal(size=(1, 5)) + rng.normal(size=(size, 5)) for size in sizes])


def test_an_anchor_lies_in_each_cluster_and_its_variations_are_its_nearest_inputs() -> None:
    embedded = blobs()
    cluster = np.repeat(np.arange(8), (3, 4, 9, 12, 15, 18, 21, 24))
    chosen = choose_views(embedded, 8, 3, np.random.default_rng(1))
    assert chosen.rows.shape == (3, 8)
    assert chosen.notes == ()
    assert all(len(set(column)) == 3 for column in chosen.rows.T)  # without replacement
    assert sorted(cluster[chosen.rows[0]]) == list(range(8))
    for column in chosen.rows.T:
        nearest = [set(np.argsort(np.linalg.norm(embedded - embedded[anchor], axis=1))[:3]) for anchor in column]
        assert set(column) in nearest  # of one of them, the anchor


def test_a_pool_of_the_cluster_takes_its_members_and_then_the_nearest_others() -> None:
    embedded = blobs()
    cluster = np.repeat(np.arange(8), (3, 4, 9, 12, 15, 18, 21, 24))
    chosen = choose_views(embedded, 8, 6, np.random.default_rng(1), "cluster")
    assert all(len(set(column)) == 6 for column in chosen.rows.T)
    inside = sorted(
        int((cluster[column] == np.bincount(cluster[column], minlength=8).argmax()).sum()) for column in chosen.rows.T
    )
    small = sorted(
        int(sum(cluster[column] == k)) for k in (0, 1) for column in chosen.rows.T if (cluster[column] == k).sum() == (3, 4)[k]
    )
    assert inside[2:] == [6] * 6
    assert small == [3, 4]
    assert chosen.notes == ("2 of 8 clusters have fewer than 6 inputs; the nearest others fill up",)


def test_anchors_and_members_are_drawn_at_random_and_variations_are_shuffled() -> None:
    line = np.arange(40.0)[:, None]
    drawn = [choose_views(line, 1, 3, np.random.default_rng(seed)).rows[:, 0] for seed in range(8)]
    assert {int(np.ptp(rows)) for rows in drawn} == {2}  # three in a row
    assert len({int(rows.min()) for rows in drawn}) > 4
    assert len({tuple(np.argsort(rows)) for rows in drawn}) > 2
    spread = [choose_views(line, 1, 3, np.random.default_rng(seed), "cluster").rows[:, 0] for seed in range(8)]
    assert np.mean([np.ptp(rows) for rows in spread]) > 8
    assert len(set(np.concatenate(spread).tolist())) > 14


def test_inputs_that_look_the_same_make_fewer_anchors() -> None:
    chosen = choose_views(np.repeat(np.eye(3), 10, axis=0), 5, 4, np.random.default_rng(0))
    assert chosen.rows.shape == (4, 3)
    assert chosen.notes == ("the victim tells only 3 inputs apart, so views have 3 inputs, not 5",)


# the sampler


def test_views_come_one_after_the_other_in_pairs_without_and_with_the_perturbation(material: Material, sample: Sample) -> None:
    assert sample.queries.shape == (120, 28, 28, 1)
    assert sample.queries.dtype == np.uint8
    assert sample.columns["view"].tolist() == np.repeat(np.arange(4), 30).tolist()
    known = {image.tobytes() for image in material.images()}
    clean, moved = sample.queries[::2].astype(int), sample.queries[1::2].astype(int)
    assert all(image.tobytes() in known for image in sample.queries[::2])
    added = moved - clean
    free = (moved > 0) & (moved < 255)  # elsewhere it was clipped
    most, least = (
        np.where(free, added, start).max(0) if start < 0 else np.where(free, added, start).min(0) for start in (-300, 300)
    )
    assert (most - least)[free.any(0)].max() <= 1  # one perturbation, but for rounding
    assert np.sqrt(np.square(added / 255).sum(axis=(1, 2, 3))).max() <= sample.parameters["xi"] * 1.02 + 0.05
    labels = material.victim.answer(sample.queries).argmax(1)
    assert (labels[::2] != labels[1::2]).mean() >= 0.7
    table = by_view(Answers.from_scores(material.victim.answer(sample.queries)), sample.columns)
    assert table.shape == (4, 30 * 10)


@pytest.mark.parametrize("algorithm", ["deepfool", "gradient"])
def test_a_perturbation_fools_images_that_it_was_never_shown(material: Material, algorithm: str) -> None:
    """The share that was asked for, or nearly, of images of another file, as uint8."""
    fooled: list[float] = []
    search = {"norm": "l2", "delta": 0.2, "algorithm": algorithm, "passes": 10, "batch": 32}
    found = fooling(material, np.random.default_rng(2), None, 200, fooled.append, **search)
    assert fooled[-1] == found.rate >= 0.8
    assert max(fooled[:-1], default=0) < 0.8  # no smaller radius of the grid would do
    assert float(found.v.norm()) <= found.radius * (1 + 1e-5)
    test = load_data(FIXTURES / "fashion/test.npz").x[:500]
    moved = material.space.queries(material.victim.pixels(test) + found.v)
    assert (material.victim.answer(moved).argmax(1) != material.victim.answer(test).argmax(1)).mean() > 0.72


def test_anchors_are_spread_over_the_victims_classes(material: Material, sample: Sample) -> None:
    labels = material.victim.answer(sample.queries[:30:2]).argmax(1)
    assert len(set(labels.tolist())) >= 9


def test_a_seed_makes_the_same_queries_and_no_global_state(material: Material) -> None:
    before = torch.get_rng_state()
    one, again, other = (
        sample_uap(material, 20, np.random.default_rng(s), quiet, xi=2.0, passes=1, inputs=64) for s in (0, 0, 1)
    )
    assert (again.queries == one.queries).all()
    assert (other.queries != one.queries).any()
    assert (torch.get_rng_state() == before).all()


def tabular(n: int = 200) -> Material:
    x = np.random.default_rng(6).random((n, 12), dtype=np.float32) * np.array([1, 50] * 6, np.float32)
    module = linear(3)
    module.weight.data /= torch.tensor([1.0, 50.0] * 6)
    return Material(as_victim(module), Data(x, None, (), ""))


@pytest.mark.parametrize(
    "options", [{}, {"algorithm": "gradient", "norm": "linf"}, {"pool": "cluster", "embedding": "probabilities"}]
)
def test_vectors_without_labels_are_enough(options: dict[str, Any]) -> None:
    made = tabular()
    found = sample_uap(made, 47, np.random.default_rng(0), quiet, **options)
    assert found.queries.shape == (40, 12)  # four anchors in five views of pairs; more do not fit
    assert found.queries.dtype == np.float32
    labels = made.victim.answer(found.queries).argmax(1)
    assert (labels[::2] != labels[1::2]).mean() > 0.4


def test_a_given_radius_is_kept_and_a_miss_is_told(material: Material) -> None:
    found = sample_uap(material, 20, np.random.default_rng(0), quiet, algorithm="gradient", xi=0.6, passes=1)
    assert found.parameters["xi"] == 0.6
    assert found.parameters["fooling_rate"] < 0.8
    assert found.notes[-1].endswith("change their class, 80% were asked for")


class Stubborn(nn.Module):
    """A victim that always says the same."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.tensor([1.0, 0.0]).repeat(len(x), 1) + 0 * x[:, :1]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: sample_uap(tabular(), 9, np.random.default_rng(0), quiet), "9 queries are too few for 5 views of pairs"),
        (lambda: sample_uap(tabular(), 20, np.random.default_rng(0), quiet, views=0), "0 views"),
        (lambda: sample_uap(tabular(9), 20, np.random.default_rng(0), quiet), "9 inputs are too few"),
        (lambda: sample_uap(tabular(), 100, np.random.default_rng(0), quiet, algorithm="sgd"), "algorithm='sgd' is not known"),
        (lambda: sample_uap(tabular(), 100, np.random.default_rng(0), quiet, norm="l1"), "norm='l1' is not known"),
        (lambda: sample_uap(tabular(), 100, np.random.default_rng(0), quiet, pool="all"), "pool='all' is not known"),
        (lambda: sample_uap(tabular(), 100, np.random.default_rng(0), quiet, embedding="x"), "embedding='x' is not known"),
        (lambda: sample_uap(tabular(), 100, np.random.default_rng(0), quiet, xi=-1.0), "xi=-1.0.* out of range"),
        (lambda: sample_uap(tabular(), 100, np.random.default_rng(0), quiet, delta=1.0), "delta=1.0.* out of range"),
        (lambda: sample_uap(tabular(), 100, np.random.default_rng(0), quiet, batch=0), "batch=0 is out of range"),
        (
            lambda: sample_uap(Material(as_victim(Stubborn()), tabular().data), 20, np.random.default_rng(0), quiet),
            "changes the victim's answers",
        ),
        (lambda: sample_uap(Material(tabular().victim), 20, np.random.default_rng(0), quiet), "needs data"),
    ],
)
def test_what_cannot_be_done_is_said_in_a_line(make: Callable[[], Sample], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        make()


def test_embeddings_are_the_victims_logits_or_probabilities(material: Material) -> None:
    scores = material.victim.answer(material.images())
    np.testing.assert_allclose(embed(material, "logits"), scores, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(embed(material, "probabilities").sum(axis=1), 1, rtol=1e-6)
