"""Crafting again from what a bundle's manifest says, to see that its queries come from the stated method (torch)."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxaudit import __version__
from onnxaudit.answers import Answers
from onnxaudit.audit.answering import answered
from onnxaudit.audit.crafting import CraftOptions, victim_of
from onnxaudit.audit.pools import peers_of
from onnxaudit.audit.progress import Progress
from onnxaudit.audit.sampling import Sampled, rng_of, sample_all
from onnxaudit.bundle import Manifest, ModelEntry, QueryBundle, SchemeEntry
from onnxaudit.craft.data import Data, load_data
from onnxaudit.craft.pools.references import split
from onnxaudit.craft.sample import Material, Peer
from onnxaudit.craft.samplers.natural import draw_controls
from onnxaudit.craft.victim import Victim
from onnxaudit.decode import canonical
from onnxaudit.errors import ArtefactError, UsageError
from onnxaudit.schemes.catalogue import Scheme
from onnxaudit.schemes.compositions import schemes
from onnxaudit.schemes.samplers import Need

TRAINED = "trained by craft"
"""How the origin of a model begins that craft trained, on a part of the data that no query then comes from."""
FURTHEST = 1000
"""Times as many queries as there are may have been asked for: a bundle must not have its reader make any number of them."""
ELSEWHERE = "Another processor, or another version of PyTorch, may round otherwise; see docs/bundle.md, Determinism."


@dataclass(frozen=True, slots=True)
class Ingredients:
    """What craft was given; the names are those of its command line."""

    victim: Path
    data: Path | None = None
    references: Path | None = None
    surrogates: Path | None = None
    siblings: Path | None = None
    model: str | None = None
    allow_pickle: bool = False
    device: str = "auto"


def verify_reproduced(bundle: QueryBundle, given: Ingredients, where: str, progress: Progress) -> Iterator[str]:
    """What holds of a bundle that is crafted again from the same victim and data, tensor by tensor.

    Raises ArtefactError that names the first tensor that comes out otherwise, UsageError for what has to be given.
    """
    manifest = bundle.manifest
    data = load_data(given.data) if given.data else None
    if (data.sha256 if data else None) != manifest.data_sha256:
        said = f"made with data of digest {(manifest.data_sha256 or 'none')[:16]}"
        if data is None:
            raise UsageError(f"{where} was {said}", "Give them with --data.")
        raise ArtefactError(f"{where} was {said}, {given.data} has {data.sha256[:16]}", "These are other data.")
    chosen = _schemes(manifest)
    options = _options(manifest, given, chosen)
    victim, _ = victim_of(options, data)
    if victim.sha256 != manifest.victim.sha256 or victim.spec != manifest.input:
        raise ArtefactError(
            f"{given.victim} is not the victim of {where}, or is asked otherwise", "Give the file it was made from."
        )
    yield f"victim and data are those it was made from, by onnxaudit {manifest.tool}; this is {__version__}"
    if any(model.origin.startswith(TRAINED) for model in manifest.models):
        if data is None:
            raise ArtefactError(f"{where} says that models were trained, and of no data")
        _, data = split(data)
    material, differs = _material(manifest, given, chosen, victim, data), None
    for margin in (None, *_margins(manifest, chosen)):
        sampled = sample_all(chosen, material, dataclasses.replace(options, margin=margin), progress)
        try:
            found = list(_same(bundle, _assembled(manifest, sampled, victim, data), where))
        except ArtefactError as error:
            differs = differs or error
        else:
            yield from found
            return
    assert differs is not None
    raise differs


def _margins(manifest: Manifest, chosen: Sequence[Scheme]) -> set[float]:
    """What ``--margin`` may have been: the manifest has the margin that was used, also where the sampler found it by itself."""
    pairs = zip(manifest.schemes, chosen, strict=True)
    return {
        entry.sampling["k"]
        for entry, scheme in pairs
        if entry.sampler == "boundary" and "k" in entry.sampling and "k" not in scheme.sampling
    }


def _schemes(manifest: Manifest) -> list[Scheme]:
    """The schemes as craft had them: what a user wrote is their name."""
    chosen = []
    for entry in manifest.schemes:
        (scheme,) = schemes(entry.name)
        if (scheme.sampler, scheme.representation, scheme.detector) != (entry.sampler, entry.representation, entry.detector):
            raise ArtefactError(f"{entry.name} is made of other parts here than in the bundle", "Another version made it.")
        chosen.append(scheme)
    return chosen


def _options(manifest: Manifest, given: Ingredients, chosen: Sequence[Scheme]) -> CraftOptions:
    """The options of the command that crafted the bundle, as far as queries depend on them."""
    most = max(entry.rows[1] - entry.rows[0] for entry in manifest.schemes)
    if manifest.asked is not None and not most <= manifest.asked <= FURTHEST * most:
        raise ArtefactError(
            f"the bundle has at most {most} queries of a scheme and says that craft was told to make {manifest.asked}",
            "No sampler finds more than that, or so few of so many.",
        )
    options = CraftOptions(
        victim=given.victim,
        data=given.data,
        schemes=tuple(scheme.name for scheme in chosen),
        queries=manifest.asked or most,
        seed=manifest.seed,
        device=given.device,
        model=given.model,
        allow_pickle=given.allow_pickle,
    )
    return options.told(manifest.input)


def _material(manifest: Manifest, given: Ingredients, chosen: Sequence[Scheme], victim: Victim, data: Data | None) -> Material:
    """What samplers work from: models that helped, in the order that the manifest has them."""
    needs = Need.NOTHING
    for scheme in chosen:
        needs |= scheme.needs
    helping, derived = manifest.of_role("training"), manifest.of_role("surrogate")
    paired = sum(model.origin.startswith(TRAINED) and ", of " in model.origin for model in helping)
    extracted, others = derived[len(derived) - paired :], helping[len(helping) - paired :]
    derived, helping = derived[: len(derived) - paired], helping[: len(helping) - paired]

    def peers(models: Sequence[ModelEntry], folder: Path | None, option: str, kind: Need) -> list[Peer]:
        return _peers(models, folder, option, victim, given.device) if kind in needs and models else []

    more: dict[str, Any] = {}
    if paired:
        one = peers(extracted, given.surrogates, "--surrogates", Need.SURROGATES)
        two = peers(others, given.surrogates, "--surrogates", Need.SURROGATES)
        more["pairs"] = list(zip(one, two, strict=True))
    return Material(
        victim,
        data,
        peers(derived, given.surrogates, "--surrogates", Need.SURROGATES),
        peers(helping, given.references, "--references", Need.REFERENCES),
        peers(manifest.of_role("sibling"), given.siblings, "--siblings", Need.SIBLINGS),
        **more,
    )


def _peers(models: Sequence[ModelEntry], folder: Path | None, option: str, victim: Victim, device: str) -> list[Peer]:
    """The models that helped, found in a folder, or in one below, by their digests."""
    if folder is None:
        raise UsageError(f"{len(models)} models helped to make these queries, as {models[0].role}", f"Give {option} DIR.")
    if not folder.is_dir():
        raise UsageError(f"{folder} is not a folder", f"See {option}.")
    kinds = {".onnx", ".pt", ".pth", ".ts", ".pt2", ".ort"}
    found = [path for path in sorted(folder.rglob("*")) if path.suffix.lower() in kinds and path.is_file()]
    files = {hashlib.sha256(path.read_bytes()).hexdigest(): path for path in found}
    missing = [model.source for model in models if model.sha256 not in files]
    if missing:
        raise UsageError(f"{folder} lacks {len(missing)} of the models that helped: {', '.join(missing[:3])}", f"See {option}.")
    return list(peers_of([(files[model.sha256 or ""], "") for model in models], victim, device))


def _assembled(manifest: Manifest, sampled: Sampled, victim: Victim, data: Data | None) -> QueryBundle:
    """What was crafted again, as a bundle without references."""
    parts, labels = list(sampled.parts), np.zeros(0, np.int64)
    count = manifest.controls[1] - manifest.controls[0]
    if data is not None:
        controls, labels = draw_controls(victim, data, count, rng_of(manifest.seed, "controls"))
        parts.append(controls)
    begin = sum(map(len, sampled.parts))
    again = dataclasses.replace(manifest, schemes=tuple(sampled.entries), controls=(begin, begin + len(labels)), models=())
    queries: Any = np.concatenate(parts)
    return answered(QueryBundle(again, queries, labels, {}, sampled.columns, sampled.graphs), victim)


def _same(bundle: QueryBundle, again: QueryBundle, where: str) -> Iterator[str]:
    """Says of each part that it is the same; raises ArtefactError for the first that is not."""
    for entry, other in zip(bundle.manifest.schemes, again.manifest.schemes, strict=True):
        _same_scheme(bundle, again, entry, other, where)
        yield f"{entry.name}: {entry.rows[1] - entry.rows[0]} queries come out the same, byte by byte"
    span = slice(*bundle.manifest.controls)
    _equal(bundle.queries[span], again.queries[span], "the control queries", where)
    _equal(bundle.control_labels, again.control_labels, "the labels of the control queries", where)
    yield f"controls: {len(bundle.control_labels)} come out the same"
    if set(bundle.columns) != set(again.columns) or dict(bundle.graphs) != dict(again.graphs):
        raise ArtefactError(f"{where}: what is known of the queries, or was learned from them, comes out otherwise", ELSEWHERE)
    for name, column in bundle.columns.items():
        _equal(column, again.columns[name], name, where)
    _equal(_said(bundle.answers["victim"]), _said(again.answers["victim"]), "the victim's answers", where)
    for name, seen in _of_victim(bundle).items():
        _equal(seen, again.insights[name], f"what the victim shows, {name}", where)
    yield "the victim's answers come out the same, to the last bit"
    if others := sum(model.role not in ("victim", "export") for model in bundle.manifest.models):
        yield f"not asked again: {others} other models, whose answers the bundle has; check --references asks a judge's own"


def _same_scheme(bundle: QueryBundle, again: QueryBundle, entry: SchemeEntry, other: SchemeEntry, where: str) -> None:
    if entry.rows != other.rows:
        count, found = (rows[1] - rows[0] for rows in (entry.rows, other.rows))
        raise ArtefactError(
            f"{where}: {entry.name} has {count} queries in rows {entry.rows[0]} to {entry.rows[1]}, again {found} come out",
            ELSEWHERE,
        )
    rows = slice(*entry.rows)
    _equal(bundle.queries[rows], again.queries[rows], f"the queries of {entry.name}", where)
    if canonical(entry) != canonical(other):
        what = "notes" if canonical(dataclasses.replace(entry, notes=other.notes)) == canonical(other) else "parameters"
        raise ArtefactError(f"{where}: the {what} of {entry.name} come out otherwise", ELSEWHERE)


def _equal(one: NDArray[Any], two: NDArray[Any], what: str, where: str) -> None:
    if one.dtype == two.dtype and one.shape == two.shape and one.tobytes() == two.tobytes():
        return
    said = f"{one.shape} became {two.shape}"
    if one.shape == two.shape:
        rows = np.flatnonzero((one != two).reshape(len(one), -1).any(axis=1))
        said = f"{len(rows)} of {len(one)} differ, first number {rows[0]}" if len(rows) else "their type differs"
    raise ArtefactError(f"{where}: {what} come out otherwise: {said}", ELSEWHERE)


def _said(answers: Answers) -> NDArray[Any]:
    return answers.labels if answers.scores is None else answers.dense()


def _of_victim(bundle: QueryBundle) -> Mapping[str, NDArray[Any]]:
    return {name: seen for name, seen in bundle.insights.items() if name.startswith("insights/victim/")}
