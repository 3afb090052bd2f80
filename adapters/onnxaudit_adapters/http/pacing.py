"""When to send: how fast, how many at once, and how long to wait before trying again. Safe to be used from several threads."""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Callable, Mapping
from datetime import UTC
from email.utils import parsedate_to_datetime

LONGEST_WAIT = 120.0  # seconds; a server may ask for more, an auditor should not sit there for hours
_LONGEST_BACKOFF = 60.0
_STEPS = 64  # replies that earn back what was given up twice over
_NEAR, _CAREFUL = 0.1, 32  # so near to where the limit was met, steps are so much smaller: it is met once in some 200 requests
_LOWEST = 1 / 256  # of the rate begun with; waiting longer and longer between tries does the rest
_MEASURED = 64  # replies by which the rate is measured where none was asked for


class Pace:
    """A token bucket that holds no burst: a request waits until the one before is paid for, at ``rate`` queries a second.

    Additive increase, multiplicative decrease: a 429 halves the rate, each reply earns a little of it back. rate None: no limit,
    until a 429 sets half of what was measured, in the time that was not spent waiting because a server said so; then less is
    earned back near the rate that was too much (as Ha, Rhee and Xu 2008 do for TCP). clock: seconds, never set back. sleep:
    takes seconds.
    """

    def __init__(self, rate: float | None, clock: Callable[[], float], sleep: Callable[[float], None]) -> None:
        self.rate = rate
        self._ceiling = rate
        self._clock = clock
        self._sleep = sleep
        self._lock = threading.Lock()
        self._free = self._held = self._slowed = -math.inf
        self._step = self._floor = self._idle = self._limit = 0.0
        self._replies: deque[tuple[float, int]] = deque(maxlen=_MEASURED)

    def wait(self, queries: int) -> float:
        """Sleep until a request of so many queries may go, and charge it. Returns when it went."""
        with self._lock:
            now = self._clock()
            start = max(now, self._free, self._held)
            if self.rate is not None:
                self._free = start + queries / self.rate
        if start > now:
            self._sleep(start - now)
        while (delay := self._held - self._clock()) > 0:  # a 429 came in while this one slept
            self._sleep(delay)
        return self._clock()

    def hold(self, seconds: float) -> None:
        """Nothing goes for so long: the server said so to one request, and means all."""
        with self._lock:
            now = self._clock()
            held = max(self._held, now + seconds)
            self._idle += held - max(self._held, now)
            self._held = held

    def idle(self, seconds: float) -> None:
        """So long nothing goes that would have gone: it does not count when the rate is measured."""
        with self._lock:
            self._idle += seconds

    def slow_down(self, sent: float) -> None:
        """The server complained: half the rate from now on. sent: when the request went; complaints of one moment count once."""
        with self._lock:
            rate = self.rate or self._measured()
            if sent <= self._slowed or rate is None:
                return
            self._floor = self._floor or rate * _LOWEST
            self._slowed = self._clock()
            self._step = (self._ceiling or rate) / _STEPS
            self._limit = rate
            self.rate = max(rate / 2, self._floor)

    def recover(self, queries: int) -> None:
        """A request of so many queries went through: creep back towards the rate that was asked for, or on to the next 429."""
        with self._lock:
            self._replies.append((self._busy(), queries))
            if self.rate is not None:
                near = self._ceiling is None and abs(self.rate - self._limit) < _NEAR * self._limit
                self.rate = min(self.rate + (self._step / _CAREFUL if near else self._step), self._ceiling or math.inf)

    def _measured(self) -> float | None:
        """Queries a second that went through lately; None where that cannot be told."""
        if len(self._replies) < 2:
            return None
        seconds = self._busy() - self._replies[0][0]
        return sum(queries for _, queries in list(self._replies)[1:]) / seconds if seconds > 0 else None

    def _busy(self) -> float:
        """The time up to now in which requests could go."""
        now = self._clock()
        return now - self._idle + max(0.0, self._held - now)


class Lanes:
    """How many requests are on their way at once, at most: halved by a 429, and a lane earned back with each round of replies."""

    def __init__(self, most: int, clock: Callable[[], float]) -> None:
        self.width = float(most)
        self._most = most
        self._clock = clock
        self._used = 0
        self._narrowed = -math.inf
        self._change = threading.Condition()

    def __enter__(self) -> None:
        with self._change:
            while self._used >= max(1, int(self.width)):
                self._change.wait()
            self._used += 1

    def __exit__(self, *_: object) -> None:
        with self._change:
            self._used -= 1
            self._change.notify_all()

    def narrow(self, sent: float) -> None:
        """The server complained of a request sent then; complaints of one moment count once."""
        with self._change:
            if sent > self._narrowed:
                self._narrowed = self._clock()
                self.width = max(1.0, self.width / 2)

    def widen(self) -> None:
        """A request went through."""
        with self._change:
            self.width = min(float(self._most), self.width + 1 / self.width)
            self._change.notify_all()


def backoff(tries: int, jitter: Callable[[], float]) -> float:
    """Seconds to wait before try number tries + 2: doubling from 0.5 s, up to twice that by chance. jitter: in [0, 1)."""
    return float(min(0.5 * 2.0 ** min(tries, 20) * (1 + jitter()), _LONGEST_BACKOFF))


def retry_after(headers: Mapping[str, str], now: float) -> float | None:
    """Seconds that a Retry-After header asks for, from 0 to 120; None where there is none or it cannot be read.

    headers: lower-case names. A date is counted from the server's own Date where it gives one, else from now (seconds since
    1970): clocks differ.
    """
    text = headers.get("retry-after", "").strip()
    if text.isascii() and text.isdecimal():
        return float(min(int(text[:9]), LONGEST_WAIT))
    then = _seconds(text)
    if then is None:
        return None
    since = _seconds(headers.get("date", ""))
    return min(max(then - (now if since is None else since), 0.0), LONGEST_WAIT)


def _seconds(date: str) -> float | None:
    try:
        then = parsedate_to_datetime(date)  # without a zone it is not this machine's time, but that of all dates in HTTP
        return (then if then.tzinfo else then.replace(tzinfo=UTC)).timestamp()
    except (ValueError, TypeError, OverflowError, OSError):
        return None
