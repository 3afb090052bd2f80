"""What a scan knows of its lines: which are there already, where each one is, and what they amount to together."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterator, Sequence

from onnxaudit.bundle import QueryBundle
from onnxaudit.evidence.multiple import holm
from onnxaudit.fetching import shown_url
from onnxaudit.report.findings import BONFERRONI, HOLM, Findings, Line, adjust, bonferroni, dumped
from onnxaudit.report.scanned import Summary


class Record:
    """The lines of one scan. It holds where each line is, not what it says: some 300 bytes a suspect.

    sources: each once. settings: a digest of how suspects are asked; lines of others are not used again. tests: how many there
    are at most, known before the first suspect is asked, so that what is written meanwhile holds.
    """

    def __init__(self, findings: Findings, sources: Sequence[str], bundles: Sequence[QueryBundle], settings: str) -> None:
        self.sources = sources
        self.bundles = [bundle.id for bundle in bundles]
        self.references = {bundle.id: len(bundle.manifest.of_role("reference")) for bundle in bundles}
        self.settings = settings
        self.total = len(sources) * len(bundles)
        self.tests = self.total
        self.done = self.reused = 0
        self.remembered: dict[str, str] = {}
        self._findings = findings
        self._listed = {shown_url(source) for source in sources}
        self._places = array("q", [-1]) * self.total
        self._known: dict[bytes, int] = {}

    def begin(self) -> None:
        """Take over what an earlier run left, with findings that hold for the tests there are now. Raises UsageError where the
        output is not a scan's, before anything is changed.

        remembered: content by URL of files that were fetched then.
        """
        left = sum(1 for _, line in self._findings.lines() if line["status"] == "complete" and not self._is_listed(line))
        self.tests = self.total + left
        self._findings.rewrite(self._kept())
        for offset, line in self._findings.lines():
            content, source = line["scan"]["content"], line["suspect"]["source"]
            if line["scan"]["settings"] == self.settings and content:
                self._known.setdefault(_key(content, line["bundle"]["id"]), offset)
                if "://" in source:
                    self.remembered[source] = content

    def _is_listed(self, line: Line) -> bool:
        return line["suspect"]["source"] in self._listed and line["bundle"]["id"] in self.bundles

    def _kept(self) -> Iterator[Line]:
        """Lines that may be used again, and those of suspects that are not listed now: they were tests as well."""
        for _, line in self._findings.lines():
            if line["status"] == "complete" and (line["scan"]["settings"] == self.settings or not self._is_listed(line)):
                yield adjust(line, bonferroni(line["p_value"], self.tests), self.tests, BONFERRONI)

    def knows(self, content: str, bundle: int) -> bool:
        """Whether there is a line of this content and bundle, by number."""
        return _key(content, self.bundles[bundle]) in self._known

    def reuse(self, source: int, bundle: int, content: str) -> bool:
        """Let the known line of this content be the source's; False if there is none. Numbers of source and bundle."""
        offset = self._known.get(_key(content, self.bundles[bundle]))
        if offset is None:
            return False
        line, name = self._findings.at(offset), shown_url(self.sources[source])
        if line["suspect"]["source"] != name:
            offset = self._findings.append(dumped(line | {"suspect": line["suspect"] | {"source": name}}))
        self.reused += 1
        self._place(source, bundle, offset)
        return True

    def write(self, source: int, bundle: int, content: str | None, line: bytes) -> None:
        """Append the line of a suspect that was asked, or could not be."""
        offset = self._findings.append(line)
        if content is not None:
            self._known[_key(content, self.bundles[bundle])] = offset
        self._place(source, bundle, offset)

    def _place(self, source: int, bundle: int, offset: int) -> None:
        self._places[source * len(self.bundles) + bundle] = offset
        self.done += 1

    def finish(self, summary: Summary) -> Summary:
        """Rewrite the lines, in the order of the sources, with what holds now that all p-values are known; sum them up.

        Copies of one file are one test. What fails is one as well: whether it can be asked next time must not matter.
        """
        p_values: dict[bytes, float] = {}
        failed = 0
        for offset in self._places:
            line = self._findings.at(offset)
            if line["scan"]["content"] is None:
                failed += 1
            else:
                p_values[_key_of(line)] = 1.0 if line["p_value"] is None else line["p_value"]
        left = array("q")
        for offset, line in self._findings.lines():
            if line["status"] == "complete" and not self._is_listed(line) and _key_of(line) not in p_values:
                p_values[_key_of(line)] = 1.0 if line["p_value"] is None else line["p_value"]
                left.append(offset)
        adjusted = dict(zip(p_values, holm([*p_values.values(), *[1.0] * failed]), strict=False))
        summary.tests, summary.reused, summary.left = len(p_values) + failed, self.reused, len(left)

        def final() -> Iterator[Line]:
            for number, offset in enumerate([*self._places, *left]):
                line = self._findings.at(offset)
                p_adjusted = None if line["p_value"] is None else adjusted[_key_of(line)]
                line = adjust(line, p_adjusted, summary.tests, HOLM)
                line["scan"]["listed"] = number < self.total
                summary.add(line)
                yield line

        self._findings.rewrite(final())
        return summary


def _key(content: str, bundle: str) -> bytes:
    return hashlib.blake2b(f"{content} {bundle}".encode(), digest_size=16).digest()


def _key_of(line: Line) -> bytes:
    return _key(line["scan"]["content"], line["bundle"]["id"])
