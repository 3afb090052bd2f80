"""The engines: the same results from each, whatever dies in the middle."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from onnxaudit.engines import Engine, Lost, open_engine
from onnxaudit.errors import UsageError

NAMES = ("local", "dask", "ray")


def work(shared: dict[str, Any], item: dict[str, Any]) -> Any:
    """Square a number, or do what else the item says."""
    marks = Path(shared["folder"])
    if item.get("log"):
        with (marks / item["log"]).open("a") as file:
            file.write(f"{os.getpid()}\n")
    if item.get("die") == "always" or (item.get("die") == "once" and _first(marks / f"died-{item['x']}")):
        os.kill(os.getpid(), signal.SIGKILL)
    if item.get("exit"):
        os._exit(3)
    if item.get("raises"):
        raise UsageError("this item is no good", "Leave it out.")
    if item.get("environment"):
        return {name: os.environ.get(name) for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
    if item.get("identity"):
        return id(shared), os.getpid()
    return item["x"] ** 2 + shared["offset"]


def _first(path: Path) -> bool:
    try:
        path.touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def run_all(engine: Engine, items: list[dict[str, Any]], at_each: Callable[[int], None] = lambda done: None) -> dict[int, Any]:  # noqa: ARG005
    """All results by number, handing in twice as many as run at once."""
    results: dict[int, Any] = {}
    todo, flying = iter(enumerate(items)), 0
    while True:
        while flying < 2 * engine.slots and (following := next(todo, None)) is not None:
            engine.submit(*following)
            flying += 1
        if not flying:
            return results
        ticket, result = engine.wait()
        assert ticket not in results
        results[ticket] = result
        flying -= 1
        at_each(len(results))


@pytest.fixture(scope="module", params=NAMES)
def engine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Engine, Path]]:
    """One engine of each kind with two workers, for all tests: starting them is what takes time."""
    folder = tmp_path_factory.mktemp(request.param)
    with pytest.MonkeyPatch.context() as patch:
        for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
            patch.delenv(name, raising=False)  # what workers have is not inherited
        with open_engine(request.param, work, {"offset": 1, "folder": str(folder)}, jobs=2) as opened:
            yield opened, folder


def test_results_come_back_under_their_tickets(engine: tuple[Engine, Path]) -> None:
    opened, _ = engine
    assert opened.slots == 2
    assert run_all(opened, [{"x": x} for x in range(50)]) == {x: x * x + 1 for x in range(50)}


def test_workers_have_one_thread_and_get_what_is_shared_once(engine: tuple[Engine, Path]) -> None:
    opened, _ = engine
    assert run_all(opened, [{"environment": True}]) == {0: {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}}
    seen = set(run_all(opened, [{"identity": True}] * 30).values())
    assert len({process for _, process in seen}) == len(seen)  # one object a process, not one an item
    assert all(process != os.getpid() for _, process in seen)


def test_what_the_function_raises_is_raised(engine: tuple[Engine, Path]) -> None:
    opened, _ = engine
    opened.submit(0, {"raises": True})
    with pytest.raises(UsageError, match="this item is no good") as caught:
        opened.wait()
    assert caught.value.hint == "Leave it out."
    assert run_all(opened, [{"x": 3}]) == {0: 10}


def test_a_worker_that_dies_loses_nothing(engine: tuple[Engine, Path]) -> None:
    opened, folder = engine
    items = [{"x": x, "log": f"ran-{x}", **({"die": "once"} if x in (3, 11) else {})} for x in range(20)]
    assert run_all(opened, items) == {x: x * x + 1 for x in range(20)}
    assert len((folder / "ran-3").read_text().splitlines()) >= 2


def test_an_item_that_keeps_killing_is_lost_and_no_other(engine: tuple[Engine, Path]) -> None:
    opened, folder = engine
    items: list[dict[str, Any]] = [{"x": x} for x in range(24)]
    items[5] = {"die": "always", "log": "killer"}
    items[6] = {"exit": True}
    results = run_all(opened, items)
    assert {x for x, result in results.items() if isinstance(result, Lost)} == {5, 6}
    assert all(result == x * x + 1 for x, result in results.items() if x not in (5, 6))
    assert "\n" not in results[5].reason
    assert 2 <= len((folder / "killer").read_text().splitlines()) <= 8
    assert run_all(opened, [{"x": 4}]) == {0: 17}


def test_a_worker_killed_from_outside_in_the_middle_of_a_run(engine: tuple[Engine, Path]) -> None:
    """As the kernel does when memory runs out."""
    opened, folder = engine

    def kill(done: int) -> None:
        if done == 5:
            os.kill(int((folder / "alive").read_text().splitlines()[-1]), signal.SIGKILL)

    items = [{"x": x, "log": "alive"} for x in range(40)]
    assert run_all(opened, items, kill) == {x: x * x + 1 for x in range(40)}


def test_more_killers_than_workers_hold_nobody_up(engine: tuple[Engine, Path]) -> None:
    opened, _ = engine
    if type(opened).__name__ != "LocalEngine":
        pytest.skip("a second each where workers are slow to come back; the same code as above")
    items: list[dict[str, Any]] = [{"exit": True}] * 5 + [{"x": 2}] * 5
    results = run_all(opened, items)
    assert [isinstance(results[i], Lost) for i in range(10)] == [True] * 5 + [False] * 5


def test_local_processes_end_with_the_engine(tmp_path: Path) -> None:
    with open_engine("local", work, {"offset": 0, "folder": str(tmp_path)}, jobs=2) as opened:
        run_all(opened, [{"x": 1, "log": "alive"}] * 4)
        opened.submit(9, {"x": 1})
    for process in {int(line) for line in (tmp_path / "alive").read_text().splitlines()}:
        assert _gone(process)


def _gone(process: int) -> bool:
    limit = time.monotonic() + 60
    while time.monotonic() < limit:
        try:
            os.kill(process, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.01)
    return False


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("spark", {}, "--engine 'spark' is not known"),
        ("local", {"address": "tcp://x:1"}, "--engine local has no --address"),
        ("local", {"jobs": 0}, "leaves nobody to work"),
        ("dask", {"address": "nonsense://x"}, "no Dask scheduler answers at nonsense"),
    ],
)
def test_what_cannot_be_opened_says_so(name: str, options: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        open_engine(name, work, {}, **options)
