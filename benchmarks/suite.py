"""Trains on every clip of the ground-truth suite, and compares points, opacity, pictures and edits with the truth.

    python benchmarks/suite.py [--clips pan wave ...] [--config PRESET] [--quality draft] [--masks truth|auto]
                               [--frames 24] [--size 192 108] [--photos PICTURE ...] [--json FILE]

A table, then one line of JSON with the machine and the versions. Columns: PSNR of the whole frame and of the pixels of
each layer; uv end-point error in pixels after the best affine alignment of each layer, and after an alignment of each
patch (a canonical plane is free up to a smooth map); share of points within 1, 2, 4, 8, 16 px, averaged, and share of
points correctly found visible or hidden, both compared with chained optical flow; IoU and boundary F of
the front layers' opacity; PSNR of an edited clip against the true edited clip, and mean drift of a painted disc.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from main_job import versions

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from neural_fields.atlas.canonical import Overlay
from neural_fields.core import coords
from neural_fields.core.errors import ExitCode, UserError
from neural_fields.data.flow.compute import compute_flow
from neural_fields.data.point_tracks import PointTracks
from neural_fields.data.synthetic.planar_clips import PaintedMark, SyntheticClip
from neural_fields.data.synthetic.suite import SMOOTH_CLIP_NAMES, SUITE_CLIPS, make_suite_clip
from neural_fields.data.synthetic.true_tracks import compute_true_tracks, find_visible_layers, make_grid_points
from neural_fields.evaluation import metrics
from neural_fields.evaluation.tracking_metrics import measure_tracking, measure_uv_error, measure_uv_slip
from neural_fields.open_runs.opening import require_planar
from neural_fields.planar.composition.model import PlanarModel
from neural_fields.planar.composition.samples import composite_layers
from neural_fields.rendering.overlay_pass import OverlayPass
from neural_fields.runs.run import Run
from neural_fields.tracking.points import chain_flow, compute_uv, track_through_model
from neural_fields.training.options import TrainOptions
from neural_fields.training.train_planar import train

STEP = 6  # pixels between followed points
PATCH = 12  # pixels: side of the squares that `measure_uv_slip` aligns
RED = (0.93, 0.16, 0.22)
RADIUS = 0.06  # of the painted disc, where the longer side of the frame has 2


@dataclass(frozen=True)
class Shown:
    """Holds the frames and weights of a trained model."""

    frames: np.ndarray  # [frames, height, width, 3], uint8
    weight: np.ndarray  # [frames, height, width, layers]


def write_clip(clip: SyntheticClip, folder: Path) -> tuple[Path, list[str]]:
    """Writes the frames as PNG and the true visible masks of the front layers as arrays; returns the paths."""
    frames = folder / "frames"
    frames.mkdir(parents=True)
    for t, frame in enumerate(clip.frames):
        cv2.imwrite(str(frames / f"{t:05d}.png"), np.ascontiguousarray(frame[..., ::-1]))
    specs = []
    for layer, name in enumerate(clip.layer_names[:-1]):
        path = folder / f"{name}.npy"
        np.save(path, clip.compute_labels() == layer)
        specs.append(f"{name}={path}")
    return frames, specs


def measure(clip: SyntheticClip, run: Run, seconds: float) -> dict[str, Any]:
    """Measures all figures of a trained clip.

    Args:
        clip: the clip with its truth.
        run: a run of the clip.
        seconds: time of the training.

    Returns:
        The figures by name.
    """
    opened = require_planar(run, "the benchmark")
    model, step = opened.model, opened.step
    model = model.eval()
    shown = show(model)
    truth_layers = [match_layer(clip, shown, model, layer) for layer in range(len(clip.surfaces))]
    return {
        "psnr": mean(metrics.psnr_per_frame(shown.frames, clip.frames)),
        "psnr_per_layer": per_layer(
            clip, lambda layer: metrics.psnr(shown.frames, clip.frames, clip.compute_labels() == layer)
        ),
        **uv_errors(clip, model, truth_layers),
        **points(clip, run, model),
        "opacity_iou": opacities(clip, shown, truth_layers, metrics.alpha_iou),
        "boundary_f": opacities(clip, shown, truth_layers, metrics.boundary_f),
        **edits(clip, run, model, truth_layers),
        "steps": step,
        "seconds": round(seconds, 1),
    }


def show(model: PlanarModel) -> Shown:
    """Evaluates every frame of a model, with the weights of its layers."""
    width, height = model.shape.size
    frames, weights = [], []
    with torch.no_grad():
        for t in range(model.shape.frame_count):
            samples = model.sample_frame(t, (width, height))
            picture = composite_layers(samples).clamp(0, 1).view(height, width, 3)
            frames.append((picture * 255).round().to(torch.uint8).numpy())
            weights.append(samples.weight.view(height, width, -1).numpy().copy())
    return Shown(np.stack(frames), np.stack(weights))


def match_layer(clip: SyntheticClip, shown: Shown, model: PlanarModel, layer: int) -> int:
    """Finds the model's layer for a true layer.

    Args:
        clip: the clip with its truth.
        shown: the frames of the model.
        model: the model.
        layer: index of the true layer.

    Returns:
        The index of the layer with the same name, or of the one with the most weight in its pixels.
    """
    name = clip.layer_names[layer]
    if name in model.layers:
        return model.layers.index(name)
    return int(shown.weight[clip.compute_labels() == layer].sum(0).argmax())


def per_layer(clip: SyntheticClip, figure: Any) -> dict[str, float | None]:
    """Computes a figure of each true layer, by its name."""
    return {name: plain(figure(layer)) for layer, name in enumerate(clip.layer_names)}


def uv_errors(clip: SyntheticClip, model: PlanarModel, layers: list[int]) -> dict[str, Any]:
    """Measures the uv errors of visible points after an alignment of the whole layer, and of patches.

    Args:
        clip: the clip with its truth.
        model: the model.
        layers: the model's layer for each true layer.

    Returns:
        Mean distances by layer, in pixels of frame 0.
    """
    labels, centers = clip.compute_labels(), coords.pixel_centers(clip.width, clip.height).numpy()[::2, ::2]
    pixel = 2 / max(clip.width, clip.height)
    result: dict[str, Any] = {"uv_error_px": {}, "uv_slip_px": {}}
    for layer, name in enumerate(clip.layer_names):
        found, truth = [], []
        for t in range(clip.count):
            seen = labels[t, ::2, ::2] == layer
            found.append(compute_uv(model, centers[seen], t, layers[layer]))
            truth.append(clip.uv[layer, t, ::2, ::2][seen])
        both = np.concatenate(found), np.concatenate(truth)
        result["uv_error_px"][name] = plain(measure_uv_error(*both).mean() / pixel, 3)
        result["uv_slip_px"][name] = plain(measure_uv_slip(*both, PATCH * pixel).mean() / pixel, 3)
    return result


def points(clip: SyntheticClip, run: Run, model: PlanarModel) -> dict[str, Any]:
    """Tracks points of the first, the middle and the last frame through the model, and by chained flow.

    Args:
        clip: the clip with its truth.
        run: a run of the clip, for the cache of the flow.
        model: the model.

    Returns:
        Scores of both, for the clip and for each layer.
    """
    flow = compute_flow(clip.frames, run.cache, "dis")
    ours, chained, truths, queries, layers = [], [], [], [], []
    for frame in sorted({0, clip.count // 2, clip.count - 1}):
        start = make_grid_points(clip, frame, STEP)
        ours.append(track_through_model(model, start, frame, flow=flow))
        chained.append(chain_flow(flow, start, frame))
        truths.append(compute_true_tracks(clip, start, frame))
        layers.append(find_visible_layers(clip, frame, start))
        queries.append(np.arange(clip.count)[None] == np.full((len(start), 1), frame))
    layer, query, truth = np.concatenate(layers), np.concatenate(queries), joined(truths)
    result: dict[str, Any] = {}
    for name, found in (("tracking", joined(ours)), ("chained_flow", joined(chained))):

        def score(chosen: np.ndarray, found: PointTracks = found) -> dict[str, float | None]:
            seen = (found.positions[chosen], found.visibility[chosen])
            true = (truth.positions[chosen], truth.visibility[chosen])
            return measure_tracking(*seen, *true, query[chosen], (clip.width, clip.height)).as_dict()

        whole = score(np.ones(len(layer), bool))
        each = {label: score(layer == number) for number, label in enumerate(clip.layer_names)}
        result[name] = {**whole, "per_layer": each}
    return result


def joined(parts: list[PointTracks]) -> PointTracks:
    """Concatenates tracks."""
    return PointTracks(np.concatenate([p.positions for p in parts]), np.concatenate([p.visibility for p in parts]))


def opacities(clip: SyntheticClip, shown: Shown, layers: list[int], figure: Any) -> dict[str, float | None]:
    """Compares the weights of the front layers with the true masks.

    Args:
        clip: the clip with its truth.
        shown: the frames of the model.
        layers: the model's layer for each true layer.
        figure: a function of opacities and masks.

    Returns:
        The figure by layer.
    """
    labels = clip.compute_labels()
    found = {}
    for layer, name in enumerate(clip.layer_names[:-1]):
        found[name] = plain(figure(shown.weight[..., layers[layer]], labels == layer), 4)
    return found


# --- edits ----------------------------------------------------------------------------------------------------------


def edits(clip: SyntheticClip, run: Run, model: PlanarModel, layers: list[int]) -> dict[str, Any]:
    """Paints a disc on each layer's canonical picture in turn.

    Args:
        clip: the clip with its truth.
        run: a run of the clip.
        model: the model.
        layers: the model's layer for each true layer.

    Returns:
        By layer: PSNR of the edited clip in dB, mean and worst drift of the disc in pixels.
    """
    opened = require_planar(run, "the benchmark")
    maps, pictures = opened.maps, opened.canonicals
    found: dict[str, Any] = {"edit_psnr": {}, "drift_px": {}, "worst_drift_px": {}}
    for layer, name in enumerate(clip.layer_names):
        frame, point = place_for_mark(clip, layer)
        own = layers[layer]
        uv = compute_uv(model, point[None], frame, own)[0]
        around = compute_uv(model, point + np.array([[-3.0, 0.0], [3.0, 0.0]]), frame, own)
        stretch = float(np.linalg.norm(around[1] - around[0])) / (6 * 2 / max(clip.width, clip.height))
        renderer = OverlayPass(maps, pictures, {model.layers[own]: disc(uv, RADIUS * stretch)})
        mark = true_mark(clip, renderer, own, name, frame)
        truth = clip.render_edited([mark])
        edited = list(renderer.render_frames(enumerate(clip.frames)))
        drift = metrics.measure_mark_drift(edited, clip.frames, metrics.locate_marks(truth, clip.frames, RED), RED)
        found["edit_psnr"][name] = mean(metrics.psnr_per_frame(edited, truth))
        found["drift_px"][name] = plain(np.nanmean(drift), 3) if np.isfinite(drift).any() else None
        found["worst_drift_px"][name] = plain(np.nanmax(drift), 3) if np.isfinite(drift).any() else None
    return found


def place_for_mark(clip: SyntheticClip, layer: int) -> tuple[int, np.ndarray]:
    """Finds the place in the middle frame that is visible longest and furthest from outlines."""
    frame = clip.count // 2
    start = make_grid_points(clip, frame, 4)
    start = start[find_visible_layers(clip, frame, start) == layer]
    seen = compute_true_tracks(clip, start, frame).visibility.sum(1)
    own = np.pad((clip.compute_labels()[frame] == layer).astype(np.uint8), 1)
    away = cv2.distanceTransform(own, cv2.DIST_L2, 5)[1:-1, 1:-1]
    row, column = np.floor(start).astype(int).T[::-1]
    return frame, start[np.lexsort((away[row, column].clip(max=20), seen))[-1]]


def disc(uv: np.ndarray, radius: float, texels: int = 96) -> Overlay:
    """Makes a red disc around a canonical point.

    Args:
        uv: middle of the disc, in uv units.
        radius: in uv units.
        texels: texels along a side of the overlay.
    """
    y, x = np.mgrid[:texels, :texels] + 0.5 - texels / 2
    rgba = np.zeros((texels, texels, 4), np.float32)
    rgba[..., :3] = RED
    rgba[..., 3] = np.clip(texels * 0.45 - np.hypot(x, y), 0, 1)
    rgba[rgba[..., 3] == 0] = 0
    u, v, half = float(uv[0]), float(uv[1]), radius / 0.9
    return Overlay(rgba, coords.Box(u - half, v - half, u + half, v + half))


def true_mark(clip: SyntheticClip, renderer: OverlayPass, own: int, name: str, frame: int) -> PaintedMark:
    """Makes the disc as it looks in the frame to which it is anchored, without the light of that frame.

    Args:
        clip: the clip with its truth.
        renderer: renders the disc.
        own: index of the model's layer.
        name: name of the true layer.
        frame: number of the frame.

    Returns:
        The mark to render into the true clip.
    """
    size = (clip.width, clip.height)
    rgba, lit = renderer.warp_overlay(frame, own, size)
    color = np.clip(lit / clip.gain[frame], 0, 1)
    return PaintedMark(np.concatenate([color, rgba[..., 3:]], axis=-1), coords.frame_box(*size), name, frame)


# --- the table ------------------------------------------------------------------------------------------------------


def plain(value: float, digits: int = 2) -> float | None:
    """Rounds a number; None if it is not finite."""
    return round(float(value), digits) if np.isfinite(value) else None


def mean(values: list[float]) -> float | None:
    """Computes the mean of the finite values; None without one."""
    finite = [value for value in values if np.isfinite(value)]
    return round(float(np.mean(finite)), 2) if finite else None


def fit_one(clip: SyntheticClip, folder: Path, chosen: argparse.Namespace) -> dict[str, Any]:
    """Writes, trains and measures one clip.

    Args:
        clip: the clip with its truth.
        folder: folder for the frames and the run.
        chosen: options of the command line.

    Returns:
        The figures by name.
    """
    frames, specs = write_clip(clip, folder)
    masks = ("auto",) if chosen.masks == "auto" else tuple(specs)
    begin = time.monotonic()
    options = TrainOptions(
        out=folder / "run", config=chosen.config, quality=chosen.quality, masks=masks, flow="dis", seed=chosen.seed
    )
    done = train(frames, options)
    if done.exit_code != ExitCode.OK:
        raise SystemExit(int(done.exit_code))
    return measure(clip, done.run, time.monotonic() - begin)


def rows(found: dict[str, dict[str, Any]]) -> Iterator[str]:
    """Yields the lines of the table."""
    yield (
        f"{'clip':<12}{'PSNR':>6} {'by layer':<18}{'uv error px':<16}{'by patches':<16}"
        f"{'points':>7}{'chained':>8}{'calls':>7}{'chained':>8} "
        f"{'IoU':<12}{'edge F':<12}{'edit PSNR':<18}{'drift px':<18}{'s':>6}"
    )
    for name, row in found.items():
        if "error" in row:
            yield f"{name:<12}{row['error']}"
            continue
        ours, chain = row["tracking"], row["chained_flow"]
        layers = [several(row[key], 2) for key in ("uv_error_px", "uv_slip_px", "drift_px")]
        shares = [several(row[key], 3) for key in ("opacity_iou", "boundary_f")]
        yield (
            f"{name:<12}{row['psnr']:>6.2f} {several(row['psnr_per_layer'], 1):<18}{layers[0]:<16}{layers[1]:<16}"
            f"{ours['delta']:>7.3f}{chain['delta']:>8.3f}{ours['occlusion']:>7.3f}{chain['occlusion']:>8.3f} "
            f"{shares[0]:<12}{shares[1]:<12}{several(row['edit_psnr'], 1):<18}{layers[2]:<18}{row['seconds']:>6.1f}"
        )


def summary(found: dict[str, dict[str, Any]]) -> dict[str, float]:
    """Summarizes the rigid and smoothly deforming clips: mean and worst of the figures that have a target."""
    chosen = [row for name, row in found.items() if name in SMOOTH_CLIP_NAMES and "error" not in row]
    if not chosen:
        return {}
    deltas = [row["tracking"]["delta"] for row in chosen]
    drifts = [value for row in chosen for value in row["drift_px"].values() if value is not None]
    return {
        "points_mean": round(float(np.mean(deltas)), 4),
        "points_least": min(deltas),
        "points_asked": 0.90,
        "chained_flow_mean": round(float(np.mean([row["chained_flow"]["delta"] for row in chosen])), 4),
        "drift_mean_px": round(float(np.mean(drifts)), 3),
        "drift_most_px": max(drifts),
        "drift_asked_px": 0.5,
    }


def several(values: dict[str, float | None], digits: int) -> str:
    """Formats several values for a cell."""
    return " ".join("-" if value is None else f"{value:.{digits}f}" for value in values.values())


def main() -> None:
    """Measures what the options name, and prints a table and one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clips", nargs="+", choices=SUITE_CLIPS, default=list(SUITE_CLIPS))
    parser.add_argument("--config", default="atlas")
    parser.add_argument("--quality", choices=("draft", "normal", "final"), default="draft")
    parser.add_argument("--masks", choices=("truth", "auto"), default="truth")
    parser.add_argument("--frames", type=int, default=24)
    parser.add_argument("--size", type=int, nargs=2, default=(192, 108), metavar=("WIDTH", "HEIGHT"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--photos", type=Path, nargs="*", default=[], help="pictures put on the surfaces")
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    photos = [cv2.imread(str(path))[..., ::-1].astype(np.float32) / 255 for path in chosen.photos]
    found: dict[str, dict[str, Any]] = {}
    header, *_ = rows({})
    print(f"{chosen.config}, {chosen.quality}, masks: {chosen.masks}; figures by layer run front to back\n{header}")
    for name in chosen.clips:
        with tempfile.TemporaryDirectory() as folder:
            clip = make_suite_clip(name, chosen.frames, tuple(chosen.size), chosen.seed, photos)
            try:
                found[name] = fit_one(clip, Path(folder), chosen)
            except UserError as problem:
                found[name] = {"error": str(problem)}
            print(list(rows({name: found[name]}))[1], flush=True)
    print("rigid and smooth clips:", ", ".join(f"{key} {value:g}" for key, value in summary(found).items()))
    settings = {key: getattr(chosen, key) for key in ("config", "quality", "masks", "frames", "size", "seed")}
    result = json.dumps({**versions(), **settings, "summary": summary(found), "clips": found})
    print(result)
    if chosen.json:
        chosen.json.write_text(result)


if __name__ == "__main__":
    main()
