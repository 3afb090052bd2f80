"""DeepFool: the nearest decision boundary by repeated linearisation (Moosavi-Dezfooli et al. 2016), in whole batches (torch)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from onnxaudit.craft.sample import Material, Sample
from onnxaudit.craft.samplers.attacks import as_asked, input_gradient, joined, per_point, shortfall, starts_of, successes
from onnxaudit.craft.samplers.boundary import targets
from onnxaudit.craft.space import Space
from onnxaudit.craft.victim import Victim
from onnxaudit.craft.walking import walk_queries
from onnxaudit.errors import UsageError
from onnxaudit.suspect import Queries

PUSH = 1e-4
"""Added to each step's length, as in the authors' PyTorch code: a point that lies on the boundary moves off it."""
TINY = 1e-12
RAISES, FIRST_RAISE = 12, 0.02
FEW = 64
"""So many images are as quick to show at once as a few: then copies of the points for every class are better than a pass each."""


def sample_deepfool(
    material: Material,
    n: int,
    rng: np.random.Generator,
    progress: Callable[[int], None],
    *,
    target: str = "nearest",
    overshoot: float = 0.02,
    iterations: int = 50,
    classes: int = 10,
) -> Sample:
    """n inputs of the data moved just across the victim's nearest boundary (DeepFoolF, Wang and Chang 2021).

    target: "nearest", any class; or as for IPGuard "least-likely" or "random". overshoot: how far beyond the boundary, as a share
    of the way to it; the larger, the deeper in the other class, like IPGuard's k. classes: how many of a start's best are tried.
    Where rounding to 8 bits moves a query back, its own overshoot grows until it holds; parameter "raised" says for how many.
    Starts that do not get there in ``iterations`` are replaced. Raises UsageError if none does.
    """
    if target not in ("nearest", "least-likely", "random"):
        raise UsageError(f"target={target!r} is not known", "Use nearest, least-likely or random.")
    if overshoot < 0 or iterations < 1 or classes < 2:
        raise UsageError("deepfool takes overshoot >= 0, iterations >= 1 and classes >= 2")
    raised: list[int] = []

    def walk(x: Tensor, goal: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        settings: dict[str, Any] = {"overshoot": overshoot, "iterations": iterations, "classes": classes, "clip": True}
        moves, converged = deepfool(material.victim, material.space, x, target=goal, **settings)
        return _held_on_the_grid(material, x, moves, converged, goal, overshoot)

    def attack(x: Queries, watch: Callable[..., None]) -> tuple[Queries, Tensor]:
        goals = () if target == "nearest" else (targets(material.victim, x, rng, target),)
        points, held, again = walk_queries(material, x, walk, *goals, watch=watch)
        raised.append(int(again.sum()))
        return points, held

    queries, tried = successes(material, n, starts_of(material, rng, "training"), attack, progress)
    return Sample(queries, shortfall(n, len(queries), tried), {"starts": tried, "raised": sum(raised)})


def _held_on_the_grid(
    material: Material, x: Tensor, moves: Tensor, converged: Tensor, goal: Tensor | None, overshoot: float
) -> tuple[Tensor, Tensor, Tensor]:
    """x + moves, which of them have crossed as 8-bit images, and which took a larger overshoot for it, both (n,) bool."""
    source = material.victim.predict(x).argmax(1)
    points, held = x.clone(), torch.zeros_like(converged)
    pending, first = converged.nonzero()[:, 0], held
    for attempt in range(RAISES + 1 if len(pending) else 0):
        more = 0.0 if not attempt else FIRST_RAISE * 2.0 ** (attempt - 1)
        points[pending] = as_asked(material, x[pending] + moves[pending] * ((1 + overshoot + more) / (1 + overshoot)))
        crossed = _crossed(material.victim.predict(points[pending]), source[pending], None if goal is None else goal[pending])
        held[pending[crossed]] = True
        pending = pending[~crossed]
        if not len(pending):
            break
        if not attempt:
            first = held.clone()
    return points, held, held & ~first


def deepfool(
    victim: Victim,
    space: Space,
    x: Tensor,
    *,
    overshoot: float,
    iterations: int,
    classes: int,
    target: Tensor | None = None,
    clip: bool = False,
) -> tuple[Tensor, Tensor]:
    """The perturbation (1 + overshoot) r that takes each x across a boundary, like x, and whether it did, (n,) bool.

    x: pixels (n, C, H, W) or vectors (n, d), on the victim's device. Only the ``classes`` best classes of a start are tried.
    target: (n,) classes to reach instead of any other than the victim's label of x; each step then leads to the boundary
    with the best of the others. clip: stay in the space's box after every step; the paper's algorithm, and the default, takes
    no notice of it. Steps are shortest in units of ``space.width``. Points that have crossed leave the batch.
    """
    goals = (None,) * len(x.split(victim.at_once)) if target is None else target.split(victim.at_once)
    parts = zip(x.split(victim.at_once), goals, strict=True)
    perturbation, converged = joined(
        [_walk(victim, space, part, goal, overshoot, iterations, classes, clip) for part, goal in parts]
    )
    return perturbation, converged


def _walk(
    victim: Victim, space: Space, x: Tensor, target: Tensor | None, overshoot: float, iterations: int, classes: int, clip: bool
) -> tuple[Tensor, Tensor]:
    here, total = x.clone(), torch.zeros_like(x)
    converged = torch.zeros(len(x), dtype=torch.bool, device=x.device)
    active = torch.arange(len(x), device=x.device)
    logits, shown = _look(victim, here)
    source, rivals = _classes(logits, classes, target)
    for step in range(iterations + 1):
        if step:
            logits, shown = _look(victim, here[active])
        crossed = _crossed(logits, source[active], None if target is None else target[active])
        if crossed.any():
            converged[active[crossed]] = True
            active = active[~crossed]
            if len(active):  # looking again without them costs less than taking them along through the backward passes
                logits, shown = _look(victim, here[active])
        if step == iterations or not len(active):
            break
        origin = source[active] if target is None else _ahead(logits, rivals[active])
        total[active] += _shortest(victim, logits, shown, origin, rivals[active], space.width)
        moved = x[active] + (1 + overshoot) * total[active]
        if clip:
            total[active] = space.clip(x[active] + total[active]) - x[active]
            moved = space.clip(moved)
        here[active] = moved
    return here - x, converged


def _look(victim: Victim, here: Tensor) -> tuple[Tensor, Tensor]:
    shown = here.detach().requires_grad_(True)
    return victim.logits(shown), shown


def _classes(logits: Tensor, classes: int, target: Tensor | None) -> tuple[Tensor, Tensor]:
    """The label of each row, (n,), and the classes to try, (n, K - 1), best first."""
    source = logits.detach().argmax(1)
    if target is not None:
        return source, target[:, None]
    others = logits.detach().scatter(1, source[:, None], -torch.inf)
    return source, others.topk(min(max(classes, 2), logits.shape[1]) - 1, dim=1).indices


def _ahead(logits: Tensor, target: Tensor) -> Tensor:
    """The best class other than the target, (n,)."""
    return logits.detach().scatter(1, target, -torch.inf).argmax(1)


def _crossed(logits: Tensor, source: Tensor, target: Tensor | None) -> Tensor:
    label = logits.detach().argmax(1)
    return label != source if target is None else label == target


def _shortest(victim: Victim, logits: Tensor, shown: Tensor, source: Tensor, rivals: Tensor, width: Tensor) -> Tensor:
    """The shortest of the steps to the rivals' linearised boundaries: |f| w / |w|^2, f = Z_k - Z_source, w its gradient."""
    values = logits.detach().float()
    gaps = (values.gather(1, rivals) - values.gather(1, source[:, None])).abs()
    shortest, steepness = torch.full_like(gaps[:, 0], torch.inf), torch.ones_like(gaps[:, 0])
    step = torch.zeros_like(shown)
    for gap, slope in zip(gaps.T, _slopes(victim, logits, shown, source, rivals), strict=True):
        norm = slope.mul_(width).flatten(1).norm(dim=1).clamp_min_(TINY)
        length = gap / norm
        shorter = length < shortest
        shortest, steepness = torch.minimum(shortest, length), torch.where(shorter, norm, steepness)
        step = torch.where(per_point(shorter, slope), slope, step)
    return step.mul_(per_point((shortest + PUSH) / steepness, step)).mul_(width)


def _slopes(victim: Victim, logits: Tensor, shown: Tensor, source: Tensor, rivals: Tensor) -> Iterator[Tensor]:
    """The gradients of Z_k - Z_source, like shown, for one column k of the rivals (n, K - 1) after the other."""
    pulls = torch.zeros(rivals.shape[1], *logits.shape, dtype=logits.dtype, device=logits.device)
    pulls.scatter_(2, rivals.T[:, :, None], 1.0)
    pulls.scatter_(2, source.expand_as(rivals.T)[:, :, None], -1.0)
    if 1 < len(pulls) <= min(FEW, victim.at_once) // len(shown):
        copies = shown.detach().repeat(len(pulls), *(1,) * (shown.ndim - 1)).requires_grad_(True)
        yield from input_gradient(victim.logits(copies), copies, pulls.flatten(0, 1)).unflatten(0, pulls.shape[:2])
    else:
        for column, pull in enumerate(pulls):
            yield input_gradient(logits, shown, pull, again=column + 1 < len(pulls))
