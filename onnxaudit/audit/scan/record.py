"""What a scan knows of its lines: which are there already, where each one is, and what they amount to together."""

from __future__ import annotations

import hashlib
from array import array
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from onnxaudit.bundle import QueryBundle
from onnxaudit.decode import canonical
from onnxaudit.evidence.multiple import e_bh, e_combined, holm, rank_e
from onnxaudit.fetching import shown_url
from onnxaudit.report.findings import BONFERRONI, HOLM, Findings, Line, adjust, bonferroni, dumped
from onnxaudit.report.model import INCONCLUSIVE
from onnxaudit.report.scanned import Summary


class Record:
    """The lines of one scan. It holds where each line is, not what it says: some 300 bytes a suspect.

    A test is a content, a bundle and settings, whatever the suspect's name; one that was made stays a test. So a file that was
    replaced under its name is one test more, and so is one that is asked again in another way, or by another version.

    sources: each once. settings: a digest of how suspects are asked; lines of others are not used again. alpha: the error rate
    of all lines together, also of those that were judged at a greater one. tests: how many there are at most, known before the
    first suspect is asked, so that what is written meanwhile holds: which earlier tests are the same as those of now is known
    only when all are told. expected: how many there are if no name has got another content.
    """

    def __init__(
        self, findings: Findings, sources: Sequence[str], bundles: Sequence[QueryBundle], settings: str, alpha: float
    ) -> None:
        self.sources = sources
        self.bundles = [bundle.id for bundle in bundles]
        self.groups = dependent([_lined_up(bundle) for bundle in bundles])
        self.references = {bundle.id: len(bundle.manifest.of_role("reference")) for bundle in bundles}
        self.settings = settings
        self.alpha = alpha
        self.total = len(sources) * len(bundles)
        self.tests = self.expected = self.total
        self.done = self.reused = 0
        self.remembered: dict[str, str] = {}
        self._findings = findings
        self._places = array("q", [-1]) * self.total
        self._known: dict[bytes, int] = {}

    def begin(self) -> None:
        """Take over what an earlier run left, with findings that hold for the tests there are now. Raises UsageError where the
        output is not a scan's, before anything is changed.

        remembered: content by URL of files that were fetched then.
        """
        self._count_tests()
        self._findings.rewrite(self._kept())
        for offset, line in self._findings.lines():
            content, source = line["scan"]["content"], line["suspect"]["source"]
            if line["scan"]["settings"] == self.settings and content:
                self._known.setdefault(_key_of(line), offset)
                if "://" in source:
                    self.remembered[source] = content

    def _count_tests(self) -> None:
        names = Counter((shown_url(source), bundle) for source in self.sources for bundle in self.bundles)
        earlier: set[bytes] = set()
        for line in self._complete():
            if (key := _key_of(line)) in earlier:
                continue
            earlier.add(key)
            name = (line["suspect"]["source"], line["bundle"]["id"])
            if line["scan"]["settings"] == self.settings and names[name]:
                names[name] -= 1
            else:
                self.expected += 1
        self.tests = self.total + len(earlier)

    def _complete(self) -> Iterator[Line]:
        return (line for _, line in self._findings.lines() if line["status"] == "complete")

    def _kept(self) -> Iterator[Line]:
        """What was a test once: to be used again, or to be counted."""
        for line in self._complete():
            yield adjust(line, bonferroni(line["p_value"], self.tests), self.tests, BONFERRONI, self.alpha)

    def knows(self, content: str, bundle: int) -> bool:
        """Whether there is a line of this content and bundle, by number."""
        return self._key(content, bundle) in self._known

    def _key(self, content: str, bundle: int) -> bytes:
        return _key(content, self.bundles[bundle], self.settings)

    def reuse(self, source: int, bundle: int, content: str) -> bool:
        """Let the known line of this content be the source's; False if there is none. Numbers of source and bundle."""
        offset = self._known.get(self._key(content, bundle))
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
            self._known[self._key(content, bundle)] = offset
        self._place(source, bundle, offset)

    def _place(self, source: int, bundle: int, offset: int) -> None:
        self._places[source * len(self.bundles) + bundle] = offset
        self.done += 1

    def _product(self, draws: Mapping[str, float]) -> float | None:
        """One e-value of a suspect's line-ups; bundles that are not known now may share models with any."""
        known = {name: self.groups[self.bundles.index(name)] if name in self.bundles else self.groups[0] for name in draws}
        return e_combined(list(draws.values()), [known[name] for name in draws]) if draws else None

    def finish(self, summary: Summary) -> Summary:
        """Rewrite the lines, in the order of the sources, with what holds now that all p-values are known; sum them up.

        A suspect's e-value is the mean of the rank e-values of its p over the bundles; those discovered by e-BH are marked, and
        decide nothing else. Copies of one file are one test. What was tested before and is none of the tests of now is one more.
        What fails is one as well: whether it can be asked next time must not matter.
        """
        p_values: dict[bytes, float] = {}
        ranks: dict[bytes, list[float]] = {}
        draws: dict[bytes, dict[str, float]] = {}
        failed = 0
        for offset in self._places:
            line = self._findings.at(offset)
            if line["scan"]["content"] is None and line["status"] != "complete":
                failed += 1
            else:
                p_values[_key_of(line)] = 1.0 if line["p_value"] is None else line["p_value"]
                _weigh(line, ranks, draws)
        left = array("q")
        for offset, line in self._findings.lines():
            if line["status"] == "complete" and _key_of(line) not in p_values:
                p_values[_key_of(line)] = 1.0 if line["p_value"] is None else line["p_value"]
                _weigh(line, ranks, draws)
                left.append(offset)
        adjusted = dict(zip(p_values, holm([*p_values.values(), *[1.0] * failed]), strict=False))
        means = [sum(values) / len(values) for values in ranks.values()]
        discovered = dict(zip(ranks, zip(means, e_bh([*means, *[0.0] * failed], self.alpha), strict=False), strict=True))
        summary.tests, summary.reused, summary.left = len(p_values) + failed, self.reused, len(left)

        def final() -> Iterator[Line]:
            for number, offset in enumerate([*self._places, *left]):
                line = self._findings.at(offset)
                p_adjusted = None if line["p_value"] is None else adjusted[_key_of(line)]
                line = adjust(line, p_adjusted, summary.tests, HOLM, self.alpha)
                line["scan"]["listed"] = number < self.total
                line["scan"]["e_value"], line["scan"]["discovered"] = discovered.get(_suspect_of(line), (0.0, False))
                line["scan"]["line_up_e_value"] = self._product(draws.get(_suspect_of(line), {}))
                if number < self.total:
                    summary.add(line)
                yield line

        self._findings.rewrite(final())
        return summary


def dependent(pools: Sequence[set[str]]) -> list[int]:
    """A number for each pool of models, the same for those that share any, directly or through others."""
    groups = list(range(len(pools)))
    for one in range(len(pools)):
        for two in range(one):
            if pools[one] & pools[two]:
                groups = [groups[two] if group == groups[one] else group for group in groups]
    return groups


def _lined_up(bundle: QueryBundle) -> set[str]:
    """What identifies the models in a bundle's line-up."""
    return {model.sha256 or model.id for model in bundle.manifest.models if model.role in ("victim", "sibling")}


def _weigh(line: Line, ranks: dict[bytes, list[float]], draws: dict[bytes, dict[str, float]]) -> None:
    """Put a line's e-values to those of its suspect: of its rank among references, and of a line-up drawn by lot."""
    suspect = _suspect_of(line)
    doubtful = line["scan"]["alone"]["finding"] == INCONCLUSIVE
    ranks.setdefault(suspect, []).append(0.0 if doubtful else rank_e(line["p_value"], line["p_floor"]))
    if (line_up := line.get("line_up")) and line_up["drawn"] and not doubtful:
        draws.setdefault(suspect, {})[line["bundle"]["id"]] = line_up["e_value"]


def _suspect_of(line: Line) -> bytes:
    """What tells a suspect from others, whichever bundle it was checked with."""
    return hashlib.blake2b(f"{line['scan']['content'] or _key_of(line).hex()}".encode(), digest_size=16).digest()


def _key(content: str, bundle: str, settings: str) -> bytes:
    return hashlib.blake2b(f"{content} {bundle} {settings}".encode(), digest_size=16).digest()


def _key_of(line: Line) -> bytes:
    """What tells a test from others. A suspect without a file is told by its source and by what was measured: what stands behind
    the source may have changed, so its line is not used again; the same once more is no test more.
    """
    content = line["scan"]["content"]
    if content is None:
        measured = canonical([line["suspect"]["source"], line["p_value"], line["score"]])
        content = "source:" + hashlib.sha256(measured.encode(errors="surrogateescape")).hexdigest()
    return _key(content, line["bundle"]["id"], line["scan"]["settings"])
