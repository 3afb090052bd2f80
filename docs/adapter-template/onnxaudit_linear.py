"""Linear classifiers, kept as safetensors of ``weights`` (d, C) and ``bias`` (C,), as suspects of onnxaudit."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from onnxaudit.answers import Answers
from onnxaudit.errors import ArtefactError
from onnxaudit.suspect import Queries, Suspect, SuspectCard, Target


def open_linear(target: Target) -> LinearSuspect:
    """Open a file. Raises ArtefactError if it is damaged or foreign: a file from an adversary must never do more than that."""
    from safetensors.numpy import load  # what only this format needs is imported here, not above

    path = Path(target.source)
    data = path.read_bytes()  # read once: the bytes that are hashed are the bytes that run
    try:
        tensors = load(data)
        weights, bias = tensors["weights"].astype(np.float32), tensors["bias"].astype(np.float32)
    except Exception as error:  # whatever the format's own library raises
        raise ArtefactError(f"{path.name} is no linear model: {error}", "Save it again.") from None
    if weights.ndim != 2 or bias.shape != weights.shape[1:]:
        raise ArtefactError(f"{path.name} is no linear model: weights {weights.shape}, bias {bias.shape}", "Save it again.")
    card = SuspectCard(
        source=target.source,
        kind="linear",
        # the file says how many values it takes; scale, mean and the rest are the user's or the victim's
        input=target.input_spec(shape=(len(weights),), layout="NC", dtype="float32"),
        num_classes=target.num_classes,
        sha256=hashlib.sha256(data).hexdigest(),
        max_batch=256,
        runtime={"numpy": np.__version__},
    )
    return LinearSuspect(card, weights, bias)


class LinearSuspect(Suspect):
    """Scores ``x @ weights + bias``."""

    def __init__(self, card: SuspectCard, weights: NDArray[np.float32], bias: NDArray[np.float32]) -> None:
        self.card = card
        self._weights = weights
        self._bias = bias

    def _ask(self, queries: Queries) -> Answers:
        """Answers to one batch; what is raised here becomes a SuspectError."""
        batch = self.card.input.encode(queries)
        # one query at a time: a product of matrices rounds with the size of the batch
        return Answers.from_scores(np.stack([row @ self._weights for row in batch]) + self._bias)
