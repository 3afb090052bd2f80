"""The documentation is run: every shell, Python and JSON block of README.md and docs/, in order, one folder a file.

CONTRIBUTING.md says what the hidden comments before blocks do.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest

from onnxaudit.audit.checking import CheckOptions
from onnxaudit.audit.progress import Silent
from onnxaudit.audit.running import run_check
from onnxaudit.bundle import QueryBundle
from onnxaudit_adapters.http.loopback import serve_onnx

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
TEXTS = [
    *PAGES,
    *(
        ROOT / name
        for name in ("CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "fixtures/README.md", "fixtures/qurd/README.md")
    ),
]
EXAMPLE = "https://example.com/v2/models/suspect"
FIRST_SUSPECT = "fixtures/zoo/suspects/copy.onnx"
FINDING = re.compile(r"\b(derived|not-shown|inconclusive)\b")
COMMAND_LIMIT = 300
CRAFT = "onnxaudit craft fixtures/zoo/victim.pt --data fixtures/fashion/train.npz --references fixtures/zoo/references\n"
"""What the fixture crafted_path runs."""

# As bash -e, but the exit codes that are findings of check do not end a script.
PRELUDE = r"""
set -E
trap 'code=$?; [[ $BASH_COMMAND == "onnxaudit check "* && ( $code == 10 || $code == 11 ) ]] || exit $code' ERR
"""


@dataclass(frozen=True, slots=True)
class Block:
    """One fenced block. line: where it begins. directives: the hidden comments right before it."""

    line: int
    language: str
    text: str
    directives: tuple[str, ...]


def blocks(page: Path) -> Iterator[Block]:
    """The fenced blocks of a page, in order."""
    directives: list[str] = []
    opened: tuple[int, str, list[str]] | None = None
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
        if opened is not None:
            if line == "```":
                yield Block(opened[0], opened[1], "\n".join(opened[2]) + "\n", tuple(directives))
                opened, directives = None, []
            else:
                opened[2].append(line)
        elif line.startswith("```"):
            opened = number, line[3:].strip(), []
        elif comment := re.fullmatch(r"<!-- test: (.+) -->", line):
            directives.append(comment[1])
        elif line.strip():
            directives = []
    assert opened is None, f"{page.name}:{opened and opened[0]}: the block is not closed"


class Runner:
    """Runs the blocks of one page in one folder. printed: what the last command said, its stdout and stderr."""

    def __init__(self, folder: Path, bundle: Path, servers: ExitStack) -> None:
        self.folder = folder
        self.bundle = bundle
        self.printed: str | None = None
        self._servers = servers
        self._urls: dict[str, str] = {}
        (folder / "fixtures").symlink_to(ROOT / "fixtures")
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        self.environment = {**os.environ, "PATH": path, "PYTHONWARNINGS": "ignore", "COLUMNS": "120", "OMP_NUM_THREADS": "1"}
        self.environment.pop("ONNXAUDIT_BUNDLE", None)

    def run(self, block: Block) -> None:
        """Run, save, parse or compare one block, as its language and its directives say."""
        text, served = block.text, FIRST_SUSPECT
        for directive in block.directives:
            word, _, rest = directive.partition(" ")
            if directive.startswith(("s/", "s|")):
                _, old, new, _ = directive.split(directive[1])
                assert old in text, f"{directive}: {old!r} is not in the block"
                text = text.replace(old, new)
            elif word == "file":
                (self.folder / rest).write_text(text, encoding="utf-8")
                return
            elif word in ("have", "made"):
                shutil.copy(self.bundle, self.folder / rest)
                if word == "made":
                    assert text == CRAFT, f"this is not how the tests make {rest}: {text}"
                    return
            elif word == "serve":
                served = rest
            else:
                raise AssertionError(f"unknown directive: {directive}")
        self._do(block.language, text, served)

    def _do(self, language: str, text: str, served: str) -> None:
        if language in ("sh", "bash"):
            url = self._url(served) if EXAMPLE in text else EXAMPLE
            run = not _only_named(text)
            self.printed = (
                self._command("bash", "-c", PRELUDE + text.replace(EXAMPLE, url) + "exit 0\n").replace(url, EXAMPLE)
                if run
                else None
            )
        elif language == "python":
            self._command(sys.executable, "-c", text)
        elif language == "json":
            json.loads(text)
        elif language == "text" and self.printed is not None:
            compare(text, self.printed)

    def _url(self, served: str) -> str:
        """The address of a real server of this model, one for the whole page, as it would be out there."""
        if served not in self._urls:
            file, _, rest = served.partition(" ")
            server = serve_onnx(str(self.folder / file), labels_only=rest == "labels")
            self._urls[served] = self._servers.enter_context(server)
        return self._urls[served]

    def _command(self, *command: str) -> str:
        done = subprocess.run(
            command, cwd=self.folder, env=self.environment, capture_output=True, text=True, check=False, timeout=COMMAND_LIMIT
        )
        assert done.returncode == 0, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout + done.stderr


def _only_named(text: str) -> bool:
    """Whether all lines install, make or measure: not run, but what they name must exist."""
    lines = [line for line in text.splitlines() if line.strip()]
    if not all(line.startswith(("make ", "pip install ", "python benchmarks/")) for line in lines):
        return False
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for line in lines:
        words = line.split()
        if words[0] == "make":
            assert set(words[1:]) <= set(targets), f"{line}: the Makefile has no such target"
        if words[0] == "python":
            assert (ROOT / words[1]).is_file(), f"{line}: there is no such file"
        if words[0] == "pip":
            assert set(re.findall(r"\[(\w+)\]", line)) <= set(extras), f"{line}: there is no such extra"
            assert "-c" not in words or (ROOT / words[words.index("-c") + 1]).is_file(), f"{line}: there is no such file"
    return True


def compare(shown: str, printed: str) -> None:
    """Assert that the lines shown come up in this order in what was printed; "..." stands for anything.

    Lines with a finding have to be the same; of others, digests and numbers with a point may differ, as what took longer, and
    with them the width of a column.
    """
    lines = iter([_plain(line) for line in printed.splitlines()])
    for line in filter(str.strip, shown.splitlines()):
        if line.strip() != "...":
            wanted = _plain(line).split("...")
            assert any(_begins(found, wanted) for found in lines), f"not printed: {line!r}\n{printed}"


def _begins(found: str, wanted: Sequence[str]) -> bool:
    return found == wanted[0] if len(wanted) == 1 else found.startswith(wanted[0]) and found.endswith(wanted[-1])


def _plain(line: str) -> str:
    line = line.rstrip()
    if FINDING.search(line) and not line.startswith(("combined", "scheme ")):
        return line
    return re.sub(r"(?<=\S) +", " ", re.sub(r"\b[0-9a-f]{16,64}\b", "#", re.sub(r"-?\d+\.\d+", "#", line)))


def test_what_took_longer_is_the_same_and_other_words_are_not() -> None:
    shown, slower = "akh  logits  100     1.34     0.11\n", "akh  logits  100    13.40    10.11\n"
    compare(shown, f"before\n{slower}")
    for other in (slower.replace("100", "200"), slower.replace("akh", "afa"), f"  {slower}"):
        with pytest.raises(AssertionError, match="not printed"):
            compare(shown, other)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_block_runs_and_prints_what_is_shown(page: Path, tmp_path: Path, crafted_path: Path) -> None:
    with ExitStack() as servers:
        runner = Runner(tmp_path, crafted_path, servers)
        for block in blocks(page):
            try:
                runner.run(block)
            except AssertionError as error:
                raise AssertionError(f"{page.name}:{block.line}: {error}") from error


def test_readme_shows_what_the_demo_finds(crafted: QueryBundle) -> None:
    """The demo's lines in README.md have the findings and p-values that its suspects get."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    demo = _demo()
    local = [(words, file, dict(zip(more[::2], more[1::2], strict=True)).get("--access")) for words, file, more in demo.SUSPECTS]
    served = [(words, file, "label" if labels_only else None) for words, file, labels_only in demo.SERVED]
    looks = crafted.manifest.looks  # over HTTP answers are judged as they come in
    for words, file, access, planned in [*((*row, None) for row in local), *((*row, looks) for row in served)]:
        source = str(ROOT / "fixtures/zoo/suspects" / file)
        options = CheckOptions(device="cpu", looks=planned)
        report = run_check(crafted, source, access, options, {}, {}, Silent(), time.perf_counter())
        line = f"  {words:36} {report.finding:13} p = {report.p_value:.3f}  {report.suspect['access']:7}"
        assert line in readme, f"README.md does not have: {line}"


def _demo() -> ModuleType:
    spec = importlib.util.spec_from_file_location("demo", ROOT / "fixtures/demo.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("page", TEXTS, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text(encoding="utf-8")):
        assert target.startswith("https://") or (page.parent / target).exists(), f"{page.name}: {target}"


@pytest.mark.parametrize("page", TEXTS, ids=lambda page: page.name)
def test_no_page_says_stolen(page: Path) -> None:
    """What a finding says is never more than "derived"."""
    assert not re.search(r"\bstolen\b|\bthief|\bthieves\b", page.read_text(encoding="utf-8"), re.IGNORECASE)


def test_report_page_names_every_key() -> None:
    from onnxaudit.report.model import Controls, Report, SchemeResult

    text = (ROOT / "docs/report.md").read_text(encoding="utf-8")
    own = {field.name for field in dataclasses.fields(Report)} - {"code", "bundle", "suspect", "controls", "schemes", "queries"}
    keys = own | {f"controls.{field.name}" for field in dataclasses.fields(Controls)}
    keys |= {f"schemes[].{field.name}" for field in dataclasses.fields(SchemeResult)} - {"schemes[].reference_max"}
    missing = sorted(key for key in keys if f"`{key}`" not in text)
    assert not missing, f"docs/report.md does not describe {missing}"


def test_bundle_page_names_every_field() -> None:
    from onnxaudit.bundle import Manifest, ModelEntry, SchemeEntry

    text = (ROOT / "docs/bundle.md").read_text(encoding="utf-8")
    names = {field.name for kind in (Manifest, ModelEntry, SchemeEntry) for field in dataclasses.fields(kind)}
    missing = sorted(name for name in names if f"`{name}`" not in text)
    assert not missing, f"docs/bundle.md does not describe {missing}"


def test_schemes_page_names_every_scheme() -> None:
    from onnxaudit.schemes.catalogue import ALIASES, CATALOGUE

    text = (ROOT / "docs/schemes.md").read_text(encoding="utf-8")
    missing = [name for name in (*CATALOGUE, *ALIASES) if f"`{name}`" not in text]
    assert not missing, f"docs/schemes.md does not describe {missing}"
