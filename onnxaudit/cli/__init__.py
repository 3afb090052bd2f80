"""The command line: one file a command, no logic. ``main`` turns errors into one line and an exit code."""

from __future__ import annotations

import contextlib
import functools
import gc
import importlib
import os
import signal
import sys
import traceback
from collections.abc import Callable
from typing import NoReturn

from onnxaudit import __version__
from onnxaudit.errors import OnnxauditError, SuspectError, UsageError, one_line

COMMANDS = (
    "craft",
    "calibrate",
    "check",
    "scan",
    "zoo",
    "bench",
    "show",
    "verify",
    "commit",
    "redteam",
    "schemes",
    "adapters",
    "doctor",
    "demo",
)


def main() -> NoReturn:
    """Run the command line and exit with the code of the contract: 0, 1, 2, 3, 4, 10, 11 or 130."""
    _open_closed_streams()
    gc.disable()  # while a lot is imported; long-lived commands enable it again
    if sys.argv[1:2] not in (["craft"], ["bench"], ["zoo"]):
        # short-lived commands that multiply small matrices: collecting garbage, and starting a pool of threads for linear
        # algebra, each cost a tenth of a small check
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        code = _run(sys.argv[1:])
        sys.stdout.flush()  # here, where a closed pipe or a full disk is still ours to report
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        code = 130
    except BrokenPipeError:
        _discard_stdout()  # the reader is gone; nothing more to say
        code = 130
    except OnnxauditError as error:
        if "--debug" in sys.argv:
            traceback.print_exc()
        print(f"error: {error}", file=sys.stderr)
        code = error.exit_code
    except OSError as error:
        if "--debug" in sys.argv:
            traceback.print_exc()
        _discard_stdout()
        where = f" ({one_line(str(error.filename))})" if error.filename else ""
        print(f"error: reading or writing failed: {error.strerror}{where}. Check the disk and permissions.", file=sys.stderr)
        code = UsageError.exit_code
    except MemoryError as error:
        if "--debug" in sys.argv:
            traceback.print_exc()
        why = one_line(str(error)) or "memory is full"
        print(f"error: this takes more memory than there is: {why}. Give smaller numbers, or a larger machine.", file=sys.stderr)
        code = UsageError.exit_code
    except Exception as error:  # whatever is left is a bug, and must neither look like a finding nor spill a traceback
        if "--debug" in sys.argv:
            raise
        print(
            f"bug: {type(error).__name__}: {one_line(str(error))}. Please report it with the output of --debug.", file=sys.stderr
        )
        code = 1
    sys.stderr.flush()
    with contextlib.suppress(OSError):
        sys.stdout.flush()  # what was shown before an error, as a report whose file could not be written
    if sys.argv[1:2] in (["check"], ["craft"]) and "joblib" not in sys.modules:
        os._exit(code)  # all is written and closed, no process was started; taking the interpreter apart takes a twentieth more
    sys.exit(code)


def _open_closed_streams() -> None:
    """Where the caller closed a standard stream (``>&-``), nowhere: else the next file to be opened, as a transcript, would have
    its number, and get what libraries say there.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # the lowest number that is free is this one
    sys.stdout = sys.stdout or open(1, "w", closefd=False)  # noqa: SIM115 - a descriptor is no path, and stays open
    sys.stderr = sys.stderr or open(2, "w", closefd=False)  # noqa: SIM115


def _discard_stdout() -> None:
    """Send what is still buffered nowhere, so that the interpreter does not fail on it again when it ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _interrupt(number: int, frame: object) -> NoReturn:
    """Let a polite kill end like Ctrl-C: worker processes stopped, transcripts closed, a report written."""
    raise KeyboardInterrupt


def _run(arguments: list[str]) -> int:
    import typer

    if arguments == ["--version"]:
        print(f"onnxaudit {__version__}")
        return 0
    app = typer.Typer(
        add_completion=False,
        pretty_exceptions_enable=False,
        help="Was this classifier derived from mine? Fingerprint queries, any deployed format, error rates that are true.",
    )
    app.callback()(_callback)
    # only the command that is called gets imported; help and misspelt commands need all of them
    names = arguments[:1] if arguments and arguments[0] in COMMANDS else COMMANDS
    for name in names:
        module = importlib.import_module(f"onnxaudit.cli.{name}")
        if hasattr(module, "app"):  # a group of commands
            for one in module.app.registered_commands:
                one.callback = _telling(one.callback)
            app.add_typer(module.app, name=name)
        else:
            app.command(name)(_telling(getattr(module, name)))
    command = typer.main.get_command(app)
    try:
        return int(command.main(arguments or ["--help"], prog_name="onnxaudit", standalone_mode=False) or 0)
    except typer.Abort:
        raise KeyboardInterrupt from None
    except SystemExit as error:
        if isinstance(error.__context__, BrokenPipeError):  # typer's own way of ending when the reader is gone
            raise BrokenPipeError from None
        # a Python suspect that calls sys.exit(10) must not be able to choose the finding's exit code
        raise SuspectError(f"foreign code ended the program by sys.exit({error.code!r})", "Nothing was found out.") from None
    except Exception as error:  # typer keeps its error classes private; they are known by this method
        message = getattr(error, "format_message", None)
        if message is None:
            raise
        where = f"onnxaudit {names[0]}" if len(names) == 1 else "onnxaudit"
        raise UsageError(message().rstrip(".").replace("'?", "'"), f"See: {where} --help") from None


def _telling(command: Callable[..., int | None]) -> Callable[..., int | None]:
    """The command, which says that it was interrupted where it does not do so itself: typer ends with 130 and no word."""

    @functools.wraps(command)
    def run(*arguments: object, **options: object) -> int | None:
        try:
            return command(*arguments, **options)
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            return 130

    return run


def _callback() -> None:
    """Keep typer from treating a single registered command as the program itself."""
