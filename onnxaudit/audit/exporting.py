"""The victim's own exports in a bundle: its answers in half precision and INT8, to know how far a quantised copy is off."""

from __future__ import annotations

import dataclasses
import hashlib
import math
import tempfile
from pathlib import Path

import numpy as np
import torch

from onnxaudit.answers import Answers
from onnxaudit.audit.progress import Progress
from onnxaudit.bundle import ModelEntry, QueryBundle
from onnxaudit.craft.victim import Victim
from onnxaudit.errors import ArtefactError, OnnxauditError, UsageError
from onnxaudit.interview import interview
from onnxaudit.registry import open_suspect, quantise
from onnxaudit.suspect import InputSpec, Queries, Target
from onnxaudit.zoo.saving import copy_of, save_uint8_onnx

KINDS = ("fp16", "int8-static", "int8-dynamic")
ROLE = "export"
CALIBRATION = 200
"""Natural inputs that the static export is calibrated with, at most."""
LARGEST_PROGRAM, LARGEST_INPUT = 16 << 20, 64 * 64 * 3
"""Bytes of weights and values of an input up to which exports are made unasked: they take a second or two."""


def with_exports(bundle: QueryBundle, victim: Victim, progress: Progress, wanted: bool | None) -> QueryBundle:
    """The bundle with the answers of the victim's exports, made here and thrown away; else with a note why they are not in it.

    wanted: None leaves them out of bundles of large victims; False leaves them out.
    """
    if wanted is False or not len(bundle.queries):
        return bundle
    try:
        archive = _archive(victim, large=wanted is True)
        entries, answers = [], {}
        with tempfile.TemporaryDirectory() as folder:
            plain = Path(folder) / "victim.onnx"
            save_uint8_onnx(copy_of(archive, torch.device("cpu")), victim.spec.shape, plain)
            report = progress.task("asking the victim's exports", len(KINDS))
            for number, kind in enumerate(KINDS):
                entry, said = _asked(bundle, kind, plain, Path(folder) / f"{kind}.onnx")
                entries.append(entry)
                answers[entry.id] = said
                report(number + 1)
    except OnnxauditError as error:
        return _noted(bundle, error.what)
    except (RuntimeError, ValueError, TypeError, ImportError) as error:  # what exports raises anything of these
        return _noted(bundle, (str(error).strip().splitlines() or [type(error).__name__])[0][:200])
    manifest = dataclasses.replace(bundle.manifest, models=(*bundle.manifest.models, *entries))
    return dataclasses.replace(bundle, manifest=manifest, answers={**bundle.answers, **answers})


def _archive(victim: Victim, *, large: bool) -> bytes:
    """The victim from pixels to logits. Raises UsageError if it is large, ArtefactError if it cannot be had."""
    if not large and math.prod(victim.spec.shape) > LARGEST_INPUT:
        raise UsageError("it is large, and they would take long: add them with --exports")
    archive = victim.portable()
    if archive is None:
        raise ArtefactError("it holds no float32 weights, or cannot be traced")
    if not large and len(archive) > LARGEST_PROGRAM:
        raise UsageError("it is large, and they would take long: add them with --exports")
    return archive


def _asked(bundle: QueryBundle, kind: str, plain: Path, path: Path) -> tuple[ModelEntry, Answers]:
    """One export's entry and its answers, on one thread: sums that threads share may come out otherwise."""
    classes, shape = bundle.manifest.victim.num_classes, bundle.manifest.input.shape
    spec = InputSpec(shape, "NHWC" if len(shape) == 3 else "NC")
    quantise(kind, plain, path, _natural(bundle), spec)
    with open_suspect(Target(str(path), spec, classes, "cpu", options={"threads": 1})) as suspect:
        answers, card = interview(suspect, bundle.queries).answers, suspect.card
    made = ", ".join(f"{name} {value}" for name, value in card.runtime.items() if name in ("onnxruntime", "cpu"))
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    entry = ModelEntry(
        f"{ROLE}-{kind}", ROLE, f"{kind}.onnx", digest, card.kind, answers.access.word, classes, origin=f"{kind}: {made}"
    )
    return entry, dataclasses.replace(answers, num_classes=classes)


def _natural(bundle: QueryBundle) -> Queries:
    """The controls, or all queries where there are none, at even distances."""
    start, stop = bundle.manifest.controls
    rows = np.arange(start, stop) if start < stop else np.arange(len(bundle.queries))
    return bundle.queries[rows[:: max(1, -(-len(rows) // CALIBRATION))]]


def _noted(bundle: QueryBundle, why: str) -> QueryBundle:
    said = f"the victim's own fp16 and INT8 answers are not in the bundle: {why}"
    return dataclasses.replace(bundle, manifest=dataclasses.replace(bundle.manifest, notes=(*bundle.manifest.notes, said)))
