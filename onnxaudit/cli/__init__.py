"""The command line: one file a command, no logic. ``main`` turns errors into one line and an exit code."""

from __future__ import annotations

import gc
import importlib
import os
import sys
from typing import NoReturn

from onnxaudit.errors import OnnxauditError

COMMANDS = ("craft", "calibrate", "check", "bench", "show", "verify", "schemes", "adapters", "demo")


def main() -> NoReturn:
    """Run the command line and exit with the code of the contract: 0, 1, 2, 3, 4, 10, 11 or 130."""
    if sys.argv[1:2] != ["craft"]:
        # short-lived commands that import a lot and multiply small matrices: collecting garbage, and starting a pool of
        # threads for linear algebra, each cost a tenth of a small check
        gc.disable()
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    try:
        code = _run(sys.argv[1:])
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        code = 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader is gone; nothing more to say
        code = 0
    except OnnxauditError as error:
        if "--debug" in sys.argv:
            raise
        print(f"error: {error}", file=sys.stderr)
        code = error.exit_code
    except Exception as error:
        if "--debug" in sys.argv:
            raise
        print(f"bug: {type(error).__name__}: {error}. Please report it with the output of --debug.", file=sys.stderr)
        code = 1
    sys.stdout.flush()
    sys.exit(code)


def _run(arguments: list[str]) -> int:
    import typer

    app = typer.Typer(
        add_completion=False,
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        help="Was this classifier derived from mine? Fingerprint queries, any deployed format, error rates that are true.",
    )
    app.callback()(_callback)
    # only the command that is called gets imported; help and misspelt commands need all of them
    names = arguments[:1] if arguments and arguments[0] in COMMANDS else COMMANDS
    for name in names:
        module = importlib.import_module(f"onnxaudit.cli.{name}")
        app.command(name)(getattr(module, name))
    result = typer.main.get_command(app).main(arguments, prog_name="onnxaudit", standalone_mode=True)
    return int(result or 0)


def _callback() -> None:
    """Keep typer from treating a single registered command as the program itself."""
