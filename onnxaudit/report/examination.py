"""What ``onnxaudit doctor`` found, as text for people."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from typing import Any

MARKS = {"ok": "ok", "absent": "-", "warning": "!", "broken": "BROKEN"}
WIDTH = 118


def text(document: Mapping[str, Any]) -> str:
    """The document of ``doctor --json`` as lines: what works first, what to do last."""
    signs = document["signs"]
    name_width = max((len(sign["name"]) for sign in signs), default=0)
    lines, part = [], ""
    for sign in signs:
        if sign["part"] != part:
            part = sign["part"]
            lines.append(part)
        lines += _sign(sign, name_width)
    advice = {sign["advice"]: sign for sign in signs if sign["advice"]}
    lines.append("")
    lines.append("check works on .onnx files." if document["works"] else "check does NOT work here.")
    if advice:
        lines.append("What to do about the rest, if you need it:" if document["works"] else "What to do:")
        lines += [f"  {sign['part']}, {sign['name']}: {what}" for what, sign in advice.items()]
    return "\n".join(lines)


def _sign(sign: Mapping[str, str], name_width: int) -> list[str]:
    head = f"  {MARKS[sign['state']]:<6}  {sign['name']:<{name_width}}  "
    wrapped = textwrap.wrap(sign["found"], max(30, WIDTH - len(head))) or [""]
    return [head + wrapped[0], *(" " * len(head) + line for line in wrapped[1:])]
