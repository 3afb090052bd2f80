"""Replies that have to be there in time, whole: the library's own limit is on each piece, and a piece may be one byte."""

from __future__ import annotations

import http.client
import io
import socket
import time
from typing import Any

from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool

MOST_BYTES = 24 * 2**20
"""Of a reply with its head, and what chunks add: those who read lines of it hold them."""


class _Until(io.RawIOBase):
    """What a socket receives until a moment; later reads raise TimeoutError, and OSError after more bytes than a reply has.

    seconds: the socket's timeout otherwise.
    """

    def __init__(self, raw: io.RawIOBase, sock: socket.socket, seconds: float) -> None:
        self._raw, self._sock, self._seconds = raw, sock, seconds
        self._end = time.monotonic() + seconds
        self._left = MOST_BYTES

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        left = self._end - time.monotonic()
        if left <= 0:
            raise TimeoutError("timed out")
        if self._left <= 0:
            raise OSError("the reply does not end")
        self._sock.settimeout(left)
        try:
            got = self._raw.readinto(buffer)
            self._left -= got or 0
            return got
        finally:
            self._sock.settimeout(self._seconds)  # the connection may be used again

    def close(self) -> None:
        self._raw.close()
        super().close()


class WholeReplies(HTTPAdapter):
    """Connections on which a reply, headers and body, has to be there within so many seconds of the request."""

    def __init__(self, seconds: float) -> None:
        self._classes = _pool_classes(seconds)
        super().__init__()

    def init_poolmanager(self, *args: Any, **options: Any) -> None:
        """Make the pools of direct connections."""
        super().init_poolmanager(*args, **options)
        self.poolmanager.pool_classes_by_scheme = self._classes

    def proxy_manager_for(self, *args: Any, **options: Any) -> Any:
        """The pools of connections through a proxy."""
        manager = super().proxy_manager_for(*args, **options)
        manager.pool_classes_by_scheme = self._classes
        return manager


def _pool_classes(seconds: float) -> dict[str, Any]:
    class Timed(http.client.HTTPResponse):
        def __init__(self, sock: socket.socket, *args: Any, **options: Any) -> None:
            super().__init__(sock, *args, **options)
            self.fp = io.BufferedReader(_Until(self.fp.detach(), sock, seconds))

    plain = type("Plain", (HTTPConnection,), {"response_class": Timed})
    secure = type("Secure", (HTTPSConnection,), {"response_class": Timed})
    return {
        "http": type("PlainPool", (HTTPConnectionPool,), {"ConnectionCls": plain}),
        "https": type("SecurePool", (HTTPSConnectionPool,), {"ConnectionCls": secure}),
    }
