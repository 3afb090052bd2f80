"""A long interview with a server that fails in every known way, in random order: does it end, and with the right answers?

    python benchmarks/storm.py [--queries 100000] [--concurrency 1 8 64] [--rate 1000] [--faults 0.03]

A server in a process of its own answers with a linear model, but to a share of the requests it says 429 (with and without
Retry-After), 500 or 503, hangs, cuts the connection, truncates its JSON, says NaN, leaves a row out, or sends gzip bombs, a body
of 1 GB with and without its length, or a web page, each as often as the others. The client is what ``check --url`` asks with:
batches, pace, budget, transcript. Where it gives up (five bad replies to one request) it goes on with its transcript, as
``--resume`` does.

Prints for each concurrency: seconds, and their ratio to what the rate allows; requests and queries sent for each needed; runs;
wrong answers; queries that got a good reply twice; memory when a tenth was answered and its peak.
"""

from __future__ import annotations

import argparse
import asyncio
import gzip
import json
import multiprocessing
import os
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxaudit.errors import SuspectError
from onnxaudit.interview import Interview, interview
from onnxaudit.suspect import InputSpec, Target
from onnxaudit.transcript import Transcript
from onnxaudit_adapters.http import HttpSuspect, open_http

WIDTH, CLASSES, BATCH, TIMEOUT = 4, 5, 16, 2.0
# Eighths of whole numbers: every sum is exact, so an answer is right to the bit or wrong.
WEIGHTS = (np.random.default_rng(0).integers(-99, 100, (WIDTH, CLASSES)) / 8).astype(np.float32)
PATH = "/v2/models/m"
GIGABYTE = 2**30
BOMB = gzip.compress(bytes(64 * 2**20))
BAD = ("429", "429 retry-after", "500", "503", "hang", "cut", "truncated", "nan", "row less", "page")
FAULTS = (*BAD, "bomb", "bare bomb", "declared", "endless")


def queries_of(n: int) -> NDArray[np.float32]:
    """Queries (n, WIDTH), no two alike: the first number counts."""
    rows = (np.random.default_rng(1).integers(-99, 100, (n, WIDTH)) / 8).astype(np.float32)
    rows[:, 0] = np.arange(n)
    return rows


def head(status: int, length: int | None, **headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status} Whatever", *(f"{name.replace('_', '-')}: {value}" for name, value in headers.items())]
    lines.append("Connection: close" if length is None else f"Content-Length: {length}")
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def whole(document: object) -> bytes:
    body = json.dumps(document).encode()
    return head(200, len(body)) + body


@dataclass(slots=True)
class Storm:
    """The server. share: of the requests that go wrong. good: how often each query got a good reply."""

    share: float
    rng: random.Random = field(default_factory=lambda: random.Random(3))
    requests: int = 0
    good: Counter[int] = field(default_factory=Counter)
    said: Counter[str] = field(default_factory=Counter)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection."""
        try:
            while begin := await reader.readuntil(b"\r\n\r\n"):
                length = next((int(line[15:]) for line in begin.split(b"\r\n") if line.lower().startswith(b"content-length:")), 0)
                body = await reader.readexactly(length)
                if begin.startswith(b"GET"):
                    inputs = [{"name": "x", "datatype": "FP32", "shape": [-1, WIDTH]}]
                    writer.write(whole({"name": "storm", "inputs": inputs}))
                elif not await self.answer(body, writer):
                    break
                await writer.drain()
        except (OSError, EOFError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    async def answer(self, body: bytes, writer: asyncio.StreamWriter) -> bool:
        """Whether the connection can be used again."""
        self.requests += 1
        sent = json.loads(body)["inputs"][0]
        rows = np.array(sent["data"], np.float32).reshape(-1, WIDTH)
        fault = self.rng.choice(FAULTS) if self.requests > 1 and self.rng.random() < self.share else ""
        self.said[fault] += 1
        values = rows @ WEIGHTS
        tensor: dict[str, Any] = {"name": "y", "datatype": "FP32", "shape": list(values.shape), "data": values.ravel().tolist()}
        if not fault:
            self.good.update(rows[:, 0].astype(int).tolist())
            writer.write(whole({"outputs": [tensor]}))
            return True
        return await self.misbehave(fault, tensor, writer)

    async def misbehave(self, fault: str, tensor: dict[str, Any], writer: asyncio.StreamWriter) -> bool:
        good = whole({"outputs": [tensor]})
        if fault in ("429", "500", "503"):
            writer.write(head(int(fault), 5) + b"later")
        elif fault == "429 retry-after":
            writer.write(head(429, 0, Retry_After="1"))
        elif fault == "hang":
            await asyncio.sleep(3 * TIMEOUT)
            return False
        elif fault == "cut":
            writer.write(good[: -len(good) // 3])
            return False
        elif fault == "truncated":
            body = good.partition(b"\r\n\r\n")[2]
            writer.write(head(200, len(body) // 2) + body[: len(body) // 2])
        elif fault == "nan":
            writer.write(whole({"outputs": [{**tensor, "data": [float("nan"), *tensor["data"][1:]]}]}))
        elif fault == "row less":
            rows, width = tensor["shape"]
            writer.write(whole({"outputs": [{**tensor, "shape": [rows - 1, width], "data": tensor["data"][:-width]}]}))
        elif fault in ("bomb", "bare bomb"):
            encoding = {"Content_Encoding": "gzip"} if fault == "bomb" else {}
            writer.write(head(200, len(BOMB), **encoding) + BOMB)
        elif fault in ("declared", "endless"):
            writer.write(head(200, GIGABYTE if fault == "declared" else None))
            for _ in range(GIGABYTE // 2**16):
                writer.write(b" " * 2**16)
                await writer.drain()
            return False
        else:
            writer.write(head(200, 13) + b"<html></html>")
        return True


def run_server(share: float, pipe: Connection) -> None:
    """Serve until the other end asks for the counts."""
    storm = Storm(share)

    async def main() -> None:
        server = await asyncio.start_server(storm.serve, "127.0.0.1", 0, limit=2**22)
        pipe.send(server.sockets[0].getsockname()[1])
        await asyncio.to_thread(pipe.recv)
        pipe.send((dict(storm.good), dict(storm.said)))
        os._exit(0)

    asyncio.run(main())


def resident() -> int:
    """Memory of this process in MB."""
    return int(int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20)


@dataclass(slots=True)
class Watch:
    """Memory as answers come in. n: queries in all."""

    n: int
    early: int = 0
    peak: int = 0

    def __call__(self, done: int) -> None:
        now = resident()
        self.early = self.early or (now if done >= self.n / 10 else 0)
        self.peak = max(self.peak, now)


def until_done(ask: Callable[[], Interview]) -> tuple[Interview, int]:
    """The last of as many runs as it took, and how many."""
    for runs in range(1, 1000):
        try:
            return ask(), runs
        except SuspectError as error:
            print(f"    gave up: {error.what[:100]}", file=sys.stderr, flush=True)
    raise SystemExit("a thousand runs were not enough")


def weather(n: int, concurrency: int, rate: float, share: float) -> dict[str, object]:
    """One interview of n queries."""
    here, there = multiprocessing.Pipe()
    server = multiprocessing.get_context("fork").Process(target=run_server, args=(share, there), daemon=True)
    server.start()
    url = f"http://127.0.0.1:{here.recv()}{PATH}"
    queries, watch, sent = queries_of(n), Watch(n), [0, 0]
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "t.jsonl"

        def ask() -> Interview:
            options = {"rate": rate, "concurrency": concurrency, "batch": BATCH, "timeout": TIMEOUT}
            transcript = Transcript(path, {"schema": "storm"}, resume=True)
            suspect = open_http(Target(url, InputSpec((WIDTH,), "NC"), CLASSES, options=options))
            assert isinstance(suspect, HttpSuspect)
            try:
                return interview(suspect, queries, transcript=transcript, concurrency=concurrency, progress=watch)
            finally:
                sent[0], sent[1] = sent[0] + suspect.attempts, sent[1] + suspect.queries_sent
                suspect.close()
                transcript.close()

        result, runs = until_done(ask)
        seconds = time.perf_counter() - started
        lines = sum(1 for line in path.open() if '"rows"' in line)
        kept = np.concatenate([json.loads(line)["rows"] for line in path.open() if '"rows"' in line])
    here.send("enough")
    good, said = here.recv()
    return {
        "concurrency": concurrency,
        "seconds": round(seconds, 1),
        "over the rate": round(seconds / (n / rate), 3),
        "requests": round(sent[0] / lines, 3),
        "queries": round(sent[1] / n, 3),
        "runs": runs,
        "in order": bool((np.diff(kept) > 0).all()),
        "wrong": int((result.answers.dense() != queries @ WEIGHTS).any(axis=1).sum()),
        "lost": n - len(kept),
        "good twice": sum(count > 1 for count in good.values()),
        "faults": sum(count for fault, count in said.items() if fault),
        "MB at a tenth": watch.early,
        "MB at most": watch.peak,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--queries", type=int, default=100_000)
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--rate", type=float, default=1000.0)
    parser.add_argument("--faults", type=float, default=0.03)
    options = parser.parse_args()
    os.environ["NO_PROXY"] = "127.0.0.1"
    print(
        f"{options.queries} queries in batches of {BATCH}, {options.rate:g} a second, {options.faults:.0%} of the requests fail"
    )
    for concurrency in options.concurrency:
        found = weather(options.queries, concurrency, options.rate, options.faults)
        print(", ".join(f"{name} {value}" for name, value in found.items()), flush=True)


if __name__ == "__main__":
    main()
