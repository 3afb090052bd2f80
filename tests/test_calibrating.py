"""Putting known models into a bundle: what is recorded of them, and which ones may not stand for innocence."""

from __future__ import annotations

import dataclasses
import hashlib
import shutil
from pathlib import Path

import numpy as np
import onnx
import onnx.numpy_helper
import pytest

from onnxaudit.answers import Access, Answers
from onnxaudit.audit.calibrating import add_models, ask_model, calibrate, control_accuracy, model_files, refusal
from onnxaudit.audit.copies import copied
from onnxaudit.audit.judging.judging import judge
from onnxaudit.audit.progress import Silent
from onnxaudit.bundle import QueryBundle, load
from onnxaudit.errors import ArtefactError, OnnxauditError, SuspectError, UsageError
from onnxaudit.interview import interview
from onnxaudit.registry import open_suspect
from onnxaudit.suspect import SuspectCard, Target
from tests.bundles import Recorded, ridge_weights, save_linear
from tests.conftest import ZOO

SUSPECTS = ZOO / "suspects"


def reference(number: int) -> Path:
    return sorted((ZOO / "references").glob("*.onnx"))[number]


@pytest.fixture(scope="session")
def bare(crafted: QueryBundle) -> QueryBundle:
    """The crafted bundle with the victim alone."""
    manifest = dataclasses.replace(crafted.manifest, models=(crafted.manifest.victim,))
    return dataclasses.replace(crafted, manifest=manifest, answers={"victim": crafted.answers["victim"]})


def add(bundle: QueryBundle, *files: Path, role: str = "reference") -> QueryBundle:
    return calibrate(bundle, [str(file) for file in files], role, Silent(), "cpu")


def test_a_reference_is_recorded_with_what_is_known_of_it(bare: QueryBundle, crafted: QueryBundle) -> None:
    made = add(bare, reference(0), reference(1))
    assert [model.id for model in made.manifest.models] == ["victim", "reference-000", "reference-001"]
    assert made.id == ""
    assert len(bare.manifest.models) == len(bare.answers) == 1  # what was given is not changed
    entry = made.manifest.models[1]
    assert (entry.source, entry.kind, entry.role, entry.access, entry.num_classes) == (
        "00-lenet-own.onnx", "onnx", "reference", "logits", 10,
    )  # fmt: skip
    assert entry.sha256 == hashlib.sha256(reference(0).read_bytes()).hexdigest()
    with open_suspect(Target(str(reference(0)), bare.manifest.input, 10, "cpu")) as model:
        answers = interview(model, bare.queries).answers
    assert np.array_equal(made.answers["reference-000"].dense(), answers.dense())
    start, stop = bare.manifest.controls
    assert entry.accuracy == pytest.approx((answers.labels[start:stop] == bare.control_labels).mean())
    assert entry.accuracy == control_accuracy(bare, answers)
    of_craft = crafted.answers["reference-000"]
    assert np.abs(of_craft.dense() - answers.dense()).max() < 1e-4  # craft and calibrate ask in one way


def test_numbering_goes_on_and_roles_are_kept_apart(bare: QueryBundle) -> None:
    made = add(add(bare, reference(0)), reference(1))
    made = add(made, SUSPECTS / "twin.onnx", role="sibling")
    made = add(made, SUSPECTS / "copy.onnx", SUSPECTS / "prune-30.onnx", role="surrogate")
    assert [model.id for model in made.manifest.models[1:]] == [
        "reference-000", "reference-001", "sibling-000", "surrogate-000", "surrogate-001",
    ]  # fmt: skip
    assert [len(made.manifest.of_role(role)) for role in ("reference", "sibling", "surrogate")] == [2, 1, 2]
    report = judge(made, fake_card(made), made.answers["sibling-000"], None)
    assert report.bundle["references"] == 2  # others do not calibrate


def fake_card(bundle: QueryBundle) -> SuspectCard:
    return Recorded(bundle, bundle.answers["victim"]).card


def test_a_calibrated_bundle_is_saved_and_loaded(bare: QueryBundle, tmp_path: Path) -> None:
    labels = save_linear(tmp_path / "labels.onnx", weights=ridge_weights(), end="labels")
    made = add(bare, reference(0), labels)
    saved = made.save(tmp_path / "a.oab")
    loaded = load(tmp_path / "a.oab")
    assert loaded.id == saved.id != bare.id
    assert loaded.manifest.models == made.manifest.models
    assert loaded.manifest.models[2].access == "label"
    assert loaded.answers["reference-001"].access == Access.LABEL
    assert np.array_equal(loaded.answers["reference-001"].labels, made.answers["reference-001"].labels)
    assert np.array_equal(loaded.answers["reference-000"].dense(), made.answers["reference-000"].dense())


@pytest.mark.parametrize("file", ["suspects/copy.onnx", "victim.pt"])
def test_the_victim_and_its_copies_are_no_references(bare: QueryBundle, file: str) -> None:
    with pytest.raises(UsageError, match="answers as the victim does: it is the victim, or a copy of it"):
        add(bare, ZOO / file)


@pytest.mark.parametrize("file", ["int8-static.onnx", "int8-dynamic.onnx", "copy.onnx"])
def test_rounded_copies_are_known_once_there_are_others_to_compare_with(bare: QueryBundle, file: str) -> None:
    made = add(bare, reference(0), reference(1))
    with pytest.raises(UsageError, match="it is the victim, or a copy of it"):
        add(made, SUSPECTS / file)


@pytest.mark.parametrize("file", ["twin.onnx", "strong-resnet.onnx", "hardened-vgg.onnx", "extract-prob-resnet.onnx"])
def test_a_model_that_is_only_close_to_the_victim_is_kept(bare: QueryBundle, file: str) -> None:
    """Leaving out what is close would cut off the very tail that p is read from: it would accuse innocents."""
    made = add(bare, reference(0), reference(1), SUSPECTS / file)
    assert [model.source for model in made.manifest.of_role("reference")][-1] == file


def half_precision(path: Path, folder: Path) -> Path:
    """The same network with its weights rounded to half precision."""
    model = onnx.load(path)
    for tensor in model.graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT:
            rounded = onnx.numpy_helper.to_array(tensor).astype(np.float16).astype(np.float32)
            tensor.CopyFrom(onnx.numpy_helper.from_array(rounded, tensor.name))
    onnx.save(model, folder / path.name)
    return folder / path.name


def test_one_model_in_two_precisions_is_one_reference(bare: QueryBundle, tmp_path: Path) -> None:
    """Else ten models would count as twenty, and p would fall to half of what they show."""
    halves = [half_precision(reference(index), tmp_path) for index in range(3)]
    made = add(bare, *(reference(index) for index in range(3)))
    for place, half in enumerate(halves):
        with pytest.raises(UsageError, match=f"is reference-00{place}"):
            add(made, half)


@pytest.mark.parametrize("labels_only", [False, True])
@pytest.mark.parametrize("errors", [0.005, 0.02, 0.1])
def test_honest_models_that_hardly_ever_differ_are_all_kept(errors: float, labels_only: bool) -> None:
    """On easy queries good models agree on nearly everything; the closest of them must not be taken for copies."""
    rng = np.random.default_rng(3)
    truth = rng.integers(0, 10, 200)

    def model() -> Answers:
        said = np.where(rng.random(200) < errors, rng.integers(0, 10, 200), truth)
        if labels_only:
            return Answers.from_labels(said, 10)
        return Answers.from_scores(8 * np.eye(10)[said] + rng.normal(size=(200, 10)), Access.LOGITS)

    models = [model() for _ in range(40)]
    assert [copied(one, models[:at] + models[at + 1 :], []) for at, one in enumerate(models)] == [None] * 40


def test_a_copy_that_gives_labels_only_is_no_reference_either(bare: QueryBundle, tmp_path: Path) -> None:
    model = onnx.load(SUSPECTS / "copy.onnx")
    (old,) = model.graph.output
    model.graph.node.append(onnx.helper.make_node("ArgMax", [old.name], ["label"], axis=1, keepdims=0))
    model.graph.output.remove(old)
    model.graph.output.append(onnx.helper.make_tensor_value_info("label", onnx.TensorProto.INT64, ["n"]))
    onnx.save(model, tmp_path / "labels.onnx")
    with pytest.raises(UsageError, match="it is the victim"):
        add(bare, tmp_path / "labels.onnx")


def test_the_same_file_does_not_count_twice(bare: QueryBundle, tmp_path: Path) -> None:
    renamed = tmp_path / "another-model.onnx"
    shutil.copyfile(reference(3), renamed)
    made = add(bare, reference(3))
    for again in (reference(3), renamed):
        with pytest.raises(UsageError, match=r"is reference-000 \(03-mobilenet-own\.onnx\) again"):
            add(made, again)
    with pytest.raises(UsageError, match="again"):
        add(bare, reference(3), reference(3))


def test_the_same_network_in_another_file_does_not_count_twice(bare: QueryBundle, tmp_path: Path) -> None:
    """Padding a pool with copies of one weak model would lower the floor of p without adding evidence."""
    model = onnx.load(reference(3))
    model.doc_string = "exported again"
    onnx.save(model, tmp_path / "again.onnx")
    with pytest.raises(UsageError, match="is reference-000"):
        add(add(bare, reference(3)), tmp_path / "again.onnx")


def test_a_model_at_chance_is_not_a_reference(bare: QueryBundle, tmp_path: Path) -> None:
    best = bare.manifest.victim.accuracy
    assert best is not None
    said = rf"gets \d+\.\d% of the controls right, the victim {best:.1%}: wrong input convention or label order"
    with pytest.raises(UsageError, match=said):
        add(bare, save_linear(tmp_path / "random.onnx"))
    constant = np.zeros((784, 10), np.float32)
    constant[:, 4] = 1
    with pytest.raises(UsageError, match=said):
        add(bare, save_linear(tmp_path / "constant.onnx", weights=constant))


@pytest.mark.parametrize("order", [[1, 0, 3, 2, 5, 4, 6, 7, 8, 9], [9, 0, 1, 2, 3, 4, 5, 6, 7, 8]], ids=["some", "all"])
def test_a_model_with_another_label_order_is_not_a_reference(bare: QueryBundle, tmp_path: Path, order: list[int]) -> None:
    with pytest.raises(UsageError, match="wrong input convention or label order"):
        add(bare, save_linear(tmp_path / "turned.onnx", weights=ridge_weights()[:, order].copy()))


def test_a_reference_needs_seven_tenths_of_the_victim_s_accuracy(bare: QueryBundle) -> None:
    best, answers = bare.manifest.victim.accuracy, bare.answers["victim"]
    assert best is not None
    other = Answers.from_labels((answers.labels + 1) % 10, 10)
    entry = dataclasses.replace(bare.manifest.victim, id="reference-000", role="reference", sha256=None)
    for share, refused in ((0.5, True), (0.69, True), (0.71, False), (1.0, False), (1.1, False)):
        words = refusal(bare, dataclasses.replace(entry, accuracy=share * best), other)
        assert (words is not None) is refused, share
    assert refusal(bare, dataclasses.replace(entry, accuracy=None), other) is None


def test_an_honest_linear_model_is_one(bare: QueryBundle, tmp_path: Path) -> None:
    made = add(bare, save_linear(tmp_path / "ridge.onnx", weights=ridge_weights()))
    accuracy = made.manifest.models[1].accuracy
    assert accuracy is not None
    assert 0.6 < accuracy < 0.95


def test_models_that_cannot_answer_are_errors_that_name_them(bare: QueryBundle, tmp_path: Path) -> None:
    nan = np.full((784, 10), np.nan, np.float32)
    (tmp_path / "text.onnx").write_text("not a model")
    cases: list[tuple[Path, type[OnnxauditError], str]] = [
        (save_linear(tmp_path / "four.onnx", 4), SuspectError, "4 classes.*10"),
        (save_linear(tmp_path / "nan.onnx", weights=nan), SuspectError, "NaN"),
        (tmp_path / "text.onnx", ArtefactError, r"text\.onnx"),
        (tmp_path / "missing.onnx", UsageError, "not a file"),
        (save_linear(tmp_path / "fewer.onnx", weights=ridge_weights()[:, :9].copy(), classes=9), SuspectError, "9 classes"),
    ]
    for file, kind, said in cases:
        with pytest.raises(kind, match=said):
            add(bare, file)


def test_a_folder_is_taken_as_far_as_it_goes_and_the_rest_is_told(bare: QueryBundle, tmp_path: Path) -> None:
    shutil.copyfile(reference(0), tmp_path / "a.onnx")
    shutil.copyfile(SUSPECTS / "copy.onnx", tmp_path / "b.onnx")
    save_linear(tmp_path / "c.onnx", 4)
    (tmp_path / "d.onnx").write_text("not a model")
    shutil.copyfile(reference(0), tmp_path / "e.onnx")
    shutil.copyfile(reference(1), tmp_path / "f.onnx")
    progress = Silent()
    targets = [(Target(str(file), bare.manifest.input, 10, "cpu"), "mine") for file in model_files(tmp_path)]
    made = add_models(bare, targets, "reference", progress, strict=False)
    assert [(model.id, model.source, model.origin) for model in made.manifest.models[1:]] == [
        ("reference-000", "a.onnx", "mine"),
        ("reference-001", "f.onnx", "mine"),
    ]
    assert [note.split(" ")[2].rpartition("/")[2] for note in progress.notes] == ["b.onnx", "c.onnx", "d.onnx", "e.onnx"]
    assert made.manifest.pool_notes == tuple(progress.notes)
    assert all(note.startswith("left out: ") for note in progress.notes)
    assert bare.manifest.pool_notes == ()
    report = judge(made, fake_card(made), made.answers["reference-000"], None)
    assert set(progress.notes) <= set(report.conditions)
    saved = made.save(tmp_path / "made.oab")
    assert load(tmp_path / "made.oab").manifest.pool_notes == saved.manifest.pool_notes == made.manifest.pool_notes


def test_folders_of_models(tmp_path: Path) -> None:
    for name in ("b.onnx", "a.ONNX", "c.pt", "notes.txt", "x.python", "d.json"):
        (tmp_path / name).touch()
    (tmp_path / "folder.onnx").mkdir()
    assert [file.name for file in model_files(tmp_path)] == ["a.ONNX", "b.onnx", "c.pt"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match=r"holds no models.*\.onnx"):
        model_files(tmp_path / "empty")
    with pytest.raises(UsageError, match="not a folder"):
        model_files(tmp_path / "missing")


def test_accuracy_is_not_known_without_labels(bare: QueryBundle) -> None:
    unlabelled = dataclasses.replace(bare, manifest=dataclasses.replace(bare.manifest, labelled=False))
    entry, answers, _ = ask_model(unlabelled, Target(str(reference(1)), bare.manifest.input, 10, "cpu"), "reference", "x")
    assert entry.accuracy is None
    assert answers.answered.all()


def test_no_two_of_the_shipped_references_are_taken_for_one(crafted: QueryBundle) -> None:
    """Several of them are of one family and were trained on the same data."""
    ids = [model.id for model in crafted.manifest.of_role("reference")]
    for one in ids:
        assert copied(crafted.answers[one], [crafted.answers[other] for other in ids if other != one], []) is None
