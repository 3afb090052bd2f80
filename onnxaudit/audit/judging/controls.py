"""The control queries and the references' accuracy on them: is the suspect wired right, and are the references good enough?"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from onnxaudit.answers import Answers
from onnxaudit.audit.calibrating import control_accuracy
from onnxaudit.audit.judging.comparing import FEWEST_CONTROLS, labels_of, references_of
from onnxaudit.audit.once import once
from onnxaudit.bundle import QueryBundle
from onnxaudit.report.model import Controls

EASY = 0.75
"""A control counts as easy if the victim and this share of the references give its label."""
SANE = 0.8
"""A suspect that gets fewer of the easy controls than this is mis-wired, of another task, or broken."""
FEWEST_EASY = 10
FEWEST_OF_CLASS = 4
CONFUSED = 0.25
"""A suspect that gets no more than this of a class's easy controls right has another label order."""
SHORTFALL = 0.03
"""References whose median control accuracy is this far below the victim's are weak: the tolerance is widened."""


def accuracies(bundle: QueryBundle) -> tuple[float, ...]:
    """Accuracies of the references on the controls, where they are known."""
    return tuple(model.accuracy for model in bundle.manifest.of_role("reference") if model.accuracy is not None)


def easy_controls(bundle: QueryBundle) -> NDArray[np.bool_]:
    """Which controls the victim and most references get right, (c,)."""
    span = slice(*bundle.manifest.controls)
    right = bundle.answers["victim"].labels[span] == bundle.control_labels
    if references := references_of(bundle):
        right &= np.mean(labels_of(bundle, references)[:, span] == bundle.control_labels, axis=0) >= EASY
    return np.asarray(right)


def controls_of(bundle: QueryBundle, answers: Answers) -> Controls:
    """How a suspect fares on the controls."""
    manifest = bundle.manifest
    start, stop = manifest.controls
    if start == stop:
        return Controls()
    span = slice(start, stop)
    easy = once(easy_controls, bundle) & answers.answered[span]
    matched: NDArray[np.bool_] = answers.labels[span] == bundle.control_labels
    agreement = float(matched[easy].mean()) if easy.any() else None
    confused = [
        manifest.class_names[label] if manifest.class_names else f"class {label}"
        for label in range(manifest.victim.num_classes)
        if (mine := easy & (bundle.control_labels == label)).sum() >= FEWEST_OF_CLASS and matched[mine].mean() <= CONFUSED
    ]
    return Controls(
        n=int(easy.sum()),
        agreement=agreement,
        ok=None if easy.sum() < FEWEST_EASY or agreement is None else agreement >= SANE,
        confused=", ".join(confused),
        answered=int(answers.answered[span].sum()),
        accuracy=control_accuracy(bundle, answers),
        reference_accuracy=_on_these(bundle, answers),
        victim_accuracy=_share_right(bundle, bundle.answers["victim"], answers.answered),
    )


def _on_these(bundle: QueryBundle, answers: Answers) -> tuple[float, ...]:
    """Accuracies of the references on the controls that the suspect answered: at a look these are the easy ones first."""
    if answers.answered[slice(*bundle.manifest.controls)].all():
        return once(accuracies, bundle)
    shares = [_share_right(bundle, said, answers.answered) for said in references_of(bundle)]
    return tuple(share for share in shares if share is not None)


def _share_right(bundle: QueryBundle, said: Answers, rows: NDArray[np.bool_]) -> float | None:
    """A model's accuracy on the labelled controls among the rows; None where there are none."""
    span = slice(*bundle.manifest.controls)
    if not bundle.manifest.labelled or not rows[span].any():
        return None
    return float((said.labels[span] == bundle.control_labels)[rows[span]].mean())


def weak_references(bundle: QueryBundle) -> bool:
    """Whether the references are clearly less accurate than the victim, which makes strong innocents look close to it.

    As measured when they were trained, or on the controls.
    """
    shortfall, victim, references = bundle.manifest.shortfall, bundle.manifest.victim.accuracy, once(accuracies, bundle)
    if shortfall is not None and shortfall >= SHORTFALL / 2:
        return True
    return victim is not None and bool(references) and _quantile(references, 0.5) <= victim - SHORTFALL


def stronger(controls: Controls) -> bool:
    """Whether the suspect is more accurate than nearly all references; where most of them get as many right, it is not."""
    if controls.accuracy is None or not controls.reference_accuracy or controls.answered < FEWEST_CONTROLS:
        return False
    found = controls.reference_accuracy
    return _quantile(found, 0.5) < controls.accuracy >= _quantile(found, 0.95)


def _quantile(values: Sequence[float], share: float) -> float:
    """The value below which that share lies; plain, because NumPy's loads its masked arrays, a tenth of a small check."""
    return sorted(values)[round(share * (len(values) - 1))]
