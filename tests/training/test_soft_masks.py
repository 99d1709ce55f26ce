"""Soft masks: a fit starts from the shares of pixels at blurred outlines, and paint blends there as the object does."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from neural_fields.data.dataset import ClipDataset
from neural_fields.data.flow.compute import FlowField
from neural_fields.data.masks.layer_masks import LayerMasks
from neural_fields.planar.appearance.opacity import compute_layer_weights
from neural_fields.planar.appearance.pixel_opacity import PixelOpacity
from neural_fields.planar.build import build_model
from neural_fields.planar.composition.samples import composite_layers
from neural_fields.planar.config import load_planar_config
from neural_fields.runs.run import Run
from neural_fields.training.initialize import initialize_model, plan_model
from neural_fields.training.loop import train_steps
from neural_fields.training.planar_task import PlanarTask
from tests.support.typed import as_one

WIDTH, HEIGHT, COUNT = 96, 64, 4
STEPS = 16
STEP = (8.0, 2.0)  # motion of the disc, in pixels a frame; the shutter is open for all of it
PAINT = np.array([240, 40, 200], np.float32)


def draw_blurred_disc(t: int, samples: int = 33) -> np.ndarray:
    """The alpha of a moving disc, averaged over the time that the shutter is open."""
    total = np.zeros((HEIGHT, WIDTH), np.float32)
    for moment in np.linspace(-0.5, 0.5, samples):
        sharp = np.zeros((4 * HEIGHT, 4 * WIDTH), np.uint8)
        x, y = 34 + STEP[0] * (t + moment), 28 + STEP[1] * (t + moment)
        cv2.circle(sharp, (round(64 * x), round(64 * y)), 4 * 16 * 16, 255, -1, shift=4)
        total += cv2.resize(sharp, (WIDTH, HEIGHT), interpolation=cv2.INTER_AREA) / np.float32(255 * samples)
    return total


def textured(low: float, high: float, seed: int, size: tuple[int, int]) -> np.ndarray:
    random = np.random.default_rng(seed)
    coarse = random.uniform(low, high, (size[1] // 8, size[0] // 8, 3)).astype(np.float32)
    return cv2.resize(coarse, size, interpolation=cv2.INTER_CUBIC)


@pytest.fixture(scope="module")
def alphas() -> np.ndarray:
    return np.stack([draw_blurred_disc(t) for t in range(COUNT)])


@pytest.fixture(scope="module")
def behind() -> np.ndarray:
    return textured(110, 250, 1, (WIDTH, HEIGHT))


@pytest.fixture(scope="module")
def frames(alphas: np.ndarray, behind: np.ndarray) -> np.ndarray:
    """The disc, dark, over a light background that stands still."""
    skin = textured(10, 90, 2, (2 * WIDTH, 2 * HEIGHT))
    out = []
    for t, alpha in enumerate(alphas):
        shift = np.array([[1, 0, STEP[0] * t - WIDTH / 2], [0, 1, STEP[1] * t - HEIGHT / 2]], np.float32)
        disc = cv2.warpAffine(skin, shift, (WIDTH, HEIGHT))
        out.append(np.rint(alpha[..., None] * disc + (1 - alpha[..., None]) * behind).clip(0, 255).astype(np.uint8))
    return np.stack(out)


def fit_and_paint(run: Run, frames: np.ndarray, shares: np.ndarray, soft: bool) -> tuple[np.ndarray, np.ndarray]:
    """Fits the clip shortly, and paints the whole disc; returns its weights and the painted frames."""
    inside = shares >= 128
    moves = np.where(inside[..., None], np.array(STEP, np.float32), np.float32(0))
    ok = np.ones((COUNT - 1, HEIGHT, WIDTH), bool)
    flow = FlowField(moves[:-1], -moves[1:], ok, ok)
    clip = ClipDataset(frames, LayerMasks(("disc",), inside[None], shares[None] if soft else None), flow)
    config = load_planar_config("atlas")
    plan = plan_model(config, clip)
    model = build_model(config, plan.shape)
    initialize_model(model, plan, clip)
    list(train_steps(PlanarTask(model, clip, config.training, STEPS), run))
    weights, painted = [], []
    for t, frame in enumerate(frames):
        with torch.no_grad():
            samples = model.sample_frame(t, (WIDTH, HEIGHT))
            residual = torch.from_numpy(frame).view(-1, 3) / 255 - composite_layers(samples)
            shown = samples.weight[:, 0, None] * (torch.from_numpy(PAINT) / 255 - samples.lit_color[:, 0] - residual)
        weights.append(samples.weight[:, 0].view(HEIGHT, WIDTH).numpy())
        painted.append(frame + 255 * shown.view(HEIGHT, WIDTH, 3).numpy())
    return np.stack(weights), np.stack(painted)


def test_weights_and_paint_at_a_blurred_outline_are_nearer_to_the_truth_with_soft_masks(
    tmp_path: Path, alphas: np.ndarray, behind: np.ndarray, frames: np.ndarray
) -> None:
    shares = np.rint(255 * alphas).astype(np.uint8)
    outline = (alphas > 0.02) & (alphas < 0.98)
    truth = alphas[..., None] * PAINT + (1 - alphas[..., None]) * behind
    weight_errors, paint_errors = [], []
    for name in ("hard", "soft"):
        weights, painted = fit_and_paint(Run.create(tmp_path / name), frames, shares, name == "soft")
        weight_errors.append(float(np.abs(weights - alphas)[outline].mean()))
        paint_errors.append(float(np.abs(painted - truth)[outline].mean()))
        assert np.array_equal(painted[weights == 0], frames[weights == 0])  # untouched pixels are the source's
    assert weight_errors[1] < 0.4 * weight_errors[0]
    assert paint_errors[1] < 0.65 * paint_errors[0]


def test_the_opacity_of_two_layers_that_meet_starts_as_their_shares(frames: np.ndarray) -> None:
    shares = np.zeros((2, COUNT, HEIGHT, WIDTH), np.uint8)
    ramp = np.linspace(0, 255, 17)[1:-1].astype(np.uint8)
    shares[0, :, 20:40, 20:40], shares[1, :, 20:40, 40:70] = 255, 255
    shares[0, :, 20:40, 33:48], shares[1, :, 20:40, 33:48] = ramp[::-1], 255 - ramp[::-1]
    clip = ClipDataset(frames, LayerMasks(("front", "back"), shares >= 128, shares), None)
    config = load_planar_config("atlas")
    plan = plan_model(config, clip)
    model = build_model(config, plan.shape)
    model.opacity.initialize(clip)
    assert as_one(PixelOpacity, model.opacity).windows[0].tolist()[:2] == [14, 46]
    with torch.no_grad():
        alphas = model.opacity.sample_frames(torch.tensor([1]), COUNT, (WIDTH, HEIGHT))[0]
    found = compute_layer_weights(alphas).movedim(-1, 0).numpy()
    assert np.abs(found[:2] - shares[:, 1] / np.float32(255)).max() < 1e-5
    assert not found[2, 20:40, 20:70].any()  # nothing of the background shines through where they meet
