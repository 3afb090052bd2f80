"""A small victim with models derived from it and independent ones, all trained within seconds, for tests that want a pool."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import nn

from onnxaudit.craft.data import Data, load_data
from onnxaudit.craft.sample import Material
from onnxaudit.craft.victim import Victim
from onnxaudit.suspect import InputSpec
from onnxaudit.zoo.recipes import extract_labels, extract_probabilities, fine_tune
from onnxaudit.zoo.training import Recipe, build, fit, logits, to_pixels

FIXTURES = Path(__file__).resolve().parent.parent / "fixtures"
SHAPE = (28, 28, 1)
RECIPE = Recipe("lenet", width=0.5, epochs=8, batch=64, lr=8e-3, flip=False)


@dataclass(frozen=True, slots=True, eq=False)
class Pool:
    """surrogates, references: for making queries; the held_out ones judge them. data: seen by no model in training."""

    victim: Victim
    surrogates: list[Victim]
    references: list[Victim]
    held_out_surrogates: list[Victim]
    held_out_references: list[Victim]
    data: Data

    @property
    def material(self) -> Material:
        return Material(self.victim, self.data, self.surrogates, self.references)


def as_victim(module: nn.Module, spec: InputSpec | None = None, name: str = "test") -> Victim:
    """A module of the test's own as a victim, or as a peer."""
    program = module.eval().requires_grad_(False)
    program.zero_grad(set_to_none=True)
    return Victim(program, spec or InputSpec(SHAPE), torch.device("cpu"), "test", name, name).probed()


@cache
def pool() -> Pool:
    """600 images each for the victim, for what is derived from it and for references; 1,000 others for queries."""
    data = load_data(FIXTURES / "fashion/train.npz")
    assert data.y is not None
    x, y = to_pixels(data.x), torch.from_numpy(data.y)
    own, theirs, others = (slice(start, start + 600) for start in (0, 1000, 2000))
    victim = fit(build(RECIPE, SHAPE, 10), x[own], y[own], RECIPE)
    derived: list[nn.Module] = []
    independent: list[nn.Module] = []
    for seed in range(1, 7):
        recipe = dataclasses.replace(RECIPE, seed=seed, width=(0.4, 0.5, 0.6)[seed % 3])
        extract = (extract_probabilities, extract_labels)[seed % 2]
        tune = dataclasses.replace(recipe, epochs=2, lr=1e-3)
        derived.append(
            fine_tune(victim, x[theirs], y[theirs], tune)
            if seed % 3 == 0
            else extract(logits(victim, x[theirs]), x[theirs], recipe, SHAPE)
        )
        part = others if seed % 2 else theirs
        independent.append(fit(build(recipe, SHAPE, 10), x[part], y[part], dataclasses.replace(recipe, seed=seed + 50)))
    surrogates, references = (
        [as_victim(m, name=f"{kind}-{i}") for i, m in enumerate(models)]
        for kind, models in (("derived", derived), ("independent", independent))
    )
    return Pool(
        as_victim(victim), surrogates[:3], references[:3], surrogates[3:], references[3:], data.take(np.arange(3000, 4000))
    )
