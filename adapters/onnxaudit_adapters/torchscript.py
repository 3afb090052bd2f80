"""TorchScript archives and ``torch.export`` programs, run by PyTorch, which is imported only when one is opened."""

from __future__ import annotations

import contextlib
import hashlib
import io
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from onnxaudit.answers import Answers
from onnxaudit.archives import Kind, screen_exported, screen_torchscript, sniff
from onnxaudit.errors import ArtefactError, OnnxauditError, SuspectError, UsageError, missing_extra
from onnxaudit.suspect import Queries, Suspect, SuspectCard, Target
from onnxaudit_adapters.devices import cuda_failed, wants_cuda
from onnxaudit_adapters.outputs import class_names_of, read_outputs
from onnxaudit_adapters.signature import Signature, read_signature

if TYPE_CHECKING:
    import torch

_HINTS: dict[Kind, str] = {
    "weights": "A suspect needs its program as well: TorchScript, .pt2 or ONNX.",
    "pickle": "Loading it could run any code. Ask for TorchScript, .pt2 or ONNX.",
    "safetensors": "A suspect needs its program as well: TorchScript, .pt2 or ONNX.",
    "onnx": "Give it the suffix .onnx.",
    "torchscript": "Give it the suffix .pt.",
    "exported": "Give it the suffix .pt2.",
}
_WORDS: dict[Kind, str] = {
    "weights": "weights only",
    "pickle": "a pickled Python object",
    "safetensors": "weights only (safetensors)",
    "onnx": "an ONNX model",
    "torchscript": "a TorchScript archive",
    "exported": "a torch.export program",
    "unknown": "no model that is known here",
}


def open_torchscript(target: Target) -> TorchSuspect:
    """Open a TorchScript archive; what it takes is the user's or the victim's spec, for the archive does not say.

    Raises ArtefactError for any other or an unsafe file, UsageError without PyTorch or the device asked for.
    """
    path = _checked(target, "torchscript")
    screen_torchscript(path)
    torch, device = _runtime(target)
    data = path.read_bytes()
    with _quiet(), _damage(path):
        module = torch.jit.load(io.BytesIO(data), map_location=device).eval()
    dtype = _own_dtype(module)
    signature = read_signature(target, (), dtype if target.spec.dtype != "uint8" else None)
    return TorchSuspect(module, _card(target, "torchscript", signature, data, device), signature, device, target.options)


def open_exported(target: Target) -> TorchSuspect:
    """Open a ``torch.export`` program; its input's shape says what it takes, and whether its batch is fixed.

    Raises ArtefactError for any other or an unsafe file, UsageError without PyTorch or the device asked for, or if it does not
    take one image or vector.
    """
    path = _checked(target, "exported")
    screen_exported(path)
    torch, device = _runtime(target)
    data = path.read_bytes()
    with _quiet(), _damage(path):
        program = torch.export.load(io.BytesIO(data))
        if device != "cpu":
            from torch.export.passes import move_to_device_pass

            program = move_to_device_pass(program, device)
        # guards are source code that the archive brings along; shapes are checked here instead
        module = program.module(check_guards=False)
    signature, least = _exported_signature(program, target)
    card = _card(target, "exported", signature, data, device)
    return TorchSuspect(module, card, signature, device, target.options, least)


class TorchSuspect(Suspect):
    """A program run by PyTorch. least: the fewest queries it takes at a time, for an exported batch of "two or more"."""

    def __init__(
        self,
        module: Callable[[torch.Tensor], object],
        card: SuspectCard,
        signature: Signature,
        device: str,
        options: Mapping[str, object] = MappingProxyType({}),
        least: int = 1,
    ) -> None:
        self.card = card
        self._module: Callable[[torch.Tensor], object] | None = module
        self._signature = signature
        self._device = device
        self._class_names = class_names_of(options)
        self._output = str(options["output_name"]) if "output_name" in options else None
        self._least = least

    def _ask(self, queries: Queries) -> Answers:
        """Answers to one batch. Raises UsageError for queries of another size, SuspectError if the program fails."""
        if self._module is None:
            raise SuspectError(f"{self.card.source} is closed")
        import torch

        n = len(queries)
        if n < self._least:
            queries = np.concatenate([queries, np.repeat(queries[-1:], self._least - n, axis=0)])
        batch = self._signature.shaped(self.card.input.encode(queries))
        try:
            # optimised execution rewrites the program after its first runs, which moves scores from one run to the next
            with _quiet(), torch.inference_mode(), torch.jit.optimized_execution(False), _exact(self._device):  # type: ignore[attr-defined]
                value = self._module(torch.from_numpy(batch).to(self._device))
        except Exception as error:  # a program can raise anything
            raise SuspectError(f"{self.card.source} failed: {_reason(error)}") from error
        answers = read_outputs(value, len(queries), self.card.num_classes, self._class_names, self._output)
        return answers.take(slice(0, n))

    def inside(self, kind: str, queries: Queries, **parameters: Any) -> NDArray[np.floating[Any]] | None:
        """See ``onnxaudit.craft.insight``. None where the program does not show it; raises SuspectError if it fails."""
        if self._module is None:
            raise SuspectError(f"{self.card.source} is closed")
        import torch

        from onnxaudit.craft.insight import Program, insight

        program = Program(
            self._module,
            self.card.input,
            torch.device(self._device),
            self.card.num_classes,
            batch=self.card.batch,
            least=self._least,
            most=self._signature.max_batch,
            dims=self._signature.dims,
        )
        try:
            with _quiet(), _exact(self._device):
                return insight(kind, program, queries, **parameters)
        except UsageError:  # no layer can be seen, or there is no gradient
            return None
        except Exception as error:  # a program can raise anything
            raise SuspectError(f"{self.card.source} failed to show its {kind}: {_reason(error)}") from error

    def close(self) -> None:
        """Let go of the program and its memory."""
        self._module = None


def _checked(target: Target, expected: Kind) -> Path:
    """The target's path, once its bytes are known to be what is expected."""
    path = Path(target.source)
    kind = sniff(path)
    if kind != expected:
        raise ArtefactError(
            f"{path.name} holds {_WORDS[kind]}, not {_WORDS[expected]}", _HINTS.get(kind, "Copy or export it again.")
        )
    return path


def _runtime(target: Target) -> tuple[Any, str]:
    """PyTorch itself, and the device to use."""
    try:
        import torch
    except ImportError:
        raise missing_extra("PyTorch", "torch") from None
    with _quiet():
        cuda = wants_cuda(target.device, "PyTorch", torch.version.cuda is not None)
        if cuda and not torch.cuda.is_available():
            if target.device == "cuda":
                raise cuda_failed("PyTorch")
            cuda = False
    return torch, "cuda" if cuda else "cpu"


def _card(target: Target, kind: str, signature: Signature, data: bytes, device: str) -> SuspectCard:
    import torch

    return SuspectCard(
        source=target.source,
        kind=kind,
        input=signature.spec,
        num_classes=target.num_classes,
        sha256=hashlib.sha256(data).hexdigest(),
        batch=signature.batch,
        max_batch=signature.max_batch,
        runtime={"torch": str(torch.__version__), "device": device},
    )


def _exported_signature(program: torch.export.ExportedProgram, target: Target) -> tuple[Signature, int]:
    """What an exported program takes, and the fewest at a time."""
    names = program.graph_signature.user_inputs
    if len(names) != 1:
        raise UsageError(f"{target.source} takes {len(names)} inputs", "A suspect must take one: images or vectors.")
    node = next(node for node in program.graph.nodes if node.name == names[0])
    value = node.meta["val"]
    dims = [size if isinstance(size, int) else None for size in value.shape]
    dtype = str(value.dtype).removeprefix("torch.")
    if dtype not in ("float32", "float16", "float64", "uint8"):
        raise UsageError(f"{target.source} takes {dtype}", "A suspect must take float32, float16, float64 or uint8.")
    signature = read_signature(target, dims, dtype)
    if not dims or dims[0] is not None:
        return signature, 1
    limits = program.range_constraints.get(value.shape[0].node.expr)
    return signature, max(1, int(limits.lower)) if limits is not None else 1


def _own_dtype(module: Any) -> str | None:
    """The type of a module's weights if they are not float32: what it will want as input."""
    floats = (str(weight.dtype).removeprefix("torch.") for weight in module.parameters() if weight.is_floating_point())
    dtype = next(floats, None)
    return dtype if dtype in ("float16", "float64") else None


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """No deprecation notices of PyTorch's own parts, and no log of what it tried before it failed."""
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)


@contextlib.contextmanager
def _damage(path: Path) -> Iterator[None]:
    """Whatever a loader raises on a damaged file, as ArtefactError."""
    try:
        yield
    except OnnxauditError:
        raise
    except Exception as error:  # torch, zipfile and pickle each raise their own
        raise ArtefactError(f"{path.name} cannot be loaded: {_reason(error)}", "Copy or export it again.") from None


def _exact(device: str) -> contextlib.AbstractContextManager[None]:
    """Full float32 and one algorithm on a GPU: TF32 rounds to ten bits, which moves scores."""
    if device == "cpu":
        return contextlib.nullcontext()
    import torch

    flags: contextlib.AbstractContextManager[None] = torch.backends.cudnn.flags(
        enabled=True, benchmark=False, deterministic=True, allow_tf32=False
    )
    return flags


def _reason(error: Exception) -> str:
    """The last line of an error that says anything (TorchScript puts its traceback first), of bounded length."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[-1].rstrip(".") if lines else type(error).__name__
    return text if len(text) <= 200 else f"{text[:200]} …"
