"""dry_run(): one query to a suspect, to see what is sent, what comes back, and what a whole check would cost."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from onnxaudit.audit.checking import CheckOptions, asked_at_most
from onnxaudit.audit.insights import askable
from onnxaudit.audit.once import once
from onnxaudit.audit.running import check_judgeable
from onnxaudit.bundle import QueryBundle
from onnxaudit.sandbox.opening import opened_suspect
from onnxaudit.suspect import Suspect, SuspectCard, Target

SCHEMA = "onnxaudit.dry-run/1"
_SHOWN = 5  # classes of the answer


@dataclass(frozen=True, slots=True)
class DryRun:
    """What one query showed. exchange: request and reply in words, of suspects behind HTTP; answer: as decoded.

    victim: the class that the victim gives the same query, by name if it has one. plan: what a check would send at most.
    """

    source: str
    exchange: Mapping[str, str]
    input: str
    answer: str
    victim: str
    plan: Mapping[str, Any]

    def to_json(self) -> dict[str, Any]:
        """One document."""
        return {"schema": SCHEMA, **dataclasses.asdict(self)}


def dry_run(bundle: QueryBundle, source: str, options: CheckOptions, said: Mapping[str, Any], http: Mapping[str, Any]) -> DryRun:
    """Ask the suspect one control query and plan the rest; nothing is recorded. Raises what opening and asking raise.

    said, http: as for ``run_check``.
    """
    check_judgeable(bundle)
    classes = None if options.label_free else bundle.manifest.victim.num_classes
    target = Target(source, bundle.manifest.input, classes, options.device, options=dict(http), **said)
    start, stop = bundle.manifest.controls
    row = start if start < stop else int(once(askable, bundle).argmax())
    with opened_suspect(target, None if "://" in source else options.sandbox) as suspect:
        answers = suspect.ask(bundle.queries[row : row + 1])
        names = () if options.label_free else bundle.manifest.class_names
        scores = None if answers.scores is None else answers.scores[0]
        words = [
            _class(int(label), names) + ("" if scores is None else f" {scores[place]:.6g}")
            for place, label in enumerate(answers.classes[0][:_SHOWN])
        ]
        more = "" if answers.classes.shape[1] <= _SHOWN else f" and {answers.classes.shape[1] - _SHOWN} more"
        exchange = suspect.exchange() if hasattr(suspect, "exchange") else {}
        spent = int(getattr(suspect, "queries_sent", 1))
        return DryRun(
            suspect.card.source,
            exchange,
            _input(suspect.card),
            f"{answers.access.word}: {', '.join(words)}{more}",
            _class(int(bundle.answers["victim"].labels[row]), bundle.manifest.class_names),
            {"spent": spent, **_plan(bundle, suspect, options, http)},
        )


def _class(label: int, names: tuple[str, ...]) -> str:
    return f"{label} ({names[label]})" if 0 <= label < len(names) else str(label)


def _input(card: SuspectCard) -> str:
    """How queries become what the suspect takes."""
    spec = card.input
    affine = (
        f"pixel * {spec.scale:.6g}"
        + (f" - {list(spec.mean)}" if spec.mean else "")
        + (f", / {list(spec.std)}" if spec.std else "")
    )
    return f"{'x'.join(map(str, spec.shape))} {spec.layout} {spec.dtype}, {spec.channels}, {affine}"


def _plan(bundle: QueryBundle, suspect: Suspect, options: CheckOptions, http: Mapping[str, Any]) -> dict[str, Any]:
    """Queries and requests of a whole check at most, and the seconds that they take at the rate, None where there is none."""
    order, repeats = asked_at_most(bundle, options)
    queries = len(order) + repeats
    if options.budget is not None:
        queries = min(queries, options.budget)
    batch = suspect.card.batch or suspect.card.max_batch or queries
    rate = http.get("rate")
    seconds = math.ceil(queries / rate) if rate else None
    return {
        "queries": queries,
        "repeated": repeats,
        "batch": batch,
        "requests": math.ceil(queries / batch),
        "seconds_at_rate": seconds,
    }
