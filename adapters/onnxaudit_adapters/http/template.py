"""The dialect that a --target file describes: a body with places for the query, and paths to the answer in the reply."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from difflib import get_close_matches

from onnxaudit.answers import Answers
from onnxaudit.errors import UsageError
from onnxaudit.suspect import InputSpec, Queries
from onnxaudit_adapters.http.dialects import OneAnswerError, Reply, Request, answers_from, encode_batch
from onnxaudit_adapters.http.json_path import JsonPath
from onnxaudit_adapters.http.names import ClassNames
from onnxaudit_adapters.http.options import Address
from onnxaudit_adapters.http.payloads import base64_text, npy, png
from onnxaudit_adapters.http.rankings import answers_of, paired
from onnxaudit_adapters.http.strict_json import ReplyError, as_array, parse

PLACES = ("png_base64", "json", "npy")
BODIES = {"png": "image/png", "npy": "application/x-npy"}
_VARIABLE = re.compile(r"\$\{(\w+)\}")
_PLACE = re.compile(r"\{\{\s*([^{}]*?)\s*\}\}")


@dataclass(frozen=True, slots=True)
class Template:
    """What is sent and where the answer is.

    body: text with ``{{json}}``, ``{{png_base64}}`` or ``{{npy}}``; else body_bytes: "png" or "npy".
    scores: rows of scores. items: the ranked classes of one query, each with label and score. label alone: the label itself.
    """

    body: str = field(default="", repr=False)
    body_bytes: str = ""
    items: JsonPath | None = None
    label: JsonPath | None = None
    score: JsonPath | None = None
    scores: JsonPath | None = None

    @property
    def single(self) -> bool:
        """Whether a request can only hold one query."""
        return self.items is not None or "png" in (self.body_bytes, *self._places())

    def _places(self) -> list[str]:
        return ["png" if place == "png_base64" else place for place in _PLACE.findall(self.body)]

    def filled(self, variables: Mapping[str, str]) -> Template:
        """The template with its ${VARIABLES} in the body; in a body of JSON as the inside of a text."""
        in_json = self.body.lstrip()[:1] in ("{", "[")
        values = {name: json.dumps(value)[1:-1] if in_json else value for name, value in variables.items()}
        return replace(self, body=_VARIABLE.sub(lambda match: values.get(match[1], match[0]), self.body))

    @classmethod
    def read(cls, request: Mapping[str, str], reply: Mapping[str, str]) -> Template:
        """The template in the tables ``request`` and ``reply`` of a file. Raises UsageError where they say too little."""
        body, body_bytes = request.get("body", ""), request.get("body_bytes", "")
        if bool(body) == bool(body_bytes):
            raise UsageError(
                "[request] needs either body or body_bytes", 'As body = \'{"input": {{json}}}\' or body_bytes = "png".'
            )
        if body_bytes and body_bytes not in BODIES:
            raise UsageError(f"request.body_bytes {body_bytes[:40]!r} is not known", f"Known are {', '.join(BODIES)}.")
        places = _PLACE.findall(body)
        for place in places:
            if place not in PLACES:
                meant = get_close_matches(place, PLACES, 1)
                guess = f"Did you mean {{{{{meant[0]}}}}}? " if meant else ""
                raise UsageError(
                    f"request.body has {{{{{place[:40]}}}}}, which is not known", f"{guess}Known are {', '.join(PLACES)}."
                )
        if body and not places:
            raise UsageError("request.body has no place for the query", f"Known are {', '.join(f'{{{{{p}}}}}' for p in PLACES)}.")
        paths = {name: JsonPath.read(path, f"reply.{name}") for name, path in reply.items()}
        if set(paths) not in ({"scores"}, {"label"}, {"items", "label"}, {"items", "label", "score"}):
            raise UsageError(
                f"reply has {', '.join(sorted(paths)) or 'nothing'}, from which no answer can be read",
                "Give scores; or items with label and score, or with label; or label alone.",
            )
        if "items" in paths and not paths["items"].many:
            raise UsageError("reply.items leads to one value, not to a list", "Let it end in [*].")
        return cls(body, body_bytes, **paths)


@dataclass(frozen=True, slots=True)
class Templated:
    """The dialect of a template. one: a request holds one query, which {{json}} then gives without an axis for the queries."""

    address: Address
    template: Template
    num_classes: int | None = None
    names: ClassNames = field(default_factory=ClassNames, compare=False)
    one: bool = True
    content_type: str = ""

    @property
    def name(self) -> str:
        """The name in the file."""
        return "template"

    @property
    def first(self) -> int:
        """One query: whether a reply to several is read rightly depends on what is said to one."""
        return 1

    def encode(self, queries: Queries, spec: InputSpec) -> Request:
        """One request with the places filled in."""
        template = self.template
        if template.body_bytes:
            body = png(queries, spec) if template.body_bytes == "png" else npy(queries, spec)
        else:
            body = _PLACE.sub(lambda match: self._filling(match[1], queries, spec), template.body).encode()
        kind = self.content_type or BODIES.get(template.body_bytes) or "application/json"
        return Request(self.address, body, len(queries), {"Content-Type": kind, "Accept": "application/json"})

    def _filling(self, place: str, queries: Queries, spec: InputSpec) -> str:
        if place == "png_base64":
            return base64_text(png(queries, spec))
        if place == "npy":
            return base64_text(npy(queries, spec))
        rows = encode_batch(queries, spec).tolist()
        return json.dumps(rows[0] if self.one else rows, allow_nan=False)

    def decode(self, reply: Reply, n: int) -> Answers:
        """The answers at the template's paths. Raises ReplyError where there are not as many as queries."""
        document, template = parse(reply.body), self.template
        if template.items is not None:
            answers = self._ranked(template.items.find(document))
        elif template.scores is not None:
            values = as_array(template.scores.find(document))
            numbers = values.astype(float) if values.dtype.kind in "iu" else values
            answers = answers_from(numbers[None] if numbers.ndim == 1 else numbers, self.num_classes)
            if answers.scores is None:
                raise ReplyError(f"the reply has labels at {template.scores.text}, not scores")
        else:
            found = template.label.find(document) if template.label else None
            answers = answers_from(as_array(found if isinstance(found, list) else [found]), self.num_classes, self.names)
        if len(answers) == n:
            return answers
        kind = OneAnswerError if len(answers) == 1 else ReplyError
        raise kind(f"the reply holds {len(answers)} answers to {n} queries", "See limits.batch in the --target file.")

    def _ranked(self, items: list[object]) -> Answers:
        """Answers from the items of one query: a ranking, or the best label where no scores are given."""
        template = self.template
        if not items or template.label is None:
            raise ReplyError("the reply ranks no class at all")
        labels = [template.label.find(item) for item in items]
        if template.score is None:
            return answers_from(as_array(labels[:1]), self.num_classes, self.names)
        ranking = paired(labels, [template.score.find(item) for item in items], self.names, fewest=1)
        if ranking is None:
            raise ReplyError("the items of the reply are no labels with scores")
        return answers_of([ranking], self.num_classes)
