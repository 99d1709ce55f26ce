"""Signals such as Ctrl-C: the first one asks the work to save and stop, the second one stops it at once."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

from neural_fields.core.errors import ExitCode


@dataclass
class StopRequest:
    """Tells whether the user or the system asked the work to stop. Loops check it once per step."""

    signal_number: int | None = None
    """Number of the first signal received, or None."""

    @property
    def exit_code(self) -> ExitCode:
        """Exit status of a command that saved and stopped: 130 after Ctrl-C, 143 after another signal, else 0."""
        return ExitCode.OK if self.signal_number is None else _exit_code(self.signal_number)


def _exit_code(number: int) -> ExitCode:
    return ExitCode.INTERRUPTED if number == signal.SIGINT else ExitCode.TERMINATED


@contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """Turns the first SIGINT, SIGTERM or SIGHUP inside the block into a flag; the second ends the process at once.

    The process then exits with 130 (SIGINT) or 143. The former handlers are back when the block ends. A signal that
    the process ignores (`nohup`) stays ignored. Only the main thread can receive signals: in another one the flag is
    never set.

        with stop_on_signals() as stop:
            for step in range(steps):
                ...
                if stop.signal_number is not None:
                    break
    """
    request = StopRequest()

    def request_stop(number: int, frame: FrameType | None) -> None:
        if request.signal_number is not None:
            # Not sys.exit: no clean-up may delay or swallow it. Files are atomic, so what was saved stays whole.
            os._exit(_exit_code(number))
        request.signal_number = number

    former = {}
    try:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                if signal.getsignal(number) != signal.SIG_IGN:
                    former[number] = signal.signal(number, request_stop)
        yield request
    finally:
        for number, handler in former.items():
            # None stands for a handler that was not set from Python and cannot be set again from here.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
