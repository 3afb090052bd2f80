"""CAE: conferrable adversarial examples, shared by derived models and not by independent ones (Lukas et al. 2021)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from onnxaudit.craft.pools.peers import needed_references, needed_surrogates
from onnxaudit.craft.sample import Material, Peer, Sample
from onnxaudit.craft.space import Space
from onnxaudit.craft.victim import Victim
from onnxaudit.craft.walking import walk_apart
from onnxaudit.errors import UsageError

ROUNDS = 3
TINY = 1e-12
WARM = 0.3
"""Share of steps without the term of gamma: where all models still agree on the start, it holds the point there."""


def sample_conferrable(
    material: Material,
    n: int,
    rng: np.random.Generator,
    progress: Callable[[int], None],
    *,
    radius: float = 0.15,
    iterations: int = 100,
    lr: float = 0.01,
    threshold: float = 0.85,
    dropout: float = 0.3,
    alpha: float = 1.0,
    beta: float = 1.0,
    gamma: float = 1.0,
) -> Sample:
    """n adversarial examples by CEM, most conferrable first; radius: L-infinity, in units of the space's width.

    Starts are inputs that the victim gets right. Kept is, after rounding, what the victim gets wrong and whose conferrability
    Conf(x, t) = T(surrogates, x, t) * (1 - T(references, x, t)), t the victim's label and T the share of models that say t, is at
    least ``threshold``. Starts that do not get there are replaced, twice; then the most conferrable of the others fill up, and
    a note says so. dropout: the share of models left out of each step. alpha, beta, gamma: weights of ``_loss``. Steps are larger
    than the 0.0005 that is known of other implementations, which rounding to 8 bits swallows. Raises UsageError without labels,
    surrogates, references or gradients.
    """
    data, truth = material.labelled()
    ensemble = _Ensemble(
        material.victim, tuple(needed_surrogates(material)), tuple(needed_references(material)), alpha, beta, gamma
    )
    right = rng.permutation(np.flatnonzero(material.victim.answer(data.x).argmax(1) == truth))
    if not len(right):
        raise UsageError("the victim gets none of the data right", "Check the label order of --data.")
    found: list[Tensor] = []
    scores: list[Tensor] = []
    tried = good = 0
    while good < n and tried < min(ROUNDS * n, len(right)):
        rows = right[tried : tried + n - good]
        tried += len(rows)
        x, y = material.victim.pixels(data.x[rows]), torch.from_numpy(truth[rows]).to(material.victim.device)
        walk = partial(_walk, ensemble, material.space, [ensemble.draw(dropout, rng) for _ in range(iterations)], radius, lr)
        (points,) = walk_apart(walk, x, at_once=material.victim.at_once)
        points = material.victim.pixels(material.space.queries(points))
        score = torch.where(ensemble.victim.predict(points).argmax(1) != y, ensemble.conferrability(points), -1.0)
        found.append(points)
        scores.append(score)
        good += int((score >= threshold).sum())
        progress(good)
    return _best(material, torch.cat(found), torch.cat(scores), n, tried, threshold)


def _best(material: Material, points: Tensor, scores: Tensor, n: int, tried: int, threshold: float) -> Sample:
    """The n most conferrable points that the victim gets wrong, best first; scores are -1 for those it gets right."""
    order = torch.argsort(scores, descending=True, stable=True)[:n]
    order = order[scores[order] >= 0]
    if not len(order):
        raise UsageError(f"none of {tried} starts became an adversarial example", "Give a larger radius, or more iterations.")
    good, mean = int((scores[order] >= threshold).sum()), float(scores[order].mean())
    notes: tuple[str, ...] = ()
    if good < len(order):
        notes = (
            f"only {good} of {tried} starts reached conferrability {threshold:g}; {len(order) - good} less conferrable fill up",
        )
    if len(order) < n:
        notes += (f"only {len(order)} queries: no other start became an adversarial example",)
    return Sample(material.space.queries(points[order]), notes, {"conferrable": good, "conferrability": round(mean, 4)})


@dataclass(frozen=True, slots=True, eq=False)
class _Ensemble:
    victim: Victim
    surrogates: tuple[Peer, ...]
    references: tuple[Peer, ...]
    alpha: float
    beta: float
    gamma: float

    def draw(self, dropout: float, rng: np.random.Generator) -> tuple[list[Peer], list[Peer]]:
        """The surrogates and references that take part in one step, at least one of each."""
        return _some(self.surrogates, dropout, rng), _some(self.references, dropout, rng)

    def loss(self, x: Tensor, before: Tensor, surrogates: Sequence[Peer], references: Sequence[Peer]) -> Tensor:
        """CEM's loss of each point, (n,): alpha H(1, max_t M(x)_t) - beta H(V(x_0), V(x)) + gamma H(V(x), S(x)).

        S, R: mean probabilities of surrogates and references; M = softmax(S * (1 - R)). before: V(x_0), (n, C). H: cross-entropy.
        """
        own, similar = self.victim.logits(x).log_softmax(1), _mean_probabilities(surrogates, x)
        different = _mean_probabilities(references, x)
        conferrable = (similar * (1 - different)).log_softmax(1).amax(1)
        away = -(before * own).sum(1)
        alike = -(own.exp() * similar.clamp_min(TINY).log()).sum(1)
        return -self.alpha * conferrable - self.beta * away + self.gamma * alike

    @torch.no_grad()
    def conferrability(self, points: Tensor) -> Tensor:
        """Conf(x, t) of each point (n,), t the victim's label."""
        parts = []
        for x in points.split(self.victim.at_once):
            said = self.victim.logits(x).argmax(1)
            similar, different = (
                torch.stack([peer.logits(x).argmax(1) == said for peer in peers]).float().mean(0)
                for peers in (self.surrogates, self.references)
            )
            parts.append(similar * (1 - different))
        return torch.cat(parts)


def _some(peers: Sequence[Peer], dropout: float, rng: np.random.Generator) -> list[Peer]:
    kept: NDArray[np.bool_] = rng.random(len(peers)) >= dropout
    kept[rng.integers(len(peers))] |= not kept.any()
    return [peer for peer, stays in zip(peers, kept, strict=True) if stays]


def _mean_probabilities(peers: Sequence[Peer], x: Tensor) -> Tensor:
    return torch.stack([peer.logits(x).softmax(1) for peer in peers]).mean(0)


def _walk(
    ensemble: _Ensemble, space: Space, kept: Sequence[tuple[list[Peer], list[Peer]]], radius: float, lr: float, x: Tensor
) -> tuple[Tensor]:
    """Adam on the perturbation, projected into the ball and the box after each step; the points reached, rounded.

    x: (n, …). kept: the models that take part in each step.
    """
    with torch.no_grad():
        before = ensemble.victim.predict(x).softmax(1)
    delta = torch.zeros_like(x, requires_grad=True)
    adam = torch.optim.Adam([delta], lr)
    for step, (surrogates, references) in enumerate(kept):
        alone = dataclasses.replace(ensemble, gamma=0.0) if step < WARM * len(kept) else ensemble
        points = space.snapped(x + delta * space.width)
        parts = zip(*(tensor.split(ensemble.victim.at_once) for tensor in (points, before)), strict=True)
        total = torch.stack([alone.loss(part, old, surrogates, references).sum() for part, old in parts]).sum()
        (delta.grad,) = torch.autograd.grad(total, delta)
        adam.step()
        with torch.no_grad():
            delta.clamp_(-radius, radius)
    return (space.snapped(x + delta * space.width).detach(),)
