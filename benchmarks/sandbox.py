"""What --sandbox costs: opening, and asking, here and in the confined process: python benchmarks/sandbox.py [ROUNDS].

Answers have to be the same to the last bit. The two ways take turns, so that a busy machine slows both; medians are shown.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np

from onnxaudit.registry import open_suspect
from onnxaudit.sandbox.limits import Limits
from onnxaudit.sandbox.suspect import open_confined
from onnxaudit.suspect import InputSpec, Queries, Suspect, Target

ZOO = Path(__file__).resolve().parent.parent / "fixtures/zoo"
MODELS = (("ONNX", ZOO / "suspects/copy.onnx"), ("TorchScript", ZOO / "victim.pt"))
QUERIES = 2000


def timed(opened: Callable[[], Suspect], queries: Queries) -> tuple[float, float, bytes]:
    """Seconds to open, milliseconds a query, and the answers' bytes."""
    start = time.perf_counter()
    with opened() as suspect:
        ready = time.perf_counter()
        answers = suspect.ask(queries)
        done = time.perf_counter()
    assert answers.scores is not None
    return ready - start, (done - ready) / len(queries) * 1e3, answers.classes.tobytes() + answers.scores.tobytes()


def main() -> None:
    """Print a table."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    queries = np.random.default_rng(0).integers(0, 256, (QUERIES, 28, 28, 1), dtype=np.uint8)
    print(f"{'format':<12} {'open here':>10} {'confined':>10} {'a query here':>13} {'confined':>10}   answers")
    for name, path in MODELS:
        target = Target(str(path), InputSpec((28, 28, 1)), 10, device="cpu")
        ways: tuple[Callable[[], Suspect], ...] = (
            lambda target=target: open_suspect(target),  # type: ignore[misc]
            lambda target=target: open_confined(target, Limits()),  # type: ignore[misc]
        )
        timed(ways[0], queries[:10])  # imports what both need
        taken = [[timed(way, queries) for way in ways] for _ in range(rounds)]
        opening = [median(run[way][0] for run in taken) for way in range(2)]
        asking = [median(run[way][1] for run in taken) for way in range(2)]
        same = "the same bytes" if len({run[2] for pair in taken for run in pair}) == 1 else "DIFFERENT"
        print(f"{name:<12} {opening[0]:>8.3f} s {opening[1]:>8.3f} s {asking[0]:>10.3f} ms {asking[1]:>7.3f} ms   {same}")


if __name__ == "__main__":
    main()
