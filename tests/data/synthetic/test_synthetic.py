"""The synthetic clips are what they say: their maps, flow, lighting and marks agree with their pixels."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from neural_fields.core import coords
from neural_fields.core.box import Box
from neural_fields.data.synthetic.planar_clips import (
    PaintedMark,
    make_demo_clip,
    make_translation_clip,
    remove_lighting,
)

ASPECTS = pytest.mark.parametrize(("width", "height"), [(96, 54), (64, 64), (54, 96)])


def disc(size: int = 64, color: tuple[float, float, float] = (1.0, 0.0, 1.0)) -> np.ndarray:
    y, x = np.mgrid[:size, :size] + 0.5 - size / 2
    alpha = np.clip(size / 2 - 1 - np.hypot(x, y), 0, 1)
    return np.concatenate([np.broadcast_to(color, (size, size, 3)), alpha[..., None]], -1).astype(np.float32)


def box_around(u: float, v: float, half: float) -> Box:
    return Box(u - half, v - half, u + half, v + half)


def center(box: Box) -> tuple[float, float]:
    return (box.u0 + box.u1) / 2, (box.v0 + box.v1) / 2


def look_up(image: np.ndarray, pixels: np.ndarray) -> np.ndarray:
    """Bilinear values of an [h, w, channel] image at pixel positions [h, w, 2]."""
    height, width = image.shape[:2]
    box = Box(0.0, 0.0, float(width), float(height))
    picture = torch.from_numpy(np.asarray(image, np.float32)).permute(2, 0, 1)[None]
    return (
        coords.sample_canonical(picture, box, torch.from_numpy(np.asarray(pixels, np.float32))[None])[0]
        .permute(1, 2, 0)
        .numpy()
    )


def pixel_grid(width: int, height: int) -> np.ndarray:
    return coords.pixel_centers(width, height).numpy()


@ASPECTS
def test_uv_of_the_first_frame_are_its_xy_in_every_layer(width: int, height: int) -> None:
    clip = make_demo_clip(2, width, height)
    xy = coords.frame_xy(width, height).numpy()
    assert clip.uv.shape == (2, 2, height, width, 2)
    np.testing.assert_allclose(clip.uv[:, 0], np.stack([xy, xy]), atol=1e-6)


@ASPECTS
def test_frames_are_lit_textures_looked_up_at_the_true_uv(width: int, height: int) -> None:
    clip = make_demo_clip(3, 2 * width, 2 * height)
    colors = [
        coords.sample_canonical(
            torch.from_numpy(texture).permute(2, 0, 1)[None], box, torch.from_numpy(clip.uv[layer, 2])[None]
        )
        for layer, (texture, box) in enumerate(zip(clip.textures, clip.boxes, strict=True))
    ]
    front, back = (color[0].permute(1, 2, 0).numpy() for color in colors)
    alpha = clip.alpha[0, 2][..., None]
    model = clip.gain[2] * (alpha * front + (1 - alpha) * back)
    error = model - clip.frames[2] / 255
    assert np.abs(error).mean() < 0.02  # a point against the mean over a pixel: only fine detail differs
    assert abs(error.mean()) < 0.002


@ASPECTS
def test_flow_joins_points_of_equal_uv_and_leads_to_the_color_of_the_next_frame(width: int, height: int) -> None:
    clip = remove_lighting(make_demo_clip(4, width, height))
    for t in range(3):
        there = pixel_grid(width, height) + clip.forward_flow[t]
        back = pixel_grid(width, height) + clip.backward_flow[t]
        for layer, seen in enumerate((clip.masks[0, t], ~clip.masks[0, t])):
            error = np.abs(look_up(clip.uv[layer, t + 1], there) - clip.uv[layer, t])[seen & clip.forward_visible[t]]
            assert error.max() < 0.02  # only the half pixel beyond the outermost centers cannot be interpolated
            assert np.median(error) < 1e-5
        color = np.abs(look_up(clip.frames[t + 1] / 255, there) - clip.frames[t] / 255)[clip.forward_visible[t]]
        earlier = np.abs(look_up(clip.frames[t] / 255, back) - clip.frames[t + 1] / 255)[clip.backward_visible[t]]
        assert color.mean() < 0.03 and earlier.mean() < 0.03


def test_flow_there_and_back_is_nothing_where_both_are_valid() -> None:
    clip = make_demo_clip(3, 96, 54)
    there = pixel_grid(96, 54) + clip.forward_flow[0]
    same = np.abs(look_up(clip.masks[0, 1][..., None], there)[..., 0] - clip.masks[0, 0]) < 1e-6
    round_trip = clip.forward_flow[0] + look_up(clip.backward_flow[0], there)
    inside = (there >= 0.5).all(-1) & (there <= np.array([95.5, 53.5])).all(-1)
    assert np.abs(round_trip[same & inside & clip.forward_visible[0]]).max() < 0.01


@ASPECTS
def test_whole_object_stays_in_the_frame_with_antialiased_edges(width: int, height: int) -> None:
    clip = make_demo_clip(64, width, height)
    alpha = clip.alpha[0]
    border = np.concatenate(
        [alpha[:, 0], alpha[:, -1], alpha[:, :, 0].reshape(64, -1), alpha[:, :, -1].reshape(64, -1)], 1
    )
    assert border.max() < 0.5
    assert 0.08 < alpha.mean() < 0.35
    assert ((alpha > 0.05) & (alpha < 0.95)).any(axis=(1, 2)).all()


def test_gain_is_smooth_and_changes_over_time() -> None:
    gain = make_demo_clip(48, 32, 18).gain
    assert np.abs(np.diff(gain, axis=2)).max() < 0.03 and np.abs(np.diff(gain, axis=0)).max() < 0.03
    assert np.ptp(gain[:, 9, 16, 0]) > 0.1


@pytest.mark.parametrize("layer", ["foreground", "background"])
def test_a_painted_disc_is_seen_around_its_true_position_in_every_frame(layer: str) -> None:
    clip = make_demo_clip(12, 160, 90)
    point = center(clip.boxes[0]) if layer == "foreground" else (0.25, 0.4)
    edited = clip.render_edited([PaintedMark(disc(), box_around(*point, 0.1), layer)])
    positions = clip.compute_mark_positions(layer, point)
    for t in range(12):
        changed = np.abs(edited[t].astype(float) - clip.frames[t]).sum(-1) > 60
        found = pixel_grid(160, 90)[changed].mean(axis=0)
        assert np.hypot(*(found - positions[t])) < 0.5
        assert not (changed & (clip.alpha[0, t] == (0 if layer == "foreground" else 1))).any()


def test_a_mark_painted_on_a_later_frame_lies_where_it_was_painted() -> None:
    clip = remove_lighting(make_demo_clip(10, 160, 90))
    picture = disc(color=(0.0, 0.0, 1.0))
    target = coords.normalize_pixels(
        torch.from_numpy(clip.compute_mark_positions("foreground", center(clip.boxes[0]))), 160, 90
    )
    edited = clip.render_edited(
        [
            PaintedMark(
                (picture * 255).astype(np.uint8), box_around(float(target[9, 0]), float(target[9, 1]), 0.1), frame=9
            )
        ]
    )
    first = np.abs(edited[0].astype(float) - clip.frames[0]).sum(-1) > 60
    last = np.abs(edited[9].astype(float) - clip.frames[9]).sum(-1) > 60
    for t, changed in ((0, first), (9, last)):
        found = pixel_grid(160, 90)[changed].mean(axis=0)
        assert np.hypot(*(found - clip.compute_mark_positions(0, center(clip.boxes[0]))[t])) < 0.5


def test_an_unknown_layer_is_named_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match="no layer 'sky' in this clip; it has foreground, background"):
        make_demo_clip(1, 32, 18).render_edited([PaintedMark(disc(), box_around(0, 0, 0.1), "sky")])


@pytest.mark.parametrize(("width", "height"), [(64, 36), (40, 40), (36, 64)])
def test_whole_pixel_translation_shifts_the_frames_exactly(width: int, height: int) -> None:
    clip = make_translation_clip(5, width, height, velocity=(3.0, -2.0))
    frames = clip.frames.astype(int)
    assert np.abs(frames[4][: height - 8, 12:] - frames[0][8:, : width - 12]).max() <= 1
    np.testing.assert_allclose(clip.forward_flow, np.broadcast_to([3.0, -2.0], clip.forward_flow.shape), atol=1e-4)
    np.testing.assert_allclose(clip.backward_flow, np.broadcast_to([-3.0, 2.0], clip.forward_flow.shape), atol=1e-4)
    np.testing.assert_allclose(
        clip.compute_mark_positions("background", (0, 0))[4], [width / 2 + 12, height / 2 - 8], atol=1e-9
    )
    assert clip.forward_visible[0].sum() == (width - 3) * (height - 2)
    assert (clip.gain == 1).all() and clip.masks.shape == (0, 5, height, width)


def test_the_same_seed_gives_the_same_clip_and_another_seed_another() -> None:
    first, again, other = (make_demo_clip(2, 64, 36, seed=seed).frames for seed in (3, 3, 4))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first.astype(int) - other).mean() > 5


@pytest.mark.slow
def test_the_picture_depends_neither_on_the_length_of_the_clip_nor_on_its_resolution() -> None:
    short = make_demo_clip(2, 160, 90).frames[0].astype(float)
    long = next(make_demo_clip(40, 160, 90).render_frames())
    fine = next(make_demo_clip(2, 320, 180).render_frames()).reshape(90, 2, 160, 2, 3).mean(axis=(1, 3))
    assert np.abs(short - long).mean() < 1.5 and np.abs(short - fine).mean() < 3


def test_frames_can_be_rendered_one_at_a_time_and_one_frame_has_no_flow() -> None:
    np.testing.assert_array_equal(next(make_demo_clip(3, 64, 36).render_frames()), make_demo_clip(3, 64, 36).frames[0])
    assert make_demo_clip(1, 64, 36).forward_flow.shape == (0, 36, 64, 2)
