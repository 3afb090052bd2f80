"""The report of a check: the contract that others read (schema onnxaudit.report/1)."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from onnxaudit.decode import canonical
from onnxaudit.report.exhibits import ExhibitGroup

SCHEMA = "onnxaudit.report/1"
DERIVED, NOT_SHOWN, INCONCLUSIVE = "derived", "not-shown", "inconclusive"
EXIT_CODES: Mapping[str, int] = {NOT_SHOWN: 0, DERIVED: 10, INCONCLUSIVE: 11}


@dataclass(frozen=True, slots=True, eq=False)
class SchemeResult:
    """One scheme's part. score: larger is closer; skipped: why it did not run.

    reference_mean, reference_max: scores of the references on the same queries.
    """

    name: str
    score: float | None = None
    p_value: float | None = None
    p_adjusted: float | None = None
    queries: int = 0
    access: str | None = None
    skipped: str | None = None
    reference_mean: float | None = None
    reference_max: float | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Controls:
    """The control queries. agreement: on those that victim and references find easy; accuracy: on all, where labelled.

    confused: classes whose easy controls are nearly all wrong, in words. answered: of all controls. related: where labels cannot
    be compared, how much the suspect's tell of what the controls show, 0 to 1; all but n, answered and ok are then unknown.
    """

    n: int = 0
    agreement: float | None = None
    ok: bool | None = None
    accuracy: float | None = None
    reference_accuracy: tuple[float, ...] = ()
    victim_accuracy: float | None = None
    confused: str = ""
    answered: int = 0
    related: float | None = None


@dataclass(frozen=True, slots=True, eq=False)
class ReferenceScore:
    """Where one reference falls. score: its combined statistic, comparable with the suspect's ``Report.score``."""

    id: str
    source: str
    score: float
    accuracy: float | None = None
    origin: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class ExportAgreement:
    """The victim as it is, or in half precision or INT8, on the schemes' queries. victim, suspect: shares of the same label.

    origin: what made and ran it. A quantised copy of the victim agrees with the victim as these do, and more with one of them.
    """

    kind: str
    victim: float
    suspect: float
    origin: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class LineUp:
    """How much closer the suspect is to the victim, and to each of its siblings, than the references are on average.

    p_value: the victim's rank among all of them, exact only over the draw of the victim. e_value: likewise. drawn: whether the
    victim was drawn at random among its siblings. typical: how ordinary the victim is among its siblings, as a p-value; small:
    an outlier, and the line-up says little. among_siblings: the rank of the suspect's statistic among those of the siblings,
    each as if it were the suspect, as a p-value: small only if the suspect is closer than honest twins are.
    """

    victim: float
    siblings: tuple[float, ...]
    p_value: float
    e_value: float
    drawn: bool
    typical: float
    among_siblings: float = 1.0


@dataclass(frozen=True, slots=True, eq=False)
class Look:
    """One look at the answers while they come in. queries: of the schemes, answered so far. closer: references as close.

    closer and p_value are None where nothing was decided at this look: no scheme could run, or p was known before.
    """

    queries: int
    score: float | None
    closer: int | None
    p_value: float | None


@dataclass(frozen=True, slots=True, eq=False)
class Report:
    """Everything a check found. p_exchangeable: the p-value without tolerance, for comparison. conditions: what is assumed.

    references: empty in a line of a scan. looks: where answers were judged as they came in; needed: queries at the look that
    decided. own_pool: finding, p and floor with the bundle's own references, where others were given with the check.
    wiring: what --autofix found, and by what controls; exports: the suspect beside the victim's own, the victim itself first;
    without them, no keys of the JSON.
    margin: the tolerance in units of score: a reference counts as close as the suspect if its score + margin >= score.
    exhibits: single queries, for pages that people read; not in the JSON, which the bundle and the transcript complete.
    """

    finding: str
    p_value: float | None
    p_floor: float
    alpha: float
    score: float | None
    reasons: tuple[str, ...]
    bundle: Mapping[str, Any]
    suspect: Mapping[str, Any]
    controls: Controls
    schemes: tuple[SchemeResult, ...]
    queries: Mapping[str, int]
    seconds: Mapping[str, float]
    status: str = "complete"
    error: str | None = None
    statistic: str = ""
    tolerance: float = 0.0
    p_exchangeable: float | None = None
    conditions: tuple[str, ...] = ()
    references: tuple[ReferenceScore, ...] = ()
    line_up: LineUp | None = None
    exports: tuple[ExportAgreement, ...] = ()
    looks: tuple[Look, ...] = ()
    needed: int | None = None
    own_pool: Mapping[str, Any] | None = None
    wiring: Mapping[str, Any] | None = None
    margin: float | None = None
    exhibits: tuple[ExhibitGroup, ...] = ()
    tool: str = ""
    transcript_sha256: str | None = None
    code: int | None = None
    schema: str = field(default=SCHEMA)

    @property
    def exit_code(self) -> int:
        """0 not shown, 10 derived, 11 inconclusive; of a run that failed, the error's."""
        return EXIT_CODES[self.finding] if self.code is None else self.code

    def to_json(self) -> str:
        """One JSON document, keys in the order of the contract, sealed; no NaN."""
        value = dataclasses.asdict(dataclasses.replace(self, exhibits=()))
        del value["code"], value["exhibits"]
        for name in ("wiring", "exports"):
            if not value[name]:
                del value[name]
        first = ("schema", "status", "finding", "p_value", "p_floor", "alpha", "score", "reasons")
        ordered = {name: value[name] for name in (*first, *(name for name in value if name not in first))}
        return written({**ordered, "digest": seal(ordered)})


def seal(report: Mapping[str, Any]) -> str:
    """The digest of a report as JSON values, without its own: any change of what it says shows."""
    content = {name: value for name, value in report.items() if name != "digest"}
    return hashlib.sha256(canonical(content).encode("utf-8", "surrogatepass")).hexdigest()


def written(report: Mapping[str, Any]) -> str:
    """A report, as JSON values, as it is written: there is one way to write each.

    Names of files may have bytes that are no text, which UTF-8 cannot say: these become escapes of JSON.
    """
    return json.dumps(report, indent=1, ensure_ascii=False, allow_nan=False).encode("utf-8", "backslashreplace").decode()
