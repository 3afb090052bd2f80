"""What a user says of an HTTP suspect, what may be shown of it, and how long to wait."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from onnxaudit.errors import UsageError
from onnxaudit.suspect import InputSpec, Target
from onnxaudit_adapters.http import open_http
from onnxaudit_adapters.http.options import HttpOptions, parse_address
from onnxaudit_adapters.http.pacing import Pace, backoff, retry_after
from onnxaudit_adapters.http.redaction import Redaction
from onnxaudit_adapters.http.v2 import V2

ADDRESS = parse_address("http://host/v2/models/m/infer")
VECTOR = InputSpec((3,), layout="NC")


@pytest.mark.parametrize("url", ["ftp://h/x", "http://", "http://h:99999/", "http://h:x/", "http://[::1/", "http://h/a b", "h/x"])
def test_bad_urls_are_usage_errors(url: str) -> None:
    with pytest.raises(UsageError):
        parse_address(url)


def test_secrets_of_a_url_are_neither_shown_nor_in_its_repr() -> None:
    address = parse_address("https://user:hunter2@h/v2/models/m?key=s3cr%2Bet")
    for text in (address.shown, repr(address), repr(V2(address, "x").encode(np.zeros((1, 3), np.float32), VECTOR))):
        assert not any(secret in text for secret in ("hunter2", "s3cr", "user"))
    assert address.url == "https://h/v2/models/m?key=s3cr%2Bet"
    assert address.authorization == "Basic dXNlcjpodW50ZXIy"
    cleaned = Redaction({"X-Key": "Bearer abcdef"}, address.secrets).clean(
        "hunter2 s3cr+et s3cr%2Bet dXNlcjpodW50ZXIy abcdef\x1b[2J"
    )
    assert cleaned == "*** *** *** *** *** [2J"


def test_a_secret_at_the_cut_of_a_quote_stays_hidden() -> None:
    quote = Redaction({"X": "topsecretvalue"}, ()).quote(b"x" * 195 + b"topsecretvalue")
    assert "tops" not in quote
    assert len(quote) <= 202


@pytest.mark.parametrize(
    "options",
    [
        {"dialect": "grpc"},
        {"timeout": 0},
        {"timeout": "soon"},
        {"timeout": 1e300},
        {"timeout": 86401},
        {"timeout": float("nan")},
        {"rate": 1e-37},
        {"rate": 10**400},
        {"concurrency": 257},
        {"concurrency": 0},
        {"concurrency": 1.5},
        {"batch": 65537},
        {"batch": 10**23},
        {"batch": 0},
        {"batch": 1.5},
        {"budget": -1},
        {"budget": True},
        {"rate": float("inf")},
        {"ca_bundle": "no/such/file.pem"},
        {"ca_bundle": __file__},
        {"client_cert": ("no/such.pem", "no/such.key")},
        {"client_cert": __file__},
        {"client_cert": str(Path(__file__).parent)},
        {"headers": ["A: b"]},
        {"headers": {"A b": "c"}},
        {"headers": {"A": "topsecret\r\nX: y"}},
        {"headers": {"A": "topsecret…"}},
        {"input_name": 3},
    ],
)
def test_bad_options_are_usage_errors_without_their_secrets(options: dict[str, object]) -> None:
    with pytest.raises(UsageError) as caught:
        HttpOptions.read(options)
    assert "topsecret" not in str(caught.value)


@pytest.mark.parametrize("proxy", ["socks5://127.0.0.1:1", "http://"])
def test_a_proxy_or_a_host_that_cannot_be_is_the_user_s_mistake(proxy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, proxy if "http" in name.lower() else "")
    with pytest.raises(UsageError, match="proxy"):
        open_http(Target("http://127.0.0.1:1/v2/models/m", VECTOR, 4))
    monkeypatch.undo()
    with pytest.raises(UsageError, match="Check the URL"):
        open_http(Target("http://a..b/v2/models/m", VECTOR, 4))


def test_certificates_of_the_environment_that_are_not_there_are_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", "/no/such/file.pem")
    with pytest.raises(UsageError, match="REQUESTS_CA_BUNDLE"):
        open_http(Target("https://127.0.0.1:1/v2/models/m", VECTOR, 4))


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl to make a key")
def test_a_key_under_a_password_is_refused_and_nobody_is_asked_for_it(tmp_path: Path) -> None:
    key = tmp_path / "k.pem"
    line = ["openssl", "genpkey", "-algorithm", "ed25519", "-aes256", "-pass", "pass:word", "-out", str(key)]
    subprocess.run(line, check=True, capture_output=True)
    with pytest.raises(UsageError, match="under a password"):
        HttpOptions.read({"client_cert": str(key)})


def test_options_hide_headers_and_none_means_not_given() -> None:
    options = HttpOptions.read({"headers": {"Authorization": "Bearer topsecret"}, "timeout": None, "rate": None, "unknown": 1})
    assert "topsecret" not in repr(options)
    assert (options.timeout, options.batch, options.rate) == (30.0, 16, None)


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "7"}, 7.0),
        ({"retry-after": "100000"}, 120.0),
        ({"retry-after": "Thu, 01 Jan 1970 00:01:40 GMT"}, 40.0),
        ({"retry-after": "Thu, 01 Jan 1970 00:01:40 GMT", "date": "Thu, 01 Jan 1970 00:01:30 GMT"}, 10.0),
        ({"retry-after": "Thu, 01 Jan 1970 00:00:01 GMT"}, 0.0),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "-5"}, None),
        ({}, None),
    ],
)
def test_retry_after(headers: dict[str, str], seconds: float | None) -> None:
    assert retry_after(headers, now=60.0) == seconds


def test_backoff_doubles_from_half_a_second_with_jitter() -> None:
    assert [backoff(tries, lambda: 0.0) for tries in range(4)] == [0.5, 1.0, 2.0, 4.0]
    assert backoff(0, lambda: 0.5) == 0.75
    assert backoff(1000, lambda: 0.9) == 60.0


def test_pace_keeps_the_rate_halves_and_recovers() -> None:
    now, slept = [0.0], list[float]()

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        now[0] += seconds

    pace = Pace(10.0, lambda: now[0], sleep)
    for _ in range(3):
        pace.wait(5)
    assert slept == pytest.approx([0.5, 0.5])
    pace.slow_down(now[0])
    assert pace.rate == 5.0
    pace.recover(5)
    assert pace.rate == pytest.approx(5 + 10 / 64)
    for _ in range(50):
        pace.recover(5)
    assert pace.rate == 10.0
