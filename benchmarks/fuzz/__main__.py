"""Coverage-guided fuzzing of one parser, with atheris: python -m benchmarks.fuzz PARSER [SECONDS]; no PARSER: all of them.

Each runs in a process of its own, with 2 GiB of memory and ten seconds an input. New inputs that reached new code are kept in
``.fuzz/PARSER`` and not committed; an input that broke something is written to ``.fuzz/crashes``, and belongs into the corpus.
"""

from __future__ import annotations

import re
import subprocess
import sys
import time
from pathlib import Path

CORPUS = Path(__file__).with_name("corpus")
KEPT = Path(".fuzz")


def fuzz(name: str, seconds: int) -> None:
    """Fuzz one parser in this process, which libFuzzer ends."""
    import atheris

    with atheris.instrument_imports(include=["onnxaudit", "onnxaudit_adapters"]):
        from benchmarks.fuzz.parsers import tried

    def one(data: bytes) -> None:
        tried(name, data)

    crashes, kept = KEPT / "crashes", KEPT / name
    for folder in (crashes, kept):
        folder.mkdir(parents=True, exist_ok=True)
    limits = [f"-max_total_time={seconds}", "-timeout=10", "-rss_limit_mb=2048", "-max_len=65536"]
    atheris.Setup([sys.argv[0], str(kept), str(CORPUS / name), *limits, f"-artifact_prefix={crashes}/{name}-"], one)
    atheris.Fuzz()


def run(name: str, seconds: int) -> tuple[int, int, bool]:
    """Runs, parts of code reached, and whether something broke, of one parser in a process of its own."""
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.fuzz", "--here", name, str(seconds)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, errors="replace")
    runs = [int(found) for found in re.findall(r"^#(\d+)", done.stderr, re.MULTILINE)]
    reached = [int(found) for found in re.findall(r"cov: (\d+)", done.stderr)]
    if done.returncode:
        print(done.stdout[-3000:], done.stderr[-3000:], file=sys.stderr)
    return max(runs, default=0), max(reached, default=0), done.returncode != 0


def main() -> None:
    """As the arguments say."""
    arguments = sys.argv[1:]
    if arguments[:1] == ["--here"]:
        fuzz(arguments[1], int(arguments[2]))
        return
    seconds = int(arguments.pop()) if arguments and arguments[-1].isdecimal() else 120
    for name in arguments or sorted(folder.name for folder in CORPUS.iterdir()):
        started = time.monotonic()
        runs, reached, broke = run(name, seconds)
        took = time.monotonic() - started
        end = "BROKE" if broke else "nothing broke"
        print(f"{name:<11} {runs:>9} runs  {took:>5.0f} s  {reached:>5} places  {end}", flush=True)


if __name__ == "__main__":
    main()
