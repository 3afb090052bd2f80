"""Endpoints of a scan: asked from here, one at a time on each host, while workers ask the files.

They wait for the network and for the rate, not for a processor. In one place the limit holds for the whole scan, transcripts
are beside the output whatever happens to a worker, and credentials never leave this process.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

MOST_HOSTS = 32
"""Hosts that are asked at once."""


def by_host(urls: Sequence[tuple[int, str]]) -> dict[str, list[tuple[int, str]]]:
    """Numbered URLs by the host that they ask, whatever the port, path and user."""
    hosts: dict[str, list[tuple[int, str]]] = {}
    for number, url in urls:
        try:
            host = (urlsplit(url).hostname or "").rstrip(".")
        except ValueError:  # asking it will say so
            host = ""
        hosts.setdefault(host, []).append((number, url))
    return hosts


class Lanes:
    """One thread for each of a few hosts at a time; it takes a host's endpoints in order, each with every bundle.

    ask: (number, URL, bundle) to a result. pause: seconds between the end of one check and the next on the same host: a check
    does not know when the one before sent its last request.
    """

    def __init__(
        self, hosts: Mapping[str, Sequence[tuple[int, str]]], bundles: int, ask: Callable[[int, str, int], Any], pause: float
    ) -> None:
        self.left = bundles * sum(map(len, hosts.values()))
        self._bundles = bundles
        self._ask = ask
        self._pause = pause
        self._hosts: queue.SimpleQueue[Sequence[tuple[int, str]]] = queue.SimpleQueue()
        self._done: queue.SimpleQueue[tuple[int, int, Any]] = queue.SimpleQueue()
        for urls in hosts.values():
            self._hosts.put(urls)
        for _ in range(min(len(hosts), MOST_HOSTS)):
            threading.Thread(target=self._run, daemon=True).start()

    def take(self, *, wait: bool) -> tuple[int, int, Any] | None:
        """Number, bundle and result of a check that is done; None if none is and it may not wait. Raises what ``ask`` raised."""
        if not self.left:
            return None
        try:
            number, bundle, result = self._done.get(block=wait)
        except queue.Empty:
            return None
        self.left -= 1
        if isinstance(result, BaseException):
            raise result
        return number, bundle, result

    def _run(self) -> None:
        while True:
            try:
                urls = self._hosts.get_nowait()
            except queue.Empty:
                return
            for number, url in urls:
                for bundle in range(self._bundles):
                    try:
                        result = self._ask(number, url, bundle)
                    except BaseException as error:
                        result = error
                    self._done.put((number, bundle, result))
                    if self._pause:
                        time.sleep(self._pause)
