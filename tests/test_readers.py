"""Published data sets: what is read from small files made here, from the real ones where they are, and what is refused."""

from __future__ import annotations

import gzip
import hashlib
import struct
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from skimage.color import rgb2gray
from skimage.transform import resize as skimage_resize

from onnxaudit.craft.data import Data, data_of, load_data
from onnxaudit.craft.readers import fitted
from onnxaudit.errors import ArtefactError, OnnxauditError, UsageError

FASHION = Path("/usr/share/datasets/fashion-mnist")
RNG = np.random.default_rng(0)
REAL = pytest.mark.skipif(not FASHION.is_dir(), reason="the files of Fashion-MNIST are not on this machine")


def idx(array: NDArray[np.uint8]) -> bytes:
    """An IDX file: zero, zero, type 8, number of axes, sizes, values."""
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


def save_idx(
    folder: Path, split: str, n: int, *, packed: bool = True, sign: str = "-"
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Images (n, 7, 5) and labels of a split, as files."""
    x, y = RNG.integers(0, 256, (n, 7, 5)).astype(np.uint8), RNG.integers(0, 4, n).astype(np.uint8)
    for what, values in (("images", x), ("labels", y)):
        name = f"{split}-{what}{sign}idx{values.ndim}-ubyte"
        data = idx(values)
        (folder / (f"{name}.gz" if packed else name)).write_bytes(gzip.compress(data) if packed else data)
    return x, y


def save_cifar(path: Path, n: int, classes: int = 10) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Images (n, 32, 32, 3) and labels in a file as CIFAR's."""
    x, y = RNG.integers(0, 256, (n, 32, 32, 3)).astype(np.uint8), RNG.integers(0, classes, n).astype(np.uint8)
    with path.open("wb") as file:
        for image, label in zip(x, y, strict=True):
            file.write(bytes([label // 5, label] if classes == 100 else [label]))
            for channel in range(3):
                file.write(image[:, :, channel].tobytes())
    return x, y


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("sign", ["-", "."])
def test_idx_files_are_read_as_one_split_or_as_both(packed: bool, sign: str, tmp_path: Path) -> None:
    x, y = save_idx(tmp_path, "train", 30, packed=packed, sign=sign)
    x_test, y_test = save_idx(tmp_path, "t10k", 12, packed=packed, sign=sign)
    both = load_data(tmp_path)
    assert both.shape == (7, 5, 1)
    assert (both.x[..., 0] == np.concatenate([x, x_test])).all()
    assert both.y is not None
    assert both.y.dtype == np.int64
    assert both.y.tolist() == [*y, *y_test]
    assert both.names == ()
    end = ".gz" if packed else ""
    one = load_data(tmp_path / f"t10k-images{sign}idx3-ubyte{end}")
    assert (one.x[..., 0] == x_test).all()
    assert one.y is not None
    assert one.y.tolist() == y_test.tolist()
    np.savez(tmp_path / "same.npz", x=x_test, y=y_test)
    assert load_data(tmp_path / "same.npz").sha256 == one.sha256


def test_a_folder_with_one_split_and_files_of_either_kind(tmp_path: Path) -> None:
    x, y = save_idx(tmp_path, "train", 9)
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx(y))
    (tmp_path / "train-labels-idx1-ubyte.gz").unlink()
    data = load_data(tmp_path)
    assert (data.x[..., 0] == x).all()
    (tmp_path / "FashionMNIST").mkdir()
    (tmp_path / "FashionMNIST/raw").mkdir()
    save_idx(tmp_path / "FashionMNIST/raw", "t10k", 5)
    assert len(load_data(tmp_path / "FashionMNIST")) == 5
    other = tmp_path / "letters-images-idx3-ubyte"  # a file may have any name in which "images" stands
    other.write_bytes(idx(x))
    (tmp_path / "letters-labels-idx1-ubyte").write_bytes(idx(y))
    assert load_data(other).sha256 == data.sha256


def test_the_digest_is_that_of_the_bytes(tmp_path: Path) -> None:
    x, y = save_idx(tmp_path, "train", 9)
    expected = hashlib.sha256(x.tobytes() + y.astype(np.int64).tobytes()).hexdigest()
    assert load_data(tmp_path).sha256 == expected
    assert data_of(x, None, (), "x").sha256 == hashlib.sha256(x.tobytes()).hexdigest()


@REAL
def test_the_real_fashion_mnist() -> None:
    tracemalloc.start()
    data = load_data(FASHION)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1.25 * data.x.nbytes
    assert (len(data), data.shape) == (70_000, (28, 28, 1))
    assert data.y is not None
    assert np.bincount(data.y).tolist() == [7000] * 10
    sample = load_data(Path(__file__).resolve().parent.parent / "fixtures/fashion/test.npz")
    assert (data.x[60_000:62_000] == sample.x).all()
    assert sample.y is not None
    assert (data.y[60_000:62_000] == sample.y).all()
    assert len(load_data(FASHION / "train-images-idx3-ubyte.gz")) == 60_000


def test_cifar_10_is_read_with_its_names(tmp_path: Path) -> None:
    parts = [save_cifar(tmp_path / f"data_batch_{number}.bin", 11) for number in (1, 2, 3, 4, 5)]
    parts.append(save_cifar(tmp_path / "test_batch.bin", 7))
    plain = load_data(tmp_path)
    assert plain.names == ()
    (tmp_path / "batches.meta.txt").write_text("\n".join(f"class {number}" for number in range(10)) + "\n\n")
    data = load_data(tmp_path)
    assert (data.x == np.concatenate([x for x, _ in parts])).all()
    assert data.y is not None
    assert (data.y == np.concatenate([y for _, y in parts])).all()
    assert data.names == tuple(f"class {number}" for number in range(10))
    assert plain.sha256 == data.sha256
    assert (load_data(tmp_path / "data_batch_3.bin").x == parts[2][0]).all()


def test_cifar_100_is_read_with_its_fine_labels(tmp_path: Path) -> None:
    (x, y), (x_test, y_test) = save_cifar(tmp_path / "train.bin", 2100, 100), save_cifar(tmp_path / "test.bin", 40, 100)
    (tmp_path / "fine_label_names.txt").write_text("\n".join(f"f{number}" for number in range(100)))
    (tmp_path / "coarse_label_names.txt").write_text("\n".join(f"c{number}" for number in range(20)))
    data = load_data(tmp_path)
    assert (data.x == np.concatenate([x, x_test])).all()
    assert data.y is not None
    assert (data.y == np.concatenate([y, y_test])).all()
    assert data.names[:2] == ("f0", "f1")
    renamed = (tmp_path / "test.bin").rename(tmp_path / "half.bin")  # told by its length
    assert (load_data(renamed).x == x_test).all()


def test_digits_come_by_name() -> None:
    from sklearn.datasets import load_digits

    data = load_data(Path("sklearn:digits"))
    digits = load_digits()
    assert data.shape == (8, 8, 1)
    assert (data.x[..., 0] == np.rint(digits.images / 16 * 255)).all()
    assert data.y is not None
    assert (data.y == digits.target).all()
    assert data.names == tuple("0123456789")


def broken(folder: Path) -> dict[str, tuple[Path, type[OnnxauditError], str]]:
    """Files and folders that are no data, by what is wrong with them."""
    x, y = save_idx(folder, "train", 20, packed=False)
    images, labels = folder / "train-images-idx3-ubyte", folder / "train-labels-idx1-ubyte"
    whole = images.read_bytes()
    packed = gzip.compress(whole)
    cases: dict[str, tuple[Path, type[OnnxauditError], str]] = {}

    def case(name: str, content: bytes | None, error: type[OnnxauditError], message: str, partner: bytes | None = None) -> None:
        place = folder / name
        place.mkdir()
        file = place / (images.name + (".gz" if content and content[:2] == b"\x1f\x8b" else ""))
        if content is not None:
            file.write_bytes(content)
        (place / labels.name).write_bytes(labels.read_bytes() if partner is None else partner)
        cases[name] = (file if content is not None else place / labels.name, error, message)

    case("short", whole[:-1], ArtefactError, "says that it holds 700 bytes, which it cannot")
    case("long", whole + b"x", ArtefactError, "holds more than its header says")
    case("headless", whole[:9], ArtefactError, "ends too early")
    case("cut", packed[: len(packed) // 2], ArtefactError, "is damaged: Compressed file ended|ends too early")
    case("cut-end", packed[:-6], ArtefactError, "is damaged: Compressed file ended")
    case("wrong-sum", packed[:-8] + bytes(8), ArtefactError, "is damaged: CRC check failed")
    case("noise", packed[:30] + RNG.bytes(300), ArtefactError, "is damaged|ends too early|is no IDX file")
    case("floats", b"\0\0\x0d\x03" + whole[4:], ArtefactError, "is no IDX file of images as bytes. Save other arrays as .npz.")
    case("packed-floats", gzip.compress(b"\0\0\x0d\x03" + whole[4:]), ArtefactError, "is no IDX file of images as bytes")
    case("tar", gzip.compress(b"cifar-10-batches-bin/" + bytes(2000)), ArtefactError, "An archive has to be unpacked first.")
    case("four-axes", idx(np.zeros((2, 3, 3, 3), np.uint8)), ArtefactError, "is no IDX file of images as bytes")
    case("labels-given", None, UsageError, "train-labels-idx1-ubyte holds labels. Give the file of the images")
    case("fewer-labels", whole, ArtefactError, "holds 20 images, train-labels-idx1-ubyte 19 labels", idx(y[:-1]))
    case("labels-are-images", whole, ArtefactError, "is no IDX file of labels", whole)
    case("labels-cut", whole, ArtefactError, "says that it holds 20 bytes", labels.read_bytes()[:-2])
    case("empty", idx(x[:0]), UsageError, "holds no inputs", idx(y[:0]))
    case("no-pixels", idx(x[:, :0]), UsageError, "holds no inputs")
    huge = struct.pack(">BBBB3I", 0, 0, 8, 3, 2**32 - 1, 2**32 - 1, 2**32 - 1)
    case("huge", huge + bytes(100), ArtefactError, "which it cannot")
    case("huge-packed", gzip.compress(huge + bytes(100)), ArtefactError, "which it cannot")
    case("alone", whole, UsageError, "train-labels-idx1-ubyte is not beside train-images-idx3-ubyte")
    (folder / "alone" / labels.name).unlink()
    case("unnamed", whole, UsageError, "the labels of data cannot be found")
    cases["unnamed"] = (cases["unnamed"][0].rename(folder / "unnamed/data"), *cases["unnamed"][1:])
    case("two-sizes", whole, ArtefactError, "differ in the size of their images")
    (folder / "two-sizes/t10k-images-idx3-ubyte").write_bytes(idx(np.zeros((2, 3, 3), np.uint8)))
    (folder / "two-sizes/t10k-labels-idx1-ubyte").write_bytes(idx(np.zeros(2, np.uint8)))
    cases["two-sizes"] = (folder / "two-sizes", *cases["two-sizes"][1:])
    return cases


def broken_cifar(folder: Path) -> dict[str, tuple[Path, type[OnnxauditError], str]]:
    """The same of CIFAR's files."""
    save_cifar(folder / "whole.bin", 4)
    whole = (folder / "whole.bin").read_bytes()
    cases: dict[str, tuple[Path, type[OnnxauditError], str]] = {}
    for name, content, message in (
        ("cut", whole[:-1], "is no whole file of CIFAR-10 or CIFAR-100 images"),
        ("empty", b"", "is no whole file of CIFAR-10 or CIFAR-100 images"),
        ("label", b"\x0a" + whole[1:], "has labels that CIFAR-10 has not"),
        ("coarse", b"\x14\x01" + whole[1:3073], "has labels that CIFAR-100 has not"),
    ):
        (folder / f"{name}.bin").write_bytes(content)
        cases[name] = (folder / f"{name}.bin", ArtefactError, message)
    mixed, both, names = folder / "mixed", folder / "both", folder / "names"
    for place in (mixed, both, names):
        place.mkdir()
        (place / "data_batch_1.bin").write_bytes(whole)
    save_cifar(mixed / "test_batch.bin", 3, 100)
    cases["mixed"] = (mixed, ArtefactError, "are not of one data set")
    save_cifar(both / "train.bin", 3, 100)
    cases["both"] = (both, UsageError, "holds files of CIFAR-10 and of CIFAR-100")
    (names / "batches.meta.txt").write_text("cat\ndog\n")
    cases["names"] = (names, ArtefactError, "batches.meta.txt names 2 classes, not 10")
    python = folder / "cifar-10-batches-py"
    python.mkdir()
    (python / "data_batch_1").write_bytes(b"\x80\x02}q\x01.")
    cases["pickles"] = (python, UsageError, "holds no images. Looked for .bmp, .*, data_batch_1.bin and train.bin.")
    (folder / "table.csv").write_text("a,b\n1,2\n")
    message = "table.csv is not a readable .npz or .safetensors file: it is neither, and no published data set"
    cases["table"] = (folder / "table.csv", ArtefactError, message)
    cases["unknown"] = (Path("sklearn:iris"), UsageError, "Check the path given by --data, or name sklearn:digits.")
    return cases


@pytest.mark.parametrize("make", [broken, broken_cifar])
def test_what_is_no_data_is_refused_in_one_line(make: object, tmp_path: Path) -> None:
    assert callable(make)
    cases: dict[str, tuple[Path, type[OnnxauditError], str]] = make(tmp_path)
    for name, (path, error, message) in cases.items():
        with pytest.raises(error, match=message) as caught:
            load_data(path)
        assert "\n" not in str(caught.value), name


def test_a_bomb_eats_no_memory(tmp_path: Path) -> None:
    """200 MB of zeros behind a header that says less, or that says what a file of this size never holds."""
    zeros = gzip.compress(bytes(2**26), 9) * 3  # members follow one another
    for name, said in (("less", (3, 5, 5)), ("all", (2**13, 2**7, 2**7))):
        folder = tmp_path / name
        folder.mkdir()
        header = struct.pack(">BBBB3I", 0, 0, 8, 3, *said)
        (folder / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(header) + zeros)
        (folder / "train-labels-idx1-ubyte").write_bytes(idx(np.zeros(said[0], np.uint8)))
        tracemalloc.start()
        with pytest.raises(ArtefactError, match=r"holds more than its header says|which it cannot"):
            load_data(folder)
        assert tracemalloc.get_traced_memory()[1] < 4 * 2**20
        tracemalloc.stop()


def test_reading_takes_little_more_than_the_images(tmp_path: Path) -> None:
    """Of 60 MB of images, a process has no second copy at any time."""
    x = np.zeros((20_000, 56, 56), np.uint8)
    (tmp_path / "train-images-idx3-ubyte").write_bytes(idx(x))
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx(np.zeros(20_000, np.uint8)))
    save_cifar(tmp_path / "data_batch_1.bin", 10)
    block = (tmp_path / "data_batch_1.bin").read_bytes() * 1000
    (tmp_path / "cifar").mkdir()
    for number in (1, 2):
        (tmp_path / f"cifar/data_batch_{number}.bin").write_bytes(block)
    code = "import resource, sys, pathlib; from onnxaudit.craft.readers import read_published as read; "
    code += "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss; found = read(pathlib.Path(sys.argv[1])); "
    code += "print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 / found[0].nbytes)"
    for folder in (tmp_path, tmp_path / "cifar"):
        done = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=True)
        assert float(done.stdout) < 1.3


def images(n: int, height: int, width: int, channels: int) -> Data:
    """Smooth random images."""
    small = RNG.integers(0, 256, (n, 5, 5, channels)).astype(np.uint8)
    pictures = [Image.fromarray(each[..., 0] if channels == 1 else each) for each in small]
    large = [np.asarray(picture.resize((width, height), Image.Resampling.BICUBIC)) for picture in pictures]
    return data_of(np.stack(large), np.arange(n) % 3, ("a", "b", "c"), "test")


@pytest.mark.parametrize("shape", [(28, 28, 1), (32, 32, 3), (16, 24, 1), (9, 7, 3)])
@pytest.mark.parametrize("channels", [1, 3])
def test_images_are_brought_to_another_size_as_pillow_and_scikit_image_do_it(shape: tuple[int, ...], channels: int) -> None:
    data = images(6, 20, 16, channels)
    resized = fitted(data, shape)
    assert resized.x.shape == (6, *shape)
    assert resized.x.dtype == np.uint8
    assert (resized.y == data.y).all()  # type: ignore[union-attr]
    assert resized.names == data.names
    assert resized.sha256 != data.sha256
    for before, after in zip(data.x, resized.x, strict=True):
        picture = Image.fromarray(before[..., 0] if channels == 1 else before).convert("L" if shape[2] == 1 else "RGB")
        pillow = np.asarray(picture.resize((shape[1], shape[0]), Image.Resampling.BILINEAR)).reshape(shape)
        assert (after == pillow).all()
        if shape[0] > 20 and shape[1] > 16:  # scikit-image blurs with another kernel before it makes images smaller
            plain = before / 255
            if channels == 3 and shape[2] == 1:
                plain = (plain @ [0.299, 0.587, 0.114])[..., None]
                assert np.abs(rgb2gray(before) - plain[..., 0]).max() < 0.2
            larger = skimage_resize(plain, (*shape[:2], plain.shape[2]), order=1, mode="edge", anti_aliasing=False)  # type: ignore[no-untyped-call]
            assert np.abs(255 * larger - after).max() < 2.5


def test_digits_fit_the_victims_of_fashion_mnist_and_cifar() -> None:
    digits = load_data(Path("sklearn:digits"))
    assert fitted(digits, (8, 8, 1)) is digits
    assert fitted(digits, (28, 28, 1)).x.shape == (1797, 28, 28, 1)
    colour = fitted(digits, (32, 32, 3))
    assert (colour.x[..., 0] == colour.x[..., 2]).all()
    whole = fitted(fitted(digits, (32, 32, 1)), (8, 8, 1))
    assert np.abs(whole.x.astype(int) - digits.x).mean() < 25


@pytest.mark.parametrize("shape", [(28, 28), (28, 28, 2), (0, 28, 1), (784,)])
def test_only_images_are_fitted(shape: tuple[int, ...]) -> None:
    with pytest.raises(UsageError, match="cannot be brought to"):
        fitted(images(2, 8, 8, 1), shape)
    with pytest.raises(UsageError, match="inputs of shape \\(6,\\) cannot be brought"):
        fitted(data_of(np.zeros((4, 6), np.float32), None, (), "test"), (28, 28, 1))
