"""What is in a bundle, in words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from types import MappingProxyType

import numpy as np

from onnxaudit.bundle import ModelEntry, QueryBundle, SchemeEntry
from onnxaudit.evidence.calibration import p_floor
from onnxaudit.report.text import printable, table
from onnxaudit.suspect import InputSpec

OTHERS: Mapping[str, str] = MappingProxyType({"training": "helpers", "sibling": "siblings", "surrogate": "surrogates"})
"""Roles of models that do not calibrate, as they are called in the list."""


def contents(bundle: QueryBundle) -> str:
    """Victim, queries, schemes with every parameter, calibration pool, notes and digest, as text."""
    manifest = bundle.manifest
    victim = manifest.victim
    size = "x".join(map(str, bundle.queries.shape[1:]))
    kind = "8-bit images" if bundle.queries.ndim == 4 else "float vectors"
    start, stop = manifest.controls
    accuracy = "" if victim.accuracy is None else f", {victim.accuracy:.0%} of the controls right"
    schemes = table(
        ("scheme", "queries", "sampler", "representation", "detector", "parameters"),
        [
            (
                s.name,
                str(s.rows[1] - s.rows[0]),
                s.sampler,
                s.representation,
                s.detector,
                _words(s),
            )
            for s in manifest.schemes
        ],
        "  ",
    )
    lines = [
        f"  bundle     format {manifest.format}, made by onnxaudit {manifest.tool}, seed {manifest.seed}, id {bundle.id}",
        f"  victim     {victim.source} ({victim.kind}, {victim.num_classes} classes, {victim.access}{accuracy})",
        f"             sha256 {victim.sha256}",
        f"  input      {_input(manifest.input)}",
        f"  queries    {len(bundle.queries)} {kind} of {size}",
        f"  controls   {stop - start} natural inputs, " + ("labelled" if manifest.labelled else "with the victim's own labels"),
        f"  statistic  {manifest.statistic}, alpha {manifest.alpha:g}",
        "",
        "",
        *_pool(manifest.of_role("reference")),
    ]
    lines += [f"  export     {model.origin}" for model in manifest.of_role("export")]
    for role, words in OTHERS.items():
        if models := manifest.of_role(role):
            lines.append(f"  {words:<10} {len(models)}")
    notes = [*manifest.notes, *(f"{s.name}: {note}" for s in manifest.schemes for note in s.notes)]
    lines += [f"  note       {note}" for note in notes]
    return "\n".join([*map(printable, lines[:8]), schemes, *map(printable, lines[8:])])


def _pool(references: tuple[ModelEntry, ...]) -> list[str]:
    """What the references are: how many, from where, how good, and the floor of p that follows."""
    if not references:
        return ["  references none: check can only say inconclusive. Add some with: onnxaudit calibrate MODEL..."]
    lines = [f"  references {len(references)}: p can fall to {p_floor(len(references)):.3g}"]
    for origin, count in Counter(model.origin.split(":")[0] for model in references).items():
        lines.append(f"             {count} {origin}")
    known = [model.accuracy for model in references if model.accuracy is not None]
    if known:
        low, middle, high = np.quantile(known, [0, 0.5, 1])
        lines.append(f"             {low:.0%} to {high:.0%} of the controls right, median {middle:.0%}")
    least = Counter(model.access for model in references)
    lines.append("             access: " + ", ".join(f"{count} {access}" for access, count in sorted(least.items())))
    return lines


def _input(spec: InputSpec) -> str:
    scaling = f"(pixel * {spec.scale:.6g}" + (f" - {list(spec.mean)}" if spec.mean else "") + ")"
    scaling += f" / {list(spec.std)}" if spec.std else ""
    return f"{'x'.join(map(str, spec.shape))}, {spec.layout}, {spec.dtype}" + (
        "" if len(spec.shape) == 1 else f", {scaling}, {spec.channels}"
    )


def _words(scheme: SchemeEntry) -> str:
    parameters = {**scheme.sampling, **scheme.representing, **scheme.detecting}
    return ", ".join(f"{name}={value}" for name, value in sorted(parameters.items()))
