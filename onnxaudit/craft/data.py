"""The owner's data: images on the 8-bit grid or float vectors, with labels where there are any."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxaudit.archives import open_archive
from onnxaudit.errors import ArtefactError, OnnxauditError, UsageError
from onnxaudit.suspect import Queries

ARRAY_SUFFIXES = {".npz", ".npy", ".safetensors"}
IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".webp"}
IMAGE_FORMATS = ("PNG", "JPEG", "BMP", "WEBP")
"""Whatever a file is called: some of Pillow's other formats are run by other programs."""


@dataclass(frozen=True, slots=True, eq=False)
class Data:
    """x: canonical inputs, uint8 (n, H, W, C) or float32 (n, d). y: labels (n,) int64 or None. sha256: of content, not file."""

    x: Queries
    y: NDArray[np.int64] | None
    names: tuple[str, ...]
    sha256: str

    def __len__(self) -> int:
        return len(self.x)

    def take(self, rows: NDArray[np.int64]) -> Data:
        """The inputs at these rows, with a digest of their own."""
        return data_of(self.x[rows], None if self.y is None else self.y[rows], self.names, where="the data")

    @property
    def shape(self) -> tuple[int, ...]:
        """(H, W, C) or (d,)."""
        return tuple(self.x.shape[1:])


def load_data(path: Path) -> Data:
    """Read ``.npz`` or ``.safetensors`` with ``x`` and optional ``y``, or a folder of images (its sub-folders are the classes).

    Also IDX files of the MNIST family and CIFAR's binary files, one file or the folder of both splits, and the data sets that
    ``readers.NAMED`` lists. Raises UsageError for a missing file or wrong content, ArtefactError for an unreadable one.
    """
    from onnxaudit.craft.readers import NAMED, read_named, read_published  # they build on this module

    if not path.exists() and str(path) in NAMED:
        return data_of(*read_named(str(path)), where=str(path))
    if not path.is_file() and not path.is_dir():
        raise UsageError(f"{path} is not a file or folder", f"Check the path given by --data, or name {', '.join(NAMED)}.")
    published = None if path.suffix in ARRAY_SUFFIXES else read_published(path)
    if published is not None:
        return data_of(*published, where=path.name)
    if path.is_dir():
        return data_of(*_read_folder(path), where=str(path))
    arrays = _read_arrays(path)
    if "x" not in arrays:
        raise UsageError(
            f"{path.name} has no array 'x', only {', '.join(sorted(arrays)) or 'nothing'}", "Save inputs as x, labels as y."
        )
    names = tuple(str(name) for name in arrays.get("names", ()))
    return data_of(arrays["x"], arrays.get("y"), names, where=path.name)


def _read_arrays(path: Path) -> dict[str, NDArray[Any]]:
    try:
        if path.suffix == ".safetensors":
            from safetensors.numpy import load_file

            loaded: dict[str, NDArray[Any]] = load_file(path)
            return loaded
        with path.open("rb") as file:  # not by NumPy, which does not close what it cannot read
            head = file.read(6)
            if head[:2] != b"PK" and head != b"\x93NUMPY":  # NumPy would call it a pickle, and advise to load it as one
                raise ValueError("it is neither, and no published data set that is known here")
            if head[:2] == b"PK":
                open_archive(path).close()  # it may not unpack to much more than it is
            file.seek(0)
            archive = np.load(file, allow_pickle=False)
            if not isinstance(archive, np.lib.npyio.NpzFile):
                return {"x": archive}
            return {name: archive[name] for name in archive.files}
    except OnnxauditError:
        raise
    except Exception as error:  # zipfile, zlib, numpy and safetensors each raise their own
        raise ArtefactError(f"{path.name} is not a readable .npz or .safetensors file: {error}", "Save it again.") from None


def _read_folder(path: Path) -> tuple[NDArray[np.uint8], NDArray[np.int64] | None, tuple[str, ...]]:
    from PIL import Image

    files = sorted(file for file in path.rglob("*") if file.suffix.lower() in IMAGE_SUFFIXES)
    if not files:
        looked = f"{', '.join(sorted(IMAGE_SUFFIXES))}, train-images-idx3-ubyte[.gz], data_batch_1.bin and train.bin"
        raise UsageError(f"{path} holds no images", f"Looked for {looked}.")
    images = []
    for file in files:
        try:
            with Image.open(file, formats=IMAGE_FORMATS) as image:
                images.append(np.asarray(image.convert("L" if image.mode in ("L", "1", "I;16") else "RGB")))
        except Exception as error:  # each decoder raises its own for damage
            raise ArtefactError(f"{file} is not a readable image: {error}") from None
    if len({image.shape for image in images}) > 1:
        raise UsageError(f"the images in {path} differ in size", "Bring them to the size the victim takes.")
    names = tuple(sorted({file.parent.name for file in files if file.parent != path}))
    labelled = bool(names) and all(file.parent != path for file in files)
    labels = np.array([names.index(file.parent.name) for file in files], np.int64) if labelled else None
    return np.stack(images), labels, names if labelled else ()


def data_of(x: NDArray[Any], y: NDArray[Any] | None, names: tuple[str, ...], where: str) -> Data:
    """Data from arrays, brought to their canonical form. Raises UsageError, naming ``where``, for what is no data."""
    if not x.size:
        raise UsageError(f"{where} holds no inputs")
    if x.dtype.kind not in "biuf":
        raise UsageError(f"{where}: x must be numbers, not {x.dtype}")
    canonical = _canonical(x, where)
    labels = None
    if y is not None:
        if y.ndim != 1 or len(y) != len(x) or not np.issubdtype(y.dtype, np.integer) or (len(y) and y.min() < 0):
            raise UsageError(f"{where}: y must be {len(x)} class indices from 0, not {y.dtype} {y.shape}")
        labels = y.astype(np.int64)
    digest = hashlib.sha256(canonical.data)  # in place: a data set may be as large as half the memory
    if labels is not None:
        digest.update(labels.data)
    return Data(canonical, labels, names, digest.hexdigest())


def _canonical(x: NDArray[Any], where: str) -> Queries:
    if x.ndim == 2:
        with np.errstate(over="ignore"):
            vectors = np.ascontiguousarray(x, dtype=np.float32)
        if not np.isfinite(vectors).all():
            raise UsageError(f"{where}: x holds values that are not finite numbers", "Replace or leave out what is missing.")
        return vectors
    if x.ndim == 3:
        x = x[..., None]
    if x.ndim != 4:
        raise UsageError(f"{where}: x must be images (n, H, W[, C]) or vectors (n, d), not {x.shape}")
    if x.shape[3] not in (1, 3) and x.shape[1] in (1, 3):
        x = x.transpose(0, 2, 3, 1)
    if x.shape[3] not in (1, 3):
        raise UsageError(f"{where}: images of {x.shape[1:]} have neither 1 nor 3 channels")
    if x.dtype != np.uint8:
        if not np.isfinite(x).all() or x.min(initial=0) < 0 or x.max(initial=0) > 255:
            raise UsageError(f"{where}: pixel values must lie in [0, 1] or [0, 255]", "Save images before any normalisation.")
        x = np.rint(x * 255.0 if x.max(initial=0) <= 1 else x).astype(np.uint8)
    return np.ascontiguousarray(x)
