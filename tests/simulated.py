"""The simulated models that findings are tested on, judged offline or asked as suspects."""

from __future__ import annotations

import dataclasses
from typing import Any

from onnxaudit.answers import Answers
from onnxaudit.audit.checking import CheckOptions, check
from onnxaudit.audit.judging.judging import judge
from onnxaudit.audit.progress import Silent
from onnxaudit.bundle import QueryBundle
from onnxaudit.report.model import Report
from tests.bundles import Recorded, simulated_bundle

POOL = simulated_bundle(40)
VICTIM = POOL.answers["victim"]
INNOCENT = POOL.answers["reference-039"]


def with_references(count: int, bundle: QueryBundle = POOL) -> QueryBundle:
    """The bundle with its first references only."""
    models = (bundle.manifest.victim, *bundle.manifest.of_role("reference")[:count])
    manifest = dataclasses.replace(bundle.manifest, models=models)
    return dataclasses.replace(bundle, manifest=manifest, answers={m.id: bundle.answers[m.id] for m in models}, id="f" * 64)


BUNDLE = with_references(39)


def judged(answers: Answers, bundle: QueryBundle = BUNDLE, alpha: float | None = None, **options: Any) -> Report:
    return judge(bundle, Recorded(bundle, answers).card, answers, alpha, **options)


def checked(answers: Answers, bundle: QueryBundle = BUNDLE, **options: Any) -> Report:
    return check(bundle, Recorded(bundle, answers, batch=10), CheckOptions(**options), Silent())


def replaced(answers: Answers, rows: slice, labels: Any) -> Answers:
    """Label answers with those of some rows replaced."""
    changed = answers.labels.copy()
    changed[rows] = labels
    return Answers.from_labels(changed, answers.num_classes)
