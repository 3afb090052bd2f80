"""A dry run as text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def text(document: Mapping[str, Any]) -> str:
    """The lines of a dry run, from its JSON: what was sent, what came back, what a check would cost."""
    plan = document["plan"]
    rows = list(document["exchange"].items())
    rows += [("input", document["input"]), ("answer", document["answer"]), ("victim", document["victim"])]
    cost = f"at most {plan['queries']} queries, {plan['repeated']} of them repeats, in {plan['requests']} requests"
    cost += f" of {plan['batch']}"
    if plan["seconds_at_rate"] is not None:
        cost += f"; at this rate {_duration(plan['seconds_at_rate'])}"
    rows += [("a check", cost), ("spent", f"{plan['spent']} {'query' if plan['spent'] == 1 else 'queries'}, now")]
    width = max(len(name) for name, _ in rows)
    return "\n".join(
        [f"{document['source']}: one query sent, nothing recorded", *(f"  {name:<{width}}  {value}" for name, value in rows)]
    )


def _duration(seconds: int) -> str:
    minutes, rest = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"
