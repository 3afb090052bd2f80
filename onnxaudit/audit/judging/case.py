"""What there is to be judged: recorded answers beside a bundle's, and the terms that the bundle fixed before any were asked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from onnxaudit.answers import Answers
from onnxaudit.audit.insights import askable
from onnxaudit.audit.judging.comparing import Comparison, has_places, references_of
from onnxaudit.audit.judging.controls import weak_references
from onnxaudit.audit.judging.looking import Seen
from onnxaudit.audit.once import once
from onnxaudit.bundle import QueryBundle
from onnxaudit.evidence.calibration import TOLERANCE, WIDE_TOLERANCE, look_price, p_floor, p_value
from onnxaudit.evidence.siblings import STATISTIC as SIBLING_STATISTIC
from onnxaudit.report.model import Controls


@dataclass(frozen=True, slots=True, eq=False)
class Terms:
    """What a bundle's own contents fix before any suspect is asked, whatever alpha a check is called with.

    weak: the references are less accurate than the victim. siblings: so many a suspect is ranked among as well: all, if they are
    enough for the bundle's alpha, else 0. placed: also by its place in the line-up. tolerance: how many standard deviations of a
    head start references get; where a suspect is placed, that covers the innocents that the tolerance is for.
    """

    references: Sequence[Answers]
    weak: bool
    siblings: int
    placed: bool
    tolerance: float

    @property
    def floor(self) -> float:
        """What p cannot fall below, judged once."""
        return max(p_floor(len(self.references)), p_floor(self.siblings) if self.siblings else 0.0)


def terms_of(bundle: QueryBundle, *, label_free: bool) -> Terms:
    manifest, weak = bundle.manifest, once(weak_references, bundle)
    count = len(manifest.of_role("sibling")) if manifest.statistic == SIBLING_STATISTIC else 0
    siblings = count if count and p_floor(count) <= manifest.alpha + 1e-12 else 0
    placed = not label_free and bool(siblings) and once(has_places, bundle)
    plain, wide = (0.0, TOLERANCE) if placed else (TOLERANCE, WIDE_TOLERANCE)
    return Terms(once(references_of, bundle), weak, siblings, placed, wide if weak else plain)


@dataclass(frozen=True, slots=True, eq=False)
class Case:
    """One suspect's answers, as they are judged. level: the alpha of this check.

    planned: looks were fixed before anything was asked; seen: what they showed, None before the first. looks: how often answers
    were judged as they came in without a plan, see ``times``.
    """

    bundle: QueryBundle
    terms: Terms
    answers: Answers
    comparison: Comparison
    controls: Controls
    level: float
    label_free: bool
    planned: bool
    seen: Seen | None
    looks: int

    @property
    def complete(self) -> bool:
        """Whether nothing more was to be asked."""
        if self.planned:
            return self.seen is not None and self.seen.decided
        return bool(self.answers.answered[once(askable, self.bundle)].all())

    @property
    def times(self) -> int:
        """What p is multiplied by: 1 with a plan, which has its own account of its looks."""
        return 1 if self.planned else look_price(self.looks, last=self.complete)

    @property
    def p(self) -> float | None:
        """The p-value: the greatest over all that the suspect is ranked among; None where nothing could be compared."""
        twins = self.comparison.twins
        p = self._ranked() if not self.planned else self.seen.p if self.seen else None
        if p is None or self.terms.siblings or twins is None:
            return p
        # too few siblings for the bundle's alpha: none of them may be as close all the same
        among = p_value(twins)
        return p if among <= p_floor(len(twins) - 1) + 1e-12 else max(p, among)

    def _ranked(self) -> float | None:
        """The p-value of answers that were judged at the end."""
        if self.comparison.statistics is None or not self.terms.references:
            return None
        ranks = [p_value(self.comparison.statistics, self.terms.tolerance, self.comparison.unrelated)]
        if self.terms.siblings:
            ranks.append(1.0 if self.comparison.twins is None else p_value(self.comparison.twins))
        if self.terms.placed:
            ranks.append(1.0 if self.comparison.places is None else p_value(self.comparison.places))
        return min(1.0, self.times * max(ranks))

    @property
    def floor(self) -> float:
        """What p cannot fall below."""
        return min(1.0, self.times * self.terms.floor)
