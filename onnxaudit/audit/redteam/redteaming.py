"""redteam(): how an audit of this victim stands up to an accuser who cheats, and to a party who hides (torch)."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onnxaudit import __version__
from onnxaudit.alone import alone
from onnxaudit.audit.calibrating import model_files
from onnxaudit.audit.crafting import CraftOptions, craft, victim_of
from onnxaudit.audit.progress import Progress
from onnxaudit.audit.redteam.accusing import ATTACKS, Claim, Court, accuse, divided
from onnxaudit.audit.redteam.hiding import PLAIN, Hidden, hide
from onnxaudit.bundle import QueryBundle, load
from onnxaudit.craft.data import load_data
from onnxaudit.decode import canonical, decode, parse
from onnxaudit.errors import UsageError
from onnxaudit.regular import write_in_one_step
from onnxaudit.zoo.making import file_digest

VERSION = 1
"""Part of every key: raised when the same attack comes to make other claims."""
QUICK_INNOCENTS = 6
QUICK_QUERIES = 30


@dataclass(frozen=True, slots=True)
class RedteamOptions:
    """What the user asked for. crafting: victim, data, seed and all that says how they are opened; its references are the pool.

    bundle: judged against those who hide; None: crafted with the defaults. innocents: models known to be independent that no
    reference is; None: each reference in turn. output: folder for results, and for what is trained.
    """

    crafting: CraftOptions
    bundle: Path | None = None
    innocents: Path | None = None
    output: Path = Path("redteam")
    quick: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Redteam:
    """What came of it. facts: of the run, as JSON values."""

    facts: dict[str, Any]
    claims: tuple[Claim, ...]
    hidden: tuple[Hidden, ...]


def redteam(options: RedteamOptions, progress: Progress) -> Redteam:
    """Accuse every innocent in every way, and hide derived models in every way; nothing but ``output`` is written.

    Deterministic by the seed; what an earlier run completed, of the same files and options, is not done again. Raises UsageError
    for data without labels, or references that cannot be divided.
    """
    asked = options.crafting
    if asked.references is None or asked.data is None:
        raise UsageError("a red team needs --data and --references")
    data = load_data(asked.data)
    if data.y is None:
        raise UsageError("a red team needs labelled data", "Give y with the data.")
    references = model_files(asked.references)
    innocents = model_files(options.innocents) if options.innocents else references
    if options.quick:
        asked = dataclasses.replace(asked, queries=min(asked.queries, QUICK_QUERIES))
        innocents = innocents[:QUICK_INNOCENTS]
    if clash := {file.name for file in innocents} & {file.name for file in references} if options.innocents else set():
        raise UsageError(f"{min(clash)} is among the innocents and among the references", "Give other models, or no --innocents.")
    given = None if options.bundle is None else _finding(load(options.bundle))
    options.output.mkdir(parents=True, exist_ok=True)
    with alone(options.output / ".lock"):
        victim, notes = victim_of(asked, data)
        for note in notes:
            progress.note(note)
        settled = asked.told(victim.spec)
        bare = dataclasses.replace(settled, references=None)
        folder = options.output / "data"
        folder.mkdir(exist_ok=True)
        court = Court(bare, victim, data, references, divided(references, asked.seed), folder)
        claims = tuple(_claims(court, innocents, asked.queries, options.output / "claims", progress))
        bundle = given or _finding(craft(settled, progress))  # what those who hide are checked with
        hidden = tuple(
            hide(
                bundle,
                victim,
                data,
                options.output / "models",
                progress,
                seed=asked.seed,
                jobs=asked.jobs,
                device=asked.device,
                quick=options.quick,
            )
        )
    digests = {"victim_sha256": victim.sha256, "data_sha256": data.sha256}
    facts = {**digests, "queries": asked.queries, **_facts(options, bundle, references, innocents)}
    return Redteam(facts, claims, hidden)


def _claims(court: Court, innocents: Sequence[Path], queries: int, folder: Path, progress: Progress) -> list[Claim]:
    """Every claim, in the order of the innocents; those that an earlier run completed are read, not made again."""
    folder.mkdir(exist_ok=True)
    pool = [court.victim.sha256, repr(court.victim.spec), court.data.sha256, *map(file_digest, court.references)]
    asked = [VERSION, *pool, sorted(court.theirs), queries, court.options.seed, court.options.alpha]
    files: dict[Path, Path] = {}
    known: dict[Path, tuple[Claim, ...]] = {}
    for innocent in innocents:
        key = hashlib.sha256(canonical([*asked, innocent.name, file_digest(innocent)]).encode()).hexdigest()[:12]
        files[innocent] = folder / f"{innocent.stem}-{key}.json"
        if files[innocent].is_file():
            value = parse(files[innocent].read_text(encoding="utf-8"), files[innocent].name)
            known[innocent] = tuple(decode(Claim, claim, files[innocent].name) for claim in value)
    missing = [innocent for innocent in innocents if innocent not in known]
    for innocent, claims in accuse(court, missing, queries, progress) if missing else ():
        write_in_one_step(files[innocent], canonical([dataclasses.asdict(claim) for claim in claims]).encode())
        known[innocent] = tuple(claims)
    return [claim for innocent in innocents for claim in known[innocent]]


def _finding(bundle: QueryBundle) -> QueryBundle:
    """The bundle, which has what it takes to find something; raises UsageError where it does not."""
    if not bundle.manifest.of_role("reference"):
        raise UsageError("the bundle has no references, so it finds nothing", "Leave --bundle out, or calibrate it first.")
    return bundle


def _facts(options: RedteamOptions, bundle: QueryBundle, references: Sequence[Path], innocents: Sequence[Path]) -> dict[str, Any]:
    return {
        "tool": __version__,
        "seed": options.crafting.seed,
        "alpha": options.crafting.alpha,
        "references": len(references),
        "judges_references": len(references) // 2,
        "innocents": [file.name for file in innocents],
        "held_out": options.innocents is not None,
        "attacks": list(ATTACKS),
        "bundle": {
            "schemes": [entry.name for entry in bundle.manifest.schemes],
            "queries": len(bundle.queries),
            "references": len(bundle.manifest.of_role("reference")),
            "alpha": bundle.manifest.alpha,
        },
        "plain": PLAIN,
        "quick": options.quick,
    }
