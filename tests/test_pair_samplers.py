"""Samplers of pairs (ModelDiff), and what holds of those of hidden segments and benign inputs as well."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from onnxaudit.answers import Answers
from onnxaudit.craft.data import Data
from onnxaudit.craft.sample import Material, Sample
from onnxaudit.craft.samplers.benign import sample_benign
from onnxaudit.craft.samplers.modeldiff import FAR, distance, partners, sample_modeldiff
from onnxaudit.craft.samplers.subsampling import sample_negative_subsample, sample_subsample
from onnxaudit.errors import UsageError
from onnxaudit.schemes.representations import REPRESENTATIONS
from onnxaudit.suspect import InputSpec
from tests.material import SHAPE, as_victim, sampled, shipped, tabular


@pytest.fixture
def material() -> Material:
    return shipped()


SAMPLERS: list[Callable[..., Sample]] = [sample_modeldiff, sample_subsample, sample_negative_subsample, sample_benign]


@pytest.mark.parametrize("function", SAMPLERS)
def test_same_generator_same_queries_and_the_global_one_is_left_alone(
    function: Callable[..., Sample], material: Material
) -> None:
    before = torch.random.get_rng_state()
    one, two, other = (sampled(function, material, 20, seed) for seed in (1, 1, 2))
    assert torch.equal(before, torch.random.get_rng_state())
    assert np.array_equal(one.queries, two.queries)
    assert not np.array_equal(one.queries, other.queries)
    assert one.queries.dtype == np.uint8
    assert one.queries.shape == (20, *SHAPE)
    assert one.columns
    assert all(len(column) == 20 and np.array_equal(column, two.columns[name]) for name, column in one.columns.items())


@pytest.mark.parametrize(
    ("function", "parameters", "said"),
    [
        (sample_modeldiff, {"adv": "code"}, "adv='code' is not known. Use paper or artefact"),
        (sample_subsample, {"fill": "grey"}, "fill='grey' is not known. Use mean or zero"),
        (sample_subsample, {"views": 1}, "views=1 is too few"),
        (sample_benign, {"rule": "loss"}, "rule='loss' is not known. Use mixed, entropy or random"),
        (sample_benign, {"share": 0.0}, "share=0 is not known"),
        (sample_benign, {"rule": "entropy"}, "needs at least two references"),
    ],
)
def test_values_that_are_none_are_refused(
    function: Callable[..., Sample], parameters: dict[str, Any], said: str, material: Material
) -> None:
    with pytest.raises(UsageError, match=said):
        sampled(function, material, 10, **parameters)


@pytest.mark.parametrize("function", SAMPLERS)
def test_without_what_they_need_they_say_so(function: Callable[..., Sample], material: Material) -> None:
    with pytest.raises(UsageError, match="needs data"):
        sampled(function, Material(material.victim), 10)
    if function in (sample_subsample, sample_negative_subsample):
        with pytest.raises(UsageError, match="works on images"):
            sampled(function, tabular(), 10)
    if function in (sample_benign, sample_negative_subsample):
        with pytest.raises(UsageError, match="needs labelled data"):
            sampled(function, Material(material.victim, Data(material.inputs().x[:50], None, (), "")), 10)
        right = Data(material.inputs().x[:50], material.victim.answer(material.inputs().x[:50]).argmax(1), (), "")
        with pytest.raises(UsageError, match="makes 0 errors"):
            sampled(function, Material(material.victim, right), 10)


@pytest.mark.parametrize("adv", ["paper", "artefact"])
def test_partners_are_near_and_where_they_were_pushed(adv: str, material: Material) -> None:
    sample = sampled(sample_modeldiff, material, 64, adv=adv)
    seeds, moved = sample.queries[::2], sample.queries[1::2]
    assert sample.columns["pair"].tolist() == [i // 2 for i in range(64)]
    known = {image.tobytes() for image in material.inputs().x}
    assert all(image.tobytes() in known for image in seeds)
    assert np.abs(seeds.astype(int) - moved).max() == 15  # 0.06 of 255 is 15.3
    z, u = (torch.from_numpy(material.victim.answer(queries)) for queries in (seeds, moved))
    target = FAR * (z.mean(0) - z)
    nearer = distance(u, target) < distance(z, target)
    assert bool(nearer.all()) if adv == "paper" else not bool(nearer.any())
    away = (u - z.mean(0)).norm(dim=1) > (z - z.mean(0)).norm(dim=1)
    assert float(away.float().mean()) < 0.5 if adv == "paper" else bool(away.all())
    assert sample.notes == ()


def test_partners_of_a_linear_victim_are_in_the_corner_that_the_gradient_names() -> None:
    """Targets are so far that the gradient's sign never changes: x - eps width sign(W'(w * (Z - t))), cut to the data's range."""
    material = tabular()
    sample = sampled(sample_modeldiff, material, 40)
    x, u = sample.queries[::2].astype(np.float64), sample.queries[1::2]
    weight, bias = (p.detach().double().numpy() for p in material.victim.program.parameters())  # type: ignore[attr-defined]
    z = x @ weight.T + bias
    slope = (z - FAR * (z.mean(0) - z)) * np.array([1, 0.05, 0.05]) @ weight
    low, high = material.inputs().x.min(0), material.inputs().x.max(0)
    expected = np.clip(x - 0.06 * (high - low) * np.sign(slope), low, high)
    assert np.abs(u - expected).max() < 1e-3


def test_walks_are_foolboxs_projected_gradient_descent(material: Material) -> None:
    """From the inputs themselves, with an epsilon and a step of whole grey levels, so that rounding changes nothing."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from eagerpy.astensor import astensor
        from foolbox.attacks.projected_gradient_descent import LinfProjectedGradientDescentAttack
        from foolbox.models.pytorch import PyTorchModel
    victim, x = material.victim, material.victim.pixels(material.inputs().x[:12])
    z = victim.predict(x)
    target = FAR * (z.mean(0) - z)

    class Towards(LinfProjectedGradientDescentAttack):
        def get_loss_fn(self, model: Any, labels: Any) -> Callable[[Any], Any]:  # noqa: ARG002
            return lambda inputs: astensor(-distance(model(inputs).raw, target).sum())

    class Logits(nn.Module):
        def forward(self, pixels: Tensor) -> Tensor:
            return victim.logits(pixels)

    attack = Towards(abs_stepsize=2 / 255, steps=10, random_start=False)
    model = PyTorchModel(Logits().eval(), bounds=(0, 1), device="cpu")
    theirs, _, _ = attack(model, x, z.argmax(1), epsilons=10 / 255)
    (ours,) = partners(
        victim, material.space, x, torch.zeros_like(x), target, sign=1.0, epsilon=10 / 255, step=2 / 255, iterations=10
    )
    assert float((theirs - ours).abs().max()) < 1e-5


def test_points_in_a_batch_go_where_they_go_alone(material: Material) -> None:
    x = material.victim.pixels(material.inputs().x[:20])
    z = material.victim.predict(x)
    target, noise = FAR * (z.mean(0) - z), torch.rand(x.shape, generator=torch.Generator().manual_seed(1)) * 2 - 1
    walk = partial(partners, material.victim, material.space, sign=1.0, epsilon=0.06, step=0.01, iterations=5)
    (together,) = walk(x, noise, target)
    (alone,) = walk(x[7:8], noise[7:8], target[7:8])
    assert float((together[7] - alone[0]).abs().mean()) < 1 / 255


def test_a_wide_feature_is_moved_by_a_share_of_its_range() -> None:
    material = tabular(wide=1000.0)
    sample = sampled(sample_modeldiff, material, 30)
    moved = np.abs(sample.queries[1::2] - sample.queries[::2]).max(axis=0) / np.ptp(material.inputs().x, axis=0)
    assert moved == pytest.approx(np.full(6, 0.06), abs=1e-4)


def test_odd_budgets_and_little_data_leave_whole_pairs() -> None:
    sample = sampled(sample_modeldiff, tabular(4), 11)
    assert len(sample.queries) == 8
    assert sample.notes == ("8 queries instead of 11: whole pairs of the 4 inputs",)
    with pytest.raises(UsageError, match="a pair takes two queries"):
        sampled(sample_modeldiff, tabular(4), 1)


def test_a_flat_victim_is_said_to_be_flat_and_one_without_gradients_refused() -> None:
    class Flat(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([x.mean(1, keepdim=True) * 0, torch.ones(len(x), 2)], dim=1)

    class Steps(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return (x[:, :3].detach() > 0).float()

    data = tabular().data
    flat = sampled(sample_modeldiff, Material(as_victim(Flat(), InputSpec((6,), "NC")), data), 20)
    assert flat.notes == ("10 of 10 partners are not where they were pushed: the victim is flat there",)
    with pytest.raises(UsageError, match="the victim has no gradients"):
        sampled(sample_modeldiff, Material(as_victim(Steps(), InputSpec((6,), "NC")), data), 20)


def test_pairs_make_the_same_distances_for_a_copy_and_others_for_noise(material: Material) -> None:
    sample = sampled(sample_modeldiff, material, 40)
    ddv = REPRESENTATIONS["ddv"].function
    victim = ddv(Answers.from_scores(material.victim.answer(sample.queries)), sample.columns)
    assert victim.shape == (20,)
    assert (victim > 0.1).mean() > 0.8  # partners are answered differently
