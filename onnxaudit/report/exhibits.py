"""Exhibits: some of the queries that were put to a suspect, with what was expected and what it said; and their pictures."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onnxaudit.suspect import Queries

SIDES = (128, 96, 64, 48, 32, 24, 16)
"""Pictures are reduced to the first of these sides, in pixels, with which all of them together are small enough."""
MOST_CHARACTERS = 800_000
"""Of all pictures of a page together, base64."""


@dataclass(frozen=True, slots=True, eq=False)
class Exhibit:
    """One query. row: its number in the bundle. expected: the victim's answer, of a control the label of the data, by name.

    given: the suspect's answer by name, None where it gave none. expected_score, given_score: the victim's and the suspect's
    score of their answer, as a probability where the suspect gives scores. agrees: whether given is expected. share: of the
    references, that gave what was expected; None without references.
    """

    row: int
    expected: str
    given: str | None = None
    agrees: bool = False
    expected_score: float | None = None
    given_score: float | None = None
    share: float | None = None


@dataclass(frozen=True, slots=True, eq=False)
class ExhibitGroup:
    """The queries of one or several schemes that share them, or the controls (no names), all counted, the first of them shown.

    total: queries; answered: by the suspect; agreed: answered as expected. reference_mean, lowest and highest: share of the
    answered queries on which the references gave what was expected.
    """

    names: tuple[str, ...]
    total: int
    answered: int
    agreed: int
    reference_mean: float | None
    reference_lowest: float | None
    reference_highest: float | None
    shown: tuple[Exhibit, ...]


def pictures(queries: Queries, rows: Sequence[int]) -> Mapping[int, str]:
    """Data URIs of PNG pictures by row, reduced until all of them fit on a page.

    Empty for vectors, for images that have neither one channel nor three, and where there are more than fit at the least size.
    """
    if queries.ndim != 4 or queries.shape[3] not in (1, 3) or queries.dtype != np.uint8:
        return {}
    for side in SIDES:
        drawn, characters = {}, 0
        for row in dict.fromkeys(rows):
            drawn[row] = "data:image/png;base64," + base64.b64encode(png(np.asarray(queries[row]), side)).decode()
            characters += len(drawn[row])
            if characters > MOST_CHARACTERS:
                break
        else:
            return drawn
    return {}


def png(image: NDArray[np.uint8], side: int) -> bytes:
    """An image (H, W, 1) or (H, W, 3) as PNG, neither of its sides longer than ``side``."""
    from PIL import Image

    picture = Image.fromarray(image[..., 0] if image.shape[2] == 1 else image)
    if max(picture.size) > side:
        width, height = picture.size
        factor = side / max(picture.size)
        picture = picture.resize((max(1, round(width * factor)), max(1, round(height * factor))), Image.Resampling.BOX)
    file = io.BytesIO()
    picture.save(file, "PNG", optimize=True)
    return file.getvalue()
