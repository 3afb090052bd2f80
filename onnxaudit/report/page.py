"""A report as one self-contained HTML page: no script, nothing fetched, and nothing from outside that could become markup."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import re
from collections.abc import Callable, Mapping
from functools import cache, partial
from importlib.resources import files
from types import MappingProxyType
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from onnxaudit.bundle import QueryBundle
from onnxaudit.report.drawings import Strip, strip
from onnxaudit.report.exhibits import pictures
from onnxaudit.report.model import Report
from onnxaudit.report.text import propositions, sentence
from onnxaudit.schemes.catalogue import CATALOGUE

LONGEST = 2000
"""Characters of one value that are shown; a server may answer with a book."""
HEADING = 80
"""Characters of each end of a long name that head the page."""
MOST_REFERENCES = 200
"""Of the references, the closest are listed; the JSON has all."""
SMALL = 64
"""Images no larger than this are drawn with the pixels that they have."""
TIE = 1e-9
"""A hair, as in ``evidence.calibration.p_value``."""
FORMATS: Mapping[str, Callable[[Any], str]] = MappingProxyType(
    {
        "p": lambda value: f"{value:.3g}",
        "score": lambda value: f"{value:.3f}",
        "share": lambda value: f"{value:.0%}",
        "exact": lambda value: f"{value:g}",
        "count": str,
    }
)
_UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\ud800-\udfff]")
"""Characters that are not seen, or that change how others are: control, zero width, direction, half of a pair."""


def page(report: Report, bundle: QueryBundle | None = None) -> str:
    """The page. bundle: for pictures of the queries and how each scheme works; without it both are left out."""
    style = files("onnxaudit.report").joinpath("page.css").read_text(encoding="utf-8")
    facts = _facts(report)
    order = sorted(range(len(report.references)), key=lambda i: -report.references[i].score)
    text: str = _template().render(
        report=report,
        number=partial(_number, facts),
        broken=_broken,
        heading=_heading(report.suspect["source"]),
        sentence=sentence(report),
        propositions=propositions(report),
        closer=facts["closer"],
        strips=_strips(report),
        order=order[:MOST_REFERENCES],
        papers={name: scheme.paper for name, scheme in CATALOGUE.items()},
        style=Markup(style),
        style_hash=base64.b64encode(hashlib.sha256(style.encode()).digest()).decode(),
        **_of_bundle(report, bundle),
    )
    return text


def _of_bundle(report: Report, bundle: QueryBundle | None) -> dict[str, Any]:
    """What only the bundle knows."""
    if bundle is None:
        return {"manifest": None, "pictures": {}, "size": "", "small": False}
    drawn = pictures(bundle.queries, [exhibit.row for group in report.exhibits for exhibit in group.shown])
    return {
        "manifest": bundle.manifest,
        "pictures": {row: Markup(uri) for row, uri in drawn.items()},
        "size": " x ".join(map(str, bundle.queries.shape[1:])),
        "small": max(bundle.queries.shape[1:3]) <= SMALL,
    }


def _number(facts: Mapping[str, Any], key: str, form: str = "score") -> Markup:
    """A value of the report by its path, such as schemes.0.score, with what it is exactly; a dash where it is not known."""
    value: Any = facts
    for name in key.split("."):
        value = value[int(name)] if isinstance(value, list | tuple) else value.get(name)
    if value is None:
        return Markup("&ndash;")
    shown = FORMATS[form](value)
    if float(shown.rstrip("%")) == 0:
        shown = shown.removeprefix("-")
    return Markup('<data data-key="{}" value="{}">{}</data>').format(key, repr(value), shown)


def _facts(report: Report) -> dict[str, Any]:
    """The report as plain values, and how many references are as close as the suspect."""
    closer = None
    if report.score is not None and report.margin is not None and report.references:
        closer = sum(not other.score + report.margin < report.score - TIE for other in report.references)
    return dataclasses.asdict(report) | {"closer": closer}


def _strips(report: Report) -> dict[str, Strip]:
    """The plots that this report has values for."""
    drawn = {}
    if report.score is not None and report.references:
        others = [(other.score, f"{other.id}: {other.source}, {other.score:.3f}") for other in report.references]
        band = None if report.margin is None else report.score - report.margin
        drawn["score"] = strip(others, [("suspect", report.score, f"suspect {report.score:.3f}")], band=band)
    if (line_up := report.line_up) is not None:
        others = [(share, f"sibling {i + 1}: {share:.3f}") for i, share in enumerate(line_up.siblings)]
        drawn["line_up"] = strip(others, [("suspect", line_up.victim, f"with the victim {line_up.victim:.3f}")])
    controls = report.controls
    if controls.reference_accuracy and controls.accuracy is not None:
        marks = [("suspect", controls.accuracy, f"suspect {controls.accuracy:.0%}")]
        if controls.victim_accuracy is not None:
            marks.append(("victim", controls.victim_accuracy, f"victim {controls.victim_accuracy:.0%}"))
        drawn["accuracy"] = strip([(rate, f"{rate:.1%}") for rate in controls.reference_accuracy], marks, share=True)
    return drawn


def _heading(source: str) -> Markup:
    """A name that cannot push the finding out of sight; the whole of it is among the facts."""
    return _broken(source if len(source) <= 2 * HEADING else f"{source[:HEADING]} … {source[-HEADING:]}")


def _broken(path: str) -> Markup:
    """A path that may go on in a new line after each of its parts."""
    return Markup("/<wbr>").join(str(visible(path)).split("/"))


def visible(value: object) -> object:
    """What is shown for a value: text from outside without characters that hide or turn others around, and not too much of it."""
    if not isinstance(value, str) or isinstance(value, Markup):
        return value
    cut = value if len(value) <= LONGEST else f"{value[:LONGEST]} … ({len(value)} characters)"
    return _UNSEEN.sub(lambda match: f"\\u{ord(match[0]):04x}", cut)


@cache
def _template() -> Any:
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, finalize=visible)
    return environment.from_string(files("onnxaudit.report").joinpath("page.html.jinja").read_text(encoding="utf-8"))
