"""Which class a server means by a word: the bundle's or the user's names, a number, or a word that ends in one."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from onnxaudit_adapters.http.strict_json import ReplyError

_NUMBERED = re.compile(r"(?:label|class)[_ -]?(\d{1,9})\Z", re.IGNORECASE)  # what exporters write who were told no names


class ClassNames:
    """The classes by name. known: in the victim's order. discover: all words are numbered by their digest, in every run alike.

    Discovered numbers mean nothing but that they are the same or not: whoever compares labels must not use them.
    """

    def __init__(self, known: Sequence[str] = (), *, discover: bool = False) -> None:
        self._exact = {name: index for index, name in enumerate(known)}
        folded = [_folded(name) for name in known]
        self._folded = {name: index for index, name in enumerate(folded) if folded.count(name) == 1}
        self._discover = discover

    @property
    def count(self) -> int:
        """How many classes are known by name."""
        return len(self._exact)

    def index(self, word: str) -> int:
        """The class of a word. Raises ReplyError where nothing says which it is."""
        if self._discover:
            return _number(word)
        if word in self._exact:
            return self._exact[word]
        if word.isascii() and word.isdecimal() and len(word) < 10:
            return int(word)
        if _folded(word) in self._folded:
            return self._folded[_folded(word)]
        numbered = _NUMBERED.match(word)
        if numbered is not None:
            return int(numbered[1])
        raise ReplyError(
            f"the reply names classes ('{word}'), and nothing says which number that name stands for",
            'Give the names in the victim\'s order, one a line, as labels = "FILE" in a --target file, or --label-space unknown.',
        )

    def indices(self, words: NDArray[np.str_]) -> NDArray[np.int32]:
        """The classes of many words, (n,), in the order of the words."""
        return np.array([self.index(str(word)) for word in words.ravel()], np.int32)


def _number(name: str) -> int:
    """31 bits of its digest."""
    return int.from_bytes(hashlib.sha256(name.encode("utf-8", "surrogatepass")).digest()[:4], "big") >> 1


def _folded(name: str) -> str:
    return " ".join(name.replace("_", " ").replace("-", " ").casefold().split())
