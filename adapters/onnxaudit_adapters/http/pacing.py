"""When to send: how fast, and how long to wait before trying again."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from email.utils import parsedate_to_datetime

LONGEST_WAIT = 120.0  # seconds; a server may ask for more, an auditor should not sit there for hours
_LONGEST_BACKOFF = 60.0
_RECOVERY = 1.05  # a request that goes through earns this much of the rate back


class Pace:
    """A token bucket that holds no burst: a request waits until the one before is paid for, at ``rate`` queries a second.

    rate None: no limit. clock: seconds. sleep: takes seconds.
    """

    def __init__(self, rate: float | None, clock: Callable[[], float], sleep: Callable[[float], None]) -> None:
        self.rate = rate
        self._ceiling = rate
        self._clock = clock
        self._sleep = sleep
        self._last = -math.inf
        self._cost = 0.0

    def wait(self, queries: int) -> None:
        """Sleep until a request of so many queries may go, and charge it."""
        if self.rate is None:
            return
        now = self._clock()
        # Never longer than the last request cost: the wall clock may have been set back.
        delay = min(max(self._last + self._cost - now, 0.0), self._cost)
        if delay:
            self._sleep(delay)
        self._last, self._cost = now + delay, queries / self.rate

    def slow_down(self) -> None:
        """The server complained without saying how long to wait: half the rate from now on."""
        if self.rate is not None:
            self.rate /= 2

    def recover(self) -> None:
        """A request went through: creep back towards the rate that was asked for."""
        if self.rate is not None and self._ceiling is not None:
            self.rate = min(self.rate * _RECOVERY, self._ceiling)


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
        return parsedate_to_datetime(date).timestamp()
    except (ValueError, TypeError, OverflowError, OSError):
        return None
