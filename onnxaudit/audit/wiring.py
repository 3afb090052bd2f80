"""--autofix: a wiring under which the suspect gets the control queries right, found with a few of them, and said in the report.

Nothing but controls is asked for it, and nothing but their labels is known to the search: no query of a scheme and no answer of
the victim's. An independent model is judged as if it had been wired right from the start, so its error rate stays what it was.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxaudit.answers import Answers
from onnxaudit.audit.judging.comparing import references_of
from onnxaudit.audit.judging.controls import SANE, easy_controls
from onnxaudit.audit.once import once
from onnxaudit.audit.progress import Progress
from onnxaudit.audit.rewired import Rewired, renamed
from onnxaudit.bundle import QueryBundle
from onnxaudit.decode import canonical
from onnxaudit.errors import ArtefactError, BudgetSpent, OtherClasses, Stopped, SuspectError, Unreachable
from onnxaudit.interview import Interview
from onnxaudit.report.model import Report
from onnxaudit.suspect import InputSpec, Suspect
from onnxaudit.transcript import Probe, Transcript
from onnxaudit.wiring.conventions import AS_IT_WAS, Wiring, wirings
from onnxaudit.wiring.labelling import best_labelling
from onnxaudit.wiring.search import MOST, SHARE, Choice, Question, WiringSearch

_CHANGED = "the labels in another order"
_CHANGED_OR_OLD = "It was changed, or another version of onnxaudit wrote it."


@dataclass(frozen=True, slots=True, eq=False)
class Searched:
    """What a search came to. queries: that it asked in all runs; spec: how the suspect encodes its inputs from now on."""

    choice: Choice
    queries: int
    spec: InputSpec


@dataclass(frozen=True, slots=True, eq=False)
class Wired:
    """A suspect as it is to be asked. asked: queries that the search cost in this run.

    known: rows whose answers the suspect has by heart, because the search was given them under the wiring that was chosen.
    """

    suspect: Rewired
    searched: Searched
    asked: int
    known: NDArray[np.int64]

    def budget_left(self, budget: int | None, order: NDArray[np.int64], transcript: Transcript | None) -> int | None:
        """How many more rows may be asked in this order with a budget of queries: those known by heart cost nothing."""
        if budget is None:
            return None
        kept = [row for rows, _ in transcript.kept for row in rows.tolist()] if transcript else []
        costs = np.cumsum(~np.isin(order[~np.isin(order, kept)], self.known))
        return int(np.searchsorted(costs, budget - self.asked, side="right"))

    def settled(self, result: Interview) -> Interview:
        """What came of asking, where queries of the search are no failures. What was not needed by heart is forgotten."""
        used = len(self.known) - self.suspect.forget()
        return dataclasses.replace(result, failed=result.failed - self.asked + used)


def wire(bundle: QueryBundle, suspect: Suspect, budget: int | None, transcript: Transcript | None, progress: Progress) -> Wired:
    """Find how the suspect is wired, with at most ``MOST`` queries and half of the budget; those that it paid for count.

    What the transcript holds of an earlier search is gone on with, and nothing of it is asked again. Raises what the suspect
    raises if it takes its inputs under no wiring.
    """
    before, named = suspect.card.input, order_by_names(suspect.card.class_names, bundle.manifest.class_names)
    search, probes = search_of(bundle, before), list(transcript.probes) if transcript else []
    retell(search, probes, bundle, named)
    asker = _Asker(bundle, suspect, search, transcript, named)
    spent = sum(len(probe.rows) for probe in probes)
    if transcript is None or transcript.wired is None:
        if search.hopeless:
            progress.note("--autofix: there are too few easy control queries to find a wiring by; nothing was tried")
        else:
            asker.go_on(MOST if budget is None else min(MOST, budget // 2), spent)
    choice = _in_own_names(search.choice(), named)
    asker.check_taken(choice)
    chosen = choice.wiring or Wiring(before)
    if transcript and transcript.wired is None:
        transcript.settle(_closing(chosen, choice, named))
    elif transcript:
        _check_closing(transcript.wired, chosen, choice, named)
    suspect.rewire(chosen.spec)
    rewired = Rewired(suspect, chosen, choice.labels, asker.asked)
    kept = {row for rows, _ in transcript.kept for row in rows.tolist()} if transcript else set()
    known: list[int] = []
    for probe in [*probes, *asker.probes]:
        if probe.answers is not None and (probe.spec, probe.fit) == (chosen.spec, chosen.fit):
            for place, row in enumerate(probe.rows.tolist()):
                if row not in kept and rewired.learn(bundle.queries[row], probe.answers.take(np.array([place]))):
                    known.append(row)
    queries = spent + sum(len(probe.rows) for probe in asker.probes)
    return Wired(rewired, Searched(choice, queries, chosen.spec), asker.asked, np.array(known, np.int64))


class _Asker:
    """Puts a search's questions to a suspect. asked: queries, as the suspect counts them if it does. probes: what it said."""

    def __init__(
        self,
        bundle: QueryBundle,
        suspect: Suspect,
        search: WiringSearch,
        transcript: Transcript | None,
        named: tuple[int, ...],
    ) -> None:
        self._bundle, self._suspect, self._search, self._transcript = bundle, suspect, search, transcript
        self._named = named
        self._rows = control_rows(bundle)
        self._refusal: SuspectError | None = None
        self.asked = 0
        self.probes: list[Probe] = []

    def go_on(self, limit: int, spent: int) -> None:
        """Ask until enough is known, or ``limit`` queries are spent, ``spent`` of them in earlier runs."""
        size = self._suspect.card.batch or 1
        while (question := self._search.question(limit - spent - self.asked, size)) is not None:
            begun = getattr(self._suspect, "queries_sent", None)
            try:
                goes_on = self._ask(question)
            except BudgetSpent:
                goes_on = False
            now = getattr(self._suspect, "queries_sent", None)
            self.asked += len(question.probes) if begun is None or now is None else now - begun
            if not goes_on:
                return

    def _ask(self, question: Question) -> bool:
        """Whether there is a point in asking on. Raises what the suspect raises of inputs that it took before."""
        wiring, rows = self._search.wiring(question), self._rows[list(question.probes)]
        self._suspect.rewire(wiring.spec)
        try:
            answers = self._suspect.ask(wiring.fitted(self._bundle.queries[rows]))
        except (Unreachable, Stopped):  # nothing of this wiring
            raise
        except OtherClasses as error:
            if self.probes:  # whoever asks anew would pay for these again
                raise SuspectError(f"after {len(self.probes)} questions of --autofix: {error.what}", error.hint) from None
            raise
        except SuspectError as error:
            self._refusal = self._refusal or error
            if self._search.takes(wiring):
                raise
            self._keep(Probe(wiring.spec, wiring.fit, rows, None))
            return self._search.refuse(question)
        self._keep(Probe(wiring.spec, wiring.fit, rows, answers))
        self._search.tell(question, renamed(answers, self._named))
        return True

    def _keep(self, probe: Probe) -> None:
        self.probes.append(probe)
        if self._transcript:
            self._transcript.probe(probe)

    def check_taken(self, choice: Choice) -> None:
        """Raise what the suspect raised first if it takes its inputs under no wiring that was tried, in this run or before."""
        if choice.refused and choice.wiring is None:
            raise self._refusal or SuspectError(
                "the suspect took its inputs under no wiring in the run that this one goes on with",
                "If it failed for another reason then, begin anew: give --evidence another name.",
            )


def control_rows(bundle: QueryBundle) -> NDArray[np.int64]:
    """Rows of the easy controls, (c,): those that more of the references get right come first, then in the bundle's order."""
    start, stop = bundle.manifest.controls
    if start == stop:
        return np.array([], np.int64)
    right = [said.labels[start:stop] == bundle.control_labels for said in once(references_of, bundle)]
    easy = np.flatnonzero(once(easy_controls, bundle))
    share = np.mean(right, axis=0)[easy] if right else np.zeros(len(easy))
    return (start + easy[np.argsort(-share, kind="stable")]).astype(np.int64)


def search_of(bundle: QueryBundle, now: InputSpec) -> WiringSearch:
    """A search that has been told nothing yet, for a suspect that is wired ``now``."""
    truth = bundle.control_labels[control_rows(bundle) - bundle.manifest.controls[0]]
    return WiringSearch(wirings(now, bundle.queries.shape[1:]), truth, bundle.manifest.victim.num_classes)


def order_by_names(said: Sequence[str], known: Sequence[str]) -> tuple[int, ...]:
    """For each of the suspect's labels the victim's class of that name; () where names do not say it, or it is the same."""
    own, victims = ([_as_read(name) for name in names] for names in (said, known))
    if sorted(own) != sorted(victims) or len(set(own)) != len(own) or own == victims:
        return ()
    return tuple(victims.index(name) for name in own)


def _as_read(name: str) -> str:
    """A name as people compare it: the sandbox passes on no letters that cannot be seen, and no case or spaces make another."""
    return " ".join("".join(letter if letter.isprintable() else " " for letter in name).split()).casefold()


def _in_own_names(choice: Choice, named: tuple[int, ...]) -> Choice:
    """A choice that was made of answers under the victim's names, as it holds of the answers that the suspect gives."""
    if not named or choice.wiring is None:
        return choice
    labels = tuple(choice.labels[label] if choice.labels else label for label in named)
    return dataclasses.replace(choice, labels=() if labels == tuple(range(len(labels))) else labels)


def retell(search: WiringSearch, probes: Sequence[Probe], bundle: QueryBundle, named: tuple[int, ...] = ()) -> None:
    """Tell a search what a transcript holds of one. Raises ArtefactError where that is not what it asks."""
    rows = control_rows(bundle)
    for probe in probes:
        question = search.question(len(probe.rows), len(probe.rows))
        wiring = None if question is None else search.wiring(question)
        same = question is not None and wiring is not None and (wiring.spec, wiring.fit) == (probe.spec, probe.fit)
        if question is None or not same or rows[list(question.probes)].tolist() != probe.rows.tolist():
            raise ArtefactError(
                "the transcript's search for the wiring is not the one that its answers lead to", "It was changed."
            )
        if probe.answers is None:
            search.refuse(question)
            continue
        given = probe.answers.labels
        if (
            len(given) != len(probe.rows)
            or given.min(initial=0) < 0
            or given.max(initial=0) >= bundle.manifest.victim.num_classes
        ):
            raise ArtefactError("the transcript's search for the wiring names a class that does not exist", "It was changed.")
        search.tell(question, renamed(probe.answers, named))


def searched_again(bundle: QueryBundle, before: InputSpec, probes: Sequence[Probe], wired: Mapping[str, Any] | None) -> Searched:
    """What a search came to, from what a transcript holds of it. Raises ArtefactError where that is not what it says."""
    search, named = search_of(bundle, before), _names_of(wired, bundle)
    retell(search, probes, bundle, named)
    choice = _in_own_names(search.choice(), named)
    chosen = choice.wiring or Wiring(before)
    _check_closing(wired, chosen, choice, named)
    return Searched(choice, sum(len(probe.rows) for probe in probes), chosen.spec)


def _names_of(wired: Mapping[str, Any] | None, bundle: QueryBundle) -> tuple[int, ...]:
    """The order of labels by names, as a transcript has it. Raises ArtefactError where it is none."""
    named = (wired or {}).get("named", [])
    classes = list(range(bundle.manifest.victim.num_classes))
    if not isinstance(named, list) or not all(type(label) is int for label in named) or sorted(named) not in ([], classes):
        raise ArtefactError("the transcript's wiring names classes that do not exist", "It was changed.")
    return tuple(named)


def _closing(wiring: Wiring, choice: Choice, named: tuple[int, ...]) -> dict[str, Any]:
    return {
        "spec": dataclasses.asdict(wiring.spec),
        "fit": wiring.fit,
        "labels": list(choice.labels),
        **({"named": list(named)} if named else {}),
    }


def _check_closing(wired: Mapping[str, Any] | None, chosen: Wiring, choice: Choice, named: tuple[int, ...]) -> None:
    if canonical(wired) != canonical(_closing(chosen, choice, named)):
        raise ArtefactError("the transcript's wiring is not the one that its answers lead to", _CHANGED_OR_OLD)


def explained(report: Report, bundle: QueryBundle, answers: Answers, before: InputSpec, searched: Searched | None) -> Report:
    """The report with what was found of the wiring; where nothing was looked for and controls fail, with what could be.

    answers: as judged. before: the input as the suspect was wired when it was opened.
    """
    if searched is None:
        hint = _hint(bundle, answers, report)
        return report if hint is None else dataclasses.replace(report, conditions=(*report.conditions, hint))
    choice, probes = searched.choice, searched.queries
    chosen = choice.wiring or Wiring(before)
    words = ", ".join([chosen.words] * (chosen.words != AS_IT_WAS) + [_CHANGED] * bool(choice.labels))
    facts = {
        "changed": words or None,
        "found": choice.wiring is not None,
        "queries": probes,
        "tried": choice.tried,
        "before": {"right": choice.before[0], "of": choice.before[1], "input": dataclasses.asdict(before)},
        "after": {"right": choice.after[0], "of": choice.after[1]},
        "fit": chosen.fit,
        "labels": list(choice.labels),
    }
    condition = _condition(choice, words, probes, before)
    return dataclasses.replace(report, wiring=facts, conditions=(*report.conditions, condition))


def _condition(choice: Choice, words: str, probes: int, before: InputSpec) -> str:
    right, of = choice.before
    was = "it did not take its inputs before" if choice.refused else f"{right} of {of} were right before"
    if choice.wiring is None:
        return (
            f"--autofix tried {choice.tried} wirings with {probes} queries and found none under which the suspect gets the "
            "controls right: nothing was changed"
        )
    if not words:
        return f"--autofix: {right} of {of} controls are right as the suspect is wired ({_input(before)}); nothing was changed"
    now, among = choice.after
    return (
        f"--autofix wired the suspect otherwise: {words}; of the controls {was}, {now} of {among} after; it was found with "
        f"{probes} control queries and their labels alone, before any query of a scheme was asked"
    )


def _input(spec: InputSpec) -> str:
    return f"{spec.layout}, scale {spec.scale:.4g}, mean {spec.mean or 0}, std {spec.std or 1}, {spec.channels}"


def _hint(bundle: QueryBundle, answers: Answers, report: Report) -> str | None:
    """What might mend a suspect that fails the controls, from answers that are there anyway; None where it does not fail."""
    if report.controls.ok is not False or report.controls.agreement is None:
        return None
    start, stop = bundle.manifest.controls
    rows = np.flatnonzero(once(easy_controls, bundle) & answers.answered[start:stop])
    seen = list(zip(bundle.control_labels[rows].tolist(), answers.labels[start + rows].tolist(), strict=True))
    found = best_labelling(seen, bundle.manifest.victim.num_classes)
    if found is not None and found.classes and found.right >= max(SHARE, SANE) * found.of:
        would = f"{found.right} of {found.of} easy controls would be right"
        return f"with {_CHANGED} {would}: check --autofix finds the order, and judges by it"
    return f"check --autofix looks for another scale, layout, channel order, size or label order, with {MOST} queries at most"
