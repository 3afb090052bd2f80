"""Files of models as peers: asked through the adapter for their format, and gradients taken where the format has them (torch)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from onnxaudit.craft.room import BATCH
from onnxaudit.craft.sample import Material, Peer
from onnxaudit.craft.victim import Victim, open_victim
from onnxaudit.errors import UsageError
from onnxaudit.registry import open_suspect
from onnxaudit.suspect import InputSpec, Queries, Target
from onnxaudit.zoo.saving import DIFFERENTIABLE

PROGRAMS = (".pt", ".ts", ".pt2")
"""Suffixes of formats that have gradients."""
PROBES = 8
CLOSE = 0.01
"""Probabilities of one network that two runtimes give differ by less."""


def open_peers(files: Sequence[Path], spec: InputSpec, num_classes: int, device: str) -> list[Peer]:
    """Each file as a peer that takes the victim's queries. spec: the victim's input. device: auto, cpu or cuda.

    Nothing is loaded until it is used; what answers is closed again after each use.
    """
    return [FilePeer(Target(str(file), spec, num_classes, device)) for file in files]


def has_gradients(file: Path) -> bool:
    """Whether a peer made of this file may have gradients: it is of a format that has them, or was trained here."""
    return file.suffix.lower() in PROGRAMS or file.with_suffix(DIFFERENTIABLE).is_file()


@dataclass(slots=True, eq=False)
class FilePeer:
    """A model in a file. It answers as it would as a suspect; its network is opened when gradients are first asked for."""

    target: Target
    _network: Victim | None = field(default=None, repr=False)

    @property
    def source(self) -> str:
        """The file's name."""
        return Path(self.target.source).name

    def logits(self, pixels: Tensor) -> Tensor:
        """Differentiable logits (n, C). Raises UsageError if the file has no gradients, or not by what the victim takes."""
        if self._network is None:
            self._network = self._opened()
        return self._network.logits(pixels)

    def answer(self, queries: Queries) -> NDArray[np.float32]:
        """Scores (n, C), as the file gives them; one-hot rows of a model that gives labels only.

        Raises UsageError or SuspectError where it does not take the queries, or has other classes than the victim.
        """
        with open_suspect(self.target) as model:
            parts = [model.ask(queries[i : i + BATCH]).dense() for i in range(0, len(queries), BATCH)]
        return np.concatenate(parts)

    def _opened(self) -> Victim:
        path, spec = Path(self.target.source), self.target.spec
        trained = path.with_suffix(DIFFERENTIABLE)
        if trained.is_file():  # craft's own networks take pixels in [0, 1], whatever the victim takes
            path, spec = trained, InputSpec(spec.shape, "NCHW" if len(spec.shape) == 3 else "NC")
        elif path.suffix.lower() not in PROGRAMS:
            raise self._without_gradients(f"a {path.suffix[1:] or 'plain'} file has none")
        try:
            network = open_victim(path, spec, device=self.target.device).probed()
        except UsageError:
            raise self._without_gradients("it does not take its inputs as the victim does") from None
        if network.num_classes != self.target.num_classes:
            raise UsageError(
                f"{self.source} has {network.num_classes} classes, the victim {self.target.num_classes}", "Leave it out."
            )
        self._check(network)
        return network

    @torch.enable_grad()
    def _check(self, network: Victim) -> None:
        """The network must say what the file answers when asked, and its inputs must have gradients."""
        shape, rng = network.spec.shape, np.random.default_rng(0)
        image = len(shape) == 3
        queries = rng.integers(0, 256, (PROBES, *shape), np.uint8) if image else rng.random((PROBES, *shape), np.float32)
        pixels = network.pixels(queries).requires_grad_(True)
        logits = network.logits(pixels)
        if not _same(logits.detach().cpu(), self.answer(queries)):
            raise self._without_gradients("as a network it does not say what it answers as a suspect")
        try:
            (gradient,) = torch.autograd.grad(logits.square().sum(), pixels, allow_unused=True)
        except RuntimeError:  # nothing on the way to the scores can be differentiated
            gradient = None
        if gradient is None or not torch.isfinite(gradient).all() or not gradient.any():
            raise self._without_gradients("its scores do not change with its inputs, as of a quantised network")

    def _without_gradients(self, why: str) -> UsageError:
        return UsageError(
            f"{self.source} gives no gradients: {why}",
            "Give TorchScript or .pt2 that takes what the victim takes, or --train-references, --train-surrogates.",
        )


def _same(logits: Tensor, answers: NDArray[np.float32]) -> bool:
    """Whether a network's logits are a suspect's answers: logits, probabilities, or labels as one-hot rows."""
    if np.isin(answers, (0, 1)).all():
        return bool((logits.argmax(1).numpy() == answers.argmax(1)).all())
    if answers.min() < 0 or np.abs(answers.sum(axis=1) - 1).max() > CLOSE:
        answers = torch.from_numpy(answers).softmax(1).numpy()
    return bool(np.abs(logits.softmax(1).numpy() - answers).max() < CLOSE)


def needed_surrogates(material: Material) -> Sequence[Peer]:
    """The surrogates. Raises UsageError without any."""
    if not material.surrogates:
        raise UsageError("this scheme needs surrogates", "Give --surrogates DIR, or --train-surrogates 6.")
    return material.surrogates


def needed_references(material: Material) -> Sequence[Peer]:
    """The references that do not calibrate. Raises UsageError without any."""
    if not material.references:
        raise UsageError("this scheme needs references to learn from", "Give --references DIR, or --train-references 39.")
    return material.references


def labels_of(peers: Sequence[Peer], queries: Queries) -> NDArray[np.int64]:
    """What each peer calls each query, (peers, n)."""
    return np.stack([peer.answer(queries).argmax(1) for peer in peers])
