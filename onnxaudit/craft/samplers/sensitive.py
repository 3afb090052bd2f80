"""SSF: sensitive samples, whose answers change with any change of the weights (He, Zhang, Lee 2019), torch."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor

from onnxaudit.craft.descent import descend
from onnxaudit.craft.layers import Inside, watched
from onnxaudit.craft.sample import Material, Sample
from onnxaudit.craft.space import Space
from onnxaudit.craft.victim import Victim
from onnxaudit.craft.walking import walk_queries
from onnxaudit.errors import UsageError

CANDIDATES = 2
"""For each sample that is wanted."""
FIRST_CLASSES = 40
TOLERANCE = 1e-3


def sample_sensitive(
    material: Material,
    n: int,
    rng: np.random.Generator,
    progress: Callable[[int], None],
    *,
    of: str = "probabilities",
    radius: float = 10 / 255,
    lr: float = 1 / 255,
    iterations: int = 100,
    least: float = 1e-3,
) -> Sample:
    """Up to n inputs close to ones of the data whose answers react most to the weights of the victim's last layer.

    Adam raises S = ||dF/dW||^2, W the weights of the last linear layer. of: what F is, "probabilities" (all outputs, as in the
    paper), "top" (the largest, as in the authors' code) or "log" (sum of the logarithms of the first 40, as in earlier code).
    radius: root mean square change of a feature in units of the space's width, before rounding (10 grey levels in the code). lr:
    in the same units (0.01 grey levels in the code, which rounding swallows). least: S for each weight that a sample must reach.
    Two candidates for each sample wanted; Maximum Active Neuron Cover chooses among them and puts them in order.
    Raises UsageError where the victim does not end in a linear layer, or if no candidate reaches ``least``.
    """
    victim, space = material.victim, material.space
    if of not in ("probabilities", "top", "log"):
        raise UsageError(f"of={of!r} is not known", "Use probabilities, top or log.")
    seeds = material.draw(min(CANDIDATES * n, len(material.inputs())), rng)
    ends = last_layer(victim, victim.pixels(seeds[: victim.at_once]))

    def walk(x: Tensor) -> tuple[Tensor, ...]:
        points, loss = descend(
            lambda x, _: -_sensitivity(ends(x), of, victim.num_classes),
            space,
            x,
            x,
            project=partial(_near, space, radius),
            lr=lr,
            iterations=iterations,
        )
        with torch.no_grad():
            return points, loss, ends(points)[:, victim.num_classes :] > 0

    points, loss, active = walk_queries(material, seeds, walk)
    weights = victim.num_classes * active.shape[1]
    good = torch.nonzero(-loss > least * weights)[:, 0]
    if not len(good):
        raise UsageError(f"none of {len(seeds)} inputs became sensitive (least={least:g})", "Lower least, or raise radius.")
    chosen = good[manc(active[good], -loss[good], n)]
    progress(len(chosen))
    notes = (f"only {len(chosen)} of {len(seeds)} inputs became sensitive",) if len(chosen) < n else ()
    return Sample(points[chosen.cpu().numpy()], notes, {"sensitivity": round(float(-loss[chosen].median() / weights), 4)})


def sensitivity(scores: Tensor, features: Tensor, of: str = "probabilities") -> Tensor:
    """||dF/dW||^2 of each row, (n,), W the weights of Z = W phi + b: scores Z (n, C), features phi (n, d).

    dF/dW is the outer product of dF/dZ and phi, so its squared norm is ||dF/dZ||^2 ||phi||^2. With probabilities p, squares of
    the derivatives of p_c sum to p_c^2 (1 - 2 p_c + sum p^2). of: see ``sample_sensitive``.
    """
    p = scores.softmax(1)
    squares = p.square().sum(1)
    if of == "log":
        share = torch.zeros_like(p)
        share[:, :FIRST_CLASSES] = 1
        outer = (share - share[0].sum() * p).square().sum(1)
    else:
        each = p.square() * (1 - 2 * p + squares[:, None])
        outer = each.sum(1) if of == "probabilities" else each.gather(1, p.argmax(1, keepdim=True))[:, 0]
    return outer * features.square().sum(1)


def manc(active: Tensor, worth: Tensor, n: int) -> Tensor:
    """Rows of (m, neurons), at most n, each adding the most active neurons to those before it; ties by worth (m,), larger first.

    Maximum Active Neuron Cover. Once no row adds any, a new cover is begun with the rows that are left.
    """
    free = torch.ones(len(active), dtype=torch.bool, device=active.device)
    covered = torch.zeros(active.shape[1], dtype=torch.bool, device=active.device)
    rank = worth.argsort().argsort() / len(worth)  # below 1, so that it decides only between equal numbers of neurons
    chosen: list[int] = []
    while len(chosen) < min(n, len(active)):
        added = (active & ~covered).sum(1)
        if covered.any() and not added[free].any():
            covered.zero_()
            continue
        row = int(torch.where(free, added + rank, -1.0).argmax())
        chosen.append(row)
        free[row] = False
        covered |= active[row]
    return torch.tensor(chosen, device=active.device)


def last_layer(victim: Victim, x: Tensor) -> Callable[[Tensor], Tensor]:
    """A function from pixels to scores and features of the last linear layer side by side, (n, C + d).

    Raises UsageError where that layer's scores are not the logits of the answers, tried on x.
    """
    ends = watched(victim, _scores_and_features)
    with torch.no_grad():
        scores = ends(x)[:, : victim.num_classes]
        same = scores.shape[1] == victim.num_classes and torch.allclose(
            scores.softmax(1), victim.logits(x).softmax(1), atol=TOLERANCE
        )
    if not same:
        raise UsageError("the victim's scores do not come from a linear layer", "Take another scheme.")
    return ends


def _sensitivity(ends: Tensor, of: str, classes: int) -> Tensor:
    return sensitivity(ends[:, :classes], ends[:, classes:], of)


def _scores_and_features(seen: Inside) -> Tensor:
    if seen.features is None or seen.scores is None or seen.scores.ndim != 2:
        raise UsageError("the victim's scores do not come from a linear layer", "Take another scheme.")
    return torch.cat([seen.scores, seen.features], 1)


def _near(space: Space, radius: float, x: Tensor, seed: Tensor) -> Tensor:
    """x moved to within ``radius`` of its seed: root mean square over features, in units of the space's width."""
    change = (x - seed) / space.width
    size = change.flatten(1).square().mean(1).sqrt().clamp_min(radius)
    return seed + change * (radius / size).reshape(-1, *[1] * (x.ndim - 1)) * space.width
