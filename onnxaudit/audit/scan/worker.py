"""What a worker of a scan does with one piece of work: tell files by their content, or check a suspect with some bundles."""

from __future__ import annotations

import atexit
import hashlib
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Mapping
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from onnxaudit.archives import MAX_ONNX, read_file, sha256_of
from onnxaudit.audit.checking import CheckOptions
from onnxaudit.audit.progress import Silent
from onnxaudit.audit.running import failed, run_check
from onnxaudit.bundle import QueryBundle
from onnxaudit.errors import ArtefactError, OnnxauditError, SuspectError
from onnxaudit.fetching import Cache, shown_url
from onnxaudit.registry import weights_beside
from onnxaudit.report.findings import BONFERRONI, Line, adjust, bonferroni, content_of, digest_of, dumped, line_of
from onnxaudit.report.model import Report
from onnxaudit.sandbox.limits import Limits


@dataclass(frozen=True, slots=True, eq=False)
class Briefing:
    """What every worker is told once. tests: of the whole scan. settings: a digest of how suspects are asked. said: of their
    input, by the fields of Target. scan: a name for the folder of what is fetched; cache: bytes of it. sandbox: limits of
    the process that a file's runtime is confined to, if it is. Nothing here is secret.
    """

    bundles: tuple[QueryBundle, ...]
    tests: int
    settings: str
    alpha: float
    access: str | None = None
    device: str = "cpu"
    said: Mapping[str, Any] = field(default_factory=dict)
    output_name: str | None = None
    scan: str = ""
    cache: int = 1 << 30
    sandbox: Limits | None = None


@dataclass(frozen=True, slots=True)
class Tell:
    """Tell these files by their content; the result is a digest, or None where one cannot be read, for each."""

    sources: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Ask:
    """Check one suspect with some of the bundles, by number; the result is an ``Asked``.

    content: as it was told; of a file to be fetched, as it was then: if it is that still, those in ``spared`` are not asked.
    """

    source: str
    bundles: tuple[int, ...]
    content: str | None = None
    spared: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Asked:
    """content: of what was asked. lines: a written line for each bundle that was asked, by number, and the line's own content."""

    content: str | None
    lines: tuple[tuple[int, str | None, bytes], ...]


Item: TypeAlias = Tell | Ask
TOLD_TOGETHER = 16
"""Files in one ``Tell``."""


def work(briefing: Briefing, item: Item) -> Any:
    """Do one piece of work. Raises nothing that one suspect alone is to blame for: that is a line of its own."""
    if isinstance(item, Tell):
        return [_told(source) for source in item.sources]
    content, spared, path = item.content, item.spared, item.source
    # a cache keeps what was fetched last, and no more for certain: of threads of one process, one fetches and checks at a time
    with _ONE_FETCHES if "://" in item.source else nullcontext():
        if "://" in item.source:
            try:
                path = str(_cache(briefing).fetch(item.source))
            except OnnxauditError as error:
                return Asked(None, tuple((b, None, _failed(briefing, b, item.source, error)) for b in item.bundles))
            content = _told(path)
            spared = spared if content == item.content else ()
        lines = tuple((b, *_checked(briefing, b, item.source, path, content)) for b in item.bundles if b not in spared)
    return Asked(content, lines)


def content_of_file(path: Path) -> str:
    """One digest of a file and of those that its weights lie in. Raises OSError, or ArtefactError for an unsafe model."""
    data = read_file(path, MAX_ONNX) if path.suffix.lower() == ".onnx" else None  # of others nothing more is read here
    own = sha256_of(path) if data is None else hashlib.sha256(data).hexdigest()
    others = {name: f"sha256:{digest}" for name, digest in weights_beside(data or b"", path).items()}
    return digest_of(own, others) or ""


def _told(source: str) -> str | None:
    try:
        return content_of_file(Path(source))
    except (OSError, ArtefactError):
        return None  # asking will say what is wrong


def _checked(briefing: Briefing, number: int, source: str, path: str, content: str | None) -> tuple[str | None, bytes]:
    options = CheckOptions(briefing.alpha, device=briefing.device, sandbox=briefing.sandbox)
    report = checked(briefing, number, path, options, {"threads": 1})
    line = written(report, source, briefing.settings, briefing.tests, content)
    return line["scan"]["content"], dumped(line)


def checked(briefing: Briefing, number: int, target: str, options: CheckOptions, extra: Mapping[str, Any]) -> Report:
    """The report of one check, whatever comes. extra: options for the adapter."""
    bundle = briefing.bundles[number]
    extra = {**extra, "output_name": briefing.output_name, "class_names": bundle.manifest.class_names}
    try:
        return run_check(bundle, target, briefing.access, options, briefing.said, extra, Silent(), time.perf_counter())
    except Exception as error:  # a bug, here or in an adapter: it costs this suspect, not the scan
        said = type(error).__name__ if "://" in target else f"{type(error).__name__}: {error}"  # a URL in it may hold a key
        return failed(bundle, target, options, SuspectError(f"bug: {said}", "Please report it."), 0)


def written(report: Report, source: str, settings: str, tests: int, content: str | None = None) -> Line:
    """A report as it is written while other suspects are still to be asked: its finding holds whatever they show.

    content: as it was told before; a report that says what was opened counts more.
    """
    line = line_of(report, shown_url(source), content_of(report.suspect) or content, settings)
    return adjust(line, bonferroni(report.p_value, tests), tests, BONFERRONI)


def _failed(briefing: Briefing, number: int, source: str, error: OnnxauditError) -> bytes:
    report = failed(briefing.bundles[number], source, CheckOptions(briefing.alpha), error, 0)
    return dumped(written(report, source, briefing.settings, briefing.tests))


def cache_folder(scan: str) -> Path:
    """Where the workers of one scan on one machine keep what they fetched."""
    return Path(tempfile.gettempdir()) / f"onnxaudit-{scan}"


_CACHES: dict[str, Cache] = {}
"""One at most: of the scan that this process fetched for last."""
_ONE_FETCHES = threading.Lock()


def _cache(briefing: Briefing) -> Cache:
    """This worker's own. Its folder goes when the worker fetches for another scan, for it may live on for many, or ends in peace;
    those of a local scan when the scan ends.
    """
    if briefing.scan not in _CACHES:
        _drop_caches()
        _CACHES[briefing.scan] = Cache(cache_folder(briefing.scan) / str(os.getpid()), briefing.cache)
    return _CACHES[briefing.scan]


@atexit.register
def _drop_caches() -> None:
    for scan in list(_CACHES):
        shutil.rmtree(cache_folder(scan) / str(os.getpid()), ignore_errors=True)
        with suppress(OSError):  # other workers here may still have theirs
            cache_folder(scan).rmdir()
        del _CACHES[scan]
