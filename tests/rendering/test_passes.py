"""Edits as passes over a frame: each does what it says, where it says, when it says, and nothing else."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from editors.api import edit
from editors.core import history, stack
from editors.core.stack import EditEffects
from editors.effects.adjust import Adjust
from editors.effects.python_function import Lift
from editors.effects.replace import Replace
from neural_fields.atlas.canonical import Overlay
from neural_fields.core.box import Box
from neural_fields.core.errors import UserError
from neural_fields.data.synthetic.planar_clips import SyntheticClip
from neural_fields.data.video.io import write_video
from neural_fields.data.video.metadata import make_metadata
from neural_fields.edits.animated_overlay import AnimatedOverlay
from neural_fields.edits.arrangement import Arrangement
from neural_fields.imaging.blend_modes import blend_function
from neural_fields.imaging.blend_names import BlendMode
from neural_fields.imaging.color_grading import apply_grade
from neural_fields.imaging.grade import Grade
from neural_fields.imaging.image_io import encode_png
from neural_fields.open_runs.opening import require_planar
from neural_fields.rendering.options import RenderOptions
from neural_fields.rendering.render_planar import open_passes, render
from neural_fields.runs.run import Run
from tests.support.true_run import TrueRun

RED = (0.9, 0.1, 0.15)


@pytest.fixture
def run(true_run: TrueRun, tmp_path: Path) -> Run:
    shutil.copytree(true_run.run.path, tmp_path / "run")
    return Run.open(tmp_path / "run")


@pytest.fixture
def clip(true_run: TrueRun) -> SyntheticClip:
    return true_run.clip


def rendered(run: Run, clip: SyntheticClip, t: int) -> np.ndarray:
    return open_passes(require_planar(run, "the test")).render_frame(t, clip.frames[t])


def full(clip: SyntheticClip, layer: int, color: tuple[float, ...], alpha: float = 1.0) -> Overlay:
    rgba = np.full((8, 8, 4), (*color, alpha), np.float32)
    box = clip.boxes[layer]
    return Overlay(rgba, Box(box.u0 - 1, box.v0 - 1, box.u1 + 1, box.v1 + 1))


def alone(clip: SyntheticClip, t: int, layer: int) -> np.ndarray:
    """Pixels that show nothing but a layer."""
    front = clip.alpha[0, t]
    return front > 0.999 if layer == 0 else front < 0.001


# --- blend modes ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["multiply", "screen", "color"])
def test_a_blended_edit_mixes_with_the_pixels_of_the_frame(run: Run, clip: SyntheticClip, mode: BlendMode) -> None:
    stack.add_edit(run, "tint", {"foreground": full(clip, 0, RED)}, arrangement=Arrangement(blend=mode))
    blend = blend_function(mode)
    assert blend is not None
    for t in (0, 6, 11):
        here, shown = alone(clip, t, 0), rendered(run, clip, t)
        under = clip.frames[t][here].astype(np.float32) / 255
        wanted = blend(np.broadcast_to(np.array(RED, np.float32), under.shape), under)
        assert np.abs(shown[here] - 255 * wanted).max() <= 1
        assert np.array_equal(shown[alone(clip, t, 1)], clip.frames[t][alone(clip, t, 1)])


def test_a_neutral_blend_changes_no_pixel(run: Run, clip: SyntheticClip) -> None:
    stack.add_edit(
        run, "white", {"foreground": full(clip, 0, (1.0, 1.0, 1.0))}, arrangement=Arrangement(blend="multiply")
    )
    assert np.abs(rendered(run, clip, 4).astype(int) - clip.frames[4]).max() <= 1


# --- time -----------------------------------------------------------------------------------------------------------


def test_an_edit_with_a_time_is_there_only_then_and_comes_by_degrees(run: Run, clip: SyntheticClip) -> None:
    lies = Arrangement(start=3, end=8, fade_in=2)
    stack.add_edit(run, "red", {"background": full(clip, 1, (0.6, 0.1, 0.1))}, arrangement=lies)
    for t in (0, 2, 9, 11):
        assert np.array_equal(rendered(run, clip, t), clip.frames[t])
    here = alone(clip, 5, 1)
    whole = rendered(run, clip, 5)[here].astype(float)
    assert np.abs(whole - clip.frames[5][here]).max() > 50
    here = alone(clip, 3, 1)
    source = clip.frames[3][here].astype(float)
    history.arrange_edit(run, "red", {"start": None, "end": None, "fade_in": 0})
    fully = rendered(run, clip, 3)[here].astype(float)
    history.undo(run)
    third = rendered(run, clip, 3)[here].astype(float)
    assert np.abs(third - (source + (fully - source) / 3)).max() <= 1


def test_the_order_of_edits_decides_which_is_seen(run: Run, clip: SyntheticClip) -> None:
    for name, color in (("red", (1.0, 0.0, 0.0)), ("blue", (0.0, 0.0, 1.0))):
        stack.add_edit(run, name, {"foreground": full(clip, 0, color)})
    here = alone(clip, 5, 0)
    assert rendered(run, clip, 5)[here][:, 2].mean() > 200
    history.arrange_edit(run, "red", {}, ("top", ""))
    assert rendered(run, clip, 5)[here][:, 0].mean() > 200


def test_passes_one_by_one_are_what_flattening_at_once_is(run: Run, clip: SyntheticClip) -> None:
    """Overlays of different boxes take a pass each; of one box they are flattened."""
    box = clip.boxes[0]
    paint = np.zeros((20, 30, 4), np.float32)
    paint[5:15, 8:22] = (*RED, 0.6)
    small = Overlay(paint, box)
    room = Box(box.u0 - box.width, box.v0 - box.height, box.u1 + box.width, box.v1 + box.height)
    large = Overlay(np.pad(paint, ((20, 20), (30, 30), (0, 0))), room)
    under = {"foreground": Overlay(np.full((20, 30, 4), (0.2, 0.6, 0.3, 0.5), np.float32), box)}
    stack.add_edit(run, "under", under)
    stack.add_edit(run, "same", {"foreground": small})
    flat = rendered(run, clip, 6)
    history.undo(run)
    stack.add_edit(run, "other", {"foreground": large})
    apart = np.abs(rendered(run, clip, 6).astype(int) - flat)
    assert apart.max() <= 4 and (apart > 1).mean() < 0.001


# --- grades ---------------------------------------------------------------------------------------------------------


def test_an_adjusted_layer_is_the_frames_own_pixels_graded(run: Run, clip: SyntheticClip) -> None:
    edit(run, editor=Adjust(exposure=-1.0, saturation=0.4))
    for t in (0, 7, 11):
        here, shown = alone(clip, t, 0), rendered(run, clip, t)
        wanted = 255 * apply_grade(Grade(exposure=-1.0, saturation=0.4), clip.frames[t][here].astype(np.float32) / 255)
        assert np.abs(shown[here] - wanted).max() <= 1
        assert np.array_equal(shown[alone(clip, t, 1)], clip.frames[t][alone(clip, t, 1)])


def test_a_mask_keeps_the_adjustment_to_what_was_painted(run: Run, clip: SyntheticClip, tmp_path: Path) -> None:
    size = Overlay(np.zeros((1, 1, 4), np.float32), clip.boxes[0])
    height, width = clip.textures[0].shape[:2]
    mask = np.zeros((height, width, 3), np.float32)
    mask[:, : width // 2] = 1
    (tmp_path / "mask.png").write_bytes(encode_png(mask))
    edit(run, editor=Adjust(exposure=-2.0), mask=tmp_path / "mask.png")
    uv, box = clip.uv[0, 5], size.box
    left = uv[..., 0] < (box.u0 + box.u1) / 2 - 0.02
    right = uv[..., 0] > (box.u0 + box.u1) / 2 + 0.02
    here, shown = alone(clip, 5, 0), rendered(run, clip, 5)
    assert shown[here & left].mean() < 0.7 * clip.frames[5][here & left].mean()
    assert np.array_equal(shown[here & right], clip.frames[5][here & right])


def test_a_grade_over_paint_grades_the_paint(run: Run, clip: SyntheticClip) -> None:
    stack.add_edit(run, "gray", {"foreground": full(clip, 0, (0.5, 0.5, 0.5))})
    before = rendered(run, clip, 3)
    edit(run, editor=Adjust(curve_red="0,1 1,0"))
    here = alone(clip, 3, 0)
    assert np.abs(rendered(run, clip, 3)[here][:, 0] - (255.0 - before[here][:, 0])).max() <= 1


@pytest.mark.parametrize("settings", [{}, {"radius": 4.0}, {"exposure": 99.0}, {"curve": "0,0 x"}, {"curve": "0,0"}])
def test_an_adjustment_that_is_none_is_refused_and_adds_nothing(run: Run, settings: dict[str, Any]) -> None:
    with pytest.raises(UserError):
        edit(run, editor=Adjust(**settings))
    assert not run.edits.exists()


# --- functions ------------------------------------------------------------------------------------------------------


def test_a_function_of_an_image_becomes_one_of_the_video(run: Run, clip: SyntheticClip, tmp_path: Path) -> None:
    (tmp_path / "looks.py").write_text("def swapped(rgb):\n    return rgb[..., ::-1]\n")
    edit(run, editor=Lift(function=f"{tmp_path / 'looks.py'}:swapped"))
    for t in (0, 11):
        here = alone(clip, t, 0)
        gain = clip.gain[t][here]
        wanted = (clip.frames[t][here] / gain)[:, ::-1] * gain
        error = (rendered(run, clip, t)[here] - wanted.clip(0, 255)) / 255
        assert -10 * np.log10((error**2).mean()) > 32


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("return rgb", "changes nothing"),
        ("return rgb[:2]", "returned"),
        ("return rgb * float('nan')", "not finite"),
        ("raise KeyError('x')", "failed: KeyError"),
        ("return 'text'", "returned"),
    ],
)
def test_a_function_that_does_not_make_a_picture_is_said(run: Run, tmp_path: Path, body: str, message: str) -> None:
    (tmp_path / "looks.py").write_text(f"def look(rgb):\n    {body}\n")
    with pytest.raises(UserError, match=message):
        edit(run, editor=Lift(function=f"{tmp_path / 'looks.py'}:look"))
    assert not run.edits.exists()


@pytest.mark.parametrize("name", ["looks", "looks.py:", "nowhere.py:f", "no.such.module:f", "math:nothing", "math:pi"])
def test_a_name_that_leads_to_no_function_is_said(run: Run, name: str) -> None:
    with pytest.raises(UserError):
        edit(run, editor=Lift(function=name))


# --- what moves -----------------------------------------------------------------------------------------------------


def colors(count: int, alpha: int = 255) -> Iterator[np.ndarray]:
    for t in range(count):
        yield np.full((18, 24, 4), (20 * t, 255 - 20 * t, 40, alpha), np.uint8)


def test_an_overlay_can_be_another_in_every_frame(run: Run, clip: SyntheticClip) -> None:
    box = full(clip, 1, RED).box
    moving = {"background": AnimatedOverlay(lambda: colors(clip.count), clip.count, box)}
    stack.add_edit(run, "clip", {}, effects=EditEffects(moving=moving, lit=False))
    renderer = open_passes(require_planar(run, "the test"))
    for t in (0, 5, 11, 3):  # also backwards
        here = alone(clip, t, 1)
        shown = renderer.render_frame(t, clip.frames[t])
        assert np.abs(shown[here].astype(int) - (20 * t, 255 - 20 * t, 40)).max() <= 1
        assert np.array_equal(shown[alone(clip, t, 0)], clip.frames[t][alone(clip, t, 0)])


def test_a_still_backdrop_stands_behind_the_object_and_does_not_move(
    run: Run, clip: SyntheticClip, tmp_path: Path
) -> None:
    y, x = np.mgrid[:108, :192]
    backdrop = np.stack([x / 192, y / 108, 0 * x + 0.5], -1).astype(np.float32)
    (tmp_path / "sky.png").write_bytes(encode_png(backdrop, bits=8))
    edit(run, editor=Replace(image=tmp_path / "sky.png", still=True))
    for t in (0, 11):
        here, shown = alone(clip, t, 1), rendered(run, clip, t)
        assert np.abs(shown[here] - 255 * backdrop[here]).max() <= 1.5
        assert np.array_equal(shown[alone(clip, t, 0)], clip.frames[t][alone(clip, t, 0)])


def test_a_background_of_a_picture_moves_with_the_camera(run: Run, clip: SyntheticClip, tmp_path: Path) -> None:
    height, width = clip.textures[1].shape[:2]
    y, x = np.mgrid[:height, :width]
    picture = np.stack([x / width, y / height, 0 * x + 0.5], -1).astype(np.float32)
    (tmp_path / "wall.png").write_bytes(encode_png(picture, bits=8))
    edit(run, editor=Replace(image=tmp_path / "wall.png", fit="stretch"))
    box = clip.boxes[1]
    for t in (0, 11):
        here, uv = alone(clip, t, 1), clip.uv[1, t]
        place = np.stack([(uv[..., 0] - box.u0) / box.width, (uv[..., 1] - box.v0) / box.height], -1)
        assert np.abs(rendered(run, clip, t)[here][:, :2] / 255 - place[here]).max() < 0.01


def test_a_video_replaces_the_background_in_step_and_begins_again(
    run: Run, clip: SyntheticClip, tmp_path: Path
) -> None:

    film = [np.full((36, 64, 3), (30 * i, 40, 200), np.uint8) for i in range(5)]
    write_video(tmp_path / "film.mkv", film, make_metadata((64, 36), 5, Fraction(24)), codec="ffv1")
    made = edit(run, editor=Replace(image=tmp_path / "film.mkv", still=True))
    assert any("begins again" in note for note in made.notes)
    for t in (0, 3, 7):
        here = alone(clip, t, 1)
        assert np.abs(rendered(run, clip, t)[here].astype(int) - (30 * (t % 5), 40, 200)).max() <= 1


def test_moving_overlays_that_were_changed_on_disk_are_refused(run: Run, clip: SyntheticClip) -> None:
    moving = {"background": AnimatedOverlay(lambda: colors(clip.count), clip.count, None)}
    made = stack.add_edit(run, "clip", {}, effects=EditEffects(moving=moving))
    (film,) = made.folder.glob("*.mkv")
    data = bytearray(film.read_bytes())
    data[-40] ^= 8
    film.write_bytes(data)
    with pytest.raises(UserError, match="not the file that was added"):
        open_passes(require_planar(run, "the test"))


# --- a larger canonical picture -------------------------------------------------------------------------------------


def test_an_enlarged_picture_is_shown_as_a_whole_and_sharper_at_a_larger_size(
    run: Run, clip: SyntheticClip, tmp_path: Path
) -> None:
    height, width = clip.textures[0].shape[:2]
    fine = cv2.resize(clip.textures[0], (3 * width, 3 * height), interpolation=cv2.INTER_CUBIC)
    y, x = np.mgrid[: 3 * height, : 3 * width]
    fine = np.clip(0.5 * fine + 0.5 * ((x // 2 + y // 2) % 2)[..., None], 0, 1).astype(np.float32)  # finer than it was
    (tmp_path / "large.png").write_bytes(encode_png(fine))
    edit(run, tmp_path / "large.png", layer="foreground", upscaled=True)
    (folder,) = render(run, RenderOptions(size="768x432", codec="png"))
    frames = sorted(folder.glob("*.png"))
    assert len(frames) == clip.count
    shown = cv2.imread(str(frames[5]))
    assert shown.shape == (432, 768, 3)
    here = cv2.resize(clip.alpha[0, 5], (768, 432)) > 0.999
    detail = np.abs(shown[:, 1:].astype(int) - shown[:, :-1]).mean(-1)[here[:, 1:]].mean()
    plain = cv2.resize(clip.frames[5], (768, 432), interpolation=cv2.INTER_CUBIC)
    assert detail > 3 * np.abs(plain[:, 1:].astype(int) - plain[:, :-1]).mean(-1)[here[:, 1:]].mean()
