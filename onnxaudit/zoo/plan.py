"""A zoo's plan: the models that are to be made, each with all that its weights depend on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from onnxaudit.zoo.training import Recipe

METHODS: Mapping[str, frozenset[str]] = MappingProxyType(
    {
        "train": frozenset({"rows"}),
        "forest": frozenset({"rows", "trees"}),
        "export": frozenset(),
        "fp16": frozenset(),
        "int8-static": frozenset(),
        "int8-dynamic": frozenset(),
        "fine-tune": frozenset({"last", "reset"}),
        "transfer": frozenset({"last"}),
        "prune-weights": frozenset({"share"}),
        "prune-filters": frozenset({"share"}),
        "fine-prune": frozenset({"share"}),
        "add-noise": frozenset({"scale"}),
        "extract-labels": frozenset({"rows"}),
        "extract-probabilities": frozenset({"rows", "temperature", "mixed"}),
        "extract-top": frozenset({"rows", "k"}),
        "extract-adversarially": frozenset({"rows", "radius", "hardening"}),
    }
)
"""What makes a model, and the options it has besides those of its training."""
CONVERSIONS = ("export", "fp16", "int8-static", "int8-dynamic")
FRESH = ("train", "forest")
"""Methods that know nothing of the victim."""
FROM_WEIGHTS = ("fine-tune", "transfer", "prune-weights", "prune-filters", "fine-prune", "add-noise")
"""Methods that change a copy of the victim."""
FROM_ANSWERS = ("extract-labels", "extract-probabilities", "extract-top", "extract-adversarially")
"""Methods that train a fresh network on what the victim says."""


@dataclass(frozen=True, slots=True)
class Planned:
    """One model to be made. part: of the data, by name. least: share of the victim's accuracy below which it is left out.

    parent: the name of the model that is converted, or served by a server that does the ``deployed`` steps.
    """

    name: str
    kind: str
    task: str
    method: str
    part: str = ""
    recipe: Recipe = field(default_factory=Recipe)
    options: Mapping[str, Any] = field(default_factory=dict)
    labels: str = ""
    parent: str = ""
    deployed: tuple[str, ...] = ()
    least: float = 0.0


@dataclass(frozen=True, slots=True)
class DataPlan:
    """How the data is divided. queries, test: inputs set aside for crafting and for measuring accuracy; they train no model.

    parts: what is left, in random order, as shares from where to where.
    """

    queries: int = 4000
    test: int = 6000
    parts: Mapping[str, tuple[float, float]] = field(default_factory=lambda: {"own": (0.0, 0.5), "attacker": (0.5, 1.0)})


@dataclass(frozen=True, slots=True)
class Plan:
    """data: how it is divided; labels: other label sets and where their data is; victim: how one is trained if none is given."""

    data: DataPlan
    labels: Mapping[str, str]
    victim: Recipe
    models: tuple[Planned, ...]
