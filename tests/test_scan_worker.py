"""A worker of a scan, as a cluster runs it: alive for many scans, and perhaps with threads."""

from __future__ import annotations

import json
import tempfile
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest

from onnxaudit.audit.scan.worker import Ask, Briefing, _drop_caches, work
from tests.linear_scan import save_bundle, save_suspects


def test_a_worker_keeps_files_of_one_scan_and_its_threads_do_not_take_them_from_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cache here has room for one file."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    bundle = save_bundle(tmp_path / "b.oab", 19)
    files = save_suspects(tmp_path / "m", 12, 0)
    limit = files[0].stat().st_size + 100
    for name in ("one", "two"):
        briefing = Briefing((bundle,), 12, "s", 0.05, scan=name, cache=limit)
        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(partial(work, briefing), [Ask(f"file://{file}", (0,)) for file in files]))
        lines = [json.loads(line) for asked in found for _, _, line in asked.lines]
        assert [(line["status"], line["error"]) for line in lines] == [("complete", None)] * 12
        assert [path.name for path in (tmp_path / "tmp").iterdir()] == [f"onnxaudit-{name}"]
    _drop_caches()
    assert not list((tmp_path / "tmp").iterdir())
