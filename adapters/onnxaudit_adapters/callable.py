"""A Python function as a suspect: the way in for anything that no other adapter opens."""

from __future__ import annotations

import contextlib
import importlib
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

from onnxaudit.answers import Answers
from onnxaudit.errors import OnnxauditError, SuspectError, UsageError
from onnxaudit.suspect import Queries, Suspect, SuspectCard, Target
from onnxaudit_adapters.outputs import class_names_of, read_outputs
from onnxaudit_adapters.signature import read_signature


def open_callable(target: Target) -> Suspect:
    """The suspect that ``module:function`` names, importable from here or from the current folder.

    The function takes a batch as the InputSpec encodes it and returns rows of scores (n, C), labels (n,), one map from class to
    score a query, or a dict or tuple that holds one of these. Or the name is a fitted scikit-learn classifier's, or that of a
    function without parameters that returns one. Raises UsageError if it cannot be imported.
    """
    module, _, name = target.source.partition(":")
    function = getattr(_imported(module, Path.cwd()), name, None)
    if (estimator := _estimator(function, target.source)) is not None:
        from onnxaudit_adapters.sklearn import estimator_suspect

        return estimator_suspect(target, estimator)
    if not callable(function):
        raise UsageError(f"{module} has no function {name!r}", "Give it as module:function.")
    signature = read_signature(target, (), None)
    runtime = {"python": ".".join(map(str, sys.version_info[:3]))}
    card = SuspectCard(
        target.source, "python", signature.spec, target.num_classes, max_batch=signature.max_batch, runtime=runtime
    )
    wanted = target.options.get("output_name")
    return CallableSuspect(function, card, class_names_of(target.options), None if wanted is None else str(wanted))


class CallableSuspect(Suspect):
    """A function from an encoded batch to scores or labels; ``card.input`` says how it is encoded."""

    def __init__(
        self, function: Callable[[Any], object], card: SuspectCard, class_names: tuple[str, ...] = (), output: str | None = None
    ) -> None:
        self.card = card
        self._function = function
        self._class_names = class_names
        self._output = output

    def _ask(self, queries: Queries) -> Answers:
        """Answers to one batch. Raises UsageError for queries of another size, SuspectError if the function raises."""
        batch = self.card.input.encode(queries)
        try:
            with contextlib.redirect_stdout(sys.stderr):  # stdout carries the result only
                value = self._function(batch)
        except OnnxauditError:
            raise
        except Exception as error:  # somebody else's function can raise anything
            reason = " ".join(str(error).split())[:200]
            raise SuspectError(f"{self.card.source} raised {type(error).__name__}: {reason}") from error
        return read_outputs(value, len(queries), self.card.num_classes, self._class_names, self._output)


def _estimator(named: object, source: str) -> object | None:
    """The estimator that a name stands for, or that a function without parameters returns; None if it is neither's."""
    if hasattr(named, "predict") and not isinstance(named, type):
        return named
    if not inspect.isfunction(named) or inspect.signature(named).parameters:
        return None
    try:
        with contextlib.redirect_stdout(sys.stderr):
            return cast("object", named())
    except Exception as error:  # somebody else's function can raise anything
        raise UsageError(f"{source} raised {type(error).__name__}: {' '.join(str(error).split())[:200]}") from error


def _imported(module: str, folder: Path) -> Any:
    """A module, found in ``folder`` too; the search path is put back."""
    sys.path.insert(0, str(folder))
    importlib.invalidate_caches()
    try:
        with contextlib.redirect_stdout(sys.stderr):
            return importlib.import_module(module)
    except ImportError as error:
        raise UsageError(f"{module} cannot be imported: {error}", "Run from the folder it is in, or install it.") from error
    except Exception as error:  # a module runs its own code when it is imported
        raise UsageError(f"{module} cannot be imported: it raised {type(error).__name__}: {error}") from error
    finally:
        sys.path.remove(str(folder))
