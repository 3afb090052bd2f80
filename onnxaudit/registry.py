"""From what the user names to the adapter that opens it, through entry points that are imported only when used."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import cast

from onnxaudit.errors import UsageError
from onnxaudit.suspect import Suspect, Target

GROUP = "onnxaudit.adapters"


def adapters() -> dict[str, EntryPoint]:
    """The installed adapters by the kind of target they open: a file suffix, a URL scheme, or "python"."""
    return {point.name: point for point in entry_points(group=GROUP)}


def kind_of(source: str) -> str:
    """The kind of a target: "https" of a URL, "python" of module:function, "onnx" of model.onnx."""
    scheme, separator, _ = source.partition("://")
    if separator:
        return scheme.lower()
    path = Path(source)
    if not path.suffix and ":" in source and not path.exists():
        return "python"
    module, _, name = source.partition(":")
    if name.isidentifier() and all(part.isidentifier() for part in module.split(".")) and not path.exists():
        return "python"
    return path.suffix[1:].lower()


def open_suspect(target: Target) -> Suspect:
    """Open a target with the adapter for its kind; the result is a context manager.

    Raises UsageError for an unknown kind or a missing file, and whatever OnnxauditError the adapter raises.
    """
    kind = kind_of(target.source)
    point = next(iter(entry_points(group=GROUP, name=kind)), None)
    if point is None:
        known = ", ".join(sorted(f".{name}" for name in adapters() if name not in ("http", "https", "python")))
        shown = target.source.rpartition("@")[2].partition("?")[0]  # what stands before and after may be secret
        raise UsageError(f"nothing here opens {shown!r}", f"Give a file ({known}), a URL, or module:function.")
    if kind not in ("http", "https", "python") and not Path(target.source).is_file():
        raise UsageError(f"{target.source} is not a file", "Check the path.")
    return cast("Callable[[Target], Suspect]", point.load())(target)
