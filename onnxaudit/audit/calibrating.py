"""calibrate(): put known models into a bundle, as references, siblings or surrogates."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from onnxaudit.answers import Access, Answers
from onnxaudit.audit.copies import copied
from onnxaudit.audit.insights import Insights, look_inside, named
from onnxaudit.audit.judging.label_free import named_classes
from onnxaudit.audit.progress import Progress
from onnxaudit.bundle import ModelEntry, QueryBundle
from onnxaudit.errors import OnnxauditError, UsageError
from onnxaudit.evidence.calibration import STATISTIC
from onnxaudit.evidence.siblings import FEWEST
from onnxaudit.evidence.siblings import STATISTIC as SIBLING_STATISTIC
from onnxaudit.interview import interview
from onnxaudit.registry import adapters, open_suspect
from onnxaudit.sandbox.opening import Opening
from onnxaudit.suspect import Target

ROLES_IN_WORDS = {"reference": "references", "training": "helpers", "sibling": "siblings", "surrogate": "surrogates"}
OWN = ("victim", "export")
"""Roles of the victim itself, in any precision."""
SANE_SHARE = 0.7
"""A reference with less than this share of the victim's accuracy on the controls is asked wrongly, or of another task."""


def model_files(folder: Path, what: str = "known to be independent") -> list[Path]:
    """The models in a folder, sorted by name. what: they should be, in words. Raises UsageError if there are none."""
    if not folder.is_dir():
        raise UsageError(f"{folder} is not a folder", f"Give a folder of models that are {what}.")
    kinds = {f".{name}" for name in adapters()} - {".http", ".https", ".python"}
    files = sorted(file for file in folder.iterdir() if file.suffix.lower() in kinds and file.is_file())
    if not files:
        raise UsageError(f"{folder} holds no models", f"Looked for {', '.join(sorted(kinds))}.")
    return files


def ask_model(
    bundle: QueryBundle,
    target: Target,
    role: str,
    name: str,
    origin: str = "",
    opening: Opening = open_suspect,
    *,
    label_free: bool = False,
) -> tuple[ModelEntry, Answers, Insights]:
    """Ask one model all queries of a bundle; its entry, its answers and what it shows of its inside, not yet in the bundle.

    Top-k answers are kept as labels: the bundle stores whole rows or labels. label_free: its classes are its own, so that it has
    no accuracy, and what it shows of its inside is not compared.
    """
    with opening(target) as model:
        answers = interview(model, bundle.queries).answers
        insights = {} if label_free else look_inside(bundle, model.inside)
        card = model.card
    if answers.access == Access.TOPK:
        answers = answers.degrade(Access.LABEL)
    answers = named_classes(bundle, answers, label_free=label_free)
    entry = ModelEntry(
        name,
        role,
        Path(card.source).name,
        card.sha256,
        card.kind,
        answers.access.word,
        answers.num_classes or 0,
        None if label_free else control_accuracy(bundle, answers),
        origin,
    )
    return entry, answers, insights


def control_accuracy(bundle: QueryBundle, answers: Answers) -> float | None:
    """Share of answered labelled controls with the right label; None where the data had no labels."""
    start, stop = bundle.manifest.controls
    part = answers.take(slice(start, stop))
    if not bundle.manifest.labelled or not part.answered.any():
        return None
    return float((part.labels == bundle.control_labels)[part.answered].mean())


def refusal(bundle: QueryBundle, entry: ModelEntry, answers: Answers, pool: Sequence[Answers] = ()) -> str | None:
    """Why a model cannot serve in its role, in words, or None. References and siblings that are the victim are refused, and
    references that know nothing.

    pool: answers of further models of the task, which say how far apart two of them usually are.
    """
    independent = entry.role in ("reference", "training")
    apart = independent or entry.role == "sibling"
    models = [model for model in bundle.manifest.models if model.role not in OWN or apart]
    twin = next((model for model in models if entry.sha256 and model.sha256 == entry.sha256), None)
    place = copied(answers, [bundle.answers[model.id] for model in models], pool, rounded=apart)
    found = twin or (None if place is None else models[place])
    if found is not None and found.role in OWN:
        return "answers as the victim does: it is the victim, or a copy of it"
    if found is not None:
        return f"is {found.id} ({found.source}) again"
    best = bundle.manifest.victim.accuracy
    if entry.accuracy is not None and best is not None and entry.accuracy < SANE_SHARE * best:
        return f"gets {entry.accuracy:.1%} of the controls right, the victim {best:.1%}: wrong input convention or label order"
    return None


def add_models(
    bundle: QueryBundle,
    targets: Sequence[tuple[Target, str]],
    role: str,
    progress: Progress,
    *,
    strict: bool,
    opening: Opening = open_suspect,
) -> QueryBundle:
    """The bundle with the models of all (target, origin) in it. A refused one is an error if ``strict``, else a note."""
    return screened(bundle, targets, role, progress, strict=strict, opening=opening)[0]


def screened(
    bundle: QueryBundle,
    targets: Sequence[tuple[Target, str]],
    role: str,
    progress: Progress,
    *,
    strict: bool,
    opening: Opening = open_suspect,
) -> tuple[QueryBundle, list[int]]:
    """As ``add_models``, and which of the targets are in it."""
    asked, reasons = _ask_all(bundle, targets, role, progress, strict=strict, opening=opening)
    taken: list[int] = []
    for number, (target, _) in enumerate(targets):
        reason = reasons.get(number)
        if reason is None:
            entry, answers, insights = asked[number]
            pool = [other for place, (_, other, _) in asked.items() if place != number]
            reason = refusal(bundle, entry, answers, pool)
        if reason is not None and strict:
            raise UsageError(f"{target.source} {reason}", "Leave it out.")
        if reason is not None:
            said = f"left out: {target.source} {reason}"
            progress.note(said)
            bundle = _with_pool_note(bundle, said)
            continue
        entry = dataclasses.replace(entry, id=f"{role}-{len(bundle.manifest.of_role(role)):03d}")
        bundle = with_models(bundle, [(entry, answers, insights)])
        taken.append(number)
    return bundle, taken


def _ask_all(
    bundle: QueryBundle,
    targets: Sequence[tuple[Target, str]],
    role: str,
    progress: Progress,
    *,
    strict: bool,
    opening: Opening,
) -> tuple[dict[int, tuple[ModelEntry, Answers, Insights]], dict[int, str]]:
    """What every target says, by its place, and why the others cannot be asked; the first of those is raised if ``strict``."""
    report = progress.task(f"asking {ROLES_IN_WORDS[role]}", len(targets))
    asked, reasons = {}, {}
    for number, (target, origin) in enumerate(targets):
        try:
            asked[number] = ask_model(bundle, target, role, f"{role}-new", origin, opening)
        except OnnxauditError as error:
            if strict:
                raise
            reasons[number] = f"cannot be used: {error.what}"
        report(number + 1)
    return asked, reasons


def _with_pool_note(bundle: QueryBundle, words: str) -> QueryBundle:
    manifest = dataclasses.replace(bundle.manifest, pool_notes=(*bundle.manifest.pool_notes, words))
    return dataclasses.replace(bundle, manifest=manifest)


def with_models(bundle: QueryBundle, models: Iterable[tuple[ModelEntry, Answers, Insights]]) -> QueryBundle:
    """The bundle with more models in it, its id cleared."""
    models = list(models)
    manifest = dataclasses.replace(bundle.manifest, models=(*bundle.manifest.models, *(entry for entry, _, _ in models)))
    answers = {**bundle.answers, **{entry.id: answers for entry, answers, _ in models}}
    insights = dict(bundle.insights)
    for entry, _, seen in models:
        insights |= named(entry.id, seen)
    return dataclasses.replace(bundle, manifest=manifest, answers=answers, insights=insights, id="")


def calibrate(
    bundle: QueryBundle,
    sources: Sequence[str],
    role: str,
    progress: Progress,
    device: str = "auto",
    http: Mapping[str, object] = MappingProxyType({}),
) -> QueryBundle:
    """The bundle with the given models added. http: options for those that are URLs, of the HTTP adapter.

    Raises UsageError for one that cannot serve, naming it.
    """
    spec, classes = bundle.manifest.input, bundle.manifest.victim.num_classes
    away = {**http, "class_names": bundle.manifest.class_names}
    targets = [
        (Target(source, spec, classes, device, options=away if "://" in source else {}), "added by calibrate")
        for source in sources
    ]
    if role == "sibling":  # what is added was not in the draw
        bundle = dataclasses.replace(bundle, manifest=dataclasses.replace(bundle.manifest, drawn=None))
    return preregistered(add_models(bundle, targets, role, progress, strict=True))


def preregistered(bundle: QueryBundle) -> QueryBundle:
    """The bundle with the statistic that it decides by, fixed by what is in it before any suspect is seen."""
    siblings = len(bundle.manifest.of_role("sibling"))
    if siblings < FEWEST or bundle.manifest.statistic != STATISTIC:
        return bundle
    return dataclasses.replace(bundle, manifest=dataclasses.replace(bundle.manifest, statistic=SIBLING_STATISTIC))
