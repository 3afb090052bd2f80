"""The catalogue of schemes and parts as text."""

from __future__ import annotations

from onnxaudit.report.text import table
from onnxaudit.schemes.catalogue import ALIASES, CATALOGUE, RESERVED
from onnxaudit.schemes.detectors import DETECTORS
from onnxaudit.schemes.representations import REPRESENTATIONS
from onnxaudit.schemes.samplers import SAMPLERS, Need


def catalogue_text() -> str:
    """Every scheme with its paper, parts, needs, access and cost; then the parts; for a terminal."""
    rows = [
        (
            item.name,
            item.paper,
            f"{item.sampler} + {item.representation} + {item.detector}",
            needs_in_words(item.needs),
            item.access,
            str(item.queries),
            SAMPLERS[item.sampler].cost,
        )
        for item in CATALOGUE.values()
    ]
    lines = [
        table(
            (
                "scheme",
                "paper",
                "queries + representation + detector",
                "crafting needs",
                "access",
                "published queries",
                "cost of crafting",
            ),
            rows,
        )
    ]
    lines += [f"also: {alias} = {' and '.join(names)}" for alias, names in ALIASES.items()]
    lines += [f"not here: {name}, {why}" for name, why in RESERVED.items()]
    lines += [
        "",
        "Published queries are what the paper sends; --queries sets the number per sampler, 100 unless told.",
        "Schemes with the same sampler share queries.",
        "Compose others as queries+representation+detector, with parameters as in negative:fill=margin+correlation+l1:",
        f"  queries          {', '.join(SAMPLERS)}",
        f"  representations  {', '.join(REPRESENTATIONS)}",
        f"  detectors        {', '.join(DETECTORS)}",
    ]
    return "\n".join(lines)


def needs_in_words(needs: Need) -> str:
    """The names of what is needed, in order; "nothing" if that is nothing."""
    return (needs.name or "nothing").lower().replace("|", ", ")
