"""How close training a zoo's networks comes to its limit: bare forward and backward passes of the same batches.

    python benchmarks/training.py

One thread, CPU seconds, so that a busy machine tells about the same. Prints one line a network: milliseconds a batch of 128
images of the fixtures, and the ratio.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

from onnxaudit.zoo.architectures import ARCHITECTURES
from onnxaudit.zoo.training import Recipe, build, fit, to_pixels

DATA = Path(__file__).resolve().parent.parent / "fixtures/fashion/train.npz"
BATCH = 128
ROUNDS = 5


def milliseconds(run: Callable[[], object], batches: int) -> float:
    """CPU milliseconds a batch, the median of a few rounds."""
    found = []
    for _ in range(ROUNDS):
        started = time.process_time()
        run()
        found.append((time.process_time() - started) / batches * 1e3)
    return statistics.median(found)


def main() -> None:
    torch.set_num_threads(1)
    with np.load(DATA) as arrays:
        x, y = to_pixels(arrays["x"][:1280]), torch.from_numpy(arrays["y"][:1280])
    print(f"{'network':10}  {'training':>8}  {'bare':>6}  ratio")
    for arch in ARCHITECTURES:
        recipe = Recipe(arch=arch, epochs=1, batch=BATCH)
        bare = build(recipe, (28, 28, 1), 10).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        bare.train()
        batches = [
            (part.contiguous(memory_format=torch.channels_last), labels)
            for part, labels in zip(x.split(BATCH), y.split(BATCH), strict=True)
        ]

        def passes(network: torch.nn.Module = bare, batches: list[tuple[torch.Tensor, torch.Tensor]] = batches) -> None:
            for part, labels in batches:
                functional.cross_entropy(network(part), labels).backward()

        def train(recipe: Recipe = recipe) -> None:
            fit(build(recipe, (28, 28, 1), 10), x, y, recipe)

        passes()
        limit, ours = milliseconds(passes, len(batches)), milliseconds(train, len(batches))
        print(f"{arch:10}  {ours:8.1f}  {limit:6.1f}  {ours / limit:5.2f}", flush=True)


if __name__ == "__main__":
    main()
