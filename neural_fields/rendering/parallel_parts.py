"""Renders parts of a video at the same time, each in a process of its own."""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from neural_fields.core.errors import ExitCode, UserError, bad_input
from neural_fields.core.progress import Progress, ProgressReporter
from neural_fields.core.threads import thread_count


@dataclass(frozen=True)
class PartSettings:
    """Settings of the parts of a video."""

    least_frames: int = 24  # of a part: a process takes a second to start
    most_jobs: int = 64


DEFAULTS = PartSettings()


def split_frames(frames: range, jobs: int, settings: PartSettings = DEFAULTS) -> list[range]:
    """Splits frames into consecutive parts, at most as many as jobs.

    Args:
        frames: numbers of the frames.
        jobs: number of parts that are rendered at the same time.
        settings: least size of a part.

    Raises:
        UserError: not a number of jobs (exit 3).

    Example:
        >>> split_frames(range(100, 200), 3)
        [range(100, 133), range(133, 166), range(166, 200)]
    """
    if not 1 <= jobs <= settings.most_jobs:
        raise bad_input(f"--jobs {jobs}", why=f"expected a number from 1 to {settings.most_jobs}", fix="--jobs 2")
    count = max(1, min(jobs, len(frames) // settings.least_frames))
    limits = [len(frames) * number // count for number in range(count + 1)]
    return [frames[start:stop] for start, stop in pairwise(limits)]


def render_parts(run: Path, requests: Sequence[Mapping[str, Any]], report: ProgressReporter) -> list[int]:
    """Renders parts of a video, each in its own process with its share of the cores.

    Args:
        run: folder of the run.
        requests: for each part what `cli/render_part.py` reads, but the run.
        report: called when frames are done.

    Returns:
        The frames of the run that the edits changed.

    Raises:
        UserError: that of a part. The other processes are stopped.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": str(max(1, thread_count() // len(requests)))}
    command = [sys.executable, "-m", "neural_fields.cli.render_part"]
    told: queue.Queue[tuple[int, dict[str, Any] | None]] = queue.Queue()

    def read_lines(number: int, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        with process.stdout as lines:
            for line in lines:
                told.put((number, json.loads(line)))
        told.put((number, None))

    processes: list[subprocess.Popen[str]] = []
    readers: list[threading.Thread] = []
    try:
        for number, request in enumerate(requests):
            asked = json.dumps({"run": str(run), **request})
            # In a session of its own: Ctrl-C reaches this process alone, which stops the others.
            process = subprocess.Popen(
                [*command, asked], stdout=subprocess.PIPE, text=True, env=environment, start_new_session=True
            )
            processes.append(process)
            readers.append(threading.Thread(target=read_lines, args=(number, process), name="part", daemon=True))
            readers[-1].start()
        done, totals = [0] * len(requests), [1] * len(requests)
        changed: dict[int, list[int]] = {}
        running = len(requests)
        while running:
            number, line = told.get()
            if line is None:
                running -= 1
                if number not in changed:
                    raise RuntimeError(f"the process of a part ended without a result: {requests[number]['out']}")
            elif "what" in line:
                raise UserError(ExitCode(line.pop("code")), line.pop("what"), **line)
            elif "changed" in line:
                changed[number] = line["changed"]
            else:
                done[number], totals[number] = line["done"], line["total"]
                report(Progress("rendering", sum(done), sum(totals)))
        return [t for frames in changed.values() for t in frames]
    finally:
        for process in processes:
            process.terminate()
            process.wait()
        for reader in readers:
            reader.join()
