"""The errors a user can cause: each says what happened, why, and what to do, and carries its exit code."""

from __future__ import annotations

MOST = 2000
"""Characters of a message; what it quotes may be a stranger's."""


def one_line(text: str) -> str:
    """One line of bounded length without what would steer a terminal; bytes of file names that are no text stay surrogates."""
    line = " ".join(text[: 2 * MOST].split())
    line = line if len(line) <= MOST else f"{line[:MOST]} …"
    return "".join(c if c.isprintable() or "\ud800" <= c <= "\udfff" else "\ufffd" for c in line)


class OnnxauditError(Exception):
    """Base of all errors that are not bugs. ``str()`` is one line: what: why (hint)."""

    exit_code = 1

    def __init__(self, what: str, hint: str = "") -> None:
        super().__init__(what)
        self.uncut = what, hint  # for those who know what in it is secret: half a secret would not be recognised
        self.what = one_line(what)
        self.hint = one_line(hint)

    def __str__(self) -> str:
        return f"{self.what}. {self.hint}" if self.hint else self.what


class UsageError(OnnxauditError):
    """The command cannot be carried out as given (exit 2)."""

    exit_code = 2


class ArtefactError(OnnxauditError):
    """A file is unreadable, damaged, foreign or unsafe (exit 3)."""

    exit_code = 3


class SuspectError(OnnxauditError):
    """The suspect could not be reached, refused, or answered nonsense (exit 4)."""

    exit_code = 4


class Nonsense(SuspectError):  # noqa: N818 - a kind of SuspectError
    """The suspect answered, and what it said is no answer to what it was asked (exit 4)."""


class OtherClasses(Nonsense):
    """The suspect names classes, or so many, that the victim does not have: its label set is another one (exit 4)."""


class Unreachable(SuspectError):  # noqa: N818 - a kind of SuspectError
    """The suspect was not reached, or did not let the request in: that says nothing of the inputs that it takes (exit 4)."""


class Stopped(SuspectError):  # noqa: N818 - what stopped it is the error
    """The suspect was not asked, because another request failed or the run was interrupted (exit 4)."""


class BudgetSpent(OnnxauditError):  # noqa: N818 - it ends an interview, it is no error
    """The query budget is used up; never leaves the interview."""

    exit_code = 11


class SmallerBatch(OnnxauditError):  # noqa: N818 - it goes on with less, it is no error
    """The suspect answered none of these queries and takes fewer at once: its card says how many. Never leaves the interview."""

    exit_code = 4


def missing_extra(module: str, extra: str) -> UsageError:
    """The error for a command whose optional dependency is not installed."""
    return UsageError(f"this needs {module}, which is not installed", f"Install it with: pip install 'onnxaudit[{extra}]'")
