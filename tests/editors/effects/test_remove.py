"""A removed layer is gone; behind it is what the camera would have seen; what no frame shows is made up once."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from editors.api import edit
from editors.core import history, stack
from editors.effects.patchmatch import complete_picture
from editors.effects.remove import Remove
from neural_fields.atlas import canonical
from neural_fields.atlas.canonical import Overlay
from neural_fields.core.errors import UserError
from neural_fields.data.synthetic.planar_clips import SyntheticClip
from neural_fields.edits.arrangement import Arrangement
from neural_fields.edits.payloads import read_paint
from neural_fields.open_runs.opening import require_planar
from neural_fields.rendering.render_planar import open_passes
from neural_fields.runs.run import Run
from tests.support.true_run import TrueRun

pytestmark = pytest.mark.slow


@pytest.fixture
def run(true_run: TrueRun, tmp_path: Path) -> Run:
    shutil.copytree(true_run.run.path, tmp_path / "run")
    return Run.open(tmp_path / "run")


@pytest.fixture(scope="module")
def clip(true_run: TrueRun) -> SyntheticClip:
    return true_run.clip


@pytest.fixture(scope="module")
def empty(clip: SyntheticClip) -> np.ndarray:
    """The frames as the camera would have seen them without the object."""
    return dataclasses.replace(clip, surfaces=clip.surfaces[1:]).frames


def psnr(shown: np.ndarray, truth: np.ndarray) -> float:
    return float(-10 * np.log10((((shown.astype(float) - truth) / 255) ** 2).mean()))


def known_behind(run: Run, clip: SyntheticClip, t: int) -> np.ndarray:
    """Pixels whose background some frame shows."""
    picture = canonical.read_pristine(run.canonical, "background")
    return picture.sample_rgba(clip.uv[1, t])[..., 3] > 0.99


def test_behind_a_removed_object_is_what_other_frames_show_there(
    run: Run, clip: SyntheticClip, empty: np.ndarray
) -> None:
    edit(run, editor=Remove(grow=2.0))
    renderer = open_passes(require_planar(run, "the test"))
    for t in (0, 6, 11):
        shown = renderer.render_frame(t, clip.frames[t])
        hole = clip.alpha[0, t] > 0
        assert psnr(shown[hole & known_behind(run, clip, t)], empty[t][hole & known_behind(run, clip, t)]) > 32
        far = ~renderer.affected_mask(t, (clip.width, clip.height))
        assert np.array_equal(shown[far], clip.frames[t][far]) and far.mean() > 0.4


def test_what_no_frame_shows_is_made_up_once_and_stays_where_it_is(run: Run, clip: SyntheticClip) -> None:
    made = edit(run, editor=Remove())
    removal, overlay = made.edit.record.removal, made.edit.record.overlays["background"]
    assert removal is not None and removal.layers == ("foreground",) and overlay.file == "background.png"
    seen = canonical.read_pristine(run.canonical, "background").rgba[..., 3] > 0.5
    alpha = read_paint(made.edit, "background").rgba[..., 3]
    # Nor what is only seen beside the object, a few texels wide.
    clearly = cv2.erode(seen.astype(np.uint8), np.ones((13, 13), np.uint8)) > 0
    assert (alpha[~seen] > 0).any() and not (alpha[clearly] > 0).any() and clearly.mean() > 0.5 * seen.mean()


def test_paint_on_the_background_shows_where_the_object_was_and_paint_on_the_object_goes_with_it(
    run: Run, clip: SyntheticClip
) -> None:
    red = {
        name: Overlay(np.full((8, 8, 4), (0.6, 0.1, 0.1, 1), np.float32), box)
        for name, box in zip(clip.layer_names, clip.boxes, strict=True)
    }
    edit(run, editor=Remove())
    stack.add_edit(run, "on the object", {"foreground": red["foreground"]})
    without = open_passes(require_planar(run, "the test")).render_frame(5, clip.frames[5])
    stack.add_edit(run, "behind", {"background": red["background"]})
    painted = open_passes(require_planar(run, "the test")).render_frame(5, clip.frames[5])
    hole = clip.alpha[0, 5] > 0.999
    assert np.ptp(painted[hole][:, 1].astype(float)) < 25  # flat paint, in the light of the frame
    assert (np.abs(without[hole].astype(int) - painted[hole]).max(-1) > 10).mean() > 0.9


def test_an_object_can_go_by_degrees_and_come_back(run: Run, clip: SyntheticClip) -> None:
    edit(run, editor=Remove(grow=0.0), arrangement=Arrangement(start=4, fade_in=1))
    renderer = open_passes(require_planar(run, "the test"))
    assert np.array_equal(renderer.render_frame(3, clip.frames[3]), clip.frames[3])
    half = renderer.render_frame(4, clip.frames[4]).astype(float)
    history.arrange_edit(run, "remove", {"start": None, "fade_in": 0})
    gone = open_passes(require_planar(run, "the test")).render_frame(4, clip.frames[4]).astype(float)
    inside = (clip.alpha[0, 4] > 0.999) & known_behind(run, clip, 4)
    # Weights have 8 bits, and each pass rounds.
    assert np.abs(half - (gone + clip.frames[4]) / 2)[inside].max() <= 2.5


@pytest.mark.parametrize(("layers", "settings"), [(("background",), {}), ((), {"grow": -1.0}), ((), {"grow": 1e9})])
def test_what_cannot_be_removed_is_refused(run: Run, layers: tuple[str, ...], settings: dict[str, Any]) -> None:
    with pytest.raises(UserError):
        edit(run, editor=Remove(**settings), layers=layers)
    assert not run.edits.exists()


# --- completion -----------------------------------------------------------------------------------------------------


def stripes() -> np.ndarray:
    y, x = np.mgrid[:96, :128]
    wave = 0.5 + 0.4 * np.sign(np.sin((x + y) * 2 * np.pi / 16))
    return np.stack([wave, 1 - wave, np.full_like(wave, 0.3)], -1).astype(np.float32)


def test_a_hole_in_a_pattern_is_filled_with_the_pattern() -> None:
    picture, missing = stripes(), np.zeros((96, 128), bool)
    missing[35:60, 50:80] = True
    filled = complete_picture(np.where(missing[..., None], 0, picture).astype(np.float32), ~missing, missing)
    assert np.array_equal(filled[~missing], picture[~missing])
    smooth = picture[~missing].mean(0)
    assert ((filled - picture)[missing] ** 2).mean() < 0.25 * ((smooth - picture)[missing] ** 2).mean()


def test_completion_takes_nothing_from_what_is_not_known_and_is_the_same_each_time() -> None:
    picture, missing = stripes(), np.zeros((96, 128), bool)
    missing[40:60, 60:80] = True
    known = ~missing
    known[:, 100:] = False
    bright = picture.copy()
    bright[~known] = 5
    first, second = (complete_picture(bright, known, missing) for _ in range(2))
    assert first[missing].max() <= 1 and np.array_equal(first, second)


def test_nothing_missing_or_nothing_known_changes_nothing() -> None:
    picture, none = stripes(), np.zeros((96, 128), bool)
    assert np.array_equal(complete_picture(picture, ~none, none), picture)
    assert np.array_equal(complete_picture(picture, none, ~none), picture)


def test_what_stands_out_around_an_object_goes_with_it_and_nothing_else_does(run: Run, clip: SyntheticClip) -> None:
    edit(run, editor=Remove())
    maps = require_planar(run, "the test").maps
    rims = open_passes(require_planar(run, "the test"))
    # A feather that the mask misses: five pixels of a bright line beyond the outline of the object.
    t, (width, height) = 5, (clip.width, clip.height)
    weight = maps.read_weights(t, (width, height))[0]
    row = int(np.argmax((weight >= 0.5).sum(1)))
    right = int(np.flatnonzero(weight[row] >= 0.5).max())
    frame = clip.frames[t].copy()
    frame[row, right + 1 : right + 4] = 255 - frame[row, right + 1 : right + 4] // 4
    with_feather, without = rims.render_frame(t, frame), rims.render_frame(t, clip.frames[t])
    assert np.abs(with_feather[row, right + 1 : right + 4].astype(int) - without[row, right + 1 : right + 4]).max() < 30
    distance = cv2.distanceTransform((weight < 0.5).astype(np.uint8), cv2.DIST_L2, 3)
    far = distance > 0.02 * width + 2
    assert np.array_equal(without[far], clip.frames[t][far])
