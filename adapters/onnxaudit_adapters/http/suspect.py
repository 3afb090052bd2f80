"""A suspect behind HTTP: queries go out in a dialect, through the one transport, in batches that the server takes."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import replace

from onnxaudit.answers import Answers
from onnxaudit.errors import OnnxauditError, SuspectError
from onnxaudit.suspect import Queries, Suspect, SuspectCard, Target
from onnxaudit_adapters.http.detect import Found, detect
from onnxaudit_adapters.http.dialects import OneAnswerError, Reply
from onnxaudit_adapters.http.options import HttpOptions, parse_address
from onnxaudit_adapters.http.strict_json import ReplyError
from onnxaudit_adapters.http.transport import TooLargeError, Transport


class HttpSuspect(Suspect):
    """A classifier that answers over HTTP. Holds connections: use it as a context manager.

    The card's max_batch shrinks when the server wants smaller requests.
    """

    def __init__(self, card: SuspectCard, found: Found, transport: Transport) -> None:
        self.card = card
        self._dialect = found.dialect
        self._trail = found.trail
        self._transport = transport
        self._answered = False

    @property
    def queries_sent(self) -> int:
        """Queries sent so far, those in retries, padding and refused batches included: what counts at the suspect."""
        return self._transport.queries_sent

    @property
    def attempts(self) -> int:
        """Requests sent so far to ask these queries."""
        return self._transport.attempts

    def close(self) -> None:
        """Close the connections."""
        self._transport.close()

    def _ask(self, queries: Queries) -> Answers:
        """Raises BudgetSpent before a request that the budget does not cover; else as ``Suspect.ask``."""
        parts: list[Answers] = []
        start = 0
        while start < len(queries):
            chunk = queries[start : start + self._size(len(queries))]
            answers = self._request(chunk)
            if answers is not None:
                parts.append(answers)
                start += len(chunk)
        return Answers.concatenate(parts)

    def _size(self, n: int) -> int:
        """Queries in the next request."""
        if self.card.batch:
            return n
        first = None if self._answered else self._dialect.first
        return min(self.card.max_batch or n, first or n)

    def _request(self, chunk: Queries) -> Answers | None:
        """Answers to one request; None where the server wants smaller ones, which it gets from now on."""
        try:
            request = self._dialect.encode(chunk, self.card.input)
            reply = self._transport.send(request)
        except TooLargeError as error:
            self._shrink(len(chunk), max(1, len(chunk) // 2), error)
            return None
        except SuspectError as error:
            raise SuspectError(error.what, f"{error.hint}{self._tried()}") from None
        try:
            answers = self._dialect.decode(reply, len(chunk))
        except OneAnswerError as error:
            if self._answered:
                raise self._unreadable(error, reply) from None
            self._shrink(len(chunk), 1, error)
            return None
        except OnnxauditError as error:
            raise self._unreadable(error, reply) from None
        self._answered = True
        return answers

    def _shrink(self, sent: int, size: int, error: SuspectError) -> None:
        """Smaller batches from now on. Raises SuspectError where they cannot be any smaller."""
        if self.card.batch or sent == 1:
            raise SuspectError(f"{error.what} to a request of {sent}, which cannot be smaller", error.hint)
        self.card = replace(self.card, max_batch=size)

    def _tried(self) -> str:
        """How the dialect was found, as long as it may be the wrong one."""
        return (
            "" if self._answered or not self._trail else f" Asked in the {self._dialect.name} dialect: {'; '.join(self._trail)}."
        )

    def _unreadable(self, error: OnnxauditError, reply: Reply) -> OnnxauditError:
        """The error with the address, and without secrets that the server echoed."""
        clean = self._transport.redaction.clean
        if not isinstance(error, ReplyError):
            return type(error)(clean(f"{self.card.source}: {error.what}"), clean(error.hint))
        hint = f"{clean(error.hint)} It said {self._transport.redaction.quote(reply.body)}.{self._tried()}"
        return SuspectError(clean(f"{self.card.source}: {error.what}"), hint)


def open_http(
    target: Target,
    *,
    clock: Callable[[], float] = time.time,
    sleep: Callable[[float], None] = time.sleep,
    jitter: Callable[[], float] = random.random,
) -> Suspect:
    """Open a classifier at a URL; asks for metadata, sends no query. options: those of ``HttpOptions``.

    clock: seconds since 1970. sleep: takes seconds. jitter: in [0, 1). Raises UsageError where the URL or an option is wrong
    or missing, SuspectError where the server is down or refuses.
    """
    address = parse_address(target.source)
    options = HttpOptions.read(target.options)
    transport = Transport(address, options, clock=clock, sleep=sleep, jitter=jitter)
    try:
        # Nothing from here on may print the address as it was given: it may hold a password.
        found = detect(replace(target, source=address.shown), address, options, transport)
    except BaseException:
        transport.close()
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
    return HttpSuspect(card, found, transport)
