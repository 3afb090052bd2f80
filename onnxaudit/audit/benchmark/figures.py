"""From the scores of all models to figures: who is compared with whom, and mean and deviation over seeds."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxaudit.evidence.metrics import aruc, auc, clopper_pearson
from onnxaudit.zoo.manifest import ZooEntry

ALL, INDEPENDENT, SIBLING, COMBINED = "all", "independent", "sibling", "combined"
DEPLOYED = f"{INDEPENDENT}, deployed"
LIMIT = 0.05
"""The share of innocents that may be flagged where a true positive rate is read off."""

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Row:
    """Figures of one scheme at one access and budget for one task; means over seeds, and standard deviations ("_sd").

    queries: that it uses there. positives, negatives: models that have a score. aruc: only for matching rates.
    innocent_mean, innocent_max: of the negatives' scores. derived: share of the positives with that finding; accused: negatives
    with it, the most at one seed, of ``files`` different files; bound: the highest rate of accusations that so few are
    compatible with, see ``clopper_pearson``; only for the combined statistic, which carries the finding. craft_seconds: to
    make its queries, in proportion to the budget; check_seconds: to open a suspect and ask it, a mean.
    """

    scheme: str
    access: str
    budget: int
    task: str
    queries: float
    seeds: int
    positives: int
    negatives: int
    auc: float | None = None
    auc_sd: float | None = None
    tpr_at_5: float | None = None
    tpr_at_5_sd: float | None = None
    aruc: float | None = None
    aruc_sd: float | None = None
    innocent_mean: float | None = None
    innocent_max: float | None = None
    derived: float | None = None
    derived_sd: float | None = None
    accused: int | None = None
    files: int | None = None
    bound: float | None = None
    craft_seconds: float | None = None
    check_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Cell:
    """One composition at one access and budget, over all tasks of the victim's label set. by_task: its TPR for each task.

    negatives: the zoo's and the references.
    """

    scheme: str
    access: str
    budget: int
    queries: float
    seeds: int
    positives: int
    negatives: int
    auc: float | None
    auc_sd: float | None
    tpr_at_5: float | None
    tpr_at_5_sd: float | None
    by_task: Mapping[str, float | None] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, eq=False)
class Contest:
    """Which models are told from which: (models,) each."""

    task: str
    positives: Bools
    negatives: Bools


def contests(zoo: Sequence[ZooEntry], *, references: bool = False) -> list[Contest]:
    """Tasks of a zoo. Models of different label sets are never compared: "all" are those of the victim's, and innocents
    of each have a row of their own, as any of them could be accused.

    A model behind a server counts for what its server does, not for how it was made: against the innocents, and, where there are
    any, against innocents behind the same server. These are in no other contest: one file behind many servers would be many
    innocents that hardly differ, and would lower the threshold that all models are measured by. They have a row of their own.
    references: these count as negatives too.
    """
    kinds = np.array([entry.kind for entry in zoo])
    labels = np.array([entry.labels for entry in zoo])
    positive, sibling = kinds == "positive", kinds == "sibling"
    negative = (kinds == "negative") | (references & (kinds == "reference"))
    own = labels == ""
    deployed = np.array([bool(entry.deployed) for entry in zoo])
    innocent, nobody = negative & ~deployed, np.zeros(len(zoo), np.bool_)
    tasks: dict[tuple[str, str], Bools] = {}
    for place in np.flatnonzero(positive).tolist():
        entry = zoo[place]
        name = f"behind {', '.join(entry.deployed)}" if entry.deployed else entry.task
        tasks.setdefault((name, entry.labels), np.zeros(len(zoo), np.bool_))[place] = True
    found = []
    for (name, said), members in tasks.items():
        task = f"{name} ({said})" if said else name
        found.append(Contest(task, members, innocent & (labels == said)))
        steps = zoo[int(np.flatnonzero(members)[0])].deployed
        alike = negative & deployed & (labels == said) & np.array([entry.deployed == steps for entry in zoo])
        if alike.any():
            found.append(Contest(f"{task}, both sides", members, alike))
    found.append(Contest(ALL, positive & own, innocent & own))
    for said in dict.fromkeys(["", *labels[negative].tolist()]):
        for name, alike in ((INDEPENDENT, innocent & (labels == said)), (DEPLOYED, negative & deployed & (labels == said))):
            if alike.any() or (name, said) == (INDEPENDENT, ""):
                found.append(Contest(f"{name} ({said})" if said else name, nobody, alike))
    if sibling.any():
        found.append(Contest(SIBLING, positive & own, sibling & own))
    return found


@dataclass(frozen=True, slots=True, eq=False)
class Scored:
    """One scheme's scores of all models, (seeds, budgets, accesses, models), NaN where it has none.

    queries: it uses at each budget, 0 where it has none. rate: scores are matching rates. composed: a composition of the grid.
    crafting: seconds to make ``crafted`` queries, means over seeds.
    """

    name: str
    scores: Floats
    queries: Sequence[float]
    rate: bool = False
    composed: bool = False
    crafting: float = 0.0
    crafted: float = 0.0


def rows(
    scored: Scored,
    games: Sequence[Contest],
    accesses: Sequence[str],
    budgets: Sequence[int],
    derived: NDArray[np.bool_] | None,
    files: Sequence[str],
    seconds: Callable[[float], float],
) -> Iterator[Row]:
    """Every row of a scheme. derived: who has that finding, as ``scores``, for the combined statistic."""
    for column, access in enumerate(accesses):
        for place, budget in enumerate(budgets):
            scores = scored.scores[:, place, column]
            queries = scored.queries[place]
            if not queries or not np.isfinite(scores).any():
                continue
            crafting = scored.crafting * min(1.0, queries / scored.crafted) if scored.crafted else None
            for game in games:
                found = _figures(game, scores, scored.rate, queries)
                if derived is not None:
                    found |= _accusations(game, derived[:, place, column], files)
                yield Row(
                    scored.name,
                    access,
                    budget,
                    game.task,
                    queries,
                    craft_seconds=_rounded(crafting),
                    check_seconds=_rounded(seconds(queries)),
                    **found,
                )


def cells(scored: Scored, games: Sequence[Contest], accesses: Sequence[str], budgets: Sequence[int]) -> Iterator[Cell]:
    """Every cell of a composition."""
    whole = next(game for game in games if game.task == ALL)
    tasks = [game for game in games if game.positives.any() and game is not whole and game.task != SIBLING]
    for column, access in enumerate(accesses):
        for place, budget in enumerate(budgets):
            scores = scored.scores[:, place, column]
            if not scored.queries[place]:
                continue
            found = _figures(whole, scores, False, scored.queries[place])
            by_task = {game.task: _mean([_tpr(*_sides(game, row)) for row in scores])[0] for game in tasks}
            kept = {name: found[name] for name in ("seeds", "positives", "negatives", "auc", "auc_sd", "tpr_at_5", "tpr_at_5_sd")}
            yield Cell(scored.name, access, budget, scored.queries[place], by_task=by_task, **kept)


# ------------------------------------------------------------------------------------------------------------------- one game


def _sides(game: Contest, scores: Floats) -> tuple[Floats, Floats]:
    """The scores of both sides; models without one are left out."""
    known = np.isfinite(scores)
    return scores[game.positives & known], scores[game.negatives & known]


def _figures(game: Contest, scores: Floats, rate: bool, queries: float) -> dict[str, Any]:
    """scores: (seeds, models)."""
    sides = [_sides(game, row) for row in scores if np.isfinite(row).any()]
    areas = [auc(high, low) for high, low in sides]
    found: dict[str, Any] = {
        "seeds": len(sides),
        "positives": min((len(high) for high, _ in sides), default=0),
        "negatives": min((len(low) for _, low in sides), default=0),
        "innocent_mean": _mean([float(low.mean()) if len(low) else np.nan for _, low in sides])[0],
        "innocent_max": _mean([float(low.max()) if len(low) else np.nan for _, low in sides])[0],
    }
    found["auc"], found["auc_sd"] = _mean(areas)
    found["tpr_at_5"], found["tpr_at_5_sd"] = _mean([_tpr(high, low) for high, low in sides])
    if rate and game.positives.any():
        n = round(queries)
        found["aruc"], found["aruc_sd"] = _mean([aruc(_counts(high, n), _counts(low, n)) for high, low in sides])
    return found


def _tpr(high: Floats, low: Floats) -> float:
    """As ``metrics.tpr_at_fpr``, without the whole curve: the share above the largest innocent that may not be flagged."""
    if not len(high) or not len(low):
        return float("nan")
    allowed = int(np.flatnonzero(np.arange(len(low)) / len(low) <= LIMIT)[-1])
    return float((high > np.sort(low)[::-1][allowed]).mean())


def _counts(rates: Floats, queries: int) -> list[tuple[int, int]]:
    """Matching rates as (matched, asked)."""
    return [(round(float(rate) * queries), queries) for rate in rates]


def _accusations(game: Contest, derived: NDArray[np.bool_], files: Sequence[str]) -> dict[str, Any]:
    """derived: (seeds, models). Of the innocents, every file counts once, however often it is deployed."""
    shares = [float(row[game.positives].mean()) if game.positives.any() else np.nan for row in derived]
    share, deviation = _mean(shares)
    names = {files[place] for place in np.flatnonzero(game.negatives).tolist()}
    worst = max(len({files[place] for place in np.flatnonzero(game.negatives & row).tolist()}) for row in derived)
    bound = _rounded(clopper_pearson(worst, len(names))[1]) if names else None
    return {"derived": share, "derived_sd": deviation, "accused": worst, "files": len(names), "bound": bound}


def _mean(values: Sequence[float]) -> tuple[float | None, float | None]:
    """Mean and standard deviation of what is defined; no deviation of a single value."""
    known = [value for value in values if np.isfinite(value)]
    if not known:
        return None, None
    return _rounded(float(np.mean(known))), _rounded(float(np.std(known, ddof=1))) if len(known) > 1 else None


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 6)
