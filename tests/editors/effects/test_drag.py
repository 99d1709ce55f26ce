"""Dragged points are where they were dragged to in every frame, and drags that say nothing or fold are refused."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from editors.api import edit
from editors.effects.drag import DEFAULTS, Drag, solve_drag_field
from neural_fields.core import coords
from neural_fields.core.box import Box
from neural_fields.core.errors import ExitCode, UserError
from neural_fields.data.synthetic.planar_clips import PaintedMark, SyntheticClip
from neural_fields.edits.payloads import read_shapes
from neural_fields.open_runs.opening import require_planar
from neural_fields.rendering.render_planar import open_passes
from neural_fields.rendering.warp_pass import WarpPass
from neural_fields.runs.run import Run
from tests.support.true_run import TrueRun

pytestmark = pytest.mark.slow

FRAME = 5  # that drags are given in


@pytest.fixture
def run(true_run: TrueRun, tmp_path: Path) -> Run:
    shutil.copytree(true_run.run.path, tmp_path / "run")
    return Run.open(tmp_path / "run")


def middle_of(clip: SyntheticClip, t: int = FRAME) -> tuple[np.ndarray, float]:
    """The middle of the turtle in a frame, and its radius."""
    row, column = np.nonzero(clip.masks[0][t])
    return np.array([column.mean(), row.mean()]) + 0.5, float(np.sqrt(len(row) / np.pi))


def words(start: np.ndarray, end: np.ndarray) -> tuple[str, ...]:
    return tuple(f"{p[0]:.3f},{p[1]:.3f}>{q[0]:.3f},{q[1]:.3f}" for p, q in zip(start, end, strict=True))


def true_places(clip: SyntheticClip, points: np.ndarray, t: int) -> np.ndarray:
    """Where in frame `t` the true maps carry points of the frame of the drags."""
    xy = coords.normalize_pixels(torch.from_numpy(points), clip.width, clip.height)
    return clip.to_pixels(clip.surfaces[0].xy_at(t, clip.surfaces[0].uv_at(FRAME, xy))).numpy()


def marked(clip: SyntheticClip, point: np.ndarray) -> np.ndarray:
    """The true clip with a small white dot painted where a point is seen in the frame of the drags."""
    side = np.linspace(-1, 1, 15)
    picture = np.ones((15, 15, 4), np.float32)
    picture[..., 3] = np.hypot(*np.meshgrid(side, side)) < 1
    x, y = coords.normalize_pixels(torch.from_numpy(point[None]), clip.width, clip.height)[0].tolist()
    half = 2.5 * 2 / clip.width
    return clip.render_edited([PaintedMark(picture, Box(x - half, y - half, x + half, y + half), "foreground", FRAME)])


def found_at(marked_frame: np.ndarray, frame: np.ndarray) -> np.ndarray:
    """The middle of what differs between two frames."""
    weight = np.abs(marked_frame.astype(float) - frame).sum(axis=-1)
    weight = np.clip(weight - 20, 0, 40)  # what is under the dot does not count
    row, column = np.indices(weight.shape) + 0.5
    return np.array([(weight * column).sum(), (weight * row).sum()]) / weight.sum()


def right(length: float) -> np.ndarray:
    return np.array([length, 0.0])


DRAGS = {
    "one": ([[0.0, 0.0]], [[12.0, -5.0]]),
    "short": ([[0.2, 0.1]], [[3.0, 2.0]]),
    "at the outline": ([[0.85, 0.0]], [[14.0, 3.0]]),
    "two apart": ([[-0.6, 0.0], [0.6, 0.1]], [[-8.0, -3.0], [9.0, 5.0]]),
    "three on a line": ([[-0.6, 0.0], [0.0, 0.0], [0.6, 0.0]], [[-4.0, 3.0], [0.0, -6.0], [6.0, 3.0]]),
    "alike": ([[-0.3, 0.2], [0.3, -0.2]], [[9.0, 4.0], [9.0, 4.0]]),
}


SHOWN = ("one", "at the outline", "two apart")


@pytest.mark.parametrize("name", DRAGS)
def test_dragged_material_is_at_the_end_of_the_drag_in_every_frame(true_run: TrueRun, run: Run, name: str) -> None:
    clip = true_run.clip
    middle, radius = middle_of(clip)
    start = middle + radius * np.array(DRAGS[name][0])
    end = start + DRAGS[name][1]
    made = edit(run, editor=Drag(frame=FRAME, drag=words(start, end)))
    assert made.edit.layers == ("foreground",) and made.edit.record.origin.details["frame"] == FRAME
    shape = read_shapes(made.edit, "foreground")[0]
    renderer = open_passes(require_planar(run, "the test"))
    for number, (point, place) in enumerate(zip(start, end, strict=True)):
        shown = marked(clip, point) if number == 0 and name in SHOWN else None
        for t in range(clip.count):
            wanted = true_places(clip, place[None], t)[0]
            uv = clip.surfaces[0].uv_at(
                t, coords.normalize_pixels(torch.from_numpy(wanted[None]), clip.width, clip.height)
            )
            source = clip.to_pixels(
                clip.surfaces[0].xy_at(t, uv - torch.from_numpy(shape.displacement_at(uv.numpy())))
            ).numpy()[0]
            assert np.linalg.norm(source - true_places(clip, point[None], t)[0]) < 0.05
            if shown is not None and t % 3 == 2:
                frames = [renderer.render_frame(t, frame) for frame in (shown[t], clip.frames[t])]
                assert np.linalg.norm(found_at(*frames) - wanted) < 1.0


def test_the_outline_moves_with_a_point_near_it_and_the_object_appears_once(true_run: TrueRun, run: Run) -> None:
    clip = true_run.clip
    middle, radius = middle_of(clip)
    start = middle + radius * np.array([[0.9, 0.0]])
    edit(run, editor=Drag(frame=FRAME, drag=words(start, start + right(16))))
    renderer = open_passes(require_planar(run, "the test"))
    assert isinstance(renderer, WarpPass)
    for t in (0, FRAME, 11):
        weight = renderer.deform_frame(t, clip.frames[t])[1][0]
        x, y = np.floor(true_places(clip, start + right(15), t)[0]).astype(int)
        assert clip.alpha[0, t, y, x] < 0.1 < 0.9 < weight[y, x]
        before, after = (cv2.connectedComponents((w > 0.5).astype(np.uint8))[0] for w in (clip.alpha[0, t], weight))
        assert after == before


def test_held_points_stay_and_beyond_the_radius_nothing_changes(true_run: TrueRun, run: Run) -> None:
    clip = true_run.clip
    middle, radius = middle_of(clip)
    start, held = middle + radius * np.array([[0.5, 0.0]]), middle - right(0.3 * radius)
    end = start + np.array([7.0, 4.0])
    hold = (f"{held[0]:.3f},{held[1]:.3f}",)
    made = edit(run, editor=Drag(frame=FRAME, drag=words(start, end), hold=hold, radius=30.0))
    xy = coords.normalize_pixels(torch.from_numpy(held[None]), clip.width, clip.height)
    uv = clip.surfaces[0].uv_at(FRAME, xy).numpy()
    assert np.abs(read_shapes(made.edit, "foreground")[0].displacement_at(uv)).max() * clip.width / 2 < 0.05
    shown = open_passes(require_planar(run, "the test")).render_frame(FRAME, clip.frames[FRAME])
    x, y = np.meshgrid(np.arange(clip.width) + 0.5, np.arange(clip.height) + 0.5)
    far = np.minimum(*(np.hypot(x - p[0], y - p[1]) for p in (end[0], held))) > 34
    assert np.array_equal(shown[far], clip.frames[FRAME][far]) and not np.array_equal(shown, clip.frames[FRAME])


@pytest.mark.parametrize("length", [2.0, 20.0, 60.0])
def test_one_drag_never_folds_by_itself(true_run: TrueRun, run: Run, length: float) -> None:
    middle, _ = middle_of(true_run.clip)
    made = edit(run, editor=Drag(frame=FRAME, drag=words(middle[None], middle[None] + right(length))))
    assert made.edit.record.origin.details["radius"] >= 4 * length and "radius" in made.notes[0]


# --- the field -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_a_field_goes_through_all_points_and_one_that_does_not_fold_can_be_gone_back(seed: int) -> None:
    generator = np.random.default_rng(seed)
    start = generator.uniform(0, 100, (4, 2))
    field = solve_drag_field(start, start + generator.uniform(-6, 6, (4, 2)), generator.uniform(100, 160, (2, 2)), 80.0)
    assert np.abs(field.centers[:4] - field.displacement_at(field.centers[:4]) - start).max() < 1e-9
    assert np.abs(field.displacement_at(field.centers[4:])).max() < 1e-9
    assert field.min_area_change() > DEFAULTS.min_area_change
    low, high = field.bounds
    wanted = generator.uniform(low, high, (300, 2))
    x = wanted
    for _ in range(300):
        x = wanted + field.displacement_at(x)
    assert np.abs(x - field.displacement_at(x) - wanted).max() < 1e-6
    assert not field.displacement_at(np.stack([low, high])).any()


def test_areas_agree_with_finite_differences() -> None:
    field = solve_drag_field(np.array([[3.0, 4.0]]), np.array([[9.0, 1.0]]), np.array([[20.0, 8.0]]), 25.0)
    points, tiny = field._make_grid(), 1e-4
    sides = [
        (points + d - field.displacement_at(points + d) - points + d + field.displacement_at(points - d)) / (2 * tiny)
        for d in tiny * np.eye(2)
    ]
    area = sides[0][:, 0] * sides[1][:, 1] - sides[0][:, 1] * sides[1][:, 0]
    np.testing.assert_allclose(field._compute_areas(), area, atol=1e-5)


# --- what a user gives -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "what"),
    [
        ({}, "no point is dragged"),
        ({"hold": ("50,50",)}, "no point is dragged"),
        ({"drag": ("12,3",)}, "not a pair"),
        ({"drag": ("nan,3>4,5",)}, "not a pair"),
        ({"drag": ("1e999,3>4,5",)}, "not a pair"),
        ({"drag": ("M>20,20",), "hold": ("1,2,3",)}, "not a point"),
        ({"drag": ("M>20,20",), "hold": ("inf,2",)}, "not a point"),
        ({"drag": ("M>M",)}, "moves nothing"),
        ({"drag": ("M>20,20", "M>30,30")}, "two drags start at"),
        ({"drag": ("M>20,20", "60,60>20,20")}, "two drags end at"),
        ({"drag": ("M>20,20",), "hold": ("9,9", "9,9")}, "held at 9,9"),
        ({"drag": ("M>20,20",), "hold": ("M",)}, "held, and dragged away"),
        ({"drag": ("M>20,20",), "hold": ("20,20",)}, "the end of a drag"),
        ({"drag": ("500,20>20,20",)}, "outside the frame"),
        ({"drag": ("M>500,20",)}, "outside the frame"),
        ({"drag": ("M>20,20",), "hold": ("-5,20",)}, "outside the frame"),
        ({"drag": ("3,3>20,20",)}, "not on the layer"),
        ({"drag": ("M>M+9",), "radius": -1.0}, "radius -1 does not fit"),
        ({"drag": ("M>M+9",), "radius": float("nan")}, "radius nan does not fit"),
        ({"drag": ("M>M+9",), "radius": 8.0}, "radius 8 does not fit"),
        ({"drag": ("M>M+9",), "radius": 1e9}, "does not fit"),
        ({"drag": ("M>M+9",), "radius": 12.0}, "fold the layer foreground near"),
        ({"drag": ("M>M+9",), "frame": 77}, "frame 77 is not part"),
    ],
)
def test_a_user_is_told_what_is_wrong_with_a_drag(true_run: TrueRun, run: Run, settings: dict, what: str) -> None:
    middle, _ = middle_of(true_run.clip)
    given = {"M+9": f"{middle[0] + 9:.2f},{middle[1]:.2f}", "M": f"{middle[0]:.2f},{middle[1]:.2f}"}

    def filled(word: str) -> str:
        for name, place in given.items():
            word = re.sub(rf"{re.escape(name)}(?![+\d])", place, word)
        return word

    words: dict[str, Any] = {
        key: tuple(map(filled, value)) if isinstance(value, tuple) else value for key, value in settings.items()
    }
    before = sorted(path for path in run.edits.rglob("*")) if run.edits.exists() else []
    with pytest.raises(UserError, match=what) as caught:
        edit(run, editor=Drag(**{"frame": FRAME, **words}))
    assert caught.value.code == ExitCode.BAD_INPUT
    assert (sorted(path for path in run.edits.rglob("*")) if run.edits.exists() else []) == before


def test_a_drag_that_folds_is_told_how_long_it_may_be(true_run: TrueRun, run: Run) -> None:
    middle, _ = middle_of(true_run.clip)
    start = middle[None]
    with pytest.raises(UserError, match="fold") as caught:
        edit(run, editor=Drag(frame=FRAME, drag=words(start, start + right(18)), radius=24.0))
    told = re.search(r'"(.+)"', caught.value.fix)
    assert told is not None and "24 pixels" in caught.value.why
    numbers = [float(word) for word in re.split("[,>]", told[1])]
    assert 8 < numbers[2] - numbers[0] < 12  # 24 / 2.11 at most: the steepest slope of the function
    edit(run, editor=Drag(frame=FRAME, drag=(told[1],), radius=24.0))
    with pytest.raises(UserError, match="fold"):
        edit(
            run, editor=Drag(frame=FRAME, drag=words(start, start + right(numbers[2] - numbers[0] + 0.3)), radius=24.0)
        )


def test_drags_against_each_other_fold(true_run: TrueRun, run: Run) -> None:
    middle, _ = middle_of(true_run.clip)
    start = middle + np.array([[-4.0, 0.0], [4.0, 0.0]])
    with pytest.raises(UserError, match="fold"):
        edit(run, editor=Drag(frame=FRAME, drag=words(start, start[::-1] + np.array([[0, 1], [0, -1]]))))


def test_several_layers_or_a_mask_are_refused(true_run: TrueRun, run: Run) -> None:
    with pytest.raises(UserError, match="one layer"):
        edit(run, editor=Drag(drag=("1,1>2,2",)), layers=("foreground", "background"))
