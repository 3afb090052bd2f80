"""A contact sheet of a bundle's queries, as PNG or as coloured half-blocks in a terminal."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from onnxaudit.bundle import QueryBundle
from onnxaudit.errors import UsageError
from onnxaudit.regular import write_in_one_step

COLUMNS, ROWS, GAP = 20, 2, 2
LABEL = 14
"""Pixels of height for the name above each scheme's block."""


def groups(bundle: QueryBundle) -> list[tuple[str, NDArray[np.uint8]]]:
    """Each scheme's first queries and the first controls, (k, H, W, 3), under their names. Raises UsageError for vectors."""
    if bundle.queries.dtype != np.uint8:
        raise UsageError("the queries of this bundle are vectors, not images", "There is nothing to draw.")
    spans = [(scheme.name, scheme.rows) for scheme in bundle.manifest.schemes] + [("controls", bundle.manifest.controls)]
    found = []
    for name, (start, stop) in spans:
        images = bundle.queries[start : min(stop, start + COLUMNS * ROWS)].astype(np.uint8)
        if len(images):
            found.append((name, np.repeat(images, 3, axis=3) if images.shape[3] == 1 else images))
    return found


def tiled(images: NDArray[np.uint8], columns: int) -> NDArray[np.uint8]:
    """Images (k, H, W, 3) side by side, ``columns`` in a row, white between, as one (H', W', 3)."""
    k, height, width, _ = images.shape
    rows = -(-k // columns)
    page = np.full((rows * columns, height + GAP, width + GAP, 3), 255, np.uint8)
    page[:k, :height, :width] = images
    return page.reshape(rows, columns, height + GAP, width + GAP, 3).swapaxes(1, 2).reshape(rows * (height + GAP), -1, 3)


def save_sheet(bundle: QueryBundle, path: Path) -> None:
    """Write the sheet as PNG, one named block a scheme; small images enlarged. Raises UsageError if it cannot be written."""
    from PIL import Image, ImageDraw

    blocks = [(name, tiled(images, COLUMNS)) for name, images in groups(bundle)]
    factor = max(1, round(56 / bundle.queries.shape[2]))
    blocks = [(name, block.repeat(factor, axis=0).repeat(factor, axis=1)) for name, block in blocks]
    width = max(block.shape[1] for _, block in blocks)
    sheet = Image.new("RGB", (width, sum(len(block) + LABEL + GAP for _, block in blocks)), "white")
    draw, top = ImageDraw.Draw(sheet), 0
    for name, block in blocks:
        draw.text((2, top), name, fill="black")
        sheet.paste(Image.fromarray(block), (0, top + LABEL))
        top += len(block) + LABEL + GAP
    drawn = io.BytesIO()
    sheet.save(drawn, format="PNG")
    try:
        write_in_one_step(path, drawn.getvalue())
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror}", "Choose another place with --sheet.") from None


def terminal_takes_pictures(stream: IO[str]) -> bool:
    """Whether the stream is a terminal with 24-bit colours."""
    return stream.isatty() and os.environ.get("COLORTERM") in ("truecolor", "24bit") and "NO_COLOR" not in os.environ


def terminal_rows(bundle: QueryBundle, width: int = 80) -> str:
    """One row of queries a scheme, two pixels a character."""
    lines = []
    for name, images in groups(bundle):
        fit = max(1, width // (images.shape[2] // 2 + 1))
        small = images[:fit, ::2, ::2]
        page = tiled(small, len(small))
        page = page[: len(page) // 2 * 2]
        lines.append(f"  {name}")
        for upper, lower in zip(page[::2], page[1::2], strict=True):
            cells = (
                f"\033[38;2;{a[0]};{a[1]};{a[2]}m\033[48;2;{b[0]};{b[1]};{b[2]}m▀" for a, b in zip(upper, lower, strict=True)
            )
            lines.append("  " + "".join(cells) + "\033[0m")
    return "\n".join(lines)
