"""LiteRT (TensorFlow Lite) ``.tflite`` files, run by the built-in kernels on the CPU."""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxaudit.answers import Answers
from onnxaudit.archives import read_file
from onnxaudit.errors import ArtefactError, SuspectError, UsageError, missing_extra
from onnxaudit.suspect import Queries, Suspect, SuspectCard, Target
from onnxaudit_adapters.devices import wants_cuda
from onnxaudit_adapters.outputs import choose, class_names_of, read_output
from onnxaudit_adapters.signature import Signature, read_signature

IDENTIFIER = b"TFL3"
_MOST_BYTES = 1 << 32
"""Of a file: tables reach 2 GiB, and buffers may follow them."""
_MOST_BUFFERS = 1 << 18
_HINT = "Copy or convert it again."
_FLOATS = ("float32", "float16", "float64")
_WHOLE = ("int8", "uint8", "int16")


@dataclass(frozen=True, slots=True)
class Quantisation:
    """How whole numbers stand for real ones: ``real = scale * (number - zero)``."""

    scale: float
    zero: int
    dtype: np.dtype[Any]

    def numbers(self, reals: NDArray[np.generic]) -> NDArray[np.generic]:
        """Real values as the nearest numbers that there are."""
        limits = np.iinfo(self.dtype)
        whole = np.rint(np.asarray(reals, np.float64) / self.scale) + self.zero
        found: NDArray[np.generic] = np.clip(whole, limits.min, limits.max).astype(self.dtype)
        return found

    def reals(self, numbers: NDArray[np.generic]) -> NDArray[np.float32]:
        """Numbers as the real values that they stand for."""
        return ((numbers.astype(np.float64) - self.zero) * self.scale).astype(np.float32)


@dataclass(frozen=True, slots=True)
class Port:
    """An input or output. place: its tensor's number. quantisation: None where numbers stand for themselves."""

    name: str
    place: int
    quantisation: Quantisation | None


def open_litert(target: Target) -> LitertSuspect:
    """Open a ``.tflite`` file. The bytes that are hashed are the bytes that run.

    No delegate is used: which of them a machine has must not change answers. options of the target: ``output_name``,
    ``threads``. Raises ArtefactError for a file that is damaged, foreign, needs operations that LiteRT does not have or data
    from elsewhere; UsageError without LiteRT, or if it does not take one image or vector.
    """
    path = Path(target.source)
    data = read_file(path, _MOST_BYTES)
    if data[4:8] != IDENTIFIER:
        raise ArtefactError(f"{path.name} is no LiteRT model", _HINT)
    wants_cuda(target.device, "LiteRT", built_for_cuda=False)
    interpreter = _interpreter(data, path, target.options.get("threads"))
    given, signature = _signature(interpreter, target)
    try:
        interpreter.allocate_tensors()
    except Exception as error:  # its errors are RuntimeErrors or ValueErrors, by release
        raise ArtefactError(f"{path.name} cannot be run as a LiteRT model: {_reason(error)}", _HINT) from None
    card = SuspectCard(
        target.source,
        "litert",
        signature.spec,
        target.num_classes,
        hashlib.sha256(data).hexdigest(),
        signature.batch,
        signature.max_batch,
        {"ai-edge-litert": metadata.version("ai-edge-litert"), "device": "CPU"},
    )
    wanted = target.options.get("output_name")
    names = class_names_of(target.options)
    return LitertSuspect(interpreter, card, signature, given, names, None if wanted is None else str(wanted))


class LitertSuspect(Suspect):
    """An interpreter with its tensors allocated. output: the name of the output to read; None: chosen from the first answer."""

    def __init__(
        self,
        interpreter: Any,
        card: SuspectCard,
        signature: Signature,
        given: Port,
        class_names: Sequence[str] = (),
        output: str | None = None,
    ) -> None:
        self.card = card
        self._interpreter = interpreter
        self._signature = signature
        self._given = given
        self._class_names = class_names
        self._output = output
        self._size = signature.batch or 0  # of the batch that memory is laid out for
        self._ports = {port.name: port for port in _ports(interpreter.get_output_details(), card.source)}
        if output is not None and output not in self._ports:
            raise UsageError(f"{card.source} has no output {output!r}", f"It has {', '.join(self._ports)}.")

    def _ask(self, queries: Queries) -> Answers:
        """Answers to one batch. Raises UsageError for queries of another size, SuspectError if the runtime fails."""
        batch = self._signature.shaped(self.card.input.encode(queries))
        values = self._run(batch if self._given.quantisation is None else self._given.quantisation.numbers(batch))
        if self._output is None:
            self._output = next(iter(values)) if len(values) == 1 else choose(values, len(queries), self.card.num_classes)
        return read_output(values[self._output], len(queries), self.card.num_classes, self._class_names)

    def _run(self, batch: NDArray[np.generic]) -> dict[str, NDArray[np.generic]]:
        if self._interpreter is None:
            raise SuspectError(f"{self.card.source} is closed")
        try:
            if len(batch) != self._size:
                self._interpreter.resize_tensor_input(self._given.place, batch.shape)
                self._interpreter.allocate_tensors()
                self._size = len(batch)
            self._interpreter.set_tensor(self._given.place, batch)
            self._interpreter.invoke()
            return {name: self._read(port) for name, port in self._ports.items()}
        except Exception as error:  # its errors are RuntimeErrors or ValueErrors, by release
            self._size = 0  # what was laid out is not known
            raise SuspectError(f"{self.card.source} failed: {_reason(error)}") from error

    def _read(self, port: Port) -> NDArray[np.generic]:
        value: NDArray[np.generic] = self._interpreter.get_tensor(port.place)
        return value if port.quantisation is None else port.quantisation.reals(value)

    def close(self) -> None:
        """Let go of the interpreter and its memory."""
        self._interpreter = None


def _interpreter(data: bytes, path: Path, threads: object) -> Any:
    try:
        from ai_edge_litert.interpreter import Interpreter, OpResolverType
    except ImportError:
        raise missing_extra("LiteRT", "litert") from None
    check_model(data, path)
    resolver = OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    count = threads if isinstance(threads, int) else None
    try:
        return Interpreter(model_content=data, experimental_op_resolver_type=resolver, num_threads=count)
    except Exception as error:  # its errors are RuntimeErrors or ValueErrors, by release
        raise ArtefactError(f"{path.name} cannot be run as a LiteRT model: {_reason(error)}", _HINT) from None


def check_model(data: bytes, path: Path) -> None:
    """Raise ArtefactError if a model takes data from other files, or from outside of this one.

    LiteRT verifies the rest of the file itself, but adds up where a buffer ends in 64 bits.
    """
    from ai_edge_litert import schema_py_generated as schema

    try:
        model = schema.Model.GetRootAs(data, 0)
        elsewhere = any(getattr(model, f"{name}Length", lambda: 0)() for name in ("ExternalBuffers", "ExternalBufferGroups"))
        many = model.BuffersLength() > _MOST_BUFFERS  # a list is as long as it says, and may lie in itself
        buffers = () if many else (model.Buffers(place) for place in range(model.BuffersLength()))
        outside = any(buffer.Offset() + buffer.Size() > len(data) for buffer in buffers)
    except Exception as error:  # struct.error and others, from bytes that lead nowhere
        raise ArtefactError(f"{path.name} is damaged: {_reason(error)}", _HINT) from None
    if many:
        raise ArtefactError(f"{path.name} has more buffers than a model has", "It is not safe to open.")
    if elsewhere or outside:
        where = "in other files" if elsewhere else "outside of the file"
        raise ArtefactError(f"{path.name} keeps weights {where}", "It is not safe to open.")


def _signature(interpreter: Any, target: Target) -> tuple[Port, Signature]:
    """The only input, and what it takes."""
    details = interpreter.get_input_details()
    if len(details) != 1:
        named = ", ".join(str(detail["name"]) for detail in details) or "none"
        raise UsageError(f"{target.source} takes {len(details)} inputs ({named})", "A suspect must take one: images or vectors.")
    dims = _dims(details[0])
    if len(dims) == 4 and dims[1] == dims[3] and target.layout is None:
        target = dataclasses.replace(target, layout="NHWC")  # the format's own, where sizes do not tell
    dtype = np.dtype(details[0]["dtype"]).name
    (port,) = _ports(details, target.source)
    if port.quantisation is None and dtype not in (*_FLOATS, "uint8"):
        raise UsageError(f"{target.source} takes {dtype}", f"A suspect must take {', '.join(_FLOATS)}, or quantised images.")
    return port, read_signature(target, dims, "float32" if port.quantisation else dtype)


def _dims(detail: Mapping[str, Any]) -> list[int | None]:
    """Sizes of a tensor, None where any will do."""
    declared = detail.get("shape_signature")
    shape = detail["shape"] if declared is None or not len(declared) else declared
    return [int(size) if size > 0 else None for size in shape]


def _ports(details: Sequence[Mapping[str, Any]], source: str) -> list[Port]:
    """Inputs or outputs, by names that differ. Raises ArtefactError for a scale that makes no sense."""
    found: list[Port] = []
    for detail in details:
        known = {port.name for port in found}
        name = str(detail["name"]) or str(len(found))
        unique = name if name not in known else f"{name}:{len(found)}"
        found.append(Port(unique, int(detail["index"]), _quantisation(detail, source)))
    return found


def _quantisation(detail: Mapping[str, Any], source: str) -> Quantisation | None:
    """A tensor's scale and zero point; None where it has none."""
    dtype = np.dtype(detail["dtype"])
    parameters = detail["quantization_parameters"]
    scales, zeros = np.ravel(parameters["scales"]), np.ravel(parameters["zero_points"])
    if dtype.name not in _WHOLE or not len(scales):
        return None
    scale = float(scales[0])
    if len(scales) != 1 or len(zeros) != 1 or not math.isfinite(scale) or scale <= 0:
        raise ArtefactError(f"{source} has an input or output that is quantised in a way that makes no sense", _HINT)
    return Quantisation(scale, int(zeros[0]), dtype)


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split()).rstrip(".") or type(error).__name__
    return text if len(text) <= 200 else f"{text[:200]} …"
