"""Guards against accusing that only rare bundles need."""

from __future__ import annotations

import dataclasses

import pytest

from onnxaudit.answers import Access, Answers
from onnxaudit.audit.calibrating import preregistered
from onnxaudit.audit.judging.comparing import ALIKE
from onnxaudit.audit.judging.judging import judge
from onnxaudit.evidence.siblings import STATISTIC
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


@pytest.mark.parametrize("matches", [0, 1, 2])
def test_a_few_matches_are_no_evidence_beside_siblings_either(matches: int) -> None:
    """References and siblings give the victim's label to no query: their scores do not differ, and a small difference is none."""
    plain = tied_bundle("boundary+labels+matching-rate")
    entry = plain.manifest.models[1]
    kin = [dataclasses.replace(entry, id=f"sibling-{n:03d}", role="sibling", source=f"sibling-{n}.onnx") for n in range(3)]
    manifest = dataclasses.replace(plain.manifest, models=(*plain.manifest.models, *kin))
    told = {**plain.answers, **{model.id: answers(0, wrong=n) for n, model in enumerate(kin)}}
    told = {name: scored(said) for name, said in told.items()}
    bundle = preregistered(dataclasses.replace(plain, manifest=manifest, answers=told))
    assert bundle.manifest.statistic == STATISTIC
    report = judge(bundle, CARD, scored(answers(matches, wrong=2)), None)
    assert (report.finding, report.p_value) == ("not-shown", 1.0)
    assert judge(bundle, CARD, scored(answers(60, wrong=2)), None).finding == "derived"


def scored(said: Answers) -> Answers:
    """The same labels, with scores."""
    return Answers.from_scores(4 * said.dense(), Access.LOGITS)
