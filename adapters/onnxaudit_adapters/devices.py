"""Whether a GPU is here, asked of the driver itself: runtimes that try and fail print to stderr."""

from __future__ import annotations

import ctypes
import sys

from onnxaudit.errors import UsageError

_HINT = "Use --device auto or cpu."


def wants_cuda(device: str, library: str, built_for_cuda: bool) -> bool:
    """Whether to run on CUDA: "cuda" always, "auto" if ``library`` can and there is a GPU, "cpu" never.

    Raises UsageError for another word, and for "cuda" where it cannot be had.
    """
    if device not in ("auto", "cpu", "cuda"):
        raise UsageError(f"--device {device!r} is not known", "Use auto, cpu or cuda.")
    if device == "cpu":
        return False
    if built_for_cuda and gpu_present():
        return True
    if device == "cuda":
        reason = "no GPU is found" if built_for_cuda else f"this {library} is built without CUDA"
        raise UsageError(f"--device cuda: {reason}", _HINT)
    return False


def cuda_failed(library: str) -> UsageError:
    """The error for CUDA that was asked for, with a GPU, and not had."""
    return UsageError(f"--device cuda: {library} could not use the GPU", f"Its CUDA or cuDNN libraries may be missing. {_HINT}")


def gpu_present() -> bool:
    """Whether the NVIDIA driver is installed and has a device; takes microseconds where there is none."""
    try:
        driver = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
        count = ctypes.c_int(0)
        return driver.cuInit(0) == 0 and driver.cuDeviceGetCount(ctypes.byref(count)) == 0 and count.value > 0
    except (OSError, AttributeError):
        return False
