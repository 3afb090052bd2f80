"""A whole check, from a target to a report: also one that failed or was interrupted is a report."""

from __future__ import annotations

import dataclasses
import hashlib
import re
import time
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from onnxaudit import __version__
from onnxaudit.answers import Access, parse_access
from onnxaudit.audit.checking import UNKNOWN, CheckOptions, check
from onnxaudit.audit.judging.comparing import compare
from onnxaudit.audit.once import once
from onnxaudit.audit.progress import Progress
from onnxaudit.bundle import QueryBundle
from onnxaudit.decode import canonical
from onnxaudit.errors import OnnxauditError, OtherClasses, UsageError
from onnxaudit.evidence.calibration import p_floor
from onnxaudit.fetching import shown_url
from onnxaudit.registry import reduce_access
from onnxaudit.report.model import INCONCLUSIVE, Controls, Report
from onnxaudit.sandbox.opening import opened_suspect
from onnxaudit.suspect import Suspect, Target
from onnxaudit.transcript import discard

CREDENTIALS = re.compile("auth|cookie|key|token|secret|signature|date", re.IGNORECASE)
"""Headers that say who asks, not whom."""


def run_check(
    bundle: QueryBundle,
    source: str,
    access: str | None,
    options: CheckOptions,
    said: Mapping[str, Any],
    http: Mapping[str, Any],
    progress: Progress,
    started: float,
    *,
    debug: bool = False,
) -> Report:
    """Open, reduce to ``access``, check, close. Whatever fails, there is a report. Raises ArtefactError for a bundle from
    another version, before anything is asked.

    debug: give the traceback of a failure to ``progress``. said: what the user says of the suspect's input, by the fields of
    Target. http: options for the HTTP adapter.
    """
    level = parse_access(access) if access else None
    check_judgeable(bundle)
    options = dataclasses.replace(options, access=access)
    if "://" in source:
        digest = target_digest(bundle, source, http)
        evidence = options.evidence or Path(f"onnxaudit-{bundle.id[:8]}-{digest[:8]}.jsonl")
        width = http.get("concurrency") or 1
        if options.resume and options.evidence is None and not evidence.exists():
            _refuse_another(evidence, bundle)
        options = dataclasses.replace(options, target=digest, evidence=evidence, concurrency=width)
    if options.resume and options.evidence is not None and not options.evidence.exists():
        progress.note(f"{options.evidence} does not exist: there is nothing to go on with, all is asked")
    opened: Suspect | None = None
    classes = None if options.label_free else bundle.manifest.victim.num_classes
    private = {"label_space": UNKNOWN} if options.label_free and "://" not in source else {}
    target = Target(source, bundle.manifest.input, classes, options.device, options={**http, **private}, **said)
    again, limits = _fresh(source, options), None if "://" in source else options.sandbox  # else for references alone
    try:
        try:
            with opened_suspect(target, limits) as opened:
                return check(bundle, _reduced(opened, level), options, progress, time.perf_counter() - started)
        except OtherClasses as error:
            if not again:
                raise
            progress.note(f"{error.what}: it is compared without labels, as with --label-space {UNKNOWN}")
            if options.evidence:
                discard(options.evidence)  # it holds no answer: OtherClasses comes with the first
        options = dataclasses.replace(options, label_space=UNKNOWN)
        with opened_suspect(dataclasses.replace(target, num_classes=None), limits) as opened:
            return check(bundle, _reduced(opened, level), options, progress, time.perf_counter() - started)
    except (OnnxauditError, KeyboardInterrupt) as error:
        if debug:
            for line in traceback.format_exc().splitlines():
                progress.note(line)
        return failed(bundle, source, options, error, getattr(opened, "queries_sent", 0))


def check_judgeable(bundle: QueryBundle) -> None:
    """Raise ArtefactError for a bundle of a version that this one cannot judge: it must not cost queries. Seen once each."""
    once(_compared, bundle)


def _compared(bundle: QueryBundle) -> None:
    compare(bundle, [], bundle.answers["victim"])


def _refuse_another(evidence: Path, bundle: QueryBundle) -> None:
    """Raise UsageError where other transcripts of the bundle lie here: one of them may be meant, and all would be paid again."""
    if others := sorted(str(path) for path in Path().glob(f"onnxaudit-{bundle.id[:8]}-*.jsonl")):
        raise UsageError(
            f"--resume finds no transcript of a check with this URL, these headers and this dialect, but {', '.join(others[:3])}",
            "Give it with --evidence if it is meant; else leave --resume out.",
        )


def _fresh(source: str, options: CheckOptions) -> bool:
    """Whether a suspect whose first answer names other classes may be asked anew: nothing that was paid for is lost by it."""
    kept = options.evidence is not None and options.evidence.exists()
    return "://" not in source and not options.label_free and not options.resume and not kept


def _reduced(suspect: Suspect, level: tuple[Access, int] | None) -> Suspect:
    if level is None:
        return suspect
    return reduce_access(suspect, *level)


def target_digest(bundle: QueryBundle, source: str, http: Mapping[str, Any]) -> str:
    """Which suspect a URL and its headers mean, without telling what they say: slow to compute, and salted with the bundle.

    Credentials are left out: they may be renewed before a run is gone on with.
    """
    headers = sorted((n.lower(), v) for n, v in (http.get("headers") or {}).items() if not CREDENTIALS.search(n))
    template = [http["template"]] if http.get("template") else []  # its body may say which model is meant
    labels = [list(http["labels"])] if http.get("labels") else []  # another order of names is another suspect
    said = canonical([source, headers, http.get("dialect"), http.get("input_name"), http.get("output_name"), *template, *labels])
    return hashlib.scrypt(said.encode("utf-8", "surrogatepass"), salt=bundle.id.encode(), n=2**14, r=8, p=1, dklen=32).hex()


def failed(bundle: QueryBundle, source: str, options: CheckOptions, error: BaseException, sent: int) -> Report:
    """The report of a check that did not end: its status, its error, its exit code, and no finding but inconclusive."""
    references = len(bundle.manifest.of_role("reference"))
    interrupted = isinstance(error, KeyboardInterrupt)
    kept = f"; what was answered is kept in {options.evidence}, {options.wording.further}" if options.evidence else ""
    words = f"interrupted{kept}" if interrupted else str(error)
    kept = kept if sent and not interrupted and options.wording.further not in words else ""
    blank = Report(
        finding=INCONCLUSIVE,
        p_value=None,
        p_floor=p_floor(references),
        alpha=bundle.manifest.alpha if options.alpha is None else options.alpha,
        score=None,
        reasons=(words.rstrip(".") + kept if kept else words,),
        bundle={"id": bundle.id, "victim_sha256": bundle.manifest.victim.sha256, "references": references},
        suspect={"source": shown_url(source), "kind": "", "access": None, "sha256": None, "runtime": {}},
        controls=Controls(),
        schemes=(),
        queries={"sent": sent, "reused": 0, "failed": 0},
        seconds={},
        tool=__version__,
    )
    code = 130 if interrupted else error.exit_code if isinstance(error, OnnxauditError) else 1
    return dataclasses.replace(blank, status="interrupted" if interrupted else "failed", error=words, code=code)
