"""Work ahead keeps the order, the errors and the memory."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from neural_fields.core.prefetch import prefetch


def test_items_come_in_order_and_all_of_them() -> None:
    assert list(prefetch(range(50))) == list(range(50))


def test_an_error_comes_where_its_item_would_have_come() -> None:
    def items() -> Iterator[int]:
        yield 1
        yield 2
        raise KeyError("third")

    got = []
    with pytest.raises(KeyError, match="third"):
        for item in prefetch(items()):
            got.append(item)
    assert got == [1, 2]


def test_no_more_than_the_depth_is_made_ahead() -> None:
    made = []

    def items() -> Iterator[int]:
        for number in range(100):
            made.append(number)
            yield number

    ahead = prefetch(items(), depth=3)
    assert next(ahead) == 0
    time.sleep(0.05)
    assert len(made) <= 3 + 3  # taken, waiting, and the one that the thread holds
    ahead.close()


def test_a_reader_that_stops_early_leaves_no_thread() -> None:
    before = threading.active_count()
    ahead = prefetch(iter(range(1000)))
    next(ahead)
    ahead.close()
    assert threading.active_count() == before
