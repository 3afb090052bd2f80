"""What users may write as a scheme: names, compositions, parameters; and what they are told when it makes none."""

from __future__ import annotations

import pkgutil

import numpy as np
import pytest

from onnxaudit.errors import UsageError
from onnxaudit.schemes.catalogue import ALIASES, CATALOGUE
from onnxaudit.schemes.compositions import compositions, keywords, parameters_of, problem, schemes
from onnxaudit.schemes.detectors import DETECTORS
from onnxaudit.schemes.representations import REPRESENTATIONS
from onnxaudit.schemes.samplers import SAMPLERS, Need

ISSUE = (
    *("ipguard", "ipguard-tr", "ipguard-tl", "ipguard-rr", "ipguard-rl", "fgsm", "igsm", "cw-l2", "deepfool", "fuap"),
    *("sac-w", "sac-m", "sac-normal", "sac-source", "akh", "random", "modeldiff", "zest", "deepjudge", "fbi", "cae", "afa"),
    *("tafa", "metav", "ssf", "modelgif"),
)
"""Every scheme that the catalogue must have by name."""


@pytest.mark.parametrize("name", ISSUE)
def test_every_scheme_of_the_papers_has_its_name(name: str) -> None:
    assert schemes(name)


@pytest.mark.parametrize("name", list(CATALOGUE))
def test_a_scheme_is_a_valid_composition_of_parts_that_exist(name: str) -> None:
    item = CATALOGUE[name]
    assert problem(item.sampler, item.representation, item.detector) is None
    assert set(item.sampling) <= set(parameters_of(SAMPLERS[item.sampler]))
    assert set(item.representing) <= set(parameters_of(REPRESENTATIONS[item.representation]))
    assert set(item.detecting) <= set(parameters_of(DETECTORS[item.detector]))


@pytest.mark.parametrize("name", list(SAMPLERS))
def test_every_sampler_can_be_imported_and_its_parameters_given_by_users(name: str) -> None:
    for default in keywords(pkgutil.resolve_name(SAMPLERS[name].source)).values():
        assert default is None or isinstance(default, int | float | bool | str)


@pytest.mark.parametrize("name", [name for name, part in DETECTORS.items() if part.trainer])
def test_every_learned_detector_has_its_trainer(name: str) -> None:
    assert callable(pkgutil.resolve_name(DETECTORS[name].trainer))


def test_a_composition_is_named_by_its_parts() -> None:
    (found,) = schemes("negative+correlation+l1")
    assert (found.sampler, found.representation, found.detector) == ("negative", "correlation", "l1")
    assert found.name == "negative+correlation+l1"
    assert found.needs == Need.DATA | Need.LABELS
    assert found.access == "probs"


def test_parameters_go_to_the_part_that_has_them() -> None:
    (found,) = schemes("sac-m:box=corner,kernel=rbf,epsilon=0.2")
    assert found.sampling == {**CATALOGUE["sac-m"].sampling, "box": "corner"}
    assert found.representing == {"kernel": "rbf", "epsilon": 0.2}
    (composed,) = schemes("boundary:k=5,start=random+topk:k=2+hamming")
    assert composed.sampling == {"k": 5, "start": "random"}
    assert composed.representing == {"k": 2}
    (margin,) = schemes("ipguard:k=3")
    assert (margin.sampling["k"], margin.sampling["start"]) == (3, "training")


def test_what_learns_needs_models_to_learn_from() -> None:
    (found,) = schemes("negative+labels+logistic")
    assert found.needs == Need.DATA | Need.LABELS | Need.SURROGATES | Need.REFERENCES


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("sac", "there is no scheme 'sac'"),
        ("ewe", "a watermark"),
        ("negative+correlation", "is not queries+representation+detector"),
        ("negative+correlation+l1+l2", "is not queries+representation+detector"),
        ("errors+labels+hamming", "no queries 'errors'"),
        ("negative+scores+l1", "no representation 'scores'"),
        ("negative+logits+l3", "no detector 'l3'"),
        ("negative+ddv+cosine", "needs queries that come with their pair"),
        ("uniform+ranks+mutual-information", "come with their truth"),
        ("negative+labels+cosine", "cosine does not compare labels"),
        ("negative+logits+hamming", "hamming does not compare logits"),
        ("negative+labels+robd", "robd does not compare labels"),
        ("sac-m:box", "name:key=value"),
        ("sac-m:colour=red", "has no parameter 'colour'"),
        ("sac-m:epsilon=much", "epsilon must be a finite number, as 0.1, not 'much'"),
        ("negative:fill=3+labels+hamming", "fill must be a word, as 'cutmix', not 3"),
        ("sac-m:epsilon=nan", "epsilon must be a finite number"),
        ("sac-m:epsilon=1e999", "epsilon must be a finite number"),
        ("sac-m:normalise=1", "normalise must be true or false, not 1"),
        ("sac-m:epsilon=true", "epsilon must be a finite number, as 0.1, not True"),
        ("modelgif:baseline=nan", "baseline must be a finite number"),
        ("modelgif:nodes=inf", "nodes must be a whole number, as 10, not inf"),
        ("boundary+topk:k=2.5+hamming", "k must be a whole number, as 3, not 2.5"),
        ("fbi:k=2.5", "k must be a whole number, as 5, not 2.5"),
        ("ipguard-tl:iterations=1.5", "iterations must be a whole number, as 1000"),
        ("ipguard-tl:iterations=true", "iterations must be a whole number, as 1000"),
        ("ipguard-tl:k=wide", "k must be a finite number, not 'wide'"),
        ("ipguard-tl:k=-inf", "k must be a finite number"),
        ("zest:views=2.5", "views must be a whole number, as 10, not 2.5"),
        ("negative+labels:k=3+hamming", "labels has no parameter 'k'"),
    ],
)
def test_what_makes_no_scheme_is_refused_in_words(text: str, words: str) -> None:
    with pytest.raises(UsageError, match=words.replace("+", r"\+")) as refused:
        schemes(text)
    assert "\n" not in str(refused.value)


def test_a_whole_number_is_a_float_too_and_spaces_do_not_count() -> None:
    (found,) = schemes("sac-m:epsilon=1")
    assert found.representing == {"epsilon": 1}
    (spaced,) = schemes(" boundary : k = 5 , start=random + topk:k=2 +hamming ")
    assert spaced.name == "boundary:k=5,start=random+topk:k=2+hamming"
    assert (spaced.sampling, spaced.representing) == ({"k": 5, "start": "random"}, {"k": 2})
    (named,) = schemes(" akh ")
    assert named is CATALOGUE["akh"]


@pytest.mark.parametrize(
    ("plain", "more"),
    [
        ("sac-w", "keep_if_references=right"),
        ("afa", "unlike_references=true"),
        ("modelgif", "select=distant"),
        ("fbi", "rule=entropy"),
    ],
)
def test_some_parameters_make_a_scheme_need_references(plain: str, more: str) -> None:
    (without,), (needy,) = schemes(plain), schemes(f"{plain}:{more}")
    assert Need.REFERENCES not in without.needs
    assert needy.needs == without.needs | Need.REFERENCES
    other = more.replace("=right", "=").replace("true", "false").replace("distant", "random").replace("entropy", "mixed")
    (same,) = schemes(f"{plain}:{other}")
    assert same.needs == without.needs


def test_points_that_start_from_data_need_data() -> None:
    assert Need.DATA in CATALOGUE["ipguard-tl"].needs
    assert Need.DATA not in CATALOGUE["ipguard-rl"].needs


def test_there_are_more_compositions_than_the_hundred_of_qurd() -> None:
    found = [scheme.name for scheme in compositions()]
    assert len(found) == len(set(found)) >= 100
    grid = [f"{q}+{r}" for q in ("uniform", "negative", "negative-augment", "adversarial", "negative-adversarial", "boundary",
            "subsample", "negative-subsample") for r in ("labels+matching-rate", "logits+cosine", "correlation+l2",
            "hard-correlation+l2")]  # fmt: skip
    grid += [f"{q}+{r}" for q in ("adversarial", "negative-adversarial") for r in ("ddv+cosine", "hard-ddv+matching-rate")]
    grid += [f"{q}+lime+l2" for q in ("subsample", "negative-subsample")]
    assert set(grid) <= set(found)
    for name in found:
        (again,) = schemes(name)
        assert again.name == name


def test_aliases_stand_for_schemes_that_exist() -> None:
    for names in ALIASES.values():
        assert set(names) <= set(CATALOGUE)


def test_a_detector_finds_nothing_closer_than_the_victim_itself() -> None:
    """On a random representation of the right kind, for every detector that learns nothing."""
    rng = np.random.default_rng(0)
    one, other = rng.integers(0, 2, (2, 12, 5)).astype(float)
    for name, part in DETECTORS.items():
        if not part.trainer and name != "jensen-shannon":
            assert part.function(one, one) >= part.function(one, other), name
    one, other = rng.dirichlet(np.ones(5), (2, 12))
    divergence = DETECTORS["jensen-shannon"].function
    assert divergence(one, one) == pytest.approx(0, abs=1e-12)
    assert divergence(one, other) < -0.01
