"""Work ahead: items of an iterator are made in a thread of their own, while those before are still in use."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterable, Iterator
from typing import TypeVar

Item = TypeVar("Item")

DEPTH = 3  # items made ahead: enough to keep both sides busy, few enough that memory stays flat


def prefetch(items: Iterable[Item]) -> Iterator[Item]:
    """The same items in the same order; an error of the iterator is raised where its item would have come.

    Decoding, lookups and encoding leave Python's lock while they work, so their threads run at the same time.
    """
    ready: queue.Queue[tuple[Item | None, BaseException | None]] = queue.Queue(DEPTH)
    stopped = threading.Event()

    def put(item: Item | None, error: BaseException | None) -> bool:
        while not stopped.is_set():
            try:
                ready.put((item, error), timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def work() -> None:
        end = StopIteration()
        try:
            for item in items:
                if not put(item, None):
                    return
        except BaseException as error:  # carried over to the thread that asked, whatever it is
            put(None, error)
        else:
            put(None, end)

    thread = threading.Thread(target=work, name="prefetch", daemon=True)
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
