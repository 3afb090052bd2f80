"""How often --autofix finds the wiring of a suspect that is wired wrong, and what it costs.

    python benchmarks/wiring.py victim.oab fixtures/zoo [--access label] [--models N]

Models of the fixture zoo, derived and independent, get a front and a back by graph surgery: they then want their input in another
scale, layout, channel order or size, and give their labels in another order, and say nothing of it. Each is checked as a user
would, first without --autofix, then with it, and once wired by hand as it is meant. Prints, for each way of being wired, how many
models pass the control queries without, with --autofix and by hand, how many got exactly the wiring that was meant, how many the
same finding as by hand, and the queries of the search; then what became of derived and of independent models.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from onnxaudit.audit.checking import CheckOptions, check
from onnxaudit.audit.progress import Silent
from onnxaudit.audit.rewired import Rewired
from onnxaudit.bundle import QueryBundle, load
from onnxaudit.registry import open_suspect, reduce_access
from onnxaudit.report.model import Report
from onnxaudit.report.text import table
from onnxaudit.suspect import InputSpec, Suspect, Target
from onnxaudit.wiring.conventions import SCALINGS, Wiring

SIZE = 28
"""Height and width of what the zoo's models take; one grey channel in [0, 1]."""
DERIVED = ("copy", "finetune-last", "prune-60", "retrain-last", "int8-static")
INDEPENDENT = ("twin", "strong-vgg", "other-lenet", "weak-mlp", "twin-densenet")


@dataclass(frozen=True, slots=True)
class Meant:
    """How a changed model wants to be wired. labels[j]: the victim's class that its label j means; () for the same order.

    silent: its signature says nothing of height, width and channels.
    """

    name: str
    spec: InputSpec
    fit: str = ""
    labels: tuple[int, ...] = ()
    silent: bool = False


def scaled(words: str, shape: tuple[int, ...] = (SIZE, SIZE, 1), **values: Any) -> InputSpec:
    """The spec of a common scaling, by its words."""
    _, scale, mean, std = next(scaling for scaling in SCALINGS if scaling[0] == words)
    return InputSpec(shape, scale=scale, mean=mean, std=std, **values)


def ways(colour: bool) -> list[Meant]:
    """The wirings that are tried. colour: on queries with three channels, of which models see the first."""
    shuffled = tuple(np.random.default_rng(6).permutation(10).tolist())
    swapped = (0, 1, 4, 3, 2, 5, 6, 7, 8, 9)
    wide, plain = (SIZE, SIZE, 3), InputSpec((SIZE, SIZE, 1))
    if colour:
        return [
            Meant("BGR", InputSpec(wide, channels="BGR")),
            Meant("ImageNet mean and std", scaled("ImageNet mean and std", wide)),
            Meant("BGR, [0, 255]", scaled("pixels in [0, 255]", wide, channels="BGR")),
            Meant("NHWC, silent", InputSpec(wide, "NHWC"), silent=True),
            Meant("NHWC, silent, BGR, [-1, 1]", scaled("pixels in [-1, 1]", wide, layout="NHWC", channels="BGR"), silent=True),
        ]
    larger = (32, 32, 1)
    return [
        *(Meant(words, scaled(words)) for words, _, mean, _ in SCALINGS[1:] if len(mean) < 3),
        Meant("inverted", dataclasses.replace(plain, scale=-1 / 255, mean=(-1.0,))),
        Meant("rows and columns exchanged", plain, "turned"),
        Meant("NHWC, silent", InputSpec((SIZE, SIZE, 1), "NHWC"), silent=True),
        Meant("another label order", plain, labels=shuffled),
        Meant("two labels exchanged", plain, labels=swapped),
        Meant("32x32 padded", InputSpec(larger), "padded"),
        Meant("32x32 nearest", InputSpec(larger), "nearest"),
        Meant("32x32 resized and cropped", InputSpec(larger), "resized and cropped"),
        Meant("24x24 cropped", InputSpec((24, 24, 1)), "cropped"),
        Meant("32x32 padded, [0, 255]", scaled("pixels in [0, 255]", larger), "padded"),
        Meant("[-1, 1], another label order", scaled("pixels in [-1, 1]"), labels=shuffled),
        Meant("[0, 255], two labels exchanged", scaled("pixels in [0, 255]"), labels=swapped),
    ]


def miswired(model: onnx.ModelProto, meant: Meant) -> onnx.ModelProto:
    """The model with a front that undoes ``meant``, and a back that gives its labels another order; the original is kept."""
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    graph, spec = changed.graph, meant.spec
    inner, outer = graph.input[0].name, "given"
    height, width, channels = spec.shape
    constants: dict[str, NDArray[Any]] = {}
    nodes: list[onnx.NodeProto] = []
    last = outer

    def step(operator: str, *inputs: tuple[str, NDArray[Any]], **attributes: Any) -> None:
        nonlocal last
        place = f"front-{len(nodes)}"
        named = [f"{place}-{name}" if name else "" for name, _ in inputs]
        constants.update({f"{place}-{name}": value for name, value in inputs if name})
        nodes.append(helper.make_node(operator, [last, *named], [place], **attributes))
        last = place

    if spec.layout == "NHWC":
        step("Transpose", perm=[0, 3, 1, 2])
    seen = 2 if channels == 3 and spec.channels == "BGR" else 0
    if channels == 3:
        plane = np.zeros((1, 3, 1, 1), np.float32)
        plane[0, seen] = 1
        step("Conv", ("plane", plane))  # which refuses other numbers of channels, as a network does
    mean, std = (values[seen % len(values)] if values else plain for values, plain in ((spec.mean, 0.0), (spec.std, 1.0)))
    step("Mul", ("factor", np.array(std / spec.scale / 255, np.float32)))
    step("Add", ("offset", np.array(mean / spec.scale / 255, np.float32)))
    _undo(step, meant.fit, height)
    nodes.append(helper.make_node("Identity", [last], [inner]))
    dims: list[Any] = [channels, height, width] if spec.layout == "NCHW" else [height, width, channels]
    graph.input[0].CopyFrom(
        helper.make_tensor_value_info(outer, TensorProto.FLOAT, ["n", *(["a", "b", "c"] if meant.silent else dims)])
    )
    output = graph.output[0].name
    if meant.labels:
        constants["order"] = np.array(meant.labels)
        graph.node.append(helper.make_node("Gather", [output, "order"], ["renamed"], axis=1))
        graph.output[0].CopyFrom(helper.make_tensor_value_info("renamed", TensorProto.FLOAT, ["n", len(meant.labels)]))
    kept = list(graph.node)
    del graph.node[:]
    graph.node.extend([*nodes, *kept])
    graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in constants.items())
    del graph.value_info[:]
    onnx.checker.check_model(changed)
    return changed


def _undo(step: Any, fit: str, size: int) -> None:
    """Bring images of ``size`` back to that of the zoo's models."""
    nothing, sizes = ("", np.zeros(0)), ("sizes", np.array([1, 1, SIZE, SIZE]))
    if fit == "turned":
        step("Transpose", perm=[0, 1, 3, 2])
    elif fit == "padded":
        edge = (size - SIZE) // 2
        middle = ("starts", np.array([edge, edge])), ("ends", np.array([edge + SIZE] * 2)), ("axes", np.array([2, 3]))
        step("Slice", *middle)
    elif fit == "cropped":
        edge = (SIZE - size) // 2
        step("Pad", ("pads", np.array([0, 0, edge, edge] * 2)), mode="edge")
    elif fit == "nearest":
        source = ((np.arange(size) + 0.5) * SIZE / size).astype(int)
        first = np.searchsorted(source, np.arange(SIZE))
        step("Gather", ("rows", first), axis=2)
        step("Gather", ("columns", first), axis=3)
    elif size != SIZE:
        if fit:
            edge = (round(size * 8 / 7) - size) // 2
            step("Pad", ("pads", np.array([0, 0, edge, edge] * 2)), mode="edge")
        sizes = ("sizes", np.array([SIZE, SIZE]))
        step("Resize", nothing, nothing, sizes, mode="linear", coordinate_transformation_mode="half_pixel", axes=[2, 3])


def in_colour(bundle: QueryBundle) -> QueryBundle:
    """The bundle on images of three channels: the first is the query, the others are other queries, with other answers."""
    grey = bundle.queries
    queries = np.concatenate([grey, np.roll(grey, 7, axis=0), np.roll(grey, 13, axis=0)], axis=3).astype(np.uint8)
    return dataclasses.replace(
        bundle,
        queries=queries,
        manifest=dataclasses.replace(bundle.manifest, input=dataclasses.replace(bundle.manifest.input, shape=(SIZE, SIZE, 3))),
    )


def opened(path: Path, bundle: QueryBundle, access: str | None) -> Suspect:
    """The suspect as check opens it, where nothing is said of its input."""
    from onnxaudit.answers import parse_access

    target = Target(str(path), bundle.manifest.input, bundle.manifest.victim.num_classes, "cpu", options={"threads": 1})
    suspect = open_suspect(target)
    return suspect if access is None else reduce_access(suspect, *parse_access(access))


def checked(path: Path, bundle: QueryBundle, access: str | None, **options: Any) -> Report | None:
    """The report of a check; None where the suspect does not take its inputs."""
    from onnxaudit.errors import SuspectError

    with opened(path, bundle, access) as suspect:
        try:
            return check(bundle, suspect, CheckOptions(**options), Silent())
        except SuspectError:
            return None


def by_hand(path: Path, bundle: QueryBundle, access: str | None, meant: Meant) -> Report:
    """The report of a check of the suspect wired as it is meant."""
    with opened(path, bundle, access) as suspect:
        suspect.rewire(meant.spec)
        wired = Rewired(suspect, Wiring(meant.spec, meant.fit), meant.labels)
        return check(bundle, wired, CheckOptions(), Silent())


def exact(report: Report, meant: Meant) -> bool:
    """Whether the wiring that was found is the one that was meant."""
    wiring = report.wiring or {}
    return (
        report.suspect["input"] == dataclasses.asdict(meant.spec)
        and wiring["fit"] == meant.fit
        and tuple(wiring["labels"]) == meant.labels
    )


@dataclass(frozen=True, slots=True)
class Outcome:
    """One model under one wiring. passed: the controls, without --autofix, with it and by hand."""

    model: str
    meant: Meant
    passed: tuple[bool, bool, bool]
    exact: bool
    queries: int
    findings: tuple[str, str, str]


def outcomes(bundle: QueryBundle, zoo: Path, access: str | None, models: Sequence[str], folder: Path) -> Iterator[Outcome]:
    """Every model under every wiring."""
    for known, colour in ((bundle, False), (in_colour(bundle), True)):
        for meant in ways(colour):
            for model in models:
                path = folder / f"{model}.onnx"
                onnx.save(miswired(onnx.load(zoo / "suspects" / f"{model}.onnx"), meant), path)
                plain, fixed = checked(path, known, access), checked(path, known, access, autofix=True)
                hand = by_hand(path, known, access, meant)
                ok = [report is not None and report.controls.ok is True for report in (plain, fixed, hand)]
                said = ["refused" if report is None else report.finding for report in (plain, fixed, hand)]
                wiring = {} if fixed is None or fixed.wiring is None else fixed.wiring
                yield Outcome(
                    model,
                    meant,
                    (ok[0], ok[1], ok[2]),
                    fixed is not None and exact(fixed, meant),
                    int(wiring.get("queries", 0)),
                    (said[0], said[1], said[2]),
                )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("zoo", type=Path)
    parser.add_argument("--access", help="label, topk:K, probs; default: all that the models give.")
    parser.add_argument("--models", type=int, default=len(DERIVED), help="So many derived, and as many independent ones.")
    parser.add_argument("--json", type=Path, help="Write every outcome there as well.")
    given = parser.parse_args()
    models = [*DERIVED[: given.models], *INDEPENDENT[: given.models]]
    with tempfile.TemporaryDirectory() as folder:
        found = list(outcomes(load(given.bundle), given.zoo, given.access, models, Path(folder)))
    show(found)
    if given.json:
        given.json.write_text(json.dumps([dataclasses.asdict(outcome) for outcome in found], indent=1) + "\n")


def show(found: Sequence[Outcome]) -> None:
    """The tables."""
    rows = []
    for name in [*dict.fromkeys(outcome.meant.name for outcome in found), "all"]:
        mine = [outcome for outcome in found if name in (outcome.meant.name, "all")]
        queries = [outcome.queries for outcome in mine]
        rows.append(
            (
                name,
                str(len(mine)),
                *(str(sum(outcome.passed[place] for outcome in mine)) for place in range(3)),
                str(sum(outcome.exact for outcome in mine)),
                str(sum(outcome.findings[1] == outcome.findings[2] for outcome in mine)),
                f"{np.mean(queries):.1f}",
                str(max(queries)),
            )
        )
    head = ("wanted", "models", "pass as they are", "with --autofix", "by hand", "exact", "same finding", "queries", "most")
    print(table(head, rows))
    print()
    kinds = (("derived models", DERIVED), ("independent models", INDEPENDENT))
    lines = []
    for words, models in kinds:
        for place, way in enumerate(("as they are", "with --autofix", "by hand")):
            said = [outcome.findings[place] for outcome in found if outcome.model in models]
            kinds_of = ("derived", "not-shown", "inconclusive", "refused")
            lines.append((words, way, str(len(said)), *(str(said.count(kind)) for kind in kinds_of)))
    print(table(("", "wired", "checks", "derived", "not-shown", "inconclusive", "refused"), lines))


if __name__ == "__main__":
    main()
