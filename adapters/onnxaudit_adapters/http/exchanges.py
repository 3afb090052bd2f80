"""The only code with a socket: one request goes out, one reply comes back or none, in bounded time and memory."""

from __future__ import annotations

import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from http.cookiejar import DefaultCookiePolicy
from importlib.metadata import version
from mmap import mmap

import requests
from urllib3.exceptions import HTTPError, LocationValueError, ProtocolError, ReadTimeoutError

from onnxaudit.errors import Nonsense, SuspectError, UsageError
from onnxaudit_adapters.http.deadlines import WholeReplies
from onnxaudit_adapters.http.dialects import Reply
from onnxaudit_adapters.http.options import Address, HttpOptions
from onnxaudit_adapters.http.redaction import Redaction

MAX_REPLY = 16 * 2**20  # bytes
_MAX_COMPLAINT = 64 * 2**10  # bytes read of a reply that is an error
_CHUNK = 64 * 2**10
_NOT_HTTP = ("BadStatusLine(", "UnknownProtocol(", "LineTooLong(", "HTTPException(", "InvalidChunkLength(")


class GarbageError(Nonsense):
    """A reply with status 2xx that is not what was asked for. After a success it is asked for again; it is never made to fit."""


@dataclass(frozen=True, slots=True)
class Fault:
    """No reply came back, or none of use. reason: without secrets. error: what to raise if that is the end of it."""

    reason: str
    error: SuspectError | None = None


class _Session(requests.Session):
    """A session that does not look at redirects: requests reads their body, and .netrc for their host, even unfollowed."""

    def get_redirect_target(self, resp: requests.Response) -> str | None:  # noqa: ARG002 - the signature is the library's
        return None


def _no_netrc(request: requests.PreparedRequest) -> requests.PreparedRequest:
    """An authentication that adds nothing: with it requests leaves .netrc alone, and still takes the environment's proxies."""
    return request


class Exchanges:
    """The connections to one server, each of one thread. Its words in errors are without secrets."""

    def __init__(self, address: Address, options: HttpOptions, redaction: Redaction) -> None:
        self._address = address
        self._options = options
        self._redaction = redaction
        self._lock = threading.Lock()
        self._own = threading.local()  # a session is for one thread
        self._sessions: list[_Session] = []

    @property
    def authorized(self) -> bool:
        """Whether requests say who asks."""
        return "Authorization" in self._session().headers

    def drop(self) -> None:
        """Close this thread's connection, so that no rest of a reply can be taken for the beginning of the next."""
        self._session().close()

    def close(self) -> None:
        """Close the connections."""
        with self._lock:
            for session in self._sessions:
                session.close()

    def _session(self) -> _Session:
        session: _Session | None = getattr(self._own, "session", None)
        if session is None:
            session = self._own.session = self._new_session()
            with self._lock:
                self._sessions.append(session)
        return session

    def _new_session(self) -> _Session:
        session = _Session()
        session.auth = _no_netrc
        # None is kept: each reply could add its own, and they would be sent along and grow without end.
        session.cookies.set_policy(DefaultCookiePolicy(allowed_domains=()))
        session.headers.clear()
        # Identity: a few compressed bytes must not become gigabytes after the size was checked.
        session.headers.update({"User-Agent": f"onnxaudit/{version('onnxaudit')}", "Accept-Encoding": "identity"})
        if self._address.authorization:
            session.headers["Authorization"] = self._address.authorization
        session.headers.update(self._options.headers)
        for scheme in ("http://", "https://"):
            session.mount(scheme, WholeReplies(self._options.timeout))
        return session

    def exchange(self, method: str, url: str, body: bytes | None, headers: Mapping[str, str]) -> Reply | Fault:
        """Send a request, read the reply. Raises SuspectError for a certificate that does not hold, UsageError for a bad URL."""
        session, options = self._session(), self._options
        mine = {name: value for name, value in headers.items() if name not in session.headers}
        try:
            with session.request(
                method,
                url,
                data=body,
                headers=mine,
                timeout=options.timeout,
                # Given with each request, else REQUESTS_CA_BUNDLE in the environment would win over what the user said.
                verify=options.ca_bundle or True,
                cert=options.client_cert,
                stream=True,
                allow_redirects=False,
            ) as response:
                found = self._read(response)
                if found.status < 200:  # another reply follows, which is not to be taken for the next request's
                    session.close()
                return found
        except requests.exceptions.SSLError as error:
            return self._untrusted(error)
        except (requests.exceptions.Timeout, requests.exceptions.ConnectionError, ReadTimeoutError, ProtocolError) as error:
            return Fault(_reason(error, options.timeout))
        except GarbageError as error:
            return Fault(error.what, error)
        # None of the library's own words below, and no chained exception: they quote URLs and headers.
        except (requests.exceptions.InvalidURL, requests.exceptions.InvalidSchema, LocationValueError, UnicodeError) as error:
            raise UsageError(
                f"{self._address.shown} cannot be sent a request ({type(error).__name__})", "Check the URL and the proxy."
            ) from None
        except (requests.exceptions.RequestException, HTTPError, ValueError) as error:  # of negative sizes of chunks
            what = f"{self._address.shown} gave a reply that is not HTTP ({type(error).__name__})"
            return Fault(what, SuspectError(what, "Something else than a web server may be listening there."))
        except OSError as error:
            if error.errno is not None:
                raise
            raise UsageError(
                "certificates that are to be trusted or shown cannot be found",
                "Check --ca-bundle, --client-cert, and REQUESTS_CA_BUNDLE and CURL_CA_BUNDLE in the environment.",
            ) from None

    def _read(self, response: requests.Response) -> Reply:
        """The reply, of which no more is kept than may be; never decompressed, whatever it says. Raises GarbageError."""
        good = response.status_code // 100 == 2
        limit = MAX_REPLY if good else _MAX_COMPLAINT
        headers = {name.lower(): value for name, value in response.headers.items()}
        if good and headers.get("content-encoding", "identity").strip().lower() not in ("", "identity"):
            raise GarbageError(
                f"{self._address.shown} compressed its reply, though asked not to", "A proxy in front of it may be the cause."
            )
        length = headers.get("content-length", "")
        oversized = length.isdecimal() and (len(length) > 19 or int(length) > limit)
        # Mapped, not allocated: what is given back here goes back to the system, however many threads read large replies.
        with mmap(-1, limit) as body:
            if not (good and oversized):
                for chunk in response.raw.stream(_CHUNK, decode_content=False):
                    room = limit - body.tell()
                    body.write(chunk[:room])
                    if oversized := len(chunk) > room:
                        break
            said = b"" if good and oversized else body[: body.tell()]
        if good and oversized:
            raise GarbageError(
                f"{self._address.shown} answered more than {limit // 2**20} MB to one request",
                "No classifier needs that for these queries; check the URL, or make --batch smaller.",
            )
        return Reply(response.status_code, said, headers)

    def _untrusted(self, error: requests.exceptions.SSLError) -> Fault:
        """Raises SuspectError for a certificate that does not hold: asking again could only reach somebody else."""
        # Only these parts of the library's text: the rest holds the URL.
        text = str(error)
        distrust = re.search(r"certificate verify failed: [^(\"']+", text)
        reason = distrust or re.search(r"\[SSL: [A-Z0-9_]+\]", text)
        why = self._redaction.clean(reason.group().strip() if reason else "the TLS handshake failed")
        if why == "[SSL: WRONG_VERSION_NUMBER]":
            why = "it speaks no TLS, or an old version of it (does the URL want http?)"
        found = SuspectError(
            f"{self._address.shown} has no secure connection to offer: {why}",
            "Pass --ca-bundle for a private authority, --client-cert if the server wants one. Verification cannot be turned off.",
        )
        if distrust:
            raise found from None
        return Fault(why, found)


def _reason(error: Exception, timeout: float) -> str:
    """Why no reply came, in words that hold no URL: the library's text may quote a proxy's password."""
    text = str(error)
    if isinstance(error, requests.exceptions.Timeout) or "timed out" in text:
        return f"no reply within {timeout:g} s"
    if isinstance(error, requests.exceptions.ProxyError):
        return "the proxy did not let it through"
    if any(kind in text for kind in _NOT_HTTP):
        return "what came back is not HTTP/1 (does the URL want https, or another port?)"
    for needle, words in (
        ("refused", "connection refused"),
        ("resolve", "the host name is not known"),
        ("reset", "the connection was reset"),
        ("unreachable", "the network is unreachable"),
    ):
        if needle in text:
            return words
    return "the connection was lost"
