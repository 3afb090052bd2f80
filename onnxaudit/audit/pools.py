"""The models that craft uses besides the victim: references, and surrogates where a scheme wants them; given or trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from onnxaudit.audit.answering import probing
from onnxaudit.audit.calibrating import model_files, screened
from onnxaudit.audit.progress import Progress
from onnxaudit.craft.data import Data
from onnxaudit.craft.pools.pairs import train_pairs
from onnxaudit.craft.pools.peers import has_gradients, open_peers
from onnxaudit.craft.pools.references import CLOSE, choose, train_references
from onnxaudit.craft.pools.siblings import train_siblings
from onnxaudit.craft.pools.surrogates import train_surrogates
from onnxaudit.craft.sample import Peer
from onnxaudit.craft.samplers.natural import draw_controls
from onnxaudit.craft.space import space_of
from onnxaudit.craft.victim import Victim
from onnxaudit.errors import UsageError
from onnxaudit.schemes.catalogue import Scheme
from onnxaudit.schemes.samplers import Need
from onnxaudit.suspect import Target

if TYPE_CHECKING:
    from onnxaudit.audit.crafting import CraftOptions

SHARE = 3
"""One reference in so many helps to make fingerprints, where a scheme wants references. Those never calibrate."""
HALF = 2
"""The same where the combination is learned."""
PROBES = 200
"""Inputs that models are asked before they help."""
LEARNED = "learned"
"""The combination that is learned from surrogates and references."""
PAIRED = "contrast"
"""The sampler that compares pairs."""
FEWEST = 2
"""Fewer models of a kind than this teach nothing."""


@dataclass(frozen=True, slots=True, eq=False)
class Pools:
    """calibrating, training, surrogates: (file, origin) of models by what they are for; the last two also as peers.

    pairs: (file, origin) twice, of what was extracted from the victim and of what was extracted from a reference.
    notes: on how they were chosen. shortfall: how far trained references fall short of the victim's accuracy.
    """

    calibrating: Sequence[tuple[Path, str]] = ()
    training: Sequence[tuple[Path, str]] = ()
    surrogates: Sequence[tuple[Path, str]] = ()
    training_peers: Sequence[Peer] = ()
    surrogate_peers: Sequence[Peer] = ()
    pairs: Sequence[tuple[tuple[Path, str], tuple[Path, str]]] = ()
    notes: tuple[str, ...] = ()
    shortfall: float | None = None


def gather(
    options: CraftOptions,
    schemes: Sequence[Scheme],
    victim: Victim,
    parts: tuple[Data | None, Data | None],
    progress: Progress,
) -> Pools:
    """Whatever models the options name or the schemes want. parts: data to train on, and data that queries come from.

    Raises UsageError if a scheme wants models that were neither given nor asked to be trained.
    """
    training, test = parts
    _require(options, schemes, test)
    paired = bool(options.train_surrogates) and any(scheme.sampler == PAIRED for scheme in schemes)
    asking = [scheme for scheme in schemes if Need.SURROGATES in scheme.needs and not (paired and scheme.sampler == PAIRED)]
    combining = options.combine == LEARNED
    surrogates = [] if paired and not asking and not combining else _surrogates(options, victim, training, test, progress)
    references, notes, shortfall = _references(options, victim, training, test, progress)
    wanted = combining or any(Need.REFERENCES in scheme.needs for scheme in schemes)
    if wanted:
        references, said = _sound(references, "reference", victim, test, options, progress)
        notes += said
    gradients = any(Need.REFERENCES | Need.GRADIENTS in scheme.needs for scheme in schemes)
    share = HALF if combining else SHARE
    making = _making(references, options.seed, share, gradients=gradients) if wanted else []
    calibrating = [item for item in references if item not in making]
    if making:
        words = f"{len(making)} of {len(references)} references help to make fingerprints and do not calibrate"
        notes += (words,)
        progress.note(words)

    helping = surrogates if asking or combining else []
    if helping:
        surrogates, said = _sound(surrogates, "surrogate", victim, test, options, progress)
        helping, notes = surrogates, notes + said
        if len(helping) < FEWEST:
            raise UsageError(f"{len(helping)} of the surrogates can serve", f"At least {FEWEST} are needed; see the notes above.")
    peers = (peers_of(making, victim, options.device), peers_of(helping, victim, options.device))
    pairs, said = _pairs(options, victim, parts, making, progress) if paired else ([], ())
    return Pools(calibrating, making, surrogates, *peers, pairs, (*notes, *said), shortfall)


def _sound(
    items: list[tuple[Path, str]], role: str, victim: Victim, data: Data | None, options: CraftOptions, progress: Progress
) -> tuple[list[tuple[Path, str]], tuple[str, ...]]:
    """The models that can serve, asked before any of them teaches what a model of its kind is; and what was left out, in words.

    Copies of the victim or of each other, models at chance and broken files would teach what is not so.
    """
    rng, space = np.random.default_rng([options.seed, len(items)]), space_of(victim, data)
    if data is None:
        probe = probing(victim, space.queries(space.uniform(PROBES, rng)), None)
    else:
        queries, labels = draw_controls(victim, data, PROBES, rng, surest=False)
        probe = probing(victim, queries, labels if data.y is not None else None)
    filled, taken = screened(probe, targets(items, victim, options.device), role, progress, strict=False)
    return [items[place] for place in taken], filled.manifest.pool_notes


def peers_of(items: Sequence[tuple[Path, str]], victim: Victim, device: str) -> list[Peer]:
    """Files as models that samplers may ask."""
    return open_peers([file for file, _ in items], victim.spec, victim.num_classes, device)


def _require(options: CraftOptions, schemes: Sequence[Scheme], data: Data | None) -> None:
    """Raise UsageError for what a scheme lacks, before anything is trained. Optional schemes see to that themselves."""
    if options.optional or "auto" in options.schemes:
        models = Need.SURROGATES | Need.REFERENCES | Need.SIBLINGS
        schemes = [scheme for scheme in schemes if models & scheme.needs]
    for scheme in schemes:
        if Need.DATA in scheme.needs and data is None:
            raise UsageError(f"{scheme.name} needs data", "Give --data, or take ipguard-rl.")
        if Need.LABELS in scheme.needs and data is not None and data.y is None:
            raise UsageError(f"{scheme.name} needs labelled data", "Give y with the data, or take another scheme.")
        if Need.IMAGES in scheme.needs and data is not None and data.x.ndim != 4:
            raise UsageError(f"{scheme.name} works on images, the data are vectors", "Take a scheme that does not need images.")
        if Need.SURROGATES in scheme.needs and not options.surrogates and not options.train_surrogates:
            raise UsageError(
                f"{scheme.name} needs surrogates, models that are derived from the victim",
                "Give --surrogates DIR, or --train-surrogates 6.",
            )
        if Need.SIBLINGS in scheme.needs and not (options.siblings or options.train_siblings or options.draw is not None):
            raise UsageError(
                f"{scheme.name} needs siblings, models by the victim's own recipe",
                "Give --siblings DIR, or --train-siblings 19 --recipe module:function.",
            )
        if scheme.sampler == PAIRED and not options.train_surrogates:
            raise UsageError(
                f"{scheme.name} trains its own surrogates, each with one that learned from a reference instead of the victim",
                "Give --train-surrogates 12 instead of --surrogates.",
            )
        if Need.REFERENCES in scheme.needs and not (options.references or options.reference_files or options.train_references):
            raise UsageError(
                f"{scheme.name} needs references besides those that calibrate", "Give --references DIR, or --train-references 39."
            )


def _surrogates(
    options: CraftOptions, victim: Victim, training: Data | None, test: Data | None, progress: Progress
) -> list[tuple[Path, str]]:
    if options.surrogates:
        files = model_files(options.surrogates, "derived from the victim")
        if len(files) < FEWEST:
            raise UsageError(f"{options.surrogates} holds {len(files)} surrogate", f"Give at least {FEWEST}.")
        return [(file, "given by the owner") for file in files]
    if not options.train_surrogates or training is None or test is None:
        return []
    report = progress.task("training surrogates", options.train_surrogates)
    count, folder = options.train_surrogates, options.surrogate_folder
    trained = train_surrogates(training, test, victim, count, options.seed, folder, jobs=options.jobs, progress=report)
    return [(item.path, f"trained by craft: {item.task}") for item in trained]


def _pairs(
    options: CraftOptions,
    victim: Victim,
    parts: tuple[Data | None, Data | None],
    making: Sequence[tuple[Path, str]],
    progress: Progress,
) -> tuple[list[tuple[tuple[Path, str], tuple[Path, str]]], tuple[str, ...]]:
    """As many pairs as surrogates were asked for, extracted from the victim and from references that never calibrate; notes.

    A pair of which either learned too little is left out.
    """
    training, test = parts
    assert training is not None
    assert test is not None
    report = progress.task("training pairs", options.train_surrogates)
    folder, teachers = options.surrogate_folder / "pairs", [file for file, _ in making]
    count, seed = options.train_surrogates, options.seed
    trained = train_pairs(training, test, victim, teachers, count, seed, folder, jobs=options.jobs, progress=report)
    extracted = [(pair.derived, f"trained by craft: {pair.task}") for pair in trained]
    others = [(pair.other, f"trained by craft: {pair.task}, of {pair.teacher}") for pair in trained]
    kept, notes = _sound(extracted, "surrogate", victim, test, options, progress)
    kept_too, more = _sound(others, "training", victim, test, options, progress)
    sound = [pair for pair in zip(extracted, others, strict=True) if pair[0] in kept and pair[1] in kept_too]
    if len(sound) < FEWEST:
        raise UsageError(f"{len(sound)} of {count} pairs learned enough", "Give more data, or leave contrast out.")
    return sound, (*notes, *more)


def siblings_of(options: CraftOptions, victim: Victim, progress: Progress) -> list[tuple[Path, str]]:
    """Models by the victim's own recipe, given or trained by the owner's own code."""
    if options.siblings:
        return [(file, "given by the owner") for file in model_files(options.siblings, "by the victim's recipe")]
    if not options.train_siblings or options.recipe is None:
        return []
    report = progress.task("training siblings", options.train_siblings)
    files = train_siblings(
        options.recipe, victim, options.train_siblings, options.sibling_folder, jobs=options.jobs, progress=report
    )
    return [(file, f"trained by {options.recipe}, seed {seed}") for seed, file in enumerate(files, start=1)]


def _references(
    options: CraftOptions, victim: Victim, training: Data | None, test: Data | None, progress: Progress
) -> tuple[list[tuple[Path, str]], tuple[str, ...], float | None]:
    if options.reference_files:
        return [(file, "reference of the zoo") for file in options.reference_files], (), None
    if options.references:
        return [(file, "given by the owner") for file in model_files(options.references)], (), None
    if not options.train_references or training is None or test is None:
        return [], (), None
    return _trained_references(options, victim, training, test, progress)


def _trained_references(
    options: CraftOptions, victim: Victim, training: Data, test: Data, progress: Progress
) -> tuple[list[tuple[Path, str]], tuple[str, ...], float]:
    """References trained on data that no query comes from; weak ones are kept apart as long as enough are left.

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
    files = [(reference.path, f"trained by craft: {reference.recipe}") for reference in used]
    return files, tuple(said), max(0.0, round(goal - middle, 4))


def _making(references: Sequence[tuple[Path, str]], seed: int, share: int, *, gradients: bool) -> list[tuple[Path, str]]:
    """The references that help to make fingerprints, drawn at random; where gradients are wanted, of those that have them."""
    count = max(FEWEST, len(references) // share)
    able = [item for item in references if has_gradients(item[0])] if gradients else []
    pool = able if len(able) >= FEWEST else list(references)
    if len(references) <= count:
        raise UsageError(
            f"{len(references)} references are too few to learn from some and calibrate with the others", "Give more."
        )
    rng = np.random.default_rng([seed, len(references)])
    return [pool[i] for i in sorted(rng.permutation(len(pool))[:count])]


def targets(items: Sequence[tuple[Path, str]], victim: Victim, device: str) -> list[tuple[Target, str]]:
    """Files as what ``add_models`` takes."""
    return [(Target(str(file), victim.spec, victim.num_classes, device), origin) for file, origin in items]
