"""What a hostile reading of the HTTP code found: secrets cut in half, the error that is shown, and waits that were too short."""

from __future__ import annotations

import json
import subprocess
import sys
import time as real_time
from pathlib import Path

import numpy as np
import pytest

from onnxaudit.asking import ask_at_once
from onnxaudit.errors import SuspectError
from onnxaudit_adapters.http.dialects import OneAnswerError
from onnxaudit_adapters.http.names import ClassNames
from onnxaudit_adapters.http.reading import Reader
from onnxaudit_adapters.http.redaction import Redaction
from tests.bundles import simulated_bundle
from tests.http_script import PATH, QUERIES, Answer, Script, Time, fail, opened, scores, served, sometimes

TOKEN = "sk-live-" + "0123456789abcdef" * 3
LONG = "eyJ" + "Qk3" * 260


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.mark.parametrize("spaces", [0, 100, 250, 400, 1000])
@pytest.mark.parametrize("secret", [TOKEN, LONG])
def test_no_secret_is_cut_in_half_because_cleaning_made_room_for_it(secret: str, spaces: int) -> None:
    redaction = Redaction({"Authorization": f"Bearer {secret}"}, ())
    for pad in range(0, 400, 7):
        echo = {"error": {"request": {"X-A": "b" * pad, "Authorization": f"Bearer {secret}", "again": f"Bearer {secret}"}}}
        body = b" " * spaces + json.dumps(echo, indent=8).encode()
        assert secret[:6] not in redaction.quote(body)


def test_no_secret_is_cut_in_half_where_the_reply_is_cut() -> None:
    redaction = Redaction({"Authorization": TOKEN}, ())
    for kept in (1, 8, 20, len(TOKEN) - 1):
        said = b"no" + b" " * (2**16 - 2 - kept) + TOKEN.encode()
        for body in (said, said[: 2**16]):  # of an error the transport keeps so much
            assert redaction.quote(body) == "'no'"
    cut = redaction.quote(b"no" + b" " * (2**16 - 3) + "é".encode())
    assert cut.startswith("'no")


def test_an_echo_in_an_error_or_in_what_a_dry_run_shows_has_no_half_secret() -> None:
    def echo(number: int, body: bytes) -> Answer:
        said = f"bad token '{LONG}' in header Authorization: '{LONG}'"
        status, headers, rows = scores(body)
        return (status, headers, said.encode()) if number > 1 else (status, headers, rows[:-1] + f', "x": "{said}"}}'.encode())

    assert LONG[:6] not in str(fail(Script(echo), headers={"X-Key": LONG}, batch=10))
    with served(Script(echo)) as url, opened(url + PATH, headers={"X-Key": LONG}, batch=1) as suspect:
        suspect.ask(QUERIES[:1])
        assert LONG[:6] not in str(suspect.exchange())


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


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize("said", ["0", "Thu, 01 Jan 1970 00:00:01 GMT", "1"])
def test_retry_after_makes_no_wait_shorter(status: int, said: str) -> None:
    time = Time()
    with served(sometimes(*[status] * 4, Retry_After=said)) as url, opened(url + PATH, time, batch=10) as suspect:
        suspect.ask(QUERIES)
    assert time.now >= sum(max(float(said == "1"), wait) for wait in (0.5, 1.0, 2.0, 4.0))


def listed(*pairs: tuple[str, float]) -> object:
    return [{"label": label, "score": score} for label, score in pairs]


TWO, THREE = ("cat", "dog"), ("cat", "dog", "fish")


@pytest.mark.parametrize(
    ("names", "document"),
    [
        (TWO, listed(("cat", 0.9), ("dog", 0.1))),
        (TWO, listed(("dog", 0.505), ("cat", 0.495))),
        (TWO, listed(("1", 0.9), ("0", 0.1))),
        (TWO, {"predictions": {"labels": ["cat", "dog"], "scores": [0.9, 0.1]}}),
        (TWO, {"labels": ["cat", "dog"], "scores": [0.9, 0.1]}),
        (THREE, listed(("fish", 0.5), ("cat", 0.3), ("dog", 0.2))),
    ],
)
@pytest.mark.parametrize("counted", [True, False])
def test_one_ranking_of_all_classes_is_no_label_of_each_of_as_many_queries(
    names: tuple[str, ...], document: object, counted: bool
) -> None:
    reader = Reader(None, len(names) if counted else None, ClassNames(names))
    with pytest.raises(OneAnswerError):
        reader.answers(document, len(names))
    assert reader.answers(document, 1).classes.shape == (1, len(names))


@pytest.mark.parametrize(
    "document",
    [
        listed(("cat", 0.9), ("dog", 0.8)),
        listed(("cat", 0.51), ("dog", 0.51)),  # the best of two classes has half or more: these are two best ones
        listed(("cat", 0.6), ("cat", 0.4)),
        {"labels": ["cat", "dog"], "scores": [0.9, 0.8]},
    ],
)
def test_the_best_label_of_each_query_is_still_one(document: object) -> None:
    answers = Reader(None, 2, ClassNames(TWO)).answers(document, 2)
    assert len(answers) == 2
    assert answers.labels[0] == 0


def test_an_unknown_access_is_refused_before_a_dry_run_asks(tmp_path: Path) -> None:
    simulated_bundle().save(tmp_path / "victim.oab")
    script = Script(lambda _, body: scores(body))
    with served(script) as url:
        command = [sys.executable, "-m", "onnxaudit", "check", "--url", url + PATH, "--bundle", str(tmp_path / "victim.oab")]
        done = subprocess.run(
            [*command, "--access", "nonsense", "--dry-run"], capture_output=True, text=True, check=False, timeout=60
        )
    assert (done.returncode, done.stdout) == (2, "")
    assert "--access 'nonsense' is not known" in done.stderr
    assert not script.posts
    assert not script.gets
