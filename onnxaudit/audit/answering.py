"""The victim's own part in a bundle: its answers, and what it shows of its inside."""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import NDArray

from onnxaudit import __version__
from onnxaudit.answers import Answers
from onnxaudit.audit.insights import look_inside, named
from onnxaudit.bundle import Manifest, ModelEntry, QueryBundle
from onnxaudit.craft.insight import insight, program_of
from onnxaudit.craft.victim import Victim
from onnxaudit.evidence.calibration import STATISTIC
from onnxaudit.suspect import Queries


def answered(bundle: QueryBundle, victim: Victim) -> QueryBundle:
    """The bundle with the victim's answers to all of its queries."""
    answers = Answers.from_scores(victim.answer(bundle.queries))
    labels = bundle.control_labels
    part = answers.take(slice(*bundle.manifest.controls))
    accuracy = float((part.labels == labels).mean()) if bundle.manifest.labelled and len(labels) else None
    entry = ModelEntry(
        "victim", "victim", victim.source, victim.sha256, victim.kind, answers.access.word, victim.num_classes, accuracy
    )
    manifest = dataclasses.replace(bundle.manifest, models=(entry,))
    inside = look_inside(bundle, lambda kind, queries, **more: insight(kind, program_of(victim), queries, **more))
    return dataclasses.replace(bundle, manifest=manifest, answers={"victim": answers}, insights=named("victim", inside))


def probing(victim: Victim, queries: Queries, labels: NDArray[np.int64] | None) -> QueryBundle:
    """A bundle of nothing but controls, to see whether models can serve before queries are made with their help."""
    known = np.zeros(len(queries), np.int64) if labels is None else labels
    manifest = Manifest(
        __version__, 0, victim.spec, (), (), (0, len(queries)), labels is not None, STATISTIC, 0.05, ()
    )  # fmt: skip
    return answered(QueryBundle(manifest, queries, known, {}), victim)
