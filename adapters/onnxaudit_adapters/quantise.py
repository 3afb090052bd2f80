"""Exports of less precision of an ONNX file: half precision, and 8-bit integers with calibrated or dynamic ranges."""

from __future__ import annotations

import contextlib
import logging
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto
from onnxruntime import quantization

from onnxaudit.errors import ArtefactError, UsageError
from onnxaudit.suspect import InputSpec, Queries, Target
from onnxaudit_adapters.onnx import OnnxSuspect, open_onnx

BATCH = 50
"""Calibration inputs that are run together, fewer of large ones."""
KINDS = {
    "fp16": {TensorProto.FLOAT16},
    "int8-static": {TensorProto.INT8, TensorProto.UINT8},
    "int8-dynamic": {TensorProto.INT8, TensorProto.UINT8},
}
"""Kinds of export, and the types that weights have in them."""


def quantise(kind: str, source: Path, target: Path, calibration: Queries | None = None, spec: InputSpec | None = None) -> None:
    """Write an export of the float32 ONNX file ``source`` that takes the same inputs and gives float32 answers, in one step.

    kind: "fp16" (weights and arithmetic), "int8-static" (QDQ, weights per channel, ranges the extremes on ``calibration``) or
    "int8-dynamic" (ranges of every input as it comes). calibration: canonical queries. spec: how they become inputs where the
    file's signature does not say; default: pixels in [0, 1]. Equal inputs give equal bytes. Raises UsageError for an unknown
    kind, missing or unfit calibration, or a model in which there is nothing to convert; ArtefactError for one that cannot be,
    or whose export answers NaN to the calibration inputs.
    """
    if kind not in KINDS:
        raise UsageError(f"there is no export {kind!r}", f"Choose from: {', '.join(KINDS)}.")
    if kind == "int8-static" and (calibration is None or not len(calibration)):
        raise UsageError("int8-static needs inputs to calibrate on", "Give some hundred natural inputs.")
    before = _loaded(source)
    if TensorProto.FLOAT not in _weights(before):
        raise UsageError(f"{source.name} has no float32 weights", "Convert from the float32 model.")
    with tempfile.TemporaryDirectory() as folder, _quiet():
        written = Path(folder) / "written.onnx"
        try:
            if kind == "fp16":
                onnx.save(_halved(before), str(written))
            else:
                prepared = Path(folder) / "prepared.onnx"
                # ONNX's own inference of shapes is enough for classifiers; the symbolic one takes a second and another package
                quantization.quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
                _to_integers(kind, prepared, written, calibration, spec)
            if not _weights(onnx.load(str(written))) & KINDS[kind]:
                raise UsageError(f"{source.name} has no weights that {kind} would change")
            _try(written, calibration, spec)
        except (UsageError, ArtefactError):
            raise
        except Exception as error:  # what converts and what runs raises anything
            reason = " ".join(str(error).replace(str(written), "the export").split())[:200] or type(error).__name__
            raise ArtefactError(f"{source.name} cannot be converted to {kind}: {reason}") from error
        temporary = target.with_suffix(".tmp")
        try:
            temporary.write_bytes(written.read_bytes())
            temporary.replace(target)
        except OSError as error:
            raise ArtefactError(f"{target} cannot be written: {error.strerror or error}") from None


def _loaded(source: Path) -> onnx.ModelProto:
    try:
        return onnx.load(str(source))
    except FileNotFoundError:
        raise UsageError(f"{source} is not a file", "Check the path.") from None
    except Exception as error:  # protobuf's errors share no base class with the rest
        raise ArtefactError(f"{source.name} is not a readable ONNX file: {error}", "Export it again.") from None


def _weights(model: onnx.ModelProto) -> set[int]:
    """The element types of a model's constants, single numbers left out."""
    constants = [attribute.t for node in model.graph.node if node.op_type == "Constant" for attribute in node.attribute]
    return {tensor.data_type for tensor in [*model.graph.initializer, *constants] if np.prod(tensor.dims, dtype=np.int64) > 1}


def _halved(model: onnx.ModelProto) -> Any:
    """A model that computes in half precision between inputs and outputs of the types that they had."""
    from onnxruntime.transformers.float16 import convert_float_to_float16

    return convert_float_to_float16(model, keep_io_types=True)


def _to_integers(kind: str, prepared: Path, written: Path, calibration: Queries | None, spec: InputSpec | None) -> None:
    if kind == "int8-dynamic" or calibration is None:
        quantization.quantize_dynamic(str(prepared), str(written))
        return
    with open_onnx(_target(prepared, calibration, spec)) as suspect:
        quantization.quantize_static(
            str(prepared),
            str(written),
            _Calibration(suspect, calibration),
            quant_format=quantization.QuantFormat.QDQ,
            per_channel=True,
        )


def _try(written: Path, calibration: Queries | None, spec: InputSpec | None) -> None:
    """Raise whatever opening the export raises, or some answers of it: half precision may overflow, and then answers NaN."""
    if calibration is None:
        onnxruntime.InferenceSession(str(written), _silent(), providers=["CPUExecutionProvider"])
        return
    with open_onnx(_target(written, calibration, spec)) as suspect:
        suspect.ask(calibration[:BATCH])


def _target(path: Path, calibration: Queries, spec: InputSpec | None) -> Target:
    known = spec or InputSpec(tuple(calibration.shape[1:]), layout="NCHW" if calibration.ndim == 4 else "NC")
    return Target(str(path), known, device="cpu")


class _Calibration(quantization.CalibrationDataReader):  # type: ignore[misc]  # the library has no type hints
    """Batches of canonical queries as the model takes them; the last is filled up where the model's batches have one size."""

    def __init__(self, suspect: OnnxSuspect, queries: Queries) -> None:
        card = suspect.card
        # calibration keeps every layer's output of a batch, where an answer keeps one at a time
        size = card.batch or max(1, min(BATCH, (card.max_batch or BATCH) // 4))
        fill = -len(queries) % card.batch if card.batch else 0
        filled = np.concatenate([queries, np.repeat(queries[-1:], fill, axis=0)]) if fill else queries
        self._batches = (suspect.feeds(filled[i : i + size]) for i in range(0, len(filled), size))

    def get_next(self) -> dict[str, NDArray[np.generic]] | None:
        """The next batch by the name of the input, None after the last."""
        return next(self._batches, None)


def _silent() -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    return options


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the converters' remarks from the log: they use the root logger, and give it a handler where it has none."""
    root, handler = logging.getLogger(), logging.NullHandler()

    def nothing(record: logging.LogRecord) -> bool:
        return False

    root.addHandler(handler)
    root.addFilter(nothing)
    try:
        yield
    finally:
        root.removeFilter(nothing)
        root.removeHandler(handler)
