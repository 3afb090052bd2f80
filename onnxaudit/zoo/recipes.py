"""Ways to derive a model from a victim (torch). Each returns a new model and leaves the victim as it was.

The victim is any module from pixels in [0, 1], NCHW (or vectors, NC) to logits whose weights can be trained: a network, or
TorchScript. How long each is trained, with what and how fast, is the ``Recipe``'s to say.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from onnxaudit.errors import UsageError
from onnxaudit.zoo.structure import Convolution, observe
from onnxaudit.zoo.training import Recipe, build, distillation, fit

FEW = 256
"""Inputs on which a model is watched."""
AT_ONCE = 5
"""Rounds in which fine-pruning takes channels away, training in between."""


def fine_tune(victim: nn.Module, x: Tensor, y: Tensor, recipe: Recipe, *, last: bool = False, reset: bool = False) -> nn.Module:
    """Train a copy further on (x, y): all layers or the last only (FTAL, FTLL), its head drawn anew if ``reset`` (RTAL, RTLL)."""
    model = _copied(victim)
    head = _head(model, x)
    if reset:
        _draw(head, recipe.seed)
    return fit(model, x, y, recipe, parameters=head if last else None)


def transfer(victim: nn.Module, x: Tensor, y: Tensor, recipe: Recipe, classes: int, *, last: bool = False) -> nn.Module:
    """Train a copy with a new last layer for another label set: that layer only, or all (SAC's Trans-L and Trans-A)."""
    model = _copied(victim)
    for name in observe(model, x[:2]).head:
        if name is not None:
            path, _, last_part = name.rpartition(".")
            old = _parameters(model)[name]
            module = functools.reduce(getattr, path.split(".") if path else [], model)
            setattr(module, last_part, nn.Parameter(old.new_zeros(classes, *old.shape[1:])))
    head = _head(model, x)
    _draw(head, recipe.seed)
    return fit(model, x, y, recipe, parameters=head if last else None)


def prune_weights(victim: nn.Module, x: Tensor, y: Tensor, recipe: Recipe, share: float) -> nn.Module:
    """Zero the share of smallest weights of each layer, then fine-tune with the zeros kept (WP; Cao et al. 2021)."""
    model = _copied(victim)
    masks = []
    for weight in model.parameters():
        if weight.ndim > 1:
            sizes = weight.detach().abs()
            masks.append((weight, sizes > sizes.flatten().kthvalue(max(1, round(share * weight.numel()))).values))
    return fit(model, x, y, recipe, after_step=_kept_zero(masks))


def prune_filters(victim: nn.Module, x: Tensor, y: Tensor, recipe: Recipe, share: float) -> nn.Module:
    """Take the share of filters with the smallest norm out of each convolution, then retrain (FP; Cao et al. 2021, section 4.1).

    Convolutions whose output is added to another tensor keep all. A filter is taken out by keeping all of its weights, and those
    of its batch norm, at zero: the outputs are those of a smaller network. Raises UsageError without any convolution.
    """
    model = _copied(victim)
    masks = []
    for convolution in _convolutions(model, x):
        norms = _parameters(model)[convolution.weight].flatten(1).norm(dim=1)
        if not convolution.joins and (count := round(share * len(norms))):
            masks += _without(model, convolution, norms.argsort()[:count])
    return fit(model, x, y, recipe, after_step=_kept_zero(masks))


def fine_prune(victim: nn.Module, x: Tensor, y: Tensor, recipe: Recipe, share: float) -> nn.Module:
    """Take out the share of channels of all convolutions that are least active on x, in rounds, training in between.

    Activations are measured anew in each round (Liu et al. 2018; SAC measures them again after every 20 channels). The last
    channel of a convolution stays. Raises UsageError without any convolution.
    """
    model = _copied(victim)
    convolutions = _convolutions(model, x)
    sizes = [len(_parameters(model)[convolution.weight]) for convolution in convolutions]
    out: list[list[int]] = [[] for _ in convolutions]
    for round_ in range(1, AT_ONCE + 1):
        activity = [seen.clone() for seen in observe(model, x[:FEW]).activity]
        while sum(map(len, out)) < round(share * sum(sizes) * round_ / AT_ONCE):
            for seen, gone, size in zip(activity, out, sizes, strict=True):
                seen[gone if len(gone) < size - 1 else list(range(size))] = torch.inf
            layer = min(range(len(out)), key=lambda index: float(activity[index].min()))
            out[layer].append(int(activity[layer].argmin()))
        masks = [
            mask
            for convolution, gone in zip(convolutions, out, strict=True)
            for mask in _without(model, convolution, torch.tensor(gone, dtype=torch.long))
        ]
        part = dataclasses.replace(recipe, epochs=max(1, recipe.epochs // AT_ONCE), seed=recipe.seed + round_)
        fit(model, x, y, part, after_step=_kept_zero(masks))
    return model


@torch.no_grad()
def add_noise(victim: nn.Module, scale: float, seed: int) -> nn.Module:
    """Gaussian noise on every weight matrix and kernel, its deviation ``scale`` times that of the weights."""
    model = _copied(victim)
    generator = torch.Generator().manual_seed(seed)
    for weight in model.parameters():
        if weight.ndim > 1:
            weight.add_(torch.randn(weight.shape, generator=generator).to(weight.device) * scale * weight.std())
    return model


def extract_labels(victim: Tensor, x: Tensor, recipe: Recipe, shape: tuple[int, ...]) -> nn.Module:
    """A fresh network trained on the victim's labels for x (label extraction). victim: its logits (n, C)."""
    return fit(_fresh(victim, recipe, shape), x, victim.argmax(1), recipe)


def extract_probabilities(
    victim: Tensor, x: Tensor, recipe: Recipe, shape: tuple[int, ...], temperature: float = 20.0, share: float = 1.0
) -> nn.Module:
    """A fresh network distilled from the victim's logits (n, C) for x (Hinton et al. 2015).

    share: of the distillation in the loss; the rest is cross-entropy with the victim's labels (SAC: T = 20, share 0.9).
    """
    soft = distillation(temperature)

    def loss(scores: Tensor, wanted: Tensor) -> Tensor:
        hard = nn.functional.cross_entropy(scores, wanted.argmax(1)) if share < 1 else 0.0
        return share * soft(scores, wanted) + (1 - share) * hard

    return fit(_fresh(victim, recipe, shape), x, victim, recipe, loss=loss)


def extract_top(victim: Tensor, x: Tensor, recipe: Recipe, shape: tuple[int, ...], k: int) -> nn.Module:
    """A fresh network trained on the victim's k largest probabilities for x, renormalised: what a top-k service gives away."""
    best = victim.softmax(1).topk(k, dim=1)
    targets = torch.zeros_like(victim).scatter(1, best.indices, best.values / best.values.sum(1, keepdim=True))
    return fit(_fresh(victim, recipe, shape), x, targets, recipe)


def extract_adversarially(
    victim: Tensor, x: Tensor, recipe: Recipe, shape: tuple[int, ...], radius: float = 4 / 255, epochs: int = 2
) -> nn.Module:
    """Label extraction, then ``epochs`` of adversarial training on the victim's labels (SAC's Extract-Adv)."""
    model = extract_labels(victim, x, recipe, shape)
    hardened = dataclasses.replace(recipe, epochs=epochs, lr=recipe.lr / 5, adversarial=radius)
    return fit(model, x, victim.argmax(1), hardened)


def _fresh(victim: Tensor, recipe: Recipe, shape: tuple[int, ...]) -> nn.Module:
    """The recipe's network for as many classes as the victim's logits have, on their device."""
    return build(recipe, shape, victim.shape[1]).to(victim.device)


@torch.no_grad()
def _copied(victim: nn.Module) -> nn.Module:
    """A copy whose weights are to be trained; TorchScript remembers otherwise that they were copied."""
    model = copy.deepcopy(victim)
    for weight in model.parameters():
        weight.requires_grad_(True)
    return model


def _head(model: nn.Module, x: Tensor) -> list[nn.Parameter]:
    weights = _parameters(model)
    return [weights[name] for name in observe(model, x[:2]).head if name is not None]


def _parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """By name; TorchScript does not find single ones."""
    return dict(model.named_parameters())


@torch.no_grad()
def _draw(head: list[nn.Parameter], seed: int) -> None:
    """Uniform in 1 / sqrt(inputs) either way, as PyTorch draws a linear layer."""
    bound = 1 / math.sqrt(head[0].shape[1])
    generator = torch.Generator().manual_seed(seed)
    for weight in head:
        weight.copy_((torch.rand(weight.shape, generator=generator) * 2 - 1) * bound)


def _convolutions(model: nn.Module, x: Tensor) -> tuple[Convolution, ...]:
    found = observe(model, x[:2]).convolutions
    if not found:
        raise UsageError("the victim has no convolutions to take filters from", "Leave filter pruning out of the recipe.")
    return found


def _without(model: nn.Module, convolution: Convolution, filters: Tensor) -> list[tuple[Tensor, Tensor]]:
    """The convolution's weights with masks that are 0 where these filters are."""
    pairs: list[tuple[Tensor, Tensor]] = []
    for name in convolution.parameters:
        weight = _parameters(model)[name]
        mask = torch.ones_like(weight)
        mask[filters] = 0
        pairs.append((weight, mask))
    return pairs


def _kept_zero(pairs: Iterable[tuple[Tensor, Tensor]]) -> Callable[[], None]:
    """Multiplies weights by their masks, now and whenever it is called."""
    kept = list(pairs)

    @torch.no_grad()
    def mask() -> None:
        for weight, keep in kept:
            weight.mul_(keep)

    mask()
    return mask
