"""From what the user names to the adapter that opens it; an adapter is imported only when it is used.

Adapters of other packages are entry points of the group "onnxaudit.adapters", named by the suffix, URL scheme or "python" that
they open. Those that come with onnxaudit are listed here by name: looking through the metadata of every installed package
takes a tenth of a small check.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray

from onnxaudit.answers import Access
from onnxaudit.errors import UsageError
from onnxaudit.suspect import InputSpec, Queries, Suspect, Target

Graph: TypeAlias = Callable[[NDArray[np.float32]], NDArray[np.float32]]
"""A frozen network: (rows, features) to (rows, outputs)."""
GROUP = "onnxaudit.adapters"
SHIPPED: Mapping[str, str] = MappingProxyType(
    {
        "onnx": "onnxaudit_adapters.onnx:open_onnx",
        "ort": "onnxaudit_adapters.onnx:open_onnx",
        "pt": "onnxaudit_adapters.torchscript:open_torchscript",
        "ts": "onnxaudit_adapters.torchscript:open_torchscript",
        "pt2": "onnxaudit_adapters.torchscript:open_exported",
        "http": "onnxaudit_adapters.http:open_http",
        "https": "onnxaudit_adapters.http:open_http",
        "python": "onnxaudit_adapters.callable:open_callable",
    }
)
NOT_SUFFIXES = ("http", "https", "python")


def adapters() -> dict[str, tuple[str, str]]:
    """What opens each kind of target: the adapter as module:function, and the package that brings it."""
    from importlib.metadata import entry_points

    others = {point.name: (point.value, point.dist.name if point.dist else "") for point in entry_points(group=GROUP)}
    return {**others, **{kind: (reference, "onnxaudit") for kind, reference in SHIPPED.items()}}


def kind_of(source: str) -> str:
    """The kind of a target: "https" of a URL, "python" of module:function, "onnx" of model.onnx."""
    scheme, separator, _ = source.partition("://")
    if separator:
        return scheme.lower()
    path = Path(source)
    module, _, name = source.partition(":")
    if name.isidentifier() and all(part.isidentifier() for part in module.split(".")) and not path.exists():
        return "python"
    return path.suffix[1:].lower()


def open_suspect(target: Target) -> Suspect:
    """Open a target with the adapter for its kind; the result is a context manager.

    Raises UsageError for an unknown kind or a missing file, and whatever OnnxauditError the adapter raises.
    """
    kind = kind_of(target.source)
    reference = SHIPPED.get(kind) or adapters().get(kind, ("", ""))[0]
    if not reference:
        known = ", ".join(sorted(f".{name}" for name in adapters() if name not in NOT_SUFFIXES))
        shown = target.source.rpartition("@")[2].partition("?")[0]  # what stands before and after may be secret
        raise UsageError(f"nothing here opens {shown!r}", f"Give a file ({known}), a URL, or module:function.")
    if kind not in NOT_SUFFIXES and "://" not in target.source and not Path(target.source).is_file():
        raise UsageError(f"{target.source} is not a file", "Check the path.")
    return cast("Callable[[Target], Suspect]", pkgutil.resolve_name(reference))(target)


def suffixes() -> frozenset[str]:
    """Suffixes of the files that something here opens, with the dot."""
    return frozenset(f".{name}" for name in _kinds() if name not in NOT_SUFFIXES)


def is_endpoint(source: str) -> bool:
    """Whether an adapter opens the URL itself; other URLs name files to be fetched."""
    return "://" in source and kind_of(source) in _kinds()


@cache
def _kinds() -> frozenset[str]:
    return frozenset(adapters())


def weights_beside(data: bytes, path: Path) -> dict[str, str]:
    """Name and sha256 of other files that belong to a model. Raises ArtefactError where they are unsafe or missing."""
    if path.suffix.lower() == ".xml":
        return cast("Callable[[Path], dict[str, str]]", pkgutil.resolve_name("onnxaudit_adapters.openvino:weights_of"))(path)
    if path.suffix.lower() != ".onnx" or b"location" not in data:  # the key that each tensor in another file carries
        return {}
    return cast("Callable[[bytes, Path], dict[str, str]]", pkgutil.resolve_name("onnxaudit_adapters.external:external_files"))(
        data, path
    )


def read_target_file(path: Path, environ: Mapping[str, str]) -> Mapping[str, Any]:
    """What a target.toml says of an HTTP suspect: ``url``, ``input`` by the fields of Target, ``http`` options, and ``private``:
    whether it names classes that nothing explains. Raises UsageError or ArtefactError, before anything is sent.
    """
    read = pkgutil.resolve_name("onnxaudit_adapters.http.target_file:read_target_file")
    return cast("Callable[[Path, Mapping[str, str]], Mapping[str, Any]]", read)(path, environ)


def reduce_access(suspect: Suspect, access: Access, k: int) -> Suspect:
    """The suspect as one that gives no more than ``access``; the wrapper comes with the adapters."""
    return cast("Callable[[Suspect, Access, int], Suspect]", pkgutil.resolve_name("onnxaudit_adapters.access:Reduced"))(
        suspect, access, k
    )


def deployed_as(suspect: Suspect, steps: Sequence[str]) -> Suspect:
    """The suspect behind a server that changes inputs and answers: ``jpeg:quality=50``, ``round:digits=2`` …; [] is itself.

    Raises UsageError for a step that does not exist, or that cannot follow those before it.
    """
    return cast("Callable[[Suspect, Sequence[str]], Suspect]", pkgutil.resolve_name("onnxaudit_adapters.deployed:deployed_as"))(
        suspect, steps
    )


def check_deployment(steps: Sequence[str]) -> None:
    """Raise the UsageError that ``deployed_as`` would raise for these steps, before anything is opened."""
    cast("Callable[[Sequence[str]], object]", pkgutil.resolve_name("onnxaudit_adapters.deployed:parse_steps"))(steps)


def quantise(kind: str, source: Path, target: Path, calibration: Queries | None = None, spec: InputSpec | None = None) -> None:
    """Write the "fp16", "int8-static" or "int8-dynamic" export of a float32 ONNX file; the adapters bring what converts it.

    calibration: canonical queries, for "int8-static"; spec: how they become inputs where the file does not say. Raises
    UsageError or ArtefactError where it cannot be done, and then writes nothing.
    """
    cast("Callable[..., None]", pkgutil.resolve_name("onnxaudit_adapters.quantise:quantise"))(
        kind, source, target, calibration, spec
    )


def open_graph(graph: bytes) -> Graph:
    """A learned detector's frozen network, ready to run; the adapters bring what runs it. Raises ArtefactError for a bad one."""
    return cast("Callable[[bytes], Graph]", pkgutil.resolve_name("onnxaudit_adapters.graph:open_graph"))(graph)


def providers() -> Mapping[str, str]:
    """ONNX Runtime's execution providers: "" for one that really runs a model, else why it does not.

    Raises whatever a missing or damaged ONNX Runtime raises.
    """
    return cast("Callable[[], Mapping[str, str]]", pkgutil.resolve_name("onnxaudit_adapters.providers:providers"))()
