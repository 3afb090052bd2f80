"""contrast: margins and ratios, the discriminant, the sampler, the pairs it compares, and a bundle made with it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import nn

from onnxaudit.answers import Access, Answers
from onnxaudit.audit.checking import CheckOptions, check
from onnxaudit.audit.crafting import CraftOptions, craft
from onnxaudit.audit.progress import Silent
from onnxaudit.bundle import QueryBundle, load
from onnxaudit.craft.data import Data, load_data
from onnxaudit.craft.learning.discriminant import COPY, separation, weights, within
from onnxaudit.craft.pools import pairs as pairs_module
from onnxaudit.craft.pools.pairs import train_pairs
from onnxaudit.craft.sample import Material, Peer, Sample
from onnxaudit.craft.samplers.contrast import sample_contrast
from onnxaudit.errors import UsageError
from onnxaudit.registry import open_suspect, reduce_access
from onnxaudit.schemes.catalogue import CATALOGUE
from onnxaudit.schemes.contrast import COLUMNS, evidence, log_ratios, margins
from onnxaudit.suspect import InputSpec, Target
from tests.material import as_victim, quiet, sampled, shipped, tabular
from tests.pool import pool

FIXTURES = Path(__file__).resolve().parent.parent / "fixtures"
ZOO = FIXTURES / "zoo"


def score(model: Peer, sample: Sample, access: Access = Access.PROBS, k: int = 1) -> float:
    answers = Answers.from_scores(model.answer(sample.queries)).degrade(access, k)
    return evidence(np.zeros((0, 2)), log_ratios(answers, sample.columns))


def logits(seed: int, n: int = 30, classes: int = 6) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(0, 2, (n, classes)).astype(np.float32)


def columns_for(n: int, seed: int = 0, classes: int = 6) -> dict[str, NDArray[Any]]:
    rng = np.random.default_rng(seed)
    return {
        "said": rng.integers(0, classes, n),
        "share": rng.uniform(0.2, 0.8, n),
        "share_weight": rng.normal(size=n),
        "margin": rng.uniform(-0.5, 0.5, n),
        "margin_weight": rng.normal(size=n),
        "margin_spread": rng.uniform(0.05, 0.5, n),
    }


# margins and ratios


def test_a_margin_worked_out_by_hand() -> None:
    rows = np.log(np.array([[0.7, 0.2, 0.1], [0.1, 0.6, 0.3], [0.2, 0.3, 0.5]], np.float32))
    plain = np.log([7 / 2, 1 / 6, 3 / 5])  # of classes 0, 0, 1: own over the best other one
    found = margins(Answers.from_scores(rows, Access.LOGITS), np.array([0, 0, 1]))
    assert found == pytest.approx(np.tanh(plain / np.median(np.abs(plain))), abs=1e-5)


@given(seed=st.integers(0, 1000), temperature=st.floats(0.5, 2), shift=st.floats(-3, 3))
def test_how_sure_a_network_is_says_nothing(seed: int, temperature: float, shift: float) -> None:
    rows, said = logits(seed) / 2, np.random.default_rng(seed).integers(0, 6, 30)
    one, two = (margins(Answers.from_scores(r, Access.LOGITS), said) for r in (rows, rows * np.float32(temperature) + shift))
    assert one == pytest.approx(two, abs=2e-3)


@given(seed=st.integers(0, 1000))
def test_a_margin_is_positive_where_the_label_is_given(seed: int) -> None:
    answers, said = Answers.from_scores(logits(seed)), np.random.default_rng(seed).integers(0, 6, 30)
    assert ((margins(answers, said) > 0) == (answers.labels == said)).all()


@given(seed=st.integers(0, 1000))
def test_scores_probabilities_and_all_classes_ranked_say_the_same(seed: int) -> None:
    answers, columns = Answers.from_scores(logits(seed), Access.LOGITS), columns_for(30, seed)
    whole = log_ratios(answers, columns)
    assert log_ratios(answers.degrade(Access.PROBS), columns) == pytest.approx(whole, abs=1e-5)
    assert log_ratios(answers.degrade(Access.TOPK, 6), columns) == pytest.approx(whole, abs=1e-5)
    fewer = log_ratios(answers.degrade(Access.TOPK, 2), columns)
    assert np.isfinite(fewer).all()
    assert fewer[:, 1] == pytest.approx(whole[:, 1])  # what a query is worth does not depend on the model


def test_labels_count_as_given_or_not() -> None:
    columns = columns_for(4)
    said = columns["said"].astype(np.int32)
    labels = Answers.from_labels(np.where([True, False, True, False], said, said + 1), 8)
    found = log_ratios(labels, columns)
    assert found[:, 0] == pytest.approx(columns["share_weight"] * ([1, 0, 1, 0] - columns["share"]))
    assert found[:, 1] == pytest.approx(columns["share_weight"] ** 2 * columns["share"] * (1 - columns["share"]))


def test_evidence_is_the_sum_in_units_of_its_own_deviation() -> None:
    ratios = np.array([[1.0, 4.0], [2.0, 5.0]])
    assert evidence(np.zeros((2, 2)), ratios) == 1.0
    assert np.isnan(evidence(np.zeros((2, 2)), np.zeros((2, 2))))


@given(seed=st.integers(0, 100), raised=st.integers(0, 29))
def test_more_of_what_speaks_for_derivation_never_lowers_the_score(seed: int, raised: int) -> None:
    columns = columns_for(30, seed)
    labels = np.random.default_rng(seed + 1).integers(0, 6, 30)
    weight = float(columns["share_weight"][raised])
    before, after = labels.copy(), labels.copy()
    before[raised], after[raised] = -1, columns["said"][raised]
    low, high = (evidence(np.zeros(0), log_ratios(Answers.from_labels(given, 6), columns)) for given in (before, after))
    assert (high - low) * weight >= 0


# the discriminant


def test_weights_are_those_of_the_whole_matrix() -> None:
    rng = np.random.default_rng(3)
    derived, others, more = rng.normal(1, 1, (5, 40)), rng.normal(0, 1, (6, 40)), rng.normal(0, 2, (7, 40))
    deviations = within([derived, others, more])
    covariance = deviations.T @ deviations
    centred = np.concatenate([group - group.mean(axis=0) for group in (derived, others, more)])
    assert covariance == pytest.approx(centred.T @ centred / 15)
    variance = covariance.diagonal()
    whole = covariance + np.diag(variance + variance.mean())
    victim = rng.normal(2, 1, 40)
    centre = others.mean(axis=0)
    expected = np.linalg.solve(whole, derived.mean(axis=0) - centre + COPY * (victim - centre))
    assert weights(derived, others, victim, deviations, -1e9) == pytest.approx(expected)


def family(rng: np.random.Generator, count: int, n: int, own: NDArray[Any], style: NDArray[Any]) -> NDArray[np.float64]:
    """Models with a trait of their own, of styles that differ much more."""
    return np.asarray(own + rng.normal(0, 1, (count, 1)) * style + rng.normal(0, 0.7, (count, n)))


def test_what_innocents_differ_in_among_themselves_does_not_count() -> None:
    rng = np.random.default_rng(4)
    n = 200
    own, style = 0.3 * rng.normal(size=n), rng.normal(size=n)
    derived, others = family(rng, 8, n, own, style), family(rng, 8, n, np.zeros(n), style)
    more, innocents, thieves = (family(rng, 40, n, trait, style) for trait in (np.zeros(n), np.zeros(n), own))
    plain = (derived.mean(0) - others.mean(0)) / np.square(within([derived, others])).sum(0)
    full = weights(derived, others, own, within([derived, others, more]), -1e9)

    def power(weight: NDArray[np.float64]) -> float:
        return float((thieves @ weight > np.sort(innocents @ weight)[-3]).mean())

    assert power(full) > 0.95
    assert power(full) > power(plain) + 0.2


@given(seed=st.integers(0, 200))
def test_a_model_that_knows_nothing_does_not_look_derived(seed: int) -> None:
    rng = np.random.default_rng(seed)
    derived, others = rng.normal(-0.3, 1, (4, 30)), rng.normal(0.2, 1, (4, 30))
    weight = weights(derived, others, rng.normal(size=30), within([derived, others]), -0.6)
    assert weight @ (-0.6 - others.mean(axis=0)) <= 1e-9


def test_separation_is_large_where_kinds_differ_and_models_of_a_kind_do_not() -> None:
    derived = np.array([[1.0, 1.0, 0.0], [1.0, 3.0, 0.0]])
    others = np.array([[0.0, 0.0, 0.0], [0.0, 2.0, 0.0]])
    found = separation(derived, others, within([derived, others]))
    assert found[0] > found[1] > found[2] == 0


# the sampler


def material() -> Material:
    """Three pairs, and two references of which nothing else is known."""
    known = pool()
    together = list(zip(known.surrogates, known.references, strict=True))
    return Material(known.victim, known.data, references=known.held_out_references[:2], pairs=together)


@pytest.fixture(scope="module")
def drawn() -> Sample:
    return sampled(sample_contrast, material(), 60, candidates=1200)


def test_queries_are_images_on_the_grid_with_all_that_check_needs(drawn: Sample) -> None:
    assert drawn.queries.shape == (60, 28, 28, 1)
    assert drawn.queries.dtype == np.uint8
    assert set(drawn.columns) == set(COLUMNS)
    assert all(len(column) == 60 and np.isfinite(column).all() for column in drawn.columns.values())
    assert drawn.columns["said"].tolist() == pool().victim.answer(drawn.queries).argmax(1).tolist()
    told = drawn.parameters["told_apart"]
    assert drawn.parameters == {"pairs": 3, "told_apart": told}
    assert f"told apart in {told:.0%} of cases" in drawn.notes[0]


def test_no_label_has_much_more_than_its_share(drawn: Sample) -> None:
    assert np.bincount(drawn.columns["said"].astype(int)).max() <= 1.5 * 60 / 10
    free = sampled(sample_contrast, material(), 60, candidates=1200, share=10.0)
    assert np.bincount(free.columns["said"].astype(int)).max() > 1.5 * 60 / 10


def test_the_same_seed_gives_the_same_queries_and_weights(drawn: Sample) -> None:
    again, other = (sampled(sample_contrast, material(), 60, seed, candidates=1200) for seed in (5, 6))
    assert (again.queries == drawn.queries).all()
    assert all((again.columns[name] == column).all() for name, column in drawn.columns.items())
    assert (other.queries != drawn.queries).any()


@pytest.mark.parametrize("access", [Access.LABEL, Access.TOPK, Access.PROBS])
def test_models_that_chose_nothing_are_told_apart(drawn: Sample, access: Access) -> None:
    known = pool()
    derived = [score(model, drawn, access, 3) for model in known.held_out_surrogates]
    independent = [score(model, drawn, access, 3) for model in known.held_out_references]
    assert np.mean(derived) > np.mean(independent) + 1
    assert score(known.victim, drawn, access, 3) > max(independent)


def test_who_answers_at_random_or_always_the_same_does_not_look_derived(drawn: Sample) -> None:
    rng = np.random.default_rng(9)
    copy = score(pool().victim, drawn)
    for _ in range(20):
        noise = Answers.from_scores(rng.dirichlet(np.ones(10), 60))
        assert evidence(np.zeros(0), log_ratios(noise, drawn.columns)) < copy / 2
        assert evidence(np.zeros(0), log_ratios(noise.degrade(Access.LABEL), drawn.columns)) < copy / 2
    for label in range(10):
        constant = Answers.from_labels(np.full(60, label), 10)
        assert evidence(np.zeros(0), log_ratios(constant, drawn.columns)) < copy / 2


def test_siblings_count_as_what_innocents_differ_in() -> None:
    known = pool()
    plain = sampled(sample_contrast, material(), 20, candidates=200)
    more = sampled(sample_contrast, dataclasses.replace(material(), siblings=known.references), 20, candidates=200)
    assert (plain.columns["margin_weight"] != more.columns["margin_weight"]).any()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"pairs": ()}, "too few to tell kinds apart"),
        ({"references": ()}, "references"),
        ({"data": None}, "data"),
    ],
)
def test_what_is_missing_is_said(change: Mapping[str, Any], said: str) -> None:
    with pytest.raises(UsageError) as refused:
        sampled(sample_contrast, dataclasses.replace(material(), **change), 20, candidates=200)
    assert said in refused.value.what


def test_one_reference_is_too_few() -> None:
    with pytest.raises(UsageError, match="too few to tell kinds apart"):
        sampled(sample_contrast, dataclasses.replace(material(), references=pool().references[:1]), 20, candidates=200)


def linear(seed: int, near: nn.Linear | None = None) -> nn.Linear:
    """A linear model of vectors; near: one that it resembles."""
    torch.manual_seed(seed)
    made = nn.Linear(6, 3)
    if near is not None:
        with torch.no_grad():
            made.weight.mul_(0.5).add_(near.weight)
            made.bias.mul_(0.5).add_(near.bias)
    return made


def test_vectors_have_candidates_too() -> None:
    given = tabular(80, 1.0)
    own = linear(100)
    victim = as_victim(own, InputSpec((6,), "NC"))

    def peers(start: int, near: nn.Linear | None = None) -> list[Any]:
        return [as_victim(linear(seed, near), InputSpec((6,), "NC")) for seed in range(start, start + 6)]

    made = Material(victim, given.data, references=peers(0), pairs=list(zip(peers(10, own), peers(20), strict=True)))
    found = sampled(sample_contrast, made, 24, candidates=200)
    assert found.queries.dtype == np.float32
    assert given.data is not None
    assert found.queries.min() >= given.data.x.min()
    assert np.mean([score(m, found) for m in peers(30, own)]) > max(score(m, found) for m in peers(40))


# pairs


def small(n: int = 160) -> tuple[Data, Data]:
    data = load_data(FIXTURES / "fashion/train.npz")
    return data.take(np.arange(n)), data.take(np.arange(1000, 1060))


def trained(folder: Path, teachers: list[str], count: int = 3, data: Data | None = None) -> list[pairs_module.TrainedPair]:
    training, test = small()
    files = [ZOO / "references" / name for name in teachers]
    return train_pairs(data or training, test, shipped().victim, files, count, 0, folder, jobs=1, progress=quiet)


def hurry(patch: pytest.MonkeyPatch, seen: int) -> None:
    patch.setattr(pairs_module, "IMAGES_SEEN", dict.fromkeys(("vgg", "resnet", "lenet", "mlp"), seen))


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trainings of a moment."""
    hurry(monkeypatch, 300)


@pytest.mark.usefixtures("quick")
def test_pairs_differ_in_whom_they_were_extracted_from_and_are_trained_once(tmp_path: Path) -> None:
    one, two = sorted(path.name for path in (ZOO / "references").glob("*.onnx"))[:2]
    first = trained(tmp_path, [one, two])
    assert [pair.task for pair in first] == ["extract-probabilities", "extract-labels", "extract-adversarially"]
    assert [pair.teacher for pair in first] == [one, two, one]
    files = [file for pair in first for file in (pair.derived, pair.other)]
    assert len({file.read_bytes() for file in files}) == 6
    stamps = [file.stat().st_mtime_ns for file in files]
    assert trained(tmp_path, [one, two]) == first
    assert [file.stat().st_mtime_ns for file in files] == stamps
    other = trained(tmp_path, [two, two])
    assert [pair.derived for pair in other] == [pair.derived for pair in first]
    assert [a.other == b.other for a, b in zip(other, first, strict=True)] == [False, True, False]


def test_too_little_to_train_pairs_on_is_said(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="too few"):
        trained(tmp_path, ["vgg-00.onnx"], data=small(50)[0])
    with pytest.raises(UsageError, match="too few"):
        trained(tmp_path, [])


# the whole of it


def options(folder: Path, **more: Any) -> CraftOptions:
    with np.load(FIXTURES / "fashion/train.npz") as whole:
        np.savez(folder / "few.npz", x=whole["x"][:1200], y=whole["y"][:1200])
    return CraftOptions(
        victim=ZOO / "victim.pt",
        data=folder / "few.npz",
        schemes=("contrast:candidates=200",),
        queries=30,
        surrogate_folder=folder / "surrogates",
        device="cpu",
        jobs=1,
        **more,
    )


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[QueryBundle, list[str]]:
    """A bundle of contrast, with pairs that were trained for a moment, and what craft said."""
    folder = tmp_path_factory.mktemp("contrast")
    (folder / "references").mkdir()
    for file in sorted((ZOO / "references").glob("*.onnx"))[:9]:
        (folder / "references" / file.name).symlink_to(file)
    heard = Silent()
    with pytest.MonkeyPatch.context() as patch:
        hurry(patch, 6000)
        craft(options(folder, references=folder / "references", train_surrogates=2), heard).save(folder / "made.oab")
    return load(folder / "made.oab"), heard.notes


def test_what_chose_the_queries_never_calibrates(made: tuple[QueryBundle, list[str]]) -> None:
    bundle, notes = made
    by_role = {role: bundle.manifest.of_role(role) for role in ("training", "surrogate", "reference")}
    digests = {role: {model.sha256 for model in models} for role, models in by_role.items()}
    assert not digests["reference"] & (digests["training"] | digests["surrogate"])
    assert len(by_role["reference"]) == 6
    taught = [model for model in by_role["training"] if model.source.startswith("pair-")]
    assert len(by_role["training"]) == 3 + len(taught)
    assert len(taught) == 2
    assert all(model.origin.startswith("trained by craft: extract-") and " of " in model.origin for model in taught)
    assert all("-victim-" in model.source for model in by_role["surrogate"])
    (entry,) = bundle.manifest.schemes
    assert set(entry.columns) == set(COLUMNS)
    assert entry.sampling["pairs"] == len(taught)
    assert any("told apart" in note for note in notes)


@pytest.mark.parametrize("access", list(Access))
def test_check_scores_every_access_and_part_of_the_queries(made: tuple[QueryBundle, list[str]], access: Access) -> None:
    bundle, _ = made
    target = Target(str(ZOO / "suspects/copy.onnx"), bundle.manifest.input, 10, "cpu")
    with open_suspect(target) as suspect:
        shown = reduce_access(suspect, access, 3)
        whole, part = (check(bundle, shown, CheckOptions(budget=budget), Silent()) for budget in (None, 100))
    assert whole.schemes[0].queries == 30
    assert 10 <= part.schemes[0].queries < 30
    assert whole.schemes[0].access == ("label" if access == Access.LABEL else "topk" if access == Access.TOPK else "probs")
    for report in (whole, part):
        assert report.schemes[0].skipped is None
        assert report.schemes[0].score is not None


def test_the_catalogue_says_what_it_takes() -> None:
    needs = str(CATALOGUE["contrast"].needs)
    assert all(word in needs for word in ("DATA", "SURROGATES", "REFERENCES"))


@pytest.mark.parametrize(
    ("given", "said"), [({}, "needs surrogates"), ({"surrogates": ZOO / "suspects"}, "trains its own surrogates")]
)
def test_what_craft_lacks_for_it_is_said_before_anything_is_trained(given: Mapping[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=said):
        craft(options(tmp_path, references=ZOO / "references", **given), Silent())
