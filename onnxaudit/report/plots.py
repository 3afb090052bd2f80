"""Placeholder."""

from pathlib import Path
from typing import Any


def draw_all(results: Any, output: Path) -> list[str]:
    return []
