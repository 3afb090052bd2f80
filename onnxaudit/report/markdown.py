"""A report as Markdown: the same parts as the page, without pictures. What comes from outside can be no markup."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from onnxaudit.report.model import Report
from onnxaudit.report.text import SCHEME_HEAD, facts, markdown_table, propositions, scheme_rows, sentence

_MARKUP = re.compile(r"([\\`*\[\]<>#|])")


def markdown(report: Report) -> str:
    """The whole report; sections of what it does not have are left out."""
    parts = [f"# {plain(report.suspect['source'])}: {report.finding}", plain(sentence(report))]
    if report.status != "complete":
        parts.append(_list([f"status: {report.status}"]))
    if len(report.reasons) > 1:
        parts += ["## Why there is no finding", _list(report.reasons)]
    parts += ["## What was weighed", _list(propositions(report))]
    if report.own_pool is not None:
        parts += ["## Two pools of references", _pools(report)]
    if report.schemes:
        parts += ["## Schemes", _table(SCHEME_HEAD, scheme_rows(report))]
    if report.line_up is not None:
        parts += ["## Line-up", *_line_up(report)]
    if report.looks:
        parts += ["## Looks", *_looks(report)]
    if report.conditions:
        parts += ["## Conditions", _list(report.conditions)]
    if report.exhibits:
        parts += ["## Queries", _queries(report)]
    parts += ["## Facts of the run", _list([f"{name}: {value}" for name, value in [*facts(report), *_digests(report)]])]
    if report.references:
        parts += ["## References", _references(report)]
    return "\n\n".join(parts) + "\n"


def plain(text: str) -> str:
    """Text in which nothing is markup, on one line."""
    return _MARKUP.sub(r"\\\1", " ".join(text.split()))


def _list(lines: Sequence[str]) -> str:
    return "\n".join(f"- {plain(line)}" for line in lines)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Cells as they are; ``markdown_table`` takes care of bars itself."""
    return markdown_table(head, [[plain(cell).replace("\\|", "|") for cell in row] for row in rows])


def _number(value: float | None, form: str = ".3f") -> str:
    return "-" if value is None else format(value, form)


def _pools(report: Report) -> str:
    own = report.own_pool or {}
    given: Mapping[str, Any] = {
        "references": report.bundle["references"],
        "finding": report.finding,
        "p_value": report.p_value,
        "p_floor": report.p_floor,
    }
    rows = [
        (
            name,
            str(pool.get("references", "-")),
            pool["finding"],
            _number(pool["p_value"], ".3g"),
            _number(pool["p_floor"], ".3g"),
        )
        for name, pool in (("given with the check", given), ("the bundle's own", own))
    ]
    return _table(("references", "models", "finding", "p", "lowest p possible"), rows)


def _line_up(report: Report) -> list[str]:
    line_up = report.line_up
    assert line_up is not None
    rows = [("the victim", _number(line_up.victim))]
    rows += [(f"sibling {i + 1}", _number(share)) for i, share in enumerate(line_up.siblings)]
    drawn = "drawn at random among its siblings" if line_up.drawn else "not drawn at random among its siblings: approximate"
    words = (
        f"Rank of the victim among all: p = {line_up.p_value:.3g}, e = {line_up.e_value:.3g}. The victim was {drawn}. "
        f"How ordinary it is among them: p = {line_up.typical:.3g}. Never alone the ground of a finding."
    )
    return [_table(("model", "closer than references"), rows), words]


def _looks(report: Report) -> list[str]:
    rows = [
        (
            str(look.queries),
            _number(look.score),
            str(look.closer),
            _number(look.p_value, ".3g"),
            "decided" * (look.queries == report.needed),
        )
        for look in report.looks
    ]
    return [_table(("queries", "score", "references as close", "p", ""), rows)]


def _queries(report: Report) -> str:
    rows = [
        (
            ", ".join(group.names) or "controls",
            str(group.total),
            str(group.answered),
            str(group.agreed),
            *(_number(share, ".0%") for share in (group.reference_mean, group.reference_lowest, group.reference_highest)),
        )
        for group in report.exhibits
    ]
    return _table(("queries of", "all", "answered", "as expected", "references' mean", "lowest", "highest"), rows)


def _digests(report: Report) -> list[tuple[str, str]]:
    """Further facts, by name; those that are not known are left out."""
    known = {
        "alpha": f"{report.alpha:g}",
        "lowest p possible": f"{report.p_floor:.3g}",
        "score": report.score and f"{report.score:.3f}",
        "tolerance": report.margin and f"{report.tolerance:g} sd, {report.margin:.3f} in units of the score",
        "p without tolerance": report.p_exchangeable and f"{report.p_exchangeable:.3g}",
        "queries needed": report.needed and str(report.needed),
        "seconds": ", ".join(f"{step} {seconds:g}" for step, seconds in report.seconds.items()),
        "input": ", ".join(f"{name} {value}" for name, value in report.suspect.get("input", {}).items()),
        "bundle": report.bundle["id"],
        "victim's file": report.bundle["victim_sha256"],
        "references' files": report.bundle.get("pool_sha256"),
        "suspect's file": report.suspect["sha256"],
        "transcript": report.transcript_sha256,
        "checked by": f"onnxaudit {report.tool}",
    }
    return [(name, value) for name, value in known.items() if value]


def _references(report: Report) -> str:
    closest = sorted(report.references, key=lambda other: -other.score)
    rows = [(other.source, other.origin, _number(other.accuracy, ".0%"), _number(other.score)) for other in closest]
    return _table(("model", "origin", "accuracy", "score"), rows)
