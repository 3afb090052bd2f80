"""From schemes to queries: every sampler runs once, learned detectors are fitted, and the result is frozen."""

from __future__ import annotations

import pkgutil
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from onnxaudit.answers import Access, Answers
from onnxaudit.audit.progress import Progress
from onnxaudit.bundle import MAX_GRAPH, SchemeEntry
from onnxaudit.craft.sample import Material, Peer, Sample, Sampler
from onnxaudit.craft.threads import one_thread_a_sum
from onnxaudit.decode import canonical
from onnxaudit.errors import UsageError
from onnxaudit.registry import open_graph
from onnxaudit.schemes.catalogue import Scheme
from onnxaudit.schemes.detectors import DETECTORS
from onnxaudit.schemes.representations import REPRESENTATIONS
from onnxaudit.schemes.samplers import SAMPLERS, Need
from onnxaudit.suspect import Queries

if TYPE_CHECKING:
    from onnxaudit.audit.crafting import CraftOptions
    from onnxaudit.craft.learning.fitting import Frozen


@dataclass(slots=True, eq=False)
class Sampled:
    """What sampling gave. parts: queries, one array a sampler; entries: one a scheme; columns and graphs: as in a bundle."""

    parts: list[Queries] = field(default_factory=list)
    entries: list[SchemeEntry] = field(default_factory=list)
    columns: dict[str, NDArray[Any]] = field(default_factory=dict)
    graphs: dict[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, eq=False)
class _Drawn:
    """One sampler's queries: their rows in the bundle, and the victim's answers to them."""

    sample: Sample
    rows: tuple[int, int]
    answers: Answers


@one_thread_a_sum()
def sample_all(chosen: Sequence[Scheme], material: Material, options: CraftOptions, progress: Progress) -> Sampled:
    """Every scheme's queries; schemes with the same sampler and parameters share them.

    A scheme of ``auto``, or an optional one, that cannot be crafted is left out with a note; any other raises UsageError.
    """
    result = Sampled()
    done: dict[str, _Drawn] = {}
    left_out: UsageError | None = None
    for scheme in chosen:
        sampling = _sampling(scheme, options)
        key = canonical([scheme.sampler, sampling])
        try:
            if key not in done:
                sample = _sample(scheme, sampling, material, options, key, progress)
                begin = sum(map(len, result.parts))
                answers = Answers.from_scores(material.victim.answer(sample.queries))
                done[key] = _Drawn(sample, (begin, begin + len(sample.queries)), answers)
                result.parts.append(sample.queries)
                for note in sample.notes:
                    progress.note(f"{scheme.name}: {note}")
            _add(result, scheme, sampling, done[key], material, options, progress)
        except UsageError as error:
            if "auto" not in options.schemes and not options.optional:
                raise UsageError(f"{scheme.name}: {error.what}", error.hint) from None
            progress.note(f"{scheme.name} left out: {error.what}")
            left_out = error
    if left_out is not None and not result.entries:
        raise left_out
    return result


def rng_of(seed: int, name: str) -> np.random.Generator:
    """A generator of its own for each part, so that adding a scheme leaves the others' queries as they were."""
    return np.random.default_rng([seed, zlib.crc32(name.encode())])


def _sampling(scheme: Scheme, options: CraftOptions) -> dict[str, Any]:
    """A sampler's parameters, those of the command line included."""
    if scheme.sampler == "boundary" and options.margin is not None and "k" in scheme.sampling:
        raise UsageError(f"{scheme.name} says its k, and so does --margin", "Leave one of them out.")
    if scheme.sampler == "boundary" and options.margin is not None:
        return {**scheme.sampling, "k": options.margin}
    return dict(scheme.sampling)


def _sample(
    scheme: Scheme, sampling: Mapping[str, Any], material: Material, options: CraftOptions, key: str, progress: Progress
) -> Sample:
    needs = scheme.needs
    if Need.DATA in needs and material.data is None:
        raise UsageError("this scheme needs data", "Give --data, or take ipguard-rl.")
    sampler = cast("Sampler", pkgutil.resolve_name(SAMPLERS[scheme.sampler].source))
    report = progress.task(f"crafting {scheme.name}", options.queries)
    return sampler(material, options.queries, rng_of(options.seed, key), report, **sampling)


def _add(
    result: Sampled,
    scheme: Scheme,
    sampling: Mapping[str, Any],
    drawn: _Drawn,
    material: Material,
    options: CraftOptions,
    progress: Progress,
) -> None:
    sample = drawn.sample
    _try(scheme, drawn)
    settled = {**sampling, **sample.parameters, "seed": options.seed}
    detecting, notes = dict(scheme.detecting), sample.notes
    if DETECTORS[scheme.detector].trainer:
        frozen = _fit(scheme, drawn, material, options)
        detecting = dict(frozen.parameters)
        notes += frozen.notes
        for note in frozen.notes:
            progress.note(f"{scheme.name}: {note}")
        if frozen.graph is not None:
            if len(frozen.graph) > MAX_GRAPH:
                raise UsageError(f"what it learned takes {len(frozen.graph)} bytes, more than {MAX_GRAPH}", "Lower --queries.")
            open_graph(frozen.graph)  # what check would refuse must not be saved
            result.graphs[scheme.name] = frozen.graph
    entry = SchemeEntry(
        scheme.name,
        scheme.sampler,
        scheme.representation,
        scheme.detector,
        drawn.rows,
        settled,
        scheme.representing,
        detecting,
        tuple(sorted(sample.columns)),
        notes,
    )
    result.entries.append(entry)
    result.columns |= {entry.column(name): np.ascontiguousarray(column) for name, column in sample.columns.items()}


def _try(scheme: Scheme, drawn: _Drawn) -> None:
    """Raise UsageError for a value that a representation or detector does not take, before a bundle is made with it."""
    part, detector = REPRESENTATIONS[scheme.representation], DETECTORS[scheme.detector]
    if part.inside:
        return
    try:
        for access in Access:  # what only labels go through must not fail when a check has been paid for
            own = part.function(drawn.answers.degrade(access, 2), drawn.sample.columns, **scheme.representing)
            if not detector.trainer:
                detector.function(own, own, **scheme.detecting)
    except (ValueError, TypeError) as error:
        raise UsageError(str(error), "See the scheme's page in docs/schemes.") from None


def _fit(scheme: Scheme, drawn: _Drawn, material: Material, options: CraftOptions) -> Frozen:
    """A learned detector, from what the victim, surrogates and references that never calibrate say to the queries."""
    represent = REPRESENTATIONS[scheme.representation].function

    def represented(answers: Answers) -> NDArray[np.float64]:
        return represent(answers.degrade(Access.PROBS), drawn.sample.columns, **scheme.representing)

    def all_of(peers: Sequence[Peer]) -> NDArray[np.float64]:
        shown = [represented(Answers.from_scores(peer.answer(drawn.sample.queries))) for peer in peers]
        return np.stack(shown) if shown else np.zeros((0, 0))

    trainer = cast("Callable[..., Frozen]", pkgutil.resolve_name(DETECTORS[scheme.detector].trainer))
    rng = rng_of(options.seed, scheme.name)
    return trainer(represented(drawn.answers), all_of(material.surrogates), all_of(material.references), rng, **scheme.detecting)
