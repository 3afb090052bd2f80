"""docs/validation.md: its shares, and what is kept beside the page."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

DOCS = Path(__file__).resolve().parent.parent / "docs"


@pytest.fixture(scope="module")
def validation() -> ModuleType:
    spec = importlib.util.spec_from_file_location("validation", DOCS / "validation.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["validation"] = module  # dataclasses look for their module there
    spec.loader.exec_module(module)
    return module


def test_shares_are_over_victims_and_what_is_inconclusive_accuses_nobody(validation: ModuleType) -> None:
    p_values: dict[int, list[float | None]] = {0: [0.01, 0.04, None, 0.5], 1: [0.3, 0.04, 0.9, 0.15]}
    rows = [{"victim": victim, "p": {"finding": p}} for victim, values in p_values.items() for p in values]
    cells = validation.rates(rows, "finding")
    shares = [float(cell.split("%")[0]) for cell in cells]
    assert shares == pytest.approx([12.5, 37.5, 37.5, 50.0], abs=0.06)
    assert cells[1].endswith("25% to 50%)")


def test_the_page_is_what_its_figures_say(validation: ModuleType) -> None:
    figures = validation.unpacked((DOCS / "validation.json").read_text(encoding="utf-8"))
    assert validation.page(figures) == (DOCS / "validation.md").read_text(encoding="utf-8")
    innocents = {(row["victim"], row["access"]) for row in figures["rows"] if row["kind"] == "negative"}
    counts = [
        sum(row["kind"] == "negative" and (row["victim"], row["access"]) == group for row in figures["rows"])
        for group in innocents
    ]
    assert min(counts) >= 200


def test_the_promise_holds(validation: ModuleType) -> None:
    """Over all victims no way of judging that decides a finding accuses innocents more often than alpha, by more than chance."""
    figures = validation.unpacked((DOCS / "validation.json").read_text(encoding="utf-8"))
    for access in ("logits", "label"):
        rows = validation.selected(figures, access, lambda row: row["kind"] == "negative")
        for way in ("finding", "looks", "siblings"):
            for alpha in validation.ALPHAS:
                assert np.mean(validation.p_of(rows, way) <= alpha + 1e-12) <= alpha + 0.01, (access, way, alpha)
