"""target.toml: what a user says of an HTTP suspect, in a file. Read with the standard library; nothing in it is run."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from onnxaudit.errors import ArtefactError, UsageError
from onnxaudit.regular import open_regular
from onnxaudit_adapters.http.options import BOUNDS, DIALECTS, checked_headers, within_bounds
from onnxaudit_adapters.http.template import Template

_MAX_BYTES = 2**16
_MAX_LINE = 4096
"""Bytes: the standard library takes time by the square of the parts of a dotted key."""
_KEYS = {
    "": (
        "url",
        "dialect",
        "labels",
        "input",
        "reply",
        "limits",
        "request",
        "input_name",
        "output_name",
        "ca_bundle",
        "client_cert",
    ),
    "input": ("shape", "layout", "dtype", "scale", "mean", "std", "channels"),
    "reply": ("items", "label", "score", "scores"),
    "limits": ("batch", "rate", "budget", "timeout", "concurrency"),
    "request": ("headers", "body", "body_bytes"),
}
_LARGEST = 1e30
"""Of the numbers that describe an input: what models take has 32 bits."""
_VARIABLE = re.compile(r"\$\{(\w+)\}")
_PERIODS = {"s": 1, "min": 60, "h": 3600}
_RATE = re.compile(r"(\d+(?:\.\d+)?)\s*/\s*(s|min|h)\Z")


def read_target_file(path: Path, environ: Mapping[str, str]) -> dict[str, Any]:
    """``url``; ``input``: what it says of the input, by the fields of Target; ``http``: options of the HTTP adapter; ``private``:
    whether it names classes and does not say which.

    Raises UsageError for an unknown key (with the one that may be meant), a value of the wrong kind, and a ${VARIABLE} that is
    not set; ArtefactError where the file is no TOML.
    """
    document = _load(path)
    _known(document, "", path)
    variables: dict[str, str] = {}

    def fill(text: str, where: str) -> str:
        return _VARIABLE.sub(lambda match: variables.setdefault(match[1], _variable(match[1], where, environ, path)), text)

    url = fill(_url(document, path), "url")
    request = _table(document, "request", path)
    reply = {key: _text(value, f"reply.{key}", path) for key, value in _table(document, "reply", path).items()}
    headers = _texts(request.get("headers", {}), "request.headers", path)
    http: dict[str, Any] = {
        **_limits(_table(document, "limits", path), path),
        "headers": checked_headers(
            {name: fill(value, f"request.headers.{name}") for name, value in headers.items()}, f"{path}: request.headers"
        ),
        "labels": _labels(document.get("labels"), path),
        "dialect": _dialect(document, request, reply, path),
    }
    for key in ("input_name", "output_name", "ca_bundle", "client_cert"):
        if key in document:
            http[key] = _text(document[key], key, path)
    if http["dialect"] == "template":
        said: dict[str, str] = {
            key: _text(request[key], f"request.{key}", path) for key in ("body", "body_bytes") if key in request
        }
        Template.read(said, reply)
        http["template"] = {"request": said, "reply": reply}
        http["fills"] = _fills(said.get("body", ""), fill, variables)
        http["batch"] = http.get("batch", 1)
    http["secrets"] = [form for value in variables.values() for form in (value, json.dumps(value)[1:-1])]
    private = "label" in reply and not http["labels"]
    return {"url": url, "input": _input(_table(document, "input", path), path), "http": http, "private": private}


def _load(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise ArtefactError(f"{path} is larger than a target file can be", "It holds a few lines; see docs/http.md.")
        with open_regular(path) as file:
            data = file.read()
        if any(len(line) > _MAX_LINE for line in data.splitlines()):
            raise ArtefactError(f"{path} has a line of more than {_MAX_LINE} bytes", "It holds a few lines; see docs/http.md.")
        return tomllib.loads(data.decode("utf-8-sig"))
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}", "Check the path of --target.") from None
    except (ValueError, RecursionError) as error:  # TOML's own are ValueErrors, and so is a number of 5000 digits
        raise ArtefactError(f"{path} is not TOML: {str(error)[:120]}", "See docs/http.md for an example.") from None


def _known(table: Mapping[str, Any], name: str, path: Path) -> None:
    """Raise UsageError for a key that does not exist: a misspelt limit is no limit."""
    for key in table:
        if key not in _KEYS[name]:
            meant = get_close_matches(key, _KEYS[name], 1)
            where = f"{name}.{key}" if name else key
            guess = f"Did you mean {meant[0]}? " if meant else ""
            raise UsageError(f"{path}: {where[:60]} is not known", f"{guess}Known are {', '.join(_KEYS[name])}.")


def _table(document: Mapping[str, Any], name: str, path: Path) -> dict[str, Any]:
    table = document.get(name, {})
    if not isinstance(table, dict):
        raise UsageError(f"{path}: {name} has to be a table", f"With the keys {', '.join(_KEYS[name])}.")
    _known(table, name, path)
    return table


def _text(value: object, where: str, path: Path) -> str:
    if not isinstance(value, str) or not value:
        raise UsageError(f"{path}: {where} has to be text")
    return value


def _texts(value: object, where: str, path: Path) -> dict[str, str]:
    if not isinstance(value, dict):
        raise UsageError(f"{path}: {where} has to be a table of names and texts")
    return {name: _text(content, f"{where}.{name}", path) for name, content in value.items()}


def _variable(name: str, where: str, environ: Mapping[str, str], path: Path) -> str:
    if not environ.get(name):
        raise UsageError(f"{path}: {where} uses ${{{name}}}, which is not set", "Export it first; nothing was sent.")
    return environ[name]


def _url(document: Mapping[str, Any], path: Path) -> str:
    if "url" not in document:
        raise UsageError(f"{path}: url is missing", 'As url = "https://HOST/PATH".')
    url = _text(document["url"], "url", path)
    if not url.lower().startswith(("http://", "https://")):
        raise UsageError(f"{path}: url must begin with http:// or https://", "For a file, give it without --target.")
    if _VARIABLE.search(url.partition("?")[0]):
        raise UsageError(
            f"{path}: url has a variable before the question mark, where it would be shown",
            "Put secrets into request.headers, or behind the question mark.",
        )
    return url


def _dialect(document: Mapping[str, Any], request: Mapping[str, Any], reply: Mapping[str, str], path: Path) -> str | None:
    """The dialect that is named, the template that is meant, or None where it is to be found out."""
    described = [key for key in ("body", "body_bytes") if key in request] + (["reply"] if reply else [])
    dialect = document.get("dialect", "template" if described else None)
    if dialect is None or dialect == "template":
        return None if dialect is None else "template"
    known = (*DIALECTS, "template")
    if dialect not in known:
        meant = get_close_matches(str(dialect), known, 1)
        guess = f"Did you mean {meant[0]}? " if meant else ""
        raise UsageError(f"{path}: dialect {str(dialect)[:40]!r} is not known", f"{guess}Known are {', '.join(known)}.")
    if described:
        raise UsageError(f"{path}: {described[0]} is for the dialect template, and this is {dialect}", "Leave one of them out.")
    return str(dialect)


def _fills(body: str, fill: Any, variables: Mapping[str, str]) -> dict[str, str]:
    """The variables of the body and their values, kept apart from it: what was asked is told without them."""
    fill(body, "request.body")
    return {name: variables[name] for name in _VARIABLE.findall(body)}


def _limits(table: Mapping[str, Any], path: Path) -> dict[str, Any]:
    found = dict(table)
    rate = found.get("rate")
    if isinstance(rate, str):
        match = _RATE.match(rate.strip())
        if match is None or not float(match[1]):
            raise UsageError(
                f"{path}: limits.rate {rate[:20]!r} cannot be read", "Give queries a second, or as 5/s, 100/min, 1000/h."
            )
        found["rate"] = float(match[1]) / _PERIODS[match[2]]
    for key, value in found.items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise UsageError(f"{path}: limits.{key} has to be a number")
        if not 0 < value < float("inf"):
            raise UsageError(f"{path}: limits.{key} has to be above 0")
        if key in ("batch", "budget", "concurrency") and not isinstance(value, int):
            raise UsageError(f"{path}: limits.{key} has to be a whole number")
        if key in BOUNDS:
            within_bounds(value, key, f"{path}: limits.{key}")
    return found


def _input(table: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """By the fields of Target. A shape is (channels, height, width) or (height, width, channels): channels are 1 or 3."""
    found: dict[str, Any] = {}
    for key, value in table.items():
        if key in ("layout", "dtype", "channels"):
            found[key] = _text(value, f"input.{key}", path)
        elif key == "scale":
            found[key] = _numbers([value], "input.scale", path)[0]
        else:
            found[key] = _numbers(value if isinstance(value, list) else [value], f"input.{key}", path)
    if "shape" in found:
        shape = tuple(int(size) for size in found["shape"])
        if shape != found["shape"] or len(shape) not in (1, 3) or min(shape) < 1 or max(shape) > 2**16:
            raise UsageError(f"{path}: input.shape is neither three sizes nor one", "As [3, 32, 32] or [784].")
        if len(shape) == 3:
            first = shape[0] in (1, 3) and shape[2] not in (1, 3)
            found.setdefault("layout", "NCHW" if first else "NHWC")
            shape = (shape[1], shape[2], shape[0]) if first else shape
        found["shape"] = shape
    return found


def _numbers(values: list[Any], where: str, path: Path) -> tuple[float, ...]:
    if not values or any(isinstance(value, bool) or not isinstance(value, int | float) for value in values):
        raise UsageError(f"{path}: {where} has to be numbers")
    if not all(abs(value) < _LARGEST for value in values):
        raise UsageError(f"{path}: {where} has to be numbers that are finite and below {_LARGEST:g}")
    return tuple(float(value) for value in values)


def _labels(name: object, path: Path) -> list[str]:
    """The names in a file beside this one, one a line."""
    if name is None:
        return []
    relative = Path(_text(name, "labels", path))
    place = path.parent / relative
    if (
        "\0" in str(relative)
        or relative.is_absolute()
        or ".." in relative.parts
        or not place.resolve().is_relative_to(path.parent.resolve())
    ):
        raise UsageError(f"{path}: labels has to be a file in the folder of {path.name}, or below it")
    try:
        if place.stat().st_size > _MAX_BYTES:
            raise UsageError(f"{place} is larger than a list of names can be", "Give one name a line, in the victim's order.")
        with open_regular(place) as file:
            lines = [line.strip() for line in file.read().decode("utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError, ArtefactError):
        raise UsageError(
            f"{path}: labels: {place} cannot be read as text", "Give one name a line, in the victim's order."
        ) from None
    while lines and not lines[-1]:
        lines.pop()
    if not lines or "" in lines or len(set(lines)) < len(lines):
        raise UsageError(f"{place} has no names, an empty line or a name twice", "Give one name a line, in the victim's order.")
    return lines
