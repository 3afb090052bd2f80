"""What of a server's words may be shown: printable, short, and without the secrets that the server may have echoed."""

from __future__ import annotations

import base64
import html
import json
import re
from collections.abc import Iterable, Mapping
from urllib.parse import quote, quote_plus

from onnxaudit.errors import OnnxauditError

QUOTED = 200  # bytes of a reply that an error message quotes
_CLEANED = 64 * 2**10  # bytes of it that are looked at; of an error no more is kept
_SHORTEST = 3  # a "secret" of one or two characters protects nothing, and hiding it would garble every message
_LONG = re.compile(r"(\S{200})\S{2,}")  # names that are no names
_PARTS = re.compile(r"[\s=;,\"]+")  # a cookie's value without its name is as secret


class Redaction:
    """Hides the values of headers and the secrets of an address, wherever they turn up."""

    def __init__(self, headers: Mapping[str, str], secrets: Iterable[str]) -> None:
        words = {word for value in headers.values() for word in (value, *value.split(), *_PARTS.split(value))} | set(secrets)
        hidden = {form for word in words if len(word) >= _SHORTEST for form in _forms(word)}
        self._secrets = sorted(hidden, key=len, reverse=True)

    def clean(self, text: str) -> str:
        """The text without secrets and without characters that could steer a terminal."""
        for secret in self._secrets:
            text = text.replace(secret, "***")
        return "".join(letter if letter.isprintable() else " " for letter in text)

    def told(self, error: OnnxauditError, where: str = "", after: str = "") -> tuple[str, str]:
        """What an error says, and its hint, with a server's words in it. where, after: clean texts that go before and behind."""
        what, hint = (_LONG.sub(r"\1…", self.clean(text)) for text in error.uncut)  # clean first, cut second
        return f"{self.clean(where)}{what}", f"{hint}{after}"

    def quote(self, body: bytes) -> str:
        """The beginning of a reply, in quotes; "nothing" of an empty one."""
        text = self.clean(body[:_CLEANED].decode("utf-8", "replace"))
        # Clean first, cut second: a secret cut in half would not be recognised, and cleaning makes room for what was far behind.
        if len(body) >= _CLEANED and self._secrets:
            text = text[: -len(self._secrets[0]) - 1]  # one more: what is left of a letter cut in half
        begin = " ".join(text.split())
        return repr(begin.encode()[:QUOTED].decode("utf-8", "ignore")) if begin else "nothing"


def _forms(word: str) -> tuple[str, ...]:
    """A secret as servers write it down: as it is, in JSON, in a URL, in HTML, in base64."""
    return (
        word,
        json.dumps(word)[1:-1],
        json.dumps(word, ensure_ascii=False)[1:-1],
        quote(word),
        quote(word, safe=""),
        quote_plus(word),
        html.escape(word),
        base64.b64encode(word.encode("utf-8", "surrogateescape")).decode("ascii"),
    )
