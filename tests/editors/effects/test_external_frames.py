"""Frames that were edited one by one become one steady edit: the true one where there is one, and half the flicker."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from editors.api import edit
from editors.core.source import EditSource
from editors.effects.external_frames import DEFAULTS, Frames, open_edited_frames
from neural_fields.core.errors import ExitCode, UserError
from neural_fields.core.progress import report_nothing
from neural_fields.data.synthetic.planar_clips import PaintedMark
from neural_fields.data.video.io import write_video
from neural_fields.evaluation import metrics
from neural_fields.open_runs.opening import require_planar
from neural_fields.rendering.render_planar import open_passes
from neural_fields.runs.run import Run
from tests.support.true_run import TrueRun

pytestmark = pytest.mark.slow


def write_frames(folder: Path, frames: np.ndarray, first: int = 0) -> Path:
    folder.mkdir()
    for t, frame in enumerate(frames):
        Image.fromarray(frame).save(folder / f"{t + first:04d}.png")
    return folder


@pytest.fixture
def run(true_run: TrueRun, tmp_path: Path) -> Run:
    shutil.copytree(true_run.run.path, tmp_path / "run")
    return Run.open(tmp_path / "run")


@pytest.fixture(scope="module")
def truth(true_run: TrueRun) -> np.ndarray:
    """The true clip with the whole foreground and background painted over, under the light of the clip."""
    y, x = np.mgrid[:160, :160] / 160
    waves = np.stack([0.5 + 0.35 * np.sin(20 * x), 0.5 + 0.35 * np.cos(16 * y), 0.4 + 0.3 * x], axis=-1)
    over = np.concatenate([waves, np.ones_like(x)[..., None]], axis=-1).astype(np.float32)
    under = np.concatenate([1 - waves[::-1], np.ones_like(x)[..., None]], axis=-1).astype(np.float32)
    boxes = {surface.name: surface.box for surface in true_run.clip.surfaces}
    return true_run.clip.render_edited(
        [PaintedMark(over, boxes["foreground"]), PaintedMark(under, boxes["background"], "background")]
    )


def shown(run: Run, frames: np.ndarray) -> np.ndarray:
    renderer = open_passes(require_planar(run, "the test"))
    return np.stack([renderer.render_frame(t, frame) for t, frame in enumerate(frames)])


def source(run: Run, *layers: str) -> EditSource:
    opened = require_planar(run, "the test")
    return EditSource(opened, layers or opened.layers)


def test_a_steady_edit_comes_back_as_it_was(run: Run, true_run: TrueRun, truth: np.ndarray, tmp_path: Path) -> None:
    made = edit(run, editor=Frames(frames=write_frames(tmp_path / "edited", truth)))
    assert set(made.edit.layers) == {"foreground", "background"} and made.edit.record.lit
    assert metrics.psnr(shown(run, true_run.clip.frames), truth) > 33


def test_one_wrong_frame_leaves_no_trace(run: Run, true_run: TrueRun, truth: np.ndarray, tmp_path: Path) -> None:
    wrong = truth.copy()
    middle = len(truth) // 2
    wrong[middle] = np.random.default_rng(0).integers(0, 255, truth[0].shape)
    edit(run, editor=Frames(frames=write_frames(tmp_path / "edited", wrong)))
    assert metrics.psnr(shown(run, true_run.clip.frames), truth) > 30


def test_flicker_is_at_least_halved_and_told(run: Run, true_run: TrueRun, truth: np.ndarray, tmp_path: Path) -> None:
    shades = np.random.default_rng(1).uniform(0.7, 1.0, len(truth))
    flickering = np.stack([np.rint(f * s).astype(np.uint8) for f, s in zip(truth, shades, strict=True)])
    made = edit(run, editor=Frames(frames=write_frames(tmp_path / "edited", flickering)))
    facts = made.edit.record.origin.details
    assert facts["warp_error"] < 0.5 * facts["warp_error_of_frames"]
    assert any("warp error" in note for note in made.notes)
    assert set(facts["agreement"]) == {"foreground", "background"}
    assert facts["frames"]["size"] == [192, 108] and len(facts["frames"]["sha256"]) == 64


def test_frames_with_nothing_in_common_keep_their_contrast_or_what_they_share(
    run: Run, true_run: TrueRun, tmp_path: Path
) -> None:
    blocks = np.random.default_rng(2).uniform(20, 235, (12, 9, 16, 1)).astype(np.uint8)
    frames = np.repeat(np.repeat(np.repeat(blocks, 12, axis=1), 12, axis=2), 3, axis=3)
    folder = write_frames(tmp_path / "edited", frames)
    sharp = Frames(frames=folder).edit(source(run), report_nothing)
    soft = Frames(frames=folder).edit(source(run), report_nothing, replace(DEFAULTS, max_warp_error_ratio=0.0))
    spread = [
        float(result.overlays["background"].rgba[..., 0][result.overlays["background"].rgba[..., 3] > 0].std())
        for result in (sharp, soft)
    ]
    assert spread[0] > 0.8 * frames.std() / 255 and spread[1] < spread[0]
    assert any("around the middle of the clip" in note for note in sharp.notes)
    assert any("softer" in note for note in soft.notes)


def test_frames_that_do_not_follow_the_light_are_shown_without_it(
    run: Run, true_run: TrueRun, truth: np.ndarray, tmp_path: Path
) -> None:
    flat = np.rint(np.clip(truth / true_run.clip.gain, 0, 255)).astype(np.uint8)
    made = edit(run, editor=Frames(frames=write_frames(tmp_path / "edited", flat)))
    assert made.edit.record.lit is False
    assert metrics.psnr(shown(run, true_run.clip.frames), flat) > 32


def test_one_layer_alone_is_changed_and_the_others_stay_the_source(
    run: Run, true_run: TrueRun, truth: np.ndarray, tmp_path: Path
) -> None:
    made = edit(run, editor=Frames(frames=write_frames(tmp_path / "edited", truth)), layers=["foreground"])
    assert made.edit.layers == ("foreground",)
    result, front = shown(run, true_run.clip.frames), true_run.clip.alpha[0]
    assert (result[front == 0] == true_run.clip.frames[front == 0]).mean() > 0.98
    assert metrics.psnr(result, truth, front > 0.99) > 32


def test_strength_shows_a_part_of_the_edit(run: Run, true_run: TrueRun, truth: np.ndarray, tmp_path: Path) -> None:
    edit(run, editor=Frames(frames=write_frames(tmp_path / "edited", truth), strength=0.5))
    half = np.rint((truth.astype(np.float32) + true_run.clip.frames) / 2).astype(np.uint8)
    assert metrics.psnr(shown(run, true_run.clip.frames), half) > 36


def test_smaller_frames_and_a_video_of_them_are_taken_with_a_note(run: Run, truth: np.ndarray, tmp_path: Path) -> None:
    facts = require_planar(run, "the test").metadata
    small = np.ascontiguousarray(truth[:, ::2, ::2])
    folder = write_frames(tmp_path / "edited", small, first=100)
    video = tmp_path / "edited.mkv"
    write_video(video, iter(truth), facts, codec="ffv1")
    opened = open_edited_frames(source(run), folder)
    assert opened.size == (96, 54) and any("96x54 pixels instead of 192x108" in note for note in opened.notes)
    assert len(list(opened)) == 12
    assert open_edited_frames(source(run), video).size == (192, 108)


def test_frames_that_do_not_fit_are_refused_before_any_work(run: Run, truth: np.ndarray, tmp_path: Path) -> None:
    gap = write_frames(tmp_path / "gap", truth)
    (gap / "0003.png").unlink()
    few = write_frames(tmp_path / "few", truth[:-2])
    many = write_frames(tmp_path / "many", np.concatenate([truth, truth[:1]]))
    square = write_frames(tmp_path / "square", np.ascontiguousarray(truth[:, :, :108]))
    empty = tmp_path / "empty"
    empty.mkdir()
    cases = {
        gap: "picture number 0003 is missing",
        few: "too few frames: 10",
        many: "too many frames: 13",
        square: "another shape: 108x108 instead of 192x108",
        empty: "no pictures in the folder",
        tmp_path / "nowhere": "there is no file or folder",
    }
    for path, message in cases.items():
        with pytest.raises(UserError, match=message) as refused:
            edit(run, editor=Frames(frames=path))
        assert refused.value.code == ExitCode.BAD_INPUT
    assert not run.edits.exists() or not list(run.edits.iterdir())


def test_a_damaged_picture_is_refused_by_name(run: Run, truth: np.ndarray, tmp_path: Path) -> None:
    folder = write_frames(tmp_path / "edited", truth)
    whole = (folder / "0007.png").read_bytes()
    (folder / "0007.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"0007\.png"):
        edit(run, editor=Frames(frames=folder))
    assert not run.edits.exists() or not list(run.edits.iterdir())


def test_of_frames_that_were_only_saved_again_nothing_but_the_paint_is_taken(
    run: Run, true_run: TrueRun, tmp_path: Path
) -> None:
    """With the range of video, and one frame painted on."""
    frames, middle = true_run.clip.frames, len(true_run.clip.frames) // 2

    def save(name: str, made: np.ndarray) -> Path:
        return write_frames(tmp_path / name, np.rint(16 + made * (219 / 255)).astype(np.uint8))

    with pytest.raises(UserError, match="no change found") as refused:
        edit(run, editor=Frames(frames=save("plain", frames)))
    assert "limited range" in str(refused.value)
    behind = cv2.distanceTransform((true_run.clip.alpha[0][middle] == 0).astype(np.uint8), cv2.DIST_L2, 5)
    y, x = np.unravel_index(behind[12:-12, 16:-16].argmax(), (behind.shape[0] - 24, behind.shape[1] - 32))
    patch = np.zeros(frames[0].shape[:2], np.uint8)
    patch[y + 6 : y + 18, x + 7 : x + 25] = 1  # away from the object
    painted = frames.copy()
    painted[middle][patch > 0] = (225, 20, 205)
    edit(run, editor=Frames(frames=save("painted", painted)))
    result = shown(run, frames)[middle].astype(int)
    inside = np.abs(result - painted[middle])[patch > 0]
    assert (np.abs(result - frames[middle])[patch > 0].max(axis=-1) > 8).mean() > 0.95 and np.median(inside) < 12
    far = cv2.dilate(patch, np.ones((15, 15), np.uint8)) == 0
    assert np.abs(result - frames[middle])[far].max() <= 8
    with pytest.raises(UserError, match="looks like frame 3, not like frame 0"):
        edit(run, editor=Frames(frames=save("late", np.concatenate([frames[3:], frames[:3]]))))


@pytest.mark.parametrize("strength", [0.0, -1.0, 1.5])
def test_a_strength_out_of_range_is_refused(strength: float) -> None:
    with pytest.raises(UserError, match="a strength of"):
        Frames(frames=Path("edited"), strength=strength)
