"""What a sweep asks: every sampler is run once a seed, and what it made is kept, so that nothing is crafted twice."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from types import MappingProxyType
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from onnxaudit import __version__
from onnxaudit.audit.answering import answered
from onnxaudit.audit.crafting import CraftOptions, available, divided, victim_of
from onnxaudit.audit.pools import gather
from onnxaudit.audit.progress import Progress, Silent
from onnxaudit.audit.sampling import rng_of, sample_all
from onnxaudit.bundle import Manifest, QueryBundle, load
from onnxaudit.craft.data import load_data
from onnxaudit.craft.pools.peers import open_peers
from onnxaudit.craft.sample import Material
from onnxaudit.craft.samplers.natural import draw_controls
from onnxaudit.craft.victim import Victim, open_victim
from onnxaudit.decode import canonical, parse
from onnxaudit.errors import ArtefactError, UsageError
from onnxaudit.evidence.calibration import STATISTIC
from onnxaudit.schemes.catalogue import CATALOGUE, Scheme, portfolio
from onnxaudit.schemes.compositions import compositions, parameters_of, schemes
from onnxaudit.schemes.detectors import DETECTORS
from onnxaudit.schemes.samplers import SAMPLERS, Need
from onnxaudit.suspect import InputSpec, Queries

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
CONTROLS = 100


@dataclass(frozen=True, slots=True, eq=False)
class Portion:
    """One run of one sampler. schemes: they share its queries. composed: so do all compositions of the sampler.

    name: of the file, unique to everything that the queries depend on.
    """

    schemes: tuple[Scheme, ...]
    queries: int
    seed: int
    composed: bool
    name: str = ""


@dataclass(frozen=True, slots=True)
class Kitchen:
    """What every worker that crafts is told. surrogates, training: files of models that help. folder: where results are kept."""

    options: CraftOptions
    input: InputSpec
    surrogates: tuple[Path, ...]
    training: tuple[Path, ...]
    folder: Path


@dataclass(frozen=True, slots=True)
class Crafted:
    """What came of a portion. seconds: crafting took; 0 queries: nothing, and why."""

    queries: int
    seconds: float
    notes: tuple[str, ...] = ()
    why: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class Prepared:
    """victim, classes: what is audited. training: references that helped to make queries, which never count as innocents.

    left_out: schemes that cannot be crafted with what is given, and why. capped: the largest budget of those with one.
    """

    kitchen: Kitchen
    portions: tuple[Portion, ...]
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
    pools = gather(dataclasses.replace(options, optional=chosen is None), wanted, victim, divided(options, whole), progress)
    kitchen = Kitchen(
        options, victim.spec, tuple(file for file, _ in pools.surrogates), tuple(file for file, _ in pools.training), folder
    )
    capped: dict[str, int] = {}
    portions = []
    for group, compose in _grouped(wanted, composed=composed):
        count, cap = _count(group, budgets, chosen=chosen is not None, full=full)
        if cap is not None:
            capped |= {scheme.name: cap for scheme in group}
        portions += [Portion(tuple(group), count, options.seed + place, compose) for place in range(seeds)]
    digest = canonical([__version__, victim.sha256, whole.sha256 if whole else None, victim.spec, _files(kitchen)])
    named = tuple(dataclasses.replace(portion, name=_name(portion, digest)) for portion in portions)
    return Prepared(
        kitchen, named, victim.num_classes, victim.sha256, victim.device.type, left_out, capped, (*notes, *pools.notes)
    )


def craft_portion(kitchen: Kitchen, portion: Portion) -> Crafted:
    """Run one sampler and keep what it made, unless that was done before. What cannot be crafted is a result, not an error."""
    path = kitchen.folder / f"{portion.name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    if (kept := _kept(path)) is not None:
        return kept
    options = dataclasses.replace(
        kitchen.options,
        schemes=[scheme.name for scheme in portion.schemes],
        queries=portion.queries,
        seed=portion.seed,
        optional=True,
    )
    material, labelled = _material(kitchen)
    notes = Silent()
    started = time.perf_counter()
    try:
        sampled = sample_all(portion.schemes, material, options, notes)
    except UsageError as error:
        return Crafted(0, time.perf_counter() - started, why=error.what)
    seconds = time.perf_counter() - started
    queries = cast("Queries", np.concatenate(sampled.parts))
    manifest = Manifest(
        __version__, portion.seed, material.victim.spec, (), tuple(sampled.entries), (0, 0), labelled, STATISTIC, 0.05, ()
    )
    bundle = QueryBundle(manifest, queries, np.zeros(0, np.int64), {}, sampled.columns, sampled.graphs)
    answered(bundle, material.victim).save(path.with_suffix(".oab"), force=True)
    return _keep(path, Crafted(len(queries), seconds, tuple(notes.notes)))


def combine(kitchen: Kitchen, portions: Sequence[Portion], names: Sequence[str], seed: int) -> QueryBundle:
    """One seed's bundle of the schemes of these names with control queries, as craft makes it, still without references."""
    material, labelled = _material(kitchen)
    parts, entries = [], []
    columns: dict[str, NDArray[Any]] = {}
    graphs: dict[str, bytes] = {}
    begin = 0
    for portion in portions:
        path = kitchen.folder / f"{portion.name}.oab"
        if portion.seed != seed or not path.is_file():
            continue
        bundle = load(path)
        wanted = [entry for entry in bundle.manifest.schemes if entry.name in names]
        for entry in wanted:
            moved = dataclasses.replace(entry, rows=(entry.rows[0] + begin, entry.rows[1] + begin))
            columns |= {moved.column(name): column for name, column in bundle.columns_of(entry).items()}
            graphs |= {entry.name: bundle.graphs[entry.name]} if entry.name in bundle.graphs else {}
            entries.append(moved)
        if wanted:
            parts.append(bundle.queries)
            begin += len(bundle.queries)
    labels = np.zeros(0, np.int64)
    if material.data is not None:
        controls, labels = draw_controls(material.victim, material.data, CONTROLS, rng_of(seed, "controls"))
        parts.append(controls)
    entries.sort(key=lambda entry: names.index(entry.name))
    manifest = Manifest(
        __version__,
        seed,
        material.victim.spec,
        (),
        tuple(entries),
        (begin, begin + len(labels)),
        labelled,
        STATISTIC,
        kitchen.options.alpha,
        (),
        material.data.sha256 if material.data else None,
    )
    queries = cast("Queries", np.concatenate(parts))
    return answered(QueryBundle(manifest, queries, labels, {}, columns, graphs), material.victim)


def expanded(texts: Sequence[str], options: CraftOptions) -> tuple[Scheme, ...]:
    """What ``--scheme`` names, each once, "auto" among them. Raises UsageError, saying what there is."""
    found: dict[str, Scheme] = {}
    for text in texts:
        some = [CATALOGUE[name] for name in combined_names(None, options)] if text == "auto" else schemes(text)
        found |= {scheme.name: scheme for scheme in some}
    return tuple(found.values())


def combined_names(chosen: Sequence[Scheme] | None, options: CraftOptions) -> list[str]:
    """The schemes whose combined statistic is judged: those that were chosen, else those of ``auto``."""
    if chosen is not None:
        return [scheme.name for scheme in chosen]
    data = load_data(options.data) if options.data else None
    names, _ = portfolio(data=data is not None, labels=data is not None and data.y is not None)
    return [name for name in names if data is None or data.x.ndim == 4 or name != "sac-m"]


# ---------------------------------------------------------------------------------------------------------------- what to craft


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
            left_out[scheme.name if "+" not in scheme.name else f"{scheme.sampler}+…"] = f"needs {' and '.join(lacking)}"
    return [scheme for scheme in wanted if scheme.needs in found], left_out


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


# ---------------------------------------------------------------------------------------------------------------- in a worker

_MATERIAL: dict[str, tuple[Material, bool]] = {}


def _material(kitchen: Kitchen) -> tuple[Material, bool]:
    """What samplers work from, opened once a process, and whether the data has labels."""
    options = kitchen.options
    key = canonical([str(options.victim), str(options.data), kitchen.input, _files(kitchen)])
    if key not in _MATERIAL:
        whole = load_data(options.data) if options.data else None
        victim = open_victim(
            options.victim, kitchen.input, device=options.device, model=options.model, allow_pickle=options.allow_pickle
        ).probed()
        _, data = divided(options, whole)
        peers = (_peers(files, victim, options) for files in (kitchen.surrogates, kitchen.training))
        _MATERIAL.clear()
        _MATERIAL[key] = Material(victim, data, *peers), data is not None and data.y is not None
    return _MATERIAL[key]


def _peers(files: Sequence[Path], victim: Victim, options: CraftOptions) -> list[Any]:
    return list(open_peers(files, victim.spec, victim.num_classes, options.device))


def _files(kitchen: Kitchen) -> list[str]:
    """What the models that help are, by content."""
    return [hashlib.sha256(file.read_bytes()).hexdigest() for file in (*kitchen.surrogates, *kitchen.training)]


def _name(portion: Portion, digest: str) -> str:
    said = [[s.name, s.sampler, s.representation, s.detector, s.sampling, s.representing, s.detecting] for s in portion.schemes]
    key = hashlib.sha256(canonical([digest, said, portion.queries, portion.seed]).encode()).hexdigest()
    return f"{portion.schemes[0].sampler}-{portion.queries}-seed{portion.seed}-{key[:12]}"


def _kept(path: Path) -> Crafted | None:
    """What is known of a portion that was crafted before; None if that is not there, or damaged."""
    try:
        value = parse(path.read_bytes(), path.name)
        found = Crafted(int(value["queries"]), float(value["seconds"]), tuple(value["notes"]), str(value["why"]))
        load(path.with_suffix(".oab"))
    except (OSError, UsageError, ArtefactError, KeyError, TypeError, ValueError):
        return None
    return found


def _keep(path: Path, crafted: Crafted) -> Crafted:
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    temporary.write_text(canonical(crafted), encoding="utf-8")
    os.replace(temporary, path)  # noqa: PTH105 - the atomic one
    return crafted
