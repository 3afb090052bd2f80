"""Suspects whose label set is not the victim's: no label is compared, the derived are found, and no innocent is accused."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from sklearn.metrics import adjusted_mutual_info_score

from onnxaudit.answers import Access, Answers
from onnxaudit.audit.calibrating import with_models
from onnxaudit.audit.checking import without_references
from onnxaudit.audit.judging.judging import judge
from onnxaudit.audit.judging.label_free import MOST, pooled_rows
from onnxaudit.bundle import QueryBundle
from onnxaudit.registry import open_suspect
from onnxaudit.report.model import DERIVED, INCONCLUSIVE, NOT_SHOWN, Report
from onnxaudit.schemes.alike import adjusted_mutual_information, aligned, mean_alignment, related, similarities
from onnxaudit.suspect import InputSpec, SuspectCard, Target
from tests.bundles import save_linear, simulated_bundle, simulated_scores
from tests.conftest import ZOO

CLASSES = 10
DERIVED_FILES = ("copy.onnx", "int8-static.onnx", "int8-dynamic.onnx", "prune-30.onnx", "finetune-last.onnx")
INNOCENT_FILES = ("twin.onnx", "twin-vgg.onnx", "weak-mlp.onnx", "weak-mobilenet.onnx")


@cache
def _said(bundle: QueryBundle, name: str) -> Answers:
    with open_suspect(Target(str(ZOO / "suspects" / name), bundle.manifest.input, CLASSES, "cpu")) as suspect:
        return suspect.ask(bundle.queries)


def _judged(bundle: QueryBundle, answers: Answers, **given: object) -> Report:
    card = SuspectCard("suspect", "test", bundle.manifest.input, None)
    return judge(bundle, card, answers, None, label_free=True, **given)  # type: ignore[arg-type]


def _renamed(answers: Answers, order: NDArray[np.int64]) -> Answers:
    """The same model with its classes in another order."""
    return dataclasses.replace(answers, classes=order[answers.classes].astype(np.int32))


def _labels(labels: NDArray[np.integer]) -> Answers:
    return Answers.from_labels(labels, int(labels.max()) + 1)


# --- the similarities ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("classes", "others"), [(2, 2), (10, 3), (10, 100), (40, 40)])
def test_mutual_information_is_adjusted_as_scikit_learn_does(classes: int, others: int) -> None:
    rng = np.random.default_rng([classes, others])
    one = rng.integers(0, classes, 150)
    two = np.where(rng.random(150) < 0.4, one, rng.integers(0, others, 150))
    wanted = adjusted_mutual_info_score(one, two, average_method="geometric")
    assert adjusted_mutual_information(one, two) == pytest.approx(wanted, abs=1e-9)


@pytest.mark.parametrize("classes", [2, 10, 100, 1000])
def test_unrelated_labels_score_nothing_however_many_classes_there_are(classes: int) -> None:
    rng = np.random.default_rng(classes)
    victim = rng.integers(0, 10, 200)
    others = [rng.integers(0, classes, 200) for _ in range(100)]
    own = similarities(_labels(victim))
    assert abs(np.mean([adjusted_mutual_information(victim, other) for other in others])) < 0.01
    assert abs(np.mean([aligned(own, similarities(_labels(other))) for other in others])) < 0.01


@pytest.mark.parametrize("classes", [2, 10, 300])
def test_unrelated_scores_are_not_aligned_however_many_classes_there_are(classes: int) -> None:
    rng = np.random.default_rng(classes)
    own = similarities(Answers.from_scores(rng.normal(0, 3, (80, 10)), Access.LOGITS))
    others = [similarities(Answers.from_scores(rng.normal(0, 3, (80, classes)), Access.LOGITS)) for _ in range(60)]
    assert abs(np.mean([aligned(own, other) for other in others])) < 0.02


def test_a_model_is_aligned_with_itself_under_other_names() -> None:
    said = Answers.from_scores(np.random.default_rng(1).normal(0, 3, (60, 6)), Access.LOGITS)
    other = _renamed(said, np.array([3, 1, 0, 5, 2, 4]))
    for one, two in ((said, other), (said.degrade(Access.TOPK, 3), other.degrade(Access.TOPK, 3))):
        assert aligned(similarities(one), similarities(two)) == pytest.approx(1)
    assert adjusted_mutual_information(said.labels, other.labels) == pytest.approx(1)


def test_constant_labels_and_labels_all_different_are_not_compared() -> None:
    victim, constant, distinct = np.arange(60) % 7, np.zeros(60, np.int64), np.arange(60)
    assert np.isnan(adjusted_mutual_information(victim, constant))
    assert adjusted_mutual_information(victim, distinct) == pytest.approx(0, abs=1e-9)
    for labels in (constant, distinct):
        assert np.isnan(aligned(similarities(_labels(victim)), similarities(_labels(labels))))
    assert related(constant, victim) == (0.0, False)


def test_how_ordinary_a_model_is_does_not_depend_on_class_names() -> None:
    rng = np.random.default_rng(3)
    truth = rng.integers(0, 5, 80)
    labels = np.stack([np.where(rng.random(80) < share, truth, rng.integers(0, 5, 80)) for share in (0.95, 0.9, 0.9, 0.1)])
    found = mean_alignment(labels)
    assert found.argmin() == 3
    labels[1] = np.array([4, 0, 3, 1, 2])[labels[1]]
    assert mean_alignment(labels) == pytest.approx(found)


# --- findings on the shipped zoo -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("access", [Access.LOGITS, Access.TOPK, Access.LABEL])
@pytest.mark.parametrize("name", DERIVED_FILES)
def test_a_derived_model_with_private_class_names_is_found(crafted: QueryBundle, name: str, access: Access) -> None:
    order = np.random.default_rng(7).permutation(CLASSES)
    report = _judged(crafted, _renamed(_said(crafted, name), order).degrade(access, 3))
    assert report.finding == DERIVED, (report.p_value, report.reasons)
    assert report.statistic == "pairs/1"


@pytest.mark.parametrize("access", [Access.LOGITS, Access.TOPK, Access.LABEL])
@pytest.mark.parametrize("name", INNOCENT_FILES)
def test_an_innocent_with_private_class_names_is_not_accused(crafted: QueryBundle, name: str, access: Access) -> None:
    order = np.random.default_rng(8).permutation(CLASSES)
    report = _judged(crafted, _renamed(_said(crafted, name), order).degrade(access, 3))
    assert report.finding == NOT_SHOWN, (report.p_value, report.reasons)


def _strange(labels: NDArray[np.int32]) -> dict[str, NDArray[np.int64]]:
    """What innocents with other label sets may say where a model of the task says ``labels``."""
    rng, n = np.random.default_rng(9), len(labels)
    return {
        "two classes": labels % 2,
        "five classes": labels // 2,
        "classes split in ten": labels * 10 + rng.integers(0, 10, n),
        "a class a query": np.arange(n),
        "a hundred classes at random": rng.integers(0, 100, n),
        "two classes at random": rng.integers(0, 2, n),
        "one class nearly always": (np.arange(n) % 40 == 0).astype(np.int64),
        "one class for many, one a query for the rest": np.where(labels == 3, 0, 1 + np.arange(n)),
    }


@pytest.mark.parametrize("name", INNOCENT_FILES)
@pytest.mark.parametrize("kind", list(_strange(np.zeros(1, np.int32))))
def test_an_innocent_with_another_number_of_classes_is_not_accused(crafted: QueryBundle, name: str, kind: str) -> None:
    labels = _strange(_said(crafted, name).labels)[kind]
    assert _judged(crafted, _labels(labels)).finding != DERIVED


@pytest.mark.parametrize("classes", [2, 30, 1000])
def test_an_innocent_with_other_scores_is_not_accused(crafted: QueryBundle, classes: int) -> None:
    rng = np.random.default_rng(classes)
    for name in INNOCENT_FILES:
        mixed = _said(crafted, name).dense() @ rng.normal(0, 1, (CLASSES, classes)).astype(np.float32)
        report = _judged(crafted, Answers.from_scores(mixed, Access.LOGITS))
        assert report.finding != DERIVED, (name, report.p_value)


def test_the_finding_does_not_depend_on_names_and_order_of_classes(crafted: QueryBundle) -> None:
    said = _said(crafted, "prune-30.onnx")
    one, two = (_judged(crafted, answers) for answers in (said, _renamed(said, np.arange(CLASSES)[::-1].copy())))
    assert one.p_value == two.p_value
    assert one.score == pytest.approx(two.score)


def test_what_compares_labels_is_skipped_and_says_why(crafted: QueryBundle) -> None:
    report = _judged(crafted, _said(crafted, "copy.onnx"))
    known = {scheme.name: scheme for scheme in report.schemes}
    assert {name for name, scheme in known.items() if scheme.skipped} == {"ipguard-tl", "akh"}
    assert all("compares labels" in (known[name].skipped or "") for name in ("ipguard-tl", "akh"))
    assert known["pairs"].queries == 300  # of all schemes, and not of the controls
    assert report.controls.ok
    assert report.controls.related is not None
    assert report.controls.agreement is report.controls.accuracy is None
    assert any("no label is compared" in said for said in report.conditions)


def test_answers_that_tell_nothing_of_the_controls_are_inconclusive(crafted: QueryBundle) -> None:
    rng = np.random.default_rng(11)
    report = _judged(crafted, _labels(rng.integers(0, 4, len(crafted.queries))))
    assert report.finding == INCONCLUSIVE
    assert any("tell nothing of what the control queries show" in reason for reason in report.reasons)


def test_looks_are_judged_without_labels_too(crafted: QueryBundle) -> None:
    order = np.arange(CLASSES)[::-1].copy()
    found = _judged(crafted, _renamed(_said(crafted, "copy.onnx"), order), planned=(30, 100))
    assert found.finding == DERIVED
    assert found.needed is not None
    assert _judged(crafted, _renamed(_said(crafted, "twin.onnx"), order), planned=(30, 100)).finding == NOT_SHOWN


def test_innocents_of_the_references_kind_are_accused_no_more_often_than_alpha() -> None:
    accused = 0
    for seed in range(40):
        bundle = simulated_bundle(19, seed=seed)
        truth = np.random.default_rng([78, seed])
        truth.integers(0, 256, bundle.queries.shape, dtype=np.uint8)
        own = simulated_scores(10**6 + seed, 0.85, truth.integers(0, 5, len(bundle.queries)))
        answers = _renamed(Answers.from_scores(own, Access.LOGITS), np.array([1, 2, 3, 4, 0]))
        accused += _judged(bundle, answers).finding == DERIVED
    assert accused <= 4  # of 40 at alpha 0.05 and 19 references: 4 or fewer with probability 0.95


def test_of_many_queries_as_many_of_each_sampler_are_compared() -> None:
    bundle = simulated_bundle()
    one, two = bundle.manifest.schemes
    wide = dataclasses.replace(
        bundle, manifest=dataclasses.replace(bundle.manifest, schemes=(one, dataclasses.replace(two, rows=(24, 24 + 6 * MOST))))
    )
    rows = pooled_rows(wide)
    assert len(rows) <= MOST + 2
    assert len(np.unique(rows)) == len(rows)
    assert pooled_rows(bundle).tolist() == list(range(44))


# --- the command ---------------------------------------------------------------------------------------------------------------


def _with_more_classes(source: Path, target: Path, more: int = 1) -> Path:
    """The model with further classes, each a little less likely than one that it has: another number of classes."""
    model = onnx.load(str(source))
    graph, name = model.graph, model.graph.output[0].name
    graph.initializer.append(numpy_helper.from_array(np.arange(more, dtype=np.int64), "wanted"))
    graph.initializer.append(numpy_helper.from_array(np.array(3, np.float32), "less"))
    graph.node.append(helper.make_node("Gather", [name, "wanted"], ["taken"], axis=1))
    graph.node.append(helper.make_node("Sub", ["taken", "less"], ["lower"]))
    graph.node.append(helper.make_node("Concat", [name, "lower"], ["wider"], axis=1))
    del graph.output[:]
    graph.output.append(helper.make_tensor_value_info("wider", TensorProto.FLOAT, ["n", CLASSES + more]))
    onnx.save(model, str(target))
    return target


def _run(*arguments: object, code: int, cwd: Path | None = None) -> str:
    """Both streams of a command that ends with this code, without line breaks."""
    command = [sys.executable, "-m", "onnxaudit", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60, cwd=cwd)
    assert done.returncode == code, done.stderr + done.stdout
    return " ".join((done.stdout + done.stderr).split())


def test_a_file_with_other_classes_is_compared_without_labels_and_can_be_verified(crafted_path: Path, tmp_path: Path) -> None:
    suspect = _with_more_classes(ZOO / "suspects/copy.onnx", tmp_path / "wider.onnx")
    report, evidence = tmp_path / "report.json", tmp_path / "evidence.jsonl"
    _run("check", suspect, "--bundle", crafted_path, "--evidence", evidence, "-o", report, code=10)
    said = json.loads(report.read_text())
    assert said["statistic"] == "pairs/1"
    _run("verify", report, "--evidence", evidence, "--bundle", crafted_path, code=0)
    innocent = _with_more_classes(ZOO / "suspects/twin.onnx", tmp_path / "innocent.onnx", 4)
    _run("check", innocent, "--bundle", crafted_path, code=0)


def test_pages_are_written_without_labels(crafted_path: Path, tmp_path: Path) -> None:
    suspect = _with_more_classes(ZOO / "suspects/copy.onnx", tmp_path / "wider.onnx")
    _run("check", suspect, "--bundle", crafted_path, "-o", tmp_path / "page.html", "-o", tmp_path / "page.md", code=10)
    assert "pairs" in (tmp_path / "page.html").read_text()


def test_an_endpoint_with_other_classes_is_not_asked_twice_but_told_of(crafted_path: Path, tmp_path: Path) -> None:
    from onnxaudit.audit.checking import CheckOptions
    from onnxaudit.audit.running import _fresh

    assert not _fresh("https://example.com/v2/models/m", CheckOptions())
    assert not _fresh("suspect.onnx", CheckOptions(label_space="unknown"))
    suspect = _with_more_classes(ZOO / "suspects/copy.onnx", tmp_path / "wider.onnx")
    spec = InputSpec((28, 28, 1))
    with (
        open_suspect(Target(str(suspect), spec, CLASSES, "cpu")) as model,
        pytest.raises(Exception, match="--label-space unknown"),
    ):
        model.ask(np.zeros((2, 28, 28, 1), np.uint8))
    assert "--label-space" in _run("check", suspect, "--bundle", crafted_path, "--label-space", "nonsense", code=2)


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty models of another task, of seven classes."""
    folder = tmp_path_factory.mktemp("others")
    for seed in range(20):
        save_linear(folder / f"{seed:02d}.onnx", classes=7, seed=seed)
    return folder


def test_references_of_another_label_set_calibrate_and_are_kept_for_verification(
    crafted_path: Path, others: Path, tmp_path: Path
) -> None:
    innocent, report, evidence = save_linear(tmp_path / "it.onnx", 12, 77), tmp_path / "report.json", tmp_path / "e.jsonl"
    given = ("--bundle", crafted_path, "--references", others, "--label-space", "unknown")
    _run("check", innocent, *given, "--evidence", evidence, "-o", report, code=0)
    said = json.loads(report.read_text())
    assert said["bundle"]["references"] == 20
    assert said["own_pool"]["references"] == 42
    _run("verify", report, "--evidence", evidence, "--bundle", crafted_path, code=0)


def test_models_of_the_victims_task_are_not_judged_by_references_of_another(crafted_path: Path, others: Path) -> None:
    given = ("--bundle", crafted_path, "--references", others, "--label-space", "unknown")
    for name in INNOCENT_FILES:
        assert "are of another task" in _run("check", ZOO / "suspects" / name, *given, code=11)


def test_too_few_controls_to_see_the_task_are_inconclusive(crafted_path: Path, others: Path) -> None:
    given = ("--bundle", crafted_path, "--references", others, "--label-space", "unknown", "--budget", "90")
    assert "too few control queries" in _run("check", ZOO / "suspects/twin.onnx", *given, code=11)


def test_one_reference_of_the_task_does_not_make_the_others_fit(crafted_path: Path, others: Path, tmp_path: Path) -> None:
    for file in (*others.iterdir(), sorted((ZOO / "references").glob("*lenet*.onnx"))[0]):
        (tmp_path / file.name).symlink_to(file)
    given = ("--bundle", crafted_path, "--references", tmp_path, "--label-space", "unknown", "--access", "label")
    assert "only 1 of 21 references" in _run("check", ZOO / "suspects/twin.onnx", *given, code=11)


@pytest.mark.parametrize("how", ["a third scrambled", "half scrambled", "coarser"])
@pytest.mark.parametrize("access", [Access.LABEL, Access.LOGITS])
def test_a_weak_or_coarser_model_of_the_task_is_not_judged_by_others(
    crafted: QueryBundle, others: Path, how: str, access: Access
) -> None:
    """It tells less of the controls than the victim, and still far more than models of another task do."""
    asked = []
    for file in sorted(others.iterdir()):
        with open_suspect(Target(str(file), crafted.manifest.input, 7, "cpu")) as model:
            asked.append(model.ask(crafted.queries))
    bundle = without_references(crafted)
    entry = dataclasses.replace(crafted.manifest.victim, role="reference", num_classes=7, accuracy=None)
    models: list[Any] = [
        (dataclasses.replace(entry, id=f"reference-{n:03d}", sha256=f"{n:064d}"), said, {}) for n, said in enumerate(asked)
    ]
    bundle, answers = with_models(bundle, models), _said(crafted, "twin.onnx").degrade(access)
    if how == "coarser":
        answers = _labels(answers.labels // 3)
    else:
        rng, rows = np.random.default_rng(0), np.arange(len(crafted.queries))
        mixed = rng.random(len(rows)) < (0.5 if "half" in how else 0.33)
        rows[mixed] = rng.permutation(rows[mixed])
        answers = answers.take(rows)
    report = _judged(bundle, answers)
    assert report.finding == "inconclusive", report.p_value
    assert any("are of another task" in reason for reason in report.reasons)


def test_the_victim_under_other_names_is_no_reference(crafted_path: Path, others: Path, tmp_path: Path) -> None:
    folder = tmp_path / "pool"
    shutil.copytree(others, folder)
    _with_more_classes(ZOO / "suspects/copy.onnx", folder / "copy.onnx", 2)
    shutil.copyfile(folder / "00.onnx", folder / "again.onnx")
    innocent = save_linear(tmp_path / "it.onnx", 12, 77)
    said = _run("check", innocent, "--bundle", crafted_path, "--references", folder, "--label-space", "unknown", code=0)
    assert "copy.onnx parts the queries as the victim does" in said
    assert "again.onnx is reference-000 again" in said


def test_private_class_names_need_no_order(crafted_path: Path, tmp_path: Path) -> None:
    (tmp_path / "private_names.py").write_text(
        "import onnxruntime\n"
        f"session = onnxruntime.InferenceSession({str(ZOO / 'suspects/copy.onnx')!r})\n"
        "taken = session.get_inputs()[0]\n"
        "words = ['tarn', 'beck', 'fell', 'gill', 'pike', 'nook', 'howe', 'dale', 'crag', 'mere']\n"
        "def predict(x):\n"
        "    return [words[best] for best in session.run(None, {taken.name: x})[0].argmax(1)]\n"
    )
    given = ("check", "private_names:predict", "--bundle", crafted_path)
    assert "--label-space unknown" in _run(*given, code=4, cwd=tmp_path)
    said = _run(*given, "--label-space", "unknown", code=10, cwd=tmp_path)
    assert "pairs" in said


def test_ranked_names_without_a_number_of_classes_are_judged_as_their_ranks_are(crafted: QueryBundle) -> None:
    """Names are numbered as they are hashed, up to 2^31: that must cost nothing, and change nothing."""
    said = crafted.answers["victim"].degrade(Access.TOPK, 3)
    names = np.random.default_rng(3).choice(2**31 - 2, 10, replace=False).astype(np.int32)
    card = SuspectCard("", "http", crafted.manifest.input)
    known = Answers(said.classes, said.scores, Access.TOPK, None)
    named = Answers(names[said.classes], said.scores, Access.TOPK, None)
    for planned in (None, (50, 100)):
        one, two = (judge(crafted, card, answers, None, label_free=True, planned=planned) for answers in (known, named))
        assert one.p_value == two.p_value
        assert one.finding == two.finding == "derived"


@pytest.mark.parametrize("planned", [(1, 2), (3,), (50, 100)])
def test_one_label_for_everything_with_looks_is_inconclusive(crafted: QueryBundle, planned: tuple[int, ...]) -> None:
    answers = Answers.from_labels(np.full(len(crafted.queries), 3), None)
    report = judge(crafted, SuspectCard("", "http", crafted.manifest.input), answers, None, label_free=True, planned=planned)
    assert report.finding == "inconclusive"
