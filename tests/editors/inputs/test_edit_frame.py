"""A change painted on one frame, lifted into a canonical picture and looked up again, is the change."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from editors.inputs.canonical_picture import find_change
from editors.inputs.frame_lifting import DEFAULTS, choose_painted_layer, find_frame_change
from neural_fields.atlas.canonical import Overlay
from neural_fields.atlas.paint_lifting import FrameMaps, lift_paint
from neural_fields.core import coords
from neural_fields.core.box import Box
from neural_fields.core.errors import UserError
from neural_fields.imaging.alpha import premultiply
from neural_fields.imaging.image_io import Picture, read_picture

WIDTH, HEIGHT = 80, 60
BOX = Box(-1.5, -1.2, 1.5, 1.2)
Y, X = np.mgrid[:HEIGHT, :WIDTH]
DISC = (X - 40) ** 2 + (Y - 30) ** 2 < 15**2
SOURCE = cv2.GaussianBlur(np.random.default_rng(1).integers(60, 200, (HEIGHT, WIDTH, 3)).astype(np.uint8), (0, 0), 2)
IDENTITY = [[1, 0, 0], [0, 1, 0]]
SHIFT = [[1, 0, 0.0137], [0, 1, -0.0231]]
TURN = [[0.76, -0.24, 0.05], [0.24, 0.76, 0.02]]
PAINT = np.stack([0.55 + 0.2 * np.sin(X / 5), 0.4 + 0.2 * np.cos(Y / 4), np.full(X.shape, 0.25)], -1).astype(np.float32)


def frame_maps(affine: list, size: tuple[int, int], weight: float | np.ndarray = 1.0, gain: float = 1.0) -> FrameMaps:
    xy = coords.frame_xy(WIDTH, HEIGHT).numpy()
    matrix = np.array(affine, np.float32)
    uv = np.stack([xy @ matrix[:, :2].T + matrix[:, 2], xy]).astype(np.float32)
    first = np.broadcast_to(np.float32(weight), (HEIGHT, WIDTH))
    gains = np.full((2, HEIGHT, WIDTH, 3), gain, np.float32)
    sizes = [size, (WIDTH, HEIGHT)]
    boxes = [BOX, coords.frame_box(WIDTH, HEIGHT)]
    return FrameMaps(["foreground", "background"], uv, np.stack([first, 1 - first]), gains, boxes, sizes)


def paint(region: np.ndarray = DISC) -> Picture:
    rgba = np.ones((HEIGHT, WIDTH, 4), np.float32)
    rgba[..., :3] = np.where(region[..., None], np.rint(PAINT * 255) / 255, SOURCE / np.float32(255))
    return Picture(rgba, had_alpha=False, lossy=False)


def lift(picture: Picture, maps: FrameMaps) -> Overlay:
    """The paint of a frame on the foreground's picture."""
    change = find_frame_change(picture, SOURCE, "the frame")
    overlay, _, _ = lift_paint(change.rgba, SOURCE.astype(np.float32) / 255, maps, 0)
    return Overlay(overlay, maps.boxes[0])


def render(overlay: Overlay, maps: FrameMaps, index: int = 0) -> np.ndarray:
    """The frame as the design states it: source + weight * (gain * edit - alpha * observed), premultiplied."""
    image = torch.from_numpy(premultiply(overlay.rgba)).permute(2, 0, 1)[None]
    found = (
        coords.sample_canonical(image, overlay.box, torch.from_numpy(maps.uv[index])[None])[0].permute(1, 2, 0).numpy()
    )
    source = SOURCE / 255
    return source + maps.weight[index][..., None] * (maps.gain[index] * found[..., :3] - found[..., 3:] * source)


def region(grow: int) -> np.ndarray:
    around = np.ones((2 * abs(grow) + 1,) * 2, np.uint8)
    disc = DISC.astype(np.uint8)
    return (cv2.dilate(disc, around) if grow > 0 else cv2.erode(disc, around)) > 0


@pytest.mark.parametrize("density", [1, 3, 6])
@pytest.mark.parametrize("affine", [IDENTITY, SHIFT, TURN], ids=["identity", "shift", "turn"])
def test_a_lifted_frame_renders_as_it_was_painted(affine: list, density: int) -> None:
    maps = frame_maps(affine, (120 * density, 96 * density))
    picture = paint()
    error = np.abs(render(lift(picture, maps), maps) - picture.rgba[..., :3])
    assert error[region(-2)].max() <= 2 / 255
    assert error[~region(2)].max() < 1e-6


@pytest.mark.parametrize(("weight", "gain"), [(0.8, 1.0), (1.0, 0.8), (0.8, 1.2)])
def test_soft_opacity_and_lighting_are_divided_out(weight: float, gain: float) -> None:
    maps = frame_maps(SHIFT, (120, 96), weight, gain)
    picture = paint()
    error = np.abs(render(lift(picture, maps), maps) - picture.rgba[..., :3])
    assert error[region(-2)].max() <= 2 / 255


def test_there_are_no_pinholes_when_texels_are_finer_than_pixels() -> None:
    alpha = lift(paint(), frame_maps(TURN, (720, 576))).rgba[..., 3]
    mask = (alpha > 0.5).astype(np.uint8)
    holes = cv2.connectedComponents(1 - mask)[0] - 1  # the outside is one component
    assert (holes, cv2.connectedComponents(mask)[0] - 1) == (1, 1)


def test_paint_stays_near_its_outline_where_texels_are_wider_than_pixels() -> None:
    maps = frame_maps(TURN, (40, 32))
    shown = render(lift(paint(), maps), maps)
    off = 255 * np.abs(shown - SOURCE / 255).max(axis=-1)
    assert off[region(-6)].mean() > 20 and off[~region(6)].max() < 8


def test_paint_off_the_layer_is_left_out() -> None:
    maps = frame_maps(IDENTITY, (120, 96), np.where(X < 40, 1.0, 0.1))
    change = find_frame_change(paint(), SOURCE, "the frame")
    overlay, lost, _ = lift_paint(change.rgba, SOURCE.astype(np.float32) / 255, maps, 0)
    shown = render(Overlay(overlay, maps.boxes[0]), maps)
    assert np.abs(shown - SOURCE / 255)[X > 42].max() < 1e-6
    assert lost == pytest.approx(DISC[:, 40:].mean() * 40 / (DISC.mean() * WIDTH), abs=0.02)


def test_the_layer_that_shows_most_under_the_paint_is_chosen() -> None:
    first = np.where(X < 34, 1.0, 0.0).astype(np.float32)
    weights, alpha = np.stack([first, 1 - first]), DISC.astype(np.float32)
    index, notes = choose_painted_layer(alpha, ["foreground", "background"], weights, None, DEFAULTS)
    assert index == 1 and any("background" in note for note in notes)


def test_a_layer_that_is_not_seen_and_an_untouched_frame_are_refused() -> None:
    none, alpha = np.zeros((HEIGHT, WIDTH), np.float32), DISC.astype(np.float32)
    with pytest.raises(UserError, match="not seen under the paint"):
        choose_painted_layer(alpha, ["foreground", "background"], np.stack([none, none + 1]), "foreground", DEFAULTS)
    with pytest.raises(UserError, match="no change found"):
        find_frame_change(paint(np.zeros_like(DISC)), SOURCE, "the frame")


def test_a_frame_that_is_a_jpeg_file_and_comes_back_as_it_is_has_no_change(tmp_path: Path) -> None:
    noisy = np.random.default_rng(0).integers(0, 256, (128, 192, 3)).astype(np.uint8)
    noisy[40:90, 60:120] = (250, 20, 20)  # an edge of clipped color, which a second compression moves
    cv2.imwrite(str(tmp_path / "frame.jpg"), cv2.GaussianBlur(noisy, (0, 0), 1.0), [cv2.IMWRITE_JPEG_QUALITY, 75])
    painted = read_picture(tmp_path / "frame.jpg")
    assert find_change(painted, painted.rgba).is_empty
