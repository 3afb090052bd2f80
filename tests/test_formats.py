"""The promise of the tool: one model gives one finding, whatever it is deployed as."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnxruntime.transformers.float16 import convert_float_to_float16
from torch import Tensor, nn

from onnxaudit.answers import Access, Answers
from onnxaudit.audit.checking import CheckOptions, check
from onnxaudit.audit.judging.judging import judge
from onnxaudit.audit.progress import Silent
from onnxaudit.bundle import QueryBundle
from onnxaudit.interview import interview
from onnxaudit.registry import open_suspect
from onnxaudit.suspect import SuspectCard, Target
from onnxaudit.zoo.saving import save_uint8_onnx
from onnxaudit.zoo.training import Recipe, build
from tests.mlserver_peer import running

FIXTURES = Path(__file__).resolve().parent.parent / "fixtures"
SUSPECTS = FIXTURES / "zoo/suspects"
SHAPE = (28, 28, 1)
FP32 = ("torchscript", "pt2", "onnx", "uint8-nhwc", "fixed-batch", "mlserver")


class Ending(nn.Module):
    """The victim with another last step."""

    def __init__(self, network: nn.Module, end: str) -> None:
        super().__init__()
        self.network, self.end = network, end

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.network(x)
        return scores.softmax(1) if self.end == "softmax" else scores.argmax(1)


@pytest.fixture(scope="module")
def network() -> nn.Module:
    """The shipped victim as a module again."""
    module = build(Recipe(arch="resnet"), SHAPE, 10)
    module.load_state_dict(torch.jit.load(str(FIXTURES / "zoo/victim.pt")).state_dict())
    return module.eval()


def export(module: nn.Module, path: Path, batch: int = 1, *, dynamic: bool = True) -> Path:
    """An ONNX file of a module that takes (n, 1, 28, 28) in [0, 1]."""
    axes = {"input": {0: "n"}, "output": {0: "n"}} if dynamic else None
    example = torch.zeros(batch, 1, 28, 28)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the older exporter, wherever it says it comes from
        torch.onnx.export(
            module, (example,), str(path), input_names=["input"], output_names=["output"], dynamic_axes=axes, dynamo=False
        )
    return path


@pytest.fixture(scope="module")
def deployed(network: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The victim through every door: name to file or URL."""
    folder = tmp_path_factory.mktemp("formats")
    found = {
        "torchscript": FIXTURES / "zoo/victim.pt",
        "onnx": SUSPECTS / "copy.onnx",
        "int8-static": SUSPECTS / "int8-static.onnx",
        "int8-dynamic": SUSPECTS / "int8-dynamic.onnx",
        "pt2": folder / "victim.pt2",
        "uint8-nhwc": folder / "uint8.onnx",
        "fp16": folder / "fp16.onnx",
    }
    batch = torch.export.Dim("n", min=1, max=4096)
    torch.export.save(torch.export.export(network, (torch.zeros(2, 1, 28, 28),), dynamic_shapes=({0: batch},)), found["pt2"])
    save_uint8_onnx(network, SHAPE, found["uint8-nhwc"])
    half: Any = convert_float_to_float16(onnx.load(str(found["onnx"])), keep_io_types=False)
    onnx.save(half, str(found["fp16"]))
    found["fixed-batch"] = export(network, folder / "fixed.onnx", 7, dynamic=False)
    found["softmax"] = export(Ending(network, "softmax"), folder / "softmax.onnx")
    found["labels"] = export(Ending(network, "labels"), folder / "labels.onnx")
    inputs = {"inputs": [{"name": "input", "datatype": "FP32", "shape": [-1, 1, 28, 28]}]}
    served = {"suspect": (SUSPECTS / "copy.onnx", inputs), "innocent": (SUSPECTS / "twin-vgg.onnx", inputs)}
    with running(served, folder) as origin:
        urls = {"mlserver": f"{origin}/v2/models/suspect", "mlserver-innocent": f"{origin}/v2/models/innocent"}
        yield {**{name: str(path) for name, path in found.items()}, **urls}


@pytest.fixture(scope="module")
def asked(deployed: dict[str, str], crafted: QueryBundle) -> dict[str, tuple[SuspectCard, Answers]]:
    """Card and answers of every deployment."""
    found = {}
    for name, source in deployed.items():
        with open_suspect(Target(source, crafted.manifest.input, 10, "cpu")) as suspect:
            found[name] = (suspect.card, interview(suspect, crafted.queries).answers)
    return found


@pytest.mark.peers
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
def test_every_format_of_the_victim_gives_the_same_finding(
    asked: dict[str, tuple[SuspectCard, Answers]], crafted: QueryBundle
) -> None:
    findings = {name: judge(crafted, card, answers, None) for name, (card, answers) in asked.items()}
    assert findings.pop("mlserver-innocent").finding == "not-shown"
    assert {name: report.finding for name, report in findings.items()} == dict.fromkeys(findings, "derived")
    assert {report.p_value for report in findings.values()} == {1 / 43}


@pytest.mark.peers
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
def test_fp32_formats_give_the_same_labels_and_scores(
    asked: dict[str, tuple[SuspectCard, Answers]], crafted: QueryBundle
) -> None:
    victim = crafted.answers["victim"]
    reports = {name: judge(crafted, *asked[name], None) for name in FP32}
    for name in FP32:
        answers = asked[name][1]
        assert answers.labels.tolist() == victim.labels.tolist(), name
        np.testing.assert_allclose(answers.dense(), victim.dense(), atol=1e-5, rtol=1e-5, err_msg=name)
        assert reports[name].score == pytest.approx(reports["onnx"].score, abs=1e-5)
        for ours, theirs in zip(reports[name].schemes, reports["onnx"].schemes, strict=True):
            assert ours.score == pytest.approx(theirs.score, abs=1e-5), (name, ours.name)
    probabilities = asked["softmax"][1]
    assert probabilities.access == Access.PROBS
    np.testing.assert_allclose(probabilities.dense(), victim.degrade(Access.PROBS).dense(), atol=1e-5)
    assert asked["labels"][1].access == Access.LABEL
    assert asked["fixed-batch"][0].batch == 7


@pytest.mark.peers
def test_a_check_over_http_counts_its_queries(deployed: dict[str, str], crafted: QueryBundle) -> None:
    with open_suspect(Target(deployed["mlserver"], crafted.manifest.input, 10)) as suspect:
        report = check(crafted, suspect, CheckOptions(repeat=4), Silent())
    assert report.queries == {"sent": len(crafted.queries) + 4, "reused": 0, "failed": 0}
    assert (report.finding, report.suspect["kind"]) == ("derived", "http")
