"""Threads that each run torch on one core: for work on single frames, most of which torch cannot divide."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import TypeVar

import torch

from neural_fields.core.prefetch import map_in_threads

Item = TypeVar("Item")
Result = TypeVar("Result")


@cache
def open_torch_threads(count: int) -> ThreadPoolExecutor:
    """Returns threads inside each of which torch runs on that one.

    Args:
        count: number of threads, at least 1.
    """
    before, everyone = torch.get_num_threads(), threading.Barrier(count)

    def choose_one_thread(_: int) -> None:
        everyone.wait()  # no thread does it twice
        torch.set_num_threads(1)
        torch.get_num_threads()  # at its first use torch takes over the number that was set last in any thread
        everyone.wait()

    pool = ThreadPoolExecutor(count)
    list(pool.map(choose_one_thread, range(count)))
    torch.set_num_threads(before)
    return pool


def map_in_torch_threads(work: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """Works on items as `map_in_threads` does, without gradients, in as many threads as torch has.

    Args:
        work: called with each item.
        items: in the order of the results.
    """
    count = torch.get_num_threads()
    run = torch.no_grad()(work)  # threads do not inherit it
    yield from map(run, items) if count == 1 else map_in_threads(run, items, open_torch_threads(count))
