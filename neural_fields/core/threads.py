"""The number of threads of torch and of NumPy, chosen on purpose before either is imported."""

from __future__ import annotations

import os


def prepare_threads() -> None:
    """Chooses the number of threads, before torch is imported: both read it from the environment when they load.

    Idle OpenMP workers spin by default; on few busy cores small operators then run tens of times slower.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("OMP_NUM_THREADS", str(min(8, available_cores())))


def thread_count() -> int:
    """Returns how many threads may work at once: what `prepare_threads`, or the user, has set."""
    asked = os.environ.get("OMP_NUM_THREADS", "")
    return max(1, int(asked)) if asked.isdecimal() else available_cores()


def available_cores() -> int:
    """Returns the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
