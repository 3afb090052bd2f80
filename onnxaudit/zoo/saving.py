"""Trained networks as files: ONNX as deployed image models are, and TorchScript for those who take gradients (torch)."""

from __future__ import annotations

import io
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

DIFFERENTIABLE = ".torchscript"
"""Suffix of the copy that gradients are taken of: not one of a format's own, so that a folder's models are listed once."""


class _RawPixels(nn.Module):
    """A network behind what deployed image models take: uint8, NHWC."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.network(x.float().permute(0, 3, 1, 2) / 255.0)
        return scores


def save_network(model: nn.Module, shape: tuple[int, ...], path: Path) -> None:
    """Save a network that takes pixels in [0, 1], NCHW, or vectors: as ONNX at ``path``, and as TorchScript next to it."""
    save_differentiable(model, shape, path.with_suffix(DIFFERENTIABLE))
    save_uint8_onnx(model, shape, path)


def save_differentiable(model: nn.Module, shape: tuple[int, ...], path: Path) -> None:
    """The network itself as TorchScript: pixels in [0, 1], NCHW, or vectors go in. Written in one step."""
    example = torch.zeros(2, *((shape[2], *shape[:2]) if len(shape) == 3 else shape))
    temporary = path.with_suffix(".tmp")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        script = model if isinstance(model, torch.jit.ScriptModule) else torch.jit.trace(model.eval(), example, check_trace=False)
        torch.jit.save(script.eval(), str(temporary))
    temporary.replace(path)


def save_uint8_onnx(model: nn.Module, shape: tuple[int, ...], path: Path) -> None:
    """Export with a dynamic batch; images go in as uint8 NHWC, vectors as float32. Written in one step."""
    image = len(shape) == 3
    example = torch.zeros(1, *shape, dtype=torch.uint8 if image else torch.float32)
    temporary = path.with_suffix(".tmp")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        network: nn.Module = _RawPixels(model).eval() if image else model.eval()
        if isinstance(model, torch.jit.ScriptModule) and image:  # the exporter takes a script, but none inside a module
            network = torch.jit.trace(network, example, check_trace=False)
        torch.onnx.export(
            network,
            (example,),
            str(temporary),
            input_names=["input"],
            output_names=["logits"],
            dynamic_axes={"input": {0: "n"}, "logits": {0: "n"}},
            dynamo=False,
        )
    temporary.replace(path)


def copy_of(portable: bytes, device: torch.device) -> nn.Module:
    """A new copy of an archived TorchScript program, in eval mode, its weights to be trained or changed at will."""
    module: nn.Module = torch.jit.load(io.BytesIO(portable), map_location=device).eval()
    for weight in module.parameters():
        weight.requires_grad_(True)
    return module
