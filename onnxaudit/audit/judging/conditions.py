"""What is assumed with a finding, and what weakens it, in words."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from onnxaudit.audit.judging.case import Case
from onnxaudit.audit.judging.controls import stronger
from onnxaudit.audit.once import once
from onnxaudit.bundle import QueryBundle
from onnxaudit.report.model import Controls, LineUp

GIVEN = "given with the check"
"""How the origin of references begins that took the place of the bundle's own."""
UNUSUAL = 0.1
"""An alpha above it is no level at which anybody is accused elsewhere."""
OUTLIER = 0.1
"""A victim whose place among its siblings is as uncommon as this is said to be an outlier."""


def _origins(bundle: QueryBundle) -> str:
    references = bundle.manifest.of_role("reference")
    origins = sorted({model.origin.split(":")[0] for model in references})
    return f"the {len(references)} references ({'; '.join(origins)}) are like the innocent models that could be accused"


def conditions_of(case: Case, line_up: LineUp | None) -> list[str]:
    """What is assumed, and what weakens the finding, in words."""
    manifest = case.bundle.manifest
    said = [*manifest.pool_notes, *manifest.notes]
    if case.terms.references:
        said.insert(0, once(_origins, case.bundle))
    said += [*_of_accuracy(case), *_of_level(case)]
    if case.seen is not None and case.seen.futile:
        said.append(
            f"asking ended after {case.seen.queries[-1]} queries of the schemes: models that are known to be independent are as "
            "close to the victim, and more queries would hardly change that; p is given as 1"
        )
    if case.controls.confused:
        said.append(
            f"the suspect gets nearly all easy controls of {case.controls.confused} wrong: a weak model, or another label order"
        )
    if case.controls.ok is None:
        few = "too few" if np.ptp(manifest.controls) else "no"
        said.append(
            f"{few} control queries to tell a mis-wired suspect from an independent one, or one stronger than the references"
        )
    if case.label_free:
        said += _without_labels(case.bundle, case.controls)
    elif case.answers.scores is None and any(scheme.representation == "correlation" for scheme in manifest.schemes):
        said.append("label-only answers: correlations are computed on smooth labels, which costs power")
    return [*said, *_kinship(line_up, manifest.drawn)]


def _of_accuracy(case: Case) -> Iterator[str]:
    """How good the suspect and the references are on the controls, and what is allowed for it."""
    controls, tolerance = case.controls, case.terms.tolerance
    if controls.reference_accuracy and controls.victim_accuracy is not None and controls.accuracy is not None:
        low, high = min(controls.reference_accuracy), max(controls.reference_accuracy)
        yield (
            f"accuracy on the controls: suspect {controls.accuracy:.0%}, victim {controls.victim_accuracy:.0%}, "
            f"references {low:.0%} to {high:.0%}"
        )
        if stronger(controls):
            yield "the suspect is more accurate than nearly all references; scores are adjusted for it"
    if case.terms.weak:
        yield (
            "the references are weaker than the victim, so innocents may be closer to it than they are: "
            f"the tolerance is {tolerance:g} instead of {tolerance - 1:g}"
        )


def _of_level(case: Case) -> Iterator[str]:
    """What was chosen with the check, or happened in it, that p and alpha depend on."""
    made_for = case.bundle.manifest.alpha
    if case.level != made_for:
        yield f"alpha {case.level:g} was chosen with the check; the bundle was made for {made_for:g}"
    if case.level > UNUSUAL:
        yield f"alpha {case.level:g}: up to {case.level:.0%} of independent suspects are called derived at it"
    if case.times > 1:
        how = f"answers were judged {case.looks} times" if case.looks > 1 else "answers were judged"
        when = "as they came in" if case.complete else "before all were in, which may be done again with more"
        yield f"{how} {when}: p is multiplied by {case.times}"


def _without_labels(bundle: QueryBundle, controls: Controls) -> list[str]:
    """What is assumed where no labels are compared."""
    said = [
        "the suspect's label set is another one, or not known: models are compared by which queries they find alike, in one "
        "statistic of all pairs (pairs/1); no label is compared, and controls cannot be right or wrong"
    ]
    if controls.related is not None:
        said.append(
            f"the controls instead: the suspect's labels tell {controls.related:.2f} of what they show (1: all, 0: nothing)"
        )
    if any(model.origin.startswith(GIVEN) for model in bundle.manifest.of_role("reference")):
        said.append(
            "the references given with the check must be of the suspect's label set, made as it is said to have been made"
        )
    else:
        said.append(
            "the references are of the victim's own task: they bound honest models of that task under any class names; models of "
            "another task are farther from the victim, so that for a transferred suspect p is too large, not too small; give "
            "--references of its own label set to see more"
        )
    return said


def _kinship(line_up: LineUp | None, drawn: int | None) -> list[str]:
    """What is assumed of siblings."""
    if line_up is None:
        return []
    count = len(line_up.siblings)
    said = [f"no sibling ever left the house: the {count} models by the victim's recipe are known to the owner alone"]
    if line_up.drawn:
        return [f"the victim was drawn by lot (seed {drawn}) among its siblings; {count} of them are in the bundle", *said]
    odd = "an outlier among its siblings" if line_up.typical <= OUTLIER else "no outlier among its siblings"
    approximate = "the victim was not drawn by lot among its siblings, so the line-up is approximate"
    return [f"{approximate}; it is {odd} (p = {line_up.typical:.2g})", *said]
