"""A frame with a new object in it: its shape and its colors are found, and go to every frame."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from editors.api import edit
from editors.cli.main import main
from editors.core.history import undo
from editors.diffusion.backend.diffusers_model import load_model
from editors.diffusion.backend.weights import WeightsSource
from editors.diffusion.common.shape_matching import compute_features, match_box_corners, match_features, match_outlines
from editors.diffusion.methods import shape_aware
from editors.diffusion.methods.shape_aware import ShapeAware, segment_new_object
from editors.effects.shape import ShapeEdit
from neural_fields.atlas.uv_maps import Maps
from neural_fields.core.errors import ExitCode, UserError
from neural_fields.data.video.io import source_frames
from neural_fields.open_runs.opening import require_planar
from neural_fields.rendering.render_planar import open_passes
from neural_fields.runs.run import Run

pytestmark = pytest.mark.slow

SIZE = (64, 36)
FRAME = 2


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, tiny_models: ModuleType) -> Callable[[str], str]:
    """Folders of tiny models by kind."""
    home = tmp_path_factory.mktemp("models")
    makers = {
        "plain": lambda: tiny_models.stable_diffusion(home / "plain"),
        "inpainting": lambda: tiny_models.stable_diffusion(home / "inpainting", inputs=9),
        "three": lambda: tiny_models.stable_diffusion_3(home / "three"),
    }
    made: dict[str, str] = {}

    def folder(kind: str) -> str:
        if kind not in made:
            made[kind] = str(makers[kind]())
        return made[kind]

    return folder


@pytest.fixture
def run(moving_run: Run, tmp_path: Path) -> Run:
    """A run to edit."""
    shutil.copytree(moving_run.path, tmp_path / "run")
    return Run.open(tmp_path / "run")


def frames(run: Run) -> list[np.ndarray]:
    metadata = require_planar(run, "the test").metadata
    return list(source_frames(metadata, range(6)))


def painted(run: Run, folder: Path) -> tuple[Path, list[np.ndarray]]:
    """A frame whose object is wider, taller and green, and where it then is in all frames."""
    y, x = np.nonzero(Maps.open(run.maps).read_layer_weight_small(FRAME, 0) > 0.9)
    (left, right), (top, bottom) = ((line.min() + 3.0, line.max() - 2.0) for line in (x, y))
    middle = ((left + right) / 2, (top + bottom) / 2)
    points = [(left + 3, middle[1]), (right - 3, middle[1]), (middle[0], top + 2), (middle[0], bottom - 2)]
    words = tuple(
        f"{a:.1f},{b:.1f}>{middle[0] + 1.35 * (a - middle[0]):.1f},{middle[1] + 1.2 * (b - middle[1]):.1f}"
        for a, b in points
    )
    edit(run, editor=ShapeEdit(frame=FRAME, pairs=words))
    renderer = open_passes(require_planar(run, "the test"))
    both = [(renderer.render_frame(t, frame), renderer.layer_weights(t, SIZE)) for t, frame in enumerate(frames(run))]
    undo(run)
    shown, weights = both[FRAME]
    edited = weights[0][..., None] * np.array([30, 200, 40]) + (1 - weights[0][..., None]) * shown
    Image.fromarray(edited.round().astype(np.uint8)).save(folder / "edited.png")
    return folder / "edited.png", [weights[0] > 0.5 for _, weights in both]


def iou(one: np.ndarray, other: np.ndarray) -> float:
    return float((one & other).sum() / (one | other).sum())


# --- matching --------------------------------------------------------------------------------------------------------


def blob(matrix: np.ndarray) -> np.ndarray:
    """An object without symmetry, through an affine map of its pixels."""
    mask = np.zeros((96, 128), np.uint8)
    outline = np.array([[40, 30], [70, 28], [84, 44], [70, 50], [66, 70], [44, 66], [36, 48]], np.float64)
    moved = outline @ matrix[:, :2].T + matrix[:, 2]
    return cv2.fillPoly(mask, [np.round(moved * 16).astype(np.int32)], 1, shift=4) > 0


@pytest.mark.parametrize(
    "matrix", [[[1, 0, 20], [0, 1, -6]], [[1.3, 0, -20], [0, 1.3, -12]], [[0.95, -0.3, 20], [0.3, 0.95, -15]]]
)
def test_outlines_of_the_same_shape_are_matched_point_for_point(matrix: list) -> None:
    affine = np.array(matrix, np.float64)
    start, end = match_outlines(blob(np.eye(2, 3)), blob(affine))
    assert len(start) == 21
    assert np.linalg.norm(start @ affine[:, :2].T + affine[:, 2] - end, axis=1).max() < 2.5
    start, end = match_box_corners(blob(np.eye(2, 3)), blob(affine))
    assert start.shape == end.shape == (4, 2)


def test_features_that_moved_are_found_where_they_went_and_strays_are_left_out() -> None:
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randn(1, 32, 12, 16, generator=generator)
    plane = torch.nn.functional.interpolate(coarse, (96, 128), mode="bicubic")[0]
    before, after = blob(np.eye(2, 3)), blob(np.array([[1, 0, 16], [0, 1, -8.0]]))
    moved = plane.roll((-8, 16), (1, 2))
    guess = match_outlines(before, after)
    start, end = match_features(plane, moved, before, after, guess)
    assert 20 < len(start) <= 60 and np.abs(end - start - [16, -8]).max() <= 2
    assert len(match_features(plane, plane.flip(2), before, after, guess)[0]) < len(start)
    assert len(match_features(plane, moved, before & False, after, guess)[0]) == 0


@pytest.mark.parametrize("kind", ["plain", "inpainting"])
def test_features_are_of_length_one_and_leave_the_model_as_it_was(models: Callable[[str], str], kind: str) -> None:
    model = load_model(WeightsSource(models(kind)))
    image = torch.rand(1, 3, 32, 48, generator=torch.Generator().manual_seed(1))
    found = compute_features(model, image, "a cat", 0)
    assert found.ndim == 3 and torch.allclose(found.norm(dim=0), torch.ones(found.shape[1:]), atol=1e-4)
    assert torch.equal(found, compute_features(model, image, "a cat", 0))
    assert model.unet is not None
    assert not any(block._forward_hooks for block in model.unet.up_blocks)


def test_a_model_without_a_unet_has_no_features(models: Callable[[str], str]) -> None:
    with pytest.raises(ValueError, match="U-Net"):
        compute_features(load_model(WeightsSource(models("three"))), torch.rand(1, 3, 32, 32), "a cat", 0)


def test_a_new_object_is_cut_out_of_what_was_painted() -> None:
    generator = np.random.default_rng(0)
    seen = (0.5 + 0.1 * generator.random((96, 128, 3))).astype(np.float32)
    before, new = blob(np.eye(2, 3)), blob(np.array([[1.3, 0, -14], [0, 1.2, -8.0]]))
    seen[before] = (0.2, 0.2, 0.7)
    edited = np.where(new[..., None], np.array([0.9, 0.3, 0.1], np.float32), seen)
    assert iou(segment_new_object(seen, edited, before), new) > 0.95


def test_a_new_object_is_cut_out_too_where_a_model_changed_all_that_it_might() -> None:
    generator = np.random.default_rng(0)
    seen = (0.5 + 0.1 * generator.random((96, 128, 3))).astype(np.float32)
    before, new = blob(np.eye(2, 3)), blob(np.array([[1.1, 0, -6], [0, 1.05, -3.0]]))
    seen[before] = (0.2, 0.2, 0.7)
    painted = cv2.dilate(before.astype(np.uint8), np.ones((15, 15), np.uint8)) > 0
    edited = np.where(painted[..., None], 0.55 + 0.1 * np.sign(generator.standard_normal(seen.shape)), seen)
    edited[new] = (0.9, 0.3, 0.1)
    assert iou(segment_new_object(seen, edited.astype(np.float32), before), new) > 0.95


# --- on a run --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("masked", [False, True])
def test_a_frame_painted_by_hand_gives_its_shape_and_colors_to_all_frames(
    run: Run, tmp_path: Path, masked: bool
) -> None:
    path, truth = painted(run, tmp_path)
    if masked:
        Image.fromarray(255 * truth[FRAME].astype(np.uint8)).save(tmp_path / "mask.png")
    settings = ShapeAware(frame=FRAME, edited=path, edited_mask=tmp_path / "mask.png" if masked else None)
    made = edit(run, editor=settings)
    assert made.edit.layers == ("foreground",) and any("matched by" in note for note in made.notes)
    renderer = open_passes(require_planar(run, "the test"))
    for t, frame in enumerate(frames(run)):
        shown = renderer.render_frame(t, frame)
        weights = renderer.layer_weights(t, SIZE)
        assert iou(weights[0] > 0.5, truth[t]) > (0.85 if masked else 0.78)
        inner = cv2.erode(truth[t].astype(np.uint8), np.ones((5, 5), np.uint8)) > 0
        off = np.abs(shown[inner].astype(float) - [30, 200, 40]).mean(axis=1)
        assert np.median(off) < 20 and (off < 60).mean() > 0.8
        far = cv2.dilate((truth[t] | (weights[0] > 0)).astype(np.uint8), np.ones((13, 13), np.uint8)) == 0
        assert np.array_equal(
            shown[far & ~renderer.affected_mask(t, SIZE)], frame[far & ~renderer.affected_mask(t, SIZE)]
        )
    with pytest.raises(UserError, match="has a shape already"):
        edit(run, editor=settings)


def test_where_outlines_fold_the_rectangles_are_matched_though_their_corners_are_not_on_the_object(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def match_crosswise(before: np.ndarray, after: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        start, end = match_outlines(before, after)
        return start, end[::-1].copy()

    monkeypatch.setattr(shape_aware, "match_outlines", match_crosswise)
    path, truth = painted(run, tmp_path)
    made = edit(run, editor=ShapeAware(frame=FRAME, edited=path))
    assert any("matched by the rectangles around them" in note for note in made.notes)
    weights = open_passes(require_planar(run, "the test")).layer_weights(FRAME, SIZE)
    assert iou(weights[0] > 0.5, truth[FRAME]) > 0.7


@pytest.mark.parametrize(("kind", "refine"), [("plain", 2), ("inpainting", 0), ("three", 0)])
def test_a_model_repaints_the_frame_and_the_command_line_takes_it(
    run: Run, models: Callable[[str], str], capsys: pytest.CaptureFixture[str], kind: str, refine: int
) -> None:
    words = ["edit", str(run.path), "--editor", "shape_aware", "--model", models(kind), "--prompt", "blue dots"]
    words += ["--steps", "2", "--frame", "1", "--refine", str(refine), "--json"]
    assert main(words) == ExitCode.OK, capsys.readouterr().err
    written = json.loads((run.edits / "0001-shape-aware" / "edit.json").read_text())
    details = written["origin"]["details"]
    assert details["frame"] == 1 and list(written["overlays"]) == ["foreground"]
    assert ("shapes" in written) == (len(details["points"]) >= 4)  # a model that was never trained makes no object


@pytest.mark.parametrize(
    ("settings", "code", "what"),
    [
        ({}, ExitCode.USAGE, "--prompt"),
        ({"prompt": "a cat"}, ExitCode.USAGE, "--model"),
        ({"model": "x", "prompt": " "}, ExitCode.USAGE, "--prompt"),
        ({"edited": Path("x.png"), "refine": 3}, ExitCode.USAGE, "--refine"),
        ({"model": "x", "prompt": "a cat", "refine": -1}, ExitCode.USAGE, "--refine"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(settings: dict, code: ExitCode, what: str) -> None:
    with pytest.raises(UserError) as caught:
        ShapeAware(**settings)
    assert caught.value.code == code and what in str(caught.value)


def test_an_edited_frame_that_does_not_fit_is_refused(run: Run, tmp_path: Path) -> None:
    frame, odd, dark = (tmp_path / name for name in ("frame.png", "odd.png", "dark.png"))
    Image.fromarray(frames(run)[FRAME]).save(frame)
    Image.new("RGB", (50, 50)).save(odd)
    Image.new("L", SIZE).save(dark)
    for settings, what in (
        ({"edited": frame}, "as it was"),
        ({"edited": odd}, "shape|size|aspect"),
        ({"edited": dark, "edited_mask": dark}, "new object is not found"),
        ({"edited": dark, "frame": 11}, "frame 11 is not part"),
    ):
        with pytest.raises(UserError, match=what) as caught:
            edit(run, editor=ShapeAware(**({"frame": FRAME} | settings)))
        assert caught.value.code == ExitCode.BAD_INPUT
    assert not (run.edits / "journal.jsonl").exists()
