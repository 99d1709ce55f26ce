"""Tests of the soft edges: alpha where it can be computed by hand, and clips whose alpha is known."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from neural_fields.data.flow.compute import FlowField
from neural_fields.data.masks.layer_masks import LayerMasks
from neural_fields.data.segmentation.mattes import MatteSettings, _build_laplacian, make_matte, soften_masks

RED, BLUE = np.array([200.0, 60, 40]), np.array([30.0, 80, 180])


def mix(alpha, front=RED, back=BLUE, noise=0.0, seed=0):
    """Composites two colors or pictures as an 8-bit frame."""
    mixed = alpha[..., None] * front + (1 - alpha[..., None]) * back
    mixed += np.random.default_rng(seed).normal(0, 1, mixed.shape) * noise
    return np.rint(mixed.clip(0, 255)).astype(np.uint8)


def disc_alpha(size, center, radius, softness):
    """Draws the alpha of a disc whose edge is a ramp as wide as `softness`."""
    y, x = np.mgrid[: size[1], : size[0]] + 0.5
    return np.clip((radius - np.hypot(x - center[0], y - center[1])) / softness + 0.5, 0, 1).astype(np.float32)


def texture(size, low, high, seed):
    """Makes a picture with details of several sizes, mostly of one hue."""
    random = np.random.default_rng(seed)
    total = sum(
        cv2.resize(random.normal(0, 1, (cells, cells)).astype(np.float32), size, interpolation=cv2.INTER_CUBIC)
        for cells in (4, 12, 36)
    )
    total = (total - total.min()) / (total.max() - total.min())
    return (low + (high - low) * total)[..., None] * np.array([1.0, 0.9, 0.7])


def test_of_two_constant_colors_alpha_is_the_linear_mixture():
    alpha = disc_alpha((120, 100), (60, 50), 30, 4)
    matte = make_matte(mix(alpha), alpha >= 0.5)
    assert np.abs(matte / 255 - alpha).max() < 0.02


def test_alpha_is_full_deep_inside_and_none_far_outside():
    size = (120, 100)
    alpha = disc_alpha(size, (60, 50), 30, 3)
    matte = make_matte(mix(alpha, texture(size, 100, 250, 1), texture(size, 20, 140, 2), noise=3), alpha >= 0.5)
    distance = 30 - np.hypot(*(np.mgrid[:100, :120] + 0.5 - np.array([50, 60])[:, None, None]))
    assert (matte[distance > 8] == 255).all()
    assert (matte[distance < -8] == 0).all()


@pytest.mark.parametrize("share", [np.zeros((50, 60), bool), np.full((25, 30), 255, np.uint8)])
def test_a_share_without_an_outline_is_returned_as_it_is(share):
    frame = np.random.default_rng(0).integers(0, 256, (50, 60, 3), np.uint8)
    assert (make_matte(frame, share) == share.max() * (255 if share.dtype == bool else 1)).all()


def test_a_mask_on_a_color_edge_is_untouched_where_the_band_is_empty():
    mask = disc_alpha((120, 100), (60, 50), 30, 1e-3) >= 0.5
    no_band = MatteSettings(inner_band_ref=0.0, outer_band_ref=0.0)
    assert (make_matte(mix(mask.astype(np.float32)), mask, no_band) == mask * 255).all()


def test_a_mask_of_one_pixel_gives_a_matte():
    mask = np.zeros((40, 40), bool)
    mask[20, 20] = True
    matte = make_matte(mix(mask.astype(np.float32)), mask)
    assert matte.shape == (40, 40)
    assert matte[20, 20] > 200
    assert matte[:10].max() == 0


def test_the_transposed_frame_gives_the_transposed_matte():
    size = (120, 100)
    alpha = disc_alpha(size, (58, 50), 30, 3)
    frame = mix(alpha, texture(size, 100, 250, 1), texture(size, 20, 140, 2), noise=3)
    straight = make_matte(frame, alpha >= 0.5)
    turned = make_matte(np.ascontiguousarray(frame.transpose(1, 0, 2)), (alpha >= 0.5).T)
    assert np.abs(straight.astype(int) - turned.T).max() <= 3


def test_the_laplacian_is_zero_on_affine_functions_of_the_colors():
    picture = np.random.default_rng(0).random((12, 14, 3)).astype(np.float32)
    alpha = picture @ np.float32([0.3, -0.2, 0.5]) + 0.1
    band = np.zeros((12, 14), bool)
    band[4:8, 4:10] = True
    matrix, _ = _build_laplacian(picture, np.zeros((12, 14), bool), np.ones_like(band), 1e-9)
    inner = band.ravel()
    assert np.abs((matrix @ alpha.ravel())[inner]).max() < 1e-3
    assert np.abs((matrix @ np.ones(alpha.size))[inner]).max() < 1e-4
    assert abs(matrix - matrix.T).max() < 1e-5


def test_known_pixels_pull_as_in_the_whole_laplacian():
    picture = np.random.default_rng(0).random((12, 14, 3)).astype(np.float32)
    mask = np.zeros((12, 14), bool)
    mask[:, :6] = True
    band = np.zeros((12, 14), bool)
    band[3:9, 4:10] = True
    whole, _ = _build_laplacian(picture, mask, np.ones_like(band), 1e-4)
    part, pull = _build_laplacian(picture, mask, band, 1e-4)
    unknown = band.ravel()
    assert abs(whole[unknown][:, unknown] - part).max() < 1e-5
    assert np.allclose(-(whole[unknown][:, ~unknown] @ mask.ravel()[~unknown].astype(float)), pull, atol=1e-5)


def draw_strands(size, center, radius):
    """Draws a disc with thin curved strands around it, antialiased."""
    over, random = 4, np.random.default_rng(3)
    sharp = np.zeros((size[1] * over, size[0] * over), np.uint8)
    cv2.circle(sharp, tuple(int(c * over) for c in center), radius * over, 255, -1)
    for angle in np.linspace(0, 2 * np.pi, 60, endpoint=False):
        turn = angle + random.uniform(-1.5, 1.5) * np.linspace(0, 1, 10)
        line = np.stack([np.cos(turn), np.sin(turn)], -1) * random.uniform(0.5, 1) * radius * 0.03
        line = np.cumsum(line, 0) + 0.97 * radius * np.array([np.cos(angle), np.sin(angle)]) + center
        cv2.polylines(sharp, [np.rint(line * over).astype(np.int32)], False, 255, random.integers(3, 6))
    return cv2.resize(sharp, size, interpolation=cv2.INTER_AREA) / np.float32(255)


def blur_disc(size, center, radius, length):
    """Averages a disc along its horizontal motion, as an open shutter does."""
    moments = np.linspace(-length / 2, length / 2, 33)
    return np.mean([disc_alpha(size, (center[0] + m, center[1]), radius, 1) for m in moments], 0)


@pytest.mark.parametrize("kind", ["strands", "motion blur", "antialiased"])
def test_the_sum_of_differences_is_at_most_half_of_the_hard_mask_s(kind):
    size, center = (240, 240), (120, 120)
    alpha = {
        "strands": lambda: draw_strands(size, center, 60),
        "motion blur": lambda: blur_disc(size, center, 60, 12),
        "antialiased": lambda: disc_alpha(size, center, 60, 1),
    }[kind]()
    frame = mix(alpha, texture(size, 20, 110, 1), texture(size, 130, 250, 2), noise=2)
    small = cv2.resize(alpha, (120, 120), interpolation=cv2.INTER_AREA) >= 0.5
    hard = cv2.resize(small.astype(np.float32), size) >= 0.5
    motion = np.full((120, 120, 2), [12.0, 0], np.float32) if kind == "motion blur" else np.zeros((120, 120, 2))
    matte = make_matte(frame, small, flow=motion.astype(np.float32)) / 255
    assert np.abs(matte - alpha).sum() <= 0.5 * np.abs(hard - alpha).sum()


def test_colors_that_only_a_thin_part_has_do_not_remove_it():
    mask = np.zeros((120, 120), bool)
    mask[60:100, 30:90] = True
    body = mask.copy()
    mask[20:60, 58:61] = True  # thinner than the band
    front = np.where(body[..., None], RED, np.array([250.0, 250, 240]))
    matte = make_matte(mix(mask.astype(np.float32), front, BLUE, noise=2), mask)
    assert matte[25:55, 59].min() > 128


def make_moving_clip(count, step):
    """Makes frames and alpha of a disc that moves over a texture, and flow to the frame before."""
    size = (160, 120)
    back = texture(size, 120, 250, 2)
    alphas = np.stack([disc_alpha(size, (60 + step * number, 60), 30, 2) for number in range(count)])
    front = texture((320, 120), 20, 100, 1)
    frames = [mix(alpha, front[:, 60 - step * t : 220 - step * t], back, 2) for t, alpha in enumerate(alphas)]
    return frames, alphas, np.full((120, 160, 2), [-step, 0], np.float32)


def shake(alpha, seed):
    """Makes the hard mask of a tracker: with an outline that is elsewhere in each frame."""
    random = np.random.default_rng(seed)
    noise = cv2.GaussianBlur(random.normal(0, 1, alpha.shape).astype(np.float32), (0, 0), 3)
    return cv2.GaussianBlur(alpha, (0, 0), 3) + 0.1 * noise / noise.std() >= 0.5


def test_mattes_flicker_less_than_the_masks_that_they_start_from():
    frames, alphas, flow = make_moving_clip(4, 3)
    masks = [shake(alpha, seed) for seed, alpha in enumerate(alphas)]
    mattes = []
    for frame, mask in zip(frames, masks, strict=True):
        mattes.append(make_matte(frame, mask, before=mattes[-1] if mattes else None, flow=flow))
    flicker = []
    for found in (np.stack(masks).astype(float), np.stack(mattes) / 255):
        errors = found - alphas
        flicker.append(np.abs(errors[1:, :, 3:] - errors[:-1, :, :-3]).mean())
    assert flicker[1] < flicker[0] / 3


def test_the_matte_of_the_frame_before_averages_noise():
    alpha = disc_alpha((120, 100), (60, 50), 30, 4)
    frames = [mix(alpha, RED, np.array([120.0, 90, 60]), noise=10, seed=seed) for seed in range(4)]
    changes = []
    for weight in (0.0, 1.0):
        settings, mattes = MatteSettings(steady_weight=weight), [np.rint(alpha * 255).astype(np.uint8)]
        for frame in frames:
            mattes.append(make_matte(frame, alpha >= 0.5, settings, mattes[-1], np.zeros((100, 120, 2), np.float32)))
        changes.append(np.abs(np.diff(np.stack(mattes[1:]).astype(float), axis=0)).mean())
    assert changes[1] < 0.85 * changes[0]


def test_a_slightly_wrong_flow_does_not_smear_the_edge():
    frames, alphas, flow = make_moving_clip(2, 3)
    before = np.rint(alphas[0] * 255).astype(np.uint8)
    exact, off = (
        np.abs(make_matte(frames[1], alphas[1] >= 0.5, before=before, flow=given) / 255 - alphas[1]).sum()
        for given in (flow, flow * np.float32(0.6))
    )
    assert off < 1.2 * exact


def test_a_matte_before_without_flow_is_refused():
    frame, mask = np.zeros((20, 20, 3), np.uint8), np.eye(20, dtype=bool)
    with pytest.raises(ValueError, match="only with the flow"):
        make_matte(frame, mask, before=np.zeros((20, 20), np.uint8))


def test_softened_masks_of_a_clip_have_the_mattes_of_its_frames_and_masks_at_one_half():
    alphas = [disc_alpha((80, 60), (30 + 3 * t, 28), 16, 4) for t in range(3)]
    frames = np.stack([mix(alpha, noise=2, seed=t) for t, alpha in enumerate(alphas)])
    vectors = np.zeros((2, 60, 80, 2), np.float16)
    vectors[..., 0] = 3
    known = np.ones((2, 60, 80), bool)
    hard = np.stack([[alpha >= 0.5 for alpha in alphas], np.zeros((3, 60, 80), bool)])
    reports = []
    flow = FlowField(vectors, -vectors, known, known)
    soft = soften_masks(frames, flow, LayerMasks(("disc", "nothing"), hard), reports.append)
    assert soft.names == ("disc", "nothing") and (soft.masks == (soft.shares >= 128)).all()
    assert np.abs(soft.shares[0] / 255 - np.stack(alphas)).mean() < 0.25 * np.abs(hard[0] - np.stack(alphas)).mean()
    assert not soft.shares[1].any() and (reports[-1].done, reports[-1].total) == (6, 6)
    first = make_matte(frames[0], hard[0, 0])
    back = -vectors[0].astype(np.float32)
    assert (soft.shares[0, 0] == first).all()
    assert (soft.shares[0, 1] == make_matte(frames[1], hard[0, 1], before=first, flow=back)).all()
