"""Siblings in bundles: made, drawn, refused where they are the victim, and taken off every scheme's score."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import binom

from onnxaudit.answers import Access, Answers
from onnxaudit.audit.calibrating import calibrate, preregistered
from onnxaudit.audit.crafting import CraftOptions, craft
from onnxaudit.audit.judging.comparing import ALIKE
from onnxaudit.audit.judging.judging import judge
from onnxaudit.audit.judging.looking import only
from onnxaudit.audit.progress import Silent
from onnxaudit.bundle import QueryBundle
from onnxaudit.craft.data import load_data
from onnxaudit.craft.pools.peers import labels_of, open_peers
from onnxaudit.craft.pools.siblings import draw, drawn_among
from onnxaudit.craft.sample import Material, Peer
from onnxaudit.craft.samplers.disagreement import PUSHES, _pushed, entropy, sample_disagreement
from onnxaudit.craft.victim import open_victim
from onnxaudit.errors import UsageError
from onnxaudit.evidence.siblings import STATISTIC
from onnxaudit.report.model import Report
from onnxaudit.suspect import InputSpec, Queries
from tests.bundles import QUERIES, Recorded, simulated_bundle
from tests.conftest import FIXTURES

RECIPE = """
import numpy as np, torch
from torch import nn

def sibling(seed):
    torch.manual_seed(seed)
    data = np.load({data!r})
    x, y = torch.from_numpy(data["x"][:1500]).float().div(255).reshape(-1, 1, 28, 28), torch.from_numpy(data["y"][:1500])
    model = nn.Sequential(nn.Flatten(), nn.Linear(784, 32), nn.ReLU(), nn.Linear(32, 10))
    optimiser = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(4):
        for part in torch.randperm(len(x)).split(64):
            optimiser.zero_grad()
            nn.functional.cross_entropy(model(x[part]), y[part]).backward()
            optimiser.step()
    return model

def broken(seed):
    raise RuntimeError("no data\\nfor " + str(seed))

def other(seed):
    return nn.Linear(3, 10)

def nothing(seed):
    return None
"""


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The owner's folder: code, and a victim by it."""
    folder = tmp_path_factory.mktemp("house")
    (folder / "owner_recipe.py").write_text(RECIPE.format(data=str(FIXTURES / "fashion/train.npz")))
    return folder


def options(house: Path, **more: object) -> CraftOptions:
    base = CraftOptions(
        house / "victim.pt",
        FIXTURES / "fashion/train.npz",
        ("line-up", "random"),
        queries=40,
        device="cpu",
        sibling_folder=house / "siblings",
        references=FIXTURES / "zoo/references",
    )
    return dataclasses.replace(base, **more)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def family(house: Path) -> QueryBundle:
    """A bundle of a victim with three siblings by its recipe."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(house)
        from onnxaudit.craft.pools.siblings import _train

        _train("owner_recipe:sibling", 0, (28, 28, 1), "NCHW", house / "victim.pt")
        return craft(options(house, train_siblings=3, recipe="owner_recipe:sibling"), Silent())


def test_siblings_are_trained_by_the_owners_recipe_and_used(family: QueryBundle, house: Path) -> None:
    siblings = family.manifest.of_role("sibling")
    assert [model.origin for model in siblings] == [f"trained by owner_recipe:sibling, seed {n}" for n in (1, 2, 3)]
    assert family.manifest.statistic == STATISTIC
    assert all(model.accuracy is not None and model.accuracy > 0.6 for model in siblings)
    entry = family.manifest.schemes[0]
    assert entry.name == "line-up"
    said = np.stack([family.answers[m.id].labels[slice(*entry.rows)] for m in (family.manifest.victim, *siblings)])
    assert (entropy(said.astype(np.int64)) > 0).all()  # every query tells at least two of them apart
    files = {file: file.stat().st_mtime_ns for file in (house / "siblings").iterdir()}
    assert len(files) == 3


def quiet(done: int) -> None:
    """Progress that nobody watches."""


def _line_up(house: Path, victim: int, count: int = 60) -> tuple[Material, list[Peer]]:
    """One of the family as the victim, the others as its siblings, and all of them as peers."""
    spec, data = InputSpec((28, 28, 1), scale=1 / 255), load_data(FIXTURES / "fashion/train.npz")
    files = [house / "victim.pt", *sorted((house / "siblings").glob("*.pt"))]
    assert len(files) == 4
    peers = open_peers(files, spec, 10, "cpu")
    model = open_victim(files[victim], spec, device="cpu").probed()
    others = [peer for place, peer in enumerate(peers) if place != victim]
    return Material(model, data.take(np.arange(1500, 1500 + count)), siblings=others), peers


def _divided(peers: Sequence[Peer], queries: Queries) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Where at least two of the models differ from those that say the same most often."""
    labels = labels_of(peers, queries)
    return np.array([np.bincount(column).max() <= len(peers) - 2 for column in labels.T])


@pytest.mark.usefixtures("family")
def test_natural_inputs_are_chosen_alike_whichever_model_is_the_victim(house: Path) -> None:
    chosen = []
    for victim in (0, 2):
        material, peers = _line_up(house, victim, 1500)
        sample = sample_disagreement(material, 30, np.random.default_rng(0), quiet)
        assert len(sample.queries) == 30
        assert _divided(peers, sample.queries).all()
        assert not sample.notes[0].startswith("30 queries instead"), sample.notes
        chosen.append({query.tobytes() for query in sample.queries})
    assert chosen[0] == chosen[1]


@pytest.mark.usefixtures("family")
def test_mixtures_boundary_points_and_adversarial_inputs_fill_up(house: Path) -> None:
    material, peers = _line_up(house, 0)
    data = {x.tobytes() for x in material.inputs().x}
    sample = sample_disagreement(material, 80, np.random.default_rng(0), quiet)
    natural = [query.tobytes() in data for query in sample.queries]
    assert 0 < sum(natural) < len(natural)
    assert _divided(peers, sample.queries).all()
    assert "mixtures, boundary points and adversarial inputs" in sample.notes[0]
    blind = dataclasses.replace(material, siblings=[*material.siblings[:-1], _Blind(material.siblings[-1])])
    without = sample_disagreement(blind, 80, np.random.default_rng(0), quiet)
    assert "not all have gradients" in without.notes[0]


@pytest.mark.usefixtures("family")
def test_the_same_number_of_adversarial_inputs_is_made_for_each_model(house: Path) -> None:
    """Each is close to its start, and the model that it was made for calls it otherwise more often than the others do."""
    material, peers = _line_up(house, 0)
    parts, _ = _pushed(material, material.inputs().x, 200, np.random.default_rng(1))
    assert [len(part) for part in parts] == [50] * 4
    for place, part in enumerate(parts):
        starts = np.random.default_rng(1)
        for _ in range(place + 1):
            start = material.inputs().x[starts.choice(60, 50, replace=False)]
        assert np.abs(part.astype(int) - start.astype(int)).max() <= 2 * PUSHES
        changed = (labels_of(peers, part) != labels_of(peers, start)).mean(1)
        assert changed[place] == changed.max()
        assert changed[place] > 0.3


class _Blind:
    """A peer without gradients."""

    def __init__(self, peer: Peer) -> None:
        self._peer = peer
        self.source = peer.source

    def answer(self, queries: Queries) -> np.ndarray[Any, np.dtype[np.float32]]:
        return self._peer.answer(queries)

    def logits(self, pixels: torch.Tensor) -> torch.Tensor:
        raise UsageError(f"{self.source} gives no gradients of {len(pixels)} inputs")


def test_nothing_is_trained_twice(family: QueryBundle, house: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(house)
    before = {file: file.stat().st_mtime_ns for file in (house / "siblings").iterdir()}
    again = craft(options(house, train_siblings=3, recipe="owner_recipe:sibling"), Silent())
    assert {file: file.stat().st_mtime_ns for file in (house / "siblings").iterdir()} == before
    assert np.array_equal(again.queries, family.queries)


@pytest.mark.parametrize(
    ("recipe", "words"),
    [
        ("owner_recipe:broken", "fails with seed 1: no data"),
        ("owner_recipe:other", "does not take the victim's inputs"),
        ("owner_recipe:nothing", "makes a NoneType"),
        ("owner_recipe:absent", "cannot be imported"),
        ("no_such_module:x", "cannot be imported"),
    ],
)
def test_a_recipe_that_does_not_work_is_one_line(
    family: QueryBundle, house: Path, monkeypatch: pytest.MonkeyPatch, recipe: str, words: str
) -> None:
    monkeypatch.chdir(house)
    with pytest.raises(UsageError, match=words) as caught:
        craft(options(house, train_siblings=1, recipe=recipe), Silent())
    assert "\n" not in str(caught.value)


def test_a_sibling_that_is_the_victim_is_refused(family: QueryBundle, house: Path, tmp_path: Path) -> None:
    saved = family.save(tmp_path / "b.oab")
    with pytest.raises(UsageError, match="it is the victim, or a copy of it"):
        calibrate(saved, [str(house / "victim.pt")], "sibling", Silent(), "cpu")
    with pytest.raises(UsageError, match=r"is sibling-000 .* again"):
        calibrate(saved, [str(next(iter(sorted((house / "siblings").iterdir()))))], "sibling", Silent(), "cpu")


def test_the_lot_falls_by_contents_and_seed_alone(family: QueryBundle, house: Path, tmp_path: Path) -> None:
    files = sorted((house / "siblings").iterdir())
    victim, others = draw(files, 7)
    moved = []
    for number, file in enumerate(reversed(files)):
        moved.append(tmp_path / f"{number}.pt")
        moved[-1].write_bytes(file.read_bytes())
    again, rest = draw(moved, 7)
    assert again.read_bytes() == victim.read_bytes()
    assert len(others) == len(rest) == 2
    with pytest.raises(UsageError, match="a draw among 1"):
        draw([files[0], files[0]], 7)


def test_every_model_is_drawn_as_often() -> None:
    digests = [hashlib.sha256(bytes([n])).hexdigest() for n in range(5)]
    counts = np.bincount([drawn_among(digests, seed) for seed in range(2000)], minlength=5)
    assert counts.min() > binom.ppf(0.0005, 2000, 0.2)
    assert counts.max() < binom.ppf(0.9995, 2000, 0.2)


def test_craft_with_draw_says_so_in_the_bundle(family: QueryBundle, house: Path) -> None:
    bundle = craft(options(house, victim=house / "siblings", draw=3, schemes=("line-up",)), Silent())
    assert bundle.manifest.drawn == 3
    assert len(bundle.manifest.of_role("sibling")) == 2
    assert bundle.manifest.statistic != STATISTIC  # two are too few for a mean
    models = [m for m in bundle.manifest.models if m.role in ("victim", "sibling")]
    digests = sorted(str(m.sha256) for m in models)
    assert digests[drawn_among(digests, 3)] == bundle.manifest.victim.sha256


def test_options_that_contradict_each_other(house: Path) -> None:
    for more in ({"train_siblings": 3}, {"recipe": "a:b"}, {"draw": 1}, {"victim": house}):
        with pytest.raises(UsageError):
            craft(options(house, **more), Silent())
    with pytest.raises(UsageError, match="needs siblings"):
        craft(options(house, schemes=("line-up",)), Silent())


# ----------------------------------------------------------------------------------------------------------- the statistic


def related(count: int, seed: int, *, shared: float) -> QueryBundle:
    """A bundle with siblings: victim, siblings and one honest twin more share some of their errors, references have their own."""
    bundle = simulated_bundle(40, seed=seed)
    rng = np.random.default_rng([5, seed])
    family_errors = rng.normal(0, 1, (QUERIES, 5))
    answers, entries = dict(bundle.answers), list(bundle.manifest.models)

    def kin() -> Answers:
        rows = bundle.answers["victim"].dense() * 0
        rows[np.arange(QUERIES), _truth(bundle)] += 2.0
        rows += shared * family_errors + rng.normal(0, 1, (QUERIES, 5))
        return Answers.from_scores(rows, Access.LOGITS)

    answers["victim"] = kin()
    for number in range(count):
        name = f"sibling-{number:03d}"
        answers[name] = kin()
        entries.append(dataclasses.replace(entries[0], id=name, role="sibling", sha256=f"{number:064d}"))
    answers["twin"] = kin()
    manifest = dataclasses.replace(bundle.manifest, models=tuple(entries))
    return preregistered(dataclasses.replace(bundle, manifest=manifest, answers=answers))


def _truth(bundle: QueryBundle) -> np.ndarray:
    said = np.stack([answers.labels for answers in bundle.answers.values()])
    return np.array([np.bincount(column, minlength=5).argmax() for column in said.T])


def judged(bundle: QueryBundle, answers: Answers) -> Report:
    return judge(bundle, Recorded(bundle, answers).card, answers, None)


def test_what_siblings_share_is_taken_off() -> None:
    bundle = related(4, 0, shared=1.0)
    suspect = bundle.answers["reference-003"]
    report = judged(bundle, suspect)
    span = slice(0, 24)

    def rate(name: str) -> float:
        return float((suspect.labels[span] == bundle.answers[name].labels[span]).mean())

    expected = rate("victim") - np.mean([rate(f"sibling-{n:03d}") for n in range(4)])
    akh = next(scheme for scheme in report.schemes if scheme.name == "akh")
    assert akh.score == pytest.approx(expected)
    assert report.line_up is not None
    assert not report.line_up.drawn
    assert any("not drawn by lot" in condition for condition in report.conditions)
    only = dataclasses.replace(bundle, manifest=dataclasses.replace(bundle.manifest, schemes=bundle.manifest.schemes[:1]))
    shown = judged(preregistered(only), suspect).line_up
    assert shown is not None

    def usual(name: str) -> float:
        pool = [bundle.answers[model.id].labels[span] for model in bundle.manifest.of_role("reference")]
        return float(np.mean([said == bundle.answers[name].labels[span] for said in pool]))

    assert shown.victim == pytest.approx(rate("victim") - usual("victim"))
    names = [f"sibling-{n:03d}" for n in range(4)]
    assert shown.siblings == pytest.approx([rate(name) - usual(name) for name in names])


def test_an_honest_twin_is_accused_without_siblings_and_not_with_them() -> None:
    """Over forty draws of a family that shares many of its errors."""
    alone = together = copies = 0
    for seed in range(40):
        bundle = related(9, seed, shared=1.6)
        without = dataclasses.replace(
            bundle,
            manifest=dataclasses.replace(
                bundle.manifest,
                statistic="mean-z/1",
                models=tuple(model for model in bundle.manifest.models if model.role != "sibling"),
            ),
        )
        alone += judged(without, bundle.answers["twin"]).p_value == pytest.approx(1 / 41)
        together += (judged(bundle, bundle.answers["twin"]).p_value or 1) <= 0.05
        copies += judged(bundle, bundle.answers["victim"]).p_value == pytest.approx(1 / 41)
    assert alone > 8
    assert together <= binom.ppf(0.99, 40, 0.05)
    assert copies == 40


def test_with_enough_siblings_the_suspect_must_be_closer_than_references_and_than_honest_twins() -> None:
    bundle = related(19, 3, shared=1.0)
    for name in ("victim", "twin", "reference-003"):
        report = judged(bundle, bundle.answers[name])
        assert report.line_up is not None
        assert report.tolerance == 0.0
        assert report.p_value == max(report.p_exchangeable or 0.0, report.line_up.among_siblings, report.line_up.p_value)
        assert report.p_floor == 1 / 20
    few = judged(related(18, 3, shared=1.0), bundle.answers["victim"])
    assert (few.tolerance, few.p_floor) == (1.0, 1 / 41)


def test_over_many_families_honest_twins_are_accused_no_more_often_than_alpha() -> None:
    """And copies nearly always are."""
    accused = found = 0
    for seed in range(60):
        bundle = related(19, seed, shared=1.6)
        accused += judged(bundle, bundle.answers["twin"]).finding == "derived"
        found += judged(bundle, bundle.answers["victim"]).finding == "derived"
    assert accused <= binom.ppf(0.99, 60, 0.05)
    assert found == 60


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("planned", [None, (10, 20)])
def test_whoever_the_suspect_is_over_all_draws_of_the_victim_it_is_accused_at_most_as_often_as_alpha(
    seed: int, planned: tuple[int, ...] | None
) -> None:
    """A model that is like no reference and no sibling: closer to all of the family, and closest to the central ones.

    Each of the twenty is the victim in turn, on queries that are the same for all of them: exactly, not only on average.
    """
    bundle = related(19, seed, shared=1.0)
    family = ["victim", *(f"sibling-{n:03d}" for n in range(19))]
    suspect = Answers.from_scores(sum(bundle.answers[name].dense() for name in family[:7]) / 7, Access.LOGITS)
    alike = tuple(entry for entry in bundle.manifest.schemes if entry.sampler in ALIKE)
    assert alike
    manifest = dataclasses.replace(bundle.manifest, schemes=alike)
    found, by_references = [], []
    for place in range(20):
        turned = dict(zip(family, (bundle.answers[name] for name in family[place:] + family[:place]), strict=True))
        drawn = preregistered(dataclasses.replace(bundle, manifest=manifest, answers={**bundle.answers, **turned}))
        report = judge(drawn, Recorded(drawn, suspect).card, suspect, None, planned=planned)
        found.append(report.finding == "derived")
        by_references.append(report.p_exchangeable is not None and report.p_exchangeable <= 0.05)
    assert sum(found) <= 1
    assert sum(by_references) > 1, "ranks among references must not suffice, or this shows nothing"


def test_a_smaller_alpha_leaves_no_rank_out() -> None:
    """19 siblings are enough for 0.05 and not for 0.04: then nothing is found, and the rank among them stays part of p."""
    bundle = related(19, 4, shared=1.0)
    family = ["victim", *(f"sibling-{n:03d}" for n in range(19))]
    suspect = Answers.from_scores(sum(bundle.answers[name].dense() for name in family[:7]) / 7, Access.LOGITS)
    for answers in (suspect, bundle.answers["victim"]):
        by_alpha = {alpha: judge(bundle, Recorded(bundle, answers).card, answers, alpha) for alpha in (0.01, 0.04, 0.05, 0.2)}
        assert len({report.p_value for report in by_alpha.values()}) == 1
        assert by_alpha[0.04].finding == by_alpha[0.01].finding == "inconclusive"
        assert any("19 siblings: p cannot fall below 0.05" in reason for reason in by_alpha[0.04].reasons)


def test_a_line_up_that_could_not_be_worked_out_accuses_nobody() -> None:
    """With part of its queries answered the rank is not left out: it is 1, or, while more will be asked, not known."""
    bundle = related(19, 2, shared=1.0)
    family = ["victim", *(f"sibling-{n:03d}" for n in range(19))]
    suspect = Answers.from_scores(sum(bundle.answers[name].dense() for name in family[:7]) / 7, Access.LOGITS)
    span = next(slice(*entry.rows) for entry in bundle.manifest.schemes if entry.sampler in ALIKE)
    copy = bundle.answers["victim"]
    for answers, expected in ((suspect, {"not-shown", "inconclusive"}), (copy, {"not-shown", "inconclusive"})):
        kept = np.setdiff1d(np.arange(len(bundle.queries)), np.arange(span.start + 8, span.stop))
        report = judged(bundle, only(answers, kept))
        assert report.finding in expected
        assert report.p_value == 1.0
    early = judge(bundle, Recorded(bundle, copy).card, copy, None, planned=(4, 8))
    assert early.finding == "derived"
    assert early.looks[-1].queries >= 10, "not before the line-up's queries say something"


def test_without_queries_that_are_alike_for_all_the_tolerance_stays() -> None:
    bundle = related(19, 3, shared=1.0)
    entries = tuple(entry for entry in bundle.manifest.schemes if entry.sampler not in ALIKE)
    assert entries
    bare = preregistered(dataclasses.replace(bundle, manifest=dataclasses.replace(bundle.manifest, schemes=entries)))
    assert judged(bare, bundle.answers["twin"]).tolerance == 1.0
    without = judge(bundle, Recorded(bundle, bundle.answers["twin"]).card, bundle.answers["twin"], None, label_free=True)
    assert without.tolerance == 1.0
    assert without.line_up is not None
    assert any("no sibling ever left the house" in condition for condition in without.conditions)


def test_looks_give_all_ranks_their_place() -> None:
    bundle = related(19, 1, shared=1.0)
    for name in ("victim", "twin"):
        card = Recorded(bundle, bundle.answers[name]).card
        early = judge(bundle, card, bundle.answers[name], None, planned=(10, 20, 30))
        whole = judge(bundle, card, bundle.answers[name], None, planned=())
        assert (early.finding == "derived") == (name == "victim") == (whole.finding == "derived")
        assert whole.p_value == judged(bundle, bundle.answers[name]).p_value
