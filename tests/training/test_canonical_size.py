"""The size of canonical pictures: that of the source, whatever size a training had."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from editors.api import edit
from editors.demo import make_clip_metadata
from editors.effects.remove import Remove
from neural_fields.core.errors import UserError
from neural_fields.data.synthetic.planar_clips import SyntheticClip, make_demo_clip
from neural_fields.data.video.io import write_video
from neural_fields.imaging.image_io import encode_png
from neural_fields.open_runs.opening import require_planar
from neural_fields.open_runs.planar_run import PlanarRun
from neural_fields.rendering.render_planar import open_passes
from neural_fields.training.options import TrainOptions
from neural_fields.training.train_planar import train

EVERY = 6  # of its frames the clip has one in so many, so that each shows what others hide


@pytest.fixture(scope="module")
def clip() -> SyntheticClip:
    return make_demo_clip(48, 320, 180)


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory, clip: SyntheticClip) -> TrainOptions:
    home = tmp_path_factory.mktemp("sizes")
    write_video(home / "clip.mkv", clip.render_frames(), make_clip_metadata(clip), codec="ffv1")
    np.save(home / "mask.npy", clip.masks[0])
    masks = (f"foreground={home / 'mask.npy'}",)
    options = TrainOptions(home / "run", size="90p", quality="draft", masks=masks, frames=f"0:48:{EVERY}")
    train(home / "clip.mkv", options)
    return options


def open_again(options: TrainOptions) -> PlanarRun:
    assert options.out
    return require_planar(options.out, "the test")


def test_pictures_have_the_resolution_of_the_source(options: TrainOptions) -> None:
    run = open_again(options)
    assert run.maps.size == (160, 90) and run.record.canonical_size == (320, 180)
    for shape in run.model.shape.layers:
        width, height = run.canonical(shape.name).size
        assert abs(width - 2 * shape.width) <= 16 and abs(height - 2 * shape.height) <= 16
        assert run.canonical(shape.name).box.width > 0


def test_a_frame_that_a_picture_explains_is_nearly_the_frame(options: TrainOptions, clip: SyntheticClip) -> None:
    run = open_again(options)
    picture, (number, t) = run.canonical("background"), (1, 4)
    uv = run.maps.read_uv(t, number, (320, 180))
    lit = picture.sample_rgba(uv)[..., :3] * run.maps.read_gain(t, number, (320, 180))
    alone = run.maps.read_layer_weight(t, number, (320, 180)) > 0.99
    off = np.square(lit - clip.frames[EVERY * t] / 255)[alone].mean()
    assert -10 * np.log10(off) > 33


def test_what_a_removed_object_hid_is_as_sharp_as_the_source(options: TrainOptions, clip: SyntheticClip) -> None:
    run = open_again(options)
    edit(run.path, editor=Remove(), layers=("foreground",))
    bare = replace(clip, surfaces=clip.surfaces[1:])
    shown = open_passes(open_again(options))
    energies = []
    for t in (2, 5):
        result, truth = shown.render_frame(t, clip.frames[EVERY * t]), bare.frames[EVERY * t]
        assert -10 * np.log10(np.square((result.astype(float) - truth) / 255).mean()) > 34
        hole = cv2.erode((clip.masks[0][EVERY * t]).astype(np.uint8), np.ones((3, 3), np.uint8)) > 0
        for picture in (result, truth):
            slopes = [cv2.Scharr(picture.astype(np.float32), cv2.CV_32F, dx, 1 - dx) for dx in (0, 1)]
            energies.append(sum(np.square(slope)[hole].sum() for slope in slopes))
    assert (energies[0] + energies[2]) / (energies[1] + energies[3]) > 0.85


def test_a_finished_run_writes_its_pictures_again_at_another_size(options: TrainOptions) -> None:
    run = open_again(options)
    video = run.record.video
    edit_count = len(run.active_edits())
    large, picture = run.canonical("background"), run.files.canonical / "background.png"
    painted = large.rgba.copy()
    painted[40:60, 40:60] = (1, 0, 1, 1)
    (run.path / "painted.png").write_bytes(encode_png(painted))

    again = train(video, replace(options, canonical_size="90p"))
    assert not again.was_finished and open_again(options).canonical("background").size < large.size
    assert train(video, options).was_finished  # auto: the size stays
    assert open_again(options).canonical("background").size < large.size
    # What was painted on the larger picture is an edit of it.
    edit(run.path, run.path / "painted.png", layer="background")
    assert len(open_again(options).active_edits()) == edit_count + 1

    before = picture.read_bytes()
    train(video, replace(options, canonical_size="source"))
    assert open_again(options).canonical("background").size == large.size
    assert picture.read_bytes() != before


def test_wrong_size_is_refused_before_anything_is_done(options: TrainOptions, tmp_path: Path) -> None:
    video = open_again(options).record.video
    with pytest.raises(UserError, match="size"):
        train(video, replace(options, out=tmp_path / "new", canonical_size="huge"))
    assert not (tmp_path / "new").exists()
