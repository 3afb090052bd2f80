"""Draws: one run of one sampler each, what it made is kept in a file, so that nothing is crafted twice."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from onnxaudit import __version__
from onnxaudit.audit.answering import answered
from onnxaudit.audit.crafting import CraftOptions, divided
from onnxaudit.audit.progress import Silent
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
from onnxaudit.schemes.catalogue import Scheme
from onnxaudit.suspect import InputSpec, Queries

CONTROLS = 100


@dataclass(frozen=True, slots=True, eq=False)
class Draw:
    """One run of one sampler. schemes: they share its queries. composed: so do all compositions of the sampler.

    name: of the file, unique to everything that the queries depend on.
    """

    schemes: tuple[Scheme, ...]
    queries: int
    seed: int
    composed: bool
    name: str = ""


@dataclass(frozen=True, slots=True)
class Crafting:
    """What every worker that crafts is told. surrogates, training: files of models that help. folder: where results are kept."""

    options: CraftOptions
    input: InputSpec
    surrogates: tuple[Path, ...]
    training: tuple[Path, ...]
    folder: Path
    pairs: tuple[tuple[Path, Path], ...] = ()


@dataclass(frozen=True, slots=True)
class Crafted:
    """What came of a draw. seconds: crafting took; 0 queries: nothing, and why."""

    queries: int
    seconds: float
    notes: tuple[str, ...] = ()
    why: str = ""


def craft_draw(crafting: Crafting, draw: Draw) -> Crafted:
    """Run one sampler and keep what it made, unless that was done before. What cannot be crafted is a result, not an error."""
    path = crafting.folder / f"{draw.name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    if (kept := _kept(path)) is not None:
        return kept
    options = dataclasses.replace(
        crafting.options,
        schemes=[scheme.name for scheme in draw.schemes],
        queries=draw.queries,
        seed=draw.seed,
        optional=True,
    )
    material, labelled = _material(crafting)
    notes = Silent()
    started = time.perf_counter()
    try:
        sampled = sample_all(draw.schemes, material, options, notes)
    except UsageError as error:
        return Crafted(0, time.perf_counter() - started, why=error.what)
    seconds = time.perf_counter() - started
    queries = cast("Queries", np.concatenate(sampled.parts))
    manifest = Manifest(
        __version__, draw.seed, material.victim.spec, (), tuple(sampled.entries), (0, 0), labelled, STATISTIC, 0.05, ()
    )
    bundle = QueryBundle(manifest, queries, np.zeros(0, np.int64), {}, sampled.columns, sampled.graphs)
    answered(bundle, material.victim).save(path.with_suffix(".oab"), force=True)
    return _keep(path, Crafted(len(queries), seconds, tuple(notes.notes)))


def combine(crafting: Crafting, draws: Sequence[Draw], names: Sequence[str], seed: int) -> QueryBundle:
    """One seed's bundle of the schemes of these names with control queries, as craft makes it, still without references."""
    material, labelled = _material(crafting)
    parts, entries = [], []
    columns: dict[str, NDArray[Any]] = {}
    graphs: dict[str, bytes] = {}
    begin = 0
    for draw in draws:
        path = crafting.folder / f"{draw.name}.oab"
        if draw.seed != seed or not path.is_file():
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
        crafting.options.alpha,
        (),
        material.data.sha256 if material.data else None,
    )
    queries = cast("Queries", np.concatenate(parts))
    return answered(QueryBundle(manifest, queries, labels, {}, columns, graphs), material.victim)


def named(draw: Draw, digest: str) -> str:
    said = [[s.name, s.sampler, s.representation, s.detector, s.sampling, s.representing, s.detecting] for s in draw.schemes]
    key = hashlib.sha256(canonical([digest, said, draw.queries, draw.seed]).encode()).hexdigest()
    return f"{draw.schemes[0].sampler}-{draw.queries}-seed{draw.seed}-{key[:12]}"


# ---------------------------------------------------------------------------------------------------------------- in a worker

_MATERIAL: dict[str, tuple[Material, bool]] = {}


def _material(crafting: Crafting) -> tuple[Material, bool]:
    """What samplers work from, opened once a process, and whether the data has labels."""
    options = crafting.options
    key = canonical([str(options.victim), options.model, str(options.data), crafting.input, digests_of_files(crafting)])
    if key not in _MATERIAL:
        whole = load_data(options.data) if options.data else None
        victim = open_victim(
            options.victim, crafting.input, device=options.device, model=options.model, allow_pickle=options.allow_pickle
        ).probed()
        _, data = divided(options, whole)
        surrogates, training = (_peers(files, victim, options) for files in (crafting.surrogates, crafting.training))
        _MATERIAL.clear()
        pairs = [(one, two) for one, two in (_peers(files, victim, options) for files in crafting.pairs)]
        _MATERIAL[key] = Material(victim, data, surrogates, training, pairs=pairs), data is not None and data.y is not None
    return _MATERIAL[key]


def _peers(files: Sequence[Path], victim: Victim, options: CraftOptions) -> list[Any]:
    return list(open_peers(files, victim.spec, victim.num_classes, options.device))


def digests_of_files(crafting: Crafting) -> list[str]:
    """What the models that help are, by content."""
    paired = [file for pair in crafting.pairs for file in pair]
    return [digest_of_file(file) for file in (*crafting.surrogates, *crafting.training, *paired)]


def digest_of_file(path: Path) -> str:
    """SHA-256 of what is in a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _kept(path: Path) -> Crafted | None:
    """What is known of a draw that was crafted before; None if that is not there, or damaged."""
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
