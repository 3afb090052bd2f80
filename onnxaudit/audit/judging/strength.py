"""Whether the references are as good as the suspect: how close to the victim a better model comes, they do not show."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from onnxaudit.answers import Answers
from onnxaudit.audit.judging.comparing import FEWEST_CONTROLS, labels_of, references_of
from onnxaudit.audit.once import once
from onnxaudit.bundle import QueryBundle
from onnxaudit.evidence.calibration import mean_agreement

FEWEST = 10
"""In a bundle of fewer controls nothing of this can be seen."""
LIKE = 0.05
"""A reference that agrees with the others on the controls less often than a model does by more than this is weaker than it."""
RIGHT = 0.1
"""So is one that gets less of the controls right than it by more than this."""
FAMILY = 0.05
"""References that agree with each other more often than the victim does with them, by more than this, may be of one family."""
ONE_FAMILY = (
    "the references agree with each other on the controls far more often than the victim with them: they are much better than "
    "it, or weak models of one family, which unlabelled controls do not tell apart"
)


def too_weak(bundle: QueryBundle, references: Sequence[Answers], answers: Answers) -> list[str]:
    """Why the references cannot show what an innocent as good as the suspect answers, if most of them are weaker than it.

    How good a model is shows without labels and without the victim: in how often it agrees with all others. The adjustment for it
    is a line through the references, and nobody knows how it goes on beyond them. Before enough controls are answered it counts
    whether the victim is beyond them.
    """
    start, stop = bundle.manifest.controls
    rows = np.arange(start, stop)[answers.answered[start:stop]]
    if stop - start < FEWEST or not references:
        return []
    if once(of_one_family, bundle):
        return [ONE_FAMILY]
    if len(rows) < min(FEWEST_CONTROLS, stop - start):
        if once(_victim_is_beyond, bundle):
            return ["too few control queries were answered to see whether the references are as good as the suspect"]
        return []
    like = _as_good(bundle, references, answers.labels, rows)
    if 2 * like >= len(references):
        return []
    return [
        f"only {like} of {len(references)} references are nearly as good as the suspect on the controls; the rest are too weak "
        "to show how close to the victim an innocent as good as it is: give better ones with --references"
    ]


def of_one_family(bundle: QueryBundle) -> bool:
    """Whether the references may be weak all the same, because they agree with each other, where no labels tell."""
    start, stop = bundle.manifest.controls
    if bundle.manifest.labelled or stop - start < FEWEST or len(references := references_of(bundle)) < 2:
        return False
    rows = np.arange(start, stop)
    found = mean_agreement(np.concatenate([labels_of(bundle, references)[:, rows], bundle.answers["victim"].labels[None, rows]]))
    return bool(np.median(found[:-1]) > found[-1] + FAMILY)


def _victim_is_beyond(bundle: QueryBundle) -> bool:
    """Whether most of the references are weaker than the victim."""
    references = references_of(bundle)
    rows = np.arange(*bundle.manifest.controls)
    return 2 * _as_good(bundle, references, bundle.answers["victim"].labels, rows) < len(references)


def _as_good(bundle: QueryBundle, references: Sequence[Answers], labels: NDArray[np.int32], rows: NDArray[np.int64]) -> int:
    """How many of the references agree with the others, and are right where that is known, about as often as a model."""
    models = np.concatenate([labels_of(bundle, references)[:, rows], labels[None, rows]])
    agreement = mean_agreement(models)
    good = agreement[:-1] >= agreement[-1] - LIKE
    if bundle.manifest.labelled:  # those of one weak family agree too
        right = (models == bundle.control_labels[rows - bundle.manifest.controls[0]]).mean(axis=1)
        good &= right[:-1] >= right[-1] - RIGHT
    return int(good.sum())
