"""JSON from a server that may be hostile or broken: bounded depth, no NaN, and arrays that are arrays."""

from __future__ import annotations

import json
import re
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from onnxaudit.errors import SuspectError

MAX_DEPTH = 32
MAX_CONTAINERS = 2**19
"""Lists and objects in a reply: 16 MB of empty ones would take half a gigabyte once they are parsed."""
MAX_LETTERS = 2**24
"""Of an array of texts, all of them as long as the longest: that is how NumPy keeps them."""
# Matches an unterminated string too, so that a reply full of quotes is still gone through only once.
_STRING = re.compile(rb'"(?:[^"\\]|\\.)*+(?:"|\\?\Z)', re.DOTALL)


_NUMBER = 32  # letters of a number among texts


class ReplyError(SuspectError):
    """A reply is not the answers it should be. The text may hold words of the server; who shows it cleans it."""


def parse(body: bytes) -> object:
    """The document in a reply. Raises ReplyError for what is not JSON, has too many or too deep parts, NaN or infinity, or
    says a field twice: which of the two is meant, nobody knows."""
    if _depth(body) > MAX_DEPTH:
        raise ReplyError(f"the reply is JSON nested deeper than {MAX_DEPTH}")
    try:
        text = body.decode("utf-8-sig")  # servers of some makers begin with a mark of the byte order
        return json.loads(text, parse_constant=_refuse, object_pairs_hook=_object)
    except (ValueError, RecursionError):
        page = body.lstrip()[:1] == b"<"
        raise ReplyError("the reply is a web page, not JSON" if page else "the reply is not JSON") from None


def _object(fields: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(fields)
    if len(found) < len(fields):
        raise ReplyError("the reply has a field twice in one object")
    return found


def _refuse(token: str) -> NoReturn:
    raise ReplyError(f"the reply contains {token}", "NaN and infinity are no scores; they cannot be used as evidence.")


def _depth(body: bytes) -> int:
    """The deepest nesting of brackets outside strings; found before parsing, which would recurse."""
    codes = np.frombuffer(_STRING.sub(b"", body), np.uint8)
    opening = (codes == ord("[")) | (codes == ord("{"))
    if np.count_nonzero(opening) > MAX_CONTAINERS:
        raise ReplyError(f"the reply is JSON of more than {MAX_CONTAINERS} parts")
    closing = (codes == ord("]")) | (codes == ord("}"))
    brackets = opening | closing
    steps = np.where(opening[brackets], 1, -1)
    return int(np.cumsum(steps).max(initial=0))


def as_array(value: object) -> NDArray[Any]:
    """A JSON array as numbers (kind i, u or f) or text (kind U), nested as it came.

    Raises ReplyError where it is ragged, empty, or of anything else.
    """
    if _letters(value) > MAX_LETTERS:
        raise ReplyError("the reply has texts that are too long and too many to be labels")
    try:
        array = np.asarray(value)
    except (ValueError, OverflowError):
        raise ReplyError("the rows of the reply differ in length") from None
    if array.dtype.kind not in "iufU" or array.ndim == 0 or array.size == 0:
        raise ReplyError("the reply has no array of numbers where the answers should be")
    return array


def _letters(value: object) -> int:
    """Letters that an array of these values would take, were each as long as the longest text; 0 without texts.

    Raises ReplyError for true and false, which are no numbers.
    """
    longest, count, parts = 0, 0, [value]
    for part in parts:  # grows as it goes: no deeper than the parser allowed
        inner = part if isinstance(part, list) else [part]
        kinds = set(map(type, inner))
        if bool in kinds:  # NumPy would take it for a number
            raise ReplyError("the reply has true or false where the answers should be")
        if list in kinds:
            parts += [one for one in inner if isinstance(one, list)]
        if str in kinds:
            longest = max(longest, max(len(one) for one in inner if isinstance(one, str)))
        count += len(inner)
    return count * max(longest, _NUMBER) if longest else 0


def as_scores(rows: NDArray[Any]) -> NDArray[np.float32]:
    """Numbers as float32 scores. Raises ReplyError where one is too large to be one (1e400 is legal JSON)."""
    with np.errstate(over="ignore"):
        scores: NDArray[np.float32] = rows.astype(np.float32)
    if not np.isfinite(scores).all():
        raise ReplyError("the reply contains numbers that are no finite score")
    return scores


def as_labels(values: NDArray[Any]) -> NDArray[np.int32]:
    """Class indices (n,) from whole numbers. Raises ReplyError for what is no index."""
    if values.dtype.kind not in "iu" or values.min() < 0 or values.max() >= 2**31:
        raise ReplyError("the reply has labels that are no class index")
    return values.ravel().astype(np.int32)
