"""Shared parts of the benchmarks: real clips, runs of `unwrap`, synthetic clips, tables, machine and versions."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT.parent / "shared" / "data"
sys.path.insert(0, str(ROOT))

GIVEN = {"truth": "masks", "osvos": "masks_osvos"}  # folders beside the frames of a DAVIS clip


@dataclass(frozen=True)
class Row:
    """Compares a figure with its target: a line of a table."""

    on: str
    figure: str
    asked: str
    measured: str
    reached: bool | None = None  # None: there is no target, or the words of the row say it


@dataclass(frozen=True)
class Done:
    """Holds the result of a command that has ended."""

    stdout: str
    seconds: float  # from its start to its end, interpreter and imports included
    peak_mib: float | None  # peak memory; None where the system does not report it
    processor_seconds: float | None  # of all its threads together; None as well


def unwrap(*words: str | Path) -> Done:
    """Runs an `unwrap` command in a process of its own."""
    command = [
        sys.executable,
        "-c",
        "import sys; from editors.cli.main import main; sys.exit(main())",
        *map(str, words),
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    begin = time.monotonic()
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        process = subprocess.Popen(command, stdout=out, stderr=err, env=environment)
        if hasattr(os, "wait4"):
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
            peak = round(usage.ru_maxrss / (1024 * 1024 if sys.platform == "darwin" else 1024), 1)
            processor_seconds = round(usage.ru_utime + usage.ru_stime, 2)
        else:
            process.wait()
            peak, processor_seconds = None, None
        seconds = time.monotonic() - begin
        out.seek(0)
        err.seek(0)
        if process.returncode:
            raise SystemExit(f"{' '.join(map(str, words))}\n{err.read().decode()}")
        return Done(out.read().decode(), seconds, peak, processor_seconds)


def unwrap_json(*words: str | Path) -> dict[str, Any]:
    """Runs an `unwrap` command with --json and returns the object that it prints."""
    return json.loads(unwrap(*words, "--json").stdout)


def masks_of(clip: str, kind: str) -> str:
    """Returns the word after --masks for a DAVIS clip: a folder for "truth" and "osvos", otherwise the word itself.

    The ids of several objects are one layer.
    """
    return f"foreground={DATA / clip / GIVEN[kind]}" if kind in GIVEN else kind


def missing(clips: Iterable[str]) -> list[str]:
    """Returns the clips that are not in the data folder, and lists them on stderr."""
    gone = [clip for clip in clips if not (DATA / clip / "frames").is_dir()]
    for clip in gone:
        print(f"{clip}: left out, it is not beside the checkout", file=sys.stderr)
    return gone


def machine() -> dict[str, Any]:
    """Returns the machine and the versions with which the figures were measured."""
    import cv2
    import torch

    from neural_fields.core.threads import available_cores
    from neural_fields.core.version import __version__

    facts: dict[str, Any] = {
        "unwrap": __version__,
        "torch": torch.__version__,
        "opencv": cv2.__version__,
        "av": importlib.metadata.version("av"),
        "python": platform.python_version(),
        "machine": f"{platform.machine()}, {available_cores()} cores",
        "processor": processor(),
        "omp_num_threads": os.environ.get("OMP_NUM_THREADS"),
        "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
    }
    if torch.cuda.is_available():
        facts |= {"gpu": torch.cuda.get_device_name(), "cuda": torch.version.cuda}
    return facts


def processor() -> str:
    """Returns the processor's name, as far as the system knows it."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()


def table(columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    """Yields the lines of a table; None becomes a dash, and numbers get at most two decimals, or three below 1."""
    cells = [list(columns)] + [[shown(row.get(name)) for name in columns] for row in rows]
    widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
    for line in cells:
        yield "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()


def shown(value: Any) -> str:
    """Formats a value for a cell of a table."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "NO"
    if isinstance(value, float):
        return f"{value:.3f}" if abs(value) < 1 else f"{value:.2f}"
    return str(value)


def print_row(row: Row) -> None:
    """Prints a line of a table that grows while it is measured."""
    verdict = "" if row.reached is None else "reached  " if row.reached else "NOT REACHED  "
    print(f"{row.on:<52} {row.figure:<18} asked {row.asked:<17} {verdict}{row.measured}", flush=True)


def finish(rows: Sequence[Row | Mapping[str, Any]], out: Path | None, **more: Any) -> None:
    """Prints machine, versions and rows as one line of JSON, and writes it to `out`."""
    plain = [asdict(row) if isinstance(row, Row) else dict(row) for row in rows]
    result = json.dumps({**machine(), **more, "rows": plain})
    print(result)
    if out:
        out.write_text(result)


def parser(text: str | None) -> argparse.ArgumentParser:
    """Makes a parser that shows a benchmark's docstring and knows --json."""
    made = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--json", type=Path, help="also write the JSON to this file")
    return made


def write_pan(path: Path, count: int, width: int, height: int) -> None:
    """Writes a clip that is quick to make: the camera pans over a large picture and back, and a disc crosses it.

    Args:
        path: the video file; it is overwritten.
        count: number of frames, at 24 frames a second.
        width: in pixels.
        height: in pixels.
    """
    import cv2
    import numpy as np

    from editors.demo import make_clip_metadata
    from neural_fields.core.box import Box
    from neural_fields.data.synthetic.planar_clips import make_demo_clip
    from neural_fields.data.synthetic.procedural_textures import paint_sea_floor
    from neural_fields.data.video.io import write_video

    ground = paint_sea_floor(Box(-1.3, -0.9, 1.3, 0.9), 2 * width, 2 * height, 0)
    ground = np.ascontiguousarray((255 * ground).clip(0, 255).astype(np.uint8))
    disc = np.ascontiguousarray(ground[::-1, ::-1])
    facts = make_clip_metadata(make_demo_clip(2, width, height), Fraction(24))
    facts = replace(facts, frame_count=count, timestamps=tuple(Fraction(t, 24) for t in range(count)))

    def frames() -> Iterator[np.ndarray]:
        for t in range(count):
            there = 240 - abs(t % 480 - 240)  # ten seconds in one direction, then back
            shift = np.array(
                [[1, 0, -width * (0.3 + there / 2133)], [0, 1, -height * (0.3 + there / 3600)]], np.float32
            )
            frame = cv2.warpAffine(ground, shift, (width, height))
            cover = np.zeros((height, width), np.uint8)
            middle = (round(width * (0.2 + 0.6 * there / 240)), height // 2)
            cv2.circle(cover, middle, height // 6, 255, -1, cv2.LINE_AA)
            along = np.array([[1, 0, width * (there / 400 - 0.39)], [0, 1, -0.55 * height]], np.float32)
            moved = cv2.warpAffine(disc, along, (width, height))
            share = (cover.astype(np.float32) / 255)[..., None]
            yield (frame * (1 - share) + moved * share).round().astype(np.uint8)

    write_video(path, frames(), facts, overwrite=True)
