"""What the papers find, on the fixtures' zoo where it should hold; and the grid of compositions that shows it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from onnxaudit.answers import Access
from onnxaudit.audit.benching import ask_zoo
from onnxaudit.audit.comparing import compare
from onnxaudit.audit.crafting import CraftOptions, craft
from onnxaudit.audit.grid import Cell, carriers, grid
from onnxaudit.audit.progress import Silent
from onnxaudit.bundle import QueryBundle
from onnxaudit.errors import UsageError
from onnxaudit.evidence.metrics import auc
from onnxaudit.report.benchmark import grid_table
from onnxaudit.schemes.compositions import compositions
from onnxaudit.schemes.samplers import Need
from onnxaudit.zoo.manifest import ZooEntry, load_zoo

FIXTURES = Path(__file__).resolve().parent.parent / "fixtures"
ZOO = load_zoo(FIXTURES / "zoo/zoo.json")
REFERENCES = [Path(entry.file) for entry in ZOO if entry.kind == "reference"]
LEAKS = ("same", "int8", "finetune", "retrain", "prune")
EXTRACTIONS = ("extract_label", "extract_prob", "extract_adv")


@pytest.fixture(scope="module")
def scores(crafted: QueryBundle) -> Mapping[str, Mapping[str, list[float]]]:
    """Scores of the zoo's suspects by scheme and task, "" for independent ones, the references among them."""
    found: dict[str, dict[str, list[float]]] = {}
    references = [crafted.answers[model.id] for model in crafted.manifest.of_role("reference")]
    entries = [entry for entry in ZOO if entry.kind in ("positive", "negative")]
    for asked in ask_zoo(crafted, entries, "cpu", Silent()):
        for scheme in compare(crafted, references, asked.answers).schemes:
            assert scheme.scores is not None
            of = found.setdefault(scheme.name, {"": scheme.scores[:-1].tolist()})
            of.setdefault(asked.entry.task if asked.entry.kind == "positive" else "", []).append(float(scheme.scores[-1]))
    return found


def area(of: Mapping[str, list[float]], tasks: tuple[str, ...]) -> float:
    return auc([score for task in tasks for score in of[task]], of[""])


def test_ipguard_finds_leaks_and_misses_extraction(scores: Mapping[str, Mapping[str, list[float]]]) -> None:
    assert area(scores["ipguard-tl"], LEAKS) == 1.0
    assert area(scores["ipguard-tl"], EXTRACTIONS) < 0.7


@pytest.mark.parametrize("scheme", ["sac-m", "akh"])
def test_natural_and_listwise_schemes_beat_ipguard_on_extraction(
    scores: Mapping[str, Mapping[str, list[float]]], scheme: str
) -> None:
    assert area(scores[scheme], EXTRACTIONS) > area(scores["ipguard-tl"], EXTRACTIONS) + 0.1
    assert area(scores[scheme], LEAKS) > 0.9


@pytest.fixture(scope="module")
def cells() -> list[Cell]:
    """The grid of the victim's errors, with scores."""
    options = CraftOptions(
        victim=FIXTURES / "zoo/victim.pt",
        data=FIXTURES / "fashion/train.npz",
        schemes=("negative+labels+matching-rate",),
        queries=200,
        controls=0,
        reference_files=REFERENCES,
        device="cpu",
    )
    return grid(craft(options, Silent()), ZOO, [20, 200], (Access.LOGITS, 1), Silent(), "cpu")


def cell(cells: list[Cell], name: str, budget: int) -> float:
    (found,) = (cell.tpr_at_5 for cell in cells if (cell.scheme, cell.budget) == (name, budget))
    assert found is not None
    return found


def test_more_queries_help_labels_and_do_not_help_listwise_comparison(cells: list[Cell]) -> None:
    """QuRD figure 4: AKH rises with the budget, SAC falls from 20 queries to 400."""
    assert cell(cells, "negative+labels+matching-rate", 200) > cell(cells, "negative+labels+matching-rate", 20)
    assert cell(cells, "negative+correlation+l2", 200) < cell(cells, "negative+correlation+l2", 20)


def test_the_grid_has_every_composition_of_its_queries_at_every_budget(cells: list[Cell]) -> None:
    expected = {scheme.name for scheme in compositions() if scheme.sampler == "negative"}
    assert {cell.scheme for cell in cells} == expected
    assert {cell.budget for cell in cells} == {20, 200}
    assert len(cells) == 2 * len(expected)
    for found in cells:
        if found.scheme == "negative+correct+cosine":  # the victim is right nowhere, and nothing has the direction of zero
            assert found.tpr_at_5 is None
            continue
        assert found.tpr_at_5 is not None, found.scheme
        assert 0 <= found.tpr_at_5 <= 1
        assert set(found.by_task) == {*LEAKS, *EXTRACTIONS}
        total = {entry.task: sum(e.task == entry.task for e in ZOO if e.kind == "positive") for entry in ZOO}
        weighted = sum(share * total[task] for task, share in found.by_task.items()) / 14
        assert found.tpr_at_5 == pytest.approx(weighted)  # one threshold for all tasks: that of the innocents
    table = grid_table(cells, [20, 200]).splitlines()
    assert len(table) == len(expected) + 1
    last = [float(line.split()[-2]) for line in table[1:-1]]
    assert last == sorted(last, reverse=True)
    assert table[-1].split() == ["negative+correct+cosine", "-", "-", "-"]


def test_a_sampler_that_needs_what_is_not_there_is_not_in_the_grid() -> None:
    names = {scheme.sampler for scheme in carriers(available=Need.DATA | Need.GRADIENTS)}
    assert "boundary" in names
    assert not names & {"negative", "cutmix", "shared-negative", "meta"}


def test_a_zoo_without_innocents_is_refused(crafted: QueryBundle) -> None:
    derived: list[ZooEntry] = [entry for entry in ZOO if entry.kind != "negative"]
    with pytest.raises(UsageError, match="the zoo has no negatives"):
        grid(crafted, derived, [20], (Access.LOGITS, 1), Silent(), "cpu")


def test_the_command_prints_and_keeps_the_grid(tmp_path: Path) -> None:
    """On float vectors: schemes that work on images leave themselves out."""
    rng = np.random.default_rng(0)
    program = Path(__file__).parent / "tabular_zoo.py"
    subprocess.run([sys.executable, str(program), str(tmp_path), str(rng.integers(2**31))], check=True)
    command = [sys.executable, "-m", "onnxaudit", "bench", "zoo.json", "--victim", "victim.pt", "--data", "table.npz"]
    done = subprocess.run(
        [*command, "--grid", "--budgets", "10,20", "--device", "cpu"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    kept = json.loads((tmp_path / "bench/grid.json").read_text())
    assert kept["schema"] == "onnxaudit.grid/1"
    assert kept["budgets"] == [10, 20]
    samplers = {cell["scheme"].split("+")[0] for cell in kept["cells"]}
    assert {"uniform", "negative", "boundary", "deepfool", "adversarial", "uap"} <= samplers
    assert not samplers & {"cutmix", "subsample", "negative-augment"}
    assert f"{len({cell['scheme'] for cell in kept['cells']})} compositions" in done.stdout
