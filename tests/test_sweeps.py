"""bench as a whole, on a small zoo of float vectors: what it keeps, what it does again, and what it does when it is killed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onnxaudit.audit.benchmark import sweep
from onnxaudit.audit.benchmark.figures import ALL, DEPLOYED, INDEPENDENT, SIBLING
from onnxaudit.audit.benchmark.preparing import expanded
from onnxaudit.audit.checking import CheckOptions, check
from onnxaudit.audit.crafting import CraftOptions
from onnxaudit.audit.progress import Silent
from onnxaudit.bundle import load
from onnxaudit.registry import open_suspect
from onnxaudit.report.benchmark import write_results
from onnxaudit.suspect import Target
from onnxaudit.zoo.manifest import load_zoo
from tests.tabular_zoo import save_tabular_zoo
from tests.typed import typed


def swept(folder: Path, output: str, schemes: list[str], budgets: tuple[int, ...], **more: Any) -> list[str]:
    """bench in this process, into a folder; its notes."""
    crafting = CraftOptions(victim=folder / "victim.pt", data=folder / "table.npz", device="cpu")
    place, progress = folder / output, Silent()
    given = {"accesses": ("logits", "label"), "seeds": 2, "cache": place / "cache", "jobs": 1, **more}
    options = sweep.BenchOptions(expanded(schemes, crafting), budgets, output=place, **given)
    place.mkdir(exist_ok=True)
    write_results(sweep.bench(crafting, load_zoo(folder / "zoo.json"), options, progress), "zoo.json", place)
    return progress.notes


SCHEMES, BUDGETS = ["akh", "ipguard-tl", "random"], (10, 20)


def bench(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """bench as users type it."""
    command = [sys.executable, "-m", "onnxaudit", "bench", "zoo.json", "--victim", "victim.pt", "--data", "table.npz"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, "--device", "cpu", *arguments], cwd=folder, capture_output=True, text=True, check=False, env=environment
    )
    assert done.returncode == 0, done.stderr
    return done


def results(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "results.json").read_text())
    return found


def timeless(found: dict[str, Any], part: str) -> list[dict[str, Any]]:
    """Rows without what a clock says."""
    return [{name: value for name, value in row.items() if not name.endswith("seconds")} for row in found[part]]


@pytest.fixture(scope="module")
def tabular(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A zoo of float vectors with a sibling, a model behind a server and one that cannot be opened; swept with two seeds."""
    folder = tmp_path_factory.mktemp("tabular")
    save_tabular_zoo(folder, 3)
    entries = json.loads((folder / "zoo.json").read_text())
    others = [item for item in entries if item["kind"] == "negative"]
    others[0]["kind"] = "sibling"
    entries.append({**others[1], "deployed": ["round:digits=1"]})
    entries.append({"file": "copy0.pt", "kind": "positive", "task": "noise", "deployed": ["round:digits=1"]})
    (folder / "broken.pt").write_bytes(b"no model")
    entries.append({"file": "broken.pt", "kind": "positive", "task": "noise"})
    (folder / "zoo.json").write_text(json.dumps(entries))
    notes = swept(folder, "first", SCHEMES, BUDGETS, composed=True)
    assert any("left out: broken.pt" in note for note in notes)
    return folder


def test_a_sweep_keeps_figures_tables_and_plots(tabular: Path) -> None:
    found = results(tabular / "first")
    assert found["schema"] == "onnxaudit.bench/2"
    facts = found["facts"]
    assert (facts["budgets"], facts["seeds"], facts["accesses"]) == ([10, 20], 2, ["logits", "label"])
    assert facts["combined"] == ["ipguard-tl", "akh"]  # what auto is for vectors; random is measured beside it
    tasks = {row["task"] for row in found["rows"]}
    assert tasks == {"noise", "behind round:digits=1", "behind round:digits=1, both sides", ALL, INDEPENDENT, DEPLOYED, SIBLING}
    samplers = {cell["scheme"].split("+")[0] for cell in found["grid"]}
    assert samplers == {"negative", "boundary", "uniform"}
    assert {model["kind"] for model in found["models"]} == {"positive", "negative", "sibling", "reference"}
    for name in ("roc", "scores", "budget", "cost"):
        for access in ("logits", "label"):
            assert (tabular / "first" / f"{name}-{access}.png").read_bytes().startswith(b"\x89PNG")
            assert "<svg" in (tabular / "first" / f"{name}-{access}.svg").read_text()
    tables = (tabular / "first/results.md").read_text()
    assert all(word in tables for word in ("## The finding", "## TPR@5% by task", "| akh |", "compositions", "Seconds to craft"))


def test_figures_are_means_over_seeds_of_the_scores_that_are_kept(tabular: Path) -> None:
    found = results(tabular / "first")
    kinds = ["" if model["deployed"] else model["kind"] for model in found["models"]]
    for item in found["scores"]:
        (row,) = (
            row
            for row in found["rows"]
            if (row["scheme"], row["access"], row["budget"], row["task"])
            == (item["scheme"], item["access"], item["budget"], INDEPENDENT)
        )
        lows = [
            [s for s, kind in zip(seed, kinds, strict=True) if kind == "negative" and s is not None] for seed in item["seeds"]
        ]
        assert row["innocent_mean"] == pytest.approx(np.mean([np.mean(low) for low in lows]), abs=1e-4)
        assert row["innocent_max"] == pytest.approx(np.mean([max(low) for low in lows]), abs=1e-4)
        assert (row["seeds"], row["positives"], row["auc"]) == (2, 0, None)


def test_a_second_sweep_by_the_command_and_two_processes_asks_nothing_and_finds_the_same(tabular: Path) -> None:
    named = [part for name in SCHEMES for part in ("--scheme", name)]
    known = ["--grid", "--budgets", "10,20", "--seeds", "2", "--cache", "first/cache"]
    done = bench(tabular, *named, *known, "-o", "second", "--jobs", "2")
    first, second = results(tabular / "first"), results(tabular / "second")
    assert first["facts"]["asked"] > 0
    assert second["facts"]["asked"] == 0
    for part in ("rows", "grid", "scores", "models"):
        assert timeless(first, part) == timeless(second, part)
    for name in ("roc-logits.svg", "scores-label.png", "budget-logits.png"):
        assert (tabular / "first" / name).read_bytes() == (tabular / "second" / name).read_bytes()
    assert "left out: broken.pt" in done.stderr
    assert "compositions" in done.stdout
    assert done.stdout.splitlines()[-1].startswith("second: results.json, results.md, roc-logits.svg")


def test_the_finding_is_that_of_check_with_the_bundle_that_is_kept(tabular: Path) -> None:
    found = results(tabular / "first")
    (row,) = (
        r for r in found["rows"] if (r["scheme"], r["access"], r["budget"], r["task"]) == ("combined", "logits", 20, "noise")
    )
    bundle = load(tabular / "first/bundle-seed1.oab")
    (kept,) = (s for s in found["scores"] if (s["scheme"], s["access"], s["budget"]) == ("combined", "logits", 20))
    for place, model in enumerate(found["models"]):
        if model["deployed"] or model["kind"] == "reference":
            continue
        target = Target(str(tabular / model["file"]), bundle.manifest.input, 3, "cpu")
        with open_suspect(target) as suspect:
            report = check(bundle, suspect, CheckOptions(), Silent(), 0.0)
        assert report.score is not None
        assert kept["seeds"][1][place] == pytest.approx(report.score, rel=1e-5)
        assert kept["derived"][1][place] == (report.finding == "derived")
    assert row["seeds"] == 2


KILLED = """
import os, signal, sys
from pathlib import Path
from onnxaudit.audit.benchmark import sweep
from onnxaudit.audit.crafting import CraftOptions
from onnxaudit.audit.benchmark.preparing import expanded
from onnxaudit.audit.progress import Silent
from onnxaudit.zoo.manifest import load_zoo

class Deadly(Silent):
    def task(self, words, total):
        def done(count):
            if words == "asking suspects" and count == 4:
                os.kill(os.getpid(), signal.SIGKILL)
        return done

crafting = CraftOptions(victim=Path("victim.pt"), data=Path("table.npz"), device="cpu")
options = sweep.BenchOptions(expanded(["akh"], crafting), (10,), ("logits",), 1, Path("killed"), Path("killed/cache"), jobs=1)
Path("killed").mkdir()
sweep.bench(crafting, load_zoo(Path("zoo.json")), options, Deadly())
"""


def test_a_sweep_that_was_killed_asks_only_what_it_had_not_asked(tabular: Path) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", KILLED], cwd=tabular, check=False, env=environment)
    assert done.returncode == -signal.SIGKILL
    kept = len(list((tabular / "killed/cache/answers").glob("*.safetensors")))
    assert kept == 6 + 4  # the references, and what was asked before
    asked = []
    for output in ("killed", "fresh"):
        swept(tabular, output, ["akh"], (10,), accesses=("logits",), seeds=1)
        asked.append(results(tabular / output)["facts"]["asked"])
    models = len(results(tabular / "fresh")["models"])
    assert asked[0] * models == asked[1] * (models - kept) > 0
    assert timeless(results(tabular / "killed"), "rows") == timeless(results(tabular / "fresh"), "rows")


def test_runs_that_share_a_cache_do_not_replace_each_others_bundles(tabular: Path) -> None:
    swept(tabular, "shared", ["random"], (10,), accesses=("label",), seeds=1, cache=tabular / "first/cache")
    drafts = sorted((tabular / "first/cache/queries").glob("combined-seed0*.oab"))
    assert len(drafts) == 2
    assert [path.name for path in drafts] == [f"combined-seed0-{load(path).id[:12]}.oab" for path in drafts]


def test_a_victim_that_craft_opens_can_be_measured_without_data_too(
    tabular: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    torch = pytest.importorskip("torch")
    torch.save(torch.jit.load(str(tabular / "victim.pt")).state_dict(), tmp_path / "weights.pt")
    (tmp_path / "shapes.py").write_text(
        "from torch import nn\n\ndef network():\n    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))\n"
    )
    command = [sys.executable, "-m", "onnxaudit", "bench", str(tabular / "zoo.json"), "--victim", "weights.pt", "--jobs", "1"]
    command += ["--scheme", "ipguard-rl", "--queries", "10", "--access", "label", "--device", "cpu", "--model", "shapes:network"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*command, "--input", "8"], cwd=tmp_path, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    assert results(tmp_path / "bench")["facts"]["combined"] == ["ipguard-rl"]
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    for convention in ([], ["--input", "8", "--scale", "1", "--layout", "NC"]):
        assert typed(*command[3:], *convention, capsys=capsys)[0] == 2


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda entries: [item | {"kind": "reference"} for item in entries[:1]] + entries[1:], "lists a model twice"),
        (lambda entries: [item for item in entries if item["kind"] != "negative"], "the zoo has no negatives"),
    ],
)
def test_a_zoo_that_cannot_be_swept_is_refused_in_one_line(
    tabular: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    change: Callable[[list[dict[str, Any]]], list[dict[str, Any]]],
    said: str,
) -> None:
    for file in tabular.glob("*.[np][pt]*"):
        shutil.copy(file, tmp_path / file.name)
    (tmp_path / "zoo.json").write_text(json.dumps(change(json.loads((tabular / "zoo.json").read_text()))))
    monkeypatch.chdir(tmp_path)
    given = ("--victim", "victim.pt", "--data", "table.npz", "--scheme", "akh", "--jobs", "1", "--device", "cpu")
    code, _, err = typed("bench", "zoo.json", *given, capsys=capsys)
    assert code == 2
    assert said in err
    assert len(err.splitlines()) == 1
