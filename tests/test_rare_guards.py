"""Guards against accusing that only rare bundles need."""

from __future__ import annotations

import dataclasses

import pytest

from onnxaudit.audit.judging.comparing import ALIKE
from onnxaudit.audit.judging.judging import judge
from tests.bundles import Recorded
from tests.test_innocence import CARD, answers, tied_bundle
from tests.test_line_up import related


@pytest.mark.parametrize("planned", [None, (), (10,)])
def test_a_line_up_that_no_look_could_work_out_accuses_nobody(planned: tuple[int, ...] | None) -> None:
    """Its queries are too few, even all of them: what stands among the siblings alone is not enough."""
    bundle = related(19, 2, shared=1.0)
    entries = tuple(
        dataclasses.replace(entry, rows=(entry.rows[0], entry.rows[0] + 2)) if entry.sampler in ALIKE else entry
        for entry in bundle.manifest.schemes
    )
    bundle = dataclasses.replace(bundle, manifest=dataclasses.replace(bundle.manifest, schemes=entries))
    copy = bundle.answers["victim"]
    report = judge(bundle, Recorded(bundle, copy).card, copy, None, planned=planned)
    assert report.p_value == 1.0
    assert report.finding != "derived"


@pytest.mark.parametrize("matches", [3, 4])
def test_schemes_on_which_no_reference_is_close_are_no_more_evidence_than_one(matches: int) -> None:
    """Whoever is a little closer by one of them is so by the others, whatever sampler their queries are of."""
    several = tied_bundle("boundary+labels+matching-rate", "negative+labels+matching-rate", "noise+labels+matching-rate")
    report = judge(several, CARD, answers(matches, wrong=2), None)
    assert report.finding == "not-shown"
    assert report.margin == 1.0
    assert judge(several, CARD, answers(60, wrong=2), None).finding == "derived"
