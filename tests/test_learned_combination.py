"""The learned combination: one linear function of each model's scores, non-negative, learned from models that never calibrate."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats
from torch import nn

from onnxaudit.answers import Access, Answers
from onnxaudit.audit.checking import CheckOptions, check
from onnxaudit.audit.combining import with_learned_weights
from onnxaudit.audit.crafting import CraftOptions, craft
from onnxaudit.audit.judging.comparing import compare
from onnxaudit.audit.progress import Silent
from onnxaudit.bundle import QueryBundle, load
from onnxaudit.craft.learning.combination import KEPT, fit_combination, weights
from onnxaudit.craft.learning.fitting import frozen_network
from onnxaudit.errors import ArtefactError, UsageError
from onnxaudit.evidence.calibration import TOLERANCE, combined, p_value, standardise
from onnxaudit.evidence.learned import GRAPH, STATISTIC, shares, unrelated, weighted, weights_of
from onnxaudit.registry import open_graph, open_suspect
from onnxaudit.report.model import Report
from onnxaudit.suspect import Target
from tests.bundles import simulated_bundle

FIXTURES = Path(__file__).resolve().parent.parent / "fixtures"
ZOO = FIXTURES / "zoo"
Floats = NDArray[np.float64]
DRAWS = 4000
some_weights = st.lists(st.floats(0, 10), min_size=1, max_size=6)


def scores(seed: int, schemes: int, models: int = 12) -> list[Floats]:
    return list(np.random.default_rng(seed).standard_t(3, (schemes, models)))


def frozen(*columns: list[float]) -> bytes:
    """A linear network with these weights, one list for each kind of access."""
    layer = nn.Linear(len(columns[0]), len(columns))
    with torch.no_grad():
        layer.weight.copy_(torch.tensor(columns))
        layer.bias.zero_()
    return frozen_network(nn.Sequential(layer))


# the statistic


@given(given_weights=some_weights, seed=st.integers(0, 1000))
def test_it_treats_all_models_alike(given_weights: list[float], seed: int) -> None:
    standardised = scores(seed, len(given_weights))
    order = np.random.default_rng(seed).permutation(12)
    found = weighted(standardised, given_weights)
    assert found.shape == (12,)
    assert weighted([z[order] for z in standardised], given_weights) == pytest.approx(found[order], abs=1e-12)


@given(given_weights=some_weights, seed=st.integers(0, 1000), model=st.integers(0, 11), less=st.floats(0, 5))
def test_a_lower_score_never_raises_suspicion(given_weights: list[float], seed: int, model: int, less: float) -> None:
    standardised = scores(seed, len(given_weights))
    before = weighted(standardised, given_weights)
    for scheme in range(len(given_weights)):
        lower = [z.copy() for z in standardised]
        lower[scheme][model] -= less
        after = weighted(lower, given_weights)
        assert after[model] <= before[model] + 1e-12
        assert np.delete(after, model) == pytest.approx(np.delete(before, model))


@given(given_weights=some_weights, factor=st.floats(0.1, 10))
def test_only_the_weights_of_what_ran_count_and_only_their_ratios(given_weights: list[float], factor: float) -> None:
    found = shares(given_weights)
    assert found.sum() == pytest.approx(1)
    assert shares([factor * w for w in given_weights]) == pytest.approx(found)
    assert found.min() >= 0


def test_equal_weights_are_the_plain_mean_to_the_last_bit_and_no_weight_at_all_too() -> None:
    standardised = scores(3, 5)
    for same in (1.0, 0.0, 0.3):
        assert weighted(standardised, [same] * 5).tolist() == combined(standardised).tolist()


def test_unrelated_schemes_are_counted_by_weight() -> None:
    assert unrelated(["a", "b", "c"], [1, 1, 1]) == pytest.approx(3)
    assert unrelated(["a", "a", "b"], [1, 1, 1]) == pytest.approx(9 / 5)  # K^2 / sum n^2
    assert unrelated(["a", "b"], [1, 0]) == pytest.approx(1)
    assert unrelated(["a", "b"], [3, 1]) == pytest.approx(1 / (9 / 16 + 1 / 16))


def test_references_that_all_score_alike_do_not_make_a_small_difference_large() -> None:
    """The spread of the weighted mean of unrelated scores is what ``unrelated`` says, so its inverse root is a fair floor."""
    rng = np.random.default_rng(4)
    for given_weights in ([1.0, 1.0, 1.0], [5.0, 1.0, 1.0], [1.0, 0.0, 0.0]):
        found = weighted(list(rng.normal(size=(3, 200_000))), given_weights)
        assert found.std() == pytest.approx(unrelated("abc", given_weights) ** -0.5, rel=0.01)
    tied = np.zeros(40)
    tied[-1] = 0.5
    assert p_value(weighted([tied, tied, tied], [5, 1, 1]), TOLERANCE, unrelated("abc", [5, 1, 1])) == 1


Draw = Callable[[np.random.Generator, int], list[Floats]]


def heavy(rng: np.random.Generator, models: int) -> list[Floats]:
    return list(rng.standard_t(1.3, (4, models)))


def together(rng: np.random.Generator, models: int) -> list[Floats]:
    common = rng.lognormal(0, 1.5, models)
    return [common + 0.3 * rng.standard_t(2, models) for _ in range(4)]


@pytest.mark.parametrize("draw", [heavy, together])
@pytest.mark.parametrize("references", [19, 39])
def test_exchangeable_innocents_are_accused_at_most_as_often_as_alpha_says(draw: Draw, references: int) -> None:
    """Weights fitted anew for every draw, to thieves and to half of the innocents; the other half and the suspect are judged."""
    rng = np.random.default_rng([references, 7])
    found = np.empty(DRAWS)
    for i in range(DRAWS):
        if i % 40 == 0:  # a learned combination serves many suspects
            taught = np.stack([standardise(score, None, 1e-6) for score in draw(rng, 20)], axis=1)
            thieves = taught[:8] + rng.normal([2, 1, 0, -1], 1, (8, 4))
            learned = weights(thieves, taught[8:])
        standardised = [standardise(score, None, 1e-6) for score in draw(rng, references + 1)]
        found[i] = p_value(weighted(standardised, learned.tolist()))
    for alpha in (0.05, 0.1, 0.2):
        hits = int((found <= alpha).sum())
        assert float(stats.beta.ppf(0.0005, hits, DRAWS - hits + 1)) <= alpha, f"{hits / DRAWS:.1%} have p <= {alpha}"
        assert float(stats.beta.ppf(0.9995, hits + 1, DRAWS - hits)) >= alpha


# fitting


def taught(seed: int, shift: list[float], derived: int = 12, independent: int = 14) -> tuple[Floats, Floats]:
    rng = np.random.default_rng(seed)
    return rng.normal(shift, 1, (derived, len(shift))), rng.normal(0, 1, (independent, len(shift)))


@given(seed=st.integers(0, 300), shift=st.lists(st.floats(-3, 4), min_size=2, max_size=5))
def test_weights_are_never_negative_and_no_scheme_is_dropped(seed: int, shift: list[float]) -> None:
    found = weights(*taught(seed, shift))
    assert found.sum() == pytest.approx(1)
    assert found.min() > 0
    assert found.min() >= KEPT / len(shift) * found.max() / (found.max() * len(shift) + 10)


def test_what_tells_derived_models_counts_for_more_and_gains_power() -> None:
    learned = weights(*taught(1, [2.0, 0.0, 0.0, -1.0]))
    assert learned[0] == learned.max() > 0.4
    assert learned[3] == learned.min()
    rng = np.random.default_rng(2)
    thieves, innocents = rng.normal([2, 0, 0, -1], 1, (4000, 4)), rng.normal(0, 1, (4000, 4))

    def power(weight: Floats) -> float:
        return float((thieves @ weight > np.quantile(innocents @ weight, 0.95)).mean())

    assert power(learned) > power(np.full(4, 0.25)) + 0.15


def test_without_anything_to_learn_it_stays_near_the_mean() -> None:
    rng = np.random.default_rng(5)
    same = rng.normal(size=(10, 3))
    assert weights(same, same) == pytest.approx(np.full(3, 1 / 3), abs=0.15)
    missing = np.column_stack([same[:, 0], np.full(10, np.nan), same[:, 2]])
    assert np.isfinite(weights(missing + np.array([2, 0, 2]), missing)).all()


def test_what_is_frozen_is_what_was_fitted() -> None:
    own, other = taught(1, [3.0, 0.0, 1.0])
    made = fit_combination([own[:, ::-1], own], [other[:, ::-1], other], ["a", "b", "c"])
    assert made.graph is not None
    graph = open_graph(made.graph)
    assert weights_of(graph, 3, labels=False) == pytest.approx(weights(own, other), abs=1e-6)
    assert weights_of(graph, 3, labels=True) == pytest.approx(weights(own[:, ::-1], other[:, ::-1]), abs=1e-6)
    assert made.graph == fit_combination([own[:, ::-1], own], [other[:, ::-1], other], ["a", "b", "c"]).graph
    assert len(made.notes) == 2
    with pytest.raises(UsageError, match="4 surrogates"):
        fit_combination([own[:3]] * 2, [other] * 2, ["a", "b", "c"])


@pytest.mark.parametrize(
    ("columns", "said"),
    [(([1.0, -0.1], [1.0, 1.0]), "negative"), (([0.0, 0.0], [1.0, 1.0]), "all 0"), (([1.0, 1.0],), "shape")],
)
def test_a_network_that_could_turn_suspicion_round_is_refused(columns: tuple[list[float], ...], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        weights_of(open_graph(frozen(*columns)), 2, labels=True)


# in a bundle


def learned_bundle(*columns: list[float]) -> QueryBundle:
    plain = simulated_bundle(20)
    return dataclasses.replace(
        plain, manifest=dataclasses.replace(plain.manifest, statistic=STATISTIC), graphs={GRAPH: frozen(*columns)}
    )


def compared(bundle: QueryBundle, suspect: Answers) -> Any:
    return compare(bundle, [bundle.answers[model.id] for model in bundle.manifest.of_role("reference")], suspect)


def test_compare_weighs_by_access_and_leaves_out_what_did_not_run() -> None:
    bundle = learned_bundle([1.0, 3.0], [3.0, 1.0])
    suspect = bundle.answers["victim"]
    for answers, share in ((suspect, [0.75, 0.25]), (suspect.degrade(Access.LABEL), [0.25, 0.75])):
        found = compared(bundle, answers)
        expected = sum(w * scheme.standardised for w, scheme in zip(share, found.schemes, strict=True))
        assert found.statistics == pytest.approx(expected, abs=1e-6)
        assert found.unrelated == pytest.approx(1.6, abs=1e-5)
    classes = suspect.classes.copy()
    classes[slice(*bundle.manifest.schemes[0].rows)] = -1
    left = compared(bundle, dataclasses.replace(suspect, classes=classes))
    assert left.schemes[0].skipped
    assert left.statistics.tolist() == left.schemes[1].standardised.tolist()
    assert left.unrelated == pytest.approx(1)


@pytest.mark.parametrize("columns", [([1.0, -3.0], [1.0, -1.0]), ([1.0, 1.0, 1.0], [1.0, 1.0, 1.0])])
def test_a_bundle_whose_combination_cannot_be_used_is_refused(columns: tuple[list[float], ...]) -> None:
    bundle = learned_bundle(*columns)
    with pytest.raises(ArtefactError, match="learned combination"):
        compared(bundle, bundle.answers["victim"])
    with pytest.raises(ArtefactError, match="not what was learned"):
        compared(dataclasses.replace(bundle, graphs={}), bundle.answers["victim"])


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[QueryBundle, list[str]]:
    """A bundle crafted with four of the zoo's thieves as surrogates, and what craft said."""
    folder = tmp_path_factory.mktemp("combination")
    (folder / "thieves").mkdir()
    for name in ("extract-label-vgg.onnx", "extract-prob-resnet.onnx", "prune-60.onnx", "retrain-all.onnx"):
        (folder / "thieves" / name).symlink_to(ZOO / "suspects" / name)
    heard = Silent()
    options = CraftOptions(
        victim=ZOO / "victim.pt",
        data=FIXTURES / "fashion/train.npz",
        schemes=("sac-m", "akh", "random"),
        queries=30,
        references=ZOO / "references",
        surrogates=folder / "thieves",
        combine="learned",
        device="cpu",
    )
    craft(options, heard).save(folder / "made.oab")
    return load(folder / "made.oab"), heard.notes


def asked(bundle: QueryBundle, name: str, **options: Any) -> Report:
    target = Target(str(ZOO / "suspects" / name), bundle.manifest.input, 10, "cpu")
    with open_suspect(target) as suspect:
        return check(bundle, suspect, CheckOptions(**options), Silent())


def test_half_of_the_references_teach_and_the_other_half_calibrates(made: tuple[QueryBundle, list[str]]) -> None:
    bundle, notes = made
    assert bundle.manifest.statistic == "learned/1"
    training, calibrating = bundle.manifest.of_role("training"), bundle.manifest.of_role("reference")
    assert (len(training), len(calibrating)) == (21, 21)
    assert not {model.sha256 for model in training} & {model.sha256 for model in calibrating}
    assert len(bundle.manifest.of_role("surrogate")) == 4
    assert any(note.startswith("learned weights for labels: sac-m") for note in notes)
    assert set(bundle.manifest.notes) >= {note for note in notes if note.startswith("learned weights")}
    graph = open_graph(bundle.graphs[GRAPH])
    for labels in (True, False):
        assert weights_of(graph, 3, labels=labels).min() > 0


def test_a_copy_is_found_and_innocents_are_not(made: tuple[QueryBundle, list[str]]) -> None:
    bundle, _ = made
    assert asked(bundle, "copy.onnx").finding == "derived"
    found = {name: asked(bundle, name).finding for name in ("twin-vgg.onnx", "strong-vgg-own.onnx", "weak-mlp.onnx")}
    assert set(found.values()) == {"not-shown"}


def test_who_calibrates_has_no_part_in_what_is_learned(made: tuple[QueryBundle, list[str]]) -> None:
    bundle, _ = made
    sources = {model.source for model in bundle.manifest.of_role("surrogate")}
    without = [model for model in bundle.manifest.models if model.role != "reference"]
    alone = dataclasses.replace(bundle, manifest=dataclasses.replace(bundle.manifest, models=tuple(without)))
    taught = {model.source for model in bundle.manifest.of_role("training")}
    assert with_learned_weights(alone, sources, taught, Silent()).graphs[GRAPH] == bundle.graphs[GRAPH]
    with pytest.raises(UsageError, match="8 references that do not calibrate, there are 7"):  # others in training are pairs
        with_learned_weights(alone, sources, sorted(taught)[:7], Silent())
    fewer = [model for model in without if model.role != "training"]
    untaught = dataclasses.replace(bundle, manifest=dataclasses.replace(bundle.manifest, models=tuple(fewer)))
    with pytest.raises(UsageError, match="8 references that do not calibrate"):
        with_learned_weights(untaught, sources, taught, Silent())
    with pytest.raises(UsageError, match="4 surrogates"):
        with_learned_weights(bundle, sorted(sources)[:2], taught, Silent())


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"combine": "median"}, "is not known"),
        ({"combine": "learned"}, "needs surrogates"),
        ({"combine": "learned", "surrogates": ZOO / "suspects"}, "needs references"),
        ({"combine": "learned", "surrogates": ZOO / "suspects", "siblings": ZOO / "references"}, "siblings"),
    ],
)
def test_what_it_cannot_be_learned_from_is_said(given: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        craft(CraftOptions(victim=ZOO / "victim.pt", data=FIXTURES / "fashion/train.npz", **given), Silent())
