"""TorchScript and torch.export suspects, and that one network gives one set of answers in every format."""

from __future__ import annotations

import hashlib
import io
import json
import pickle
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from onnxaudit.answers import Access, Answers
from onnxaudit.errors import ArtefactError, SuspectError, UsageError
from onnxaudit.registry import open_suspect
from onnxaudit.suspect import Target
from onnxaudit.testing import assert_same, check_adapter
from onnxaudit_adapters.devices import gpu_present
from tests.models import (
    CLASSES,
    SHAPE,
    SPEC,
    colour_queries,
    expected_answers,
    save_exported,
    save_onnx,
    save_torchscript,
    torch_network,
)

QUERIES = colour_queries()


def target(path: Path, **options: Any) -> Target:
    return Target(str(path), SPEC, CLASSES, **options)


class Ending(torch.nn.Module):
    """The network with another kind of answer."""

    def __init__(self, end: str) -> None:
        super().__init__()
        self.network = torch_network()
        self.end = end

    def forward(self, x: torch.Tensor) -> Any:
        logits = self.network(x)
        if self.end == "tuple":
            return x.flatten(1), logits
        if self.end == "dict":
            return {"features": x.flatten(1), "scores": logits}
        if self.end == "labels":
            return logits.argmax(1)
        return logits.softmax(1)


MAKERS: dict[str, Callable[[Path, Any], Path]] = {
    "pt": lambda folder, module: save_torchscript(folder / "m.pt", module),
    "pt2": lambda folder, module: save_exported(folder / "m.pt2", module=module),
}


@pytest.mark.parametrize("suffix", ["pt", "pt2"])
@pytest.mark.parametrize("end", ["tuple", "dict", "labels", "softmax"])
def test_every_kind_of_answer(tmp_path: Path, suffix: str, end: str) -> None:
    path = MAKERS[suffix](tmp_path, Ending(end).eval())
    with open_suspect(target(path)) as suspect:
        answers = suspect.ask(QUERIES)
    assert_same(answers, expected_answers(QUERIES))
    assert answers.access == {"labels": Access.LABEL, "softmax": Access.PROBS}.get(end, Access.LOGITS)


def test_torchscript_keeps_the_contract(tmp_path: Path) -> None:
    path = save_torchscript(tmp_path / "m.ts")
    check_adapter(lambda: open_suspect(target(path)), QUERIES, expected_answers(QUERIES))
    with open_suspect(target(path)) as suspect:
        card = suspect.card
    assert (card.kind, card.input, card.batch) == ("torchscript", SPEC, None)
    assert card.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert card.runtime["torch"] == torch.__version__


@pytest.mark.parametrize("batch", [None, 1, 5])
def test_exported_keeps_the_contract(tmp_path: Path, batch: int | None) -> None:
    path = save_exported(tmp_path / "m.pt2", batch)
    check_adapter(lambda: open_suspect(target(path)), QUERIES, expected_answers(QUERIES))
    with open_suspect(target(path)) as suspect:
        assert (suspect.card.kind, suspect.card.batch, suspect.card.input.shape) == ("exported", batch, SHAPE)


def test_a_batch_of_two_or_more_is_filled_up(tmp_path: Path) -> None:
    shapes = ({0: torch.export.Dim("n", min=2, max=64)},)
    torch.export.save(torch.export.export(torch_network(), (torch.zeros(2, 3, 8, 8),), dynamic_shapes=shapes), tmp_path / "m.pt2")
    check_adapter(lambda: open_suspect(target(tmp_path / "m.pt2")), QUERIES, expected_answers(QUERIES))


def test_precision_is_read_from_the_weights(tmp_path: Path) -> None:
    double = torch_network().double()
    scripted: Any = torch.jit.script(double)
    scripted.save(str(tmp_path / "d.pt"))
    with open_suspect(target(tmp_path / "d.pt")) as suspect:
        assert suspect.card.input.dtype == "float64"
        assert_same(suspect.ask(QUERIES), expected_answers(QUERIES))


def test_one_network_in_three_formats_gives_one_set_of_answers(tmp_path: Path) -> None:
    paths = [save_onnx(tmp_path / "m.onnx"), save_torchscript(tmp_path / "m.pt"), save_exported(tmp_path / "m.pt2")]
    found: list[Answers] = []
    for path in paths:
        with open_suspect(target(path)) as suspect:
            found.append(suspect.ask(QUERIES))
    for answers in found[1:]:
        assert (answers.labels == found[0].labels).all()
        assert np.abs(answers.dense() - found[0].dense()).max() < 1e-5


def test_a_failing_program_is_the_suspects_error(tmp_path: Path) -> None:
    module = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(5, CLASSES))
    scripted: Any = torch.jit.script(module)
    scripted.save(str(tmp_path / "m.pt"))
    with open_suspect(target(tmp_path / "m.pt")) as suspect, pytest.raises(SuspectError, match="failed") as caught:
        suspect.ask(QUERIES)
    assert "\n" not in str(caught.value)


def test_a_closed_suspect_answers_nothing(tmp_path: Path) -> None:
    suspect = open_suspect(target(save_torchscript(tmp_path / "m.pt")))
    suspect.close()
    with pytest.raises(SuspectError, match="closed"):
        suspect.ask(QUERIES)


def test_devices(tmp_path: Path) -> None:
    path = save_torchscript(tmp_path / "m.pt")
    with open_suspect(target(path, device="cpu")) as suspect:
        assert suspect.card.runtime["device"] == "cpu"
    if gpu_present() and torch.cuda.is_available():
        for made in (path, save_exported(tmp_path / "m.pt2")):
            with open_suspect(target(made, device="cuda")) as suspect:
                assert suspect.card.runtime["device"] == "cuda"
                assert_same(suspect.ask(QUERIES), expected_answers(QUERIES))
        return
    with pytest.raises(UsageError, match="--device cuda"):
        open_suspect(target(path, device="cuda"))


class Mark:
    """An object whose unpickling would leave a file behind."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("suffix", ["pt", "pt2"])
def test_weights_and_pickles_are_refused_unopened(tmp_path: Path, suffix: str) -> None:
    path, mark = tmp_path / f"m.{suffix}", tmp_path / "mark"
    torch.save(torch_network().state_dict(), path)
    with pytest.raises(ArtefactError, match=r"weights only.*needs its program"):
        open_suspect(target(path))
    torch.save(Mark(mark), path)
    with pytest.raises(ArtefactError, match="pickled Python object"):
        open_suspect(target(path))
    path.write_bytes(pickle.dumps(Mark(mark)))
    with pytest.raises(ArtefactError, match="pickled Python object"):
        open_suspect(target(path))
    assert not mark.exists()


@pytest.mark.parametrize(
    ("made", "named", "hint"), [("m.pt", "n.pt2", r"\.pt\b"), ("m.pt2", "n.pt", r"\.pt2"), ("m.onnx", "n.pt", r"\.onnx")]
)
def test_a_file_under_another_suffix(tmp_path: Path, made: str, named: str, hint: str) -> None:
    maker: Any = {"m.pt": save_torchscript, "m.pt2": save_exported, "m.onnx": save_onnx}[made]
    maker(tmp_path / made).rename(tmp_path / named)
    with pytest.raises(ArtefactError, match=hint):
        open_suspect(target(tmp_path / named))


@pytest.mark.parametrize("suffix", ["pt", "pt2"])
@pytest.mark.parametrize("keep", [0.3, 0.9, 0.999])
def test_truncated_files(tmp_path: Path, suffix: str, keep: float, capfd: pytest.CaptureFixture[str]) -> None:
    path = MAKERS[suffix](tmp_path, None)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep)])
    capfd.readouterr()
    with pytest.raises(ArtefactError) as caught:
        open_suspect(target(path))
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


def _edited(path: Path, member: str, edit: Callable[[bytes], bytes]) -> Path:
    """The archive with one member changed."""
    with zipfile.ZipFile(path) as archive:
        parts = {info.filename: archive.read(info) for info in archive.infolist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in parts.items():
            archive.writestr(name, edit(data) if name.endswith(member) else data)
    return path


class Saves(torch.nn.Module):
    """A program that writes what it is asked to a file."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        torch.save(x, "asked.bin")
        return x


class Reads(torch.nn.Module):
    """A program that answers with the content of a file."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.from_file("secret.bin", True, 8).sum()


@pytest.mark.parametrize("module", [Saves(), Reads()])
def test_torchscript_that_touches_files(tmp_path: Path, module: torch.nn.Module) -> None:
    scripted: Any = torch.jit.script(module)
    scripted.save(str(tmp_path / "m.pt"))
    with pytest.raises(ArtefactError, match="touches files"):
        open_suspect(target(tmp_path / "m.pt"))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("torch.ops.aten.relu.default", "torch.os.system"),
        ("torch.ops.aten.relu.default", "_operator.methodcaller"),
        ("torch.ops.aten.relu.default", "torch.ops.aten.from_file.default"),
        ("torch.ops.aten.relu.default", "torch.ops.aten.__class__.default"),
        ("Symbol('n', positive=True, integer=True)", "exec('open')"),
        ('"name": "relu"', '"name": "relu\\nimport os"'),
        ("builtins.tuple", "default_factory_module"),
    ],
)
def test_exported_programs_that_call_more_than_tensor_operators(tmp_path: Path, old: str, new: str) -> None:
    path = save_exported(tmp_path / "m.pt2")
    found: list[bool] = []

    def edit(data: bytes) -> bytes:
        text = data.decode()
        symbol = next((word for word in text.split('"') if word.startswith("Symbol(")), old)
        known = symbol if old.startswith("Symbol") else old
        found.append(known in text)
        return text.replace(known, new).encode()

    _edited(path, "models/model.json", edit)
    assert found == [True]
    with pytest.raises(ArtefactError, match="unexpected"):
        open_suspect(target(path))


def test_exported_programs_that_bring_pickles(tmp_path: Path) -> None:
    mark, hostile = tmp_path / "mark", io.BytesIO()
    torch.save((Mark(mark),), hostile)
    inputs = _edited(save_exported(tmp_path / "a.pt2"), "sample_inputs/model.pt", lambda _: hostile.getvalue())
    with pytest.raises(ArtefactError, match="builds more than tensors"):
        open_suspect(target(inputs))

    def pickled(config: bytes) -> bytes:
        table = json.loads(config)
        for entry in table["config"].values():
            entry["use_pickle"] = True
        return json.dumps(table).encode()

    weights = _edited(save_exported(tmp_path / "b.pt2"), "model_weights_config.json", pickled)
    with pytest.raises(ArtefactError, match="builds more than tensors"):
        open_suspect(target(_edited(weights, "weights/weight_0", lambda _: hostile.getvalue())))
    assert not mark.exists()


def test_torch_is_imported_only_when_a_suspect_is_opened(tmp_path: Path) -> None:
    path = save_torchscript(tmp_path / "m.pt")
    program = (
        "import sys, numpy, onnxaudit.testing\n"
        "import onnxaudit_adapters.torchscript, onnxaudit_adapters.callable, onnxaudit_adapters.access\n"
        "assert 'torch' not in sys.modules\n"
        "from onnxaudit.registry import open_suspect; from onnxaudit.suspect import InputSpec, Target\n"
        f"open_suspect(Target({str(path)!r}, InputSpec((8, 8, 3)))).ask(numpy.zeros((2, 8, 8, 3), numpy.uint8))\n"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")


def test_without_pytorch_the_error_says_what_to_install(tmp_path: Path) -> None:
    path = save_torchscript(tmp_path / "m.pt")
    program = (
        "import sys; sys.modules['torch'] = None\n"
        "from onnxaudit.registry import open_suspect; from onnxaudit.suspect import InputSpec, Target\n"
        "from onnxaudit.errors import UsageError\n"
        f"try: open_suspect(Target({str(path)!r}, InputSpec((8, 8, 3))))\n"
        "except UsageError as error: print(error)\n"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert "onnxaudit[torch]" in run.stdout
