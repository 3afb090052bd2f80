"""From what a model returned to Answers, for every adapter: arrays, tensors, label lists, and scikit-learn's maps."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxaudit.answers import Answers
from onnxaudit.errors import SuspectError, UsageError

_ORDER_HINT = (
    "Name the victim's classes in their order with the option class_names, or let the model return a row of scores; "
    "or check it with --label-space unknown."
)


def read_outputs(
    value: object, n: int, num_classes: int | None, class_names: Sequence[str] = (), wanted: str | None = None
) -> Answers:
    """Answers to n queries from whatever a function returned: one array, tensor or list, or a dict or tuple of several.

    Raises SuspectError for anything that is neither n rows of class scores nor n labels.
    """
    if isinstance(value, Mapping):
        several = dict(value)
    elif isinstance(value, tuple):
        several = {str(place): part for place, part in enumerate(value)}
    else:
        return read_output(value, n, num_classes, class_names)
    return read_output(several[choose(several, n, num_classes, wanted)], n, num_classes, class_names)


def choose(outputs: Mapping[str, object], n: int, num_classes: int | None, wanted: str | None = None) -> str:
    """The name of the output that holds the answers: rows of num_classes scores, else labels, else other scores.

    Raises UsageError if ``wanted`` is not there or the choice is not clear, SuspectError if no output can be answers.
    """
    if wanted is not None and wanted not in outputs:
        raise UsageError(f"the model has no output {wanted!r}", f"It has {', '.join(outputs)}.")
    if wanted is not None:
        return wanted
    widths = {name: width for name, value in outputs.items() if (width := _width(plain(value), n)) is not None}
    scores = [name for name, width in widths.items() if width > 0]
    labels = [name for name, width in widths.items() if width == 0]
    fitting = [name for name in scores if widths[name] == num_classes]
    if fitting or labels or len(scores) == 1:
        if not fitting and num_classes is None and len(scores) == 1:
            return scores[0]
        return (fitting or labels or scores)[0]
    found = ", ".join(f"{name} {_shape(value)}" for name, value in outputs.items())
    if scores:
        raise UsageError(
            f"the model has several outputs that may be class scores: {found}", "Choose with the option output_name."
        )
    raise SuspectError(f"no output of the model is {n} rows of class scores or {n} labels: {found}")


def read_output(value: object, n: int, num_classes: int | None, class_names: Sequence[str] = ()) -> Answers:
    """Answers from one output: floats (n, C), labels (n,) or (n, 1), or n maps from class to score (scikit-learn's ZipMap).

    Raises SuspectError for other shapes, and for class names whose order cannot be known.
    """
    found = plain(value)
    if isinstance(found, list):
        return _from_maps(found, num_classes, class_names)
    if found.dtype.kind == "f" and found.ndim == 2 and len(found) == n:  # by far the most common
        return Answers.from_scores(found)
    width = _width(found, n)
    if width is None:
        raise SuspectError(f"the model answered {_shape(found)} to {n} queries", "It must give rows of class scores, or labels.")
    if width > 0:
        return Answers.from_scores(found.reshape(n, width))
    labels = found.reshape(n)
    if labels.dtype.kind in "OUS":
        known = _indices([_text(label) for label in np.unique(labels)], num_classes, class_names, complete=False)
        return Answers.from_labels([known[_text(label)] for label in labels], num_classes)
    return Answers.from_labels(labels.astype(np.int64), num_classes)


def plain(value: object) -> NDArray[Any] | list[Mapping[object, float]]:
    """A NumPy array, or a list of maps; tensors are brought over without their library being imported here."""
    if isinstance(value, np.ndarray):
        return value
    if isinstance(value, list) and value and isinstance(value[0], Mapping):
        return value
    if hasattr(value, "detach"):
        tensor: Any = value.detach().cpu()
        value = (tensor.float() if tensor.is_floating_point() else tensor).numpy()
    try:
        return np.asarray(value)
    except ValueError as error:
        raise SuspectError(f"the model's answer is not an array: {error}") from None


def _width(value: NDArray[Any] | list[Mapping[object, float]], n: int) -> int | None:
    """C if the value can be n rows of C scores, 0 if it can be n labels, None if it can be neither."""
    if isinstance(value, list):
        return len(value[0]) if len(value) == n else None
    if value.size == 0 or value.dtype.kind not in "fiuOUS":
        return None
    if len(value.shape) == 1 and n == 1 and value.size > 1:  # one query's scores, squeezed
        return value.size if value.dtype.kind == "f" else None
    if value.ndim == 0 or len(value) != n or (value.ndim > 2 and value.size != n * value.shape[1]):
        return None
    width = value.size // n
    if value.dtype.kind == "f":
        # a float a query is a label only if it is whole, as some exported trees give
        return 0 if value.ndim == 1 and bool((value == np.rint(value)).all()) else (width if value.ndim > 1 else None)
    if width == 1:
        return 0
    return width if value.dtype.kind in "iu" else None  # whole-number rows: the scores of a fully quantised model


def _from_maps(maps: Sequence[Mapping[object, float]], num_classes: int | None, class_names: Sequence[str]) -> Answers:
    keys = list(maps[0])
    if any(len(row) != len(keys) or any(key not in row for key in keys) for row in maps):
        raise SuspectError("the model's maps from class to score name different classes for different queries")
    if num_classes is not None and len(keys) != num_classes:
        raise SuspectError(
            f"the model scores {len(keys)} classes, the bundle's victim has {num_classes}", "They must have one label set."
        )
    known = _indices([_text(key) for key in keys], len(keys), class_names, complete=True)
    ordered = sorted(keys, key=lambda key: known[_text(key)])
    return Answers.from_scores(np.array([[row[key] for key in ordered] for row in maps], dtype=np.float32))


def _indices(names: Sequence[str], num_classes: int | None, class_names: Sequence[str], *, complete: bool) -> dict[str, int]:
    """The class index of each name: its place in class_names, or itself if it is a number.

    A complete set 1..C is taken to count from one. Sorted names are not an order: nothing says that the victim's was sorted too.
    """
    if isinstance(class_names, PrivateNames):
        return _numbered(names, complete=complete)
    if class_names and all(name in class_names for name in names):
        return {name: list(class_names).index(name) for name in names}
    if not all(name.isdecimal() for name in names):
        raise SuspectError(f"the model answers with class names ({_some(names)}), whose order cannot be known", _ORDER_HINT)
    values = sorted(int(name) for name in names)
    first = 1 if complete and values == list(range(1, len(values) + 1)) else 0
    if (complete and values[0] - first != 0) or (num_classes is not None and values[-1] - first >= num_classes):
        raise SuspectError(f"the model numbers its classes {_some(names)}, which are not 0 to {len(names) - 1}", _ORDER_HINT)
    return {name: int(name) - first for name in names}


class PrivateNames(tuple[str, ...]):
    """No names are known, and none need be: where no label is compared, any number that always stands for a name will do."""

    __slots__ = ()


def _numbered(names: Sequence[str], *, complete: bool) -> dict[str, int]:
    """A number for each name: its place in the alphabet where all names are there, else 31 bits of its digest.

    The same in every batch and every run, so that an interview can be gone on with.
    """
    if complete:
        return {name: place for place, name in enumerate(sorted(names))}
    return {name: int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big") >> 1 for name in names}


def class_names_of(options: Mapping[str, object]) -> tuple[str, ...]:
    """The option class_names: a list, or names with commas between them. With label_space "unknown": none are needed."""
    if options.get("label_space") == "unknown":
        return PrivateNames()
    given = options.get("class_names", ())
    if isinstance(given, str):
        return tuple(name.strip() for name in given.split(","))
    return tuple(str(name) for name in given) if isinstance(given, Iterable) else ()


def _text(name: object) -> str:
    return name.decode("utf-8", "replace") if isinstance(name, bytes) else str(name)


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:4]) + (" …" if len(names) > 4 else "")


def _shape(value: object) -> str:
    shape = getattr(value, "shape", None)
    return f"an array {tuple(shape)}" if shape is not None else f"a {type(value).__name__}"
