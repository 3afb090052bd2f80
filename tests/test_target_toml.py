"""target.toml: what it may say, what it may not, and that nothing of it is sent before all of it makes sense."""

from __future__ import annotations

import base64
import io
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from onnxaudit.answers import Access
from onnxaudit.errors import ArtefactError, OnnxauditError, UsageError
from onnxaudit.registry import open_suspect, read_target_file
from onnxaudit.suspect import InputSpec, Target
from onnxaudit_adapters.http.json_path import JsonPath
from onnxaudit_adapters.http.options import HttpOptions
from onnxaudit_adapters.http.strict_json import ReplyError
from tests.http_script import Answer, Script, as_json, served

SPEC = InputSpec((4, 4, 3))
PIXELS = np.random.default_rng(1).integers(0, 256, (3, 4, 4, 3), np.uint8)
NAMES = ("cat", "dog", "fish")
EXAMPLE = """
url = "https://api.example.com/v1/classify?key=${KEY}"
dialect = "template"
labels = "names.txt"
input = { shape = [3, 4, 6], mean = [0.4914, 0.4822, 0.4465], std = [0.247, 0.2435, 0.2616] }
reply = { items = "$.result.classes[*]", label = "name", score = "confidence" }
limits = { batch = 1, rate = "5/s", budget = 400, timeout = 20 }
[request]
headers = { Authorization = "Bearer ${SUSPECT_TOKEN}" }
body = '{"image": "{{png_base64}}", "top_k": 5}'
"""
ENVIRONMENT = {"SUSPECT_TOKEN": "s3cr3t-token", "KEY": "k3y"}


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def written(folder: Path, text: str) -> Path:
    (folder / "names.txt").write_text("\n".join(NAMES) + "\n\n")
    path = folder / "target.toml"
    path.write_text(text)
    return path


def read(folder: Path, text: str, **environ: str) -> Any:
    return read_target_file(written(folder, text), environ or ENVIRONMENT)


def asked(folder: Path, text: str, script: Script, num_classes: int | None = 3) -> Any:
    """The answers of a scripted server at URL to PIXELS, asked as the file says."""
    with served(script) as url:
        said = read(folder, text.replace("URL", url))
        target = Target(said["url"], SPEC, num_classes, options=said["http"], **said["input"])
        with open_suspect(target) as suspect:
            return suspect.ask(PIXELS)


def test_the_example_says_what_it_means(tmp_path: Path) -> None:
    said = read(tmp_path, EXAMPLE)
    assert said["url"] == "https://api.example.com/v1/classify?key=k3y"
    assert said["input"]["shape"] == (4, 6, 3)
    assert said["input"]["layout"] == "NCHW"
    assert said["input"]["std"] == (0.247, 0.2435, 0.2616)
    http = said["http"]
    assert (http["batch"], http["rate"], http["budget"], http["timeout"]) == (1, 5.0, 400, 20)
    assert http["headers"] == {"Authorization": "Bearer s3cr3t-token"}
    assert http["labels"] == list(NAMES)
    assert not said["private"]
    assert read(tmp_path, EXAMPLE.replace('labels = "names.txt"', ""))["private"]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("labels =", "lables =", "lables is not known.*Did you mean labels"),
        ("budget = 400", "buget = 400", "limits.buget is not known.*Did you mean budget"),
        ("mean =", "means =", "input.means.*Did you mean mean"),
        ("score =", "scoer =", "reply.scoer.*Did you mean score"),
        ("headers =", "header =", "request.header .*Did you mean headers"),
        ('"template"', '"templat"', "dialect 'templat'.*Did you mean template"),
        ('"template"', '"tfserve"', "Did you mean tfserving"),
        ('"template"', '"plain"', "is for the dialect template, and this is plain"),
        ("png_base64", "png_base46", "Did you mean {{png_base64}}"),
        ("{{png_base64}}", "x", "no place for the query"),
        ("$.result.classes[*]", "$.result..classes", "cannot be read from '..classes'"),
        ("$.result.classes[*]", "$.result[?(@.x)]", "cannot be read"),
        ("$.result.classes[*]", "$.result.classes", r"end in \[\*\]"),
        ('label = "name", ', "", "from which no answer can be read"),
        ('"5/s"', '"5/day"', "limits.rate"),
        ('"5/s"', '"0/s"', "limits.rate"),
        ("timeout = 20", 'timeout = "20"', "limits.timeout has to be a number"),
        ("timeout = 20", "timeout = -1", "above 0"),
        ("budget = 400", "budget = 400.5", "limits.budget has to be a whole number"),
        ("timeout = 20", "timeout = 1e300", "target.toml: limits.timeout has to be a number from 0.001 to 86400"),
        ("timeout = 20", "concurrency = 3000", "target.toml: limits.concurrency has to be a number from 1 to 256"),
        ("batch = 1,", "batch = 100000000000000000000000,", "target.toml: limits.batch has to be a number from 1 to 65536"),
        ('"5/s"', f'"0.{"0" * 36}1/h"', "target.toml: limits.rate has to be a number from 0.0001"),
        ("Bearer ${SUSPECT_TOKEN}", "Bearer ${SUSPECT_TOKEN}\\n", "target.toml: request.headers: the value of Authorization"),
        ("headers = { Authorization", "headers = { 'A b'", "target.toml: request.headers has to be"),
        ("[3, 4, 6]", "[3, 4, inf]", "input.shape has to be numbers that are finite"),
        ("[3, 4, 6]", "[3, 4, nan]", "input.shape has to be numbers that are finite"),
        ("0.4914", "1" + "0" * 400, "input.mean has to be numbers that are finite"),
        ("0.247", "nan", "input.std has to be numbers that are finite"),
        ("[3, 4, 6]", "[3, 4]", "input.shape"),
        ("[3, 4, 6]", "[3.5, 4, 6]", "input.shape"),
        ("[3, 4, 6]", "[3, 4, 9999999]", "input.shape"),
        ("[3, 4, 6]", '"3x4x6"', "input.shape has to be numbers"),
        ("names.txt", "/etc/hostname", "in the folder"),
        ("names.txt", "../names.txt", "in the folder"),
        ("names.txt", "other.txt", "cannot be read"),
        ("https://", "ftp://", "must begin with http"),
        ("api.example.com", "${KEY}", "before the question mark"),
        ("${SUSPECT_TOKEN}", "${OTHER_TOKEN}", r"request.headers.Authorization uses \$\{OTHER_TOKEN\}, which is not set"),
        ('"top_k": 5', '"key": "${NO_KEY}"', r"request.body uses \$\{NO_KEY\}, which is not set"),
    ],
)
def test_what_makes_no_sense_is_said_before_anything_is_sent(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert old in EXAMPLE
    with pytest.raises(UsageError, match=message) as caught:
        read(tmp_path, EXAMPLE.replace(old, new))
    assert caught.value.exit_code == 2
    assert "s3cr3t" not in str(caught.value)


@pytest.mark.parametrize("text", ["url = ", "\xff", "[" * 3000, "url = 1\nurl = 2"])
def test_what_is_no_toml_is_an_artefact_that_cannot_be_read(tmp_path: Path, text: str) -> None:
    with pytest.raises(ArtefactError, match="is not TOML"):
        read(tmp_path, text)


def test_a_file_that_is_too_large_or_not_there(tmp_path: Path) -> None:
    with pytest.raises(ArtefactError, match="larger"):
        read(tmp_path, "#" * 2**21)
    with pytest.raises(UsageError, match="cannot be read"):
        read_target_file(tmp_path / "other.toml", {})


def test_a_link_out_of_the_folder_is_no_list_of_labels(tmp_path: Path) -> None:
    (tmp_path / "outside.txt").write_text("a\nb\nc\n")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "link.txt").symlink_to(tmp_path / "outside.txt")
    with pytest.raises(UsageError, match="in the folder"):
        read(tmp_path / "in", EXAMPLE.replace("names.txt", "link.txt"))


def test_the_template_is_filled_and_the_answer_found(tmp_path: Path) -> None:
    def answer(_: int, body: bytes) -> Answer:
        sent = json.loads(body)
        best = int(np.asarray(Image.open(io.BytesIO(base64.b64decode(sent["image"])))).sum()) % 3
        ranked = [(NAMES[best], 0.5), (NAMES[(best + 1) % 3], 0.25)][: sent["top_k"]]
        return as_json({"result": {"classes": [{"name": name, "confidence": score} for name, score in ranked]}})

    script = Script(answer, {})
    text = EXAMPLE.replace("https://api.example.com", "URL").replace("[3, 4, 6]", "[3, 4, 4]").replace("5/s", "5000/s")
    answers = asked(tmp_path, text, script)
    assert answers.access == Access.TOPK
    assert answers.labels.tolist() == [int(pixels.sum()) % 3 for pixels in PIXELS]
    assert script.gets == []
    assert [headers["Authorization"] for headers in script.headers] == ["Bearer s3cr3t-token"] * 3


WEIGHTS = np.random.default_rng(2).normal(size=(48, 3)).astype(np.float32)


def _rows(body: bytes) -> Any:
    return np.array(json.loads(body)["x"], np.float32).reshape(-1, 48) @ WEIGHTS


@pytest.mark.parametrize(
    ("limits", "reply", "answer", "sizes"),
    [
        ("{ batch = 2 }", '{ scores = "$.out[*].p" }', lambda rows: {"out": [{"p": row} for row in rows.tolist()]}, [1, 2]),
        ("{ batch = 2 }", '{ scores = "$.out" }', lambda rows: {"out": rows.tolist()}, [1, 2]),
        ("{}", '{ scores = "out[0]" }', lambda rows: {"out": [rows[0].tolist()]}, [1, 1, 1]),
        ("{ batch = 3 }", '{ label = "$[*]" }', lambda rows: rows.argmax(1).tolist(), [1, 2]),
        ("{}", "{ label = \"$['the best']\" }", lambda rows: {"the best": NAMES[rows[0].argmax()]}, [1, 1, 1]),
        ("{}", '{ items = "$.top[*]", label = "id" }', lambda rows: {"top": [{"id": int(rows[0].argmax())}]}, [1, 1, 1]),
    ],
)
def test_scores_and_labels_at_their_paths(tmp_path: Path, limits: str, reply: str, answer: Any, sizes: list[int]) -> None:
    text = f'url = "URL/ask"\nlabels = "names.txt"\nlimits = {limits}\nreply = {reply}\n'
    text += "[request]\nbody = '{\"x\": {{json}}}'\n"
    script = Script(lambda _, body: as_json(answer(_rows(body))), {})
    answers = asked(tmp_path, text, script)
    expected = SPEC.encode(PIXELS).astype(np.float32).reshape(3, -1) @ WEIGHTS
    assert answers.labels.tolist() == expected.argmax(1).tolist()
    if "scores" in reply:
        np.testing.assert_allclose(answers.dense(), expected, rtol=1e-5, atol=1e-5)
    assert [len(_rows(body)) for body in script.posts] == sizes


def test_a_body_may_be_the_image_or_the_array_itself(tmp_path: Path) -> None:
    text = 'url = "URL/ask"\nreply = { label = "label" }\nrequest = { body_bytes = "BYTES" }\n'
    images = Script(lambda _, body: as_json({"label": int(np.asarray(Image.open(io.BytesIO(body)))[0, 0, 0]) % 3}), {})
    assert asked(tmp_path, text.replace("BYTES", "png"), images).labels.tolist() == (PIXELS[:, 0, 0, 0] % 3).tolist()
    assert {headers["Content-Type"] for headers in images.headers} == {"image/png"}
    arrays = Script(lambda _, body: as_json({"label": int(np.load(io.BytesIO(body)).shape == (1, 3, 4, 4))}), {})
    assert asked(tmp_path, text.replace("BYTES", "npy"), arrays).labels.tolist() == [1, 1, 1]


def test_names_that_nothing_explains_are_numbered_where_no_labels_are_compared(tmp_path: Path) -> None:
    text = 'url = "URL/ask"\nreply = { label = "label" }\nrequest = { body = "{{json}}" }\n'
    script = Script(lambda number, _: as_json({"label": ("owl", "ant", "owl")[number - 1]}), {})
    first, second, third = asked(tmp_path, text, script, num_classes=None).labels.tolist()
    assert first == third != second
    with pytest.raises(OnnxauditError, match=r"'owl'.*nothing says"):
        asked(tmp_path, text, Script(script.answer, {}))


def test_a_secret_of_the_body_is_not_shown_when_the_server_echoes_it(tmp_path: Path) -> None:
    text = 'url = "URL/ask"\nreply = { label = "label" }\n[request]\nbody = \'{"k": "${QUOTED}", "x": {{json}}}\'\n'
    path = written(tmp_path, text)
    script = Script(lambda _, body: (400, {}, b"you sent " + body[:60]), {})
    with served(script) as url:
        path.write_text(text.replace("URL", url))
        said = read_target_file(path, {"QUOTED": 'top"secret'})
        target = Target(said["url"], SPEC, 3, options=said["http"])
        with open_suspect(target) as suspect, pytest.raises(OnnxauditError) as caught:
            suspect.ask(PIXELS)
    assert json.loads(script.posts[0])["k"] == 'top"secret'
    assert "you sent" in str(caught.value)
    assert "secret" not in str(caught.value).replace("secrets", "")


def test_a_limit_of_several_queries_needs_a_body_that_holds_them(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="holds one query"):
        asked(
            tmp_path,
            EXAMPLE.replace("https://api.example.com", "URL").replace("batch = 1", "batch = 4"),
            Script(lambda *_: as_json({}), {}),
        )


def test_as_many_labels_as_classes(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="3 names, and the victim has 7"):
        asked(tmp_path, EXAMPLE.replace("https://api.example.com", "URL"), Script(lambda *_: as_json({}), {}), num_classes=7)


def test_other_dialects_take_their_options_from_the_file(tmp_path: Path) -> None:
    said = read(tmp_path, 'url = "https://h/v1/models/m"\ninput_name = "x"\nlimits = { rate = 2 }\n')
    assert said["http"]["dialect"] is None
    assert (said["http"]["input_name"], said["http"]["rate"]) == ("x", 2)
    assert "template" not in said["http"]


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("$", {"a": [{"b": 1}, {"b": 2}], "c d": {"e": 3}}),
        ("$.a[0].b", 1),
        ("a[-1].b", 2),
        ("$.a[*].b", [1, 2]),
        ("$['c d']['e']", 3),
        (".a[*]", [{"b": 1}, {"b": 2}]),
    ],
)
def test_paths(path: str, found: object) -> None:
    assert JsonPath.read(path, "x").find({"a": [{"b": 1}, {"b": 2}], "c d": {"e": 3}}) == found


@pytest.mark.parametrize("path", ["$.x", "$.a[2]", "$.a.b", "$['c d'][*]", "$.a[*].x"])
def test_paths_that_lead_nowhere(path: str) -> None:
    with pytest.raises(ReplyError, match="nothing at"):
        JsonPath.read(path, "x").find({"a": [{"b": 1}, {"b": 2}], "c d": {"e": 3}})


@pytest.mark.skipif(os.name != "posix", reason="has no pipes under names")
@pytest.mark.parametrize("key", ["labels", "ca_bundle", "client_cert"])
def test_a_pipe_that_a_file_names_is_not_waited_for(tmp_path: Path, key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(tmp_path / "pipe")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="pipe"):
        HttpOptions.read(read(tmp_path, f'url = "https://h/v1/models/m"\n{key} = "pipe"\n')["http"])


def test_a_mark_of_the_byte_order_is_no_damage_and_a_missing_url_is_called_that(tmp_path: Path) -> None:
    assert read(tmp_path, '\ufeffurl = "https://h/x"\n')["url"] == "https://h/x"
    with pytest.raises(UsageError, match="url is missing"):
        read(tmp_path, "")
