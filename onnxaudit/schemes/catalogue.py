"""The catalogue: every scheme as query sampler + representation + detector, one line each. NumPy only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Flag, auto
from types import MappingProxyType
from typing import Any

from onnxaudit.answers import Access
from onnxaudit.errors import UsageError


class Need(Flag):
    """What crafting a scheme takes beyond the victim."""

    NOTHING = 0
    GRADIENTS = auto()
    DATA = auto()
    LABELS = auto()


@dataclass(frozen=True, slots=True, eq=False)
class Scheme:
    """A fingerprinting method. sampling: parameters of the sampler; representing: of the representation."""

    name: str
    paper: str
    needs: Need
    sampler: str
    representation: str
    detector: str
    access: Access = Access.LABEL
    sampling: Mapping[str, Any] = field(default_factory=dict)
    representing: Mapping[str, Any] = field(default_factory=dict)

    def resolution(self, queries: int) -> float:
        """The least standard deviation of the score that means something: for a rate, its largest sampling error.

        All references may match none of IPGuard's points; an innocent that matches three of a hundred is then no outlier.
        """
        return 0.5 / queries**0.5 if self.detector == "matching-rate" else 1e-6


_IPGUARD = "IPGuard (Cao et al. 2021)"
_SAC = "SAC (Guan et al. 2022)"
_QURD = "QuRD (Godinot et al. 2025)"
_DATA, _LABELS, _GRADIENTS = Need.DATA, Need.DATA | Need.LABELS, Need.GRADIENTS

CATALOGUE: Mapping[str, Scheme] = MappingProxyType(
    {
        scheme.name: scheme
        for scheme in (
            Scheme("ipguard-tl", _IPGUARD, _GRADIENTS | _DATA, "boundary", "labels", "matching-rate", Access.LABEL,
                   {"start": "training", "target": "least-likely"}),
            Scheme("ipguard-tr", _IPGUARD, _GRADIENTS | _DATA, "boundary", "labels", "matching-rate", Access.LABEL,
                   {"start": "training", "target": "random"}),
            Scheme("ipguard-rl", _IPGUARD, _GRADIENTS, "boundary", "labels", "matching-rate", Access.LABEL,
                   {"start": "random", "target": "least-likely"}),
            Scheme("ipguard-rr", _IPGUARD, _GRADIENTS, "boundary", "labels", "matching-rate", Access.LABEL,
                   {"start": "random", "target": "random"}),
            Scheme("sac-m", _SAC, _DATA, "cutmix", "correlation", "l1", Access.PROBS,
                   {"box": "standard", "flip": "horizontal"}, {"kernel": "cosine", "feed": "probs"}),
            Scheme("sac-m-rbf", _SAC, _DATA, "cutmix", "correlation", "l1", Access.PROBS,
                   {"box": "standard", "flip": "horizontal"}, {"kernel": "rbf", "feed": "probs"}),
            Scheme("akh", _QURD, _LABELS, "errors", "labels", "matching-rate", Access.LABEL),
            Scheme("random", _QURD, _DATA, "natural", "labels", "matching-rate", Access.LABEL),
        )
    }
)  # fmt: skip

ALIASES: Mapping[str, str] = MappingProxyType({"ipguard": "ipguard-tl"})


def scheme(name: str) -> Scheme:
    """The scheme of that name. Raises UsageError listing the names."""
    found = CATALOGUE.get(ALIASES.get(name, name))
    if found is None:
        raise UsageError(f"there is no scheme {name!r}", f"Choose from: {', '.join([*CATALOGUE, *ALIASES])}.")
    return found


def portfolio(*, data: bool, labels: bool) -> tuple[list[str], str]:
    """What ``--scheme auto`` takes, and why: no data, IPGuard from noise; data, also SAC-m; labels, also AKH."""
    if not data:
        return ["ipguard-rl"], "no data given: boundary points from noise only (give --data for more power)"
    if not labels:
        return ["ipguard-tl", "sac-m"], "data without labels: boundary points and correlations (labels would add akh)"
    return ["ipguard-tl", "sac-m", "akh"], "labelled data: boundary points, correlations and natural errors"
