"""Canvases: what a model is shown of a canonical picture, and where what it makes lands on it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from editors.diffusion.backend.tiled_denoising import DEFAULTS as WINDOWS
from editors.diffusion.common.canvas import (
    DEFAULTS,
    Canvas,
    fill_holes,
    join_canvases,
    join_pictures,
    open_canvas,
    open_canvases,
    split_joined_picture,
)
from neural_fields.atlas.canonical import CanonicalImage, Overlay, resample_overlay
from neural_fields.core.box import Box

BOX = Box(-0.7, -0.4, 1.1, 0.9)


def ramps(width: int, height: int, seen: np.ndarray | None = None) -> CanonicalImage:
    """A picture whose colors say where each texel lies."""
    y, x = np.mgrid[:height, :width].astype(np.float32)
    coverage = np.ones((height, width), np.float32) if seen is None else seen.astype(np.float32)
    rgba = np.dstack([(x + 0.5) / width, (y + 0.5) / height, 0 * x + 0.5, coverage])
    return CanonicalImage(rgba, BOX, "foreground")


def disc(width: int, height: int, radius: float) -> np.ndarray:
    y, x = np.mgrid[:height, :width] + 0.5
    return np.hypot(x - width / 2, y - height / 2) < radius


def rectangle(width: int, height: int, rows: tuple[int, int], columns: tuple[int, int]) -> np.ndarray:
    region = np.zeros((height, width), np.float32)
    region[slice(*rows), slice(*columns)] = 1
    return region


def on(overlay: Overlay, picture: CanonicalImage) -> np.ndarray:
    return resample_overlay(overlay, picture.size, picture.box)


@st.composite
def cases(draw: st.DrawFn) -> tuple[CanonicalImage, np.ndarray, int, int]:
    """A picture of any size, a region anywhere in it, a side and a multiple."""
    width, height = draw(st.integers(5, 90)), draw(st.integers(5, 90))
    top, left = draw(st.integers(0, height - 1)), draw(st.integers(0, width - 1))
    bottom, right = draw(st.integers(top + 1, height)), draw(st.integers(left + 1, width))
    multiple = draw(st.sampled_from([1, 4, 8]))
    side = draw(st.integers(16, 96))
    return ramps(width, height), rectangle(width, height, (top, bottom), (left, right)), side, multiple


@given(cases())
def test_a_texel_comes_back_to_where_it_was_within_half_a_texel(
    case: tuple[CanonicalImage, np.ndarray, int, int],
) -> None:
    picture, region, side, multiple = case
    canvas = open_canvas(picture, region, side, multiple)
    back = on(canvas.make_overlay(canvas.image), picture)
    error = np.abs(back[..., :2] - picture.rgba[..., :2]) * picture.size
    # A canvas with fewer pixels than texels cannot place anything finer than half its own pixels.
    coarse = max(1.0, *(texels / pixels for texels, pixels in zip(canvas.alpha.shape[::-1], canvas.size, strict=True)))
    assert error[region > 0].max() <= 0.5 * coarse + 1e-3


@given(cases())
def test_an_overlay_hides_its_region_and_is_transparent_outside_of_it(
    case: tuple[CanonicalImage, np.ndarray, int, int],
) -> None:
    picture, region, side, multiple = case
    canvas = open_canvas(picture, region, side, multiple)
    overlay = canvas.make_overlay(1 - canvas.image)
    rows, columns = (made // texels for made, texels in zip(overlay.rgba.shape[:2], canvas.alpha.shape, strict=True))
    assert rows == columns  # whole parts of texels
    assert not overlay.rgba[np.repeat(np.repeat(canvas.alpha, rows, 0), rows, 1) == 0].any()
    assert canvas.alpha.sum() == region.sum()
    back = on(overlay, picture)[..., 3]
    assert back[region == 0].max(initial=0) < 1e-3
    assert back[region > 0].min() > 0.5
    deep = np.lib.stride_tricks.sliding_window_view(np.pad(region, 1, mode="edge"), (3, 3)).min(axis=(2, 3)) > 0
    assert back[deep].min(initial=1) > 0.999


@given(cases())
def test_a_canvas_has_whole_multiples_and_hardly_any_stretch(case: tuple[CanonicalImage, np.ndarray, int, int]) -> None:
    picture, region, side, multiple = case
    canvas = open_canvas(picture, region, side, multiple)
    assert all(length % multiple == 0 for length in canvas.size)
    assert abs(max(canvas.size) - side) <= multiple
    (rows, columns), (width, height) = canvas.alpha.shape, canvas.size
    if rows < picture.size[1] and columns < picture.size[0] and side >= 4 * multiple:
        # What is left is the rounding of the longer side to multiples, and of the shorter to texels.
        allowed = (1 + multiple / side) * (1 + 1 / rows) * (1 + 1 / columns)
        assert 1 / allowed <= (width / columns) / (height / rows) <= allowed


@pytest.mark.parametrize("side", [24, 96])  # smaller and larger than the picture
def test_an_edit_of_a_whole_layer_goes_on_past_its_silhouette_in_its_own_color(side: int) -> None:
    seen = disc(49, 43, 15)
    picture = ramps(49, 43, seen)
    canvas = open_canvas(picture, seen.astype(np.float32), side, 4)
    color = torch.tensor([0.9, 0.3, 0.1])
    overlay = canvas.make_overlay(color.view(1, 3, 1, 1).expand_as(canvas.image))
    visible = overlay.rgba[overlay.rgba[..., 3] > 0]
    np.testing.assert_allclose(visible[:, :3], np.broadcast_to(color.numpy(), visible[:, :3].shape), atol=1e-4)
    alpha = on(overlay, picture)[..., 3]
    assert alpha[disc(49, 43, 15 + DEFAULTS.extension_texels - 1.5)].min() > 0.99
    assert alpha[~disc(49, 43, 15 + DEFAULTS.extension_texels + 1.5)].max() < 1e-3


def test_a_mask_that_ends_inside_a_layer_is_not_passed() -> None:
    seen = disc(60, 60, 25)
    region = (seen & (np.arange(60) < 30)).astype(np.float32)
    alpha = on(open_canvas(ramps(60, 60, seen), region, 32, 4).make_overlay(torch.ones(1, 3, 32, 20)), ramps(60, 60))[
        ..., 3
    ]
    assert alpha[seen & (region == 0)].max() < 1e-3


def test_texels_that_were_hardly_seen_belong_to_the_region_where_it_says_so() -> None:
    coverage = np.full((20, 30), 0.3, np.float32)
    coverage[:, :10] = 1
    canvas = open_canvas(ramps(30, 20, coverage), np.ones((20, 30), np.float32), 32, 4)
    assert canvas.alpha.min() == 1


def test_feather_fades_inwards_from_the_edges_of_a_mask_and_not_from_a_silhouette() -> None:
    seen = disc(64, 64, 28)
    region = (seen & (np.arange(64) < 32)).astype(np.float32)
    hard, soft = (open_canvas(ramps(64, 64, seen), region, 64, 4, feather).alpha for feather in (0.0, 8.0))
    assert (soft <= hard).all()
    middle = soft[len(soft) // 2]
    edge = int(np.flatnonzero(hard[len(hard) // 2]).max())
    fall = middle[edge - 12 : edge + 1]
    assert (np.diff(fall) <= 1e-6).all() and fall[0] == 1 and 0 < fall[-1] < 0.15
    assert middle[np.flatnonzero(hard[len(hard) // 2]).min()] == 1


def test_a_picture_without_holes_keeps_what_is_known_and_stays_within_its_colors() -> None:
    generator = np.random.default_rng(0)
    rgb, known = generator.random((31, 45, 3), np.float32), disc(45, 31, 9)
    whole = fill_holes(rgb, known)
    np.testing.assert_array_equal(whole[known], rgb[known])
    low, high = rgb[known].min(axis=0), rgb[known].max(axis=0)
    assert (whole >= low - 1e-5).all() and (whole <= high + 1e-5).all()
    flat = fill_holes(np.where(known[..., None], np.float32(0.25), np.float32(0)).repeat(3, -1), known)
    np.testing.assert_allclose(flat, 0.25, atol=1e-5)


def canvas_of(width: int, height: int, seed: int) -> Canvas:
    generator = torch.Generator().manual_seed(seed)
    image, region = (torch.rand(1, channels, height, width, generator=generator) for channels in (3, 1))
    return Canvas(image, region, np.ones((height, width), np.float32), BOX, f"layer{seed}")


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=4), st.sampled_from([4, 8, 32]))
def test_canvases_side_by_side_come_apart_again(sizes: list[tuple[int, int]], multiple: int) -> None:
    canvases = [canvas_of(w * multiple, h * multiple, seed) for seed, (w, h) in enumerate(sizes)]
    image, region = join_canvases(canvases, multiple)
    assert image.shape[2] % multiple == image.shape[3] % multiple == 0
    for whole, name in ((image, "image"), (region, "region")):
        for canvas, part in zip(canvases, split_joined_picture(whole, canvases, multiple), strict=True):
            assert torch.equal(part, getattr(canvas, name))
    assert region.sum() == pytest.approx(sum(float(canvas.region.sum()) for canvas in canvases), rel=1e-5)
    assert join_pictures([canvas.image for canvas in canvases], canvases, multiple).shape == image.shape


def test_wide_layers_lie_one_above_the_other() -> None:
    image, _ = join_canvases([canvas_of(64, 24, 0), canvas_of(64, 28, 1)], 4)
    assert image.shape[-2:] == (24 + 16 + 28, 64)


def test_canvases_of_several_layers_are_small_enough_to_be_seen_as_a_whole() -> None:
    pictures = {"front": ramps(70, 60), "back": ramps(90, 80), "sky": ramps(40, 90)}
    regions = {name: np.ones(picture.size[::-1], np.float32) for name, picture in pictures.items()}
    image, _ = join_canvases(open_canvases(pictures, regions, 256, 8), 8)
    assert 0.8 * 256 < max(image.shape[-2:]) <= WINDOWS.max_stretch * 256
    (alone,) = open_canvases(pictures, {"sky": regions["sky"]}, 256, 8)
    assert max(alone.size) == 256


def test_a_picture_of_the_users_is_cut_where_the_canvas_lies() -> None:
    picture, region = ramps(80, 60), rectangle(80, 60, (20, 41), (13, 55))
    canvas = open_canvas(picture, region, 64, 4)
    larger = ramps(160, 120).rgba
    part = canvas.crop_picture(np.ascontiguousarray(larger[..., :3]), picture.box)
    assert (part - canvas.image).abs().max() < 1 / 80


def test_values_on_a_canvas_lie_on_the_picture_where_they_belong() -> None:
    picture, region = ramps(80, 60), rectangle(80, 60, (20, 41), (13, 55))
    canvas = open_canvas(picture, region, 64, 4)
    values = canvas.resample_to_picture(canvas.image[:, :1], picture)
    np.testing.assert_allclose(values[region > 0], picture.rgba[..., 0][region > 0], atol=1 / 80)
    assert values[:, :5].max() == 0
