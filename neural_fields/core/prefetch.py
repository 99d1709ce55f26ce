"""Prefetching: a thread makes the next items of an iterator while the earlier ones are in use."""

from __future__ import annotations

import queue
import threading
from collections.abc import Generator, Iterable
from typing import TypeVar

Item = TypeVar("Item")


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
