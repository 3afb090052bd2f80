"""The learned combination: what every scheme makes of surrogates, and of references that never calibrate, decides its weight."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection

import numpy as np

from onnxaudit.answers import Access
from onnxaudit.audit.insights import insights_of
from onnxaudit.audit.judging.comparing import compare
from onnxaudit.audit.progress import Progress
from onnxaudit.bundle import QueryBundle
from onnxaudit.errors import UsageError
from onnxaudit.evidence.calibration import STATISTIC as PLAIN
from onnxaudit.evidence.calibration import Floats
from onnxaudit.evidence.learned import GRAPH, STATISTIC

FEWEST = 8
"""References that do not calibrate; among fewer than this a score cannot be standardised."""


def with_learned_weights(
    bundle: QueryBundle, surrogates: Collection[str], references: Collection[str], progress: Progress
) -> QueryBundle:
    """The bundle with a combination of its schemes that is learned from surrogates against references in training.

    surrogates, references: sources of those that show what derived and independent models score; what was extracted in pairs,
    and chose queries by its own answers, is not among them. Raises UsageError for too few of either.
    """
    from onnxaudit.craft.learning.combination import fit_combination

    training = [model.id for model in bundle.manifest.of_role("training") if model.source in references]
    derived = [model.id for model in bundle.manifest.of_role("surrogate") if model.source in surrogates]
    if len(training) < FEWEST:
        raise UsageError(
            f"a learned combination needs {FEWEST} references that do not calibrate, there are {len(training)}",
            "Give or train more references.",
        )
    levels = (Access.LABEL, Access.LOGITS)
    own = [np.array([_scores(bundle, training, name, access) for name in derived]) for access in levels]
    others = [
        np.array([_scores(bundle, [other for other in training if other != name], name, access) for name in training])
        for access in levels
    ]
    count = len(bundle.manifest.schemes)
    frozen = fit_combination(
        [table.reshape(-1, count) for table in own], others, [entry.name for entry in bundle.manifest.schemes]
    )
    assert frozen.graph is not None
    for note in frozen.notes:
        progress.note(note)
    manifest = dataclasses.replace(bundle.manifest, statistic=STATISTIC, notes=(*bundle.manifest.notes, *frozen.notes))
    return dataclasses.replace(bundle, manifest=manifest, graphs={**bundle.graphs, GRAPH: frozen.graph})


def _scores(bundle: QueryBundle, training: list[str], name: str, access: Access) -> Floats:
    """One model's standardised scores among the references in training, (schemes,); NaN where a scheme does not run."""
    models = [bundle.manifest.victim]
    models += [dataclasses.replace(model, role="reference") for model in bundle.manifest.models if model.id in training]
    manifest = dataclasses.replace(bundle.manifest, models=tuple(models), statistic=PLAIN)
    judged = dataclasses.replace(bundle, manifest=manifest)
    references = [bundle.answers[model.id] for model in manifest.of_role("reference")]
    seen = insights_of(bundle, name) if access == Access.LOGITS else {}
    found = compare(judged, references, bundle.answers[name].degrade(access), seen)
    return np.array([np.nan if scheme.standardised is None else scheme.standardised[-1] for scheme in found.schemes])
