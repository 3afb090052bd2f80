"""The owner's model, white box: its program, what it wants as input, and differentiable logits (torch)."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import importlib
import io
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from onnxaudit.archives import screen_exported, screen_torchscript, sniff
from onnxaudit.craft.room import BATCH, fitting
from onnxaudit.craft.threads import side_by_side
from onnxaudit.errors import ArtefactError, OnnxauditError, UsageError
from onnxaudit.suspect import InputSpec, Queries


@dataclass(frozen=True, slots=True, eq=False)
class Victim:
    """A loaded victim. program: takes what ``spec`` describes and gives (n, C) scores. normalised: they are probabilities.

    file: where a program came from whose weights were frozen when it was loaded. at_once: how many inputs one pass takes within
    bounded memory, known once it is ``probed``.
    """

    program: Callable[[Tensor], Any]
    spec: InputSpec
    device: torch.device
    kind: str
    sha256: str
    source: str
    num_classes: int = 0
    normalised: bool = False
    batch: int | None = None
    file: Path | None = None
    at_once: int = BATCH

    def logits(self, pixels: Tensor) -> Tensor:
        """Differentiable logits (n, C) of pixels in [0, 1], (n, C, H, W), or of vectors (n, d).

        A victim that ends in softmax gives log-probabilities, whose differences are those of its logits.
        """
        scores = self._scores(self._encode(pixels))
        return scores.clamp_min(1e-12).log() if self.normalised else scores

    def predict(self, inputs: Tensor | Queries) -> Tensor:
        """Logits (n, C) of any number of pixels, vectors or canonical queries, in batches, without gradients."""
        return self._each(inputs, self.logits)

    def answer(self, queries: Queries) -> NDArray[np.float32]:
        """What the victim itself says, (n, C): logits or probabilities, as it ends."""
        said: NDArray[np.float32] = self._each(queries, lambda pixels: self._scores(self._encode(pixels))).float().cpu().numpy()
        return said

    def _each(self, inputs: Tensor | Queries, say: Callable[[Tensor], Tensor]) -> Tensor:
        @torch.no_grad()
        def part(start: int) -> Tensor:
            rows = inputs[start : start + self.at_once]
            return say(rows if isinstance(rows, Tensor) else self.pixels(rows))

        with side_by_side(part, range(0, max(1, len(inputs)), self.at_once), self.device) as parts:
            return torch.cat(list(parts))

    def pixels(self, queries: Queries) -> Tensor:
        """Canonical queries as pixels in [0, 1], NCHW, or vectors, on the victim's device."""
        if queries.ndim == 2:
            return torch.tensor(queries, device=self.device)
        return torch.tensor(queries, device=self.device).permute(0, 3, 1, 2).float().div(255.0).contiguous()

    def _encode(self, pixels: Tensor) -> Tensor:
        spec = self.spec
        if pixels.ndim == 2:
            return pixels.to(getattr(torch, spec.dtype))
        if spec.channels == "BGR":
            pixels = pixels.flip(1)
        scaled = pixels * (255.0 * spec.scale)
        if spec.mean or spec.std:
            scaled = (scaled - _per_channel(spec.mean or (0.0,), scaled)) / _per_channel(spec.std or (1.0,), scaled)
        if spec.layout == "NHWC":
            scaled = scaled.permute(0, 2, 3, 1)
        return scaled.to(getattr(torch, spec.dtype))

    def _scores(self, encoded: Tensor) -> Tensor:
        # what the executor's optimiser does depends on which calls it saw first, and points are walked in several threads
        with torch.jit.optimized_execution(False):  # type: ignore[attr-defined]
            return self._in_batches(encoded)

    def _in_batches(self, encoded: Tensor) -> Tensor:
        if self.batch is None or len(encoded) == self.batch:
            return _first_tensor(self.program(encoded))
        parts = []
        for start in range(0, len(encoded), self.batch):
            part = encoded[start : start + self.batch]
            short = self.batch - len(part)
            padded = torch.cat([part, part[-1:].expand(short, *part.shape[1:])]) if short else part
            parts.append(_first_tensor(self.program(padded))[: len(part)])
        return torch.cat(parts)

    def portable(self) -> bytes | None:
        """The victim with weights that can be trained, as TorchScript from pixels to logits, for ``zoo.saving.copy_of``.

        None if it holds no float32 weights, takes one batch size only, or does not come out the same when traced.
        """
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the tracer's doubts are settled by comparing answers
            try:
                return self._traced()
            except (RuntimeError, ValueError, TypeError):  # programs that cannot be copied, traced or saved
                return None

    @torch.no_grad()
    def _traced(self) -> bytes | None:
        program = self._unfrozen()
        if program is None or self.batch is not None:
            return None
        weights = list(program.parameters())
        if not any(weight.ndim > 1 for weight in weights) or any(weight.dtype != torch.float32 for weight in weights):
            return None
        shape = self.spec.shape
        size = (shape[2], *shape[:2]) if len(shape) == 3 else shape
        own = dataclasses.replace(self, program=program, device=torch.device("cpu"))
        x = torch.rand(5, *size, generator=torch.Generator().manual_seed(0))
        traced = torch.jit.trace(_FromPixels(own, program), x[:2], check_trace=False)
        if not torch.allclose(traced(x), own.logits(x), rtol=1e-3, atol=1e-4):
            return None
        archive = io.BytesIO()
        torch.jit.save(traced, archive)
        return archive.getvalue()

    def _unfrozen(self) -> torch.nn.Module | None:
        """The program, on the CPU, with weights of its own that were not folded into constants."""
        if self.file is not None and self.kind == "torchscript":
            loaded: torch.nn.Module = torch.jit.load(str(self.file), map_location="cpu").eval()
            return loaded
        if self.file is not None and self.kind == "exported":
            # a copy leaves behind the checks of its input's size, which the tracer does not take
            return copy.deepcopy(torch.export.load(str(self.file)).module(check_guards=False))
        return copy.deepcopy(self.program).cpu().eval() if isinstance(self.program, torch.nn.Module) else None

    def probed(self) -> Victim:
        """The same victim with its number of classes and its kind of scores read off an answer to grey and noisy inputs."""
        shape = self.spec.shape
        pixels = torch.rand(
            4, *((shape[2], *shape[:2]) if len(shape) == 3 else shape), generator=torch.Generator().manual_seed(0)
        )
        try:
            with torch.no_grad():
                scores = self._scores(self._encode(pixels.to(self.device)))
        except (RuntimeError, ValueError, AssertionError) as error:
            reason = str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__
            raise UsageError(
                f"the victim does not take inputs of {'x'.join(map(str, shape))} ({self.spec.layout}): {reason}",
                "Give data of its size, or --input, --layout.",
            ) from None
        if scores.ndim != 2 or len(scores) != 4 or scores.shape[1] < 2:
            raise UsageError(f"the victim answers {tuple(scores.shape)} to 4 inputs, not a row of class scores each")
        if not torch.isfinite(scores).all():
            raise ArtefactError("the victim answers NaN or infinity")
        sums = (scores.min() >= 0) and (scores.sum(1) - 1).abs().max() < 1e-3
        at_once = fitting(lambda x: self._scores(self._encode(x)), pixels.to(self.device), self.batch)
        return dataclasses.replace(self, num_classes=scores.shape[1], normalised=bool(sums), at_once=at_once)


class _FromPixels(torch.nn.Module):
    """A victim as a module whose weights are those of its program."""

    def __init__(self, victim: Victim, program: torch.nn.Module) -> None:
        super().__init__()
        self.program = program
        self._victim = victim

    def forward(self, pixels: Tensor) -> Tensor:
        return self._victim.logits(pixels)


def _per_channel(values: tuple[float, ...], like: Tensor) -> Tensor:
    return torch.tensor(values, dtype=torch.float32, device=like.device).reshape(1, -1, 1, 1)


def _first_tensor(output: Any) -> Tensor:
    """The scores in a program's output: a tensor, or the first one with two axes in a tuple or dict."""
    if isinstance(output, Tensor):
        return output
    parts = list(output.values()) if isinstance(output, dict) else list(output)
    found = next((part for part in parts if isinstance(part, Tensor) and part.ndim == 2), None)
    if found is None:
        raise UsageError("the victim's output holds no tensor of class scores")
    return found


def choose_device(name: str) -> torch.device:
    """The torch device for auto, cpu or cuda. Raises UsageError if cuda is asked for and not there."""
    if name == "cuda" and not torch.cuda.is_available():
        raise UsageError("--device cuda: this PyTorch finds no GPU", "Use --device auto or cpu.")
    if name not in ("auto", "cpu", "cuda"):
        raise UsageError(f"--device {name!r} is not known", "Use auto, cpu or cuda.")
    return torch.device("cuda" if name == "cuda" or (name == "auto" and torch.cuda.is_available()) else "cpu")


def open_victim(
    path: Path, spec: InputSpec, *, device: str = "auto", model: str | None = None, allow_pickle: bool = False
) -> Victim:
    """Load a victim: TorchScript, ``torch.export`` archive, or weights for the module that ``model`` ("module:factory") makes.

    It has not been run yet: see ``Victim.probed``. The file is sniffed before torch touches it. Raises UsageError for a
    missing file or factory, ArtefactError for a foreign, damaged or (without ``allow_pickle``) pickled one.
    """
    if not path.is_file():
        raise UsageError(f"{path} is not a file", "Check the victim's path.")
    where = choose_device(device)
    kind = sniff(path)
    batch: int | None = None
    program: Any
    try:
        if kind == "torchscript":
            screen_torchscript(path)
            program = torch.jit.freeze(
                torch.jit.load(str(path), map_location=where).eval()
            )  # folds batch norms into convolutions
        elif kind == "exported":
            screen_exported(path)
            exported = torch.export.load(str(path))
            program, batch = exported.module(check_guards=False).to(where), _fixed_batch(exported)
        elif kind in ("weights", "safetensors"):
            program = _with_weights(_factory(model, path), path, kind).to(where).eval()
        elif kind == "pickle":
            program = _unpickle(path, model, allow_pickle).to(where).eval()
        else:
            raise ArtefactError(
                f"{path.name} is not a PyTorch model ({kind})", "Give TorchScript, a .pt2, or weights with --model."
            )
    except OnnxauditError:
        raise
    except Exception as error:  # torch, zipfile, pickle and safetensors each raise their own
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ArtefactError(f"{path.name} cannot be loaded: {reason[:200]}") from None
    for parameter in program.parameters():
        parameter.requires_grad_(False)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return Victim(program, spec, where, kind, digest, path.name, batch=batch, file=path)


def _fixed_batch(exported: torch.export.ExportedProgram) -> int | None:
    name = exported.graph_signature.user_inputs[0]
    node = next(node for node in exported.graph.nodes if node.name == name)
    size = node.meta["val"].shape[0]
    return size if isinstance(size, int) else None


def _factory(model: str | None, path: Path) -> torch.nn.Module:
    if model is None:
        raise UsageError(f"{path.name} holds weights only", "Say what they belong to: --model module:factory")
    module, _, name = model.partition(":")
    sys.path.insert(0, str(Path.cwd()))
    try:
        factory = getattr(importlib.import_module(module), name)
    except Exception as error:  # the user's own code may raise anything
        raise UsageError(
            f"--model {model} cannot be imported: {type(error).__name__}: {error}",
            "Give it as module:factory, importable from here.",
        ) from None
    else:
        made = _made(factory, model)
    finally:
        sys.path.remove(str(Path.cwd()))
    if not isinstance(made, torch.nn.Module):
        raise UsageError(f"--model {model} makes a {type(made).__name__}, not a torch.nn.Module")
    return made


def _made(factory: Callable[[], Any], model: str) -> Any:
    try:
        return factory()
    except Exception as error:  # the user's own code may raise anything
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UsageError(
            f"--model {model} fails when it is called without arguments: {reason[:200]}",
            "Give a function that returns the network.",
        ) from error


def _with_weights(module: torch.nn.Module, path: Path, kind: str) -> torch.nn.Module:
    if kind == "safetensors":
        from safetensors.torch import load_file

        state: Any = load_file(path)
    else:
        state = torch.load(path, map_location="cpu", weights_only=True)
    if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
        state = state["state_dict"]
    try:
        module.load_state_dict(state)
    except RuntimeError as error:
        raise UsageError(f"the weights in {path.name} do not fit --model: {' '.join(str(error).split())[:200]}") from None
    return module


def _unpickle(path: Path, model: str | None, allow_pickle: bool) -> torch.nn.Module:
    if not allow_pickle:
        raise ArtefactError(
            f"{path.name} is a pickle, which can run any code when it is loaded",
            "Save the victim as TorchScript, .pt2 or weights; or pass --allow-pickle if you made this file yourself.",
        )
    sys.path.insert(0, str(Path.cwd()))
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=False)
    except Exception as error:  # unpickling runs foreign code, which may raise anything
        raise ArtefactError(
            f"{path.name} cannot be unpickled: {error}", "Run from the folder its classes can be imported from."
        ) from None
    finally:
        sys.path.remove(str(Path.cwd()))
    if isinstance(loaded, torch.nn.Module):
        return loaded
    if isinstance(loaded, dict) and model is not None:
        module = _factory(model, path)
        module.load_state_dict(loaded.get("state_dict", loaded))
        return module
    raise UsageError(f"{path.name} holds a {type(loaded).__name__}, not a module", "Give --model module:factory for weights.")
