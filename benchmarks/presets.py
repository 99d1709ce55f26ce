"""Measures the time to 26, 28 and 30 dB of every preset on the same clips, side by side.

    python benchmarks/presets.py [--presets atlas lna codef ...] [--clips davis-blackswan ...] [--targets 26 28 30]
                                 [--seconds 300] [--size 240p] [--masks truth] [--frames A:B] [--quality normal]
                                 [--extrapolate lna] [--json FILE]

Every fit runs in a separate process and may take --seconds. Time counts from the start of the process, with
interpreter, decoding, flow and geometry. The PSNR is that of the pixels of the last 20 steps, which the command shows
while it trains; "final" is measured by `unwrap eval` after the fit. A target that was not reached is marked.

For presets named by --extrapolate a target beyond the time given is extrapolated from their own measured curve: a
straight line through PSNR over the logarithm of the training time, fitted to the last three quarters of the steps. Fits
flatten out, so such a time is more likely too short than too long. It is marked with "~".
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from common import DATA, ROOT, finish, masks_of, missing, parser, table, unwrap_json

PRESETS = ("atlas", "lna", "codef", "hashing_nvd", "deformable_sprites", "narcan")  # roi needs a region drawn by hand
POINTS = 300  # of a curve that go into the JSON

Curve = list[list[float]]  # [seconds since the start of the process, steps done, PSNR of the last steps]


def record(job: dict[str, Any]) -> None:
    """Trains in this process, and prints the PSNR over time as JSON."""
    from neural_fields.core.threads import prepare_threads

    prepare_threads()
    from neural_fields.core.progress import Progress
    from neural_fields.training.options import TrainOptions
    from neural_fields.training.train_planar import train

    curve: Curve = []

    def report(progress: Progress) -> None:
        if progress.stage == "training" and progress.psnr is not None:
            curve.append([round(time.monotonic() - job["begun"], 3), progress.done, progress.psnr])

    options = {**job["options"], "out": Path(job["options"]["out"]), "masks": tuple(job["options"]["masks"])}
    train(job["video"], TrainOptions(**options), report)
    print(json.dumps(curve))


def fitted_curve(video: Path, options: dict[str, Any]) -> tuple[Curve, str]:
    """Trains in a separate process; returns the PSNR over time, and the error if the training failed."""
    job = {"video": str(video), "options": options, "begun": time.monotonic()}
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, __file__, "--record", json.dumps(job)]
    limit = 3 * options["seconds"] + 180  # a fit ends well within its time; longer means that it hangs
    try:
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False, timeout=limit)
    except subprocess.TimeoutExpired:
        return [], f"stopped: it did not end within {limit:.0f} s"
    if done.returncode:
        return [], (done.stderr.strip().splitlines() or ["failed without a message"])[-1]
    return json.loads(done.stdout.splitlines()[-1]), ""


def reached(curve: Curve, target: float) -> float | None:
    """Returns the seconds after which the PSNR first was at least `target`; None if it never was."""
    return next((seconds for seconds, _, psnr in curve if psnr >= target), None)


def extrapolated(curve: Curve, target: float) -> float | None:
    """Extrapolates the seconds after which a curve would reach `target`; None where it does not rise."""
    if len(curve) < 8:
        return None
    seconds_a_step = (curve[-1][0] - curve[0][0]) / (curve[-1][1] - curve[0][1])
    begin = curve[0][0] - curve[0][1] * seconds_a_step  # when training began
    late = [(math.log(seconds - begin), psnr) for seconds, step, psnr in curve if step >= curve[-1][1] / 4]
    mean_x, mean_y = (sum(values) / len(late) for values in zip(*late, strict=True))
    spread = sum((x - mean_x) ** 2 for x, _ in late)
    slope = sum((x - mean_x) * (y - mean_y) for x, y in late) / spread if spread else 0.0
    exponent = mean_x + (target - mean_y) / slope if slope > 0 else math.inf
    return begin + math.exp(exponent) if exponent < 35 else None  # 35: fifty million years


def thinned(curve: Curve) -> Curve:
    """Thins a curve to about `POINTS` points, evenly in the logarithm of the step, with both ends."""
    if len(curve) <= POINTS:
        return curve
    picked = {round(len(curve) ** (i / (POINTS - 1))) - 1 for i in range(POINTS)}
    return [curve[i] for i in sorted(picked)]


def measure(clip: str, preset: str, chosen: argparse.Namespace, out: Path) -> dict[str, Any]:
    """Trains a preset on a clip and measures the times to the targets.

    Args:
        clip: name of the clip.
        preset: name of the preset.
        chosen: options of the command line.
        out: folder of the run.

    Returns:
        The row of the table, with the thinned curve.
    """
    options = {
        "out": str(out),
        "config": preset,
        "quality": chosen.quality,
        "size": chosen.size,
        "seconds": chosen.seconds,
        "frames": chosen.frames,
        "masks": [masks_of(clip, chosen.masks)],
    }
    curve, failure = fitted_curve(DATA / clip / "frames", options)
    row: dict[str, Any] = {"clip": clip, "preset": preset, "failure": failure or None, "curve": thinned(curve)}
    if failure:
        return row
    row |= {"final": unwrap_json("eval", out)["psnr"]}
    if not curve:  # the loss has no term that gives a PSNR
        return row
    row |= {"steps": int(curve[-1][1]), "seconds": curve[-1][0]}
    for target in chosen.targets:
        found = reached(curve, target)
        row[f"seconds to {target:g} dB"] = found
        if found is None and preset in chosen.extrapolate:
            row[f"extrapolated to {target:g} dB"] = extrapolated(curve, target)
    return row


def cell(row: dict[str, Any], target: float) -> str:
    """Formats the time at which a target was reached."""
    if row["failure"]:
        return "failed"
    if f"seconds to {target:g} dB" not in row:
        return "no PSNR"
    seconds, guess = row[f"seconds to {target:g} dB"], row.get(f"extrapolated to {target:g} dB")
    if seconds is not None:
        return f"{seconds:.1f} s"
    return "never" if guess is None else f"~{guess:.0f} s"


def ratios(rows: list[dict[str, Any]], target: float) -> list[str]:
    """Formats, for each clip, by what factor atlas reaches a target earlier than lna."""
    name, lines = f"{target:g} dB", []
    for clip in dict.fromkeys(row["clip"] for row in rows):
        mine, other = (next((r for r in rows if (r["clip"], r["preset"]) == (clip, p)), {}) for p in ("atlas", "lna"))
        sooner = mine.get(f"seconds to {name}")
        late, guess = other.get(f"seconds to {name}"), other.get(f"extrapolated to {name}")
        if sooner and late:
            lines.append(f"{clip}, {name}: atlas is {late / sooner:.0f} times as fast as lna (measured)")
        elif sooner and guess:
            words = f"atlas is {guess / sooner:.0f} times as fast as lna"
            lines.append(f"{clip}, {name}: {words} (lna's time is extrapolated from its own curve)")
        elif sooner and other.get("seconds"):
            least = other["seconds"] / sooner
            lines.append(
                f"{clip}, {name}: atlas is more than {least:.0f} times as fast (lna did not reach it in that time)"
            )
    return lines


def main() -> None:
    """Measures what the options name, and prints a table and one line of JSON."""
    options = parser(__doc__)
    options.add_argument("--presets", nargs="+", default=list(PRESETS))
    options.add_argument("--clips", nargs="+", default=["davis-blackswan", "davis-car-shadow"])
    options.add_argument("--targets", nargs="+", type=float, default=[26, 28, 30])
    options.add_argument("--seconds", type=float, default=300)
    options.add_argument("--size", default="240p")
    options.add_argument("--quality", default="normal", choices=["draft", "normal", "final"])
    options.add_argument("--masks", default="truth", choices=["truth", "osvos", "auto", "none"])
    options.add_argument("--frames")
    options.add_argument("--extrapolate", nargs="*", default=["lna"])
    options.add_argument("--record", help=argparse.SUPPRESS)
    chosen = options.parse_args()
    if chosen.record:
        record(json.loads(chosen.record))
        return
    gone, rows = missing(chosen.clips), []
    names = [f"{target:g} dB" for target in chosen.targets]
    columns = ("clip", "preset", *names, "final", "steps", "seconds", "failure")
    with tempfile.TemporaryDirectory() as folder:
        for clip in (clip for clip in chosen.clips if clip not in gone):
            for preset in chosen.presets:
                rows.append(measure(clip, preset, chosen, Path(folder) / f"{clip}-{preset}"))
                print(f"{clip} {preset}: {', '.join(cell(rows[-1], target) for target in chosen.targets)}", flush=True)
    shown = [{**row, **{n: cell(row, t) for n, t in zip(names, chosen.targets, strict=True)}} for row in rows]
    print("\n".join(table(columns, shown)))
    for target in chosen.targets:
        print("\n".join(ratios(rows, target)))
    finish(rows, chosen.json, size=chosen.size, masks=chosen.masks, quality=chosen.quality, limit=chosen.seconds)


if __name__ == "__main__":
    main()
