"""What the commands share: progress on stderr, parsing of small option values, finding the bundle."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from onnxaudit.errors import UsageError

PATIENCE = 1.0
"""Seconds before a step gets a bar."""
LEAST_ALPHA = 1e-9
"""It needs a billion references."""


class Console:
    """Progress of a use case on stderr: notes always, bars on a terminal for steps that take longer than a second."""

    def __init__(self, *, quiet: bool = False) -> None:
        self._quiet = quiet
        self._bars: Any = None

    def note(self, words: str) -> None:
        """One line on stderr; names in it may be a stranger's."""
        if not self._quiet:
            from onnxaudit.report.text import printable

            print(f"  {printable(words)}", file=sys.stderr)

    def task(self, words: str, total: int) -> Callable[[int], None]:
        """A bar that appears once the step has lasted a second, whether or not anything was done by then."""
        if self._quiet or not sys.stderr.isatty():
            return lambda done: None  # noqa: ARG005
        lock = threading.Lock()
        latest, handle = [0], list[Any]()

        def draw() -> None:
            with lock:
                if not handle and latest[0] < total:
                    handle.append(self._progress().add_task(words, total=total))
                if handle:
                    self._bars.update(handle[0], completed=latest[0], visible=latest[0] < total)

        timer = threading.Timer(PATIENCE, draw)
        timer.daemon = True
        timer.start()

        def update(done: int) -> None:
            latest[0] = done
            if done >= total:
                timer.cancel()
            if handle:
                draw()

        return update

    def _progress(self) -> Any:
        if self._bars is None:
            from rich.console import Console as RichConsole
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            columns = (TextColumn("  {task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
            self._bars = Progress(*columns, console=RichConsole(stderr=True), transient=True)
            self._bars.start()
        return self._bars

    def close(self) -> None:
        """Take the bars down."""
        if self._bars is not None:
            self._bars.stop()


def find_bundle(given: Path | None) -> Path:
    """--bundle, else $ONNXAUDIT_BUNDLE, else the only .oab file here. Raises UsageError that lists what was found."""
    if given is not None:
        return given
    named = os.environ.get("ONNXAUDIT_BUNDLE")
    if named:
        return Path(named)
    found = sorted(Path.cwd().glob("*.oab"))
    if len(found) == 1:
        return found[0]
    if found:
        raise UsageError(f"several bundles here: {', '.join(path.name for path in found)}", "Choose one with --bundle.")
    raise UsageError("no bundle given, and no .oab file here", "Give --bundle F.oab, or make one with: onnxaudit craft VICTIM")


def check_apart(output: Path, option: str, others: Mapping[str, Path | str | None]) -> None:
    """Raise UsageError where an output has no name, or would replace a file that is read or kept. others: by what they are."""
    if not output.name:
        raise UsageError(f"{option} {str(output)!r} is no name of a file", "Give one.")
    for what, other in others.items():
        if other is not None and os.path.realpath(output) == os.path.realpath(other):
            raise UsageError(f"{option} {output} would replace {what}", f"Give {option} another name.")


def check_output(output: Path, option: str, others: Mapping[str, Path | str | None]) -> None:
    """As ``check_apart``, and for what can be no file: a folder, a device, a place that cannot be written to. Before the work."""
    check_apart(output, option, others)
    if output.exists() and not output.is_file():
        raise UsageError(f"{option} {output} is a folder or a device, not a file", f"Give {option} another name.")
    if not os.access(os.path.realpath(output.parent), os.W_OK):
        raise UsageError(f"{option} {output}: its folder does not exist or cannot be written to", "Choose another place.")


def parse_shape(text: str | None) -> tuple[int, ...] | None:
    """ "28x28x1" as (28, 28, 1), "64" as (64,)."""
    if text is None:
        return None
    parts = text.lower().split("x")
    if len(parts) not in (1, 3) or not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise UsageError(f"--input {text!r} is not a size", "Give HEIGHTxWIDTHxCHANNELS, as 28x28x1, or one number for vectors.")
    return tuple(map(int, parts))


def parse_floats(text: str | None, option: str) -> tuple[float, ...] | None:
    """ "0.485,0.456,0.406" as floats."""
    if text is None:
        return None
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise UsageError(f"{option} {text!r} is not a list of numbers", "Give one value, or one a channel: 0.5,0.5,0.5") from None


def parse_choice(text: str | None, option: str, choices: tuple[str, ...]) -> str | None:
    """The value if it is one of the choices."""
    if text is not None and text not in choices:
        raise UsageError(f"{option} {text!r} is not known", f"Use {', '.join(choices)}.")
    return text


def parse_number(text: str | None, option: str) -> float | None:
    """A float, also as a fraction: "1/255"."""
    if text is None:
        return None
    numerator, _, denominator = text.partition("/")
    try:
        return float(numerator) / float(denominator or 1)
    except (ValueError, ZeroDivisionError):
        raise UsageError(f"{option} {text!r} is not a number", "For example 1/255, or 1.") from None


def parse_input(
    shape: str | None, scale: str | None, mean: str | None, std: str | None, layout: str | None, channel_order: str | None
) -> dict[str, Any]:
    """What the user says of the victim's input, by the fields of CraftOptions."""
    return {
        "input": parse_shape(shape),
        "scale": parse_number(scale, "--scale"),
        "mean": parse_floats(mean, "--mean"),
        "std": parse_floats(std, "--std"),
        "layout": parse_choice(layout, "--layout", ("NCHW", "NHWC")),
        "channel_order": parse_choice(channel_order, "--channel-order", ("RGB", "BGR")),
    }


def parse_counts(text: str, option: str) -> list[int]:
    """Whole numbers above 1, in increasing order: "10,20,50"."""
    try:
        counts = sorted({int(part) for part in text.split(",")})
    except ValueError:
        counts = []
    if not counts or counts[0] < 2:
        raise UsageError(f"{option} {text!r} is not a list of numbers from 2", "For example 10,20,50,100.")
    return counts


def check_alpha(alpha: float | None) -> None:
    """Raise UsageError unless alpha is None or between 0 and 1, and not so small that no pool of references could do."""
    if alpha is not None and not LEAST_ALPHA <= alpha < 1:
        raise UsageError(f"--alpha {alpha:g} must lie between {LEAST_ALPHA:g} and 1", "For example 0.05.")


def parse_headers(lines: list[str]) -> dict[str, str]:
    """ "Name: value" lines as a mapping, with environment variables filled in; $$ is a $. Raises UsageError for an unset one."""
    import re

    def fill(match: re.Match[str]) -> str:
        name = match[1] or match[2]
        if name is None:
            return "$"
        if name not in os.environ:
            meant = f"${name}" if name == name.upper() else "a variable"  # else it may be a part of a password
            raise UsageError(
                f"--header {header} uses {meant}, which is not set", "Export it first, or write $$ for a $; nothing was sent."
            )
        return os.environ[name]

    found = {}
    for line in lines:
        header, colon, value = line.partition(":")
        header = header.strip()
        if not colon or not header:
            raise UsageError("--header must look like 'Name: value'")
        found[header] = re.sub(r"\$(?:\$|\{(\w+)\}|(\w+))", fill, value.strip())
    return found
