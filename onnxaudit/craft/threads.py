"""Work on a CPU's cores that comes out the same on any number of them (torch).

Sums that several threads share come out differently in their last bits, and a bundle that is crafted again would be another one.
So every sum is left to one thread, and cores work side by side on parts that are the same on every machine.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import torch

Part = TypeVar("Part")
Done = TypeVar("Done")


@contextmanager
def one_thread_a_sum() -> Iterator[None]:
    """Inside, and as a decorator, every operation is one thread's."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def side_by_side(work: Callable[[Part], Done], parts: Sequence[Part], device: torch.device) -> Iterator[Iterator[Done]]:
    """What comes of each part, in their order, as it is done; on a CPU as many at once as there are cores."""
    threads = min(os.cpu_count() or 1, len(parts)) if device.type == "cpu" else 1
    if threads <= 1:
        with one_thread_a_sum():
            yield map(work, parts)
        return
    with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        yield pool.map(work, parts)
