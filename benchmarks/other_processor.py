"""How far INT8 answers move from one processor to another.

    python benchmarks/other_processor.py host.npz
    qemu-x86_64 -cpu Haswell python benchmarks/other_processor.py haswell.npz
    python benchmarks/other_processor.py --between host.npz haswell.npz [-o differences.npz]

The first two ask the shipped INT8 copies of the victim 100 test images on the processor at hand, or an emulated one, one thread.
What is printed of the processor is what Linux says of it, also where it is emulated.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from onnxaudit.processor import int8_instructions
from onnxaudit.registry import open_suspect
from onnxaudit.suspect import InputSpec, Target

FIXTURES = Path(__file__).resolve().parent.parent / "fixtures"
NAMES = ("int8-static", "int8-dynamic")
IMAGES, BATCH, MOVED = 100, 10, 1e-3


def ask(path: Path) -> None:
    """Write what the files answer here."""
    with np.load(FIXTURES / "fashion/test.npz") as data:
        images = data["x"][:IMAGES]
    said = {}
    for name in NAMES:
        target = Target(str(FIXTURES / f"zoo/suspects/{name}.onnx"), InputSpec((28, 28, 1)), 10, "cpu", options={"threads": 1})
        with open_suspect(target) as suspect:
            said[name] = np.concatenate([suspect.ask(images[i : i + BATCH]).dense() for i in range(0, IMAGES, BATCH)])
    np.savez(path, **said)  # type: ignore[arg-type]  # NumPy's own hints mix up a keyword
    print(int8_instructions())


def between(one: Path, two: Path, output: Path | None) -> None:
    """Print how far answers are apart, and keep by how much."""
    with np.load(one) as first, np.load(two) as second:
        answers = {name: (first[name], second[name]) for name in NAMES}
    for name, (here, there) in answers.items():
        apart = np.abs(there - here)
        labels = float((here.argmax(1) != there.argmax(1)).mean())
        print(
            f"{name}: {(apart > MOVED).any(1).mean():.0%} of images move, mean {apart.mean():.3f}, largest {apart.max():.2f}, "
            f"labels {labels:.0%}; logits are {np.abs(here).mean():.1f}"
        )
    if output:
        np.savez_compressed(output, **{name: (there - here).astype(np.float16) for name, (here, there) in answers.items()})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("answers", type=Path, nargs="?")
    parser.add_argument("--between", type=Path, nargs=2)
    parser.add_argument("-o", "--output", type=Path)
    given = parser.parse_args()
    if given.between:
        one, two = given.between
        between(one, two, given.output)
    elif given.answers:
        ask(given.answers)
    else:
        parser.error("give a file to write, or --between two")


if __name__ == "__main__":
    main()
