"""What samplers work from, and what they give back."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from onnxaudit.craft.data import Data
from onnxaudit.craft.space import Space, space_of
from onnxaudit.craft.victim import Victim
from onnxaudit.errors import UsageError
from onnxaudit.suspect import Queries


class Peer(Protocol):
    """A model other than the victim that helps to make a fingerprint: a surrogate, or a reference that never calibrates."""

    @property
    def source(self) -> str:
        """The file's name."""

    def logits(self, pixels: Tensor) -> Tensor:
        """Differentiable logits (n, C), as ``Victim.logits``. Raises UsageError where the format has no gradients."""

    def answer(self, queries: Queries) -> NDArray[np.float32]:
        """Scores (n, C), as ``Victim.answer``."""


@dataclass(frozen=True, slots=True, eq=False)
class Material:
    """What a sampler may use. references never calibrate; they and the surrogates are there for schemes that need them.

    siblings: models by the victim's recipe. pairs: networks extracted from the victim, each with one that was extracted in the
    same way from a reference that never calibrates.
    """

    victim: Victim
    data: Data | None = None
    surrogates: Sequence[Peer] = ()
    references: Sequence[Peer] = ()
    siblings: Sequence[Peer] = ()
    pairs: Sequence[tuple[Peer, Peer]] = ()

    @property
    def space(self) -> Space:
        """The box of valid inputs: pixels in [0, 1] on the 8-bit grid, or the range of the data's vectors."""
        return space_of(self.victim, self.data)

    def inputs(self) -> Data:
        """The data. Raises UsageError without any."""
        if self.data is None:
            raise UsageError("this scheme needs data", "Give --data, or take another scheme.")
        return self.data

    def images(self) -> NDArray[np.uint8]:
        """The data's images (n, H, W, C). Raises UsageError for vectors."""
        x = self.inputs().x
        if x.ndim != 4:
            raise UsageError("this scheme works on images, the data are vectors", "Take a scheme that does not need images.")
        return x.astype(np.uint8, copy=False)

    def labelled(self) -> tuple[Data, NDArray[np.int64]]:
        """The data and its labels (n,). Raises UsageError without labels, or with labels that the victim has no class for."""
        data = self.inputs()
        if data.y is None:
            raise UsageError("this scheme needs labelled data", "Give y with the data, or take another scheme.")
        if data.y.max(initial=0) >= self.victim.num_classes:
            raise UsageError(
                f"the data has label {data.y.max()}, the victim {self.victim.num_classes} classes", "Labels count from 0."
            )
        return data, data.y

    def draw(self, n: int, rng: np.random.Generator) -> Queries:
        """n inputs of the data at random, without replacement while there are enough."""
        data = self.inputs()
        return data.x[rng.choice(len(data), n, replace=len(data) < n)]


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """Canonical queries, what the user should know of them, and parameters that were settled while sampling.

    columns: what is known of each query, (n, …), for the representations that need it: "truth" (the data's label), "pair" (the
    number of the pair, first member first), "group" and "mask" (image, and which of its segments are shown), "view". Rows are in
    an order of which every prefix makes sense: whole pairs and groups one after the other.
    """

    queries: Queries
    notes: tuple[str, ...] = ()
    parameters: Mapping[str, Any] = field(default_factory=dict)
    columns: Mapping[str, NDArray[np.generic]] = field(default_factory=dict)


Sampler: TypeAlias = Callable[..., Sample]
"""(material, n, rng, progress, and parameters by name) to a sample of at most n queries; ``progress`` takes the number so far."""
