"""How a cheating accuser fares: queries that frame an innocent model, judged as anybody's are, and what else would tell (torch).

The accuser owns victim, queries and half of the references; the judge has the other half. An attack is tried on every innocent.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import NDArray
from scipy.special import betainc

from onnxaudit.answers import Answers
from onnxaudit.audit.answering import answered
from onnxaudit.audit.calibrating import add_models
from onnxaudit.audit.crafting import CraftOptions, craft
from onnxaudit.audit.judging.comparing import references_of
from onnxaudit.audit.judging.judging import judge
from onnxaudit.audit.pools import peers_of, targets
from onnxaudit.audit.progress import Progress, Silent
from onnxaudit.audit.sampling import rng_of
from onnxaudit.audit.verifying.reproducing import Ingredients, verify_reproduced
from onnxaudit.bundle import QueryBundle
from onnxaudit.craft.data import Data
from onnxaudit.craft.framing import Logits, Push, frame, logits_of
from onnxaudit.craft.pools.peers import labels_of
from onnxaudit.craft.sample import Material
from onnxaudit.craft.victim import Victim
from onnxaudit.errors import ArtefactError, UsageError
from onnxaudit.interview import interview
from onnxaudit.registry import open_suspect
from onnxaudit.report.model import DERIVED
from onnxaudit.suspect import Queries, SuspectCard

STRONG, SUBTLE = 0.15, 0.05
"""Radii: examples that transfer to most models, and examples that transfer to few."""
BLIND, ASKED, ASKED_SUBTLE, WHITE_BOX, AGAINST_REFERENCES, CHOSEN_DATA, DATA_AGAINST_REFERENCES = (
    "blind",
    "asks the innocent",
    "asks, subtle examples",
    "innocent's gradients",
    "gradients, against references",
    "chooses the data",
    "data, against references",
)
ATTACKS = (BLIND, ASKED, ASKED_SUBTLE, WHITE_BOX, AGAINST_REFERENCES, CHOSEN_DATA, DATA_AGAINST_REFERENCES)
CANDIDATES = 2
"""Times as many candidates as queries are made where some are chosen."""
FEWEST = 10
"""Queries that a framing needs to be worth showing; a scheme with fewer answers does not run."""
AGAINST = 2
"""References whose gradients an accuser uses who holds them."""
ITERATIONS = 10
ERRORS = "akh:fill=none"
"""The method of an accuser who chooses the data: the victim's natural errors, and nothing made up."""


@dataclass(frozen=True, slots=True)
class Claim:
    """One innocent, accused in one way. matched: of so many queries it gives the victim's label to; usual: mean share of the
    accuser's references that do.

    p_chance, p_usual: of the binomial test that queries are independent and match with probability 1 / classes, or ``usual``.
    p_value, derived: of ``judge`` with the accuser's references; judges_…: with the judge's; again_…: with queries that the judge
    crafted by the method that the bundle states, from all of the data and another seed, and the judge's references.
    reproduced: the queries come out again from what the bundle states.
    """

    attack: str
    innocent: str
    queries: int
    matched: int
    usual: float
    p_chance: float
    p_usual: float
    p_value: float | None
    derived: bool
    judges_p_value: float | None
    judges_derived: bool
    again_p_value: float | None
    again_derived: bool
    reproduced: bool


@dataclass(frozen=True, slots=True, eq=False)
class Court:
    """What claims are tried with. references: of the accuser and the judge together; theirs: which of them are the judge's, by
    file. folder: where data goes that an accuser chose."""

    options: CraftOptions
    victim: Victim
    data: Data
    references: Sequence[Path]
    theirs: frozenset[str]
    folder: Path

    def with_references(self, bundle: QueryBundle) -> QueryBundle:
        """The bundle with all references' answers; those that cannot serve are left out."""
        items = [(file, "the judge's" if file.name in self.theirs else "the accuser's") for file in self.references]
        asked = targets(items, self.victim, self.options.device)
        return add_models(bundle, asked, "reference", Silent(), strict=False)

    def crafted(self, scheme: str, queries: int, seed: int, data: Path | None = None) -> QueryBundle:
        """A bundle by ``craft``, without references."""
        given = dataclasses.replace(
            self.options, schemes=(scheme,), queries=queries, seed=seed, data=data or self.options.data, exports=False
        )
        return craft(given, Silent())


def binomial_p(matched: int, asked: int, rate: float) -> float:
    """P(at least so many matches) of independent queries that each match with this probability."""
    if matched == 0:
        return 1.0
    return 1.0 if rate >= 1 else float(betainc(matched, asked - matched + 1, rate))


def scheme_of(radius: float) -> str:
    """The method that an accuser states: adversarial examples that copies of the victim share, pushed this far."""
    return f"afa:radius={radius},iterations={ITERATIONS},copies=2,momentum=1.0"


def accuse(court: Court, innocents: Sequence[Path], queries: int, progress: Progress) -> Iterator[tuple[Path, list[Claim]]]:
    """Every attack on every innocent, innocent by innocent. One that is a reference does not calibrate its own case.

    An attack is left out with a note where fewer than ``FEWEST`` queries can be found, or the innocent gives no gradients.
    """
    seed, radii = court.options.seed, (STRONG, SUBTLE)
    report = progress.task("crafting what an accuser begins with", 4)
    honest = {radius: court.crafted(scheme_of(radius), queries, seed) for radius in radii}
    blind = court.with_references(honest[STRONG])
    stated = reproduces(court, blind, court.options.data)
    report(1)
    pools = {radius: court.with_references(court.crafted(scheme_of(radius), CANDIDATES * queries, seed)) for radius in radii}
    report(2)
    again = {radius: court.with_references(court.crafted(scheme_of(radius), queries, seed + 1)) for radius in radii}
    report(3)
    natural = court.with_references(court.crafted(ERRORS, queries, seed + 1))
    report(4)
    report = progress.task("framing innocents", len(innocents))
    for number, innocent in enumerate(innocents):
        trial = Trial(court, innocent, progress)
        claims = [trial.claim(BLIND, blind, again[STRONG], reproduced=stated)]
        for attack, radius in ((ASKED, STRONG), (ASKED_SUBTLE, SUBTLE)):
            if (found := trial.agreeing(attack, pools[radius], queries)) is not None:
                same = np.array_equal(found.queries, honest[radius].queries)
                claims.append(trial.claim(attack, found, again[radius], reproduced=same))
        for attack, found in trial.framed(honest[STRONG], queries, rng_of(seed, innocent.name)):
            same = np.array_equal(found.queries, honest[STRONG].queries)
            claims.append(trial.claim(attack, found, again[STRONG], reproduced=same))
        for attack, found, data in trial.chosen(queries):
            claims.append(trial.claim(attack, found, natural, reproduced=reproduces(court, found, data)))
            data.unlink()  # it is nearly as large as all of the data
        yield innocent, claims
        report(number + 1)


def reproduces(court: Court, bundle: QueryBundle, data: Path | None) -> bool:
    """Whether ``verify --reproduce`` gets the bundle's queries from the victim, these data and the method that it states."""
    asked = court.options
    given = Ingredients(asked.victim, data, model=asked.model, allow_pickle=asked.allow_pickle, device=asked.device)
    try:
        list(verify_reproduced(bundle, given, "the bundle", Silent()))
    except ArtefactError:
        return False
    return True


class Trial:
    """One innocent and what it answers."""

    def __init__(self, court: Court, innocent: Path, progress: Progress) -> None:
        self._court = court
        self._innocent = innocent
        self._target = targets([(innocent, "")], court.victim, court.options.device)[0][0]
        self._progress = progress

    def _asked(self, queries: Queries) -> tuple[SuspectCard, Answers]:
        with open_suspect(self._target) as model:
            answers = interview(model, queries).answers
            return model.card, dataclasses.replace(answers, num_classes=self._court.victim.num_classes)

    def claim(self, attack: str, bundle: QueryBundle, again: QueryBundle, *, reproduced: bool) -> Claim:
        """What all tests say. bundle, again: with all references."""
        card, answers = self._asked(bundle.queries)
        mine, theirs = self.of(bundle, judges=False), self.of(bundle, judges=True)
        agrees = agreement(mine, answers)
        usual = float(np.mean([agreement(mine, other).mean() for other in references_of(mine)]))
        matched, asked = int(agrees.sum()), len(agrees)
        reports = [judge(pool, card, answers, None) for pool in (mine, theirs)]
        fresh = self.of(again, judges=True)
        reports.append(judge(fresh, *self._asked(fresh.queries), None))
        judged = [(report.p_value, report.finding == DERIVED) for report in reports]
        chance = 1 / self._court.victim.num_classes
        tests = binomial_p(matched, asked, chance), binomial_p(matched, asked, usual)
        (p, derived), (judges_p, judges), (again_p, still) = judged
        return Claim(
            attack, self._innocent.name, asked, matched, usual, *tests, p, derived, judges_p, judges, again_p, still, reproduced
        )

    def of(self, bundle: QueryBundle, *, judges: bool) -> QueryBundle:
        """The bundle with the references of one side, this innocent not among them."""

        def stays(source: str) -> bool:
            return source != self._innocent.name and (source in self._court.theirs) == judges

        return keeping(bundle, lambda model: stays(model))

    def _enough(self, attack: str, found: int) -> bool:
        if found < FEWEST:
            self._progress.note(f"{self._innocent.name}: {found} queries are too few to frame it ({attack})")
        return found >= FEWEST

    def agreeing(self, attack: str, pool: QueryBundle, queries: int) -> QueryBundle | None:
        """The first of the candidates to which the innocent gives the victim's label."""
        _, answers = self._asked(pool.queries)
        rows = np.flatnonzero(agreement(pool, answers))[:queries]
        return narrowed(pool, rows) if self._enough(attack, len(rows)) else None

    def framed(self, honest: QueryBundle, queries: int, rng: np.random.Generator) -> Iterator[tuple[str, QueryBundle]]:
        """Bundles whose examples were made with the innocent's gradients; then with those of references too."""
        court = self._court
        innocent = logits_of(self._target, court.data.x)
        if innocent is None:
            self._progress.note(f"{self._innocent.name} gives no gradients, so it is not framed by them")
            return
        some = targets([(file, "") for file in self._accusers()[:AGAINST]], court.victim, court.options.device)
        known = [logits_of(target, court.data.x) for target, _ in some]
        against: list[Logits] = [logits for logits in known if logits is not None]
        for attack, away in ((WHITE_BOX, []), (AGAINST_REFERENCES, against)):
            material, push = Material(court.victim, court.data), Push(STRONG, ITERATIONS)
            points, wanted = frame(material, innocent, CANDIDATES * queries, rng, lambda _: None, away=away, push=push)
            bundle = court.with_references(with_queries(honest, points, court.victim))
            _, answers = self._asked(bundle.queries)
            good = agreement(bundle, answers) & (bundle.answers["victim"].labels[: len(points)] == wanted)
            rows = np.flatnonzero(good)
            if attack == AGAINST_REFERENCES:  # those that fewest of the accuser's references fall for, first
                fooled = np.mean([agreement(bundle, a) for a in references_of(self.of(bundle, judges=False))], axis=0)
                rows = rows[np.argsort(fooled[rows], kind="stable")]
            if self._enough(attack, len(rows)):
                yield attack, narrowed(bundle, np.sort(rows[:queries]))

    def chosen(self, queries: int) -> Iterator[tuple[str, QueryBundle, Path]]:
        """Bundles by an honest method from data that were chosen, and those data.

        They lack the victim's errors that the innocent does not share; then also those that most of the references share.
        """
        court, data = self._court, self._court.data
        own = court.victim.answer(data.x).argmax(1)
        labels = own if data.y is None else data.y
        right = np.flatnonzero(own == labels)
        shared = np.flatnonzero((own != labels) & (self._asked(data.x)[1].labels == own))
        if not self._enough(CHOSEN_DATA, len(shared)):
            return
        mine = peers_of([(file, "") for file in self._accusers()], court.victim, court.options.device)
        fooled = (labels_of(mine, data.x[shared]) == own[shared]).mean(axis=0)
        rarest = shared[np.argsort(fooled, kind="stable")[: max(queries // 2, FEWEST)]]
        for attack, errors in ((CHOSEN_DATA, shared), (DATA_AGAINST_REFERENCES, rarest)):
            rows = np.sort(np.concatenate([right, errors]))
            path = court.folder / f"{self._innocent.stem}-{len(errors)}.npz"
            np.savez(path, x=data.x[rows], y=labels[rows])
            yield attack, court.with_references(court.crafted(ERRORS, queries, court.options.seed, path)), path

    def _accusers(self) -> list[Path]:
        """The accuser's references."""
        return [file for file in self._court.references if file.name not in self._court.theirs and file != self._innocent]


def agreement(bundle: QueryBundle, answers: Answers) -> NDArray[np.bool_]:
    """To which queries of the only scheme a model gives the victim's label, (n,)."""
    span = slice(*bundle.manifest.schemes[0].rows)
    return np.asarray(answers.labels[span] == bundle.answers["victim"].labels[span])


def keeping(bundle: QueryBundle, stays: Callable[[str], bool]) -> QueryBundle:
    """The bundle with those references whose files stay."""
    models = tuple(model for model in bundle.manifest.models if model.role != "reference" or stays(model.source))
    manifest = dataclasses.replace(bundle.manifest, models=models)
    return dataclasses.replace(bundle, manifest=manifest, answers={m.id: bundle.answers[m.id] for m in models})


def narrowed(bundle: QueryBundle, rows: NDArray[np.int64]) -> QueryBundle:
    """The bundle with only these queries of its only scheme, and its controls; the manifest says nothing of a choice."""
    (entry,), (start, stop) = bundle.manifest.schemes, bundle.manifest.controls
    kept = np.concatenate([rows, np.arange(start, stop)])
    ends = len(rows), len(kept)
    manifest = dataclasses.replace(bundle.manifest, schemes=(dataclasses.replace(entry, rows=(0, ends[0])),), controls=ends)
    answers = {name: said.take(kept) for name, said in bundle.answers.items()}
    return QueryBundle(manifest, cast("Queries", bundle.queries[kept]), bundle.control_labels, answers)


def with_queries(honest: QueryBundle, points: Queries, victim: Victim) -> QueryBundle:
    """An honest bundle's manifest and controls, with other queries in the place of its own; without references."""
    (entry,), (start, stop) = honest.manifest.schemes, honest.manifest.controls
    ends = len(points), len(points) + stop - start
    manifest = dataclasses.replace(honest.manifest, schemes=(dataclasses.replace(entry, rows=(0, ends[0])),), controls=ends)
    queries = cast("Queries", np.concatenate([points, honest.queries[start:stop]]))
    return answered(QueryBundle(manifest, queries, honest.control_labels, {}), victim)


def divided(references: Sequence[Path], seed: int) -> frozenset[str]:
    """The judge's half of the references, by file: drawn at random. Raises UsageError where there are too few to divide."""
    if len(references) < 4:
        raise UsageError(f"{len(references)} references cannot be divided between accuser and judge", "Give at least 38.")
    order = np.random.default_rng([seed, len(references)]).permutation(len(references))
    return frozenset(references[place].name for place in order[: len(references) // 2])
