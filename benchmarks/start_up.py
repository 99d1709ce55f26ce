"""Measures what a command costs before it does anything, beside what importing NumPy and torch costs, in turns.

    python benchmarks/start_up.py [--rounds 7] [--json FILE]

Figures are processor seconds of the whole process, the least of all rounds: a busy machine only adds to them. Prints a
table, then one line of JSON with the machine and the versions.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from common import ROOT, finish, parser, table, unwrap, write_pan

MAIN = "import sys; from editors.cli.main import main; sys.exit(main())"


def measure_seconds(code: str, words: list[str]) -> float:
    """Measures the processor seconds of a Python process.

    Args:
        code: what it runs.
        words: its arguments.
    """
    process = subprocess.Popen(
        [sys.executable, "-c", code, *words],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )
    _, _, usage = os.wait4(process.pid, 0)
    return usage.ru_utime + usage.ru_stime


def main() -> None:
    """Measures the lines of the table, and prints it."""
    options = parser(__doc__)
    options.add_argument("--rounds", type=int, default=7, help="times that each line is run")
    chosen = options.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        clip, run = Path(folder) / "clip.mp4", Path(folder) / "run"
        write_pan(clip, 12, 160, 90)
        unwrap("train", clip, "--out", run, "--masks", "none", "--training.steps", "4")
        lines = {
            "python": ("pass", []),
            "import numpy": ("import numpy", []),
            "import torch": ("import torch", []),
            "unwrap --help": (MAIN, ["--help"]),
            "unwrap edits RUN": (MAIN, ["edits", str(run)]),
            "unwrap info RUN": (MAIN, ["info", str(run)]),
            "unwrap info VIDEO": (MAIN, ["info", str(clip)]),
            "unwrap edit --help": (MAIN, ["edit", "--help"]),
            "unwrap edit RUN --editor drag --frm 3": (MAIN, ["edit", str(run), "--editor", "drag", "--frm", "3"]),
            "unwrap edit RUN --editor sds --help": (MAIN, ["edit", str(run), "--editor", "sds", "--help"]),
            "unwrap export RUN matte --fooo": (MAIN, ["export", str(run), "matte", "--fooo"]),
            "unwrap export RUN matte": (MAIN, ["export", str(run), "matte", "-y"]),
        }
        found: dict[str, list[float]] = {name: [] for name in lines}
        for _ in range(chosen.rounds):
            for name, (code, words) in lines.items():
                found[name].append(measure_seconds(code, words))
    numpy, torch = min(found["import numpy"]), min(found["import torch"])
    rows: list[dict[str, Any]] = [
        {"line": name, "processor s": min(seconds), "of numpy": min(seconds) / numpy, "of torch": min(seconds) / torch}
        for name, seconds in found.items()
    ]
    for line in table(["line", "processor s", "of numpy", "of torch"], rows):
        print(line)
    finish(rows, chosen.json)


if __name__ == "__main__":
    main()
