"""Natural queries: random inputs and noise (baselines), the victim's own errors (AKH), and controls."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from onnxaudit.craft.data import Data
from onnxaudit.craft.sample import Material, Sample
from onnxaudit.craft.samplers.cutmix import cutmix, flipped
from onnxaudit.craft.victim import Victim
from onnxaudit.errors import UsageError
from onnxaudit.suspect import Queries

CANDIDATES = 4
"""For each control of unlabelled data."""


def sample_uniform(material: Material, n: int, rng: np.random.Generator, progress: Callable[[int], None]) -> Sample:
    """n inputs drawn from the data without replacement (QuRD's Random sampling)."""
    data = material.inputs()
    if len(data) < n:
        raise UsageError(f"{n} queries asked for, the data has {len(data)} inputs", "Lower --queries or give more data.")
    progress(n)
    return Sample(material.draw(n, rng))


def sample_noise(material: Material, n: int, rng: np.random.Generator, progress: Callable[[int], None]) -> Sample:
    """n points drawn uniformly from all valid inputs (IPGuard's Random baseline)."""
    progress(n)
    return Sample(material.space.queries(material.space.uniform(n, rng)))


def errors_of(victim: Victim, data: Data, rng: np.random.Generator) -> NDArray[np.int64]:
    """Rows of the labelled data that the victim gets wrong, in random order (QuRD section 4, "negative" sampling).

    Raises UsageError if there are fewer than two.
    """
    errors = rng.permutation(np.flatnonzero(victim.answer(data.x).argmax(1) != data.y))
    if len(errors) < 2:
        raise UsageError(f"the victim makes {len(errors)} errors on {len(data)} inputs; too few here", "Give held-out data.")
    return errors


def sample_negative(
    material: Material, n: int, rng: np.random.Generator, progress: Callable[[int], None], *, fill: str = "cutmix"
) -> Sample:
    """n inputs that the victim gets wrong (AKH; QuRD section 4), in random order.

    With fewer errors than n, a note says how many there are, and ``fill`` how to go on: "cutmix" mixtures of pairs of errors (as
    the authors' later code; images only), "margin", the right answers that the victim is least sure of, or "none" (paper).
    Raises UsageError without labels or with fewer than two errors.
    """
    data, truth = material.labelled()
    if fill not in ("cutmix", "margin", "none"):
        raise UsageError(f"fill={fill!r} is not known", "Use cutmix, margin or none.")
    errors = errors_of(material.victim, data, rng)
    natural, labels = data.x[errors[:n]], truth[errors[:n]]
    progress(len(natural))
    missing = n - len(natural)
    if not missing or fill == "none" or (fill == "cutmix" and data.x.ndim != 4):
        why = "vectors cannot be mixed, so no more" if fill == "cutmix" else "no more were asked for"
        notes = (f"only {len(natural)} natural errors in {len(data)} inputs; {why}",) if missing else ()
        return Sample(natural, notes, columns={"truth": labels})
    progress(n)
    if fill == "margin":
        best = np.sort(material.victim.answer(data.x), axis=1)
        unsure = np.argsort(best[:, -1] - best[:, -2], kind="stable")
        more = unsure[~np.isin(unsure, errors)][:missing]
        note = f"only {len(natural)} natural errors in {len(data)} inputs; {len(more)} right answers of least margin fill up"
        return Sample(np.concatenate([natural, data.x[more]]), (note,), columns={"truth": np.concatenate([labels, truth[more]])})
    mixed = np.concatenate([cutmix(natural.astype(np.uint8), rng) for _ in range(-(-missing // len(natural)))])[:missing]
    note = f"only {len(natural)} natural errors in {len(data)} inputs; {missing} CutMix mixtures of errors fill up"
    # a mixture keeps the larger part of its first image, so that one's label
    repeated = np.resize(labels, missing)
    return Sample(np.concatenate([natural, mixed]), (note,), columns={"truth": np.concatenate([labels, repeated])})


def sample_negative_augment(material: Material, n: int, rng: np.random.Generator, progress: Callable[[int], None]) -> Sample:
    """n natural errors; where they are too few, also their CutMix mixtures and mirror images (QuRD's NegativeAugment).

    Raises UsageError for vectors, without labels, or with fewer than two errors.
    """
    data, _ = material.labelled()
    images = material.images()
    errors = errors_of(material.victim, data, rng)
    negatives = images[errors]
    parts = [negatives]
    while sum(map(len, parts)) < n:
        parts += [cutmix(negatives, rng), flipped(negatives, "horizontal"), flipped(negatives, "vertical")]
    progress(n)
    notes = (
        (f"only {len(errors)} natural errors in {len(data)} inputs; mixed and mirrored ones fill up",) if len(errors) < n else ()
    )
    return Sample(np.concatenate(parts)[:n], notes)


def draw_controls(
    victim: Victim, data: Data, n: int, rng: np.random.Generator, *, surest: bool = True
) -> tuple[Queries, NDArray[np.int64]]:
    """Up to n inputs at random and their labels (n,): the truth where there is one, else the victim's own answer.

    surest: without labels, those of four times as many that the victim is most certain of. An independent model gives the
    victim's answer to few of the others where there are many classes, and would look mis-wired.
    """
    if not n:
        return data.x[:0], np.zeros(0, np.int64)
    if data.y is not None or not surest:
        rows = np.sort(rng.choice(len(data), min(n, len(data)), replace=False))
        queries = data.x[rows]
        return queries, data.y[rows] if data.y is not None else victim.answer(queries).argmax(1).astype(np.int64)
    rows = rng.choice(len(data), min(CANDIDATES * n, len(data)), replace=False)
    said = victim.predict(data.x[rows]).softmax(1).max(1)
    certainty, label = said.values.cpu().numpy(), said.indices.cpu().numpy()
    chosen = np.argsort(-certainty, kind="stable")[:n]
    chosen = chosen[np.argsort(rows[chosen])]
    return data.x[rows[chosen]], label[chosen].astype(np.int64)
