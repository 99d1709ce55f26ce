"""The measures agree with slow obvious references, closed forms and the truth of the synthetic clips."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
import torch

from neural_fields.core.box import Box
from neural_fields.data.synthetic.planar_clips import PaintedMark, SyntheticClip, make_demo_clip, make_translation_clip
from neural_fields.evaluation import metrics
from neural_fields.evaluation.lpips import LpipsDistance, LpipsResult


def picture(seed: int, height: int = 24, width: int = 32) -> np.ndarray:
    return np.random.default_rng(seed).random((height, width, 3)).astype(np.float32)


def square(row: int, column: int, side: int, shape: tuple[int, int] = (60, 80)) -> np.ndarray:
    mask = np.zeros(shape, bool)
    mask[row : row + side, column : column + side] = True
    return mask


def slow_ssim(a: np.ndarray, b: np.ndarray) -> float:
    """Wang et al. 2004, equations 13 to 16, one window and one channel at a time."""
    offsets = np.arange(11) - 5
    weight = np.exp(-(offsets[:, None] ** 2 + offsets[None] ** 2) / (2 * 1.5**2))
    weight /= weight.sum()
    values = []
    for channel in range(3):
        for i in range(a.shape[0] - 10):
            for j in range(a.shape[1] - 10):
                x, y = (image[i : i + 11, j : j + 11, channel].astype(float) for image in (a, b))
                mx, my = (weight * x).sum(), (weight * y).sum()
                vx, vy = (weight * (x - mx) ** 2).sum(), (weight * (y - my) ** 2).sum()
                cov = (weight * (x - mx) * (y - my)).sum()
                top = (2 * mx * my + 1e-4) * (2 * cov + 9e-4)
                values.append(top / ((mx**2 + my**2 + 1e-4) * (vx + vy + 9e-4)))
    return float(np.mean(values))


def test_psnr_of_a_constant_error_is_its_closed_form() -> None:
    a = np.full((4, 5, 3), 100, np.uint8)
    assert metrics.psnr(a, a + np.uint8(51)) == pytest.approx(-20 * math.log10(0.2), abs=1e-4)
    assert metrics.psnr(a, (a / 255).astype(np.float64)) > 100
    assert metrics.psnr(a, a) == math.inf


def test_masked_psnr_sees_only_what_lies_under_the_mask() -> None:
    a = picture(0)
    b = a.copy()
    b[:, 16:] = 0
    mask = np.zeros((24, 32), bool)
    mask[:, :16] = True
    assert metrics.psnr(a, b, mask) == math.inf
    assert metrics.psnr(a, b, ~mask) == pytest.approx(metrics.psnr(a[:, 16:], b[:, 16:]), abs=1e-4)
    assert metrics.psnr(a, b, np.ones((24, 32))) == pytest.approx(metrics.psnr(a, b), abs=1e-4)
    assert math.isnan(metrics.psnr(a, b, np.zeros((24, 32))))


def test_clips_of_different_length_are_refused() -> None:
    frames = [picture(0), picture(1)]
    assert metrics.psnr_per_frame(iter(frames), iter(frames)) == [math.inf, math.inf]
    for measure in (metrics.psnr_per_frame, metrics.locate_marks):
        with pytest.raises(ValueError):
            measure(frames, frames[:1])


@pytest.mark.parametrize("noise", [0.02, 0.3])
def test_ssim_equals_the_slow_reference(noise: float) -> None:
    a = picture(1)
    b = (a + noise * (picture(2) - 0.5)).clip(0, 1).astype(np.float32)
    assert metrics.ssim(a, b) == pytest.approx(slow_ssim(a, b), abs=2e-5)


def test_ssim_of_a_picture_with_itself_is_one_at_any_size() -> None:
    for height, width in [(24, 32), (11, 11), (6, 40), (1, 1)]:
        assert metrics.ssim(picture(0, height, width), picture(0, height, width)) == pytest.approx(1, abs=1e-6)
    with pytest.raises(ValueError, match="different shape"):
        metrics.ssim(picture(0), picture(0, 20, 20))


def test_alpha_iou_pools_the_pixels_of_all_frames() -> None:
    alpha = [square(0, 0, 10).astype(np.float32) * 0.6, square(0, 0, 20).astype(np.float32) * 0.4]
    truth = [square(0, 5, 10), square(0, 0, 20)]
    assert metrics.alpha_iou(alpha, truth) == pytest.approx(50 / (150 + 400))
    assert metrics.alpha_iou([np.zeros((4, 4))], [np.zeros((4, 4), bool)]) == 1


def test_boundary_f_forgives_a_pixel_and_no_more_than_the_tolerance() -> None:
    truth = square(20, 20, 20)
    assert metrics.boundary_f([truth], [truth]) == 1
    assert metrics.boundary_f([square(20, 21, 20)], [truth]) == 1
    # Of 76 outline pixels 15 still match on each of two sides, and one below each of two corners.
    assert metrics.boundary_f([square(20, 26, 20)], [truth]) == pytest.approx(32 / 76)
    assert metrics.boundary_f([square(0, 60, 8)], [truth]) == 0
    assert metrics.boundary_f([np.zeros((60, 80), bool)], [truth]) == 0
    assert metrics.boundary_f([np.zeros((60, 80), bool), truth], [np.zeros((60, 80), bool), truth]) == 1


def test_warp_error_of_a_whole_pixel_translation_is_rounding_only() -> None:
    clip = make_translation_clip(5, 48, 27, velocity=(2.0, -1.0))
    error = metrics.warp_error(iter(clip.frames), clip.forward_flow, clip.forward_visible)
    assert error is not None and error < 1e-5
    wrong = metrics.warp_error(clip.frames, np.zeros_like(clip.forward_flow), clip.forward_visible)
    assert wrong is not None and wrong > 100 * error


def test_warp_error_counts_only_consistent_pixels_and_is_none_without_any() -> None:
    frames = [np.zeros((4, 6, 3), np.float32), np.zeros((4, 6, 3), np.float32)]
    frames[1][:, 3:] = 0.5
    still, left = np.zeros((1, 4, 6, 2), np.float32), np.zeros((1, 4, 6), bool)
    left[:, :, :3] = True
    assert metrics.warp_error(frames, still, left) == 0
    assert metrics.warp_error(frames, still, ~left) == pytest.approx(0.25)
    assert metrics.warp_error(frames, still, left & ~left) is None
    assert metrics.warp_error(frames[:1], still[:0], left[:0]) is None
    with pytest.raises(ValueError, match="resize the flow"):
        metrics.warp_error(frames, still[:, :2, :2], left)


@pytest.fixture(scope="module")
def painted() -> tuple[SyntheticClip, np.ndarray, np.ndarray]:
    """A clip, the same with a magenta disc on the turtle's shell, and the true positions of the disc."""
    clip = make_demo_clip(8, 160, 90)
    y, x = np.mgrid[:48, :48] + 0.5 - 24
    disc = np.zeros((48, 48, 4), np.uint8)
    disc[..., [0, 2]] = 255
    disc[..., 3] = np.hypot(x, y) < 23
    disc[..., 3] *= 255
    box = clip.boxes[0]
    u, v = (box.u0 + box.u1) / 2, (box.v0 + box.v1) / 2
    edited = clip.render_edited([PaintedMark(disc, Box(u - 0.09, v - 0.09, u + 0.09, v + 0.09))])
    return clip, edited, clip.compute_mark_positions("foreground", (u, v))


@pytest.mark.parametrize("color", [None, (1.0, 0.0, 1.0)])
def test_a_mark_that_sticks_has_no_drift_also_under_coding_noise(painted: tuple, color: tuple | None) -> None:
    clip, edited, positions = painted
    noise = np.random.default_rng(0).normal(0, 4, edited.shape)
    noisy = (edited + noise).round().clip(0, 255).astype(np.uint8)
    assert metrics.measure_mark_drift(iter(edited), iter(clip.frames), positions, color).max() < 0.15
    assert metrics.measure_mark_drift(noisy, clip.frames, positions, color).max() < 0.4


@pytest.mark.parametrize("color", [None, (1.0, 0.0, 1.0)])
def test_a_mark_that_slides_drifts_by_as_much(painted: tuple, color: tuple | None) -> None:
    clip, edited, positions = painted
    slide = np.stack([np.roll(e, 5, axis=1) for e in edited])
    plain = np.stack([np.roll(f, 5, axis=1) for f in clip.frames])
    np.testing.assert_allclose(metrics.measure_mark_drift(slide, plain, positions, color), 5, atol=0.2)


def test_a_mark_that_is_not_there_is_nan(painted: tuple) -> None:
    clip, _, positions = painted
    assert np.isnan(metrics.measure_mark_drift(clip.frames, clip.frames, positions)).all()


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SqueezeNet 1.1 of random weights: enough for the plumbing, no download."""
    torchvision = pytest.importorskip("torchvision")
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "squeezenet1_1-random.pth"
    torch.save(torchvision.models.squeezenet1_1(weights=None).state_dict(), path)
    return path


def measure_lpips(a: Iterable, b: Iterable, weights: Path | None = None) -> LpipsResult:
    distance = LpipsDistance(weights)
    for x, y in zip(a, b, strict=True):
        distance.add(x, y)
    return distance.result


@pytest.mark.slow
def test_lpips_from_a_local_file_is_zero_for_the_same_frames_and_grows_with_the_difference(backbone: Path) -> None:
    pytest.importorskip("lpips")
    frames = [picture(n, 64, 80) for n in range(2)]
    near = [(f + 0.02 * picture(9, 64, 80)).clip(0, 1) for f in frames]
    far = [(f + 0.5 * picture(9, 64, 80)).clip(0, 1) for f in frames]
    same, close, distant = (measure_lpips(iter(frames), iter(x), backbone) for x in (frames, near, far))
    assert same.distance == pytest.approx(0, abs=1e-7) and same.reason == "squeeze backbone"
    assert close.distance is not None and distant.distance is not None and 0 < close.distance < distant.distance
    assert measure_lpips(frames, near, backbone) == close  # the weights come from the file, not from chance


def test_lpips_takes_the_backbone_in_the_hub_cache(
    backbone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("lpips")
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    frames = [picture(0, 40, 40)]
    missing = measure_lpips(frames, frames)
    assert missing.distance is None and "no backbone in the torch hub cache" in missing.reason
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "squeezenet1_1-b8a52dc0.pth").write_bytes(backbone.read_bytes())
    assert measure_lpips(frames, frames).distance == pytest.approx(0, abs=1e-7)


def test_lpips_that_cannot_be_computed_says_why(
    backbone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("lpips")
    frames, tiny = [picture(0, 40, 40)], [picture(0, 8, 40)]
    text = tmp_path / "text.pth"
    text.write_text("not weights")
    other = tmp_path / "other.pth"
    torch.save({"weight": torch.zeros(2)}, other)
    reasons = [measure_lpips(frames, frames, path) for path in (tmp_path / "none.pth", text, other)]
    reasons.append(measure_lpips(tiny, tiny, backbone))
    monkeypatch.setitem(sys.modules, "lpips", None)
    reasons.append(measure_lpips(frames, frames, backbone))
    assert all(result.distance is None for result in reasons)
    expected = [
        "no file",
        "text.pth holds no SqueezeNet",
        "other.pth holds no",
        "under 32 pixels",
        "'.[metrics]'",
    ]
    for result, words in zip(reasons, expected, strict=True):
        assert words in result.reason
