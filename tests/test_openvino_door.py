"""OpenVINO's IR as a suspect: the answers and the finding of the ONNX file it was converted from, and files that mean harm."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onnxaudit.answers import Access, Answers
from onnxaudit.audit.checking import CheckOptions, check
from onnxaudit.audit.progress import Silent
from onnxaudit.audit.scan.sources import gathered
from onnxaudit.bundle import QueryBundle
from onnxaudit.errors import ArtefactError, UsageError
from onnxaudit.registry import open_suspect, weights_beside
from onnxaudit.sandbox.limits import Limits
from onnxaudit.sandbox.suspect import open_confined
from onnxaudit.suspect import InputSpec, Suspect, Target
from onnxaudit.testing import assert_same, check_adapter
from tests.conftest import ZOO
from tests.models import CLASSES, SPEC, colour_queries, expected_answers, save_onnx

openvino = pytest.importorskip("openvino", reason="needs the extra openvino")

QUERIES = colour_queries()


def converted(source: Path, path: Path, half: bool = False) -> Path:
    """An ONNX file as IR. half: weights in 16 bits, as the converter does unless told otherwise."""
    openvino.save_model(openvino.Core().read_model(str(source)), str(path), compress_to_fp16=half)
    return path


def opened(path: Path, **options: Any) -> Suspect:
    return open_suspect(
        Target(str(path), options.pop("spec", SPEC), options.pop("num_classes", CLASSES), options.pop("device", "cpu"), **options)
    )


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """The small network as IR, in a folder of its own."""
    (tmp_path / "ir").mkdir()
    return converted(save_onnx(tmp_path / "m.onnx"), tmp_path / "ir/m.xml")


@pytest.mark.parametrize(
    ("options", "half", "tolerance"),
    [
        ({}, False, 1e-4),
        ({}, True, 2e-2),
        ({"dtype": "float16"}, False, 2e-2),
        ({"dtype": "uint8"}, False, 1e-4),
        ({"dims": (1, 3, 8, 8)}, False, 1e-4),
        ({"dims": (5, 8, 8, 3), "layout": "NHWC", "dtype": "uint8"}, False, 1e-4),
        ({"dims": ("n", 3, "h", "w")}, False, 1e-4),
        ({"end": "softmax"}, False, 1e-4),
        ({"end": "labels"}, False, 1e-4),
        ({"end": "decoys"}, False, 1e-4),
    ],
)
def test_every_signature_keeps_the_contract(options: dict[str, Any], half: bool, tolerance: float, tmp_path: Path) -> None:
    path = converted(save_onnx(tmp_path / "m.onnx", **options), tmp_path / "m.xml", half)
    check_adapter(lambda: opened(path), QUERIES, expected_answers(QUERIES), tolerance)


def test_it_answers_as_onnx_runtime_does(tmp_path: Path, model: Path) -> None:
    with opened(model) as one, opened(tmp_path / "m.onnx") as other:
        assert_same(one.ask(QUERIES), other.ask(QUERIES), 1e-5)
        assert (one.card.kind, one.card.input, one.card.batch) == ("openvino", other.card.input, other.card.batch)
        assert openvino.__version__.startswith(one.card.runtime["openvino"])
        assert {f"external:{name}": f"sha256:{digest}" for name, digest in weights_beside(b"", model).items()}.items() <= (
            one.card.runtime.items()
        )


@pytest.mark.skipif(sys.platform != "linux", reason="confinement is Linux's")
def test_a_confined_one_answers_the_same_and_tells_nobody(tmp_path: Path) -> None:
    """OpenVINO's own telemetry reads and writes the home folder; it is left out, confined or not."""
    path = converted(ZOO / "suspects/copy.onnx", tmp_path / "copy.xml")
    queries = np.random.default_rng(2).integers(0, 256, (20, 28, 28, 1), dtype=np.uint8)
    target = Target(str(path), InputSpec((28, 28, 1), scale=1 / 255), 10, "cpu")
    with open_suspect(target) as free, open_confined(target, Limits()) as confined:
        assert np.array_equal(confined.ask(queries).dense(), free.ask(queries).dense())


@pytest.mark.parametrize("name", ["copy", "other-lenet", "int8-static"])
def test_the_finding_is_that_of_the_onnx_file(name: str, crafted: QueryBundle, tmp_path: Path) -> None:
    source = ZOO / f"suspects/{name}.onnx"
    reports = []
    for path in (source, converted(source, tmp_path / f"{name}.xml")):
        with opened(path, spec=crafted.manifest.input, num_classes=10) as suspect:
            reports.append(check(crafted, suspect, CheckOptions(), Silent()))
    assert reports[0].finding == reports[1].finding == ("not-shown" if name == "other-lenet" else "derived")
    assert reports[0].p_value == reports[1].p_value


def test_odd_names(model: Path) -> None:
    for name in ("with space.xml", "ünï.v2.XML", "-x.xml", "a.b.xml"):
        path = model.with_name(name)
        shutil.copy(model, path)
        shutil.copy(model.with_suffix(".bin"), path.with_suffix(".bin"))
        with opened(path) as suspect:
            assert_same(suspect.ask(QUERIES), expected_answers(QUERIES))


def test_outputs_are_chosen_and_a_gpu_is_refused(tmp_path: Path) -> None:
    path = converted(save_onnx(tmp_path / "m.onnx", end="decoys"), tmp_path / "m.xml")
    with opened(path, options={"output_name": "label"}) as suspect:
        assert suspect.ask(QUERIES).access == Access.LABEL
    with pytest.raises(UsageError, match="label"):
        opened(path, options={"output_name": "nothing"})
    with pytest.raises(UsageError, match="--device cuda"):
        opened(path, device="cuda")


def damaged(model: Path, old: bytes, new: bytes, count: int = 1) -> None:
    xml = model.read_bytes()
    assert old in xml
    model.write_bytes(xml.replace(old, new, count))


FIRST = b'shape="6, 3, 3, 3" offset="0" size="648"'


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        (FIRST, b'shape="6, 3, 3, 3" offset="999999" size="648"', "ends at byte 1000647 of"),
        (FIRST, b'shape="6, 3, 3, 3" offset="-8" size="648"', "no sensible size"),
        (FIRST, b'shape="6, 3, 3, 3" offset="18446744073709551612" size="648"', "ends at byte"),
        (FIRST, b'shape="6, 3, 3, 300" offset="0" size="648"', "larger than its 648 bytes"),
        # 2**62 + 162 numbers of 4 bytes are 648 bytes, in 64 bits
        (FIRST, b'shape="4611686018427388066" offset="0" size="648"', "larger than its 648 bytes"),
        (b"<net ", b'<!DOCTYPE x [<!ENTITY a SYSTEM "file:///etc/passwd">]><net ', "declares entities"),
        (b"<net ", b"<project ", "damaged"),
        (b"layers>", b"modules>", "no OpenVINO model"),
        (b'type="Convolution"', b'type="../../evil"', "cannot be run"),
    ],
)
def test_forged_files_are_one_line(old: bytes, new: bytes, why: str, model: Path) -> None:
    damaged(model, old, new, 2 if b"layers" in old else 1)
    with pytest.raises(ArtefactError, match=why) as caught:
        opened(model)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 3


@pytest.mark.parametrize("keep", [0.0, 0.1, 0.5, 0.99])
@pytest.mark.parametrize("suffix", [".xml", ".bin"])
def test_truncated_files_are_one_line(suffix: str, keep: float, model: Path) -> None:
    path = model.with_suffix(suffix)
    data = path.read_bytes()
    path.write_bytes(data[: int(keep * len(data))])
    with pytest.raises(ArtefactError) as caught:
        opened(model)
    assert "\n" not in str(caught.value)


def test_weights_that_are_missing_or_elsewhere(model: Path, tmp_path: Path) -> None:
    weights = model.with_suffix(".bin")
    shutil.move(weights, tmp_path / "elsewhere.bin")
    with pytest.raises(ArtefactError, match=r"needs its weights, m\.bin"):
        opened(model)
    weights.symlink_to(tmp_path / "elsewhere.bin")
    with pytest.raises(ArtefactError, match="outside its own folder"):
        opened(model)
    with pytest.raises(ArtefactError, match="outside its own folder"):
        weights_beside(b"", model)


def test_another_format_in_disguise_is_refused(model: Path, tmp_path: Path) -> None:
    """OpenVINO would read ONNX here too, with its files elsewhere."""
    shutil.copy(tmp_path / "m.onnx", model)
    with pytest.raises(ArtefactError, match="no OpenVINO model"):
        opened(model)
    model.write_text("<net><layers>ünï</layers></net>", encoding="utf-16")
    with pytest.raises(ArtefactError, match="no OpenVINO model"):
        opened(model)


def test_what_takes_no_images_is_refused(tmp_path: Path) -> None:
    from openvino import opset13 as ops

    one, two = ops.parameter([2, 3], np.float32), ops.parameter([2, 3], np.float32)
    openvino.save_model(openvino.Model([one + two], [one, two]), str(tmp_path / "two.xml"))
    whole = ops.parameter([2, 3], np.int64)
    openvino.save_model(openvino.Model([whole + whole], [whole]), str(tmp_path / "whole.xml"))
    for name, why in (("two", "2 inputs"), ("whole", "i64")):
        with pytest.raises(UsageError, match=why):
            opened(tmp_path / f"{name}.xml")


def test_a_scan_takes_models_and_no_other_xml(model: Path) -> None:
    model.with_name("pom.xml").write_text("<project/>")
    assert gathered([str(model.parent)]) == [str(model)]


def test_vectors(tmp_path: Path) -> None:
    from openvino import opset13 as ops

    weights = np.random.default_rng(1).normal(size=(6, 3)).astype(np.float32)
    given = ops.parameter([-1, 6], np.float32)
    openvino.save_model(openvino.Model([ops.matmul(given, weights, False, False)], [given]), str(tmp_path / "m.xml"), False)
    x = np.random.default_rng(2).normal(size=(9, 6)).astype(np.float32)
    expected = Answers.from_scores(x @ weights)
    check_adapter(lambda: opened(tmp_path / "m.xml", spec=InputSpec((6,), layout="NC"), num_classes=3), x, expected)
