"""JSON and frozen dataclasses: canonical text out, strict and bounded reading in."""

from __future__ import annotations

import dataclasses
import functools
import json
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

from onnxaudit.errors import ArtefactError

T = TypeVar("T")
LONGEST = 60
"""Characters of a stranger's text that a message quotes."""


def canonical(value: object) -> str:
    """JSON with sorted keys and no spaces; dataclasses become objects. Raises ValueError for NaN and infinity."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False, default=_plain)


def _plain(value: object) -> object:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"{type(value).__name__} has no JSON form")


def parse(text: str | bytes, where: str) -> Any:
    """Parsed JSON, without NaN or infinity. Raises ArtefactError naming ``where``."""
    try:
        return json.loads(text, parse_constant=_no_constant, parse_float=_finite)
    except (ValueError, RecursionError) as error:
        why = "it is no text" if isinstance(error, UnicodeDecodeError) else error
        raise ArtefactError(f"{where} is not valid JSON: {why}", "It is damaged, or another file is meant.") from None


def _finite(text: str) -> float:
    value = float(text)
    if value in (float("inf"), float("-inf")):
        raise ValueError(f"{text[:LONGEST]} is too large a number")
    return value


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not a number")


def decode(kind: type[T], value: Any, where: str) -> T:
    """``value``, parsed JSON, as ``kind``: a dataclass, tuple, mapping, union or scalar, every field of the right type.

    Raises ArtefactError that names the place for missing, unknown or ill-typed fields.
    """
    result: T = _decode(kind, value, where)
    return result


def _decode(kind: Any, value: Any, where: str) -> Any:
    origin = typing.get_origin(kind)
    arguments = typing.get_args(kind)
    if kind is Any or kind is object:
        return value
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        return _decode(next(a for a in arguments if a is not type(None)), value, where)
    if dataclasses.is_dataclass(kind):
        return _decode_dataclass(kind, value, where)
    if origin is tuple:
        if not isinstance(value, list) or (arguments[-1] is not Ellipsis and len(arguments) != len(value)):
            raise _wrong(where, "a list" if arguments[-1] is Ellipsis else f"a list of {len(arguments)}", value)
        inner = [arguments[0]] * len(value) if arguments[-1] is Ellipsis else list(arguments)
        return tuple(_decode(a, v, f"{where}[{i}]") for i, (a, v) in enumerate(zip(inner, value, strict=True)))
    if origin is not None and issubclass(origin, Mapping):
        if not isinstance(value, dict):
            raise _wrong(where, "an object", value)
        return {key: _decode(arguments[1], item, f"{where}.{key}") for key, item in value.items()}
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        if abs(value) > 2**53:
            raise ArtefactError(f"{where} is too large a number")
        return float(value)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise _wrong(where, kind.__name__, value)
    return value


def _decode_dataclass(kind: Any, value: Any, where: str) -> Any:
    if not isinstance(value, dict):
        raise _wrong(where, "an object", value)
    fields, hints = _fields(kind)
    for name in value:
        if name not in fields:
            import difflib  # only ever needed for this message

            close = difflib.get_close_matches(name[:LONGEST], fields, 1)
            raise ArtefactError(
                f"{where} has an unknown field {name[:LONGEST]!r}" + (f", did you mean {close[0]!r}?" if close else "")
            )
    for name, field in fields.items():
        if name not in value and field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise ArtefactError(f"{where} lacks the field {name!r}")
    return kind(**{name: _decode(hints[name], item, f"{where}.{name}") for name, item in value.items()})


@functools.cache
def _fields(kind: Any) -> tuple[dict[str, dataclasses.Field[Any]], dict[str, Any]]:
    """Fields and resolved types of a dataclass; resolving them is slow, and a bundle has the same ones many times."""
    return {field.name: field for field in dataclasses.fields(kind)}, typing.get_type_hints(kind)


def _wrong(where: str, wanted: str, value: object) -> ArtefactError:
    return ArtefactError(f"{where} must be {wanted}, not {type(value).__name__}")
