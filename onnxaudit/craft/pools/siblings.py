"""Siblings: models by the owner's own recipe with other seeds, trained by the owner's own code (torch)."""

from __future__ import annotations

import hashlib
import importlib
import inspect
import json
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from onnxaudit.craft.victim import Victim
from onnxaudit.errors import UsageError


def train_siblings(
    recipe: str, victim: Victim, count: int, folder: Path, *, jobs: int | None, progress: Callable[[int], None]
) -> list[Path]:
    """TorchScript files of ``recipe(1)`` to ``recipe(count)``, which take what the victim takes.

    recipe: "module:function" in the user's own code; the function gets a seed, and returns the trained module. What is in the
    folder from the same file of code and victim is not trained again. jobs: processes; None: one, for the user's code may take a
    whole GPU. Raises UsageError where the recipe cannot be imported, fails, or makes a model of another task.
    """
    from joblib import Parallel, delayed

    folder.mkdir(parents=True, exist_ok=True)
    maker = _imported(recipe)  # what is wrong with it is said before anything is trained
    code = inspect.getsourcefile(maker) if inspect.isfunction(maker) or inspect.isclass(maker) else None
    source = hashlib.sha256(Path(code).read_bytes() if code else b"").hexdigest()
    key = hashlib.sha256(json.dumps([recipe, source, victim.sha256]).encode()).hexdigest()[:12]
    files = [folder / f"sibling-{seed:04d}-{key}.pt" for seed in range(1, count + 1)]
    missing = [number for number, file in enumerate(files) if not file.exists()]
    progress(count - len(missing))
    workers = Parallel(n_jobs=jobs or 1, return_as="generator", batch_size=1)
    calls = (delayed(_train)(recipe, number + 1, victim.spec.shape, victim.spec.layout, files[number]) for number in missing)
    for done, _ in enumerate(workers(calls), start=count - len(missing) + 1):
        progress(done)
    return files


def draw(files: Sequence[Path], seed: int) -> tuple[Path, list[Path]]:
    """Which of the models by one recipe is deployed, and the others: by lot, from their contents and the seed alone.

    Raises UsageError with fewer than two different files.
    """
    by_digest = {hashlib.sha256(file.read_bytes()).hexdigest(): file for file in files}
    if len(by_digest) < 2:
        raise UsageError(f"a draw among {len(by_digest)} models is none", "Train several by one recipe, with different seeds.")
    names = sorted(by_digest)
    drawn = by_digest[names[drawn_among(names, seed)]]
    return drawn, [file for file in by_digest.values() if file != drawn]


def drawn_among(digests: Sequence[str], seed: int) -> int:
    """The number of the one that is drawn, in the order of their digests."""
    mixed = hashlib.sha256("\n".join([str(seed), *sorted(digests)]).encode()).digest()
    return int.from_bytes(mixed, "big") % len(digests)


def _imported(recipe: str) -> Callable[[int], Any]:
    module, colon, name = recipe.partition(":")
    sys.path.insert(0, str(Path.cwd()))
    try:
        found: Callable[[int], Any] = getattr(importlib.import_module(module), name)
    except Exception as error:  # the user's own code may raise anything
        raise UsageError(
            f"--recipe {recipe} cannot be imported: {type(error).__name__}: {error}",
            "Give it as module:function, importable from here.",
        ) from None
    finally:
        sys.path.remove(str(Path.cwd()))
    if not colon or not callable(found):
        raise UsageError(f"--recipe {recipe} is not a function", "Give module:function, which takes a seed.")
    return found


def _train(recipe: str, seed: int, shape: tuple[int, ...], layout: str, file: Path) -> None:
    try:
        made = _imported(recipe)(seed)
    except UsageError:
        raise
    except Exception as error:  # the user's own code may raise anything
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UsageError(f"--recipe {recipe} fails with seed {seed}: {reason[:200]}", "It takes a seed.") from None
    if not isinstance(made, nn.Module):
        raise UsageError(f"--recipe {recipe} makes a {type(made).__name__}, not a torch.nn.Module", "Return the trained module.")
    size = (shape[2], *shape[:2]) if len(shape) == 3 and layout == "NCHW" else shape
    temporary = file.with_suffix(".tmp")
    try:
        with torch.no_grad():
            example = torch.from_numpy(np.random.default_rng(0).random((4, *size), np.float32))
            program = torch.jit.trace(made.cpu().eval(), example, check_trace=False)
        torch.jit.save(program, str(temporary))
    except (RuntimeError, ValueError, TypeError) as error:
        reason = re.sub(r"\s+", " ", str(error))[:200]
        raise UsageError(
            f"what --recipe {recipe} makes does not take the victim's inputs: {reason}", "Give the same network."
        ) from None
    temporary.replace(file)
