"""Control queries: a suspect that cannot do the victim's task, or is wired wrongly, is not judged as if it could."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from onnxaudit.answers import Answers
from onnxaudit.audit.judging.controls import FEWEST_EASY, FEWEST_OF_CLASS, SANE
from tests.bundles import CONTROLS, QUERIES
from tests.simulated import BUNDLE, INNOCENT, VICTIM, judged, replaced, with_references


def test_a_suspect_that_fails_the_controls_is_inconclusive_even_if_it_matches_the_fingerprint() -> None:
    wrong = (VICTIM.labels[slice(*CONTROLS)] + 1) % 5
    report = judged(replaced(VICTIM, slice(*CONTROLS), wrong))
    assert report.controls.ok is False
    assert report.controls.agreement is not None
    assert report.controls.agreement < 0.2
    assert (report.finding, report.exit_code) == ("inconclusive", 11)
    assert "easy controls right" in report.reasons[0]


def test_another_label_order_is_inconclusive() -> None:
    order = np.array([1, 2, 3, 4, 0], np.int32)
    report = judged(Answers.from_labels(order[VICTIM.labels], 5))
    assert report.finding == "inconclusive"
    assert report.controls.ok is False


def test_easy_controls_are_those_that_the_victim_and_most_references_get_right() -> None:
    start, stop = CONTROLS
    truth = BUNDLE.control_labels
    right = np.mean([BUNDLE.answers[m.id].labels[start:stop] == truth for m in BUNDLE.manifest.of_role("reference")], axis=0)
    easy = (VICTIM.labels[start:stop] == truth) & (right >= 0.75)
    controls = judged(INNOCENT).controls
    assert controls.n == easy.sum() >= FEWEST_EASY
    assert controls.agreement == pytest.approx((INNOCENT.labels[start:stop] == truth)[easy].mean())
    assert controls.accuracy == pytest.approx((INNOCENT.labels[start:stop] == truth).mean())
    assert controls.ok is True
    assert len(controls.reference_accuracy) == 39


def test_too_few_controls_cannot_tell_and_say_so() -> None:
    manifest = dataclasses.replace(BUNDLE.manifest, controls=(CONTROLS[0], CONTROLS[0] + 5))
    few = dataclasses.replace(BUNDLE, manifest=manifest, control_labels=BUNDLE.control_labels[:5])
    none = dataclasses.replace(
        BUNDLE,
        manifest=dataclasses.replace(BUNDLE.manifest, controls=(QUERIES, QUERIES)),
        control_labels=BUNDLE.control_labels[:0],
    )
    for bundle, controls in ((few, 5), (none, 0)):
        report = judged(VICTIM, bundle)
        assert report.controls.ok is None
        assert report.controls.answered == controls
        assert any(f"{'too few' if controls else 'no'} control queries" in condition for condition in report.conditions)
        assert report.finding == "derived"


def test_a_suspect_needs_four_fifths_of_the_easy_controls() -> None:
    start, stop = CONTROLS
    truth = BUNDLE.control_labels
    right = np.mean([BUNDLE.answers[m.id].labels[start:stop] == truth for m in BUNDLE.manifest.of_role("reference")], axis=0)
    easy = start + np.flatnonzero((VICTIM.labels[start:stop] == truth) & (right >= 0.75))
    for share, sane in ((0.0, True), (0.1, True), (0.19, True), (0.21 + 1 / len(easy), False), (0.5, False)):
        labels = VICTIM.labels.copy()
        wrong = np.random.default_rng(0).permutation(easy)[: int(share * len(easy))]
        labels[wrong] = (labels[wrong] + 1) % 5
        report = judged(Answers.from_labels(labels, 5))
        assert report.controls.agreement is not None
        assert report.controls.agreement == pytest.approx(1 - len(wrong) / len(easy))
        assert report.controls.ok is (report.controls.agreement >= SANE) is sane
        assert any("easy controls right" in reason for reason in report.reasons) == (not sane)
    assert SANE == 0.8


def test_a_confused_class_is_named_among_the_conditions() -> None:
    start, stop = CONTROLS
    truth = BUNDLE.control_labels
    right = np.mean([BUNDLE.answers[m.id].labels[start:stop] == truth for m in BUNDLE.manifest.of_role("reference")], axis=0)
    easy = (VICTIM.labels[start:stop] == truth) & (right >= 0.75)
    known = [label for label in range(5) if (easy & (truth == label)).sum() >= FEWEST_OF_CLASS]
    assert len(known) >= 3
    nameless = dataclasses.replace(BUNDLE, manifest=dataclasses.replace(BUNDLE.manifest, class_names=()))
    for label, name in enumerate(BUNDLE.manifest.class_names):
        labels = VICTIM.labels.copy()
        labels[start:stop][truth == label] = (label + 1) % 5
        report = judged(Answers.from_labels(labels, 5))
        assert report.controls.confused == (name if label in known else "")
        said = [condition for condition in report.conditions if "nearly all easy controls" in condition]
        assert len(said) == (label in known)
        assert all(words.startswith(f"the suspect gets nearly all easy controls of {name} wrong") for words in said)
        assert not any("nearly all easy controls" in reason for reason in report.reasons)
        assert judged(Answers.from_labels(labels, 5), nameless).controls.confused == (f"class {label}" if label in known else "")
    assert judged(VICTIM).controls.confused == ""


def test_a_suspect_better_than_references_too_few_to_adjust_by_is_not_judged() -> None:
    stronger = "more accurate than nearly all references"
    start, stop = CONTROLS
    best = replaced(INNOCENT, slice(start, stop), BUNDLE.control_labels)
    few, enough = judged(best, with_references(10), 0.1), judged(best, with_references(20), 0.1)
    assert few.finding == "inconclusive"
    assert any(stronger in reason for reason in few.reasons)
    assert not any(stronger in reason for reason in enough.reasons)
    assert any(stronger in condition and "adjusted" in condition for condition in enough.conditions)
