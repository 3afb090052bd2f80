"""Ways in which an innocent model could come to look derived, each of which was one once."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest

from onnxaudit.answers import Answers
from onnxaudit.audit.checking import _with_references_of
from onnxaudit.audit.crafting import CraftOptions, craft
from onnxaudit.audit.judging.judging import judge
from onnxaudit.audit.progress import Silent
from onnxaudit.bundle import Manifest, ModelEntry, QueryBundle, SchemeEntry
from onnxaudit.errors import UsageError
from onnxaudit.evidence.calibration import STATISTIC
from onnxaudit.suspect import InputSpec, SuspectCard

FIXTURES = Path(__file__).resolve().parent.parent / "fixtures"
ZOO = FIXTURES / "zoo"
CLASSES, QUERIES, CONTROLS, REFERENCES = 5, 100, 40, 39
CARD = SuspectCard("suspect.onnx", "onnx", InputSpec((2, 2, 1)), CLASSES)


def answers(matches: int, *, wrong: int = 0) -> Answers:
    """A model of labels that gives the victim's label to so many fingerprint queries, and is wrong on so many controls."""
    labels = np.arange(QUERIES + CONTROLS) % CLASSES
    labels[QUERIES : QUERIES + wrong] = (labels[QUERIES : QUERIES + wrong] + 1) % CLASSES
    labels[matches:QUERIES] = (labels[matches:QUERIES] + 1) % CLASSES
    return Answers.from_labels(labels, CLASSES)


def tied_bundle(*schemes: str) -> QueryBundle:
    """References that give the victim's label to no query, as is usual with boundary points. Only labels are known."""
    rng = np.random.default_rng(0)
    models = ["victim", *(f"reference-{i:03d}" for i in range(REFERENCES))]
    entries = tuple(ModelEntry(name, name.split("-")[0], f"{name}.onnx", None, "onnx", "label", CLASSES, 1.0) for name in models)
    parts = [(name, *name.split("+")) for name in schemes]
    manifest = Manifest(
        tool="0",
        seed=0,
        input=InputSpec((2, 2, 1)),
        class_names=(),
        schemes=tuple(SchemeEntry(n, q, r.split(":")[0], d, (0, QUERIES), columns=("pair",)) for n, q, r, d in parts),
        controls=(QUERIES, QUERIES + CONTROLS),
        labelled=True,
        statistic=STATISTIC,
        alpha=0.05,
        models=entries,
    )
    told = {name: answers(0, wrong=place % 5) for place, name in enumerate(models)} | {"victim": answers(QUERIES)}
    labels = (np.arange(QUERIES, QUERIES + CONTROLS) % CLASSES).astype(np.int64)
    columns = {f"columns/0-{QUERIES}/pair": np.arange(QUERIES) // 2}
    queries = rng.integers(0, 256, (QUERIES + CONTROLS, 2, 2, 1), np.uint8)
    return QueryBundle(manifest, queries, labels, told, columns)


COUNTING = ("labels+matching-rate", "topk+hamming", "probabilities+l1", "probabilities+jensen-shannon", "probabilities+cosine")


@pytest.mark.parametrize("scheme", [f"boundary+{parts}" for parts in COUNTING])
@pytest.mark.parametrize(("matches", "finding"), [(0, "not-shown"), (1, "not-shown"), (5, "not-shown"), (60, "derived")])
def test_a_few_matches_are_not_evidence_however_they_are_counted(scheme: str, matches: int, finding: str) -> None:
    assert judge(tied_bundle(scheme), CARD, answers(matches, wrong=2), None).finding == finding


@pytest.mark.parametrize("matches", [1, 3, 5])
def test_one_scheme_under_several_names_is_no_more_evidence(matches: int) -> None:
    several = tied_bundle(*(f"boundary+{parts}" for parts in COUNTING))
    assert judge(several, CARD, answers(matches, wrong=2), None).finding == "not-shown"
    assert judge(several, CARD, answers(60, wrong=2), None).finding == "derived"


def test_references_given_with_a_check_bring_nothing_of_those_they_replace(tmp_path: Path) -> None:
    options = CraftOptions(
        victim=ZOO / "victim.pt", data=FIXTURES / "fashion/train.npz", schemes=("akh", "modelgif"), queries=12, device="cpu"
    )
    bare = craft(options, Silent())
    insights = {**bare.insights, **{f"insights/reference-{i:03d}/gradients/0-12": np.ones((12, 2)) for i in range(3)}}
    for file in sorted((ZOO / "references").iterdir())[:2]:
        shutil.copy(file, tmp_path)
    replaced = _with_references_of(dataclasses.replace(bare, insights=insights), tmp_path, "cpu", Silent())
    assert not [name for name in replaced.insights if "reference" in name]
    report = judge(replaced, CARD, replaced.answers["reference-000"], None, inside={})
    assert [scheme.skipped is not None for scheme in report.schemes] == [False, True]


def learning(tmp_path: Path, *extra: Path) -> CraftOptions:
    """A learned scheme with eight references, what is extra among them, and two surrogates."""
    references, surrogates = tmp_path / "references", tmp_path / "surrogates"
    references.mkdir()
    surrogates.mkdir()
    for file in (*sorted((ZOO / "references").iterdir())[:8], *extra):
        shutil.copy(file, references)
    for name in ("extract-prob-resnet.onnx", "prune-60.onnx"):
        shutil.copy(ZOO / "suspects" / name, surrogates)
    return CraftOptions(
        victim=ZOO / "victim.pt",
        data=FIXTURES / "fashion/train.npz",
        schemes=("negative+labels+logistic",),
        queries=20,
        references=references,
        surrogates=surrogates,
        device="cpu",
    )


def test_copies_of_the_victim_never_teach_what_is_independent(tmp_path: Path) -> None:
    broken = tmp_path / "broken.onnx"
    broken.write_text("not a model")
    heard = Silent()
    bundle = craft(learning(tmp_path, ZOO / "suspects/copy.onnx", ZOO / "suspects/int8-static.onnx", broken), heard)
    known = {model.source for role in ("training", "reference") for model in bundle.manifest.of_role(role)}
    assert known == {file.name for file in sorted((ZOO / "references").iterdir())[:8]}
    for name in ("copy.onnx", "int8-static.onnx", "broken.onnx"):
        assert any("left out" in note and name in note for note in heard.notes)
    assert any("alpha 0.05 needs 19, or check shows nothing" in note for note in heard.notes)


def test_auto_stands_among_other_schemes(tmp_path: Path) -> None:
    options = CraftOptions(victim=ZOO / "victim.pt", data=FIXTURES / "fashion/train.npz", queries=4, controls=4, device="cpu")
    heard = Silent()
    bundle = craft(dataclasses.replace(options, schemes=("random", "auto", "sac-normal")), heard)
    assert [entry.name for entry in bundle.manifest.schemes] == ["random", "ipguard-tl", "sac-m", "akh", "sac-normal"]
    assert any("fewer than the 10 that check wants" in note for note in heard.notes)
    with pytest.raises(UsageError, match="there is no scheme 'nonsense'"):
        craft(dataclasses.replace(options, schemes=("auto", "nonsense")), Silent())
    with pytest.raises(UsageError, match="says its k, and so does --margin"):
        craft(dataclasses.replace(options, schemes=("ipguard:k=3",), margin=1.0), Silent())
    with pytest.raises(UsageError, match="nothing to ask a suspect"):
        craft(dataclasses.replace(options, schemes=("modelgif",), controls=0), Silent())
    with pytest.raises(UsageError, match="unknown smooth"):
        craft(dataclasses.replace(options, schemes=("sac-m:smooth=bogus",)), Silent())
