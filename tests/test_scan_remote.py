"""Suspects that are not files here: fetched by URL into a bounded cache, or asked over HTTP one at a time on each host."""

from __future__ import annotations

import itertools
import json
import shutil
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import onnx
import pytest
from fsspec.implementations.local import LocalFileSystem

from onnxaudit.audit.progress import Silent
from onnxaudit.audit.scan.lanes import Lanes, by_host
from onnxaudit.audit.scan.scanning import ScanOptions, scan
from onnxaudit.audit.scan.sources import gathered
from onnxaudit.bundle import QueryBundle
from onnxaudit.errors import SuspectError, UsageError
from onnxaudit.fetching import Cache, _failed, listed, shown_url
from tests.http_script import METADATA, Script, as_json, served
from tests.linear_scan import linear_bundle, near, save_bundle, save_suspect, save_suspects, weights_of

ONE = ScanOptions(jobs=1)


class Counted(LocalFileSystem):  # type: ignore[misc]
    """Files of this machine under another name, that counts what is fetched, and can fail in the middle."""

    protocol = "counted"
    cachable = False
    fetched: list[str] = []  # noqa: RUF012
    fails: str = ""

    def get_file(self, path: str, local: str, **options: Any) -> None:  # noqa: ARG002
        self.fetched.append(Path(path).name)
        data = Path(path).read_bytes()
        if self.fails:
            Path(local).write_bytes(data[: len(data) // 2])
            if self.fails == "raises":
                raise OSError(f"the line to counted://{path} went dead")
            return
        Path(local).write_bytes(data)

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return str(LocalFileSystem._strip_protocol(path.removeprefix("counted://")))

    def unstrip_protocol(self, name: str) -> str:
        return f"counted://{self._strip_protocol(name)}"


@pytest.fixture(autouse=True)
def counted() -> None:
    fsspec.register_implementation("counted", Counted, clobber=True)
    Counted.fetched, Counted.fails = [], ""


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> QueryBundle:
    return save_bundle(tmp_path_factory.mktemp("bundle") / "b.oab", 119)


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def make(folder: Path, **sizes: int) -> None:
    folder.mkdir(exist_ok=True)
    for name, size in sizes.items():
        (folder / f"{name}.onnx").write_bytes(name.encode() * (size // len(name)))


def test_the_cache_is_bounded_and_the_least_recently_used_goes(tmp_path: Path) -> None:
    make(tmp_path / "far", a=400, b=400, c=400, huge=4000)
    cache = Cache(tmp_path / "cache", 1000)
    urls = {name: f"counted://{tmp_path}/far/{name}.onnx" for name in ("a", "b", "c", "huge")}
    for name in "abacb":
        path = cache.fetch(urls[name])
        assert (path.name, path.read_bytes()) == (f"{name}.onnx", name.encode() * 400)
        assert cache.size <= 1000
        assert sum(file.stat().st_size for file in (tmp_path / "cache").rglob("*") if file.is_file()) == cache.size
    assert Counted.fetched == ["a.onnx", "b.onnx", "c.onnx", "b.onnx"]  # b was the one to go when c came
    with pytest.raises(UsageError, match=r"huge\.onnx is larger than the cache, which has 1000 bytes"):
        cache.fetch(urls["huge"])
    assert cache.size <= 1000


@pytest.mark.parametrize("fails", ["raises", "cut"])
def test_what_did_not_arrive_whole_is_never_used(tmp_path: Path, fails: str) -> None:
    make(tmp_path / "far", a=400)
    cache = Cache(tmp_path / "cache", 1000)
    url = f"counted://{tmp_path}/far/a.onnx"
    Counted.fails = fails
    with pytest.raises(SuspectError, match=r"cannot be fetched: OSError|was cut off: 200 of 400 bytes") as caught:
        cache.fetch(url)
    assert "\n" not in str(caught.value)
    assert not [file for file in (tmp_path / "cache").rglob("*") if file.is_file()]
    Counted.fails = ""
    assert len(cache.fetch(url).read_bytes()) == 400


def test_what_cannot_be_fetched_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = Cache(tmp_path, 1000)
    with pytest.raises(SuspectError, match=r"none\.onnx is not there"):
        cache.fetch(f"file://{tmp_path}/none.onnx")
    with pytest.raises(UsageError, match="nothing here opens nonsense:// URLs"):
        cache.fetch("nonsense://a/b.onnx")
    with pytest.raises(UsageError, match=r"gs:// needs gcsfs, which is not installed\. Install it with: pip install gcsfs"):
        cache.fetch("gs://bucket/model.onnx")
    monkeypatch.setitem(__import__("sys").modules, "fsspec.core", None)
    with pytest.raises(UsageError, match=r"pip install 'onnxaudit\[remote\]'"):
        cache.fetch(f"file://{tmp_path}/none.onnx")


def test_urls_name_files_patterns_and_folders(tmp_path: Path) -> None:
    save_suspects(tmp_path / "m", 2, 1)
    (tmp_path / "m/notes.txt").write_text("no model")
    base = f"file://{tmp_path}/m"
    names = ["derived-0.onnx", "independent-0.onnx", "independent-1.onnx"]
    assert listed(base, {".onnx"}) == [f"{base}/{name}" for name in names]
    assert listed(f"{base}/indep*.onnx", {".onnx"}) == [f"{base}/{name}" for name in names[1:]]
    assert listed(f"{base}/{names[0]}", {".onnx"}) == [f"{base}/{names[0]}"]
    assert gathered([base, f"{base}/{names[0]}", "http://h/v2/models/m"]) == [
        *(f"{base}/{name}" for name in names),
        "http://h/v2/models/m",
    ]
    assert shown_url("ftp://user:word@host/a/b.onnx?key=word#word") == "ftp://host/a/b.onnx"
    assert shown_url("zip://m.onnx::https://user:word@host/x.zip?sig=word") == "zip://m.onnx::https://host/x.zip"
    inner = "https://host/x.zip?sig=word"
    for error in (OSError(f"cannot open {inner}"), PermissionError(inner), ValueError("word")):
        assert "word" not in str(_failed(f"zip://m.onnx::{inner}", "cannot be fetched", error))


def test_scanning_urls_is_scanning_their_files(tmp_path: Path, bundle: QueryBundle) -> None:
    save_suspects(tmp_path / "m", 2, 1)
    (tmp_path / "m/bad.onnx").write_text("no model")
    base = f"file://{tmp_path}/m"
    before = set(Path(tempfile.gettempdir()).glob("onnxaudit-*"))
    there = tmp_path / "there.jsonl"
    sources = [*gathered([base]), f"{base}/missing.onnx"]
    summary = scan(sources, [bundle], there, ONE, Silent())
    assert set(Path(tempfile.gettempdir()).glob("onnxaudit-*")) == before  # nothing is left behind
    scan(gathered([str(tmp_path / "m")]), [bundle], tmp_path / "here.jsonl", ONE, Silent())
    assert (summary.counts["failed"], summary.tests) == (2, 5)
    kept = ("finding", "p_value", "score", "schemes", "controls", "reasons", "error")
    for near_line, far in zip(lines_of(tmp_path / "here.jsonl"), lines_of(there), strict=False):
        assert far["suspect"]["source"] == f"file://{near_line['suspect']['source']}"
        assert far["suspect"]["sha256"] == near_line["suspect"]["sha256"]
        assert {name: far[name] for name in kept} == {name: near_line[name] for name in kept}
    save_suspect(tmp_path / "m/independent-0.onnx", weights_of(99))  # changed: fetched, found to be other, asked
    again = scan(sources, [bundle], there, ONE, Silent())
    assert (again.reused, again.left) == (2, 1)
    assert len(lines_of(there)) == 6


def test_weights_in_other_files_are_part_of_a_suspect(tmp_path: Path, bundle: QueryBundle) -> None:
    """A changed weights file is another suspect; of a URL, one file is fetched, and its line says what is missing."""
    model = onnx.load(str(save_suspect(tmp_path / "plain.onnx", near(1))))
    (tmp_path / "m").mkdir()
    for earlier, seed in enumerate((1, 1, 2)):  # each has another w.bin, for it is appended to
        model.graph.initializer[0].raw_data = near(seed).tobytes()
        path = tmp_path / "m/model.onnx"
        onnx.save(model, str(path), save_as_external_data=True, location="w.bin", size_threshold=0)
        model = onnx.load(str(path))
        summary = scan([str(path)], [bundle], tmp_path / "f.jsonl", ONE, Silent())
        line = lines_of(tmp_path / "f.jsonl")[0]
        assert summary.left == earlier
        assert line["status"] == "complete", line["error"]
        assert line["scan"]["content"] != line["suspect"]["sha256"]
        assert "external:w.bin" in line["suspect"]["runtime"]
    assert summary.reused == 0  # the third had other weights under the same name
    assert scan([str(path)], [bundle], tmp_path / "f.jsonl", ONE, Silent()).reused == 1
    scan([f"file://{path}"], [bundle], tmp_path / "g.jsonl", ONE, Silent())
    (line,) = lines_of(tmp_path / "g.jsonl")
    assert "model.onnx keeps weights in 'w.bin', which is not there" in line["error"]


# --- endpoints ---


class Host:
    """A server of several linear models at /v2/models/NAME: counts requests, and how many are answered at once."""

    def __init__(self, models: dict[str, np.ndarray[Any, Any]], before: Callable[[int], Any] = lambda number: None) -> None:  # noqa: ARG005
        self.models = models
        self.busy = self.most = 0
        self.times: list[float] = []
        self.before = before
        lock = threading.Lock()

        def answer(number: int, body: bytes) -> Any:
            with lock:
                self.busy += 1
                self.most = max(self.most, self.busy)
                self.times.append(time.monotonic())
            try:
                time.sleep(0.002)
                failure = self.before(number)
                if failure is not None:
                    return failure
                sent = json.loads(body)["inputs"][0]
                rows = np.array(sent["data"], np.float32).reshape(-1, 16) @ self.models[sent["name"]]
                output = {"name": "y", "datatype": "FP32", "shape": list(rows.shape), "data": rows.ravel().tolist()}
                return as_json({"outputs": [output]})
            finally:
                with lock:
                    self.busy -= 1

        pages = {
            f"/v2/models/{name}": as_json(METADATA | {"inputs": [{"name": name, "datatype": "FP32", "shape": [-1, 1, 4, 4]}]})
            for name in models
        }
        self.script = Script(answer, pages | {"/v2": as_json({"name": "test"})})


def models() -> dict[str, np.ndarray[Any, Any]]:
    return {"a": near(1), "b": weights_of(600), "c": weights_of(601)}


def test_a_host_is_asked_one_suspect_at_a_time(tmp_path: Path, bundle: QueryBundle) -> None:
    other = linear_bundle(119, 1).save(tmp_path / "o.oab")
    save_suspects(tmp_path / "m", 3, 0)
    one, two = Host(models()), Host({"d": weights_of(602)})
    with served(one.script) as base, served(two.script) as second:
        port = second.rpartition(":")[2]
        urls = [f"{base}/v2/models/{name}" for name in models()] + [f"http://localhost:{port}/v2/models/d"]
        options = ScanOptions(jobs=1, http={"headers": {"Authorization": "Bearer secret-word"}, "timeout": 5.0, "dialect": "v2"})
        sources = [*gathered([str(tmp_path / "m")]), *urls]
        output = tmp_path / "f.jsonl"
        summary = scan(sources, [bundle, other], output, options, Silent())
        assert (summary.tests, len(lines_of(output))) == (14, 14)
        assert one.most == two.most == 1
        asked = len(one.times)
        again = scan(sources, [bundle, other], output, options, Silent())
        assert (again.reused, len(one.times)) == (14, asked)  # what was paid for is not asked again
    found = [line for line in lines_of(output) if line["suspect"]["kind"] == "http"]
    assert {line["suspect"]["source"] for line in found} == set(urls)
    assert all(line["transcript_sha256"] for line in found)
    kept = tmp_path / "f.jsonl.transcripts"
    assert len(list(kept.iterdir())) == 8
    for file in [output, *kept.iterdir()]:
        assert b"secret-word" not in file.read_bytes()


def test_endpoints_that_differ_in_what_is_not_shown_are_tests_of_their_own(tmp_path: Path, bundle: QueryBundle) -> None:
    """Queries of a URL may be secret and are not written; that must not make many suspects one."""
    host, output = Host({"a": near(1)}), tmp_path / "f.jsonl"
    options = ScanOptions(jobs=1, http={"timeout": 5.0, "dialect": "v2"})
    with served(host.script) as base:
        urls = [f"{base}/v2/models/a?tenant={i}" for i in range(4)]
        assert scan(urls, [bundle], output, options, Silent()).tests == 4
        assert {line["suspect"]["source"] for line in lines_of(output)} == {f"{base}/v2/models/a"}
        summary = scan(urls[-1:], [bundle], output, options, Silent())
    assert (summary.tests, summary.reused, summary.left) == (4, 1, 3)
    assert {line["p_adjusted"] for line in lines_of(output)} == {4 / 120}


def test_the_rate_holds_across_the_suspects_of_a_host(tmp_path: Path, bundle: QueryBundle) -> None:
    host = Host(models())
    with served(host.script) as base:
        options = ScanOptions(jobs=1, http={"rate": 400.0, "batch": 20, "timeout": 5.0, "dialect": "v2"})
        scan([f"{base}/v2/models/{name}" for name in models()], [bundle], tmp_path / "f.jsonl", options, Silent())
    assert host.most == 1
    queries = [len(json.loads(body)["inputs"][0]["data"]) / 16 for body in host.script.posts]
    assert sum(queries) == 3 * (84 + 4)
    # each pace alone would let the first request of a suspect follow at once on the last of another; half, because what arrives
    # on a busy machine may have been on its way for a while
    assert host.times[-1] - host.times[0] >= 0.5 * sum(queries[:-1]) / 400


def test_no_endpoint_is_asked_before_the_engine_is_known_to_work(tmp_path: Path, bundle: QueryBundle) -> None:
    host, file, http = Host(models()), save_suspect(tmp_path / "a.onnx", near(1)), {"timeout": 5.0, "dialect": "v2"}
    with served(host.script) as base:
        sources = [f"{base}/v2/models/a", str(file)]
        wrong: list[dict[str, Any]] = [{"engine": "spark"}, {"jobs": 0}, {"engine": "dask", "address": "nonsense://h:9"}]
        for count, said in zip((1, 1, 2), wrong, strict=True):  # of endpoints alone, no engine is opened
            with pytest.raises(UsageError, match=r"--engine|--jobs|no Dask"):
                scan(sources[:count], [bundle], tmp_path / "f.jsonl", ScanOptions(http=http, **said), Silent())
        time.sleep(0.2)
        assert (host.script.gets, host.script.posts) == ([], [])


def test_a_lane_pauses_between_suspects_and_keeps_hosts_apart() -> None:
    asked: list[tuple[str, float, float]] = []

    def ask(number: int, url: str, bundle: int) -> str:
        began = time.monotonic()
        time.sleep(0.001)
        asked.append((url[7], began, time.monotonic()))
        return f"{number}-{bundle}"

    urls = [(i, f"http://{'ab'[i % 2]}/{i}") for i in range(6)]
    lanes = Lanes(by_host(urls), 2, ask, 0.02)
    found = set()
    while (result := lanes.take(wait=True)) is not None:
        found.add(result)
    assert found == {(i, b, f"{i}-{b}") for i in range(6) for b in range(2)}
    for host in "ab":
        own = [entry for entry in asked if entry[0] == host]
        assert len(own) == 6
        assert all(later[1] - earlier[2] >= 0.02 for earlier, later in itertools.pairwise(own))


def test_a_bug_while_an_endpoint_is_asked_does_not_go_unseen() -> None:
    def ask(number: int, url: str, bundle: int) -> str:
        raise ZeroDivisionError(f"{number} {url} {bundle}")

    lanes = Lanes(by_host([(0, "http://a/1")]), 1, ask, 0.0)
    with pytest.raises(ZeroDivisionError):
        lanes.take(wait=True)
    assert lanes.take(wait=True) is None


def test_what_was_paid_for_is_kept_when_an_endpoint_fails(tmp_path: Path, bundle: QueryBundle) -> None:
    broken = {"now": True}
    host = Host({"a": near(1)}, lambda number: (403, {}, b"no") if broken["now"] and number > 3 else None)
    with served(host.script) as base:
        url = f"{base}/v2/models/a"
        options = ScanOptions(jobs=1, http={"timeout": 5.0, "batch": 16, "dialect": "v2"})
        first = scan([url], [bundle], tmp_path / "f.jsonl", options, Silent())
        assert (first.counts["failed"], first.exit_code) == (1, 4)
        broken["now"] = False
        second = scan([url], [bundle], tmp_path / "f.jsonl", options, Silent())
    (line,) = lines_of(tmp_path / "f.jsonl")
    assert second.counts["derived"] == 1
    assert line["queries"]["reused"] == 48
    assert line["scan"]["content"].startswith("url:")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda line: line.replace(b'"channels":"RGB"', b'"channels":"BGR"'), "--channel-order (BGR then, RGB now)"),
        (lambda _: b"", "is not a transcript"),
    ],
)
def test_a_transcript_that_cannot_be_gone_on_with_is_told_of_in_words_of_a_scan(
    tmp_path: Path, bundle: QueryBundle, change: Callable[[bytes], bytes], words: str
) -> None:
    """A scan has neither --evidence nor --resume."""
    host = Host({"a": near(1)}, lambda number: (403, {}, b"no") if number > 3 else None)
    with served(host.script) as base:
        options = ScanOptions(jobs=1, http={"timeout": 5.0, "batch": 16, "dialect": "v2"})
        scan([f"{base}/v2/models/a"], [bundle], tmp_path / "f.jsonl", options, Silent())
        (line,) = lines_of(tmp_path / "f.jsonl")
        assert "is kept in" in line["reasons"][0]
        assert line["reasons"][0].endswith(".jsonl, the same command goes on from there")
        (kept,) = (tmp_path / "f.jsonl.transcripts").iterdir()
        first, *rest = kept.read_bytes().splitlines(keepends=True)
        kept.write_bytes(b"".join([change(first), *rest]) if change(first) else b"notes")
        scan([f"{base}/v2/models/a"], [bundle], tmp_path / "f.jsonl", options, Silent())
    (line,) = lines_of(tmp_path / "f.jsonl")
    assert words in line["error"]
    assert line["error"].lower().endswith("move it away to have all of it asked, and paid for, again.")
    assert not any(option in line["error"] for option in ("--evidence", "--resume"))


def test_hosts_are_told_apart_by_name_alone() -> None:
    urls = ["http://a/1", "https://A:8443/2", "http://user:word@a./3", "http://b/4", "http://[::1/5"]
    assert {host: [number for number, _ in found] for host, found in by_host(list(enumerate(urls))).items()} == {
        "a": [0, 1, 2],
        "b": [3],
        "": [4],
    }


def test_fetched_files_lie_apart_from_each_other(tmp_path: Path) -> None:
    """Else one suspect's model could read the weights that came with another."""
    make(tmp_path / "far", a=100, b=100)
    cache = Cache(tmp_path / "cache", 1000)
    a, b = (cache.fetch(f"counted://{tmp_path}/far/{name}.onnx") for name in "ab")
    assert a.parent != b.parent
    shutil.rmtree(a.parent)  # something cleaned the temporary folder
    assert cache.fetch(f"counted://{tmp_path}/far/a.onnx").is_file()
