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
from onnxaudit.craft.references import CLOSE, choose, split, train_references
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
    if options.queries < 2 or options.controls < 0 or options.train_references < 0:
        raise UsageError("--queries must be at least 2, --controls and --train-references at least 0")
    whole = load_data(options.data) if options.data else None
    victim, notes = _open(options, whole)
    for note in notes:
        progress.note(note)
    if options.train_references and (whole is None or whole.y is None):
        raise UsageError("--train-references needs labelled data", "Give --data with y, or --references DIR.")
    training, data = split(whole) if options.train_references and whole is not None else (None, whole)
    entries, parts = _queries(options, victim, data, progress)
    begin = sum(map(len, parts))
    labels = np.zeros(0, np.int64)
    if data is not None:
        controls, labels = draw_controls(victim, data, options.controls, _rng(options.seed, "controls"))
        parts.append(controls)
    else:
        notes.append("no data, so no control queries: a mis-wired suspect cannot be told from an independent one")
    bundle = _bundle(options, victim, whole, np.concatenate(parts), entries, (begin, begin + len(labels)), labels, notes)
    if options.references:
        files = model_files(options.references)
        targets = [(_target(str(file), victim, options), "given by the owner") for file in files]
        return add_models(bundle, targets, "reference", progress, strict=False)
    if training is not None and data is not None:
        return _with_trained(bundle, victim, training, data, options, progress)
    return bundle


def _queries(
    options: CraftOptions, victim: Victim, data: Data | None, progress: Progress
) -> tuple[list[SchemeEntry], list[np.ndarray[Any, Any]]]:
    """Every chosen scheme's entry and queries, in order."""
    parts: list[np.ndarray[Any, Any]] = []
    entries: list[SchemeEntry] = []
    left_out: UsageError | None = None
    for item in _chosen(options, data, progress):
        try:
            sample = _sample(item, victim, data, options, progress)
        except UsageError as error:
            if "auto" not in options.schemes:
                raise
            progress.note(f"{item.name} left out: {error.what}")
            left_out = error
            continue
        for note in sample.notes:
            progress.note(f"{item.name}: {note}")
        begin = sum(map(len, parts))
        parts.append(sample.queries)
        parameters = {**item.sampling, **sample.parameters, **item.representing, "seed": options.seed}
        span = (begin, begin + len(sample.queries))
        entries.append(SchemeEntry(item.name, item.sampler, item.representation, item.detector, span, parameters, sample.notes))
    if left_out is not None and not entries:
        raise left_out
    return entries, parts


def _open(options: CraftOptions, data: Data | None) -> tuple[Victim, list[str]]:
    """The victim under the input convention that was given or found, and what to say about it."""
    shape = options.input or (data.shape if data else None)
    if shape is None:
        raise UsageError("without --data the victim's input size is not known", "Give --input, for example --input 28x28x1.")
    base = InputSpec(
        shape,
        options.layout or ("NCHW" if len(shape) == 3 else "NC"),
        scale=1 / 255 if options.scale is None else options.scale,
        mean=options.mean or (),
        std=options.std or (),
        channels=options.channel_order or "RGB",
    )
    if (problem := base.problem()) is not None:
        raise UsageError(f"the victim's input: {problem}", "See --input, --layout, --scale, --mean, --std, --channel-order.")
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


def _target(source: str, victim: Victim, options: CraftOptions) -> Target:
    return Target(source, victim.spec, victim.num_classes, options.device)


def _with_trained(
    bundle: QueryBundle, victim: Victim, training: Data, test: Data, options: CraftOptions, progress: Progress
) -> QueryBundle:
    """The bundle with references trained on data that no query comes from; weak ones are kept apart as long as enough are left.

    How far they fall short of the victim goes into the bundle, because it makes strong innocents look suspicious.
    """
    assert test.y is not None
    goal = float((victim.answer(test.x).argmax(1) == test.y).mean())
    report = progress.task("training references", options.train_references)
    trained = train_references(
        training,
        test,
        victim.num_classes,
        options.train_references,
        goal,
        options.seed,
        options.reference_folder,
        jobs=options.jobs,
        progress=report,
    )
    used = choose(trained, goal, least=round(1 / options.alpha) - 1)
    reached = sorted(reference.accuracy for reference in used)
    middle = reached[len(reached) // 2]
    said = [f"references trained: median accuracy {middle:.1%} ({reached[0]:.1%} to {reached[-1]:.1%}), the victim {goal:.1%}"]
    if len(used) < len(trained):
        said.append(f"{len(trained) - len(used)} of {len(trained)} trained references are too weak and were left out")
    if middle < goal - CLOSE:
        said.append(
            f"the references fall {100 * (goal - middle):.1f} points short of the victim; innocents may be closer to it, "
            "so a finding needs a wider margin (more data or your own references would help)"
        )
    for words in said:
        progress.note(words)
    bundle = dataclasses.replace(bundle, manifest=dataclasses.replace(bundle.manifest, pool_notes=tuple(said)))
    targets = [(_target(str(r.path), victim, options), f"trained by craft: {r.recipe}") for r in used]
    bundle = add_models(bundle, targets, "reference", progress, strict=False)
    shortfall = max(0.0, round(goal - middle, 4))
    return dataclasses.replace(bundle, manifest=dataclasses.replace(bundle.manifest, shortfall=shortfall))
