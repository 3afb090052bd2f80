"""A network with layers of every kind, and how tests of looking inside make victims."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from onnxaudit.craft.data import load_data
from onnxaudit.craft.sample import Material
from onnxaudit.craft.victim import Victim, open_victim
from onnxaudit.suspect import InputSpec

FIXTURES = Path(__file__).resolve().parent.parent / "fixtures"
FASHION = (28, 28, 1)
CPU = torch.device("cpu")


def quiet(done: int) -> None:
    """Progress that nobody watches."""


def as_victim(module: nn.Module, spec: InputSpec) -> Victim:
    return Victim(module.eval().requires_grad_(False), spec, CPU, "test", "", "test").probed()


def zoo_material() -> Material:
    """The shipped victim, and its data."""
    victim = open_victim(FIXTURES / "zoo/victim.pt", InputSpec(FASHION), device="cpu").probed()
    return Material(victim, load_data(FIXTURES / "fashion/train.npz"))


class Residual(nn.Module):
    """Layers of every kind: norms to fold, operations in place, a sum, functions instead of modules, several kinds of bend."""

    def __init__(self, seed: int = 0, classes: int = 4) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.first, self.norm = nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6)
            self.second, self.act = nn.Conv2d(6, 6, 3, padding=1), nn.ReLU(inplace=True)
            self.dense, self.norm1, self.six = nn.Linear(6 * 16, 10), nn.BatchNorm1d(10), nn.ReLU6(inplace=True)
            self.smooth, self.last = nn.GELU(), nn.Linear(10, classes)
            for norm in (self.norm, self.norm1):
                norm.running_mean.normal_()  # type: ignore[union-attr]
                norm.running_var.uniform_(0.5, 2)  # type: ignore[union-attr]
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.norm(self.first(x)))
        x = torch.relu(x + self.second(x))
        x = nn.functional.max_pool2d(x, 2).flatten(1)
        x = self.smooth(self.six(self.norm1(self.dense(x))))
        scores: Tensor = self.last(x)
        return scores

    def by_hand(self, x: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """What ``Inside.layers`` and ``Inside.hinges`` are, written out."""
        a = self.norm(self.first(x))
        b = a.relu()
        c = self.second(b)
        d = b + c
        e = d.relu()
        f = self.norm1(self.dense(nn.functional.max_pool2d(e, 2).flatten(1)))
        g = f.clamp(0, 6)
        h = self.smooth(g)
        return [a, b, c, e, f, g, h, self.last(h)], [a, d, f]
