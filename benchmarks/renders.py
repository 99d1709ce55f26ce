"""Measures what renders look like and cost: sharpness of an edit along a clip, steadiness, exactness, speed.

    python benchmarks/renders.py [--clip davis-parkour] [--size 480p] [--json FILE]

A text is placed in the middle frame of a synthetic clip of 300 frames in ten charts. Its sharpness in a frame, the
gradient energy of the change over its energy, is compared with that of the true text; the worst tenth of the frames
counts. Another is placed in the middle frame of a real clip, which has several charts, fitted at `draft` with its true
masks: there sharpness is compared with that of means over 16 lookups a pixel. A text painted on that frame comes back
in the render of it: the largest difference where it is opaque. A flat patch on the background of a synthetic clip
under passing light: its standard deviation over time once the true light is divided out. Canonical pictures of a clip
fitted at 240p, as its sharpest frame shows them: their gradient energy against that of the frame. A synthetic clip at
1080p fitted at 240p: the mean error of the weight of its object where layers share pixels, enlarged and as frames
refine it; and the object removed: PSNR against the clip without it, of whole frames and of what changed
alone, and gradient energy against it there. Three edits on a 1080p frame,
warm; renders of them against decoding and encoding alone, both in one run.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from unittest import mock

import cv2
import numpy as np
import torch
from common import DATA, ROOT, Row, finish, masks_of, missing, parser, print_row

sys.path.insert(0, str(ROOT))

from PIL import Image, ImageDraw

from editors.api import edit
from editors.core.history import undo
from editors.demo import make_clip_metadata
from editors.effects.adjust import Adjust
from editors.effects.place import Place
from editors.effects.remove import Remove
from neural_fields.core import array_coords, coords
from neural_fields.core.box import Box
from neural_fields.data.synthetic.planar_clips import (
    PaintedMark,
    SyntheticClip,
    make_demo_clip,
    make_translation_clip,
)
from neural_fields.data.video.io import source_frames, write_video
from neural_fields.open_runs.opening import require_planar
from neural_fields.open_runs.planar_run import PlanarRun
from neural_fields.planar.init.charts import ChartSettings
from neural_fields.planar.init.geometry import GeometrySettings
from neural_fields.rendering.edge_guide import FrameEdges
from neural_fields.rendering.options import RenderOptions
from neural_fields.rendering.render_planar import open_passes, render
from neural_fields.runs.run import Run
from neural_fields.training import initialize
from neural_fields.training.initialize import plan_model
from neural_fields.training.options import TrainOptions
from neural_fields.training.train import train


def write_text(path: Path, side: int) -> Path:
    """Writes an opaque picture of a few letters on a plate, `side` pixels wide."""
    picture = Image.new("RGBA", (side, side // 2), (250, 240, 220, 255))
    ImageDraw.Draw(picture).text((side // 10, side // 12), "Edit", font_size=side // 3, fill=(160, 20, 40, 255))
    picture.save(path)
    return path


def measure_sharpness(change: np.ndarray) -> float:
    """Measures the gradient energy of a change over its energy."""
    slopes = [cv2.Scharr(change, cv2.CV_32F, dx, 1 - dx, scale=1 / 32) for dx in (0, 1)]
    return sum(float(np.square(slope).sum()) for slope in slopes) / max(1e-9, float(np.square(change).sum()))


def measure_text(run: PlanarRun, home: Path, frame: int, size: tuple[int, int]) -> tuple[float, int]:
    """Places a text, and measures its sharpness against that of means over pixels, which scale and occluders share.

    Args:
        run: an open run with several charts.
        home: folder for the picture.
        frame: in which the text is placed.
        size: (width, height) of the frames.

    Returns:
        The ratio in the worst tenth of the frames, and the number of frames that show the text.
    """
    width = 0.22 * size[0]
    box = np.array([0.62 * size[0], 0.2 * size[1], width, width / 2])
    chosen = ",".join(f"{side:.1f}" for side in box)
    edit(run.path, editor=Place(image=write_text(home / "text.png", 600), box=chosen, frame=frame), layer="background")
    run = require_planar(Run(run.path), "the benchmark")
    shown, ratios = open_passes(run), []
    for t, source in enumerate(run.video.frames):
        large = cv2.resize(source, size, interpolation=cv2.INTER_CUBIC) if run.maps.size != size else np.array(source)
        change = shown.render_frame(t, large).astype(np.float32) - large
        if np.abs(change).max() < 1:
            continue
        finer = cv2.resize(large, (4 * size[0], 4 * size[1]), interpolation=cv2.INTER_NEAREST)
        many = shown.render_frame(t, finer).astype(np.float32) - finer
        ideal = cv2.resize(many, size, interpolation=cv2.INTER_AREA)
        ratios.append(measure_sharpness(change) / measure_sharpness(ideal))
    undo(run.files)
    found = np.sort(ratios)
    return float(found[: max(1, len(found) // 10)].mean()), len(found)


def measure_carried_text(home: Path) -> tuple[float, float, int]:
    """Places a text on a synthetic clip of 300 frames in ten charts, and compares it with the truth.

    Returns:
        Its sharpness against that of the true text, in the worst tenth of the frames, its largest drift in pixels, and
        the number of charts.
    """
    clip = make_translation_clip(300, 320, 180, velocity=(0.2, 0.06))
    write_video(home / "long.mkv", clip.render_frames(), make_clip_metadata(clip), codec="ffv1")
    charts = ChartSettings(frames_per_chart=30, explained_psnr_db=99.0, min_gain_db=-99.0, max_loss_db=-99.0)
    plan = partial(plan_model, settings=GeometrySettings(charts=charts))
    with mock.patch.object(initialize, plan_model.__name__, plan):
        made = train(home / "long.mkv", TrainOptions(home / "long", masks=("none",), quality="draft"))
    box = np.array([130.0, 60.0, 80.0, 40.0])
    image = write_text(home / "carried.png", 600)
    placing = Place(image=image, box=",".join(map(str, box)), frame=150)
    edit(made.run, editor=placing, layer="background")
    run = require_planar(made.run, "the benchmark")
    corners = torch.from_numpy(np.stack([box[:2], box[:2] + box[2:]]))
    place = Box(*coords.normalize_pixels(corners, clip.width, clip.height).flatten().tolist())
    mark = PaintedMark(np.asarray(Image.open(image)).astype(np.float32) / 255, place, "background", 150)
    shown, ratios, drifts = open_passes(run), [], []
    for t, true in enumerate(clip.render_frames([mark])):
        source = clip.frames[t]
        change, wanted = (picture.astype(np.float32) - source for picture in (shown.render_frame(t, source), true))
        ratios.append(measure_sharpness(change) / measure_sharpness(wanted))
        # The shift that explains the difference best: least squares, by the slopes of the true change.
        plane, off = wanted.mean(2), (wanted - change).mean(2)
        slopes = np.stack([np.gradient(plane, axis=1).ravel(), np.gradient(plane, axis=0).ravel()], axis=1)
        drifts.append(float(np.linalg.norm(np.linalg.lstsq(slopes, off.ravel(), rcond=None)[0])))
    found = np.sort(ratios)
    return float(found[: len(found) // 10].mean()), max(drifts), sum(map(len, run.maps.charts))


def measure_exactness(run: PlanarRun, home: Path, frame: int) -> int:
    """Paints a text on a frame; returns the largest difference of its render from what was painted, of 255."""
    painted = np.array(run.video.frames[frame])
    height, width = painted.shape[:2]
    text = np.asarray(Image.open(write_text(home / "plate.png", width // 6)))[..., :3]
    top, left = height // 5, int(0.62 * width)
    inside = np.s_[top : top + text.shape[0], left : left + text.shape[1]]
    painted[inside] = text
    Image.fromarray(painted).save(home / "painted.png")
    number = run.frames.start + frame * run.frames.step
    edit(run.path, home / "painted.png", frame=number, layer="background")
    run = require_planar(Run(run.path), "the benchmark")
    shown = open_passes(run).render_frame(frame, np.array(run.video.frames[frame]))
    undo(run.files)
    inner = np.s_[top + 2 : top + text.shape[0] - 2, left + 2 : left + text.shape[1] - 2]
    return int(np.abs(shown[inner].astype(int) - painted[inner]).max())


def measure_steadiness(home: Path) -> float:
    """Paints a flat patch under passing light; returns its deviation over time without the true light, of 255."""
    clip = make_demo_clip(48, 320, 180)
    write_video(home / "light.mkv", clip.render_frames(), make_clip_metadata(clip), codec="ffv1")
    np.save(home / "mask.npy", clip.masks[0])
    made = train(home / "light.mkv", TrainOptions(home / "light", masks=(f"foreground={home / 'mask.npy'}",)))
    run = require_planar(made.run, "the benchmark")
    picture = np.asarray(Image.open(made.run.canonical / "background.png")).copy()
    height, width = picture.shape[:2]
    middle = np.s_[int(0.2 * height) : int(0.3 * height), int(0.45 * width) : int(0.55 * width)]
    picture[middle] = (128, 128, 128, 255)
    Image.fromarray(picture).save(home / "flat.png")
    edit(made.run, home / "flat.png", layer="background")
    run = require_planar(made.run, "the benchmark")
    changer, levels = open_passes(run), []
    xy = coords.frame_xy(320, 180)
    for t, source in enumerate(clip.frames):
        shown = changer.render_frame(t, source).astype(np.float32)
        overlay, _ = changer.warp_overlay(t, 1, (320, 180))  # type: ignore[attr-defined]
        inner = cv2.erode((overlay[..., 3] > 0.999).astype(np.uint8), np.ones((7, 7), np.uint8)) > 0
        inner &= clip.alpha[0, t] < 1e-3
        if inner.sum() > 50:
            light = clip.lighting.compute_gain(xy, t).numpy()
            levels.append((shown / light)[inner].mean(0))
    return float(np.stack(levels).std(0).max())


def measure_energy(picture: np.ndarray, where: np.ndarray) -> float:
    """Measures the gradient energy of some pixels, in squared 8-bit units for each."""
    slopes = [cv2.Scharr(picture.astype(np.float32), cv2.CV_32F, dx, 1 - dx, scale=1 / 32) for dx in (0, 1)]
    return float(sum(np.square(slope)[where].sum() for slope in slopes)) / max(1, int(where.sum()))


def measure_canonicals(clip: str, home: Path) -> dict[str, float]:
    """Fits a clip at 240p; returns the gradient energy of each canonical picture in the frame that is sharpest."""
    options = TrainOptions(home / f"{clip}-240", size="240p", quality="draft", masks=(masks_of(clip, "truth"),))
    run = require_planar(train(DATA / clip / "frames", options).run, "the benchmark")
    size, found = run.source_size, {}
    for number, layer in enumerate(run.layers):
        picture, sharpest = run.canonical(layer), (0.0, 0.0)
        for t in range(0, run.frame_count, max(1, run.frame_count // 12)):
            frame, weight = run.read_frame(run.frames[t]), run.maps.read_layer_weight(t, number, size)
            alone = cv2.erode((weight > 0.98).astype(np.uint8), np.ones((7, 7), np.uint8)) > 0
            if alone.sum() < 500:
                continue
            texels = array_coords.uv_to_texels(run.maps.read_uv(t, number, size), picture.box, *picture.size) - 0.5
            shown = cv2.remap(picture.rgba, texels.astype(np.float32), None, cv2.INTER_CUBIC)[..., :3]
            shown = 255 * shown * run.maps.read_gain(t, number, size)
            energy = measure_energy(frame, alone)
            sharpest = max(sharpest, (energy, measure_energy(shown, alone) / energy))
        found[layer] = sharpest[1]
    return found


def train_large_clip(home: Path) -> tuple[SyntheticClip, PlanarRun]:
    """Fits a synthetic clip of 1080p at 240p."""
    clip = make_demo_clip(48, 1920, 1080)
    write_video(home / "large.mkv", clip.render_frames(), make_clip_metadata(clip), codec="ffv1")
    np.save(home / "mask.npy", clip.masks[0])
    masks = (f"foreground={home / 'mask.npy'}",)
    made = train(home / "large.mkv", TrainOptions(home / "large", size="240p", quality="draft", masks=masks))
    return clip, require_planar(made.run, "the benchmark")


def measure_edges(clip: SyntheticClip, run: PlanarRun) -> tuple[float, float]:
    """Returns the error of the object's weight where it is mixed: enlarged, and refined by the frame."""
    index, figures = run.layers.index("foreground"), []
    for t in range(0, clip.count, 6):
        enlarged = run.maps.read_layer_weight(t, index, run.source_size)
        refined = FrameEdges(t, run.read_frame(t)).read_weight(run.maps, index)
        band = (enlarged > 0) & (enlarged < 1)
        figures.append([np.abs(weight - clip.alpha[0, t])[band].mean() for weight in (enlarged, refined)])
    before, after = np.mean(figures, axis=0)
    return float(before), float(after)


def measure_removal(clip: SyntheticClip, run: PlanarRun) -> tuple[float, float, float]:
    """Removes an object from a clip; returns PSNR of frames and of what changed, and gradient energy there."""
    edit(run.path, editor=Remove(), layers=("foreground",))
    run = require_planar(Run(run.path), "the benchmark")
    changer, figures = open_passes(run), []
    for t, truth in enumerate(replace(clip, surfaces=clip.surfaces[1:]).render_frames()):
        if t % 6:
            continue
        source = run.read_frame(t)
        shown = changer.render_frame(t, source)
        changed = (shown != source).any(axis=2)
        off = np.square(shown.astype(np.float32) - truth)
        inner = cv2.erode(changed.astype(np.uint8), np.ones((5, 5), np.uint8)) > 0
        energy = measure_energy(shown, inner) / measure_energy(truth, inner)
        figures.append((*(10 * np.log10(255**2 / part.mean()) for part in (off, off[changed])), energy))
    whole, hole, energy = np.mean(figures, axis=0)
    return float(whole), float(hole), float(energy)


def time_stack(run: PlanarRun, home: Path, size: tuple[int, int]) -> tuple[float, float]:
    """Puts three edits on a run; returns the time of a warm frame in ms, and a render's speed against a transcode."""
    width = 0.2 * size[0]
    box = f"{0.6 * size[0]:.0f},{0.2 * size[1]:.0f},{width:.0f},{width / 2:.0f}"
    picture = write_text(home / "stack.png", 600)
    scale = run.video.metadata.width / size[0]
    box = ",".join(f"{float(side) * scale:.1f}" for side in box.split(","))
    edit(run.path, editor=Adjust(exposure=0.2), layers=("background",))
    edit(run.path, editor=Place(image=picture, box=box, frame=run.frame_count // 2), layers=("background",))
    edit(run.path, editor=Adjust(saturation=1.3), layers=(run.layers[0],))
    run = require_planar(Run(run.path), "the benchmark")
    changer = open_passes(run)
    sources = [cv2.resize(frame, size, interpolation=cv2.INTER_CUBIC) for frame in run.video.frames[:6]]
    times = []
    for t, source in enumerate(sources):
        began = time.perf_counter()
        changer.render_frame(t, source)
        times.append(time.perf_counter() - began)

    began = time.perf_counter()
    render(run, RenderOptions(out=home / f"{size[1]}.mp4", size=f"{size[0]}x{size[1]}"))
    edited = time.perf_counter() - began
    metadata = run.video.metadata

    def transcode() -> Iterator[np.ndarray]:
        for frame in source_frames(metadata, run.frames):
            yield frame if frame.shape[1] == size[0] else cv2.resize(frame, size, interpolation=cv2.INTER_CUBIC)

    began = time.perf_counter()
    write_video(home / f"plain-{size[1]}.mp4", transcode(), metadata)
    return 1e3 * float(np.median(times[1:])), (time.perf_counter() - began) / edited


def main() -> None:
    """Trains, measures and prints one row for each figure."""
    options = parser(__doc__)
    options.add_argument("--clip", default="davis-parkour", help="of the real clips beside the checkout")
    options.add_argument("--size", default="480p", help="of the training")
    chosen = options.parse_args()
    rows: list[Row] = []

    def add(on: str, figure: str, asked: str, measured: str, reached: bool) -> None:
        rows.append(Row(on, figure, asked, measured, reached))
        print_row(rows[-1])

    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        deviation = measure_steadiness(home)
        add("flat patch, passing light", "deviation", "<= 0.5 of 255", f"{deviation:.2f}", deviation <= 0.5)
        ratio, drift, charts = measure_carried_text(home)
        on = f"text on a synthetic clip, {charts} charts"
        add(on, "worst tenth", ">= 0.85", f"{ratio:.2f}", ratio >= 0.85)
        add(on, "largest drift", "<= 0.1 px", f"{drift:.3f} px", drift <= 0.1)
        clip, run = train_large_clip(home)
        before, after = measure_edges(clip, run)
        add("edges at 1080p fitted at 240p", "error, was", "-", f"{before:.3f}", True)
        add("edges at 1080p fitted at 240p", "error", "-", f"{after:.3f}", True)
        whole, hole, energy = measure_removal(clip, run)
        add("remove at 1080p fitted at 240p", "PSNR, frames", ">= 36 dB", f"{whole:.1f} dB", whole >= 36)
        add("remove at 1080p fitted at 240p", "PSNR, changed", "-", f"{hole:.1f} dB", True)
        add("remove at 1080p fitted at 240p", "gradients", ">= 0.9", f"{energy:.2f}", energy >= 0.9)
        if not missing(["davis-car-shadow"]):
            for layer, ratio in measure_canonicals("davis-car-shadow", home).items():
                add(f"davis-car-shadow at 240p, {layer}", "gradients", ">= 0.9", f"{ratio:.2f}", ratio >= 0.9)
        if not missing([chosen.clip]):
            masks = (masks_of(chosen.clip, "truth"),)
            asked = TrainOptions(home / "run", size=chosen.size, quality="draft", masks=masks)
            run = require_planar(train(DATA / chosen.clip / "frames", asked).run, "the benchmark")
            size, middle = run.source_size, run.frame_count // 2
            ratio, count = measure_text(run, home, middle, size)
            add(f"text on {chosen.clip}, {count} frames", "worst tenth", ">= 0.85", f"{ratio:.2f}", ratio >= 0.85)
            gap = measure_exactness(run, home, middle)
            add("text painted on a frame, that frame", "difference", "<= 1 of 255", str(gap), gap <= 1)
            for name, wanted in (("854x480", (854, 480)), ("1920x1080", (1920, 1080))):
                frame_ms, share = time_stack(run, home, wanted)
                add(f"three edits, {name}", "against transcode", ">= 0.85", f"{share:.2f}", share >= 0.85)
                add(f"three edits, {name}", "warm frame", "<= 40 ms", f"{frame_ms:.0f} ms", frame_ms <= 40)
                for _ in range(3):
                    undo(run.files)
    finish(rows, chosen.json)


if __name__ == "__main__":
    main()
