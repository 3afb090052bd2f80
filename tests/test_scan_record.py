"""What a scan takes over from earlier ones into the same output: it may cost findings, and must not make any."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onnxaudit.answers import Access
from onnxaudit.audit.judging.sides import Pool
from onnxaudit.audit.progress import Silent
from onnxaudit.audit.scan.scanning import ScanOptions, scan
from onnxaudit.bundle import QueryBundle
from tests.linear_scan import near, save_bundle, save_suspect, weights_of

ONE = ScanOptions(jobs=1)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> QueryBundle:
    return save_bundle(tmp_path_factory.mktemp("bundle") / "b.oab", 59)


class Forgetful(dict[Any, Any]):
    """As if another thread cleared it whenever something was put in."""

    def __setitem__(self, key: Any, value: Any) -> None:
        super().__setitem__(key, value)
        self.clear()


def test_what_other_threads_clear_is_not_missed(bundle: QueryBundle) -> None:
    references = tuple(bundle.answers[model.id] for model in bundle.manifest.of_role("reference"))
    pool = Pool(bundle.answers["victim"], references, (), {}, Forgetful())
    assert len(pool.cut(Access.LABEL, 1)) == 60


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_lines_of_an_earlier_scan_with_a_greater_alpha_accuse_nobody(tmp_path: Path, bundle: QueryBundle) -> None:
    """p = 1/60 and two tests: derived at 0.2, and not at the 0.02 that is asked for now; nor is it what was scanned now."""
    output = tmp_path / "f.jsonl"
    close, far = (str(save_suspect(tmp_path / f"{i}.onnx", w)) for i, w in enumerate((near(0), weights_of(500))))
    assert scan([close], [bundle], output, dataclasses.replace(ONE, alpha=0.2), Silent()).exit_code == 10
    summary = scan([far], [bundle], output, dataclasses.replace(ONE, alpha=0.02), Silent())
    assert (dict(summary.counts), summary.derived, summary.left, summary.exit_code) == ({"not-shown": 1}, [], 1, 0)
    line = lines_of(output)[1]
    assert (line["finding"], line["p_adjusted"]) == ("inconclusive", pytest.approx(2 / 60))
    assert "alpha 0.02 among so many" in line["reasons"][-1]


def test_what_is_left_over_is_not_what_was_found_now(tmp_path: Path, bundle: QueryBundle) -> None:
    output = tmp_path / "f.jsonl"
    close, far = (str(save_suspect(tmp_path / f"{i}.onnx", w)) for i, w in enumerate((near(0), weights_of(500))))
    scan([close], [bundle], output, ONE, Silent())
    summary = scan([far], [bundle], output, ONE, Silent())
    assert (summary.tests, summary.left, summary.derived, summary.exit_code) == (2, 1, [], 0)
    assert [(line["finding"], line["scan"]["listed"]) for line in lines_of(output)] == [("not-shown", True), ("derived", False)]


def test_suspects_without_a_file_are_asked_each_time(
    tmp_path: Path, bundle: QueryBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing says whether a function is still the same: what it measures tells its tests apart."""
    monkeypatch.chdir(tmp_path)
    output, weights = tmp_path / "f.jsonl", tmp_path / "weights.npy"
    Path("a_served_model.py").write_text(
        f"import numpy as np\ndef ask(x):\n    return x.reshape(len(x), -1) @ np.load({str(weights)!r})\n"
    )
    sources = ["a_served_model:ask", str(save_suspect(tmp_path / "m.onnx", weights_of(500)))]
    for tests, seed in ((2, 600), (2, 600), (3, 601)):
        np.save(weights, weights_of(seed))
        summary = scan(sources, [bundle], output, ONE, Silent())
        assert (summary.tests, summary.left, dict(summary.counts)) == (tests, tests - 2, {"not-shown": 2})
        assert (lines_of(output)[0]["scan"]["content"], lines_of(output)[0]["status"]) == (None, "complete")
    assert summary.reused == 1
