"""What a program shows of its inside, as arrays that are recorded: gradients along paths, and what its layers say (torch)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from onnxaudit.craft.layers import look_inside
from onnxaudit.craft.room import BATCH, fitting
from onnxaudit.craft.victim import Victim
from onnxaudit.errors import UsageError
from onnxaudit.suspect import InputSpec, Queries

Insight: TypeAlias = NDArray[np.floating[Any]]


@dataclass(frozen=True, slots=True, eq=False)
class Program:
    """A program that can be differentiated, and what it takes.

    batch: the only batch size it takes, if fixed; least, most: the bounds of others. dims: the shape of one input where that is
    not the spec's own.
    """

    call: Callable[[Tensor], Any]
    spec: InputSpec
    device: torch.device
    num_classes: int | None = None
    batch: int | None = None
    least: int = 1
    most: int = BATCH
    dims: tuple[int, ...] | None = None

    def run(self, read: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """``read`` of what the program takes, for all rows of canonical values x (see ``encode``), in batches that it takes."""
        parts = []
        for part in x.split(self.batch or self.most):
            encoded = encode(self.spec, part).clone()  # for a program that works in place
            encoded = encoded if self.dims is None else encoded.reshape(len(part), *self.dims)
            short = max(self.batch or 0, self.least) - len(part)
            if short > 0:
                encoded = torch.cat([encoded, encoded[-1:].expand(short, *encoded.shape[1:])])
            parts.append(read(encoded)[: len(part)])
        return torch.cat(parts)

    def scores(self, x: Tensor) -> Tensor:
        """Class scores (n, C) of canonical values, differentiable. Raises UsageError where the program gives none."""
        return self.run(lambda encoded: _scores(self.call(encoded), len(encoded), self.num_classes), x)


def program_of(victim: Victim) -> Program:
    """A victim as a program to look into."""
    return Program(victim.program, victim.spec, victim.device, victim.num_classes, victim.batch, most=victim.at_once)


def insight(kind: str, program: Program, queries: Queries, **parameters: Any) -> Insight:
    """What a program shows to canonical queries, one row each: see ``INSIGHTS`` for the kinds and their parameters.

    Raises UsageError, saying why, where the program does not show it, or what it shows is not finite.
    """
    for weight in program.call.parameters() if isinstance(program.call, torch.nn.Module) else ():
        weight.requires_grad_(False)
    with torch.enable_grad(), torch.jit.optimized_execution(False):  # type: ignore[attr-defined]
        seen = INSIGHTS[kind](program, queries, **parameters)
    if not np.isfinite(seen).all():
        raise UsageError(f"the model's {kind} are not finite")
    return seen


def layers(program: Program, queries: Queries) -> Insight:
    """Each channel's mean output, all layers of ``Inside.layers`` in order, (n, 1 + layers + channels), float32.

    Every row begins with the number of layers and how many channels each has.
    """
    look = look_inside(program.call)

    def read(encoded: Tensor) -> Tensor:
        means = [layer.flatten(2).mean(2) if layer.ndim > 2 else layer for layer in look(encoded).layers]
        sizes = torch.tensor([len(means), *(mean.shape[1] for mean in means)], device=encoded.device)
        return torch.cat([sizes.expand(len(encoded), -1), *means], 1).float()

    with torch.no_grad():
        seen: Insight = program.run(read, _canonical(queries, program.device)).cpu().numpy()
    return seen


def gradients(
    program: Program,
    queries: Queries,
    *,
    nodes: int = 10,
    baseline: float = 0.0,
    score: str = "centred",
    sketch: int = 1024,
) -> Insight:
    """What integrated gradients are sums of: (x - b) * dF/dx at b + a_k (x - b), (n, nodes, values), float16 (ModelGiF).

    F: the score of the class that the program itself gives to the query x; a_k: Gauss-Legendre nodes in [0, 1], in order.
    Gradients are taken with respect to the query, so normalising, resizing and layouts do not show. baseline: b, the same for all
    values, in [0, 1] for pixels. score: "centred", logits less their mean, which are the same for a program that ends in
    softmax, or "logit". sketch: more values than this are added up, with random signs, in so many places, which keeps cosines
    but for noise of 1 / sqrt(sketch); 0: never. Each query's numbers are scaled so that the largest is 1.
    """
    if score not in ("centred", "logit"):
        raise UsageError(f"score={score!r} is not known", "Use centred or logit.")
    x = _canonical(queries, program.device)
    start = torch.full_like(x[:1], baseline * (255.0 if queries.ndim == 4 else 1.0))
    with torch.no_grad():
        normalised = _are_probabilities(program.scores(x))

    def logits(points: Tensor) -> Tensor:
        scores = program.scores(points).float()
        scores = scores.clamp_min(1e-12).log() if normalised else scores
        return scores - scores.mean(1, keepdim=True) if score == "centred" else scores

    at_once = min(program.most, fitting(program.scores, x[:2], program.batch)) if len(x) >= 2 else 1
    parts = []
    for part in x.split(max(1, at_once // nodes)):
        terms = sketched(path_terms(logits, part, start, nodes, at_once), sketch)
        parts.append(terms / terms.abs().amax((1, 2), keepdim=True).clamp_min(1e-30))
    return torch.cat(parts).half().cpu().numpy()


def path_terms(logits: Callable[[Tensor], Tensor], x: Tensor, start: Tensor, nodes: int, at_once: int = BATCH) -> Tensor:
    """(x - start) * dF/dx at each Gauss-Legendre node on the line from start (1, …) to x, (n, nodes, values).

    F: the logit of the class that is largest at x. Raises UsageError where the function has no gradient, or cannot be
    differentiated though it can be called. at_once: points in one pass.
    """
    places = torch.from_numpy((np.polynomial.legendre.leggauss(nodes)[0] + 1) / 2).to(x)
    with torch.no_grad():
        own = logits(x).argmax(1)
    way = (x - start)[:, None]
    points, labels = (
        (start + places.reshape(1, -1, *[1] * (x.ndim - 1)) * way).flatten(0, 1),
        own.repeat_interleave(nodes)[:, None],
    )
    try:
        parts = zip(points.split(at_once), labels.split(at_once), strict=True)
        slope = torch.cat([_slope(logits, part, label) for part, label in parts])
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:  # it ran without gradients a moment ago
        raise UsageError(f"the model cannot be differentiated: {str(error).partition(chr(10))[0][:200]}") from error
    return (way * slope.reshape(len(x), nodes, *x.shape[1:])).flatten(2)


def _slope(logits: Callable[[Tensor], Tensor], points: Tensor, label: Tensor) -> Tensor:
    points = points.detach().requires_grad_(True)
    chosen = logits(points).gather(1, label).sum()
    if not chosen.requires_grad:
        raise UsageError("the model has no gradient")
    (slope,) = torch.autograd.grad(chosen, points)
    return slope


def sketched(values: Tensor, size: int) -> Tensor:
    """Values (…, d) added up with random signs in ``size`` random places, the same for every call; as they are if fewer."""
    d = values.shape[-1]
    if not 0 < size < d:
        return values
    mixed = _mixed(np.arange(1, d + 1, dtype=np.uint64))
    place = torch.from_numpy((mixed % np.uint64(size)).astype(np.int64)).to(values.device)
    sign = torch.from_numpy(np.where(mixed >> np.uint64(63), 1.0, -1.0)).to(values)
    return torch.zeros(*values.shape[:-1], size, device=values.device, dtype=values.dtype).index_add_(-1, place, values * sign)


def _mixed(numbers: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """64 random-looking bits for each number (SplitMix64): a generator's stream may change with the version of NumPy."""
    z = numbers * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def encode(spec: InputSpec, x: Tensor) -> Tensor:
    """``InputSpec.encode`` for canonical values as float32, (n, H, W, C) in 0…255 or (n, d), with gradients.

    Where the model takes uint8 it gets the same numbers as float32, for whole numbers have no gradient.
    """
    dtype = torch.float32 if spec.dtype == "uint8" else getattr(torch, spec.dtype)
    if x.ndim == 2:
        return x.to(dtype)
    flat = len(spec.shape) == 1
    if not flat:
        height, width, channels = spec.shape
        nchw = x.permute(0, 3, 1, 2)
        if x.shape[1:3] != (height, width):
            nchw = functional.interpolate(nchw, (height, width), mode="bilinear")
        x = nchw.expand(-1, channels, -1, -1).permute(0, 2, 3, 1)
    x = x.flip(-1) if spec.channels == "BGR" else x
    if spec.dtype != "uint8":
        x = (x * spec.scale - torch.tensor(spec.mean or (0.0,)).to(x)) / torch.tensor(spec.std or (1.0,)).to(x)
    x = x.flatten(1) if flat else x.permute(0, 3, 1, 2) if spec.layout == "NCHW" else x
    return x.contiguous().to(dtype)


def _canonical(queries: Queries, device: torch.device) -> Tensor:
    return torch.tensor(queries, dtype=torch.float32, device=device)


def _scores(output: Any, n: int, classes: int | None) -> Tensor:
    """The rows of class scores in what a program returned: of several, those with as many classes as there are."""
    parts = output.values() if isinstance(output, Mapping) else output if isinstance(output, tuple | list) else [output]
    rows = [part for part in parts if isinstance(part, Tensor) and part.is_floating_point() and part.ndim == 2 and len(part) == n]
    found = next((part for part in rows if part.shape[1] == classes), rows[0] if rows else None)
    if found is None or found.shape[1] < 2:
        raise UsageError("the model gives no row of class scores")
    return found


def _are_probabilities(scores: Tensor) -> bool:
    return bool((scores.min() >= 0) and ((scores.sum(1) - 1).abs().max() < 1e-3))


INSIGHTS: Mapping[str, Callable[..., Insight]] = MappingProxyType({"gradients": gradients, "layers": layers})
