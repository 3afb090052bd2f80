"""A small bundle whose victim is a real ONNX file, a copy of it with other weights, and what a check says of a suspect."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxaudit.answers import Access, Answers
from onnxaudit.audit.checking import CheckOptions, check
from onnxaudit.bundle import QueryBundle
from onnxaudit.cli.console import Console
from onnxaudit.registry import open_suspect, reduce_access
from onnxaudit.suspect import Target
from tests.bundles import CLASSES, CONTROLS, SHAPE, save_linear, simulated_bundle, simulated_scores


def linear_weights() -> NDArray[np.float32]:
    """Weights of the victim."""
    rng = np.random.default_rng(5)
    return (rng.normal(size=(SHAPE[0] * SHAPE[1], CLASSES)) * 4).astype(np.float32)


def copy_of_victim(path: Path) -> Path:
    """The victim fine-tuned a little, as an ONNX file."""
    weights = linear_weights()
    noise = np.random.default_rng(6).normal(size=weights.shape) / 10
    return save_linear(path, CLASSES, weights=(weights + noise).astype(np.float32), size=SHAPE[0])


def linear_bundle() -> QueryBundle:
    """The simulated bundle with the linear model as its victim, and references that agree with it on most controls alone."""
    bundle = simulated_bundle()
    pixels = bundle.queries.astype(np.float32) / 255
    scores = pixels.reshape(len(pixels), -1) @ linear_weights()
    truth = scores.argmax(1)
    names = [name for name in bundle.answers if name != "victim"]
    controls = slice(*CONTROLS)
    answers = {}
    for seed, name in enumerate(names):
        rows = simulated_scores(seed, 0.4, truth)
        rows[controls] = simulated_scores(seed, 0.85, truth)[controls]
        answers[name] = Answers.from_scores(rows, Access.LOGITS)
    models = tuple(
        dataclasses.replace(
            model,
            accuracy=1.0 if model.role == "victim" else float((answers[model.id].labels[controls] == truth[controls]).mean()),
        )
        for model in bundle.manifest.models
    )
    manifest = dataclasses.replace(bundle.manifest, models=models)
    victim = Answers.from_scores(scores, Access.LOGITS)
    return QueryBundle(manifest, bundle.queries, truth[controls].astype(np.int64), {"victim": victim, **answers})


def found(
    bundle: QueryBundle, source: str, access: Access | None = None, *, shape: tuple[int, ...] | None = None, **options: Any
) -> tuple[object, ...]:
    """Finding, p-value, controls and the score of each scheme, to five digits. options: of the HTTP adapter."""
    target = Target(source, bundle.manifest.input, CLASSES, shape=shape, options=options)
    with open_suspect(target) as suspect:
        asked = suspect if access is None else reduce_access(suspect, access, 1)
        report = check(bundle, asked, CheckOptions(), Console(quiet=True))
    schemes = tuple((s.name, s.access, None if s.score is None else float(f"{s.score:.5g}")) for s in report.schemes)
    return report.finding, report.p_value, report.controls.agreement, schemes
