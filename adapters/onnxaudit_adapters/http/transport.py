"""The only code with a socket: sends a request, paces, retries and counts. Knows nothing of classifiers."""

from __future__ import annotations

import random
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from importlib.metadata import version

import requests
from urllib3.exceptions import HTTPError

from onnxaudit.errors import BudgetSpent, SuspectError, UsageError
from onnxaudit_adapters.http.dialects import Reply, Request
from onnxaudit_adapters.http.options import Address, HttpOptions
from onnxaudit_adapters.http.pacing import Pace, backoff, retry_after
from onnxaudit_adapters.http.redaction import Redaction

MAX_REPLY = 16 * 2**20  # bytes
MAX_RETRIES = 4  # of one request after 502, 503, 504, a timeout or a reset: TorchServe says 503 to what will never work
MAX_WAITS = 20  # of one request after 429, so that a server which only ever says 429 does not hold an audit for ever
_MAX_COMPLAINT = 64 * 2**10  # bytes read of a reply that is an error
_CHUNK = 64 * 2**10


class TooLargeError(SuspectError):
    """The server wants fewer queries in a request."""


@dataclass(frozen=True, slots=True)
class Fault:
    """No reply came back. reason: without secrets."""

    reason: str


class _Session(requests.Session):
    """A session that does not look at redirects: requests reads their body, and .netrc for their host, even unfollowed."""

    def get_redirect_target(self, resp: requests.Response) -> str | None:  # noqa: ARG002
        return None


def _no_netrc(request: requests.PreparedRequest) -> requests.PreparedRequest:
    """An authentication that adds nothing: with it requests leaves .netrc alone, and still takes the environment's proxies."""
    return request


class Transport:
    """One server, one request at a time. attempts: requests sent for queries. queries_sent: queries in them, retries included.

    clock: seconds since 1970. sleep: takes seconds. jitter: in [0, 1).
    """

    def __init__(
        self,
        address: Address,
        options: HttpOptions,
        *,
        clock: Callable[[], float] = time.time,
        sleep: Callable[[float], None] = time.sleep,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self.attempts = 0
        self.queries_sent = 0
        self.shown = address.shown
        self._options = options
        self._clock, self._sleep, self._jitter = clock, sleep, jitter
        self._pace = Pace(options.rate, clock, sleep)
        self._succeeded = False
        self._session = _Session()
        self._session.auth = _no_netrc
        self._session.headers.clear()
        # Identity: a few compressed bytes must not become gigabytes after the size was checked.
        self._session.headers.update({"User-Agent": f"onnxaudit/{version('onnxaudit')}", "Accept-Encoding": "identity"})
        if address.authorization:
            self._session.headers["Authorization"] = address.authorization
        self._session.headers.update(options.headers)
        self.redaction = Redaction(options.headers, address.secrets)

    def close(self) -> None:
        """Close the connections."""
        self._session.close()

    def get(self, address: Address) -> Reply:
        """What the server says of itself, whatever the status; costs no query. Raises SuspectError on no reply, 401 or 403."""
        self._pace.wait(1)
        found = self._exchange("GET", address.url, None, {"Accept": "application/json"})
        if isinstance(found, Fault):
            raise self._unreachable(found)
        if found.status in (401, 403):
            raise self._refused(found)
        return found

    def send(self, request: Request) -> Reply:
        """The reply to a request, with status 2xx.

        Raises TooLargeError where fewer queries may do, BudgetSpent before a request that the budget does not cover, and
        SuspectError where the server is down, refuses, or goes on failing. The first exchange decides: until one succeeds
        nothing is tried again, because many servers say 500 or 503 to a request that is wrong for good.
        """
        retries = waits = 0
        while True:
            self._charge(request.queries)
            found = self._exchange("POST", request.address.url, request.body, request.headers)
            if isinstance(found, Reply) and found.ok:
                self._succeeded = True
                self._pace.recover()
                return found
            if isinstance(found, Reply) and found.status == 429 and self._succeeded and waits < MAX_WAITS:
                delay = self._throttled(found, waits)
                waits += 1
            elif self._may_retry(found) and retries < MAX_RETRIES:
                asked = retry_after(found.headers, self._clock()) if isinstance(found, Reply) else None
                delay = backoff(retries, self._jitter) if asked is None else asked
                retries += 1
            else:
                raise self._fatal(found, 1 + retries + waits)
            self._sleep(delay)

    def _charge(self, queries: int) -> None:
        budget = self._options.budget
        if budget is not None and self.queries_sent + queries > budget:
            raise BudgetSpent(
                f"{self.queries_sent} of the {budget} queries in the budget are sent, and the next request has {queries}",
                "Retries count, because they count at the suspect. Raise --budget to go on.",
            )
        self._pace.wait(queries)
        self.attempts += 1
        self.queries_sent += queries

    def _throttled(self, reply: Reply, waits: int) -> float:
        asked = retry_after(reply.headers, self._clock())
        if asked is not None:
            return asked
        self._pace.slow_down()
        return backoff(waits, self._jitter)

    def _may_retry(self, found: Reply | Fault) -> bool:
        return self._succeeded and (isinstance(found, Fault) or found.status in (502, 503, 504))

    def _exchange(self, method: str, url: str, body: bytes | None, headers: Mapping[str, str]) -> Reply | Fault:
        mine = {name: value for name, value in headers.items() if name not in self._session.headers}
        options = self._options
        try:
            with self._session.request(
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
                return self._read(response)
        except requests.exceptions.SSLError as error:
            raise self._untrusted(error) from None
        except (
            requests.exceptions.Timeout,
            requests.exceptions.ConnectionError,
            requests.exceptions.ChunkedEncodingError,
        ) as error:
            return Fault(_reason(error, options.timeout))
        # None of the library's own words below, and no chained exception: they quote URLs and headers.
        except (requests.exceptions.InvalidURL, UnicodeError) as error:
            raise UsageError(
                f"{self.shown} cannot be sent a request ({type(error).__name__})", "Check the URL and the proxy."
            ) from None
        except (requests.exceptions.RequestException, HTTPError) as error:
            hint = "Something else than a web server may be listening there."
            raise SuspectError(f"{self.shown} gave a reply that is not HTTP ({type(error).__name__})", hint) from None

    def _read(self, response: requests.Response) -> Reply:
        good = response.status_code // 100 == 2
        limit = MAX_REPLY if good else _MAX_COMPLAINT
        headers = {name.lower(): value for name, value in response.headers.items()}
        if good and headers.get("content-encoding", "identity").strip().lower() not in ("", "identity"):
            raise SuspectError(
                f"{self.shown} compressed its reply, though asked not to", "A proxy in front of it may be the cause."
            )
        length = headers.get("content-length", "")
        body = bytearray()
        oversized = length.isdecimal() and len(length) < 20 and int(length) > limit
        if not (good and oversized):
            for chunk in response.iter_content(_CHUNK):
                body += chunk
                if len(body) > limit:
                    oversized = True
                    break
        if good and oversized:
            raise SuspectError(
                f"{self.shown} answered more than {limit // 2**20} MB to one request",
                "No classifier needs that for these queries; check the URL, or make --batch smaller.",
            )
        return Reply(response.status_code, bytes(body[:limit]), headers)

    def _fatal(self, found: Reply | Fault, tries: int) -> SuspectError:
        if isinstance(found, Fault):
            return self._unreachable(found, tries)
        if found.status in (401, 403):
            return self._refused(found)
        if found.status == 413 or (found.status == 400 and b"batch" in found.body.lower()):
            return TooLargeError(f"{self.shown} answered {_status(found.status)}", f"It said {self.redaction.quote(found.body)}.")
        if 300 <= found.status < 400:
            where = self.redaction.quote(found.headers.get("location", "").partition("?")[0].encode())
            return SuspectError(
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
        return SuspectError(f"{self.shown} answered {_status(found.status)} {when}", hint)

    def _refused(self, reply: Reply) -> SuspectError:
        given = "Authorization" in self._session.headers
        why = "it does not accept the Authorization header that was sent" if given else "the Authorization header is missing"
        return SuspectError(
            f"{self.shown} answered {_status(reply.status)}: {why}",
            f'Pass --header "Authorization: Bearer …". It said {self.redaction.quote(reply.body)}.',
        )

    def _unreachable(self, fault: Fault, tries: int = 1) -> SuspectError:
        often = f" after {tries} tries" if tries > 1 else ""
        return SuspectError(
            f"{self.shown} could not be reached{often}: {self.redaction.clean(fault.reason)}",
            "Check that the server is up, the URL, and the proxy settings of the environment.",
        )

    def _untrusted(self, error: requests.exceptions.SSLError) -> SuspectError:
        # Only these parts of the library's text: the rest holds the URL.
        text = str(error)
        reason = re.search(r"certificate verify failed: [^(\"']+", text) or re.search(r"\[SSL: [A-Z0-9_]+\]", text)
        why = reason.group().strip() if reason else "the TLS handshake failed"
        return SuspectError(
            f"{self.shown} has no secure connection to offer: {self.redaction.clean(why)}",
            "Pass --ca-bundle for a private authority, --client-cert if the server wants one. Verification cannot be turned off.",
        )


def _status(code: int) -> str:
    try:
        return f"{code} {HTTPStatus(code).phrase}"
    except ValueError:
        return str(code)


def _reason(error: Exception, timeout: float) -> str:
    """Why no reply came, in words that hold no URL: the library's text may quote a proxy's password."""
    text = str(error)
    if isinstance(error, requests.exceptions.Timeout) or "timed out" in text:
        return f"no reply within {timeout:g} s"
    if isinstance(error, requests.exceptions.ProxyError):
        return "the proxy did not let it through"
    for needle, words in (
        ("refused", "connection refused"),
        ("resolve", "the host name is not known"),
        ("reset", "the connection was reset"),
        ("unreachable", "the network is unreachable"),
    ):
        if needle in text:
            return words
    return "the connection was lost"
