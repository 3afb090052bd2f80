"""ONNX and ORT files, run by ONNX Runtime."""

from __future__ import annotations

import contextlib
import hashlib
import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from onnxaudit.answers import Answers
from onnxaudit.archives import MAX_ONNX, read_file
from onnxaudit.errors import ArtefactError, SuspectError, UsageError
from onnxaudit.processor import int8_instructions
from onnxaudit.suspect import Queries, Suspect, SuspectCard, Target
from onnxaudit_adapters.devices import cuda_failed, wants_cuda
from onnxaudit_adapters.external import MAY_HAVE, external_files
from onnxaudit_adapters.naming import named_in
from onnxaudit_adapters.outputs import choose, class_names_of, read_output
from onnxaudit_adapters.signature import Signature, read_signature

_DTYPES = {"tensor(float)": "float32", "tensor(float16)": "float16", "tensor(double)": "float64", "tensor(uint8)": "uint8"}
_CUDA_OPTIONS = {"use_tf32": "0", "cudnn_conv_algo_search": "HEURISTIC"}
"""TF32 rounds to ten bits, which moves scores; exhaustive search picks another algorithm from run to run."""
_FATAL, _WARNING = 4, 2
INT8 = (b"QuantizeLinear", b"QLinear", b"MatMulInteger", b"ConvInteger")
"""Names that operators of 8-bit integers contain: what they answer depends a little on the processor."""


def open_onnx(target: Target) -> OnnxSuspect:
    """Open an ONNX or ORT file. The bytes that are hashed are the bytes that run.

    options of the target: ``output_name``; ``threads``, that run one model (default: ONNX Runtime's choice, all cores; where
    there is a process a core, one is right). Raises ArtefactError for a file that is damaged, foreign, or reaches outside its
    folder; UsageError if it does not take one image or vector, or the device cannot be had.
    """
    path = Path(target.source)
    data = read_file(path, MAX_ONNX)
    external = external_files(data, path) if data[4:8] != b"ORTM" and MAY_HAVE in data else {}
    session = _session(data, path, target.device, bool(external), target.options.get("threads"))
    given, signature = _signature(session, target)
    wanted = target.options.get("output_name")
    names = [output.name for output in session.get_outputs()]
    if wanted is not None and wanted not in names:
        raise UsageError(f"{path.name} has no output {wanted!r}", f"It has {', '.join(names)}.")
    runtime = {"onnxruntime": onnxruntime.__version__, "provider": session.get_providers()[0]}
    if any(name in data for name in INT8):
        runtime["cpu"] = int8_instructions()
    card = SuspectCard(
        source=target.source,
        kind="onnx",
        input=signature.spec,
        num_classes=target.num_classes,
        sha256=hashlib.sha256(data).hexdigest(),
        batch=signature.batch,
        # quantised on the fly with the range of the whole batch: an answer depends on its neighbours unless it has none
        max_batch=1 if b"DynamicQuantizeLinear" in data else signature.max_batch,
        runtime=runtime | {f"external:{name}": f"sha256:{digest}" for name, digest in external.items()},
        class_names=named_in(session.get_modelmeta().custom_metadata_map),
    )
    output = str(wanted) if wanted is not None else names[0] if len(names) == 1 else None
    return OnnxSuspect(session, card, signature, given, output, class_names_of(target.options))


class OnnxSuspect(Suspect):
    """A session of ONNX Runtime. output: the name of the output to read; None: chosen from the first answer."""

    def __init__(
        self,
        session: onnxruntime.InferenceSession,
        card: SuspectCard,
        signature: Signature,
        given: str,
        output: str | None = None,
        class_names: Sequence[str] = (),
    ) -> None:
        self.card = card
        self._session: onnxruntime.InferenceSession | None = session
        self._signature = signature
        self._given = given
        self._output = output
        self._class_names = class_names

    def _ask(self, queries: Queries) -> Answers:
        """Answers to one batch. Raises UsageError for queries of another size, SuspectError if the runtime fails."""
        feeds = self.feeds(queries)
        if self._output is None:
            values = dict(zip(self._names(), self._run(None, feeds), strict=True))
            self._output = choose(values, len(queries), self.card.num_classes)
            return read_output(values[self._output], len(queries), self.card.num_classes, self._class_names)
        (value,) = self._run([self._output], feeds)
        return read_output(value, len(queries), self.card.num_classes, self._class_names)

    def feeds(self, queries: Queries) -> dict[str, NDArray[np.generic]]:
        """Queries as the model takes them, by the name of its input. Raises UsageError for queries of another size."""
        return {self._given: self._signature.shaped(self.card.input.encode(queries))}

    def _names(self) -> list[str]:
        return [output.name for output in self._session.get_outputs()] if self._session else []

    def _run(self, outputs: list[str] | None, feeds: dict[str, NDArray[np.generic]]) -> list[Any]:
        if self._session is None:
            raise SuspectError(f"{self.card.source} is closed")
        try:
            values: list[Any] = self._session.run(outputs, feeds)
        except Exception as error:  # the runtime's errors have no common class of their own
            raise SuspectError(f"{self.card.source} failed: {_reason(error)}") from error
        return values

    def close(self) -> None:
        """Let go of the session and its memory."""
        self._session = None


def _session(data: bytes, path: Path, device: str, external: bool, threads: object = None) -> onnxruntime.InferenceSession:
    """A silent session of exactly these bytes. The defaults for threads were the fastest for small models that were tried."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = _FATAL
    if isinstance(threads, int):
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
    if external:
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(path.parent.resolve()))
    cuda = wants_cuda(device, "onnxruntime", "CUDAExecutionProvider" in onnxruntime.get_available_providers())
    providers: list[Any] = ["CPUExecutionProvider"]
    if cuda:
        options.use_deterministic_compute = True
        providers.insert(0, ("CUDAExecutionProvider", _CUDA_OPTIONS))
    try:
        with _quiet() if cuda else contextlib.nullcontext():
            # without enable_fallback=0 a failing provider is reported on stdout and swapped for another
            session = onnxruntime.InferenceSession(data, options, providers=providers, enable_fallback=0)
    except Exception as error:  # ONNX Runtime's errors share no base class
        if cuda and "CUDA" in str(error):
            if device == "cuda":
                raise cuda_failed("onnxruntime") from error
            return _session(data, path, "cpu", external, threads)
        raise ArtefactError(f"{path.name} cannot be run as an ONNX model: {_reason(error)}", "Export it again.") from None
    if device == "cuda" and session.get_providers()[0] != "CUDAExecutionProvider":
        raise cuda_failed("onnxruntime")
    return session


@contextlib.contextmanager
def _quiet() -> Any:
    """Find the CUDA libraries that pip installed, and keep a provider that cannot load from printing."""
    onnxruntime.set_default_logger_severity(_FATAL)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            getattr(onnxruntime, "preload_dlls", lambda: None)()
        yield
    finally:
        onnxruntime.set_default_logger_severity(_WARNING)


def _signature(session: onnxruntime.InferenceSession, target: Target) -> tuple[str, Signature]:
    """The name of the only input, and what it takes."""
    inputs = session.get_inputs()
    if len(inputs) != 1:
        named = ", ".join(node.name for node in inputs) or "none"
        raise UsageError(f"{target.source} takes {len(inputs)} inputs ({named})", "A suspect must take one: images or vectors.")
    node = inputs[0]
    if node.type not in _DTYPES:
        raise UsageError(f"{target.source} takes {node.type}", f"A suspect must take one of {', '.join(_DTYPES)}.")
    dims = [size if isinstance(size, int) and size > 0 else None for size in node.shape]
    return node.name, read_signature(target, dims, _DTYPES[node.type])


def _reason(error: Exception) -> str:
    """The runtime's message on one line, without its code and of bounded length."""
    text = re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", "", " ".join(str(error).split())).rstrip(".")
    return text if len(text) <= 200 else f"{text[:200]} …"
