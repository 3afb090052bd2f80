"""The transport against a small real server, one behaviour a test; the clock is a number and nothing sleeps."""

from __future__ import annotations

import json
import shutil
import ssl
import time as real_time
from pathlib import Path

import numpy as np
import pytest

from onnxaudit.asking import ask_at_once
from onnxaudit.errors import SuspectError, Unreachable
from onnxaudit.registry import open_suspect
from onnxaudit.suspect import Target
from onnxaudit_adapters.http import open_http
from tests.http_script import (
    EXPECTED,
    PATH,
    QUERIES,
    SPEC,
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


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def test_an_honest_server_gives_the_same_scores_in_batches_of_sixteen() -> None:
    script = Script(lambda _, body: scores(body))
    with served(script) as url, opened(url + PATH) as suspect:
        answers = suspect.ask(QUERIES)
        assert dict(suspect.card.runtime) == {"dialect": "v2", "server": "test-server 7", "platform": "test"}
        assert (suspect.card.kind, suspect.card.source, suspect.card.input.shape) == ("http", url + PATH, (3,))
        assert (suspect.queries_sent, suspect.attempts) == (20, 2)
    np.testing.assert_array_equal(answers.dense(), EXPECTED)
    sent = script.headers[-1]
    assert sent["User-Agent"].startswith("onnxaudit/")
    assert sent["Content-Type"] == "application/json"
    assert all(json.loads(body)["id"] for body in script.posts)


def test_the_registry_finds_this_adapter() -> None:
    with served(Script(lambda _, body: scores(body))) as url, open_suspect(Target(url + PATH, SPEC, 4)) as suspect:
        assert len(suspect.ask(QUERIES[:1])) == 1


def test_401_names_the_missing_header_and_what_to_pass() -> None:
    script = Script(lambda _, body: scores(body))
    script.authorization = "Bearer right"
    error = fail(script)
    assert isinstance(error, SuspectError)
    assert "Authorization header is missing" in str(error)
    assert '--header "Authorization: Bearer …"' in str(error)
    assert len(script.posts) == 1


def test_the_right_token_is_let_in_and_a_wrong_one_is_not_repeated_in_the_error() -> None:
    script = Script(lambda _, body: scores(body))
    script.authorization = "Bearer topsecret"
    with served(script) as url, opened(url + PATH, headers={"Authorization": "Bearer topsecret"}) as suspect:
        suspect.ask(QUERIES)
        assert "topsecret" not in repr(suspect.card) + repr(suspect) + repr(vars(suspect))
    error = fail(script, headers={"Authorization": "Bearer wrongsecret"})
    assert "wrongsecret" not in str(error)
    assert "you sent ***" in str(error)
    assert "does not accept" in str(error)


def test_user_and_password_in_the_url_become_a_header_and_are_not_shown() -> None:
    script = Script(lambda _, body: scores(body))
    script.authorization = "Basic dXNlcjpodW50ZXIy"
    with served(script) as url:
        with opened(url.replace("//", "//user:hunter2@") + PATH + "?key=topsecret") as suspect:
            suspect.ask(QUERIES)
            assert suspect.card.source == url.replace("//", "//…@") + PATH + "?…"
        assert script.gets[0] == PATH + "?key=topsecret"
        with pytest.raises(SuspectError) as caught, opened(url.replace("//", "//user:wrongpass@") + PATH) as suspect:
            suspect.ask(QUERIES)
    assert "wrongpass" not in str(caught.value)


def test_netrc_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login a password b\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    script = Script(lambda number, body: scores(body) if number < 2 else (302, {"Location": "http://127.0.0.1/"}, b""))
    fail(script)
    assert not any("Authorization" in headers for headers in script.headers)


@pytest.mark.parametrize("status", [400, 404, 422, 429, 500, 502, 503, 504])
def test_before_the_first_success_nothing_is_tried_again(status: int) -> None:
    script = Script(lambda *_: as_json({"error": "Invalid rank for input: x"}, status, Retry_After="1"))
    error = fail(script)
    assert error.exit_code == 4
    assert f"answered {status}" in str(error)
    assert "Invalid rank" in str(error)
    assert len(script.posts) == 1


def test_429_waits_as_long_as_the_server_says_and_every_retry_counts() -> None:
    time = Time()
    with served(sometimes(429, 429, Retry_After="7")) as url, opened(url + PATH, time, batch=10) as suspect:
        np.testing.assert_array_equal(suspect.ask(QUERIES).dense(), EXPECTED)
        assert (suspect.queries_sent, suspect.attempts) == (40, 4)
    assert time.slept == [7.0, 7.0]


def test_429_without_a_word_backs_off_and_halves_the_rate() -> None:
    time = Time()
    with served(sometimes(429, 429)) as url, opened(url + PATH, time, batch=10, rate=10.0) as suspect:
        suspect.ask(QUERIES)
    # A GET costs 0.1 s, the first 10 queries 1 s; then back-off and what is left to wait, the retry at half the rate.
    assert time.slept == pytest.approx([0.1, 0.1, 1.0, 0.5, 0.5, 1.0, 1.0])


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize("said", ["0", "Thu, 01 Jan 1970 00:00:01 GMT", "1"])
def test_retry_after_makes_no_wait_shorter(status: int, said: str) -> None:
    time = Time()
    with served(sometimes(*[status] * 4, Retry_After=said)) as url, opened(url + PATH, time, batch=10) as suspect:
        suspect.ask(QUERIES)
    assert time.now >= sum(max(float(said == "1"), wait) for wait in (0.5, 1.0, 2.0, 4.0))


def test_a_server_that_only_ever_says_429_is_given_up() -> None:
    time = Time()
    script = Script(lambda number, body: scores(body) if number == 1 else (429, {"Retry-After": "1"}, b""))
    with served(script) as url, opened(url + PATH, time) as suspect, pytest.raises(SuspectError, match="429") as caught:
        suspect.ask(QUERIES)
    assert "--rate" in str(caught.value)
    assert len(time.slept) == 20


@pytest.mark.parametrize("status", [500, 502, 503, 504, 522, 0])
def test_after_a_success_a_hiccup_is_tried_again(status: int) -> None:
    time = Time()
    with served(sometimes(status, status)) as url, opened(url + PATH, time) as suspect:
        np.testing.assert_array_equal(suspect.ask(QUERIES).dense(), EXPECTED)
        assert suspect.queries_sent == 16 + 3 * 4
    assert time.slept == [0.5, 1.0]


def test_503_is_tried_four_times_more_honouring_retry_after() -> None:
    time = Time()
    script = Script(lambda number, body: scores(body) if number == 1 else (503, {"Retry-After": "3"}, b"overloaded"))
    with (
        served(script) as url,
        opened(url + PATH, time) as suspect,
        pytest.raises(SuspectError, match=r"503.*after 5 tries.*overloaded"),
    ):
        suspect.ask(QUERIES)
    assert time.slept == [3.0, 3.0, 3.0, 4.0]  # the fourth backoff is longer than what was asked for


def test_of_several_lanes_the_error_that_stopped_the_others_is_shown() -> None:
    """The first rows wait to be asked again when the last are refused: that they are not asked any more explains nothing."""

    def answer(number: int, body: bytes) -> Answer:
        if number == 1:
            return scores(body)
        if json.loads(body)["inputs"][0]["data"][0] == 1:
            real_time.sleep(0.3)
            return 401, {}, b"key expired"
        return 503, {}, b"busy"

    queries = np.zeros((8, 3), np.float32)
    queries[6:] = 1
    with (
        served(Script(answer)) as url,
        opened(url + PATH, Waiting(), batch=2, concurrency=4) as suspect,
        pytest.raises(SuspectError, match="401 Unauthorized"),
    ):
        ask_at_once(suspect, queries, np.arange(8), 4, lambda *_: None, None, proven=False)


class Waiting(Time):
    """A clock that moves by itself too, so that a lane sleeps while another fails."""

    def sleep(self, seconds: float) -> None:
        real_time.sleep(min(seconds, 0.3))
        super().sleep(seconds)


@pytest.mark.parametrize("status", [400, 404, 422, 501])
def test_other_statuses_stop_after_a_success_too(status: int) -> None:
    with served(sometimes(status)) as url, opened(url + PATH) as suspect, pytest.raises(SuspectError, match=str(status)):
        suspect.ask(QUERIES)


def test_html_is_quoted() -> None:
    error = fail(Script(lambda *_: (200, {}, b"<html><body>Please log in</body></html>" + b"x" * 1000)))
    assert "web page" in str(error)
    assert "Please log in" in str(error)
    assert len(str(error)) < 500


@pytest.mark.parametrize("rows", [15, 17, 1])
def test_another_number_of_rows_is_an_error(rows: int) -> None:
    output = {"name": "y", "datatype": "FP32", "shape": [rows, 4], "data": [0.5] * rows * 4}
    error = fail(Script(lambda *_: as_json({"outputs": [output]})))
    assert error.exit_code == 4
    assert f"{rows} answers to 16 queries" in str(error)


def test_redirects_are_not_followed() -> None:
    script = Script(lambda *_: (307, {"Location": f"{PATH}/elsewhere?token=abc"}, b""))
    error = fail(script)
    assert "redirects" in str(error)
    assert "elsewhere" in str(error)
    assert "abc" not in str(error)
    assert len(script.posts) == 1


def test_a_reply_of_one_byte_more_than_the_limit_is_cut_off() -> None:
    error = fail(Script(lambda *_: (200, {}, b" " * (16 * 2**20 + 1))))
    assert "more than 16 MB" in str(error)


def test_a_reply_with_contradictory_headers_is_the_suspects_fault() -> None:
    error = fail(Script(lambda *_: (200, {"Content_Length": "1"}, b"[[0.5, 0.5]]")))
    assert error.exit_code == 4
    assert "not HTTP" in str(error)


def test_a_server_that_is_down() -> None:
    with served(Script(lambda _, body: scores(body))) as url:
        pass
    with (
        pytest.raises(SuspectError, match="could not be reached: connection refused") as caught,
        opened(f"{url}{PATH}?key=topsecret"),
    ):
        pass
    assert "topsecret" not in str(caught.value)


def test_plain_http_where_https_was_expected_is_one_line() -> None:
    with (
        served(Script(lambda _, body: scores(body))) as url,
        pytest.raises(SuspectError, match=r"no secure connection.* speaks no TLS"),
        opened(url.replace("http:", "https:") + PATH + "?key=TOP_SECRET"),
    ):
        pass


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl to make a certificate")
def test_tls_is_verified_and_a_private_authority_can_be_named(tmp_path: Path) -> None:
    key, certificate = self_signed(tmp_path, "server")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    with served(Script(lambda _, body: scores(body)), context) as url:
        with pytest.raises(SuspectError, match="certificate verify failed: self-signed certificate") as caught:
            open_http(Target(f"{url}{PATH}?key=TOP_SECRET", SPEC, 4))
        assert "TOP_SECRET" not in str(caught.value)
        with opened(url + PATH, ca_bundle=str(certificate)) as suspect:
            np.testing.assert_array_equal(suspect.ask(QUERIES).dense(), EXPECTED)


@pytest.mark.parametrize("status", [301, 400, 401, 403, 404, 422, 429, 500, 503])
def test_what_says_nothing_of_the_inputs_is_told_from_what_may(status: int) -> None:
    """500 and 503 are what servers say to a wrong input, too."""
    error = fail(Script(lambda _number, _body: (status, {}, b"no")))
    assert isinstance(error, Unreachable) == (status in (301, 401, 403, 404, 429))
    assert isinstance(error, SuspectError)
