"""Small distortions of images that gradients pass through, and noise for vectors (torch)."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from onnxaudit.craft.space import Space

NOISE = 0.05
IMAGE = ("identity", "mirror", "shear", "blur", "gaussian", "uniform", "resize", "translate")
VECTOR = ("identity", "gaussian", "uniform")


def distorted(space: Space, x: Tensor, rng: np.random.Generator, generator: torch.Generator) -> Tensor:
    """The batch under one distortion drawn at random (MetaFinger's list), in the box; differentiable in x."""
    kind = str(rng.choice(IMAGE if space.image else VECTOR))
    if kind == "mirror":
        return x.flip(3)
    if kind == "blur":
        return _blurred(x, float(rng.uniform(0.4, 1.0)))
    if kind in ("gaussian", "uniform"):
        draw = (
            torch.randn(x.shape, generator=generator) if kind == "gaussian" else 2 * torch.rand(x.shape, generator=generator) - 1
        )
        return space.clip(x + NOISE * space.width * draw.to(x.device))
    if kind in ("shear", "resize", "translate"):
        return _moved(x, kind, rng)
    return x


def _blurred(x: Tensor, sigma: float) -> Tensor:
    """Gaussian blur over 3x3 pixels, edges repeated."""
    line = torch.exp(-torch.tensor([1.0, 0.0, 1.0]) / (2 * sigma**2)).to(x.device)
    kernel = torch.outer(line, line) / line.sum() ** 2
    channels = x.shape[1]
    return functional.conv2d(
        functional.pad(x, (1, 1, 1, 1), "replicate"), kernel.expand(channels, 1, 3, 3).contiguous(), groups=channels
    )


def _moved(x: Tensor, kind: str, rng: np.random.Generator) -> Tensor:
    """Sheared by up to 0.2, resized to 80-100 % with a black border, or translated by up to a tenth."""
    matrix = torch.eye(2, 3)
    if kind == "shear":
        matrix[0, 1] = float(rng.uniform(-0.2, 0.2))
    elif kind == "resize":
        matrix[:, :2] /= float(rng.uniform(0.8, 1.0))
    else:
        matrix[:, 2] = torch.from_numpy(rng.uniform(-0.2, 0.2, 2))
    grid = functional.affine_grid(matrix.to(x.device).expand(len(x), 2, 3), list(x.shape), align_corners=False)
    return functional.grid_sample(x, grid, align_corners=False)
