"""With too few siblings for alpha none of them may be as close as the suspect all the same."""

from __future__ import annotations

import pytest

from onnxaudit.report.model import NOT_SHOWN
from tests.test_line_up import judged, related


@pytest.mark.parametrize(("siblings", "seed"), [(3, 93), (9, 5), (18, 35)])
def test_a_twin_that_a_sibling_is_as_close_as_is_not_accused_for_leading_the_references(siblings: int, seed: int) -> None:
    """These twins are closer than all references, tolerance included: only their place among the siblings speaks for them."""
    bundle = related(siblings, seed, shared=1.6)
    report = judged(bundle, bundle.answers["twin"])
    assert report.line_up is not None
    assert report.p_exchangeable is not None
    assert report.p_exchangeable <= 0.05
    assert report.line_up.among_siblings > 1 / (siblings + 1)
    assert (report.finding, report.p_value) == (NOT_SHOWN, report.line_up.among_siblings)


def test_a_copy_that_no_sibling_is_as_close_as_keeps_its_rank_among_the_references() -> None:
    bundle = related(9, 5, shared=1.6)
    report = judged(bundle, bundle.answers["victim"])
    assert report.line_up is not None
    assert report.line_up.among_siblings == 1 / 10
    assert (report.finding, report.p_value) == ("derived", report.p_floor)
