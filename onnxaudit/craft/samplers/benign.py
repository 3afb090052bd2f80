"""FBI: natural images that tell models apart by the place of the true class in their answers (Maho et al. 2023)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from onnxaudit.craft.data import Data
from onnxaudit.craft.sample import Material, Sample
from onnxaudit.craft.samplers.natural import errors_of
from onnxaudit.errors import UsageError


def sample_benign(
    material: Material,
    n: int,
    rng: np.random.Generator,
    progress: Callable[[int], None],
    *,
    rule: str = "mixed",
    share: float = 0.5,
) -> Sample:
    """n inputs of the labelled data (FBI section 5, unknown variants). Column: "truth".

    rule: "mixed", a ``share`` of inputs that the victim gets wrong and the rest right ones, evenly mixed; "entropy", at random
    of the fifth on whose label the references disagree most; "random". The paper has them all. Raises UsageError without labels,
    with too few errors (mixed) or without references (entropy).
    """
    data, truth = material.labelled()
    if rule not in ("mixed", "entropy", "random"):
        raise UsageError(f"rule={rule!r} is not known", "Use mixed, entropy or random.")
    if not 0 < share < 1:
        raise UsageError(f"share={share:g} is not known", "Use a number between 0 and 1.")
    if rule == "mixed":
        rows = _mixed(material, data, n, rng, share)
    elif rule == "entropy":
        disputed = np.argsort(-label_entropy(_labels(material, data)), kind="stable")
        rows = rng.permutation(disputed[: max(n, len(data) // 5)])[:n]
    else:
        rows = rng.permutation(len(data))[:n]
    progress(len(rows))
    notes = (f"{len(rows)} queries instead of {n}: the data has no more inputs",) if len(rows) < n else ()
    return Sample(data.x[rows], notes, columns={"truth": truth[rows]})


def label_entropy(labels: NDArray[np.int64]) -> NDArray[np.float64]:
    """Entropy in nats of the labels that models (m, n) give to each input, (n,)."""
    models, n = labels.shape
    classes = int(labels.max()) + 1
    counts = np.bincount((labels + classes * np.arange(n)).ravel(), minlength=n * classes).reshape(n, classes)
    shares = counts / models
    return np.asarray(-(shares * np.log(np.where(shares > 0, shares, 1))).sum(axis=1))


def _mixed(material: Material, data: Data, n: int, rng: np.random.Generator, share: float) -> NDArray[np.int64]:
    """Rows of wrong and right answers, each spread evenly over the whole; where one kind is short, the other fills up."""
    wrong = errors_of(material.victim, data, rng)
    right = rng.permutation(np.setdiff1d(np.arange(len(data)), wrong))
    count = min(len(wrong), max(round(share * n), n - len(right)))
    chosen = [wrong[:count], right[: n - count]]
    place = np.concatenate([(np.arange(len(part)) + 0.5) / max(1, len(part)) for part in chosen])
    return np.concatenate(chosen)[np.argsort(place, kind="stable")]


def _labels(material: Material, data: Data) -> NDArray[np.int64]:
    if len(material.references) < 2:
        raise UsageError("rule=entropy needs at least two references", "Give --references, or take another rule.")
    return np.stack([peer.answer(data.x).argmax(axis=1) for peer in material.references])
