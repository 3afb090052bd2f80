"""``contrast``: queries on which what was extracted from the victim parts from what was extracted from other models (torch)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

import numpy as np
from numpy.typing import NDArray

from onnxaudit.answers import Answers
from onnxaudit.craft.learning.discriminant import separation, weights, within
from onnxaudit.craft.pools.peers import needed_references
from onnxaudit.craft.sample import Material, Peer, Sample
from onnxaudit.craft.samplers.adversarial import sample_adversarial
from onnxaudit.craft.samplers.cutmix import cutmix
from onnxaudit.errors import UsageError
from onnxaudit.schemes.contrast import Floats, margins
from onnxaudit.suspect import Queries

FEWEST = 2
"""Pairs, and references; from one of a kind nothing can be learned about the kind."""
HALVINGS = 8
"""Of the line between two inputs, to find where the victim's label changes."""
RADII = (0.02, 0.05, 0.1)
SHARES = (("cutmix", 0.5), ("blend", 0.1), ("between", 0.15), ("adversarial", 0.1))
"""Parts of the candidates; natural inputs are the rest. Points between vectors take the part of what only images have."""
POOR = 0.75
"""Models held out that are told apart less often than this say that there is little to tell them by."""
IGNORANT = -0.6
"""The mean margin of a model whose probabilities are drawn at random."""
PRIOR = 1.0
"""Pseudo-counts of each answer, the victim's label or another: Laplace's rule."""


def sample_contrast(
    material: Material,
    n: int,
    rng: np.random.Generator,
    progress: Callable[[int], None],
    *,
    candidates: int = 8000,
    share: float = 1.5,
) -> Sample:
    """n queries that tell best what was extracted from the victim from what was extracted from other models, best first.

    candidates: natural inputs, CutMix and blends of images, points between two inputs where the victim changes its label, and
    adversarial examples; at least four times n. Each is ranked by the difference between the two kinds' mean margins over its
    shrunk standard deviation. share: at most so many times n / classes queries of one label of the victim.

    The kinds are the two sides of the material's pairs. Surrogates and references as such would not do: they differ in more than
    whom they learned from, and an innocent that is hardened as a surrogate was would look derived. What references, and siblings
    where there are any, differ in among themselves counts as noise. Columns: ``schemes.contrast.COLUMNS``. Raises UsageError
    without data, or with fewer than two pairs or references.
    """
    kinds = _kinds(material)
    pool = _candidates(material, max(candidates, 4 * n), rng)
    answers = Answers.from_scores(material.victim.answer(pool))
    said = answers.labels.astype(np.int64)
    most = max(1, int(np.ceil(share * n / material.victim.num_classes)))
    squashed = [_asked(models, pool, said)[1] for models in kinds]
    rows, _ = _chosen(squashed, said, n, most)
    progress(len(rows))
    # margins are relative to the other queries that a model is asked, so they are worked out anew for those that are kept
    own = margins(answers.take(rows), said[rows])
    columns = _columns(said[rows], own, *zip(*(_asked(models, pool[rows], said[rows]) for models in kinds), strict=True))
    told = _told_apart(squashed, margins(answers, said), said, n, most)
    notes: tuple[str, ...] = (f"models of the two kinds that were held out are told apart in {told:.0%} of cases",)
    if told < POOR:
        notes += ("that is little: more data, or more and better surrogates, would help",)
    settled = {"pairs": len(material.pairs), "told_apart": round(told, 3)}
    return Sample(pool[rows], notes, settled, columns)


def _chosen(squashed: Sequence[Floats], said: NDArray[np.int64], n: int, most: int) -> tuple[NDArray[np.int64], Floats]:
    """The candidates that tell kinds apart best, by their margins (models, candidates), and the covariance's root."""
    deviations = within(squashed)
    return _best(np.abs(separation(squashed[0], squashed[1], deviations)), said, n, most), deviations


def _told_apart(squashed: Sequence[Floats], own: Floats, said: NDArray[np.int64], n: int, most: int) -> float:
    """How often a model extracted from the victim scores above one that was not, if neither chose the queries or the weights.

    Both of a pair are held out at a time.
    """
    derived, others, *more = squashed
    told = 0.0
    for held in range(len(derived)):
        kept = [*(np.delete(side, held, axis=0) for side in (derived, others)), *more]
        rows, deviations = _chosen(kept, said, n, most)
        weight = weights(kept[0][:, rows], kept[1][:, rows], own[rows], deviations[:, rows], IGNORANT)
        told += float(weight @ derived[held, rows] > weight @ others[held, rows])
    return told / len(derived)


def _kinds(material: Material) -> list[Sequence[Peer]]:
    """Models extracted from the victim, the same extracted from references, and models that show what innocents differ in.

    Siblings are among the last: what they share with the victim is its recipe, and no sign of derivation.
    """
    others = (*needed_references(material), *material.siblings)
    if min(len(material.pairs), len(others)) < FEWEST:
        raise UsageError(
            f"{len(material.pairs)} pairs and {len(others)} references are too few to tell kinds apart",
            "Give --train-surrogates 12 and more references: contrast trains its own surrogates, each with its counterpart.",
        )
    return [*zip(*material.pairs, strict=True), others]


def _asked(models: Sequence[Peer], queries: Queries, said: NDArray[np.int64]) -> tuple[Floats, Floats]:
    """Whether each model gives the victim's label, and its margins, both (models, n)."""
    answers = [Answers.from_scores(model.answer(queries)) for model in models]
    return (
        np.array([found.labels == said for found in answers], np.float64),
        np.array([margins(found, said) for found in answers]),
    )


def _columns(
    said: NDArray[np.int64], own: Floats, matches: Sequence[Floats], squashed: Sequence[Floats]
) -> dict[str, NDArray[np.generic]]:
    """``schemes.contrast.COLUMNS`` of the chosen queries. own: the victim's margins; matches, squashed: by kind, (models, n)."""
    deviations = within(squashed)
    return {
        "said": said,
        "share": (matches[1].sum(axis=0) + PRIOR) / (len(matches[1]) + 2 * PRIOR),
        "share_weight": weights(matches[0], matches[1], np.ones(len(said)), within(matches), 0.0),
        "margin": squashed[1].mean(axis=0),
        "margin_weight": weights(squashed[0], squashed[1], own, deviations, IGNORANT),
        "margin_spread": np.square(deviations).sum(axis=0),
    }


def _best(score: Floats, said: NDArray[np.int64], n: int, most: int) -> NDArray[np.int64]:
    """Rows with the largest scores, best first, with no more than ``most`` of one label while there are enough others."""
    order = np.argsort(-score, kind="stable")
    place = np.zeros(len(order), np.int64)
    for label in np.unique(said):
        mine = np.flatnonzero(said[order] == label)
        place[mine] = np.arange(len(mine))
    chosen = np.concatenate([order[place < most], order[place >= most]])[:n]
    return chosen[np.argsort(-score[chosen], kind="stable")]


def _candidates(material: Material, count: int, rng: np.random.Generator) -> Queries:
    """Inputs of every kind that the data allow, on the grid that queries are stored on."""
    data = material.inputs()
    if len(data) < 2:
        raise UsageError(f"{len(data)} inputs are too few to mix", "Give more data.")
    image = data.x.ndim == 4
    wanted = {name: round(part * count) for name, part in SHARES}
    if not image:
        wanted = {"between": wanted["between"] + wanted["cutmix"] + wanted["blend"], "adversarial": wanted["adversarial"]}
    natural = min(len(data), count - sum(wanted.values()))
    parts = [material.draw(natural, rng)]
    if image:
        parts.append(cutmix(material.draw(wanted["cutmix"], rng).astype(np.uint8), rng))
        parts.append(_blended(material, rng.uniform(0.3, 0.7, wanted["blend"]), rng))
    parts.append(_between(material, wanted["between"], rng))
    parts += _adversarial(material, wanted["adversarial"], rng)
    return cast("Queries", np.concatenate(parts))


def _blended(material: Material, share: Floats, rng: np.random.Generator) -> Queries:
    one, two = (material.draw(len(share), rng).astype(np.float32) for _ in range(2))
    return _mixed(one, two, share, image=True)


def _mixed(one: NDArray[np.float32], two: NDArray[np.float32], share: Floats, *, image: bool) -> Queries:
    """one + share (two - one), as canonical queries."""
    step = share.astype(np.float32).reshape(-1, *[1] * (one.ndim - 1))
    points = one + step * (two - one)
    return np.rint(points).astype(np.uint8) if image else points


def _between(material: Material, count: int, rng: np.random.Generator) -> Queries:
    """Points on lines between two inputs with different labels, this side of where the victim's label changes."""
    image = material.inputs().x.ndim == 4
    one, two = material.draw(count, rng), material.draw(count, rng)
    labels = [material.victim.answer(side).argmax(1) for side in (one, two)]
    differ = labels[0] != labels[1]
    first, second = one[differ].astype(np.float32), two[differ].astype(np.float32)
    before = labels[0][differ]
    low, high = np.zeros(len(first)), np.ones(len(first))
    for _ in range(HALVINGS if len(first) else 0):
        middle = (low + high) / 2
        stays = material.victim.answer(_mixed(first, second, middle, image=image)).argmax(1) == before
        low, high = np.where(stays, middle, low), np.where(stays, high, middle)
    return _mixed(first, second, low, image=image)


def _adversarial(material: Material, count: int, rng: np.random.Generator) -> list[Queries]:
    """Adversarial examples of several radii; none of a victim without gradients, or where the data are few."""
    found: list[Queries] = []
    for radius in RADII:
        pairs = min(count // len(RADII), len(material.inputs()))
        try:
            sample = sample_adversarial(material, 2 * pairs, rng, _unseen, epsilon=radius, iterations=20, step=radius / 8)
        except UsageError:
            return found
        found.append(sample.queries[1::2])
    return found


def _unseen(done: int) -> None:
    """Progress that is part of something else."""
