"""Queries made by looking inside of the victim: each sampler keeps its promise for the queries as they are stored."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from onnxaudit.craft.data import Data
from onnxaudit.craft.insight import insight, program_of
from onnxaudit.craft.layers import look_inside
from onnxaudit.craft.sample import Material, Sample
from onnxaudit.craft.samplers.activation import sample_activation_boundary
from onnxaudit.craft.samplers.inside import sample_gif_points, sample_neuron_fuzz
from onnxaudit.craft.samplers.sensitive import manc, sample_sensitive, sensitivity
from onnxaudit.craft.victim import Victim, open_victim
from onnxaudit.errors import UsageError
from onnxaudit.registry import open_suspect
from onnxaudit.schemes.detectors import cosine
from onnxaudit.schemes.inside import gradient_field
from onnxaudit.suspect import InputSpec, Queries, Target
from onnxaudit.zoo.training import Recipe, build, fit, to_pixels
from tests.inside_models import FASHION, FIXTURES, Residual, as_victim, quiet, zoo_material
from tests.models import SHAPE, SPEC, colour_queries, save_exported


@pytest.fixture(scope="module")
def material() -> Material:
    return zoo_material()


def test_derived_models_have_closer_fields_than_independent_ones(material: Material) -> None:
    sample = sample_gif_points(material, 100, np.random.default_rng(0), quiet)
    assert len(sample.queries) == 24
    assert sample.notes
    data = material.inputs()
    assert data.y is not None
    stranger = fit(
        build(Recipe("resnet", seed=5), FASHION, 10), to_pixels(data.x), torch.from_numpy(data.y), Recipe("resnet", epochs=1)
    )
    own = gradient_field(insight("gradients", program_of(material.victim), sample.queries), {})
    scores = []
    for path in ("zoo/victim.pt", "zoo/suspects/finetune-all.pt"):
        with open_suspect(Target(str(FIXTURES / path), InputSpec(FASHION), 10)) as suspect:
            seen = suspect.inside("gradients", sample.queries)
        assert seen is not None
        scores.append(cosine(own, gradient_field(seen, {})))
    other = insight("gradients", program_of(as_victim(stranger, InputSpec(FASHION))), sample.queries)
    scores.append(cosine(own, gradient_field(other, {})))
    assert scores[0] == pytest.approx(1, abs=1e-4)
    assert scores[0] > scores[1] > 0.6 > 0.4 > scores[2]


def test_distant_points_are_where_references_differ_most(material: Material) -> None:
    reference = as_victim(build(Recipe("lenet", seed=2), FASHION, 10), InputSpec(FASHION))
    small = Material(material.victim, material.inputs().take(np.arange(160)), references=[reference])

    def score(sample: Sample) -> float:
        fields = [
            gradient_field(insight("gradients", program_of(v), sample.queries, score="logit"), {})
            for v in (small.victim, reference)
        ]
        return cosine(*fields)

    rng = np.random.default_rng
    assert (
        score(sample_gif_points(small, 12, rng(0), quiet, select="distant"))
        < score(sample_gif_points(small, 12, rng(0), quiet)) - 0.05
    )
    with pytest.raises(UsageError, match="needs references"):
        sample_gif_points(material, 12, rng(0), quiet, select="distant")
    with pytest.raises(UsageError, match="select='best'"):
        sample_gif_points(material, 12, rng(0), quiet, select="best")


def test_neurons_of_fuzzed_queries_say_more_than_on_any_input(material: Material) -> None:
    module = build(Recipe("vgg", seed=4), FASHION, 10).eval()
    victim = as_victim(module, InputSpec(FASHION))
    data = material.inputs().take(np.arange(500))
    heard: list[Tensor] = []
    relus = [part for part in module.modules() if isinstance(part, nn.ReLU)]
    relus[0].register_forward_hook(lambda _module, _inputs, output: heard.append(output.mean((2, 3))))
    victim.answer(data.x)
    top = torch.cat(heard).amax(0)
    heard.clear()
    sample = sample_neuron_fuzz(Material(victim, data), 24, np.random.default_rng(1), quiet, iterations=60)
    heard.clear()
    victim.answer(sample.queries)
    neuron = torch.from_numpy(sample.columns["neuron"].astype(np.int64))
    said = torch.cat(heard).gather(1, neuron[:, None])[:, 0]
    assert (said > top[neuron]).all()
    assert float((said / top[neuron]).median()) > 1.2
    assert int((said >= 3 * top[neuron] - 1e-4).sum()) == sample.parameters["reached"]
    assert sample.columns["sizes"][0].tolist() == [
        layer.shape[1] for layer in look_inside(module)(torch.rand(1, 1, 28, 28)).layers
    ]
    assert set(sample.columns["layer"].tolist()) == {1}
    with pytest.raises(UsageError, match="layers 0 to 6"):
        sample_neuron_fuzz(Material(victim, data), 4, np.random.default_rng(1), quiet, layer=7)


def relu_inputs(module: nn.Module, victim: Victim, queries: Queries) -> Tensor:
    """What goes into the ReLUs of a module, by forward hooks, (n, units)."""
    heard: list[Tensor] = []
    hooks = [
        part.register_forward_hook(lambda _module, inputs, _output: heard.append(inputs[0].detach().flatten(1)))
        for part in module.modules()
        if isinstance(part, nn.ReLU)
    ]
    victim.answer(queries)
    for hook in hooks:
        hook.remove()
    return torch.cat(heard, 1)


@pytest.mark.parametrize("tabular", [False, True])
def test_activation_boundaries_are_reached_by_stored_queries(material: Material, tabular: bool) -> None:
    shape = (6,) if tabular else FASHION
    module = build(Recipe("mlp", 0.5, seed=1), shape, 3).eval()
    victim = as_victim(module, InputSpec(shape, layout="NC" if tabular else "NCHW"))
    data = Data(np.random.default_rng(0).normal(size=(200, 6)).astype(np.float32), None, (), "0" * 64) if tabular else None
    crafting = Material(victim, data)
    sample = sample_activation_boundary(crafting, 40, np.random.default_rng(3), quiet, units=4)
    assert len(sample.queries) >= 20
    starts = crafting.space.queries(crafting.space.uniform(250, np.random.default_rng(4)))
    spread = relu_inputs(module, victim, starts).std(0)

    def near(queries: Queries) -> Tensor:
        return ((relu_inputs(module, victim, queries) / spread).abs() < 0.05).sum(1).float()

    assert float(near(starts).mean()) < 3.5
    assert float(near(sample.queries).mean()) > 4.5
    assert sample.parameters["distance"] < 0.05
    again = sample_activation_boundary(crafting, 40, np.random.default_rng(3), quiet, units=4)
    assert (sample.queries == again.queries).all()


def test_activation_boundaries_need_relus(material: Material) -> None:
    rng = np.random.default_rng(0)
    smooth = as_victim(nn.Sequential(nn.Flatten(), nn.Linear(192, 5), nn.GELU(), nn.Linear(5, 3)), SPEC)
    with pytest.raises(UsageError, match="no ReLU"):
        sample_activation_boundary(Material(smooth), 4, rng, quiet)
    with pytest.raises(UsageError, match="start='best'"):
        sample_activation_boundary(material, 4, rng, quiet, start="best")
    with pytest.raises(UsageError, match="only 0 of 4 points"):
        sample_activation_boundary(material, 4, rng, quiet, iterations=1, within=1e-6)


@pytest.mark.parametrize("of", ["probabilities", "top", "log"])
def test_sensitivity_is_the_squared_gradient_of_the_last_layers_weights(of: str) -> None:
    network = Residual(classes=7).double()
    x = torch.rand(3, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_(True)
    weights = network.last.weight
    for row in range(3):
        p = network(x[row : row + 1]).softmax(1)[0]
        outputs = {"probabilities": list(p), "top": [p.max()], "log": [p.log().sum()]}[of]
        slopes = [torch.autograd.grad(output, weights, create_graph=True)[0] for output in outputs]
        known = torch.stack([slope.square().sum() for slope in slopes]).sum()
        seen = look_inside(network)(x[row : row + 1])
        assert seen.scores is not None
        assert seen.features is not None
        found = sensitivity(seen.scores, seen.features, of)[0]
        torch.testing.assert_close(found, known)
        (climb,) = torch.autograd.grad(known, x, retain_graph=True)  # what the authors' double backward pass gives
        torch.testing.assert_close(torch.autograd.grad(found, x)[0], climb)


def test_cover_takes_the_row_that_adds_most_neurons() -> None:
    active = torch.tensor([[1, 1, 0, 0, 0], [1, 1, 1, 0, 0], [0, 0, 0, 1, 1], [0, 0, 1, 1, 0], [0, 0, 0, 0, 1]]).bool()
    worth = torch.tensor([5.0, 1.0, 1.0, 9.0, 2.0])
    assert manc(active, worth, 2).tolist() == [1, 2]  # all five neurons
    assert manc(active, worth, 4).tolist() == [1, 2, 3, 0]  # a new cover; of two equals the more sensitive one
    assert sorted(manc(active, worth, 9).tolist()) == [0, 1, 2, 3, 4]


def test_sensitive_samples_notice_what_natural_inputs_do_not(material: Material) -> None:
    before = torch.get_rng_state()
    sample = sample_sensitive(material, 24, np.random.default_rng(0), quiet, iterations=50)
    assert torch.equal(before, torch.get_rng_state())
    natural = material.draw(300, np.random.default_rng(1))
    changed = torch.jit.load(str(FIXTURES / "zoo/victim.pt")).eval()
    weight = [parameter for parameter in changed.parameters() if parameter.ndim == 2][-1]
    with torch.no_grad():
        weight.add_(0.02 * weight.std() * torch.randn(weight.shape, generator=torch.Generator().manual_seed(0)))
    copies = {"noise": changed, "finetuned": torch.jit.load(str(FIXTURES / "zoo/suspects/finetune-all.pt")).eval()}
    for copy in copies.values():
        told = {
            name: (material.victim.answer(q).argmax(1) != copy(to_pixels(q)).argmax(1).numpy()).mean()
            for name, q in (("natural", natural), ("sensitive", sample.queries))
        }
        assert told["sensitive"] > told["natural"] + 0.1
    again = sample_sensitive(material, 24, np.random.default_rng(0), quiet, iterations=50)
    assert (again.queries == sample.queries).all()
    seeds = material.draw(48, np.random.default_rng(0)).astype(float)
    nearest = [np.sqrt(np.square(seeds - q).mean((1, 2, 3))).min() for q in sample.queries]
    assert max(nearest) < 10.5  # grey levels: the radius, and rounding


def test_sensitive_samples_need_a_linear_end(material: Material) -> None:
    rng = np.random.default_rng(0)
    data = Data(colour_queries(), None, (), "0" * 64)
    convolution = as_victim(nn.Sequential(nn.Conv2d(3, 4, 8), nn.Flatten()), SPEC)
    scaled = as_victim(nn.Sequential(nn.Flatten(), nn.Linear(192, 4), nn.Softplus()), SPEC)
    for victim in (convolution, scaled):
        with pytest.raises(UsageError, match="linear layer"):
            sample_sensitive(Material(victim, data), 4, rng, quiet)
    with pytest.raises(UsageError, match="of='best'"):
        sample_sensitive(material, 4, rng, quiet, of="best")
    with pytest.raises(UsageError, match="none of 8 inputs"):
        sample_sensitive(material, 4, rng, quiet, least=1e9, iterations=1)


def test_a_victim_with_a_fixed_batch_is_looked_into_in_its_batches(tmp_path: Path) -> None:
    files = {batch: save_exported(tmp_path / f"{batch}.pt2", batch=batch, module=Residual()) for batch in (7, None)}
    victims = [open_victim(path, SPEC, device="cpu").probed() for path in files.values()]
    assert [victim.batch for victim in victims] == [7, None]
    data = Data(colour_queries(40), None, (), "0" * 64)
    for sampler in (
        partial(sample_activation_boundary, units=2, within=100.0),
        partial(sample_sensitive, least=0.0),
        sample_neuron_fuzz,
    ):
        fixed, free = (
            sampler(Material(victim, data), 10, np.random.default_rng(0), quiet, iterations=5).queries for victim in victims
        )
        assert fixed.shape == free.shape == (10, *SHAPE)
        assert np.abs(fixed.astype(int) - free).mean() < 1  # rounding at a border may tell the two apart
