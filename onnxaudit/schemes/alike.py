"""Which queries a model finds alike, whatever it calls them: comparisons of answers that need no map between label sets.

Both similarities are 0 on average for unrelated models, however many classes either has. Those of SAC and mutual information as
published are not: a model with a class for nearly every query would look close to any victim.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from onnxaudit.answers import Access, Answers
from onnxaudit.schemes.feeds import fed, unit
from onnxaudit.schemes.information import entropy, occurrences

Floats = NDArray[np.float64]


def similarities(answers: Answers) -> Floats:
    """How alike a model finds each pair of queries, U-centred and scaled to length 1, (n, n); zeros where all are alike.

    Cosines of centred log-probabilities; labels: whether they are the same. top-k: the missing mass is spread evenly. U-centring
    (Szekely and Rizzo 2014, definition 2) takes off rows' and columns' means so that nothing is left of a pair's own chance.
    """
    if answers.access == Access.LABEL:
        alike = (answers.labels[:, None] == answers.labels[None, :]).astype(np.float64)
    else:
        outputs = unit(fed(answers, "centred"))
        alike = outputs @ outputs.T
    return _centred(alike)


def aligned(victim: Floats, suspect: Floats) -> float:
    """Cosine of two models' ``similarities``, in [-1, 1]: bias-corrected distance correlation; NaN where one has no direction."""
    return float((victim * suspect).sum()) if victim.any() and suspect.any() else float("nan")


def adjusted_mutual_information(victim: NDArray[np.integer], suspect: NDArray[np.integer]) -> float:
    """Mutual information of two lists of labels above what the same labels in another order share, 1 at most.

    (I - E[I]) / (sqrt(H H') - E[I]), E over all orders (Vinh et al. 2010, eq. 24). NaN where either is constant.
    """
    rows, columns, table = _table(victim, suspect)
    if min(len(rows), len(columns)) < 2:
        return float("nan")
    expected = _expected_information(rows, columns)
    most = float(np.sqrt(entropy(rows) * entropy(columns)))
    return (_information(rows, columns, table) - expected) / max(most - expected, 1e-9)


def chance_spread(victim: NDArray[np.integer], suspect: NDArray[np.integer]) -> float:
    """About how much ``adjusted_mutual_information`` of unrelated labels varies from one order of them to another.

    2 n I has nearly a chi-squared distribution with (r - 1)(c - 1) degrees of freedom.
    """
    rows, columns, _ = _table(victim, suspect)
    most = float(np.sqrt(entropy(rows) * entropy(columns)))
    freedom = (len(rows) - 1) * (len(columns) - 1)
    return float(np.sqrt(2 * freedom)) / (2 * len(victim) * most) if most > 0 else 0.0


def related(labels: NDArray[np.integer], truth: NDArray[np.integer], orders: int = 99) -> tuple[float, bool]:
    """How much labels tell of what queries show, adjusted, and whether that is more than in any of so many other orders.

    The orders are drawn from a fixed seed. Constant labels tell nothing.
    """
    rows, columns, table = _table(truth, labels)
    if min(len(rows), len(columns)) < 2:
        return 0.0, False
    found, rng = _information(rows, columns, table), np.random.default_rng(len(labels))
    others = [_information(*_table(truth, rng.permutation(labels))) for _ in range(orders)]
    return adjusted_mutual_information(truth, labels), found > max(others) + 1e-12


def mean_alignment(labels: NDArray[np.integer]) -> Floats:
    """Each model's mean alignment with the other models, (m,), from their labels of natural inputs, (m, n).

    What ``evidence.calibration.mean_agreement`` is where label sets are the same: how ordinary a model is, without the victim.
    """
    flat = np.stack([similarities(Answers.from_labels(row, None)).ravel() for row in labels])
    gram = flat @ flat.T
    return np.asarray((gram.sum(axis=1) - np.diagonal(gram)) / max(1, len(labels) - 1))


def _centred(alike: Floats) -> Floats:
    count = len(alike)
    if count < 4:
        return np.zeros_like(alike)
    np.fill_diagonal(alike, 0)
    sums = alike.sum(axis=1)
    centred = alike - (sums[:, None] + sums[None, :]) / (count - 2) + sums.sum() / ((count - 1) * (count - 2))
    np.fill_diagonal(centred, 0)
    length = float(np.linalg.norm(centred))
    return np.asarray(centred / length) if length > 1e-9 else np.zeros_like(centred)


def _table(one: NDArray[np.integer], two: NDArray[np.integer]) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """How often each label occurs in either list, and each pair of them together, (r,), (c,) and (r, c)."""
    first, second = _codes(one), _codes(two)
    rows, columns = first.max(initial=-1) + 1, second.max(initial=-1) + 1
    table = np.bincount(first * columns + second, minlength=rows * columns).reshape(rows, columns)
    return table.sum(axis=1), table.sum(axis=0), table


def _codes(labels: NDArray[np.integer]) -> NDArray[np.int64]:
    """Labels as numbers from 0, all of which occur."""
    values = np.sort(labels.astype(np.int64))
    return np.searchsorted(values[np.append(True, values[1:] != values[:-1])], labels) if len(values) else values


def _information(rows: NDArray[np.int64], columns: NDArray[np.int64], table: NDArray[np.int64]) -> float:
    """Plug-in mutual information in nats."""
    return entropy(rows) + entropy(columns) - entropy(table.ravel())


def _expected_information(rows: NDArray[np.int64], columns: NDArray[np.int64]) -> float:
    """The mean mutual information of labels that occur so often, over all orders, in nats (Vinh et al. 2010, eq. 20).

    Counts of a pair are hypergeometric. Labels that occur as often as another share its sum.
    """
    n = int(rows.sum())
    logs = np.append(0.0, np.cumsum(np.log(np.arange(1, n + 1))))
    total = 0.0
    one, two = np.sort(rows), np.sort(columns)
    first, second = one[np.append(True, one[1:] != one[:-1])], two[np.append(True, two[1:] != two[:-1])]
    for a, weight in zip(first.tolist(), occurrences(rows).tolist(), strict=True):
        for b, times in zip(second.tolist(), occurrences(columns).tolist(), strict=True):
            k = np.arange(max(1, a + b - n), min(a, b) + 1)
            chance = logs[a] + logs[b] + logs[n - a] + logs[n - b] - logs[n] - logs[k] - logs[a - k] - logs[b - k]
            terms = k / n * np.log(n * k / (a * b)) * np.exp(chance - logs[n - a - b + k])
            total += weight * times * float(terms.sum())
    return total
