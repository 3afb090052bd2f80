"""How a classifier is built, found by watching it run: convolutions with their norms, what joins a sum, the last layer (torch).

Works on any module, TorchScript included: operators are seen where PyTorch dispatches them, and weights are known by their
memory.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from onnxaudit.errors import UsageError


@dataclass(frozen=True, slots=True)
class Convolution:
    """One convolution. weight, bias: names of its parameters; norm: of weight and bias of the batch norm behind it.

    joins: its output is added to another tensor, as that of the last one in a residual block is.
    """

    weight: str
    bias: str | None
    norm: tuple[str, str] | None
    joins: bool

    @property
    def parameters(self) -> tuple[str, ...]:
        """Everything that has one entry (or row) a filter; all zero in a channel make its output zero."""
        return tuple(name for name in (self.weight, self.bias, *(self.norm or ())) if name is not None)


@dataclass(frozen=True, slots=True)
class Structure:
    """convolutions: in order. head: names of weight and bias of the last linear layer. activity: see ``observe``."""

    convolutions: tuple[Convolution, ...]
    head: tuple[str, str | None]
    activity: tuple[Tensor, ...]


@dataclass(slots=True)
class _Seen:
    weight: str
    bias: str | None
    output: Tensor
    norm: tuple[str, str] | None = None
    joins: bool = False


@dataclass(slots=True, eq=False)
class _Notes:
    """What was seen so far; keeps every tensor, so that no memory is used twice. names: of parameters, by their memory."""

    names: dict[int, str]
    convolutions: list[_Seen] = field(default_factory=list)
    source: dict[int, _Seen] = field(default_factory=dict)
    head: tuple[str, str | None] | None = None
    kept: list[Any] = field(default_factory=list)

    def name(self, tensor: Any) -> str | None:
        return self.names.get(tensor.data_ptr()) if isinstance(tensor, Tensor) else None

    def note(self, operator: str, given: tuple[Any, ...], result: Any) -> None:
        first = result[0] if isinstance(result, tuple | list) else result
        self.kept += [given, result]
        if operator in ("convolution", "_convolution") and (weight := self.name(given[1])):
            self._came(first, _Seen(weight, self.name(given[2]), first))
        elif operator.endswith("batch_norm") or "batch_norm_legit" in operator:
            seen = self._source(given[0])
            names = self.name(given[1]), self.name(given[2])
            if seen is not None and names[0] and names[1]:
                seen.norm, seen.output = (names[0], names[1]), first
                self.source[first.data_ptr()] = seen
        elif operator in ("add", "add_"):
            for value in given[:2]:
                if (seen := self._source(value)) is not None:
                    seen.joins = True
        elif operator in ("addmm", "linear", "mm"):
            bias, weight_of = (given[0], given[2]) if operator == "addmm" else (given[2] if len(given) > 2 else None, given[1])
            if (weight := self.name(weight_of)) is not None:
                self.head = weight, self.name(bias)

    def _came(self, output: Tensor, seen: _Seen) -> None:
        self.convolutions.append(seen)
        self.source[output.data_ptr()] = seen

    def _source(self, value: Any) -> _Seen | None:
        return self.source.get(value.data_ptr()) if isinstance(value, Tensor) else None


class _Watch(TorchDispatchMode):
    def __init__(self, notes: _Notes) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.notes = notes

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        self.notes.note(function.overloadpacket.__name__, args, result)
        return result


@torch.no_grad()
def observe(model: nn.Module, x: Tensor) -> Structure:
    """The model's structure, seen on a batch x. activity: for each convolution the mean of its rectified output (behind the
    norm) a channel, (channels,): what fine-pruning ranks channels by (Liu, Dolan-Gavitt, Garg 2018).

    Raises UsageError for a model without a linear layer whose weights can be changed.
    """
    notes = _Notes({weight.data_ptr(): name for name, weight in model.named_parameters()})
    run: Callable[[Tensor], Any] = model.eval()
    with torch.jit.optimized_execution(False), _Watch(notes):  # type: ignore[attr-defined]
        run(x.to(next(model.parameters()).device))
    if notes.head is None:
        raise UsageError("the victim has no last linear layer whose weights can be changed", "Leave these recipes out.")
    found = tuple(Convolution(seen.weight, seen.bias, seen.norm, seen.joins) for seen in notes.convolutions)
    activity = tuple(seen.output.clamp(min=0).mean((0, *range(2, seen.output.ndim))) for seen in notes.convolutions)
    return Structure(found, notes.head, activity)
