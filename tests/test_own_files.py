"""No command writes over a file that it reads or keeps, whatever is given as an output; nor does one output cost another."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from onnxaudit.cli.commit import parse_rows
from onnxaudit.cli.console import check_apart
from onnxaudit.errors import UsageError
from onnxaudit.regular import write_in_one_step
from onnxaudit.report.writing import check_format
from onnxaudit.suspect import InputSpec
from tests.bundles import save_linear, simulated_bundle
from tests.http_script import Script, as_json, served
from tests.test_cli import assert_error, document, python, run


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a bundle, a suspect, a victim's file, a list, and a link to the bundle that looks like a picture."""
    simulated_bundle(19).save(tmp_path / "small.oab")
    save_linear(tmp_path / "m.onnx", 5, size=4)
    (tmp_path / "victim.pt").write_bytes(b"weights")
    (tmp_path / "list.txt").write_text("m.onnx\n")
    (tmp_path / "link.json").symlink_to("small.oab")
    return tmp_path


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("check m.onnx --evidence t.json -o t.json", "-o t.json would replace the transcript"),
        ("check m.onnx --evidence t.json -o ./t.json -o u.json", "-o t.json would replace the transcript"),
        ("check m.onnx --evidence m.onnx --resume", "--evidence m.onnx would replace the suspect"),
        ("check m.onnx --evidence small.oab --resume", "--evidence small.oab would replace the bundle"),
        ("check m.onnx -o link.json", "-o link.json would replace the bundle"),
        ("check m.onnx --evidence ''", "is no name of a file"),
        ("check m.onnx -o u.json -o folder.json", "-o folder.json is a folder"),
        ("show small.oab --sheet small.oab", "--sheet small.oab is no name of a PNG"),
        ("commit small.oab -o small.oab --force", "would replace what is committed to"),
        ("commit small.oab -o c.json --timestamp-request c.json", "would replace the commitment"),
        ("commit small.oab -o c.json --sign key.pem --timestamp-request key.pem --force", "would replace the key"),
        ("commit small.oab --open 1 -o small.oab --force", "would replace the bundle"),
        ("craft victim.pt -o victim.pt --force", "would replace the victim"),
        ("calibrate m.onnx -o m.onnx --force", "would replace the reference"),
        ("scan --list list.txt -o list.txt", "would replace the list"),
        ("scan m.onnx -o ''", "is no name of a file"),
    ],
)
def test_an_output_never_replaces_what_is_read_or_kept(folder: Path, line: str, words: str) -> None:
    (folder / "folder.json").mkdir()
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    done = run(*(part.strip("'") for part in line.split()), cwd=folder)
    assert_error(done, 2, words)
    assert {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()} == before


def test_a_report_that_cannot_be_written_costs_no_other(folder: Path) -> None:
    long = "c" * 245 + ".json"  # and the name of what is written first is too long
    done = run("check", "m.onnx", "-o", "a.json", "-o", long, "-o", "b.md", cwd=folder)
    assert done.returncode == 2
    assert f"{long} cannot be written" in done.stderr
    assert (folder / "a.json").exists()
    assert (folder / "b.md").exists()


def test_a_link_to_itself_is_a_name_like_others(tmp_path: Path) -> None:
    (tmp_path / "loop.json").symlink_to("loop.json")
    check_format(tmp_path / "loop.json")
    check_apart(tmp_path / "loop.json", "-o", {"the bundle": tmp_path / "a.oab", "nothing": None})
    with pytest.raises(UsageError, match="would replace it"):
        check_apart(tmp_path / "loop.json", "-o", {"it": tmp_path / "loop.json"})


@pytest.mark.parametrize("rows", ["0-999999999", "0-9999999", "9999999", "1-" + "9" * 5000])
def test_more_queries_than_any_bundle_has_are_not_counted_up(rows: str) -> None:
    with pytest.raises(UsageError, match="names no queries"):
        parse_rows(rows)


def test_a_list_that_is_no_text_is_refused_before_anything_is_asked(folder: Path) -> None:
    digest = hashlib.sha256((folder / "small.oab").read_bytes()).hexdigest()
    assert_error(run("scan", "--list", "small.oab", cwd=folder), 2, "is no list of paths")
    (folder / "long.txt").write_text("x" * 5000 + "\nm.onnx\n")
    summary = document(run("scan", "--list", "long.txt", "--json", cwd=folder))
    assert (summary["suspects"], len(summary["failures"])) == (2, 1)  # a name that is too long is one suspect's error
    assert hashlib.sha256((folder / "small.oab").read_bytes()).hexdigest() == digest


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("craft victim.pt -o nowhere/x.oab", "its folder does not exist"),
        ("craft victim.pt -o folder.oab --force", "is a folder or a device"),
        ("craft victim.pt -o /dev/null --force", "is a folder or a device"),
        ("commit small.oab -o /dev/null --force", "is a folder or a device"),
        ("calibrate m.onnx --bundle small.oab -o nowhere/x.oab", "its folder does not exist"),
        ("craft nothing.pt -o x.oab", "nothing.pt does not exist"),
        ("craft victim.pt -o x.oab --seed -1", "--seed"),
        ("craft victim.pt -o x.oab --jobs 0", "--jobs"),
    ],
)
def test_what_cannot_be_written_or_done_is_said_before_the_work(folder: Path, line: str, words: str) -> None:
    """Crafting may take hours, and calibrating with an endpoint costs queries. As root, a device would be replaced by a file."""
    (folder / "folder.oab").mkdir()
    before = Path("/dev/null").stat().st_mode
    assert_error(run(*line.split(), cwd=folder), 2, words)
    assert Path("/dev/null").stat().st_mode == before


def test_more_memory_than_there_is_is_no_bug(folder: Path) -> None:
    (folder / "greedy.py").write_text("def __getattr__(name):\n    raise MemoryError('Unable to allocate 73 GiB')\n")
    done = run("check", "greedy:answer", cwd=folder)
    assert_error(done, 2, "more memory than there is: Unable to allocate 73 GiB")


def test_a_group_of_commands_alone_says_that_one_is_missing(tmp_path: Path) -> None:
    assert_error(run("zoo", cwd=tmp_path), 2, "Missing command. See: onnxaudit zoo --help")


def test_what_lies_under_the_name_of_a_file_to_be_is_not_written_over(tmp_path: Path) -> None:
    """In a folder that others write to, a link there would have any file written over; and two processes are not in step."""
    (tmp_path / "precious").write_text("precious")
    own = f"r.json.{os.getpid()}-{threading.get_native_id()}.tmp"
    (tmp_path / own).symlink_to("precious")
    (tmp_path / "r.json.tmp").symlink_to("precious")
    write_in_one_step(tmp_path / "r.json", b"{}")
    assert (tmp_path / "r.json").read_bytes() == b"{}"
    assert (tmp_path / "precious").read_text() == "precious"
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError, match="directory"):
        write_in_one_step(tmp_path / "folder", b"{}")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "precious", "r.json", "r.json.tmp"]


def test_two_processes_that_write_one_file_leave_one_of_theirs(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from onnxaudit.regular import write_in_one_step\n"
        "for _ in range(100): write_in_one_step(Path('f'), sys.argv[1].encode() * 100_000)"
    )
    both = [subprocess.Popen([sys.executable, "-c", code, letter], cwd=tmp_path) for letter in "ab"]
    seen = set()
    while any(process.poll() is None for process in both):
        if (tmp_path / "f").exists():
            seen.add((tmp_path / "f").read_bytes())
    assert [process.wait() for process in both] == [0, 0]
    assert seen <= {b"a" * 100_000, b"b" * 100_000}
    assert [path.name for path in tmp_path.iterdir()] == ["f"]


def test_an_address_that_dask_cannot_read_ends_the_command(folder: Path) -> None:
    """A client that was begun with one has threads that outlive it."""
    done = run("scan", "m.onnx", "--engine", "dask", "--address", "nowhere", cwd=folder)
    assert_error(done, 2, "no Dask scheduler answers at nowhere")


def test_numbers_that_no_model_takes_are_refused_without_a_warning(folder: Path) -> None:
    for option in (["--std", "1e-300"], ["--scale", "1e38"], ["--mean", "1e300"]):
        assert_error(run("check", "m.onnx", *option, cwd=folder), 2, "times std")
    assert InputSpec((4, 4, 1), scale=1e3, mean=(1e10,), std=(1e-10,)).problem() is None


def test_a_file_that_is_no_text_is_no_transcript(folder: Path) -> None:
    shutil.copy(folder / "m.onnx", folder / "t.jsonl")
    assert_error(run("check", "m.onnx", "--evidence", "t.jsonl", "--resume", cwd=folder), 3, "no text.*another file is meant")


@pytest.mark.parametrize("line", ["calibrate quits:answer -o n.oab", "scan m.onnx --list quits.txt", "zoo build --data x.npz"])
def test_every_command_that_is_interrupted_says_so(folder: Path, line: str) -> None:
    """Found when the library of the command line took to ending with 130 and no word."""
    (folder / "quits.py").write_text("def answer(batch):\n    raise KeyboardInterrupt\n")
    code = (
        "import sys, onnxaudit.cli, onnxaudit.cli.console as console\n"
        "def raising(*_, **__): raise KeyboardInterrupt\n"
        "console.Console.__init__ = raising\n"
        f"sys.argv = ['onnxaudit', *{line.split()!r}]\n"
        "onnxaudit.cli.main()\n"
    )
    (folder / "quits.txt").write_text("m.onnx\n")
    done = python("-c", code, cwd=folder)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "interrupted\n")


def test_what_to_do_about_a_full_disk_is_said_once(folder: Path) -> None:
    with served(Script(lambda _, body: as_json({"output": [[0.1] * 5] * len(json.loads(body)["input"])}), {})) as url:
        line = f"ulimit -f 4; {sys.executable} -m onnxaudit check --url {url}/x --dialect plain --looks none --evidence t.jsonl"
        here = {**os.environ, "NO_PROXY": "127.0.0.1"}
        done = subprocess.run(["bash", "-c", line], cwd=folder, env=here, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("go on with --resume") == 1, done.stderr
