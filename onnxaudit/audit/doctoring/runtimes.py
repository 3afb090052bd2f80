"""What runs models: ONNX Runtime and its providers, PyTorch, and the adapters with their runtimes."""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
from collections.abc import Iterator, Mapping
from importlib import metadata
from types import MappingProxyType
from typing import Any

from onnxaudit.audit.doctoring import packages
from onnxaudit.audit.doctoring.signs import Sign, one_line

RUNTIMES: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "onnxaudit_adapters.torchscript": ("torch", "torch"),
        "onnxaudit_adapters.openvino": ("openvino", "openvino"),
        "onnxaudit_adapters.litert": ("ai-edge-litert", "litert"),
        "onnxaudit_adapters.sklearn": ("skops", "sklearn"),
    }
)
"""The distribution that each of our own adapters needs beyond what onnxaudit always brings, and the extra with it."""
_PART, _TORCH, _ADAPTERS = "ONNX Runtime", "PyTorch", "adapters"


def onnx_runtime() -> Iterator[Sign]:
    """Which ONNX Runtime is here, whether others lie over it, and which of its providers give the right answers."""
    from onnxaudit.registry import providers

    installed = packages.runtimes_installed()
    yield from packages.doubled(installed)
    again = f"pip install --force-reinstall {installed[0] if len(installed) == 1 else 'onnxruntime'}"
    try:
        found = providers()
    except Exception as error:  # a damaged installation can raise anything
        yield Sign(_PART, "CPUExecutionProvider", "broken", one_line(error), again)
        return
    for name, problem in found.items():
        if not problem:
            yield Sign(_PART, name, "ok", "runs a tiny model and gives the right answers")
        else:
            yield Sign(_PART, name, "absent", problem, _advice(problem))


def _advice(problem: str) -> str:
    if "no NVIDIA GPU" in problem or "remote service" in problem:
        return ""  # nothing that can be installed changes it
    if "lib" in problem or ".dll" in problem:
        return "pip install 'onnxruntime-gpu[cuda,cudnn]', and a driver for that version of CUDA."
    return "Models run on the CPU instead: --device cpu."


def torch(full: bool) -> Iterator[Sign]:
    """PyTorch's build; full: it is imported, which takes seconds, and tried on a GPU."""
    sign = packages.torch()
    yield sign
    if not full or sign.state == "absent":
        return
    try:
        library: Any = importlib.import_module("torch")
        device = "cuda" if library.cuda.is_available() else "cpu"
        product = (library.eye(8, device=device) * 2) @ library.ones(8, 1, device=device)
        right = bool((product.cpu() == 2).all())
    except Exception as error:  # a damaged installation, or a driver that does not fit, can raise anything
        yield Sign(_TORCH, "works", "warning", one_line(error), "pip install --force-reinstall torch")
        return
    if not right:
        yield Sign(_TORCH, "works", "warning", f"multiplies wrongly on {device}", "pip install --force-reinstall torch")
    elif device == "cuda":
        yield Sign(_TORCH, "works", "ok", f"on CUDA {library.version.cuda}, {library.cuda.get_device_name(0)}")
    else:
        built = library.version.cuda is not None
        yield Sign(_TORCH, "works", "ok", f"on the CPU; {'no GPU is found' if built else 'built without CUDA'}")


def adapters(full: bool) -> Iterator[Sign]:
    """Every adapter, ours and others', and whether what it needs is there. full: it is imported."""
    from onnxaudit.registry import adapters as installed

    together: dict[tuple[str, str], list[str]] = {}
    for kind, found in sorted(installed().items()):
        together.setdefault(found, []).append(kind)
    for (reference, distribution), kinds in together.items():
        yield _adapter(kinds, reference, distribution, full)
    yield from _contested()


def _adapter(kinds: list[str], reference: str, distribution: str, full: bool) -> Sign:
    name = ", ".join(_form(kind) for kind in kinds)
    module = reference.partition(":")[0]
    by = "" if distribution == "onnxaudit" else f"{distribution} {packages.version(distribution) or ''}".strip()
    needed, extra = RUNTIMES.get(module, ("", ""))
    if needed and packages.version(needed) is None:
        return Sign(_ADAPTERS, name, "absent", f"needs {needed}", f"pip install 'onnxaudit[{extra}]'")
    if by and (missing := packages.lacking(distribution)):
        shown = " ".join(f"'{requirement}'" for requirement in missing)
        return Sign(_ADAPTERS, name, "warning", f"{by} needs {', '.join(missing)}", f"pip install {shown}")
    try:
        if full:
            pkgutil.resolve_name(reference)
            importlib.import_module(module)
        elif importlib.util.find_spec(module.partition(".")[0]) is None:
            raise ModuleNotFoundError(f"{module} is not there")
    except Exception as error:  # other people's code can raise anything when it is imported
        again = f"pip install --force-reinstall {distribution}" if distribution else ""
        return Sign(_ADAPTERS, name, "warning", one_line(error), again)
    runs = f"{needed} {packages.version(needed)}" if needed else ""
    return Sign(_ADAPTERS, name, "ok", by or runs or "ready")


def _form(kind: str) -> str:
    from onnxaudit.registry import NOT_SUFFIXES

    if kind == "python":
        return "module:function"
    return f"{kind}://" if kind in NOT_SUFFIXES else f".{kind}"


def _contested() -> Iterator[Sign]:
    """Kinds that several installed packages want to open: only one of them gets its way."""
    from onnxaudit.registry import GROUP, adapters

    wanted: dict[str, set[str]] = {}
    for point in metadata.entry_points(group=GROUP):
        wanted.setdefault(point.name, set()).add(point.dist.name if point.dist else "")
    used = adapters()
    for kind, distributions in sorted(wanted.items()):
        wins = used[kind][1]
        if distributions - {wins}:
            others = ", ".join(sorted(distributions - {wins}))
            words = f"{wins} opens it, not {others}"
            yield Sign(_ADAPTERS, _form(kind), "warning", words, "Uninstall the one that is not wanted.")
