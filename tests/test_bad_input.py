"""Bad input that is neither a damaged file nor a wrong name: each is refused in one line before anything is worked on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import save_file

from onnxaudit.bundle import load
from onnxaudit.craft.data import load_data
from onnxaudit.errors import ArtefactError, UsageError
from tests.bundles import rewrite, simulated_bundle


@pytest.mark.parametrize(
    ("name", "shape", "sound"),
    [
        ("truth", (24,), True),
        ("truth", (24, 2), False),
        ("truth", (24, 1), False),
        ("group", (23,), False),
        ("mask", (24, 3), True),
        ("mask", (24,), False),
        ("mask", (24, 3, 1), False),
        ("sizes", (24, 2), True),
    ],
)
def test_columns_of_a_bundle_have_one_number_a_query_or_a_row_where_they_are_tables(
    tmp_path: Path, name: str, shape: tuple[int, ...], sound: bool
) -> None:
    path = tmp_path / "a.oab"
    simulated_bundle(2).save(path)

    def edit(manifest: dict[str, object], tensors: dict[str, NDArray[np.generic]]) -> None:
        schemes = manifest["schemes"]
        assert isinstance(schemes, list)
        schemes[0]["columns"] = [name]
        tensors[f"columns/0-24/{name}"] = np.zeros(shape, np.int32)

    rewrite(path, edit)
    if sound:
        assert load(path).columns[f"columns/0-24/{name}"].shape == shape
    else:
        with pytest.raises(ArtefactError, match="does not fit them"):
            load(path)


VECTORS = np.arange(12, dtype=np.float32).reshape(4, 3)


@pytest.mark.parametrize(
    ("x", "words"),
    [
        (np.where(VECTORS == 5, np.nan, VECTORS), "not finite"),
        (np.where(VECTORS == 5, -np.inf, VECTORS), "not finite"),
        (VECTORS.astype(np.float64) * 1e300, "not finite"),
        (np.where(np.zeros((2, 4, 4, 1)) == 0, np.nan, 0), "pixel values must lie"),
        (VECTORS[:0], "holds no inputs"),
        (VECTORS[:, :0], "holds no inputs"),
        (np.zeros((0, 4, 4, 3), np.uint8), "holds no inputs"),
        (np.array([["a", "b"]]), "must be numbers"),
        (np.full((), 3.0), "must be images"),
    ],
)
@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_data_without_inputs_or_with_values_that_are_no_numbers_are_refused(
    tmp_path: Path, x: NDArray[np.float64], words: str, suffix: str
) -> None:
    path = tmp_path / f"d{suffix}"
    if suffix == ".npz":
        np.savez(path, x=x)
    elif x.dtype.kind == "U":
        pytest.skip("safetensors keeps no text")
    else:
        save_file({"x": np.asarray(x)}, path)
    with pytest.raises(UsageError, match=words) as refused:
        load_data(path)
    assert str(refused.value).startswith(path.name)
    assert "\n" not in str(refused.value)
