"""Writes the sound inputs that fuzzing starts from: python -m benchmarks.fuzz.seeds (all small; crashes are added by hand)."""

from __future__ import annotations

import base64
import io
import json
import struct
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from onnxaudit.audit.checking import CheckOptions, check
from onnxaudit.audit.progress import Silent
from onnxaudit.audit.verifying.attesting import commit_to, opening_to
from onnxaudit.bundle import KEY
from onnxaudit.evidence.commitment import to_text
from onnxaudit.report.findings import BONFERRONI, adjust, dumped, line_of
from onnxaudit.sandbox.frames import write
from tests.bundles import QUERIES, Recorded, simulated_bundle, simulated_scores

CORPUS = Path(__file__).with_name("corpus")
SCORES = [[0.1, 0.2, 0.3, 0.3, 0.1], [0.6, 0.1, 0.1, 0.1, 0.1]]

TARGET = """url = "https://example.com/classify?key=${TOKEN}"
labels = "names.txt"
[input]
shape = [4, 4, 1]
layout = "NHWC"
scale = 0.00392
mean = [0.5]
[request]
headers = { Authorization = "Bearer ${TOKEN}" }
body = '{"image": "{{png_base64}}"}'
[reply]
items = "$.predictions[*]"
label = "$.name"
score = "$.p"
[limits]
rate = "10/s"
budget = 100
"""


def seeds() -> Iterator[tuple[str, str, bytes]]:
    """(parser, name, bytes)."""
    with TemporaryDirectory() as temporary:
        yield from _evidence(Path(temporary))
        yield from _arrays(Path(temporary))
        yield from _models(Path(temporary))
        yield from _doors(Path(temporary))
    yield from _replies()
    yield "target", "template", TARGET.encode()
    entries = [
        {"file": "a.onnx", "kind": "positive", "task": "t", "arch": "vgg", "accuracy": 0.5, "deployed": ["round:digits=2"]}
    ]
    yield "zoo", "two", json.dumps([*entries, {"file": "b.onnx", "kind": "reference"}]).encode()
    stream = io.BytesIO()
    ranked = np.array([[1, 0], [0, 1]], np.int32)
    write(stream, {"access": "logits", "num_classes": 2}, [ranked, np.array([[2, 1], [2, 1]], np.float32)])
    yield "frames", "answers", stream.getvalue()


def _evidence(folder: Path) -> Iterator[tuple[str, str, bytes]]:
    from onnxaudit.answers import Access, Answers

    bundle = simulated_bundle(4).save(folder / "own.oab")
    data = (folder / "own.oab").read_bytes()
    yield "bundle", "sound", data
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    manifest = {"manifest": json.loads(header["__metadata__"][KEY]), "shapes": {"columns/0-24/truth": ["<i8", [24]]}}
    yield "manifest", "sound", json.dumps(manifest).encode()
    scores = simulated_scores(9, 0.8, np.zeros(QUERIES, np.int64))
    suspect = Recorded(bundle, Answers.from_scores(scores, Access.LOGITS), batch=32)
    report = check(bundle, suspect, CheckOptions(evidence=folder / "e.jsonl", repeat=2), Silent())
    yield "transcript", "sound", (folder / "e.jsonl").read_bytes().rstrip()
    seen: dict[str, Any] = {"inside": "layers", "of": "suspect", "dtype": "<f4", "shape": [1, 2]}
    seen["data"] = base64.b64encode(zlib.compress(np.ones(2, "<f4").tobytes())).decode()
    lines = (folder / "e.jsonl").read_bytes().rstrip().split(b"\n")
    yield "transcript", "inside", b"\n".join([*lines[:2], json.dumps(seen).encode(), *lines[2:]])
    yield "report", "sound", report.to_json().encode()
    line = adjust(line_of(report, "a.onnx", "00" * 32, "settings"), 0.1, 3, BONFERRONI)
    yield "scan", "sound", dumped(line) * 2
    yield "commitment", "sound", to_text(commit_to(folder / "own.oab", "2026-01-31")).encode()
    yield "opening", "sound", to_text(opening_to(folder / "own.oab", [3])).encode()
    signed = {"payload": base64.b64encode(b"{}").decode(), "payloadType": "application/vnd.onnxaudit.commitment+json"}
    yield "envelope", "sound", json.dumps({**signed, "signatures": [{"keyid": "00", "sig": "AAAA"}]}).encode()
    yield "stamp", "refused", bytes.fromhex("30053003020102")


def _arrays(folder: Path) -> Iterator[tuple[str, str, bytes]]:
    from safetensors.numpy import save

    x, y = np.arange(48, dtype=np.uint8).reshape(3, 4, 4), np.arange(3)
    for name, save_as in (("stored", np.savez), ("deflated", np.savez_compressed)):
        stream = io.BytesIO()
        save_as(stream, x=x, y=y)
        yield "arrays", name, stream.getvalue()
    yield "arrays", "safetensors", save({"x": x, "y": y})
    yield "arrays", "idx", struct.pack(">HBBIII", 0, 8, 3, 3, 4, 4) + x.tobytes()


def _models(folder: Path) -> Iterator[tuple[str, str, bytes]]:
    import onnx

    from tests.models import make_onnx, save_torchscript

    onnx.save(make_onnx(), folder / "m.onnx", save_as_external_data=True, location="w.bin", size_threshold=0)
    yield "external", "beside", (folder / "m.onnx").read_bytes()
    yield "graph", "dense", _dense()
    yield "archive", "torchscript", save_torchscript(folder / "m.pt").read_bytes()
    stream = io.BytesIO()
    program = {"graph": {"nodes": [{"target": "torch.ops.aten.relu.default"}]}}
    weights = {"config": {"w": {"path_name": "w", "use_pickle": False}}}
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("m/models/model.json", json.dumps(program))
        archive.writestr("m/data/weights/model_weights_config.json", json.dumps(weights))
    yield "archive", "exported", stream.getvalue()


def _doors(folder: Path) -> Iterator[tuple[str, str, bytes]]:
    """Files of other runtimes, which the extras bring; weights lie where ``doors.WEIGHTS`` has bytes."""
    import skops.io
    from openvino import Core, save_model

    from tests.models import forest, save_onnx
    from tests.tflite_files import converted

    save_model(Core().read_model(str(save_onnx(folder / "m.onnx"))), str(folder / "m.xml"), compress_to_fp16=False)
    yield "openvino", "sound", (folder / "m.xml").read_bytes()
    yield "litert", "sound", converted(folder / "m.onnx", folder / "m.tflite").read_bytes()
    skops.io.dump(forest().estimators_[0], folder / "m.skops")
    with zipfile.ZipFile(folder / "m.skops") as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    schema = json.loads(parts.pop("schema.json"))
    files = {name: base64.b64encode(part).decode() for name, part in parts.items()}
    yield "skops", "forged", json.dumps({"schema": schema, "files": files}).encode()
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, part in {**parts, "schema.json": json.dumps(schema).encode()}.items():
            archive.writestr(name, part)
    yield "skops", "archive", stream.getvalue()


def _dense() -> bytes:
    from onnx import TensorProto, helper

    weights = helper.make_tensor("w", TensorProto.FLOAT, [3, 2], [0.5] * 6)
    nodes = [helper.make_node("Gemm", ["x", "w"], ["h"]), helper.make_node("Relu", ["h"], ["y"])]
    given = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3])
    graph = helper.make_graph(nodes, "g", [given], [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 2])], [weights])
    data: bytes = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8).SerializeToString()
    return data


def _replies() -> Iterator[tuple[str, str, bytes]]:
    v2: dict[str, Any] = {"outputs": [{"name": "y", "datatype": "FP32", "shape": [2, 5], "data": [0.1] * 10}]}
    yield "metadata", "sound", json.dumps({"inputs": [{"name": "x", "shape": [-1, 1, 4, 4], "datatype": "FP32"}]}).encode()
    replies: dict[str, tuple[int, object]] = {
        "plain-rows": (0, SCORES),
        "plain-labels": (1, {"labels": [1, 2]}),
        "plain-objects": (0, [{"label": 1}, {"label": 2}]),
        "v2": (2, v2),
        "v2-classes": (5, {"outputs": [{"name": "y", "datatype": "BYTES", "shape": [2, 1], "data": ["0.9:1:cat", "0.8:2"]}]}),
        "tfserving": (6, {"predictions": SCORES}),
        "torchserve": (7, [{"0": 0.9, "1": 0.1}, {"0": 0.8, "1": 0.2}]),
        "huggingface": (8, [[{"label": "LABEL_0", "score": 0.9}, {"label": "LABEL_1", "score": 0.1}]] * 2),
        "invocations": (9, {"predictions": [1, 2]}),
        "template-scores": (10, {"a": [{"s": SCORES[0]}, {"s": SCORES[1]}]}),
        "template-items": (11, {"a": [{"l": 1, "s": 0.9}, {"l": 2, "s": 0.1}]}),
        "template-label": (12, {"l": 3}),
    }
    for name, (dialect, document) in replies.items():
        yield "http", name, bytes([dialect, 1]) + json.dumps(document).encode()
    described = {"outputs": [{"name": "y", "datatype": "FP32", "shape": [2, 5], "parameters": {"binary_data_size": 40}}]}
    text = json.dumps(described).encode()
    yield "http", "v2-binary", bytes([4, 1]) + str(len(text)).encode() + b"\n" + text + np.ones(10, "<f4").tobytes()


def main() -> None:
    """Write them all."""
    for parser, name, data in seeds():
        (CORPUS / parser).mkdir(parents=True, exist_ok=True)
        (CORPUS / parser / name).write_bytes(data)


if __name__ == "__main__":
    main()
