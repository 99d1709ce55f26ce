"""Pictures that lie on the plane by maps: their own pixels, at all scales, exactly as painted on their frame."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from editors.api import edit
from editors.core.stack import add_edit
from neural_fields.atlas.canonical import CanonicalImage, FramePaint, Overlay
from neural_fields.atlas.placed_picture import PicturePatch, PlacedPicture
from neural_fields.atlas.uv_maps import Maps
from neural_fields.core import array_coords
from neural_fields.core.box import Box
from neural_fields.core.errors import ExitCode, UserError
from neural_fields.edits.payloads import read_paint
from neural_fields.edits.read_stack import list_edits
from neural_fields.open_runs.opening import require_planar
from neural_fields.rendering.base import OverlayOptions
from neural_fields.rendering.overlay_pass import OverlayPass
from neural_fields.rendering.picture_lookup import PictureLookup
from neural_fields.rendering.render_planar import open_passes
from neural_fields.runs.run import Run
from tests.support.pixel_maps import HEIGHT, WIDTH, pixel_maps
from tests.support.true_run import TrueRun

numbers = st.floats(-3, 3, width=32)


def gray_pictures(maps: Maps) -> dict[str, CanonicalImage]:
    gray = np.full((8, 8, 4), (100 / 255, 100 / 255, 100 / 255, 1), np.float32)
    return {name: CanonicalImage(gray, maps.boxes[0], name) for name in maps.layers}


def letters(width: int, height: int) -> np.ndarray:
    """Opaque letters on a plate: straight RGBA."""
    picture = Image.new("RGBA", (width, height), (250, 240, 220, 255))
    ImageDraw.Draw(picture).text((width // 10, height // 12), "Edit", font_size=height // 2, fill=(160, 20, 40, 255))
    return np.asarray(picture).astype(np.float32) / 255


# --- patches ---------------------------------------------------------------------------------------------------------


@given(numbers, numbers, st.floats(0.125, 4, width=32), st.floats(0.125, 4, width=32), st.integers(1, 50))
def test_a_patch_that_covers_a_box_is_the_texels_of_the_box(
    u: float, v: float, width: float, height: float, side: int
) -> None:
    box, size = Box(u, v, u + width, v + height), (side, 2 * side + 1)
    uv = np.random.default_rng(side).uniform(-4, 4, (3, 5, 2)).astype(np.float32)
    places = PicturePatch.cover_box(box, size).find_places(uv)
    assert np.allclose(places[..., :2], array_coords.uv_to_texels(uv, box, *size), rtol=1e-4, atol=1e-2)
    assert (places[..., 2] == 1).all()


def test_between_knots_places_and_light_are_bilinear_and_beyond_the_box_nothing_is_shown() -> None:
    places = np.zeros((2, 3, 3), np.float32)
    places[..., 2] = 1
    places[0, 1, :2] = (8, 4)
    light = np.zeros((2, 3, 3), np.float32)
    light[0, 1] = np.log(2)
    patch = PicturePatch(Box(0.0, 0.0, 2.0, 1.0), places, light)
    uv = np.array([[[1, 0], [0.5, 0], [1, 0.5], [2.01, 0.5], [1, -0.01]]], np.float32)
    found, factor = patch.find_places(uv)[0], patch.find_light(uv)
    assert np.allclose(found[:3], [[8, 4, 1], [4, 2, 1], [4, 2, 1]], atol=1e-4)
    assert found[3:, 2].tolist() == [0, 0]
    assert factor is not None and np.allclose(factor[0, :2, 0], [2, 2**0.5], rtol=1e-4)
    assert (factor[..., 3] == 1).all()


@given(numbers, numbers, st.floats(0.0625, 2, width=32), st.integers(2, 70), st.integers(2, 70), st.integers(0, 9))
def test_the_part_that_may_lie_in_a_box_has_every_point_that_does(
    u: float, v: float, side: float, rows: int, columns: int, seed: int
) -> None:
    slope = np.random.default_rng(seed).uniform(-0.1, 0.1, (2, 2))
    y, x = np.mgrid[:rows, :columns]
    uv = (np.stack([x, y], -1) @ slope.T).astype(np.float32)
    box = Box(u, v, u + side, v + side)
    patch = PicturePatch(box, np.ones((3, 2, 3), np.float32))
    inside = np.asarray(((uv >= (box.u0, box.v0)) & (uv <= (box.u1, box.v1))).all(-1))
    part = patch.find_part(uv, 0)
    if part is not None:
        inside[part] = False
    assert not inside.any()


def test_a_painted_part_lies_where_the_overlay_had_it() -> None:
    rgba = np.zeros((40, 60, 4), np.float32)
    rgba[10:20, 25:31] = (1, 0, 0, 1)
    overlay = Overlay(rgba, Box(-1.0, -0.5, 2.0, 1.5))
    placed = PlacedPicture.from_painted_part(overlay)
    assert placed.size == (8, 12)
    assert np.allclose(placed.draw_overlay((60, 40), overlay.box).rgba, rgba, atol=1e-4)


# --- lookups ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [1, 3, 8, 20])
def test_a_picture_of_any_size_is_shown_as_the_mean_over_each_pixel(tmp_path: Path, scale: int) -> None:
    maps, rgba = pixel_maps(tmp_path, [0.3]), letters(40 * scale, 20 * scale)
    placed = PlacedPicture(rgba, (PicturePatch.cover_box(Box(5.0, 8.0, 45.0, 28.0), (40 * scale, 20 * scale)),))
    frame = np.full((HEIGHT, WIDTH, 3), 100, np.uint8)
    shown = OverlayPass(maps, gray_pictures(maps), {"layer 0": placed}).render_frame(0, frame)
    # Against 64 lookups a pixel, in a frame that is eight times as large.
    large = np.full((8 * HEIGHT, 8 * WIDTH, 3), 100, np.uint8)
    many = OverlayPass(maps, gray_pictures(maps), {"layer 0": placed}).render_frame(0, large)
    mean = cv2.resize(many.astype(np.float32), (WIDTH, HEIGHT), interpolation=cv2.INTER_AREA)
    error = np.sqrt(np.square(shown - mean)[8:28, 6:45].mean())
    assert error < 0.025 * 255


def test_copies_are_a_quarter_of_an_octave_apart_and_three_quarters_finer_than_the_frame() -> None:
    patch = PicturePatch.cover_box(Box(0.0, 0.0, 1.0, 1.0), (640, 320))
    lookup = PictureLookup.build(PlacedPicture(letters(640, 320), (patch,)))
    assert lookup.choose_level((1.0, 1.0)) == (-3, -3)
    assert lookup.choose_level((2**0.75, 2**1.75)) == (0, 4)
    assert lookup.read_copy((4, 8)).shape == (80, 320, 4)
    assert lookup.read_copy((-4, 0)).shape == (320, 1280, 4)
    mean = lookup.picture.mean((0, 1))
    for level in ((3, 5), (9, 2), (-4, -4), (14, 14)):
        assert np.allclose(lookup.read_copy(level).mean((0, 1)), mean, rtol=0.02)


# --- painted frames --------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("layer", ["background", "foreground"])
def test_a_frame_shows_opaque_paint_on_it_as_it_was_painted(true_run: TrueRun, tmp_path: Path, layer: str) -> None:
    shutil.copytree(true_run.run.path, tmp_path / "run")
    run, clip, t = Run.open(tmp_path / "run"), true_run.clip, 5
    weight = require_planar(run, "the test").maps.read_weights(t, (clip.width, clip.height))[int(layer == "background")]
    painted = clip.frames[t].copy()
    plate = np.rint(255 * letters(60, 30)[..., :3]).astype(np.uint8)
    top, left = (8, 110) if layer == "background" else (45, 60)
    inside = np.s_[top : top + 30, left : left + 60]
    painted[inside] = plate
    Image.fromarray(painted).save(tmp_path / "painted.png")
    made = edit(run, tmp_path / "painted.png", frame=t, layer=layer)
    assert made.edit.record.frames[layer][0].frame == t
    renderer = open_passes(require_planar(run, "the test"))
    shown = renderer.render_frame(t, clip.frames[t])
    own = weight[inside] >= 0.25
    assert own.sum() > 500 and np.array_equal(shown[inside][own], plate[own])
    untouched = ~renderer.affected_mask(t, (clip.width, clip.height))
    assert np.array_equal(shown[untouched], clip.frames[t][untouched]) and untouched.mean() > 0.5
    # The next frame shows the same letters, a little farther on.
    after = renderer.render_frame(t + 1, clip.frames[t + 1])
    assert (np.abs(after.astype(int) - clip.frames[t + 1]).max(-1) > 30).sum() > 0.8 * own.sum()


def test_painted_frames_keep_their_own_resolution_and_fade_with_the_edit(tmp_path: Path) -> None:
    maps = pixel_maps(tmp_path, [0.0, 0.0])
    rgba = letters(80, 40)
    paint = FramePaint(7, rgba, (0.25, 0.25, 0.25 + 40 / WIDTH, 0.25 + 20 / HEIGHT))
    whole = PicturePatch.cover_box(Box(90.0, 90.0, 91.0, 91.0), (80, 40))  # other frames show it elsewhere
    placed = PlacedPicture(rgba, (whole,), frames=(paint,))
    frame = np.full((2 * HEIGHT, 2 * WIDTH, 3), 100, np.uint8)
    inside = np.s_[HEIGHT // 2 : HEIGHT // 2 + 40, WIDTH // 2 : WIDTH // 2 + 80]
    shown = OverlayPass(maps, gray_pictures(maps), {"layer 0": placed}, frames=(6, 7)).render_frame(1, frame)
    assert np.array_equal(shown[inside], np.rint(255 * rgba[..., :3]))
    half = OverlayPass(
        maps, gray_pictures(maps), {"layer 0": placed}, OverlayOptions(lambda t: 0.5), frames=(6, 7)
    ).render_frame(1, frame)
    assert np.abs(half[inside] - (0.5 * 100 + 0.5 * 255 * rgba[..., :3])).max() <= 0.51
    for other in ((6, 8), ()):
        renderer = OverlayPass(maps, gray_pictures(maps), {"layer 0": placed}, frames=other)
        assert renderer.render_frame(1, frame) is frame


# --- on disk ---------------------------------------------------------------------------------------------------------


def test_what_is_added_is_read_again(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run")
    rgba = letters(30, 20)
    knots = np.random.default_rng(1).uniform(0, 20, (4, 5, 3)).astype(np.float32)
    patches = (
        PicturePatch.cover_box(Box(0.0, 0.0, 1.0, 1.0), (30, 20)),
        PicturePatch(Box(2.0, 0.0, 3.0, 1.0), knots, knots),
    )
    frame = FramePaint(12, rgba / 3, (0.1, 0.2, 0.3, 0.4), is_whole=False)
    back = read_paint(add_edit(run, "logo", {"layer": PlacedPicture(rgba, patches, frames=(frame,))}), "layer")
    assert isinstance(back, PlacedPicture) and np.allclose(back.rgba, rgba, atol=1e-6)
    for one, other in zip(back.patches, patches, strict=True):
        assert one.box == other.box and np.array_equal(one.places, other.places)
    light = back.patches[1].light
    assert back.patches[0].light is None and light is not None and np.array_equal(light, knots)
    (again,) = back.frames
    assert replace(again, rgba=frame.rgba) == frame and np.allclose(again.rgba, frame.rgba, atol=1e-4)


@pytest.mark.parametrize("harm", ["places are gone", "another picture", "no box", "bits"])
def test_a_placed_picture_that_is_damaged_is_refused_with_its_name(tmp_path: Path, harm: str) -> None:
    run = Run.create(tmp_path / "run")
    placed = PlacedPicture(letters(30, 20), (PicturePatch.cover_box(Box(0.0, 0.0, 1.0, 1.0), (30, 20)),))
    found = add_edit(run, "logo", {"layer": placed})
    places, record = found.folder / "layer-places.safetensors", found.folder / "edit.json"
    if harm == "places are gone":
        places.unlink()
    elif harm == "bits":
        places.write_bytes(places.read_bytes()[:-1] + b"\x01")
    elif harm == "another picture":
        Image.new("RGBA", (30, 20)).save(found.folder / "layer.png")
    else:
        content = json.loads(record.read_text())
        content["placed"]["layer"]["boxes"] = []
        record.write_text(json.dumps(content))
    with pytest.raises(UserError, match="0001-logo") as caught:
        read_paint(list_edits(run)[0], "layer")
    assert caught.value.code == ExitCode.DAMAGED_RUN
