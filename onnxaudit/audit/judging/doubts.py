"""What forbids a finding."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from onnxaudit.audit.judging.case import Case
from onnxaudit.audit.judging.controls import stronger
from onnxaudit.audit.judging.label_free import other_task
from onnxaudit.audit.judging.strength import too_weak


def doubts_of(case: Case, *, stable: bool, complete: bool) -> list[str]:
    """Everything that forbids a finding, in words. stable: queries asked twice got the same labels. complete: all were asked."""
    doubts = [*_of_statistics(case), *_of_controls(case, complete=complete), *_of_answers(case, stable=stable)]
    if case.label_free:
        doubts += other_task(case.bundle, case.terms.references, case.answers, case.level)
    elif not case.terms.siblings and (case.p is None or case.p <= case.level):  # siblings are as good as the victim
        doubts += too_weak(case.bundle, case.terms.references, case.answers)
    return doubts


def _of_statistics(case: Case) -> Iterator[str]:
    references, siblings, floor = len(case.terms.references), case.terms.siblings, case.floor
    if floor > case.level + 1e-12:
        short = siblings if 0 < siblings < references else references
        needed = int(np.ceil(case.times / case.level - 1e-9)) - 1
        has = f"{short} {'siblings' if short != references else 'references'}" if short else "no references"
        said = "" if case.times == 1 else f" at look {case.looks}{'' if case.complete else ', before all was asked'}"
        yield f"{has}{said}: p cannot fall below {floor:.3g}, alpha {case.level:g} needs at least {needed}"
    if case.comparison.statistics is None:
        yield "no scheme could run: " + "; ".join(f"{s.name}: {s.skipped}" for s in case.comparison.schemes)


def _of_controls(case: Case, *, complete: bool) -> Iterator[str]:
    controls = case.controls
    if controls.ok is False and controls.related is not None:
        yield (
            "the suspect's labels tell nothing of what the control queries show: wrong preprocessing, or a task that has nothing "
            "to do with the victim's"
        )
    elif controls.ok is False:
        yield (
            f"the suspect gets {controls.agreement:.0%} of {controls.n} easy controls right: "
            "wrong preprocessing or label order, or another task"
        )
    if case.label_free and controls.ok is None:
        if case.seen is None or not case.seen.futile:  # that accuses nobody
            yield "too few control queries were answered to see what the suspect's labels tell of them"
    elif controls.ok is None and np.ptp(case.bundle.manifest.controls) and not complete:
        yield "the budget was spent before enough control queries were answered"


def _of_answers(case: Case, *, stable: bool) -> Iterator[str]:
    if not case.comparison.adjusted and stronger(case.controls):
        yield "the suspect is more accurate than nearly all references, too few to adjust the scores for it"
    if not stable:
        yield "the suspect gives different labels to queries that it answered before, or could not be asked again"
    given = case.answers.labels[case.answers.answered]
    if len(given) and given.min() == given.max():
        yield "the suspect gives the same label to every query"
