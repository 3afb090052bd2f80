"""Pairs of inputs and their adversarial examples (QuRD), and DeepJudge's test cases, by projected gradient descent (torch)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from onnxaudit.craft.sample import Material, Sample
from onnxaudit.craft.samplers.attacks import cross_entropy_pull, input_gradient, on_grid, spread
from onnxaudit.craft.samplers.natural import errors_of
from onnxaudit.craft.space import GREY_LEVELS, Space
from onnxaudit.craft.victim import Victim
from onnxaudit.craft.walking import Walk, walk_queries
from onnxaudit.errors import UsageError
from onnxaudit.suspect import Queries


def sample_adversarial(
    material: Material,
    n: int,
    rng: np.random.Generator,
    progress: Callable[[int], None],
    *,
    epsilon: float = 0.03,
    iterations: int = 40,
    step: float | None = None,
) -> Sample:
    """n / 2 inputs of the data, each followed by its untargeted adversarial example (QuRD section 4, "adversarial" sampling).

    epsilon: radius in L-infinity; step: None for epsilon / 30; both in box widths. Column "pair" numbers the pairs. The label
    attacked is the victim's own. A pair is kept whether its second image has another label or not, as in QuRD.
    """
    data = material.inputs()
    if len(data) < n // 2:
        raise UsageError(f"{n // 2} pairs asked for, the data has {len(data)} inputs", "Lower --queries or give more data.")
    return _pairs(material, material.draw(n // 2, rng), rng, progress, epsilon, iterations, step, ())


def sample_negative_adversarial(
    material: Material,
    n: int,
    rng: np.random.Generator,
    progress: Callable[[int], None],
    *,
    epsilon: float = 0.03,
    iterations: int = 40,
    step: float | None = None,
    fill: str = "none",
) -> Sample:
    """n / 2 inputs that the victim gets wrong, each followed by its untargeted adversarial example (QuRD).

    As ``sample_adversarial``. The label attacked is the victim's own, wrong one. With fewer errors than n / 2 there are fewer
    pairs (fill "none"), or the inputs that the victim is least sure of make up for them ("margin"). Raises UsageError without
    labels or with hardly any errors.
    """
    if fill not in ("none", "margin"):
        raise UsageError(f"fill={fill!r} is not known", "Use none or margin.")
    data, _ = material.labelled()
    errors = errors_of(material.victim, data, rng)
    rows, notes = errors[: n // 2], tuple[str, ...]()
    if len(errors) < n // 2:
        notes = (f"only {len(errors)} natural errors in {len(data)} inputs, so {len(errors)} pairs",)
        if fill == "margin":
            best = np.sort(material.victim.answer(data.x), axis=1)
            unsure = np.argsort(best[:, -1] - best[:, -2], kind="stable")
            rows = np.concatenate([errors, unsure[~np.isin(unsure, errors)][: n // 2 - len(errors)]])
            more = len(rows) - len(errors)
            notes = (f"only {len(errors)} natural errors in {len(data)} inputs; {more} right answers of least margin fill up",)
    return _pairs(material, data.x[rows], rng, progress, epsilon, iterations, step, notes)


def _pairs(
    material: Material,
    seeds: Queries,
    rng: np.random.Generator,
    progress: Callable[[int], None],
    epsilon: float,
    iterations: int,
    step: float | None,
    notes: tuple[str, ...],
) -> Sample:
    """Seeds and their adversarial examples in turn."""
    victim = material.victim
    labels = victim.predict(seeds).argmax(1)
    pace = epsilon / 30 if step is None else step
    done = 0

    def watch(points: Tensor) -> None:
        nonlocal done
        done += 2 * len(points)
        progress(done)

    points = pgd_queries(material, seeds, labels, rng, watch, epsilon=epsilon, step=pace, iterations=iterations)
    rate = float((victim.predict(points).argmax(1) != labels).float().mean()) if len(seeds) else 0.0
    queries = cast("Queries", np.stack([seeds, points], 1).reshape(-1, *seeds.shape[1:]))
    pair = np.repeat(np.arange(len(seeds)), 2)
    return Sample(queries, notes, {"step": pace, "success": round(rate, 3)}, {"pair": pair})


def sample_certain_adversarial(
    material: Material,
    n: int,
    rng: np.random.Generator,
    progress: Callable[[int], None],
    *,
    epsilon: float = 0.03,
    iterations: int = 10,
    step: float | None = None,
    project: bool = True,
    seeds: int = 1000,
) -> Sample:
    """n adversarial examples of the inputs that the victim gets right with most certainty (DeepJudge section 4.2).

    Inputs are ranked by the sum of squared probabilities; the first ``seeds`` of them are attacked until n attacks have
    succeeded as 8-bit images. epsilon: radius in L-infinity and of the noise they start with; step: None for epsilon / 4; both in
    box widths. project: stay within epsilon of the seed, as the paper has it; False and steps of 0.03 as the authors' code does.
    Column "truth": the seed's label. Raises UsageError without labels, or if nothing succeeds.
    """
    victim = material.victim
    pace = step if step is not None else epsilon / 4 if project else 0.03
    rows, truth = _certain(material, max(seeds, n))
    found, labels = list[Queries](), list[NDArray[np.int64]]()
    tried, missing = 0, n
    while missing and tried < len(rows):
        part = rows[tried : tried + max(missing, 64)]
        x, y = material.inputs().x[part], torch.from_numpy(truth[part]).to(victim.device)
        points = pgd_queries(material, x, y, rng, epsilon=epsilon, step=pace, iterations=iterations, project=project)
        succeeded = (victim.predict(points).argmax(1) != y).nonzero()[:missing, 0]
        tried += len(part) if len(succeeded) < missing else int(succeeded[-1]) + 1
        missing -= len(succeeded)
        found.append(points[succeeded.cpu().numpy()])
        labels.append(truth[part][succeeded.cpu().numpy()])
        progress(n - missing)
    if missing == n:
        raise UsageError(f"the attack succeeds on none of the {tried} most certain inputs", "Raise epsilon or iterations.")
    notes = (f"only {n - missing} of {n} queries: the attack succeeded on so many of {tried} inputs",) if missing else ()
    parameters = {"step": pace, "tried": tried}
    return Sample(cast("Queries", np.concatenate(found)), notes, parameters, {"truth": np.concatenate(labels)})


def _certain(material: Material, most: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows of inputs that the victim gets right, by falling sum of squared probabilities, and the labels of all the data."""
    data, truth = material.labelled()
    logits = material.victim.predict(data.x)
    certainty = logits.double().softmax(1).square().sum(1).cpu().numpy()
    right = np.flatnonzero(logits.argmax(1).cpu().numpy() == truth)
    if not len(right):
        raise UsageError(f"the victim gets none of {len(data)} inputs right", "Check that data and victim belong together.")
    return right[np.argsort(-certainty[right], kind="stable")][:most], truth


def pgd(
    victim: Victim,
    space: Space,
    x: Tensor,
    labels: Tensor,
    rng: np.random.Generator,
    *,
    epsilon: float,
    step: float,
    iterations: int,
    project: bool = True,
    early: bool = False,
) -> Tensor:
    """Points within epsilon of x in L-infinity whose cross-entropy to the labels is as high as ``iterations`` steps make it.

    x: pixels (n, C, H, W) or vectors (n, d); labels: (n,). epsilon and step in box widths (Madry et al. 2018): from uniform noise
    of size epsilon, steps along the gradient's sign, back into the ball (unless ``project`` is False) and the box. Images are
    seen by the victim, and returned, on the 8-bit grid and within epsilon there. early: stop at another label, per point.
    Raises UsageError if epsilon is less than a grey level.
    """
    walk, radius = _climbing(victim, space, epsilon, step, iterations, project=project, early=early)
    (points,) = spread(victim, walk, x, labels, space.noise(len(x), radius, rng) * space.width)
    return points


def pgd_queries(
    material: Material,
    seeds: Queries,
    labels: Tensor,
    rng: np.random.Generator,
    watch: Callable[..., None] | None = None,
    *,
    epsilon: float,
    step: float,
    iterations: int,
    project: bool = True,
) -> Queries:
    """``pgd`` of canonical queries."""
    walk, radius = _climbing(material.victim, material.space, epsilon, step, iterations, project=project)
    noise = material.space.noise(len(seeds), radius, rng).mul_(material.space.width)
    (points,) = walk_queries(material, seeds, walk, labels, noise, watch=watch)
    return cast("Queries", points)


def _climbing(
    victim: Victim, space: Space, epsilon: float, step: float, iterations: int, *, project: bool, early: bool = False
) -> tuple[Walk, float]:
    """``climb`` with the settings of ``pgd``, and the size of the noise to begin with. Raises UsageError where nothing moves."""
    radius = float(np.floor(epsilon * GREY_LEVELS + 1e-6) / GREY_LEVELS) if space.image and project else epsilon
    if radius <= 0 or step <= 0 or iterations < 1:
        raise UsageError(
            f"epsilon={epsilon:g}, step={step:g}, iterations={iterations} move nothing",
            "Images take an epsilon of 1/255 or more.",
        )
    room = (radius * space.width) if project else None
    return partial(climb, victim, space, room, step, iterations, early), radius


def climb(
    victim: Victim,
    space: Space,
    room: Tensor | None,
    step: float,
    iterations: int,
    early: bool,
    x: Tensor,
    labels: Tensor,
    noise: Tensor,
) -> tuple[Tensor]:
    """The steps of ``pgd``: from x + noise, within ``room`` of x if it is given; on one thread."""
    low, high = space.low.expand_as(x), space.high.expand_as(x)
    if room is not None:
        low, high = torch.maximum(low, x - room), torch.minimum(high, x + room)
    here = (x + noise).clamp_(low, high)
    points, stride = here.clone(), step * space.width
    active = torch.arange(len(x), device=x.device)
    for _ in range(iterations):
        shown = on_grid(space, here).requires_grad_(True)
        logits = victim.logits(shown)
        gradient = input_gradient(logits, shown, cross_entropy_pull(logits, labels))
        if early and (gone := logits.detach().argmax(1) != labels).any():
            points[active[gone]] = here[gone]
            active, here, gradient, labels, low, high = (part[~gone] for part in (active, here, gradient, labels, low, high))
            if not len(active):
                break
        here = gradient.sign_().mul_(stride).add_(here).clamp_(low, high)
    points[active] = here
    return (on_grid(space, points),)
