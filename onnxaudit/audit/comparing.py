"""From recorded answers to statistics: every scheme's scores of a suspect and of the references, and the combined one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any
from weakref import WeakKeyDictionary

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
    if bundle.manifest.statistic != STATISTIC:
        raise ArtefactError(f"the bundle's statistic {bundle.manifest.statistic!r} is not known here", "Update onnxaudit.")
    pool = _pool(bundle, references)
    access = min(pool.access, suspect.access)
    width = min(pool.width, suspect.classes.shape[1]) if access == Access.TOPK else 1
    cut = [*pool.cut(access, width), suspect.degrade(access, width)]
    covariate = _covariate(bundle, pool, suspect)
    schemes = tuple(
        _inside(bundle, entry, key, _seen(bundle, len(references), inside), covariate)
        if (key := insight_key(entry))
        else _scheme(bundle, entry, cut, suspect.answered, covariate, pool, width, fewest)
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


def _seen(bundle: QueryBundle, references: int, inside: Insights | None) -> list[Insights]:
    """What the victim, the references and the suspect showed of their inside."""
    named = ["victim", *(model.id for model in bundle.manifest.of_role("reference")[:references])]
    return [*(insights_of(bundle, name) for name in named), inside or {}]


def _covariate(bundle: QueryBundle, pool: _Pool, suspect: Answers) -> Floats | None:
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
    pool: _Pool,
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
        key = (entry.name, cut[0].access, width)
        side = pool.sides.get(key) if here.all() else None
        if side is None:
            side = _side(bundle, entry, representation, detector, cut[:-1], rows)
        if not side.own.size:
            return skipped("none of its pairs was answered whole")
        suspect = side.cut(cut[-1])
        scores = np.array([*side.scores, side.score(suspect)])
    except (TypeError, ValueError, KeyError, IndexError, MemoryError) as error:
        if detector.trainer and isinstance(error, ValueError):
            return skipped(f"what it learned does not fit answers of this access: {error}")
        raise ArtefactError(f"the bundle's parameters of {entry.name} are not known: {error}", "Update onnxaudit.") from None
    if here.all():
        pool.sides[key] = side
    if not np.isfinite(scores).all():
        return skipped("its score is not defined for these answers, which are the same for every query")
    floor = least_spread(representation, detector, len(side.own))
    if cut[0].access == Access.LABEL:
        floor = max(floor, _mean_change([*side.changes, _label_change(side.victim, suspect, side.score)]))
    return _standardised(entry.name, len(rows), access, scores, covariate, floor)


@dataclass(eq=False)
class _Side:
    """One scheme's part that no suspect changes: the victim's representation, and the references' scores on the same rows.

    trained: answers are cut to probabilities, which a learned detector was made with.
    """

    rows: NDArray[np.integer]
    trained: bool
    represent: Callable[[Answers], NDArray[Any]]
    compare: Callable[[NDArray[Any], NDArray[Any]], float]
    victim: Answers
    references: Sequence[Answers]

    def cut(self, answers: Answers) -> Answers:
        """The answers that are compared."""
        return (answers.degrade(Access.PROBS) if self.trained else answers).take(self.rows)

    @cached_property
    def own(self) -> NDArray[Any]:
        return self.represent(self.victim)

    def score(self, answers: Answers) -> float:
        return self.compare(self.own, self.represent(answers))

    @cached_property
    def scores(self) -> list[float]:
        # one model at a time: a matrix of all pairs of a thousand queries takes 8 MB
        return [self.score(self.cut(answers)) for answers in self.references]

    @cached_property
    def changes(self) -> list[float | None]:
        return [_label_change(self.victim, self.cut(answers), self.score) for answers in self.references]


def _side(
    bundle: QueryBundle,
    entry: SchemeEntry,
    representation: Representation,
    detector: Detector,
    cut: Sequence[Answers],
    rows: NDArray[np.integer],
) -> _Side:
    """cut: the victim's answers and the references'."""
    columns = {name: column[rows - entry.rows[0]] for name, column in bundle.columns_of(entry).items()}
    extra: Mapping[str, Any] = {"graph": open_graph(bundle.graphs[entry.name])} if entry.name in bundle.graphs else {}

    def represent(answers: Answers) -> NDArray[Any]:
        return representation.function(answers, columns, **entry.representing)

    def score(own: NDArray[Any], other: NDArray[Any]) -> float:
        return detector.function(own, other, **entry.detecting, **extra)

    trained = bool(detector.trainer)
    victim = (cut[0].degrade(Access.PROBS) if trained else cut[0]).take(rows)
    return _Side(rows, trained, represent, score, victim, cut[1:])


@dataclass(eq=False)
class _Pool:
    """A bundle's references, with what was worked out of them: whoever checks one suspect after another does it once.

    sides: by scheme, access and width, of schemes that were answered whole.
    """

    victim: Answers
    references: Sequence[Answers]
    sides: dict[tuple[str, Access, int], _Side]
    cuts: dict[tuple[Access, int], list[Answers]]

    @cached_property
    def access(self) -> Access:
        """The least of the victim and the references."""
        return min(answers.access for answers in (self.victim, *self.references))

    @cached_property
    def width(self) -> int:
        """How many classes every reference names to a query."""
        return min(int(answers.classes.shape[1]) for answers in self.references or (self.victim,))

    @cached_property
    def labels(self) -> NDArray[np.int32]:
        """What the references said, (m, n)."""
        return np.array([answers.labels for answers in self.references], np.int32).reshape(-1, len(self.victim))

    def cut(self, access: Access, width: int) -> list[Answers]:
        """The victim's answers and the references', cut to a level of access."""
        key = (access, width)
        found = self.cuts.get(key)  # another thread, which judges an endpoint, may clear them at any time
        if found is None:
            found = [answers.degrade(access, width) for answers in (self.victim, *self.references)]
            if len(self.cuts) >= MOST_CUTS:
                self.cuts.clear()
                self.sides.clear()
            self.cuts[key] = found
        return found


_POOLS: WeakKeyDictionary[QueryBundle, _Pool] = WeakKeyDictionary()
"""The pool that a bundle was last compared with; it goes when the bundle goes."""
MOST_CUTS = 4


def _pool(bundle: QueryBundle, references: Sequence[Answers]) -> _Pool:
    """What is known of these references of a bundle; answers are told apart by identity, for they never change."""
    known = _POOLS.get(bundle)
    same = known is not None and len(known.references) == len(references)
    if known is None or not same or any(a is not b for a, b in zip(known.references, references, strict=True)):
        known = _Pool(bundle.answers["victim"], tuple(references), {}, {})
        if references:
            _POOLS[bundle] = known
    return known


def _standardised(name: str, queries: int, access: str, scores: Floats, covariate: Floats | None, floor: float) -> SchemeScores:
    tied = len(scores) < 3 or bool(scores[:-1].std(ddof=1) < floor / 2)
    return SchemeScores(name, queries, access, scores, standardise(scores, covariate, floor), tied)


def _label_change(victim: Answers, model: Answers, score: Callable[[Answers], float]) -> float | None:
    """The largest sampling error of a score that only labels go into, by what so many more of the victim's labels do to it.

    Of n labels, sqrt(n) / 2 more or fewer match by chance; so many of a model's are made the victim's. For a matching rate the
    change is 0.5 / sqrt(n). None where too few differ.
    """
    count, classes = max(1, round(0.5 * len(victim) ** 0.5)), victim.num_classes
    other = np.flatnonzero(model.labels != victim.labels)
    if len(other) < count:
        return None
    labels = model.labels.copy()
    rows = other[:: len(other) // count][:count]
    labels[rows] = victim.labels[rows]
    return abs(score(Answers.from_labels(labels, classes)) - score(model))


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
    return _pool(bundle, references).labels


def least_spread(representation: Representation, detector: Detector, entries: int) -> float:
    """The least standard deviation of a score that means something: where labels are counted, a rate's largest sampling error.

    All references may match none of IPGuard's points; an innocent that matches three of a hundred is then no outlier.
    """
    return max(detector.floor, 0.5 / entries**0.5) if representation.kind in DISCRETE else detector.floor
