"""onnxaudit doctor: what it says of a whole installation, and of each way in which one can be broken."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import onnxruntime
import pytest

from onnxaudit import __version__
from onnxaudit.audit.doctoring.machine import int8, writing
from onnxaudit.audit.doctoring.packages import runtimes_installed
from onnxaudit.registry import providers
from onnxaudit_adapters.devices import gpu_present
from onnxaudit_adapters.providers import CPU, _ended, _start, unusable


def doctor(*arguments: str, cwd: Path, path: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run the command; path: a folder whose packages hide those that are installed."""
    environment = {**os.environ, **({"PYTHONPATH": str(path)} if path else {})}
    command = [sys.executable, "-m", "onnxaudit", "doctor", *arguments]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False, timeout=120)


def signs(*arguments: str, cwd: Path, path: Path | None = None, code: int = 0) -> dict[tuple[str, str], Any]:
    """What was found, by part and name."""
    done = doctor("--json", *arguments, cwd=cwd, path=path)
    assert (done.returncode, done.stderr) == (code, "")
    document = json.loads(done.stdout)
    assert (document["schema"], document["works"]) == ("onnxaudit.doctor/1", code == 0)
    return {(sign["part"], sign["name"]): sign for sign in document["signs"]}


def distribution(folder: Path, name: str, version: str = "1.0", requires: tuple[str, ...] = (), entry: str = "") -> Path:
    """The metadata of an installed package, as pip would leave it. entry: a line of the group onnxaudit.adapters."""
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    extras = {line.rpartition("extra == ")[2].strip("'\" ") for line in requires if "extra" in line}
    lines = [f"Name: {name}", f"Version: {version}", *(f"Requires-Dist: {line}" for line in requires)]
    lines += [f"Provides-Extra: {extra}" for extra in extras]
    (info / "METADATA").write_text("Metadata-Version: 2.4\n" + "\n".join(lines) + "\n")
    if entry:
        (info / "entry_points.txt").write_text(f"[onnxaudit.adapters]\n{entry}\n")
    return folder


def test_a_whole_installation_works(tmp_path: Path) -> None:
    found = signs(cwd=tmp_path)
    assert not [sign for sign in found.values() if sign["state"] == "broken"]
    assert found["ONNX Runtime", CPU]["state"] == "ok"
    assert found["versions", runtimes_installed()[0]]["found"] == onnxruntime.__version__
    assert ("ONNX Runtime", "installed") not in found
    for part in ("versions", "ONNX Runtime", "PyTorch", "extras", "adapters", "machine", "writing"):
        assert any(key[0] == part for key in found), part
    assert found["adapters", ".onnx, .ort"]["state"] == "ok"
    assert str(tmp_path) in found["writing", "current folder"]["found"]
    assert not list(tmp_path.iterdir())


def test_the_text_ends_with_what_works(tmp_path: Path) -> None:
    done = doctor(cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "\ncheck works on .onnx files.\n" in done.stdout
    assert max(map(len, done.stdout.splitlines())) < 200


def test_nothing_slow_is_imported_unless_asked_for(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from onnxaudit.audit.doctoring.examining import examine;"
        "assert examine(Path.cwd()).works;"
        "print([name for name in ('torch', 'sklearn', 'openvino', 'scipy.stats', 'matplotlib') if name in sys.modules])"
    )
    started = time.process_time()
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "[]\n"
    assert time.process_time() - started < 3


def test_a_damaged_runtime_is_exit_3_with_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "onnxruntime.py").write_text("raise ImportError('libwhatever.so.7: cannot open shared object file')\n")
    found = signs(cwd=tmp_path, path=tmp_path, code=3)
    sign = found["ONNX Runtime", CPU]
    assert sign["state"] == "broken"
    assert "libwhatever.so.7" in sign["found"]
    assert "pip install --force-reinstall onnxruntime" in sign["advice"]
    done = doctor(cwd=tmp_path, path=tmp_path)
    assert done.returncode == 3
    assert "check does NOT work here." in done.stdout


def test_two_runtimes_over_each_other(tmp_path: Path) -> None:
    (here,) = runtimes_installed()
    other = "onnxruntime" if here == "onnxruntime-gpu" else "onnxruntime-gpu"
    sign = signs(cwd=tmp_path, path=distribution(tmp_path / "site", other, "1.20.0"))["ONNX Runtime", "installed"]
    assert sign["state"] == "warning"
    assert f"{other} 1.20.0" in sign["found"]
    assert sign["advice"] == "pip uninstall -y onnxruntime onnxruntime-gpu && pip install onnxruntime-gpu"


def test_what_is_missing_is_named_with_its_remedy(tmp_path: Path) -> None:
    """Metadata that asks for what is not there: an extra's package, a newer NumPy, a package that reports need."""
    wanted = ("numpy>=99", "not-there-at-all>=2", "neither-here; extra == 'rare'", "numpy; extra == 'common'")
    found = signs(cwd=tmp_path, path=distribution(tmp_path / "site", "onnxaudit", "0.1.0", wanted))
    assert (found["versions", "numpy"]["state"], found["versions", "numpy"]["advice"]) == ("warning", "pip install 'numpy>=99'")
    assert found["versions", "not-there-at-all"]["state"] == "warning"
    assert found["extras", "rare"]["found"] == "without neither-here"
    assert found["extras", "rare"]["advice"] == "pip install 'onnxaudit[rare]'"
    assert found["extras", "common"]["state"] == "ok"


def test_another_version_installed_than_runs(tmp_path: Path) -> None:
    found = signs(cwd=tmp_path, path=distribution(tmp_path / "site", "onnxaudit", "0.0.1"))
    assert found["versions", "onnxaudit"]["found"] == f"{__version__} runs, 0.0.1 is installed"


def test_adapters_of_others(tmp_path: Path) -> None:
    """One that works, one that lacks a requirement, one that cannot be imported, and two that want the same suffix."""
    site = tmp_path / "site"
    distribution(site, "good-door", entry="good = good_door:open_good")
    (site / "good_door.py").write_text("def open_good(target): ...\n")
    distribution(site, "poor-door", requires=("not-there-at-all>=2",), entry="poor = good_door:open_good")
    distribution(site, "bad-door", entry="bad = bad_door:open_bad")
    (site / "bad_door.py").write_text("import nothing_of_this_name\n")
    distribution(site, "lost-door", entry="lost = lost_door:open_lost\nonnx = lost_door:open_lost")
    found = signs(cwd=tmp_path, path=site)
    assert (found["adapters", ".good"]["state"], found["adapters", ".good"]["found"]) == ("ok", "good-door 1.0")
    assert found["adapters", ".poor"]["state"] == "warning"
    assert found["adapters", ".poor"]["advice"] == "pip install 'not-there-at-all>=2'"
    assert found["adapters", ".lost"]["state"] == "warning"
    assert found["adapters", ".onnx"]["found"] == "onnxaudit opens it, not lost-door"
    assert found["adapters", ".bad"]["state"] == "ok"  # it is there; whether it can be imported takes --full
    full = signs("--full", cwd=tmp_path, path=site)  # which imports PyTorch as well
    assert full["PyTorch", "works"]["state"] == "ok"
    assert full["adapters", ".bad"]["state"] == "warning"
    assert "nothing_of_this_name" in full["adapters", ".bad"]["found"]


def test_providers_are_tried_not_believed() -> None:
    found = providers()
    assert found[CPU] == ""
    assert set(found) == set(onnxruntime.get_available_providers())
    if not gpu_present():
        assert all(problem for name, problem in found.items() if name != CPU)
    assert unusable("NoSuchExecutionProvider")


def test_a_provider_that_cannot_load_says_why_from_a_process_of_its_own(tmp_path: Path) -> None:
    if gpu_present() or "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        pytest.skip("CUDA works here, or is not built in")
    command = [sys.executable, "-m", "onnxaudit_adapters.providers", "CUDAExecutionProvider"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True, timeout=60)
    last = done.stdout.splitlines()[-1]
    assert last.startswith("onnxaudit: ")
    assert len(last) > len("onnxaudit: ")


@pytest.mark.parametrize("listed", [False, True])
def test_a_provider_is_tried_without_code_of_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, listed: bool
) -> None:
    """Also where the folder is on the path, as ``python -m onnxaudit`` puts it there."""
    package = tmp_path / "onnxaudit_adapters"
    package.mkdir()
    (package / "__init__.py").write_text("raise SystemExit(7)\n")
    (tmp_path / "numpy.py").write_text("raise SystemExit(7)\n")
    monkeypatch.chdir(tmp_path)
    if listed:
        monkeypatch.syspath_prepend(str(tmp_path))
    assert _ended(_start(CPU)) == ""


@pytest.mark.parametrize(
    ("flags", "state", "said"),
    [
        ({"sse4_2", "avx2", "avx512_vnni"}, "ok", "avx512_vnni"),
        ({"asimd", "asimddp", "i8mm"}, "ok", "asimddp, i8mm"),
        ({"sse4_2", "avx2"}, "warning", "no VNNI"),
        (set(), "ok", "does not say"),
    ],
)
def test_what_the_processor_means_for_int8(flags: set[str], state: str, said: str) -> None:
    sign = int8(frozenset(flags))
    assert sign.state == state
    assert said in sign.found


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    here, there = writing(tmp_path / "gone")
    assert (here.state, there.state) == ("warning", "ok")
    assert "No such file" in here.found
    assert "-o" in here.advice
