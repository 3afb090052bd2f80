"""Benign queries: which inputs are chosen, in which order, and the truth of each."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from numpy.typing import NDArray
from torch import Tensor

from onnxaudit.answers import Answers
from onnxaudit.craft.sample import Material
from onnxaudit.craft.samplers.benign import label_entropy, sample_benign
from onnxaudit.craft.victim import Victim
from onnxaudit.schemes.information import mutual_information
from onnxaudit.schemes.representations import ranks
from onnxaudit.suspect import Queries
from tests.material import sampled, shipped, tabular


@pytest.fixture
def material() -> Material:
    return shipped()


@pytest.mark.parametrize("share", [0.5, 0.2])
def test_errors_and_right_answers_are_mixed_evenly(share: float, material: Material) -> None:
    sample = sampled(sample_benign, material, 100, share=share)
    wrong = material.victim.answer(sample.queries).argmax(1) != sample.columns["truth"]
    assert wrong.sum() == 100 * share
    assert all(abs(int(wrong[:n].sum()) - n * share) <= 1 for n in range(1, 101))  # so every prefix is mixed, too
    victim = ranks(Answers.from_scores(material.victim.answer(sample.queries)), sample.columns)
    assert mutual_information(victim, victim) == pytest.approx(1)  # not constant


def test_where_one_kind_is_short_the_other_fills_up(material: Material) -> None:
    data, truth = material.labelled()
    wrong = np.flatnonzero(material.victim.answer(data.x).argmax(1) != truth)
    right = np.setdiff1d(np.arange(len(data)), wrong)
    for errors, correct, n, expected in ((4, 60, 40, 4), (60, 4, 40, 36), (10, 10, 40, 10)):
        part = data.take(np.concatenate([wrong[:errors], right[:correct]]))
        sample = sampled(sample_benign, Material(material.victim, part), n)
        found = material.victim.answer(sample.queries).argmax(1) != sample.columns["truth"]
        assert found.sum() == expected
        assert len({image.tobytes() for image in sample.queries}) == len(found)
        short = len(part) < n
        assert sample.notes == ((f"{len(part)} queries instead of {n}: the data has no more inputs",) if short else ())


@dataclass(frozen=True)
class Shifted:
    """A reference that gives another class from some brightness on."""

    victim: Victim
    above: float
    source: str = "shifted"

    def logits(self, pixels: Tensor) -> Tensor:
        return self.victim.logits(pixels)

    def answer(self, queries: Queries) -> NDArray[np.float32]:
        scores = self.victim.answer(queries)
        bright = queries.reshape(len(queries), -1).mean(axis=1) > self.above
        scores[bright] = np.roll(scores[bright], 1, axis=1)
        return scores


def test_entropy_takes_what_references_disagree_on(material: Material) -> None:
    peers = [Shifted(material.victim, above) for above in (1000, 60, 90)]
    sample = sampled(sample_benign, Material(material.victim, material.inputs(), references=peers), 100, rule="entropy")
    labels = np.stack([peer.answer(sample.queries).argmax(1) for peer in peers])
    assert (label_entropy(labels) > 0).all()
    overall = label_entropy(np.stack([peer.answer(material.inputs().x).argmax(1) for peer in peers]))
    assert (overall > 0).mean() < 0.9


def test_label_entropy_is_scipys() -> None:
    from scipy.stats import entropy

    labels = np.random.default_rng(0).integers(0, 7, (9, 50))
    expected = [entropy(np.bincount(labels[:, i], minlength=7)) for i in range(50)]
    assert label_entropy(labels) == pytest.approx(np.array(expected))
    assert label_entropy(np.zeros((3, 2), np.int64)).tolist() == [0, 0]


def test_benign_vectors_and_their_truth() -> None:
    material = tabular()
    for rule in ("mixed", "random"):
        sample = sampled(sample_benign, material, 20, rule=rule)
        assert sample.queries.dtype == np.float32
        rows = [int(np.flatnonzero((material.inputs().x == query).all(axis=1))[0]) for query in sample.queries]
        assert sample.columns["truth"].tolist() == material.labelled()[1][rows].tolist()
