"""A scan says the same whichever engine runs it, and whatever suspects do to their workers."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import threading
from pathlib import Path
from typing import Any

import pytest

from onnxaudit.audit.progress import Silent
from onnxaudit.audit.scan.scanning import ScanOptions, scan
from onnxaudit.audit.scan.sources import gathered
from onnxaudit.bundle import QueryBundle
from tests.linear_scan import save_bundle, save_suspects

NAMES = ("local", "dask", "ray")


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> list[QueryBundle]:
    folder = tmp_path_factory.mktemp("bundles")
    return [save_bundle(folder / f"{seed}.oab", 1299, seed) for seed in (0, 1)]


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) | {"seconds": None} for line in path.read_text().splitlines()]


def children() -> set[int]:
    """Processes below this one."""
    found: set[int] = set()
    todo = [os.getpid()]
    while todo:
        for task in Path(f"/proc/{todo.pop()}/task").glob("*/children"):
            try:
                new = set(map(int, task.read_text().split())) - found
            except OSError:
                continue
            found |= new
            todo += new
    return found


def kill_a_busy_worker(output: Path, stop: threading.Event) -> None:
    """Once there are some lines, kill the child that works hardest."""
    while not output.exists() or output.read_bytes().count(b"\n") < 8:
        if stop.wait(0.002):
            return

    def used(process: int) -> int:
        try:
            fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return -1
        return int(fields[11])

    def is_worker(process: int) -> bool:
        try:
            command = Path(f"/proc/{process}/cmdline").read_bytes()
        except OSError:
            return False
        words = (b"loky", b"spawn_main", b"ray::")
        return any(word in command for word in words) and b"resource_tracker" not in command

    workers = sorted(filter(is_worker, children()), key=used)
    if workers:
        os.kill(workers[-1], signal.SIGKILL)
        KILLED.append(workers[-1])


KILLED: list[int] = []


def test_engines_agree_and_lose_nothing_when_a_worker_is_killed(tmp_path: Path, bundles: list[QueryBundle]) -> None:
    folder = tmp_path / "m"
    save_suspects(folder, 56, 2)
    (folder / "text.onnx").write_text("no model")
    (folder / "copy.onnx").write_bytes((folder / "derived-0.onnx").read_bytes())
    found = {}
    for name in NAMES:
        output = tmp_path / f"{name}.jsonl"
        stop = threading.Event()
        KILLED.clear()
        killer = threading.Thread(target=kill_a_busy_worker, args=(output, stop))
        killer.start()
        options = ScanOptions(engine=name, jobs=2)
        summary = scan(gathered([str(folder)]), bundles[:1], output, options, Silent())
        stop.set()
        killer.join()
        assert KILLED, name
        found[name] = lines_of(output)
        assert (summary.counts["failed"], summary.exit_code) == (1, 10)
    assert found["local"] == found["dask"] == found["ray"]
    assert len(found["local"]) == 60
    assert {Path(one["suspect"]["source"]).name for one in found["local"] if one["finding"] == "derived"} == {
        "copy.onnx",
        "derived-0.onnx",
        "derived-1.onnx",
    }


def test_a_suspect_that_kills_its_workers_fails_alone(
    tmp_path: Path, bundles: list[QueryBundle], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a model would that crashes the runtime: a third party's adapter that ends its process stands for it."""
    site = tmp_path / "site"
    (site / "killer-1.0.dist-info").mkdir(parents=True)
    (site / "killer.py").write_text("import os\n\ndef open_killer(target):\n    os._exit(9)\n")
    (site / "killer-1.0.dist-info/METADATA").write_text("Metadata-Version: 2.1\nName: killer\nVersion: 1.0\n")
    (site / "killer-1.0.dist-info/entry_points.txt").write_text("[onnxaudit.adapters]\nkiller = killer:open_killer\n")
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.setenv("PYTHONPATH", f"{site}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    good = save_suspects(tmp_path / "m", 6, 0)
    bad = tmp_path / "m/bad.killer"
    bad.write_bytes(b"boom")
    again = tmp_path / "m/again.killer"
    again.write_bytes(b"boom")
    sources = [str(file) for file in (*good[:3], bad, again, *good[3:])]
    output = tmp_path / "f.jsonl"
    summary = scan(sources, bundles, output, ScanOptions(jobs=1), Silent())
    failed = [one for one in lines_of(output) if one["status"] == "failed"]
    assert {one["suspect"]["source"] for one in failed} == {str(bad), str(again)}
    assert all("bad.killer was not checked: it ended 3 worker processes" in one["error"] for one in failed)  # asked once
    assert (len(lines_of(output)), summary.counts["failed"], summary.counts["derived"]) == (16, 4, 0)


def test_a_bug_in_an_adapter_costs_one_suspect(
    tmp_path: Path, bundles: list[QueryBundle], monkeypatch: pytest.MonkeyPatch
) -> None:
    site = tmp_path / "site"
    (site / "buggy-1.0.dist-info").mkdir(parents=True)
    (site / "buggy.py").write_text("def open_buggy(target):\n    return {}['key']\n")
    (site / "buggy-1.0.dist-info/METADATA").write_text("Metadata-Version: 2.1\nName: buggy\nVersion: 1.0\n")
    (site / "buggy-1.0.dist-info/entry_points.txt").write_text("[onnxaudit.adapters]\nbuggy = buggy:open_buggy\n")
    monkeypatch.syspath_prepend(str(site))
    good = save_suspects(tmp_path / "m", 1, 0)
    (tmp_path / "m/a.buggy").write_bytes(b"1")
    summary = scan([str(good[0]), str(tmp_path / "m/a.buggy")], bundles[:1], tmp_path / "f.jsonl", ScanOptions(jobs=1), Silent())
    assert summary.counts == {"not-shown": 1, "failed": 1}
    assert "bug: KeyError: 'key'" in (tmp_path / "f.jsonl").read_text()


def test_settings_of_engines_reach_them(tmp_path: Path, bundles: list[QueryBundle]) -> None:
    from onnxaudit.errors import UsageError

    save_suspects(tmp_path / "m", 1, 0)
    sources = gathered([str(tmp_path / "m")])
    for options, words in (
        (ScanOptions(engine="spark"), "--engine 'spark'"),
        (ScanOptions(engine="local", address="tcp://127.0.0.1:1"), "has no --address"),
    ):
        with pytest.raises(UsageError, match=words):
            scan(sources, bundles, tmp_path / "f.jsonl", options, Silent())
    assert not (tmp_path / "f.jsonl").exists()
    scan(sources, bundles, tmp_path / "f.jsonl", dataclasses.replace(ScanOptions(), jobs=1), Silent())
    assert len((tmp_path / "f.jsonl").read_bytes().splitlines()) == len(bundles)
