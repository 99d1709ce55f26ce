"""Canonical pictures at the source's size: what they take from its frames, and what they do not."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pytest

from neural_fields.atlas.canonical import CanonicalImage
from neural_fields.atlas.inverse_uv_raster import invert_map
from neural_fields.atlas.source_detail import Frames, find_cells, sharpen_canonical
from neural_fields.atlas.uv_maps import Maps
from neural_fields.data.synthetic.planar_clips import make_demo_clip
from tests.support.exact_maps import write_exact_maps

FRAMES = 10
TIMES = 4  # as large as the maps are the frames


@dataclass(frozen=True)
class Scene:
    """A clip whose maps are exact and small, and its large frames."""

    maps: Maps
    frames: Frames
    picture: CanonicalImage  # of the background, at the size of the maps
    truth: np.ndarray  # its texture at the size of the frames


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    small = make_demo_clip(FRAMES, 96, 54)
    large = make_demo_clip(FRAMES, TIMES * small.width, TIMES * small.height)
    maps = write_exact_maps(tmp_path_factory.mktemp("maps"), small)
    box = small.boxes[1]
    texels = tuple(round(extent * small.width / 2) for extent in (box.width, box.height))
    truth = cv2.resize(large.textures[1], tuple(TIMES * side for side in texels), interpolation=cv2.INTER_AREA)
    rgb = cv2.resize(large.textures[1], texels, interpolation=cv2.INTER_AREA)
    picture = CanonicalImage(np.dstack([rgb, np.ones(rgb.shape[:2], np.float32)]), box, "background")
    return Scene(maps, dict(enumerate(large.frames)), picture, truth)


def sharpen(scene: Scene, frames: Frames | None = None) -> np.ndarray:
    """Returns the colors of the sharpened picture."""
    size = (scene.truth.shape[1], scene.truth.shape[0])
    return sharpen_canonical(scene.picture, scene.maps, frames or scene.frames, size).rgba[..., :3]


def compute_psnr(found: np.ndarray, truth: np.ndarray, where: np.ndarray | slice = slice(None)) -> float:
    return float(-10 * np.log10(np.square(found - truth)[where].mean() + 1e-12))


def enlarge(scene: Scene) -> np.ndarray:
    return cv2.resize(scene.picture.rgba, scene.truth.shape[1::-1], interpolation=cv2.INTER_CUBIC)[..., :3].clip(0, 1)


def find_seen(scene: Scene) -> np.ndarray:
    """Finds the texels that several frames show alone, away from the rim of what they show."""
    counts = np.zeros(scene.truth.shape[:2], np.float32)
    for t in range(FRAMES):
        uv, weight = scene.maps.read_rimmed(t, 1)
        counts += invert_map(uv, weight, scene.picture.box, scene.truth.shape[1::-1]).visibility > 0.99
    return cv2.erode((counts > 2).astype(np.uint8), np.ones((9, 9), np.uint8)) > 0


def test_cells_lie_where_the_exact_inverse_has_them(scene: Scene) -> None:
    grid = (scene.picture.size[0] // 4, scene.picture.size[1] // 4)
    for t in (0, 5, 9):
        uv, weight = scene.maps.read_rimmed(t, 1)
        exact = invert_map(uv, weight, scene.picture.box, grid)
        found = find_cells(scene.maps, t, 1, scene.picture.box, grid)
        both = found.seen & (exact.visibility > 0)
        assert found.seen.sum() > 0.8 * (exact.visibility > 0.99).sum()
        wanted = exact.positions * scene.maps.size - 0.5
        assert np.abs(found.place - wanted)[both].max() < 0.02


def test_detail_of_the_source_is_in_the_picture(scene: Scene) -> None:
    seen = find_seen(scene)
    before, after = (compute_psnr(picture, scene.truth, seen) for picture in (enlarge(scene), sharpen(scene)))
    assert after > before + 6
    assert after > 36


def test_gradients_are_as_steep_as_in_the_texture(scene: Scene) -> None:
    def measure_energy(picture: np.ndarray) -> float:
        slopes = (cv2.Scharr(picture, cv2.CV_32F, dx, 1 - dx, scale=1 / 32) for dx in (0, 1))
        return float(sum(np.square(slope)[find_seen(scene)].sum() for slope in slopes))

    assert 0.9 < measure_energy(sharpen(scene)) / measure_energy(scene.truth) < 1.07
    assert measure_energy(enlarge(scene)) / measure_energy(scene.truth) < 0.85


def test_what_one_frame_shows_alone_is_left_out(scene: Scene) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (90, 90, 3), np.uint8)
    frames = {t: frame.copy() for t, frame in scene.frames.items()}
    frames[4][20:110, 240:330] = noise  # where no other frame hides the ground
    assert np.abs(sharpen(scene, frames) - sharpen(scene))[find_seen(scene)].max() < 0.1
    assert compute_psnr(sharpen(scene, frames), sharpen(scene), find_seen(scene)) > 40


def test_blurred_frames_give_no_detail(scene: Scene) -> None:
    blurred = {t: frame if t % 3 == 0 else cv2.GaussianBlur(frame, (0, 0), 3) for t, frame in scene.frames.items()}
    seen = find_seen(scene)
    assert (
        compute_psnr(sharpen(scene, blurred), scene.truth, seen) > compute_psnr(enlarge(scene), scene.truth, seen) + 4
    )


def test_light_stays_that_of_the_fit(scene: Scene) -> None:
    found, plain = (cv2.GaussianBlur(picture, (0, 0), 3 * TIMES) for picture in (sharpen(scene), enlarge(scene)))
    assert np.abs(found - plain)[find_seen(scene)].max() < 0.02


def test_a_layer_that_no_frame_shows_is_enlarged(scene: Scene) -> None:
    gray = {t: np.full_like(frame, 40) for t, frame in scene.frames.items()}  # nothing in them is as in the fit
    assert np.abs(sharpen(scene, gray) - enlarge(scene)).max() < 1e-3


def test_objects_in_front_leave_no_trace(scene: Scene, tmp_path: Path) -> None:
    bright = {}
    for t, frame in scene.frames.items():
        weight = scene.maps.read_layer_weight(t, 1, frame.shape[1::-1])[..., None]
        bright[t] = np.rint(frame * weight + 255 * (1 - weight)).astype(np.uint8)
    assert np.abs(sharpen(scene, bright) - sharpen(scene))[find_seen(scene)].max() < 0.15
    assert compute_psnr(sharpen(scene, bright), sharpen(scene), find_seen(scene)) > 45
