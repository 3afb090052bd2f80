"""benchmarks/mutated.py itself: its files differ from the sound one, are the same each time, and archives stay archives."""

from __future__ import annotations

import io
import zipfile

import numpy as np

from benchmarks.mutated import mutated


def _archive() -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("m/code/x.py", "def forward(): return 1" * 9)
        archive.writestr("m/data/0", bytes(500))
    return stream.getvalue()


def test_the_same_numbers_make_the_same_files() -> None:
    sound = bytes(range(256)) * 4 + b" size 12 "
    made = [mutated(sound, np.random.default_rng([0, number])) for number in range(60)]
    assert made == [mutated(sound, np.random.default_rng([0, number])) for number in range(60)]
    assert sum(data != sound for data in made) >= 58
    assert len(set(made)) >= 58


def test_most_archives_get_past_their_own_sums() -> None:
    sound = _archive()
    whole = 0
    for number in range(60):
        data = mutated(sound, np.random.default_rng([1, number]))
        try:
            with zipfile.ZipFile(io.BytesIO(data)) as archive:
                whole += archive.testzip() is None
        except (zipfile.BadZipFile, NotImplementedError, ValueError, OSError):
            continue
    assert whole >= 40
