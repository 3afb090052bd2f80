"""What a scan costs over a bare loop on ONNX Runtime, and how its memory grows.

    python benchmarks/scanning.py [--suspects 1000] [--jobs N] [--engine local] [--model copy] [--keep DIR]

Makes so many distinct small suspects (a model of the shipped zoo with noise on its weights) and scans them. Before and after it,
bare loops ask up to a thousand of them: per core ``InferenceSession(file)`` and
``session.run`` on the same queries in the same batches, one thread, as many loops at a time as the scan has processes. Memory is
the resident set of the command and of its workers, read ten times a second. Prints throughput, their ratio, memory after each
tenth, and what a million suspects would take.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from onnxaudit.bundle import QueryBundle, load
from onnxaudit.interview import BATCH

FIXTURES = Path(__file__).resolve().parent.parent / "fixtures"
ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
BARE = """
import sys, time
import numpy as np
import onnxruntime
x, files = np.load(sys.argv[1]), open(sys.argv[2]).read().split()
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = options.inter_op_num_threads = 1
options.log_severity_level = 4
def ask(file):
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    for i in range(0, len(x), {batch}):
        session.run(None, {{"input": x[i : i + {batch}]}})
ask(files[0])
print("ready", flush=True)
sys.stdin.readline()
started = time.process_time()
for file in files:
    ask(file)
print(time.process_time() - started, flush=True)
"""


def make_suspects(folder: Path, count: int, name: str) -> list[Path]:
    """Copies of one small network with a little noise on every weight: as many contents as files."""
    folder.mkdir(parents=True, exist_ok=True)
    model = onnx.load(str(FIXTURES / f"zoo/suspects/{name}.onnx"))
    weights = [(tensor, numpy_helper.to_array(tensor).copy()) for tensor in model.graph.initializer]
    files = []
    for number in range(count):
        file = folder / f"{number // 1000:03d}" / f"suspect-{number:07d}.onnx"
        files.append(file)
        if file.exists():
            continue
        file.parent.mkdir(exist_ok=True)
        rng = np.random.default_rng(number)
        for tensor, values in weights:
            if values.dtype == np.float32 and values.size > 1:
                noisy = values * (1 + 0.3 * rng.standard_normal(values.shape).astype(np.float32))
                tensor.raw_data = noisy.astype(np.float32).tobytes()
        file.write_bytes(model.SerializeToString())
    return files


def bare_loops(folder: Path, bundle: QueryBundle, files: list[Path], jobs: int) -> tuple[float, float]:
    """Suspects a second of bare loops, one a core, started together, and their CPU seconds a suspect; imports do not count."""
    np.save(folder / "x.npy", bundle.manifest.input.encode(bundle.queries))
    (folder / "bare.py").write_text(BARE.format(batch=BATCH))
    loops = []
    for job in range(jobs):
        (folder / f"files-{job}").write_text("\n".join(str(file) for file in files[job::jobs]))
        command = [sys.executable, "bare.py", "x.npy", f"files-{job}"]
        environment = {**os.environ, **ONE_THREAD}
        loops.append(
            subprocess.Popen(command, cwd=folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
        )
    for loop in loops:
        assert loop.stdout is not None
        loop.stdout.readline()
    started = time.perf_counter()
    for loop in loops:
        assert loop.stdin is not None
        loop.stdin.write("\n")
        loop.stdin.flush()
    used = sum(float(loop.communicate()[0]) for loop in loops)
    return len(files) / (time.perf_counter() - started), used / len(files)


def resident(process: int) -> tuple[float, float]:
    """MiB of a process, and of all below it."""

    def below(parent: int) -> Iterator[int]:
        for task in Path(f"/proc/{parent}/task").iterdir():
            for child in map(int, (task / "children").read_text().split()):
                yield child
                yield from below(child)

    def of(one: int) -> float:
        try:
            return int(Path(f"/proc/{one}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
        except OSError:
            return 0.0

    try:
        return of(process), sum(of(child) for child in below(process))
    except OSError:
        return 0.0, 0.0


def run_scan(command: list[str], folder: Path, total: int) -> tuple[float, list[tuple[int, float, float]]]:
    """Suspects a second from the first line to the last, and (lines, MiB of the command, MiB of its workers) over time."""
    output = folder / "findings.jsonl"
    output.unlink(missing_ok=True)
    process = subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env={**os.environ})
    read = lines = first = 0
    began = ended = 0.0
    memory: list[tuple[int, float, float]] = []
    while process.poll() is None:
        now = time.perf_counter()
        if output.exists() and lines < total:
            with output.open("rb") as file:
                file.seek(read)
                chunk = file.read()
            read, lines = read + len(chunk), min(total, lines + chunk.count(b"\n"))
            if lines and not began:
                began, first = now, lines
            ended = now if lines < total or not ended or memory[-1][0] < total else ended
        memory.append((lines, *resident(process.pid)))
        time.sleep(0.1)
    process.communicate()
    assert process.returncode in (0, 10, 11), process.returncode
    return (lines - first) / max(ended - began, 1e-9), memory


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suspects", type=int, default=1000)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--engine", default="local")
    parser.add_argument("--model", default="copy", help="A model of fixtures/zoo/suspects, without its suffix.")
    parser.add_argument("--keep", type=Path, help="Folder to make the suspects in, and to leave them for the next time.")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        suspects = (given.keep or folder).resolve() / given.model
        files = make_suspects(suspects, given.suspects, given.model)
        (folder / "list").write_text("\n".join(map(str, files)))
        program = [sys.executable, "-m", "onnxaudit"]
        craft = ["craft", str(FIXTURES / "zoo/victim.pt"), "--data", str(FIXTURES / "fashion/train.npz"), "-o", "v.oab"]
        references = ["--references", str(FIXTURES / "zoo/references")]
        subprocess.run([*program, *craft, *references], cwd=folder, check=True, capture_output=True)
        sample = files[: min(len(files), 1000)]
        bundle = load(folder / "v.oab")
        before, cpu_before = bare_loops(folder, bundle, sample, given.jobs)
        scan = [*program, "scan", "--list", "list", "--bundle", "v.oab", "--engine", given.engine, "--jobs", str(given.jobs)]
        begun = resource.getrusage(resource.RUSAGE_CHILDREN)
        rate, memory = run_scan(scan, folder, len(files))
        ended = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu = (ended.ru_utime + ended.ru_stime - begun.ru_utime - begun.ru_stime) / len(files)
        after, cpu_after = bare_loops(folder, bundle, sample, given.jobs)
        bare, cpu_bare = (before + after) / 2, (cpu_before + cpu_after) / 2
        print(f"bare loop: {before:.1f} and {after:.1f} suspects a second on {given.jobs} processes, before and after")
        print(f"scan ({given.engine}): {rate:.1f} suspects a second, ratio {rate / bare:.2f}")
        print(
            f"CPU a suspect: {1e3 * cpu:.1f} ms, start and command included; bare {1e3 * cpu_bare:.1f} ms, {cpu_bare / cpu:.2f}"
        )
        for tenth in range(1, 11):
            seen = [entry for entry in memory if entry[0] >= len(files) * tenth / 10]
            if seen:
                lines, own, workers = seen[0]
                print(f"  after {lines:6d}: command {own:6.0f} MiB, its processes {workers:6.0f} MiB")
        peak = max(own for _, own, _ in memory), max(workers for _, _, workers in memory)
        print(f"  peak: command {peak[0]:.0f} MiB, its processes {peak[1]:.0f} MiB")
        size = (folder / "findings.jsonl").stat().st_size / len(files)
        print(f"a million: {1e6 / rate / 3600:.1f} h on these {given.jobs} processes, {size * 1e6 / 2**30:.1f} GiB of lines")
        print(
            json.dumps(
                {
                    "suspects": len(files),
                    "bare": bare,
                    "scan": rate,
                    "ratio": rate / bare,
                    "cpu": cpu_bare / cpu,
                    "jobs": given.jobs,
                }
            )
        )


if __name__ == "__main__":
    main()
