"""What a user says of an HTTP suspect, checked before anything is sent: its address and the options of this adapter."""

from __future__ import annotations

import base64
import re
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from types import MappingProxyType
from typing import Self
from urllib.parse import unquote, unquote_plus, urlsplit, urlunsplit

from onnxaudit.endpoints import BATCH, TIMEOUT
from onnxaudit.errors import UsageError

DIALECTS = (
    "v2",
    "v2-binary",
    "v2-classes",
    "tfserving",
    "tfserving-png",
    "invocations",
    "invocations-npy",
    "invocations-png",
    "torchserve",
    "huggingface",
    "huggingface-png",
    "plain",
)
BOUNDS: Mapping[str, tuple[float, float]] = MappingProxyType(
    {"timeout": (0.001, 86400), "rate": (1e-4, 1e9), "concurrency": (1, 256), "batch": (1, 65536)}
)
"""Least and most of what limits a suspect: beyond them timers overflow, threads run out, or one query takes hours."""
_FRAMING = ("content-length", "transfer-encoding")
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+\Z")


@dataclass(frozen=True, slots=True)
class Address:
    """Where a suspect is. url: what is sent, without user information. shown: the same without anything secret."""

    url: str = field(repr=False)
    shown: str
    authorization: str | None = field(default=None, repr=False)
    secrets: frozenset[str] = field(default=frozenset(), repr=False)

    def at(self, path: str) -> Address:
        """Another path of the same server; the query string stays, because API keys live there."""
        parts = urlsplit(self.url)
        url = urlunsplit((parts.scheme, parts.netloc, path, parts.query, ""))
        return Address(url, _shown(url), self.authorization, self.secrets)


def parse_address(text: str) -> Address:
    """The address that a user gave. Raises UsageError where it is not an http(s) URL with a host."""
    try:
        parts = urlsplit(text)
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port, parts = None, None, urlsplit("")
    if parts.scheme.lower() not in ("http", "https") or not host or port == 0 or re.search(r"[\s\x00-\x1f]", text):
        raise UsageError("the suspect's URL cannot be read", "Give it as https://HOST[:PORT]/PATH.")
    userinfo, _, netloc = parts.netloc.rpartition("@")
    values = {piece.partition("=")[2] or piece for piece in parts.query.split("&")}
    secrets = values | {unquote(value) for value in values} | {unquote_plus(value) for value in values}
    authorization = None
    if userinfo:
        plain = unquote(userinfo)
        encoded = base64.b64encode(plain.encode()).decode("ascii")
        authorization = f"Basic {encoded}"
        secrets |= {plain, plain.partition(":")[2], userinfo, encoded}
    url = urlunsplit((parts.scheme.lower(), netloc, parts.path, parts.query, ""))
    return Address(url, _shown(url, "…@" if userinfo else ""), authorization, frozenset(secrets))


def _shown(url: str, userinfo: str = "") -> str:
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, userinfo + parts.netloc, parts.path, "…" if parts.query else "", ""))


@dataclass(frozen=True, slots=True)
class HttpOptions:
    """The options of this adapter. timeout: seconds. batch: most queries a request. budget: queries. rate: queries a second.
    concurrency: requests on their way at once, at most.

    input_name "" is the bare array of the plain dialect. client_cert: one PEM file, or certificate and key. labels: the classes'
    names in the victim's order, as the user gives them; class_names: as the bundle has them.
    template: request and reply of a target file, fills: the values of its variables, secrets: what else may not be shown.
    """

    dialect: str | None = None
    input_name: str | None = None
    output_name: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    timeout: float = TIMEOUT
    batch: int = BATCH
    ca_bundle: str | None = None
    client_cert: str | tuple[str, str] | None = None
    budget: int | None = None
    rate: float | None = None
    concurrency: int = 1
    labels: tuple[str, ...] = ()
    class_names: tuple[str, ...] = ()
    template: Mapping[str, Mapping[str, str]] | None = None
    fills: Mapping[str, str] = field(default_factory=dict, repr=False)
    secrets: frozenset[str] = field(default=frozenset(), repr=False)

    @classmethod
    def read(cls, options: Mapping[str, object]) -> Self:
        """The options a target carries; None means not given, unknown keys are another adapter's. Raises UsageError."""
        said = {key: value for key, value in options.items() if value is not None}
        dialect = _text(said, "dialect")
        template = said.get("template")
        if dialect is not None and dialect not in DIALECTS and not (dialect == "template" and template):
            meant = get_close_matches(dialect, DIALECTS, 1)
            guess = f"Did you mean {meant[0]}? " if meant else ""
            more = " A template takes a --target file." if dialect == "template" else ""
            raise UsageError(f"--dialect {dialect!r} is not known", f"{guess}Known are: {', '.join(DIALECTS)}.{more}")
        budget = said.get("budget")
        if budget is not None and (not isinstance(budget, int) or isinstance(budget, bool) or budget < 0):
            raise UsageError("--budget has to be a whole number of queries, 0 or more")
        return cls(
            dialect=dialect,
            input_name=_text(said, "input_name"),
            output_name=_text(said, "output_name"),
            headers=checked_headers(said.get("headers", {})),
            timeout=_number(said, "timeout", TIMEOUT),
            batch=_whole(said, "batch", BATCH),
            ca_bundle=_authorities(said),
            client_cert=_certificate(said),
            budget=budget,
            rate=_number(said, "rate", 0.0) if "rate" in said else None,
            labels=_names(said, "labels"),
            class_names=_names(said, "class_names"),
            template=template if isinstance(template, Mapping) else None,
            fills=dict(fills) if isinstance(fills := said.get("fills", {}), Mapping) else {},
            secrets=frozenset(_names(said, "secrets")),
            concurrency=_whole(said, "concurrency", 1),
        )


def _flag(key: str) -> str:
    return "--" + key.replace("_", "-")


def _text(said: Mapping[str, object], key: str) -> str | None:
    value = said.get(key)
    if value is not None and not isinstance(value, str):
        raise UsageError(f"{_flag(key)} has to be text")
    return value


def _names(said: Mapping[str, object], key: str) -> tuple[str, ...]:
    value = said.get(key, ())
    if not isinstance(value, list | tuple) or not all(isinstance(name, str) for name in value):
        raise UsageError(f"{key} have to be a list of names")
    return tuple(value)


def _number(said: Mapping[str, object], key: str, default: float) -> float:
    value = said.get(key, default)
    return within_bounds(value, key, _flag(key))


def _whole(said: Mapping[str, object], key: str, default: int) -> int:
    value = _number(said, key, default)
    if value != int(value):
        raise UsageError(f"{_flag(key)} has to be a whole number")
    return int(value)


def within_bounds(value: object, key: str, shown: str) -> float:
    """A number that BOUNDS allow. shown: what the user calls it. Raises UsageError for anything else."""
    least, most = BOUNDS[key]
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
        raise UsageError(f"{shown} has to be a number from {least:.15g} to {most:.15g}")
    return value


def _file(said: Mapping[str, object], key: str) -> str | None:
    path = _text(said, key)
    if path is not None and not (Path(path).is_file() or Path(path).is_dir()):  # whoever opens a pipe waits
        raise UsageError(f"{_flag(key)} {path} is not there, or no file", "Check the path.")
    return path


def _authorities(said: Mapping[str, object]) -> str | None:
    path = _file(said, "ca_bundle")
    if path is not None and not Path(path).is_dir():
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(path)
        except OSError:
            raise UsageError(f"--ca-bundle {path} holds no certificates", "Give a PEM file of them.") from None
    return path


def _certificate(said: Mapping[str, object]) -> str | tuple[str, str] | None:
    value = said.get("client_cert")
    pair = list(value) if isinstance(value, list | tuple) and len(value) == 2 else [value]
    files = [path for part in pair if (path := _file({"client_cert": part}, "client_cert")) is not None]
    if not files:
        return None
    key = files[1] if len(files) == 2 else None
    try:  # without a word asked for: nobody may be there to type it
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_cert_chain(files[0], key, lambda: "")
    except (OSError, ValueError):
        raise UsageError(
            f"--client-cert {', '.join(files)} holds no certificate with its key, or a key under a password",
            "Give a PEM file of both.",
        ) from None
    return (files[0], key) if key else files[0]


def checked_headers(value: object, shown: str = "--header") -> dict[str, str]:
    """Checked here, because an error of the HTTP library would quote the value. shown: what the user calls them."""
    if not isinstance(value, Mapping):
        raise UsageError(f"{shown} has to be 'Name: value'")
    for name, content in value.items():
        if isinstance(name, str) and name.lower() in _FRAMING:
            raise UsageError(f"{shown}: {name} says where a request ends, which is not for users to say", "Leave it out.")
        if not isinstance(name, str) or not _TOKEN.match(name):
            raise UsageError(f"{shown} has to be 'Name: value' with a name of letters, digits and dashes")
        usable = isinstance(content, str) and content == content.strip() and content.isprintable()
        if not usable or any(ord(letter) > 255 for letter in str(content)):
            raise UsageError(f"{shown}: the value of {name} has a character that a header cannot carry")
    return {str(name): str(content) for name, content in value.items()}
