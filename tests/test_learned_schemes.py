"""Schemes that learn, from craft to finding: who helps to make a fingerprint never calibrates, and check needs no PyTorch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from onnxaudit.answers import Access
from onnxaudit.audit.checking import CheckOptions, check
from onnxaudit.audit.crafting import CraftOptions, craft
from onnxaudit.audit.progress import Silent
from onnxaudit.bundle import QueryBundle, load
from onnxaudit.errors import UsageError
from onnxaudit.registry import open_suspect, reduce_access
from onnxaudit.report.model import Report
from onnxaudit.suspect import Target

FIXTURES = Path(__file__).resolve().parent.parent / "fixtures"
ZOO = FIXTURES / "zoo"
SUSPECTS = ZOO / "suspects"
SCHEMES = ("fuap:views=2", "fuap-t:views=2", "sac-w", "akh", "negative+labels+logistic")


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> tuple[QueryBundle, Path, list[str]]:
    """A bundle made with four of the zoo's thieves as surrogates, its file, and what craft said."""
    folder = tmp_path_factory.mktemp("learned")
    surrogates = folder / "surrogates"
    surrogates.mkdir()
    for name in ("extract-label-vgg.onnx", "extract-prob-resnet.onnx", "finetune-all.pt", "prune-60.onnx"):
        (surrogates / name).symlink_to(SUSPECTS / name)
    heard = Silent()
    options = CraftOptions(
        victim=ZOO / "victim.pt",
        data=FIXTURES / "fashion/train.npz",
        schemes=SCHEMES,
        queries=40,
        references=ZOO / "references",
        surrogates=surrogates,
        device="cpu",
    )
    path = folder / "learned.oab"
    craft(options, heard).save(path)
    return load(path), path, heard.notes


def asked(bundle: QueryBundle, name: str, **options: object) -> Report:
    """The report on one of the zoo's suspects."""
    target = Target(str(SUSPECTS / name), bundle.manifest.input, 10, "cpu")
    with open_suspect(target) as suspect:
        return check(bundle, suspect, CheckOptions(**options), Silent())  # type: ignore[arg-type]


def test_who_helps_never_calibrates(learned: tuple[QueryBundle, Path, list[str]]) -> None:
    bundle, _, notes = learned
    helpers, calibrating = bundle.manifest.of_role("training"), bundle.manifest.of_role("reference")
    assert (len(helpers), len(calibrating)) == (14, 28)
    assert not {model.sha256 for model in helpers} & {model.sha256 for model in calibrating}
    assert len(bundle.manifest.of_role("surrogate")) == 4
    said = "14 of 42 references help to make fingerprints and do not calibrate"
    assert said in notes
    assert said in bundle.manifest.pool_notes


def test_a_helper_given_with_a_check_is_refused(learned: tuple[QueryBundle, Path, list[str]], tmp_path: Path) -> None:
    bundle, _, _ = learned
    for model in (*bundle.manifest.of_role("training")[:2], *bundle.manifest.of_role("reference")[:1]):
        (tmp_path / model.source).symlink_to(ZOO / "references" / model.source)
    report = asked(bundle, "twin.onnx", references=tmp_path)
    assert report.bundle["references"] == 1
    assert sum("again" in said for said in report.conditions) == 2


def test_copies_are_found_and_innocents_are_not(learned: tuple[QueryBundle, Path, list[str]]) -> None:
    bundle, _, _ = learned
    findings = {name: asked(bundle, name).finding for name in ("copy.onnx", "int8-static.onnx", "finetune-last.onnx")}
    assert set(findings.values()) == {"derived"}, findings
    innocent = ("twin.onnx", "strong-vgg-own.onnx", "strong-resnet.onnx", "hardened-vgg.onnx", "weak-mlp.onnx")
    assert {asked(bundle, name).finding for name in innocent} == {"not-shown"}


def test_labels_are_enough_to_run(learned: tuple[QueryBundle, Path, list[str]]) -> None:
    bundle, _, _ = learned
    target = Target(str(SUSPECTS / "copy.onnx"), bundle.manifest.input, 10, "cpu")
    with open_suspect(target) as suspect:
        report = check(bundle, reduce_access(suspect, Access.LABEL, 1), CheckOptions(), Silent())
    assert all(scheme.skipped is None for scheme in report.schemes)
    assert report.finding == "derived"


def test_what_learned_from_whole_answers_is_skipped_when_the_budget_ends(learned: tuple[QueryBundle, Path, list[str]]) -> None:
    bundle, _, _ = learned
    report = asked(bundle, "copy.onnx", budget=120)
    skipped = {scheme.name: scheme.skipped or "" for scheme in report.schemes}
    assert "what it learned needs all of them" in skipped["fuap:views=2"]
    assert skipped["akh"] == ""


def test_schemes_with_the_same_queries_share_them(learned: tuple[QueryBundle, Path, list[str]]) -> None:
    bundle, _, _ = learned
    rows = {scheme.name: scheme.rows for scheme in bundle.manifest.schemes}
    assert rows["fuap:views=2"] == rows["fuap-t:views=2"]
    assert rows["akh"] == rows["negative+labels+logistic"] != rows["sac-w"]


def test_check_runs_what_was_learned_without_pytorch(learned: tuple[QueryBundle, Path, list[str]]) -> None:
    _, path, _ = learned
    program = (
        "import sys; sys.modules['torch'] = None\n"
        f"sys.argv = ['onnxaudit', 'check', {str(SUSPECTS / 'copy.onnx')!r}, '--bundle', {str(path)!r}]\n"
        "from onnxaudit.cli import main\nmain()"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 10, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("schemes", "more", "words"),
    [
        (("sac-w",), {}, "sac-w needs surrogates"),
        (("fuap",), {"surrogates": SUSPECTS}, "fuap needs references besides"),
        (("cae",), {"surrogates": SUSPECTS, "references": ZOO / "references"}, "gives no gradients"),
        (("negative+labels+logistic:vigour=2",), {"surrogates": SUSPECTS}, "has no parameter 'vigour'"),
    ],
)
def test_what_is_missing_is_said_before_anything_is_trained(schemes: tuple[str, ...], more: dict[str, Path], words: str) -> None:
    options = CraftOptions(
        victim=ZOO / "victim.pt",
        data=FIXTURES / "fashion/train.npz",
        schemes=schemes,
        queries=20,
        device="cpu",
        **more,  # type: ignore[arg-type]
    )
    with pytest.raises(UsageError, match=words):
        craft(options, Silent())


def test_a_changed_network_of_a_detector_is_noticed(learned: tuple[QueryBundle, Path, list[str]], tmp_path: Path) -> None:
    bundle, path, _ = learned
    graph = bundle.graphs["negative+labels+logistic"]
    data = bytearray(path.read_bytes())
    where = data.find(graph)
    assert where > 0
    data[where + len(graph) // 2] ^= 1
    (tmp_path / "changed.oab").write_bytes(data)
    with pytest.raises(Exception, match="does not match its digest"):
        load(tmp_path / "changed.oab")
    assert np.array_equal(load(path).queries, bundle.queries)
