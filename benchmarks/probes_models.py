"""Defines probes of masks, geometry, training, tracking and the report, and shared parts (see `probes.py`)."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import torch
from common import DATA, masks_of, missing
from edits import fitted
from suite import show, write_clip

from neural_fields.core import coords
from neural_fields.data.capture.background_subtraction import BodyViews, segment_person
from neural_fields.data.dataset import ClipDataset
from neural_fields.data.flow.compute import FlowField, compute_flow
from neural_fields.data.flow.shot_detection import find_cuts
from neural_fields.data.masks.layer_masks import LayerMasks, load_masks, mask_iou
from neural_fields.data.masks.refinement import refine_masks
from neural_fields.data.masks.roi import draw_quad_mask
from neural_fields.data.segmentation.moving_objects import find_moving_objects
from neural_fields.data.synthetic.planar_clips import SyntheticClip, make_demo_clip, make_translation_clip
from neural_fields.data.synthetic.scene import make_walking_scene
from neural_fields.data.synthetic.suite import make_suite_clip
from neural_fields.data.synthetic.true_tracks import compute_true_tracks, make_grid_points
from neural_fields.data.video.io import Video, read_video
from neural_fields.evaluation import metrics
from neural_fields.evaluation.report import TrainingCost, report_training
from neural_fields.open_runs.opening import require_planar
from neural_fields.planar.build import build_model
from neural_fields.planar.composition.model import PlanarModel
from neural_fields.planar.config import load_planar_config
from neural_fields.planar.init.region_tracking import track_region
from neural_fields.runs.run import Run
from neural_fields.tracking.labels import propagate_label_map
from neural_fields.tracking.points import track_through_model
from neural_fields.training.initialize import initialize_model, plan_model
from neural_fields.training.inputs import prepare_clip, read_given_masks
from neural_fields.training.options import TrainOptions
from neural_fields.training.train_planar import train

Figures = dict[str, float]
Job = Callable[[], Figures]

FRAMES = 12
SIZE = (128, 72)
DAVIS = ("davis-car-shadow", "davis-blackswan")
DAVIS_FRAMES = 10
DAVIS_SIZE = "160p"


def decibels(found: np.ndarray, truth: np.ndarray, mask: np.ndarray | None = None) -> float:
    """Computes the PSNR in dB, at most 100, so that a figure is always a number.

    Args:
        found: 8-bit colors.
        truth: the true colors.
        mask: the pixels to compare; None for all.
    """
    return min(100.0, metrics.psnr(found, truth, mask))


@contextlib.contextmanager
def copied(run: Run) -> Iterator[Run]:
    """Makes a temporary copy of a run that edits may change."""
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(run.path, Path(folder) / "run")
        yield Run(Path(folder) / "run")


# --- masks ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class MaskedClip:
    """Holds a clip with true and imperfect masks of its one object."""

    name: str
    frames: np.ndarray
    flow: FlowField
    truth: np.ndarray
    given: LayerMasks


def masked_clips(home: Path) -> list[MaskedClip]:
    """Prepares two clips of the suite with spoiled masks, and the clips of DAVIS with masks of a network."""
    clips = []
    for name in ("pan", "occlusion"):
        clip = make_suite_clip(name, FRAMES, SIZE)
        truth = clip.compute_labels() < len(clip.surfaces) - 1
        rough = np.stack([_spoil_mask(mask, t) for t, mask in enumerate(truth)])
        flow = compute_flow(clip.frames, home / name, "dis")
        clips.append(MaskedClip(name, clip.frames, flow, truth, LayerMasks(("foreground",), rough[None])))
    for name in available():
        source = read_video(DATA / name / "frames", home / name, DAVIS_SIZE, f"0:{DAVIS_FRAMES}")
        frames, facts = np.asarray(source.frames), source.metadata
        size = (frames.shape[2], frames.shape[1])
        flow = compute_flow(frames, home / name, "dis")
        true, given = (
            load_masks([masks_of(name, kind)], facts, size, range(*source.frame_range)) for kind in ("truth", "osvos")
        )
        clips.append(MaskedClip(name, frames, flow, np.asarray(true.masks[0]), given))
    return clips


def available() -> list[str]:
    """Returns the clips of DAVIS that are beside the checkout, and lists the missing ones on stderr."""
    gone = missing(DAVIS)
    return [name for name in DAVIS if name not in gone]


def _spoil_mask(mask: np.ndarray, t: int) -> np.ndarray:
    """Makes the outline too wide or too narrow, adds a speck of the background, and cuts a hole."""
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (5, 5))
    spoilt = (cv2.dilate if t % 3 else cv2.erode)(mask.astype(np.uint8), kernel)
    cv2.circle(spoilt, (12 + 3 * t, 60), 5, 1, -1)
    rows, columns = np.nonzero(mask)
    if t % 4 == 2 and len(rows):
        cv2.circle(spoilt, (int(columns.mean()), int(rows.mean())), 4, 0, -1)
    return spoilt > 0


def compare_masks(name: str, found: np.ndarray | None, truth: np.ndarray) -> Figures:
    """Computes mean IoU and boundary F; both are 0 without masks.

    Args:
        name: name of the clip, for the names of the figures.
        found: masks of all frames, or None.
        truth: the true masks.
    """
    if found is None:
        return {f"{name}: IoU": 0.0, f"{name}: F": 0.0}
    ious = [mask_iou(a, b) for a, b in zip(found, truth, strict=True)]
    return {f"{name}: IoU": float(np.mean(ious)), f"{name}: F": metrics.boundary_f(found, truth)}


def motion_segmentation(home: Path) -> Job:
    """Prepares clips whose object is segmented by motion."""
    return partial(_segment_all, masked_clips(home))


def _segment_all(clips: Sequence[MaskedClip]) -> Figures:
    figures: Figures = {}
    for clip in clips:
        found = find_moving_objects(clip.frames, clip.flow, 1).layers
        figures |= compare_masks(clip.name, found.masks[0] if found.names else None, clip.truth)
    return figures


def mask_refinement(home: Path) -> Job:
    """Prepares imperfect masks that are refined."""
    return partial(_refine_all, masked_clips(home))


def _refine_all(clips: Sequence[MaskedClip]) -> Figures:
    figures: Figures = {}
    for clip in clips:
        figures |= compare_masks(clip.name, refine_masks(clip.frames, clip.flow, clip.given).masks[0], clip.truth)
    return figures


def given_masks(home: Path) -> Job:
    """Prepares the masks that a training starts from, refined where that helps."""
    name = DAVIS[0]
    options = TrainOptions(masks=(masks_of(name, "osvos"),), size=DAVIS_SIZE, frames=f"0:{DAVIS_FRAMES}")
    source = read_video(DATA / name / "frames", home, DAVIS_SIZE, options.frames)
    (clip,) = (clip for clip in masked_clips(home) if clip.name == name)
    run = Run(home / "run")
    run.cache.mkdir(parents=True)
    config = load_planar_config("atlas")
    prepare_clip(run, source, options, config, given=read_given_masks(source.metadata, options, config))
    for path in run.cache.glob("mended-*"):
        path.unlink()
    return partial(_prepare_masks, run, source, options, clip)


def _prepare_masks(run: Run, source: Video, options: TrainOptions, clip: MaskedClip) -> Figures:
    with copied(run) as fresh:
        config = load_planar_config("atlas")
        given = read_given_masks(source.metadata, options, config)
        made, _ = prepare_clip(fresh, source, options, config, given=given)
        return compare_masks(clip.name, np.array(made.masks.masks[0]), clip.truth)


def captured_person(home: Path) -> Job:
    """Prepares captures whose person is segmented by bones and by a static background."""
    scene = make_walking_scene(count=FRAMES, size=(96, 72))
    place = scene.cameras[0]
    still = [scene.compute_view(place, time) for time in range(FRAMES)]
    noise = np.random.default_rng(0).normal(0, 2.5, (FRAMES, 72, 96, 3))
    frames = (np.stack([view.rgb * 255 for view in still]) + noise).round().clip(0, 255).astype(np.uint8)
    truth = np.stack([view.mask for view in still])
    moving = np.stack([view.rgb * 255 for view in scene.training_views]) + noise
    moving_truth = np.stack([view.mask for view in scene.training_views])
    return partial(
        _find_person,
        [
            ("still camera", frames, BodyViews((place,) * FRAMES, scene.motion), truth),
            ("without bones", frames, None, truth),
            (
                "moving camera",
                moving.round().clip(0, 255).astype(np.uint8),
                BodyViews(scene.cameras, scene.motion),
                moving_truth,
            ),
        ],
    )


def _find_person(cases: Sequence[tuple[str, np.ndarray, BodyViews | None, np.ndarray]]) -> Figures:
    figures: Figures = {}
    for name, frames, body, truth in cases:
        figures |= compare_masks(name, segment_person(frames, body, still=name != "moving camera"), truth)
    return figures


def cuts(home: Path) -> Job:
    """Prepares clips with a cut that is hard to see, with a flash, and a real one without a cut."""
    shots = [
        np.roll(make_translation_clip(8, 96, 54, velocity=(9, 3), seed=seed).frames, seed, -1) for seed in range(3)
    ]
    edited = np.concatenate([*shots, make_suite_clip("pan", 8, (96, 54), 3).frames])
    flash = shots[0].copy()
    flash[4] = 255 - (255 - flash[4]) // 4
    clips = {"four shots": edited, "flash": flash, "suite flash": make_suite_clip("flash", FRAMES, SIZE).frames}
    for name in available():
        clips[name] = np.asarray(read_video(DATA / name / "frames", home / name, DAVIS_SIZE, "0:20").frames)
    flows: dict[str, FlowField | None] = {
        name: compute_flow(frames, home / name, "dis") for name, frames in clips.items()
    }
    clips["four shots without flow"], flows["four shots without flow"] = edited, None
    for step in range(1, 12):  # a cut to a picture that differs more and more, and a flash that grows brighter
        blend = shots[0] + (step / 12) * (shots[1].astype(np.float32) - shots[0])
        clips[f"step {step}"] = np.concatenate([shots[0], blend.astype(np.uint8)])
        bright = shots[0].copy()
        bright[3 : 3 + step // 2] = 255 - ((255 - shots[0][3 : 3 + step // 2]) * (1 - step / 12)).astype(np.uint8)
        clips[f"brighter {step}"] = bright
        after = shots[0] + (step / 12) * (shots[1].astype(np.float32) - shots[0])  # a flash that hides a change
        clips[f"changed behind a flash {step}"] = np.concatenate([shots[0], flash[4:5], after.astype(np.uint8)])
        light = 1 - 0.05 * step * (np.arange(16) % 2)[:, None, None, None]  # a cut among frames that flicker
        flickering = (np.concatenate([shots[0], shots[1]]) * light).astype(np.uint8)
        clips[f"flickering {step}"] = flickering
        clips[f"flickers for a while {step}"] = np.concatenate([shots[0], flickering[12 - step : 12 + step // 2]])
    return partial(_count_cuts, clips, flows)


def _count_cuts(clips: dict[str, np.ndarray], flows: dict[str, FlowField | None]) -> Figures:
    figures: Figures = {}
    for name, frames in clips.items():
        figure = f"{name.rstrip(' 0123456789')}: cuts"
        figures[figure] = figures.get(figure, 0.0) + len(find_cuts(frames, flows.get(name)))
    return figures


# --- training -------------------------------------------------------------------------------------------------------


def geometry(home: Path) -> Job:
    """Prepares clips whose model is initialized, for its pictures and tracks before any training."""
    prepared = {}
    for name in ("pan", "flash", "perspective", "occlusion"):
        clip = make_suite_clip(name, FRAMES, SIZE)
        fronts = clip.layer_names[:-1]
        masks = LayerMasks(fronts, np.stack([clip.compute_labels() == layer for layer in range(len(fronts))]))
        prepared[name] = clip, ClipDataset(clip.frames, masks, compute_flow(clip.frames, home / name, "dis"))
    return partial(_initialize_all, prepared)


def _initialize_all(clips: dict[str, tuple[SyntheticClip, ClipDataset]]) -> Figures:
    config = load_planar_config("atlas")
    figures: Figures = {}
    for name, (truth, clip) in clips.items():
        clip = replace(clip, cuts=find_cuts(clip.frames, clip.flow))
        start = plan_model(config, clip)
        model = build_model(config, start.shape)
        initialize_model(model, start, clip)
        model.eval()
        figures[f"{name}: dB"] = decibels(show(model).frames, truth.frames)
        figures[f"{name}, points: px"] = _track_error(model, truth, FRAMES // 2)
        for layer in start.shape.layers:
            figures[f"{name}, width of {layer.name}: texels"] = float(layer.width)
    return figures


def _track_error(model: PlanarModel, clip: SyntheticClip, frame: int) -> float:
    """Computes the mean error of points of one frame in all frames that truly show them."""
    start = make_grid_points(clip, frame, 6)
    found, truth = track_through_model(model, start, frame), compute_true_tracks(clip, start, frame)
    return float(np.linalg.norm(found.positions - truth.positions, axis=-1)[truth.visibility].mean())


def training(home: Path) -> Job:
    """Prepares a few steps of training with true masks, for the canonical pictures."""
    clip = make_suite_clip("flash", 8, (96, 54))
    return partial(_train_shortly, clip, *write_clip(clip, home))


def _train_shortly(clip: SyntheticClip, frames: Path, masks: list[str]) -> Figures:
    with tempfile.TemporaryDirectory() as folder:
        options = TrainOptions(
            Path(folder) / "run", masks=tuple(masks), size="source", flow="dis", overrides={"training.steps": 10}
        )
        run = train(frames, options).run
        opened = require_planar(run, "the benchmark")
        model, pictures = opened.model, opened.canonicals
    figures = {"flash: dB": decibels(show(model.eval()).frames, clip.frames)}
    for name, picture in pictures.items():
        figures[f"{name} covered: share"] = float(picture.rgba[..., 3].mean())
        figures[f"{name} width: texels"] = float(picture.size[0])
    return figures


def charts(home: Path) -> Job:
    """Prepares clips that are divided into charts: two of DAVIS, and two that one picture explains badly."""
    prepared = {}
    for name, count in (("turning", 110), ("parallax", 60)):
        clip = make_suite_clip(name, count, (80, 48))
        masks = LayerMasks((), np.zeros((0, *clip.frames.shape[:3]), bool))
        prepared[name] = ClipDataset(clip.frames, masks, compute_flow(clip.frames, home / name, "dis"))
    for name in available():
        frames = np.asarray(read_video(DATA / name / "frames", home / name, DAVIS_SIZE).frames)
        masks = LayerMasks((), np.zeros((0, *frames.shape[:3]), bool))
        prepared[name] = ClipDataset(frames, masks, compute_flow(frames, home / name, "dis"))
    return partial(_plan_charts, prepared)


def _plan_charts(clips: dict[str, ClipDataset]) -> Figures:
    figures: Figures = {}
    for name, clip in clips.items():
        clip = replace(clip, cuts=find_cuts(clip.frames, clip.flow))
        (layer,) = plan_model(load_planar_config("atlas"), clip).shape.layers
        figures |= {f"{name}: charts": float(len(layer.charts)), f"{name}, width: texels": float(layer.width)}
        figures[f"{name}, box: share"] = layer.box.width
    return figures


def region_tracking(home: Path) -> Job:
    """Prepares four corners on the background, which the object covers for a while, to be tracked."""
    cases = {}
    for name, (left, top, right, bottom) in {"pan": (70, 8, 118, 34), "perspective": (64, 34, 116, 66)}.items():
        clip = make_suite_clip(name, FRAMES, SIZE)
        places = clip.uv[1, FRAMES // 2, [top, top, bottom, bottom], [left, right, right, left]]
        truth = np.stack([clip.compute_mark_positions(1, place.tolist()) for place in places], axis=1)
        cases[name] = clip, compute_flow(clip.frames, home / name, "dis"), truth
    return partial(_follow_corners, cases)


def _follow_corners(cases: dict[str, tuple[SyntheticClip, FlowField, np.ndarray]]) -> Figures:
    figures: Figures = {}
    for name, (clip, flow, truth) in cases.items():
        start = coords.normalize_pixels(torch.from_numpy(truth[FRAMES // 2]), clip.width, clip.height).numpy()
        found = track_region(clip.frames, flow, start, FRAMES // 2)
        quads = np.stack([found.track.compute_quad(t) for t in range(clip.count)])
        pixels = coords.denormalize_pixels(torch.from_numpy(quads), clip.width, clip.height).numpy()
        error = np.linalg.norm(pixels - truth, axis=-1)
        inside = np.stack([draw_quad_mask(quad, (clip.width, clip.height)) for quad in quads])
        figures |= {f"{name}, corners: px": float(error.mean()), f"{name}, worst corner: px": float(error.max())}
        right = found.visibility == (inside & (clip.compute_labels() == 1))
        figures[f"{name}, seen or covered: share"] = float(right[inside].mean())
    return figures


def tracking(home: Path) -> Job:
    """Prepares points and labels (stripes of a few pixels) that are tracked through a trained model."""
    clip = make_demo_clip(FRAMES, *SIZE)
    run = fitted(home, clip, "draft")
    flow = compute_flow(clip.frames, run.cache, "dis")
    return partial(_follow_points, clip, run, flow)


def _follow_points(clip: SyntheticClip, run: Run, flow: FlowField) -> Figures:
    model = require_planar(run, "the benchmark").model
    model = model.eval()
    object_seen = clip.compute_labels() == 0
    stripes = np.floor(clip.uv[..., 0] * 16 + clip.uv[..., 1] * 9).astype(int) % 2 == 1  # fixed to the layers
    truth = np.where(object_seen, stripes[0], stripes[1] & (clip.uv[1, ..., 0] > 0))
    figures: Figures = {}
    for frame in (0, FRAMES // 2):
        start = make_grid_points(clip, frame, 5)
        found, true = track_through_model(model, start, frame, flow=flow), compute_true_tracks(clip, start, frame)
        error = np.linalg.norm(found.positions - true.positions, axis=-1)[true.visibility]
        figures[f"points of frame {frame}: px"] = float(error.mean())
        figures[f"seen or hidden of frame {frame}: share"] = float((found.visibility == true.visibility).mean())
        labels = list(propagate_label_map(model, truth[frame].astype(np.int32), frame, flow))
        figures |= compare_masks(f"labels of frame {frame}", np.stack(labels) > 0, truth)
    return figures


def report(home: Path) -> Job:
    """Prepares the verdict on a good clip and on one that turns."""
    runs = {}
    for name in ("pan", "turning"):
        clip = make_suite_clip(name, FRAMES, SIZE)
        frames, masks = write_clip(clip, home / name)
        options = TrainOptions(home / name / "run", quality="draft", size="source", masks=tuple(masks), flow="dis")
        runs[name] = (clip, train(frames, options).run)
    return partial(_judge_runs, runs)


LEVELS = ("good", "care", "bad")


def _judge_runs(runs: dict[str, tuple[SyntheticClip, Run]]) -> Figures:
    figures: Figures = {}
    for name, (_, run) in runs.items():
        opened = require_planar(run, "the benchmark")
        cost = TrainingCost(opened.step, None, None)
        found = report_training(opened, opened.model, opened.video.frames, opened.flow, cost)
        figures[f"{name} verdict: level"] = float(LEVELS.index(found.verdict.level))
        figures[f"{name} reasons: reasons"] = float(len(found.verdict.reasons))
        for layer in found.measurements.layers:
            values = {"stretched": layer.stretched, "folded": layer.folded, "seen": layer.seen}
            values |= {"green": layer.green, "yellow": layer.yellow, "red": layer.red}
            if layer.drift is not None:
                values |= {"steady": layer.drift.steady}
            figures |= {f"{name} {layer.name} {word}: share": v for word, v in values.items() if v is not None}
            if layer.drift is not None and layer.drift.far is not None:
                figures[f"{name} {layer.name} drift: px"] = layer.drift.far
    return figures
