"""The ground-truth suite is what it says: its maps can be inverted, its points keep their color and their layer."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from neural_fields.core import coords
from neural_fields.data.synthetic.planar_clips import PaintedMark, SyntheticClip
from neural_fields.data.synthetic.suite import SMOOTH_CLIP_NAMES, SUITE_CLIPS, make_suite_clip
from neural_fields.data.synthetic.true_tracks import compute_true_tracks, find_visible_layers, make_grid_points

pytestmark = pytest.mark.slow

BENCHMARKS = Path(__file__).resolve().parents[3] / "benchmarks"
ANY_CLIP = pytest.mark.parametrize("name", SUITE_CLIPS)


@cache
def clip(name: str) -> SyntheticClip:
    return make_suite_clip(name, frames=5, size=(96, 54))


def colors(image: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Bilinear colors of a frame at pixel positions."""
    height, width = image.shape[:2]
    box = coords.Box(0.0, 0.0, float(width), float(height))
    picture = torch.from_numpy(image.astype(np.float32)).permute(2, 0, 1)[None]
    return coords.sample_canonical(picture, box, torch.from_numpy(points.astype(np.float32))[None, None])[
        0, :, 0
    ].T.numpy()


@ANY_CLIP
def test_every_map_of_every_layer_can_be_gone_back(name: str) -> None:
    for layer, surface in enumerate(clip(name).surfaces):
        for t in (0, 4):
            xy = coords.frame_xy(clip(name).width, clip(name).height).double()
            uv = surface.uv_at(t, xy)
            own = surface.faces_camera(t, uv) & clip(name).is_inside_layer(layer, t, xy)
            assert own.any()
            assert (surface.xy_at(t, uv) - xy)[own].abs().max() < 1e-6


@pytest.mark.parametrize("name", SMOOTH_CLIP_NAMES)
def test_uv_are_the_xy_of_the_first_frame(name: str) -> None:
    xy = coords.frame_xy(clip(name).width, clip(name).height).numpy()
    np.testing.assert_allclose(clip(name).uv[:, 0], np.broadcast_to(xy, clip(name).uv[:, 0].shape), atol=1e-6)


@pytest.mark.parametrize("name", [name for name in SUITE_CLIPS if name not in ("flash", "portrait", "square")])
def test_true_points_keep_their_color_while_they_are_seen(name: str) -> None:
    if name == "blur":
        sharp = replace(clip(name), shutter=0.0)
        assert np.abs(sharp.frames.astype(int) - clip(name).frames).mean() > 1
    else:
        sharp = clip(name)
    points = make_grid_points(sharp, 2, 5)
    tracks = compute_true_tracks(sharp, points, 2)
    first = colors(sharp.frames[2], points)
    for t in (0, 4):
        seen = tracks.visibility[:, t]
        assert seen.mean() > 0.7
        change = np.abs(colors(sharp.frames[t], tracks.positions[:, t])[seen] - first[seen])
        assert np.median(change) < 4  # fine detail differs by how it falls on the pixels
        assert np.abs(tracks.positions[:, 2] - points).max() < 1e-6


@ANY_CLIP
def test_flow_leads_to_the_same_point_of_the_same_layer(name: str) -> None:
    shown = clip(name)
    points = make_grid_points(shown, 1, 6)
    row, column = np.floor(points).astype(int).T[::-1]
    there = compute_true_tracks(shown, points, 1).positions[:, 2]
    np.testing.assert_allclose(points + shown.forward_flow[1][row, column], there, atol=1e-3)


def test_a_pan_moves_every_point_of_the_background_by_the_same_step() -> None:
    points = np.array([[10.5, 40.5], [80.5, 10.5]])
    tracks = compute_true_tracks(clip("pan"), points, 0)
    steps = np.diff(tracks.positions, axis=1)
    assert (find_visible_layers(clip("pan"), 0, points) == 1).all()
    np.testing.assert_allclose(steps, np.broadcast_to([-0.96, -0.192], steps.shape), atol=1e-6)  # 0.02 * 96 / 2


def test_points_are_hidden_where_a_front_layer_covers_them_and_where_they_leave_the_frame() -> None:
    shown = make_suite_clip("occlusion", frames=24, size=(96, 54))
    labels = shown.compute_labels()
    points = make_grid_points(shown, 0, 4)
    turtle = points[find_visible_layers(shown, 0, points) == 1]
    tracks = compute_true_tracks(shown, turtle, 0)
    covered = ~tracks.visibility[:, 18]
    assert 0.2 < covered.mean() < 0.95
    row, column = np.floor(tracks.positions[:, 18]).astype(int).T[::-1]
    assert (labels[18][row, column][covered] == 0).mean() > 0.9
    assert (labels[18][row, column][~covered] == 1).mean() > 0.9
    beyond = compute_true_tracks(make_suite_clip("pan", frames=8, size=(96, 54)), np.array([[1.5, 30.5]]), 0)
    assert beyond.visibility[0, 0] and not beyond.visibility[0, 7]


def test_a_turning_body_hides_what_turns_away() -> None:
    shown = make_suite_clip("turning", frames=24, size=(96, 54))
    points = make_grid_points(shown, 0, 3)
    body = points[find_visible_layers(shown, 0, points) == 0]
    tracks = compute_true_tracks(shown, body, 0)
    right = body[:, 0] > np.percentile(body[:, 0], 90)
    left = body[:, 0] < np.percentile(body[:, 0], 50)
    assert not tracks.visibility[right, 23].any() and tracks.visibility[left, 23].all()
    assert (np.diff(tracks.positions[left, :, 0], axis=1) > 0).all()  # the wall moves to the right


def test_a_mark_on_a_turning_body_is_painted_once() -> None:
    shown = make_suite_clip("turning", frames=24, size=(96, 54))
    full = np.ones((8, 8, 4), np.float32)
    edited = shown.render_edited([PaintedMark(full, coords.frame_box(96, 54), "foreground", frame=23)])
    white = (edited[0] > 250).all(-1)
    unpainted = coords.pixel_centers(96, 54).numpy()[(shown.alpha[0, 0] > 0.99) & ~white]
    assert white.any() and not white[shown.compute_labels()[0] != 0].any()
    assert len(unpainted) and unpainted[:, 0].min() > 48  # what has turned away to the right could not be painted


def test_flashes_change_only_their_frames() -> None:
    gain = make_suite_clip("flash", frames=24, size=(32, 18)).gain.mean((1, 2, 3))
    jumps = np.flatnonzero(np.abs(np.diff(gain)) > 0.08)
    assert jumps.tolist() == [7, 8, 9, 17, 18]


def test_an_open_shutter_softens_the_outline_along_the_motion() -> None:
    blurred = clip("blur")
    sharp = replace(blurred, shutter=0.0)
    soft = [((shown.alpha > 0.1) & (shown.alpha < 0.9)).mean() for shown in (blurred, sharp)]
    assert soft[0] > 1.1 * soft[1]
    assert abs(blurred.alpha.mean() - sharp.alpha.mean()) < 2e-3


def test_portrait_and_square_have_the_area_of_the_others() -> None:
    assert (clip("portrait").width, clip("portrait").height) == (54, 96)
    assert clip("square").width == clip("square").height == 72
    assert len(clip("occlusion").surfaces) == 3


def test_photos_take_the_place_of_the_paint() -> None:
    red, blue = (np.broadcast_to(np.array(c, np.float32), (20, 30, 3)) for c in ((0.8, 0.1, 0.1), (0.1, 0.1, 0.8)))
    for name in ("pan", "square"):
        shown = make_suite_clip(name, frames=1, size=(96, 54), photos=(red, blue))
        means = [shown.frames[0][shown.compute_labels()[0] == layer].mean(0) for layer in (0, 1)]
        assert means[0].argmax() == 0 and means[1].argmax() == 2
    same, other = (make_suite_clip("pan", frames=1, size=(32, 18), seed=seed).frames for seed in (0, 1))
    assert np.abs(same.astype(int) - other).mean() > 5


def benchmark(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A benchmark script as a module."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    spec = importlib.util.spec_from_file_location(f"benchmark_{name}", BENCHMARKS / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_the_benchmark_trains_on_and_measures_a_clip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    suite = benchmark("suite", monkeypatch)
    output = tmp_path / "figures.json"
    words = ["suite.py", "--clips", "pan", "--frames", "4", "--size", "96", "54", "--json", str(output)]
    monkeypatch.setattr(sys, "argv", words)
    suite.main()
    result = suite.json.loads(output.read_text())
    found = result["clips"]["pan"]
    assert result["summary"]["points_least"] == found["tracking"]["delta"]
    assert found["tracking"]["delta"] > 0.95 and found["chained_flow"]["delta"] > 0.9
    assert found["psnr"] > 25 and set(found["psnr_per_layer"]) == {"foreground", "background"}
    assert found["opacity_iou"]["foreground"] > 0.9 and found["boundary_f"]["foreground"] > 0.9
    assert all(value < 0.3 for value in found["uv_slip_px"].values())
    assert all(value < 0.5 for value in found["drift_px"].values())
    assert all(value > 30 for value in found["edit_psnr"].values())
