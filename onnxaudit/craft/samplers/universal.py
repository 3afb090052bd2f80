"""Universal adversarial perturbations, one for all inputs, and FUAP's queries: views of pairs without and with it (torch)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from onnxaudit.craft.sample import Material, Sample
from onnxaudit.craft.samplers.attacks import cross_entropy_pull, input_gradient, spread
from onnxaudit.craft.samplers.deepfool import deepfool
from onnxaudit.craft.samplers.views import choose_views, embed
from onnxaudit.craft.space import Space
from onnxaudit.craft.victim import Victim
from onnxaudit.errors import UsageError

Step: TypeAlias = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(inputs, the victim's labels of them without it, the perturbation) to the next perturbation."""
FEWEST = 10
"""Inputs that a perturbation can be called universal for."""
ASIDE = 4
"""One input in so many is kept from the search, to measure how many are fooled."""
START, GROWTH, GROWTHS = 0.1, 1.25, 11
"""The grid of radii: from a tenth of the mean norm of an input, by a quarter each time, to a little more than that norm."""
STRIDE = 0.1
"""Step of gradient ascent, in units of the radius."""
PASSES = {"deepfool": 1, "gradient": 5}
"""By algorithm: passes for each radius of the grid; a gradient costs much less than DeepFool."""


@dataclass(frozen=True, slots=True, eq=False)
class Ball:
    """Perturbations (1, ...) whose "l2" or "linf" norm, in units of ``width``, is at most ``radius``."""

    norm: str
    radius: float
    width: Tensor

    def project(self, v: Tensor) -> Tensor:
        """The nearest perturbation in the ball."""
        scaled = v / self.width
        if self.norm == "linf":
            return scaled.clamp(-self.radius, self.radius) * self.width
        shrunk: Tensor = v * (self.radius / scaled.norm().clamp_min(1e-12)).clamp_max(1.0)
        return shrunk

    def ascend(self, v: Tensor, gradient: Tensor) -> Tensor:
        """v after a step along the gradient that is steepest in this norm, back in the ball."""
        slope = gradient * self.width
        direction = slope.sign() if self.norm == "linf" else slope / slope.norm().clamp_min(1e-12)
        return self.project(v + STRIDE * self.radius * direction * self.width)


def sample_uap(
    material: Material,
    n: int,
    rng: np.random.Generator,
    progress: Callable[[int], None],
    *,
    algorithm: str = "deepfool",
    norm: str = "l2",
    xi: float | None = None,
    delta: float = 0.2,
    views: int = 5,
    pool: str = "knn",
    embedding: str = "logits",
    inputs: int = 500,
    passes: int = 10,
    batch: int = 32,
) -> Sample:
    """Views of pairs of an input and the same with a universal perturbation (FUAP section 4.2), view by view, at most n queries.

    n // (2 views) inputs a view, spread by K-means over what the victim says: see ``choose_views`` for views, pool, embedding.
    xi, delta: the perturbation's radius in units of the space's width, and the share of inputs that it may fail on; xi None: see
    ``fooling``. algorithm, norm, passes (where xi is given), batch: see ``universal_perturbation``. inputs: to search with. The
    perturbed input is clipped and rounded to 8 bits, in the search too. column "view": (queries,) from 0.
    Raises UsageError for too few queries or inputs, values out of range, or where no answer changes.
    """
    if views < 1 or n < 2 * views:
        raise UsageError(
            f"{n} queries are too few for {views} views of pairs", f"Give at least {2 * max(1, views)}, or fewer views."
        )
    if len(material.inputs()) < FEWEST:
        raise UsageError(f"{len(material.inputs())} inputs are too few for a universal perturbation", f"Give at least {FEWEST}.")
    if not 0 <= delta < 1 or (xi is not None and xi <= 0) or min(inputs - FEWEST + 1, passes, batch) < 1:
        raise UsageError(f"delta={delta}, xi={xi}, inputs={inputs}, passes={passes} or batch={batch} is out of range")
    chosen = choose_views(embed(material, embedding), n // (2 * views), views, rng, pool)
    search = {"norm": norm, "delta": delta, "algorithm": algorithm, "passes": passes, "batch": batch}
    found = fooling(material, rng, xi, inputs, lambda rate: progress(min(n - 1, int(n * rate))), **search)
    victim, space = material.victim, material.space
    clean = victim.pixels(material.inputs().x[chosen.rows.reshape(-1)])
    pairs = torch.stack([clean, space.clip(clean + found.v)], dim=1).flatten(0, 1)
    column = np.repeat(np.arange(views, dtype=np.int64), 2 * chosen.rows.shape[1])
    progress(n)
    settled = {"xi": round(found.radius, 6), "fooling_rate": round(found.rate, 4)}
    note = f"perturbation of {norm} norm {found.radius:.3g}: {found.rate:.0%} of inputs kept from the search change their class"
    note += "" if found.rate >= 1 - delta else f", {1 - delta:.0%} were asked for"
    return Sample(space.queries(pairs), (*chosen.notes, note), settled, {"view": column})


@dataclass(frozen=True, slots=True, eq=False)
class Found:
    """A universal perturbation (1, ...), the radius of its ball, and the share of inputs kept from the search that it fools."""

    v: Tensor
    radius: float
    rate: float


def fooling(
    material: Material, rng: np.random.Generator, xi: float | None, inputs: int, report: Callable[[float], None], **search: Any
) -> Found:
    """A universal perturbation, searched with ``inputs`` of the data and judged by a third as many others.

    xi None: the smallest radius of a geometric grid, from a tenth of the mean norm of an input, that fools 1 - delta of the
    others; each search has a pass or a few, and starts with what the one before found, as much larger as its radius. search: for
    ``universal_perturbation``, norm and delta among them. Raises UsageError where no answer changes.
    """
    victim, space = material.victim, material.space
    order = rng.permutation(len(material.inputs()))[: inputs + inputs // (ASIDE - 1)]
    known = victim.pixels(material.inputs().x[order])
    judges, shown = known[: len(order) // ASIDE], known[len(order) // ASIDE :]
    found = Found(torch.zeros_like(shown[:1]), 0.0, 0.0)
    if xi is None:
        search["passes"] = PASSES.get(search["algorithm"], 1)
    for radius in _radii(space, shown, search["norm"]) if xi is None else [xi]:
        v = universal_perturbation(victim, space, shown, radius, rng, found.v * GROWTH, judges, **search)
        found = Found(v, radius, fooling_rate(victim, space, judges, v))
        report(found.rate)
        if found.rate >= 1 - search["delta"]:
            break
    if found.rate == 0:
        raise UsageError(f"no perturbation of norm {found.radius:.3g} changes the victim's answers", "Give a larger xi.")
    return found


def universal_perturbation(
    victim: Victim,
    space: Space,
    x: Tensor,
    xi: float,
    rng: np.random.Generator,
    start: Tensor | None = None,
    judges: Tensor | None = None,
    *,
    norm: str = "l2",
    delta: float = 0.2,
    algorithm: str = "deepfool",
    passes: int = 10,
    batch: int = 32,
    overshoot: float = 0.02,
    iterations: int = 10,
    classes: int = 10,
) -> Tensor:
    """One perturbation (1, ...) of "l2" or "linf" norm xi at most that changes the victim's answers to as many of x as can be.

    x: (n, ...) in the space; xi in units of its width. algorithm "deepfool" (Moosavi-Dezfooli et al. 2017): ``passes`` times over
    all x, in random order and ``batch`` at a time, add up the DeepFool steps of those that are not fooled yet, where they
    converge, and project; batch=1 is the paper's order, more at a time are faster and fool about as many. "gradient": ascend the
    mean cross-entropy of a batch by steps of a tenth of xi. Ends when 1 - delta of ``judges`` (None: x) are fooled; of the
    perturbations after each pass, and ``start``, the one that fools most is returned. overshoot, iterations, classes: of
    DeepFool, as in the authors' code. Raises UsageError for another norm or algorithm.
    """
    if algorithm not in PASSES:
        raise UsageError(f"algorithm={algorithm!r} is not known", "Use deepfool or gradient.")
    if norm not in ("l2", "linf"):
        raise UsageError(f"norm={norm!r} is not known", "Use l2 or linf.")
    ball = Ball(norm, xi, space.width)
    walk = partial(deepfool, victim, space, overshoot=overshoot, iterations=iterations, classes=classes)

    def by_deepfool(part: Tensor, labels: Tensor, v: Tensor) -> Tensor:
        here = space.snapped(part + v)
        left = here[victim.predict(here).argmax(1) == labels]
        if not len(left):
            return v
        steps, crossed = spread(victim, walk, left)
        return ball.project(v + steps[crossed].sum(0, keepdim=True))

    def by_gradient(part: Tensor, labels: Tensor, v: Tensor) -> Tensor:
        v = v.detach().requires_grad_(True)
        logits = victim.logits(space.snapped(part + v))
        return ball.ascend(v.detach(), input_gradient(logits, v, cross_entropy_pull(logits, labels)))

    first = torch.zeros_like(x[:1]) if start is None else ball.project(start)
    step = by_deepfool if algorithm == "deepfool" else by_gradient
    judges, labels, v = x if judges is None else judges, victim.predict(x).argmax(1), first
    best, most = v, fooling_rate(victim, space, judges, v)
    for _ in range(passes):
        if most >= 1 - delta:
            break
        for part in torch.from_numpy(rng.permutation(len(x))).to(x.device).split(batch):
            v = step(x[part], labels[part], v)
        if (rate := fooling_rate(victim, space, judges, v)) > most:
            best, most = v, rate
    return best


def fooling_rate(victim: Victim, space: Space, x: Tensor, v: Tensor) -> float:
    """Share of inputs x (n, ...) whose class changes when v (1, ...) is added, clipped and rounded (FUAP eq. 3)."""
    changed = victim.predict(space.snapped(x + v)).argmax(1) != victim.predict(x).argmax(1)
    return float(changed.float().mean())


def _radii(space: Space, x: Tensor, norm: str) -> list[float]:
    """The grid of radii. Of the "linf" norm, those of perturbations of the same "l2" norm that are as large everywhere."""
    mean = float(((x - space.low) / space.width).flatten(1).norm(dim=1).mean())
    size = mean / x[0].numel() ** 0.5 if norm == "linf" else mean
    return [START * size * GROWTH**power for power in range(GROWTHS)]
