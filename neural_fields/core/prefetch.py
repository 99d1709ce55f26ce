"""Threads that work ahead: one that makes the next items of an iterator, or several that each work on an item."""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import TypeVar

from neural_fields.core.threads import thread_count

Item = TypeVar("Item")
Result = TypeVar("Result")


def prefetch(items: Iterable[Item], depth: int = 3) -> Generator[Item, None, None]:
    """Yields the same items in the same order; an error of the iterator is raised where its item would have come.

    Decoding, resampling and encoding release Python's lock while they work, so their threads run at the same time.

    Args:
        items: what to iterate over in the other thread.
        depth: items made ahead: enough to keep both sides busy, few enough that memory stays flat.
    """
    ready: queue.Queue[tuple[Item | None, BaseException | None]] = queue.Queue(depth)
    stopped = threading.Event()

    def put_ready(item: Item | None, error: BaseException | None) -> bool:
        while not stopped.is_set():
            try:
                ready.put((item, error), timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def make_items() -> None:
        end = StopIteration()
        try:
            for item in items:
                if not put_ready(item, None):
                    return
        except BaseException as error:  # carried over to the thread that asked, whatever it is
            put_ready(None, error)
        else:
            put_ready(None, end)

    thread = threading.Thread(target=make_items, name="prefetch", daemon=True)
    thread.start()
    try:
        while True:
            item, error = ready.get()
            if isinstance(error, StopIteration):
                return
            if error is not None:
                raise error
            yield item  # type: ignore[misc]
    finally:
        stopped.set()
        thread.join()


def map_in_threads(
    work: Callable[[Item], Result], items: Iterable[Item], pool: Executor | None = None
) -> Iterator[Result]:
    """Works on several items at once; yields the results in the order of the items.

    Only what releases Python's lock gains by it: OpenCV, compiled loops, most of NumPy.

    Args:
        work: called with each item, in one of the threads.
        items: taken a few at a time, so that results that nobody has asked for do not fill memory.
        pool: its threads; by default as many as `thread_count` says.
    """
    if pool is None and thread_count() == 1:
        yield from map(work, items)
        return
    if pool is None:
        with ThreadPoolExecutor(thread_count()) as own_pool:
            yield from map_in_threads(work, items, own_pool)
        return
    waiting: deque[Future[Result]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(work, item))
            if len(waiting) > 2 * thread_count():
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()
