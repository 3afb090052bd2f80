"""What samplers are tested with: the shipped victim and part of its data, and a linear victim of vectors."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from onnxaudit.craft.data import Data, load_data
from onnxaudit.craft.sample import Material, Sample
from onnxaudit.craft.victim import Victim, open_victim
from onnxaudit.suspect import InputSpec

FIXTURES = Path(__file__).resolve().parent.parent / "fixtures"
SHAPE = (28, 28, 1)


def quiet(done: int) -> None:
    """Progress that nobody watches."""


def sampled(function: Callable[..., Sample], material: Material, n: int, seed: int = 5, **parameters: Any) -> Sample:
    """A sampler's sample from a generator of its own."""
    return function(material, n, np.random.default_rng(seed), quiet, **parameters)


@cache
def shipped() -> Material:
    """The victim of the fixtures and 1200 labelled images, of which it gets some sixty wrong."""
    victim = open_victim(FIXTURES / "zoo/victim.pt", InputSpec(SHAPE), device="cpu").probed()
    return Material(victim, load_data(FIXTURES / "fashion/train.npz").take(np.arange(1200)))


def as_victim(module: nn.Module, spec: InputSpec) -> Victim:
    """A module of the test's own as a victim."""
    return Victim(module.eval().requires_grad_(False), spec, torch.device("cpu"), "test", "", "test").probed()


def tabular(n: int = 40, wide: float = 50.0) -> Material:
    """A linear victim of three classes on labelled vectors, one of whose features ranges wider than the others."""
    rng = np.random.default_rng(4)
    linear = nn.Linear(6, 3)
    with torch.no_grad():
        linear.weight.copy_(torch.from_numpy(rng.normal(size=(3, 6))))
        linear.bias.copy_(torch.from_numpy(rng.normal(size=3)))
    x = rng.normal(size=(n, 6)).astype(np.float32) * np.array([1, 1, 1, 1, 1, wide], np.float32)
    return Material(as_victim(linear, InputSpec((6,), "NC")), Data(x, rng.integers(0, 3, n), (), ""))
