"""What an adapter fills in: a card that says what the suspect is, and one method that asks it."""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self, TypeAlias, cast, final

import numpy as np
from numpy.typing import NDArray

from onnxaudit.answers import Answers
from onnxaudit.errors import OnnxauditError, OtherClasses, SmallerBatch, SuspectError, UsageError

_OTHER = "check --label-space unknown compares it without labels."
Queries: TypeAlias = NDArray[np.uint8] | NDArray[np.float32]
"""Canonical queries: uint8 images (n, H, W, C) on the 8-bit grid, or float32 vectors (n, d)."""

LARGEST = 1e30
"""Of what inputs are scaled by and moved by: more is no number of 32 bits."""
MOST_VALUES = 1 << 26
"""Of one input; a picture of 4096 x 4096 in colour has fewer. A small file can say that it takes terabytes."""


@dataclass(frozen=True, slots=True)
class InputSpec:
    """How canonical queries become what a model wants: ``(pixel * scale - mean) / std``, then order and layout.

    shape: (H, W, C) of images or (d,) of vectors, as the model wants them. layout: "NCHW", "NHWC" or "NC".
    dtype: "float32", "float16", "float64" or "uint8". mean, std: empty, or one value for all or for each channel, after scaling.
    channels: "RGB" or "BGR". Vectors are passed as they are, cast to dtype; images that a vector model is asked are
    scaled, then flattened in the order H, W, C.
    """

    shape: tuple[int, ...]
    layout: str = "NCHW"
    dtype: str = "float32"
    scale: float = 1 / 255
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    channels: str = "RGB"

    def problem(self) -> str | None:
        """What is wrong with these values, in words; None if they make sense."""
        channels = self.shape[2] if len(self.shape) == 3 else 1
        if len(self.shape) not in (1, 3) or min(self.shape) < 1:
            return f"the shape {self.shape} is neither (height, width, channels) nor (features,)"
        if math.prod(self.shape) > MOST_VALUES:
            return f"the shape {self.shape} has more than {MOST_VALUES} values"
        if self.layout not in ("NCHW", "NHWC", "NC") or self.channels not in ("RGB", "BGR"):
            return f"layout {self.layout[:20]!r} or channel order {self.channels[:20]!r} is unknown"
        if self.dtype not in ("float16", "float32", "float64", "uint8"):
            return f"the data type {self.dtype[:20]!r} is unknown"
        numbers = (self.scale, *self.mean, *self.std)
        if not all(math.isfinite(number) for number in numbers) or self.scale == 0 or 0 in self.std:
            return "scale and std must be finite and not zero, mean finite"
        if max(map(abs, (self.scale, *self.mean))) > LARGEST * min(map(abs, self.std), default=1.0):
            return f"scale and mean must be below {LARGEST:g} times std: models take numbers of 32 bits"
        if len(self.shape) == 3 and (len(self.mean) not in (0, 1, channels) or len(self.std) not in (0, 1, channels)):
            return f"mean and std need one value, or one for each of {channels} channels"
        return None

    def encode(self, queries: Queries) -> NDArray[np.generic]:
        """Canonical queries as a batch for the model. Raises UsageError where the sizes cannot be reconciled."""
        if queries.ndim == 2:
            if queries.shape[1:] != self.shape:
                raise UsageError(f"the model takes {_size(self.shape)} values, the queries are vectors of {queries.shape[1]}")
            return np.ascontiguousarray(queries, dtype=self.dtype)
        flat = queries.ndim == 4 and self.shape == (math.prod(queries.shape[1:]),)
        images = queries if flat else self._fit(queries)
        if self.channels == "BGR":
            images = images[..., ::-1]
        if self.dtype != "uint8":
            factor, offset = self._affine()
            images = images * factor + offset if offset.any() else images * factor
        elif images.dtype != np.uint8:
            images = np.rint(images).astype(np.uint8)
        if self.layout == "NCHW" and not flat:
            images = images.transpose(0, 3, 1, 2)
        return np.ascontiguousarray(images.reshape(len(images), -1) if flat else images, dtype=self.dtype)

    def _affine(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        std = np.array(self.std or (1.0,), np.float64)
        mean = np.array(self.mean or (0.0,), np.float64)
        return (self.scale / std).astype(np.float32), (-mean / std).astype(np.float32)

    def _fit(self, queries: Queries) -> NDArray[np.uint8] | NDArray[np.float32]:
        """Bring images to the model's size: bilinear resize, grey repeated to three channels."""
        if len(self.shape) != 3 or queries.ndim != 4 or queries.shape[3] not in (self.shape[2], 1):
            raise UsageError(
                f"the model takes inputs of {_size(self.shape)}, the queries are images of {_size(queries.shape[1:])}",
                "Height x width x channels; give --input and --layout if the model's signature says less than it means.",
            )
        height, width, channels = self.shape
        if queries.shape[1:3] != (height, width):
            down, across = _bilinear(queries.shape[1], height), _bilinear(queries.shape[2], width)
            queries = np.einsum("ah,nhwc,bw->nabc", down, queries.astype(np.float32), across, optimize=True).astype(np.float32)
        if queries.shape[3] != channels:
            queries = cast("Queries", np.repeat(queries, channels, axis=3))
        return queries


def _bilinear(source: int, target: int) -> NDArray[np.float32]:
    """The matrix (target, source) of linear interpolation with half-pixel centres."""
    position = np.clip((np.arange(target) + 0.5) * source / target - 0.5, 0, source - 1)
    low = np.floor(position).astype(int)
    high = np.minimum(low + 1, source - 1)
    matrix = np.zeros((target, source), np.float32)
    matrix[np.arange(target), low] += (1 - (position - low)).astype(np.float32)
    matrix[np.arange(target), high] += (position - low).astype(np.float32)
    return matrix


def _size(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))


@dataclass(frozen=True, slots=True, eq=False)
class SuspectCard:
    """What is known of a suspect before it is asked.

    source: path, URL or module:function. batch: the only batch size that it takes, if fixed. max_batch: the largest.
    class_names: what it calls its classes, in its order, where its file says so.
    """

    source: str
    kind: str
    input: InputSpec
    num_classes: int | None = None
    sha256: str | None = None
    batch: int | None = None
    max_batch: int | None = None
    runtime: Mapping[str, str] = field(default_factory=dict)
    class_names: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class Target:
    """What a user asks to be opened, and how. input, layout …: None where the user said nothing.

    spec: the victim's InputSpec, which fills in what neither the model's signature nor the user says.
    options: further settings by name, of interest to one adapter only (``dialect``, ``headers`` …).
    """

    source: str
    spec: InputSpec
    num_classes: int | None = None
    device: str = "auto"
    shape: tuple[int, ...] | None = None
    layout: str | None = None
    dtype: str | None = None
    scale: float | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    channels: str | None = None
    options: Mapping[str, object] = field(default_factory=dict, repr=False)

    def input_spec(self, shape: tuple[int, ...] | None = None, layout: str | None = None, dtype: str | None = None) -> InputSpec:
        """What the user said, else what the model's signature says (the arguments), else the victim's."""
        said = {name: getattr(self, name) for name in ("shape", "layout", "dtype", "scale", "mean", "std", "channels")}
        read = {"shape": shape, "layout": layout, "dtype": dtype}
        chosen = {
            name: value for name, value in (read | {k: v for k, v in said.items() if v is not None}).items() if value is not None
        }
        spec = dataclasses.replace(self.spec, **chosen)
        if (problem := spec.problem()) is not None:
            raise UsageError(f"the suspect's input: {problem}", "See --input, --layout, --scale, --mean, --std, --channel-order.")
        return spec


class Suspect(ABC):
    """A model under audit. An adapter sets ``card`` and writes ``_ask``; nothing else need be known of it."""

    card: SuspectCard

    @abstractmethod
    def _ask(self, queries: Queries) -> Answers:
        """Answers to one batch of canonical queries, in order. What a runtime raises becomes a SuspectError."""

    def inside(self, kind: str, queries: Queries, **parameters: Any) -> NDArray[np.floating[Any]] | None:  # noqa: ARG002
        """What the model shows of its inside for each query, (n, …): "gradients" or "layers". None where its format has none.

        parameters: those of the representation that wants to see it.
        """
        return None

    def rewire(self, spec: InputSpec) -> None:
        """Encode queries so from now on, as ``card.input`` then says."""
        self.card = dataclasses.replace(self.card, input=spec)

    def close(self) -> None:  # noqa: B027 - not every suspect holds something to give back
        """Give back what was opened."""

    def stop(self) -> None:  # noqa: B027 - most suspects never wait
        """Called from another thread: send nothing more and try nothing again; what is on its way may still be answered."""

    def spent(self, queries: int) -> None:  # noqa: B027 - most suspects have no budget
        """So many queries of the budget were sent by an earlier run that is gone on with."""

    def tell_lost(self, note: Callable[[int], None]) -> None:  # noqa: B027 - most suspects lose none
        """Have ``note`` told, at once and from whichever thread, how many queries came to nothing so far."""

    def lose(self, queries: int) -> None:  # noqa: B027 - as above
        """So many queries were answered, and what came back is of no use: it filled up a batch, or is nonsense."""

    @final
    def ask(self, queries: Queries) -> Answers:
        """Answers to all queries, split into batches the suspect takes; both directions are checked.

        Raises SuspectError if the suspect fails, answers another number of rows, or answers nonsense.
        """
        parts = list(self.parts(queries))
        return parts[0] if len(parts) == 1 else Answers.concatenate(parts)

    @final
    def parts(self, queries: Queries) -> Iterator[Answers]:
        """The same, batch by batch in order: each can be kept before the next is asked. Raises what ``ask`` raises."""
        if not len(queries):
            raise UsageError("there are no queries to ask")
        start = 0
        while start < len(queries):
            size = self.card.batch or self.card.max_batch or len(queries)
            try:
                answers = self.ask_once(queries[start : start + size])
            except SmallerBatch:
                continue
            yield answers
            start += len(answers)

    @final
    def ask_once(self, queries: Queries) -> Answers:
        """Answers to no more queries than the card allows at once. Raises SmallerBatch where the card has come to allow fewer."""
        return self._ask_batch(queries)

    def _ask_batch(self, queries: Queries) -> Answers:
        n = len(queries)
        if self.card.batch and n < self.card.batch:
            padding = np.repeat(queries[-1:], self.card.batch - n, axis=0)
            queries = np.concatenate([queries, padding])  # a model with a fixed batch takes nothing smaller
        try:
            answers = self._ask(queries)
        except OnnxauditError:
            raise
        except Exception as error:  # each runtime has errors of its own
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise SuspectError(f"{self.card.source} failed to answer: {reason[:200]}") from error
        try:
            if len(answers) != len(queries):
                raise SuspectError(f"{self.card.source} gave {len(answers)} answers to {len(queries)} queries")
            checked = self._checked(answers.take(slice(0, n)) if len(queries) > n else answers)
        except OnnxauditError:
            self.lose(len(queries))
            raise
        if len(queries) > n:
            self.lose(len(queries) - n)
        return checked

    def _checked(self, answers: Answers) -> Answers:
        if answers.scores is not None and not np.isfinite(answers.scores).all():
            raise SuspectError(f"{self.card.source} answered NaN or infinity", "Its scores cannot be used as evidence.")
        expected = self.card.num_classes
        if answers.num_classes is not None and expected is not None and answers.num_classes != expected:
            raise OtherClasses(
                f"{self.card.source} answers with {answers.num_classes} classes, the bundle's victim has {expected}", _OTHER
            )
        lowest, top = int(answers.classes.min(initial=0)), int(answers.classes.max(initial=0))
        if lowest < 0:
            raise SuspectError(f"{self.card.source} named class {lowest}", "Classes count from 0.")
        if expected is not None and top >= expected:
            raise OtherClasses(f"{self.card.source} named class {top}, the bundle's victim has {expected} classes", _OTHER)
        return answers

    @final
    def __enter__(self) -> Self:
        return self

    @final
    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


class Wrapped(Suspect):
    """Another suspect, asked or answering otherwise: what a wrapper does not change is the wrapped one's; closing it closes that.

    It shows nothing of the inside: that would be more than it passes on, or of other inputs than it was given.
    """

    def __init__(self, suspect: Suspect) -> None:
        self._suspect = suspect

    @property
    def card(self) -> SuspectCard:  # type: ignore[override]  # an HTTP suspect's largest batch shrinks as it is asked
        """The wrapped suspect's card, as it is now."""
        return self._suspect.card

    @property
    def queries_sent(self) -> int:
        """The wrapped suspect's own count. AttributeError, and so absent, where it keeps none."""
        count: int = self._suspect.queries_sent  # type: ignore[attr-defined]
        return count

    def rewire(self, spec: InputSpec) -> None:
        """Have the wrapped suspect encode queries so."""
        self._suspect.rewire(spec)

    def close(self) -> None:
        """Close the wrapped suspect."""
        self._suspect.close()

    def stop(self) -> None:
        """Stop the wrapped suspect."""
        self._suspect.stop()

    def spent(self, queries: int) -> None:
        """As of the wrapped suspect."""
        self._suspect.spent(queries)

    def tell_lost(self, note: Callable[[int], None]) -> None:
        """As of the wrapped suspect."""
        self._suspect.tell_lost(note)

    def lose(self, queries: int) -> None:
        """As of the wrapped suspect."""
        self._suspect.lose(queries)
