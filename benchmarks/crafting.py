"""What batching buys in crafting: 100 IPGuard points at once, against one image at a time.

    python benchmarks/crafting.py [--images 10]

Both walk the same starts to the same targets with Adam, the same margin, step, iteration cap and stop rule, on the same victim.
One at a time is the loop of the published codes: ``torch.optim.Adam`` on one image (timed on ``--images`` of them, for both
thread settings, the faster counts). Also printed: seconds of bare forward and backward passes over the same image-steps.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from onnxaudit.craft.boundary import GREY_LEVEL, boundary_loss, boundary_points
from onnxaudit.craft.data import load_data
from onnxaudit.craft.victim import Victim, open_victim
from onnxaudit.suspect import InputSpec
from onnxaudit.zoo.training import Recipe, build

FIXTURES = Path(__file__).resolve().parent.parent / "fixtures"
POINTS, K, ITERATIONS = 100, 5.0, 1000


def one_at_a_time(victim: Victim, x: Tensor, target: Tensor, images: int, lr: float) -> tuple[float, int]:
    """Seconds for all points, extrapolated from the first ``images``, and the steps that those took."""
    steps = 0
    started = time.perf_counter()
    for index in range(images):
        point = x[index : index + 1].clone().requires_grad_()
        optimiser = torch.optim.Adam([point], lr=lr)
        with torch.no_grad():
            source = victim.logits(point).argmax(1)
        for _ in range(ITERATIONS):
            rounded = point + (point.mul(255).round().div(255) - point).detach()
            loss = boundary_loss(victim.logits(rounded), source, target[index : index + 1], K).sum()
            steps += 1
            if loss.item() <= 0:
                break
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            with torch.no_grad():
                point.clamp_(0, 1)
    return (time.perf_counter() - started) * len(x) / images, steps


def measure(name: str, victim: Victim, x: Tensor, images: int) -> None:
    """Print the figures of one victim."""
    target = victim.logits(x).argmin(1)
    batched = []
    for _ in range(4):  # the first one warms up
        started = time.perf_counter()
        _, converged = boundary_points(victim, x, target, k=K, lr=GREY_LEVEL, iterations=ITERATIONS)
        batched.append(time.perf_counter() - started)
    threads = torch.get_num_threads()
    single = []
    for count in {1, threads}:
        torch.set_num_threads(count)
        one_at_a_time(victim, x, target, 2, GREY_LEVEL)
        single.append(one_at_a_time(victim, x, target, images, GREY_LEVEL))
    torch.set_num_threads(threads)
    seconds, steps = min(single)
    ours = float(np.median(batched[1:]))
    print(
        f"{name:8} {POINTS} points ({int(converged.sum())} converged): batched {ours:.2f} s, one at a time {seconds:.1f} s "
        f"({steps / images:.0f} steps a point), ratio {seconds / ours:.1f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=10)
    images = parser.parse_args().images
    data = load_data(FIXTURES / "fashion/train.npz")
    spec = InputSpec(data.shape)
    fixture = open_victim(FIXTURES / "zoo/victim.pt", spec, device="cpu").probed()
    x = fixture.pixels(data.x[:POINTS])
    measure("resnet", fixture, x, images)
    for arch in ("lenet", "vgg"):
        network = build(Recipe(arch), data.shape, 10).eval().requires_grad_(False)
        with torch.no_grad():  # untrained logits are tiny; scale them to those of a trained network
            list(network.modules())[-1].weight.mul_(30)  # type: ignore[operator]
        measure(arch, Victim(network, spec, torch.device("cpu"), "", "", arch).probed(), x, images)


if __name__ == "__main__":
    main()
