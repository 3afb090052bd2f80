"""What a sweep has to craft: which schemes can be crafted here, with which others they share queries, and how many."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from types import MappingProxyType

from onnxaudit import __version__
from onnxaudit.audit.benchmark.drawing import Crafting, Draw, digest_of_file, digests_of_files, named
from onnxaudit.audit.calibrating import model_files
from onnxaudit.audit.crafting import CraftOptions, available, divided, victim_of
from onnxaudit.audit.pools import Pools, gather
from onnxaudit.audit.progress import Progress, Silent
from onnxaudit.craft.data import Data, load_data
from onnxaudit.craft.victim import Victim
from onnxaudit.decode import canonical
from onnxaudit.errors import UsageError
from onnxaudit.schemes.catalogue import CATALOGUE, Scheme, portfolio
from onnxaudit.schemes.compositions import compositions, parameters_of, schemes
from onnxaudit.schemes.detectors import DETECTORS
from onnxaudit.schemes.representations import REPRESENTATIONS
from onnxaudit.schemes.samplers import SAMPLERS, Need
from onnxaudit.zoo.manifest import ZooEntry

USUAL = 400
"""The largest budget of a scheme that is not part of ``auto``, unless it is asked for by name."""
DEAR: Mapping[str, int] = MappingProxyType(
    {
        "cw-l2": 100,
        "transferable": 100,
        "conferrable": 100,
        "meta": 100,
        "activation-boundary": 200,
        "sensitive": 200,
        "neuron-fuzz": 200,
    }
)
"""Samplers that take a tenth of a second a query or more, and the largest budget that they are asked to fill."""
STANDARD = 100
"""Queries of a scheme that takes all of its queries or none: what it learned was made with them."""


@dataclass(frozen=True, slots=True, eq=False)
class Prepared:
    """victim, classes: what is audited. training: references that helped to make queries, which never count as innocents.

    left_out: schemes that cannot be crafted with what is given, and why. capped: the largest budget of those with one.
    """

    crafting: Crafting
    draws: tuple[Draw, ...]
    classes: int
    victim_sha256: str
    device: str
    left_out: Mapping[str, str]
    capped: Mapping[str, int]
    notes: tuple[str, ...]


def prepare(
    options: CraftOptions,
    chosen: Sequence[Scheme] | None,
    budgets: Sequence[int],
    seeds: int,
    folder: Path,
    progress: Progress,
    *,
    composed: bool,
    full: bool,
) -> Prepared:
    """Find out what can be crafted, gather models that help, and list what has to be crafted; nothing is crafted yet.

    chosen: None for the whole catalogue. composed: also all compositions of the samplers. Raises UsageError where a chosen
    scheme lacks something.
    """
    whole = load_data(options.data) if options.data else None
    found = available(options)
    wanted, left_out = _possible(chosen, found, composed=composed)
    if not wanted:
        raise UsageError("no scheme can be crafted with what is given", "Give --data.")
    victim, notes = victim_of(options, whole)
    for note in notes:
        progress.note(note)
    pools = _gathered(dataclasses.replace(options, optional=chosen is None), wanted, victim, divided(options, whole), progress)
    crafting = Crafting(
        options,
        victim.spec,
        tuple(file for file, _ in pools.surrogates),
        tuple(file for file, _ in pools.training),
        folder,
        tuple((one, two) for (one, _), (two, _) in pools.pairs),
    )
    capped: dict[str, int] = {}
    draws = []
    for group, compose in _grouped(wanted, composed=composed):
        count, cap = _count(group, budgets, chosen=chosen is not None, full=full)
        if cap is not None:
            capped |= {_short(scheme): cap for scheme in group if not REPRESENTATIONS[scheme.representation].inside}
        draws += [Draw(tuple(group), count, options.seed + place, compose) for place in range(seeds)]
    data = [whole.sha256 if whole else None, bool(options.train_surrogates)]
    digest = canonical([__version__, victim.sha256, victim.spec, options.model, data, digests_of_files(crafting)])
    listed = tuple(dataclasses.replace(draw, name=named(draw, digest)) for draw in draws)
    return Prepared(
        crafting, listed, victim.num_classes, victim.sha256, victim.device.type, left_out, capped, (*notes, *pools.notes)
    )


def check_apart(options: CraftOptions, suspects: Sequence[ZooEntry]) -> None:
    """Raise UsageError if a model that may help to make queries is judged by them, under whatever name."""
    given = [
        *(model_files(options.surrogates, "derived from the victim") if options.surrogates else ()),
        *options.reference_files,
    ]
    helping = {digest_of_file(file): file for file in reversed(given)}
    judged = {digest_of_file(Path(file)): file for file in dict.fromkeys(entry.file for entry in suspects)}
    both = [f"{file} is {judged[digest]}" for digest, file in helping.items() if digest in judged]
    if both:
        more = f", and {len(both) - 1} more" if len(both) > 1 else ""
        raise UsageError(
            f"models that help to make queries are judged by them: {both[-1]}{more}", "Give surrogates that are not in the zoo."
        )


def expanded(texts: Sequence[str], options: CraftOptions) -> tuple[Scheme, ...]:
    """What ``--scheme`` names, each once, "auto" among them. Raises UsageError, saying what there is."""
    found: dict[str, Scheme] = {}
    for text in texts:
        some = [CATALOGUE[name] for name in combined_names(None, options)] if text == "auto" else schemes(text)
        found |= {scheme.name: scheme for scheme in some}
    return tuple(found.values())


def combined_names(chosen: Sequence[Scheme] | None, options: CraftOptions) -> list[str]:
    """The schemes whose combined statistic is judged: those of ``auto`` if all of them are measured, else all that are."""
    data = load_data(options.data) if options.data else None
    names, _ = portfolio(data=data is not None, labels=data is not None and data.y is not None)
    found = [name for name in names if data is None or data.x.ndim == 4 or name != "sac-m"]
    given = found if chosen is None else [scheme.name for scheme in chosen]
    return found if set(found) <= set(given) else given


# ---------------------------------------------------------------------------------------------------------------- what to craft


def _gathered(
    options: CraftOptions,
    wanted: Sequence[Scheme],
    victim: Victim,
    parts: tuple[Data | None, Data | None],
    progress: Progress,
) -> Pools:
    """The models that help. Those that do are no innocents here; they may calibrate what was not made with them."""
    notes = _Unheard(progress)
    pools = gather(options, wanted, victim, parts, notes)
    helped = [scheme.name for scheme in wanted if Need.REFERENCES in scheme.needs and "+" not in scheme.name]
    words = f"{len(pools.training)} references help to make the queries of {', '.join(helped)} and count as innocents nowhere"
    said = [note for note in notes.notes if not note.endswith("do not calibrate")] + ([words] if pools.training else [])
    for note in said:
        progress.note(note)
    return dataclasses.replace(pools, notes=tuple(said))


class _Unheard(Silent):
    """Steps are shown, notes are kept for later."""

    def __init__(self, progress: Progress) -> None:
        super().__init__()
        self._progress = progress

    def task(self, words: str, total: int) -> Callable[[int], None]:
        return self._progress.task(words, total)


def _possible(chosen: Sequence[Scheme] | None, found: Need, *, composed: bool) -> tuple[list[Scheme], dict[str, str]]:
    """The schemes to craft, and why others cannot be."""
    wanted = list(CATALOGUE.values()) if chosen is None else list(chosen)
    if chosen is not None:
        return wanted, {}
    if composed:
        wanted += [next(group) for _, group in groupby(compositions(), lambda scheme: scheme.sampler)]
    left_out = {}
    for scheme in wanted:
        if scheme.needs not in found:
            lacking = [need.name.lower() for need in Need if need in scheme.needs & ~found and need.name]
            left_out[_short(scheme)] = f"needs {' and '.join(lacking)}"
    return [scheme for scheme in wanted if scheme.needs in found], left_out


def _short(scheme: Scheme) -> str:
    """A scheme's name; that of all compositions with a sampler for the one that brings their queries."""
    return f"{scheme.sampler}+…" if scheme.paper == "composition" else scheme.name


def _grouped(wanted: Sequence[Scheme], *, composed: bool) -> list[tuple[list[Scheme], bool]]:
    """Schemes that share queries together, and whether these carry the compositions too: those made with default parameters."""
    groups: dict[str, list[Scheme]] = {}
    plain: dict[str, str] = {}
    for scheme in wanted:
        defaults = parameters_of(SAMPLERS[scheme.sampler])
        settled = {**defaults, **scheme.sampling}
        learned = bool(DETECTORS[scheme.detector].trainer)
        key = canonical([scheme.sampler, settled, learned])
        groups.setdefault(key, []).append(scheme)
        if settled == defaults and not learned:
            plain[scheme.sampler] = key
    carriers = set(plain.values()) if composed else set()
    return [(_once(group), key in carriers) for key, group in groups.items()]


def _once(group: Sequence[Scheme]) -> list[Scheme]:
    """Without a composition where a scheme of the catalogue brings the same queries, and all with the parameters of the first."""
    named = [scheme for scheme in group if scheme.paper != "composition"] or list(group[:1])
    return [dataclasses.replace(scheme, sampling=named[0].sampling) for scheme in named]


def _count(group: Sequence[Scheme], budgets: Sequence[int], *, chosen: bool, full: bool) -> tuple[int, int | None]:
    """How many queries a sampler is asked for, and the budget that stops it, if one does."""
    if DETECTORS[group[0].detector].trainer:
        return min(STANDARD, budgets[-1]), STANDARD
    usual = None if {scheme.name for scheme in group} & AUTO else USUAL
    cap = DEAR.get(group[0].sampler, usual)
    if chosen or full or cap is None or cap >= budgets[-1]:
        return budgets[-1], None
    return max([budget for budget in budgets if budget <= cap], default=budgets[0]), cap


AUTO = frozenset({*portfolio(data=True, labels=True)[0], "random"})
"""Schemes that are measured at every budget: those that a user gets, and chance."""
