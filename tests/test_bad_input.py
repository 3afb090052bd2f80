"""Bad input that is neither a damaged file nor a wrong name: each is refused in one line before anything is worked on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from onnxaudit.bundle import load
from onnxaudit.errors import ArtefactError
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
