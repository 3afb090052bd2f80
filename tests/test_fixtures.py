"""The shipped fixtures are what SOURCES.json says, and what the judgement of false accusations needs them to be."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from pathlib import Path

import numpy as np

from onnxaudit.craft.data import load_data
from onnxaudit.zoo.manifest import load_zoo

FIXTURES = Path(__file__).resolve().parent.parent / "fixtures"
SOURCES = json.loads((FIXTURES / "SOURCES.json").read_text())
ZOO = load_zoo(FIXTURES / "zoo/zoo.json")


def test_every_file_has_its_digest_and_origin_and_all_are_small() -> None:
    listed = {entry["file"]: entry for entry in SOURCES["files"]}
    shipped = {
        str(path.relative_to(FIXTURES))
        for folder in ("zoo", "fashion")
        for path in (FIXTURES / folder).rglob("*")
        if path.is_file()
    }
    assert shipped == set(listed)
    for name, entry in listed.items():
        assert hashlib.sha256((FIXTURES / name).read_bytes()).hexdigest() == entry["sha256"], name
        assert entry["origin"]
    assert sum(entry["bytes"] for entry in listed.values()) < 20e6


def test_the_references_are_enough_diverse_and_about_as_good_as_the_victim() -> None:
    victim = SOURCES["versions"]["victim_accuracy"]
    assert victim >= 0.86
    references = [entry for entry in ZOO if entry.kind == "reference"]
    assert len(references) >= 39
    assert len({entry.arch for entry in references}) >= 4
    assert all(entry.accuracy is not None and abs(entry.accuracy - victim) <= 0.03 for entry in references)
    own = [entry for entry in references if Path(entry.file).stem.endswith("-own")]
    assert len(own) >= len(references) / 2


def test_innocents_are_stronger_and_weaker_than_the_references() -> None:
    reached = [entry.accuracy or 0.0 for entry in ZOO if entry.kind == "reference"]
    innocents = [entry.accuracy or 0.0 for entry in ZOO if entry.kind == "negative"]
    assert len(innocents) >= 8
    assert sum(accuracy > max(reached) for accuracy in innocents) >= 2
    assert sum(accuracy < min(reached) for accuracy in innocents) >= 2
    tasks = Counter(entry.task for entry in ZOO if entry.kind == "positive")
    assert set(tasks) == {"same", "int8", "finetune", "retrain", "prune", "extract_label", "extract_prob", "extract_adv"}


def test_the_samples_are_disjoint_and_balanced() -> None:
    train, test = load_data(FIXTURES / "fashion/train.npz"), load_data(FIXTURES / "fashion/test.npz")
    assert not {image.tobytes() for image in train.x} & {image.tobytes() for image in test.x}
    assert train.y is not None
    assert np.bincount(train.y, minlength=10).min() > 300
    assert len(train.names) == 10
