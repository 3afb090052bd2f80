"""No accusation by the number of tests: what a scan's lines say of p-values that innocents would have."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from onnxaudit.evidence.multiple import holm
from onnxaudit.report.findings import BONFERRONI, HOLM, adjust, bonferroni, line_of, references_needed
from onnxaudit.report.model import Controls, Report


def line(p_value: float | None, finding: str = "derived", reasons: tuple[str, ...] = (), alpha: float = 0.05) -> dict[str, Any]:
    suspect = {"source": "a.onnx", "kind": "onnx", "access": "logits", "sha256": "a" * 64, "runtime": {}}
    report = Report(
        finding, p_value, 0.001, alpha, 1.0, reasons, {"id": "b" * 64, "references": 999}, suspect, Controls(), (), {}, {}
    )  # fmt: skip
    return line_of(report, "a.onnx", "a" * 64, "s")


def alone(p_value: float, alpha: float = 0.05) -> dict[str, Any]:
    """A line as check would judge it."""
    return line(p_value, "derived" if p_value <= alpha else "not-shown", alpha=alpha)


def test_references_that_so_many_tests_need() -> None:
    assert [references_needed(n, 0.05) for n in (1, 2, 1000, 10_000)] == [19, 39, 19_999, 199_999]
    assert references_needed(1, 0.01) == 99
    for tests in (1, 3, 7, 60, 999, 12_345):
        for alpha in (0.05, 0.01, 0.1, 0.03):
            needed = references_needed(tests, alpha)
            for references, finding in ((needed, "derived"), (needed - 1, "inconclusive")):
                floor = 1 / (references + 1)
                found = adjust(line(floor, alpha=alpha), bonferroni(floor, tests), tests, BONFERRONI)["finding"]
                assert found == finding, (tests, alpha, references)


def test_innocents_are_accused_in_no_more_scans_than_alpha_says() -> None:
    """A thousand scans of fifty innocents each, with p-values as 999 references give them: uniform on k/1000."""
    rng = np.random.default_rng(0)
    accused = accused_uncorrected = 0
    for _ in range(1000):
        p_values = (rng.integers(1, 1001, 50) / 1000).tolist()
        lines = [adjust(alone(p), adjusted, 50, HOLM) for p, adjusted in zip(p_values, holm(p_values), strict=True)]
        accused += any(one["finding"] == "derived" for one in lines)
        accused_uncorrected += min(p_values) <= 0.05
    assert accused / 1000 <= 0.05 + 3 * (0.05 * 0.95 / 1000) ** 0.5
    assert accused > 0  # nor is it vacuous
    assert accused_uncorrected > 900  # what "check" said of each would come to


def test_holm_finds_all_that_bonferroni_finds_and_may_find_more() -> None:
    rng = np.random.default_rng(1)
    more = 0
    for _ in range(300):
        p_values = [*(rng.integers(1, 8, 6) / 2000).tolist(), *rng.random(14).tolist()]
        early = [adjust(alone(p), bonferroni(p, 20), 20, BONFERRONI)["finding"] for p in p_values]
        late = [adjust(alone(p), q, 20, HOLM)["finding"] for p, q in zip(p_values, holm(p_values), strict=True)]
        assert all(b == "derived" for a, b in zip(early, late, strict=True) if a == "derived")
        more += late.count("derived") - early.count("derived")
    assert more > 0


@pytest.mark.parametrize("tests", [1, 2, 1000])
def test_adjusting_never_accuses_whom_check_would_not(tests: int) -> None:
    doubtful = line(0.001, "inconclusive", ("the suspect gives the same label to every query",))
    missing = line(None, "inconclusive", ("no scheme could run",))
    for one, expected in ((doubtful, "inconclusive"), (missing, "inconclusive"), (alone(0.2), "not-shown")):
        found = adjust(one, bonferroni(one["p_value"], tests), tests, BONFERRONI)
        assert (found["finding"], found["reasons"]) == (expected, list(one["reasons"]))


def test_adjusting_again_forgets_what_held_before() -> None:
    """More suspects take a finding back; the reason is that of the tests there are now, once."""
    first = adjust(alone(0.001), 0.02, 20, HOLM)
    assert (first["finding"], first["reasons"]) == ("derived", [])
    more = adjust(first, 0.1, 100, BONFERRONI)
    assert more["finding"] == "inconclusive"
    assert len(more["reasons"]) == 1
    assert "one of 100 tests" in more["reasons"][0]
    assert "needs at least 1999 references" in more["reasons"][0]
    assert adjust(more, 0.02, 20, HOLM) == first
    assert adjust(more, 0.1, 100, BONFERRONI) == more
