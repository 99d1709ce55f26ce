"""The figures of the main job: fit, opacity, drift, render rate, memory. Every row is a run of the `unwrap` command.

    python benchmarks/main_job.py [--only fit auto demo render memory] [--json FILE]

The real clips lie in ../shared/data beside the checkout; rows whose clip is missing are left out with a word. Prints
a table, then one line of JSON with the machine and the versions. Kills and continuations: `benchmarks/resume.py`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT.parent / "shared" / "data"
sys.path.insert(0, str(ROOT))
SECONDS = "90"


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    on: str
    figure: str
    asked: str
    measured: str


def unwrap(*words: str | Path) -> str:
    """Runs a command in a process of its own and returns what it prints."""
    command = [sys.executable, "-c", "import sys; from editors.cli import main; sys.exit(main())", *map(str, words)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, words))}\n{done.stderr}")
    return done.stdout


def fit(clip: str, out: Path, *more: str | Path) -> dict[str, Any]:
    """Fits a DAVIS clip at 240p within 90 s and measures it against the true masks."""
    begin = time.monotonic()
    unwrap("train", DATA / clip / "frames", "--size", "240p", "--seconds", SECONDS, "--out", out, *more)
    seconds = time.monotonic() - begin
    found = json.loads(unwrap("eval", out, "--masks", DATA / clip / "masks", "--json"))
    return {**found, "wall": seconds}


def fit_rows(work: Path) -> Iterator[Row]:
    """Quality of a fit with the true masks."""
    for clip, asked in (("davis-blackswan", "28.5 dB"), ("davis-car-shadow", "29 dB, IoU 0.90")):
        found = fit(clip, work / clip, "--masks", DATA / clip / "masks")
        iou = found["alpha_iou"]["foreground"]
        measured = f"{found['psnr']:.2f} dB, IoU {iou:.3f} ({found['steps']} steps, {found['wall']:.0f} s)"
        yield Row(f"{clip}, 240p, masks, {SECONDS} s", "PSNR, IoU", asked, measured)


def auto_rows(work: Path) -> Iterator[Row]:
    """Opacity that motion alone finds."""
    found = fit("davis-car-shadow", work / "auto", "--masks", "auto")
    iou = found["alpha_iou"]["foreground"]
    yield Row("davis-car-shadow, --masks auto", "IoU", "0.70", f"{iou:.3f} ({found['psnr']:.2f} dB)")


def demo_rows(work: Path) -> Iterator[Row]:
    """The synthetic clip with known truth."""
    found = json.loads(unwrap("demo", "--out", work / "demo", "--json"))
    drift = f"{found['mean drift (px)']} px (worst {found['worst drift (px)']}), {found['edit PSNR (dB)']} dB"
    yield Row("demo clip", "drift, edit PSNR", "1 px, 30 dB", f"{drift}; fit {found['fit (s)']} s")


def render_rows(work: Path) -> Iterator[Row]:
    """Rendering beside a plain decode and encode of the same clip, in turns."""
    import cv2

    from neural_fields.data.video import source_frames, write
    from neural_fields.output import RenderOptions, render, source_facts
    from neural_fields.prefetch import prefetch
    from neural_fields.run import Run
    from neural_fields.threads import prepare_threads

    prepare_threads()
    out = work / "davis-blackswan"
    if not (out / "run.yaml").is_file():
        fit("davis-blackswan", out, "--masks", DATA / "davis-blackswan" / "masks")
    for layer in ("foreground", "background"):
        picture = cv2.imread(str(out / "canonical" / f"{layer}.png"), cv2.IMREAD_UNCHANGED)
        middle = (picture.shape[1] // 2, picture.shape[0] // 2)
        cv2.circle(picture, middle, picture.shape[0] // 4, (40, 60, 230, 255), -1)
        painted = work / f"{layer}-painted.png"
        cv2.imwrite(str(painted), picture)
        unwrap("edit", out, painted, "--layer", layer)
    run = Run.open(out)
    facts, chosen = source_facts(run)
    rates: dict[str, list[float]] = {"render": [], "plain": []}
    for _ in range(4):
        begin = time.perf_counter()
        render(run, RenderOptions(out=work / "edited.mp4", overwrite=True))
        rates["render"].append(len(chosen) / (time.perf_counter() - begin))
        begin = time.perf_counter()
        write(work / "plain.mp4", prefetch(source_frames(facts, chosen)), facts, overwrite=True)
        rates["plain"].append(len(chosen) / (time.perf_counter() - begin))
    edited, plain = (statistics.median(rates[name]) for name in ("render", "plain"))
    measured = f"{edited:.0f} fps = {edited / plain:.2f} of a plain decode and encode ({plain:.0f} fps)"
    yield Row(f"{facts.width}x{facts.height}, edits on both layers, H.264", "rate", "40 fps", measured)


def memory_rows(work: Path) -> Iterator[Row]:
    """Peak memory of a whole fit of 240 frames of 720p at 480p, with masks found by motion."""
    clip = work / "pan.mp4"
    write_pan(clip, 240, 1280, 720)
    out = work / "pan"
    for masks in ("auto", "none"):
        unwrap("train", clip, "--size", "480p", "--masks", masks, "--seconds", "150", "--out", f"{out}-{masks}")
        found = json.loads(unwrap("eval", f"{out}-{masks}", "--json"))
        measured = f"{found['peak_mib'] / 1024:.2f} GiB ({found['steps']} steps, {found['psnr']:.1f} dB)"
        yield Row(f"240 frames of 1280x720 at 480p, --masks {masks}", "peak memory", "2.5 GiB", measured)


def write_pan(path: Path, count: int, width: int, height: int) -> None:
    """A clip made quickly: a window that wanders over a large picture, and a disc that moves across it."""
    import cv2
    import numpy as np

    from editors.demo import new_facts
    from neural_fields.coords import Box
    from neural_fields.data.painting import sea_floor
    from neural_fields.data.synthetic import demo_clip
    from neural_fields.data.video import write

    ground = sea_floor(Box(-1.3, -0.9, 1.3, 0.9), 2 * width, 2 * height, 0)
    ground = np.ascontiguousarray((255 * ground).clip(0, 255).astype(np.uint8))
    disc = np.ascontiguousarray(ground[::-1, ::-1])
    facts = new_facts(demo_clip(2, width, height), Fraction(24))
    facts = type(facts)(
        **{**vars(facts), "frame_count": count, "timestamps": tuple(Fraction(t, 24) for t in range(count))}
    )

    def frames() -> Iterator[np.ndarray]:
        for t in range(count):
            shift = np.float32([[1, 0, -0.3 * width - 0.6 * t], [0, 1, -0.3 * height - 0.2 * t]])
            frame = cv2.warpAffine(ground, shift, (width, height))
            cover = np.zeros((height, width), np.uint8)
            cv2.circle(cover, (round(width * (0.2 + 0.6 * t / count)), height // 2), height // 6, 255, -1, cv2.LINE_AA)
            moved = cv2.warpAffine(disc, np.float32([[1, 0, -500 + 3.2 * t], [0, 1, -400]]), (width, height))
            share = (cover.astype(np.float32) / 255)[..., None]
            yield (frame * (1 - share) + moved * share).round().astype(np.uint8)

    write(path, frames(), facts, overwrite=True)


PARTS = {"fit": fit_rows, "auto": auto_rows, "demo": demo_rows, "render": render_rows, "memory": memory_rows}
NEEDS_DATA = ("fit", "auto", "render")


def versions() -> dict[str, str]:
    """The machine and what the figures were measured with."""
    import torch

    from neural_fields import __version__
    from neural_fields.threads import available_cores

    return {
        "unwrap": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": f"{platform.machine()}, {available_cores()} cores",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        for name in chosen.only:
            if name in NEEDS_DATA and not DATA.is_dir():
                print(f"{name}: left out, the real clips are not beside the checkout", file=sys.stderr)
                continue
            for row in PARTS[name](Path(folder)):
                rows.append(row)
                print(f"{row.on:<52} {row.figure:<18} asked {row.asked:<17} {row.measured}", flush=True)
    result = json.dumps({**versions(), "rows": [asdict(row) for row in rows]})
    print(result)
    if chosen.json:
        chosen.json.write_text(result)


if __name__ == "__main__":
    main()
