"""What a ``.skops`` file would build, read from its schema before anything is built.

skops asks whether types are trusted, not whether their numbers are. Much of scikit-learn is native code that follows its numbers
without a look, so only classifiers whose numbers NumPy handles, or that are checked here, come through.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any
from zipfile import ZipFile

import numpy as np

from onnxaudit.errors import ArtefactError

TREE = "sklearn.tree._tree.Tree"
ESTIMATORS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "sklearn.ensemble": ("RandomForestClassifier", "ExtraTreesClassifier", "BaggingClassifier", "AdaBoostClassifier"),
        "sklearn.tree": ("DecisionTreeClassifier", "ExtraTreeClassifier"),
        "sklearn.linear_model": ("LogisticRegression", "RidgeClassifier"),
        "sklearn.svm": ("LinearSVC",),
        "sklearn.neural_network": ("MLPClassifier", "AdamOptimizer", "SGDOptimizer"),
        "sklearn.naive_bayes": ("GaussianNB", "MultinomialNB", "BernoulliNB", "ComplementNB"),
        "sklearn.discriminant_analysis": ("LinearDiscriminantAnalysis", "QuadraticDiscriminantAnalysis"),
        "sklearn.dummy": ("DummyClassifier",),
        "sklearn.pipeline": ("Pipeline",),
        "sklearn.preprocessing": (
            "StandardScaler",
            "MinMaxScaler",
            "MaxAbsScaler",
            "RobustScaler",
            "LabelBinarizer",
            "LabelEncoder",
        ),
        "sklearn.decomposition": ("PCA",),
    }
)
LOADERS = frozenset(
    f"{name}Node"
    for name in ("Object", "Tree", "Dict", "DefaultDict", "List", "Set", "Tuple", "Json", "Type", "NdArray", "Slice", "Cached")
) | frozenset(("RandomStateNode", "RandomGeneratorNode"))
_MOST_CLASSES = 1 << 20
_MOST_SCHEMA = 1 << 25
"""Bytes of a schema; as objects it takes many times as much. That of a thousand trees has a few MiB."""


def screen_schema(data: bytes, path: Path) -> None:
    """Raise ArtefactError if a file would build a part of scikit-learn that is not listed here, or a tree of odd sizes."""
    try:
        with ZipFile(io.BytesIO(data)) as archive:
            if archive.getinfo("schema.json").file_size > _MOST_SCHEMA:
                raise ArtefactError(f"{path.name} has a schema of more bytes than a model has", "It is not safe to open.")
            for node in _nodes(json.loads(archive.read("schema.json"))):
                name = f"{node.get('__module__')}.{node.get('__class__')}"
                tree = node.get("__loader__") == "TreeNode" or name == TREE
                if not (tree or _listed(node)):
                    raise ArtefactError(f"{path.name} wants to build {name[:120]}, which is not trusted", "Convert it to ONNX.")
                if tree and not (name == TREE and _sound(node, archive)):
                    raise ArtefactError(
                        f"{path.name} has a tree of impossible sizes", "It is damaged or forged: not safe to run."
                    )
    except ArtefactError:
        raise
    except Exception as error:  # zipfile, json and numpy each raise their own, deep nesting RecursionError
        raise ArtefactError(f"{path.name} is damaged: {' '.join(str(error).split())[:120]}", "Copy or save it again.") from None


def _nodes(part: Any) -> Iterator[Mapping[str, Any]]:
    """Every node of a schema, and every other map that names a type."""
    if isinstance(part, dict):
        if "__loader__" in part or "__class__" in part:
            yield part
        for value in part.values():
            yield from _nodes(value)
    elif isinstance(part, list):
        for value in part:
            yield from _nodes(value)


def _listed(node: Mapping[str, Any]) -> bool:
    """Whether a node is built in a known way, and is no part of scikit-learn but those above; skops sees to the rest."""
    if node.get("__loader__") not in LOADERS:
        return False
    module, name = str(node.get("__module__")), str(node.get("__class__"))
    package = ".".join(module.split(".")[:2])
    return module.split(".")[0] != "sklearn" or name in ESTIMATORS.get(package, ())


def _sound(node: Mapping[str, Any], archive: ZipFile) -> bool:
    """Whether a tree is made for one output, and says of it how many classes there are: its constructor believes both."""
    features, classes, outputs = node["__reduce__"]["args"]["content"]
    if json.loads(outputs["content"]) != 1 or not 0 < int(json.loads(features["content"])) <= _MOST_CLASSES:
        return False
    counts = np.load(io.BytesIO(archive.read(classes["file"])), allow_pickle=False)
    return counts.ndim == 1 and len(counts) == 1 and 0 < int(counts[0]) <= _MOST_CLASSES
