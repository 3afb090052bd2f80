"""What of a server's words may be shown: printable, short, and without the secrets that the server may have echoed."""

from __future__ import annotations

import base64
import html.entities
import re
from collections.abc import Iterable, Mapping

from onnxaudit.errors import OnnxauditError

QUOTED = 200  # bytes of a reply that an error message quotes
_CLEANED = 64 * 2**10  # bytes of it that are looked at; of an error no more is kept
_SHORTEST = 3  # a "secret" of one or two characters protects nothing, and hiding it would garble every message
_WIDEST = 12  # characters that one may be escaped to
_LONG = re.compile(r"(\S{200})\S{2,}")  # names that are no names
_PARTS = re.compile(r"[\s=;,\"]+")  # a cookie's value without its name is as secret


class Redaction:
    """Hides the values of headers and the secrets of an address, wherever they turn up, however they are escaped."""

    def __init__(self, headers: Mapping[str, str], secrets: Iterable[str]) -> None:
        words = {word for value in headers.values() for word in (value, *value.split(), *_PARTS.split(value))} | set(secrets)
        hidden = {form for word in words if len(word) >= _SHORTEST for form in (word, _base64(word))}
        # One after the other, the longest first: of two that overlap, what the shorter leaves of the longer could be read.
        self._secrets = [re.compile(_spelled(form)) for form in sorted(hidden, key=len, reverse=True)]
        self._longest = max(map(len, hidden), default=0) * _WIDEST

    def clean(self, text: str) -> str:
        """The text without secrets and without characters that could steer a terminal."""
        for secret in self._secrets:
            text = secret.sub("***", text)
        return "".join(letter if letter.isprintable() else " " for letter in text)

    def begin(self, text: str) -> str:
        """The beginning of a text that may be of any length, cleaned."""
        # Clean first, cut second: a secret cut in half would not be recognised, and cleaning makes room for what was far behind.
        cleaned = self.clean(text[:_CLEANED])
        return cleaned[: -self._longest - 1] if len(text) >= _CLEANED and self._longest else cleaned

    def told(self, error: OnnxauditError, where: str = "", after: str = "") -> tuple[str, str]:
        """What an error says, and its hint, with a server's words in it. where, after: clean texts that go before and behind."""
        what, hint = (_LONG.sub(r"\1…", self.begin(text)) for text in error.uncut)
        return f"{self.clean(where)}{what}", f"{hint}{after}"

    def quote(self, body: bytes) -> str:
        """The beginning of a reply, in quotes; "nothing" of an empty one."""
        text = self.begin(body[:_CLEANED].decode("utf-8", "replace") + "." * (len(body) >= _CLEANED))
        begin = " ".join(text.split())
        return repr(begin.encode()[:QUOTED].decode("utf-8", "ignore")) if begin else "nothing"


def _base64(word: str) -> str:
    return base64.b64encode(word.encode("utf-8", "surrogateescape")).decode("ascii")


def _spelled(word: str) -> str:
    """A pattern of a secret as servers write it down: as it is, and as JSON, URLs and HTML escape it, here or there.

    A run of backslashes is as long as escaping may make it, and has one reading: with several for each it would take for ever.
    """
    parts = re.findall(r"\\+|[^\\]", word, re.DOTALL)
    return "".join(
        rf"(?:\\(?i:u005c|x5c)?|(?i:%(?:25)*5c)|&(?i:bsol|#0*92|#x0*5c);){{1,{max(64, 4 * len(part))}}}"
        if part[0] == "\\"
        else _escaped(part, after=number > 0 and parts[number - 1][0] == "\\")
        for number, part in enumerate(parts)
    )


def _escaped(letter: str, *, after: bool) -> str:
    """A pattern of a letter and its escapes; frameworks differ in what they escape, and in which of the ways.

    after: backslashes come before it, which have taken those of its own.
    """
    code = ord(letter)
    octets = letter.encode("utf-8", "surrogateescape")
    name = html.entities.codepoint2name.get(code)
    named = (
        "apos|#39"
        if letter == "'"
        else "plus"
        if letter == "+"
        else "equals"
        if letter == "="
        else "sol"
        if letter == "/"
        else name
    )
    return "(?:{})".format(
        "|".join(
            [
                rf"\\{{0,4}}{re.escape(letter)}",
                rf"\\{{{0 if after else 1},4}}(?i:u{code:04x}|x{code:02x})",
                "(?i:" + "".join(f"%(?:25)*{octet:02x}" for octet in octets) + ")",
                rf"&(?i:#0*{code}|#x0*{code:x});",
                *([f"&(?:{named});"] if named else []),
                *([r"\+"] if letter == " " else []),
            ]
        )
    )
