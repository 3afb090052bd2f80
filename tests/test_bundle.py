"""The bundle file: exact round trips, and nothing but an ArtefactError, fast, for any file that is not a sound bundle."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from onnxaudit.answers import Access, Answers
from onnxaudit.audit.judging.judging import judge
from onnxaudit.bundle import FORMAT, KEY, MAX_BYTES, MAX_HEADER, QueryBundle, load
from onnxaudit.errors import ArtefactError, UsageError
from tests.bundles import Recorded, rewrite, simulated_bundle

Edit = Callable[[dict[str, Any], dict[str, NDArray[Any]]], object]
PATIENCE = 5.0
"""Seconds of processor time within which any file must be refused; those that claim to be huge would take minutes."""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A sound bundle of two references on disk."""
    file = tmp_path / "sound.oab"
    simulated_bundle(2).save(file)
    return file


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The bytes of a sound bundle of one reference."""
    file = tmp_path_factory.mktemp("bundle") / "sound.oab"
    simulated_bundle(1).save(file)
    return file.read_bytes()


def refused(file: Path, data: bytes | None = None) -> str:
    """The message with which the file (first filled with data) is refused; fails if it is not, or not soon, or not briefly."""
    if data is not None:
        file.write_bytes(data)
    started = time.process_time()
    with pytest.raises(ArtefactError) as caught:
        load(file)
    assert time.process_time() - started < PATIENCE
    assert caught.value.exit_code == 3
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1000
    return str(caught.value)


def assert_equal(one: QueryBundle, two: QueryBundle) -> None:
    assert dataclasses.replace(one.manifest, tensors={}) == dataclasses.replace(two.manifest, tensors={})
    for a, b in ((one.queries, two.queries), (one.control_labels, two.control_labels)):
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        assert np.array_equal(a, b)
    assert list(one.answers) == list(two.answers)
    for name, answers in one.answers.items():
        other = two.answers[name]
        assert (answers.access, answers.num_classes) == (other.access, other.num_classes)
        assert np.array_equal(answers.classes, other.classes)
        assert (answers.scores is None) == (other.scores is None)
        assert answers.scores is None or other.scores is None or np.array_equal(answers.scores, other.scores)


@pytest.mark.parametrize("access", [Access.LABEL, Access.PROBS, Access.LOGITS])
@pytest.mark.parametrize("labelled", [True, False])
def test_what_is_saved_is_loaded(tmp_path: Path, access: Access, labelled: bool) -> None:
    made = simulated_bundle(3, access=access, labelled=labelled)
    saved = made.save(tmp_path / "a.oab")
    loaded = load(tmp_path / "a.oab")
    assert_equal(made, loaded)
    assert saved.manifest == loaded.manifest
    assert saved.id == loaded.id == hashlib.sha256((tmp_path / "a.oab").read_bytes()).hexdigest()


def test_vectors_and_tied_scores_are_kept(tmp_path: Path) -> None:
    made = simulated_bundle(1)
    queries: NDArray[np.float32] = np.random.default_rng(0).normal(size=(len(made.queries), 6)).astype(np.float32)
    tied = Answers.from_scores(np.round(made.answers["victim"].dense()), Access.LOGITS)
    made = dataclasses.replace(made, queries=queries, answers={**made.answers, "victim": tied})
    made.save(tmp_path / "a.oab")
    assert_equal(made, load(tmp_path / "a.oab"))


def test_saving_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    files = [tmp_path / f"{i}.oab" for i in range(3)]
    simulated_bundle(2).save(files[0])
    simulated_bundle(2).save(files[1])
    load(files[0]).save(files[2])
    assert len({file.read_bytes() for file in files}) == 1


def test_the_layout_is_that_of_format_1(path: Path) -> None:
    """One metadata key with canonical JSON, as design section 5.1 promises to other readers."""
    data = path.read_bytes()
    header = json.loads(data[8 : 8 + struct.unpack("<Q", data[:8])[0]])
    assert list(header["__metadata__"]) == [KEY] == ["onnxaudit.manifest"]
    text = header["__metadata__"][KEY]
    manifest = json.loads(text)
    assert text == json.dumps(manifest, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    assert manifest["format"] == FORMAT == 1
    assert set(manifest["tensors"]) == set(header) - {"__metadata__"}
    assert b"pickle" not in data
    seal = manifest.pop("digest")
    text = json.dumps(manifest, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    assert seal == hashlib.sha256(text.encode()).hexdigest()


def test_the_seal_is_in_the_file_and_not_in_memory(tmp_path: Path) -> None:
    made = simulated_bundle(1)
    saved = made.save(tmp_path / "a.oab")
    assert (made.manifest.digest, saved.manifest.digest, load(tmp_path / "a.oab").manifest.digest) == ("", "", "")


@pytest.mark.parametrize("digest", [None, "", "0" * 64, 7])
def test_a_manifest_without_its_seal_is_refused(path: Path, digest: object) -> None:
    rewrite(path, lambda manifest, _: manifest.update(digest=digest), seal=False)
    assert "the manifest does not match its digest" in refused(path)
    rewrite(path, lambda manifest, _: manifest.pop("digest"), seal=False)
    assert "the manifest does not match its digest" in refused(path)


def test_an_existing_file_is_kept_unless_forced(path: Path) -> None:
    before = path.read_bytes()
    other = simulated_bundle(1, seed=3)
    with pytest.raises(UsageError, match=r"sound\.oab exists already.*--force"):
        other.save(path)
    assert path.read_bytes() == before
    other.save(path, force=True)
    assert_equal(load(path), other)
    assert [file.name for file in path.parent.iterdir()] == ["sound.oab"]


@pytest.mark.parametrize("where", ["missing/a.oab", "sound.oab/a.oab"])
def test_a_place_that_cannot_be_written_is_the_user_s_mistake(path: Path, where: str) -> None:
    with pytest.raises(UsageError, match="cannot be written"):
        simulated_bundle(1).save(path.parent / where)
    assert [file.name for file in path.parent.iterdir()] == ["sound.oab"]


@pytest.mark.parametrize("name", ["missing.oab", "."])
def test_a_file_that_is_not_there_is_the_user_s_mistake(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match="cannot be read"):
        load(tmp_path / name)


@pytest.mark.parametrize("length", [*range(33), *range(40, 3000, 61), *range(3000, 9000, 400), -1000, -8, -2, -1])
def test_a_file_cut_off_anywhere_is_refused(tmp_path: Path, sound: bytes, length: int) -> None:
    assert len(sound) > 3000
    refused(tmp_path / "a.oab", sound[:length] if length < len(sound) else sound[:-3])


@pytest.mark.parametrize("tail", [b"\0", b"\0" * 4096])
def test_bytes_after_the_end_are_refused(tmp_path: Path, sound: bytes, tail: bytes) -> None:
    refused(tmp_path / "a.oab", sound + tail)


def header_end(data: bytes) -> int:
    return 8 + int(struct.unpack("<Q", data[:8])[0])


def manifest_span(data: bytes) -> tuple[int, int]:
    """Where the manifest's text begins and ends in the file."""
    begin = data.index(b'"' + KEY.encode() + b'":"') + len(KEY) + 4
    return begin, data.index(b'"},"', begin) if b'"},"' in data[begin : header_end(data)] else header_end(data)


@settings(max_examples=400)
@given(place=st.floats(0, 1, exclude_max=True), change=st.integers(1, 255))
def test_a_changed_byte_in_a_tensor_is_refused(
    tmp_path_factory: pytest.TempPathFactory, sound: bytes, place: float, change: int
) -> None:
    begin = header_end(sound)
    damaged = bytearray(sound)
    damaged[begin + int(place * (len(sound) - begin))] ^= change
    assert "digest" in refused(tmp_path_factory.getbasetemp() / "flip.oab", bytes(damaged))


def outcomes_of_flips(file: Path, data: bytes, places: range) -> list[int]:
    """The places where a changed byte goes unnoticed. Any exception but ArtefactError escapes."""
    rng = np.random.default_rng(0)
    unnoticed = []
    for place in places:
        damaged = bytearray(data)
        damaged[place] ^= int(rng.integers(1, 256))
        file.write_bytes(damaged)
        try:
            loaded = load(file)
        except ArtefactError:
            continue
        assert loaded.id != hashlib.sha256(data).hexdigest()
        unnoticed.append(place)
    return unnoticed


def test_a_changed_byte_in_the_layout_is_refused(tmp_path: Path, sound: bytes) -> None:
    """Everything around the manifest: the header's length, names, types, shapes and offsets of the tensors, padding."""
    begin, end = manifest_span(sound)
    file = tmp_path / "a.oab"
    unnoticed = outcomes_of_flips(file, sound, range(begin)) + outcomes_of_flips(file, sound, range(end, header_end(sound)))
    assert [sound[max(0, place - 20) : place + 10] for place in unnoticed] == []


def test_a_changed_byte_in_the_manifest_is_refused(tmp_path: Path, sound: bytes) -> None:
    """Also where the manifest stays well-formed: alpha, seed, an accuracy, a digit of the victim's sha256, a note."""
    begin, end = manifest_span(sound)
    unnoticed = outcomes_of_flips(tmp_path / "a.oab", sound, range(begin, end, 3))
    assert [sound[place - 20 : place + 10] for place in unnoticed[:5]] == [], (
        f"{len(unnoticed)} of {(end - begin) // 3} go unnoticed"
    )


def foreign_safetensors(metadata: dict[str, str] | None) -> bytes:
    from safetensors.numpy import save

    return save({"weight": np.zeros((2, 2), np.float32)}, metadata=metadata)


def with_header(header: bytes, body: bytes = b"") -> bytes:
    return struct.pack("<Q", len(header)) + header + body


FOREIGN: dict[str, bytes] = {
    "empty": b"",
    "text": b"This is not a bundle, it is a text file that somebody renamed.\n" * 40,
    "short text": b"hello",
    "zip": b"PK\x03\x04" + bytes(200),
    "pickle": b"\x80\x04\x95" + bytes(200),
    "zeros": bytes(500),
    "ones": b"\xff" * 500,
    "safetensors": foreign_safetensors(None),
    "safetensors with metadata": foreign_safetensors({"format": "pt"}),
    "manifest is no JSON": foreign_safetensors({KEY: "{"}),
    "manifest is a list": foreign_safetensors({KEY: "[1]"}),
    "manifest is null": foreign_safetensors({KEY: "null"}),
    "manifest is empty": foreign_safetensors({KEY: "{}"}),
    "manifest has only a format": foreign_safetensors({KEY: '{"format":1}'}),
    "manifest is deep": foreign_safetensors({KEY: '{"format":1,"notes":' + "[" * 200_000 + "]" * 200_000 + "}"}),
    "header is deep": with_header(b"[" * 1_000_000),
    "header is deep objects": with_header(b'{"a":' * 1_000_000),
    "header is a list": with_header(b"[1, 2]  "),
    "header is a string": with_header(b'"abcdef"'),
    "header is not UTF-8": with_header(b'{"\xff\xfe":1}'),
    "metadata is a list": with_header(b'{"__metadata__":["onnxaudit.manifest"]}   '),
    "metadata holds a number": with_header(b'{"__metadata__":{"onnxaudit.manifest":1}}   '),
    "huge shape": with_header(b'{"a":{"dtype":"F32","shape":[4611686018427387904,8],"data_offsets":[0,0]}}'),
    "offsets beyond the end": with_header(b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}', b"1234"),
    "unknown type": with_header(b'{"a":{"dtype":"X9","shape":[1],"data_offsets":[0,1]}}', b"1"),
    "type that NumPy lacks": with_header(b'{"a":{"dtype":"F8_E4M3","shape":[1],"data_offsets":[0,1]}}', b"1"),
    "length of the header is the largest number": b"\xff" * 8 + b"{}" + bytes(100),
    "length of the header is negative as signed": struct.pack("<q", -1) + bytes(100),
    "length of the header is one too many": struct.pack("<Q", 101) + b"{" + b" " * 99,
    "unknown field with a long name": foreign_safetensors({KEY: '{"format":1,"' + "ab" * 4_000_000 + '":1}'}),
    "format is a long text": foreign_safetensors({KEY: '{"format":"' + "ab" * 100_000 + '"}'}),
}


@pytest.mark.parametrize("what", FOREIGN)
def test_foreign_and_hostile_files_are_refused(tmp_path: Path, what: str) -> None:
    refused(tmp_path / "a.oab", FOREIGN[what])


@given(st.binary(max_size=300), st.booleans())
def test_noise_is_refused(tmp_path_factory: pytest.TempPathFactory, noise: bytes, framed: bool) -> None:
    refused(tmp_path_factory.getbasetemp() / "noise.oab", with_header(noise) if framed else noise)


@pytest.mark.parametrize("size", [MAX_BYTES + 1, MAX_HEADER + 100])
def test_oversized_files_are_refused_without_being_read(tmp_path: Path, size: int) -> None:
    file = tmp_path / "a.oab"
    file.write_bytes(struct.pack("<Q", MAX_HEADER + 1))
    os.truncate(file, size)  # sparse
    refused(file)


def test_another_format_says_which_is_read(path: Path) -> None:
    rewrite(path, lambda manifest, _: manifest.update(format=2))
    assert refused(path) == "sound.oab has bundle format 2, this version reads 1. Update onnxaudit."


@pytest.mark.parametrize("version", [None, "1", 1.5, 0, -1, True, [1]])
def test_strange_formats_are_refused(path: Path, version: object) -> None:
    rewrite(path, lambda manifest, _: manifest.update(format=version))
    said = "format must be int" if version is True else f"has bundle format {version!r}, this version reads 1"
    assert said in refused(path)


def set_model(place: int, **values: object) -> Edit:
    return lambda manifest, _: manifest["models"][place].update(values)


def set_scheme(place: int, **values: object) -> Edit:
    return lambda manifest, _: manifest["schemes"][place].update(values)


def set_input(**values: object) -> Edit:
    return lambda manifest, _: manifest["input"].update(values)


def put(name: str, tensor: Callable[[NDArray[Any]], NDArray[Any]]) -> Edit:
    """Replace a tensor by what ``tensor`` makes of it."""
    return lambda _, tensors: tensors.update({name: tensor(tensors[name])})


def drop(name: str) -> Edit:
    return lambda _, tensors: tensors.pop(name)


def with_value(tensor: NDArray[Any], value: float) -> NDArray[Any]:
    changed = tensor.copy()
    changed.flat[7] = value
    return changed


VICTIM = "answers/victim/scores"
FORGED: dict[str, Edit] = {
    "unknown field": lambda manifest, _: manifest.update(aplha=0.2),
    "unknown field of a model": set_model(0, rank=1),
    "missing field": lambda manifest, _: manifest.pop("alpha"),
    "wrong type": lambda manifest, _: manifest.update(seed="0"),
    "wrong type inside": set_model(1, num_classes=5.0),
    "alpha of zero": lambda manifest, _: manifest.update(alpha=0),
    "alpha of one": lambda manifest, _: manifest.update(alpha=1.0),
    "alpha below zero": lambda manifest, _: manifest.update(alpha=-0.05),
    "alpha of 2": lambda manifest, _: manifest.update(alpha=2),
    "rows beyond the end": set_scheme(0, rows=[0, 85]),
    "rows before the beginning": set_scheme(0, rows=[-1, 24]),
    "rows the wrong way round": set_scheme(0, rows=[24, 0]),
    "three rows": set_scheme(0, rows=[0, 10, 24]),
    "controls beyond the end": lambda manifest, _: manifest.update(controls=[44, 85]),
    "fewer controls than labels": lambda manifest, _: manifest.update(controls=[44, 83]),
    "no victim": set_model(0, role="reference"),
    "two victims": set_model(1, role="victim"),
    "a victim under another name": lambda manifest, tensors: (
        manifest["models"][0].update(id="owner"),
        tensors.update({"answers/owner/scores": tensors.pop(VICTIM)}),
    ),
    "no models": lambda manifest, _: manifest.update(models=[]),
    "unknown role": set_model(1, role="friend"),
    "two models of one name": set_model(2, id="reference-000"),
    "another number of classes": set_model(1, num_classes=6),
    "unknown access": set_model(1, access="everything"),
    "access that is never stored": set_model(1, access="topk"),
    "access of the class that all are of": set_model(1, access="__members__"),
    "access without its tensor": set_model(1, access="label"),
    "a model without answers": lambda manifest, _: manifest["models"].append({**manifest["models"][1], "id": "reference-009"}),
    "queries missing": drop("queries"),
    "control labels missing": drop("control_labels"),
    "victim's answers missing": drop(VICTIM),
    "NaN score": put(VICTIM, lambda t: with_value(t, float("nan"))),
    "infinite score": put(VICTIM, lambda t: with_value(t, float("inf"))),
    "answers too few": put(VICTIM, lambda t: t[:-1]),
    "answers with a class too many": put(VICTIM, lambda t: np.concatenate([t, t[:, :1]], axis=1)),
    "answers without classes": put(VICTIM, lambda t: t[:, :0]),
    "answers in one row": put(VICTIM, lambda t: t.ravel()),
    "queries too few": put("queries", lambda t: t[:-1]),
    "queries without a batch": put("queries", lambda t: np.array(t[0, 0, 0, 0])),
    "no queries": put("queries", lambda t: t[:0]),
    "queries of another type": put("queries", lambda t: t.astype(np.int32)),
    "queries of three dimensions": put("queries", lambda t: t[..., 0]),
    "float images": put("queries", lambda t: t.astype(np.float32)),
    "control labels of another type": put("control_labels", lambda t: t.astype(np.float64)),
    "control labels without a shape": put("control_labels", lambda t: np.array(t[0])),
    "input of an unknown type": set_input(dtype="float99"),
    "input of objects": set_input(dtype="object"),
    "input of an unknown layout": set_input(layout="CHWN"),
    "input of unknown colours": set_input(channels="YUV"),
    "input without a size": set_input(shape=[]),
    "input of a size of zero": set_input(shape=[0, 4, 1]),
    "input of a size below zero": set_input(shape=[-4, -4, 1]),
    "input of another number of means": set_input(mean=[0.5, 0.5]),
    "input divided by zero": set_input(std=[0.0]),
}


@pytest.mark.parametrize("what", FORGED)
def test_a_manifest_or_tensor_that_contradicts_the_rest_is_refused(path: Path, what: str) -> None:
    rewrite(path, FORGED[what])
    refused(path)


LABEL = "answers/reference-000/labels"
FORGED_LABELS: dict[str, Edit] = {
    "class beyond the last": put(LABEL, lambda t: with_value(t, 5)),
    "no answer": put(LABEL, lambda t: with_value(t, -1)),
    "fractions": put(LABEL, lambda t: t.astype(np.float32) / 2),
    "NaN": put(LABEL, lambda t: with_value(t.astype(np.float32), float("nan"))),
    "wider than 32 bits": put(LABEL, lambda t: t.astype(np.int64) + (1 << 32)),
    "two columns": put(LABEL, lambda t: np.stack([t, t], axis=1)),
    "no shape": put(LABEL, lambda t: np.array(t[0])),
    "more classes than memory": lambda manifest, _: [model.update(num_classes=10**12) for model in manifest["models"]],
    "classes below zero": lambda manifest, _: [model.update(num_classes=-5) for model in manifest["models"]],
}


@pytest.mark.parametrize("what", FORGED_LABELS)
def test_labels_that_cannot_be_are_refused(tmp_path: Path, what: str) -> None:
    file = tmp_path / "a.oab"
    simulated_bundle(2, access=Access.LABEL).save(file)
    rewrite(file, FORGED_LABELS[what])
    refused(file)


def test_a_helper_that_changes_nothing_leaves_a_sound_bundle(path: Path) -> None:
    """Or the forgeries above would be refused for a fault of the forger."""
    before = load(path)
    rewrite(path, lambda manifest, tensors: None)  # noqa: ARG005
    assert_equal(before, load(path))


@pytest.mark.parametrize("edit", [put("queries", lambda t: t ^ 1), drop("control_labels")], ids=["changed", "missing"])
def test_tensors_that_do_not_match_their_digests_are_named(path: Path, edit: Edit) -> None:
    rewrite(path, edit, seal=False)
    assert "does not match its digest" in refused(path)


def test_a_tensor_that_the_manifest_does_not_know_is_refused(path: Path) -> None:
    rewrite(path, lambda _, tensors: tensors.update(extra=np.zeros(3)), seal=False)
    assert "'extra'" in refused(path)


def judge_victim(path: Path) -> None:
    bundle = load(path)
    judge(bundle, Recorded(bundle, bundle.answers["victim"]).card, bundle.answers["victim"], None)


@pytest.mark.parametrize(
    "edit",
    [
        lambda manifest, _: manifest.update(statistic="max-z/7"),
        set_scheme(0, representation="brand-new"),
        set_scheme(0, detector="brand-new"),
        set_scheme(1, representing={"kernel": "cubic", "feed": "probs"}),
        set_scheme(1, representing={"kernel": "cosine", "feed": 3}),
    ],
    ids=["statistic", "representation", "detector", "kernel", "feed"],
)
def test_what_this_version_does_not_know_is_never_judged_by_something_else(path: Path, edit: Edit) -> None:
    """A newer bundle may name a statistic, scheme or parameter from the future: it must not be read as today's."""
    rewrite(path, edit)
    with pytest.raises(ArtefactError):
        judge_victim(path)
