"""Comparing a suspect whose label set is not the victim's: by which queries it finds alike, in one statistic of all of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxaudit.answers import Access, Answers
from onnxaudit.audit.insights import insight_key
from onnxaudit.audit.judging.comparing import FEWEST_CONTROLS, FEWEST_QUERIES, Comparison, SchemeScores
from onnxaudit.audit.judging.sides import Pool, Side, pool_of
from onnxaudit.audit.judging.strength import ONE_FAMILY, of_one_family
from onnxaudit.audit.once import once
from onnxaudit.bundle import QueryBundle, SchemeEntry
from onnxaudit.evidence.calibration import Floats, p_floor, standardise, studentised, usable
from onnxaudit.report.model import Controls
from onnxaudit.schemes.alike import adjusted_mutual_information, aligned, chance_spread, mean_alignment, related, similarities

STATISTIC = "pairs/1"
"""The statistic of every check without labels, whatever the bundle's own is: fixed here before any suspect is seen."""
NAME = "pairs"
MOST = 1500
"""Queries whose pairs are compared at most; of more, as many of each sampler at even distances."""
OF_TASK = 0.2
"""A suspect whose labels tell less than this of the controls is not of the victim's task: models of it tell far more."""
GOOD = 0.8
"""A reference whose labels tell less than this share of what the suspect's tell of the other models' is weaker than it."""
NEAR = 0.5
"""A reference whose labels tell less than this share of what the suspect's tell of the controls is of another task than it is."""
LISTWISE = ("correlation", "hard-correlation")
"""Representations that hold which queries are alike, so that their schemes are shown alone as well."""


def compare_label_free(
    bundle: QueryBundle, references: Sequence[Answers], suspect: Answers, fewest: int = FEWEST_QUERIES
) -> Comparison:
    """Score the suspect and every reference by the pairs of all queries of all schemes, cut to the least access of all.

    Labels are compared as partitions of the queries (adjusted mutual information), scores by the similarities of pairs; neither
    depends on how many classes a model has or on what they are called. Listwise schemes are shown on their own queries, and do
    not count apart; all others are skipped. fewest: answered queries that a comparison needs.
    """
    pool = pool_of(bundle, references)
    access = min(pool.access, suspect.access)
    width = min(pool.width, suspect.classes.shape[1]) if access == Access.TOPK else 1
    cut = suspect.degrade(access, width)
    covariate = _covariate(bundle, pool, suspect)

    def scored(name: str, rows: NDArray[np.int64]) -> SchemeScores:
        answered = rows[suspect.answered[rows]]
        return _scored(name, pool, cut, answered, covariate, (access, width), max(fewest, 4))

    every = scored(NAME, once(pooled_rows, bundle))
    listed = [
        dataclasses.replace(scored(entry.name, np.arange(*entry.rows)), counted=False, line_up=None)
        if entry.representation in LISTWISE
        else SchemeScores(entry.name, 0, access.word, skipped="it compares labels, and the suspect's are others or not known")
        for entry in bundle.manifest.schemes
    ]
    return Comparison((every, *listed), every.standardised, usable(covariate), 1.0, every.twins)


def pooled_rows(bundle: QueryBundle) -> NDArray[np.int64]:
    """The queries of all schemes that compare answers, each once, thinned evenly where there are more than ``MOST``."""
    spans = sorted({entry.rows for entry in bundle.manifest.schemes if not _looks_inside(entry)})
    total = sum(stop - start for start, stop in spans)
    step = max(1.0, total / MOST)
    parts = [start + np.floor(np.arange(0, stop - start, step)).astype(np.int64) for start, stop in spans]
    return np.concatenate(parts) if parts else np.zeros(0, np.int64)


def _looks_inside(entry: SchemeEntry) -> bool:
    return bool(insight_key(entry))


def _scored(
    name: str,
    pool: Pool,
    cut: Answers,
    rows: NDArray[np.int64],
    covariate: Floats | None,
    level: tuple[Access, int],
    fewest: int,
) -> SchemeScores:
    """Standardised scores on these rows; cut: the suspect's answers at this level of access."""
    access, width = level
    if len(rows) < fewest:
        return SchemeScores(name, len(rows), access.word, skipped=f"only {len(rows)} of its queries were answered")
    key = (f"{NAME}: {name}", access, width, rows.tobytes())
    side = pool.sides.get(key)
    if side is None:
        represent, compare = _by(access)
        victim, *others = pool.cut(access, width)
        siblings = [answers.take(rows) for answers in pool.lined_up(access, width)]
        side = Side(rows, False, represent, compare, victim.take(rows), others, siblings, lambda entries: 1 / entries)
    suspect = side.cut(cut)
    scores = np.array([*side.scores, side.score(suspect)])
    pool.keep(key, side)
    if not np.isfinite(scores).all():
        return SchemeScores(name, len(rows), access.word, skipped="a model gives the same label, or another one, to every query")
    floor = side.floor
    if access == Access.LABEL:
        models = [*(answers.take(rows).labels for answers in side.references), suspect.labels]
        floor = max(floor, float(np.mean([chance_spread(side.victim.labels, labels) for labels in models])))
    lined_up = side.lined_up(suspect)
    tied = len(scores) < 3 or bool(scores[:-1].std(ddof=1) < floor / 2)
    twins = None if lined_up is None else studentised(lined_up.in_turn, None, floor)
    return SchemeScores(
        name, len(rows), access.word, scores, standardise(scores, covariate, floor), tied, line_up=lined_up, twins=twins
    )


def _by(access: Access) -> tuple[Callable[[Answers], NDArray[Any]], Callable[[NDArray[Any], NDArray[Any]], float]]:
    """What of a model is compared, and how."""
    if access == Access.LABEL:
        return (lambda answers: answers.labels), adjusted_mutual_information
    return similarities, aligned


def _covariate(bundle: QueryBundle, pool: Pool, suspect: Answers) -> Floats | None:
    """How ordinary each model is: its mean alignment with the others on the controls that the suspect answered."""
    start, stop = bundle.manifest.controls
    rows = np.arange(start, stop)[suspect.answered[start:stop]]
    if len(rows) < FEWEST_CONTROLS:
        return None
    return mean_alignment(np.concatenate([pool.labels[:, rows], suspect.labels[None, rows]]))


def label_free_controls(bundle: QueryBundle, answers: Answers) -> Controls:
    """Whether the suspect's labels of the controls tell anything of what they show; right and wrong are not defined.

    ok is False where they tell no more than in a random order: then a mis-wired suspect cannot be told from an innocent one.
    """
    start, stop = bundle.manifest.controls
    rows = np.flatnonzero(answers.answered[start:stop])
    if len(rows) < FEWEST_CONTROLS:
        return Controls(n=len(rows), answered=len(rows))
    told, beyond = related(answers.labels[start:stop][rows], bundle.control_labels[rows])
    return Controls(n=len(rows), answered=len(rows), ok=beyond, related=told)


def named_classes(bundle: QueryBundle, answers: Answers, *, label_free: bool) -> Answers:
    """The answers with a number of classes: the victim's, or without labels the suspect's own, as far as it is known.

    Where it is not, the classes that were named get the numbers from 0: names have any number, and none has a meaning here.
    """
    victim = bundle.manifest.victim.num_classes
    if not label_free or answers.num_classes is not None:
        return dataclasses.replace(answers, num_classes=answers.num_classes if label_free else victim)
    named = np.unique(answers.classes[answers.classes >= 0])
    numbered = np.where(answers.classes >= 0, np.searchsorted(named, answers.classes), -1).astype(np.int32)
    return dataclasses.replace(answers, classes=numbered, num_classes=max(victim, len(named)))


def other_task(bundle: QueryBundle, references: Sequence[Answers], answers: Answers, level: float) -> list[str]:
    """Why the references are not like this suspect, if too few for alpha know as much of the victim's task as it does.

    Models of the victim's task are close to the victim, whoever made them. References of another task would accuse them all, and
    references that know less of it than the suspect would accuse the good ones.
    """
    start, stop = bundle.manifest.controls
    rows = np.flatnonzero(answers.answered[start:stop])
    if len(rows) < FEWEST_CONTROLS or p_floor(len(references)) > level + 1e-12:
        return []
    truth = bundle.control_labels[rows]
    told = [adjusted_mutual_information(truth, said.labels[start:stop][rows]) for said in (*references, answers)]
    *others, own = (0.0 if np.isnan(value) else value for value in told)
    if own < OF_TASK:
        return []
    like = sum(value >= NEAR * own for value in others)
    if p_floor(like) > level + 1e-12:
        return [
            f"only {like} of {len(references)} references sort the control queries as much by the victim's classes as the "
            f"suspect ({own:.2f} of 1): the others are of another task; compare it with models of its own, as the bundle's "
            "references may be"
        ]
    alike = mean_alignment(np.stack([said.labels[start:stop][rows] for said in (*references, answers)]))
    well = alike[:-1] >= GOOD * alike[-1]
    if bundle.manifest.labelled:  # those of one weak family sort alike
        well &= np.array(others) >= GOOD * own
    elif once(of_one_family, bundle):
        return [ONE_FAMILY]
    good = int(well.sum())
    if 2 * good < len(references):
        return [
            f"only {good} of {len(references)} references sort the controls nearly as well as the suspect: "
            "the rest are too weak to show how close to the victim an innocent as good as it is"
        ]
    return []
