"""From recorded answers to statistics: every scheme's scores of a suspect and of the references, and the combined one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

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

    access: the access that was used, or what was looked at inside. tied: the references' scores hardly differ.
    """

    name: str
    queries: int
    access: str
    scores: Floats | None = None
    standardised: Floats | None = None
    tied: bool = False
    skipped: str | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Comparison:
    """All schemes of one bundle for one suspect. statistics: (m + 1,) combined, or None if no scheme ran.

    adjusted: whether scores were adjusted for how good and ordinary each model is. unrelated: how many unrelated schemes
    have a mean that varies as much as that of these, see ``_unrelated``.
    """

    schemes: tuple[SchemeScores, ...]
    statistics: Floats | None
    adjusted: bool = False
    unrelated: float = 1.0


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
    if not ran:
        return Comparison(schemes, None, usable(covariate))
    return Comparison(schemes, combined(ran), usable(covariate), _unrelated(bundle.manifest.schemes, schemes))


def _unrelated(entries: Sequence[SchemeEntry], schemes: Sequence[SchemeScores]) -> float:
    """K^2 / sum of n_g^2 over groups of n_g schemes that rise and fall together, K in all.

    Those with queries of one sampler are a group; so are all those on which the references hardly differ, where an innocent that
    is a little closer to the victim by one is so by the others.
    """
    groups = Counter(
        "tied" if scheme.tied else entry.sampler
        for entry, scheme in zip(entries, schemes, strict=True)
        if scheme.standardised is not None
    )
    return sum(groups.values()) ** 2 / sum(count**2 for count in groups.values())


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
    if detector.trainer:  # it learned from probabilities
        cut = [answers.degrade(Access.PROBS) for answers in cut]
    extra = {"graph": open_graph(bundle.graphs[entry.name])} if entry.name in bundle.graphs else {}
    try:
        own = representation.function(cut[0].take(rows), columns, **entry.representing)
        if not own.size:
            return skipped("none of its pairs was answered whole")

        def score(answers: Answers) -> float:
            represented = representation.function(answers, columns, **entry.representing)
            return detector.function(own, represented, **entry.detecting, **extra)

        # one model at a time: a matrix of all pairs of a thousand queries takes 8 MB
        scores = np.array([score(answers.take(rows)) for answers in cut[1:]])
    except (TypeError, ValueError, KeyError, IndexError, MemoryError) as error:
        if detector.trainer and isinstance(error, ValueError):
            return skipped(f"what it learned does not fit answers of this access: {error}")
        raise ArtefactError(f"the bundle's parameters of {entry.name} are not known: {error}", "Update onnxaudit.") from None
    if not np.isfinite(scores).all():
        return skipped("its score is not defined for these answers, which are the same for every query")
    floor = least_spread(representation, detector, len(own))
    if cut[0].access == Access.LABEL:
        floor = max(floor, _label_spread(cut[0].take(rows), [answers.take(rows) for answers in cut[1:]], score))
    return _standardised(entry.name, len(rows), access, scores, covariate, floor)


def _standardised(name: str, queries: int, access: str, scores: Floats, covariate: Floats | None, floor: float) -> SchemeScores:
    tied = len(scores) < 3 or bool(scores[:-1].std(ddof=1) < floor / 2)
    return SchemeScores(name, queries, access, scores, standardise(scores, covariate, floor), tied)


def _label_spread(victim: Answers, models: Sequence[Answers], score: Callable[[Answers], float]) -> float:
    """The largest sampling error of a score that only labels go into, by what so many more of the victim's labels do to it.

    Of n labels, sqrt(n) / 2 more or fewer match by chance; so many of a model's are made the victim's, and the mean change of the
    score is taken over all models, the suspect too. For a matching rate this is 0.5 / sqrt(n).
    """
    count, classes = max(1, round(0.5 * len(victim) ** 0.5)), victim.num_classes
    changes = []
    for model in models:
        other = np.flatnonzero(model.labels != victim.labels)
        if len(other) < count:
            continue
        labels = model.labels.copy()
        rows = other[:: len(other) // count][:count]
        labels[rows] = victim.labels[rows]
        changes.append(abs(score(Answers.from_labels(labels, classes)) - score(model)))
    known = [change for change in changes if np.isfinite(change)]
    return float(np.mean(known)) if known else 0.0


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
    return _standardised(entry.name, stop - start, representation.inside, scores, covariate, detector.floor)


def least_spread(representation: Representation, detector: Detector, entries: int) -> float:
    """The least standard deviation of a score that means something: where labels are counted, a rate's largest sampling error.

    All references may match none of IPGuard's points; an innocent that matches three of a hundred is then no outlier.
    """
    return max(detector.floor, 0.5 / entries**0.5) if representation.kind in DISCRETE else detector.floor
