"""`unwrap demo`: runs the complete workflow on a built-in clip with known ground truth, and measures the result."""

from __future__ import annotations

import time
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from jaxtyping import Float, UInt8

from editors.api import edit
from neural_fields.core import coords
from neural_fields.core.files import atomic_write
from neural_fields.core.progress import Progress, ProgressReporter, StageWeights, report_nothing
from neural_fields.data.synthetic.planar_clips import PaintedMark, SyntheticClip, make_demo_clip
from neural_fields.data.video.io import probe_video, source_frames, write_video
from neural_fields.data.video.metadata import VideoMetadata, make_metadata
from neural_fields.evaluation import metrics
from neural_fields.evaluation.evaluate_planar import evaluate
from neural_fields.imaging.contact_sheet import contact_sheet
from neural_fields.imaging.image_io import encode_png, read_picture
from neural_fields.open_runs.opening import require_planar
from neural_fields.open_runs.planar_run import PlanarRun
from neural_fields.rendering.options import RenderOptions
from neural_fields.rendering.overlay_pass import OverlayPass
from neural_fields.rendering.render_planar import open_passes, render
from neural_fields.training.options import STAGE_WEIGHTS as TRAINING_WEIGHTS
from neural_fields.training.options import TrainOptions
from neural_fields.training.train_planar import train

STAGE_WEIGHTS: StageWeights = {"clip": 0.02, **TRAINING_WEIGHTS, "rendering": 0.08}


@dataclass(frozen=True)
class DemoSettings:
    """Settings of `unwrap demo`."""

    frames: int = 48
    width: int = 640  # of the clip, in pixels
    height: int = 360
    training_size: str = "240p"
    star_rgb: tuple[float, float, float] = (0.93, 0.16, 0.22)
    star_radius: float = 0.085  # in units of which the longer side of the frame has 2


DEFAULTS = DemoSettings()


@dataclass(frozen=True)
class Star:
    """Describes the painted star and its position."""

    frame: int
    position: tuple[float, float]  # pixel position of its center in that frame
    rgb: tuple[float, float, float]
    picture: Path


def run_demonstration(
    out: Path, report: ProgressReporter = report_nothing, settings: DemoSettings = DEFAULTS
) -> dict[str, Any]:
    """Makes a clip, trains on it, paints a star on the object's canonical picture, renders, and measures.

    Args:
        out: folder for the clip, the run, the painted picture, the edited video and `overview.png`.
        report: called with the progress.
        settings: sizes of the demonstration.

    Returns:
        Measurements: drift of the star in pixels of the clip, PSNR against the true edited clip in dB, and times in
        seconds.
    """
    begin = time.monotonic()
    clip = make_demo_clip(settings.frames, settings.width, settings.height)
    source = out / "clip.mp4"
    write_video(source, clip.render_frames(), make_clip_metadata(clip), overwrite=True)
    note = f"made {source}: {clip.count} frames of {clip.width}x{clip.height}"
    report(Progress("clip", clip.count, clip.count, note=note))
    trained_run = train(
        source, TrainOptions(out=out / "run", size=settings.training_size, quality="normal"), report
    ).run
    run = require_planar(trained_run, "the demonstration")
    trained = time.monotonic()
    star = paint_star(run, clip, out, settings)
    if not any(found.name.startswith("painted") for found in run.edits):
        edit(run, star.picture, layer="foreground")
    (video,) = render(run, RenderOptions(out=out / "edited.mp4", overwrite=True), report)
    rendered = time.monotonic()
    figures = measure_star(run, clip, star, video)
    write_overview(run, star, video, out / "overview.png")
    quality = evaluate(run)
    return {
        "edited video": str(video),
        "pictures": str(out / "overview.png"),
        **figures,
        "fit PSNR (dB)": quality["psnr"],
        "fit (s)": round(trained - begin, 1),
        "edit and render (s)": round(rendered - trained, 1),
    }


def make_clip_metadata(clip: SyntheticClip, rate: Fraction = Fraction(24)) -> VideoMetadata:
    """Makes the metadata of a clip that is not in a file yet.

    Args:
        clip: the clip.
        rate: frames per second.
    """
    return make_metadata((clip.width, clip.height), clip.count, rate)


def paint_star(run: PlanarRun, clip: SyntheticClip, out: Path, settings: DemoSettings = DEFAULTS) -> Star:
    """Paints a star on the object's canonical picture, as a user would in an image editor, and saves it.

    Args:
        run: the open run.
        clip: the clip that it was trained on.
        out: folder for the painted picture.
        settings: color and size of the star.

    Returns:
        The star, with the path of the picture.
    """
    frame = clip.count // 2
    box = clip.boxes[0]
    center = ((box.u0 + box.u1) / 2, (box.v0 + box.v1) / 2)
    x, y = (float(value) for value in clip.compute_mark_positions("foreground", center)[frame])
    exported = run.canonical("foreground")
    (texel,) = run.frame_to_canonical("foreground", run.frames[frame], np.array([[x, y]])).texels
    radius = settings.star_radius * exported.size[0] / exported.box.width
    picture = exported.rgba.copy()
    cover = draw_star(exported.size, (float(texel[0]), float(texel[1])), radius)[..., None]
    picture[..., :3] = picture[..., :3] * (1 - cover) + np.array(settings.star_rgb, np.float32) * cover
    path = out / "painted.png"
    with atomic_write(path) as part:
        part.write_bytes(encode_png(picture))
    return Star(frame, (x, y), settings.star_rgb, path)


def draw_star(size: tuple[int, int], center: tuple[float, float], radius: float) -> Float[np.ndarray, "height width"]:
    """Draws a five-pointed star.

    Args:
        size: (width, height) of the result in pixels.
        center: (x, y) of the center in pixels.
        radius: distance from the center to the outer points, in pixels.

    Returns:
        The coverage of each pixel, 0 to 1.

    Example:
        >>> star = draw_star((9, 9), (4.5, 4.5), radius=4.0)
        >>> star.shape, float(star[4, 4]), float(star[0, 0])
        ((9, 9), 1.0, 0.0)
    """
    angles = np.pi * np.arange(10) / 5 - np.pi / 2
    reach = radius * np.where(np.arange(10) % 2, 0.45, 1.0)
    points = np.stack([center[0] + reach * np.cos(angles), center[1] + reach * np.sin(angles)], axis=-1)
    canvas = np.zeros((size[1], size[0]), np.uint8)
    # Points are given in 1/256 of a pixel; OpenCV counts from pixel centers.
    cv2.fillPoly(canvas, [np.round((points - 0.5) * 256).astype(np.int32)], 255, cv2.LINE_AA, 8)
    return canvas.astype(np.float32) / 255


def measure_star(run: PlanarRun, clip: SyntheticClip, star: Star, video: Path) -> dict[str, Any]:
    """Compares the edited video with the true video of the object with the star on it.

    The truth is anchored in one frame: the true motion moves the star from there to all other frames.

    Args:
        run: the open run.
        clip: the clip that it was trained on.
        star: the painted star.
        video: path of the edited video.

    Returns:
        Drift in pixels of the clip, and PSNR in dB.
    """
    renderer = open_passes(run)
    assert isinstance(renderer, OverlayPass), "the only edit is plain paint"
    truth = clip.render_edited([render_true_mark(renderer, clip, star)])
    source = list(run.iterate_frames())
    # Drift is measured before the encoder, whose errors would count as paint elsewhere in the frame.
    positions = metrics.locate_marks(truth, clip.frames, star.rgb)
    drift = metrics.measure_mark_drift(renderer.render_frames(enumerate(source)), source, positions, star.rgb)
    edited = source_frames(probe_video(video), range(clip.count))
    return {
        "mean drift (px)": round(float(np.nanmean(drift)), 3),
        "worst drift (px)": round(float(np.nanmax(drift)), 3),
        "edit PSNR (dB)": round(float(np.mean(metrics.psnr_per_frame(edited, truth))), 2),
    }


def render_true_mark(renderer: OverlayPass, clip: SyntheticClip, star: Star) -> PaintedMark:
    """Renders the star as it looks in the anchor frame, without the lighting of that frame.

    Args:
        renderer: renders the run with the star on it.
        clip: the clip that the run was trained on.
        star: the painted star.
    """
    maps, frame, size = renderer.maps, star.frame, (clip.width, clip.height)
    rgba, lit = renderer.warp_overlay(frame, maps.layers.index("foreground"), size)
    color = np.clip(lit / clip.gain[frame], 0, 1)
    box = coords.frame_box(*size)
    return PaintedMark(np.concatenate([color, rgba[..., 3:]], axis=-1), box, "foreground", frame)


def write_overview(run: PlanarRun, star: Star, video: Path, path: Path) -> None:
    """Writes one picture of the job: the canonical picture, the painted one, and three edited frames.

    Args:
        run: the open run.
        star: the painted star.
        video: path of the edited video.
        path: path of the picture to write.
    """
    metadata = probe_video(video)
    chosen = [round(share * (metadata.frame_count - 1)) for share in (0.1, 0.5, 0.9)]
    frames = [next(iter(source_frames(metadata, range(k, k + 1)))) for k in chosen]
    exported = run.canonical("foreground").rgba
    pictures = [blend_on_checkerboard(exported), blend_on_checkerboard(read_picture(star.picture).rgba)]
    height = round(480 * exported.shape[0] / exported.shape[1])
    top = [cv2.resize(picture, (480, height), interpolation=cv2.INTER_AREA) for picture in pictures]
    rows = [np.concatenate(top, axis=1), contact_sheet(frames, 3, 320)]
    with atomic_write(path) as part:
        part.write_bytes(encode_png(np.concatenate(rows).astype(np.float32) / 255))


def blend_on_checkerboard(rgba: Float[np.ndarray, "h w 4"], cell: int = 12) -> UInt8[np.ndarray, "h w 3"]:
    """Blends a picture with a gray checkerboard that stands for transparency.

    Args:
        rgba: straight RGBA in [0, 1].
        cell: side of a square in pixels.
    """
    rows, columns = np.indices(rgba.shape[:2]) // cell
    ground = np.where((rows + columns) % 2, 0.8, 0.62)[..., None]
    return (255 * (rgba[..., :3] * rgba[..., 3:] + ground * (1 - rgba[..., 3:]))).round().astype(np.uint8)
