"""The victim's own exports in bundles and reports, and INT8 copies that another processor runs."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from onnxaudit.answers import Access, Answers
from onnxaudit.audit.calibrating import refusal
from onnxaudit.audit.crafting import CraftOptions, craft
from onnxaudit.audit.judging.exports import export_agreements
from onnxaudit.audit.judging.judging import judge
from onnxaudit.audit.progress import Silent
from onnxaudit.bundle import ModelEntry, QueryBundle, load
from onnxaudit.processor import TELLING, int8_instructions
from onnxaudit.registry import open_suspect
from onnxaudit.report.model import DERIVED, ExportAgreement
from onnxaudit.report.text import exports_words, like_an_export
from onnxaudit.suspect import Suspect, SuspectCard, Target
from tests.conftest import FIXTURES, ZOO

KINDS = ["fp16", "int8-static", "int8-dynamic"]
WITHOUT_VNNI = Path(__file__).resolve().parent / "recorded" / "int8_without_vnni.npz"


def _open(name: str, bundle: QueryBundle) -> Suspect:
    return open_suspect(Target(str(ZOO / "suspects" / name), bundle.manifest.input, 10, "cpu", options={"threads": 1}))


def _crafted(**options: object) -> QueryBundle:
    data = FIXTURES / "fashion/train.npz"
    given = CraftOptions(ZOO / "victim.pt", data, ("akh",), queries=20, controls=40, device="cpu")
    return craft(dataclasses.replace(given, **options), Silent())  # type: ignore[arg-type]


def test_a_bundle_holds_what_the_victim_answers_in_fp16_and_int8(crafted: QueryBundle) -> None:
    exports = crafted.manifest.of_role("export")
    assert [model.id for model in exports] == [f"export-{kind}" for kind in KINDS]
    victim = crafted.answers["victim"]
    nearness = []
    for model in exports:
        said = crafted.answers[model.id]
        assert said.access == Access.LOGITS
        assert not np.array_equal(said.dense(), victim.dense())
        nearness.append(float(np.abs(said.dense() - victim.dense()).mean()))
        assert "onnxruntime" in model.origin
        assert ("cpu" in model.origin) == ("int8" in model.id)
    assert nearness[0] < min(nearness[1:])  # half precision is nearest
    assert max(nearness) < 1


def test_exports_come_out_the_same_and_survive_the_file(tmp_path: Path) -> None:
    one, two = _crafted(), _crafted()
    for name in one.answers:
        assert np.array_equal(one.answers[name].dense(), two.answers[name].dense()), name
    assert [model.sha256 for model in one.manifest.models] == [model.sha256 for model in two.manifest.models]
    one.save(tmp_path / "one.oab")
    read = load(tmp_path / "one.oab")
    assert read.manifest.of_role("export") == one.manifest.of_role("export")


def test_exports_can_be_left_out_and_are_left_out_of_what_cannot_be_exported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not _crafted(exports=False).manifest.of_role("export")
    monkeypatch.setattr("onnxaudit.audit.exporting.LARGEST_PROGRAM", 1000)
    large = _crafted()
    assert not large.manifest.of_role("export")
    assert any("--exports" in note for note in large.manifest.notes)
    assert len(_crafted(exports=True).manifest.of_role("export")) == 3


def test_exports_calibrate_nothing(crafted: QueryBundle) -> None:
    plain = dataclasses.replace(
        crafted,
        manifest=dataclasses.replace(
            crafted.manifest, models=tuple(model for model in crafted.manifest.models if model.role != "export")
        ),
    )
    with _open("prune-30.onnx", crafted) as suspect:
        answers, card = suspect.ask(crafted.queries), suspect.card
    one, two = judge(crafted, card, answers, None), judge(plain, card, answers, None)
    assert (one.p_value, one.score, one.p_floor) == (two.p_value, two.score, two.p_floor)
    assert not two.exports


def test_an_int8_copy_of_the_victim_is_no_reference(crafted: QueryBundle) -> None:
    export = crafted.answers["export-int8-static"]
    entry = ModelEntry("reference-new", "reference", "x.onnx", None, "onnx", "logits", 10, 0.9)
    assert "it is the victim, or a copy of it" in (refusal(crafted, entry, export) or "")


@pytest.mark.parametrize("name", ["int8-static.onnx", "int8-dynamic.onnx"])
def test_a_quantised_copy_is_shown_beside_the_victims_own(crafted: QueryBundle, name: str) -> None:
    with _open(name, crafted) as suspect:
        report = judge(crafted, suspect.card, suspect.ask(crafted.queries), None)
    assert report.finding == DERIVED
    victim, *others = report.exports
    assert [each.kind for each in report.exports] == ["victim", *KINDS]
    assert victim.victim == 1
    assert all(0.9 < each.victim <= 1 for each in others)
    # as near to the victim as its own INT8 exports are, a few of 300 labels more or less
    assert victim.suspect >= min(each.victim for each in others) - 0.03
    assert any(instruction in others[1].origin for instruction in TELLING) or "cpu" in others[1].origin
    value = json.loads(report.to_json())["exports"]
    assert value[1] == {"kind": "fp16", "victim": others[0].victim, "suspect": others[0].suspect, "origin": others[0].origin}


def test_the_line_is_shown_for_what_is_nearer_to_an_export_than_to_the_victim() -> None:
    def all_of(own: float, static: float) -> tuple[ExportAgreement, ...]:
        return ExportAgreement("victim", 1, own), ExportAgreement("fp16", 1, own), ExportAgreement("int8-static", 0.95, static)

    assert like_an_export(all_of(0.95, 0.99))
    assert "nearest is int8-static, 99%" in exports_words(all_of(0.95, 0.99))
    assert not like_an_export(all_of(1, 0.95))  # the victim itself
    assert not like_an_export(all_of(0.5, 0.52))  # an innocent
    assert not like_an_export(())


def test_agreement_counts_the_schemes_answered_queries_only(crafted: QueryBundle) -> None:
    said = crafted.answers["victim"]
    start, stop = crafted.manifest.controls
    labels = said.labels.copy()
    labels[start:stop] = (labels[start:stop] + 1) % 10
    labels[:50] = -1
    shown = export_agreements(crafted, Answers.from_labels(labels, 10))
    assert shown[0].suspect == 1
    assert not export_agreements(crafted, Answers.from_labels(np.full(len(labels), -1), 10))


# --- another processor ---------------------------------------------------------------------------------------------------------


def test_the_processor_is_told_where_int8_arithmetic_depends_on_it(crafted: QueryBundle) -> None:
    for name in ("int8-static.onnx", "int8-dynamic.onnx"):
        with _open(name, crafted) as suspect:
            assert suspect.card.runtime["cpu"] == int8_instructions()
    with _open("copy.onnx", crafted) as suspect:
        assert "cpu" not in suspect.card.runtime


def test_instructions_are_read_as_linux_tells_them(tmp_path: Path) -> None:
    told = tmp_path / "cpuinfo"
    told.write_text("processor: 0\nflags\t\t: fpu sse avx2 avx512f avx512_vnni\n\nprocessor: 1\nflags : fpu\n")
    assert int8_instructions(told).split()[1:] == ["avx2", "avx512f", "avx512_vnni"]
    told.write_text("processor: 0\nFeatures : fp asimd asimddp\n")
    (tmp_path / "arm").write_text(told.read_text())
    assert int8_instructions(tmp_path / "arm").split()[1:] == ["asimddp"]
    assert len(int8_instructions(tmp_path / "none").split()) == 1


def _moved(bundle: QueryBundle, name: str, factor: float, seed: int) -> tuple[SuspectCard, Answers]:
    """An INT8 file's answers, moved as those of another processor are: by differences between two of them, drawn anew."""
    with np.load(WITHOUT_VNNI) as recorded:
        differences = recorded[name].astype(np.float32)  # (100, 10), of logits
    with _open(f"{name}.onnx", bundle) as suspect:
        said, card = suspect.ask(bundle.queries).dense(), suspect.card
    rng = np.random.default_rng(seed)
    drawn = differences[rng.integers(0, len(differences), len(said))]
    return card, Answers.from_scores(said + factor * drawn * rng.choice([-1, 1], said.shape), Access.LOGITS)


@pytest.mark.parametrize("name", ["int8-static", "int8-dynamic"])
@pytest.mark.parametrize("access", [Access.LOGITS, Access.TOPK, Access.LABEL])
@pytest.mark.parametrize("factor", [1.0, 5.0])
def test_an_int8_copy_on_another_processor_stays_derived(crafted: QueryBundle, name: str, access: Access, factor: float) -> None:
    for seed in range(3):
        card, answers = _moved(crafted, name, factor, seed)
        assert judge(crafted, card, answers.degrade(access, 3), None).finding == DERIVED


@pytest.mark.parametrize("name", ["int8-static", "int8-dynamic"])
def test_without_labels_as_well(crafted: QueryBundle, name: str) -> None:
    card, answers = _moved(crafted, name, 1.0, 9)
    for access in (Access.LOGITS, Access.LABEL):
        assert judge(crafted, card, answers.degrade(access), None, label_free=True).finding == DERIVED


def test_a_model_quantised_on_the_fly_is_asked_one_query_at_a_time(crafted: QueryBundle) -> None:
    with _open("int8-dynamic.onnx", crafted) as suspect:
        assert suspect.card.max_batch == 1
        together, alone = suspect.ask(crafted.queries[:8]), suspect.ask(crafted.queries[3:4])
    assert np.array_equal(together.dense()[3:4], alone.dense())


def test_the_command_shows_the_exports(tmp_path: Path) -> None:
    _crafted().save(tmp_path / "one.oab")
    done = subprocess.run(
        [sys.executable, "-m", "onnxaudit", "show", tmp_path / "one.oab"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert all(f"export     {kind}: onnxruntime" in done.stdout for kind in KINDS)
