"""Moved points deform an object in every frame, and points that tell no deformation are refused."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from editors.api import edit
from editors.core.history import undo
from editors.effects.shape import FoldError, ShapeEdit, deform_by_points
from editors.effects.shape_points import check_spread, parse_point_pairs, read_flow_pairs, read_point_pairs
from neural_fields.atlas.uv_extrapolation import ExtrapolatedMap, extrapolate_uv
from neural_fields.atlas.uv_maps import Maps
from neural_fields.core.box import Box
from neural_fields.core.errors import ExitCode, UserError
from neural_fields.data.flow.flow_files import write_flo
from neural_fields.data.video.io import source_frames
from neural_fields.edits.shape import Deformation
from neural_fields.open_runs.opening import require_planar
from neural_fields.rendering.render_planar import open_passes
from neural_fields.rendering.warp_pass import WarpPass
from neural_fields.runs.run import Run

WIDTH, HEIGHT = 96, 64
CENTER = np.array([48.0, 32.0])
TURN = np.array([[0.02, 0.004], [-0.005, 0.018]])  # pixels to uv
ANGLES = np.linspace(0, 2 * np.pi, 8, endpoint=False)
RING = np.concatenate([CENTER + 11 * np.stack([np.cos(ANGLES), np.sin(ANGLES)], axis=1), CENTER[None]])
Motion = Callable[[np.ndarray], np.ndarray]


@pytest.fixture(scope="module")
def disc() -> tuple[ExtrapolatedMap, np.ndarray]:
    """A disc of 12 pixels in the middle of a frame, whose plane leans."""
    x, y = np.meshgrid(np.arange(WIDTH) + 0.5, np.arange(HEIGHT) + 0.5)
    centers = np.stack([x, y], axis=-1)
    seen = ((centers - CENTER) ** 2).sum(-1) < 12**2
    found = extrapolate_uv((centers @ TURN.T).astype(np.float32), seen)
    assert found is not None
    return found, seen


@pytest.fixture
def run(moving_run: Run, tmp_path: Path) -> Run:
    """A run to edit."""
    shutil.copytree(moving_run.path, tmp_path / "run")
    return Run.open(tmp_path / "run")


MOTIONS: dict[str, Motion] = {
    "shift": lambda p: p + np.array([30.0, -6.0]),
    "grow": lambda p: CENTER + (p - CENTER) * 1.6,
    "shrink": lambda p: CENTER + (p - CENTER) * 0.5,
    "turn": lambda p: CENTER + (p - CENTER) @ np.array([[0.5, 0.866], [-0.866, 0.5]]),
    "shear": lambda p: CENTER + (p - CENTER) @ np.array([[1.2, 0.0], [0.5, 0.9]]),
    "bend": lambda p: p + 0.02 * (p[:, :1] - 48) ** 2 * [0.0, 1.0],
}


@pytest.mark.parametrize("name", MOTIONS)
def test_every_point_of_the_object_goes_where_the_pairs_say(disc: tuple, name: str) -> None:
    found, seen = disc
    motion = MOTIONS[name]
    shape = deform_by_points(found, seen, RING, motion(RING))
    inside = CENTER + 0.8 * (RING[:-1] - CENTER)
    ends = motion(inside)
    uv = ends @ TURN.T
    from_pixel = (uv - shape.displacement_at(uv)) @ np.linalg.inv(TURN).T
    assert np.linalg.norm(from_pixel - inside, axis=1).max() < (0.5 if name == "bend" else 0.1)


@pytest.mark.parametrize("name", MOTIONS)
def test_far_from_the_object_nothing_is_moved_and_the_object_appears_once(disc: tuple, name: str) -> None:
    found, seen = disc
    shape = deform_by_points(found, seen, RING, MOTIONS[name](RING))
    assert not shape.field[:, [0, -1]].any() and not shape.field[:, :, [0, -1]].any()
    v, u = np.mgrid[-3:4:0.02, -3:4:0.02]
    uv = np.stack([u, v], axis=-1).reshape(-1, 2)
    places = (uv - shape.displacement_at(uv)) @ np.linalg.inv(TURN).T
    shown = (((places - CENTER) ** 2).sum(-1) < 11.5**2).reshape(u.shape)
    assert cv2.connectedComponents(shown.astype(np.uint8))[0] == 2  # the object, and what is around it


def test_pairs_that_pass_one_another_are_a_fold(disc: tuple) -> None:
    found, seen = disc
    crossed = RING.copy()
    crossed[[0, 4]] = crossed[[4, 0]]
    with pytest.raises(FoldError):
        deform_by_points(found, seen, RING, crossed)


# --- what a user gives -----------------------------------------------------------------------------------------------


def test_pairs_are_read_from_words_and_tables(tmp_path: Path) -> None:
    table = tmp_path / "pairs.csv"
    table.write_text("x,y,to x,to y\n1,2,3,4\n\n5; 6;7; 8.5\n")
    assert (
        read_point_pairs(table).tolist()
        == parse_point_pairs(("1,2>3,4", "5,6 > 7,8.5")).tolist()
        == [[1, 2, 3, 4], [5, 6, 7, 8.5]]
    )


@pytest.mark.parametrize("word", ["", "1,2", "1,2>3", "1,2>3,4>5,6", "a,b>c,d", "1,2>nan,4", "1,2,3>4"])
def test_words_that_are_no_pair_are_refused(word: str) -> None:
    with pytest.raises(UserError, match="not a pair"):
        parse_point_pairs((word,))


@pytest.mark.parametrize("text", ["", "x,y,z,w\n", "1,2,3\n", "1,2,3,4\n1,2,3,x\n", "1,2,3,inf\n"])
def test_a_table_without_pairs_is_refused(tmp_path: Path, text: str) -> None:
    table = tmp_path / "pairs.csv"
    table.write_text(text)
    with pytest.raises(UserError, match="pair"):
        read_point_pairs(table)
    with pytest.raises(UserError, match="cannot be read"):
        read_point_pairs(tmp_path / "gone.csv")


@pytest.mark.parametrize(("scale", "suffix"), [(1, ".flo"), (2, ".npy")])
def test_a_flow_file_of_any_size_gives_points_of_the_object(tmp_path: Path, scale: int, suffix: str) -> None:
    weight = np.zeros((36, 64), bool)
    weight[10:20, 20:40] = True
    vectors = np.tile(np.array([3, -2], np.float32), (36 * scale, 64 * scale, 1)) * np.float32(scale)
    path = tmp_path / f"flow{suffix}"
    if suffix == ".flo":
        write_flo(path, vectors)
    else:
        np.save(path, vectors)
    rows = read_flow_pairs(path, (64, 36), weight)
    assert 50 < len(rows) <= 400 and (np.abs(rows[:, 2:] - rows[:, :2] - [3, -2]) < 1e-4).all()
    assert (rows[:, 0] > 20).all() and (rows[:, 0] < 40).all() and (rows[:, 1] > 10).all() and (rows[:, 1] < 20).all()
    with pytest.raises(UserError, match="nothing of the layer"):
        read_flow_pairs(path, (64, 36), np.zeros((36, 64), bool))


def test_a_flow_file_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    for name, vectors in (
        ("square.npy", np.zeros((9, 9, 2), np.float32)),
        ("flat.npy", np.zeros((36, 64), np.float32)),
    ):
        np.save(tmp_path / name, vectors)
        with pytest.raises(UserError) as caught:
            read_flow_pairs(tmp_path / name, (64, 36), np.ones((36, 64), bool))
        assert caught.value.code == ExitCode.BAD_INPUT and "height x width x 2" in caught.value.fix
    for name in ("gone.npy", "pairs.txt"):
        with pytest.raises(UserError, match="no flow file"):
            read_flow_pairs(tmp_path / name, (64, 36), np.ones((36, 64), bool))


@pytest.mark.parametrize(
    ("start", "end", "what"),
    [
        ([[1, 1], [9, 1]], [[2, 1], [9, 1]], "2 pairs"),
        ([[1, 1], [9, 1], [5, 9]], [[1, 1], [9, 1], [5, 9]], "no point is moved"),
        ([[1, 1], [5, 5], [9, 9]], [[1, 1], [5, 8], [9, 9]], "on one line"),
        ([[1, 1], [9, 1], [5, 9]], [[1, 1], [9, 1], [5, 1]], "on one line"),
        ([[1, 1], [1, 1], [5, 9], [9, 1]], [[1, 1], [2, 1], [5, 9], [9, 1]], "are the same"),
    ],
)
def test_points_that_tell_no_deformation_are_refused(start: list, end: list, what: str) -> None:
    with pytest.raises(UserError, match=what):
        check_spread(np.array(start, float), np.array(end, float))


# --- on a run --------------------------------------------------------------------------------------------------------


def pairs_on(run: Run, frame: int, move: Motion) -> tuple[str, ...]:
    """Points around the middle of the foreground, and where they shall be."""
    y, x = np.nonzero(Maps.open(run.maps).read_layer_weight_small(frame, 0) > 0.9)
    center, reach = np.array([x.mean(), y.mean()]) + 0.5, 0.3 * min(np.ptp(x), np.ptp(y))
    points = center + reach * np.stack([np.cos(ANGLES[::2]), np.sin(ANGLES[::2])], axis=1)
    return tuple(f"{p[0]:.2f},{p[1]:.2f}>{q[0]:.2f},{q[1]:.2f}" for p, q in zip(points, move(points), strict=True))


@pytest.mark.slow
def test_an_object_is_moved_in_all_frames_and_undone(run: Run) -> None:
    made = edit(run, editor=ShapeEdit(frame=2, pairs=pairs_on(run, 2, lambda p: p + np.array([6.0, 3.0]))))
    assert made.edit.layers == ("foreground",) and made.edit.record.origin.details["frame"] == 2
    maps = Maps.open(run.maps)
    renderer, facts = open_passes(require_planar(run, "the test")), require_planar(run, "the test").metadata
    assert isinstance(renderer, WarpPass)
    for t, frame in enumerate(source_frames(facts, range(6))):
        before, (shown, weights) = maps.read_weights(t, (64, 36))[0], renderer.deform_frame(t, frame)
        middles = [np.array(np.nonzero(weight > 0.5)).mean(axis=1) for weight in (before, weights[0])]
        assert np.abs(middles[1] - middles[0] - [3, 6]).max() < 1
        assert np.abs(shown.astype(int) - frame).max() > 60
        far = np.hypot(*(np.indices((36, 64)).T - (middles[0] + middles[1]) / 2).T) > 30
        assert np.array_equal(shown[far], frame[far])
    undo(run)
    frame = next(iter(source_frames(facts, range(1))))
    assert open_passes(require_planar(run, "the test")).render_frame(0, frame) is frame


@pytest.mark.parametrize(
    ("settings", "what"),
    [
        ({}, "takes one of"),
        ({"pairs": ("1,1>2,2",), "flow": Path("x.flo")}, "takes one of"),
        ({"frame": 9, "pairs": ("1,1>2,2",)}, "frame 9 is not part"),
        ({"pairs": ("900,1>2,2", "1,9>1,9", "5,5>5,5")}, "outside the frame"),
        ({"pairs": ("63,35>50,30", "1,9>1,9", "40,5>40,5")}, "not on the layer"),
    ],
)
def test_a_user_is_told_what_is_wrong_with_a_shape(run: Run, settings: dict, what: str) -> None:
    with pytest.raises(UserError, match=what) as caught:
        edit(run, editor=ShapeEdit(**settings))
    assert caught.value.code == ExitCode.BAD_INPUT
    assert not (run.edits / "journal.jsonl").exists()


def test_a_fold_is_refused_with_its_place_and_several_layers_or_a_mask_are_refused(run: Run) -> None:
    def crossed(points: np.ndarray) -> np.ndarray:
        return points[[2, 1, 0, 3]]

    with pytest.raises(UserError, match="folds the layer foreground near"):
        edit(run, editor=ShapeEdit(frame=0, pairs=pairs_on(run, 0, crossed)))
    with pytest.raises(UserError, match="one layer"):
        edit(run, editor=ShapeEdit(pairs=("1,1>2,2",)), layers=("foreground", "background"))
    with pytest.raises(UserError, match="no mask"):
        edit(run, editor=ShapeEdit(pairs=("1,1>2,2",)), mask=run.canonical / "foreground.png")


def test_a_shape_says_where_it_is_zero() -> None:
    shape = Deformation(np.pad(np.ones((2, 2, 2), np.float32), ((0, 0), (1, 1), (1, 1))), Box(-1.0, -1.0, 1.0, 1.0))
    assert shape.displacement_at(np.array([[0.0, 0.0]])).tolist() == [[1, 1]]
    assert shape.displacement_at(np.array([[5.0, 0.0], [0.0, -7.0]])).tolist() == [[0, 0], [0, 0]]
