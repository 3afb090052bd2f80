"""What a check costs over bare ONNX Runtime: the whole process, and asking inside it.

    python benchmarks/checking.py [--runs 15]

Whole process: ``onnxaudit check`` against a script that imports numpy and onnxruntime and asks the same queries in the same
batches, run in turn. Inside: ``interview`` against bare ``session.run`` on encoded batches, in turn. Medians and their ratio.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime

from onnxaudit.bundle import load
from onnxaudit.interview import BATCH, interview
from onnxaudit.registry import open_suspect
from onnxaudit.suspect import Target

FIXTURES = Path(__file__).resolve().parent.parent / "fixtures"
BARE = """
import sys
import numpy as np
import onnxruntime
x = np.load(sys.argv[2])
session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
for i in range(0, len(x), {batch}):
    session.run(None, {{"input": x[i : i + {batch}]}})
"""


def seconds(action: Callable[[], object]) -> float:
    """Wall time of one call."""
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


def in_turn(first: Callable[[], object], second: Callable[[], object], runs: int, block: int = 1) -> tuple[float, float]:
    """Median seconds of two actions, run in alternating blocks, each after a warm-up.

    Blocks keep the threads of one session, which spin for a while after a run, from disturbing the other.
    """
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(runs):
        for action, kept in zip((first, second), times, strict=True):
            action()
            kept += [seconds(action) for _ in range(block)]
    return statistics.median(times[0]), statistics.median(times[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=15)
    runs = parser.parse_args().runs
    suspect = FIXTURES / "zoo/suspects/copy.onnx"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        craft = ["craft", str(FIXTURES / "zoo/victim.pt"), "--data", str(FIXTURES / "fashion/train.npz"), "-o", "v.oab"]
        program = [sys.executable, "-m", "onnxaudit"]
        references = ["--references", str(FIXTURES / "zoo/references")]
        subprocess.run([*program, *craft, *references], cwd=folder, check=True, capture_output=True)
        bundle = load(folder / "v.oab")
        encoded = bundle.manifest.input.encode(bundle.queries)
        np.save(folder / "x.npy", encoded)
        (folder / "bare.py").write_text(BARE.format(batch=BATCH))
        bare = [sys.executable, "bare.py", str(suspect), "x.npy"]
        check = [*program, "check", str(suspect), "--bundle", "v.oab"]
        ours, theirs = in_turn(
            lambda: subprocess.run(check, cwd=folder, check=False, capture_output=True),
            lambda: subprocess.run(bare, cwd=folder, check=True, capture_output=True),
            runs,
        )
        print(f"whole process: check {ours:.3f} s, bare script {theirs:.3f} s, ratio {ours / theirs:.2f}")

        session = onnxruntime.InferenceSession(str(suspect), providers=["CPUExecutionProvider"])

        def run_bare() -> None:
            for start in range(0, len(encoded), BATCH):
                session.run(None, {"input": encoded[start : start + BATCH]})

        target = Target(str(suspect), bundle.manifest.input, bundle.manifest.victim.num_classes)
        with open_suspect(target) as opened:
            asking, running = in_turn(lambda: interview(opened, bundle.queries), run_bare, runs, block=20)
        print(f"inside: asking {1e3 * asking:.2f} ms, bare session.run {1e3 * running:.2f} ms, ratio {asking / running:.2f}")


if __name__ == "__main__":
    main()
