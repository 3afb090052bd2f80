"""craft(): from the victim and the owner's data to a query bundle."""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from onnxaudit import __version__
from onnxaudit.answers import Answers
from onnxaudit.audit.calibrating import add_models, model_files
from onnxaudit.audit.progress import Progress
from onnxaudit.bundle import Manifest, ModelEntry, QueryBundle, SchemeEntry
from onnxaudit.craft.boundary import sample_boundary
from onnxaudit.craft.conventions import conventions, find_convention, first_that_runs
from onnxaudit.craft.cutmix import sample_cutmix
from onnxaudit.craft.data import Data, load_data
from onnxaudit.craft.natural import draw_controls, sample_errors, sample_natural
from onnxaudit.craft.references import POOR, held_out, train_references
from onnxaudit.craft.sample import Sample, Sampler
from onnxaudit.craft.victim import Victim, open_victim
from onnxaudit.errors import UsageError
from onnxaudit.evidence.calibration import STATISTIC
from onnxaudit.schemes.catalogue import Need, Scheme, portfolio, scheme
from onnxaudit.suspect import InputSpec, Target

SAMPLERS: dict[str, Sampler] = {
    "boundary": sample_boundary,
    "cutmix": sample_cutmix,
    "errors": sample_errors,
    "natural": sample_natural,
}


@dataclass(frozen=True, slots=True)
class CraftOptions:
    """What the user asked craft for; the names are those of the command line. None: not said."""

    victim: Path
    data: Path | None = None
    schemes: Sequence[str] = ("auto",)
    queries: int = 100
    controls: int = 100
    references: Path | None = None
    train_references: int = 0
    reference_folder: Path = Path("references")
    seed: int = 0
    alpha: float = 0.05
    device: str = "auto"
    model: str | None = None
    allow_pickle: bool = False
    input: tuple[int, ...] | None = None
    scale: float | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    layout: str | None = None
    channel_order: str | None = None
    margin: float | None = None
    jobs: int | None = None


def craft(options: CraftOptions, progress: Progress) -> QueryBundle:
    """Sample every scheme's queries, ask the victim and the references, and freeze it all; not yet saved.

    Deterministic: the same files, options and versions give the same bundle on one machine.
    """
    if options.queries < 2 or options.controls < 0:
        raise UsageError("--queries must be at least 2 and --controls at least 0")
    data = load_data(options.data) if options.data else None
    victim, notes = _open(options, data)
    for note in notes:
        progress.note(note)
    chosen = _chosen(options, data, progress)
    rows: list[np.ndarray[Any, Any]] = []
    entries: list[SchemeEntry] = []
    for item in chosen:
        sample = _sample(item, victim, data, options, progress)
        for note in sample.notes:
            progress.note(f"{item.name}: {note}")
        span = (sum(map(len, rows)), sum(map(len, rows)) + len(sample.queries))
        rows.append(sample.queries)
        parameters = {**item.sampling, **sample.parameters, **item.representing, "seed": options.seed}
        entries.append(SchemeEntry(item.name, item.sampler, item.representation, item.detector, span, parameters, sample.notes))
    begin = sum(map(len, rows))
    labels = np.zeros(0, np.int64)
    if data is not None:
        controls, labels = draw_controls(victim, data, options.controls, _rng(options.seed, "controls"))
        rows.append(controls)
    else:
        notes.append("no data, so no control queries: a mis-wired suspect cannot be told from an independent one")
    bundle = _bundle(options, victim, data, np.concatenate(rows), entries, (begin, begin + len(labels)), labels, notes)
    return _with_references(bundle, victim, data, options, progress)


def _open(options: CraftOptions, data: Data | None) -> tuple[Victim, list[str]]:
    """The victim under the input convention that was given or found, and what to say about it."""
    shape = options.input or (data.shape if data else None)
    if shape is None:
        raise UsageError("without --data the victim's input size is not known", "Give --input, for example --input 28x28x1.")
    base = InputSpec(
        shape,
        options.layout or ("NCHW" if len(shape) == 3 else "NC"),
        scale=options.scale or 1 / 255,
        mean=options.mean or (),
        std=options.std or (),
        channels=options.channel_order or "RGB",
    )
    victim = open_victim(options.victim, base, device=options.device, model=options.model, allow_pickle=options.allow_pickle)
    image = len(shape) == 3
    scaling = image and options.scale is None and options.mean is None and options.std is None
    candidates = conventions(
        base, scaling=scaling, layout=image and options.layout is None, order=image and options.channel_order is None
    )
    if data is not None and data.y is not None:
        victim, found = find_convention(victim, data, candidates)
        return victim, [f"input convention found on the labelled data: {found.words} (victim's accuracy {found.accuracy:.1%})"]
    victim, assumed = first_that_runs(victim, candidates)
    return victim, [f"input convention assumed, not tested (no labelled data): {assumed.words}"] if scaling else []


def _chosen(options: CraftOptions, data: Data | None, progress: Progress) -> list[Scheme]:
    if "auto" not in options.schemes:
        return [scheme(name) for name in dict.fromkeys(options.schemes)]
    names, why = portfolio(data=data is not None, labels=data is not None and data.y is not None)
    if data is not None and data.x.ndim == 2 and "sac-m" in names:
        names.remove("sac-m")
        why += "; sac-m left out: vectors cannot be mixed as images"
    progress.note(f"schemes: {', '.join(names)} ({why})")
    return [scheme(name) for name in names]


def _sample(item: Scheme, victim: Victim, data: Data | None, options: CraftOptions, progress: Progress) -> Sample:
    if Need.DATA in item.needs and data is None:
        raise UsageError(f"{item.name} needs data", "Give --data, or take ipguard-rl.")
    report = progress.task(f"crafting {item.name}", options.queries)
    parameters = {**item.sampling, "k": options.margin} if item.sampler == "boundary" else item.sampling
    rng = _rng(options.seed, item.name)
    return SAMPLERS[item.sampler](victim, data, options.queries, rng, report, **parameters)


def _rng(seed: int, name: str) -> np.random.Generator:
    """A generator of its own for each part, so that adding a scheme leaves the others' queries as they were."""
    return np.random.default_rng([seed, zlib.crc32(name.encode())])


def _bundle(
    options: CraftOptions,
    victim: Victim,
    data: Data | None,
    queries: np.ndarray[Any, Any],
    entries: list[SchemeEntry],
    controls: tuple[int, int],
    labels: np.ndarray[Any, np.dtype[np.int64]],
    notes: list[str],
) -> QueryBundle:
    answers = Answers.from_scores(victim.answer(queries))
    labelled = data is not None and data.y is not None
    part = answers.take(slice(*controls))
    accuracy = float((part.labels == labels).mean()) if labelled and len(labels) else None
    entry = ModelEntry(
        "victim", "victim", victim.source, victim.sha256, victim.kind, answers.access.word, victim.num_classes, accuracy
    )
    manifest = Manifest(
        tool=__version__,
        seed=options.seed,
        input=victim.spec,
        class_names=data.names if data and len(data.names) == victim.num_classes else (),
        schemes=tuple(entries),
        controls=controls,
        labelled=labelled,
        statistic=STATISTIC,
        alpha=options.alpha,
        models=(entry,),
        data_sha256=data.sha256 if data else None,
        notes=tuple(notes),
    )
    return QueryBundle(manifest, queries, labels, {"victim": answers})


def _with_references(
    bundle: QueryBundle, victim: Victim, data: Data | None, options: CraftOptions, progress: Progress
) -> QueryBundle:
    """The bundle with the references the user has, or asked to be trained, or neither (and a note)."""
    spec, classes = victim.spec, victim.num_classes
    if options.references:
        targets = [
            (Target(str(file), spec, classes, options.device), "given by the owner") for file in model_files(options.references)
        ]
        return add_models(bundle, targets, "reference", progress, strict=False)
    if not options.train_references:
        return bundle
    if data is None or data.y is None:
        raise UsageError("--train-references needs labelled data", "Give --data with y, or --references DIR.")
    _, test = held_out(data)
    goal = float((victim.answer(data.x[test]).argmax(1) == data.y[test]).mean())
    report = progress.task("training references", options.train_references)
    trained = train_references(
        data, classes, options.train_references, goal, options.seed, options.reference_folder, jobs=options.jobs, progress=report
    )
    good = [reference for reference in trained if reference.accuracy >= goal - POOR]
    reached = np.array([reference.accuracy for reference in trained])
    progress.note(f"references: accuracy {reached.min():.1%} to {reached.max():.1%} on held-out data, the victim {goal:.1%}")
    targets = [(Target(str(r.path), spec, classes, options.device), f"trained by craft: {r.recipe}") for r in good]
    return add_models(bundle, targets, "reference", progress, strict=False)
