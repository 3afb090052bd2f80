"""--sandbox where models come in folders: a judge's references, and the suspects of a scan."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from onnxaudit.audit.progress import Silent
from onnxaudit.audit.scan.scanning import ScanOptions, scan
from onnxaudit.audit.scan.sources import gathered
from onnxaudit.bundle import QueryBundle
from onnxaudit.sandbox.limits import Limits
from tests.hostile_models import save_endless, save_swelling
from tests.linear_scan import near, save_bundle, save_suspect, save_suspects, weights_of
from tests.typed import typed

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="no other kernel has these walls")
SMALL = Limits(memory=1, cpu=4, wall=120)  # of processor time: how busy the machine is does not count


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, QueryBundle]:
    path = tmp_path_factory.mktemp("bundle") / "v.oab"
    return path, save_bundle(path, 19)


def test_references_are_confined_and_the_report_says_so(
    tmp_path: Path, bundle: tuple[Path, QueryBundle], capsys: pytest.CaptureFixture[str]
) -> None:
    """Two of the other party's models mean harm: they are left out, with the reason, and the rest is as without a sandbox."""
    save_suspects(tmp_path / "pool", 4, 0)
    suspect = str(save_suspect(tmp_path / "s.onnx", near(1)))
    common = ("check", suspect, "--bundle", str(bundle[0]), "--references", str(tmp_path / "pool"), "--json", "--device", "cpu")
    free = json.loads(typed(*common, capsys=capsys)[1])
    save_swelling(tmp_path / "pool/swelling.onnx")
    save_endless(tmp_path / "pool/endless.onnx")
    evidence, report = str(tmp_path / "e.jsonl"), str(tmp_path / "r.json")
    kept = ("--sandbox", "--sandbox-limits", "memory=1,cpu=4,wall=120", "--evidence", evidence, "-o", report)
    _, out, err = typed(*common, *kept, capsys=capsys)
    confined = json.loads(out)
    assert confined["bundle"]["references"] == free["bundle"]["references"] == 4
    assert (confined["p_value"], confined["score"]) == (free["p_value"], free["score"])
    said = [words for words in confined["conditions"] if "ran confined: memory 1 GiB, CPU time 4 s" in words]
    assert len(said) == 1, confined["conditions"]
    assert not any("ran confined" in words for words in free["conditions"])
    left_out = {Path(words.split()[2]).name: words for words in confined["conditions"] if words.startswith("left out")}
    assert set(left_out) == {"swelling.onnx", "endless.onnx"}
    assert "more than 1 GiB of memory" in left_out["swelling.onnx"]
    assert "took more than 4 s of CPU time" in left_out["endless.onnx"]
    assert "error" not in err
    code, out, err = typed("verify", report, "--evidence", evidence, "--bundle", str(bundle[0]), capsys=capsys)
    assert code == 0, err
    assert "to the last bit" in out


def test_references_for_an_endpoint_can_be_confined(
    tmp_path: Path, bundle: tuple[Path, QueryBundle], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    save_suspects(tmp_path / "pool", 2, 0)
    nowhere = ("check", "--url", "http://127.0.0.1:9/v2/models/m", "--bundle", str(bundle[0]), "--sandbox")
    assert typed(*nowhere, capsys=capsys)[0] == 2
    assert typed(*nowhere, "--references", str(tmp_path / "pool"), capsys=capsys)[0] == 4, "it is asked, and not reached"


def _lines(path: Path) -> dict[str, dict[str, Any]]:
    return {Path(line["suspect"]["source"]).name: line for line in map(json.loads, path.read_text().splitlines())}


def test_a_scan_of_strangers(tmp_path: Path, bundle: tuple[Path, QueryBundle]) -> None:
    """What crashes, hoards or hangs is its own error line; the others are as without a sandbox, and say what was applied."""
    save_suspects(tmp_path / "m", 1, 1)
    sources = gathered([str(tmp_path / "m")])
    scan(sources, [bundle[1]], tmp_path / "free.jsonl", ScanOptions(jobs=1), Silent())
    save_swelling(tmp_path / "m/swelling.onnx")
    save_endless(tmp_path / "m/endless.onnx")
    options = ScanOptions(jobs=2, sandbox=SMALL)
    summary = scan(gathered([str(tmp_path / "m")]), [bundle[1]], tmp_path / "f.jsonl", options, Silent())
    free, confined = _lines(tmp_path / "free.jsonl"), _lines(tmp_path / "f.jsonl")
    assert summary.counts["failed"] == 2, dict(summary.counts)
    for name, line in free.items():
        runtime = confined[name]["suspect"]["runtime"]
        assert "memory 1 GiB" in runtime["sandbox"]
        assert "sandbox" not in line["suspect"]["runtime"]
        assert (confined[name]["p_value"], confined[name]["score"]) == (line["p_value"], line["score"])
    for name, words in (("swelling.onnx", "more than 1 GiB"), ("endless.onnx", "took more than 4 s of CPU time")):
        line = confined[name]
        assert (line["status"], line["finding"], line["p_value"]) == ("failed", "inconclusive", None)
        assert words in line["error"]


def test_limits_of_a_scan_without_a_sandbox(bundle: tuple[Path, QueryBundle], tmp_path: Path, capsys: Any) -> None:
    save_suspect(tmp_path / "s.onnx", weights_of(7))
    arguments = ("scan", str(tmp_path), "--bundle", str(bundle[0]), "-o", str(tmp_path / "f.jsonl"))
    assert typed(*arguments, "--sandbox-limits", "memory=1", capsys=capsys)[0] == 2
    assert not (tmp_path / "f.jsonl").exists()
    assert typed(*arguments, "--sandbox", "--jobs", "1", capsys=capsys)[0] == 0
    assert "sandbox" in _lines(tmp_path / "f.jsonl")["s.onnx"]["suspect"]["runtime"]
