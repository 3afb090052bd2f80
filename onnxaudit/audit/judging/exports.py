"""The suspect beside the victim's own exports: what agreement a quantised copy reaches. It explains; it decides nothing."""

from __future__ import annotations

import numpy as np

from onnxaudit.answers import Answers
from onnxaudit.audit.insights import askable
from onnxaudit.audit.once import once
from onnxaudit.bundle import QueryBundle
from onnxaudit.report.model import ExportAgreement

ROLE = "export"


def export_agreements(bundle: QueryBundle, answers: Answers) -> tuple[ExportAgreement, ...]:
    """For the victim and each of its exports, shares of the schemes' answered queries: same label as the victim, as the suspect.

    Empty where the bundle has no exports, or nothing was answered.
    """
    exports = bundle.manifest.of_role(ROLE)
    start, stop = bundle.manifest.controls
    rows = answers.answered & once(askable, bundle)
    rows[start:stop] = False
    if not exports or not rows.any():
        return ()
    victim, suspect = bundle.answers["victim"].labels[rows], answers.labels[rows]
    said = [("victim", "", victim), *((_kind(m.id), m.origin, bundle.answers[m.id].labels[rows]) for m in exports)]
    return tuple(
        ExportAgreement(kind, float(np.mean(labels == victim)), float(np.mean(labels == suspect)), origin)
        for kind, origin, labels in said
    )


def _kind(name: str) -> str:
    return name.removeprefix(f"{ROLE}-")
