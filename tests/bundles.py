"""Small bundles of simulated models, and suspects that answer from a record: no network is run."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxaudit.answers import Access, Answers
from onnxaudit.bundle import KEY, Manifest, ModelEntry, QueryBundle, SchemeEntry
from onnxaudit.decode import canonical
from onnxaudit.evidence.calibration import STATISTIC
from onnxaudit.suspect import InputSpec, Queries, Suspect, SuspectCard

CLASSES = 5
SHAPE = (4, 4, 1)
SPANS = {"akh": (0, 24), "sac-m": (24, 44)}
CONTROLS = (44, 84)
QUERIES = CONTROLS[1]


def simulated_scores(seed: int, accuracy: float, truth: NDArray[np.int64]) -> NDArray[np.float32]:
    """Logits (n, C) of a model that is right with this probability."""
    rng = np.random.default_rng([77, seed])
    said = np.where(rng.random(len(truth)) < accuracy, truth, rng.integers(0, CLASSES, len(truth)))
    rows = rng.normal(0, 1, (len(truth), CLASSES))
    rows[np.arange(len(truth)), said] += 4
    return rows.astype(np.float32)


def simulated_bundle(
    references: int = 19, *, labelled: bool = True, access: Access = Access.LOGITS, seed: int = 0
) -> QueryBundle:
    """A bundle of two schemes and controls, whose models are right about as often as the victim, each on its own."""
    rng = np.random.default_rng([78, seed])
    queries: NDArray[np.uint8] = rng.integers(0, 256, (QUERIES, *SHAPE), dtype=np.uint8)
    truth = rng.integers(0, CLASSES, QUERIES)
    roles = ["victim", *(f"reference-{i:03d}" for i in range(references))]
    answers = {
        name: Answers.from_scores(simulated_scores(1000 * seed + i, 0.85, truth), Access.LOGITS).degrade(access)
        for i, name in enumerate(roles)
    }
    span = slice(*CONTROLS)
    labels = truth[span] if labelled else answers["victim"].labels[span].astype(np.int64)
    entries = [
        ModelEntry(
            name,
            name.split("-")[0],
            f"{name}.onnx",
            hashlib.sha256(f"{seed} {name}".encode()).hexdigest(),
            "onnx",
            access.word,
            CLASSES,
            float((answers[name].labels[span] == labels).mean()) if labelled else None,
            "" if name == "victim" else "simulated: no network",
        )
        for name in roles
    ]
    manifest = Manifest(
        tool="0.1.0",
        seed=seed,
        input=InputSpec(SHAPE),
        class_names=("a", "b", "c", "d", "ü"),
        schemes=(
            SchemeEntry("akh", "negative", "labels", "matching-rate", SPANS["akh"], {"seed": seed}),
            SchemeEntry(
                "sac-m",
                "cutmix",
                "correlation",
                "l1",
                SPANS["sac-m"],
                representing={"kernel": "cosine", "feed": "probs"},
                notes=("a note",),
            ),
        ),
        controls=CONTROLS,
        labelled=labelled,
        statistic=STATISTIC,
        alpha=0.05,
        models=tuple(entries),
        data_sha256="0" * 64,
        notes=("made up",),
    )
    return QueryBundle(manifest, queries, labels, answers)


class Recorded(Suspect):
    """A suspect that knows its answers by heart. rows, batches: what it was asked; it raises on query fails_after + 1."""

    def __init__(
        self,
        bundle: QueryBundle,
        answers: Answers,
        source: str = "recorded",
        fails_after: int | None = None,
        batch: int | None = None,
        failure: type[BaseException] = ConnectionResetError,
    ) -> None:
        self.card = SuspectCard(
            source, "recorded", bundle.manifest.input, bundle.manifest.victim.num_classes, "a" * 64, max_batch=batch
        )
        self._rows = {query.tobytes(): row for row, query in enumerate(bundle.queries)}
        self._answers = answers
        self._fails_after = fails_after
        self._failure = failure
        self.rows: list[int] = []
        self.batches: list[int] = []

    def _ask(self, queries: Queries) -> Answers:
        rows = [self._rows[query.tobytes()] for query in queries]
        if self._fails_after is not None and len(self.rows) + len(rows) > self._fails_after:
            raise self._failure("the line went dead")
        self.rows += rows
        self.batches.append(len(rows))
        return self._answers.take(np.array(rows))


def rewrite(path: Path, change: Callable[[dict[str, Any], dict[str, NDArray[Any]]], object], *, seal: bool = True) -> None:
    """Change a saved bundle's manifest (as JSON) and tensors. seal: with digests that fit again, as a forger would."""
    from safetensors.numpy import load_file, save_file

    data = path.read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    manifest, tensors = json.loads(header["__metadata__"][KEY]), load_file(path)
    change(manifest, tensors)
    if seal and isinstance(manifest, dict) and isinstance(manifest.get("tensors"), dict):
        for name, tensor in tensors.items():
            head = canonical([tensor.dtype.str, list(tensor.shape)]).encode()
            manifest["tensors"][name] = hashlib.sha256(head + tensor.tobytes()).hexdigest()
        manifest["tensors"] = {name: digest for name, digest in manifest["tensors"].items() if name in tensors}
        stripped = {name: value for name, value in manifest.items() if name != "digest"}
        manifest["digest"] = hashlib.sha256(canonical(stripped).encode()).hexdigest()
    save_file({name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}, path, {KEY: canonical(manifest)})


def save_linear(
    path: Path,
    classes: int = 10,
    seed: int = 0,
    *,
    weights: NDArray[np.float32] | None = None,
    end: str = "logits",
    size: int = 28,
) -> Path:
    """A linear model of grey images (size, size), by default with random weights, as ONNX. end: "logits" or "labels"."""
    from onnx import TensorProto, helper, numpy_helper

    from tests.models import assemble

    if weights is None:
        weights = np.random.default_rng(seed).normal(size=(size * size, classes)).astype(np.float32)
    nodes = [helper.make_node("Flatten", ["x"], ["flat"]), helper.make_node("MatMul", ["flat", "weights"], ["logits"])]
    output: dict[str, Any] = {"logits": (TensorProto.FLOAT, ["n", classes])}
    if end == "labels":
        nodes.append(helper.make_node("ArgMax", ["logits"], ["label"], axis=1, keepdims=0))
        output = {"label": (TensorProto.INT64, ["n"])}
    shape = ["n", 1, size, size]
    model = assemble(nodes, {"x": (TensorProto.FLOAT, shape)}, output, [numpy_helper.from_array(weights, "weights")])
    path.write_bytes(model.SerializeToString())
    return path


def ridge_weights() -> NDArray[np.float32]:
    """Weights (784, 10) of an honest linear model of Fashion-MNIST, fitted by ridge regression on the shipped data."""
    with np.load(Path(__file__).resolve().parent.parent / "fixtures/fashion/test.npz") as data:
        x, y = data["x"][:2000].reshape(-1, 784).astype(np.float64) / 255, data["y"][:2000]
    fitted = np.linalg.solve(x.T @ x + 20 * np.eye(784), x.T @ (np.eye(10)[y] - 0.1))
    weights: NDArray[np.float32] = fitted.astype(np.float32) * 10
    return weights


class Noisy(Recorded):
    """Gives other scores from one batch to the next, the more so the greater ``noise`` is; its labels stay."""

    def __init__(self, bundle: QueryBundle, answers: Answers, noise: float) -> None:
        super().__init__(bundle, answers, batch=10)
        self._noise = noise

    def _ask(self, queries: Queries) -> Answers:
        answers = super()._ask(queries)
        return Answers.from_scores(answers.dense() / (1 + self._noise * (len(self.batches) % 7)), Access.LOGITS)
