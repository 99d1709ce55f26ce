"""Defines probes of edits, exports and retiming on the exact maps of a clip, and of 3D scenes (see `probes.py`)."""

from __future__ import annotations

import contextlib
import io
import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from unittest import mock

import cv2
import numpy as np
import torch
from edits import adjusting, documents, dragging, mapping, middle_of, placing, removing
from in_between import measured
from PIL import Image
from probes_models import FRAMES, SIZE, Figures, Job, copied, decibels
from suite import write_clip

from editors.cli.main import main as unwrap
from editors.core.chart_propagation import carry_to_charts
from editors.core.source import EditSource
from editors.effects.external_frames import Frames
from editors.inputs.canonical_picture import overlay_from_canonical
from editors.inputs.frame_change import find_frame_paint
from editors.inputs.painted_frames import lift_frames
from editors.inputs.unwrapped_clip import read_unwrapped_paint
from neural_fields.atlas.canonical import CanonicalImage, Overlay
from neural_fields.core import coords
from neural_fields.core.box import Box
from neural_fields.core.errors import UserError
from neural_fields.core.progress import report_nothing
from neural_fields.data.capture.capture_folder import write_capture
from neural_fields.data.synthetic.planar_clips import PaintedMark, SyntheticClip, make_demo_clip, make_translation_clip
from neural_fields.data.synthetic.scene import make_walking_scene
from neural_fields.data.synthetic.suite import make_suite_clip
from neural_fields.data.video.io import probe_video, source_frames, write_video
from neural_fields.export.base import export_run
from neural_fields.export.options import ExportOptions
from neural_fields.export.pictures.unwrapped import UnwrappedExporter
from neural_fields.imaging.image_io import Picture, read_picture
from neural_fields.open_runs.opening import require_planar
from neural_fields.planar.init.charts import ChartSettings
from neural_fields.planar.init.geometry import GeometrySettings
from neural_fields.rendering.overlay_pass import OverlayPass
from neural_fields.rendering.unmixing import FrameUnmixer
from neural_fields.runs.run import Run
from neural_fields.training import initialize
from neural_fields.training.initialize import plan_model
from neural_fields.training.options import TrainOptions
from neural_fields.training.train_planar import train
from tests.support.true_run import make as make_true_run

# --- edits on true maps -----------------------------------------------------------------------------------------------


def true_run(home: Path, size: tuple[int, int] = SIZE) -> tuple[Run, SyntheticClip]:
    """Makes a run with the exact maps of a clip."""
    made = make_true_run(home, make_demo_clip(FRAMES, *size))
    return made.run, made.clip


def rendering(home: Path) -> Job:
    """Prepares edits (place, adjust, remove, drag) that are compared with the truth."""
    return partial(_edit_all, *true_run(home))


def _edit_all(run: Run, clip: SyntheticClip) -> Figures:
    t = FRAMES // 3
    at = clip.compute_mark_positions(0, middle_of(clip.boxes[0]))[t]
    jobs: list[Callable[[Run, Path], dict]] = [
        lambda run, home: placing(run, clip, home, 0, (float(at[0]), float(at[1])), t),
        lambda run, home: placing(run, clip, home, 1, (0.8 * clip.width, 0.75 * clip.height), t),
        lambda run, home: adjusting(run, clip),
        lambda run, home: removing(run, clip),
        lambda run, home: dragging(run, clip, t),
    ]
    return _collect_rows(run, jobs)


def _collect_rows(run: Run, jobs: Sequence[Callable[[Run, Path], dict]]) -> Figures:
    figures: Figures = {}
    for job in jobs:
        with copied(run) as fresh, tempfile.TemporaryDirectory() as home:
            row = job(fresh, Path(home))
        figures[f"{row['what']}, worst: {row['unit']}"] = row["worst"]
        figures[f"{row['what']}: {row['unit']}"] = row["mean"]
    return figures


def exports(home: Path) -> Job:
    """Prepares STMaps and documents that are read back, and frames that are un-mixed into layers."""
    return partial(_export_all, *true_run(home))


def _export_all(run: Run, clip: SyntheticClip) -> Figures:
    figures = _collect_rows(run, [mapping])
    with copied(run) as fresh, tempfile.TemporaryDirectory() as home:
        for row in documents(fresh, Path(home)):
            figures[f"{row['what']}: {row['unit']}"] = row["worst"]
    opened = require_planar(run, "the benchmark")
    maps, pictures = opened.maps, list(opened.canonicals.values())
    unmixing = FrameUnmixer(maps, [(picture.rgba, picture.box) for picture in pictures])
    empty = replace(clip, surfaces=clip.surfaces[1:]).frames
    found = [unmixing.unmix_frame(t, clip.frames[t])[-1] for t in range(clip.count)]
    behind = np.stack([rgba[..., :3].astype(np.float32) for rgba in found])
    opacity = np.stack([rgba[..., 3].astype(np.float32) for rgba in found])
    scale = 255 if behind.max() > 1 else 1
    figures["un-mixed background: dB"] = decibels(behind / scale, empty / np.float32(255), opacity > 0.99 * scale)
    figures["un-mixed background: share"] = float(opacity.mean() / scale)
    return figures


def retiming(home: Path) -> Job:
    """Prepares a clip of which every second frame is interpolated."""
    return partial(_make_between, *true_run(home))


def _make_between(run: Run, clip: SyntheticClip) -> Figures:
    found = measured(run, clip.count)
    return {"made frames: dB": found["made"], "worst made frame: dB": found["least"]}


def soft_mark(box: Box, layer: str, frame: int = 0) -> PaintedMark:
    """Makes a soft striped disc.

    Args:
        box: the part that it covers, in xy units of `frame`.
        layer: name of the layer.
        frame: number of the frame.
    """
    y, x = np.mgrid[:96, :96]
    alpha = np.clip((44 - np.hypot(x - 47.5, y - 47.5)) / 6, 0, 1)
    shade = 1 - 0.35 * (np.sin(x / 7) > 0)
    rgba = np.concatenate([shade[..., None] * np.array([0.9, 0.2, 0.1]), alpha[..., None]], axis=-1)
    return PaintedMark(rgba.astype(np.float32), box, layer, frame)


def painted_frames(home: Path) -> Job:
    """Prepares a mark on one frame and on three, saved as PNG and as JPEG, to be lifted to all frames."""
    run, clip = true_run(home, (192, 108))
    truth = clip.render_edited([soft_mark(Box(-0.5, -0.1, -0.25, 0.15), "foreground")])
    other = clip.render_edited([soft_mark(Box(-0.45, -0.05, -0.2, 0.2), "foreground")])
    paths: dict[str, dict[int, Path]] = {}
    sets = {
        "three frames": {1: truth[1], 5: truth[5], 9: truth[9]},
        "one differs": {1: truth[1], 5: other[5], 9: truth[9]},
        "one frame": {5: truth[5]},
    }
    for name, frames in sets.items():
        for suffix in ("png", "jpg"):
            folder = home / name / suffix
            folder.mkdir(parents=True)
            paths[f"{name}, {suffix}"] = {t: folder / f"{t}.{suffix}" for t in frames}
            for t, frame in frames.items():
                Image.fromarray(frame).save(folder / f"{t}.{suffix}", quality=90)
    painted = {name: {t: read_picture(path) for t, path in each.items()} for name, each in paths.items()}
    return partial(_lift_all, run, clip, truth, painted)


def _lift_all(run: Run, clip: SyntheticClip, truth: np.ndarray, painted: dict[str, dict[int, Picture]]) -> Figures:
    opened = require_planar(run, "the benchmark")
    maps, pictures = opened.maps, opened.canonicals
    figures: Figures = {}
    changed = np.stack([cv2.absdiff(a, b).max(axis=-1) > 2 for a, b in zip(truth, clip.frames, strict=True)])
    for name, frames in painted.items():
        overlays = lift_frames(require_planar(run, "the benchmark"), frames, "foreground")
        renderer = OverlayPass(maps, pictures, overlays, frames=opened.frames)
        shown = np.stack([renderer.render_frame(t, frame) for t, frame in enumerate(clip.frames)])
        figures[f"{name}: dB"] = decibels(shown, truth, changed)
        figures[f"{name} elsewhere: share"] = float((shown != clip.frames).any(-1)[~changed].mean())
    return figures


def edited_frames(home: Path) -> Job:
    """Prepares frames that were edited one by one: with flicker, with a wrong one, and unrelated ones."""
    run, clip = true_run(home)
    y, x = np.mgrid[:160, :160] / 160
    waves = np.stack([0.5 + 0.35 * np.sin(20 * x), 0.5 + 0.35 * np.cos(16 * y), 0.4 + 0.3 * x], axis=-1)
    over = np.concatenate([waves, np.ones_like(x)[..., None]], axis=-1).astype(np.float32)
    under = np.concatenate([1 - waves[::-1], np.ones_like(x)[..., None]], axis=-1).astype(np.float32)
    boxes = {surface.name: surface.box for surface in clip.surfaces}
    truth = clip.render_edited(
        [PaintedMark(over, boxes["foreground"]), PaintedMark(under, boxes["background"], "background")]
    )
    random = np.random.default_rng(1)
    shades = random.uniform(0.7, 1.0, (len(truth), 1, 1, 1))
    wrong = truth.copy()
    wrong[len(truth) // 2] = random.integers(0, 255, truth[0].shape)
    blocks = np.repeat(np.repeat(random.uniform(20, 235, (len(truth), 9, 16, 1)), 8, axis=1), 8, axis=2)
    cases = {
        "flickering": np.rint(truth * shades).astype(np.uint8),
        "one wrong": wrong,
        "nothing in common": np.repeat(blocks, 3, axis=3).astype(np.uint8),
    }
    for name, frames in cases.items():
        (home / name).mkdir()
        for t, frame in enumerate(frames):
            Image.fromarray(frame).save(home / name / f"{t:04d}.png")
    return partial(_fuse_all, run, clip, truth, {name: home / name for name in cases})


def _fuse_all(run: Run, clip: SyntheticClip, truth: np.ndarray, folders: dict[str, Path]) -> Figures:
    opened = require_planar(run, "the benchmark")
    maps, pictures = opened.maps, opened.canonicals
    figures: Figures = {}
    for name, folder in folders.items():
        result = Frames(frames=folder).edit(EditSource(require_planar(run, "the probe"), maps.layers), report_nothing)
        renderer = OverlayPass(maps, pictures, result.overlays)
        shown = np.stack([renderer.render_frame(t, frame) for t, frame in enumerate(clip.frames)])
        figures[f"{name}: dB"] = decibels(shown, truth)
        figures[f"{name}, contrast: share"] = float(result.overlays["background"].rgba[..., :3].std())
        error = result.details["warp_error"]
        assert isinstance(error, float)
        figures[f"{name}, 100 x warp error: ratio"] = 100 * error
    return figures


def painted_canonical(home: Path) -> Job:
    """Prepares painted canonical pictures as programs save them, with the texels that are painted."""
    width, height = 128, 96
    y, x = np.mgrid[:height, :width]
    random = np.random.default_rng(3)
    grain = cv2.GaussianBlur(random.normal(0, 60, (height, width, 3)), (0, 0), 1.5)
    waves = np.stack([110 + 60 * np.sin(x / 9), 120 + 50 * np.cos(y / 7 + x / 20), 100 + 40 * np.sin((x + y) / 5)], -1)
    disc = (((x - 64) / 55) ** 2 + ((y - 48) / 42) ** 2 < 1).astype(np.float32)
    alpha = np.rint(cv2.GaussianBlur(disc, (0, 0), 1) * 255)[..., None]
    base = np.concatenate([np.clip(waves + grain, 0, 255), alpha], axis=-1).astype(np.uint8)
    paint = np.zeros((height, width), np.float32)
    cv2.rectangle(paint, (44, 36), (83, 59), 1.0, -1)
    cv2.circle(paint, (30, 48), 3, 1.0, -1)
    cv2.ellipse(paint, (95, 40), (8, 5), 0, 0, 360, 0.12, -1)  # a glaze
    color = np.array([235, 30, 25])
    painted = base.copy()
    painted[..., :3] = np.rint(base[..., :3] + (color - base[..., :3]) * paint[..., None]).astype(np.uint8)
    image = Image.fromarray(painted)
    flat = Image.alpha_composite(Image.new("RGBA", (width, height), (255, 255, 255, 255)), image).convert("RGB")
    image.save(home / "plain.png")
    flat.save(home / "on white.png")
    for quality in (60, 85):
        flat.save(home / f"quality {quality}.jpg", quality=quality)
        flat.save(home / f"quality {quality}.webp", quality=quality)
    for name, factor in (("larger", 2), ("smaller", 0.5)):
        flat.resize((int(width * factor), int(height * factor)), Image.Resampling.LANCZOS).save(home / f"{name}.png")
    graded = Image.fromarray((np.asarray(flat) * 0.6).astype(np.uint8))
    graded.save(home / "whole.jpg", quality=90)
    rgba = base / np.float32(255)
    pictures = {path.name: read_picture(path) for path in sorted(home.iterdir())}
    return partial(_find_changes, pictures, CanonicalImage(rgba, Box(-1.0, -0.75, 1.0, 0.75), "foreground"), paint)


def _find_changes(painted: dict[str, Picture], base: CanonicalImage, paint: np.ndarray) -> Figures:
    figures: Figures = {}
    seen = base.rgba[..., 3] > 0.99
    near = cv2.dilate((paint > 0).astype(np.uint8), np.ones((7, 7), np.uint8)) > 0
    for name, picture in painted.items():
        try:
            found = overlay_from_canonical(picture, base).rgba[..., 3]
        except UserError:
            found = np.zeros(paint.shape, np.float32)
        found = cv2.resize(found, paint.shape[::-1], interpolation=cv2.INTER_AREA)
        figures[f"{name}, opaque paint found: share"] = float(found[(paint == 1) & seen].mean())
        figures[f"{name}, glaze found: share"] = float(found[(paint > 0) & (paint < 1) & seen].mean())
        figures[f"{name}, spurious: share"] = float(found[~near].mean())
    return figures


def unwrapped(home: Path) -> Job:
    """Prepares a disc on the unwrapped clip of each layer, saved without loss and as H.264."""
    run, clip = true_run(home)
    cases = {}
    for layer in ("foreground", "background"):
        exported = export_run(run, UnwrappedExporter(layer=layer), ExportOptions(out=home / layer))
        flat = next(path for path in exported.paths if path.suffix in (".mkv", ".mov"))
        facts = probe_video(flat)
        frames = list(source_frames(facts, range(facts.frame_count)))
        for codec, suffix in (("ffv1", "mkv"), ("h264", "mp4")):
            discs = (_paint_disc(frame) for frame in frames)
            path = write_video(home / f"{layer}.{suffix}", discs, facts, codec=codec, sound=False)
            cases[f"{layer}, {codec}"] = (layer, path, frames)
    return partial(_read_unwrapped, run, clip, cases)


def _paint_disc(frame: np.ndarray) -> np.ndarray:
    height, width = frame.shape[:2]
    painted = frame.copy()
    cv2.circle(painted, (width // 2, height // 2), min(width, height) // 6, (220, 40, 60), -1, cv2.LINE_AA)
    return painted


def _read_unwrapped(run: Run, clip: SyntheticClip, cases: dict[str, tuple[str, Path, list[np.ndarray]]]) -> Figures:
    figures: Figures = {}
    with copied(run) as fresh, tempfile.TemporaryDirectory() as home:  # rendering an unwrapped clip again
        done = export_run(fresh, UnwrappedExporter(layer="background"), ExportOptions(out=Path(home) / "flat"))
        path = next(path for path in done.paths if path.suffix in (".mkv", ".mov"))
        facts = probe_video(path)
        flat = np.stack(list(source_frames(facts, range(facts.frame_count))))
    figures["unwrapped, mean: levels"] = float(flat.astype(np.float64).mean())
    figures["unwrapped, width: texels"] = float(flat.shape[2])
    for name, (layer, path, frames) in cases.items():
        _, moving = read_unwrapped_paint(require_planar(run, "the benchmark"), path, layer)
        wrong, right = [], []
        for rgba, frame in zip(moving.frames(), frames, strict=True):
            truth = (_paint_disc(frame) != frame).any(-1)
            around = cv2.dilate(truth.astype(np.uint8), np.ones((9, 9), np.uint8)) > 0
            inside = cv2.erode(truth.astype(np.uint8), np.ones((5, 5), np.uint8)) > 0
            wrong.append(rgba[..., 3][~around].mean() / 255)
            right.append(rgba[..., 3][inside].mean() / 255)
        figures |= {f"{name}, spurious: share": float(np.mean(wrong)), f"{name}, found: share": float(np.mean(right))}
    return figures


def compressed_frames(home: Path) -> Job:
    """Prepares paint on a frame that was compressed as JPEG, to be compared with the frame."""
    frame = make_suite_clip("pan", FRAMES, SIZE).frames[0]
    cases = {}
    for name, radius, color in (("disc", 14, (220, 40, 60)), ("spot", 2, (250, 240, 30)), ("soft", 18, None)):
        painted = frame.copy()
        cv2.circle(painted, (60, 36), radius, color or (120, 120, 130), -1, cv2.LINE_AA)
        if color is None:
            painted = (0.8 * frame + 0.2 * painted).round().astype(np.uint8)
        for quality in (70, 92, None):
            buffer = io.BytesIO()
            Image.fromarray(painted).save(buffer, "PNG" if quality is None else "JPEG", quality=quality or 0)
            saved = np.asarray(Image.open(buffer).convert("RGB"))
            cases[f"{name}, {quality or 'png'}"] = (saved, painted, quality is not None)
    return partial(_find_all_paint, frame, cases)


def _find_all_paint(frame: np.ndarray, cases: dict[str, tuple[np.ndarray, np.ndarray, bool]]) -> Figures:
    figures: Figures = {}
    for name, (saved, painted, is_lossy) in cases.items():
        found = find_frame_paint(saved, frame, np.ones(frame.shape[:2], bool), is_lossy)
        found = np.zeros(frame.shape[:2], np.float32) if found is None else found
        truth = (painted != frame).any(-1)
        around = cv2.dilate(truth.astype(np.uint8), np.ones((9, 9), np.uint8)) > 0
        figures[f"{name}, found: share"] = float(found[truth].mean())
        figures[f"{name}, spurious: share"] = float(found[~around].mean())
    return figures


def carrying(home: Path) -> Job:
    """Prepares paint on one chart of a clip, to be propagated to the others."""
    clip = make_translation_clip(FRAMES, 96, 64, velocity=(1.5, 0.5))
    frames, _ = write_clip(clip, home)
    short = ChartSettings(frames_per_chart=4, explained_psnr_db=99.0, min_gain_db=-99.0, max_loss_db=-99.0)
    divided = partial(plan_model, settings=GeometrySettings(charts=short))
    with mock.patch.object(initialize, plan_model.__name__, divided):
        options = TrainOptions(home / "run", size="source", masks=("none",), flow="dis", quality="draft")
        return partial(_carry_mark, clip, train(frames, options).run)


def _carry_mark(clip: SyntheticClip, run: Run) -> Figures:
    opened = require_planar(run, "the benchmark")
    maps, pictures = opened.maps, opened.canonicals
    first = maps.layers[0]
    picture = pictures[first]
    rgba = np.zeros((picture.size[1], picture.size[0], 4), np.float32)
    uv = torch.from_numpy(maps.read_uv(5, 0, maps.size)[32, 48])
    column, row = coords.uv_to_texels(uv, picture.box, *picture.size).tolist()
    y, x = np.mgrid[: rgba.shape[0], : rgba.shape[1]] + 0.5
    rgba[np.hypot(x - column, y - row) < 9] = (1, 0, 0, 1)
    overlays, notes = carry_to_charts(require_planar(run, "the benchmark"), {first: Overlay(rgba, picture.box)})
    renderer = OverlayPass(maps, pictures, overlays)
    shown = np.stack([renderer.render_frame(t, frame) for t, frame in enumerate(clip.frames)])
    change = np.abs(shown.astype(float) - clip.frames).mean()
    return {"notes: reasons": float(len(notes)), "change: levels": float(change)}


# --- 3D scenes --------------------------------------------------------------------------------------------------------

FEW_STEPS = (
    "--training.background_steps", "[6, 6, 6]", "--training.person_steps", "[6, 6, 6]",
    "--training.joint_steps", "[4, 4, 4]", "--training.rays", "128", "--training.person_rays", "128",
)  # fmt: skip


def capture(home: Path) -> Job:
    """Prepares a few steps of the training of a 3D scene with a person."""
    write_capture(home / "scene", make_walking_scene(count=6, size=(48, 36), switches=(3,)).capture)
    return partial(_train_scene, home / "scene")


def _train_scene(scene: Path) -> Figures:
    with tempfile.TemporaryDirectory() as folder:
        words = ["--config", "hosnerf", "--size", "source", "--out", f"{folder}/run", "--training.holdout", "3"]
        _run_quietly("train", str(scene), *words, *FEW_STEPS)
        found = json.loads(_run_quietly("eval", f"{folder}/run", "--json"))
    return {f"{name}: dB": float(found[name]) for name in ("psnr", "psnr_held_out") if found.get(name) is not None}


def _run_quietly(*words: str) -> str:
    """Runs a command in this process and returns what it prints."""
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        code = unwrap(list(words))
    if code:
        raise RuntimeError(err.getvalue().strip()[-200:])
    return out.getvalue()
