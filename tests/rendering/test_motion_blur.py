"""Motion blur: paint on what moves fast is blurred as the frames are, and the shutter is found from them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from neural_fields.atlas.canonical import CanonicalImage, Overlay
from neural_fields.atlas.uv_maps import Maps
from neural_fields.core.box import Box
from neural_fields.data.synthetic.planar_clips import PaintedMark, SyntheticClip, make_demo_clip
from neural_fields.nn import compiled_loops
from neural_fields.rendering.base import OverlayOptions
from neural_fields.rendering.motion_blur import estimate_shutter, measure_motion
from neural_fields.rendering.overlay_pass import OverlayPass
from tests.support.exact_maps import write_exact_maps

SHUTTER = 0.6


@dataclass(frozen=True)
class FastScene:
    """A clip in which the object moves by some pixels a frame, once with a short and once with a long exposure."""

    maps: Maps
    sharp: SyntheticClip
    blurred: SyntheticClip
    pictures: Sequence[CanonicalImage]


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> FastScene:
    slow = make_demo_clip(48, 384, 216)
    # Every sixth frame: the surfaces of the frames between are where they would be.
    surfaces = tuple(replace(surface, transforms=surface.transforms[::6]) for surface in slow.surfaces)
    sharp = replace(slow, count=8, surfaces=surfaces)
    maps = write_exact_maps(tmp_path_factory.mktemp("fast"), sharp)
    pictures = []
    for surface in surfaces:
        rgba = np.concatenate([surface.texture, np.ones_like(surface.texture[..., :1])], axis=-1)
        pictures.append(CanonicalImage(rgba.astype(np.float32), surface.box, surface.name))
    return FastScene(maps, sharp, replace(sharp, shutter=SHUTTER, shutter_steps=9), pictures)


def paint(scene: FastScene, shutter: float, t: int) -> np.ndarray:
    """Puts stripes on the object; returns frame `t`, which has a long exposure."""
    overlay = Overlay(make_stripes(), find_mark_box(scene))
    named = {picture.layer: picture for picture in scene.pictures}
    changer = OverlayPass(scene.maps, named, {"foreground": overlay}, OverlayOptions(shutter=shutter))
    return changer.render_frame(t, scene.blurred.frames[t])


def make_stripes() -> np.ndarray:
    stripes = np.zeros((80, 80, 4), np.float32)
    stripes[..., 3] = 1
    stripes[:, (np.arange(80) // 8) % 2 == 0, :3] = 1
    return stripes


def find_mark_box(scene: FastScene) -> Box:
    box = scene.sharp.surfaces[0].box
    u, v = (box.u0 + box.u1) / 2, (box.v0 + box.v1) / 2
    return Box(u - 0.12, v - 0.12, u + 0.12, v + 0.12)


@pytest.mark.parametrize("is_compiled", [True, False])
def test_paint_is_blurred_as_the_object_is(
    scene: FastScene, is_compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not is_compiled:
        monkeypatch.setattr("neural_fields.rendering.overlay_pass.can_compile_loops", lambda: False)
    elif not compiled_loops.can_compile_loops():
        pytest.skip("numba is not installed")
    mark = PaintedMark(make_stripes(), find_mark_box(scene), "foreground", 0)
    truth = scene.blurred.render_edited([mark])
    for t in (2, 5):
        drawn = (truth[t] != scene.blurred.frames[t]).any(axis=2)
        off = [np.square(paint(scene, shutter, t).astype(float) - truth[t])[drawn].mean() for shutter in (0.0, SHUTTER)]
        assert off[1] < 0.2 * off[0]
        assert 10 * np.log10(255**2 / off[1]) > 26


def test_both_back_ends_blur_alike(scene: FastScene, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = paint(scene, SHUTTER, 3).astype(int)
    monkeypatch.setattr("neural_fields.rendering.overlay_pass.can_compile_loops", lambda: False)
    assert np.abs(paint(scene, SHUTTER, 3) - compiled).max() <= 1


def test_blurred_paint_stays_within_the_affected_pixels(scene: FastScene) -> None:
    overlay = Overlay(make_stripes(), find_mark_box(scene))
    named = {picture.layer: picture for picture in scene.pictures}
    changer = OverlayPass(scene.maps, named, {"foreground": overlay}, OverlayOptions(shutter=1.0))
    for t in (0, 4):
        source = scene.blurred.frames[t]
        changed = (changer.render_frame(t, source) != source).any(axis=2)
        assert changed.any() and not (changed & ~changer.affected_mask(t, (384, 216))).any()


def test_motion_is_that_of_the_surface(scene: FastScene) -> None:
    whole = (slice(1, 217), slice(1, 385))
    for layer in (0, 1):
        found = measure_motion(scene.maps, 4, layer, whole)
        true = (scene.sharp.uv[layer, 5] - scene.sharp.uv[layer, 3]) / 2
        assert np.abs(found - true).max() < 0.02 * np.abs(true).max() + 1e-4


def test_a_change_of_charts_is_no_motion(tmp_path: Path) -> None:
    clip = make_demo_clip(4, 96, 54)
    clip.uv[1, 2:] += 5.0  # the second half lies elsewhere on the plane
    maps = write_exact_maps(tmp_path / "maps", clip)
    whole = (slice(1, 55), slice(1, 97))
    for t in (1, 2):
        assert np.abs(measure_motion(maps, t, 1, whole)).max() < 0.05


def test_shutter_is_estimated_from_the_frames(scene: FastScene) -> None:
    found = estimate_shutter(scene.maps, scene.pictures, lambda t: scene.blurred.frames[t])
    assert found == pytest.approx(SHUTTER, abs=0.12)
    assert estimate_shutter(scene.maps, scene.pictures, lambda t: scene.sharp.frames[t]) <= 0.1


def test_a_still_clip_says_nothing_of_the_shutter(tmp_path: Path) -> None:
    clip = make_demo_clip(3, 96, 54)
    clip.uv[:, 1:] = clip.uv[:, :1]
    maps = write_exact_maps(tmp_path / "maps", clip)
    picture = CanonicalImage(cv2.resize(np.ones((8, 8, 4), np.float32), (64, 64)), clip.boxes[1], "background")
    assert estimate_shutter(maps, [picture, picture], lambda t: clip.frames[0]) == 0
