"""craft(): from the victim and the owner's data to a query bundle."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np

from onnxaudit import __version__
from onnxaudit.audit.answering import answered
from onnxaudit.audit.calibrating import add_models, model_files, preregistered
from onnxaudit.audit.combining import with_learned_weights
from onnxaudit.audit.exporting import with_exports
from onnxaudit.audit.insights import insight_key, insights_of
from onnxaudit.audit.judging.comparing import FEWEST_QUERIES
from onnxaudit.audit.pools import LEARNED, gather, peers_of, siblings_of, targets
from onnxaudit.audit.progress import Progress
from onnxaudit.audit.sampling import Sampled, rng_of, sample_all
from onnxaudit.bundle import Manifest, QueryBundle
from onnxaudit.craft.conventions import conventions, find_convention, first_that_runs
from onnxaudit.craft.data import Data, load_data
from onnxaudit.craft.pools.references import split
from onnxaudit.craft.pools.siblings import draw
from onnxaudit.craft.sample import Material
from onnxaudit.craft.samplers.natural import draw_controls
from onnxaudit.craft.threads import one_thread_a_sum
from onnxaudit.craft.victim import Victim, open_victim
from onnxaudit.errors import UsageError
from onnxaudit.evidence.calibration import STATISTIC
from onnxaudit.evidence.sequential import LOOKS
from onnxaudit.schemes.catalogue import CATALOGUE, Scheme, portfolio
from onnxaudit.schemes.compositions import schemes
from onnxaudit.schemes.representations import REPRESENTATIONS
from onnxaudit.schemes.samplers import Need
from onnxaudit.suspect import InputSpec, Queries

COMBINATIONS = ("mean-z", LEARNED)
"""How schemes are combined in one statistic."""


@dataclass(frozen=True, slots=True)
class CraftOptions:
    """What the user asked craft for; the names are those of the command line. None: not said."""

    victim: Path
    data: Path | None = None
    schemes: Sequence[str] = ("auto",)
    queries: int = 100
    controls: int = 100
    references: Path | None = None
    reference_files: Sequence[Path] = ()
    train_references: int = 0
    reference_folder: Path = Path("references")
    surrogates: Path | None = None
    train_surrogates: int = 0
    surrogate_folder: Path = Path("surrogates")
    siblings: Path | None = None
    train_siblings: int = 0
    recipe: str | None = None
    sibling_folder: Path = Path("siblings")
    draw: int | None = None
    looks: tuple[int, ...] = LOOKS
    combine: str = "mean-z"
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
    exports: bool | None = None
    """Whether the victim's answers in fp16 and INT8 go into the bundle; None: unless it is large."""
    optional: bool = False
    """Leave out, with a note, what cannot be crafted here, as ``auto`` does."""

    def told(self, spec: InputSpec) -> CraftOptions:
        """The same with the victim's input convention said, so that it is not looked for."""
        return dataclasses.replace(
            self,
            input=spec.shape,
            scale=spec.scale,
            mean=spec.mean,
            std=spec.std,
            layout=spec.layout,
            channel_order=spec.channels,
        )


@one_thread_a_sum()
def craft(options: CraftOptions, progress: Progress) -> QueryBundle:
    """Sample every scheme's queries, ask the victim and the references, and freeze it all; not yet saved.

    Deterministic: the same files, options and versions give the same bundle on one kind of processor, whatever its cores.
    """
    _check(options)
    options, drawn_from = drawn(options, progress)
    whole = load_data(options.data) if options.data else None
    chosen, why = _chosen(options, whole)
    victim, notes = victim_of(options, whole)
    for note in (*notes, *why):
        progress.note(note)
    training, data = divided(options, whole)
    pools = gather(options, chosen, victim, (training, data), progress)
    siblings = [(file, "drawn from") for file in drawn_from] or siblings_of(options, victim, progress)
    family = peers_of(siblings, victim, options.device) if any(Need.SIBLINGS in scheme.needs for scheme in chosen) else []
    extracted, others = ([pair[side] for pair in pools.pairs] for side in (0, 1))
    paired = list(zip(*(peers_of(items, victim, options.device) for items in (extracted, others)), strict=True))
    material = Material(victim, data, pools.surrogate_peers, pools.training_peers, family, paired)
    sampled = sample_all(chosen, material, options, progress)
    parts, begin, labels = list(sampled.parts), sum(map(len, sampled.parts)), np.zeros(0, np.int64)
    if data is not None:
        controls, labels = draw_controls(victim, data, options.controls, rng_of(options.seed, "controls"))
        parts.append(controls)
    else:
        notes.append("no data, so no control queries: a mis-wired suspect cannot be told from an independent one")
    manifest = _manifest(options, victim, whole, sampled, (begin, begin + len(labels)), notes)
    queries = cast("Queries", np.concatenate(parts))
    if not any(REPRESENTATIONS[entry.representation].inside == "" for entry in sampled.entries) and not len(labels):
        raise UsageError(
            "there is nothing to ask a suspect: all schemes look inside", "Give data and --controls, or another scheme."
        )
    bundle = answered(QueryBundle(manifest, queries, labels, {}, sampled.columns, sampled.graphs), victim)
    bundle = with_exports(bundle, victim, progress, options.exports)
    roles = {
        "training": [*pools.training, *others],
        "surrogate": [*pools.surrogates, *extracted],
        "sibling": siblings,
        "reference": pools.calibrating,
    }
    for role, items in roles.items():
        if items:
            bundle = add_models(bundle, targets(items, victim, options.device), role, progress, strict=False)
    if options.combine == LEARNED:
        surrogates, references = ({file.name for file, _ in pool} for pool in (pools.surrogates, pools.training))
        bundle = with_learned_weights(bundle, surrogates, references, progress)
    bundle = preregistered(bundle)
    for words in _doubts(bundle, options):
        progress.note(words)
    pool_notes = (*pools.notes, *bundle.manifest.pool_notes)
    return dataclasses.replace(
        bundle, manifest=dataclasses.replace(bundle.manifest, pool_notes=pool_notes, shortfall=pools.shortfall)
    )


def _doubts(bundle: QueryBundle, options: CraftOptions) -> Iterator[str]:
    """Why checks with this bundle may find nothing, to be said while that can still be changed."""
    references = bundle.manifest.of_role("reference")
    needed = math.ceil(1 / options.alpha - 1e-9) - 1
    if 0 < len(references) < needed:
        yield f"{len(references)} references calibrate; alpha {options.alpha:g} needs {needed}, or check shows nothing"
    siblings = len(bundle.manifest.of_role("sibling"))
    if 0 < siblings < needed:
        yield f"{siblings} siblings: with {needed} a suspect could be ranked among them at alpha {options.alpha:g}"
    for entry in bundle.manifest.schemes:
        count = entry.rows[1] - entry.rows[0]
        if count < FEWEST_QUERIES:
            yield f"{entry.name}: {count} queries are fewer than the {FEWEST_QUERIES} that check wants of a scheme"
        blind = [model for model in references if (key := insight_key(entry)) and key not in insights_of(bundle, model.id)]
        if blind:
            what = REPRESENTATIONS[entry.representation].inside
            yield f"{entry.name}: {len(blind)} of {len(references)} references do not show their {what}, so check will skip it"


def available(options: CraftOptions) -> Need:
    """What the options bring for schemes to be crafted with; labels and images as the data file has them."""
    found = Need.GRADIENTS
    if options.data is not None:
        data = load_data(options.data)
        found |= Need.DATA | (Need.LABELS if data.y is not None else Need.NOTHING)
        found |= Need.IMAGES if data.x.ndim == 4 else Need.NOTHING
    if options.surrogates or options.train_surrogates:
        found |= Need.SURROGATES
    if options.references or options.reference_files or options.train_references:
        found |= Need.REFERENCES
    if options.siblings or options.train_siblings or options.draw is not None:
        found |= Need.SIBLINGS
    return found


def _check(options: CraftOptions) -> None:
    trained = options.train_references, options.train_surrogates, options.train_siblings
    if options.queries < 2 or options.controls < 0 or min(trained) < 0:
        raise UsageError("--queries must be at least 2, --controls and --train-… at least 0")
    if options.combine not in COMBINATIONS:
        raise UsageError(f"--combine {options.combine!r} is not known", f"Use {' or '.join(COMBINATIONS)}.")
    if options.combine == LEARNED and (options.siblings or options.train_siblings or options.draw is not None):
        raise UsageError(
            "--combine learned does not know siblings", "Leave it out: with siblings the sibling-adjusted score decides."
        )
    if options.combine == LEARNED and not (options.surrogates or options.train_surrogates):
        raise UsageError("--combine learned needs surrogates", "Give --surrogates DIR, or --train-surrogates 12.")
    if options.combine == LEARNED and not (options.references or options.reference_files or options.train_references):
        raise UsageError("--combine learned needs references", "Give --references DIR, or --train-references 60.")
    if bool(options.train_siblings) != bool(options.recipe):
        raise UsageError(
            "--train-siblings and --recipe go together",
            "For example --train-siblings 19 --recipe training:sibling, a function of a seed.",
        )
    if options.draw is not None and (options.siblings or options.train_siblings or not options.victim.is_dir()):
        raise UsageError(
            "--draw takes a folder of models by one recipe as VICTIM, and nothing else about siblings", "Give the folder."
        )


def drawn(options: CraftOptions, progress: Progress) -> tuple[CraftOptions, list[Path]]:
    """With ``draw``, the options for the model that the lot fell on, and the files of its siblings."""
    if options.draw is None:
        if options.victim.is_dir():
            raise UsageError(
                f"{options.victim} is a folder", "Give the victim's file; or --draw SEED to draw it among its siblings."
            )
        return options, []
    victim, others = draw(model_files(options.victim, "by one recipe"), options.draw)
    progress.note(f"drawn by lot among {len(others) + 1}: {victim.name} is the one to deploy; keep the others in the house")
    return dataclasses.replace(options, victim=victim), others


def divided(options: CraftOptions, whole: Data | None) -> tuple[Data | None, Data | None]:
    """Data to train references and surrogates on, and data that queries come from; they never overlap."""
    if not options.train_references and not options.train_surrogates:
        return None, whole
    what = "--train-references" if options.train_references else "--train-surrogates"
    if whole is None or whole.y is None:
        raise UsageError(f"{what} needs labelled data", f"Give --data with y, or {what.replace('--train-', '--')} DIR.")
    return split(whole)


def victim_of(options: CraftOptions, data: Data | None) -> tuple[Victim, list[str]]:
    """The victim under the input convention that was given or found, and what to say about it."""
    shape = options.input or (data.shape if data else None)
    if shape is None:
        raise UsageError("without --data the victim's input size is not known", "Give --input, for example --input 28x28x1.")
    if data is not None and data.shape != shape:
        sizes = ("x".join(map(str, size)) for size in (data.shape, shape))
        raise UsageError(
            "the data are {}, --input says {}".format(*sizes), "Bring the data to the victim's size, or leave --input out."
        )
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


def _chosen(options: CraftOptions, data: Data | None) -> tuple[list[Scheme], tuple[str, ...]]:
    """The schemes to craft, ``auto`` expanded in its place, and why these."""
    found: dict[str, Scheme] = {}
    why: tuple[str, ...] = ()
    for text in options.schemes:
        if text != "auto":
            found |= {scheme.name: scheme for scheme in schemes(text)}
            continue
        kin = bool(options.siblings or options.train_siblings or options.draw is not None)
        names, reason = portfolio(data=data is not None, labels=data is not None and data.y is not None, siblings=kin)
        if data is not None and data.x.ndim == 2 and "sac-m" in names:
            names.remove("sac-m")
            reason += "; sac-m left out: vectors cannot be mixed as images"
        found |= {name: CATALOGUE[name] for name in names}
        why = (f"schemes: {', '.join(names)} ({reason})",)
    return list(found.values()), why


def _manifest(
    options: CraftOptions, victim: Victim, data: Data | None, sampled: Sampled, controls: tuple[int, int], notes: list[str]
) -> Manifest:
    return Manifest(
        tool=__version__,
        seed=options.seed,
        input=victim.spec,
        class_names=data.names if data and len(data.names) == victim.num_classes else (),
        schemes=tuple(sampled.entries),
        controls=controls,
        labelled=data is not None and data.y is not None,
        statistic=STATISTIC,
        alpha=options.alpha,
        models=(),
        data_sha256=data.sha256 if data else None,
        notes=tuple(notes),
        looks=tuple(look for look in options.looks if look < controls[0]),
        drawn=options.draw,
        asked=options.queries,
    )
