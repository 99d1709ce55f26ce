"""Measures soft edges: mattes of clips whose alpha is known, against the hard mask that they start from.

    python benchmarks/mattes.py [--size 480p] [--frames 6] [--kinds hair blur edge] [--rough 0 1] [--fit] [--json FILE]

Clips are made here: thin curved strands around a head over a textured background, a disc with motion blur (averaged
along its motion), and a disc with an antialiased edge; all composited in sRGB with noise. What `make_matte` is given is
the true alpha, reduced to 240 lines and made a hard mask, whose outline is then moved at random, differently in each
frame (rough: standard deviation in pixels), as a tracker's is; the flow is OpenCV's at 240 lines. Each row: SAD (sum of
absolute differences of alpha, in thousands, mean over the frames) and flicker (mean absolute change of the error of
alpha along the true motion, in the pixels near the outline, in 8-bit steps), of the enlarged hard mask and of the
mattes; processor seconds a frame for the mattes, without flow.

With --fit, the clips are fitted instead, at draft quality, given the true mask or the true alpha: mean error of the
weights near the outline, and of the frames there when all of the object is painted in one color, in 8-bit steps.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from common import finish, parser, table

KINDS = ("hair", "blur", "edge")
COLUMNS = ("clip", "rough", "SAD mask", "SAD matte", "ratio", "flicker mask", "flicker matte", "s")
LINES = 240  # the shorter side at which objects are segmented
OVER = 4  # samples a pixel in each direction, from which alpha is averaged
STRANDS = 220
FIT_COLUMNS = ("clip", "weight mask", "weight matte", "painted mask", "painted matte")
PAINT = (240.0, 40.0, 200.0)  # RGB of the paint, 0 to 255


def textured(shape: tuple[int, int], low: float, high: float, tint: tuple[float, ...], seed: int) -> np.ndarray:
    """Makes a random texture with details of all sizes, RGB between two values, times a tint."""
    random = np.random.default_rng(seed)
    total = np.zeros((*shape, 3), np.float32)
    for cells in (6, 20, 60, 160):
        coarse = random.normal(0, 1, (max(2, shape[0] * cells // shape[1]), cells, 3)).astype(np.float32)
        coarse += 1.5 * random.normal(0, 1, (*coarse.shape[:2], 1)).astype(np.float32)  # mostly brightness
        total += cv2.resize(coarse, shape[::-1], interpolation=cv2.INTER_CUBIC) / np.sqrt(cells)
    total = (total - total.min()) / (total.max() - total.min())
    return (low + (high - low) * total) * np.array(tint, np.float32)


def make_strands(radius: float, seed: int) -> list[tuple[np.ndarray, float]]:
    """Makes curved strands that grow out of a disc around the origin: polylines in pixels, and their widths."""
    random = np.random.default_rng(seed)
    strands = []
    for angle in random.uniform(0, 2 * np.pi, STRANDS):
        length, bend = radius * random.uniform(0.08, 0.3), random.uniform(-1.5, 1.5)
        steps = np.linspace(0, 1, 12)
        turn = angle + bend * steps
        steps_xy = np.stack([np.cos(turn), np.sin(turn)], -1) * length / 12
        root = 0.97 * radius * np.array([np.cos(angle), np.sin(angle)])
        strands.append((root + np.cumsum(steps_xy, 0), random.uniform(0.006, 0.014) * radius))
    return strands


def draw_alpha(kind: str, size: tuple[int, int], place: np.ndarray, step: np.ndarray) -> np.ndarray:
    """Draws the alpha of an object at a place; `step` is its motion to the next frame, half of which blurs it."""
    width, height = size
    radius = height * 0.27
    total = np.zeros((height, width), np.float32)
    moments = np.linspace(-0.25, 0.25, 17) if kind == "blur" else [0.0]
    for moment in moments:
        sharp = np.zeros((height * OVER, width * OVER), np.uint8)
        center = (place + moment * step) * OVER
        cv2.circle(sharp, tuple(np.rint(center * 16).astype(int)), round(radius * OVER * 16), 255, -1, shift=4)
        for line, thick in make_strands(radius, 3) if kind == "hair" else []:
            points = np.rint((line * OVER + center) * 16).astype(np.int32)
            cv2.polylines(sharp, [points], False, 255, max(1, round(thick * OVER)), shift=4)
        total += cv2.resize(sharp, size, interpolation=cv2.INTER_AREA) / np.float32(255 * len(moments))
    return total


def make_clip(kind: str, size: tuple[int, int], count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Makes a clip of one moving object over a background that stands still.

    Returns:
        Frames, true alpha (0 to 1), and the object's motion from frame to frame in pixels.
    """
    width, height = size
    step = np.array([0.05, 0.012] if kind == "blur" else [0.0063, 0.0021]) * height
    behind = textured((height, width), 40, 240, (0.8, 1.0, 0.9), 1)
    skin = textured((height * 2, width * 2), 30, 110, (1.2, 0.8, 0.6), 2)
    random = np.random.default_rng(5)
    frames, alphas = [], []
    for number in range(count):
        place = np.array([width * 0.4, height * 0.48]) + step * number
        alpha = draw_alpha(kind, size, place, step)
        shift = np.array([[1, 0, place[0] - width], [0, 1, place[1] - height]], np.float32)
        front = cv2.warpAffine(skin, shift, size)
        mixed = alpha[..., None] * front + (1 - alpha[..., None]) * behind + random.normal(0, 2, front.shape)
        frames.append(np.rint(mixed.clip(0, 255)).astype(np.uint8))
        alphas.append(alpha)
    return np.stack(frames), np.stack(alphas), step


def measure_flicker(errors: np.ndarray, alphas: np.ndarray, step: np.ndarray) -> float:
    """Computes the mean absolute change of errors along the object's motion, near its outline."""
    changes = []
    back = np.array([[1, 0, step[0]], [0, 1, step[1]]], np.float32)
    for now, then, alpha in zip(errors[1:], errors[:-1], alphas[1:], strict=True):
        moved = cv2.warpAffine(then, back, then.shape[::-1], flags=cv2.INTER_LINEAR)
        mixed = ((alpha > 0) & (alpha < 1)).astype(np.uint8)
        near = cv2.dilate(mixed, np.ones((9, 9), np.uint8)).astype(bool)
        changes.append(np.abs(now - moved)[near].mean())
    return float(np.mean(changes) * 255)


def roughen(mask: np.ndarray, deviation: float, random: np.random.Generator) -> np.ndarray:
    """Moves the outline of a mask in and out, smoothly along it, by random distances in pixels."""
    inside, outside = (cv2.distanceTransform(part.astype(np.uint8), cv2.DIST_L2, 5) for part in (mask, ~mask))
    noise = cv2.GaussianBlur(random.normal(0, 1, mask.shape).astype(np.float32), (0, 0), 4)
    return np.where(mask, inside - 0.5, 0.5 - outside) + noise * deviation / noise.std() > 0


def matte_row(kind: str, size: tuple[int, int], count: int, rough: float) -> dict[str, Any]:
    """Makes a clip and its mattes, and measures them.

    Returns:
        The row of the table.
    """
    from neural_fields.data.segmentation.mattes import make_matte

    frames, alphas, step = make_clip(kind, size, count)
    small = (round(size[0] * LINES / min(size)), round(size[1] * LINES / min(size)))
    random = np.random.default_rng(7)
    reduced = [roughen(cv2.resize(a, small, interpolation=cv2.INTER_AREA) >= 0.5, rough, random) for a in alphas]
    hard = np.stack([cv2.resize(mask.astype(np.float32), size, interpolation=cv2.INTER_LINEAR) for mask in reduced])
    hard = (hard >= 0.5).astype(np.float32)
    gray = [cv2.cvtColor(cv2.resize(f, small, interpolation=cv2.INTER_AREA), cv2.COLOR_RGB2GRAY) for f in frames]
    finder = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    mattes: list[np.ndarray] = []
    seconds = 0.0
    for number, (frame, mask) in enumerate(zip(frames, reduced, strict=True)):
        # The first frame has none before it: what moves backward from it moves as far.
        flow = finder.calc(gray[number], gray[number - 1], None) if number else -finder.calc(gray[0], gray[1], None)
        begin = time.process_time()
        mattes.append(make_matte(frame, mask, before=mattes[-1] if number else None, flow=flow))
        seconds += time.process_time() - begin
    row: dict[str, Any] = {"clip": kind, "rough": rough, "size": list(size), "frames": count, "s": seconds / count}
    for name, found in (("mask", hard), ("matte", np.stack(mattes).astype(np.float32) / 255)):
        row[f"SAD {name}"] = float(np.abs(found - alphas).sum((1, 2)).mean() / 1000)
        row[f"flicker {name}"] = measure_flicker(found - alphas, alphas, step)
    row["ratio"] = row["SAD matte"] / row["SAD mask"]
    return row


def fit_row(kind: str, size: tuple[int, int], count: int) -> dict[str, Any]:
    """Makes a clip, fits it with its true mask and with its true alpha, paints the object, and measures both.

    Returns:
        The row of the table.
    """
    from neural_fields import TrainOptions, train
    from neural_fields.atlas.canonical import Overlay
    from neural_fields.open_runs.opening import require_planar
    from neural_fields.rendering.base import OverlayOptions
    from neural_fields.rendering.overlay_pass import OverlayPass

    frames, alphas, _ = make_clip(kind, size, count)
    paint = np.array(PAINT, np.float32)
    truth = alphas[..., None] * paint + (1 - alphas[..., None]) * textured(size[::-1], 40, 240, (0.8, 1.0, 0.9), 1)
    near = np.stack([cv2.dilate(((a > 0.02) & (a < 0.98)).astype(np.uint8), np.ones((5, 5))) > 0 for a in alphas])
    shares = np.rint(255 * alphas).astype(np.uint8)
    row: dict[str, Any] = {"clip": kind, "size": list(size), "frames": count}
    for name, masks in (("mask", np.uint8(255) * (shares >= 128)), ("matte", shares)):
        with tempfile.TemporaryDirectory() as folder:
            for part, pictures in (("frames", frames), ("masks", masks[..., None])):
                (Path(folder) / part).mkdir()
                for t, picture in enumerate(pictures):
                    cv2.imwrite(str(Path(folder) / part / f"{t:03d}.png"), picture[..., ::-1])
            given = (f"object={folder}/masks",)
            options = TrainOptions(Path(folder) / "run", size="source", masks=given, flow="dis", quality="draft")
            run = require_planar(train(Path(folder) / "frames", options).run, "the benchmark")
            rgba = np.broadcast_to(np.array([*paint / 255, 1], np.float32), (8, 8, 4)).copy()
            overlay = Overlay(rgba, run.canonical("object").box)
            painter = OverlayPass(run.maps, run.canonicals, {"object": overlay}, OverlayOptions(lit=False))
            painted = np.stack([painter.render_frame(t, frame) for t, frame in enumerate(frames)])
            weights = np.stack([run.maps.read_weights(t, size)[0] for t in range(count)])
        row[f"weight {name}"] = float(np.abs(weights - alphas)[near].mean())
        row[f"painted {name}"] = float(np.abs(painted - truth)[near].mean())
    return row


def main() -> None:
    """Measures every kind of clip and prints the table, then one line of JSON."""
    asked = parser(__doc__)
    asked.add_argument("--size", default="480p")
    asked.add_argument("--frames", type=int, default=6)
    asked.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    asked.add_argument("--rough", nargs="+", type=float, default=[0.0, 1.0], help="pixels at 240 lines")
    asked.add_argument("--fit", action="store_true", help="fit the clips, instead of making mattes")
    options = asked.parse_args()
    lines = int(options.size.removesuffix("p"))
    size = (round(lines * 16 / 9), lines)
    if options.fit:
        rows = [fit_row(kind, size, options.frames) for kind in options.kinds]
    else:
        rows = [matte_row(kind, size, options.frames, rough) for rough in options.rough for kind in options.kinds]
    rounded = [{name: f"{v:.3f}" if isinstance(v, float) else v for name, v in row.items()} for row in rows]
    columns = FIT_COLUMNS if options.fit else COLUMNS
    print("\n".join(table(columns, ({name: row.get(name) for name in columns} for row in rounded))))
    finish(rows, options.json)


if __name__ == "__main__":
    main()
