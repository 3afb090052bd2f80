"""The rules of the transport, with a test of each, against a small real server: waiting moves a number, not the clock."""

from __future__ import annotations

import gzip
import json
import os
import re
import shutil
import socket
import ssl
import subprocess
import sys
import threading
import time as real_time
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from html import escape
from pathlib import Path
from urllib.parse import quote, quote_plus

import numpy as np
import pytest

from onnxaudit.audit.checking import CheckOptions, check
from onnxaudit.audit.progress import Silent
from onnxaudit.errors import BudgetSpent, SuspectError
from onnxaudit_adapters.http.pacing import Lanes, Pace
from tests.bundles import Noisy, Recorded, simulated_bundle
from tests.http_script import (
    EXPECTED,
    METADATA,
    PATH,
    QUERIES,
    Answer,
    Script,
    Time,
    as_json,
    fail,
    opened,
    scores,
    self_signed,
    served,
    sometimes,
)
from tests.linear_scan import save_bundle


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def nan(body: bytes) -> Answer:
    status, headers, said = scores(body)
    return status, headers, said[: said.index(b'"data": [') + 9] + b"NaN" + said[said.index(b",", said.index(b'"data": [')) :]


def one_row_less(body: bytes) -> Answer:
    document = json.loads(body)
    tensor = document["inputs"][0]
    tensor["shape"][0] -= 1
    tensor["data"] = tensor["data"][: -tensor["shape"][1]]
    return scores(json.dumps(document).encode())


def truncated(body: bytes) -> Answer:
    status, headers, said = scores(body)
    return status, headers, said[: len(said) // 2]


def cut(body: bytes) -> Answer:
    status, headers, said = scores(body)
    return status, {**headers, "Content_Length": str(len(said))}, said[: len(said) // 2]


def bomb(_: bytes) -> Answer:
    return 200, {"Content-Encoding": "gzip"}, gzip.compress(bytes(2**24))


def bare_bomb(_: bytes) -> Answer:
    return 200, {}, gzip.compress(bytes(2**24))


def huge(_: bytes) -> Answer:
    return 200, {"Content-Length": str(2**30)}, b"["


def deep(_: bytes) -> Answer:
    return 200, {}, b"[" * 100_000


def page(_: bytes) -> Answer:
    return 200, {}, b"<html>back in a minute</html>"


GARBAGE = [nan, one_row_less, truncated, bomb, bare_bomb, huge, deep, page]


@pytest.mark.parametrize("garbage", GARBAGE)
def test_rule_1_the_first_exchange_decides(garbage: Callable[[bytes], Answer]) -> None:
    """Before any success everything but an answer is the end; of statuses test_http_transport.py says so."""
    script = Script(lambda _, body: garbage(body))
    assert isinstance(fail(script), SuspectError)
    assert len(script.posts) == 1


def test_rule_2_after_a_success_429_waits_and_a_hiccup_is_tried_again_four_times_at_most() -> None:
    for status, headers, slept in (
        (429, {"Retry-After": "100000"}, [120.0]),
        (429, {}, [0.5]),
    ):
        time = Time()
        with served(sometimes(status, **headers)) as url, opened(url + PATH, time) as suspect:
            np.testing.assert_array_equal(suspect.ask(QUERIES).dense(), EXPECTED)
        assert time.slept == slept
    for status in (500, 502, 503, 504, 0):
        script = Script(lambda number, body, status=status: scores(body) if number == 1 else (status, {}, b""))  # type: ignore[misc]
        assert isinstance(fail(script, timeout=5.0), SuspectError)
        assert len(script.posts) == 6


@pytest.mark.parametrize("garbage", [*GARBAGE, cut])
def test_rule_2_garbage_after_a_success_is_asked_for_again_and_never_made_to_fit(garbage: Callable[[bytes], Answer]) -> None:
    time, script = Time(), Script(lambda number, body: garbage(body) if number in (2, 3) else scores(body))
    with served(script) as url, opened(url + PATH, time) as suspect:
        np.testing.assert_array_equal(suspect.ask(QUERIES).dense(), EXPECTED)
        assert suspect.queries_sent == 16 + 3 * 4  # each try counts
    assert time.slept == [0.5, 1.0]
    script = Script(lambda number, body: scores(body) if number == 1 else garbage(body))
    error = fail(script)
    assert isinstance(error, SuspectError)
    assert len(script.posts) == 6


def test_rule_2_401_names_the_missing_header_whenever_it_comes() -> None:
    script = Script(lambda number, body: scores(body) if number == 1 else (403, {}, b""))
    assert "Authorization header is missing" in str(fail(script))
    assert len(script.posts) == 2


def test_rule_3_every_attempt_is_seen_by_pace_budget_and_evidence() -> None:
    """An adapter that tried again by itself would send more than is counted here."""
    time, script = Time(), sometimes(503, 429, 0)
    with served(script) as url, opened(url + PATH, time, batch=10, rate=10.0, budget=50) as suspect:
        suspect.ask(QUERIES)
        assert (suspect.attempts, suspect.queries_sent) == (len(script.posts), 50) == (5, 50)
    assert time.now >= 4.0  # four requests of ten queries at ten a second before the last


def test_rule_4_retries_count_against_the_budget() -> None:
    for bad in ((503,), (429,), (0,)):
        script = sometimes(*bad)
        with served(script) as url, opened(url + PATH, Time(), batch=10, budget=25) as suspect:
            with pytest.raises(BudgetSpent):
                suspect.ask(QUERIES)
            assert suspect.queries_sent == 20
        assert len(script.posts) == 2


def test_rule_5_a_batch_that_is_too_large_is_halved_and_what_was_answered_is_not_asked_again() -> None:
    def answer(_: int, body: bytes) -> Answer:
        n = json.loads(body)["inputs"][0]["shape"][0]
        return (413, {}, b"") if n > 5 else scores(body)

    script = Script(answer)
    with served(script) as url, opened(url + PATH) as suspect:
        parts = [len(part) for part in suspect.parts(QUERIES)]
    assert parts == [4] * 5  # each can be kept before the next is asked
    assert [json.loads(body)["inputs"][0]["shape"][0] for body in script.posts] == [16, 8, 4, 4, 4, 4, 4]
    assert "cannot be smaller" in str(fail(Script(lambda *_: (413, {}, b""))))


def test_rule_6_a_429_halves_the_rate_and_each_reply_earns_some_of_it_back() -> None:
    now = Time()
    pace = Pace(64.0, lambda: now.now, now.sleep)
    for _ in range(3):
        pace.wait(64)
        pace.recover(64)
    assert now.now == pytest.approx(2.0)
    sent = now.now
    pace.slow_down(sent)
    assert pace.rate == 32
    now.now += 1
    pace.slow_down(sent)  # another complaint of the same moment
    assert pace.rate == 32
    pace.recover(64)
    assert pace.rate == 33
    for _ in range(100):
        pace.recover(64)
    assert pace.rate == 64  # never more than was asked for
    for _ in range(100):
        now.now += 1
        pace.slow_down(now.now)
    assert pace.rate == 64 / 256  # never so slow that it would seem to hang


def test_rule_6_without_a_rate_a_429_sets_half_of_what_went_through() -> None:
    now = Time()
    pace = Pace(None, lambda: now.now, now.sleep)
    for _ in range(10):
        pace.wait(10)
        now.now += 0.5
        pace.recover(10)
    assert now.slept == []
    pace.slow_down(pace.wait(10))
    assert pace.rate == pytest.approx(10.0)  # it was 20 queries a second
    pace.recover(10)
    assert pace.rate is not None
    assert pace.rate > 10.0
    for _ in range(100):
        pace.recover(10)
    assert 18.0 < (pace.rate or 0) < 20.0  # carefully where it was too much before
    for _ in range(500):
        pace.recover(10)
    assert (pace.rate or 0) > 30.0  # on to the next 429: nobody said what the limit is


def test_rule_6_a_429_halves_what_is_on_its_way_too() -> None:
    now = Time()
    lanes = Lanes(8, lambda: now.now)
    sent = now.now
    now.now += 1
    lanes.narrow(sent)
    assert lanes.width == 4
    lanes.narrow(sent)
    assert lanes.width == 4
    for _ in range(200):
        lanes.widen()
    assert lanes.width == 8
    for _ in range(9):
        now.now += 1
        lanes.narrow(now.now)
    assert lanes.width == 1


@pytest.mark.parametrize(("rate", "burst", "said"), [(10, 8, {}), (60, 1, {"Retry-After": "1"}), (60, 1, {}), (60, 4, {})])
def test_rule_6_a_server_with_a_limit_is_not_run_into_all_the_time(rate: int, burst: int, said: dict[str, str]) -> None:
    """Learned from 429s alone, without --rate: few requests are refused, and not much is left unused."""
    time = Time()
    allowed = [float(burst), 0.0]  # a bucket of its own: requests that it has room for, and when it was last filled

    def answer(number: int, body: bytes) -> Answer:
        allowed[:] = [min(float(burst), allowed[0] + (time.now - allowed[1]) * rate), time.now]
        time.now += 0.2 / rate
        if allowed[0] < 1:
            return 429, said, b""
        allowed[0] -= 1
        return scores(body)

    script = Script(answer)
    queries = np.tile(QUERIES, (50, 1))
    with served(script) as url, opened(url + PATH, time, batch=1) as suspect:
        suspect.ask(queries)
    assert len(script.posts) / len(queries) < 1.03
    assert time.now / (len(queries) / rate) < 1.6


def test_rule_6_one_request_at_a_time_unless_more_are_allowed() -> None:
    inside, most = [0], [0]
    lock = threading.Lock()
    full = threading.Barrier(4)

    def answer(number: int, body: bytes) -> Answer:
        with lock:
            inside[0] += 1
            most[0] = max(most[0], inside[0])
        if number > 1 and wide:
            full.wait(20)
        with lock:
            inside[0] -= 1
        return scores(body)

    for wide in (False, True):
        most[0] = 0
        with served(Script(answer)) as url, opened(url + PATH, batch=2, concurrency=4 if wide else 1) as suspect:
            suspect.ask(QUERIES[:2])
            threads = [threading.Thread(target=suspect.ask, args=(QUERIES[:2],)) for _ in range(8)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(30)
        assert most[0] == (4 if wide else 1)


def test_rule_7_replies_are_bounded_in_bytes_depth_and_numbers() -> None:
    for answer, words in (
        (huge, "more than 16 MB"),
        (bomb, "compressed"),
        (bare_bomb, "not JSON"),
        (deep, "nested deeper"),
        (nan, "NaN"),
    ):
        assert words in str(fail(Script(lambda _, body, answer=answer: answer(body))))  # type: ignore[misc]


@contextmanager
def raw(behave: Callable[[socket.socket], None]) -> Iterator[str]:
    """A server below HTTP: metadata are answered, what then happens on the connection is the test's."""
    metadata = json.dumps({"inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 3]}]}).encode()
    reply = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(metadata), metadata)
    stopped = threading.Event()

    def serve(connection: socket.socket) -> None:
        with connection:
            while (begin := connection.recv(65536)).startswith(b"GET"):
                connection.sendall(reply)
            if begin and not stopped.is_set():
                behave(connection)

    def accept() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=serve, args=(connection,), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=accept, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}{PATH}"
        finally:
            stopped.set()
            listener.shutdown(socket.SHUT_RDWR)


def drip(connection: socket.socket, piece: bytes) -> None:
    """A piece of a reply every few moments, for ever: no single wait is long."""
    try:
        while True:
            connection.sendall(piece)
            real_time.sleep(0.02)
    except OSError:
        return


@pytest.mark.parametrize(
    ("begin", "piece"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n[", b" "),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\n[\r\n"),
        (b"HTTP/1.1 200 OK\r\n", b"X: y\r\n"),
        (b"HTTP/1.1 200 OK\r\nX: ", b"y"),
        (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    ],
)
def test_rule_7_a_reply_that_trickles_has_a_time_limit_as_a_whole(begin: bytes, piece: bytes) -> None:
    def behave(connection: socket.socket) -> None:
        connection.sendall(begin)
        drip(connection, piece)

    started = real_time.monotonic()
    # on a busy machine the first reply, of metadata, may be as late
    with raw(behave) as url, pytest.raises(SuspectError) as caught, opened(url, timeout=0.4) as suspect:
        suspect.ask(QUERIES)
    assert real_time.monotonic() - started < 60  # and not for ever
    assert "no reply within 0.4 s" in str(caught.value) or "not HTTP" in str(caught.value) or "lost" in str(caught.value)


def test_rule_7_what_is_too_large_is_not_read_to_its_end() -> None:
    sent = [0]

    def behave(connection: socket.socket) -> None:
        try:
            connection.sendall(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n")
            while sent[0] < 2**30:
                sent[0] += connection.send(bytes(2**16))
        except OSError:
            return

    with raw(behave) as url, opened(url) as suspect, pytest.raises(SuspectError, match="more than 16 MB"):
        suspect.ask(QUERIES)
    assert sent[0] < 64 * 2**20


@pytest.mark.parametrize("kind", ["text/plain", "application/octet-stream", "image/png", ""])
def test_rule_8_content_type_is_advice_and_what_cannot_be_read_is_quoted(kind: str) -> None:
    def typed(answer: Answer) -> Answer:
        return answer[0], {"Content-Type": kind} if kind else {}, answer[2]

    with served(Script(lambda _, body: typed(scores(body)))) as url, opened(url + PATH) as suspect:
        np.testing.assert_array_equal(suspect.ask(QUERIES).dense(), EXPECTED)
    error = str(fail(Script(lambda *_: typed((200, {}, b"oops " * 100)))))
    assert ("oops " * 40).strip() in error
    assert len(error) < 600


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl to make certificates")
def test_rule_9_a_client_certificate_is_shown(tmp_path: Path) -> None:
    (key, certificate), (client_key, client) = self_signed(tmp_path, "server"), self_signed(tmp_path, "client")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(client)
    both = tmp_path / "both.pem"
    both.write_bytes(client.read_bytes() + client_key.read_bytes())
    with served(Script(lambda _, body: scores(body)), context) as url:
        with opened(url + PATH, ca_bundle=str(certificate), client_cert=str(both)) as suspect:
            np.testing.assert_array_equal(suspect.ask(QUERIES).dense(), EXPECTED)
        with pytest.raises(SuspectError), opened(url + PATH, ca_bundle=str(certificate)):
            pass


def test_rule_9_no_credentials_follow_a_redirect() -> None:
    elsewhere = Script(lambda _, body: scores(body))
    with served(elsewhere) as other:
        for status in (301, 302, 303, 307, 308):
            script = Script(lambda _, __, status=status: (status, {"Location": other + PATH}, b""))  # type: ignore[misc]
            error = str(fail(script, headers={"Authorization": "Bearer topsecret"}))
            assert "redirects are not followed" in error
            assert "topsecret" not in error
            script = Script(lambda _, body: scores(body), {PATH: (status, {"Location": other + PATH}, b"")})
            fail(script, headers={"Authorization": "Bearer topsecret"})
    assert elsewhere.headers == []


def test_rule_9_secrets_are_redacted_in_whatever_form_a_server_echoes_them() -> None:
    secret = 'top"se\\cr/et+<x>'
    forms = [
        secret,
        json.dumps(secret)[1:-1],
        quote(secret),
        quote_plus(secret),
        b64encode(secret.encode()).decode(),
        escape(secret),
        json.dumps(secret)[1:-1].replace("/", r"\/"),  # as PHP has it
        json.dumps(json.dumps(secret)[1:-1])[1:-1],  # JSON in JSON
        "".join(letter if letter.isalnum() else f"\\u{ord(letter):04X}" for letter in secret),  # .NET
        "".join(letter if letter.isalnum() else f"&#{ord(letter)};" for letter in secret),  # Go's templates
        "".join(letter if letter.isalnum() else f"&#x{ord(letter):X};" for letter in secret),
        quote(secret, safe="").lower(),
        quote(quote(secret, safe=""), safe=""),
        b64encode(secret.encode()).decode().replace("=", "%3D").replace("+", r"\u002b"),
    ]
    for form in forms:
        for status in (401, 400, 500, 200):
            script = Script(lambda *_, form=form, status=status: (status, {}, f"you sent <{form}>".encode()))
            error = str(fail(script, headers={"X-Api-Key": secret}))
            assert "you sent <***>" in error, (form, error)


def test_rule_9_a_secret_comes_from_the_environment_and_is_nowhere_in_what_is_left(tmp_path: Path) -> None:
    """In no message, transcript, report or traceback of the command, whether it fails or not."""
    save_bundle(tmp_path / "b.oab", 3)
    metadata = {**METADATA, "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 1, 4, 4]}]}

    def answer(number: int, body: bytes) -> Answer:
        rows = len(json.loads(body)["inputs"][0]["data"]) // 16
        output = {"name": "y", "datatype": "FP32", "shape": [rows, 5], "data": [0.5, 1.5, 2.5, 3.5, 4.5] * rows}
        return as_json({"outputs": [output]}) if number < limit else (401, {}, b"you sent topsecret")

    for limit in (3, 99):
        script = Script(answer, {PATH: as_json(metadata), "/v2": as_json({"name": "server of topsecret"})})
        script.authorization = "Bearer topsecret"
        line = [sys.executable, "-m", "onnxaudit", "check", "--bundle", str(tmp_path / "b.oab"), "--dialect", "v2", "--debug"]
        line += ["--evidence", str(tmp_path / f"{limit}.jsonl"), "--header", "Authorization: Bearer ${SUSPECT_TOKEN}"]
        line += ["-o", str(tmp_path / f"{limit}.json"), "-o", str(tmp_path / f"{limit}.html"), "--batch", "16"]
        with served(script) as url:
            line += ["--url", url + PATH]
            environment = {**os.environ, "SUSPECT_TOKEN": "topsecret"}
            done = subprocess.run(line, capture_output=True, check=False, timeout=100, env=environment)
        assert done.returncode == (4 if limit < 99 else 11), done.stderr
        assert script.posts
        assert b"topsecret" not in done.stdout + done.stderr
        assert not any(b"topsecret" in path.read_bytes() for path in tmp_path.iterdir())
    environment = {name: value for name, value in os.environ.items() if name != "SUSPECT_TOKEN"}
    unset = subprocess.run(line, capture_output=True, text=True, check=False, timeout=100, env=environment)
    assert unset.returncode == 2
    assert "$SUSPECT_TOKEN, which is not set" in unset.stderr


def test_rule_10_one_query_in_a_hundred_is_asked_twice_and_at_least_four(monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = simulated_bundle(3)
    for share, repeated in ((0.01, 4), (0.1, 9)):
        monkeypatch.setattr("onnxaudit.audit.checking.REPEATED", share)
        suspect = Recorded(bundle, bundle.answers["victim"], batch=10)
        check(bundle, suspect, CheckOptions(repeat=4), Silent())
        assert suspect.rows == [*range(len(bundle.queries)), *range(repeated)]


def test_rule_10_answers_that_are_not_repeatable_are_reported() -> None:
    bundle = simulated_bundle(3)
    report = check(bundle, Noisy(bundle, bundle.answers["victim"], 0.001), CheckOptions(repeat=4), Silent())
    (words,) = [words for words in report.conditions if "asked twice" in words]
    assert re.fullmatch(r"of 4 queries asked twice, 4 got other scores, by up to [0-9.e-]+ in probability", words)
    assert report.suspect["access"] == "logits"
    steady = check(bundle, Recorded(bundle, bundle.answers["victim"], batch=10), CheckOptions(repeat=4), Silent())
    assert not any("asked twice" in words for words in steady.conditions)


def test_rule_10_a_stochastic_suspect_is_judged_by_its_labels() -> None:
    bundle = simulated_bundle(3)
    report = check(bundle, Noisy(bundle, bundle.answers["victim"], 0.5), CheckOptions(repeat=4), Silent())
    assert report.suspect["access"] == "label"
    (words,) = [words for words in report.conditions if "asked twice" in words]
    assert words.endswith("more than 0.05, so that labels alone are compared")
