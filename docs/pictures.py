"""Draws the queries of every scheme on the fixtures' victim, and the table of schemes in docs/schemes.md.

    python docs/pictures.py [NAME ...]    docs/schemes/NAME.png, all of them unless named
    python docs/pictures.py --index       the table between the two comments in docs/schemes.md

Schemes that want surrogates or references to learn from get a few that are trained first, kept in ``fixtures/.cache``.
"""

from __future__ import annotations

import argparse
import re
import shutil
from pathlib import Path

from matplotlib.figure import Figure

from onnxaudit.audit.crafting import CraftOptions, craft
from onnxaudit.audit.progress import Silent
from onnxaudit.bundle import QueryBundle
from onnxaudit.report.catalogue import needs_in_words
from onnxaudit.schemes.catalogue import CATALOGUE, Scheme
from onnxaudit.schemes.samplers import Need

HERE = Path(__file__).resolve().parent
FIXTURES = HERE.parent / "fixtures"
CLASSES = ("T-shirt", "trousers", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "boot")
COLUMNS, ROWS = 8, 2
POOL = 6
"""Surrogates and references to learn from, where a scheme wants them."""


def crafted(scheme: Scheme) -> QueryBundle:
    """A bundle of one scheme from the fixtures' victim."""
    pools = Need.SURROGATES | Need.REFERENCES
    options = CraftOptions(
        victim=FIXTURES / "zoo/victim.pt",
        data=FIXTURES / "fashion/train.npz",
        schemes=(scheme.name,),
        queries=100,
        controls=0,
        train_surrogates=POOL if scheme.needs & pools else 0,
        surrogate_folder=FIXTURES / ".cache/surrogates",
        train_references=3 * POOL if Need.REFERENCES in scheme.needs else 0,
        reference_folder=FIXTURES / ".cache/references",
        siblings=_siblings() if Need.SIBLINGS in scheme.needs else None,
        device="cpu",
    )
    return craft(options, Silent())


def _siblings() -> Path:
    """Models of the fixtures on the victim's own data, one of them by its own recipe, in a folder of their own."""
    folder = FIXTURES / ".cache/siblings"
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("twin", "twin-vgg", "twin-densenet"):
        shutil.copy(FIXTURES / f"zoo/suspects/{name}.onnx", folder)
    return folder


def draw(scheme: Scheme, path: Path) -> None:
    """The first queries of a scheme with the victim's labels."""
    bundle = crafted(scheme)
    labels = bundle.answers["victim"].labels
    figure = Figure(figsize=(COLUMNS, 1.25 * ROWS), layout="constrained")
    panels = figure.subplots(ROWS, COLUMNS).ravel()
    for axes, image, label in zip(panels, bundle.queries, labels, strict=False):
        axes.imshow(image.squeeze(), cmap="gray", vmin=0, vmax=255, interpolation="nearest")
        axes.set_title(CLASSES[label], fontsize=7, pad=2)
    for axes in panels:
        axes.axis("off")
    figure.savefig(path, dpi=80, metadata={"Software": None})


def index() -> str:
    """The catalogue as a Markdown table with links."""
    lines = [
        "| scheme | paper | queries | representation | detector | crafting needs | access |",
        "|---|---|---|---|---|---|---|",
    ]
    for item in CATALOGUE.values():
        name = f"[`{item.name}`](schemes/{item.name}.md)"
        parts = f"{item.sampler} | {item.representation} | {item.detector}"
        lines.append(f"| {name} | {item.paper} | {parts} | {needs_in_words(item.needs)} | {item.access} |")
    return "\n".join(lines)


def with_index(page: str) -> str:
    """The page with its table made anew."""
    return re.sub(
        r"(<!-- schemes: begin -->\n).*?(<!-- schemes: end -->)", lambda m: f"{m[1]}{index()}\n{m[2]}", page, flags=re.DOTALL
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--index", action="store_true")
    arguments = parser.parse_args()
    if arguments.index:
        page = HERE / "schemes.md"
        page.write_text(with_index(page.read_text(encoding="utf-8")), encoding="utf-8")
        return
    for name in arguments.names or CATALOGUE:
        draw(CATALOGUE[name], HERE / f"schemes/{name}.png")
        print(name, flush=True)


if __name__ == "__main__":
    main()
