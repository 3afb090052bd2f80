"""zoo build: plans, what is kept and what is made again, after kills, damage and changes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from onnxaudit.audit.building import ZooOptions, build_zoo
from onnxaudit.audit.crafting import CraftOptions
from onnxaudit.audit.progress import Silent
from onnxaudit.craft.data import load_data
from onnxaudit.errors import ArtefactError, UsageError
from onnxaudit.registry import deployed_as, open_suspect
from onnxaudit.suspect import InputSpec, Target
from onnxaudit.zoo.manifest import load_zoo
from onnxaudit.zoo.recipe_file import SHIPPED, find_plan, load_plan

FIXTURES = Path(__file__).parent.parent / "fixtures"
SMALL = """
[data]
queries = 200
test = 200
parts = { own = [0.0, 0.5], attacker = [0.5, 1.0] }
[architectures]
mlp = { images = 3000, batch = 32, width = 0.5 }
[victim]
arch = "mlp"
[[model]]
kind = "positive"
task = "same"
method = "export"
[[model]]
kind = "positive"
task = "quantise"
method = "int8-dynamic"
[[model]]
kind = "positive"
task = "prune"
name = "prune"
method = "prune-weights"
part = "attacker"
share = [0.2, 0.5]
images = 600
[[model]]
kind = "positive"
task = "extract"
method = "extract-labels"
part = "attacker"
arch = "mlp"
least = 0.99
[[model]]
kind = "negative"
part = ["own", "attacker"]
arch = "mlp"
[[model]]
kind = "sibling"
task = "sibling"
like_victim = true
[[deployed]]
of = ["same"]
steps = ["jpeg:quality=50", ["round:digits=1", "label"]]
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with np.load(FIXTURES / "fashion/train.npz") as arrays:
        path = tmp_path_factory.mktemp("data") / "data.npz"
        np.savez(path, x=arrays["x"][:1400], y=arrays["y"][:1400])
    return path


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Path:
    folder = tmp_path_factory.mktemp("zoo")
    (folder / "zoo.toml").write_text(SMALL)
    build_zoo(ZooOptions(data, str(folder / "zoo.toml"), folder / "out", jobs=1), Silent())
    return folder


def build(zoo: Path, data: Path, text: str = SMALL, **more: Any) -> Any:
    (zoo / "other.toml").write_text(text)
    return build_zoo(ZooOptions(data, str(zoo / "other.toml"), zoo / "out", jobs=1, **more), Silent())


def test_the_manifest_lists_what_was_planned_with_all_that_made_it(zoo: Path, data: Path) -> None:
    entries = {entry.name: entry for entry in load_zoo(zoo / "out/zoo.json")}
    assert set(entries) >= {"same", "quantise", "prune-share-0.2", "prune-share-0.5", "sibling", "same-behind-jpeg-quality50"}
    pruned = entries["prune-share-0.5"]
    assert pruned.parent == "victim"
    assert pruned.recipe["share"] == 0.5
    assert pruned.recipe["part"] == "attacker"
    assert pruned.seed == pruned.recipe["seed"]
    assert pruned.data_sha256 is not None
    twins = entries["sibling"], entries["same"]
    assert twins[0].recipe["arch"] == "mlp"
    assert twins[0].seed != load_plan(zoo / "zoo.toml", 1400, 0).victim.seed
    behind = entries["same-behind-round-digits1+label"]
    assert behind.deployed == ("round:digits=1", "label")
    assert behind.file == entries["same"].file
    names = {(entry.kind, entry.task) for entry in entries.values()}
    assert ("negative", "independent") in names


def test_accuracy_is_that_of_the_file_as_it_is_deployed(zoo: Path, data: Path) -> None:
    whole = load_data(data)
    order = np.random.default_rng(int(whole.sha256[:8], 16)).permutation(len(whole))
    assert whole.y is not None
    x, y = whole.x[order[200:400]], whole.y[order[200:400]]
    for entry in load_zoo(zoo / "out/zoo.json"):
        with open_suspect(Target(entry.file, InputSpec((28, 28, 1)), 10)) as model:
            asked = deployed_as(model, entry.deployed) if entry.deployed else model
            assert entry.accuracy == pytest.approx(float((asked.ask(x).labels == y).mean()), abs=1e-4)


def test_what_crafts_queries_trained_no_model_and_tests_none(zoo: Path, data: Path) -> None:
    crafted, whole = load_data(zoo / "out/craft.npz"), load_data(data)
    order = np.random.default_rng(int(whole.sha256[:8], 16)).permutation(len(whole))
    np.testing.assert_array_equal(crafted.x, whole.x[order[:200]])
    for entry in load_zoo(zoo / "out/zoo.json"):
        if "rows_from" in entry.recipe:
            assert entry.recipe["rows_from"] >= 400


def test_nothing_is_made_twice_and_damage_and_changes_are_made_good(zoo: Path, data: Path) -> None:
    again = build(zoo, data)
    assert again.made == 0
    first = {entry.name: entry for entry in again.entries}
    victim = (zoo / "out" / first["prune-share-0.2"].file).read_bytes()
    path = zoo / "out" / first["prune-share-0.2"].file
    path.write_bytes(victim[:-7])
    mended = build(zoo, data)
    assert mended.made == 1
    assert path.read_bytes() == victim  # deterministic
    changed = build(zoo, data, SMALL.replace("share = [0.2, 0.5]", "share = [0.2, 0.4]"))
    assert changed.made == 1
    assert {entry.name for entry in changed.entries} >= {"prune-share-0.2", "prune-share-0.4"}
    renamed = build(zoo, data, SMALL.replace('task = "prune"', 'task = "sparse"'))
    assert renamed.made == 0
    assert {entry.task for entry in renamed.entries} >= {"sparse"}


def test_a_model_that_falls_short_is_left_out_and_said(zoo: Path, data: Path) -> None:
    built = build(zoo, data, SMALL.replace("least = 0.99", "least = 1.5"))
    assert "accuracy" in built.left_out["extract"]
    assert "extract" not in {entry.name for entry in built.entries}


def test_killed_in_the_middle_it_goes_on_with_what_was_completed(tmp_path: Path, data: Path) -> None:
    (tmp_path / "zoo.toml").write_text(SMALL.replace("images = 3000", "images = 6000"))
    command = [sys.executable, "-m", "onnxaudit", "zoo", "build", "--data", str(data)]
    command += ["--recipe", str(tmp_path / "zoo.toml"), "-o", str(tmp_path / "out"), "--jobs", "1"]
    running = subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True)
    deadline = time.monotonic() + 60
    while len(list((tmp_path / "out/models").glob("*.json"))) < 3:
        assert running.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)  # waits for another process
    os.killpg(running.pid, signal.SIGKILL)
    running.wait()
    whole = [json.loads(facts.read_text())["key"] for facts in (tmp_path / "out/models").glob("*.json")]
    built = build_zoo(ZooOptions(data, str(tmp_path / "zoo.toml"), tmp_path / "out", jobs=1), Silent())
    assert built.made == len(built.entries) + len(built.left_out) - len(whole)
    for entry in load_zoo(built.manifest):
        onnx.checker.check_model(onnx.load(entry.file))


def test_a_victim_of_ones_own_is_derived_from_in_every_way(tmp_path: Path, data: Path) -> None:
    (tmp_path / "zoo.toml").write_text(SMALL)
    victim = CraftOptions(FIXTURES / "zoo/victim.pt", data)
    built = build_zoo(ZooOptions(data, str(tmp_path / "zoo.toml"), tmp_path / "out", victim, jobs=1), Silent())
    assert built.left_out["sibling"].startswith("the recipe of a victim")
    found = {entry.name: entry for entry in built.entries}
    assert found["same"].accuracy is not None
    assert found["same"].accuracy > 0.85
    assert (tmp_path / "out/victim.pt").read_bytes() == (FIXTURES / "zoo/victim.pt").read_bytes()
    (tmp_path / "zoo.toml").write_text('[data]\nqueries=200\ntest=200\n[[model]]\nkind="sibling"\nlike_victim=true\n')
    with pytest.raises(UsageError, match="nothing of this recipe"):
        build_zoo(ZooOptions(data, str(tmp_path / "zoo.toml"), tmp_path / "o", victim, jobs=1), Silent())


def test_adding_a_model_leaves_the_seeds_of_others(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text(SMALL)
    (tmp_path / "b.toml").write_text(SMALL.replace("share = [0.2, 0.5]", "share = [0.1, 0.2, 0.5]"))
    one, two = (
        {model.name: model.recipe for model in load_plan(tmp_path / name, 1400, 7).models} for name in ("a.toml", "b.toml")
    )
    assert one.items() <= two.items()
    other = {model.name: model.recipe for model in load_plan(tmp_path / "a.toml", 1400, 8).models}
    assert all(other[name].seed != one[name].seed for name in ("prune-share-0.2", "sibling", "extract"))


@pytest.mark.parametrize("name", sorted(path.stem for path in SHIPPED.glob("*.toml")))
def test_shipped_plans_are_hard_and_whole(name: str) -> None:
    plan = load_plan(find_plan(name), 70_000, 0)
    kinds = [model.kind for model in plan.models]
    assert kinds.count("positive") + kinds.count("negative") >= 150
    assert kinds.count("negative") >= 59  # bounds a false positive rate of 5 % at 95 % confidence (methods of calibration)
    assert kinds.count("reference") >= 39
    tasks = {model.task for model in plan.models if model.kind == "positive"}
    assert tasks >= {"same", "quantise", "fine-tune-last", "fine-tune-all", "retrain-last", "retrain-all"}
    assert tasks >= {"adversarial-fine-tune", "prune-weights", "prune-filters", "fine-prune", "weight-noise"}
    assert tasks >= {"extract-labels", "extract-probabilities", "extract-top-k", "extract-adversarially"}
    assert tasks >= {"transfer-last", "transfer-all"}
    innocents = [model for model in plan.models if model.kind == "negative"]
    assert any(model.recipe.adversarial > 0 for model in innocents)
    assert any(model.method == "forest" for model in innocents)
    assert any(model.deployed for model in innocents)
    assert any(model.labels for model in innocents)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (('method = "export"', 'method = "exprot"'), "unknown method 'exprot'"),
        (('part = "attacker"\nshare', 'part = "elsewhere"\nshare'), "unknown part 'elsewhere'"),
        (('kind = "positive"', 'kind = "guilty"'), "kind must be one of"),
        (("share = [0.2, 0.5]", "share = [0.2, 0.2]"), "plans prune-share-0.2 twice"),
        (('of = ["same"]', 'of = ["sane"]'), "'sane'"),
        (('jpeg:quality=50', 'jpeg:quality=5000'), "quality"),
        (("queries = 200", "queries = 1300"), "do not suit"),
        (("own = [0.0, 0.5]", "own = [0.5, 0.5]"), "part own must go"),
        (("[architectures]", "[architecture]"), "unknown table 'architecture'"),
        (("images = 600", "image = 600"), "image"),
        (('arch = "mlp"\nleast', 'arch = "mpl"\nleast'), "mpl"),
        (('[[model]]\nkind = "negative"', '[[model]]\nlabels = "digits"\nkind = "negative"'), "unknown label set 'digits'"),
        (('kind = "negative"\npart = ["own", "attacker"]', 'kind = "positive"\npart = "own"'), "cannot make a positive"),
        (('kind = "positive"\ntask = "extract"', 'kind = "negative"\ntask = "extract"'), "cannot make a negative"),
        (('kind = "sibling"', 'kind = "reference"'), "trained as the victim"),
        (("like_victim = true", "share = 0.5"), "no option 'share'"),
        (("share = [0.2, 0.5]", "share = [0.2, 1.5]"), "share = 1.5 is out of range"),
        (("share = [0.2, 0.5]", 'share = "most"'), "must be float"),
        (("batch = 32", "batch = 0"), "batch = 0 is out of range"),
        (("mlp = {", "mlp = 3 #"), "must be an object"),
        (('[[model]]\nkind = "sibling"', '[model]\nkind = "sibling"'), "TOML|must be written"),
        (("attacker = [0.5, 1.0] }", "attacker = [0.5, 1.0], test = [0.0, 1.0] }"), "cannot be called 'test'"),
        (('name = "prune"', 'name = "../../prune"'), "letters, digits"),
        (('steps = ["jpeg:quality=50",', "steps = [3,"), "no step of a server"),
    ],
)  # fmt: skip
def test_a_wrong_recipe_is_refused_before_anything_is_trained(
    tmp_path: Path, data: Path, change: tuple[str, str], message: str
) -> None:
    assert change[0] in SMALL
    (tmp_path / "zoo.toml").write_text(SMALL.replace(*change))
    with pytest.raises((UsageError, ArtefactError), match=message):
        build_zoo(ZooOptions(data, str(tmp_path / "zoo.toml"), tmp_path / "out", jobs=1), Silent())
    assert not list((tmp_path / "out/models").glob("*.onnx"))


def test_data_without_labels_and_files_that_are_no_recipes_are_refused(tmp_path: Path, data: Path) -> None:
    np.savez(tmp_path / "bare.npz", x=load_data(data).x)
    with pytest.raises(UsageError, match="labelled"):
        build_zoo(ZooOptions(tmp_path / "bare.npz", "standard", tmp_path / "out"), Silent())
    with pytest.raises(UsageError, match="standard"):
        build_zoo(ZooOptions(data, "nonsense", tmp_path / "out"), Silent())
    (tmp_path / "no.toml").write_text("= 3")
    with pytest.raises(ArtefactError, match="not valid TOML"):
        build_zoo(ZooOptions(data, str(tmp_path / "no.toml"), tmp_path / "out"), Silent())


def test_what_cannot_be_made_from_a_victim_is_left_out_and_the_rest_is_made(zoo: Path, data: Path) -> None:
    text = SMALL + '[[model]]\nkind = "positive"\nmethod = "prune-filters"\nshare = 0.3\n'
    built = build(zoo, data, text)
    assert "no convolutions" in built.left_out["prune-filters"]
    assert built.made == 0


def test_networks_of_images_are_refused_for_vectors_before_anything_is_trained(tmp_path: Path) -> None:
    np.savez(tmp_path / "v.npz", x=np.random.default_rng(0).normal(size=(20_000, 5)).astype(np.float32), y=np.arange(20_000) % 2)
    with pytest.raises(UsageError, match="takes images"):
        build_zoo(ZooOptions(tmp_path / "v.npz", "standard", tmp_path / "out"), Silent())
    (tmp_path / "v.toml").write_text(SMALL.partition("[[deployed]]")[0].replace('method = "int8-dynamic"', 'method = "fp16"'))
    built = build_zoo(ZooOptions(tmp_path / "v.npz", str(tmp_path / "v.toml"), tmp_path / "out", jobs=1), Silent())
    assert {entry.name for entry in built.entries} >= {"same", "quantise", "sibling", "prune-share-0.5"}


def test_gradients_can_be_taken_of_references(zoo: Path, data: Path) -> None:
    text = SMALL + '[[model]]\nkind = "reference"\nname = "reference"\narch = "mlp"\npart = "attacker"\nlr = 2e-3\n'
    first = build(zoo, data, text)
    entry = next(entry for entry in first.entries if entry.kind == "reference")
    script = (zoo / "out" / entry.file).with_suffix(".torchscript")
    x = torch.rand(2, 1, 28, 28, requires_grad=True)
    torch.jit.load(str(script))(x).sum().backward()
    assert x.grad is not None
    assert x.grad.abs().sum() > 0
    script.unlink()
    assert build(zoo, data, text).made == 1


def test_recipes_that_are_each_others_base_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text('base = "b.toml"')
    (tmp_path / "b.toml").write_text('base = "a.toml"')
    with pytest.raises(UsageError, match="each other's base"):
        load_plan(tmp_path / "a.toml", 1000, 0)


def test_a_victim_that_was_damaged_or_opened_otherwise_takes_its_models_with_it(tmp_path: Path, data: Path) -> None:
    (tmp_path / "zoo.toml").write_text(SMALL)
    options = ZooOptions(data, str(tmp_path / "zoo.toml"), tmp_path / "out", jobs=1)
    build_zoo(options, Silent())
    (tmp_path / "out/victim.pt").write_bytes(b"")
    assert build_zoo(options, Silent()).made == 0  # trained again to the same weights, and whole again
    assert (tmp_path / "out/victim.pt").stat().st_size > 1000
    of_own = [
        ZooOptions(
            data, str(tmp_path / "zoo.toml"), tmp_path / "own", CraftOptions(FIXTURES / "zoo/victim.pt", data, mean=mean), jobs=1
        )
        for mean in ((0.05,), (0.0,))
    ]
    wrong, right = (build_zoo(one, Silent()) for one in of_own)
    assert right.made >= 5  # all that was derived under the wrong convention
    accuracies = [next(entry.accuracy for entry in built.entries if entry.name == "same") for built in (wrong, right)]
    assert accuracies[0] is not None
    assert accuracies[1] is not None
    assert accuracies[0] != accuracies[1]
