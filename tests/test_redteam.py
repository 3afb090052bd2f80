"""redteam: an accuser who cheats, and a party who hides; the tables say what judge() says."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from onnxaudit.audit.crafting import CraftOptions
from onnxaudit.audit.judging.judging import judge
from onnxaudit.audit.progress import Silent
from onnxaudit.audit.redteam.accusing import (
    AGAINST_REFERENCES,
    ASKED,
    ATTACKS,
    BLIND,
    CHOSEN_DATA,
    DATA_AGAINST_REFERENCES,
    STRONG,
    WHITE_BOX,
    Claim,
    Court,
    Trial,
    accuse,
    agreement,
    binomial_p,
    divided,
    narrowed,
    reproduces,
    scheme_of,
)
from onnxaudit.audit.redteam.hiding import Hidden, servers_for, without_queries
from onnxaudit.audit.redteam.redteaming import Redteam, RedteamOptions, redteam
from onnxaudit.bundle import QueryBundle
from onnxaudit.craft.data import load_data
from onnxaudit.craft.onnx_program import open_onnx_program
from onnxaudit.craft.victim import Victim, open_victim
from onnxaudit.errors import UsageError
from onnxaudit.interview import interview
from onnxaudit.registry import deployed_as, open_suspect
from onnxaudit.report.model import DERIVED
from onnxaudit.report.redteam import accused_rows, redteam_json, redteam_text, servers_rows, ways_rows, write_redteam
from onnxaudit.suspect import InputSpec, Target
from onnxaudit.zoo.attacks import Way, derive
from onnxaudit.zoo.naturalness import roughness
from tests.bundles import save_linear
from tests.conftest import FIXTURES, ZOO
from tests.material import SHAPE, shipped

REFERENCES = sorted((ZOO / "references").glob("*.onnx"))
HELD_OUT = [ZOO / "suspects" / f"{name}.onnx" for name in ("other-resnet", "weak-mlp", "hardened-vgg", "other-lenet")]
QUERIES, ALPHA = 40, 0.05
SPEC = InputSpec(SHAPE)


@pytest.fixture(scope="module")
def shipped_court(tmp_path_factory: pytest.TempPathFactory) -> Court:
    """The shipped victim and references, and part of its data."""
    folder, material = tmp_path_factory.mktemp("court"), shipped()
    x, y = material.labelled()
    np.savez(folder / "data.npz", x=x.x, y=y)
    data = load_data(folder / "data.npz")
    return Court(
        _options(ZOO / "victim.pt", folder / "data.npz"), material.victim, data, REFERENCES, divided(REFERENCES, 3), folder
    )


@pytest.fixture(scope="module")
def blind(shipped_court: Court) -> QueryBundle:
    """Honest adversarial examples that transfer, with all references."""
    return shipped_court.with_references(shipped_court.crafted(scheme_of(STRONG), QUERIES, 3))


def _options(victim: Path, data: Path) -> CraftOptions:
    given = CraftOptions(victim=victim, data=data, device="cpu", seed=3, jobs=1)
    return dataclasses.replace(given, scale=SPEC.scale, layout=SPEC.layout, mean=(), std=())


@pytest.fixture(scope="module")
def linear(tmp_path_factory: pytest.TempPathFactory) -> Court:
    """A linear victim, twelve references and an innocent, each fitted to other images: queries take no time."""
    folder = tmp_path_factory.mktemp("linear")
    with np.load(FIXTURES / "fashion/test.npz") as known:
        x, y = known["x"].reshape(-1, 784).astype(np.float64) / 255, np.eye(10)[known["y"]] - 0.1

    def fitted(seed: int, count: int = 500) -> np.ndarray[Any, np.dtype[np.float32]]:
        rows = np.random.default_rng(seed).choice(len(x), count, replace=False)
        solved = np.linalg.solve(x[rows].T @ x[rows] + 5 * np.eye(784), x[rows].T @ y[rows])
        weights: np.ndarray[Any, np.dtype[np.float32]] = (10 * solved).astype(np.float32)
        return weights

    dense = torch.nn.Linear(784, 10, bias=False)
    with torch.no_grad():
        dense.weight.copy_(torch.from_numpy(fitted(0).T.copy()))
    network = torch.nn.Sequential(torch.nn.Flatten(), dense)
    torch.jit.save(torch.jit.trace(network.eval(), torch.zeros(2, 1, 28, 28)), str(folder / "victim.pt"))
    (folder / "references").mkdir()
    references = [save_linear(folder / "references" / f"{seed:02}.onnx", weights=fitted(seed)) for seed in range(1, 13)]
    (folder / "innocents").mkdir()
    save_linear(folder / "innocents/innocent.onnx", weights=fitted(20, 150))
    material = shipped().inputs().take(np.arange(800))
    np.savez(folder / "data.npz", x=material.x, y=np.asarray(material.y))
    options = _options(folder / "victim.pt", folder / "data.npz")
    victim = open_victim(folder / "victim.pt", SPEC, device="cpu").probed()
    return Court(options, victim, load_data(folder / "data.npz"), references, divided(references, 3), folder)


@pytest.fixture(scope="module")
def claims(linear: Court) -> list[Claim]:
    """One innocent accused in every way."""
    ((_, found),) = accuse(linear, [linear.folder / "innocents/innocent.onnx"], 16, Silent())
    return found


# -------------------------------------------------------------------------------------------------------------- the accuser


def test_transferable_examples_accuse_by_counting_and_not_by_calibration(shipped_court: Court, blind: QueryBundle) -> None:
    """The attack of Liu et al.: references in turn as the innocent, and models that nobody held; the error rate holds."""
    innocents = (*REFERENCES[::2], *HELD_OUT)
    found = [Trial(shipped_court, path, Silent()).claim(BLIND, blind, blind, reproduced=True) for path in innocents]
    count = len(innocents)
    assert sum(claim.p_chance <= ALPHA for claim in found) >= count / 2, "the attack must be one"
    assert sum(claim.p_usual <= ALPHA for claim in found) > 2 * ALPHA * count, "what others usually match does not help"
    for who in ("derived", "judges_derived"):
        accused = sum(getattr(claim, who) for claim in found)
        assert stats.binomtest(accused, count, ALPHA, alternative="greater").pvalue > 0.05
    p_values = np.array([claim.p_value for claim in found])
    for level in (0.1, 0.2, 0.5):
        assert stats.binomtest(int((p_values <= level).sum()), count, level, alternative="greater").pvalue > 0.05


def test_what_a_claim_says_is_what_judge_says(linear: Court, claims: list[Claim]) -> None:
    claim = claims[0]
    assert [claim.attack for claim in claims] == [attack for attack in ATTACKS if attack in {c.attack for c in claims}]
    assert {BLIND, WHITE_BOX, AGAINST_REFERENCES} <= {claim.attack for claim in claims}
    bundle = linear.with_references(linear.crafted(scheme_of(STRONG), 16, 3))
    mine = tuple(m for m in bundle.manifest.models if m.role == "victim" or m.source not in linear.theirs)
    pool = dataclasses.replace(bundle, manifest=dataclasses.replace(bundle.manifest, models=mine))
    with open_suspect(Target(str(linear.folder / "innocents/innocent.onnx"), SPEC, 10, "cpu")) as model:
        answers = interview(model, bundle.queries).answers
        report = judge(pool, model.card, answers, None)
    assert (claim.p_value, claim.derived) == (report.p_value, report.finding == DERIVED)
    asked = bundle.manifest.controls[0]
    assert claim.queries == asked
    assert claim.matched == (answers.labels[:asked] == bundle.answers["victim"].labels[:asked]).sum()
    rates = [agreement(bundle, bundle.answers[m.id]).mean() for m in mine if m.role == "reference"]
    assert claim.usual == pytest.approx(np.mean(rates))
    for p, rate in ((claim.p_chance, 0.1), (claim.p_usual, claim.usual)):
        assert p == pytest.approx(stats.binomtest(claim.matched, asked, rate, alternative="greater").pvalue)


def test_queries_that_know_the_innocent_frame_it_by_counting_and_do_not_come_out_again(claims: list[Claim]) -> None:
    """Who chooses by the innocent's answers has a matching rate of one; only queries from chosen data come out again."""
    assert len(claims) >= 4
    for claim in claims:
        if claim.attack != BLIND:
            assert claim.matched == claim.queries
            assert claim.p_chance < 1e-4
        assert claim.reproduced == (claim.attack in (BLIND, CHOSEN_DATA, DATA_AGAINST_REFERENCES))


def test_queries_that_the_judge_crafts_do_not_know_the_innocent(claims: list[Claim]) -> None:
    """By the stated method from all of the data with another seed: they are the same whatever the accuser did."""
    for attacks in ((BLIND, ASKED, WHITE_BOX, AGAINST_REFERENCES), (CHOSEN_DATA, DATA_AGAINST_REFERENCES)):
        assert len({claim.again_p_value for claim in claims if claim.attack in attacks}) == 1
    assert not any(claim.again_derived for claim in claims)


def test_verify_reproduces_the_honest_and_not_what_was_chosen(linear: Court) -> None:
    honest = linear.crafted(scheme_of(STRONG), 16, 3)
    count = honest.manifest.controls[0]
    assert reproduces(linear, honest, linear.options.data)
    assert not reproduces(linear, narrowed(honest, np.arange(count)[::-1]), linear.options.data)
    assert not reproduces(linear, narrowed(honest, np.arange(count - 3)), linear.options.data)


def test_an_innocent_never_calibrates_its_own_case(linear: Court) -> None:
    bundle = linear.with_references(linear.crafted("random", 12, 0))
    names = {path.name for path in linear.references}
    assert len(linear.theirs) == len(names) // 2
    for innocent in linear.references[:3]:
        trial = Trial(linear, innocent, Silent())
        mine, theirs = ({m.source for m in trial.of(bundle, judges=side).manifest.of_role("reference")} for side in (False, True))
        assert mine | theirs == names - {innocent.name}
        assert theirs <= linear.theirs
        assert not mine & linear.theirs


def test_a_framing_of_too_few_queries_is_left_out_and_said(linear: Court) -> None:
    heard, bundle = Silent(), linear.crafted("random", 12, 0)
    assert Trial(linear, linear.references[0], heard).agreeing(ASKED, narrowed(bundle, np.arange(9)), 16) is None
    assert any("too few to frame it" in note for note in heard.notes)


@pytest.mark.parametrize("matched", [0, 1, 7, 20])
@pytest.mark.parametrize("rate", [0.1, 0.63])
def test_the_binomial_test(matched: int, rate: float) -> None:
    assert binomial_p(matched, 20, rate) == pytest.approx(stats.binomtest(matched, 20, rate, alternative="greater").pvalue)


@pytest.mark.parametrize("name", ["00-lenet-own", "01-vgg-own", "03-mobilenet-own", "04-densenet-own", "05-mlp-own"])
def test_an_onnx_file_as_a_program_says_what_it_answers(name: str) -> None:
    path, x = ZOO / "references" / f"{name}.onnx", shipped().inputs().x[:8]
    with open_suspect(Target(str(path), SPEC, 10, "cpu")) as model:
        program = open_onnx_program(path, model.card.input, 10, "cpu")
        np.testing.assert_allclose(program.predict(x).numpy(), model.ask(x).dense(), atol=1e-4)


def test_gradients_of_an_onnx_file_are_those_of_the_network_that_was_exported() -> None:
    victim = shipped().victim
    program = open_onnx_program(ZOO / "suspects/copy.onnx", victim.spec, 10, "cpu")
    pixels = victim.pixels(shipped().inputs().x[:8])

    def gradient(model: Victim) -> torch.Tensor:
        x = pixels.clone().requires_grad_(True)
        found: torch.Tensor = torch.autograd.grad(model.logits(x)[:, 3].sum(), x)[0]
        return found

    torch.testing.assert_close(gradient(program), gradient(victim), rtol=1e-3, atol=1e-4)


def test_an_onnx_file_of_other_operators_gives_no_gradients(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no gradients are taken through the operator ArgMax"):
        open_onnx_program(save_linear(tmp_path / "labels.onnx", end="labels"), SPEC, 10, "cpu")


# ---------------------------------------------------------------------------------------------------------------- who hides


def test_roughness_is_that_of_neighbours() -> None:
    flat, checks = np.full((1, 6, 6, 1), 90, np.uint8), np.zeros((1, 6, 6, 1), np.uint8)
    checks[:, ::2, ::2] = checks[:, 1::2, 1::2] = 255
    assert roughness(flat).tolist() == [0.0]
    inner = roughness(checks[:, 1:5, 1:5])
    assert 0.5 < inner[0] <= 1.0
    x = shipped().inputs().x[:100].astype(np.uint8)
    noisy = np.clip(x.astype(int) + np.random.default_rng(0).integers(-25, 26, x.shape), 0, 255).astype(np.uint8)
    assert (roughness(noisy) > roughness(x)).mean() > 0.95


def test_odd_inputs_are_refused_unseen_and_others_answered() -> None:
    x = shipped().inputs().x[:300].astype(np.uint8)
    limit = float(np.quantile(roughness(x), 0.9))
    with open_suspect(Target(str(HELD_OUT[0]), SPEC, 10, "cpu")) as model:
        plain = model.ask(x)
        rough = deployed_as(model, [f"refuse-rough:energy={limit}"]).ask(x)
        surest = plain.dense().astype(float)
        surest = np.exp(surest - surest.max(axis=1, keepdims=True))
        confident = (1 / surest.sum(axis=1)) >= 0.8
        unsure = deployed_as(model, ["refuse-unsure:confidence=0.8"]).ask(x)
        again = deployed_as(model, ["refuse-unsure:confidence=0.8"]).ask(x[::-1])
    odd = roughness(x) > limit
    assert odd.mean() == pytest.approx(0.1, abs=0.01)
    assert ((rough.labels != plain.labels) == odd).all()
    assert ((unsure.labels != plain.labels) == ~confident).all()
    assert rough.access == plain.access
    np.testing.assert_array_equal(rough.scores, plain.scores)
    assert (again.labels[::-1] == unsure.labels).all()


def test_whoever_hides_has_none_of_the_queries(linear: Court) -> None:
    bundle = linear.crafted("random", 30, 0)
    left = without_queries(linear.data, bundle)
    asked = {query.tobytes() for query in bundle.queries}
    assert not asked & {x.tobytes() for x in left.x}
    assert len(left) == sum(x.tobytes() not in asked for x in linear.data.x)
    assert len(linear.data) - 130 <= len(left) < len(linear.data) - 100


def test_servers_refuse_the_shares_of_natural_inputs_that_they_say() -> None:
    data = shipped().inputs().take(np.arange(600))
    with open_suspect(Target(str(HELD_OUT[0]), SPEC, 10, "cpu")) as model:
        servers = servers_for(model, data, quick=True)
        plain = model.ask(data.x).labels
        for kind in ("rough", "unsure"):
            changed = deployed_as(model, servers[f"refuses {kind} inputs, 10%"]).ask(data.x).labels != plain
            assert changed.mean() == pytest.approx(0.1, abs=0.01)


def test_what_was_trained_is_not_trained_again_and_what_is_damaged_is(tmp_path: Path, linear: Court) -> None:
    portable = linear.victim.portable()
    assert portable is not None
    assert linear.data.y is not None
    data = linear.data.x[:64], linear.data.y[:64], "digest"
    ways = [Way("copy", "copy"), Way("tuned", "fine-tune")]
    counted: list[int] = []

    def run(seed: int = 0) -> dict[str, Path]:
        counted.clear()
        return derive(ways, portable, "victim", data, seed, tmp_path, jobs=1, progress=counted.append)

    first = run()
    assert counted == [0, 1, 2]
    written = {name: (path.stat().st_mtime_ns, path.read_bytes()) for name, path in first.items()}
    assert run() == first
    assert counted == [2]
    first["tuned"].write_bytes(b"half a model")
    assert run() == first
    assert counted == [1, 2]
    assert first["tuned"].read_bytes() == written["tuned"][1]
    assert first["copy"].stat().st_mtime_ns == written["copy"][0]
    assert run(seed=1)["tuned"] != first["tuned"]


# ---------------------------------------------------------------------------------------------------------------- as a whole


@pytest.fixture(scope="module")
def result(linear: Court) -> tuple[RedteamOptions, Redteam]:
    """A small red team against the linear victim."""
    crafting = dataclasses.replace(linear.options, references=linear.folder / "references", queries=16, alpha=0.2)
    innocents, output = linear.folder / "innocents", linear.folder / "out"
    options = RedteamOptions(crafting, innocents=innocents, output=output, quick=True)
    return options, redteam(options, Silent())


def test_a_whole_run_and_its_tables(result: tuple[RedteamOptions, Redteam]) -> None:
    options, found = result
    written = write_redteam(found, options.output)
    assert written == ["redteam.json", "redteam.md"]
    value = json.loads((options.output / "redteam.json").read_text())
    assert value == json.loads(redteam_json(found))
    assert value["schema"] == "onnxaudit.redteam/1"
    for row in accused_rows(value):
        mine = [claim for claim in found.claims if claim.attack == row[0]]
        assert row[1] == str(len(mine))
        assert int(row[5]) == sum(claim.p_chance <= 0.2 for claim in mine)
        assert row[7].startswith(f"{sum(claim.derived for claim in mine)} (")
        assert row[9] == f"{sum(claim.reproduced for claim in mine)} of {len(mine)}"
    plain = {hidden.way: hidden for hidden in found.hidden if not hidden.steps}
    assert [row[0] for row in ways_rows(value)] == list(plain)
    for row in servers_rows(value):
        mine_hidden = [hidden for hidden in found.hidden if hidden.server == row[0]]
        lost = np.mean([plain[hidden.way].accuracy - hidden.accuracy for hidden in mine_hidden])
        assert float(row[3]) == pytest.approx(100 * lost, abs=0.051)
        assert row[5] == str(sum(hidden.derived for hidden in mine_hidden))
    page = (options.output / "redteam.md").read_text()
    assert "| label only |" in page
    assert "label only" in redteam_text(found)


def test_a_copy_is_found_and_labels_cost_no_accuracy(result: tuple[RedteamOptions, Redteam]) -> None:
    _, found = result
    of: dict[tuple[str, str], Hidden] = {(hidden.way, hidden.server): hidden for hidden in found.hidden}
    assert of["copy", "none"].derived
    assert of["copy", "label only"].accuracy == of["copy", "none"].accuracy
    assert of["copy", "label only"].access == "label"
    assert of["copy", "refuses unsure inputs, 10%"].accuracy < of["copy", "none"].accuracy


def test_a_run_goes_on_where_it_stopped_and_comes_to_the_same(result: tuple[RedteamOptions, Redteam]) -> None:
    """Models and claims are made again alike where they are missing, and not at all where they are there."""
    options, found = result
    (claimed,) = (options.output / "claims").glob("*.json")
    before = {path: path.stat().st_mtime_ns for path in (*(options.output / "models").iterdir(), claimed)}
    assert redteam_json(redteam(options, Silent())) == redteam_json(found)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    claimed.unlink()
    assert redteam_json(redteam(options, Silent())) == redteam_json(found)


def test_references_are_accused_in_turn_where_no_innocents_are_given(linear: Court) -> None:
    few = linear.folder / "few"
    few.mkdir()
    for path in linear.references[:5]:
        shutil.copy(path, few)
    crafting = dataclasses.replace(linear.options, references=few, queries=12, alpha=0.3)
    found = redteam(RedteamOptions(crafting, output=linear.folder / "in-turn", quick=True), Silent())
    assert {claim.innocent for claim in found.claims} == {path.name for path in linear.references[:5]}
    assert "each in turn left out of its own case" in redteam_text(found)


def test_what_cannot_be_run_is_said_before_anything_is_crafted(tmp_path: Path, linear: Court) -> None:
    few = tmp_path / "few"
    few.mkdir()
    for path in linear.references[:3]:
        shutil.copy(path, few)
    options = RedteamOptions(dataclasses.replace(linear.options, references=few), output=tmp_path / "out")
    with pytest.raises(UsageError, match="3 references cannot be divided"):
        redteam(options, Silent())
    with pytest.raises(UsageError, match="among the innocents and among the references"):
        redteam(dataclasses.replace(options, innocents=few), Silent())
    np.savez(tmp_path / "bare.npz", x=linear.data.x)
    with pytest.raises(UsageError, match="labelled"):
        redteam(
            dataclasses.replace(options, crafting=dataclasses.replace(options.crafting, data=tmp_path / "bare.npz")), Silent()
        )
