"""From what a user writes to schemes: names of the catalogue, or parts, with parameters.

akh                                    a published scheme
sac-m:box=corner,flip=transpose        the same with parameters
negative+correlation+l1                a composition: queries + representation + detector
boundary:k=5+topk:k=3+hamming          the same with parameters of its parts
"""

from __future__ import annotations

import inspect
import math
import pkgutil
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from onnxaudit.errors import UsageError
from onnxaudit.schemes.catalogue import ALIASES, CATALOGUE, RESERVED, Scheme, with_parameters
from onnxaudit.schemes.detectors import DETECTORS, Detector
from onnxaudit.schemes.representations import REPRESENTATIONS, Representation
from onnxaudit.schemes.samplers import SAMPLERS, Sampler


def schemes(text: str) -> list[Scheme]:
    """What one ``--scheme`` names; an alias may stand for several. Raises UsageError, saying what there is.

    Spaces around names, signs and values do not count.
    """
    text = re.sub(r"\s*([+:,=])\s*", r"\1", text.strip())
    return [_composition(text)] if "+" in text else _named(text)


def problem(sampler: str, representation: str, detector: str) -> str | None:
    """Why three parts do not make a scheme, in words; None if they do."""
    queries, compared, by = SAMPLERS[sampler], REPRESENTATIONS[representation], DETECTORS[detector]
    if missing := compared.columns - queries.columns:
        return f"{representation} needs queries that come with their {', '.join(sorted(missing))}; {sampler} has none"
    if compared.kind not in by.kinds or (by.representations and representation not in by.representations):
        return f"{detector} does not compare {representation}"
    return None


def compositions() -> Iterator[Scheme]:
    """Every valid composition that learns nothing and compares answers, with default parameters, in the order of the tables."""
    for sampler in SAMPLERS:
        for representation, compared in REPRESENTATIONS.items():
            for detector, by in DETECTORS.items():
                plain = not by.trainer and not compared.inside and detector != "hamming"  # another name for matching-rate
                if plain and problem(sampler, representation, detector) is None:
                    name = f"{sampler}+{representation}+{detector}"
                    yield Scheme(name, "composition", sampler, representation, detector)


def parameters_of(part: Sampler | Representation | Detector) -> dict[str, Any]:
    """Names and defaults of a part's parameters that a user may give; those of a learned detector are its trainer's."""
    if isinstance(part, Sampler):
        return keywords(pkgutil.resolve_name(part.source))
    if isinstance(part, Detector) and part.trainer:
        return keywords(pkgutil.resolve_name(part.trainer))
    return keywords(part.function)


def keywords(function: Callable[..., Any]) -> dict[str, Any]:
    """The keyword-only parameters of a function that have defaults."""
    found = inspect.signature(function).parameters.values()
    return {p.name: p.default for p in found if p.kind is p.KEYWORD_ONLY and p.default is not p.empty}


def _named(text: str) -> list[Scheme]:
    name, given = parsed(text)
    if name in RESERVED:
        raise UsageError(f"there is no scheme {name!r}: {RESERVED[name]}")
    names = ALIASES.get(name, (name,))
    if any(each not in CATALOGUE for each in names):
        raise UsageError(
            f"there is no scheme {name!r}",
            f"Choose from: {', '.join([*CATALOGUE, *ALIASES])}; or compose one: queries+representation+detector.",
        )
    return [_with(CATALOGUE[each], given, text) for each in names]


def _with(scheme: Scheme, given: dict[str, Any], text: str) -> Scheme:
    """The scheme with parameters, each given to the part that knows it; what neither R nor D knows is the sampler's."""
    if not given:
        return scheme
    representing = {k: v for k, v in given.items() if k in parameters_of(REPRESENTATIONS[scheme.representation])}
    rest = {k: v for k, v in given.items() if k not in representing}
    detecting = {k: v for k, v in rest.items() if k in parameters_of(DETECTORS[scheme.detector])}
    sampling = {k: v for k, v in rest.items() if k not in detecting}
    return _checked(with_parameters(scheme, text, sampling=sampling, representing=representing, detecting=detecting))


def _composition(text: str) -> Scheme:
    parts = [parsed(part) for part in text.split("+")]
    if len(parts) != 3:
        raise UsageError(f"{text!r} is not queries+representation+detector", "For example negative+correlation+l1.")
    tables = (("queries", SAMPLERS), ("representation", REPRESENTATIONS), ("detector", DETECTORS))
    for (name, _), (what, table) in zip(parts, tables, strict=True):
        if name not in table:
            raise UsageError(f"{text!r}: there is no {what} {name!r}", f"Choose from: {', '.join(table)}.")
    (sampler, sampling), (representation, representing), (detector, detecting) = parts
    if (why := problem(sampler, representation, detector)) is not None:
        raise UsageError(f"{text!r} is not a scheme: {why}", "Name other parts.")
    return _checked(Scheme(text, "composition", sampler, representation, detector, sampling, representing, detecting))


def _checked(scheme: Scheme) -> Scheme:
    """The scheme, if its parts have the parameters that it gives them."""
    if scheme.sampling:
        check_known(scheme.sampler, scheme.sampling, parameters_of(SAMPLERS[scheme.sampler]))
    if scheme.representing:
        check_known(scheme.representation, scheme.representing, parameters_of(REPRESENTATIONS[scheme.representation]))
    if scheme.detecting:
        check_known(scheme.detector, scheme.detecting, parameters_of(DETECTORS[scheme.detector]))
    return scheme


def check_known(name: str, given: Mapping[str, Any], known: Mapping[str, Any]) -> None:
    """Raise UsageError for a parameter that a part does not have, or a value of another type than its default.

    A float may be written as a whole number, and must be finite. What has no default, None, is a number.
    """
    for key, value in given.items():
        if key not in known:
            raise UsageError(f"{name} has no parameter {key!r}", f"It has: {', '.join(known) or 'none'}.")
        if not _alike(value, known[key]):
            raise UsageError(f"{name}: {key} must be {_kind(known[key])}, not {value!r}")


def _alike(value: Any, default: Any) -> bool:
    if default is None or type(default) is float:
        return type(value) in (int, float) and math.isfinite(value)
    return type(value) is type(default)


def _kind(default: Any) -> str:
    """What a parameter with this default takes, in words."""
    kinds = {type(None): "a finite number", float: f"a finite number, as {default}", int: f"a whole number, as {default}"}
    return kinds.get(type(default)) or ("true or false" if isinstance(default, bool) else f"a word, as {default!r}")


def parsed(text: str) -> tuple[str, dict[str, Any]]:
    """``name:key=value,key=value`` as a name and its parameters."""
    name, separator, rest = text.partition(":")
    pairs = [item.partition("=") for item in rest.split(",")] if separator else []
    if any(not key or not equals for key, equals, _ in pairs):
        raise UsageError(f"{text!r}: parameters are given as name:key=value,key=value")
    return name, {key: _value(value) for key, _, value in pairs}


def _value(text: str) -> int | float | bool | str:
    if text in ("true", "false"):
        return text == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
