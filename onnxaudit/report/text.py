"""A report as text for people, and tables that line up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from onnxaudit.report.model import DERIVED, NOT_SHOWN, ExportAgreement, LineUp, Report

COLOURS = {"derived": "\033[1;31m", "not-shown": "\033[1;32m", "inconclusive": "\033[1;33m"}
RESET = "\033[0m"


def table(head: Sequence[str], rows: Sequence[Sequence[str]], indent: str = "") -> str:
    """Columns padded to their widest cell, two spaces apart; cells that look like numbers are set right."""
    cells = [list(head), *([printable(cell) for cell in row] for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(head))]
    numeric = [all(_is_number(row[i]) for row in cells[1:]) and bool(rows) for i in range(len(head))]
    return "\n".join(
        indent
        + "  ".join(
            cell.rjust(width) if right else cell.ljust(width) for cell, width, right in zip(row, widths, numeric, strict=True)
        ).rstrip()
        for row in cells
    )


def _is_number(cell: str) -> bool:
    return cell in ("", "-") or cell.replace(".", "", 1).replace("-", "", 1).replace("%", "", 1).isdigit()


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table; columns that hold numbers are set right."""
    marks = ["---:" if rows and all(row[i][:1] in "-[0123456789" for row in rows) else "---" for i in range(len(head))]
    lines = [head, marks, *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def sentence(report: Report) -> str:
    """The finding in one sentence."""
    if report.status != "complete":
        return f"No finding: {report.error}"
    numbers = "" if report.p_value is None else f" (p = {report.p_value:.3g}, alpha {report.alpha:g})"
    if report.finding == DERIVED:
        return f"Evidence that the suspect is derived from the victim{numbers}."
    if report.finding == NOT_SHOWN:
        return f"The answers do not show that the suspect is derived from the victim{numbers}."
    return f"Inconclusive: {'; '.join(report.reasons)}."


def propositions(report: Report) -> list[str]:
    """What was weighed against what, and what the p-value means."""
    references = report.bundle["references"]
    lines = [
        "H1: the suspect was derived from the victim (copied, converted, pruned, fine-tuned, or trained on its answers).",
        "H0: it was made independently, as the references were.",
    ]
    if report.p_value is not None:
        lines.append(
            f"p = {report.p_value:.3g} bounds how often a model made as the references were comes this close or closer; "
            f"with {references} references it cannot fall below {report.p_floor:.3g}."
        )
    return lines


def scheme_rows(report: Report) -> list[tuple[str, ...]]:
    """Cells of the table of schemes."""
    return [
        (s.name, "-", "-", "-", "-", "-", str(s.queries), f"skipped: {s.skipped}")
        if s.score is None
        else (
            s.name,
            f"{s.score:.3f}",
            _number(s.reference_mean),
            _number(s.reference_max),
            _number(s.p_value),
            _number(s.p_adjusted),
            str(s.queries),
            s.access or "",
        )
        for s in report.schemes
    ]


SCHEME_HEAD = ("scheme", "score", "references' mean", "highest", "p", "p (Holm)", "queries", "access")


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def controls_words(report: Report) -> str:
    """The controls in one line."""
    c = report.controls
    if not c.n:
        return "none"
    agreement = "" if c.agreement is None else f"{c.agreement:.0%} of {c.n} easy ones right"
    if c.related is not None:
        agreement = f"labels tell {c.related:.2f} of what {c.n} show (1: all, 0: nothing)"
    verdict = {True: "ok", False: "FAILED", None: "too few to judge"}[c.ok]
    return f"{verdict}: {agreement}"


def facts(report: Report) -> list[tuple[str, str]]:
    """Name and value of the lines below the table."""
    suspect = report.suspect
    runtime = ", ".join(f"{name} {value}" for name, value in suspect.get("runtime", {}).items())
    sent = report.queries
    return [
        ("controls", controls_words(report)),
        ("suspect", f"{suspect['source']} ({suspect['kind']}, {suspect['access']}{', ' + runtime if runtime else ''})"),
        ("bundle", f"{report.bundle['id'][:16]}, {report.bundle['references']} references, statistic {report.statistic}"),
        ("queries", f"{sent['sent']} sent, {sent['reused']} reused, {sent['failed']} failed"),
        *([("looks", looks_words(report))] if report.looks else []),
        *([("line-up", line_up_words(report.line_up))] if report.line_up else []),
        *([("exports", exports_words(report.exports))] if like_an_export(report.exports) else []),
        *([("own pool", own_pool_words(report.own_pool))] if report.own_pool else []),
    ]


def looks_words(report: Report) -> str:
    """The planned looks in one line."""
    after = ", ".join(str(look.queries) for look in report.looks)
    needed = "" if report.needed is None else f"; {report.needed} were needed"
    return f"after {after} queries of the schemes{needed}"


def line_up_words(line_up: LineUp) -> str:
    """The line-up in one line."""
    closer = sum(agreement >= line_up.victim for agreement in line_up.siblings)
    place = "closer to the victim than to any" if not closer else f"as close to {closer}"
    figures = f"rank p = {line_up.p_value:.3g}, e = {line_up.e_value:.3g}; never alone the ground"
    return f"{place} of {len(line_up.siblings)} siblings ({figures})"


def like_an_export(exports: Sequence[ExportAgreement]) -> bool:
    """Whether the suspect is nearer to an export of the victim than to the victim, and as near as exports are to it."""
    if not exports:
        return False
    own, *others = exports
    nearest = max(each.suspect for each in others)
    return nearest > own.suspect and nearest >= min(each.victim for each in others)


def exports_words(exports: Sequence[ExportAgreement]) -> str:
    """What agreement quantised copies reach, beside the suspect's, in one line."""
    own, *others = exports
    reached = ", ".join(f"{each.kind} {each.victim:.0%}" for each in others)
    near = max(others, key=lambda each: each.suspect)
    return (
        f"the suspect gives the victim's label to {own.suspect:.0%} of the schemes' queries, its exports {reached}; "
        f"nearest is {near.kind}, {near.suspect:.0%}"
    )


def own_pool_words(own: Mapping[str, Any]) -> str:
    """What the bundle's own references say, in one line."""
    p = "no p" if own["p_value"] is None else f"p = {own['p_value']:.3g}"
    return f"with the bundle's own {own['references']} references: {own['finding']} ({p})"


def text(report: Report, *, colour: bool = False) -> str:
    """The report for a terminal."""
    word = f"{COLOURS[report.finding]}{report.finding}{RESET}" if colour else report.finding
    lines = [f"  {printable(sentence(report))}"]
    first = f"{printable(str(report.suspect['source']))}: {word}"
    if report.status != "complete":
        return "\n".join([first, *lines])
    lines += ["", table(SCHEME_HEAD, scheme_rows(report), "  "), ""]
    width = max(len(name) for name, _ in facts(report))
    lines += [printable(f"  {name.ljust(width)}  {value}") for name, value in facts(report)]
    lines += ["", *(printable(f"  {line}") for line in propositions(report))]
    if report.conditions:
        lines += ["  Conditions:", *(printable(f"   - {condition}") for condition in report.conditions)]
    return "\n".join([first, *lines])


def printable(text: str) -> str:
    """What a bundle, a file's name or a server says, on one line, without what would steer a terminal or turn text around."""
    return "".join(c if c.isprintable() or "\ud800" <= c <= "\udfff" else "\ufffd" for c in text)
