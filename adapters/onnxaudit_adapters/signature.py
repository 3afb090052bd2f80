"""From the shape a model says it takes to the InputSpec that makes it, filled in by the user and the victim's spec."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onnxaudit.errors import UsageError
from onnxaudit.suspect import InputSpec, Target

_HINT = "Give its size with --input (and --layout)."
_BATCH_BYTES = 16 * 2**20
"""Bytes of queries that are put into one batch, so that memory does not grow with the number of queries."""


@dataclass(frozen=True, slots=True)
class Signature:
    """What a model takes. batch: its fixed batch size, or None. dims: the shape of one input where it is not the spec's own."""

    spec: InputSpec
    batch: int | None = None
    dims: tuple[int, ...] | None = None

    @property
    def max_batch(self) -> int:
        """The number of queries that fit a batch of bounded memory, at most 256."""
        return max(1, min(256, _BATCH_BYTES // (4 * math.prod(self.spec.shape))))

    def shaped(self, batch: NDArray[np.generic]) -> NDArray[np.generic]:
        """An encoded batch in the shape the model takes."""
        return batch if self.dims is None else batch.reshape(len(batch), *self.dims)


def read_signature(target: Target, dims: Sequence[int | None], dtype: str | None) -> Signature:
    """The signature of an input of shape ``dims`` (batch first, None where it is symbolic; empty if nothing is known).

    Layout: the axis that equals the victim's number of channels, else 1 or 3; where that is not one axis, the user's or the
    victim's. Symbolic sizes are the victim's. Raises UsageError where the sizes cannot be known or the rank is not supported.
    """
    if not dims:
        return Signature(target.input_spec(dtype=dtype))
    batch, inner = dims[0], tuple(dims[1:])
    known = target.shape or target.spec.shape
    if len(inner) == 1:
        return Signature(_vector(target, inner[0], dtype), batch)
    sizes = tuple(size for size in inner if size is not None)
    if len(known) == 1 and len(sizes) == len(inner) and math.prod(sizes) == known[0]:
        return Signature(target.input_spec(shape=known, layout="NC", dtype=dtype), batch, sizes)
    if len(inner) == 2:  # grey images without an axis for channels
        height, width = _filled(target, (*inner, 1))[:2]
        return Signature(target.input_spec(shape=(height, width, 1), layout="NHWC", dtype=dtype), batch, (height, width))
    if len(inner) == 3:
        layout = target.layout or _layout(inner, target.spec)
        ordered = (inner[1], inner[2], inner[0]) if layout == "NCHW" else inner
        return Signature(target.input_spec(shape=_filled(target, ordered), layout=layout, dtype=dtype), batch)
    raise UsageError(f"{target.source} takes an input with {len(dims)} axes, which is neither images nor vectors")


def _vector(target: Target, size: int | None, dtype: str | None) -> InputSpec:
    return target.input_spec(shape=(size or math.prod(target.spec.shape),), layout="NC", dtype=dtype)


def _filled(target: Target, shape: tuple[int | None, ...]) -> tuple[int, ...]:
    """Height, width, channels, with the victim's where the model says nothing."""
    known = target.shape or target.spec.shape
    if None in shape and len(known) != 3:
        raise UsageError(f"{target.source} takes images of any size, and the victim's inputs are not images", _HINT)
    return tuple(known[axis] if size is None else size for axis, size in enumerate(shape))


def _layout(inner: tuple[int | None, ...], spec: InputSpec) -> str:
    victims = {spec.shape[2]} if len(spec.shape) == 3 else set()
    for channels in (victims, {1, 3}):
        first, last = inner[0] in channels, inner[2] in channels
        if first != last:
            return "NCHW" if first else "NHWC"
    return spec.layout if spec.layout in ("NCHW", "NHWC") else "NCHW"
