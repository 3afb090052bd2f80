"""What a scan found, summed up: for people and as JSON."""

from __future__ import annotations

import heapq
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from onnxaudit.report.findings import Line, references_needed
from onnxaudit.report.model import DERIVED, INCONCLUSIVE, NOT_SHOWN
from onnxaudit.report.text import COLOURS, RESET, table

SCHEMA = "onnxaudit.scan/1"
CLOSEST, FAILURES = 10, 20
"""Lines that a summary names at most; the output has them all."""
FAILED = "failed"
HEAD = ("suspect", "bundle", "finding", "p", "p adjusted", "score")


@dataclass(slots=True)
class Summary:
    """Counts of lines by finding, and the few worth naming. derived: all of them. left: lines of earlier tests, which count as
    tests, but are not among those counted or named here. discovered: e-values by suspect, of those that e-BH takes.
    """

    suspects: int
    bundles: tuple[dict[str, Any], ...]
    alpha: float
    output: str
    tests: int = 0
    reused: int = 0
    left: int = 0
    seconds: float = 0.0
    counts: Counter[str] = field(default_factory=Counter)
    derived: list[dict[str, Any]] = field(default_factory=list)
    closest: list[tuple[float, float, int, dict[str, Any]]] = field(default_factory=list)
    failures: list[dict[str, Any]] = field(default_factory=list)
    discovered: dict[str, float] = field(default_factory=dict)

    def add(self, line: Line) -> None:
        """Count one line."""
        finding = line["finding"] if line["status"] == "complete" else FAILED
        self.counts[finding] += 1
        about = {"source": line["suspect"]["source"], "bundle": line["bundle"]["id"]}
        if finding == FAILED:
            if len(self.failures) < FAILURES:
                self.failures.append(about | {"error": line["error"]})
            return
        if line["scan"].get("discovered"):
            self.discovered[about["source"]] = line["scan"]["e_value"]
        about |= {name: line[name] for name in ("finding", "p_value", "p_adjusted", "score")}
        if finding == DERIVED:
            self.derived.append(about)
        elif line["p_value"] is not None:
            entry = (-line["p_value"], line["score"], -sum(self.counts.values()), about)
            (heapq.heappush if len(self.closest) < CLOSEST else heapq.heappushpop)(self.closest, entry)

    @property
    def nearest(self) -> list[dict[str, Any]]:
        """The closest that are not derived, closest first."""
        return [about for *_, about in sorted(self.closest, reverse=True)]

    @property
    def exit_code(self) -> int:
        """10 if any is derived; 4 if all failed; 11 if any is inconclusive; else 0."""
        if self.counts[DERIVED]:
            return 10
        if self.counts[FAILED] and self.counts[FAILED] == sum(self.counts.values()):
            return 4
        return 11 if self.counts[INCONCLUSIVE] else 0


def summary_json(summary: Summary) -> str:
    """One JSON document."""
    value = {
        "schema": SCHEMA,
        "output": summary.output,
        "suspects": summary.suspects,
        "bundles": list(summary.bundles),
        "tests": summary.tests,
        "alpha": summary.alpha,
        "references_needed": references_needed(summary.tests, summary.alpha),
        **{name: summary.counts[name] for name in (DERIVED, NOT_SHOWN, INCONCLUSIVE, FAILED)},
        "reused": summary.reused,
        "left": summary.left,
        "derived_suspects": summary.derived,
        "discovered_suspects": summary.discovered,
        "closest": summary.nearest,
        "failures": summary.failures,
        "seconds": round(summary.seconds, 3),
    }
    return json.dumps(value, indent=1, allow_nan=False)


def summary_text(summary: Summary, *, colour: bool = False) -> str:
    """A table for a terminal: counts, the derived, the closest others, and what failed."""
    counts = [(name, str(summary.counts[name])) for name in (DERIVED, INCONCLUSIVE, NOT_SHOWN, FAILED)]
    lines = [
        f"{summary.output}: {_many(summary.suspects, 'suspect')}, {_many(len(summary.bundles), 'bundle')}, "
        f"{_many(summary.tests, 'test')} ({summary.reused} reused), {summary.seconds:.1f} s",
        "",
        table(("finding", "lines"), counts, "  "),
    ]
    if summary.left:
        lines.append(f"  {_many(summary.left, 'earlier test')} of other suspects, contents or settings: kept, and counted")
    if summary.tests > 1:
        found = ", ".join(printable(name) for name in list(summary.discovered)[:CLOSEST]) or "none"
        others = len(summary.discovered) - CLOSEST
        found += f" and {others} more" if others > 0 else ""
        lines.append(f"  with a false discovery rate of {summary.alpha:g} (e-BH): {found}")
    needed = references_needed(summary.tests, summary.alpha)
    if any(bundle["references"] < needed for bundle in summary.bundles):
        has = ", ".join(f"{bundle['id'][:8]} has {bundle['references']}" for bundle in summary.bundles)
        lines.append(f"  alpha {summary.alpha:g} among {_many(summary.tests, 'test')} needs {needed} references; {has}")
    for words, entries in (("derived", summary.derived), ("closest of the others", summary.nearest)):
        if entries:
            lines += ["", f"  {words}:", table(HEAD, [_row(entry) for entry in entries], "  ")]
    if summary.failures:
        lines += ["", "  failed:"]
        lines += [f"  {printable(entry['source'])}: {printable(entry['error'])}" for entry in summary.failures]
        more = summary.counts[FAILED] - len(summary.failures)
        lines += [f"  … and {more} more, see {summary.output}"] if more else []
    text = "\n".join(lines)
    return _coloured(text) if colour else text


def _coloured(text: str) -> str:
    for finding, colour in COLOURS.items():
        text = text.replace(f"  {finding} ", f"  {colour}{finding}{RESET} ")
    return text


def _row(entry: dict[str, Any]) -> Sequence[str]:
    p, adjusted, score = (entry[name] for name in ("p_value", "p_adjusted", "score"))
    return (printable(entry["source"]), entry["bundle"][:8], entry["finding"], f"{p:.3g}", f"{adjusted:.3g}", f"{score:.2f}")


def printable(text: str) -> str:
    """A name as a terminal may get it: what is no text, or could steer it, is replaced."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def _many(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"
