"""Small bundles whose victim is a real ONNX file, a copy of it with other weights, and what a check says of a suspect."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from onnxaudit.answers import Access, Answers
from onnxaudit.audit.checking import CheckOptions, check
from onnxaudit.bundle import QueryBundle
from onnxaudit.cli.console import Console
from onnxaudit.registry import open_suspect, reduce_access
from onnxaudit.suspect import InputSpec, Queries, Target
from tests.bundles import CLASSES, CONTROLS, QUERIES, SHAPE, save_linear, simulated_bundle

PICTURES = InputSpec((8, 8, 3), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
"""What the Vision Transformer of tests/peers/huggingface wants."""
ANIMALS = ("ant", "bee", "cat", "dog", "elk", "fox", "gnu")
"""Its classes: more than the five that a server gives unasked."""


def linear_weights() -> NDArray[np.float32]:
    """Weights of the linear victim."""
    rng = np.random.default_rng(5)
    return (rng.normal(size=(SHAPE[0] * SHAPE[1], CLASSES)) * 4).astype(np.float32)


def copy_of_victim(path: Path) -> Path:
    """The linear victim fine-tuned a little, as an ONNX file."""
    weights = linear_weights()
    noise = np.random.default_rng(6).normal(size=weights.shape) / 10
    return save_linear(path, CLASSES, weights=(weights + noise).astype(np.float32), size=SHAPE[0])


def other_model(path: Path) -> Path:
    """A model that says what the linear victim says of most controls, as another of the same task would, and not much more."""
    weights = linear_weights()
    own = np.random.default_rng(8).normal(size=weights.shape) * 4
    return save_linear(path, CLASSES, weights=(2 * weights + own).astype(np.float32), size=SHAPE[0])


def linear_bundle() -> QueryBundle:
    """The simulated queries with the linear model as their victim."""
    queries = simulated_bundle().queries
    pixels = queries.astype(np.float32) / 255
    scores = (pixels.reshape(len(pixels), -1) @ linear_weights()).astype(np.float32)
    return _bundle(queries, scores, InputSpec(SHAPE), ("a", "b", "c", "d", "ü"))


def pictures_bundle(victim: Path) -> QueryBundle:
    """Random pictures in colour with a Vision Transformer, an ONNX file, as their victim."""
    queries = pictures()
    return _bundle(queries, scores_of(victim, queries), PICTURES, ANIMALS)


def pictures() -> NDArray[np.uint8]:
    """The queries of pictures_bundle()."""
    return np.random.default_rng(8).integers(0, 256, (QUERIES, *PICTURES.shape), np.uint8)


def scores_of(victim: Path, queries: Queries) -> NDArray[np.float32]:
    """What ONNX Runtime says here of pictures, (n, classes)."""
    session = ort.InferenceSession(str(victim), providers=["CPUExecutionProvider"])
    scores: NDArray[np.float32] = session.run(["logits"], {"x": PICTURES.encode(queries)})[0]
    return scores


def _bundle(queries: Queries, scores: NDArray[np.float32], spec: InputSpec, names: tuple[str, ...]) -> QueryBundle:
    """A bundle of these answers of the victim, (n, classes), and of references that agree with it on nearly all controls."""
    bundle, truth, controls = simulated_bundle(), scores.argmax(1), slice(*CONTROLS)
    answers = {"victim": Answers.from_scores(scores, Access.LOGITS)}
    for seed, name in enumerate(name for name in bundle.answers if name != "victim"):
        rows = _simulated(seed, 0.4, truth, len(names))
        rows[controls] = _simulated(seed, 0.95, truth, len(names))[controls]
        answers[name] = Answers.from_scores(rows, Access.LOGITS)
    models = tuple(
        dataclasses.replace(
            model,
            num_classes=len(names),
            accuracy=float((answers[model.id].labels[controls] == truth[controls]).mean()),
        )
        for model in bundle.manifest.models
    )
    manifest = dataclasses.replace(bundle.manifest, input=spec, class_names=names, models=models)
    return QueryBundle(manifest, queries, truth[controls].astype(np.int64), answers)


def _simulated(seed: int, accuracy: float, truth: NDArray[np.int64], classes: int) -> NDArray[np.float32]:
    """Logits (n, classes) of a model that says the truth with this probability."""
    rng = np.random.default_rng([79, seed])
    said = np.where(rng.random(len(truth)) < accuracy, truth, rng.integers(0, classes, len(truth)))
    rows = rng.normal(0, 1, (len(truth), classes))
    rows[np.arange(len(truth)), said] += 4
    return rows.astype(np.float32)


def found(
    bundle: QueryBundle,
    source: str,
    access: Access | None = None,
    *,
    k: int = 1,
    shape: tuple[int, ...] | None = None,
    **options: Any,
) -> tuple[object, ...]:
    """Finding, p-value, controls and the score of each scheme, to five digits. options: of the HTTP adapter.

    access: the suspect is asked as one that gives no more, k: classes of a top-k.
    """
    manifest = bundle.manifest
    options = {"class_names": manifest.class_names, **options} if source.startswith("http") else options
    target = Target(source, manifest.input, manifest.victim.num_classes, shape=shape, options=options)
    with open_suspect(target) as suspect:
        asked = suspect if access is None else reduce_access(suspect, access, k)
        report = check(bundle, asked, CheckOptions(), Console(quiet=True))
    schemes = tuple((s.name, s.access, None if s.score is None else float(f"{s.score:.5g}")) for s in report.schemes)
    return report.finding, report.p_value, report.controls.agreement, schemes
