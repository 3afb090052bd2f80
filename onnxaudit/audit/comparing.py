"""From recorded answers to statistics: every scheme's scores of a suspect and of the references, and the combined one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from onnxaudit.answers import Access, Answers
from onnxaudit.audit.insights import Insights, insight_key, insights_of
from onnxaudit.bundle import QueryBundle, SchemeEntry
from onnxaudit.errors import ArtefactError
from onnxaudit.evidence.calibration import STATISTIC, Floats, combined, mean_agreement, standardise, usable
from onnxaudit.registry import open_graph
from onnxaudit.schemes.detectors import DETECTORS, DISCRETE, Detector
from onnxaudit.schemes.representations import REPRESENTATIONS, Representation

FEWEST_QUERIES = 10
"""A scheme that got fewer answers than this says nothing."""
FEWEST_CONTROLS = 30
"""Nor does mean agreement on fewer controls than this."""


@dataclass(frozen=True, slots=True, eq=False)
class SchemeScores:
    """scores, standardised: (m + 1,), the references in order, then the suspect. None with a reason if it cannot run.

    access: the access that was used, or what was looked at inside.
    """

    name: str
    queries: int
    access: str
    scores: Floats | None = None
    standardised: Floats | None = None
    skipped: str | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Comparison:
    """All schemes of one bundle for one suspect. statistics: (m + 1,) combined, or None if no scheme ran.

    adjusted: whether scores were adjusted for how good and ordinary each model is.
    """

    schemes: tuple[SchemeScores, ...]
    statistics: Floats | None
    adjusted: bool = False

    @property
    def ran(self) -> int:
        """How many schemes the statistic is the mean of."""
        return max(1, sum(scheme.standardised is not None for scheme in self.schemes))


def compare(bundle: QueryBundle, references: Sequence[Answers], suspect: Answers, inside: Insights | None = None) -> Comparison:
    """Score the suspect and every reference on the same rows, cut to the least access of all of them.

    references: answers of the first so many references of the bundle. inside: what the suspect showed of its inside.
    """
    if bundle.manifest.statistic != STATISTIC:
        raise ArtefactError(f"the bundle's statistic {bundle.manifest.statistic!r} is not known here", "Update onnxaudit.")
    models = [*references, suspect]
    access = min(model.access for model in (*models, bundle.answers["victim"]))
    width = min(model.classes.shape[1] for model in models) if access == Access.TOPK else 1
    cut = [answers.degrade(access, width) for answers in (bundle.answers["victim"], *models)]
    covariate = _covariate(bundle, models)
    named = ["victim", *(model.id for model in bundle.manifest.of_role("reference")[: len(references)])]
    seen = [*(insights_of(bundle, name) for name in named), inside or {}]
    schemes = tuple(
        _inside(bundle, entry, key, seen, covariate)
        if (key := insight_key(entry))
        else _scheme(bundle, entry, cut, suspect.answered, covariate)
        for entry in bundle.manifest.schemes
    )
    ran = [scheme.standardised for scheme in schemes if scheme.standardised is not None]
    return Comparison(schemes, combined(ran) if ran else None, usable(covariate))


def _covariate(bundle: QueryBundle, models: Sequence[Answers]) -> Floats | None:
    """Mean agreement of each model with the others on the control queries that the suspect answered."""
    start, stop = bundle.manifest.controls
    rows = np.arange(start, stop)[models[-1].answered[start:stop]]
    if len(rows) < FEWEST_CONTROLS:
        return None
    return mean_agreement(np.stack([model.labels[rows] for model in models]))


def _scheme(
    bundle: QueryBundle, entry: SchemeEntry, cut: Sequence[Answers], answered: NDArray[np.bool_], covariate: Floats | None
) -> SchemeScores:
    representation, detector = REPRESENTATIONS.get(entry.representation), DETECTORS.get(entry.detector)
    if representation is None or detector is None:
        raise ArtefactError(f"the bundle has a scheme that this version does not know: {entry.name}", "Update onnxaudit.")
    start, stop = entry.rows
    here = answered[start:stop]
    rows = np.arange(start, stop)[here]
    access = min(cut[0].access, representation.access).word

    def skipped(why: str) -> SchemeScores:
        return SchemeScores(entry.name, len(rows), access, skipped=why)

    if len(rows) < FEWEST_QUERIES:
        return skipped(f"only {len(rows)} of its queries were answered")
    if detector.trainer and not here.all():
        return skipped(f"only {len(rows)} of its {stop - start} queries were answered; what it learned needs all of them")
    columns = {name: column[here] for name, column in bundle.columns_of(entry).items()}
    extra = {"graph": open_graph(bundle.graphs[entry.name])} if entry.name in bundle.graphs else {}
    try:
        victim, *models = (partial(representation.function, answers.take(rows), columns, **entry.representing) for answers in cut)
        own = victim()
        if not own.size:
            return skipped("none of its pairs was answered whole")
        # one model at a time: a matrix of all pairs of a thousand queries takes 8 MB
        scores = np.array([detector.function(own, model(), **entry.detecting, **extra) for model in models])
    except (TypeError, ValueError, KeyError, IndexError) as error:
        raise ArtefactError(f"the bundle's parameters of {entry.name} are not known: {error}", "Update onnxaudit.") from None
    if not np.isfinite(scores).all():
        return skipped("its score is not defined for these answers, which are the same for every query")
    floor = least_spread(representation, detector, len(own))
    return SchemeScores(entry.name, len(rows), access, scores, standardise(scores, covariate, floor))


def _inside(
    bundle: QueryBundle, entry: SchemeEntry, key: str, seen: Sequence[Insights], covariate: Floats | None
) -> SchemeScores:
    """A scheme that looks inside of models; skipped where the suspect, or any reference, does not let it."""
    representation, detector = REPRESENTATIONS[entry.representation], DETECTORS.get(entry.detector)
    if detector is None:
        raise ArtefactError(f"the bundle has a scheme that this version does not know: {entry.name}", "Update onnxaudit.")
    start, stop = entry.rows

    def skipped(why: str) -> SchemeScores:
        return SchemeScores(entry.name, stop - start, representation.inside, skipped=why)

    blind = sum(key not in insights for insights in seen[:-1])
    if key not in seen[-1]:
        return skipped(f"the suspect does not show its {representation.inside}; TorchScript and .pt2 may")
    if blind:
        return skipped(f"{blind} of the models to compare with do not show their {representation.inside}")
    columns = bundle.columns_of(entry)
    try:
        own, *others = (representation.function(insights[key], columns, **entry.representing) for insights in seen)
        scores = np.array([detector.function(own, other, **entry.detecting) for other in others])
    except ValueError as error:  # a model with other layers
        return skipped(f"a model cannot be compared: {error}")
    except (TypeError, KeyError, IndexError) as error:
        raise ArtefactError(f"the bundle's parameters of {entry.name} are not known: {error}", "Update onnxaudit.") from None
    if not np.isfinite(scores).all():
        return skipped("its score is not defined for what these models show")
    return SchemeScores(entry.name, stop - start, representation.inside, scores, standardise(scores, covariate, detector.floor))


def least_spread(representation: Representation, detector: Detector, entries: int) -> float:
    """The least standard deviation of a score that means something: where labels are counted, a rate's largest sampling error.

    All references may match none of IPGuard's points; an innocent that matches three of a hundred is then no outlier.
    """
    return max(detector.floor, 0.5 / entries**0.5) if representation.kind in DISCRETE else detector.floor
