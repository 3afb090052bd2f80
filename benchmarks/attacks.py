"""Gradient attacks in whole batches, against foolbox, ART and one image at a time.

    python benchmarks/attacks.py [--images 50] [--rounds 5] [--only deepfool,pgd] [--victim resnet] [--device cpu]

All attack the same images of one victim, with the same steps, box and stop rule, in one batch, on one thread. The victim is
that of the fixtures, a residual network, or, with ``--victim lenet``, a small one trained for a few seconds. Seconds are those
of the processor, so that a busy machine counts little, and on a GPU those of the clock: medians over ``--rounds``, in which all
take turns. "in floats" is what the libraries do; "8 bits" is what ``craft`` does: the victim sees rounded images in every
step. "alone" gives ours one image at a time, and is timed on the first ten. Bare passes are nothing but the forward and backward
passes that ours made, with the same batch sizes, one after the other.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from onnxaudit.craft.data import Data, load_data
from onnxaudit.craft.samplers.adversarial import climb
from onnxaudit.craft.samplers.boundary import GREY_LEVEL, walk_to_boundary
from onnxaudit.craft.samplers.carlini import carlini
from onnxaudit.craft.samplers.deepfool import deepfool
from onnxaudit.craft.samplers.universal import universal_perturbation
from onnxaudit.craft.space import Space
from onnxaudit.craft.victim import Victim, open_victim
from onnxaudit.suspect import InputSpec
from onnxaudit.zoo.training import Recipe, build, fit, to_pixels

FIXTURES = Path(__file__).resolve().parent.parent / "fixtures"
ALONE, PATIENCE = 10, 20.0
RADIUS, PACE, STEPS = 8 / 255, 8 / 255 / 30, 40
NORM, PASSES = 2.0, 5
SEARCHES, DESCENT, CONSTANT = 9, 100, 0.1  # ART doubles the constant where the others take ten times it, so 0.001 is too little


class Recorded(nn.Module):
    """A program that writes down its passes: how many images went forward, and how often back; -1 where none could."""

    def __init__(self, program: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.program = program
        self.passes: list[list[int]] = []

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.program(x)
        entry = [len(x), 0 if scores.requires_grad else -1]
        self.passes.append(entry)
        if scores.requires_grad:

            def count(gradient: Tensor) -> None:
                entry[1] += 1

            scores.register_hook(count)
        return scores


@dataclass(frozen=True, slots=True, eq=False)
class Contest:
    """An attack: ours, by the name of its setting, and those of the libraries. success: which points are what they should be.
    alone: whether it can be done for one image at a time.

    Ours take a victim, images and targets (n,), the others images and targets; all give points.
    """

    name: str
    ours: dict[str, Callable[[Victim, Tensor, Tensor], Tensor]]
    success: Callable[[Victim, Tensor, Tensor, Tensor], Tensor]
    theirs: dict[str, Callable[[Tensor, Tensor], Tensor]] = field(default_factory=dict)
    alone: bool = True


def crossed(victim: Victim, x: Tensor, points: Tensor, target: Tensor) -> Tensor:
    """Points whose label is not that of their start, (n,) bool."""
    return victim.predict(points).argmax(1) != victim.predict(x).argmax(1)


def arrived(victim: Victim, x: Tensor, points: Tensor, target: Tensor) -> Tensor:
    """Points that have become their target, (n,) bool."""
    return victim.predict(points).argmax(1) == target


@dataclass(frozen=True, slots=True, eq=False)
class Libraries:
    """foolbox and ART, each with the victim as one of its models."""

    foolbox: Any
    model: Any
    evasion: Any
    network: Any
    batch: int


def libraries(victim: Victim, shape: tuple[int, ...], batch: int) -> Libraries:
    """Both libraries around the victim's own program, which is compiled and has its batch norms folded."""
    module = Recorded(victim.logits).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        foolbox = import_module("foolbox")
        evasion, classification = import_module("art.attacks.evasion"), import_module("art.estimators.classification")
    kind = "gpu" if victim.device.type == "cuda" else "cpu"
    network = classification.PyTorchClassifier(
        module, nn.CrossEntropyLoss(), shape, victim.num_classes, clip_values=(0, 1), device_type=kind
    )
    return Libraries(foolbox, foolbox.PyTorchModel(module, bounds=(0, 1), device=victim.device), evasion, network, batch)


def through_art(attack: Any, x: Tensor, labels: Tensor | None = None) -> Tensor:
    """Points of an attack of ART."""
    return torch.from_numpy(attack.generate(x.cpu().numpy(), None if labels is None else labels.cpu().numpy())).to(x.device)


def ipguard(grid: Space, floats: Space, there: Libraries) -> Contest:
    """IPGuard's boundary points, margin 4; neither library has them."""

    def ours(victim: Victim, x: Tensor, target: Tensor) -> Tensor:
        return walk_to_boundary(victim, grid, x, target, k=4.0, lr=GREY_LEVEL, iterations=1000)[0]

    return Contest("IPGuard", {"ours, 8 bits": ours}, arrived)


def deepfools(grid: Space, floats: Space, there: Libraries) -> Contest:
    """DeepFool: overshoot 0.02, 50 iterations, 10 classes, inside the box. ART's leaves the box until the end."""

    def ours(clip: bool) -> Callable[[Victim, Tensor, Tensor], Tensor]:
        def attack(victim: Victim, x: Tensor, target: Tensor) -> Tensor:
            return x + deepfool(victim, floats, x, overshoot=0.02, iterations=50, classes=10, clip=clip)[0]

        return attack

    def foolbox(x: Tensor, target: Tensor) -> Tensor:
        attack = there.foolbox.attacks.L2DeepFoolAttack(overshoot=0.02, steps=50, candidates=10)
        points: Tensor = attack(there.model, x, there.model(x).argmax(1), epsilons=None)[1]
        return points

    def art(x: Tensor, target: Tensor) -> Tensor:
        return through_art(there.evasion.DeepFool(there.network, 50, 0.02, 10, there.batch, verbose=False), x)

    return Contest(
        "DeepFool", {"ours, in floats": ours(True), "ours, box ignored": ours(False)}, crossed, {"foolbox": foolbox, "ART": art}
    )


def carlinis(grid: Space, floats: Space, there: Libraries) -> Contest:
    """CW-L2 to the least likely class: margin 0, 9 searches of 100 steps of 0.1, constant from 0.1."""

    def ours(space: Space) -> Callable[[Victim, Tensor, Tensor], Tensor]:
        return lambda victim, x, target: carlini(
            victim, space, x, target, k=0.0, lr=0.1, iterations=DESCENT, searches=SEARCHES, constant=CONSTANT
        )[0]

    def foolbox(x: Tensor, target: Tensor) -> Tensor:
        attack = there.foolbox.attacks.L2CarliniWagnerAttack(
            binary_search_steps=SEARCHES, steps=DESCENT, stepsize=0.1, initial_const=CONSTANT
        )
        points: Tensor = attack(there.model, x, there.foolbox.criteria.TargetedMisclassification(target), epsilons=None)[1]
        return points

    def art(x: Tensor, target: Tensor) -> Tensor:
        attack = there.evasion.CarliniL2Method(
            there.network,
            confidence=0.0,
            targeted=True,
            learning_rate=0.1,
            binary_search_steps=SEARCHES,
            max_iter=DESCENT,
            initial_const=CONSTANT,
            batch_size=there.batch,
            verbose=False,
        )
        return through_art(attack, x, target)

    return Contest(
        "CW-L2", {"ours, in floats": ours(floats), "ours, 8 bits": ours(grid)}, arrived, {"foolbox": foolbox, "ART": art}
    )


def pgds(grid: Space, floats: Space, there: Libraries) -> Contest:
    """Untargeted L-infinity PGD: radius 8/255, 40 steps of a thirtieth of it, from noise. "early" stops each point at success."""

    def ours(space: Space, early: bool) -> Callable[[Victim, Tensor, Tensor], Tensor]:
        def attack(victim: Victim, x: Tensor, target: Tensor) -> Tensor:
            rng = np.random.default_rng(0)
            noise = torch.from_numpy(rng.uniform(-RADIUS, RADIUS, x.shape).astype(np.float32)).to(x.device)
            labels = victim.predict(x).argmax(1)
            return climb(victim, space, RADIUS * space.width, PACE, STEPS, early, x, labels, noise)[0]

        return attack

    def foolbox(x: Tensor, target: Tensor) -> Tensor:
        attack = there.foolbox.attacks.LinfPGD(steps=STEPS, abs_stepsize=PACE)
        points: Tensor = attack(there.model, x, there.model(x).argmax(1), epsilons=RADIUS)[1]
        return points

    def art(x: Tensor, target: Tensor) -> Tensor:
        attack = there.evasion.ProjectedGradientDescentPyTorch(
            there.network, np.inf, RADIUS, PACE, max_iter=STEPS, num_random_init=1, batch_size=there.batch, verbose=False
        )
        return through_art(attack, x)

    settings = {
        "ours, in floats": ours(floats, False),
        "ours, 8 bits": ours(grid, False),
        "ours, 8 bits, early": ours(grid, True),
    }
    return Contest("PGD", settings, crossed, {"foolbox": foolbox, "ART": art})


def universals(grid: Space, floats: Space, there: Libraries) -> Contest:
    """One perturbation of L2 norm 2 for all images: 5 passes, or until 4 of 5 are fooled, with DeepFool of 10 steps."""

    def ours(space: Space, **options: Any) -> Callable[[Victim, Tensor, Tensor], Tensor]:
        def attack(victim: Victim, x: Tensor, target: Tensor) -> Tensor:
            v = universal_perturbation(victim, space, x, NORM, np.random.default_rng(0), passes=PASSES, **options)
            return space.snapped(x + v)

        return attack

    def art(x: Tensor, target: Tensor) -> Tensor:
        inner = {"max_iter": 10, "epsilon": 0.02, "nb_grads": 10, "verbose": False}
        return through_art(
            there.evasion.UniversalPerturbation(
                there.network, attacker_params=inner, max_iter=PASSES, eps=NORM, norm=2, batch_size=there.batch, verbose=False
            ),
            x,
        )

    settings = {
        "ours, in floats": ours(floats),
        "ours, 8 bits": ours(grid),
        "ours, 8 bits, batch=1": ours(grid, batch=1),
        "ours, 8 bits, gradient": ours(grid, algorithm="gradient"),
    }
    return Contest("UAP", settings, crossed, {"ART": art}, alone=False)


CONTESTS = {"ipguard": ipguard, "deepfool": deepfools, "cw-l2": carlinis, "pgd": pgds, "uap": universals}


def race(device: torch.device, runs: dict[str, Callable[[], Tensor]], rounds: int) -> dict[str, tuple[float, Tensor]]:
    """Median seconds of each, and what it gave. They take turns; the first round warms up, and is all that the slow ones get."""

    def now() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize()
            return time.perf_counter()
        return time.process_time()

    seconds: dict[str, list[float]] = {name: [] for name in runs}
    results: dict[str, Tensor] = {}
    for turn in range(rounds + 1):
        for name, run in runs.items():
            if turn and seconds[name][0] > PATIENCE:
                continue
            started = now()
            results[name] = run()
            seconds[name].append(now() - started)
    return {name: (float(np.median(each[1:] or each)), results[name]) for name, each in seconds.items()}


def bare(program: Callable[[Tensor], Tensor], x: Tensor, passes: list[list[int]]) -> Tensor:
    """The passes that were written down, and nothing else."""
    more = x.repeat(-(-max(images for images, _ in passes) // len(x)), 1, 1, 1)
    for images, backward in passes:
        shown = more[:images].detach()
        with torch.set_grad_enabled(backward >= 0):
            scores = program(shown.requires_grad_(backward >= 0))
        for left in range(backward - 1, -1, -1):
            torch.autograd.grad(scores, shown, torch.ones_like(scores), retain_graph=left > 0)
    return x


def hold(contest: Contest, victim: Victim, x: Tensor, target: Tensor, rounds: int) -> None:
    """Print the rows of one attack."""
    runs: dict[str, Callable[[], Tensor]] = {}
    for name, ours in contest.ours.items():
        recorded = Recorded(victim.program)
        ours(dataclasses.replace(victim, program=recorded), x, target)
        runs[name] = partial(ours, victim, x, target)
        runs[f"{name}, bare"] = partial(bare, victim.program, x, recorded.passes)
    first, ours = next(iter(contest.ours.items()))
    pieces = list(zip(x[:ALONE].split(1), target[:ALONE].split(1), strict=True))
    if contest.alone:
        runs[f"{first}, alone"] = lambda: torch.cat([ours(victim, *piece) for piece in pieces])
    runs |= {name: partial(attack, x, target) for name, attack in contest.theirs.items()}
    times = race(victim.device, runs, rounds)
    print(f"{contest.name}, {len(x)} images")
    for name, (seconds, points) in times.items():
        if name.endswith(", bare"):
            continue
        note = f"{seconds * len(x) / len(points) / times[first][0]:5.1f} times as long"
        if name in contest.ours:
            note += f", {seconds / times[f'{name}, bare'][0]:.2f} times its bare passes"
        start = x[: len(points)]
        success = contest.success(victim, start, points, target[: len(points)])
        norm = (points - start).flatten(1).norm(dim=1)[success].mean()
        print(
            f"  {name:22}{1000 * seconds / len(points):8.2f} ms an image, success {success.float().mean():6.1%}, "
            f"mean L2 {norm:6.3f}, {note}",
            flush=True,
        )


def small(data: Data) -> Victim:
    """A network of two convolutions and 12,000 weights, compiled like the other one."""
    assert data.y is not None
    recipe = Recipe(arch="lenet", width=0.5, epochs=6, seed=1)
    network = fit(build(recipe, data.shape, 10), to_pixels(data.x), torch.from_numpy(data.y), recipe).requires_grad_(False)
    program = torch.jit.freeze(torch.jit.trace(network.eval(), to_pixels(data.x[:2])))
    return Victim(program, InputSpec(data.shape), torch.device("cpu"), "module", "", "lenet").probed()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--images", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", default=",".join(CONTESTS), help="names, separated by commas")
    parser.add_argument("--victim", choices=("resnet", "lenet"), default="resnet")
    parser.add_argument("--device", default="cpu", help="for resnet: cpu or cuda")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    data = load_data(FIXTURES / "fashion/train.npz")
    if options.victim == "lenet":
        victim = small(data)
    else:
        victim = open_victim(FIXTURES / "zoo/victim.pt", InputSpec(data.shape), device=options.device).probed()
    x = victim.pixels(data.x[: options.images])
    target = victim.predict(x).argmin(1)
    grid = Space(torch.zeros_like(x[:1]), torch.ones_like(x[:1]), True)
    there = libraries(victim, tuple(x.shape[1:]), len(x))
    for name in options.only.split(","):
        hold(CONTESTS[name](grid, dataclasses.replace(grid, image=False), there), victim, x, target, options.rounds)


if __name__ == "__main__":
    main()
