"""verify --reproduce: queries that come from the stated method come out again, others do not."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from onnxaudit.audit.crafting import CraftOptions, craft
from onnxaudit.audit.progress import Silent
from onnxaudit.audit.verifying.verifying import VerifyOptions, verify_file
from onnxaudit.bundle import load
from onnxaudit.errors import ArtefactError, UsageError
from tests.bundles import rewrite
from tests.conftest import FIXTURES, ZOO

VICTIM, DATA = ZOO / "victim.pt", FIXTURES / "fashion/train.npz"
SOME = 12


def crafted_here(path: Path, *schemes: str, **options: Any) -> Path:
    given = {"data": DATA, "queries": SOME, "controls": 10, "seed": 3, "device": "cpu", **options}
    craft(CraftOptions(victim=VICTIM, schemes=schemes, **given), Silent()).save(path)
    return path


def reproduced(path: Path, **given: Any) -> list[str]:
    again = {"victim": VICTIM, "data": DATA, "device": "cpu", **given}
    return list(verify_file(path, VerifyOptions(lambda: path, reproduce=again)))


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle that no model but the victim helped to make."""
    return crafted_here(tmp_path_factory.mktemp("plain") / "b.oab", "akh", "sac-m:box=corner", "uniform+topk:k=2+hamming")


def test_queries_of_the_stated_method_come_out_again(plain: Path) -> None:
    assert reproduced(plain)[1:] == [
        "victim and data are those it was made from, by onnxaudit 0.1.0; this is 0.1.0",
        "akh: 12 queries come out the same, byte by byte",
        "sac-m:box=corner: 12 queries come out the same, byte by byte",
        "uniform+topk:k=2+hamming: 12 queries come out the same, byte by byte",
        "controls: 10 come out the same",
        "the victim's answers come out the same, to the last bit",
    ]


Tensors = dict[str, NDArray[Any]]


def touch(name: str, row: int) -> Callable[[dict[str, Any], Tensors], None]:
    def change(manifest: dict[str, Any], tensors: Tensors) -> None:
        tensors[name] = tensors[name].copy()
        tensors[name].reshape(len(tensors[name]), -1)[row, 0] += 1

    return change


def truth_of(tensors: Tensors) -> str:
    return next(name for name in tensors if name.startswith("columns/"))


TUNED: dict[str, tuple[Callable[[dict[str, Any], Tensors], object], str]] = {
    "one pixel": (touch("queries", 5), "the queries of akh come out otherwise: 1 of 12 differ, first number 5"),
    "another scheme's pixel": (
        touch("queries", 15),
        "queries of sac-m:box=corner come out otherwise: 1 of 12 differ, first number 3",
    ),
    "a control": (touch("queries", 36), "the control queries come out otherwise: 1 of 10 differ, first number 0"),
    "a control's label": (touch("control_labels", 2), "the labels of the control queries come out otherwise"),
    "an answer": (touch("answers/victim/scores", 7), "the victim's answers come out otherwise: 1 of 46 differ, first number 7"),
    "a column": (lambda m, t: touch(truth_of(t), 1)(m, t), "columns/.* come out otherwise: 1 of 12 differ"),
    "another seed": (lambda m, _: m.update(seed=4), "the queries of akh come out otherwise"),
    "a parameter": (lambda m, _: m["schemes"][1]["representing"].update(kernel="rbf"), "the parameters of sac-m:box=corner"),
    "another name": (lambda m, _: m["schemes"][1].update(name="sac-m"), "the queries of sac-m come out otherwise"),
    "other parts": (lambda m, _: m["schemes"][0].update(name="random"), "random is made of other parts here"),
    "another victim": (lambda m, _: m["models"][0].update(sha256="0" * 64), "is not the victim of b.oab"),
    "other data": (lambda m, _: m.update(data_sha256="0" * 64), "made with data of digest 0000000000000000"),
}


@pytest.mark.parametrize("what", TUNED)
def test_queries_that_were_tuned_afterwards_do_not(plain: Path, tmp_path: Path, what: str) -> None:
    path = Path(shutil.copy(plain, tmp_path))
    change, words = TUNED[what]
    rewrite(path, change)
    load(path)  # it is a sound bundle
    with pytest.raises(ArtefactError, match=words):
        reproduced(path)


def test_what_is_missing_is_asked_for(plain: Path) -> None:
    with pytest.raises(UsageError, match="Give them with --data"):
        reproduced(plain, data=None)


def test_as_many_queries_are_made_again_as_craft_was_told_to_make(tmp_path: Path) -> None:
    path = crafted_here(tmp_path / "b.oab", "modeldiff:iterations=2", queries=5)  # whole pairs only
    manifest = load(path).manifest
    assert (manifest.asked, manifest.schemes[0].rows) == (5, (0, 4))
    reproduced(path)
    for asked, words in (
        (4, "the notes of modeldiff.* come out otherwise"),
        (6, "4 queries in rows 0 to 4, again 6 come out"),
        (3, "has at most 4 queries of a scheme and says that craft was told to make 3"),
        (10**12, "told to make 1000000000000"),
    ):
        other = Path(shutil.copy(path, tmp_path / f"{asked}.oab"))
        rewrite(other, partial(lambda manifest, _, asked: manifest.update(asked=asked), asked=asked))
        with pytest.raises(ArtefactError, match=words):
            reproduced(other)


@pytest.mark.parametrize("margin", [None, 1.5])
def test_a_margin_is_told_from_one_that_the_sampler_found(tmp_path: Path, margin: float | None) -> None:
    path = crafted_here(tmp_path / "b.oab", "ipguard-rl:iterations=150", queries=3, margin=margin)
    assert "3 queries come out the same" in reproduced(path)[2]


def test_models_that_helped_are_found_by_their_digests(tmp_path: Path) -> None:
    surrogates, references, folder = tmp_path / "s", tmp_path / "r", tmp_path / "elsewhere"
    derived, independent = (
        [ZOO / f"suspects/prune-{share}.onnx" for share in (30, 60)],
        sorted((ZOO / "references").iterdir())[:6],
    )
    for place, files in ((surrogates, derived), (references, independent)):
        place.mkdir()
        for file in files:
            shutil.copy(file, place)
    given = {"surrogates": surrogates, "references": references}
    path = crafted_here(tmp_path / "b.oab", "sac-w:keep_if_references=right", queries=10, **given)
    helped = load(path).manifest.of_role("training")
    assert helped
    with pytest.raises(UsageError, match=r"models helped to make these queries, as .*\. Give --surrogates DIR"):
        reproduced(path)
    with pytest.raises(UsageError, match=r"as .*\. Give --references DIR"):
        reproduced(path, surrogates=surrogates)
    folder.mkdir()
    for number, file in enumerate([*references.iterdir(), VICTIM]):
        shutil.copy(file, folder / f"other-name-{number}{file.suffix}")
    said = reproduced(path, surrogates=surrogates, references=folder)
    assert "10 queries come out the same" in said[2]
    assert said[-1].startswith("not asked again: ")
    with pytest.raises(UsageError, match="lacks 2 of the models that helped"):
        reproduced(path, surrogates=references, references=folder)


def test_where_craft_trained_models_queries_come_from_the_other_part_of_the_data(tmp_path: Path) -> None:
    """As craft does with --train-references; the training itself is left out here."""
    references = tmp_path / "r"
    references.mkdir()
    shutil.copy(sorted((ZOO / "references").glob("*.onnx"))[0], references)
    options = CraftOptions(
        VICTIM, DATA, ("random",), SOME, 10, references, train_references=1, seed=3, device="cpu", reference_folder=tmp_path
    )
    bundle = craft(options, Silent())
    models = [
        dataclasses.replace(m, origin="trained by craft: lenet") if m.role == "reference" else m for m in bundle.manifest.models
    ]
    bundle = dataclasses.replace(bundle, manifest=dataclasses.replace(bundle.manifest, models=tuple(models)))
    bundle.save(tmp_path / "b.oab")
    assert "12 queries come out the same" in reproduced(tmp_path / "b.oab")[2]
    assert not np.array_equal(load(crafted_here(tmp_path / "c.oab", "random")).queries, bundle.queries)
