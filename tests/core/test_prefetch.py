"""Work ahead keeps the order, the errors and the memory."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from neural_fields.core.prefetch import map_in_threads, prefetch
from neural_fields.core.threads import thread_count


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


def test_threads_take_a_few_items_ahead_and_keep_their_order() -> None:
    taken = []

    def items() -> Iterator[int]:
        for number in range(40):
            taken.append(number)
            yield number

    with ThreadPoolExecutor(3) as pool:
        results = map_in_threads(lambda number: number**2, items(), pool)
        assert next(results) == 0 and len(taken) <= 2 * thread_count() + 1
        assert list(results) == [number**2 for number in range(1, 40)]


def test_an_error_in_a_thread_comes_where_its_result_would_have_come() -> None:
    with ThreadPoolExecutor(2) as pool:
        results = map_in_threads(lambda number: 6 // number, [3, 2, 0, 1], pool)
        assert [next(results), next(results)] == [2, 3]
        with pytest.raises(ZeroDivisionError):
            next(results)
