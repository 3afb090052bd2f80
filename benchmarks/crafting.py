"""What batching buys in crafting: 100 IPGuard points at once, against one image at a time.

    python benchmarks/crafting.py [--images 10]

All walk the same starts to the same targets on the same victim, with the same margin, iteration cap and stop rule per point.

- batched: ``boundary_points`` with its defaults (Adam step of one grey level, the victim sees 8-bit images).
- as published: one image at a time, ``torch.optim.Adam`` with the paper's step of 0.001, in floats.
- same step: one image at a time with our step and our rounding, so that only the batching differs.

One at a time is timed on ``--images`` of the points, on one thread, which is its fastest setting. "bare" is the time of bare
forward and backward passes over as many images as the batched walk shows to the victim, in full batches: the machine's limit.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from onnxaudit.craft.data import Data, load_data
from onnxaudit.craft.sample import Material
from onnxaudit.craft.samplers.boundary import GREY_LEVEL, boundary_loss, boundary_points
from onnxaudit.craft.victim import Victim, open_victim
from onnxaudit.suspect import InputSpec
from onnxaudit.zoo.training import Recipe, build, fit, to_pixels

FIXTURES = Path(__file__).resolve().parent.parent / "fixtures"
POINTS, K, ITERATIONS = 100, 4.0, 1000


def one_at_a_time(victim: Victim, x: Tensor, target: Tensor, images: int, lr: float, *, rounded: bool) -> tuple[float, float]:
    """Seconds for all points, extrapolated from the first ``images``, and the mean number of steps of one."""
    steps = 0
    started = time.perf_counter()
    for index in range(images):
        point = x[index : index + 1].clone().requires_grad_()
        optimiser = torch.optim.Adam([point], lr=lr)
        with torch.no_grad():
            source = victim.logits(point).argmax(1)
        for _ in range(ITERATIONS):
            shown = point + (point.mul(255).round().div(255) - point).detach() if rounded else point
            loss = boundary_loss(victim.logits(shown), source, target[index : index + 1], K).sum()
            steps += 1
            if loss.item() <= 0:
                break
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            with torch.no_grad():
                point.clamp_(0, 1)
    return (time.perf_counter() - started) * len(x) / images, steps / images


def bare_passes(victim: Victim, x: Tensor, images: float) -> float:
    """Seconds of bare forward and backward passes over so many images, in batches of all of ``x``."""
    seconds = []
    for _ in range(8):
        started = time.perf_counter()
        shown = x.detach().requires_grad_()
        torch.autograd.grad(victim.program(shown).sum(), shown)
        seconds.append(time.perf_counter() - started)
    return float(np.median(seconds)) * images / len(x)


def measure(name: str, victim: Victim, data: Data, images: int) -> None:
    """Print the figures of one victim."""
    x = victim.pixels(data.x[:POINTS])
    target = victim.logits(x).argmin(1)
    batched = []
    for _ in range(4):  # the first one warms up
        started = time.perf_counter()
        _, converged = boundary_points(Material(victim, data), x, target, k=K, lr=GREY_LEVEL, iterations=ITERATIONS)
        batched.append(time.perf_counter() - started)
    ours = float(np.median(batched[1:]))
    torch.set_num_threads(1)
    one_at_a_time(victim, x, target, 2, GREY_LEVEL, rounded=True)
    same, steps = one_at_a_time(victim, x, target, images, GREY_LEVEL, rounded=True)
    published, more = one_at_a_time(victim, x, target, images, 0.001, rounded=False)
    bare = bare_passes(victim, x, steps * len(x))
    print(
        f"{name}: {int(converged.sum())} of {POINTS} points converged, batched {ours:.2f} s; bare passes on one core {bare:.2f} s"
    )
    print(f"  one at a time, as published: {published:6.1f} s ({more:.0f} steps a point), ratio {published / ours:.1f}")
    print(f"  one at a time, same step:    {same:6.1f} s ({steps:.0f} steps a point), ratio {same / ours:.1f}")


def small_cnn(data: Data) -> Victim:
    """A network of two convolutions and 12,000 weights, trained for a few seconds."""
    assert data.y is not None
    recipe = Recipe(arch="lenet", width=0.5, epochs=6, seed=1)
    network = fit(build(recipe, data.shape, 10), to_pixels(data.x), torch.from_numpy(data.y), recipe).requires_grad_(False)
    return Victim(network, InputSpec(data.shape), torch.device("cpu"), "module", "", "lenet").probed()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--images", type=int, default=10)
    images = parser.parse_args().images
    data = load_data(FIXTURES / "fashion/train.npz")
    measure("small CNN (lenet)", small_cnn(data), data, images)
    victim = open_victim(FIXTURES / "zoo/victim.pt", InputSpec(data.shape), device="cpu").probed()
    measure("the fixtures' victim (resnet)", victim, data, images)


if __name__ == "__main__":
    main()
