"""Training small classifiers on 8-bit images held in memory (torch, one thread, deterministic)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from onnxaudit.errors import UsageError
from onnxaudit.zoo.architectures import ARCHITECTURES, Shape

OPTIMISERS = ("adamw", "sgd", "sgd-constant")


@dataclasses.dataclass(frozen=True, slots=True)
class Recipe:
    """How one model is trained; together with the data and the seed it determines the weights."""

    arch: str = "resnet"
    width: float = 1.0
    epochs: int = 8
    lr: float = 5e-3
    batch: int = 128
    weight_decay: float = 0.01
    flip: bool = True
    shift: int = 0
    adversarial: float = 0.0
    """L-infinity radius (in [0, 1] pixels) of the PGD examples that replace every batch; 0 trains on clean images."""
    attack_steps: int = 5
    optimiser: str = "adamw"
    """"adamw" with a one-cycle schedule, "sgd" (momentum 0.9) with a cosine one, or "sgd-constant"."""
    seed: int = 0


def to_pixels(images: NDArray[np.uint8] | NDArray[np.float32]) -> Tensor:
    """Canonical queries, uint8 (n, H, W, C) or float32 (n, d), as what the networks take: [0, 1] NCHW, or NC."""
    if images.dtype == np.uint8:
        return torch.tensor(images.transpose(0, 3, 1, 2)).float().div_(255.0)
    return torch.from_numpy(np.ascontiguousarray(images, dtype=np.float32))


def build(recipe: Recipe, shape: Shape, classes: int) -> nn.Module:
    """The recipe's network with weights drawn from its seed; the global generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        return ARCHITECTURES[recipe.arch](shape, classes, recipe.width)


def soft_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy against class indices (n,) or against probabilities (n, C)."""
    return functional.cross_entropy(logits, targets)


def distillation(temperature: float) -> Callable[[Tensor, Tensor], Tensor]:
    """KL divergence between softened distributions, scaled by T squared; targets are the teacher's logits (n, C)."""

    def loss(logits: Tensor, teacher: Tensor) -> Tensor:
        return temperature**2 * functional.kl_div(
            functional.log_softmax(logits / temperature, dim=1),
            functional.log_softmax(teacher / temperature, dim=1),
            reduction="batchmean",
            log_target=True,
        )

    return loss


def _attack(model: nn.Module, x: Tensor, y: Tensor, recipe: Recipe, generator: torch.Generator) -> Tensor:
    """Projected gradient descent in the L-infinity ball, random start, step 2.5 radius / steps (Madry et al. 2018)."""
    radius, steps = recipe.adversarial, recipe.attack_steps
    delta = (torch.rand(x.shape, generator=generator) * 2 - 1).to(x.device) * radius
    for _ in range(steps):
        delta.requires_grad_(True)
        loss = functional.cross_entropy(model((x + delta).clamp(0, 1)), y)
        (gradient,) = torch.autograd.grad(loss, delta)
        delta = (delta.detach() + 2.5 * radius / steps * gradient.sign()).clamp_(-radius, radius)
    return (x + delta).clamp_(0, 1)


def fit(
    model: nn.Module,
    x: Tensor,
    targets: Tensor,
    recipe: Recipe,
    *,
    loss: Callable[[Tensor, Tensor], Tensor] = soft_cross_entropy,
    parameters: list[nn.Parameter] | None = None,
    after_step: Callable[[], None] | None = None,
) -> nn.Module:
    """Train in place, on the device the model is on, and return the model in eval mode.

    x: pixels (n, C, H, W) or vectors (n, d). targets: what ``loss`` compares the logits with, one row an input.
    parameters: what to train (all by default; with a subset, BatchNorm stays in eval mode). after_step: called after each
    step, to keep pruned weights at zero.
    """
    generator = torch.Generator().manual_seed(recipe.seed)
    trained = list(model.parameters()) if parameters is None else parameters
    device = trained[0].device
    if x.ndim == 4:  # pixels side by side in memory: a tenth to a third faster on a CPU
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        x = x.contiguous(memory_format=torch.channels_last)
    steps = max(1, len(x) // recipe.batch)
    optimiser, schedule = _optimiser(recipe, trained, max(2, steps * recipe.epochs))
    model.train(parameters is None)
    for _ in range(recipe.epochs):
        order = torch.randperm(len(x), generator=generator)
        for step in range(steps):
            rows = order[step * recipe.batch : (step + 1) * recipe.batch]
            inputs, wanted = _augment(x[rows], recipe, generator).to(device), targets[rows].to(device)
            if recipe.adversarial:
                inputs = _attack(model, inputs, wanted, recipe, generator)
            optimiser.zero_grad()
            loss(model(inputs), wanted).backward()
            optimiser.step()
            schedule.step()
            if after_step is not None:
                after_step()
    return model.eval()


def _optimiser(
    recipe: Recipe, trained: list[nn.Parameter], steps: int
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    """The recipe's optimiser, and how its rate goes over so many steps."""
    rates = torch.optim.lr_scheduler
    if recipe.optimiser == "adamw":
        adam = torch.optim.AdamW(trained, recipe.lr, weight_decay=recipe.weight_decay)
        return adam, rates.OneCycleLR(adam, recipe.lr, steps)
    if recipe.optimiser not in OPTIMISERS:
        raise UsageError(f"optimiser {recipe.optimiser!r} is not known", f"Use {', '.join(OPTIMISERS)}.")
    sgd = torch.optim.SGD(trained, recipe.lr, momentum=0.9, weight_decay=recipe.weight_decay)
    return sgd, rates.CosineAnnealingLR(sgd, steps) if recipe.optimiser == "sgd" else rates.ConstantLR(sgd, 1.0)


def _augment(x: Tensor, recipe: Recipe, generator: torch.Generator) -> Tensor:
    """Mirror half of the images and shift each batch by up to ``shift`` pixels; vectors pass unchanged."""
    if x.ndim != 4:
        return x
    if recipe.flip:
        mirrored = torch.rand(len(x), 1, 1, 1, generator=generator) < 0.5
        x = torch.where(mirrored, x.flip(3), x)
    if recipe.shift:
        down, right = torch.randint(-recipe.shift, recipe.shift + 1, (2,), generator=generator).tolist()
        x = torch.roll(x, (down, right), (2, 3))
    return x


@torch.no_grad()
def logits(model: nn.Module, x: Tensor, batch: int = 1000) -> Tensor:
    """Logits (n, C) of all inputs, in batches."""
    weight = next(model.parameters(), None)
    device = x.device if weight is None else weight.device
    return torch.cat([model(x[i : i + batch].to(device)).cpu() for i in range(0, len(x), batch)])


def accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """Share of inputs whose largest logit is at the given class."""
    return float((logits(model, x).argmax(1) == y).float().mean())
