"""Queries for schemes that look inside of models: reference points of ModelGiF, neuron fuzzing of DeepJudge (torch)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor

from onnxaudit.craft.descent import descend
from onnxaudit.craft.insight import insight, path_terms, program_of
from onnxaudit.craft.layers import Inside, watched
from onnxaudit.craft.sample import Material, Sample
from onnxaudit.craft.walking import walk_queries
from onnxaudit.errors import UsageError
from onnxaudit.suspect import Queries

POOL = 8
"""Inputs to choose from, for each reference point."""
NODES = 10


def sample_gif_points(
    material: Material,
    n: int,
    rng: np.random.Generator,
    progress: Callable[[int], None],
    *,
    points: int = 24,
    select: str = "random",
) -> Sample:
    """Up to ``points`` inputs of the data at which gradient fields are compared (ModelGiF).

    Fields are large, so there are fewer than n; the authors' code takes 256. select: "random", or "distant", those of eight
    times as many at which the victim's field is furthest from the references', furthest first, as the authors' code does.
    Raises UsageError for another choice, and for "distant" without references that have gradients.
    """
    count = min(n, points, len(material.inputs()))
    if select not in ("random", "distant"):
        raise UsageError(f"select={select!r} is not known", "Use random or distant.")
    if select == "distant" and not material.references:
        raise UsageError("select=distant needs references", "Give --references, or use select=random.")
    queries = material.draw(count if select == "random" else min(POOL * count, len(material.inputs())), rng)
    if select == "distant":
        queries = queries[_distances(material, queries).argsort(descending=True)[:count].cpu().numpy()]
    progress(count)
    notes = (f"{count} points, for fields are large (points={points})",) if count < n else ()
    return Sample(queries, notes)


def _distances(material: Material, queries: Queries) -> Tensor:
    """How far the victim's field lies from those of the references on average at each query, (n,)."""
    victim, parts = material.victim, []
    step = max(1, victim.at_once // NODES)
    for begin in range(0, len(queries), step):
        x = victim.pixels(queries[begin : begin + step])
        own = _fields(victim.logits, x, victim.at_once)
        others = (_fields(peer.logits, x, victim.at_once) for peer in material.references)
        parts.append(torch.stack([1 - torch.cosine_similarity(own, field, dim=2).mean(1) for field in others]).mean(0))
    return torch.cat(parts)


def _fields(logits: Callable[[Tensor], Tensor], x: Tensor, at_once: int) -> Tensor:
    """Cumulative integrated gradients from 0, (n, nodes, values)."""
    weights = torch.from_numpy(np.polynomial.legendre.leggauss(NODES)[1] / 2).to(x)
    return (path_terms(logits, x, torch.zeros_like(x[:1]), NODES, at_once) * weights[:, None]).cumsum(1)


def sample_neuron_fuzz(
    material: Material,
    n: int,
    rng: np.random.Generator,
    progress: Callable[[int], None],
    *,
    layer: int = 1,
    factor: float = 3.0,
    lr: float = 0.01,
    iterations: int = 200,
) -> Sample:
    """n inputs each of which makes one neuron of a layer say more than any input of the data does (DeepJudge, NeuronFuzz).

    A neuron is a channel, what it says the mean over its places. Adam from random inputs raises it to ``factor`` times its most
    on up to 2000 inputs; neurons take turns, those that nothing moves are left out. layer: which one of
    ``craft.layers.Inside.layers``; 1 is the first activation (the paper advises shallow ones). lr: in units of the space's width;
    iterations: 1000 in the code. Unlike there, inputs stay valid, so many neurons cannot get that high; the highest that each
    got is kept, and a note says how many did not get there.
    Raises UsageError for a layer that the victim does not have, or one that nothing moves.
    """
    victim, space = material.victim, material.space
    # a row of the insight begins with the number of layers and how many channels each has
    shown = insight("layers", program_of(victim), space.queries(space.low))[0]
    sizes = shown[1 : 1 + int(shown[0])].astype(np.int64)
    if not 0 <= layer < len(sizes):
        raise UsageError(f"layer={layer}: the victim has layers 0 to {len(sizes) - 1}")
    means = watched(victim, partial(_means, layer=layer))
    pool, step = material.draw(min(2000, len(material.inputs())), rng), victim.at_once
    with torch.no_grad():
        said = torch.cat([means(victim.pixels(pool[begin : begin + step])) for begin in range(0, len(pool), step)])
    top, moved = said.amax(0), torch.nonzero(said.amax(0) > said.amin(0))[:, 0]
    if not len(moved):
        raise UsageError(f"nothing in the data moves layer {layer} of the victim", "Take another layer.")
    neuron = moved[torch.arange(n, device=moved.device) % len(moved)]
    goal = (top + (factor - 1) * top.abs())[neuron]  # factor times the largest value, and above it if that is negative
    seeds = pool[rng.integers(0, len(pool), n)]
    walk = partial(descend, partial(_shortfall, means), space, lr=lr, iterations=iterations, enough=0.0)
    points, missing = walk_queries(material, seeds, walk, neuron, goal)
    progress(n)
    reached = int((missing <= 0).sum())
    notes = (f"{n - reached} of {n} neurons do not reach {factor:g} times their largest value within valid inputs",)
    columns = {
        "layer": np.full(n, layer),
        "neuron": neuron.cpu().numpy(),
        "sizes": np.repeat(sizes[None], n, axis=0),
    }
    return Sample(points, notes if reached < n else (), {"reached": reached}, columns)


def _shortfall(means: Callable[[Tensor], Tensor], x: Tensor, neuron: Tensor, goal: Tensor) -> Tensor:
    return torch.relu(goal - means(x).gather(1, neuron[:, None])[:, 0])


def _means(seen: Inside, layer: int) -> Tensor:
    found = seen.layers[layer]
    return found.flatten(2).mean(2) if found.ndim > 2 else found
