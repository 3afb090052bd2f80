"""Detectors: how close a suspect's representation is to the victim's. Larger is closer, always; 0 or 1 is as close as can be."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from onnxaudit.schemes.information import jensen_shannon, mutual_information
from onnxaudit.schemes.learned import contrastive, logistic, verifier, welch
from onnxaudit.schemes.representations import Kind

Vectors: TypeAlias = NDArray[np.float64]

ANY = frozenset(Kind)
DISCRETE = frozenset({Kind.CATEGORIES, Kind.INDICATORS})
NUMERIC = frozenset({Kind.NUMBERS, Kind.DISTRIBUTIONS, Kind.INDICATORS})


@dataclass(frozen=True, slots=True, eq=False)
class Detector:
    """A detector by name. function: (victim, suspect, and parameters by name) to a similarity; NaN where it is not defined.

    kinds: of representation it can compare. representations: the only ones it makes sense for, if not empty. floor: the least
    standard deviation of scores that means something. trainer: what makes its parameters or graph while crafting,
    "module:function"; such a detector is also given ``graph``, a frozen network to run.
    """

    function: Callable[..., float]
    kinds: frozenset[Kind] = ANY
    representations: frozenset[str] = frozenset()
    floor: float = 1e-6
    trainer: str = ""


def matching_rate(victim: Vectors, suspect: Vectors) -> float:
    """Share of equal entries, in [0, 1] (IPGuard section 4.1; 1 minus QuRD's Hamming distance)."""
    return float((victim == suspect).mean())


def l1(victim: Vectors, suspect: Vectors) -> float:
    """Minus the mean absolute difference; of correlation matrices this is SAC's eq. 4."""
    return -float(np.abs(victim - suspect).mean())


def l2(victim: Vectors, suspect: Vectors) -> float:
    """Minus the root of the mean squared difference (QuRD's l2)."""
    return -float(np.sqrt(np.square(victim - suspect).mean()))


def cosine(victim: Vectors, suspect: Vectors) -> float:
    """Cosine along the last axis, averaged over the others: one for a vector, a mean over rows for a table (QuRD's cosine)."""
    dots = (victim * suspect).sum(axis=-1)
    norms = np.linalg.norm(victim, axis=-1) * np.linalg.norm(suspect, axis=-1)
    return float((dots / np.maximum(norms, 1e-12)).mean())


def robustness(victim: Vectors, suspect: Vectors) -> float:
    """RobD: minus the difference between the shares of queries that victim and suspect get right (DeepJudge section 4.2)."""
    return -abs(float(victim.mean()) - float(suspect.mean()))


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
        "welch": Detector(welch, representations=frozenset({"views"}), floor=1.0, trainer="onnxaudit.craft.fitting:fit_welch"),
        "contrastive": Detector(contrastive, NUMERIC, floor=0.05, trainer="onnxaudit.craft.contrastive:fit_contrastive"),
        "verifier": Detector(verifier, NUMERIC, floor=1.0, trainer="onnxaudit.craft.fitting:fit_verifier"),
        "logistic": Detector(logistic, floor=1.0, trainer="onnxaudit.craft.fitting:fit_logistic"),
    }
)
