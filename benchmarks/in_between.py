"""Compares interpolated frames with true ones: every second frame of a trained clip is left out and interpolated.

    python benchmarks/in_between.py RUN [RUN ...] [--frames 31] [--json FILE]

RUN is any run of a video. Its maps of the omitted frames are not read. The interpolated frames (made) are compared with
the mean of the two neighbors (blend) and with the earlier neighbor alone (repeat), by the mean PSNR of the omitted
frames. Seconds are for one interpolated frame, without decoding and encoding.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from common import ROOT, finish, parser, table

sys.path.insert(0, str(ROOT))

from neural_fields.atlas.map_files import MapFile, write_map_file
from neural_fields.atlas.uv_maps import Maps
from neural_fields.data.video.io import source_frames
from neural_fields.open_runs.opening import require_planar
from neural_fields.rendering.retiming.interpolation import Retimer
from neural_fields.rendering.retiming.timeline import FrameSchedule
from neural_fields.runs.run import Run


def every_second(maps: Maps, folder: Path) -> Maps:
    """Writes the maps of the even frames of a run to a folder, and opens them."""
    for path in maps.folder.glob("*.bin"):
        file = MapFile(path)
        kept = range(0, file.frame_count, 2)
        with write_map_file(folder / path.name, len(kept), file.planes, file.step) as write_frame:
            for t in kept:
                write_frame(file[t])
    facts = json.loads((maps.folder / "maps.json").read_text())
    (folder / "maps.json").write_text(json.dumps({**facts, "frame_count": (maps.frame_count + 1) // 2}))
    return replace(maps, folder=folder, frame_count=(maps.frame_count + 1) // 2)


def decibels(one: np.ndarray, other: np.ndarray) -> float:
    """Computes the PSNR of two 8-bit pictures in dB."""
    return float(10 * np.log10(255**2 / max(1e-9, ((one.astype(np.float32) - other) ** 2).mean())))


def measured(run: Run, most: int) -> dict[str, Any]:
    """Measures the PSNR of every second frame, interpolated, blended and repeated."""
    opened = require_planar(run, "the benchmark")
    maps, facts, chosen = opened.maps, opened.metadata, opened.frames
    count = (min(most, maps.frame_count) - 1) // 2 * 2 + 1
    frames = list(source_frames(facts, chosen[:count]))
    times = tuple(map(Fraction, range(count)))
    plan = FrameSchedule(times, tuple(time / 2 for time in times), facts)
    with tempfile.TemporaryDirectory() as folder:
        retimer = Retimer(every_second(maps, Path(folder)))
        begin = time.monotonic()
        made = list(retimer.interpolate_frames(iter(frames[::2]), plan))
        seconds = (time.monotonic() - begin) / (count // 2)
    odd = range(1, count, 2)
    blends = [(frames[k - 1].astype(np.float32) + frames[k + 1]) / 2 for k in odd]
    return {
        "run": run.path.name,
        "size": f"{facts.width}x{facts.height}",
        "made": float(np.mean([decibels(made[k], frames[k]) for k in odd])),
        "least": min(decibels(made[k], frames[k]) for k in odd),
        "blend": float(np.mean([decibels(blend, frames[k]) for blend, k in zip(blends, odd, strict=True)])),
        "repeat": float(np.mean([decibels(frames[k - 1], frames[k]) for k in odd])),
        "seconds": seconds,
    }


def main() -> None:
    """Measures what the options name, and prints a table and one line of JSON."""
    command = parser(__doc__)
    command.add_argument("runs", nargs="+", type=Path)
    command.add_argument("--frames", type=int, default=31, help="frames of each clip, at most")
    chosen = command.parse_args()
    rows = [measured(Run.open(path), chosen.frames) for path in chosen.runs]
    print("\n".join(table(list(rows[0]), rows)))
    finish(rows, chosen.json)


if __name__ == "__main__":
    main()
