"""scikit-learn classifiers as suspects: files of trusted types, estimators in Python, and files that mean harm."""

from __future__ import annotations

import io
import json
import pickle
import sys
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onnxaudit.answers import Access, Answers
from onnxaudit.audit.checking import CheckOptions, check
from onnxaudit.audit.progress import Silent
from onnxaudit.bundle import QueryBundle
from onnxaudit.errors import ArtefactError, SuspectError, UsageError
from onnxaudit.registry import open_suspect
from onnxaudit.suspect import InputSpec, Suspect, Target
from onnxaudit.testing import assert_same, check_adapter
from onnxaudit.zoo.forest import fit_forest, save_forest
from tests.models import forest, vectors
from tests.models import save_forest as convert_forest

skops_io = pytest.importorskip("skops.io", reason="needs the extra sklearn")

FIXTURES = Path(__file__).resolve().parent.parent / "fixtures"
SPEC = InputSpec((6,), layout="NC")
QUERIES = vectors(30)


def saved(estimator: Any, path: Path) -> Path:
    skops_io.dump(estimator, path)
    return path


def opened(path: Path | str, **options: Any) -> Suspect:
    return open_suspect(Target(str(path), options.pop("spec", SPEC), options.pop("num_classes", 3), "cpu", **options))


def labels(n: int = 200) -> np.ndarray[Any, Any]:
    x = vectors(n)
    found: np.ndarray[Any, Any] = (x[:, 0] > 0).astype(int) + (x[:, 1] > 0)
    return found


def fitted(name: str) -> Any:
    """A classifier of three classes on six values."""
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
    from sklearn.ensemble import AdaBoostClassifier, BaggingClassifier, ExtraTreesClassifier
    from sklearn.linear_model import LogisticRegression
    from sklearn.naive_bayes import GaussianNB
    from sklearn.neural_network import MLPClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from sklearn.svm import LinearSVC
    from sklearn.tree import DecisionTreeClassifier

    made: dict[str, Callable[[], Any]] = {
        "forest": forest,
        "extra-trees": lambda: ExtraTreesClassifier(5, random_state=0, n_jobs=2),
        "ada": lambda: AdaBoostClassifier(n_estimators=3, random_state=0),
        "bayes": GaussianNB,
        "lda": LinearDiscriminantAnalysis,
        "bagging": lambda: BaggingClassifier(DecisionTreeClassifier(), 4, max_features=0.5, random_state=0),
        "pipeline": lambda: make_pipeline(StandardScaler(), LogisticRegression()),
        "mlp": lambda: MLPClassifier((5,), max_iter=20, random_state=0),
        "svc": lambda: LinearSVC(random_state=0),
    }
    estimator = made[name]()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return estimator if name == "forest" else estimator.fit(vectors(200), labels())


@pytest.mark.parametrize("name", ["forest", "extra-trees", "ada", "bagging", "pipeline", "mlp", "svc", "bayes", "lda"])
def test_every_kind_keeps_the_contract(name: str, tmp_path: Path) -> None:
    estimator = fitted(name)
    path = saved(estimator, tmp_path / "m.skops")
    if name == "svc":
        expected = Answers.from_labels(estimator.predict(QUERIES), 3)
    else:
        expected = Answers.from_scores(estimator.predict_proba(QUERIES).astype(np.float32), Access.PROBS)
    check_adapter(lambda: opened(path), QUERIES, expected)


def test_it_answers_as_its_onnx_file_does(tmp_path: Path) -> None:
    with opened(saved(forest(), tmp_path / "m.skops")) as one, opened(convert_forest(tmp_path / "m.onnx", False)) as other:
        assert_same(one.ask(QUERIES), other.ask(QUERIES))
        assert one.card.sha256 != other.card.sha256
        assert one.card.runtime["estimator"] == "RandomForestClassifier"


def test_the_finding_is_that_of_the_onnx_file(crafted: QueryBundle, tmp_path: Path) -> None:
    with np.load(FIXTURES / "fashion/train.npz") as archive:
        x, y = archive["x"][:1500], archive["y"][:1500]
    trained = fit_forest(x, y, trees=10, seed=1)
    save_forest(trained, (28, 28, 1), 10, tmp_path / "forest.onnx")
    reports = []
    for path in (saved(trained, tmp_path / "forest.skops"), tmp_path / "forest.onnx"):
        with opened(path, spec=crafted.manifest.input, num_classes=10, scale=1.0) as suspect:
            reports.append(check(crafted, suspect, CheckOptions(), Silent()))
    assert reports[0].finding == reports[1].finding == "not-shown"
    assert reports[0].p_value == reports[1].p_value


def test_classes_that_the_training_data_lacked_score_zero(tmp_path: Path) -> None:
    from sklearn.ensemble import RandomForestClassifier

    kept = labels() != 1
    estimator = RandomForestClassifier(4, random_state=0).fit(vectors(200)[kept], labels()[kept])
    with opened(saved(estimator, tmp_path / "m.skops"), num_classes=4) as suspect:
        dense = suspect.ask(QUERIES).dense()
    assert dense.shape == (30, 4)
    np.testing.assert_allclose(dense[:, [0, 2]], estimator.predict_proba(QUERIES), atol=1e-6)
    assert not dense[:, [1, 3]].any()


def test_class_names_need_an_order(tmp_path: Path) -> None:
    path = saved(forest(strings=True), tmp_path / "m.skops")
    with opened(path) as suspect, pytest.raises(SuspectError, match="class_names"):
        suspect.ask(QUERIES)
    with opened(path, options={"class_names": "bee,ant,cat"}) as suspect:
        assert (suspect.ask(QUERIES).labels == np.array([1, 0, 2])[forest().predict(QUERIES)]).all()


PROGRAM = """
from tests.models import forest
fitted = forest()
def made():
    return fitted
def broken():
    raise RuntimeError("no data")
def nothing():
    return 42
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    name = f"estimators_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(PROGRAM)
    monkeypatch.chdir(tmp_path)
    yield name
    sys.modules.pop(name, None)


@pytest.mark.parametrize("name", ["fitted", "made"])
def test_an_estimator_of_a_module(module: str, name: str) -> None:
    expected = Answers.from_scores(forest().predict_proba(QUERIES).astype(np.float32), Access.PROBS)
    check_adapter(lambda: opened(f"{module}:{name}"), QUERIES, expected)


@pytest.mark.parametrize(("name", "why"), [("broken", "RuntimeError: no data"), ("nothing", "no fitted classifier")])
def test_a_function_that_gives_none(module: str, name: str, why: str) -> None:
    with pytest.raises(UsageError, match=why):
        opened(f"{module}:{name}")


def members(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def zipped(parts: dict[str, bytes], path: Path) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in parts.items():
            archive.writestr(name, data)
    return path


class Trap:
    def __reduce__(self) -> Any:
        return (print, ("the trap was sprung",))


def test_a_pickle_is_never_loaded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bare, inside = tmp_path / "m.skops", tmp_path / "n.skops"
    bare.write_bytes(pickle.dumps(Trap()))
    zipped({"archive/data.pkl": pickle.dumps(Trap())}, inside)
    for path in (bare, inside):
        with pytest.raises(ArtefactError, match="no skops file"):
            opened(path)
    array = io.BytesIO()
    np.save(array, np.array([Trap()], dtype=object), allow_pickle=True)
    parts = members(saved(fitted("pipeline"), tmp_path / "good.skops"))
    numbers = [name for name in parts if name.endswith(".npy")]
    with pytest.raises(ArtefactError, match="cannot be loaded"):
        opened(zipped(parts | {numbers[0]: array.getvalue()}, tmp_path / "p.skops"))
    assert "sprung" not in capsys.readouterr().out


@pytest.mark.parametrize(("module", "name"), [("os", "system"), ("subprocess", "Popen"), ("builtins", "eval")])
def test_types_that_are_not_trusted_are_not_built(module: str, name: str, tmp_path: Path) -> None:
    parts = members(saved(fitted("pipeline"), tmp_path / "good.skops"))
    schema = json.loads(parts["schema.json"])
    schema["__module__"], schema["__class__"] = module, name
    path = zipped(parts | {"schema.json": json.dumps(schema).encode()}, tmp_path / "m.skops")
    with pytest.raises(ArtefactError, match=f"{module}.{name}, which is not trusted"):
        opened(path)


@pytest.mark.parametrize(
    ("field", "value"), [("left_child", 10**6), ("right_child", -7), ("left_child", 0), ("feature", 10**6), ("feature", -5)]
)
def test_trees_that_lead_outside_are_refused(field: str, value: int, tmp_path: Path) -> None:
    """scikit-learn would follow these numbers to any address, or round in a circle."""
    parts = members(saved(forest(), tmp_path / "good.skops"))
    for name, data in parts.items():
        if name.endswith(".npy"):
            array = np.load(io.BytesIO(data), allow_pickle=False)
            if array.dtype.names and "left_child" in array.dtype.names:
                array[field][0] = value
                forged = io.BytesIO()
                np.save(forged, array)
                with pytest.raises(ArtefactError, match="lead outside"):
                    opened(zipped(parts | {name: forged.getvalue()}, tmp_path / "m.skops"))
                return
    raise AssertionError("the forest has no tree")


def test_native_code_that_believes_its_numbers_is_not_built(tmp_path: Path) -> None:
    """skops trusts these; libsvm and boosting read and write wherever the numbers in a file say."""
    from sklearn.ensemble import GradientBoostingClassifier
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.svm import SVC

    for estimator in (SVC(), GradientBoostingClassifier(n_estimators=2), KNeighborsClassifier(algorithm="brute")):
        with pytest.raises(ArtefactError, match=f"{type(estimator).__name__}, which is not trusted|not trusted"):
            opened(saved(estimator.fit(vectors(200), labels()), tmp_path / "m.skops"))


@pytest.mark.parametrize(("place", "value"), [(2, "1000000000"), (2, "2"), (0, "-3")])
def test_trees_of_impossible_sizes_are_refused(place: int, value: str, tmp_path: Path) -> None:
    """The constructor of a tree reads as many numbers as it is told there are."""
    parts = members(saved(forest(), tmp_path / "good.skops"))
    schema = json.loads(parts["schema.json"])

    def forge(node: Any) -> None:
        if isinstance(node, dict) and node.get("__class__") == "Tree":
            node["__reduce__"]["args"]["content"][place]["content"] = value
        for inner in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
            forge(inner)

    forge(schema)
    with pytest.raises(ArtefactError, match="impossible sizes"):
        opened(zipped(parts | {"schema.json": json.dumps(schema).encode()}, tmp_path / "m.skops"))


def test_a_tree_wider_than_its_forest_is_refused(tmp_path: Path) -> None:
    from sklearn.ensemble import RandomForestClassifier

    wide = np.repeat(vectors(200), 5, axis=1)
    estimator = RandomForestClassifier(3, random_state=0).fit(wide, labels())
    estimator.estimators_[0], estimator.n_features_in_ = forest().estimators_[0], 6
    with pytest.raises(ArtefactError, match="lead outside"):
        opened(saved(estimator, tmp_path / "m.skops"))


@pytest.mark.parametrize("keep", [0, 3, 100, 0.5, 0.999])
def test_a_truncated_file_is_one_line(keep: float, tmp_path: Path) -> None:
    path = saved(fitted("pipeline"), tmp_path / "m.skops")
    data = path.read_bytes()
    path.write_bytes(data[: int(keep if keep >= 1 else keep * len(data))])
    with pytest.raises(ArtefactError) as caught:
        opened(path)
    assert "\n" not in str(caught.value)


def test_members_that_lead_outside_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtefactError, match="outside the archive"):
        opened(zipped({"schema.json": b"{}", "../evil.npy": b""}, tmp_path / "m.skops"))


def test_what_is_no_classifier_is_refused(tmp_path: Path) -> None:
    from sklearn.ensemble import RandomForestClassifier

    with pytest.raises(UsageError, match="no fitted classifier"):
        opened(saved(RandomForestClassifier(), tmp_path / "m.skops"))
