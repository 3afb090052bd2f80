"""Data sets as they are published: IDX files of the MNIST family, CIFAR's binary files, scikit-learn's digits; other sizes.

What is read is as large as its header or its length says, and a file that holds more or less is refused.
"""

from __future__ import annotations

import gzip
import math
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray

from onnxaudit.archives import MAX_RATIO, MAX_UNPACKED
from onnxaudit.craft.data import Data, data_of
from onnxaudit.errors import ArtefactError, UsageError, missing_extra

Labelled: TypeAlias = tuple[NDArray[np.uint8], NDArray[np.int64], tuple[str, ...]]
"""Images (n, H, W, C), labels (n,), names of the classes or none."""
NAMED = ("sklearn:digits",)
"""Data sets that come with a package, by the name that stands for a path."""
_CHUNK = 2**20
_IDX_TYPES = b"\x08\x09\x0b\x0c\x0d\x0e"
_SIDE, _PIXELS = 32, 3072
_CIFAR10 = (*(f"data_batch_{number}.bin" for number in range(1, 6)), "test_batch.bin")
_CIFAR100 = ("train.bin", "test.bin")
_DAMAGED = "Copy or download it again."


def read_named(name: str) -> Labelled:
    """A data set of ``NAMED``. Raises UsageError where its package is not installed."""
    try:
        from sklearn.datasets import load_digits
    except ModuleNotFoundError:
        raise missing_extra("scikit-learn", "torch") from None
    digits = load_digits()  # pixels are whole numbers from 0 to 16
    images = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    return images[..., None], digits.target.astype(np.int64), tuple(map(str, digits.target_names))


def read_published(path: Path) -> Labelled | None:
    """The images of a file or folder: training split, then test split, where both are there. None if it holds neither format.

    Raises ArtefactError for a file that is damaged or does not fit its neighbours, UsageError where labels are missing.
    """
    try:
        return _read_folder(path) if path.is_dir() else _read_file(path)
    except OSError as error:
        raise ArtefactError(f"{path.name} cannot be read: {error.strerror or error}") from None


def fitted(data: Data, shape: tuple[int, ...]) -> Data:
    """The images at another size (H, W, C): bilinear, with antialiasing where they get smaller; grey as R = G = B, or its luma.

    Raises UsageError for vectors, and for a shape that is none of images.
    """
    if data.shape == tuple(shape):
        return data
    if data.x.ndim != 4 or len(shape) != 3 or shape[2] not in (1, 3) or min(shape) < 1:
        raise UsageError(f"inputs of shape {data.shape} cannot be brought to {tuple(shape)}", "Only images can, grey or RGB.")
    from PIL import Image

    height, width, channels = shape
    resized = np.empty((len(data), *shape), np.uint8)
    for place, image in enumerate(data.x):
        picture = Image.fromarray(image[..., 0] if data.shape[2] == 1 else image)
        picture = picture.convert("L") if channels == 1 else picture
        scaled = np.asarray(picture.resize((width, height), Image.Resampling.BILINEAR))
        resized[place] = scaled[..., None] if scaled.ndim == 2 else scaled
    return data_of(resized, data.y, data.names, where="the data")


def _read_folder(path: Path) -> Labelled | None:
    if found := _in_folder(path):
        return _read_idx(found)
    ten, hundred = ([path / name for name in names if (path / name).is_file()] for names in (_CIFAR10, _CIFAR100))
    if ten and hundred:
        raise UsageError(f"{path} holds files of CIFAR-10 and of CIFAR-100", "Keep each in a folder of its own.")
    return _read_cifar(ten or hundred) if ten or hundred else None


def _read_file(path: Path) -> Labelled | None:
    if path.suffix == ".bin":
        return _read_cifar([path])
    with path.open("rb") as file:
        head = file.read(3)
    return _read_idx([path]) if head[:2] == b"\x1f\x8b" or (head[:2] == b"\0\0" and head[2:] in _IDX_TYPES) else None


def _in_folder(folder: Path) -> list[Path]:
    """The images files of the splits that a folder of the MNIST family holds."""
    ways = [f"images{sign}idx3-ubyte{end}" for sign in "-." for end in ("", ".gz")]
    places = (folder, folder / "raw")  # torchvision keeps them in a folder of that name
    splits = ([place / f"{split}-{way}" for place in places for way in ways] for split in ("train", "t10k"))
    there = (next((file for file in files if file.is_file()), None) for files in splits)
    return [file for file in there if file is not None]


def _read_idx(files: Sequence[Path]) -> Labelled:
    shapes = [_idx_shape(file, 3) for file in files]
    if len({shape[1:] for shape in shapes}) > 1:
        raise ArtefactError(f"the splits in {files[0].parent} differ in the size of their images", _DAMAGED)
    partners = [_labels_of(file) for file in files]
    for file, shape, partner in zip(files, shapes, partners, strict=True):
        if (count := _idx_shape(partner, 1)[0]) != shape[0]:
            raise ArtefactError(f"{file.name} holds {shape[0]} images, {partner.name} {count} labels", _DAMAGED)
    total = sum(shape[0] for shape in shapes)
    images, labels = np.empty((total, *shapes[0][1:], 1), np.uint8), np.empty(total, np.uint8)
    start = 0
    for file, shape, partner in zip(files, shapes, partners, strict=True):
        _fill(images[start : start + shape[0]], file, 3)
        _fill(labels[start : start + shape[0]], partner, 1)
        start += shape[0]
    return images, labels.astype(np.int64), ()


def _labels_of(images: Path) -> Path:
    """The file of labels beside a file of images."""
    name = images.name.replace("images", "labels").replace("idx3", "idx1").removesuffix(".gz")
    if name == images.name.removesuffix(".gz"):
        raise UsageError(
            f"the labels of {images.name} cannot be found", "Name the files as train-images-idx3-ubyte, train-labels-idx1-ubyte."
        )
    for candidate in (images.with_name(name), images.with_name(f"{name}.gz")):
        if candidate.is_file():
            return candidate
    raise UsageError(f"{name} is not beside {images.name}", "Images in IDX files have their labels in a file of their own.")


def _idx_shape(path: Path, axes: int) -> tuple[int, ...]:
    """What the header says, checked against what there can be in the file."""
    with _reading(path) as file:
        header = _exactly(file, 4 + 4 * axes, path)
        packed = isinstance(file, gzip.GzipFile)
    if header[:3] != b"\0\0\x08" or header[3] != axes:
        if header[:4] == b"\0\0\x08\x01":
            raise UsageError(f"{path.name} holds labels", "Give the file of the images, which lies beside it.")
        what = "images" if axes == 3 else "labels"
        hint = "An archive has to be unpacked first." if packed else "Save other arrays as .npz."
        raise ArtefactError(f"{path.name} is no IDX file of {what} as bytes", hint)
    shape = tuple(int.from_bytes(header[4 * place : 4 * place + 4], "big") for place in range(1, axes + 1))
    expected, size = math.prod(shape), path.stat().st_size
    limit = min(MAX_UNPACKED, max(64 * 2**20, MAX_RATIO * size)) if packed else size - len(header)
    if expected > limit:
        raise ArtefactError(f"{path.name} ({size} bytes) says that it holds {expected} bytes, which it cannot", _DAMAGED)
    return shape


def _fill(target: NDArray[np.uint8], path: Path, axes: int) -> None:
    """Read what follows the header into an array, piece by piece, so that there is never a second copy."""
    flat = target.reshape(-1)
    with _reading(path) as file:
        _exactly(file, 4 + 4 * axes, path)
        for start in range(0, len(flat), _CHUNK):
            piece = flat[start : start + _CHUNK]
            piece[:] = np.frombuffer(_exactly(file, len(piece), path), np.uint8)
        try:
            more = file.read(1)  # of a compressed file this also checks the sum at its end
        except (OSError, EOFError, zlib.error) as error:
            raise ArtefactError(f"{path.name} is damaged: {error}", _DAMAGED) from None
    if more:
        raise ArtefactError(f"{path.name} holds more than its header says", _DAMAGED)


def _reading(path: Path) -> IO[bytes]:
    """The file, opened; what is compressed is decompressed as it is read."""
    file = path.open("rb")
    packed = file.read(2) == b"\x1f\x8b"
    file.seek(0)
    if not packed:
        return file
    file.close()
    return cast("IO[bytes]", gzip.open(path))


def _exactly(file: IO[bytes], count: int, path: Path) -> bytes:
    try:
        found = file.read(count)
    except (OSError, EOFError, zlib.error) as error:
        raise ArtefactError(f"{path.name} is damaged: {error}", _DAMAGED) from None
    if len(found) < count:
        raise ArtefactError(f"{path.name} ends too early", _DAMAGED)
    return found


def _read_cifar(files: Sequence[Path]) -> Labelled:
    """CIFAR-10 (a label, then the pixels) or CIFAR-100 (a coarse label first); the length of the files says which."""
    extras = {_extra_of(file) for file in files}
    if len(extras) > 1:
        raise ArtefactError(f"the files in {files[0].parent} are not of one data set", _DAMAGED)
    extra, classes = (0, 10) if extras == {0} else (1, 100)
    record = 1 + extra + _PIXELS
    total = sum(file.stat().st_size for file in files) // record
    images, labels = np.empty((total, _SIDE, _SIDE, 3), np.uint8), np.empty(total, np.int64)
    start = 0
    for file in files:
        for block in _records(file, record):
            stop = start + len(block)
            if block[:, extra].max() >= classes or (extra and block[:, 0].max() >= 20):
                raise ArtefactError(f"{file.name} has labels that CIFAR-{classes} has not", _DAMAGED)
            labels[start:stop] = block[:, extra]
            images[start:stop] = block[:, 1 + extra :].reshape(-1, 3, _SIDE, _SIDE).transpose(0, 2, 3, 1)
            start = stop
    return images, labels, _names(files[0].with_name("fine_label_names.txt" if extra else "batches.meta.txt"), classes)


def _extra_of(path: Path) -> int:
    """How many bytes stand before the label: CIFAR-100 has one, CIFAR-10 none."""
    size = path.stat().st_size
    for extra in (1, 0) if path.name in _CIFAR100 else (0, 1):
        if size and size % (1 + extra + _PIXELS) == 0:
            return extra
    raise ArtefactError(
        f"{path.name} ({size} bytes) is no whole file of CIFAR-10 or CIFAR-100 images",
        f"Their records have {1 + _PIXELS} or {2 + _PIXELS} bytes.",
    )


def _records(path: Path, record: int) -> Iterator[NDArray[np.uint8]]:
    with path.open("rb") as file:
        while len(block := np.fromfile(file, np.uint8, 1000 * record)):
            yield block.reshape(-1, record)


def _names(path: Path, classes: int) -> tuple[str, ...]:
    """The names in a file beside the images, one a line; none if there is no such file."""
    if not path.is_file():
        return ()
    names = tuple(line.strip() for line in path.read_text("utf-8", "replace").splitlines() if line.strip())
    if len(names) != classes:
        raise ArtefactError(f"{path.name} names {len(names)} classes, not {classes}", _DAMAGED)
    return names
