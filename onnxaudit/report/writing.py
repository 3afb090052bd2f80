"""Where reports go: stdout, and files by suffix."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

from onnxaudit.bundle import QueryBundle
from onnxaudit.errors import UsageError
from onnxaudit.regular import write_in_one_step
from onnxaudit.report.markdown import markdown
from onnxaudit.report.model import Report
from onnxaudit.report.text import text


def _page(report: Report, bundle: QueryBundle | None) -> str:
    from onnxaudit.report.page import page  # jinja2 takes its time

    return page(report, bundle)


FORMATS: dict[str, Callable[[Report, QueryBundle | None], str]] = {
    ".html": _page,
    ".json": lambda report, _: report.to_json() + "\n",
    ".md": lambda report, _: markdown(report),
    ".txt": lambda report, _: text(report) + "\n",
}


def check_format(path: Path) -> None:
    """Raise UsageError unless a report can be written under this name; before any query is paid for."""
    if path.suffix not in FORMATS:
        raise UsageError(f"-o {path.name}: no report format {path.suffix!r}", f"Use {', '.join(FORMATS)}.")
    if path.is_dir():
        raise UsageError(f"-o {path} is a folder", "Choose another name.")
    if not os.access(os.path.realpath(path.parent), os.W_OK):
        raise UsageError(f"-o {path}: its folder does not exist or cannot be written to", "Choose another place.")


def write_all(report: Report, path: Path, bundle: QueryBundle | None = None) -> None:
    """Write the report in the format of the suffix, in one step. Raises UsageError if it cannot be written.

    bundle: whose queries a page shows as pictures.
    """
    check_format(path)
    # names of files may have bytes that are no text; in JSON what is written for them is an escape
    data = FORMATS[path.suffix](report, bundle).encode(errors="backslashreplace")
    try:
        write_in_one_step(path, data)
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror}", "Choose another place with -o.") from None


def show(report: Report, *, as_json: bool) -> None:
    """The report on stdout; colours only on a terminal that wants them."""
    colour = sys.stdout.isatty() and "NO_COLOR" not in os.environ
    print(report.to_json() if as_json else text(report, colour=colour))
