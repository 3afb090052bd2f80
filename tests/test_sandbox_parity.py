"""--sandbox changes nothing but where the runtime runs: cards, errors, what is shown inside, whole reports and transcripts."""

from __future__ import annotations

import dataclasses
import io
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from benchmarks.wiring import Meant, miswired
from onnxaudit.answers import Access
from onnxaudit.audit.checking import CheckOptions
from onnxaudit.audit.progress import Silent
from onnxaudit.audit.running import run_check
from onnxaudit.audit.wiring import order_by_names
from onnxaudit.bundle import QueryBundle
from onnxaudit.errors import BudgetSpent, OnnxauditError, SmallerBatch, SuspectError
from onnxaudit.registry import open_suspect
from onnxaudit.sandbox import frames
from onnxaudit.sandbox.limits import Limits
from onnxaudit.sandbox.suspect import open_confined, read_answers
from onnxaudit.sandbox.telling import CROSSING, raise_error, read_card, tell_card, tell_error
from onnxaudit.suspect import InputSpec, SuspectCard, Target
from onnxaudit.testing import assert_same
from onnxaudit_adapters.http.strict_json import ReplyError
from tests.bundles import ridge_weights, save_linear
from tests.conftest import ZOO
from tests.models import colour_queries, save_forest, save_torchscript, vectors

linux = pytest.mark.skipif(sys.platform != "linux", reason="no other kernel has these walls")
SPEC = InputSpec((28, 28, 1))
LIMITS = Limits(wall=120)
SHUFFLED = (3, 7, 0, 9, 1, 5, 8, 2, 6, 4)
STEERING = {BudgetSpent, SmallerBatch}
"""Errors that end an interview early or ask again: what a hostile suspect would like to say."""


def _through(head: dict[str, Any]) -> dict[str, Any]:
    """A message as the other side reads it."""
    stream = io.BytesIO()
    frames.write(stream, head)
    stream.seek(0)
    return frames.read(stream)[0]


# --------------------------------------------------------------------------------------------------------------------- cards


FULL: dict[str, Any] = {
    "source": "m.onnx",
    "kind": "onnx",
    "input": InputSpec((8, 9, 3), "NHWC", "float16", 0.5, (0.1, 0.2, 0.3), (1.0, 2.0, 3.0), "BGR"),
    "num_classes": 4,
    "sha256": "a" * 64,
    "batch": 3,
    "max_batch": 7,
    "runtime": {"onnxruntime": "1", **{f"external:weights/{i:04d}/ü.bin": f"sha256:{i:064x}" for i in range(500)}},
    "class_names": ("ant", "bee, or wasp", "crème brûlée", "猫"),
}
"""No field at its default."""
TARGET = Target("m.onnx", SPEC, 4)


def test_every_field_of_a_card_crosses() -> None:
    """A field added to SuspectCard fails here until it is given a value above, and then until it crosses."""
    assert set(FULL) == {field.name for field in dataclasses.fields(SuspectCard)}
    card = SuspectCard(**FULL)
    said = read_card(_through({"card": tell_card(card)})["card"], TARGET, "a" * 64)
    for name, value in FULL.items():
        assert getattr(said, name) == value, name
        assert isinstance(getattr(said, name), type(value)), name


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("class_names", "ant"),
        ("class_names", [1, 2]),
        ("class_names", {"0": "ant"}),
        ("class_names", ["x"] * 1_000_001),
        ("runtime", {"a": 1}),
        ("batch", 0),
        ("batch", True),
        ("max_batch", 1 << 17),
        ("num_classes", 5),
        ("sha256", "b" * 64),
        ("kind", None),
        ("another", 1),
    ],
)
def test_a_card_that_lies_is_none(name: str, value: object) -> None:
    with pytest.raises(SuspectError, match=r"nonsense|another model"):
        read_card({**tell_card(SuspectCard(**FULL)), name: value}, TARGET, "a" * 64)


def test_names_of_a_card_cannot_steer_a_terminal_and_mean_the_same_still() -> None:
    names = ("crème\u00a0brûlée", "a\x1b[2Jnt", "bee\n", "x" * 10_000)
    told = tell_card(SuspectCard(**{**FULL, "class_names": names, "kind": "o\x1bnnx", "source": "/etc/passwd"}))
    card = read_card({**told, "source": "/etc/passwd"}, TARGET, "a" * 64)
    assert (card.source, card.kind, card.class_names[:3]) == ("m.onnx", "o nnx", ("crème brûlée", "a [2Jnt", "bee "))
    assert all(name.isprintable() and len(name) < 5000 for name in card.class_names)
    victims = ("bee", "Crème\u00a0Brûlée", "a\x1b[2Jnt")
    assert order_by_names(card.class_names[:3], victims) == order_by_names(names[:3], victims) == (1, 2, 0)


# -------------------------------------------------------------------------------------------------------------------- errors


def _kinds(kind: type[OnnxauditError] = OnnxauditError) -> Iterator[type[OnnxauditError]]:
    for known in kind.__subclasses__():
        if known.__module__ == "onnxaudit.errors":
            yield known
        yield from _kinds(known)


@pytest.mark.parametrize("kind", list(_kinds()), ids=lambda kind: kind.__name__)
def test_every_error_stays_what_it_is(kind: type[OnnxauditError]) -> None:
    """An error class added later has to cross, or be named among those that must not."""
    error = kind("x" * 900 + " failed", "Try é again.")
    with pytest.raises(OnnxauditError) as caught:
        raise_error(_through(tell_error(error)), "m.onnx", LIMITS)
    assert type(caught.value) is (SuspectError if kind in STEERING else kind)
    assert str(caught.value) == str(error)
    assert (kind in STEERING) == (kind.__name__ not in CROSSING)


def test_errors_of_an_adapters_own_are_the_nearest_that_is_known() -> None:
    with pytest.raises(OnnxauditError) as caught:
        raise_error(_through(tell_error(ReplyError("it says nothing"))), "m.onnx", LIMITS)
    assert type(caught.value) is SuspectError


@pytest.mark.parametrize("said", ["BudgetSpent", "SmallerBatch", "OnnxauditError", "KeyboardInterrupt", "Exit", 11, None, ["x"]])
def test_no_other_error_can_be_had(said: object) -> None:
    with pytest.raises(SuspectError, match=r"m\.onnx failed") as caught:
        raise_error({"error": said, "what": None, "hint": 7}, "m.onnx", LIMITS)
    assert type(caught.value) is SuspectError


RAISING = """
from onnxaudit import errors
NAMES = {names}
def classify(batch):
    raise getattr(errors, NAMES[round(float(batch.max()) * 255)])("it said so", "Ask it.")
"""


@linux
def test_errors_raised_in_the_confined_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = sorted(CROSSING)
    (tmp_path / "raising.py").write_text(RAISING.format(names=names))
    monkeypatch.chdir(tmp_path)
    with open_confined(Target("raising:classify", SPEC, 10, "cpu"), LIMITS) as confined:
        for number, name in enumerate(names):
            with pytest.raises(OnnxauditError) as caught:
                confined.ask(np.full((1, 28, 28, 1), number, np.uint8))
            assert type(caught.value) is CROSSING[name]


# ------------------------------------------------------------------------------------------------------------------- answers


def test_labels_of_no_known_number_may_be_any() -> None:
    said = {"access": "label", "num_classes": None}
    labels = np.array([[0], [(1 << 31) - 1]], np.int32)
    assert read_answers(said, [labels], 2, "s").labels.tolist() == [0, (1 << 31) - 1]


@linux
def test_names_as_answers(tmp_path: Path) -> None:
    path = save_forest(tmp_path / "m.onnx", zipmap=False, strings=True)
    options = {"label_space": "unknown", "output_name": "label"}
    target = Target(str(path), InputSpec((6,), layout="NC"), None, "cpu", options=options)
    with open_suspect(target) as free, open_confined(target, LIMITS) as confined:
        answers = free.ask(vectors(20))
        assert (answers.access, answers.labels.max() > 1_000_000) == (Access.LABEL, True)
        assert_same(confined.ask(vectors(20)), answers, 0.0)


@linux
def test_what_is_shown_inside(tmp_path: Path) -> None:
    target = Target(str(save_torchscript(tmp_path / "m.pt")), InputSpec((8, 8, 3)), 4, "cpu", options={"threads": 1})
    with open_suspect(target) as free, open_confined(target, LIMITS) as confined:
        for kind in ("gradients", "layers"):
            one, other = free.inside(kind, colour_queries(4)), confined.inside(kind, colour_queries(4))
            assert one is not None
            assert other is not None
            assert (one.dtype, one.tobytes()) == (other.dtype, other.tobytes())


# ------------------------------------------------------------------------------------------------------------- whole reports


def _copy_with_names(folder: Path) -> Path:
    """A copy of the victim whose labels are in another order, and whose file says so."""
    meant = Meant("named", SPEC, labels=SHUFFLED)
    model = miswired(onnx.load(ZOO / "suspects/copy.onnx"), meant)
    names = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
    onnx.helper.set_model_props(model, {"names": str([names[label] for label in SHUFFLED])})
    onnx.save(model, folder / "named.onnx")
    return folder / "named.onnx"


def _ort(folder: Path) -> Path:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(folder / "m.ort")
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    onnxruntime.InferenceSession(str(ZOO / "suspects/copy.onnx"), options, providers=["CPUExecutionProvider"])
    return folder / "m.ort"


def _xml(folder: Path) -> Path:
    openvino = pytest.importorskip("openvino", reason="needs the extra openvino")
    openvino.save_model(openvino.Core().read_model(str(ZOO / "suspects/copy.onnx")), str(folder / "m.xml"))
    return folder / "m.xml"


def _tflite(folder: Path) -> Path:
    pytest.importorskip("ai_edge_litert", reason="needs the extra litert")
    from tests.tflite_files import converted

    return converted(ZOO / "suspects/copy.onnx", folder / "m.tflite")


def _function(folder: Path) -> str:
    (folder / "parity_suspect.py").write_text("def classify(batch):\n    return batch.reshape(len(batch), -1)[:, 200:210]\n")
    return "parity_suspect:classify"


CASES: dict[str, tuple[Callable[[Path], Path | str], dict[str, Any], str]] = {
    "onnx": (lambda _: ZOO / "suspects/copy.onnx", {}, "derived"),
    "onnx, innocent, looks": (lambda _: ZOO / "suspects/twin.onnx", {"looks": (20, 60)}, "not-shown"),
    "ort": (_ort, {}, "derived"),
    "xml": (_xml, {}, "derived"),
    "tflite": (_tflite, {}, "derived"),
    "int8-dynamic": (lambda _: ZOO / "suspects/int8-dynamic.onnx", {}, "derived"),
    "torchscript": (lambda _: ZOO / "suspects/finetune-all.pt", {}, "derived"),
    "function": (_function, {}, "inconclusive"),
    "labels": (lambda folder: save_linear(folder / "m.onnx", weights=ridge_weights(), end="labels"), {}, "not-shown"),
    "12 classes": (lambda folder: save_linear(folder / "m.onnx", 12, 77), {}, "not-shown"),
    "names in the file": (_copy_with_names, {"autofix": True, "access": "label"}, "derived"),
    "another scale": (lambda _: ZOO / "suspects/copy.onnx", {"autofix": True, "scale": 1.0}, "derived"),
    "refuses": (lambda folder: save_linear(folder / "m.onnx", size=30), {"autofix": True}, ""),
    "too few outputs": (lambda _: ZOO / "suspects/copy.onnx", {"output_name": "nothing"}, "inconclusive"),
}


@linux
@pytest.mark.parametrize("case", CASES)
def test_reports_and_transcripts_are_the_same(
    case: str, crafted: QueryBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, said, finding = CASES[case]
    monkeypatch.chdir(tmp_path)
    source, given = str(make(tmp_path)), dict(said)
    http = {"threads": 1, "class_names": crafted.manifest.class_names, "output_name": given.pop("output_name", None)}
    access, scale = given.pop("access", None), given.pop("scale", None)
    told = []
    for sandbox in (None, LIMITS):
        evidence = tmp_path / f"{sandbox is not None}.jsonl"
        options = CheckOptions(device="cpu", sandbox=sandbox, evidence=evidence, repeat=4, **given)
        notes = Silent()
        report = run_check(crafted, source, access, options, {"scale": scale}, http, notes, time.perf_counter())
        document = json.loads(report.to_json().replace(evidence.name, "e.jsonl"))
        for name in ("seconds", "digest", "transcript_sha256"):
            del document[name]
        told.append((report.exit_code, notes.notes, document, _lines(evidence)))
    (*free, lines), (*confined, same_lines) = told
    assert confined[2]["suspect"]["runtime"].pop("sandbox", None) is not None or confined[2]["status"] == "failed"
    confined[2]["suspect"]["runtime"].pop("sandbox lacks", None)
    assert free == confined
    assert lines == same_lines
    assert not finding or free[2]["finding"] == finding


def _lines(evidence: Path) -> list[dict[str, Any]]:
    """A transcript without what confinement adds to it."""
    found = [json.loads(line) for line in evidence.read_text().splitlines()] if evidence.exists() else []
    for line in found:
        del line["previous"]
        runtime = line.get("run", {}).get("runtime", {})
        runtime.pop("sandbox", None)
        runtime.pop("sandbox lacks", None)
    return found
