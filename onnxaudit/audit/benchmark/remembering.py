"""Answers remembered by model and query: what a sweep knows it does not ask again, also over several runs.

An answer must not depend on what else is asked, or it could not be remembered by its query alone. So queries are asked in batches
of one fixed size, and a model whose answers still depend on their neighbours is asked one query at a time. To find that out, half
of a new model's first batch is put to it a second time among other neighbours; what depended on them is asked once more, alone.
All other queries are asked once. Those that were asked again count as asked again.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from onnxaudit import __version__
from onnxaudit.answers import Access, Answers
from onnxaudit.decode import canonical, parse
from onnxaudit.errors import OnnxauditError
from onnxaudit.suspect import Queries, Suspect, SuspectCard

BATCH = 128
"""Queries asked at once, always so many: the last are padded with copies of the last one."""
KEY = "onnxaudit.answers"
SERVER = ("numpy", "pillow", "scipy")
"""What changes inputs and answers of a model behind a server."""
Digest: TypeAlias = bytes


def digests_of(queries: Queries) -> list[Digest]:
    """What each query is remembered by: 16 bytes of its content, its shape and its type."""
    head = canonical([queries.dtype.str, list(queries.shape[1:])]).encode()
    return [hashlib.blake2b(head + query.tobytes(), digest_size=16).digest() for query in queries]


def memory_name(card: SuspectCard) -> str:
    """The name of a model's file: its content, how it is opened and deployed, and what runs it and its server, with versions."""
    known = [card.sha256, card.source if card.sha256 is None else "", card.kind, card.input, card.num_classes, dict(card.runtime)]
    server = [importlib.metadata.version(name) for name in SERVER] if "deployed" in card.runtime else []
    facts = [__version__, *known, server]
    return f"{hashlib.sha256(canonical(facts).encode()).hexdigest()[:40]}.safetensors"


@dataclass(slots=True, eq=False)
class Memory:
    """What one model is known to answer. rows: where the answer to each query is. alone: it is asked one query at a time.

    asked, seconds: queries put to it so far, those put to it twice counted twice, and how long that took.
    """

    path: Path | None = None
    rows: dict[Digest, int] = field(default_factory=dict)
    answers: Answers | None = None
    alone: bool = False
    asked: int = 0
    seconds: float = 0.0

    def ask(self, suspect: Suspect, wanted: Iterable[tuple[Queries, Sequence[Digest]]]) -> int:
        """Ask the suspect whatever of these queries is not known yet; how many were put to it: of a new model also its trial.

        wanted: queries with their digests, in parts; only a batch at a time is held. Raises what the suspect raises.
        """
        fresh: list[Answers] = []
        before = self.asked
        try:
            for digests, queries in self._unknown(wanted):
                answers = self._put(suspect, queries)
                if not self.rows and not self._holds(suspect, queries, answers):
                    self.alone = True
                    answers = self._put(suspect, queries)
                fresh.append(answers)
                self.rows.update(zip(digests, range(len(self.rows), len(self.rows) + len(digests)), strict=True))
        finally:
            if fresh:  # also where the suspect failed halfway: what it said before is worth keeping
                self.answers = Answers.concatenate([*([] if self.answers is None else [self.answers]), *fresh])
        return self.asked - before

    def said(self, digests: Sequence[Digest]) -> Answers:
        """The answers to these queries, all of which were asked."""
        assert self.answers is not None
        return self.answers.take(np.array([self.rows[digest] for digest in digests], np.int64))

    def save(self) -> None:
        """Write the file in one step, if there is one."""
        if self.path is None or self.answers is None:
            return
        from safetensors.numpy import save

        tensors = {"digests": np.frombuffer(b"".join(self.rows), np.uint8).reshape(-1, 16), **_packed(self.answers)}
        facts = {
            "access": self.answers.access.word,
            "num_classes": self.answers.num_classes,
            "alone": self.alone,
            "asked": self.asked,
            "seconds": round(self.seconds, 6),
            "sha256": _checksum(tensors),
        }
        self.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.path.with_name(f"{self.path.name}.{os.getpid()}.tmp")
        temporary.write_bytes(save(tensors, metadata={KEY: canonical(facts)}))
        os.replace(temporary, self.path)  # noqa: PTH105 - the atomic one

    def _holds(self, suspect: Suspect, queries: Queries, answers: Answers) -> bool:
        """Whether the answers to a batch are the same among other neighbours, in another order."""
        some = (len(queries) + 1) // 2
        back = self._put(suspect, queries[:some][::-1])
        return _equal(answers.take(slice(0, some)), back.take(slice(None, None, -1)))

    def _unknown(self, wanted: Iterable[tuple[Queries, Sequence[Digest]]]) -> Iterator[tuple[list[Digest], Queries]]:
        """Batches of queries that have no answer yet; each query once."""
        digests: list[Digest] = []
        held: list[NDArray[Any]] = []
        seen: set[Digest] = set()
        for queries, names in wanted:
            for query, digest in zip(queries, names, strict=True):
                if digest in self.rows or digest in seen:
                    continue
                seen.add(digest)
                digests.append(digest)
                held.append(query)
                if len(held) == BATCH:
                    yield digests, np.stack(held)
                    digests, held, seen = [], [], set()
        if held:
            yield digests, np.stack(held)

    def _put(self, suspect: Suspect, queries: Queries) -> Answers:
        """Answers to one batch, counted and timed."""
        started = time.perf_counter()
        answers = self._answers(suspect, queries)
        self.seconds += time.perf_counter() - started
        self.asked += len(queries)
        return answers

    def _answers(self, suspect: Suspect, queries: Queries) -> Answers:
        if self.alone:
            return Answers.concatenate([suspect.ask(queries[i : i + 1]) for i in range(len(queries))])
        size = suspect.card.batch or suspect.card.max_batch or BATCH
        short = 0 if size < BATCH else BATCH - len(queries)
        padded = np.concatenate([queries, np.repeat(queries[-1:], short, axis=0)]) if short else queries
        return suspect.ask(padded).take(slice(0, len(queries)))


def recall(path: Path | None) -> Memory:
    """What is remembered in a file: nothing if it is not there, or damaged, and then it is made anew."""
    if path is None or not path.is_file():
        return Memory(path)
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="numpy") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no mapping
            facts = parse((file.metadata() or {})[KEY], path.name)
        if facts["sha256"] != _checksum(tensors):
            return Memory(path)
        answers = _unpacked(tensors, Access[facts["access"].upper()], facts["num_classes"])
        names = [row.tobytes() for row in tensors["digests"]]
        rows = {digest: row for row, digest in enumerate(names)}
        if len(rows) != len(answers) or len(rows) != len(names):
            return Memory(path)
        return Memory(path, rows, answers, bool(facts["alone"]), int(facts["asked"]), float(facts["seconds"]))
    except (SafetensorError, OnnxauditError, OSError, KeyError, TypeError, ValueError, AttributeError):
        return Memory(path)


def _packed(answers: Answers) -> dict[str, NDArray[Any]]:
    """Answers as tensors: scores in the order of classes where that says all, else ranked lists."""
    if answers.scores is not None and answers.access >= Access.PROBS and answers.classes.shape[1] == answers.num_classes:
        dense = answers.dense()
        if _equal(Answers.from_scores(dense, answers.access), answers):
            return {"scores": dense}
    ranked = {"classes": np.ascontiguousarray(answers.classes)}
    return ranked if answers.scores is None else ranked | {"ranked": np.ascontiguousarray(answers.scores)}


def _unpacked(tensors: dict[str, NDArray[Any]], access: Access, num_classes: int | None) -> Answers:
    if "scores" in tensors:
        return Answers.from_scores(tensors["scores"], access)
    return Answers(tensors["classes"], tensors.get("ranked"), access, num_classes)


def _equal(one: Answers, two: Answers) -> bool:
    """Whether answers are the same to the last bit."""
    if one.access != two.access or not np.array_equal(one.classes, two.classes):
        return False
    return one.scores is two.scores or (
        one.scores is not None and two.scores is not None and one.scores.tobytes() == two.scores.tobytes()
    )


def _checksum(tensors: dict[str, NDArray[Any]]) -> str:
    total = hashlib.sha256()
    for name in sorted(tensors):
        total.update(canonical([name, tensors[name].dtype.str, list(tensors[name].shape)]).encode())
        total.update(np.ascontiguousarray(tensors[name]).tobytes())
    return total.hexdigest()
