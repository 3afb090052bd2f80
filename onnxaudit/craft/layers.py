"""What a program computes on the way: outputs of its layers, inputs of its ReLUs, penultimate features (torch).

TorchScript is given more outputs, by rewriting a copy of its graph; modules and ``torch.export`` programs are watched while
they run.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from onnxaudit.craft.victim import Victim
from onnxaudit.errors import UsageError

CONVOLUTIONS = frozenset({"convolution", "_convolution", *(f"conv{kind}{d}d" for d in (1, 2, 3) for kind in ("", "_transpose"))})
LINEAR = {"linear": 0, "addmm": 1, "mm": 0}
"""Which argument of a linear layer is its input."""
NORMS = frozenset({"batch_norm", "native_batch_norm", "_native_batch_norm_legit_no_training"})
HINGES = frozenset({"relu", "relu6", "leaky_relu", "prelu", "rrelu", "hardtanh"})
"""Activations with a kink at 0; hardtanh only where its lower bound is 0, which is ReLU6."""
SMOOTH = frozenset({"gelu", "silu", "mish", "elu", "selu", "celu", "softplus", "sigmoid", "tanh", "hardswish", "hardsigmoid"})

Look: TypeAlias = Callable[[Tensor], "Inside"]


@dataclass(frozen=True, slots=True, eq=False)
class Inside:
    """One run of a program. output: what it returns.

    layers: outputs of convolutions and linear layers, after the batch norm that follows where there is one (so that a program
    whose norms were folded has the same layers), and of activations, in order; (n, channels, …). hinges: inputs of activations
    with a kink at 0. features, scores: what goes into the last linear layer, (n, d), and what comes out of it; None without one.
    Everything is differentiable.
    """

    output: Any
    layers: tuple[Tensor, ...]
    hinges: tuple[Tensor, ...]
    features: Tensor | None
    scores: Tensor | None


def features(program: Callable[[Tensor], Any], x: Tensor) -> Tensor:
    """The penultimate representation, (n, d): the last linear layer's input. Raises UsageError without such a layer."""
    found = look_inside(program)(x).features
    if found is None:
        raise UsageError("the model has no linear layer whose input would be its features", "Take another scheme.")
    return found


def watched(victim: Victim, read: Callable[[Inside], Tensor]) -> Callable[[Tensor], Tensor]:
    """A differentiable function from a victim's pixels (or vectors) to what ``read`` makes of its inside, (n, …)."""
    look = look_inside(victim.program)
    return dataclasses.replace(victim, program=lambda x: read(look(x)), normalised=False).logits


def look_inside(program: Callable[[Tensor], Any]) -> Look:
    """A function that runs the program on a batch and also tells what it computed on the way.

    Raises UsageError, here or when called, where no layer can be seen.
    """
    return _rewritten(program) if isinstance(program, torch.jit.ScriptModule) else _observed(program)


def _finished(output: Any, layers: list[tuple[Tensor, bool]], hinges: list[Tensor], last: list[Tensor]) -> Inside:
    """Layers with their channels behind the first axis. layers: with whether their channels are on the last axis.

    last: input and output of the last linear layer, if there is one.
    """
    if not layers:
        raise UsageError("no layer of the model can be seen", "Give TorchScript, a .pt2, or weights with --model.")
    channels = [value.movedim(-1, 1) if trailing and value.ndim > 2 else value for value, trailing in layers]
    before, after = last or (None, None)
    return Inside(output, tuple(channels), tuple(hinges), before.flatten(1) if before is not None else None, after)


class _Watch(TorchFunctionMode):
    """Notes down layers while PyTorch functions are called from Python."""

    def __init__(self) -> None:
        super().__init__()
        self.layers: list[tuple[Tensor, bool]] = []
        self.hinges: list[Tensor] = []
        self.last: list[Tensor] = []

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(getattr(function, "__name__", "")).split(".")[0]  # operators carry their overload after a dot
        given = (*args, *(kwargs or {}).values())
        plain = name.removesuffix("_")
        if plain not in HINGES | SMOOTH:
            result = function(*args, **(kwargs or {}))
            self._note_linear(name, given, result)
            return result
        before = given[0]
        if name != plain or any(value is True for value in given[1:]):  # in place: what it overwrites is kept
            kept = before.clone()
            if self.layers and self.layers[-1][0] is before:
                self.layers[-1] = kept, self.layers[-1][1]
            before = kept
        if plain in HINGES and (plain != "hardtanh" or (len(given) > 1 and given[1] == 0)):
            self.hinges.append(before)
        result = function(*args, **(kwargs or {}))
        self.layers.append((result, bool(self.layers) and self.layers[-1][1]))
        return result

    def _note_linear(self, name: str, given: tuple[Any, ...], result: Any) -> None:
        if name in CONVOLUTIONS or name in LINEAR:
            self.layers.append((result, name in LINEAR))
            self.last = [given[LINEAR[name]], result] if name in LINEAR else self.last
        elif name in NORMS and self.layers and given[0] is self.layers[-1][0]:
            self.layers[-1] = (result[0] if isinstance(result, tuple | list) else result), self.layers[-1][1]


def _observed(program: Callable[[Tensor], Any]) -> Look:
    def look(x: Tensor) -> Inside:
        with _Watch() as watch:
            output = program(x)
        return _finished(output, watch.layers, watch.hinges, watch.last)

    return look


def _rewritten(program: torch.jit.ScriptModule) -> Look:
    """A copy of a TorchScript program, frozen if it is not, that also returns what is inside."""
    if hasattr(program, "training"):  # a frozen one has no attributes left
        with torch.jit.optimized_execution(True):  # type: ignore[attr-defined]  # without, freezing leaves weights outside
            program = torch.jit.freeze(program.eval())
    graph = program.graph.copy()
    found = _Found(graph)
    inputs = list(graph.inputs())
    if len(inputs) != 2 or inputs[0].uses():
        raise UsageError("the TorchScript program keeps state or takes several inputs, so its layers cannot be seen")
    returned = [*graph.outputs(), *found.layers, *found.hinges, *found.last]
    several = graph.appendNode(graph.create("prim::TupleConstruct", returned, 1))
    several.output().setType(torch._C.TupleType([value.type() for value in returned]))
    graph.eraseOutput(0)
    graph.registerOutput(several.output())
    graph.eraseInput(0)
    function: Any = torch._C._create_function_from_graph("inside", graph)

    def look(x: Tensor) -> Inside:
        # optimised execution rewrites the program after its first runs, which moves results from one run to the next
        with torch.jit.optimized_execution(False):  # type: ignore[attr-defined]
            output, *rest = function(x)
        first, second = len(found.layers), len(found.layers) + len(found.hinges)
        layers = list(zip(rest[:first], found.trailing, strict=True))
        return _finished(output, layers, rest[first:second], rest[second:])

    return look


class _Found:
    """The values of a graph that are inside, in the order in which they are computed; the graph gets nodes that keep them."""

    def __init__(self, graph: Any) -> None:
        self.graph = graph
        self.layers: list[Any] = []
        self.trailing: list[bool] = []
        self.hinges: list[Any] = []
        self.last: list[Any] = []
        latest: Any = None  # the value of the last layer, of which self.layers may hold a copy
        for node in list(graph.nodes()):
            name = _name(node)
            plain = name.removesuffix("_")
            if any(_is_layer(inner) for block in node.blocks() for inner in _nodes(block)):
                raise UsageError("the TorchScript program decides while it runs which layers to use, so they cannot be seen")
            if plain in HINGES | SMOOTH:
                if plain in HINGES and (plain != "hardtanh" or node.inputsAt(1).toIValue() == 0):
                    self.hinges.append(self._kept(node.inputsAt(0), node, before=True))
                latest = self._append(node, bool(self.trailing) and self.trailing[-1])
            elif name in CONVOLUTIONS or name in LINEAR:
                latest = self._append(node, name in LINEAR)
                self.last = [node.inputsAt(LINEAR[name]), self.layers[-1]] if name in LINEAR else self.last
            elif name in NORMS and latest is not None and node.inputsAt(0).debugName() == latest.debugName():
                latest = node.outputsAt(0)
                self.layers[-1] = self._kept(latest, node)

    def _append(self, node: Any, trailing: bool) -> Any:
        self.layers.append(self._kept(node.output(), node))
        self.trailing.append(trailing)
        return node.output()

    def _kept(self, value: Any, node: Any, *, before: bool = False) -> Any:
        """The value as it is next to the node; a copy of it if an operation in place overwrites it later."""
        if not any(_name(use.user).endswith("_") for use in value.uses()):
            return value
        none = self.graph.create("prim::Constant", [], 1)
        none.output().setType(torch._C.NoneType.get())
        copy = self.graph.create("aten::clone", [value, none.output()], 1)
        if before:
            copy.insertBefore(node)
        else:
            copy.insertAfter(node)
        none.insertBefore(copy)
        return copy.output()


def _name(node: Any) -> str:
    return str(node.kind()).removeprefix("aten::")


def _is_layer(node: Any) -> bool:
    name = _name(node)
    return name in CONVOLUTIONS or name in LINEAR or name.removesuffix("_") in HINGES | SMOOTH


def _nodes(block: Any) -> Iterator[Any]:
    for node in block.nodes():
        yield node
        for inner in node.blocks():
            yield from _nodes(inner)
