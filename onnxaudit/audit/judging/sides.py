"""What no suspect changes: a bundle's pool of models, and every scheme's scores of them; worked out once for all suspects."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from onnxaudit.answers import Access, Answers
from onnxaudit.bundle import QueryBundle, SchemeEntry
from onnxaudit.evidence.calibration import Floats
from onnxaudit.evidence.siblings import STATISTIC as SIBLING_STATISTIC
from onnxaudit.registry import open_graph
from onnxaudit.schemes.detectors import DISCRETE, Detector
from onnxaudit.schemes.representations import Representation

MOST_CUTS = 4
MOST_SIDES = 128
"""What is remembered of schemes on some of their queries: a few dozen looks at a few schemes."""


@dataclass(frozen=True, slots=True, eq=False)
class LinedUp:
    """How much closer one suspect is to the victim, and to each sibling, than the references are on average.

    Agreements less the references' mean agreement with the same model, so that one that everybody agrees with is not first for
    that. centrality: each one's mean score against the others, the victim first.
    in_turn: the sibling-adjusted scores of each sibling as if it were the suspect, and of the suspect, (K + 1,), each against all
    the others alike.
    """

    victim: float
    siblings: tuple[float, ...]
    centrality: Floats
    in_turn: Floats


@dataclass(eq=False)
class Side:
    """One scheme's part that no suspect changes: the victim's representation, and the references' scores on the same rows.

    trained: answers are cut to probabilities, which a learned detector was made with. siblings: those whose mean score is taken
    off: none for a detector that knows the victim only, as learned ones do. least: the least
    spread of so many entries that means something.
    """

    rows: NDArray[np.integer]
    trained: bool
    represent: Callable[[Answers], NDArray[Any]]
    compare: Callable[[NDArray[Any], NDArray[Any]], float]
    victim: Answers
    references: Sequence[Answers]
    siblings: Sequence[Answers]
    least: Callable[[int], float]

    def cut(self, answers: Answers) -> Answers:
        """The answers that are compared."""
        return (answers.degrade(Access.PROBS) if self.trained else answers).take(self.rows)

    @cached_property
    def own(self) -> NDArray[Any]:
        return self.represent(self.victim)

    @cached_property
    def others(self) -> list[NDArray[Any]]:
        """What the siblings show."""
        return [self.represent(answers) for answers in self.siblings]

    def score(self, answers: Answers) -> float:
        """Closeness to the victim; where there are siblings D = T_victim - mean_k T_k (sibling-adjusted)."""
        shown = self.represent(answers)
        if not self.others:
            return self.compare(self.own, shown)
        agreements = self._with_all(shown)
        return float(agreements[0] - agreements[1:].mean())

    def lined_up(self, answers: Answers) -> LinedUp | None:
        """The same against each of them, in no mean."""
        if not self.others:
            return None
        shown = self.represent(answers)
        agreements = self._with_all(shown)
        closer = agreements - (self._of_references.mean(axis=0) if self.references else 0.0)
        return LinedUp(float(closer[0]), tuple(closer[1:].tolist()), self.centrality, self._in_turn(shown, agreements))

    def _in_turn(self, shown: NDArray[Any], agreements: Floats) -> Floats:
        """D of every sibling and of the suspect, the others' mean taken off: for an honest twin they are exchangeable."""
        count, table = len(self.others), self._agreements
        with_suspect = np.array([self.compare(shown, other) for other in self.others])
        theirs = table[0, 1:] - (table[1:, 1:].sum(axis=0) + with_suspect) / count
        return np.append(theirs, agreements[0] - agreements[1:].mean())

    def _with_all(self, shown: NDArray[Any]) -> Floats:
        """Scores of one model against the victim and each sibling, (K + 1,)."""
        return np.array([self.compare(model, shown) for model in (self.own, *self.others)])

    @cached_property
    def _of_references(self) -> Floats:
        """The same of every reference, (m, K + 1)."""
        return np.array([self._with_all(self.represent(self.cut(answers))) for answers in self.references])

    @cached_property
    def _agreements(self) -> Floats:
        """compare(a, b) of all in the line-up, the victim first, (K + 1, K + 1), 0 on the diagonal."""
        models = [self.own, *self.others]
        return np.array([[0.0 if a is b else self.compare(a, b) for b in models] for a in models])

    @cached_property
    def centrality(self) -> Floats:
        """Mean score of each in the line-up against the others, the victim first, (K,)."""
        return np.asarray(self._agreements.sum(axis=1) / len(self.others))

    @cached_property
    def floor(self) -> float:
        """The least standard deviation of scores that means something.

        Queries that all siblings answer as the victim does tell nothing in D: they neither raise it nor make it uncertain.
        """
        plain = self.least(len(self.own))
        if not self.others:
            return plain
        told = sum(any(bool(np.any(other[i] != row)) for other in self.others) for i, row in enumerate(self.own))
        return float(plain * (max(told, 1) / len(self.own)) ** 0.5)

    @cached_property
    def scores(self) -> list[float]:
        # one model at a time: a matrix of all pairs of a thousand queries takes 8 MB
        if not self.others:
            return [self.score(self.cut(answers)) for answers in self.references]
        return [float(row[0] - row[1:].mean()) for row in self._of_references]

    @cached_property
    def changes(self) -> list[float | None]:
        return [label_change(self.victim, self.cut(answers), self.score) for answers in self.references]


def side_of(
    bundle: QueryBundle,
    entry: SchemeEntry,
    representation: Representation,
    detector: Detector,
    cut: Sequence[Answers],
    siblings: Sequence[Answers],
    rows: NDArray[np.integer],
) -> Side:
    """cut: the victim's answers and the references'."""
    columns = {name: column[rows - entry.rows[0]] for name, column in bundle.columns_of(entry).items()}
    extra: Mapping[str, Any] = {"graph": open_graph(bundle.graphs[entry.name])} if entry.name in bundle.graphs else {}

    def represent(answers: Answers) -> NDArray[Any]:
        return representation.function(answers, columns, **entry.representing)

    def score(own: NDArray[Any], other: NDArray[Any]) -> float:
        return detector.function(own, other, **entry.detecting, **extra)

    trained = bool(detector.trainer)
    victim = (cut[0].degrade(Access.PROBS) if trained else cut[0]).take(rows)
    lined_up = [] if trained or detector.victim_only else [answers.take(rows) for answers in siblings]
    least = partial(least_spread, representation, detector)
    return Side(rows, trained, represent, score, victim, cut[1:], lined_up, least)


def label_change(victim: Answers, model: Answers, score: Callable[[Answers], float]) -> float | None:
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


def least_spread(representation: Representation, detector: Detector, entries: int) -> float:
    """The least standard deviation of a score that means something: where labels are counted, a rate's largest sampling error.

    All references may match none of IPGuard's points; an innocent that matches three of a hundred is then no outlier.
    """
    return max(detector.floor, 0.5 / entries**0.5) if representation.kind in DISCRETE else detector.floor


@dataclass(eq=False)
class Pool:
    """A bundle's references, with what was worked out of them: whoever checks one suspect after another does it once.

    siblings: where the statistic takes them off. sides: by scheme, access, width and the rows
    that were answered.
    """

    victim: Answers
    references: Sequence[Answers]
    siblings: Sequence[Answers]
    sides: dict[tuple[str, Access, int, bytes], Side]
    cuts: dict[tuple[Access, int], list[Answers]]

    @cached_property
    def access(self) -> Access:
        """The least of the victim, the references and the siblings."""
        return min(answers.access for answers in (self.victim, *self.references, *self.siblings))

    @cached_property
    def width(self) -> int:
        """How many classes every reference and sibling names to a query."""
        return min(int(answers.classes.shape[1]) for answers in (*self.references, *self.siblings) or (self.victim,))

    @cached_property
    def labels(self) -> NDArray[np.int32]:
        """What the references said, (m, n)."""
        return np.array([answers.labels for answers in self.references], np.int32).reshape(-1, len(self.victim))

    def keep(self, key: tuple[str, Access, int, bytes], side: Side) -> None:
        """Remember a side for the next suspect."""
        if len(self.sides) >= MOST_SIDES and key not in self.sides:
            self.sides.clear()
        self.sides[key] = side

    def cut(self, access: Access, width: int) -> list[Answers]:
        """The victim's answers and the references', cut to a level of access."""
        return self._all_cut(access, width)[: 1 + len(self.references)]

    def lined_up(self, access: Access, width: int) -> list[Answers]:
        """The siblings' answers, cut to a level of access."""
        return self._all_cut(access, width)[1 + len(self.references) :]

    def _all_cut(self, access: Access, width: int) -> list[Answers]:
        key = (access, width)
        found = self.cuts.get(key)  # another thread, which judges an endpoint, may clear them at any time
        if found is None:
            found = [answers.degrade(access, width) for answers in (self.victim, *self.references, *self.siblings)]
            if len(self.cuts) >= MOST_CUTS:
                self.cuts.clear()
                self.sides.clear()
            self.cuts[key] = found
        return found


_POOLS: WeakKeyDictionary[QueryBundle, Pool] = WeakKeyDictionary()
"""The pool that a bundle was last compared with; it goes when the bundle goes."""


def pool_of(bundle: QueryBundle, references: Sequence[Answers]) -> Pool:
    """What is known of these references of a bundle; answers are told apart by identity, for they never change."""
    known = _POOLS.get(bundle)
    same = known is not None and len(known.references) == len(references)
    if known is None or not same or any(a is not b for a, b in zip(known.references, references, strict=True)):
        siblings = bundle.manifest.of_role("sibling") if bundle.manifest.statistic == SIBLING_STATISTIC else ()
        known = Pool(bundle.answers["victim"], tuple(references), tuple(bundle.answers[model.id] for model in siblings), {}, {})
        if references:
            _POOLS[bundle] = known
    return known
