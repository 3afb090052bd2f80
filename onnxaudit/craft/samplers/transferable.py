"""AFA, reconstructed from its abstract: adversarial examples that copies of the victim share (after Zhao et al. 2020)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import cast

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from onnxaudit.craft.pools.peers import labels_of, needed_references
from onnxaudit.craft.room import BATCH
from onnxaudit.craft.sample import Material, Sample
from onnxaudit.craft.space import Space
from onnxaudit.craft.victim import Victim
from onnxaudit.craft.walking import walk_queries
from onnxaudit.errors import UsageError
from onnxaudit.suspect import Queries
from onnxaudit.zoo.saving import copy_of

Logits = Callable[[Tensor], Tensor]

ROUNDS = 4
ALIKE = 0.9
"""Copies agree with the victim on this share of inputs, as models derived from it do; what disturbs them more is halved."""
HALVINGS = 8
PRUNED = 0.2
"""Share of each layer's weights that a pruned copy lacks, before halving."""


def sample_transferable(
    material: Material,
    n: int,
    rng: np.random.Generator,
    progress: Callable[[int], None],
    *,
    radius: float = 0.05,
    iterations: int = 40,
    momentum: float = 0.9,
    copies: int = 10,
    noise: float = 0.2,
    share: float = 0.9,
    unlike_references: bool = False,
) -> Sample:
    """At most n adversarial examples whose label the victim and at least ``share`` of its disturbed copies give.

    This is a reconstruction: of the paper only the abstract was at hand. Untargeted PGD with momentum on the mean loss of the
    victim and its ``copies``; every second copy has noise on its weights (``noise``: in standard deviations of each layer's
    weights), the others lack random ones. A disturbance after which a copy no longer agrees with the victim on nine in ten inputs
    is halved. A victim whose weights cannot be changed is given noise on its inputs instead, and a note says so. radius: in units
    of the space's width. unlike_references: also drop what half of the references or more give the victim's label. Starts that
    are not kept are replaced. Raises UsageError if none is kept.
    """
    victim, space = material.victim, material.space
    ensemble, notes = _copies(material, copies, noise, rng)
    walk = partial(_walk, [victim.logits, *ensemble], space, radius=radius, iterations=iterations, momentum=momentum)
    found: list[Queries] = []
    data = material.inputs()
    order = rng.permutation(len(data))
    tried, missing = 0, n
    for _ in range(ROUNDS):
        x = data.x[order[tried : tried + missing]]
        tried += len(x)
        label = victim.predict(x).argmax(1)
        (points,) = walk_queries(material, x, walk, label)
        kept = points[_shared(victim, ensemble, points, label, share).cpu().numpy()]
        if unlike_references and len(kept):
            others = labels_of(needed_references(material), kept) == victim.answer(kept).argmax(1)
            kept = kept[others.mean(axis=0) < 0.5]
        found.append(kept)
        missing -= len(kept)
        progress(n - missing)
        if not missing or tried == len(order):
            break
    if missing == n:
        raise UsageError(f"none of {tried} adversarial examples is shared by the victim's copies", "Give a larger radius.")
    if missing:
        notes += (f"only {n - missing} of {tried} starts became examples that {share:.0%} of the copies share",)
    return Sample(cast("Queries", np.concatenate(found)), notes, {"reconstructed": True})


def _shared(victim: Victim, ensemble: Sequence[Logits], points: Queries, before: Tensor, share: float) -> Tensor:
    """Which points have another label than before, and the same at the victim and the given share of copies, (n,) bool."""
    with torch.no_grad():
        said = victim.predict(points).argmax(1)
        same = torch.stack([_predict(victim, copy, points).argmax(1) == said for copy in ensemble]).double().mean(0)
    return (said != before) & (same >= share - 1e-9)


def _walk(
    ensemble: Sequence[Logits], space: Space, x: Tensor, label: Tensor, *, radius: float, iterations: int, momentum: float
) -> tuple[Tensor]:
    """Signed steps along the momentum of the mean cross-entropy's gradient, within the ball and the box; rounded points.

    The gradient is divided by its L1 norm before it joins the momentum. Steps add up to 2.5 radii (Madry et al. 2018).
    """
    points, velocity = x.clone(), torch.zeros_like(x)
    low, high = x - radius * space.width, x + radius * space.width
    step = 2.5 * radius / iterations * space.width
    for _ in range(iterations):
        gradient = _gradient(ensemble, space, points, label)
        size = gradient.abs().flatten(1).sum(1).clamp_min(1e-12)
        velocity = momentum * velocity + gradient / size.reshape(-1, *[1] * (x.ndim - 1))
        points = space.clip(torch.minimum(torch.maximum(points + step * velocity.sign(), low), high))
    return (space.snapped(points),)


def _gradient(ensemble: Sequence[Logits], space: Space, x: Tensor, label: Tensor) -> Tensor:
    x = x.detach().requires_grad_(True)
    total = torch.zeros_like(x)
    for logits in ensemble:  # one after the other, so that one of them at a time keeps what its gradient needs
        shown = space.snapped(x)
        total += torch.autograd.grad(functional.cross_entropy(logits(shown), label, reduction="sum"), x)[0]
    return total / len(ensemble)


def _copies(material: Material, count: int, noise: float, rng: np.random.Generator) -> tuple[list[Logits], tuple[str, ...]]:
    """The victim's disturbed copies, and what is to be said of them."""
    victim = material.victim
    probe = material.draw(min(BATCH, len(material.inputs())), rng)
    if (portable := victim.portable()) is None:
        size = material.space.low.shape[1:]
        shifts = [torch.from_numpy(rng.normal(0, noise / 4, size).astype(np.float32)).to(victim.device) for _ in range(count)]
        return [partial(_shifted, victim, material.space, shift) for shift in shifts], (
            "the victim's weights cannot be changed, so its copies have noise on their inputs instead",
        )
    found: list[Logits] = []
    label = victim.predict(probe).argmax(1)
    for index in range(count):
        seed = int(rng.integers(2**31))
        strength = noise if index % 2 == 0 else PRUNED
        for _ in range(HALVINGS):
            copy = _disturbed(portable, victim.device, strength, seed, prune=index % 2 == 1)
            if float((_predict(victim, copy, probe).argmax(1) == label).float().mean()) >= ALIKE:
                break
            strength /= 2
        found.append(copy)
    return found, ()


def _shifted(victim: Victim, space: Space, shift: Tensor, x: Tensor) -> Tensor:
    return victim.logits(space.clip(x + shift * space.width))


@torch.no_grad()
def _disturbed(portable: bytes, device: torch.device, strength: float, seed: int, *, prune: bool) -> torch.nn.Module:
    """A copy with noise of ``strength`` standard deviations on its weights, or without the share ``strength`` of them."""
    copy, generator = copy_of(portable, device), torch.Generator().manual_seed(seed)
    for weight in copy.parameters():
        if weight.ndim > 1 and prune:
            weight.mul_((torch.rand(weight.shape, generator=generator) >= strength).to(device))
        elif weight.ndim > 1:
            weight.add_(torch.randn(weight.shape, generator=generator).to(device), alpha=strength * float(weight.std()))
        weight.requires_grad_(False)
    return copy


@torch.no_grad()
def _predict(victim: Victim, logits: Logits, x: Queries) -> Tensor:
    step = victim.at_once
    return torch.cat([logits(victim.pixels(x[start : start + step])) for start in range(0, len(x), step)])
