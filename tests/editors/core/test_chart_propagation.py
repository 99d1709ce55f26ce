"""An edit that is painted on one chart of a layer is propagated to its other charts."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from editors.core.chart_propagation import carry_to_charts
from editors.demo import make_clip_metadata
from neural_fields.atlas.canonical import Overlay, read_pristine
from neural_fields.atlas.chart import Chart
from neural_fields.atlas.uv_maps import Maps
from neural_fields.core import coords
from neural_fields.core.box import Box
from neural_fields.data.synthetic.planar_clips import make_translation_clip
from neural_fields.data.video.io import write_video
from neural_fields.open_runs.opening import require_planar
from neural_fields.open_runs.planar_run import PlanarRun
from neural_fields.planar.init.charts import ChartSettings
from neural_fields.planar.init.geometry import GeometrySettings
from neural_fields.rendering.overlay_pass import OverlayPass
from neural_fields.runs.run import Run
from neural_fields.training import initialize
from neural_fields.training.initialize import plan_model
from neural_fields.training.options import TrainOptions
from neural_fields.training.train_planar import train

pytestmark = pytest.mark.slow


def test_what_is_painted_on_one_chart_appears_in_every_frame_at_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    charts = ChartSettings(frames_per_chart=4, explained_psnr_db=99.0, min_gain_db=-99.0, max_loss_db=-99.0)
    plan = partial(plan_model, settings=GeometrySettings(charts=charts))
    monkeypatch.setattr(initialize, plan_model.__name__, plan)
    clip = make_translation_clip(12, 96, 64, velocity=(1.5, 0.5))
    video = write_video(tmp_path / "clip.mkv", clip.frames, make_clip_metadata(clip), codec="ffv1")
    run = train(video, TrainOptions(tmp_path / "run", size="source", masks=("none",), quality="draft")).run
    maps = Maps.open(run.maps)
    (series,) = maps.charts
    assert [(chart.first, chart.last) for chart in series] == [(0, 3), (4, 7), (8, 11)]

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


def test_a_chart_that_was_painted_on_is_left_as_it_was(tmp_path: Path) -> None:
    rgba = np.zeros((10, 40, 4), np.float32)
    rgba[2:5, 2:5] = rgba[2:5, 30:33] = (0, 1, 0, 1)
    overlay = Overlay(rgba, Box(0.0, 0.0, 4.0, 1.0))
    parts = [Chart("background", i, i, Box(2.0 * i, 0.0, 2.0 * i + 2, 1.0)) for i in range(2)]
    run = PlanarRun(Run(tmp_path), {})
    run.maps = Maps(tmp_path, ("background",), (overlay.box,), (8, 8), 2, False, (tuple(parts),))
    same, notes = carry_to_charts(run, {"background": overlay})
    assert same["background"] is overlay and notes == []
