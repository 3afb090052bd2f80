"""What is installed, read from the metadata of packages: nothing is imported, so that nothing slow or broken is run."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Sequence
from functools import cache
from importlib import metadata
from typing import TYPE_CHECKING

from onnxaudit import __version__
from onnxaudit.audit.doctoring.signs import Sign, State

if TYPE_CHECKING:
    from packaging.requirements import Requirement

PYTHON = (3, 11)
RUNTIME = "onnxruntime"
ESSENTIAL = ("numpy", "onnx", "onnxruntime", "onnxruntime-gpu", "safetensors", "typer")
"""Packages without which no .onnx file can be checked; the others are for reports, HTTP and scans."""
_FOR_DEVELOPERS = ("dev", "real")
"""Extras that bring what tests and benchmarks need."""


def python() -> Iterator[Sign]:
    """Python and onnxaudit itself."""
    found = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info < PYTHON:
        yield Sign("versions", "Python", "broken", found, "Install Python 3.11 or newer.")
    else:
        yield Sign("versions", "Python", "ok", found)
    installed = version("onnxaudit")
    if installed is None:
        advice = "Install it, so that adapters and requirements are found: pip install -e ."
        yield Sign("versions", "onnxaudit", "warning", f"{__version__}, run from a folder, not installed", advice)
    elif installed != __version__:
        advice = "Install it again: two copies lie over each other."
        yield Sign("versions", "onnxaudit", "warning", f"{__version__} runs, {installed} is installed", advice)
    else:
        yield Sign("versions", "onnxaudit", "ok", __version__)


def required() -> Iterator[Sign]:
    """Every package that onnxaudit cannot do without, and whether its version will do."""
    for requirement in _requirements():
        if "extra" in str(requirement.marker or "") or not _applies(requirement):
            continue
        name = _provider(requirement.name)
        found = version(name)
        if found is None:
            state: State = "broken" if name in ESSENTIAL else "warning"
            yield Sign("versions", name, state, "not installed", f"pip install '{_plain(requirement)}'")
        elif not requirement.specifier.contains(found, prereleases=True):
            words = f"{found}, which is not {requirement.specifier}"
            yield Sign("versions", name, "warning", words, f"pip install '{_plain(requirement)}'")
        else:
            yield Sign("versions", name, "ok", found)


def extras() -> Iterator[Sign]:
    """Every optional extra: its packages' versions, or what is missing of it."""
    for extra in metadata_extras():
        wanted = [found for found in _requirements() if _applies(found, extra) and not _applies(found)]
        missing = [requirement.name for requirement in wanted if version(requirement.name) is None]
        unfit = [
            f"{requirement.name} {have}"
            for requirement in wanted
            if (have := version(requirement.name)) is not None and not requirement.specifier.contains(have, prereleases=True)
        ]
        advice = f"pip install 'onnxaudit[{extra}]'"
        if missing:
            yield Sign("extras", extra, "absent", f"without {', '.join(missing)}", advice)
        elif unfit:
            yield Sign("extras", extra, "warning", f"too old or too new: {', '.join(unfit)}", advice)
        else:
            yield Sign("extras", extra, "ok", ", ".join(f"{found.name} {version(found.name)}" for found in wanted))


def runtimes_installed() -> list[str]:
    """Distributions that all bring the one package ``onnxruntime``, and overwrite each other's files."""
    names = {normal(distribution.metadata["Name"] or "") for distribution in metadata.distributions()}
    variants = rf"{RUNTIME}(-(gpu|directml|openvino|qnn|silicon|training|cann|rocm|migraphx|azure|vitisai|windowsml|noopenmp))?"
    return sorted(name for name in names if re.fullmatch(variants, name))


def doubled(installed: Sequence[str]) -> Iterator[Sign]:
    """Two distributions of ONNX Runtime, installed over each other: which one's files are left is chance."""
    if len(installed) > 1:
        keep = f"{RUNTIME}-gpu" if f"{RUNTIME}-gpu" in installed else RUNTIME
        named = " and ".join(f"{name} {version(name)}" for name in installed)
        advice = f"pip uninstall -y {' '.join(installed)} && pip install {keep}"
        yield Sign("ONNX Runtime", "installed", "warning", f"{named} lie over each other", advice)


def torch() -> Sign:
    """PyTorch's version and build, by its metadata alone."""
    found = version("torch")
    if found is None:
        return Sign("PyTorch", "torch", "absent", "not installed", "pip install 'onnxaudit[torch]'")
    build = found.partition("+")[2]
    cuda = any(normal(name).startswith(("nvidia-cuda-runtime", "cuda-toolkit")) for name in _required_by("torch"))
    words = "built for the CPU" if build == "cpu" else f"built for {build or 'CUDA' if cuda or build else 'the CPU'}"
    return Sign("PyTorch", "torch", "ok", f"{found}, {words}")


def lacking(distribution: str) -> list[str]:
    """Requirements of an installed distribution that are not met, without those of its extras."""
    from packaging.requirements import Requirement

    found = (Requirement(line) for line in _required_by(distribution))
    return [
        _plain(requirement)
        for requirement in found
        if _applies(requirement)
        and ((have := version(requirement.name)) is None or not requirement.specifier.contains(have, prereleases=True))
    ]


def version(name: str) -> str | None:
    """The installed version of a distribution; None if it is not there or says none."""
    try:
        return metadata.version(name) or None
    except (metadata.PackageNotFoundError, KeyError):
        return None


def normal(name: str) -> str:
    """A distribution's name in the form that counts."""
    return re.sub(r"[-_.]+", "-", name).lower()


def metadata_extras() -> list[str]:
    """Names of onnxaudit's extras that are for users."""
    try:
        named = metadata.metadata("onnxaudit").get_all("Provides-Extra") or []
    except metadata.PackageNotFoundError:
        return []
    return [name for name in named if name not in _FOR_DEVELOPERS]


@cache
def _requirements() -> tuple[Requirement, ...]:
    from packaging.requirements import Requirement

    return tuple(Requirement(line) for line in _required_by("onnxaudit"))


def _required_by(distribution: str) -> list[str]:
    try:
        return metadata.requires(distribution) or []
    except metadata.PackageNotFoundError:
        return []


def _applies(requirement: Requirement, extra: str = "") -> bool:
    return requirement.marker is None or requirement.marker.evaluate({"extra": extra})


def _provider(name: str) -> str:
    """The distribution that is there for one that is asked for: any ONNX Runtime will do."""
    if normal(name).startswith(RUNTIME) and version(name) is None:
        return next(iter(runtimes_installed()), name)
    return name


def _plain(requirement: Requirement) -> str:
    return f"{requirement.name}{requirement.specifier}"
