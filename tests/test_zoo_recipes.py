"""Models derived from a victim: what each recipe changes and what it leaves, against PyTorch's own pruning."""

from __future__ import annotations

import copy
import io
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from onnxaudit.errors import UsageError
from onnxaudit.zoo import recipes
from onnxaudit.zoo.saving import copy_of
from onnxaudit.zoo.structure import observe
from onnxaudit.zoo.training import Recipe, build, logits

FIXTURES = Path(__file__).parent.parent / "fixtures"
SHAPE = (28, 28, 1)
SHORT = Recipe(arch="resnet", width=0.5, epochs=1, lr=1e-2, batch=64, optimiser="sgd-constant", weight_decay=5e-4, seed=3)


@pytest.fixture(scope="module")
def x() -> Tensor:
    return torch.rand(128, 1, 28, 28, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def y() -> Tensor:
    return torch.arange(128) % 10


@pytest.fixture(scope="module")
def victim() -> nn.Module:
    return build(SHORT, SHAPE, 10).eval()


def scripted(model: nn.Module) -> nn.Module:
    archive = io.BytesIO()
    torch.jit.save(torch.jit.trace(model, torch.zeros(2, 1, 28, 28)), archive)
    return copy_of(archive.getvalue(), torch.device("cpu"))


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: weight.detach().clone() for name, weight in model.named_parameters()}


@pytest.mark.parametrize("script", [False, True])
def test_the_structure_of_a_residual_network_is_seen_in_modules_and_torchscript(
    victim: nn.Module, x: Tensor, script: bool
) -> None:
    found = observe(scripted(victim) if script else victim, x[:4])
    assert found.head == ("7.weight", "7.bias")
    assert [one.weight for one in found.convolutions] == [
        "1.0.weight", "2.body.0.0.weight", "2.body.1.weight", "3.0.weight", "4.body.0.0.weight", "4.body.1.weight"
    ]  # fmt: skip
    assert [one.joins for one in found.convolutions] == [False, False, True, False, False, True]
    assert found.convolutions[2].norm == ("2.body.2.weight", "2.body.2.bias")
    shown = {}

    def keep(module: nn.Module, given: tuple[Tensor, ...], output: Tensor) -> None:
        shown["relu"] = output.mean((0, 2, 3))

    victim.get_submodule("1.2").register_forward_hook(keep)
    victim(x[:4])
    torch.testing.assert_close(found.activity[0], shown["relu"], rtol=1e-5, atol=1e-6)


def test_a_network_without_a_last_linear_layer_is_refused(x: Tensor) -> None:
    with pytest.raises(UsageError, match="no last linear layer"):
        observe(nn.Sequential(nn.Conv2d(1, 10, 28), nn.Flatten()), x[:2])


@pytest.mark.parametrize("script", [False, True])
def test_training_the_last_layer_leaves_all_others_bit_for_bit(victim: nn.Module, x: Tensor, y: Tensor, script: bool) -> None:
    given = scripted(victim) if script else victim
    before, states = weights(given), copy.deepcopy(given.state_dict())
    model = recipes.fine_tune(given, x, y, SHORT, last=True)
    changed = {name for name, weight in weights(model).items() if not torch.equal(weight, before[name])}
    assert len(changed) == 2
    assert all(torch.equal(value, states[name]) for name, value in given.state_dict().items())  # the victim stays as it was
    again = recipes.fine_tune(given, x, y, SHORT, last=True)
    assert all(torch.equal(a, b) for a, b in zip(weights(model).values(), weights(again).values(), strict=True))


def test_retraining_draws_the_head_anew(victim: nn.Module, x: Tensor, y: Tensor) -> None:
    still = Recipe(arch="resnet", width=0.5, epochs=1, lr=0.0, batch=64, optimiser="sgd-constant", weight_decay=0.0)
    kept = recipes.fine_tune(victim, x, y, still, last=True)
    drawn = recipes.fine_tune(victim, x, y, still, last=True, reset=True)
    name = observe(victim, x[:2]).head[0]
    assert torch.equal(weights(kept)[name], weights(victim)[name])
    assert not torch.equal(weights(drawn)[name], weights(victim)[name])
    assert weights(drawn)[name].abs().max() <= 1 / weights(victim)[name].shape[1] ** 0.5


@pytest.mark.parametrize("share", [0.1, 0.6])
def test_weight_pruning_zeroes_what_pytorchs_own_would(victim: nn.Module, x: Tensor, y: Tensor, share: float) -> None:
    still = Recipe(arch="resnet", width=0.5, epochs=1, lr=1e-3, batch=64, optimiser="sgd-constant")
    model = recipes.prune_weights(victim, x, y, still, share)
    for name, module in victim.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            other = prune.l1_unstructured(copy.deepcopy(module), "weight", amount=share)
            mine = weights(model)[f"{name}.weight"]
            assert torch.equal(mine == 0, other.weight_mask == 0), name  # and training kept the zeros


def test_filter_pruning_takes_what_pytorchs_own_would_and_silences_the_channel(victim: nn.Module, x: Tensor, y: Tensor) -> None:
    model = recipes.prune_filters(victim, x, y, SHORT, 0.25)
    modules = dict(victim.named_modules())
    for convolution in observe(victim, x[:2]).convolutions:
        weight = weights(model)[convolution.weight]
        gone = (weight.flatten(1) == 0).all(1)
        if convolution.joins:
            assert not gone.any()
            continue
        module = copy.deepcopy(modules[convolution.weight.removesuffix(".weight")])
        assert isinstance(module, nn.Conv2d)
        other = prune.ln_structured(module, "weight", amount=0.25, n=2, dim=0)
        assert torch.equal(gone, (other.weight_mask.flatten(1) == 0).all(1))
    silent = observe(model, x[:16]).activity[1] == 0
    assert silent.sum() == round(0.25 * len(silent))


def test_fine_pruning_silences_the_share_of_channels_and_leaves_each_layer_one(victim: nn.Module, x: Tensor, y: Tensor) -> None:
    for share in (0.3, 1.0):
        model = recipes.fine_prune(victim, x, y, SHORT, share)
        gone = [(weights(model)[one.weight].flatten(1) == 0).all(1) for one in observe(victim, x[:2]).convolutions]
        total = sum(map(len, gone))
        assert sum(int(layer.sum()) for layer in gone) == min(round(share * total), total - len(gone))
        assert all((~layer).any() for layer in gone)


@pytest.mark.parametrize("script", [False, True])
def test_transfer_gives_the_new_label_set_a_head_of_its_own_size(victim: nn.Module, x: Tensor, y: Tensor, script: bool) -> None:
    given = scripted(victim) if script else victim
    model = recipes.transfer(given, x, y % 4, SHORT, 4, last=True)
    assert logits(model, x).shape == (128, 4)
    assert logits(given, x).shape == (128, 10)
    body = [name for name in weights(given) if not name.startswith("7.") and ".7." not in name]
    assert all(torch.equal(weights(model)[name], weights(given)[name]) for name in body)


def test_noise_has_the_scale_that_was_asked_for(victim: nn.Module) -> None:
    model = recipes.add_noise(victim, 0.1, seed=5)
    name = "4.body.1.weight"
    change = weights(model)[name] - weights(victim)[name]
    assert float(change.std() / weights(victim)[name].std()) == pytest.approx(0.1, rel=0.1)
    assert torch.equal(weights(model)["0.bias"], weights(victim)["0.bias"])


def test_top_k_extraction_learns_what_the_service_gives(x: Tensor) -> None:
    said = torch.full((128, 10), -20.0)
    said[:, 2], said[:, 7] = 1.0, 0.0
    model = recipes.extract_top(said, x, Recipe(arch="mlp", epochs=30, batch=32), SHAPE, k=2)
    probabilities = logits(model, x).softmax(1).mean(0).detach().numpy()
    wanted = np.exp([1.0, 0.0]) / np.exp([1.0, 0.0]).sum()
    np.testing.assert_allclose(probabilities[[2, 7]], wanted, atol=0.05)
    assert probabilities[[0, 1, 3, 4, 5, 6, 8, 9]].max() < 0.05


def test_an_unknown_optimiser_is_named(x: Tensor, y: Tensor, victim: nn.Module) -> None:
    with pytest.raises(UsageError, match="'lion' is not known"):
        recipes.fine_tune(victim, x, y, Recipe(optimiser="lion"))
