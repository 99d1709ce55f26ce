"""Stopping: the first signal sets a flag, the second quits at once."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from neural_fields.core.interrupt import stop_on_signals


@pytest.fixture(autouse=True)
def heeded() -> Iterator[None]:
    """Signals that a shell has its background jobs ignore are not ignored in these tests."""
    former = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    for number, handler in former.items():
        if handler == signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)
    yield
    for number, handler in former.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_the_first_signal_sets_the_flag_and_handlers_come_back(number: signal.Signals) -> None:
    former = signal.getsignal(number)
    with stop_on_signals() as stop:
        assert stop.signal_number is None and stop.exit_code == 0
        signal.raise_signal(number)
        assert stop.signal_number == number
        assert stop.exit_code == (130 if number == signal.SIGINT else 143)
    assert signal.getsignal(number) == former


@pytest.mark.parametrize(("second", "status"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_the_second_signal_quits_at_once(second: str, status: int) -> None:
    script = f"""
import signal
from neural_fields.core.interrupt import stop_on_signals
signal.signal(signal.SIGINT, signal.SIG_DFL)
with stop_on_signals():
    try:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.{second})
    finally:
        print("too late", flush=True)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, cwd=Path(__file__).parents[2])
    assert (done.returncode, done.stdout, done.stderr) == (status, b"", b"")


def test_an_ignored_signal_stays_ignored() -> None:
    former = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stop_on_signals() as stop:
            signal.raise_signal(signal.SIGHUP)
        assert stop.signal_number is None
    finally:
        signal.signal(signal.SIGHUP, former)


def test_outside_the_main_thread_signals_are_left_alone() -> None:
    seen = []

    def work() -> None:
        with stop_on_signals() as stop:
            seen.append((stop.signal_number, signal.getsignal(signal.SIGTERM)))

    former = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [(None, former)]
