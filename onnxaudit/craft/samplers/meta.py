"""MetaV and MetaFinger: queries that are trained, through all models of a pool, to tell derived from independent ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from onnxaudit.craft.pools.peers import needed_references, needed_surrogates
from onnxaudit.craft.sample import Material, Peer, Sample
from onnxaudit.craft.samplers.distortions import distorted
from onnxaudit.craft.victim import Victim
from onnxaudit.errors import UsageError

HIDDEN = 128
PAIRED = 3
"""Positive and negative models in one step of MetaFinger."""
EPOCHS = 10
PIXEL_RATE = 0.01


def sample_meta(
    material: Material,
    n: int,
    rng: np.random.Generator,
    progress: Callable[[int], None],
    *,
    variant: str = "verifier",
    start: str = "random",
    iterations: int = 100,
    query_lr: float = 0.02,
    verifier_lr: float = 0.0001,
) -> Sample:
    """At most n queries trained with the victim and its surrogates as positive, references as negative models.

    variant "verifier" (MetaV): n free points together with a verifier g of all their answers, by ``iterations`` steps of Adam
    with rates ``query_lr`` and ``verifier_lr``; the queries are kept, the verifier is not (one is trained on the answers to the
    rounded queries). A verifier that learns as fast as the points tells a small pool apart before they have moved. start:
    "random" points of the space, or "training" inputs. "metafinger" (MetaFinger, labels only): n inputs of the data, on which
    positives are to agree and negatives not, under distortions; those come first that every positive and no negative gives the
    positives' label. Points are rounded to 8 bits in every step. Parameters: "accuracy", of the verifier on the pool, or "kept",
    of the queries.
    Raises UsageError without surrogates, references or gradients, or for another variant or start.
    """
    if variant not in ("verifier", "metafinger"):
        raise UsageError(f"variant={variant!r} is not known", "Use verifier or metafinger.")
    positives: list[Victim | Peer] = [material.victim, *needed_surrogates(material)]
    negatives = list(needed_references(material))
    if variant == "metafinger":
        return _metafinger(material, n, positives, negatives, rng, progress)
    if start not in ("random", "training"):
        raise UsageError(f"start={start!r} is not known", "Use random or training.")
    generator = torch.Generator().manual_seed(int(rng.integers(2**31)))
    x = material.space.uniform(n, rng) if start == "random" else material.victim.pixels(material.draw(n, rng))
    pool = [(peer, 1.0) for peer in positives] + [(peer, 0.0) for peer in negatives]
    verifier = _verifier(len(x) * material.victim.num_classes, generator, material.victim.device)
    points = _train(material, x, verifier, pool, iterations, (query_lr, verifier_lr), progress)
    with torch.no_grad():
        right = [(float(_score(verifier, peer, points)) > 0) == bool(label) for peer, label in pool]
    return Sample(material.space.queries(points), (), {"accuracy": round(float(np.mean(right)), 4)})


def _train(
    material: Material,
    x: Tensor,
    verifier: list[Tensor],
    pool: Sequence[tuple[Victim | Peer, float]],
    iterations: int,
    rates: tuple[float, float],
    progress: Callable[[int], None],
) -> Tensor:
    """Adam on the sum over the pool of -log g for positives and -log(1 - g) for negatives, by points and verifier; the points.

    One model at a time is on the tape: the loss is a sum over models.
    """
    space = material.space
    free = ((x - space.low) / space.width).requires_grad_(True)
    adam = torch.optim.Adam([{"params": [free], "lr": rates[0]}, {"params": verifier, "lr": rates[1]}])
    for step in range(1, iterations + 1):
        adam.zero_grad()
        for peer, label in pool:
            score = _score(verifier, peer, space.snapped(space.low + free * space.width))
            functional.binary_cross_entropy_with_logits(score, torch.full_like(score, label)).backward()
        adam.step()
        with torch.no_grad():
            free.clamp_(0, 1)
        progress(step * len(x) // iterations)
    return space.snapped(space.low + free * space.width).detach()


def _verifier(features: int, generator: torch.Generator, device: torch.device) -> list[Tensor]:
    """Weights and biases of features -> HIDDEN -> 1."""
    layers = []
    for size_in, size_out in ((features, HIDDEN), (HIDDEN, 1)):
        weight = torch.randn(size_out, size_in, generator=generator) / size_in**0.5
        layers += [weight.to(device), torch.zeros(size_out, device=device)]
    return [layer.requires_grad_(True) for layer in layers]


def _score(verifier: Sequence[Tensor], peer: Victim | Peer, points: Tensor) -> Tensor:
    """The verifier's logit, (1,), for a model's probabilities of all points in a row."""
    first, shift, second, bias = verifier
    answers = peer.logits(points).softmax(1).reshape(-1)
    return functional.linear(functional.leaky_relu(functional.linear(answers, first, shift)), second, bias)


def _metafinger(
    material: Material,
    n: int,
    positives: Sequence[Victim | Peer],
    negatives: Sequence[Peer],
    rng: np.random.Generator,
    progress: Callable[[int], None],
) -> Sample:
    """n inputs of the data, moved so that KL(positives || anchor) falls and KL(negatives || anchor) grows, then selected."""
    victim, space = material.victim, material.space
    generator = torch.Generator().manual_seed(int(rng.integers(2**31)))
    free = ((victim.pixels(material.draw(n, rng)) - space.low) / space.width).requires_grad_(True)
    adam = torch.optim.Adam([free], PIXEL_RATE)
    for epoch in range(EPOCHS):
        for anchor in rng.permutation(len(positives)):
            shown = distorted(space, space.snapped(space.low + free * space.width), rng, generator)
            target = positives[anchor].logits(shown).log_softmax(1)
            near = _divergence(_some(positives, rng), shown, target)
            far = _divergence(_some(negatives, rng), shown, target)
            (free.grad,) = torch.autograd.grad(near - far, free)
            adam.step()
            with torch.no_grad():
                free.clamp_(0, 1)
        progress((epoch + 1) * n // EPOCHS)
    return _selected(material, space.low + free.detach() * space.width, positives, negatives)


def _some(models: Sequence[Victim | Peer], rng: np.random.Generator) -> list[Victim | Peer]:
    return [models[i] for i in rng.choice(len(models), min(PAIRED, len(models)), replace=False)]


def _divergence(models: Sequence[Victim | Peer], x: Tensor, target: Tensor) -> Tensor:
    """Mean over models and points of KL(model || target); target: log-probabilities (n, C)."""
    said = [functional.kl_div(target, m.logits(x).log_softmax(1), reduction="batchmean", log_target=True) for m in models]
    return torch.stack(said).mean()


def _selected(material: Material, points: Tensor, positives: Sequence[Victim | Peer], negatives: Sequence[Peer]) -> Sample:
    """The points as queries, those first that all positives and no negatives give the positives' most frequent label."""
    queries = material.space.queries(points)
    said = np.stack([model.answer(queries).argmax(1) for model in positives])
    label = np.array([np.bincount(column).argmax() for column in said.T])
    hits: NDArray[np.float64] = (said == label).mean(axis=0)
    others = np.stack([model.answer(queries).argmax(1) for model in negatives])
    false_hits: NDArray[np.float64] = (others == label).mean(axis=0)
    order = np.argsort(false_hits - hits, kind="stable")
    kept = int(((hits == 1) & (false_hits == 0)).sum())
    notes = (
        (f"{kept} of {len(queries)} queries tell all positive from all negative models; the others follow",)
        if kept < len(queries)
        else ()
    )
    return Sample(queries[order], notes, {"kept": kept})
