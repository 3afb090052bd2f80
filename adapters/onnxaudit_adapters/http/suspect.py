"""A suspect behind HTTP: queries go out in a dialect, through the one transport, in batches that the server takes."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

from onnxaudit.answers import Answers
from onnxaudit.errors import OnnxauditError, SmallerBatch, SuspectError, UsageError
from onnxaudit.suspect import Queries, Suspect, SuspectCard, Target
from onnxaudit_adapters.http.detect import Found, detect
from onnxaudit_adapters.http.dialects import OneAnswerError, OtherRequestError, Reply, Request
from onnxaudit_adapters.http.exchanges import GarbageError
from onnxaudit_adapters.http.options import HttpOptions, parse_address
from onnxaudit_adapters.http.strict_json import ReplyError
from onnxaudit_adapters.http.transport import TooLargeError, Transport

_TRIAL = 2
"""Queries of the first request that holds several."""


class _UnreadableError(GarbageError):
    """The dialect could not read a reply."""


class HttpSuspect(Suspect):
    """A classifier that answers over HTTP. Holds connections: use it as a context manager.

    The card's max_batch is that of the first request until one was answered, and shrinks when the server wants smaller ones.
    A dialect whose replies say too little of themselves is asked one query first, then two: where the reply to one can be read
    as one to two, or two are not answered, it is asked one at a time. Several threads may ask.
    """

    def __init__(self, card: SuspectCard, found: Found, transport: Transport, headers: Iterable[str] = ()) -> None:
        first = None if card.batch else found.dialect.first
        self.card = replace(card, max_batch=min(first, card.max_batch or first)) if first else card
        self._most = card.max_batch
        self._dialect = found.dialect
        self._trail = found.trail
        self._transport = transport
        self._answered = False
        self._trying = first is not None and self._most != 1  # whether several at once are taken is still to be found out
        self._trial = threading.Lock()
        self._classes: int | None = None  # as the first reply has it
        self._echoes = True  # the ids of requests, as the protocol has it; old versions of TorchServe do not
        self._lock = threading.Lock()
        self._headers = tuple(headers)
        self._latest: tuple[Request, Reply | None] | None = None

    @property
    def queries_sent(self) -> int:
        """Queries sent so far, those in retries, padding and refused batches included: what counts at the suspect."""
        return self._transport.queries_sent

    @property
    def attempts(self) -> int:
        """Requests sent so far to ask these queries."""
        return self._transport.attempts

    def exchange(self) -> Mapping[str, str]:
        """The latest request and its reply, in words that may be shown: without the values of headers, and cut short."""
        if self._latest is None:
            return {}
        request, reply = self._latest
        clean = self._transport.redaction.clean
        headers = {**dict.fromkeys(self._headers, "***"), **{n: clean(v) for n, v in request.headers.items()}}
        shown = {
            "request": clean(f"POST {request.address.shown}"),
            "headers": "; ".join(f"{name}: {value}" for name, value in headers.items()),
            "body": f"{len(request.body)} bytes: {self._transport.redaction.quote(request.body)}",
            "dialect": self._dialect.name
            + (f" ({self._transport.redaction.begin('; '.join(self._trail))})" if self._trail else ""),
        }
        if reply is not None:
            shown["reply"] = f"{reply.status}, {len(reply.body)} bytes: {self._transport.redaction.quote(reply.body)}"
        return shown

    def close(self) -> None:
        """Close the connections."""
        self._transport.close()

    def stop(self) -> None:
        """Send nothing more and try nothing again."""
        self._transport.stop()

    def spent(self, queries: int) -> None:
        """So many queries of the budget are gone."""
        self._transport.spent = queries

    def tell_lost(self, note: Callable[[int], None]) -> None:
        """Of every try that fails, before the next."""
        self._transport.told = note

    def lose(self, queries: int) -> None:
        """Counted with those of tries that failed."""
        self._transport.lose(queries)

    def _ask(self, queries: Queries) -> Answers:
        """Raises BudgetSpent before a request that the budget does not cover, SmallerBatch as ``ask_once``; else as ``ask``."""
        if self._trying and self._answered and len(queries) > 1:
            with self._trial:  # one request finds it out for all
                if self._trying:
                    return self._exchanged(queries, trial=True)
        return self._exchanged(queries)

    def _exchanged(self, queries: Queries, *, trial: bool = False) -> Answers:
        """As ``_ask``. trial: the first request with several queries, which is not tried again."""
        card, most = self.card, _TRIAL if trial else None
        most = min(filter(None, (most, card.max_batch)), default=None)
        if not card.batch and most and len(queries) > most:
            with self._lock:
                self.card = replace(self.card, max_batch=most)
            raise SmallerBatch(f"{card.source} takes {most} queries at once")
        try:
            request = self._dialect.encode(queries, card.input)
            self._latest = (request, None)
            answers = self._transport.send(request, lambda reply: self._read(request, reply, len(queries), trial), trial=trial)
        except TooLargeError as error:
            raise self._smaller(len(queries), max(1, len(queries) // 2), error) from None
        except OneAnswerError as error:
            raise self._smaller(len(queries), 1, error) from None
        except _UnreadableError:
            raise
        except SuspectError as error:
            raise type(error)(error.what, f"{error.hint}{self._tried()}") from None
        with self._lock:
            if trial or not self._answered:
                self._answered, self._trying = True, self._trying and not trial
                self.card = replace(self.card, max_batch=self._most)
        return answers

    def _read(self, request: Request, reply: Reply, n: int, trial: bool) -> Answers:
        """The answers in a reply. Raises OneAnswerError where a trial gets one, GarbageError for what is no answer."""
        self._latest = (request, reply)
        try:
            answers = self._same_classes(self._decoded(request, reply, n))
        except OnnxauditError as error:
            if trial and isinstance(error, OneAnswerError):
                raise
            raise self._unreadable(error, reply) from None
        if self._trying and n == 1 and self._reads_as_several(reply):
            with self._lock:
                self._most, self._trying = 1, False
        return answers

    def _decoded(self, request: Request, reply: Reply, n: int) -> Answers:
        """The answers in a reply to this request. A server that calls the first reply otherwise has names of its own."""
        try:
            return self._dialect.decode(replace(reply, asked=request.id if self._echoes else ""), n)
        except OtherRequestError:
            if self._answered:
                raise
            self._echoes = False
            return self._dialect.decode(reply, n)

    def _same_classes(self, answers: Answers) -> Answers:
        """The answers; where only replies say how many classes there are, they must agree, else ReplyError is raised."""
        if self.card.num_classes is None and answers.num_classes is not None:
            with self._lock:
                self._classes = self._classes or answers.num_classes
            if answers.num_classes != self._classes:
                raise ReplyError(f"the reply scores {answers.num_classes} classes, and an earlier one {self._classes}")
        return answers

    def _reads_as_several(self, reply: Reply) -> bool:
        """Whether the reply to one query could be taken for the answers to two: two labels, as of a ranking of two classes."""
        try:
            return len(self._dialect.decode(reply, _TRIAL)) == _TRIAL
        except OnnxauditError:
            return False

    def _smaller(self, sent: int, size: int, error: SuspectError) -> SmallerBatch:
        """Smaller batches from now on. Raises SuspectError where they cannot be any smaller."""
        if self.card.batch or sent == 1:
            raise SuspectError(f"{error.what} to a request of {sent}, which cannot be smaller", error.hint) from None
        with self._lock:  # several requests of the old size may have been on their way: none halves what another has halved
            self._most = min(size, self._most or size)
            self._trying = self._trying and self._most > 1
            self.card = replace(self.card, max_batch=min(self._most, self.card.max_batch or size))
        return SmallerBatch(error.what, error.hint)

    def _tried(self) -> str:
        """How the dialect was found, as long as it may be the wrong one."""
        return (
            ""
            if self._answered or not self._trail
            else f" Asked in the {self._dialect.name} dialect: {self._transport.redaction.begin('; '.join(self._trail))[:1000]}."
        )

    def _unreadable(self, error: OnnxauditError, reply: Reply) -> OnnxauditError:
        """The error with the address, without secrets that the server echoed. What an option would choose, it chose before."""
        redaction, where = self._transport.redaction, f"{self.card.source}: "
        if not (isinstance(error, ReplyError) or self._answered):
            return type(error)(*redaction.told(error, where))
        return _UnreadableError(*redaction.told(error, where, f" It said {redaction.quote(reply.body)}.{self._tried()}"))


def open_http(
    target: Target,
    *,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] | None = None,
    jitter: Callable[[], float] = random.random,
) -> Suspect:
    """Open a classifier at a URL; asks for metadata, sends no query. options: those of ``HttpOptions``.

    clock: seconds, never set back. sleep: takes seconds. jitter: in [0, 1). Raises UsageError where the URL or an option is wrong
    or missing, SuspectError where the server is down or refuses.
    """
    address = parse_address(target.source)
    options = HttpOptions.read(target.options)
    address = replace(address, secrets=address.secrets | options.secrets)
    transport = Transport(address, options, clock=clock, sleep=sleep, jitter=jitter)
    try:
        # Nothing from here on may print the address as it was given: it may hold a password.
        found = detect(replace(target, source=address.shown), address, options, transport)
    except BaseException as error:
        transport.close()
        if isinstance(error, UsageError | ReplyError):  # names of inputs and the like are the server's words
            raise type(error)(*transport.redaction.told(error)) from None
        raise
    limit = min(options.batch, found.max_batch or options.batch)
    card = SuspectCard(
        source=address.shown,
        kind="http",
        input=found.input,
        num_classes=target.num_classes,
        batch=found.batch,
        max_batch=found.batch or limit,
        runtime=found.facts,
    )
    names = [*options.headers, *(["Authorization"] if address.authorization else [])]
    return HttpSuspect(card, found, transport, names)
