"""Small classifiers of different families, for references, suspects and tests (torch).

Every network takes pixels in [0, 1], NCHW (or float vectors, NC), normalises them with its own first layer, and returns
logits. ``width`` scales the number of channels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TypeAlias

import torch
from torch import Tensor, nn

Shape: TypeAlias = tuple[int, ...]
Build: TypeAlias = Callable[[Shape, int, float], nn.Module]


def _conv(channels_in: int, channels_out: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels_in, channels_out, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(channels_out),
        nn.ReLU(),
    )


class _Residual(nn.Module):
    """Two 3x3 convolutions with a skip connection."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            _conv(channels, channels), nn.Conv2d(channels, channels, 3, 1, 1, bias=False), nn.BatchNorm2d(channels)
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.body(x))


class _Dense(nn.Module):
    """A layer whose output is appended to its input (DenseNet)."""

    def __init__(self, channels: int, growth: int) -> None:
        super().__init__()
        self.body = _conv(channels, growth)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.body(x)], dim=1)


def _window(height: int, width: int, cells: int) -> tuple[tuple[int, int], tuple[int, int], int]:
    """Kernel and stride that pool (height, width) to ``cells`` in each direction, or to fewer where there are fewer; their count.

    Unlike adaptive pooling, ONNX has it.
    """
    cells = max(1, min(cells, height, width))
    stride = max(1, height // cells), max(1, width // cells)
    return (height - (cells - 1) * stride[0], width - (cells - 1) * stride[1]), stride, cells**2


def _halved(size: int, times: int) -> int:
    """A size after so many strided convolutions."""
    for _ in range(times):
        size = -(-size // 2)
    return size


def _channels(width: float, *sizes: int) -> list[int]:
    return [max(2, round(size * width)) for size in sizes]


def lenet(shape: Shape, classes: int, width: float = 1.0) -> nn.Module:
    """Two strided 5x5 convolutions and two dense layers."""
    height, breadth, channels = shape
    a, b, d = _channels(width, 8, 24, 48)
    cells = -(-height // 4) * -(-breadth // 4)
    return nn.Sequential(
        nn.BatchNorm2d(channels),
        nn.Conv2d(channels, a, 5, 2, 2),
        nn.ReLU(),
        nn.Conv2d(a, b, 5, 2, 2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(b * cells, d),
        nn.ReLU(),
        nn.Linear(d, classes),
    )


def vgg(shape: Shape, classes: int, width: float = 1.0) -> nn.Module:
    """Three 3x3 convolutions with max pooling, one dense layer."""
    height, breadth, channels = shape
    a, b, c = _channels(width, 12, 24, 40)
    kernel, stride, cells = _window(height // 4, breadth // 4, 3)
    return nn.Sequential(
        nn.BatchNorm2d(channels),
        _conv(channels, a),
        nn.MaxPool2d(2),
        _conv(a, b),
        nn.MaxPool2d(2),
        _conv(b, c),
        nn.MaxPool2d(kernel, stride),
        nn.Flatten(),
        nn.Linear(c * cells, classes),
    )


def resnet(shape: Shape, classes: int, width: float = 1.0) -> nn.Module:
    """Two stages of one residual block each, global average pooling."""
    channels = shape[2]
    a, b = _channels(width, 16, 32)
    return nn.Sequential(
        nn.BatchNorm2d(channels),
        _conv(channels, a, 3, 2),
        _Residual(a),
        _conv(a, b, 3, 2),
        _Residual(b),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(b, classes),
    )


def mobilenet(shape: Shape, classes: int, width: float = 1.0) -> nn.Module:
    """Depthwise separable convolutions."""
    height, breadth, channels = shape
    a, b, c = _channels(width, 16, 32, 64)
    kernel, stride, cells = _window(_halved(height, 2), _halved(breadth, 2), 2)
    return nn.Sequential(
        nn.BatchNorm2d(channels),
        _conv(channels, a, 3, 2),
        _conv(a, a, 3, 1, groups=a),
        _conv(a, b, 1),
        _conv(b, b, 3, 2, groups=b),
        _conv(b, c, 1),
        nn.AvgPool2d(kernel, stride),
        nn.Flatten(),
        nn.Linear(c * cells, classes),
    )


def densenet(shape: Shape, classes: int, width: float = 1.0) -> nn.Module:
    """Two blocks of two densely connected layers."""
    height, breadth, channels = shape
    a, growth = _channels(width, 12, 10)
    mid = a + 2 * growth
    kernel, stride, cells = _window(_halved(height, 1) // 2, _halved(breadth, 1) // 2, 2)
    return nn.Sequential(
        nn.BatchNorm2d(channels),
        _conv(channels, a, 3, 2),
        _Dense(a, growth),
        _Dense(a + growth, growth),
        nn.AvgPool2d(2),
        _Dense(mid, growth),
        _Dense(mid + growth, growth),
        nn.AvgPool2d(kernel, stride),
        nn.Flatten(),
        nn.Linear((mid + 2 * growth) * cells, classes),
    )


def mlp(shape: Shape, classes: int, width: float = 1.0) -> nn.Module:
    """Two hidden layers with batch normalisation; the only family here that also takes float vectors."""
    features = 1
    for size in shape:
        features *= size
    a, b = _channels(width, 64, 64)
    return nn.Sequential(
        nn.Flatten(),
        nn.BatchNorm1d(features),
        nn.Linear(features, a),
        nn.BatchNorm1d(a),
        nn.ReLU(),
        nn.Linear(a, b),
        nn.ReLU(),
        nn.Linear(b, classes),
    )


ARCHITECTURES: Mapping[str, Build] = MappingProxyType(
    {"lenet": lenet, "vgg": vgg, "resnet": resnet, "mobilenet": mobilenet, "densenet": densenet, "mlp": mlp}
)
