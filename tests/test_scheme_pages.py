"""Every scheme has its page, its picture and its line in the index, and its page names all of its parameters."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
from PIL import Image

from onnxaudit.report.catalogue import catalogue_text
from onnxaudit.schemes.catalogue import ALIASES, CATALOGUE
from onnxaudit.schemes.compositions import parameters_of
from onnxaudit.schemes.detectors import DETECTORS
from onnxaudit.schemes.representations import REPRESENTATIONS
from onnxaudit.schemes.samplers import SAMPLERS

DOCS = Path(__file__).resolve().parent.parent / "docs"
SAME = {
    "ipguard-tr": "ipguard-tl",
    "ipguard-rl": "ipguard-tl",
    "ipguard-rr": "ipguard-tl",
    "sac-m-rbf": "sac-m",
    "deepjudge-jsd": "deepjudge",
}
"""Pages that say what differs from another and leave the rest to it."""
SHARED = ("learned",)


@pytest.mark.parametrize("name", list(CATALOGUE))
def test_a_scheme_has_a_page_that_names_its_parts_and_parameters(name: str) -> None:
    page = (DOCS / f"schemes/{name}.md").read_text(encoding="utf-8")
    item = CATALOGUE[name]
    for heading in ("## Formula", "## Parameters", "## Known failures"):
        assert heading in page or name in SAME, heading
    assert f"]({name}.png)" in page
    if name in SAME:
        assert f"({SAME[name]}.md)" in page
        page += (DOCS / f"schemes/{SAME[name]}.md").read_text(encoding="utf-8")
    page += "".join((DOCS / f"schemes/{shared}.md").read_text(encoding="utf-8") for shared in SHARED)
    page += (DOCS / "schemes.md").read_text(encoding="utf-8")
    for part in (item.sampler, item.representation, item.detector):
        assert part in page
    parts = (SAMPLERS[item.sampler], REPRESENTATIONS[item.representation], DETECTORS[item.detector])
    for parameter in {key for part in parts for key in parameters_of(part)}:
        assert f"`{parameter}`" in page or f"`{parameter}=" in page, parameter


@pytest.mark.parametrize("name", list(CATALOGUE))
def test_a_scheme_has_a_picture_of_its_queries(name: str) -> None:
    with Image.open(DOCS / f"schemes/{name}.png") as picture:
        assert picture.format == "PNG"
        assert min(picture.size) > 100
        assert len(picture.convert("L").getcolors(256) or []) > 20  # not blank


def test_the_index_is_that_of_the_catalogue() -> None:
    spec = importlib.util.spec_from_file_location("pictures", DOCS / "pictures.py")
    assert spec is not None
    assert spec.loader is not None
    pictures = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(pictures)
    page = (DOCS / "schemes.md").read_text(encoding="utf-8")
    assert page == pictures.with_index(page), "run: python docs/pictures.py --index"


def test_every_part_is_in_the_index_and_in_the_list() -> None:
    page, said = (DOCS / "schemes.md").read_text(encoding="utf-8"), catalogue_text()
    for name in (*SAMPLERS, *REPRESENTATIONS, *DETECTORS):
        assert f"`{name}`" in page, name
        assert name in said
    for name in (*CATALOGUE, *ALIASES):
        assert name in said
