"""The transport and the suspect against a small real server, one behaviour a test; the clock is a number and nothing sleeps."""

from __future__ import annotations

import json
import shutil
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from onnxaudit.answers import Access, Answers
from onnxaudit.errors import BudgetSpent, OnnxauditError, SuspectError, UsageError
from onnxaudit.registry import open_suspect
from onnxaudit.suspect import InputSpec, Target
from onnxaudit.testing import check_adapter
from onnxaudit_adapters.http import HttpSuspect, open_http
from onnxaudit_adapters.http.loopback import serve_onnx

SPEC = InputSpec((3,), layout="NC")
WEIGHTS = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
QUERIES = np.random.default_rng(1).normal(size=(20, 3)).astype(np.float32)
EXPECTED = QUERIES @ WEIGHTS
PATH = "/v2/models/m"
METADATA = {"name": "m", "platform": "test", "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 3]}], "outputs": []}

Answer = tuple[int, dict[str, str], bytes]


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def as_json(document: object, status: int = 200, **headers: str) -> Answer:
    return status, headers, json.dumps(document).encode()


def scores(body: bytes) -> Answer:
    """What an honest V2 server says."""
    sent = json.loads(body)["inputs"][0]
    rows = np.array(sent["data"], np.float32).reshape(sent["shape"]) @ WEIGHTS
    return as_json({"outputs": [{"name": "y", "datatype": "FP32", "shape": list(rows.shape), "data": rows.ravel().tolist()}]})


class Script:
    """A server's behaviour: ``answer(number of the POST, body)``; what was asked is kept."""

    def __init__(self, answer: Callable[[int, bytes], Answer], metadata: dict[str, Answer] | None = None) -> None:
        self.answer = answer
        self.metadata = {PATH: as_json(METADATA), "/v2": as_json({"name": "test-server", "version": "7"})}
        self.metadata = self.metadata if metadata is None else metadata
        self.gets: list[str] = []
        self.posts: list[bytes] = []
        self.headers: list[dict[str, str]] = []
        self.authorization: str | None = None


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # head and body in one packet: no waiting for acknowledgements
    script: Script

    def do_GET(self) -> None:
        self.script.gets.append(self.path)
        self.script.headers.append(dict(self.headers))
        self._send(self.script.metadata.get(self.path.partition("?")[0], (404, {}, b'{"error":"not found"}')))

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.script.posts.append(body)
        self.script.headers.append(dict(self.headers))
        if self.script.authorization is not None and self.headers.get("Authorization") != self.script.authorization:
            echo = f"you sent {self.headers.get('Authorization')}".encode()
            self._send((401, {}, echo))
            return
        self._send(self.script.answer(len(self.script.posts), body))

    def _send(self, answer: Answer) -> None:
        status, headers, body = answer
        if status == 0:  # hang up
            self.close_connection = True
            return
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        try:
            self.wfile.write(body)
            self.wfile.flush()
        except OSError:  # the client had enough
            self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def served(script: Script, tls: ssl.SSLContext | None = None) -> Iterator[str]:
    handler = type("Scripted", (Handler,), {"script": script})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        if tls is not None:
            server.socket = tls.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"{'https' if tls else 'http'}://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


class Time:
    """A clock that only sleeping moves."""

    def __init__(self) -> None:
        self.now = 0.0
        self.slept: list[float] = []

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


@contextmanager
def opened(
    url: str, time: Time | None = None, *, shape: tuple[int, ...] | None = None, **options: object
) -> Iterator[HttpSuspect]:
    time = time or Time()
    target = Target(url, SPEC, num_classes=4, shape=shape, options=options)
    with open_http(target, clock=lambda: time.now, sleep=time.sleep, jitter=lambda: 0.0) as suspect:
        yield cast("HttpSuspect", suspect)


def fail(script: Script, path: str = PATH, queries: NDArray[np.float32] = QUERIES, **options: Any) -> OnnxauditError:
    """The error that asking such a server ends with."""
    with served(script) as url, pytest.raises(OnnxauditError) as caught, opened(url + path, **options) as suspect:
        suspect.ask(queries)
    assert "\n" not in str(caught.value)
    return caught.value


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


def _sometimes(*statuses: int, **headers: str) -> Script:
    """Success first, then these statuses, then success."""
    bad = dict(enumerate(statuses, start=2))
    return Script(lambda number, body: (bad[number], headers, b"later") if number in bad else scores(body))


def test_429_waits_as_long_as_the_server_says_and_every_retry_counts() -> None:
    time = Time()
    with served(_sometimes(429, 429, Retry_After="7")) as url, opened(url + PATH, time, batch=10) as suspect:
        np.testing.assert_array_equal(suspect.ask(QUERIES).dense(), EXPECTED)
        assert (suspect.queries_sent, suspect.attempts) == (40, 4)
    assert time.slept == [7.0, 7.0]


def test_429_without_a_word_backs_off_and_halves_the_rate() -> None:
    time = Time()
    with served(_sometimes(429, 429)) as url, opened(url + PATH, time, batch=10, rate=10.0) as suspect:
        suspect.ask(QUERIES)
    # A GET costs 0.1 s, the first 10 queries 1 s; then back-off and what is left to wait, the retry at half the rate.
    assert time.slept == pytest.approx([0.1, 0.1, 1.0, 0.5, 0.5, 1.0, 1.0])


def test_a_server_that_only_ever_says_429_is_given_up() -> None:
    time = Time()
    script = Script(lambda number, body: scores(body) if number == 1 else (429, {"Retry-After": "1"}, b""))
    with served(script) as url, opened(url + PATH, time) as suspect, pytest.raises(SuspectError, match="429") as caught:
        suspect.ask(QUERIES)
    assert "--rate" in str(caught.value)
    assert len(time.slept) == 20


@pytest.mark.parametrize("status", [502, 503, 504, 0])
def test_after_a_success_a_hiccup_is_tried_again(status: int) -> None:
    time = Time()
    with served(_sometimes(status, status)) as url, opened(url + PATH, time) as suspect:
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
    assert time.slept == [3.0] * 4


@pytest.mark.parametrize("status", [400, 404, 500])
def test_other_statuses_stop_after_a_success_too(status: int) -> None:
    with served(_sometimes(status)) as url, opened(url + PATH) as suspect, pytest.raises(SuspectError, match=str(status)):
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


def test_nan_is_an_error() -> None:
    error = fail(Script(lambda *_: (200, {}, b'{"outputs":[{"name":"y","datatype":"FP32","shape":[1,2],"data":[NaN,1]}]}')))
    assert "NaN" in str(error)


def test_redirects_are_not_followed() -> None:
    script = Script(lambda *_: (307, {"Location": f"{PATH}/elsewhere?token=abc"}, b""))
    error = fail(script)
    assert "redirects" in str(error)
    assert "elsewhere" in str(error)
    assert "abc" not in str(error)
    assert len(script.posts) == 1


@pytest.mark.parametrize("declared", [{}, {"Content-Length": str(10**12)}])
def test_an_oversized_reply_is_cut_off(declared: dict[str, str]) -> None:
    error = fail(Script(lambda *_: (200, {**declared}, b" " * (16 * 2**20 + 1))))
    assert "more than 16 MB" in str(error)


def test_a_reply_with_contradictory_headers_is_the_suspects_fault() -> None:
    error = fail(Script(lambda *_: (200, {"Content_Length": "1"}, b"[[0.5, 0.5]]")))
    assert error.exit_code == 4
    assert "not HTTP" in str(error)


def test_a_compressed_reply_is_refused() -> None:
    error = fail(Script(lambda *_: (200, {"Content-Encoding": "gzip"}, b"\x1f\x8b")))
    assert "compressed" in str(error)


def _at_most(limit: int, status: int, text: bytes) -> Script:
    def answer(_: int, body: bytes) -> Answer:
        return (status, {}, text) if json.loads(body)["inputs"][0]["shape"][0] > limit else scores(body)

    return Script(answer)


@pytest.mark.parametrize(("status", "text"), [(413, b""), (400, b"inference request Batch-size must be <= 5")])
def test_the_batch_is_halved_and_stays_small(status: int, text: bytes) -> None:
    script = _at_most(5, status, text)
    with served(script) as url, opened(url + PATH) as suspect:
        np.testing.assert_array_equal(suspect.ask(QUERIES).dense(), EXPECTED)
        assert suspect.card.max_batch == 4
        suspect.ask(QUERIES)
    sizes = [json.loads(body)["inputs"][0]["shape"][0] for body in script.posts]
    assert sizes == [16, 8] + [4] * 10


def test_halving_stops_at_one() -> None:
    script = _at_most(0, 413, b"too big")
    error = fail(script)
    assert "413" in str(error)
    assert "cannot be smaller" in str(error)
    assert len(script.posts) == 5


def test_a_batch_that_the_metadata_fixes_is_kept_to() -> None:
    metadata = {PATH: as_json({"inputs": [{"name": "x", "datatype": "FP32", "shape": [8, 3]}]})}
    script = Script(lambda _, body: scores(body), metadata)
    with served(script) as url, opened(url + PATH) as suspect:
        assert suspect.card.batch == 8
        np.testing.assert_array_equal(suspect.ask(QUERIES).dense(), EXPECTED)
        assert suspect.queries_sent == 24  # the padding counts, because it counts at the suspect
    assert all(json.loads(body)["inputs"][0]["shape"] == [8, 3] for body in script.posts)


def test_a_declared_limit_is_kept_to() -> None:
    script = Script(lambda _, body: scores(body), {PATH: as_json({**METADATA, "parameters": {"max_batch_size": 7}})})
    with served(script) as url, opened(url + PATH) as suspect:
        suspect.ask(QUERIES)
    assert [json.loads(body)["inputs"][0]["shape"][0] for body in script.posts] == [7, 7, 6]


def test_the_budget_is_never_exceeded_and_retries_count() -> None:
    with served(_sometimes(503)) as url, opened(url + PATH, batch=10, budget=25) as suspect:
        with pytest.raises(BudgetSpent):
            suspect.ask(QUERIES)
        assert suspect.queries_sent == 20
        assert len(suspect.ask(QUERIES[:5])) == 5
        with pytest.raises(BudgetSpent):
            suspect.ask(QUERIES[:1])
        assert suspect.queries_sent == 25


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
        pytest.raises(SuspectError, match="no secure connection"),
        opened(url.replace("http:", "https:") + PATH + "?key=TOP_SECRET"),
    ):
        pass


def test_metadata_that_is_missing_asks_for_what_it_lacks() -> None:
    script = Script(lambda _, body: scores(body), {})
    with served(script) as url:
        with pytest.raises(UsageError, match=r"answered 404.*--input.*--input-name"), opened(url + PATH):
            pass
        with opened(url + PATH, shape=(3,), input_name="x") as suspect:
            np.testing.assert_array_equal(suspect.ask(QUERIES).dense(), EXPECTED)


def test_empty_metadata_asks_for_what_it_lacks() -> None:
    script = Script(lambda _, body: scores(body), {PATH: as_json({"name": "m", "inputs": []})})
    with served(script) as url, pytest.raises(UsageError, match="says nothing of its input"), opened(url + PATH):
        pass


def test_several_inputs_need_a_choice() -> None:
    inputs = [{"name": name, "datatype": "FP32", "shape": [-1, 3]} for name in ("a", "x")]
    script = Script(lambda _, body: scores(body), {PATH: as_json({"inputs": inputs})})
    with served(script) as url:
        with pytest.raises(UsageError, match="a, x"), opened(url + PATH):
            pass
        with pytest.raises(UsageError, match="no input 'z'"), opened(url + PATH, input_name="z"):
            pass
        with opened(url + PATH, input_name="x") as suspect:
            suspect.ask(QUERIES)


@pytest.mark.parametrize(
    ("shape", "datatype", "layout", "size"),
    [
        ([-1, 3, 32, 16], "FP32", "NCHW", (32, 16, 3)),
        ([-1, 32, 16, 3], "FP16", "NHWC", (32, 16, 3)),
        ([-1, 1, 28, 28], "FP64", "NCHW", (28, 28, 1)),
        ([-1, 3, -1, -1], "UINT8", "NCHW", (8, 9, 3)),
    ],
)
def test_images_are_read_from_the_metadata(shape: list[int], datatype: str, layout: str, size: tuple[int, ...]) -> None:
    script = Script(
        lambda _, body: scores(body), {PATH: as_json({"inputs": [{"name": "x", "datatype": datatype, "shape": shape}]})}
    )
    with served(script) as url, open_http(Target(url + PATH, InputSpec((8, 9, 3)), options={})) as suspect:
        spec = suspect.card.input
    assert (spec.layout, spec.shape) == (layout, size)
    assert spec.dtype == {"FP32": "float32", "FP16": "float16", "FP64": "float64", "UINT8": "uint8"}[datatype]


def plain(body: bytes, key: str = "output") -> Answer:
    return as_json({key: (np.array(json.loads(body)["input"], np.float32) @ WEIGHTS).tolist()})


def test_plain_is_taken_after_the_trail_and_starts_with_two_queries() -> None:
    script = Script(lambda _, body: plain(body), {})
    with served(script) as url, opened(url + "/predict") as suspect:
        np.testing.assert_array_equal(suspect.ask(QUERIES).dense(), EXPECTED)
        assert dict(suspect.card.runtime) == {"dialect": "plain"}
    assert script.gets == ["/v2"]
    assert [len(json.loads(body)["input"]) for body in script.posts] == [2, 14, 4]


@pytest.mark.parametrize("answer", [(404, {}, b"nope"), (200, {}, b'{"detail": "x"}')])
def test_a_failed_guess_shows_the_trail(answer: Answer) -> None:
    error = fail(Script(lambda *_: answer, {}), "/predict")
    assert "Asked in the plain dialect" in str(error)
    assert "/v2 answered 404" in str(error)


def test_a_v2_server_without_a_model_in_the_url_says_what_to_give() -> None:
    script = Script(lambda _, body: scores(body))
    assert "/v2/models/NAME" in str(fail(script, ""))
    assert "/v2/models/NAME" in str(fail(script, "/predict", dialect="v2"))
    assert script.posts == []


def test_a_server_of_one_example_a_request_is_asked_one_by_one() -> None:
    def answer(_: int, body: bytes) -> Answer:
        return as_json({"label": int((np.array(json.loads(body)["input"], np.float32) @ WEIGHTS)[0].argmax())})

    script = Script(answer)
    with served(script) as url, opened(url + "/predict", dialect="plain") as suspect:
        answers = suspect.ask(QUERIES)
        assert suspect.card.max_batch == 1
        assert suspect.queries_sent == 22
    assert answers.access == Access.LABEL
    assert answers.labels.tolist() == EXPECTED.argmax(axis=1).tolist()
    assert script.gets == []


def test_one_answer_later_on_is_an_error() -> None:
    script = Script(lambda number, body: plain(body) if number == 1 else as_json({"output": [[1.5, 2.5, 3.5, 4.5]]}), {})
    assert "1 answer to 14 queries" in str(fail(script, "/predict"))


def test_an_endless_fake_of_another_label_set_is_refused() -> None:
    error = fail(Script(lambda _, body: as_json({"output": [[0.5, 0.5]] * len(json.loads(body)["input"])}), {}), "/predict")
    assert "2 classes" in str(error)


@pytest.mark.parametrize("dialect", ["v2", "plain", "labels"])
def test_http_suspects_keep_the_contract_of_adapters(tmp_path: Path, dialect: str) -> None:
    expected = Answers.from_scores(EXPECTED)
    if dialect == "plain":
        with served(Script(lambda _, body: plain(body), {})) as url:
            check_adapter(lambda: open_http(Target(url + "/predict", SPEC, 4)), QUERIES, expected)
        return
    with serve_onnx(model(tmp_path / "m.onnx"), labels_only=dialect == "labels") as url:
        check_adapter(lambda: open_http(Target(url, SPEC, 4)), QUERIES, expected)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl to make a certificate")
def test_tls_is_verified_and_a_private_authority_can_be_named(tmp_path: Path) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", str(key), "-out", str(certificate)]
    names = ["-days", "2", "-subj", "/CN=loopback", "-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run([*command, *names], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    with served(Script(lambda _, body: scores(body)), context) as url:
        with pytest.raises(SuspectError, match="certificate verify failed: self-signed certificate") as caught:
            open_http(Target(f"{url}{PATH}?key=TOP_SECRET", SPEC, 4))
        assert "TOP_SECRET" not in str(caught.value)
        with opened(url + PATH, ca_bundle=str(certificate)) as suspect:
            np.testing.assert_array_equal(suspect.ask(QUERIES).dense(), EXPECTED)


def model(path: Path) -> str:
    """A linear classifier in ONNX."""
    helper: Any = onnx.helper
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "linear",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["n", 3])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["n", 4])],
        [onnx.numpy_helper.from_array(WEIGHTS, "w")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), str(path))
    return str(path)


@pytest.mark.parametrize("labels_only", [False, True])
def test_the_shipped_server_answers_as_the_file_does(tmp_path: Path, labels_only: bool) -> None:
    with serve_onnx(model(tmp_path / "m.onnx"), labels_only=labels_only) as url, opened(url) as suspect:
        answers = suspect.ask(QUERIES)
        assert suspect.card.runtime["server"].startswith("onnxaudit-loopback")
    assert answers.labels.tolist() == EXPECTED.argmax(axis=1).tolist()
    if labels_only:
        assert answers.access == Access.LABEL
    else:
        np.testing.assert_allclose(answers.dense(), EXPECTED, atol=1e-6)


def test_the_shipped_server_refuses_nonsense_and_goes_on(tmp_path: Path) -> None:
    with serve_onnx(model(tmp_path / "m.onnx")) as url:
        for path, queries in ((url, np.zeros((1, 5), np.float32)), (url + "x", QUERIES)):
            with pytest.raises(SuspectError), opened(path, shape=queries.shape[1:], input_name="x") as suspect:
                suspect.ask(queries)
        with pytest.raises(SuspectError, match="404"), opened(url + "/other", dialect="plain") as suspect:
            suspect.ask(QUERIES)
        with opened(url) as suspect:
            assert len(suspect.ask(QUERIES)) == 20
    with pytest.raises(SuspectError, match="could not be reached"), opened(url):
        pass


def test_the_library_for_http_is_imported_only_with_this_adapter() -> None:
    code = (
        "import sys, onnxaudit.registry as r; r.adapters(); assert 'requests' not in sys.modules; import onnxaudit_adapters.http"
    )
    code += "; assert 'requests' in sys.modules and 'torch' not in sys.modules and 'onnxruntime' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
