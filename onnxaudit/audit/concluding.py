"""What follows from all that a suspect said: the same when it was just asked, and when its transcript is replayed."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from onnxaudit.answers import Answers
from onnxaudit.audit.insights import Insights
from onnxaudit.audit.judging.judging import judge
from onnxaudit.audit.repeating import repeatable, steady, wavering
from onnxaudit.audit.wiring import Searched, explained
from onnxaudit.bundle import QueryBundle
from onnxaudit.report.model import Report
from onnxaudit.suspect import InputSpec, SuspectCard
from onnxaudit.transcript import Batch


@dataclass(frozen=True, slots=True, eq=False)
class Heard:
    """All that a check heard of a suspect. answers: to each query first; repeats: to those that were asked again, in all runs.

    refused: in the last run, those asked again got no answer of use. repeated: whether any were asked again in it. reused:
    answers of earlier runs that it went on with. looks: how often answers were judged as they came in, without a plan. wired:
    how its input was encoded when it was opened, and what the search for another wiring came to, if there was one.
    pools: of references by which these answers, or the first of them, were judged, this time included.
    """

    answers: Answers
    repeats: tuple[Batch, ...]
    refused: bool
    repeated: bool
    reused: int
    looks: int
    inside: Insights
    wired: tuple[InputSpec, Searched | None]
    pools: int

    @property
    def trusted(self) -> Answers:
        """As much of the answers as is judged by."""
        return repeatable(self.answers, self.repeats)


def conclude(
    bundle: QueryBundle,
    own: QueryBundle,
    card: SuspectCard,
    heard: Heard,
    *,
    alpha: float | None,
    planned: tuple[int, ...] | None,
    label_free: bool,
) -> Report:
    """The report, but for what asking took. own: the bundle as it was crafted, where ``bundle`` has other references."""
    answers = heard.trusted
    judged = partial(
        judge,
        card=card,
        answers=answers,
        alpha=alpha,
        stable=steady(heard.answers, heard.repeats) and not heard.refused and (heard.repeated or not heard.reused),
        looks=heard.looks,
        inside=heard.inside,
        planned=planned,
        label_free=label_free,
    )
    report = judged(bundle)
    said = [*report.conditions, *wavering(heard.answers, heard.repeats)]
    if heard.pools > 1:
        said.append(
            f"these answers were judged by {heard.pools} pools of references, one after the other: alpha holds for one of them"
        )
    report = dataclasses.replace(report, conditions=tuple(said))
    if own is not bundle and own.manifest.of_role("reference"):
        report = dataclasses.replace(report, own_pool=_beside(judged(own)))
    before, searched = heard.wired
    return explained(report, bundle, answers, before, searched)


def _beside(report: Report) -> Mapping[str, Any]:
    """What the bundle's own references say, to be shown beside what others do; it decides nothing."""
    return {
        "references": report.bundle["references"],
        "finding": report.finding,
        "p_value": report.p_value,
        "p_floor": report.p_floor,
        "reasons": list(report.reasons),
    }
