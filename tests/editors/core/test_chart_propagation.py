"""An edit that is painted on one chart of a layer is propagated to its other charts."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from editors.api import edit
from editors.core.chart_propagation import carry_to_charts
from editors.demo import make_clip_metadata
from editors.effects.drag import Drag, solve_drag_field
from editors.effects.place import Place
from neural_fields.atlas.canonical import Overlay, read_pristine
from neural_fields.atlas.chart import Chart
from neural_fields.atlas.uv_maps import Maps
from neural_fields.core import coords
from neural_fields.core.box import Box
from neural_fields.data.synthetic.planar_clips import PaintedMark, SyntheticClip, make_translation_clip
from neural_fields.data.video.io import write_video
from neural_fields.imaging.image_io import encode_png
from neural_fields.open_runs.opening import require_planar
from neural_fields.open_runs.planar_run import PlanarRun
from neural_fields.planar.init.charts import ChartSettings
from neural_fields.planar.init.geometry import GeometrySettings
from neural_fields.rendering.compositor import read_deformations
from neural_fields.rendering.overlay_pass import OverlayPass
from neural_fields.rendering.render_planar import open_passes
from neural_fields.rendering.warp_pass import WarpPass
from neural_fields.runs.run import Run
from neural_fields.training import initialize
from neural_fields.training.initialize import plan_model
from neural_fields.training.options import TrainOptions
from neural_fields.training.train_planar import train

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def clip() -> SyntheticClip:
    return make_translation_clip(12, 96, 64, velocity=(1.5, 0.5))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, clip: SyntheticClip) -> Run:
    """A run with three charts of four frames."""
    home = tmp_path_factory.mktemp("charts")
    charts = ChartSettings(frames_per_chart=4, explained_psnr_db=99.0, min_gain_db=-99.0, max_loss_db=-99.0)
    plan = partial(plan_model, settings=GeometrySettings(charts=charts))
    video = write_video(home / "clip.mkv", clip.frames, make_clip_metadata(clip), codec="ffv1")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(initialize, plan_model.__name__, plan)
        run = train(video, TrainOptions(home / "run", size="source", masks=("none",), quality="draft")).run
    (series,) = Maps.open(run.maps).charts
    assert [(chart.first, chart.last) for chart in series] == [(0, 3), (4, 7), (8, 11)]
    return run


def test_what_is_painted_on_one_chart_appears_in_every_frame_at_its_place(run: Run, clip: SyntheticClip) -> None:
    maps = Maps.open(run.maps)
    picture = read_pristine(run.canonical, "background")
    rgba = np.zeros((picture.size[1], picture.size[0], 4), np.float32)
    texels = coords.uv_to_texels(torch.from_numpy(maps.read_uv(5, 0, maps.size)), picture.box, *picture.size).numpy()
    column, row = texels[32, 48]  # the middle of frame 5
    y, x = np.mgrid[: rgba.shape[0], : rgba.shape[1]] + 0.5
    rgba[np.hypot(x - column, y - row) < 9] = (1, 0, 0, 1)
    overlays, notes = carry_to_charts(require_planar(run, "the test"), {"background": Overlay(rgba, picture.box)})
    assert notes == ["propagated to 2 more of the 3 charts of background"]

    renderer = OverlayPass(maps, {"background": picture}, overlays)
    for t in range(12):
        change = np.abs(renderer.render_frame(t, clip.frames[t]).astype(int) - clip.frames[t]).sum(-1) > 60
        rows, columns = np.nonzero(change)
        # The pixel (48, 32) of frame 5 moves by the clip's velocity.
        assert (columns.mean(), rows.mean()) == pytest.approx((48 + 1.5 * (t - 5), 32 + 0.5 * (t - 5)), abs=0.8), t
        assert 80 < change.sum() < 260


def measure_sharpness(change: np.ndarray) -> float:
    """The gradient energy of a change over its energy."""
    slopes = [cv2.Scharr(change, cv2.CV_32F, dx, 1 - dx, scale=1 / 32) for dx in (0, 1)]
    return sum(float(np.square(slope).sum()) for slope in slopes) / float(np.square(change).sum())


def test_a_text_is_as_sharp_on_the_other_charts_as_on_its_own(run: Run, clip: SyntheticClip, tmp_path: Path) -> None:
    shutil.copytree(run.path, tmp_path / "run")
    stripes = np.full((200, 400, 4), (0.98, 0.94, 0.86, 1), np.float32)
    for column in range(40, 360, 80):
        stripes[40:160, column : column + 40] = (0.6, 0.1, 0.2, 1)
    (tmp_path / "text.png").write_bytes(encode_png(stripes))
    edit(tmp_path / "run", editor=Place(image=tmp_path / "text.png", box="34,22,28,14", frame=5))
    corners = torch.tensor([[34.0, 22.0], [62.0, 36.0]], dtype=torch.float64)
    place = Box(*coords.normalize_pixels(corners, 96, 64).flatten().tolist())
    true = clip.render_edited([PaintedMark(stripes, place, "background", 5)])
    renderer = open_passes(require_planar(tmp_path / "run", "the test"))
    for t, frame in enumerate(clip.frames):
        shown, wanted = (picture.astype(np.float32) - frame for picture in (renderer.render_frame(t, frame), true[t]))
        assert measure_sharpness(shown) > 0.9 * measure_sharpness(wanted), t
        assert 10 * np.log10(255**2 / np.square(shown - wanted).mean()) > 30, t


def test_a_drag_moves_the_same_points_in_the_frames_of_every_chart(run: Run, tmp_path: Path) -> None:
    shutil.copytree(run.path, tmp_path / "run")
    made = edit(tmp_path / "run", editor=Drag(drag=("44,30>52,33",), radius=22.0, frame=5))
    assert "propagated to 2 more of the 3 charts of background" in made.edit.record.origin.notes
    field = solve_drag_field(np.array([[44.0, 30.0]]), np.array([[52.0, 33.0]]), np.zeros((0, 2)), 22.0)
    opened = require_planar(tmp_path / "run", "the test")
    shapes = read_deformations(opened.active_edits(), opened.frames)
    renderer = WarpPass(opened.maps, opened.canonicals, {}, shapes)
    pixels = np.stack(np.meshgrid(np.arange(96), np.arange(64)), axis=-1).reshape(-1, 2) + 0.5
    for t in range(12):
        shown = renderer.source_positions(t, 0, (96, 64)).reshape(-1, 2)
        wanted = pixels - field.displacement_at(pixels - np.array([1.5, 0.5]) * (t - 5))
        inside = ((wanted > 2) & (wanted < (94, 62))).all(axis=1)
        off = np.linalg.norm(shown - wanted, axis=1)[inside]
        assert off.max() < 0.5 and off.mean() < 0.06, t
    assert np.abs(wanted - pixels).max() > 7  # the last frame shows it, too


def test_a_chart_that_was_painted_on_is_left_as_it_was(tmp_path: Path) -> None:
    rgba = np.zeros((10, 40, 4), np.float32)
    rgba[2:5, 2:5] = rgba[2:5, 30:33] = (0, 1, 0, 1)
    overlay = Overlay(rgba, Box(0.0, 0.0, 4.0, 1.0))
    parts = [Chart("background", i, i, Box(2.0 * i, 0.0, 2.0 * i + 2, 1.0)) for i in range(2)]
    run = PlanarRun(Run(tmp_path), {})
    run.maps = Maps(tmp_path, ("background",), (overlay.box,), (8, 8), 2, False, (tuple(parts),))
    same, notes = carry_to_charts(run, {"background": overlay})
    assert same["background"] is overlay and notes == []
