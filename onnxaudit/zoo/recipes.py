"""Ways to derive a model from a victim (torch). Each returns a new model and leaves the victim as it was."""

from __future__ import annotations

import copy
import dataclasses

import torch
from torch import Tensor, nn

from onnxaudit.zoo.training import Recipe, build, distillation, fit, logits


def _head(model: nn.Module) -> nn.Linear:
    layers = [module for module in model.modules() if isinstance(module, nn.Linear)]
    return layers[-1]


def fine_tune(victim: nn.Module, x: Tensor, y: Tensor, recipe: Recipe, *, last: bool = False, reset: bool = False) -> nn.Module:
    """Train a copy further on (x, y): all layers or the last only (FTAL, FTLL), its head drawn anew if ``reset`` (RTAL, RTLL)."""
    model = copy.deepcopy(victim)
    head = _head(model)
    if reset:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(recipe.seed)
            head.reset_parameters()
    return fit(model, x, y, recipe, parameters=list(head.parameters()) if last else None)


def prune(victim: nn.Module, x: Tensor, y: Tensor, recipe: Recipe, share: float) -> nn.Module:
    """Zero the given share of smallest weights of each layer, then fine-tune with the zeros kept (WP; Cao et al. 2021)."""
    model = copy.deepcopy(victim)
    kept: list[tuple[Tensor, Tensor]] = []
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            weight = module.weight
            kept.append((weight, weight.abs() > weight.abs().flatten().quantile(share)))

    @torch.no_grad()
    def mask() -> None:
        for weight, keep in kept:
            weight.mul_(keep)

    mask()
    return fit(model, x, y, recipe, after_step=mask)


def extract_labels(victim: nn.Module, x: Tensor, recipe: Recipe, shape: tuple[int, ...], classes: int) -> nn.Module:
    """A fresh network trained on the victim's labels for x (label extraction)."""
    return fit(build(recipe, shape, classes), x, logits(victim, x).argmax(1), recipe)


def extract_probabilities(
    victim: nn.Module, x: Tensor, recipe: Recipe, shape: tuple[int, ...], classes: int, temperature: float = 20.0
) -> nn.Module:
    """A fresh network distilled from the victim's scores for x (Hinton et al. 2015, T = 20 as in SAC)."""
    return fit(build(recipe, shape, classes), x, logits(victim, x), recipe, loss=distillation(temperature))


def extract_adversarially(
    victim: nn.Module, x: Tensor, recipe: Recipe, shape: tuple[int, ...], classes: int, radius: float = 4 / 255
) -> nn.Module:
    """Label extraction, then two epochs of adversarial training on the victim's labels (SAC's Extract-Adv)."""
    model = extract_labels(victim, x, recipe, shape, classes)
    hardened = dataclasses.replace(recipe, epochs=2, lr=recipe.lr / 5, adversarial=radius)
    return fit(model, x, logits(victim, x).argmax(1), hardened)
