"""The query bundle, format 1: all queries, the victim's answers and the calibration, frozen in one safetensors file."""

from __future__ import annotations

import dataclasses
import hashlib
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxaudit.answers import Access, Answers
from onnxaudit.decode import canonical, decode, parse
from onnxaudit.errors import ArtefactError, UsageError
from onnxaudit.regular import open_regular, write_in_one_step
from onnxaudit.suspect import InputSpec, Queries

FORMAT = 1
KEY = "onnxaudit.manifest"
MAX_BYTES = 2 << 30
MAX_HEADER = 16 << 20
MAX_CLASSES = 1_000_000
MAX_GRAPH = 16 << 20
TABLES = ("mask", "sizes")
"""Columns that have several numbers a query."""
ROLES = ("victim", "export", "reference", "training", "sibling", "surrogate")
"""export: the victim in half precision or INT8. training: a reference that a sampler or a learned detector was made with, which
must never calibrate."""


@dataclass(frozen=True, slots=True)
class SchemeEntry:
    """One scheme as it was crafted: its parts by name, their parameters, and its rows [start, stop) of the queries.

    Schemes with the same queries share rows. columns: names of what is known of each query, kept as tensors by rows.
    """

    name: str
    sampler: str
    representation: str
    detector: str
    rows: tuple[int, int]
    sampling: Mapping[str, Any] = field(default_factory=dict)
    representing: Mapping[str, Any] = field(default_factory=dict)
    detecting: Mapping[str, Any] = field(default_factory=dict)
    columns: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def column(self, name: str) -> str:
        """The name of the tensor that a column is kept in."""
        return f"columns/{self.rows[0]}-{self.rows[1]}/{name}"


@dataclass(frozen=True, slots=True)
class ModelEntry:
    """A model whose answers the bundle keeps. accuracy: on the labelled controls. origin: where it comes from, in words."""

    id: str
    role: str
    source: str
    sha256: str | None
    kind: str
    access: str
    num_classes: int
    accuracy: float | None = None
    origin: str = ""


@dataclass(frozen=True, slots=True)
class Manifest:
    """Everything in a bundle that is not a tensor.

    shortfall: by how much the references were measured to be less accurate than the victim, where craft trained them.
    asked: how many queries of each scheme craft was told to make; a sampler may find fewer, which is noted. pool_notes: on how
    the references were chosen. looks: after so many queries of the schemes answers are judged, where they are
    judged as they come in. drawn: the seed by which the victim was drawn among its siblings; None: it was not. tensors: digest
    by name. digest: sha256 of the canonical manifest without this field, only in the file.
    """

    tool: str
    seed: int
    input: InputSpec
    class_names: tuple[str, ...]
    schemes: tuple[SchemeEntry, ...]
    controls: tuple[int, int]
    labelled: bool
    statistic: str
    alpha: float
    models: tuple[ModelEntry, ...]
    data_sha256: str | None = None
    shortfall: float | None = None
    notes: tuple[str, ...] = ()
    pool_notes: tuple[str, ...] = ()
    looks: tuple[int, ...] = ()
    drawn: int | None = None
    asked: int | None = None
    tensors: Mapping[str, str] = field(default_factory=dict)
    format: int = FORMAT
    digest: str = ""

    @property
    def victim(self) -> ModelEntry:
        """The victim's entry."""
        return next(model for model in self.models if model.role == "victim")

    def of_role(self, role: str) -> tuple[ModelEntry, ...]:
        """The entries of one role, in order."""
        return tuple(model for model in self.models if model.role == role)


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class QueryBundle:
    """A manifest with its tensors.

    queries: canonical, all schemes' rows and the controls. control_labels: (c,) int64, the truth where data was labelled,
    else the victim's labels. answers: by model id, to all queries. columns: by ``SchemeEntry.column``, one row a query of the
    scheme. graphs: frozen networks of learned detectors, ONNX, by scheme. insights: what models showed of their inside, by
    "insights/MODEL/KIND/ROWS". id: sha256 of the file, "" before it is saved.
    """

    manifest: Manifest
    queries: Queries
    control_labels: NDArray[np.int64]
    answers: Mapping[str, Answers]
    columns: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    graphs: Mapping[str, bytes] = field(default_factory=dict)
    insights: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    id: str = ""

    def columns_of(self, entry: SchemeEntry) -> dict[str, NDArray[Any]]:
        """What is known of each query of a scheme, by name."""
        return {name: self.columns[entry.column(name)] for name in entry.columns}

    def save(self, path: Path, *, force: bool = False) -> QueryBundle:
        """Write the file in one step and return the bundle with its id. Raises UsageError if it exists and not ``force``."""
        if path.exists() and not force:
            raise UsageError(f"{path} exists already", "Give another name with -o, or --force to replace it.")
        from safetensors.numpy import save

        tensors: dict[str, NDArray[Any]] = {"queries": self.queries, "control_labels": self.control_labels}
        tensors |= {**self.columns, **self.insights}
        tensors |= {f"graphs/{name}": np.frombuffer(graph, np.uint8) for name, graph in self.graphs.items()}
        for name, answers in self.answers.items():
            if answers.scores is None:
                tensors[f"answers/{name}/labels"] = answers.labels
            else:
                tensors[f"answers/{name}/scores"] = answers.dense()
        tensors = {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}
        manifest = dataclasses.replace(self.manifest, tensors={name: _digest(tensor) for name, tensor in tensors.items()})
        manifest = dataclasses.replace(manifest, digest=_seal(parse(canonical(manifest), path.name)))
        data = save(tensors, metadata={KEY: canonical(manifest)})
        try:
            write_in_one_step(path, data)
        except OSError as error:
            raise UsageError(f"{path} cannot be written: {error.strerror}", "Choose another place with -o.") from None
        return dataclasses.replace(self, manifest=dataclasses.replace(manifest, digest=""), id=hashlib.sha256(data).hexdigest())


def load(path: Path) -> QueryBundle:
    """Read and verify a bundle: size, layout, every digest, and that manifest and tensors agree.

    Raises UsageError for a missing file, ArtefactError for a damaged, truncated, oversized, foreign or inconsistent one.
    """
    text, data = _read(path)
    where = path.name
    from safetensors import SafetensorError
    from safetensors.numpy import load as load_tensors

    try:
        tensors: dict[str, NDArray[Any]] = load_tensors(data)
    except (SafetensorError, KeyError, ValueError, TypeError) as error:
        raise ArtefactError(f"{where} is damaged: {error}", "Craft it again, or fetch the file once more.") from None
    value = parse(text, where)
    version = value.get("format") if isinstance(value, dict) else None
    if version != FORMAT:
        raise ArtefactError(f"{where} has bundle format {repr(version)[:20]}, this version reads {FORMAT}", "Update onnxaudit.")
    try:
        untouched = value.get("digest") == _seal(value) and canonical(value) == text
    except (UnicodeEncodeError, RecursionError):  # halves of characters, or more nesting than can be written again
        untouched = False
    if not untouched:
        raise ArtefactError(f"{where}: the manifest does not match its digest", "The file was changed; do not use it.")
    manifest = dataclasses.replace(decode(Manifest, value, where), digest="")
    for name in sorted(set(tensors) | set(manifest.tensors) | {"queries", "control_labels"}):
        if name not in tensors or manifest.tensors.get(name) != _digest(tensors[name]):
            raise ArtefactError(f"{where}: the tensor {name!r} does not match its digest", "The file was changed; do not use it.")
    answers = {model.id: _answers(model, tensors, where) for model in manifest.models}
    columns, insights = (
        {name: tensor for name, tensor in tensors.items() if name.startswith(kind)} for kind in ("columns/", "insights/")
    )
    graphs = {name.removeprefix("graphs/"): _graph(tensors[name], where) for name in tensors if name.startswith("graphs/")}
    bundle = QueryBundle(
        manifest,
        tensors["queries"],
        tensors["control_labels"],
        answers,
        columns,
        graphs,
        insights,
        hashlib.sha256(data).hexdigest(),
    )
    _check(bundle, where)
    return bundle


def _read(path: Path) -> tuple[str, bytes]:
    """The manifest's text and the whole file; the body is read only once the header has a manifest."""
    foreign = ArtefactError(f"{path.name} is not a query bundle, or is truncated", "Make one with: onnxaudit craft VICTIM")
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise ArtefactError(f"{path} has {size} bytes, more than any bundle", f"The limit is {MAX_BYTES}.")
        with open_regular(path) as file:
            start = file.read(8)
            length: int = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
            if not 0 < length <= min(size - 8, MAX_HEADER):
                raise foreign
            head = file.read(length)
            header = parse(head, path.name)
            metadata = header.get("__metadata__") if isinstance(header, dict) else None
            text = metadata.get(KEY) if isinstance(metadata, dict) else None
            if not isinstance(text, str):
                raise foreign
            return text, start + head + file.read()
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}", "Check the path.") from None


def _seal(manifest: dict[str, Any]) -> str:
    """The digest of a manifest, as JSON values, without its own."""
    return hashlib.sha256(canonical({name: value for name, value in manifest.items() if name != "digest"}).encode()).hexdigest()


def _digest(tensor: NDArray[Any]) -> str:
    head = canonical([tensor.dtype.str, list(tensor.shape)]).encode()
    return hashlib.sha256(head + tensor.tobytes()).hexdigest()


def _answers(model: ModelEntry, tensors: Mapping[str, NDArray[Any]], where: str) -> Answers:
    try:
        access = Access[model.access.upper()]
    except KeyError:
        raise ArtefactError(f"{where}: {model.id} has unknown access {model.access!r}") from None
    classes = model.num_classes
    if not 2 <= classes <= MAX_CLASSES:
        raise ArtefactError(f"{where}: {model.id} has {classes} classes")
    labels, scores = tensors.get(f"answers/{model.id}/labels"), tensors.get(f"answers/{model.id}/scores")
    if access == Access.LABEL and labels is not None and labels.ndim == 1 and labels.dtype == np.int32:
        return Answers.from_labels(labels, classes)
    whole = scores is not None and scores.dtype == np.float32 and scores.ndim == 2 and scores.shape[1] == classes
    if access >= Access.PROBS and scores is not None and whole and np.isfinite(scores).all():
        return Answers.from_scores(scores, access)
    raise ArtefactError(f"{where}: no usable answers of {model.id}")


def _graph(tensor: NDArray[Any], where: str) -> bytes:
    if tensor.dtype != np.uint8 or tensor.ndim != 1 or len(tensor) > MAX_GRAPH:
        raise ArtefactError(f"{where}: a learned detector's network is not one, or is too large")
    return tensor.tobytes()


def _fits(bundle: QueryBundle, entry: SchemeEntry) -> bool:
    """Whether a scheme's columns are there: one row a query, and one number a row but for ``TABLES``."""
    known = {name: bundle.columns.get(entry.column(name)) for name in entry.columns}
    length = entry.rows[1] - entry.rows[0]
    return all(
        column is not None and column.ndim == 1 + (name in TABLES) and len(column) == length and column.dtype.kind in "biuf"
        for name, column in known.items()
    )


def _check(bundle: QueryBundle, where: str) -> None:
    """Raise ArtefactError where manifest and tensors contradict each other."""
    manifest, n = bundle.manifest, len(bundle.queries)
    classes = {model.num_classes for model in manifest.models}
    spans = [manifest.controls, *(scheme.rows for scheme in manifest.schemes)]
    start, stop = manifest.controls
    problems = {
        "queries are neither uint8 images nor float32 vectors": (bundle.queries.dtype, bundle.queries.ndim)
        not in ((np.dtype(np.uint8), 4), (np.dtype(np.float32), 2)),
        "a query holds what is no number": bundle.queries.dtype.kind == "f" and not bool(np.isfinite(bundle.queries).all()),
        "there must be one victim, of that name": [model.id for model in manifest.of_role("victim")] != ["victim"],
        f"its input specification: {manifest.input.problem()}": manifest.input.problem() is not None,
        "a model has an unknown role": any(model.role not in ROLES for model in manifest.models),
        "two models share an id": len({model.id for model in manifest.models}) != len(manifest.models),
        "the models differ in their number of classes": len(classes) != 1,
        "answers and queries differ in number": any(len(answers) != n for answers in bundle.answers.values()),
        "an answer names a class that does not exist": any(
            answers.labels.min(initial=0) < 0
            or answers.labels.max(initial=0) >= min(classes)
            or answers.num_classes not in classes
            for answers in bundle.answers.values()
        ),
        "two schemes share a name": len({scheme.name for scheme in manifest.schemes}) != len(manifest.schemes),
        "what is known of a scheme's queries does not fit them": not all(_fits(bundle, entry) for entry in manifest.schemes),
        "what models showed of their inside is not finite": not all(
            seen.dtype.kind == "f" and seen.ndim >= 2 and bool(np.isfinite(seen).all()) for seen in bundle.insights.values()
        ),
        "rows lie outside of the queries": any(not 0 <= a <= b <= n for a, b in spans),
        "control labels do not fit": bundle.control_labels.shape != (stop - start,) or bundle.control_labels.dtype != np.int64,
        "alpha must lie between 0 and 1": not 0 < manifest.alpha < 1,
    }
    for problem, found in problems.items():
        if found:
            raise ArtefactError(f"{where} is inconsistent: {problem}", "It was not written by onnxaudit; do not use it.")
