"""When a request is sent, how often, and when that is the end: paces, retries and counts. Knows nothing of classifiers."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Generic, TypeVar

from onnxaudit.errors import BudgetSpent, Stopped, SuspectError, Unreachable
from onnxaudit_adapters.http.dialects import Reply, Request
from onnxaudit_adapters.http.exchanges import Exchanges, Fault, GarbageError
from onnxaudit_adapters.http.options import Address, HttpOptions
from onnxaudit_adapters.http.pacing import Lanes, Pace, backoff, retry_after
from onnxaudit_adapters.http.redaction import Redaction

MAX_RETRIES = 4  # of one request after a fault, 5xx or garbage: TorchServe says 503 to what will never work
MAX_WAITS = 20  # of one request after 429, so that a server which only ever says 429 does not hold an audit for ever
HICCUPS = frozenset({500, 502, 503, 504, *range(520, 528)})  # what servers, and the networks before them, say of a bad moment
_DECLINED = frozenset({400, 413, 415, 422, 501})  # what is said of a body that is of another form than was expected
T = TypeVar("T")


class TooLargeError(SuspectError):
    """The server wants fewer queries in a request."""


@dataclass(frozen=True, slots=True)
class _Understood(Generic[T]):
    """What was read from a good reply."""

    value: T


class Transport:
    """One server. Threads may share it.

    attempts: requests sent for queries. queries_sent: queries in them, retries included. spent: queries of the budget that an
    earlier run sent. lost: queries that were sent and came to nothing; ``told`` hears of
    it each time, before anything is tried again.

    clock: seconds, never set back. sleep: takes seconds; None: until then or until it is stopped. jitter: in [0, 1).
    """

    def __init__(
        self,
        address: Address,
        options: HttpOptions,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] | None = None,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self.attempts = 0
        self.queries_sent = 0
        self.spent = 0
        self.lost = 0
        self.told: Callable[[int], None] = lambda _: None
        self.shown = address.shown
        self._options = options
        self._stopped = threading.Event()
        self._wait = sleep or self._stopped.wait
        self._jitter = jitter
        self._pace = Pace(options.rate, clock, self._sleep)
        self._lanes = Lanes(options.concurrency, clock)
        self._succeeded = False
        self._lock = threading.Lock()
        self.redaction = Redaction(options.headers, address.secrets)
        self._exchanges = Exchanges(address, options, self.redaction)

    def close(self) -> None:
        """Close the connections."""
        self._exchanges.close()

    def stop(self) -> None:
        """Called from another thread: send nothing more, try nothing again. What is on its way may still be answered."""
        self._stopped.set()

    def get(self, address: Address, *, guessed: bool = False) -> Reply:
        """What the server says of itself, whatever the status; costs no query. Raises SuspectError on no reply, 401 or 403.

        guessed: the path may not exist, which gateways call forbidden: 403 is then a reply like others.
        """
        self._pace.wait(1)
        found = self._exchanges.exchange("GET", address.url, None, {"Accept": "application/json"})
        if isinstance(found, Fault):
            raise found.error or self._unreachable(found)
        if found.status == 401 or (found.status == 403 and not guessed):
            raise self._refused(found)
        return found

    def send(self, request: Request, read: Callable[[Reply], T], *, trial: bool = False) -> T:
        """What ``read`` makes of the reply to a request, which has status 2xx; it raises GarbageError if that is nothing.

        Raises TooLargeError where fewer queries may do, BudgetSpent before a request that the budget does not cover, and
        SuspectError where the server is down, refuses, or goes on failing. The first exchange decides: until one succeeds
        nothing is tried again, because many servers say 500 or 503 to a request that is wrong for good. trial: nor is this one,
        which holds several queries where only one was answered before: what is said against it may be said of their number.
        """
        retries = waits = 0
        while True:
            with self._lanes:
                sent = self._charge(request.queries)
                try:
                    found = self._exchanges.exchange("POST", request.address.url, request.body, request.headers)
                    understood = self._understood(found, read) if isinstance(found, Reply) and found.ok else found
                except Exception:
                    self.lose(request.queries)
                    raise
                if not isinstance(understood, _Understood):
                    self.lose(request.queries)
            if isinstance(understood, _Understood):
                self._succeeded = True
                self._pace.recover(request.queries)
                self._lanes.widen()
                return understood.value
            if isinstance(understood, Reply) and understood.status == 429 and self._succeeded and waits < MAX_WAITS:
                self._pace.slow_down(sent)
                self._lanes.narrow(sent)
                self._pause(understood, waits)
                waits += 1
            elif trial and (isinstance(understood, Fault) or understood.status in HICCUPS | _DECLINED):
                raise TooLargeError(f"{self.shown} did not answer {request.queries} queries at once")
            elif self._may_retry(understood) and retries < MAX_RETRIES:
                self._pause(understood, retries)
                retries += 1
            else:
                raise self._fatal(understood, 1 + retries + waits)

    def lose(self, queries: int) -> None:
        """So many queries that were sent came to nothing."""
        with self._lock:
            self.lost += queries
            lost = self.lost
        self.told(lost)

    def _understood(self, reply: Reply, read: Callable[[Reply], T]) -> _Understood[T] | Fault:
        try:
            return _Understood(read(reply))
        except GarbageError as error:
            self._exchanges.drop()
            return Fault(error.what, error)

    def _charge(self, queries: int) -> float:
        """Wait until the request may go, and count it. Returns when that was."""
        budget = self._options.budget
        with self._lock:
            if self._stopped.is_set():
                raise Stopped(f"{self.shown} is not asked any more", "Something else failed, or the run was interrupted.")
            if budget is not None and self.spent + self.queries_sent + queries > budget:
                gone = self.spent + self.queries_sent
                raise BudgetSpent(
                    f"{gone} of the {budget} queries in the budget are sent, and the next request has {queries}",
                    "Retries count, because they count at the suspect. Raise --budget to go on.",
                )
            self.attempts += 1
            self.queries_sent += queries
        try:
            return self._pace.wait(queries)
        except BaseException:  # interrupted while it waited: it never went
            with self._lock:
                self.attempts -= 1
                self.queries_sent -= queries
            raise

    def _sleep(self, seconds: float) -> None:
        self._wait(seconds)
        if self._stopped.is_set():
            raise Stopped(f"{self.shown} is not asked any more", "Something else failed, or the run was interrupted.")

    def _pause(self, found: Reply | Fault, tries: int) -> None:
        """Wait before trying again: longer each time, and as long as the server says, in which nothing else goes either."""
        asked = retry_after(found.headers, time.time()) if isinstance(found, Reply) else None
        longer = backoff(tries, self._jitter)
        if asked:
            self._pace.hold(asked)
        if asked is None or asked < longer:  # "0", or a date gone by, is no leave to try again at once
            self._pace.idle(longer / self._options.concurrency)
            self._sleep(longer)

    def _may_retry(self, found: Reply | Fault) -> bool:
        return self._succeeded and (isinstance(found, Fault) or found.status in HICCUPS)

    def _fatal(self, found: Reply | Fault, tries: int) -> SuspectError:
        if isinstance(found, Fault) and found.error is not None:
            often = f", {tries} times" if tries > 1 else ""
            return type(found.error)(found.error.what + often, found.error.hint)
        if isinstance(found, Fault):
            return self._unreachable(found, tries)
        if found.status in (401, 403):
            return self._refused(found)
        if found.status == 413 or (found.status == 400 and b"batch" in found.body.lower()):
            return TooLargeError(f"{self.shown} answered {_status(found.status)}", f"It said {self.redaction.quote(found.body)}.")
        if 300 <= found.status < 400:
            where = self.redaction.quote(self.redaction.clean(found.headers.get("location", "")).partition("?")[0].encode())
            return Unreachable(
                f"{self.shown} redirects ({_status(found.status)}) to {where}; redirects are not followed",
                "If that is the suspect, give its URL.",
            )
        when = "to the first request" if not self._succeeded else f"after {tries} tries" if tries > 1 else "to a later request"
        hint = f"It said {self.redaction.quote(found.body)}."
        if found.status == 429:
            hint += " It limits the rate: wait a little, and pass --rate."
        elif found.status == 404:
            hint += " Check the path and the model's name."
        elif not self._succeeded:
            hint += (
                " Check the URL, --dialect, --input and --input-name; a server that takes one example a request needs --batch 1."
            )
        kind = Unreachable if found.status in (404, 407, 429) else SuspectError  # 5xx is what many say to a wrong input
        return kind(f"{self.shown} answered {_status(found.status)} {when}", hint)

    def _refused(self, reply: Reply) -> SuspectError:
        why = (
            "it does not accept the Authorization header that was sent"
            if self._exchanges.authorized
            else "the Authorization header is missing"
        )
        return Unreachable(
            f"{self.shown} answered {_status(reply.status)}: {why}",
            f'Pass --header "Authorization: Bearer …". It said {self.redaction.quote(reply.body)}.',
        )

    def _unreachable(self, fault: Fault, tries: int = 1) -> SuspectError:
        often = f" after {tries} tries" if tries > 1 else ""
        return Unreachable(
            f"{self.shown} could not be reached{often}: {self.redaction.clean(fault.reason)}",
            "Check that the server is up, the URL, and the proxy settings of the environment.",
        )


def _status(code: int) -> str:
    try:
        return f"{code} {HTTPStatus(code).phrase}"
    except ValueError:
        return str(code)
