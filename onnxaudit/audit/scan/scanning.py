"""scan(): thousands of suspects against several bundles, on an engine; resumable, and corrected for how many tests there are."""

from __future__ import annotations

import hashlib
import itertools
import shutil
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from onnxaudit import __version__
from onnxaudit.alone import alone
from onnxaudit.answers import parse_access
from onnxaudit.audit.checking import CheckOptions
from onnxaudit.audit.progress import Progress
from onnxaudit.audit.running import check_judgeable, failed, target_digest
from onnxaudit.audit.scan.lanes import Lanes, by_host
from onnxaudit.audit.scan.record import Record
from onnxaudit.audit.scan.worker import TOLD_TOGETHER, Ask, Asked, Briefing, Tell, cache_folder, checked, work, written
from onnxaudit.bundle import QueryBundle
from onnxaudit.decode import canonical
from onnxaudit.endpoints import BATCH, REPEATS
from onnxaudit.engines import Engine, Lost, check_engine, open_engine
from onnxaudit.errors import SuspectError, UsageError
from onnxaudit.fetching import shown_url
from onnxaudit.registry import is_endpoint
from onnxaudit.report.findings import Findings, dumped, references_needed
from onnxaudit.report.scanned import Summary
from onnxaudit.sandbox.limits import Limits
from onnxaudit.transcript import Wording

WORDING = Wording(
    "move it away to have all of it asked, and paid for, again",
    "Choose another place with -o.",
    "the same command goes on from there",
)
"""A scan has no option for its transcripts, and goes on with them by itself."""


@dataclass(frozen=True, slots=True, eq=False)
class ScanOptions:
    """How a scan is to be done. alpha None: the bundles'. said: of the suspects' input, by the fields of Target. http: options
    for endpoints; they never leave this process. cache: bytes that each worker may keep of what it fetched. sandbox: limits
    of the process that each file's runtime is confined to; None: it runs in the worker.
    """

    access: str | None = None
    alpha: float | None = None
    device: str = "cpu"
    said: Mapping[str, Any] = field(default_factory=dict)
    http: Mapping[str, Any] = field(default_factory=dict, repr=False)
    output_name: str | None = None
    engine: str = "local"
    jobs: int | None = None
    address: str | None = None
    cache: int = 1 << 30
    sandbox: Limits | None = None


def scan(
    sources: Sequence[str], bundles: Sequence[QueryBundle], output: Path, options: ScanOptions, progress: Progress
) -> Summary:
    """Check every source (a path, a URL of a file, or an endpoint) with every bundle; a line each in ``output``.

    Lines that ``output`` has already are not asked for again. Raises UsageError for what cannot be begun, and
    KeyboardInterrupt: what was written stays, and the same call goes on from there.
    """
    started = time.perf_counter()
    alpha = _common_alpha(bundles, options.alpha)
    check_engine(options.engine, options.jobs, options.address)
    if options.access:
        parse_access(options.access)
    for bundle in bundles:
        check_judgeable(bundle)
    said = {name: value for name, value in options.said.items() if value is not None}
    how = [__version__, options.access, alpha, said, options.output_name]
    settings = hashlib.sha256(canonical(how).encode("utf-8", "surrogatepass")).hexdigest()[:16]
    with alone(output.with_name(output.name + ".lock")), Findings(output) as findings:
        record = Record(findings, list(dict.fromkeys(sources)), bundles, settings, alpha)
        record.begin()
        _say_what_is_needed(record, alpha, progress)
        briefing = Briefing(
            tuple(bundles),
            record.tests,
            settings,
            alpha,
            options.access,
            options.device,
            said,
            options.output_name,
            uuid.uuid4().hex[:12],
            options.cache,
            options.sandbox,
        )
        try:
            _ask_all(record, briefing, output, options, progress)
        except KeyboardInterrupt:
            progress.note(f"{record.done} of {record.total} lines are in {output}; the same command goes on from there")
            raise
        about = tuple({"id": name, "references": count} for name, count in record.references.items())
        summary = record.finish(Summary(len(record.sources), about, alpha, str(output)))
    summary.seconds = time.perf_counter() - started
    return summary


def _common_alpha(bundles: Sequence[QueryBundle], alpha: float | None) -> float:
    if len({bundle.id for bundle in bundles}) < len(bundles):
        raise UsageError("a bundle is given twice", "Every test counts; give it once.")
    alphas = {bundle.manifest.alpha for bundle in bundles} if alpha is None else {alpha}
    if len(alphas) > 1:
        said = ", ".join(f"{level:g}" for level in sorted(alphas))
        raise UsageError(f"the bundles were made for different alphas: {said}", "Give --alpha.")
    return alphas.pop()


def _say_what_is_needed(record: Record, alpha: float, progress: Progress) -> None:
    needed, fewest = references_needed(record.expected, alpha), min(record.references.values())
    if fewest < needed and record.expected > 1:
        progress.note(
            f"{record.expected} tests: with alpha {alpha:g} even the closest suspect can be called derived only with {needed} "
            f"references or more; a bundle here has {fewest}"
        )


def _ask_all(record: Record, briefing: Briefing, output: Path, options: ScanOptions, progress: Progress) -> None:
    """Ask what is not known, files on the engine and endpoints from here, and write each line as it comes."""
    endpoints = [(i, source) for i, source in enumerate(record.sources) if is_endpoint(source)]
    away = {i for i, _ in endpoints}
    files = [i for i in range(len(record.sources)) if i not in away]
    shown = progress.task("asking suspects", record.total)
    ask = partial(_ask_endpoint, record, briefing, output.with_name(output.name + ".transcripts"), options.http)
    rate = options.http.get("rate")
    pause = (options.http.get("batch") or BATCH) / rate if rate else 0.0  # what the last request before it may have cost

    def take_endpoints(lanes: Lanes, *, wait: bool) -> None:
        while (finished := lanes.take(wait=wait)) is not None:
            number, bundle, (content, line) = finished
            if line is None:
                record.reuse(number, bundle, content)
            else:
                record.write(number, bundle, content, line)
            shown(record.done)

    def between(lanes: Lanes) -> None:
        shown(record.done)
        take_endpoints(lanes, wait=False)

    start = partial(open_engine, options.engine, work, briefing, jobs=options.jobs, address=options.address)
    try:
        with start() if files else nullcontext() as engine:  # before an endpoint is asked, and perhaps paid
            lanes = Lanes(by_host(endpoints), len(record.bundles), ask, pause)
            if engine is not None:
                _Files(record, briefing, files).ask(engine, partial(between, lanes))
    finally:
        shutil.rmtree(cache_folder(briefing.scan), ignore_errors=True)
    take_endpoints(lanes, wait=True)


def _ask_endpoint(
    record: Record, briefing: Briefing, folder: Path, http: Mapping[str, Any], number: int, url: str, bundle: int
) -> tuple[str, bytes | None]:
    """What identifies an endpoint to a bundle, and its line; None where that is known. Every answer is kept in ``folder``."""
    against = briefing.bundles[bundle]
    digest = target_digest(against, url, http)
    content = f"url:{digest}"
    if record.knows(content, bundle):
        return content, None
    folder.mkdir(exist_ok=True)
    asked = canonical([briefing.access, dict(briefing.said), briefing.output_name])
    how = hashlib.sha256(asked.encode("utf-8", "surrogatepass")).hexdigest()
    evidence = folder / f"{against.id[:8]}-{digest[:16]}-{how[:8]}.jsonl"
    options = CheckOptions(
        briefing.alpha, evidence=evidence, resume=evidence.exists(), repeat=REPEATS, device=briefing.device, wording=WORDING
    )
    report = checked(briefing, bundle, url, options, http)
    return content, dumped(written(report, url, briefing.settings, briefing.tests, content))


class _Files:
    """The way of files through an engine: told by their content first, then asked, if no line of that content is known."""

    def __init__(self, record: Record, briefing: Briefing, numbers: Sequence[int]) -> None:
        self._record = record
        self._briefing = briefing
        self._coming = deque(numbers)
        self._ready: deque[tuple[Ask, int]] = deque()
        self._asked: dict[str, list[int]] = {}

    def ask(self, engine: Engine, between: Callable[[], None]) -> None:
        """Until there is a line for each; ``between``: called as results come in."""
        flying: dict[int, tuple[Tell | Ask, tuple[int, ...]]] = {}
        tickets = itertools.count()
        while True:
            most = 2 * engine.slots
            while len(flying) < most and (following := self._next(most)) is not None:
                ticket = next(tickets)
                flying[ticket] = following
                engine.submit(ticket, following[0])
            if not flying:
                return
            ticket, result = engine.wait()
            item, numbers = flying.pop(ticket)
            if isinstance(item, Tell):
                self._told(numbers, result)
            else:
                self._answered(item, numbers[0], result)
            between()

    def _next(self, enough: int) -> tuple[Tell | Ask, tuple[int, ...]] | None:
        """What to hand in next: suspects that are ready, but some are always to be told in time."""
        if len(self._ready) < enough:
            numbers = tuple(self._told_next())
            if numbers:
                return Tell(tuple(self._record.sources[i] for i in numbers)), numbers
        if self._ready:
            item, number = self._ready.popleft()
            return item, (number,)
        return None

    def _told_next(self) -> Iterator[int]:
        count = 0
        while self._coming and count < TOLD_TOGETHER:
            number = self._coming.popleft()
            source = self._record.sources[number]
            if "://" not in source:
                count += 1
                yield number
                continue
            known = self._record.remembered.get(shown_url(source))
            every = tuple(range(len(self._record.bundles)))
            spared = tuple(b for b in every if known is not None and self._record.knows(known, b))
            self._ready.append((Ask(source, every, known, spared), number))
            count += 1  # as many are fetched ahead as are told

    def _told(self, numbers: tuple[int, ...], result: Any) -> None:
        contents = [None] * len(numbers) if isinstance(result, Lost) else result
        for number, content in zip(numbers, contents, strict=True):
            self._sort(number, content)

    def _sort(self, number: int, content: str | None) -> None:
        """Reuse a line, wait for one that is being made, or ask."""
        every = range(len(self._record.bundles))
        missing = tuple(b for b in every if content is None or not self._record.reuse(number, b, content))
        if not missing:
            return
        if content is not None and content in self._asked:
            self._asked[content].append(number)
            return
        if content is not None:
            self._asked[content] = []
        self._ready.append((Ask(self._record.sources[number], missing, content), number))

    def _answered(self, item: Ask, number: int, result: Any) -> None:
        if isinstance(result, Lost):
            result = Asked(item.content, tuple((b, item.content, self._lost(item, b, result)) for b in item.bundles))
        for bundle, content, line in result.lines:
            self._record.write(number, bundle, content, line)
        for bundle in set(item.bundles) - {bundle for bundle, *_ in result.lines}:
            self._record.reuse(number, bundle, result.content)
        for other in self._asked.pop(item.content or "", []):
            self._finish_copy(other, item)

    def _finish_copy(self, number: int, item: Ask) -> None:
        missing = tuple(b for b in item.bundles if not self._record.reuse(number, b, item.content or ""))
        if missing:  # the file changed between being told and being asked
            self._ready.append((Ask(self._record.sources[number], missing), number))

    def _lost(self, item: Ask, bundle: int, lost: Lost) -> bytes:
        briefing = self._briefing
        error = SuspectError(f"{shown_url(item.source)} was not checked: {lost.reason}", "The other suspects are not affected.")
        report = failed(briefing.bundles[bundle], item.source, CheckOptions(briefing.alpha), error, 0)
        return dumped(written(report, item.source, briefing.settings, briefing.tests, item.content))
