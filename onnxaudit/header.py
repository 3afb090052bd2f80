"""The first line of a transcript: whom it asked, and how; and in what another check differs, in words that its user knows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

_WORDS: Mapping[str, str] = {
    "bundle": "--bundle",
    "suspect.source": "the suspect's name",
    "suspect.sha256": "the content of the suspect's file",
    "suspect.kind": "the kind of suspect",
    "suspect.files": "files beside the suspect",
    "suspect.target": "the endpoint, by --url, --header, --dialect, --input-name, --output-name or --target",
    "input.shape": "--input",
    "input.layout": "--layout",
    "input.dtype": "the type of the inputs",
    "input.scale": "--scale",
    "input.mean": "--mean",
    "input.std": "--std",
    "input.channels": "--channel-order",
    "access": "--access",
    "looks": "--looks",
    "label_space": "--label-space",
    "autofix": "--autofix",
    "schema": "the form of the transcript",
}
_UNSAID = ("suspect.sha256", "suspect.files", "suspect.target")
"""Digests, which tell a user nothing."""
_NAMED, _LONGEST = 4, 48
"""Differences that are named at most, and characters of a value."""


def said(header: Mapping[str, Any]) -> dict[str, Any]:
    """What a header says; a key that an earlier version did not know is as good as one that says nothing."""
    return {name: value for name, value in header.items() if value is not None}


def differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """In what two headers differ, the first of which may be anybody's: bounded, and no secrets."""
    found = list(_differences(then, now)) or ["what one leaves out"]
    words = found[:_NAMED] + ([f"{len(found) - _NAMED} more"] if len(found) > _NAMED else [])
    return "; ".join(words)


def _differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    one, other = _flat(said(then)), _flat(said(now))
    names = [*(name for name in _WORDS if name in one or name in other), *sorted((one.keys() | other.keys()) - _WORDS.keys())]
    for name in names:
        before, after = one.get(name), other.get(name)
        if before == after:
            continue
        words = _WORDS.get(name, f"what it calls {name[:_LONGEST]!r}")
        yield words if name in _UNSAID else f"{words} ({_shown(before, name)} then, {_shown(after, name)} now)"


def _flat(header: Mapping[str, Any]) -> dict[str, Any]:
    """Suspect and input by their own keys."""
    flat: dict[str, Any] = {}
    for name, value in header.items():
        if name in ("suspect", "input") and isinstance(value, Mapping):
            flat |= {f"{name}.{part}": inner for part, inner in value.items()}
        else:
            flat[name] = value
    return flat


def _shown(value: object, name: str) -> str:
    if value is None or value is False:
        return "not given"
    if value is True:
        return "given"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list | tuple):
        text = ("x" if name.endswith("shape") else ",").join(_shown(part, name) for part in value[:8])
        return (text[:_LONGEST] if value else "") or "none"
    text = str(value)
    return text[:12] if name == "bundle" else text if len(text) <= _LONGEST else f"{text[:_LONGEST]} …"
