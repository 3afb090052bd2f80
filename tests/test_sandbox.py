"""check --sandbox: what a hostile runtime can do from inside it, and what becomes of one that crashes, hangs or lies."""

from __future__ import annotations

import io
import json
import os
import shutil
import socket
import struct
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from onnxaudit.answers import Access, Answers
from onnxaudit.errors import ArtefactError, OnnxauditError, SuspectError, UsageError
from onnxaudit.registry import open_suspect
from onnxaudit.sandbox import frames
from onnxaudit.sandbox.limits import Limits, parse_limits
from onnxaudit.sandbox.process import environment
from onnxaudit.sandbox.suspect import open_confined, read_answers, readable
from onnxaudit.sandbox.syscalls import filter_program
from onnxaudit.suspect import InputSpec, Target
from tests.bundles import SHAPE, simulated_bundle
from tests.conftest import ZOO
from tests.hostile_models import save_swelling
from tests.typed import typed

linux = pytest.mark.skipif(sys.platform != "linux", reason="no other kernel has these walls")
QUERIES = np.random.default_rng(1).integers(0, 256, (6, *SHAPE), dtype=np.uint8)


@pytest.fixture
def hostile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], Target]]:
    """Targets of hostile_functions, found from a current folder of their own, beside which lies a secret."""
    folder = tmp_path / "suspect"
    folder.mkdir()
    shutil.copy(Path(__file__).with_name("hostile_functions.py"), folder / "hostile.py")
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret/key").write_text("42")
    (folder / "spare").write_text("")
    monkeypatch.chdir(folder)
    monkeypatch.setenv("HOSTILE_TEST_TOKEN", "secret")
    with socket.create_server(("127.0.0.1", 0)) as server:
        plan = {"port": server.getsockname()[1], "parent": os.getpid(), "secret": str(tmp_path / "secret/key")}
        (folder / "plan.json").write_text(json.dumps(plan))
        yield lambda name: Target(f"hostile:{name}", InputSpec(SHAPE), 5, device="cpu")
    sys.modules.pop("hostile", None)


def _worked(error: OnnxauditError) -> set[str]:
    return set(error.what.partition("worked: ")[2].split())


CALLS = {
    *("limits", "priority", "affinity", "scheduler", "ioprio", "chmod", "times", "owner", "truncate", "shm", "setown"),
}
"""Attempts that only the filter of system calls is in the way of, on some kernels; extended attributes are not on all."""


@linux
def test_nothing_gets_out(hostile: Callable[[str], Target], tmp_path: Path) -> None:
    with open_suspect(hostile("attempts")) as free, pytest.raises(SuspectError) as outside:
        free.ask(QUERIES)
    assert {"connect", "fork", "run", "read", "environment", "memory", *CALLS} <= _worked(outside.value), (
        "the attempts do not work at all"
    )
    (tmp_path / "suspect/spare").write_text("")
    for made in (tmp_path / "suspect/made", tmp_path / "secret/made"):
        made.unlink()
    with open_confined(hostile("attempts"), Limits()) as confined, pytest.raises(SuspectError) as inside:
        confined.ask(QUERIES)
    facts = confined.card.runtime
    possible = set()
    if "no network" in facts.get("sandbox lacks", ""):
        possible |= {"connect", "datagram"}
    if "processes" in facts.get("sandbox lacks", ""):
        possible |= {"fork", "run", "signal", "xattr", *CALLS}
    if "unreadable" in facts.get("sandbox lacks", ""):
        possible |= {"read", "list", "remove"}
    assert _worked(inside.value) <= possible, facts
    assert (tmp_path / "suspect/spare").exists() or "remove" in possible
    assert not (tmp_path / "secret/made").exists()
    assert not (tmp_path / "suspect/made").exists() or not (tmp_path / "suspect/made").read_bytes()


@linux
def test_the_card_says_what_was_applied(hostile: Callable[[str], Target]) -> None:
    with open_confined(hostile("harmless"), Limits(memory=7, cpu=99)) as confined:
        said = confined.card.runtime["sandbox"]
    assert said.startswith("memory 7 GiB, CPU time 99 s, no core dumps, no writing to files")
    with open_suspect(hostile("harmless")) as free:
        assert "sandbox" not in free.card.runtime


def test_what_cannot_be_applied_is_not_claimed() -> None:
    with pytest.raises(ValueError, match="riscv64"):
        filter_program("riscv64", 1)
    assert len(filter_program("x86_64", 1)) % 8 == 0
    assert filter_program("x86_64", 1) != filter_program("aarch64", 1)


def _verdict(program: bytes, architecture: int, number: int, *arguments: int) -> int:
    """What a filter returns for a call: the machine of linux/filter.h, as far as the filter uses it."""
    data = struct.pack("<IIQ6Q", number, architecture, 0, *arguments, *[0] * (6 - len(arguments)))
    place, loaded = 0, 0
    while True:
        code, if_so, if_not, value = struct.unpack_from("<HBBI", program, place * 8)
        if code == 0x06:
            return int(value)
        if code == 0x20:
            (loaded,) = struct.unpack_from("<I", data, value)
            place += 1
        else:
            holds = {0x15: loaded == value, 0x35: loaded >= value, 0x45: loaded & value != 0}[code]
            place += 1 + (if_so if holds else if_not)


@pytest.mark.parametrize(
    ("machine", "architecture", "numbers", "read"),
    [("x86_64", 0xC000003E, (302, 142, 144, 314, 203), (0, 72)), ("aarch64", 0xC00000B7, (261, 118, 119, 274, 122), (63, 25))],
)
def test_a_process_may_set_only_itself(machine: str, architecture: int, numbers: tuple[int, ...], read: tuple[int, int]) -> None:
    """prlimit64 and sched_*: glibc and runtimes call them with process 0, or their own. fcntl: all but F_SETOWN, F_SETOWN_EX."""
    program, allow, refuse = filter_program(machine, 77), 0x7FFF0000, 0x00050001
    for number in numbers:
        assert [_verdict(program, architecture, number, whose) for whose in (0, 77, 1, 1 << 32)] == [allow, allow, refuse, allow]
        assert _verdict(program, architecture, number, 78) == refuse
    reading, fcntl = read
    assert _verdict(program, architecture, reading, 5, 8) == allow
    assert [_verdict(program, architecture, fcntl, 5, order) for order in (1, 2, 3, 4)] == [allow] * 4
    assert [_verdict(program, architecture, fcntl, 5, order) for order in (8, 15)] == [refuse] * 2


@linux
@pytest.mark.parametrize(
    ("name", "limits", "words"),
    [
        ("segfault", Limits(), r"crashed on hostile:segfault \(SIGSEGV\), in the sandbox"),
        ("hang", Limits(wall=3), "did not answer within the 3 s"),
        ("spin", Limits(cpu=2), "took more than 2 s of CPU time"),
        ("hoard", Limits(memory=1), "needs more than 1 GiB of memory"),
        ("share", Limits(memory=1), "took more than 1 GiB of memory"),
        ("leave", Limits(), r"ended itself on hostile:leave \(exit 10\)"),
    ],
)
def test_a_runtime_that_crashes_hangs_or_hoards(hostile: Callable[[str], Target], name: str, limits: Limits, words: str) -> None:
    with pytest.raises(SuspectError, match=words) as caught, open_confined(hostile(name), limits) as confined:
        confined.ask(QUERIES)
    assert caught.value.exit_code == 4
    assert "\n" not in str(caught.value)


@linux
@pytest.mark.parametrize("name", ["suspects/copy.onnx", "suspects/extract-label-resnet.onnx", "victim.pt"])
def test_answers_are_the_same_to_the_last_bit(name: str) -> None:
    path = ZOO / name
    queries = np.random.default_rng(2).integers(0, 256, (20, 28, 28, 1), dtype=np.uint8)
    target = Target(str(path), InputSpec((28, 28, 1)), 10, device="cpu")
    with open_suspect(target) as free, open_confined(target, Limits()) as confined:
        assert (confined.card.input, confined.card.max_batch) == (free.card.input, free.card.max_batch)
        assert confined.card.sha256 == free.card.sha256
        assert set(confined.card.runtime) - set(free.card.runtime) <= {"sandbox", "sandbox lacks"}
        _same(confined.ask(queries), free.ask(queries))


def _same(one: Answers, other: Answers) -> None:
    assert (one.access, one.num_classes) == (other.access, other.num_classes)
    assert one.scores is not None
    assert other.scores is not None
    assert one.classes.tobytes() == other.classes.tobytes()
    assert one.scores.tobytes() == other.scores.tobytes()


@linux
def test_the_command(hostile: Callable[[str], Target], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    simulated_bundle().save(tmp_path / "v.oab")
    common = ("--bundle", str(tmp_path / "v.oab"), "--json")
    free = typed("check", "hostile:harmless", *common, capsys=capsys)
    evidence = ("--evidence", str(tmp_path / "e.jsonl"), "-o", str(tmp_path / "r.json"))
    confined = typed("check", "hostile:harmless", *common, "--sandbox", *evidence, capsys=capsys)
    assert free[0] == confined[0]
    reports = [json.loads(text) for text in (free[1], confined[1])]
    assert reports[1]["suspect"]["runtime"].pop("sandbox")
    reports[1]["suspect"]["runtime"].pop("sandbox lacks", None)
    for report in reports:
        for name in ("seconds", "digest", "transcript_sha256"):
            del report[name]
    assert reports[0] == reports[1]
    code, out, err = typed("check", "hostile:segfault", *common[:2], "--sandbox", capsys=capsys)
    assert (code, out) == (4, "")
    assert [line for line in err.splitlines() if "error" in line] == [
        "error: the runtime crashed on hostile:segfault (SIGSEGV), in the sandbox. Nothing was found out."
    ]
    assert typed("check", "https://x", *common, "--sandbox", capsys=capsys)[0] == 2


@linux
def test_a_small_model_that_swells(tmp_path: Path) -> None:
    target = Target(str(save_swelling(tmp_path / "m.onnx")), InputSpec(SHAPE), device="cpu")
    with pytest.raises(SuspectError, match="1 GiB of memory"), open_confined(target, Limits(memory=1)) as confined:
        confined.ask(QUERIES)


@linux
def test_weights_in_another_file(tmp_path: Path) -> None:
    from tests.models import SPEC, colour_queries, make_onnx

    onnx.save(make_onnx(), tmp_path / "m.onnx", save_as_external_data=True, location="w.bin", size_threshold=0)
    target = Target(str(tmp_path / "m.onnx"), SPEC, 4, device="cpu")
    with open_suspect(target) as free, open_confined(target, Limits()) as confined:
        assert "external:w.bin" in confined.card.runtime
        _same(confined.ask(colour_queries()), free.ask(colour_queries()))


@pytest.mark.parametrize("path", ["model.onnx", None])
def test_the_current_folder_is_for_functions_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str | None) -> None:
    """``python -m onnxaudit`` has it on its path: a file has no need of it, of a module that lies there a function has."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "model.onnx").write_bytes(b"")
    said = readable(None if path is None else Path(path).absolute())
    assert (str(tmp_path.resolve()) in said) == (path is None)
    listed = environment(here=path is None)["PYTHONPATH"].split(os.pathsep)
    assert (str(tmp_path) in listed) == (path is None)
    assert {entry for entry in sys.path if Path(entry).is_absolute()} - {str(tmp_path)} == set(listed) - {str(tmp_path)}


@linux
def test_errors_are_those_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(b"\x08\x07\x12\x00nonsense")
    with pytest.raises(ArtefactError, match=r"m\.onnx cannot be run as an ONNX model"):
        open_confined(Target(str(tmp_path / "m.onnx"), InputSpec(SHAPE)), Limits())
    with (tmp_path / "m.onnx").open("r+b") as file:
        file.truncate(1 << 40)
    with pytest.raises(ArtefactError, match="more bytes than a model has"):
        open_confined(Target(str(tmp_path / "m.onnx"), InputSpec(SHAPE)), Limits())
    for source in ("https://example.com/m.onnx", str(tmp_path / "gone.onnx")):
        with pytest.raises(UsageError):
            open_confined(Target(source, InputSpec(SHAPE)), Limits())


def test_limits() -> None:
    assert parse_limits(None) == Limits()
    assert parse_limits("memory=2, wall=30") == Limits(memory=2, wall=30)
    for text in ("memory", "memory=0", "memory=-1", "disk=3", "cpu=1,cpu=2", "wall=1e3", "memory=99999999999999999999999"):
        with pytest.raises(UsageError, match="--sandbox-limits"):
            parse_limits(text)


HEAD = {"access": "logits", "num_classes": 3}
RANKED = np.array([[2, 0, 1], [0, 1, 2]], np.int32)
SCORES = np.array([[3, 2, 1], [9, 9, -1]], np.float32)


def test_sound_answers_are_taken() -> None:
    answers = read_answers(HEAD, [RANKED, SCORES], 2, "s")
    assert (answers.access, answers.num_classes) == (Access.LOGITS, 3)
    assert read_answers({"access": "label", "num_classes": None}, [RANKED[:, :1]], 2, "s").scores is None


@pytest.mark.parametrize(
    ("head", "arrays"),
    [
        (HEAD, []),
        (HEAD, [RANKED]),
        (HEAD, [RANKED[:1], SCORES[:1]]),
        (HEAD, [RANKED, SCORES[:, :2]]),
        (HEAD, [RANKED[:, :0], SCORES[:, :0]]),
        (HEAD, [RANKED.astype(np.uint8), SCORES]),
        (HEAD, [RANKED, SCORES.astype(np.float64)]),
        (HEAD, [RANKED, SCORES * np.nan]),
        (HEAD, [RANKED, SCORES[:, ::-1].copy()]),
        (HEAD, [RANKED + 1, SCORES]),
        (HEAD, [RANKED - 1, SCORES]),
        (HEAD, [RANKED * 0, SCORES]),
        ({"access": "all", "num_classes": 3}, [RANKED, SCORES]),
        ({"access": None, "num_classes": 3}, [RANKED, SCORES]),
        ({"access": ["logits"], "num_classes": 3}, [RANKED, SCORES]),
        ({"access": "label", "num_classes": 3}, [RANKED]),
        ({"access": "label", "num_classes": 3}, [RANKED[:, :1], SCORES[:, :1]]),
        ({"access": "logits", "num_classes": 2}, [RANKED, SCORES]),
        ({"access": "logits", "num_classes": True}, [RANKED, SCORES]),
        ({"access": "logits", "num_classes": 10**12}, [RANKED, SCORES]),
        ({"access": "logits", "num_classes": "3"}, [RANKED, SCORES]),
        ({}, [RANKED, SCORES]),
    ],
)
def test_lies_are_not_answers(head: dict[str, Any], arrays: list[NDArray[Any]]) -> None:
    with pytest.raises(SuspectError):
        read_answers(head, arrays, 2, "s")


@given(st.binary(max_size=200), st.booleans())
def test_frames_of_any_bytes(data: bytes, framed: bool) -> None:
    stream = io.BytesIO(struct.pack("<I", len(data)) + data if framed else data)
    try:
        frames.read(stream, 1 << 16)
    except (EOFError, frames.FrameError):
        return
    raise AssertionError("random bytes are a message")


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.sampled_from(["<f4", "|O", "arrays"]),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["arrays", "card", "error"]), inner),
    ),
    st.binary(max_size=64),
)
def test_frames_of_any_head(head: object, rest: bytes) -> None:
    text = json.dumps(head).encode()
    try:
        read, arrays = frames.read(io.BytesIO(struct.pack("<I", len(text)) + text + rest), 1 << 16)
    except (EOFError, frames.FrameError):
        return
    assert isinstance(read, dict)
    assert sum(array.nbytes for array in arrays) <= len(rest)


def test_a_frame_that_announces_more_than_it_brings() -> None:
    for shape in ([1 << 30], [1 << 20, 1 << 20], [2**70], [-1], [True]):
        text = json.dumps({"arrays": [["<f4", shape]]}).encode()
        with pytest.raises((frames.FrameError, EOFError)):
            frames.read(io.BytesIO(struct.pack("<I", len(text)) + text))


@pytest.mark.parametrize("dtype", ["|u1", "<f4", "<f8", "<i4", "<f2"])
def test_frames_come_back(dtype: str) -> None:
    arrays = [np.arange(12).reshape(3, 4).astype(dtype), np.zeros((0, 3), dtype)]
    stream = io.BytesIO()
    frames.write(stream, {"a": 1}, arrays)
    stream.seek(0)
    head, found = frames.read(stream)
    assert head == {"a": 1}
    assert all((one == other).all() and one.shape == other.shape for one, other in zip(arrays, found, strict=True))
    with pytest.raises(frames.FrameError):
        frames.write(stream, {}, [np.array([object()])])
