"""What the report promises to its readers, also of runs that did not end."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onnxaudit.answers import Access, Answers
from onnxaudit.audit.checking import CheckOptions
from onnxaudit.audit.running import failed
from onnxaudit.errors import ArtefactError, SuspectError, UsageError
from onnxaudit.report.model import Report
from tests.bundles import QUERIES, simulated_bundle
from tests.simulated import BUNDLE, INNOCENT, VICTIM, checked, with_references

CONTRACT = {
    "schema", "status", "finding", "p_value", "p_floor", "alpha", "score", "reasons", "bundle", "suspect", "controls", "schemes",
    "queries", "seconds",
}  # fmt: skip
ADDED = {"error", "statistic", "tolerance", "p_exchangeable", "conditions", "tool", "transcript_sha256", "digest"}
ADDED |= {"references", "line_up", "looks", "needed", "own_pool", "margin"}


FAILED = CheckOptions(), SuspectError("it hung up", "Try again.")
INTERRUPTED = CheckOptions(alpha=0.1), KeyboardInterrupt()


def strictly(text: str) -> Any:
    def refuse(name: str) -> None:
        raise AssertionError(f"{name} in a report")

    return json.loads(text, parse_constant=refuse)


REPORTS: dict[str, Callable[[], Report]] = {
    "derived": lambda: checked(VICTIM),
    "not shown": lambda: checked(INNOCENT),
    "labels": lambda: checked(INNOCENT.degrade(Access.LABEL)),
    "budget": lambda: checked(INNOCENT, budget=3),
    "no references": lambda: checked(VICTIM, with_references(0)),
    "one reference": lambda: checked(VICTIM, with_references(1)),
    "two references": lambda: checked(VICTIM, with_references(2)),
    "no labels": lambda: checked(VICTIM, simulated_bundle(20, labelled=False)),
    "constant": lambda: checked(Answers.from_labels(np.zeros(QUERIES), 5)),
    "failed": lambda: failed(BUNDLE, "x.onnx", *FAILED, 0),
    "interrupted": lambda: failed(BUNDLE, "x.onnx", *INTERRUPTED, 7),
}


@pytest.mark.parametrize("what", REPORTS)
def test_the_json_has_exactly_the_keys_of_the_contract(what: str) -> None:
    report = strictly(REPORTS[what]().to_json())
    assert set(report) == CONTRACT | ADDED
    assert list(report)[:8] == ["schema", "status", "finding", "p_value", "p_floor", "alpha", "score", "reasons"]
    assert report["schema"] == "onnxaudit.report/1"
    assert report["finding"] in ("derived", "not-shown", "inconclusive")
    pool = {"pool_sha256"} if report["status"] == "complete" else set()
    assert set(report["bundle"]) == {"id", "victim_sha256", "references"} | pool
    assert set(report["suspect"]) >= {"source", "kind", "access", "sha256", "runtime"}
    assert set(report["controls"]) >= {"n", "agreement", "ok", "confused", "answered"}
    assert set(report["queries"]) == {"sent", "reused", "failed"}
    assert (report["finding"] == "inconclusive") == bool(report["reasons"])
    for scheme in report["schemes"]:
        assert set(scheme) >= {"name", "score", "p_value", "p_adjusted", "queries", "access", "skipped"}
    if report["status"] == "complete":
        assert set(report["seconds"]) >= {"open", "ask", "detect"}
        assert all(seconds >= 0 for seconds in report["seconds"].values())
        assert report["error"] is None
        assert len(report["schemes"]) == 2


def test_runs_that_did_not_end_are_reports_too() -> None:
    interrupted = failed(BUNDLE, "x.onnx", *INTERRUPTED, 7)
    assert (interrupted.status, interrupted.exit_code, interrupted.alpha) == ("interrupted", 130, 0.1)
    assert interrupted.queries == {"sent": 7, "reused": 0, "failed": 0}
    assert interrupted.error == "interrupted"
    refused = failed(BUNDLE, "x.onnx", *FAILED, 0)
    assert (refused.status, refused.error, refused.exit_code) == ("failed", "it hung up. Try again.", 4)
    assert (refused.finding, refused.p_value, refused.alpha) == ("inconclusive", None, 0.05)
    assert refused.queries == {"sent": 0, "reused": 0, "failed": 0}
    assert refused.reasons == (refused.error,)
    assert (refused.bundle["id"], refused.bundle["references"], refused.p_floor) == (BUNDLE.id, 39, 1 / 40)
    assert failed(BUNDLE, "x", CheckOptions(), ArtefactError("bad"), 0).exit_code == 3
    assert failed(BUNDLE, "x", CheckOptions(), UsageError("bad"), 0).exit_code == 2
    assert failed(BUNDLE, "x", CheckOptions(), ZeroDivisionError("bug"), 0).exit_code == 1


def test_an_interrupted_run_says_where_its_answers_are() -> None:
    report = failed(BUNDLE, "x.onnx", CheckOptions(evidence=Path("e.jsonl")), KeyboardInterrupt(), 7)
    assert report.error == "interrupted; what was answered is kept in e.jsonl, go on with --resume"


def test_a_report_of_a_failed_run_keeps_the_url_s_secrets() -> None:
    source = failed(BUNDLE, "https://me:pass@host:1/v2/models/m?key=1#x", CheckOptions(), SuspectError("x"), 0).suspect["source"]
    assert source == "https://host:1/v2/models/m"
