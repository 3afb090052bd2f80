"""ModelDiff: inputs and partners of them that a model answers differently (Li et al. 2021), all in one batch (torch)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor

from onnxaudit.craft.sample import Material, Sample
from onnxaudit.craft.space import GREY_LEVELS, Space
from onnxaudit.craft.victim import Victim
from onnxaudit.craft.walking import walk_queries
from onnxaudit.errors import UsageError

FAR = 1000.0
"""How many times as far as the mean of all outputs a partner's target lies, on the other side of it (artefact)."""
OTHERS = 0.1
"""Weight of the mean squared distance over classes other than the first, whose own weight is 1 (artefact)."""


def sample_modeldiff(
    material: Material,
    n: int,
    rng: np.random.Generator,
    progress: Callable[[int], None],
    *,
    adv: str = "paper",
    epsilon: float = 0.06,
    step: float = 0.01,
    iterations: int = 50,
) -> Sample:
    """n / 2 inputs of the data, each followed by its adversarial partner for the victim (ModelDiff section 4.1).

    Partners lie in the box of half-width ``epsilon`` around their inputs, in units of the inputs' range; L-infinity PGD from a
    random point of it. Input x has the target t = 1000 (mean_b Z_b - Z(x)), so that the outputs get diverse; the objective is
    (Z_0 - t_0)^2 + 0.1 mean_{c > 0} (Z_c - t_c)^2. adv: "paper" makes it smaller; "artefact" larger, as a sign in the authors'
    code has it, so that outputs move away from the mean of all. The code crafts partners on the model under test; here it is the
    victim, as in QuRD, so that a suspect need not be opened. Column: "pair". Raises UsageError without data or gradients.
    """
    if adv not in ("paper", "artefact"):
        raise UsageError(f"adv={adv!r} is not known", "Use paper or artefact.")
    data, victim, space = material.inputs(), material.victim, material.space
    pairs = min(n // 2, len(data))
    if not pairs:
        raise UsageError("a pair takes two queries, and one input of the data", "Raise --queries or give more data.")
    inputs = material.draw(pairs, rng)
    logits = victim.predict(inputs)
    target = FAR * (logits.mean(0) - logits)
    noise = space.noise(pairs, 1.0, rng)
    sign = 1.0 if adv == "paper" else -1.0
    walk = partial(partners, victim, space, sign=sign, epsilon=epsilon, step=step, iterations=iterations)
    done = 0

    def watch(points: Tensor) -> None:
        nonlocal done
        done += 2 * len(points)
        progress(done)

    (found,) = walk_queries(material, inputs, walk, noise, target, watch=watch)
    worse = int((sign * (distance(victim.predict(found), target) - distance(logits, target)) >= 0).sum())
    notes = [f"{worse} of {pairs} partners are not where they were pushed: the victim is flat there"] if worse else []
    if 2 * pairs < n:
        notes.append(f"{2 * pairs} queries instead of {n}: whole pairs of the {len(data)} inputs")
    queries = np.stack([inputs, found], 1).reshape(-1, *inputs.shape[1:])
    return Sample(queries, tuple(notes), columns={"pair": np.repeat(np.arange(pairs, dtype=np.int32), 2)})


def partners(
    victim: Victim,
    space: Space,
    x: Tensor,
    noise: Tensor,
    target: Tensor,
    *,
    sign: float,
    epsilon: float,
    step: float,
    iterations: int,
) -> tuple[Tensor]:
    """Each x (n, …) moved by PGD towards (sign 1) or away from (-1) its target outputs (n, C), on the 8-bit grid.

    noise: in [-1, 1], where in the box to begin. An image's box is cut to whole grey levels, so that rounding never leaves it.
    """
    radius = epsilon * space.width
    if space.image:
        radius = (radius * GREY_LEVELS + 1e-4).floor() / GREY_LEVELS
    low, high = space.clip(x - radius), space.clip(x + radius)
    moved = torch.minimum(torch.maximum(x + noise * radius, low), high)
    for _ in range(iterations):
        uphill = _gradient(victim, space.snapped(moved), target).sign()
        moved = torch.minimum(torch.maximum(moved - sign * step * space.width * uphill, low), high)
    return (space.snapped(moved),)


def distance(logits: Tensor, target: Tensor) -> Tensor:
    """The artefact's weighted squared distance of logits to their targets, both (n, C), (n,)."""
    squares = (logits - target).square()
    return squares[:, 0] + OTHERS * squares[:, 1:].mean(1)


def _gradient(victim: Victim, x: Tensor, target: Tensor) -> Tensor:
    gradients = []
    for part, goal in zip(x.split(victim.at_once), target.split(victim.at_once), strict=True):
        part = part.detach().requires_grad_(True)
        total = distance(victim.logits(part), goal).sum()
        if not total.requires_grad:
            raise UsageError("the victim has no gradients", "Take a scheme that needs none, such as akh or sac-m.")
        gradients.append(torch.autograd.grad(total, part)[0])
    return torch.cat(gradients)
