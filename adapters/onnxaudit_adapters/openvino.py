"""OpenVINO's IR: a ``.xml`` with its weights in the ``.bin`` of the same name beside it, run on the CPU."""

from __future__ import annotations

import hashlib
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import Any, cast
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray

from onnxaudit.answers import Answers
from onnxaudit.archives import read_file
from onnxaudit.errors import ArtefactError, SuspectError, UsageError, missing_extra
from onnxaudit.suspect import Queries, Suspect, SuspectCard, Target
from onnxaudit_adapters.devices import wants_cuda
from onnxaudit_adapters.outputs import choose, class_names_of, read_output
from onnxaudit_adapters.signature import Signature, read_signature

DTYPES: Mapping[str, str] = MappingProxyType({"f32": "float32", "f16": "float16", "f64": "float64", "u8": "uint8"})
EXACT: Mapping[str, object] = MappingProxyType(
    {
        # where a processor can, the default is bfloat16 and weights are quantised on the fly, which moves scores
        "INFERENCE_PRECISION_HINT": "f32",
        "EXECUTION_MODE_HINT": "ACCURACY",
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0",
        "PERFORMANCE_HINT": "LATENCY",
    }
)
_WIDTHS = ("64", "32", "16", "8", "4", "2", "1")
_MOST_XML = 1 << 26
"""Bytes of a .xml; as a tree it takes many times as much. Those of the largest networks have a few MiB."""
_MOST_DIMS, _MOST_DIM = 64, 1 << 64
_HINT = "Copy both files or convert it again."


def open_openvino(target: Target) -> OpenvinoSuspect:
    """Open an IR. The bytes that are hashed are the bytes that run.

    options of the target: ``output_name``, ``threads``. Raises ArtefactError for anything that is no IR, whose weights are
    missing, elsewhere or too small; UsageError without OpenVINO, or if it does not take one image or vector.
    """
    path = Path(target.source)
    xml, weights = _read(path)
    check_ir(xml, weights, path)
    wants_cuda(target.device, "OpenVINO", built_for_cuda=False)
    # what it would tell its makers over the network, and keep in the home folder, is nobody's business
    sys.modules.setdefault("openvino_telemetry", cast("ModuleType", None))
    try:
        import openvino
    except ImportError:
        raise missing_extra("OpenVINO", "openvino") from None
    core = openvino.Core()
    try:
        model = core.read_model(xml, weights or b"")
    except Exception as error:  # its errors are RuntimeErrors or its own, by release
        raise ArtefactError(f"{path.name} cannot be run as an OpenVINO model: {_reason(error)}", _HINT) from None
    signature = _signature(model, target)
    threads = target.options.get("threads")
    settings = dict(EXACT) | ({"INFERENCE_NUM_THREADS": threads} if isinstance(threads, int) else {})
    try:
        compiled = core.compile_model(model, "CPU", settings)
    except Exception as error:  # its errors are RuntimeErrors or its own, by release
        raise ArtefactError(f"{path.name} cannot be compiled by OpenVINO: {_reason(error)}", _HINT) from None
    beside = {} if weights is None else {f"external:{_bin(path).name}": f"sha256:{hashlib.sha256(weights).hexdigest()}"}
    card = SuspectCard(
        target.source,
        "openvino",
        signature.spec,
        target.num_classes,
        hashlib.sha256(xml).hexdigest(),
        signature.batch,
        signature.max_batch,
        {"openvino": openvino.__version__.partition("-")[0], "device": "CPU", **beside},
    )
    wanted = target.options.get("output_name")
    return OpenvinoSuspect(compiled, card, signature, class_names_of(target.options), None if wanted is None else str(wanted))


def weights_of(path: Path) -> dict[str, str]:
    """Name and sha256 of the weights beside an IR, {} if there are none. Raises ArtefactError if they lie elsewhere."""
    _, weights = _read(path)
    return {} if weights is None else {_bin(path).name: hashlib.sha256(weights).hexdigest()}


class OpenvinoSuspect(Suspect):
    """A compiled model. output: the name of the output to read; None: chosen from the first answer."""

    def __init__(
        self, compiled: Any, card: SuspectCard, signature: Signature, class_names: Sequence[str] = (), output: str | None = None
    ) -> None:
        self.card = card
        self._compiled = compiled
        self._signature = signature
        self._class_names = class_names
        self._output = output
        self._names = [_name(port, place) for place, port in enumerate(compiled.outputs)]
        if output is not None and output not in self._names:
            raise UsageError(f"{card.source} has no output {output!r}", f"It has {', '.join(self._names)}.")

    def _ask(self, queries: Queries) -> Answers:
        """Answers to one batch. Raises UsageError for queries of another size, SuspectError if the runtime fails."""
        values = self._run(self._signature.shaped(self.card.input.encode(queries)))
        if self._output is None:
            self._output = self._names[0] if len(values) == 1 else choose(values, len(queries), self.card.num_classes)
        return read_output(values[self._output], len(queries), self.card.num_classes, self._class_names)

    def _run(self, batch: NDArray[np.generic]) -> dict[str, object]:
        if self._compiled is None:
            raise SuspectError(f"{self.card.source} is closed")
        try:
            found = self._compiled([batch])
            # the arrays are views of memory that the next request writes over
            return {name: np.array(found[port]) for name, port in zip(self._names, self._compiled.outputs, strict=True)}
        except Exception as error:  # its errors are RuntimeErrors or its own, by release
            raise SuspectError(f"{self.card.source} failed: {_reason(error)}") from error

    def close(self) -> None:
        """Let go of the model and its memory."""
        self._compiled = None


def _bin(path: Path) -> Path:
    return path.with_suffix(".bin")


def _read(path: Path) -> tuple[bytes, bytes | None]:
    """The bytes of both files; None for weights that are not there."""
    beside = _bin(path)
    try:
        xml = read_file(path, _MOST_XML)
        if not beside.exists() and not beside.is_symlink():
            return xml, None
        if not beside.is_file() or not beside.resolve().is_relative_to(path.parent.resolve()):
            raise ArtefactError(f"{path.name} keeps weights outside its own folder ({beside.name})", "It is not safe to open.")
        return xml, read_file(beside)
    except OSError as error:
        raise ArtefactError(f"{path.name} cannot be read: {error.strerror or error}") from None


def check_ir(xml: bytes, weights: bytes | None, path: Path) -> None:
    """Raise ArtefactError unless this is an IR whose constants all lie inside its weights.

    OpenVINO opens by content: ONNX in a ``.xml`` would be read too, with files that it names. It works out sizes in 64 bits,
    which a forged shape overflows.
    """
    # entities could be files or grow without end, and no IR has any; no other encoding may hide them
    if b"\0" in xml or b"<!DOCTYPE" in xml or b"<!ENTITY" in xml:
        raise ArtefactError(f"{path.name} is no OpenVINO model: it declares entities, or is not UTF-8", "It is not safe to open.")
    try:
        root = ElementTree.fromstring(xml)
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        raise ArtefactError(f"{path.name} is damaged, or no OpenVINO model: {error}", _HINT) from None
    if root.tag != "net" or root.find("layers") is None:
        raise ArtefactError(f"{path.name} is XML, but no OpenVINO model", "Its root must be <net> with <layers>.")
    size = len(weights or b"")
    for element in root.iter():
        if "offset" in element.keys() and "size" in element.keys():  # noqa: SIM118 - an element's own "in" looks at its children
            problem = _outside(element, size)
            if problem and weights is None:
                raise ArtefactError(f"{path.name} needs its weights, {_bin(path).name}, which is not there", _HINT)
            if problem:
                raise ArtefactError(f"{path.name} has a constant that {problem}", _HINT)


def _outside(element: ElementTree.Element, available: int) -> str:
    """What is wrong with where a constant lies; "" if nothing is."""
    try:
        start, size = int(element.attrib["offset"]), int(element.attrib["size"])
        dims = [int(part) for part in element.get("shape", "").split(",", _MOST_DIMS) if part.strip()]
    except ValueError:
        return "has no sensible size"
    if start < 0 or size < 0 or any(not 0 <= dim <= _MOST_DIM for dim in dims):
        return "has no sensible size"
    if start + size > available:
        return f"ends at byte {start + size} of {available}"
    digits = "".join(filter(str.isdigit, element.get("element_type", "")[:4]))
    bits = int(digits) if digits in _WIDTHS else 1  # of the other types it is known at least that this is no less
    return f"is larger than its {size} bytes" if math.prod(dims) * bits > 8 * size else ""


def _signature(model: Any, target: Target) -> Signature:
    """What the only input takes."""
    if len(model.inputs) != 1:
        named = ", ".join(_name(port, place) for place, port in enumerate(model.inputs)) or "none"
        raise UsageError(
            f"{target.source} takes {len(model.inputs)} inputs ({named})", "A suspect must take one: images or vectors."
        )
    given = model.input(0)
    dtype = str(given.get_element_type().get_type_name())
    if dtype not in DTYPES:
        raise UsageError(f"{target.source} takes {dtype}", f"A suspect must take one of {', '.join(DTYPES)}.")
    shape = given.get_partial_shape()
    if shape.rank.is_dynamic:
        return read_signature(target, (), DTYPES[dtype])
    dims = [None if size.is_dynamic or size.get_length() < 1 else int(size.get_length()) for size in shape]
    return read_signature(target, dims, DTYPES[dtype])


def _name(port: Any, place: int) -> str:
    """A port's name; some have none, and then their place is one."""
    names = sorted(port.get_names())
    return str(names[0]) if names else str(place)


def _reason(error: Exception) -> str:
    """The end of the runtime's message, where it says what is wrong, on one line and of bounded length."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[-1].rstrip(".") if lines else type(error).__name__
    return text if len(text) <= 200 else f"{text[:200]} …"
