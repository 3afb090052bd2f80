"""Detectors: how close a suspect's representation is to the victim's. Larger is closer, always; 0 or 1 is as close as can be."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from onnxaudit.schemes.contrast import evidence
from onnxaudit.schemes.information import jensen_shannon, mutual_information
from onnxaudit.schemes.inside import layer_distance
from onnxaudit.schemes.learned import contrastive, logistic, verifier, welch
from onnxaudit.schemes.lime import align_classes
from onnxaudit.schemes.representations import Kind
from onnxaudit.schemes.samplers import Need

Vectors: TypeAlias = NDArray[np.float64]

ANY = frozenset(Kind) - {Kind.RATIOS}
DISCRETE = frozenset({Kind.CATEGORIES, Kind.INDICATORS})
NUMERIC = frozenset({Kind.NUMBERS, Kind.DISTRIBUTIONS, Kind.INDICATORS})


@dataclass(frozen=True, slots=True, eq=False)
class Detector:
    """A detector by name. function: (victim, suspect, and parameters by name) to a similarity; NaN where it is not defined.

    kinds: of representation it can compare. representations: the only ones it makes sense for, if not empty. floor: the least
    standard deviation of scores that means something. trainer: what makes its parameters or graph while crafting,
    "module:function"; such a detector is also given ``graph``, a frozen network to run.
    learns_from: the models that the trainer wants. victim_only: what it compares with was fixed while crafting, so that no
    sibling can be put in the victim's place.
    """

    function: Callable[..., float]
    kinds: frozenset[Kind] = ANY
    representations: frozenset[str] = frozenset()
    floor: float = 1e-6
    trainer: str = ""
    learns_from: Need = Need.NOTHING
    victim_only: bool = False


def matching_rate(victim: Vectors, suspect: Vectors) -> float:
    """Share of equal entries, in [0, 1] (IPGuard section 4.1; 1 minus QuRD's Hamming distance)."""
    return _mean(victim == suspect)


def l1(victim: Vectors, suspect: Vectors, *, align: bool = False) -> float:
    """Minus the mean absolute difference; of correlation matrices this is SAC's eq. 4.

    align: bring the suspect's classes into the victim's order first, see ``align_classes`` (Zest section 3).
    """
    return -_mean(np.abs(victim - (align_classes(victim, suspect, "l1") if align else suspect)))


def l2(victim: Vectors, suspect: Vectors, *, align: bool = False) -> float:
    """Minus the root of the mean squared difference (QuRD's l2). align: as in ``l1``."""
    squares = np.square(victim - (align_classes(victim, suspect, "l2") if align else suspect))
    return -float(np.sqrt(_mean(squares)))


def cosine(victim: Vectors, suspect: Vectors, *, whole: bool = False, align: bool = False) -> float:
    """Cosine along the last axis, averaged over the others: one for a vector, a mean over rows for a table (QuRD's cosine).

    Rows of zeros, which have no direction, count 0; a victim with nothing but zeros gives NaN. whole: one cosine of all entries
    (Zest section 3). align: as in ``l1``.
    """
    if not victim.any():
        return float("nan")
    if align:
        suspect = align_classes(victim, suspect, "cosine")
    if whole:
        victim, suspect = victim.ravel(), suspect.ravel()
    dots = (victim * suspect).sum(axis=-1)
    norms = np.linalg.norm(victim, axis=-1) * np.linalg.norm(suspect, axis=-1)
    return _mean(dots / np.where(norms > 0, norms, 1))


def robustness(victim: Vectors, suspect: Vectors) -> float:
    """RobD: minus the difference between the shares of queries that victim and suspect get right (DeepJudge section 4.2)."""
    return -abs(_mean(victim) - _mean(suspect))


def _mean(values: NDArray[np.generic]) -> float:
    """The mean; NaN of nothing, as of pairs that were all cut short."""
    return float(np.asarray(values, np.float64).mean()) if np.size(values) else float("nan")


_BOTH = Need.SURROGATES | Need.REFERENCES

DETECTORS: Mapping[str, Detector] = MappingProxyType(
    {
        "matching-rate": Detector(matching_rate, DISCRETE),
        "hamming": Detector(matching_rate, DISCRETE),
        "cosine": Detector(cosine, NUMERIC),
        "l1": Detector(l1, NUMERIC),
        "l2": Detector(l2, NUMERIC),
        "mutual-information": Detector(mutual_information, frozenset({Kind.CATEGORIES})),
        "jensen-shannon": Detector(jensen_shannon, frozenset({Kind.DISTRIBUTIONS})),
        "robd": Detector(robustness, representations=frozenset({"correct"})),
        "layer-distance": Detector(layer_distance, representations=frozenset({"layer-means"})),
        "evidence": Detector(evidence, frozenset({Kind.RATIOS}), floor=1.0, victim_only=True),
        "welch": Detector(
            welch,
            representations=frozenset({"views"}),
            floor=1.0,
            trainer="onnxaudit.craft.learning.fitting:fit_welch",
            learns_from=Need.REFERENCES,
        ),
        "contrastive": Detector(
            contrastive, NUMERIC, floor=0.15, trainer="onnxaudit.craft.learning.contrastive:fit_contrastive", learns_from=_BOTH
        ),
        "verifier": Detector(
            verifier, NUMERIC, floor=1.0, trainer="onnxaudit.craft.learning.fitting:fit_verifier", learns_from=_BOTH
        ),
        "logistic": Detector(logistic, floor=1.0, trainer="onnxaudit.craft.learning.fitting:fit_logistic", learns_from=_BOTH),
    }
)
