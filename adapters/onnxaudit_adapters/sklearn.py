"""scikit-learn classifiers: ``.skops`` files of trusted types, never a pickle, and estimators that ``module:function`` gives."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from onnxaudit.answers import Answers
from onnxaudit.archives import open_archive, read_file, sniff
from onnxaudit.errors import ArtefactError, OnnxauditError, SuspectError, UsageError, missing_extra
from onnxaudit.suspect import Queries, Suspect, SuspectCard, Target
from onnxaudit_adapters.outputs import class_names_of, read_output
from onnxaudit_adapters.signature import Signature, read_signature
from onnxaudit_adapters.skops_schema import TREE, screen_schema

TRUSTED = (
    TREE,
    "sklearn.neural_network._stochastic_optimizers.AdamOptimizer",
    "sklearn.neural_network._stochastic_optimizers.SGDOptimizer",
)
"""Types beyond those that skops trusts: the first walks its nodes unchecked, so they are checked here; the others are plain."""
_SCHEMA = "schema.json"
_LEAF = -1
_HINT = "Save it with skops.io.dump, or convert it to ONNX with skl2onnx; loading a pickle could run any code."


def open_sklearn(target: Target) -> SklearnSuspect:
    """Open a ``.skops`` file. Only types that skops trusts and those of TRUSTED are built, of scikit-learn only what is listed.

    Raises ArtefactError for any other file, other types, or trees whose nodes lead outside; UsageError without skops.
    """
    path = Path(target.source)
    kind = sniff(path)
    if kind != "unknown":
        raise ArtefactError(f"{path.name} is no skops file but {'a pickle' if kind == 'pickle' else kind}", _HINT)
    data = read_file(path)
    if not data.startswith(b"PK\x03\x04") or _SCHEMA not in _members(path):
        raise ArtefactError(f"{path.name} is no skops file", _HINT)
    return estimator_suspect(target, _loaded(data, path), hashlib.sha256(data).hexdigest())


def estimator_suspect(target: Target, estimator: Any, sha256: str | None = None) -> SklearnSuspect:
    """A fitted classifier as a suspect. What it takes: as many values as it was fitted on, of the victim's scale.

    Raises UsageError for what is not a fitted classifier.
    """
    if not hasattr(estimator, "classes_") or not hasattr(estimator, "predict"):
        raise UsageError(f"{target.source} gives a {type(estimator).__name__}, which is no fitted classifier", "Fit it first.")
    features = getattr(estimator, "n_features_in_", None)
    signature = read_signature(target, () if features is None else (None, int(features)), None)
    import sklearn

    card = SuspectCard(
        target.source,
        "sklearn",
        signature.spec,
        target.num_classes,
        sha256,
        max_batch=signature.max_batch,
        runtime={"scikit-learn": sklearn.__version__, "estimator": type(estimator).__name__},
    )
    return SklearnSuspect(estimator, card, signature, class_names_of(target.options))


class SklearnSuspect(Suspect):
    """A fitted classifier: its predict_proba, else its labels."""

    def __init__(self, estimator: Any, card: SuspectCard, signature: Signature, class_names: Sequence[str] = ()) -> None:
        self.card = card
        self._estimator = estimator
        self._signature = signature
        self._class_names = class_names

    def _ask(self, queries: Queries) -> Answers:
        """Answers to one batch. Raises UsageError for queries of another size, SuspectError if the estimator fails."""
        if self._estimator is None:
            raise SuspectError(f"{self.card.source} is closed")
        from joblib import parallel_config

        rows = self._signature.shaped(self.card.input.encode(queries)).reshape(len(queries), -1)
        try:
            # threads that add up their trees in the order they finish give other last digits each time
            with warnings.catch_warnings(), parallel_config("sequential"):
                warnings.simplefilter("ignore")  # of feature names, which queries do not have
                value = self._answers(rows)
        except Exception as error:  # an estimator can raise anything
            raise SuspectError(f"{self.card.source} failed: {_reason(error)}") from error
        return read_output(value, len(queries), self.card.num_classes, self._class_names)

    def _answers(self, rows: np.ndarray[Any, Any]) -> object:
        if not hasattr(self._estimator, "predict_proba"):
            return self._estimator.predict(rows)
        scores = self._estimator.predict_proba(rows)
        return [self._complete(dict(zip(self._estimator.classes_.tolist(), row, strict=True))) for row in scores]

    def _complete(self, scores: Mapping[object, float]) -> Mapping[object, float]:
        """With a score of zero for each class that the training data lacked; numbers alone tell which those are."""
        wanted = range(self.card.num_classes or 0)
        if all(isinstance(name, int) and name in wanted for name in scores):
            return {name: scores.get(name, 0.0) for name in wanted}
        return scores

    def close(self) -> None:
        """Let go of the estimator."""
        self._estimator = None


def _members(path: Path) -> list[str]:
    with open_archive(path) as archive:  # which has looked at names and sizes
        return archive.namelist()


def _loaded(data: bytes, path: Path) -> Any:
    """The estimator in a file whose types are all trusted, once the insides of its trees are known to be sound."""
    try:
        import skops.io
    except ImportError:
        raise missing_extra("skops", "sklearn") from None
    screen_schema(data, path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of another release of scikit-learn
            unknown = sorted(set(skops.io.get_untrusted_types(data=data)) - set(TRUSTED))
            if unknown:
                shown = ", ".join(unknown[:3]) + (" …" if len(unknown) > 3 else "")
                raise ArtefactError(f"{path.name} wants to build {shown[:200]}, which is not trusted", "Convert it to ONNX.")
            estimator = skops.io.loads(data, trusted=list(TRUSTED))
        for tree, owners in _trees(estimator):
            _check_tree(tree, owners, path)
    except OnnxauditError:
        raise
    except Exception as error:  # skops, zipfile, numpy and scikit-learn each raise their own
        raise ArtefactError(f"{path.name} cannot be loaded: {_reason(error)}", "Copy or save it again.") from None
    return estimator


def _trees(part: Any, owners: tuple[Any, ...] = (), seen: set[int] | None = None) -> Iterator[tuple[Any, tuple[Any, ...]]]:
    """Every tree in an estimator, with the estimators around it, outermost first."""
    seen = set() if seen is None else seen
    if f"{type(part).__module__}.{type(part).__qualname__}" == TREE:
        yield part, owners  # as often as it is owned: each owner is another way in
        return
    if id(part) in seen or isinstance(part, str | bytes | int | float):
        return
    seen.add(id(part))
    if isinstance(part, Mapping):
        inner: Sequence[Any] = list(part.values())
    elif isinstance(part, list | tuple | set):
        inner = list(part)
    elif isinstance(part, np.ndarray):
        inner = part.ravel().tolist() if part.dtype == object else []
    else:
        inner = list(getattr(part, "__dict__", {}).values())
        owners = (*owners, part) if hasattr(part, "n_features_in_") else owners
    for value in inner:
        yield from _trees(value, owners, seen)


def _check_tree(tree: Any, owners: tuple[Any, ...], path: Path) -> None:
    """Raise ArtefactError unless each step of a tree leads on to one of its nodes, and looks at a value that is there.

    scikit-learn follows the numbers in a tree without a look at them: a forged one would read any memory, or never end.
    """
    from sklearn.ensemble import BaseEnsemble
    from sklearn.tree import BaseDecisionTree

    left, right, feature = tree.children_left, tree.children_right, tree.feature
    place = np.arange(tree.node_count)
    inside = left != _LEAF
    sound = (left > place) & (left < tree.node_count) & (right > place) & (right < tree.node_count)
    sound &= (feature >= 0) & (feature < tree.n_features)
    whole = tree.node_count > 0 and bool(sound[inside].all())
    # ensembles look at the width of a query once, for all of their trees; those of Bagging choose columns for each
    guards = [owner for owner in owners if isinstance(owner, BaseEnsemble | BaseDecisionTree) and not _chooses(owner)]
    fits = all(owner.n_features_in_ == tree.n_features for owner in guards)
    direct = owners and isinstance(owners[-1], BaseDecisionTree) and owners[-1].tree_ is tree
    if not (whole and fits and direct):
        raise ArtefactError(f"{path.name} has a tree whose nodes lead outside of it", "It is damaged or forged: not safe to run.")


def _chooses(owner: Any) -> bool:
    return hasattr(owner, "estimators_features_")


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split()).rstrip(".") or type(error).__name__
    return text if len(text) <= 200 else f"{text[:200]} …"
