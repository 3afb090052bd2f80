"""References of a suspect whose label set is not the victim's: models of any label set, asked and screened without labels."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from onnxaudit.answers import Answers
from onnxaudit.audit.calibrating import ask_model, model_files, with_models
from onnxaudit.audit.copies import FEWEST_LABELS, copied
from onnxaudit.audit.insights import Insights
from onnxaudit.audit.judging.conditions import GIVEN
from onnxaudit.audit.progress import Progress
from onnxaudit.bundle import ModelEntry, QueryBundle
from onnxaudit.errors import OnnxauditError
from onnxaudit.registry import open_suspect
from onnxaudit.sandbox.opening import Opening
from onnxaudit.schemes.alike import adjusted_mutual_information
from onnxaudit.suspect import Target

SAME_PARTS = 0.98
"""A model whose labels part the queries as nearly as this as the victim's do is the victim under other names."""


def with_references_of_any(
    bundle: QueryBundle, folder: Path, device: str, progress: Progress, opening: Opening = open_suspect
) -> QueryBundle:
    """The bundle, which has no references, with the models of a folder as references, whatever classes they have.

    One that cannot serve is left out with a note: it cannot be asked, is the victim under other names, or is there twice.
    """
    report = progress.task("asking references", len(files := model_files(folder)))
    notes, taken = list(bundle.manifest.pool_notes), list[tuple[ModelEntry, Answers, Insights]]()
    origin = f"{GIVEN}, in {folder}"
    for number, file in enumerate(files):
        try:
            target, name = Target(str(file), bundle.manifest.input, None, device), f"reference-{len(taken):03d}"
            entry, answers, _ = ask_model(bundle, target, "reference", name, origin, opening, label_free=True)
            reason = _refusal(bundle, entry, answers, taken)
        except OnnxauditError as error:
            reason = f"cannot be asked: {error}"
        if reason is None:
            taken.append((entry, answers, {}))
        else:
            progress.note(f"left out: {file} {reason}")
            notes.append(f"left out: {file} {reason}")
        report(number + 1)
    filled = with_models(bundle, taken)
    return dataclasses.replace(filled, manifest=dataclasses.replace(filled.manifest, pool_notes=tuple(notes)))


def _refusal(
    bundle: QueryBundle, entry: ModelEntry, answers: Answers, taken: Sequence[tuple[ModelEntry, Answers, Insights]]
) -> str | None:
    """Why a model cannot be a reference, in words, or None."""
    if len(np.unique(answers.labels)) < 2:
        return "gives the same label to every query"
    victim = bundle.answers["victim"].labels
    if len(victim) >= FEWEST_LABELS and adjusted_mutual_information(victim, answers.labels) >= SAME_PARTS:
        return "parts the queries as the victim does: it is the victim, or a copy of it, perhaps under other class names"
    alike = [(known.id, said) for known, said, _ in taken if said.num_classes == answers.num_classes]
    twin = next((known.id for known, _, _ in taken if entry.sha256 and known.sha256 == entry.sha256), None)
    place = None if twin else copied(answers, [said for _, said in alike], [])
    twin = twin or (None if place is None else alike[place][0])
    return None if twin is None else f"is {twin} again"
