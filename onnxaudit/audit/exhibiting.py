"""exhibits_of(): what a report shows of single queries. It explains; it decides nothing."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from onnxaudit.answers import Access, Answers
from onnxaudit.audit.judging.comparing import labels_of
from onnxaudit.bundle import QueryBundle
from onnxaudit.report.exhibits import Exhibit, ExhibitGroup

SHOWN = 12
"""Queries shown of each group: the first that were answered, in the bundle's order, fixed before any suspect was asked."""


def exhibits_of(bundle: QueryBundle, answers: Answers) -> tuple[ExhibitGroup, ...]:
    """The first queries of every scheme and of the controls with the suspect's answers: a pure function of its arguments.

    Schemes that share queries share a group. Which queries are shown does not depend on what was answered to them; of a group
    without any answer the first are shown.
    """
    manifest = bundle.manifest
    names: dict[tuple[int, int], list[str]] = {}
    for scheme in manifest.schemes:
        names.setdefault(scheme.rows, []).append(scheme.name)
    models = manifest.of_role("reference")
    others = labels_of(bundle, [bundle.answers[model.id] for model in models]) if models else None
    victim = bundle.answers["victim"]
    groups = [_group(bundle, answers, tuple(mine), rows, victim.labels, others) for rows, mine in names.items()]
    start, stop = manifest.controls
    if start < stop:
        expected = victim.labels.copy()
        expected[start:stop] = bundle.control_labels
        groups.append(_group(bundle, answers, (), manifest.controls, expected, others))
    return tuple(groups)


def _group(
    bundle: QueryBundle,
    answers: Answers,
    names: tuple[str, ...],
    rows: tuple[int, int],
    expected: NDArray[np.int32],
    others: NDArray[np.int32] | None,
) -> ExhibitGroup:
    """expected: (n,), the answer that is expected to every query. others: (m, n), the references' answers, if there are any."""
    span = slice(*rows)
    asked = answers.answered[span]
    agreed = (answers.labels[span] == expected[span]) & asked
    shares = None if others is None else (others[:, span] == expected[span])
    rates = None if shares is None or not asked.any() else shares[:, asked].mean(axis=1)
    first = (rows[0] + (np.flatnonzero(asked) if asked.any() else np.arange(len(asked))))[:SHOWN]
    own = _scores(bundle.answers["victim"], answers.access, first) if names else np.full(len(first), np.nan)
    given = _scores(answers, answers.access, first)
    return ExhibitGroup(
        names,
        rows[1] - rows[0],
        int(asked.sum()),
        int(agreed.sum()),
        None if rates is None else float(rates.mean()),
        None if rates is None else float(rates.min()),
        None if rates is None else float(rates.max()),
        tuple(
            Exhibit(
                int(row),
                _name(bundle, int(expected[row])),
                _name(bundle, int(answers.labels[row])) if asked[row - rows[0]] else None,
                bool(agreed[row - rows[0]]),
                _known(own[i]),
                _known(given[i]),
                None if shares is None else float(shares[:, row - rows[0]].mean()),
            )
            for i, row in enumerate(first)
        ),
    )


def _scores(answers: Answers, access: Access, rows: NDArray[np.int64]) -> NDArray[np.float64]:
    """The score of the best class of these rows, (r,); NaN where there is none, or where the suspect's access is labels."""
    scores = np.full(len(rows), np.nan)
    known = answers.answered[rows]
    if access > Access.LABEL and known.any():
        best = answers.take(rows[known]).degrade(Access.PROBS).scores
        if best is not None:
            scores[known] = best[:, 0]
    return scores


def _known(score: float) -> float | None:
    return float(score) if np.isfinite(score) else None


def _name(bundle: QueryBundle, label: int) -> str:
    names = bundle.manifest.class_names
    return names[label] if label < len(names) else f"class {label}"
