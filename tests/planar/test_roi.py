"""A region drawn on one frame: refused in words, followed to a pixel, hidden by what passes in front, edited."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from editors.api import edit
from neural_fields.core import coords
from neural_fields.core.box import Box
from neural_fields.core.errors import ExitCode, UserError
from neural_fields.data.flow.compute import FlowField, compute_flow
from neural_fields.data.masks.roi import compute_quad_area, draw_quad_mask, parse_region
from neural_fields.data.synthetic import procedural_textures
from neural_fields.open_runs.opening import require_planar
from neural_fields.planar.config import load_planar_config
from neural_fields.planar.init.region_tracking import TrackedRegion, track_region
from neural_fields.rendering.options import RenderOptions
from neural_fields.rendering.render_planar import render
from neural_fields.runs.run import read_run_yaml
from neural_fields.training.options import TrainOptions
from neural_fields.training.train_planar import train

pytestmark = pytest.mark.slow

FRAMES, WIDTH, HEIGHT, DRAWN = 14, 160, 90, 11
SIGN = (200, 150)  # texels
FINER = 2  # sampling points along each side of a pixel


@dataclass(frozen=True)
class Scene:
    """A sign that turns and comes nearer over a background that moves, and a pole that passes in front of it."""

    frames: np.ndarray  # uint8 [T, H, W, 3]
    corners: np.ndarray  # [T, 4, 2] pixels
    pole: np.ndarray  # [T, H, W] 0 to 1
    sign: np.ndarray  # [T, H, W] 0 to 1, without the pole


def sign_picture(marked: bool) -> np.ndarray:
    picture = np.full((SIGN[1], SIGN[0], 3), (0.85, 0.8, 0.65), np.float32)
    cv2.rectangle(picture, (0, 0), (SIGN[0] - 1, SIGN[1] - 1), (0.1, 0.2, 0.5), 9)
    for number, color in enumerate([(0.3, 0.65, 0.5), (0.4, 0.4, 0.2), (0.2, 0.4, 0.5), (0.5, 0.6, 0.8)]):
        left, top = 24 + 34 * number, 22 + 17 * (number % 3)
        cv2.rectangle(picture, (left, top), (left + 16, top + 46), color, -1)
    cv2.circle(picture, (150, 110), 20, (0.7, 0.15, 0.1), -1)
    if marked:
        cv2.circle(picture, (80, 96), 34, (0.9, 0.1, 0.6), -1)
    return picture


def sign_corners(s: float) -> np.ndarray:
    base = np.array([[0.32, 0.28], [0.64, 0.25], [0.62, 0.68], [0.34, 0.72]]) * [WIDTH, HEIGHT]
    angle, zoom = 0.1 * np.sin(2.2 * s), 1 + 0.12 * np.sin(2.5 * s)
    turn = zoom * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    moved = (base - base.mean(0)) @ turn.T + base.mean(0) + [0.1 * WIDTH * np.sin(2.6 * s), -0.06 * HEIGHT * s]
    moved[1:3] += [[-0.03 * WIDTH * s, 0.03 * HEIGHT * s], [-0.03 * WIDTH * s, -0.02 * HEIGHT * s]]
    return moved


@cache
def scene(marked: bool = False, pole: bool = True, frames: int = FRAMES) -> Scene:
    background = procedural_textures.paint_sea_floor(Box(0.0, 0.0, 2.6, 1.5), 3 * WIDTH, 3 * HEIGHT, 1)
    picture = sign_picture(marked)
    outline = np.array([[0, 0], [SIGN[0], 0], SIGN, [0, SIGN[1]]], np.float32)
    y, x = (np.mgrid[: HEIGHT * FINER, : WIDTH * FINER] + 0.5) / FINER
    shown, corners, poles, signs = [], [], [], []
    for s in np.linspace(0, 1, frames):
        quad = sign_corners(s)
        pan = np.array([[1.2, 0, -0.3 * WIDTH - 0.2 * WIDTH * s], [0, 1.2, -0.3 * HEIGHT], [0, 0, 1.0]])
        at = cv2.getPerspectiveTransform(outline, quad.astype(np.float32))
        cover = warped(np.ones(picture.shape[:2], np.float32), at, cv2.BORDER_CONSTANT)[..., None]
        color = warped(background, pan) * (1 - cover) + warped(picture, at) * cover
        color *= 1 + 0.1 * np.sin(4 * s)
        front = (pole * (np.abs(x - WIDTH * (0.02 + 0.9 * s)) < 0.045 * WIDTH)).astype(np.float32)[..., None]
        stripes = np.stack([0.2 + 0 * x, 0.5 + 0.2 * np.sin(y / 3), 0.25 + 0 * x], -1)
        shown.append((smaller(color * (1 - front) + stripes * front).clip(0, 1) * 255).round().astype(np.uint8))
        corners.append(quad)
        poles.append(smaller(front))
        signs.append(smaller(cover))
    return Scene(np.stack(shown), np.stack(corners), np.stack(poles), np.stack(signs))


def warped(image: np.ndarray, matrix: np.ndarray, border: int = cv2.BORDER_REPLICATE) -> np.ndarray:
    """An image on the sampling points of a frame; the matrix leads from its edges-at-whole-numbers to pixels."""
    center = np.array([[1, 0, -0.5], [0, 1, -0.5], [0, 0, 1.0]])
    full = center @ np.diag([FINER, FINER, 1.0]) @ matrix @ np.linalg.inv(center)
    return cv2.warpPerspective(image, full, (WIDTH * FINER, HEIGHT * FINER), flags=cv2.INTER_LINEAR, borderMode=border)


def smaller(image: np.ndarray) -> np.ndarray:
    return cv2.resize(image.astype(np.float32), (WIDTH, HEIGHT), interpolation=cv2.INTER_AREA)


def to_xy(pixels: np.ndarray, size: tuple[int, int] = (WIDTH, HEIGHT)) -> np.ndarray:
    return coords.normalize_pixels(torch.from_numpy(pixels), *size).numpy()


def to_pixels(xy: np.ndarray) -> np.ndarray:
    return coords.denormalize_pixels(torch.from_numpy(np.asarray(xy, np.float64)), WIDTH, HEIGHT).numpy()


def region_text(corners: np.ndarray, frame: int = DRAWN) -> str:
    return f"{frame}:" + " ".join(f"{x:.2f},{y:.2f}" for x, y in corners)


@pytest.fixture(scope="module")
def followed(tmp_path_factory: pytest.TempPathFactory) -> TrackedRegion:
    truth = scene()
    flow = compute_flow(truth.frames, tmp_path_factory.mktemp("flow"), "dis")
    return track_region(truth.frames, flow, to_xy(truth.corners[DRAWN]), DRAWN)


# --- the text -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("20,20 80,20 80,60 20,60", "expected a frame"),
        ("3:20,20 80,20 80,60", "expected a frame"),
        ("3:20,20 80,20 80,60 20,60 10,40", "expected a frame"),
        ("3:20,x 80,20 80,60 20,60", "expected a frame"),
        ("3:nan,20 80,20 80,60 20,60", "expected a frame"),
        ("14:20,20 80,20 80,60 20,60", "frame 14 is not fitted"),
        ("3:20,20 180,20 80,60 20,60", "180,20 lies outside the frame"),
        ("3:20,-1 80,20 80,60 20,60", "20,-1 lies outside the frame"),
        ("3:20,20 80,60 80,20 20,60", "around a convex region"),
        ("3:20,20 80,20 50,30 20,60", "around a convex region"),
        ("3:20,20 20,20 80,60 20,60", "around a convex region"),
        ("3:20,20 50,20 80,20 20,60", "around a convex region"),
        ("3:20,20 80,20 80,24 20,24", "4.0 pixels wide at its thinnest"),
    ],
)
def test_a_region_that_cannot_be_taken_is_refused_with_one_that_can(text: str, why: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_region(text, WIDTH, HEIGHT, range(14))
    assert caught.value.code == ExitCode.BAD_INPUT and why in caught.value.why
    suggested = re.fullmatch(r'--roi "(.*)"', caught.value.fix)
    assert suggested
    parse_region(suggested[1], WIDTH, HEIGHT, range(14))


def test_a_region_has_one_text_however_it_was_typed() -> None:
    typed = parse_region(" 4: 20,20.50  80,20 80,60 20,60.0 ", WIDTH, HEIGHT, range(2, 14, 2))
    assert typed.frame == 4 and typed.roi_text == "4:20,20.5 80,20 80,60 20,60"
    assert parse_region(typed.roi_text, WIDTH, HEIGHT, range(14)) == typed


def test_the_pixels_of_a_region_are_those_whose_centers_lie_in_it() -> None:
    corners = to_xy(np.array([[10.0, 5.0], [30.0, 5.0], [30.0, 25.0], [10.0, 25.0]]))
    for order in (corners, corners[::-1]):
        mask = draw_quad_mask(order, (WIDTH, HEIGHT))
        assert mask[5:25, 10:30].all() and mask.sum() == 400
        assert compute_quad_area(order, (WIDTH, HEIGHT)) == pytest.approx(400)


# --- following ------------------------------------------------------------------------------------------------------


def test_the_corners_are_followed_to_a_pixel_though_something_passes_in_front(followed: TrackedRegion) -> None:
    truth = scene()
    errors = [
        np.linalg.norm(to_pixels(followed.track.compute_quad(t)) - truth.corners[t], axis=1).max()
        for t in range(FRAMES)
    ]
    assert max(errors) < 1.0
    assert np.mean(errors) < 0.5
    assert np.array_equal(followed.track.transforms[DRAWN], np.eye(3))


def test_what_passes_in_front_is_not_the_region(followed: TrackedRegion) -> None:
    truth = scene()
    for t in range(FRAMES):
        visible = truth.sign[t] * (1 - truth.pole[t]) > 0.5
        seen = followed.visibility[t]
        assert (visible & seen).sum() / (visible | seen).sum() > 0.93
        inside = (cv2.erode(truth.pole[t], np.ones((3, 3))) == 1) & (truth.sign[t] == 1)
        assert (seen & inside).sum() <= 0.02 * inside.sum()


def test_a_region_is_gone_where_it_has_left_the_frame() -> None:
    picture = procedural_textures.paint_sea_floor(Box(0.0, 0.0, 3.0, 1.0), 480, 96, 2)
    frames = np.stack([picture[:60, 20 * t : 20 * t + 120] * 255 for t in range(7)]).round().astype(np.uint8)
    motion = np.full((6, 60, 120, 2), np.array([-20, 0], np.float32))
    everywhere = np.ones((6, 60, 120), bool)
    corners = np.array([[67.0, 12.0], [103.0, 12.0], [103.0, 48.0], [67.0, 48.0]])
    found = track_region(frames, FlowField(motion, -motion, everywhere, everywhere), to_xy(corners, (120, 60)), 0)
    shares = [seen.sum() / 36**2 for seen in found.visibility]
    assert min(shares[:4]) > 0.97
    assert shares[4] == pytest.approx(23 / 36, abs=0.06)
    assert shares[5:] == [0, 0]  # of 3 / 36, and of nothing
    last = coords.denormalize_pixels(torch.from_numpy(found.track.compute_quad(6)), 120, 60).numpy()
    assert np.abs(last - (corners - [120, 0])).max() < 3, "what is hidden moves with its surroundings"


def test_the_rear_of_a_real_van_stays_on_the_van(shared_data: Path, tmp_path: Path) -> None:
    folder = shared_data / "davis-car-shadow"
    size, numbers = (320, 180), range(10, 30, 2)

    def read(kind: str, k: int) -> np.ndarray:
        found = sorted((folder / kind).iterdir())[k]
        return cv2.resize(np.asarray(Image.open(found).convert("RGB")), size, interpolation=cv2.INTER_AREA)

    frames = np.stack([read("frames", k) for k in numbers])
    corners = np.array([[446.0, 150.0], [500.0, 150.0], [506.0, 238.0], [443.0, 242.0]]) * [320 / 854, 180 / 480]
    found = track_region(frames, compute_flow(frames, tmp_path, "dis"), to_xy(corners, size), 5)
    for number, seen in zip(numbers, found.visibility, strict=True):
        van = read("masks", number).max(-1) > 0
        assert seen.sum() > 0.8 * compute_quad_area(found.track.compute_quad(numbers.index(number)), size)
        assert (seen & van).sum() > 0.95 * seen.sum()


# --- a fit ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clip")
    for t, frame in enumerate(scene().frames):
        Image.fromarray(frame).save(folder / f"{t:03d}.png")
    return folder


def test_an_edit_drawn_on_the_region_lies_there_on_every_frame_and_on_nothing_else(clip: Path, tmp_path: Path) -> None:
    truth, wanted = scene(), scene(marked=True).frames
    options = TrainOptions(
        out=tmp_path / "run", config="roi", roi=region_text(truth.corners[DRAWN]), size="source",
        overrides={"training.steps": 12, "training.frame_pixels": 30000},
    )  # fmt: skip
    result = train(clip, options)
    model = require_planar(result.run, "the test").model
    assert model.layers == ("region", "background")
    grid = coords.frame_xy(WIDTH, HEIGHT)
    with torch.no_grad():
        own = model.mappings[0].map_frames(torch.tensor([DRAWN]), FRAMES, (WIDTH, HEIGHT))[0]
    assert float((own - grid).abs().max()) < 1e-5
    box, corners = model.canonical_box("region"), to_xy(truth.corners[DRAWN])
    assert (corners > [box.u0, box.v0]).all() and (corners < [box.u1, box.v1]).all()
    Image.fromarray(wanted[DRAWN]).save(tmp_path / "mark.png")
    edit(result.run, tmp_path / "mark.png", frame=DRAWN, layer="region")
    list(render(result.run, RenderOptions(out=tmp_path / "out", codec="png")))
    shown = np.stack(
        [np.asarray(Image.open(path).convert("RGB")) for path in sorted((tmp_path / "out").rglob("*.png"))]
    )
    error = (shown.astype(float) - wanted).reshape(FRAMES, -1)
    left = (truth.frames.astype(float) - wanted).reshape(FRAMES, -1)
    assert 10 * np.log10(255**2 / np.square(error).mean()) > 38
    assert np.square(error).mean() < 0.05 * np.square(left).mean()
    inside = np.stack([cv2.erode(pole, np.ones((3, 3))) == 1 for pole in truth.pole])
    assert np.array_equal(shown[inside], truth.frames[inside])
    assert np.array_equal(shown[truth.sign == 0], truth.frames[truth.sign == 0])

    assert read_run_yaml(result.run)["roi"] == parse_region(str(options.roi), WIDTH, HEIGHT, range(FRAMES)).roi_text
    with pytest.raises(UserError, match="other settings: roi"):
        train(clip, TrainOptions(**{**vars(options), "roi": region_text(truth.corners[DRAWN] + 1)}))


def test_the_preset_without_a_region_and_a_region_without_its_mapping_are_refused(clip: Path, tmp_path: Path) -> None:
    assert load_planar_config("roi").region
    with pytest.raises(UserError, match="tracks one region") as caught:
        train(clip, TrainOptions(out=tmp_path / "a", config="roi"))
    roi = re.fullmatch(r'--roi "(.*)"', caught.value.fix)
    assert roi and parse_region(roi[1], WIDTH, HEIGHT, range(FRAMES))
    with pytest.raises(UserError, match="preset lna cannot track a region"):
        train(clip, TrainOptions(out=tmp_path / "b", config="lna", roi=roi[1]))
