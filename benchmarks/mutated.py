"""Damaged and forged suspects through the command itself, confined: python benchmarks/mutated.py [FILES] [DOOR]...

Each door gets FILES files (default 200), made from a sound one by changing bytes, numbers or members. Whatever a runtime does
with them, ``check --sandbox`` has to end with 0, 10, 11, 3 or 4 (2 where a file now wants something said, such as which output
to read), in time and within its memory. What does not is kept in ``.fuzz/crashes``. The same numbers make the same files.
"""

from __future__ import annotations

import io
import os
import re
import struct
import subprocess
import sys
import time
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
ZOO, FASHION = ROOT / "fixtures/zoo", ROOT / "fixtures/fashion/train.npz"
PLACE = Path(".fuzz/mutated")
ALLOWED = frozenset((0, 10, 11, 3, 4, 2))
MEMORY, WALL = 2, 60
"""GiB and seconds that a runtime may take; the command itself gets half a GiB, and half a minute, on top."""
EXTREMES = (0, 1, -1, 127, 255, 1 << 16, (1 << 31) - 1, 1 << 31, (1 << 32) - 1, (1 << 63) - 1)


def sound(door: str, path: Path) -> None:
    """A sound suspect for a door: the shipped victim, or a forest for scikit-learn."""
    copy, victim = ZOO / "suspects/copy.onnx", ZOO / "victim.pt"
    if door == "onnx":
        path.write_bytes(copy.read_bytes())
    elif door == "pt":
        path.write_bytes(victim.read_bytes())
    elif door == "ort":
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.optimized_model_filepath = str(path)
        onnxruntime.InferenceSession(str(copy), options, providers=["CPUExecutionProvider"])
    elif door == "pt2":
        _exported(victim, path)
    elif door == "xml":
        import openvino

        openvino.save_model(openvino.Core().read_model(str(copy)), str(path), compress_to_fp16=False)
    elif door == "tflite":
        from tests.tflite_files import converted

        converted(copy, path)
    elif door == "skops":
        import skops.io

        from onnxaudit.zoo.forest import fit_forest

        with np.load(FASHION) as archive:
            skops.io.dump(fit_forest(archive["x"][:500], archive["y"][:500], trees=3, seed=1), path)
    else:
        raise SystemExit(f"no door {door!r}; there are {', '.join(DOORS)}")


DOORS = ("onnx", "ort", "xml", "tflite", "skops", "pt", "pt2")


def _exported(victim: Path, path: Path) -> None:
    import torch

    from onnxaudit.zoo.training import Recipe, build

    module = build(Recipe(arch="resnet"), (28, 28, 1), 10)
    module.load_state_dict(torch.jit.load(str(victim)).state_dict())
    batch = torch.export.Dim("n", min=1, max=4096)
    program = torch.export.export(module.eval(), (torch.zeros(2, 1, 28, 28),), dynamic_shapes=({0: batch},))
    torch.export.save(program, path)


def _flip(data: bytearray, rng: np.random.Generator) -> None:
    for place in rng.integers(0, len(data), int(rng.integers(1, 9))):
        data[place] = int(rng.integers(0, 256))


def _number(data: bytearray, rng: np.random.Generator) -> None:
    """A length, an offset or a size becomes an extreme one."""
    width = int(rng.choice([1, 2, 4, 8]))
    value = int(EXTREMES[rng.integers(len(EXTREMES))]) & ((1 << 8 * width) - 1)
    place = int(rng.integers(0, max(1, len(data) - width)))
    data[place : place + width] = struct.pack("<Q", value)[:width]


def _text(data: bytearray, rng: np.random.Generator) -> None:
    """A number in words becomes an extreme one; where there are none, any."""
    found = list(re.finditer(rb"\d+", bytes(data)))
    if not found:
        _number(data, rng)
        return
    chosen = found[int(rng.integers(len(found)))]
    data[chosen.start() : chosen.end()] = str(EXTREMES[rng.integers(len(EXTREMES))]).encode()


def _cut(data: bytearray, rng: np.random.Generator) -> None:
    start = int(rng.integers(0, len(data)))
    del data[start : start + int(rng.integers(1, 200))]


def _copy(data: bytearray, rng: np.random.Generator) -> None:
    start, place = (int(found) for found in rng.integers(0, len(data), 2))
    data[place:place] = data[start : start + int(rng.integers(1, 200))]


WAYS: tuple[Callable[[bytearray, np.random.Generator], None], ...] = (_flip, _number, _text, _cut, _copy)


def mutated(data: bytes, rng: np.random.Generator) -> bytes:
    """The bytes with one to three changes. Of an archive mostly one member, put together again with sums that fit."""
    if zipfile.is_zipfile(io.BytesIO(data)) and rng.random() < 0.8:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            parts = {name: archive.read(name) for name in archive.namelist()}
        written = [name for name in parts if re.search(r"\.(py|json|pkl)$", name)]  # what a loader follows, rather than weights
        names = written if written and rng.random() < 0.7 else list(parts)
        chosen = names[int(rng.integers(len(names)))]
        parts[chosen] = _changed(parts[chosen], rng)
        stream = io.BytesIO()
        with zipfile.ZipFile(stream, "w") as archive:
            for name, part in parts.items():
                archive.writestr(name, part)
        return stream.getvalue()
    return _changed(data, rng)


def _changed(data: bytes, rng: np.random.Generator) -> bytes:
    changed = bytearray(data or b"\0")
    for _ in range(int(rng.integers(1, 4))):
        if changed:
            WAYS[int(rng.integers(len(WAYS)))](changed, rng)
    return bytes(changed)


def place(door: str, number: int, files: Mapping[str, bytes], folder: Path) -> Path:
    """The mutated suspect of this number, with what belongs beside it."""
    rng = np.random.default_rng([DOORS.index(door), number])
    target = f"m.{door}" if len(files) == 1 or rng.random() < 0.8 else "m.bin"
    for name, data in files.items():
        (folder / name).write_bytes(mutated(data, rng) if name == target else data)
    return folder / f"m.{door}"


def checked(suspect: Path, bundle: Path) -> tuple[int | str, float, float, str]:
    """Exit code or "hung", seconds, GiB of the largest process, and the last line on stderr, of one check."""
    limits = f"memory={MEMORY},cpu={WALL},wall={WALL}"
    command = [sys.executable, "-m", "onnxaudit", "check", str(suspect), "--bundle", str(bundle), "--device", "cpu"]
    started = time.monotonic()
    with (suspect.parent / "stderr").open("w+b") as told:
        process = subprocess.Popen(
            [*command, "--sandbox", "--sandbox-limits", limits], stdout=subprocess.DEVNULL, stderr=told, cwd=suspect.parent
        )
        while True:
            found, status, used = os.wait4(process.pid, os.WNOHANG)
            if found:
                break
            if time.monotonic() - started > WALL + 30:
                process.kill()
                _, _, used = os.wait4(process.pid, 0)
                return "hung", time.monotonic() - started, used.ru_maxrss / (1 << 20), ""
            time.sleep(0.02)
        told.seek(0)
        lines = told.read().decode(errors="replace").splitlines()
    process.returncode = os.waitstatus_to_exitcode(status)
    return process.returncode, time.monotonic() - started, used.ru_maxrss / (1 << 20), lines[-1] if lines else ""


def tried(door: str, count: int, bundle: Path) -> bool:
    """Whether all files of a door end as they should; one line is printed."""
    folder = PLACE / door
    folder.mkdir(parents=True, exist_ok=True)
    folder = folder.resolve()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sound(door, folder / f"m.{door}")
    files = {file.name: file.read_bytes() for file in sorted(folder.glob("m.*")) if file.suffix in (f".{door}", ".bin")}
    code, *_, said = checked(folder / f"m.{door}", bundle)
    if code not in (0, 10, 11):
        raise SystemExit(f"the sound .{door} file ends with {code}: {said}")
    codes: Counter[int | str] = Counter()
    longest, largest, wrong = 0.0, 0.0, 0
    for number in range(count):
        code, seconds, memory, said = checked(place(door, number, files, folder), bundle)
        codes[code] += 1
        longest, largest = max(longest, seconds), max(largest, memory)
        if code not in ALLOWED or memory > MEMORY + 0.5:
            wrong += 1
            kept = PLACE.parent / "crashes"
            kept.mkdir(exist_ok=True)
            for name in files:
                (kept / f"{door}-{number}-{name}").write_bytes((folder / name).read_bytes())
            print(f".{door} {number}: {code}, {seconds:.1f} s, {memory:.2f} GiB: {said[:300]}", flush=True)
    shown = ", ".join(f"{code}: {n}" for code, n in sorted(codes.items(), key=str))
    print(
        f".{door:<7} {count:>4} files  {shown:<40} longest {longest:>5.1f} s  largest {largest:>5.2f} GiB  wrong {wrong}",
        flush=True,
    )
    return not wrong


def main() -> int:
    """As the arguments say."""
    sys.path.insert(0, str(ROOT))  # tests/ has what writes .tflite files
    arguments = sys.argv[1:]
    count = int(arguments.pop(0)) if arguments and arguments[0].isdecimal() else 200
    PLACE.mkdir(parents=True, exist_ok=True)
    bundle = (PLACE / "victim.oab").resolve()
    if not bundle.exists():
        command = [sys.executable, "-m", "onnxaudit", "craft", str(ZOO / "victim.pt"), "--data", str(FASHION), "-o", str(bundle)]
        subprocess.run([*command, "--references", str(ZOO / "references")], check=True, stdout=subprocess.DEVNULL)
    sound_doors = [tried(door, count, bundle) for door in arguments or DOORS]
    return 0 if all(sound_doors) else 1


if __name__ == "__main__":
    sys.exit(main())
