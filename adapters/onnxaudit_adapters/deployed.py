"""A suspect behind a server that changes what goes in and what comes out.

A step is written as the parameters of schemes are: ``jpeg:quality=50``, ``round:digits=2``, ``topk:k=3``, ``label``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import numpy as np

from onnxaudit.answers import Access, Answers
from onnxaudit.errors import UsageError
from onnxaudit.schemes.compositions import check_known, keywords, parsed
from onnxaudit.suspect import Queries, Suspect, SuspectCard, Wrapped
from onnxaudit_adapters import pixels, scores

_ANY_BATCH = 256
"""Queries put to a suspect at once where it names no limit."""


@dataclass(frozen=True, slots=True)
class Modification:
    """A kind of step. limits: the smallest and largest value of each number.

    Of the inputs: function from images to images. Of the answers: function from (answers, queries) to answers; ``needs`` and
    ``leaves`` are the least access that it can work on, and the most that it passes on.
    """

    function: Callable[..., Any]
    limits: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    needs: Access | None = None
    leaves: Access = Access.LOGITS


_SEED = {"seed": (0, 2**63)}
INPUTS: Mapping[str, Modification] = MappingProxyType(
    {
        "jpeg": Modification(pixels.jpeg, {"quality": (1, 100)}),
        "equalise": Modification(pixels.equalise),
        "posterise": Modification(pixels.posterise, {"bits": (1, 8)}),
        "blur": Modification(pixels.blur, {"sigma": (0, 100)}),
        "resize": Modification(pixels.resize, {"scale": (0.01, 8)}),
        "noise": Modification(pixels.noise, {"sigma": (0, 10), **_SEED}),
        "flip": Modification(pixels.flip),
        "crop": Modification(pixels.crop, {"share": (0.01, 1)}),
        "shift": Modification(pixels.shift, {"right": (-10_000, 10_000), "down": (-10_000, 10_000)}),
        "smooth": Modification(pixels.smooth, {"sigma": (0, 10), "copies": (1, 1000), **_SEED}),
    }
)
"""What a server can do to images, in the order of the documentation."""
OUTPUTS: Mapping[str, Modification] = MappingProxyType(
    {
        "round": Modification(scores.rounded, {"digits": (0, 7)}, Access.TOPK),
        "temper": Modification(scores.tempered, {"t": (0.01, 1000)}, Access.PROBS, Access.PROBS),
        "perturb": Modification(scores.perturbed, {"sigma": (0, 1000), **_SEED}, Access.PROBS, Access.PROBS),
        "topk": Modification(scores.best, {"k": (1, 2**31)}, Access.LABEL, Access.TOPK),
        "label": Modification(scores.label, {}, Access.LABEL, Access.LABEL),
        "flip-labels": Modification(scores.mislabelled, {"rate": (0, 1), **_SEED}, Access.LABEL, Access.LABEL),
        "refuse-rough": Modification(scores.without_rough, {"energy": (0, 1), **_SEED}, Access.LABEL),
        "refuse-unsure": Modification(scores.without_unsure, {"confidence": (0, 1), **_SEED}, Access.TOPK),
    }
)
"""What a server can do to answers."""
_KNOWN = {**INPUTS, **OUTPUTS}


@dataclass(frozen=True, slots=True)
class Step:
    """One modification with its parameters; text: as it was given."""

    text: str
    kind: Modification
    given: Mapping[str, Any]


def parse_steps(texts: Sequence[str]) -> list[Step]:
    """Steps from how they are written.

    Raises UsageError for an unknown step or parameter, a value out of its range, and a step that works on scores after one that
    leaves none.
    """
    found = [_step(text) for text in texts]
    left = Access.LOGITS
    for step in found:
        if step.kind.needs is not None and step.kind.needs > left:
            raise UsageError(f"the step {step.text!r} needs scores, and a step before it leaves too few", "Change their order.")
        left = min(left, step.kind.leaves)
    return found


def _step(text: str) -> Step:
    name, given = parsed("".join(text.split()))
    kind = _KNOWN.get(name)
    if kind is None:
        raise UsageError(f"there is no step {name!r} of a deployment", f"Choose from: {', '.join(_KNOWN)}.")
    check_known(name, given, keywords(kind.function))
    for key, value in given.items():
        low, high = kind.limits[key]
        if not low <= value <= high:
            raise UsageError(f"{name}: {key} must be {low:g} to {high:g}, not {value}")
    return Step(text, kind, given)


def deployed_as(suspect: Suspect, texts: Sequence[str]) -> Suspect:
    """The suspect behind a server with these steps, or itself if there are none; closing it closes the suspect.

    Raises UsageError as ``parse_steps`` does.
    """
    found = parse_steps(texts)
    return Deployed(suspect, found) if found else suspect


class Deployed(Wrapped):
    """Another suspect whose inputs and answers are modified: inputs in the order of the steps, then answers in theirs.

    It shows nothing of its inside. A query is always answered alike, also where a step draws numbers.
    """

    def __init__(self, suspect: Suspect, steps: Sequence[Step]) -> None:
        super().__init__(suspect)
        self._inputs = [step for step in steps if step.kind.needs is None]
        self._outputs = [step for step in steps if step.kind.needs is not None]
        self._words = ", ".join(step.text for step in steps)
        smoothing = [step for step in self._inputs if step.kind is INPUTS["smooth"]]
        copies = [step.given.get("copies", keywords(pixels.smooth)["copies"]) for step in smoothing]
        self._copies = int(np.prod(copies, dtype=np.int64))

    @property
    def card(self) -> SuspectCard:  # type: ignore[override]  # an HTTP suspect's largest batch shrinks as it is asked
        """The suspect's card as it is now; its runtime facts say how it is deployed."""
        card = self._suspect.card
        before = card.runtime.get("deployed")
        runtime = {**card.runtime, "deployed": f"{self._words}; {before}" if before else self._words}
        if self._copies == 1:
            return dataclasses.replace(card, runtime=runtime)
        largest = max(1, (card.batch or card.max_batch or _ANY_BATCH) // self._copies)  # so that the copies fit
        return dataclasses.replace(card, runtime=runtime, batch=None, max_batch=largest)

    @property
    def queries_sent(self) -> int:
        """The suspect's own count; the server's copies are no queries. AttributeError, and so absent, where it keeps none."""
        return -(-super().queries_sent // self._copies)

    def _ask(self, queries: Queries) -> Answers:
        """The modified answers to one batch. Raises UsageError for inputs or answers that a step cannot work on."""
        rows = queries
        for step in self._inputs:
            if rows.ndim != 4 or rows.dtype != np.uint8 or rows.shape[3] not in (1, 3):
                shape = "x".join(map(str, queries.shape[1:]))
                raise UsageError(f"the step {step.text!r} takes images of 1 or 3 channels, the queries are {shape}")
            rows = step.kind.function(rows, **step.given)
        answers = self._suspect.ask(rows)
        if self._copies > 1:
            answers = scores.averaged(answers, self._copies)
        for step in self._outputs:
            answers = self._modified(step, answers, queries)
        return answers

    def _modified(self, step: Step, answers: Answers, queries: Queries) -> Answers:
        if step.kind.needs is not None and answers.access < step.kind.needs:
            source, word = self._suspect.card.source, answers.access.word
            raise UsageError(f"the step {step.text!r} needs {step.kind.needs.word}, and {source} gives {word} only")
        changed: Answers = step.kind.function(answers, queries, **step.given)
        return changed

    def spent(self, queries: int) -> None:
        """So many queries, as many times as there are copies of each."""
        super().spent(queries * self._copies)

    def tell_lost(self, note: Callable[[int], None]) -> None:
        """As of the wrapped suspect; a query of which a copy was lost is lost."""
        super().tell_lost(lambda lost: note(-(-lost // self._copies)))

    def lose(self, queries: int) -> None:
        """So many queries, as many times as there are copies of each."""
        super().lose(queries * self._copies)
