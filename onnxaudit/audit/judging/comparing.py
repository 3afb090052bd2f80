"""From recorded answers to statistics: every scheme's scores of a suspect and of the references, and the combined one."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onnxaudit.answers import Access, Answers
from onnxaudit.audit.insights import Insights, insight_key, insights_of
from onnxaudit.audit.judging.sides import LinedUp, Pool, label_change, pool_of, side_of
from onnxaudit.bundle import QueryBundle, SchemeEntry
from onnxaudit.errors import ArtefactError
from onnxaudit.evidence.calibration import STATISTIC, Floats, mean_agreement, standardise, studentised, usable
from onnxaudit.evidence.learned import GRAPH, unrelated, weighted, weights_of
from onnxaudit.evidence.learned import STATISTIC as LEARNED_STATISTIC
from onnxaudit.evidence.siblings import STATISTIC as SIBLING_STATISTIC
from onnxaudit.registry import open_graph
from onnxaudit.schemes.detectors import DETECTORS
from onnxaudit.schemes.representations import REPRESENTATIONS

FEWEST_QUERIES = 10
"""A scheme that got fewer answers than this says nothing."""
FEWEST_CONTROLS = 30
"""Nor does mean agreement on fewer controls than this."""
ALIKE = ("disagreement", "uniform", "noise", "cutmix")
"""Samplers whose queries would be the same if a sibling were the victim; the first is made for line-ups."""


@dataclass(frozen=True, slots=True, eq=False)
class SchemeScores:
    """scores, standardised: (m + 1,), the references in order, then the suspect. None with a reason if it cannot run.

    access: the access that was used, or what was looked at inside. tied: the references' scores hardly differ. counted: it is
    part of the combined statistic. line_up: how much closer the suspect is to the victim and to each sibling, if there are any.
    twins: as standardised, of the siblings in turn and the suspect, (K + 1,). places: likewise, of how
    much closer the suspect is to the siblings and to the victim than the references are, (K + 1,).
    """

    name: str
    queries: int
    access: str
    scores: Floats | None = None
    standardised: Floats | None = None
    tied: bool = False
    skipped: str | None = None
    counted: bool = True
    line_up: LinedUp | None = None
    twins: Floats | None = None
    places: Floats | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Comparison:
    """All schemes of one bundle for one suspect. statistics: (m + 1,) combined, or None if no scheme ran.

    twins: the same statistic of the siblings as if each were the suspect, and of the suspect, (K + 1,); None without siblings.
    places: how much closer the suspect is to each sibling and to the victim than the references are, standardised, (K + 1,), on
    queries that were chosen alike for all of them; None without siblings or such queries.
    adjusted: whether scores were adjusted for how good and ordinary each model is. unrelated: how many unrelated schemes
    have a mean that varies as much as that of these, see ``evidence.learned.unrelated``.
    """

    schemes: tuple[SchemeScores, ...]
    statistics: Floats | None
    adjusted: bool = False
    unrelated: float = 1.0
    twins: Floats | None = None
    places: Floats | None = None


def compare(
    bundle: QueryBundle,
    references: Sequence[Answers],
    suspect: Answers,
    inside: Insights | None = None,
    fewest: int = FEWEST_QUERIES,
) -> Comparison:
    """Score the suspect and every reference on the same rows, cut to the least access of all of them.

    references: answers of the first so many references of the bundle. inside: what the suspect showed of its inside. fewest:
    answered queries that a scheme needs.
    """
    if bundle.manifest.statistic not in (STATISTIC, SIBLING_STATISTIC, LEARNED_STATISTIC):
        raise ArtefactError(f"the bundle's statistic {bundle.manifest.statistic!r} is not known here", "Update onnxaudit.")
    pool = pool_of(bundle, references)
    access = min(pool.access, suspect.access)
    width = min(pool.width, suspect.classes.shape[1]) if access == Access.TOPK else 1
    cut = [*pool.cut(access, width), suspect.degrade(access, width)]
    covariate = _covariate(bundle, pool, suspect)
    schemes = tuple(
        dataclasses.replace(
            _inside(bundle, entry, key, _seen(bundle, len(references), inside), covariate), counted=not pool.siblings
        )
        if (key := insight_key(entry))
        else _scheme(bundle, entry, cut, suspect.answered, covariate, pool, width, fewest)
        for entry in bundle.manifest.schemes
    )
    return _combined(bundle, schemes, access, adjusted=usable(covariate))


def _combined(bundle: QueryBundle, schemes: tuple[SchemeScores, ...], access: Access, *, adjusted: bool) -> Comparison:
    """All schemes that ran and count in one statistic; what the suspect's access rules out is left out for all models.

    Schemes with queries of one sampler are a group that rises and falls together; so are all those on which the references
    hardly differ, where an innocent that is a little closer to the victim by one is so by the others.
    """
    entries, weights = bundle.manifest.schemes, _weights(bundle, access)
    ran = [
        (scheme.standardised, weight, "tied" if scheme.tied else entry.sampler, scheme.twins)
        for entry, scheme, weight in zip(entries, schemes, weights, strict=True)
        if scheme.standardised is not None and scheme.counted
    ]
    if not ran:
        return Comparison(schemes, None, adjusted)
    standardised, given, groups, twins = zip(*ran, strict=True)
    kin = None if any(each is None for each in twins) else weighted(twins, given)
    shown = lined_up_in(bundle, schemes)
    places = shown[0].places if shown is not None and shown[1].sampler in ALIKE else None
    return Comparison(schemes, weighted(standardised, given), adjusted, unrelated(groups, given), kin, places)


def has_places(bundle: QueryBundle) -> bool:
    """Whether a bundle with siblings has queries that are alike for all of them, of a scheme that compares with each."""
    known = ((entry, DETECTORS.get(entry.detector)) for entry in bundle.manifest.schemes)
    return any(
        entry.sampler in ALIKE and detector is not None and not detector.trainer and not detector.victim_only
        for entry, detector in known
    )


def lined_up_in(bundle: QueryBundle, schemes: Sequence[SchemeScores]) -> tuple[SchemeScores, SchemeEntry] | None:
    """The scheme that shows the line-up: the one whose queries were chosen for it, else are alike for all, else the first."""
    known = zip(schemes, bundle.manifest.schemes, strict=True)
    found = [(scheme, entry) for scheme, entry in known if scheme.line_up is not None]
    return min(found, key=lambda part: (part[1].sampler != ALIKE[0], part[1].sampler not in ALIKE), default=None)


def _weights(bundle: QueryBundle, access: Access) -> Floats:
    """What each scheme counts: the same, unless it was learned while crafting."""
    count = len(bundle.manifest.schemes)
    if bundle.manifest.statistic != LEARNED_STATISTIC:
        return np.ones(count)
    if GRAPH not in bundle.graphs:
        raise ArtefactError("the bundle has a learned statistic, and not what was learned", "Craft it again.")
    try:
        return weights_of(open_graph(bundle.graphs[GRAPH]), count, labels=access == Access.LABEL)
    except ValueError as error:
        raise ArtefactError(f"the bundle's learned combination cannot be used: {error}", "Craft it again.") from None


def _seen(bundle: QueryBundle, references: int, inside: Insights | None) -> list[Insights]:
    """What the victim, the references and the suspect showed of their inside."""
    named = ["victim", *(model.id for model in bundle.manifest.of_role("reference")[:references])]
    return [*(insights_of(bundle, name) for name in named), inside or {}]


def _covariate(bundle: QueryBundle, pool: Pool, suspect: Answers) -> Floats | None:
    """Mean agreement of each model with the others on the control queries that the suspect answered."""
    start, stop = bundle.manifest.controls
    rows = np.arange(start, stop)[suspect.answered[start:stop]]
    if len(rows) < FEWEST_CONTROLS:
        return None
    return mean_agreement(np.concatenate([pool.labels[:, rows], suspect.labels[None, rows]]))


def _scheme(
    bundle: QueryBundle,
    entry: SchemeEntry,
    cut: Sequence[Answers],
    answered: NDArray[np.bool_],
    covariate: Floats | None,
    pool: Pool,
    width: int,
    fewest: int,
) -> SchemeScores:
    """cut: answers of the victim, the references and the suspect, at one level of access."""
    representation, detector = REPRESENTATIONS.get(entry.representation), DETECTORS.get(entry.detector)
    if representation is None or detector is None:
        raise ArtefactError(f"the bundle has a scheme that this version does not know: {entry.name}", "Update onnxaudit.")
    start, stop = entry.rows
    here = answered[start:stop]
    rows = np.arange(start, stop)[here]
    access = min(cut[0].access, representation.access).word

    def skipped(why: str) -> SchemeScores:
        return SchemeScores(entry.name, len(rows), access, skipped=why)

    if len(rows) < fewest:
        return skipped(f"only {len(rows)} of its queries were answered")
    if detector.trainer and not here.all():
        return skipped(f"only {len(rows)} of its {stop - start} queries were answered; what it learned needs all of them")
    try:
        key = (entry.name, cut[0].access, width, rows.tobytes())
        side = pool.sides.get(key)
        if side is None:
            side = side_of(bundle, entry, representation, detector, cut[:-1], pool.lined_up(cut[0].access, width), rows)
        if not side.own.size:
            return skipped("none of its pairs was answered whole")
        suspect = side.cut(cut[-1])
        scores = np.array([*side.scores, side.score(suspect)])
        lined_up = side.lined_up(suspect)
    except (TypeError, ValueError, KeyError, IndexError, MemoryError) as error:
        if detector.trainer and isinstance(error, ValueError):
            return skipped(f"what it learned does not fit answers of this access: {error}")
        raise ArtefactError(f"the bundle's parameters of {entry.name} are not known: {error}", "Update onnxaudit.") from None
    pool.keep(key, side)
    if not np.isfinite(scores).all():
        return skipped("its score is not defined for these answers, which are the same for every query")
    floor = side.floor
    if cut[0].access == Access.LABEL:
        floor = max(floor, _mean_change([*side.changes, label_change(side.victim, suspect, side.score)]))
    found = _standardised(entry.name, len(rows), access, scores, covariate, floor)
    if lined_up is None:
        return dataclasses.replace(found, counted=not pool.siblings)
    places = np.array([*lined_up.siblings, lined_up.victim])
    twins, places = (studentised(scores, None, floor) for scores in (lined_up.in_turn, places))
    return dataclasses.replace(found, line_up=lined_up, twins=twins, places=places)


def _standardised(name: str, queries: int, access: str, scores: Floats, covariate: Floats | None, floor: float) -> SchemeScores:
    tied = len(scores) < 3 or bool(scores[:-1].std(ddof=1) < floor / 2)
    return SchemeScores(name, queries, access, scores, standardise(scores, covariate, floor), tied)


def _mean_change(changes: Sequence[float | None]) -> float:
    """The mean over all models, the suspect too."""
    known = [change for change in changes if change is not None and np.isfinite(change)]
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


def labels_of(bundle: QueryBundle, references: Sequence[Answers]) -> NDArray[np.int32]:
    """What the references of a bundle said to its queries, (m, n)."""
    return pool_of(bundle, references).labels


def references_of(bundle: QueryBundle) -> list[Answers]:
    """What the references said to all queries, in order."""
    return [bundle.answers[model.id] for model in bundle.manifest.of_role("reference")]
