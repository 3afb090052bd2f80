"""The catalogue: every published scheme as query sampler + representation + detector, one line each. NumPy only."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from onnxaudit.schemes.detectors import DETECTORS
from onnxaudit.schemes.representations import REPRESENTATIONS
from onnxaudit.schemes.samplers import SAMPLERS, Need


@dataclass(frozen=True, slots=True, eq=False)
class Scheme:
    """A fingerprinting method. sampling, representing, detecting: parameters of its three parts that are not their defaults.

    queries: inputs that its paper sends to one suspect.
    """

    name: str
    paper: str
    sampler: str
    representation: str
    detector: str
    sampling: Mapping[str, Any] = field(default_factory=dict)
    representing: Mapping[str, Any] = field(default_factory=dict)
    detecting: Mapping[str, Any] = field(default_factory=dict)
    queries: int = 100

    @property
    def needs(self) -> Need:
        """What crafting it takes: what its sampler needs with these parameters, and for a learned detector models as well."""
        needs = SAMPLERS[self.sampler].needs
        for given in self.sampling.items():
            needs |= _FURTHER.get(given, Need.NOTHING)
        return needs | DETECTORS[self.detector].learns_from

    @property
    def access(self) -> str:
        """The access that its representation is made for, or what it looks at inside."""
        part = REPRESENTATIONS[self.representation]
        return part.inside or part.access.word


_FURTHER: Mapping[tuple[str, Any], Need] = MappingProxyType(
    {
        ("start", "training"): Need.DATA,
        ("rule", "entropy"): Need.REFERENCES,
        ("keep_if_references", "right"): Need.REFERENCES,
        ("unlike_references", True): Need.REFERENCES,
        ("select", "distant"): Need.REFERENCES,
    }
)
"""What values of samplers' parameters need beyond what the sampler does."""


def _from(start: str, target: str) -> Mapping[str, Any]:
    """IPGuard's variants: where points start, and which class they walk to."""
    return {"start": start, "target": target}


_IPGUARD, _FUAP = "IPGuard (Cao et al. 2021)", "FUAP (Peng et al. 2022)"
_SAC, _QURD = "SAC (Guan et al. 2022)", "QuRD (Godinot et al. 2025)"
_DEEPJUDGE = "DeepJudge (Chen et al. 2022)"

CATALOGUE: Mapping[str, Scheme] = MappingProxyType(
    {
        scheme.name: scheme
        for scheme in (
            Scheme("ipguard-tl", _IPGUARD, "boundary", "labels", "matching-rate", _from("training", "least-likely")),
            Scheme("ipguard-tr", _IPGUARD, "boundary", "labels", "matching-rate", _from("training", "random")),
            Scheme("ipguard-rl", _IPGUARD, "boundary", "labels", "matching-rate", _from("random", "least-likely")),
            Scheme("ipguard-rr", _IPGUARD, "boundary", "labels", "matching-rate", _from("random", "random")),
            Scheme("fgsm", _IPGUARD, "fgsm", "labels", "matching-rate"),
            Scheme("igsm", _IPGUARD, "igsm", "labels", "matching-rate"),
            Scheme("cw-l2", _IPGUARD, "cw-l2", "labels", "matching-rate"),
            Scheme("deepfool", "DeepFoolF (Wang, Chang 2021)", "deepfool", "labels", "matching-rate"),
            Scheme("fuap", _FUAP, "uap", "views", "contrastive", queries=4000),
            Scheme("fuap-t", _FUAP, "uap", "views", "welch", queries=4000),
            Scheme("sac-w", _SAC, "shared-negative", "correlation", "l1"),
            Scheme("sac-m", _SAC, "cutmix", "correlation", "l1"),
            Scheme("sac-m-rbf", _SAC, "cutmix", "correlation", "l1", {}, {"kernel": "rbf"}),
            Scheme("sac-normal", _SAC, "uniform", "correlation", "l1"),
            Scheme("sac-source", _SAC, "negative", "correlation", "l1"),
            Scheme("akh", _QURD, "negative", "labels", "matching-rate"),
            Scheme("random", _QURD, "uniform", "labels", "matching-rate"),
            Scheme("negative-adversarial", _QURD, "negative-adversarial", "labels", "matching-rate"),
            Scheme("modeldiff", "ModelDiff (Li et al. 2021)", "modeldiff", "ddv", "cosine", queries=200),
            Scheme(
                "zest",
                "ZestOfLIME (Jia et al. 2022)",
                "subsample",
                "lime",
                "cosine",
                {"views": 100},
                {},
                {"whole": True},
                queries=128_000,
            ),
            Scheme("deepjudge", _DEEPJUDGE, "certain-adversarial", "correct", "robd", queries=1000),
            Scheme("deepjudge-jsd", _DEEPJUDGE, "certain-adversarial", "probabilities", "jensen-shannon", queries=1000),
            Scheme("fbi", "FBI (Maho et al. 2023)", "benign", "ranks", "mutual-information"),
            Scheme("cae", "CAE (Lukas et al. 2021)", "conferrable", "labels", "matching-rate"),
            Scheme("afa", "AFA (Zhao et al. 2020), reconstructed", "transferable", "labels", "matching-rate"),
            Scheme("tafa", "TAFA (Pan et al. 2021), reconstructed", "activation-boundary", "labels", "matching-rate"),
            Scheme("metav", "MetaV (Pan et al. 2022)", "meta", "probabilities", "verifier"),
            Scheme("ssf", "SSF (He et al. 2019)", "sensitive", "labels", "matching-rate", queries=10),
            Scheme("line-up", "our own: siblings", "disagreement", "probabilities", "l1"),
            Scheme("line-up-cos", "our own: siblings", "disagreement", "logits", "cosine"),
            Scheme("contrast", "likelihood ratio of own pairs, our own", "contrast", "log-ratios", "evidence"),
            Scheme("modelgif", "ModelGiF (Song et al. 2023)", "gif-points", "gradient-field", "cosine", queries=256),
            Scheme("deepjudge-wb", _DEEPJUDGE, "neuron-fuzz", "layer-means", "layer-distance", queries=1600),
        )
    }
)

ALIASES: Mapping[str, tuple[str, ...]] = MappingProxyType({"ipguard": ("ipguard-tl",)})
"""Other names, and the schemes that each stands for."""

RESERVED: Mapping[str, str] = MappingProxyType(
    {"ewe": "a watermark: it changes how the victim is trained, so it cannot be crafted from a victim that exists"}
)
"""Names that a reader of the papers may look for, and why they are not here."""


def with_parameters(
    scheme: Scheme, name: str, *, sampling: Mapping[str, Any], representing: Mapping[str, Any], detecting: Mapping[str, Any]
) -> Scheme:
    """The scheme under another name and with more parameters."""
    return dataclasses.replace(
        scheme,
        name=name,
        sampling={**scheme.sampling, **sampling},
        representing={**scheme.representing, **representing},
        detecting={**scheme.detecting, **detecting},
    )


def portfolio(*, data: bool, labels: bool, siblings: bool = False) -> tuple[list[str], str]:
    """What ``--scheme auto`` takes, and why: without data IPGuard from noise; data add SAC-m, labels AKH, siblings a line-up."""
    if not data:
        return ["ipguard-rl"], "no data given: boundary points from noise only (give --data for more power)"
    names, why = ["ipguard-tl", "sac-m"], "data without labels: boundary points and correlations (labels would add akh)"
    if labels:
        names, why = [*names, "akh"], "labelled data: boundary points, correlations and natural errors"
    if siblings:
        names, why = [*names, "line-up", "line-up-cos"], why + "; siblings: what tells them apart"
    return names, why
