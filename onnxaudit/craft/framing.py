"""Queries that make an innocent model look derived: what a cheating accuser does, to see what stops it (torch).

After J. Liu et al., *False Claims against Model Ownership Resolution* (USENIX Security 2024): adversarial examples that transfer
are evidence against models that have nothing to do with the victim.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from onnxaudit.craft.onnx_program import open_onnx_program
from onnxaudit.craft.pools.peers import FilePeer, has_gradients
from onnxaudit.craft.sample import Material
from onnxaudit.craft.space import Space
from onnxaudit.craft.walking import walk_queries
from onnxaudit.errors import OnnxauditError
from onnxaudit.registry import open_suspect
from onnxaudit.suspect import Queries, Target

Logits = Callable[[Tensor], Tensor]

PROBES = 8
CLOSE = 0.01
"""Probabilities of one network that two runtimes give differ by less."""
STEPS = 2.5
"""Radii that all steps add up to (Madry et al. 2018)."""


@dataclass(frozen=True, slots=True)
class Push:
    """How hard examples are pushed. radius: L-infinity, in units of the space's width. momentum: as Dong et al. 2018, eq. 6."""

    radius: float = 0.1
    iterations: int = 20
    momentum: float = 1.0


def logits_of(target: Target, probes: Queries) -> Logits | None:
    """Differentiable logits of a model in a file, or None where its format, or an operator in it, gives no gradients.

    probes: queries on which they are compared with what the file answers as a suspect.
    """
    path = Path(target.source)
    try:
        if has_gradients(path):
            peer = FilePeer(target)
            peer.logits(torch.from_numpy(np.zeros((1, *_pixel_shape(target.spec.shape)), np.float32)))
            return peer.logits
        with open_suspect(target) as model:
            said, spec = model.ask(probes[:PROBES]), model.card.input
        network = open_onnx_program(path, spec, target.num_classes or 0, target.device)
        same = torch.from_numpy(said.dense()).softmax(1) - network.predict(probes[:PROBES]).softmax(1).cpu()
        return network.logits if float(same.abs().max()) < CLOSE else None
    except OnnxauditError:
        return None
    except (RuntimeError, ValueError, TypeError):  # a graph that is no plain network
        return None


def _pixel_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    return (shape[2], *shape[:2]) if len(shape) == 3 else shape


def frame(
    material: Material,
    innocent: Logits,
    n: int,
    rng: np.random.Generator,
    progress: Callable[[int], None],
    *,
    away: Sequence[Logits],
    push: Push,
) -> tuple[Queries, NDArray[np.int64]]:
    """n adversarial examples, rounded, that victim and innocent are both driven to give one wrong label; and that label, (n,).

    From inputs of the data at random; the label is the one that both together find likeliest besides the victim's. away: models
    that are driven to keep the victim's label. Whether an example does as it should is for the caller to see.
    """
    victim, space = material.victim, material.space
    starts = material.draw(n, rng)
    before = victim.predict(starts).argmax(1)
    with torch.no_grad():
        pixels = victim.pixels(starts).split(victim.at_once)
        both = torch.cat([victim.logits(part).softmax(1) + innocent(part).softmax(1) for part in pixels])
    wanted = both.scatter(1, before[:, None], -1.0).argmax(1)
    walk = partial(_walk, [victim.logits, innocent], list(away), space, push)
    points, _ = walk_queries(material, starts, walk, wanted, before, watch=_counting(progress))
    return cast("Queries", points), wanted.cpu().numpy()


def _counting(progress: Callable[[int], None]) -> Callable[..., None]:
    done = 0

    def watch(points: Tensor, *_: Tensor) -> None:
        nonlocal done
        done += len(points)
        progress(done)

    return watch


def _walk(
    towards: Sequence[Logits], away: Sequence[Logits], space: Space, push: Push, x: Tensor, wanted: Tensor, before: Tensor
) -> tuple[Tensor, Tensor]:
    """Signed steps along the momentum of the gradient, within the ball and the box: down the mean cross-entropy to ``wanted`` of
    some models, and to ``before`` of others; rounded points, and the labels wanted."""
    points, velocity = x.clone(), torch.zeros_like(x)
    low, high = x - push.radius * space.width, x + push.radius * space.width
    step = STEPS * push.radius / push.iterations * space.width
    for _ in range(push.iterations):
        gradient = _mean_gradient(towards, space, points, wanted)
        if away:
            gradient = gradient + _mean_gradient(away, space, points, before)
        size = gradient.abs().flatten(1).sum(1).clamp_min(1e-12)
        velocity = push.momentum * velocity + gradient / size.reshape(-1, *[1] * (x.ndim - 1))
        points = space.clip(torch.minimum(torch.maximum(points - step * velocity.sign(), low), high))
    return space.snapped(points), wanted


def _mean_gradient(models: Sequence[Logits], space: Space, x: Tensor, label: Tensor) -> Tensor:
    x = x.detach().requires_grad_(True)
    total = torch.zeros_like(x)
    for logits in models:  # one after the other, so that one of them at a time keeps what its gradient needs
        loss = functional.cross_entropy(logits(space.snapped(x)), label, reduction="sum")
        total += torch.autograd.grad(loss, x)[0]
    return total / len(models)
