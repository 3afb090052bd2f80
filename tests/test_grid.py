"""What the papers find, on the fixtures' zoo where it should hold; and the grid of compositions that shows it."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import pytest

from onnxaudit.audit.benchmark.figures import Cell
from onnxaudit.audit.benchmark.preparing import expanded, prepare
from onnxaudit.audit.benchmark.results import BenchResult
from onnxaudit.audit.benchmark.sweep import BenchOptions, bench
from onnxaudit.audit.crafting import CraftOptions
from onnxaudit.audit.progress import Silent
from onnxaudit.errors import UsageError
from onnxaudit.evidence.metrics import auc
from onnxaudit.schemes.compositions import compositions
from onnxaudit.zoo.manifest import ZooEntry, load_zoo

FIXTURES = Path(__file__).resolve().parent.parent / "fixtures"
ZOO = load_zoo(FIXTURES / "zoo/zoo.json")
LEAKS = ("same", "int8", "finetune", "retrain", "prune")
EXTRACTIONS = ("extract_label", "extract_prob", "extract_adv")
CRAFTING = CraftOptions(victim=FIXTURES / "zoo/victim.pt", data=FIXTURES / "fashion/train.npz", device="cpu")


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> BenchResult:
    """auto and all compositions of its queries, over the fixtures' zoo."""
    folder = tmp_path_factory.mktemp("swept")
    options = BenchOptions(
        expanded(["auto"], CRAFTING), (20, 100, 200), ("logits",), 1, folder, folder / "cache", composed=True, jobs=1
    )
    return bench(CRAFTING, ZOO, options, Silent())


def area(swept: BenchResult, scheme: str, tasks: tuple[str, ...]) -> float:
    """AUC of some tasks against all innocents, the references among them."""
    (scores,) = (item["seeds"][0] for item in swept.scores if (item["scheme"], item["budget"]) == (scheme, 100))
    known = list(zip(swept.models, scores, strict=True))
    derived = [score for model, score in known if model["kind"] == "positive" and model["task"] in tasks]
    return auc(derived, [score for model, score in known if model["kind"] in ("negative", "reference")])


def test_ipguard_finds_leaks_and_misses_extraction(swept: BenchResult) -> None:
    assert area(swept, "ipguard-tl", LEAKS) == 1.0
    assert area(swept, "ipguard-tl", EXTRACTIONS) < 0.7


@pytest.mark.parametrize("scheme", ["sac-m", "akh"])
def test_natural_and_listwise_schemes_beat_ipguard_on_extraction(swept: BenchResult, scheme: str) -> None:
    assert area(swept, scheme, EXTRACTIONS) > area(swept, "ipguard-tl", EXTRACTIONS) + 0.1
    assert area(swept, scheme, LEAKS) > 0.9


def cell(swept: BenchResult, name: str, budget: int) -> Cell:
    (found,) = (cell for cell in swept.cells if (cell.scheme, cell.budget) == (name, budget))
    return found


def share(swept: BenchResult, name: str, budget: int) -> float:
    found = cell(swept, name, budget).tpr_at_5
    assert found is not None
    return found


def test_more_queries_help_labels_and_do_not_help_listwise_comparison(swept: BenchResult) -> None:
    """QuRD figure 4: AKH rises with the budget, SAC falls from 20 queries to 400."""
    assert share(swept, "negative+labels+matching-rate", 200) > share(swept, "negative+labels+matching-rate", 20)
    assert share(swept, "negative+correlation+l2", 200) < share(swept, "negative+correlation+l2", 20)


def test_the_grid_has_every_composition_of_its_queries_at_every_budget(swept: BenchResult) -> None:
    expected = {scheme.name for scheme in compositions() if scheme.sampler in ("boundary", "cutmix", "negative")}
    assert {found.scheme for found in swept.cells} == expected
    assert {found.budget for found in swept.cells} == {20, 100, 200}
    assert len(swept.cells) == 3 * len(expected)
    total = {entry.task: sum(e.task == entry.task for e in ZOO if e.kind == "positive") for entry in ZOO}
    for found in swept.cells:
        if found.scheme == "negative+correct+cosine":  # the victim is right nowhere, and nothing has the direction of zero
            assert found.tpr_at_5 is None
            continue
        assert found.tpr_at_5 is not None, found.scheme
        assert (found.positives, found.negatives) == (14, 12 + 42)
        assert set(found.by_task) == {*LEAKS, *EXTRACTIONS}
        weighted = sum((share or 0.0) * total[task] for task, share in found.by_task.items()) / 14
        assert found.tpr_at_5 == pytest.approx(weighted, abs=1e-5)  # one threshold for all tasks: that of the innocents


def test_a_scheme_and_the_composition_that_it_is_have_the_same_figures(swept: BenchResult) -> None:
    """But for the innocents: a scheme's threshold comes from models that calibrate nothing."""
    (row,) = (row for row in swept.rows if (row.scheme, row.budget, row.task) == ("akh", 200, "all"))
    assert (row.positives, row.negatives) == (14, 12)
    assert cell(swept, "negative+labels+matching-rate", 200).queries == row.queries == 200


def prepared(folder: Path, crafting: CraftOptions) -> tuple[set[str], dict[str, str]]:
    """Samplers that carry compositions, and what is left out."""
    found = prepare(crafting, None, (50,), 1, folder, Silent(), composed=True, full=False)
    return {draw.schemes[0].sampler for draw in found.draws if draw.composed}, dict(found.left_out)


def test_a_sampler_that_needs_what_is_not_there_is_left_out_with_the_reason(tmp_path: Path) -> None:
    carriers, left_out = prepared(tmp_path, CRAFTING)
    assert {"boundary", "negative", "cutmix"} <= carriers
    assert not carriers & {"shared-negative", "meta", "conferrable"}
    assert left_out["sac-w"] == "needs surrogates"
    assert left_out["meta+…"] == "needs surrogates and references"


@pytest.mark.parametrize("kind", ["reference", "positive", "negative"])
def test_a_zoo_that_lacks_a_kind_is_refused(kind: str, tmp_path: Path) -> None:
    some: list[ZooEntry] = [entry for entry in ZOO if entry.kind != kind]
    options = BenchOptions(expanded(["akh"], CRAFTING), (20,), ("logits",), 1, tmp_path, tmp_path / "cache", jobs=1)
    with pytest.raises(UsageError, match=f"the zoo has no {kind}s"):
        bench(CRAFTING, some, options, Silent())


def test_a_model_does_not_help_to_make_the_queries_that_it_is_judged_by(tmp_path: Path) -> None:
    of = {kind: next(entry.file for entry in ZOO if entry.kind == kind) for kind in ("reference", "positive")}
    for name, kind in (("innocent.onnx", "reference"), ("renamed.onnx", "positive")):
        shutil.copyfile(of[kind], tmp_path / name)
    options = BenchOptions(expanded(["akh"], CRAFTING), (20,), ("logits",), 1, tmp_path, tmp_path / "cache", jobs=1)
    with pytest.raises(UsageError, match=r"are judged by them: \S*renamed.onnx is \S+.onnx\. Give"):
        bench(dataclasses.replace(CRAFTING, surrogates=tmp_path), ZOO, options, Silent())
