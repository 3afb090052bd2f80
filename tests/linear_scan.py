"""A bundle of linear models of 4x4 images with as many references as a test wants, and suspects as small ONNX files."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from onnxaudit.answers import Access, Answers
from onnxaudit.bundle import QueryBundle
from tests.bundles import CLASSES, CONTROLS, save_linear, simulated_bundle


def weights_of(seed: int) -> NDArray[np.float32]:
    """A model's weights, (16, C)."""
    return np.random.default_rng([5, seed]).normal(size=(16, CLASSES)).astype(np.float32)


def near(seed: int, share: float = 0.05) -> NDArray[np.float32]:
    """Weights of a model derived from the victim, 0, by a little noise."""
    return (weights_of(0) + share * weights_of(1000 + seed)).astype(np.float32)


def linear_bundle(references: int, seed: int = 0) -> QueryBundle:
    """A bundle whose victim is the linear model 0, and whose references are others; not saved."""
    bundle = simulated_bundle(references, seed=seed)
    x = bundle.queries.reshape(len(bundle.queries), -1).astype(np.float32) / 255
    answers = {model.id: Answers.from_scores(x @ weights_of(i), Access.LOGITS) for i, model in enumerate(bundle.manifest.models)}
    labels = answers["victim"].labels[slice(*CONTROLS)].astype(np.int64)
    models = tuple(dataclasses.replace(model, accuracy=None) for model in bundle.manifest.models)
    manifest = dataclasses.replace(bundle.manifest, models=models, labelled=False)
    return dataclasses.replace(bundle, manifest=manifest, answers=answers, control_labels=labels)


def save_bundle(path: Path, references: int, seed: int = 0) -> QueryBundle:
    """The same, in a file."""
    return linear_bundle(references, seed).save(path)


def save_suspect(path: Path, weights: NDArray[np.float32]) -> Path:
    """A suspect as ONNX."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return save_linear(path, CLASSES, weights=weights, size=4)


def save_suspects(folder: Path, independent: int, derived: int) -> list[Path]:
    """Files independent-I.onnx and derived-I.onnx."""
    return [
        *(save_suspect(folder / f"independent-{i}.onnx", weights_of(500 + i)) for i in range(independent)),
        *(save_suspect(folder / f"derived-{i}.onnx", near(i)) for i in range(derived)),
    ]
