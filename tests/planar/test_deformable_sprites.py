"""Deformable Sprites: its splines against closed forms, its terms by hand, and layers that nobody masked."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from neural_fields.atlas.canonical import read_pristine
from neural_fields.core import coords
from neural_fields.data.dataset import Batch, ClipDataset
from neural_fields.data.flow.compute import FlowField
from neural_fields.data.masks.layer_masks import LayerMasks, mask_iou
from neural_fields.data.synthetic.planar_clips import make_demo_clip
from neural_fields.open_runs.opening import require_planar
from neural_fields.planar.appearance.image_texture import ImageTexture
from neural_fields.planar.build import build_model
from neural_fields.planar.composition.model import PlanarModel
from neural_fields.planar.composition.samples import LayerSamples
from neural_fields.planar.config import count_steps, load_planar_config, scale_steps
from neural_fields.planar.losses.deformable_sprites import composite_l1_loss, contrast_loss, laplacian_loss
from neural_fields.planar.losses.objective import compute_losses, sample_batch
from neural_fields.planar.mappings.frame_points import frame_points
from neural_fields.planar.mappings.spline import SplineMapping, knot_count, spline_matrix
from neural_fields.planar.mappings.spline import SplineMappingConfig as Settings
from neural_fields.training.initialize import initialize_model, plan_model
from neural_fields.training.options import TrainOptions
from neural_fields.training.train_planar import train
from tests.support.typed import as_one

pytestmark = pytest.mark.slow

SIZE, FRAMES = (48, 28), 9


def crooked(seed: int = 0) -> SplineMapping:
    """A mapping with motion and shifts of every kind."""
    generator = torch.Generator().manual_seed(seed)
    mapping = SplineMapping(Settings(cell=8.0), FRAMES, SIZE)
    with torch.no_grad():
        mapping.motion.add_(0.02 * torch.randn(mapping.motion.shape, generator=generator))
        mapping.shifts.add_(2 * torch.randn(mapping.shifts.shape, generator=generator))
    return mapping


def turtle(frames: int = 6) -> ClipDataset:
    truth = make_demo_clip(frames, 32, 18)
    flow = FlowField(truth.forward_flow, truth.backward_flow, truth.forward_visible, truth.backward_visible)
    return ClipDataset(truth.frames, LayerMasks(("foreground",), truth.masks), flow)


def begun(**overrides: object) -> tuple[PlanarModel, ClipDataset]:
    clip = turtle()
    config = load_planar_config(
        "deformable_sprites", {key.replace("__", "."): value for key, value in overrides.items()}
    )
    start = plan_model(config, clip)
    model = build_model(config, start.shape)
    initialize_model(model, start, clip)
    return model, clip


# --- splines --------------------------------------------------------------------------------------------------------


def test_a_spline_of_knots_on_a_parabola_is_that_parabola_and_a_third() -> None:
    """The uniform cubic B-spline of k^2 is t^2 + 1/3: (0 * 1 + 1 * 4 + 4) / 6 - 1 at the middle knot of 0, 1, 2."""
    place = torch.linspace(0, 6, 25)
    knots = torch.arange(knot_count(6, 1)) - 1.0  # the first knot lies one step before the beginning
    matrix = spline_matrix(place, len(knots))
    torch.testing.assert_close(matrix.sum(1), torch.ones(25))
    torch.testing.assert_close(matrix @ knots, place, atol=1e-5, rtol=0)
    torch.testing.assert_close(matrix @ knots.square(), place.square() + 1 / 3, atol=1e-4, rtol=0)


def test_whole_frames_and_scattered_points_see_the_same_mapping() -> None:
    mapping, chosen = crooked(), torch.tensor([0, 3, 8])
    points = frame_points(chosen, FRAMES, SIZE)
    with torch.no_grad():
        whole = mapping.map_frames(chosen, FRAMES, SIZE)
        torch.testing.assert_close(mapping(points).view_as(whole), whole, atol=1e-5, rtol=0)
        jittered = points + torch.linspace(-0.1, 0.1, len(points))[:, None] * torch.tensor([0.0, 0.0, 1.0])
        one_by_one = torch.cat([mapping(point[None]) for point in jittered[::400]])
        torch.testing.assert_close(mapping(jittered)[::400], one_by_one, atol=1e-5, rtol=0)


def test_shifts_stay_inside_their_bound_however_far_the_knots_go() -> None:
    mapping = crooked()
    with torch.no_grad():
        mapping.motion.copy_(torch.eye(3).flatten()[:8])
        mapping.shifts.mul_(50)
        away = mapping.map_frames(torch.arange(FRAMES), FRAMES, SIZE) - coords.frame_xy(*SIZE)
    assert 0.09 < float(away.abs().max()) <= 0.1 + 1e-6


def test_motion_starts_at_the_transforms_that_geometry_found() -> None:
    transforms = torch.eye(3).repeat(FRAMES, 1, 1)
    phase = torch.arange(FRAMES) / 8
    transforms[:, 0, 2], transforms[:, 1, 2] = 0.5 * torch.sin(phase), -0.2 * phase
    transforms[:, 0, 0], transforms[:, 2, 0] = 1 + 0.1 * phase**2, 0.05 * torch.cos(phase)
    mapping = SplineMapping(Settings(), FRAMES, SIZE)
    mapping.start_from_homographies(2 * transforms)  # the scale of a homography means nothing
    pixel = 2 / max(SIZE)
    torch.testing.assert_close(
        mapping.homography_at(torch.arange(FRAMES).float()), transforms, atol=0.02 * pixel, rtol=0
    )
    between = mapping.homography_at(torch.tensor([3.5]))[0, 0, 2]
    assert float(between.detach()) == pytest.approx(0.5 * np.sin(3.5 / 8), abs=0.1 * pixel)


# --- terms ----------------------------------------------------------------------------------------------------------


def samples(color: Tensor, weight: Tensor) -> LayerSamples:
    return LayerSamples(color, weight, None, None)


def test_terms_are_what_they_are_by_hand() -> None:
    clip = turtle(2)
    batch = Batch(clip, torch.tensor([0]), None)
    truth = batch.rgb
    weight = torch.tensor([0.25, 0.75]).expand(len(truth), 2)
    brighter = samples(torch.stack([truth + 0.2, truth], 1), weight)
    assert float(composite_l1_loss(brighter, batch)) == pytest.approx(0.05, abs=1e-6)
    assert float(laplacian_loss(brighter, batch)) == pytest.approx(0, abs=1e-6)  # a constant has no detail
    checks = (torch.arange(18)[:, None] + torch.arange(32)).remainder(2).flatten()[:, None] * 2.0 - 1
    checked = samples(torch.stack([truth, truth + 0.1 * checks], 1), torch.tensor([0.0, 1.0]).expand(len(truth), 2))
    assert float(laplacian_loss(checked, batch)) == pytest.approx(0.1, abs=1e-6)  # all of it is in the finest level
    pair = torch.tensor([[[0.5, 0.25, 1.0], [0.5, 1.0, -3.0]]])
    assert float(contrast_loss(samples(pair, torch.tensor([[0.5, 0.5]])))) == pytest.approx(2 * 0.5 / 4)


def test_every_term_of_the_preset_reaches_the_parts_that_it_is_about() -> None:
    model, clip = begun(terms__opacity_from=10)
    batch = Batch(clip, torch.tensor([1, 2]), None)
    with torch.no_grad():
        as_one(ImageTexture, model.textures[0]).image.mul_(0.8)
    for step, moved_by_color in ((9, False), (10, True)):
        found = compute_losses(model, batch, sample_batch(model, batch), step)
        assert set(found) == {"composite_l1", "laplacian", "contrast", "flow", "mask"}
        opacity = list(model.opacity.parameters())
        for name in ("composite_l1", "laplacian", "flow"):
            (gradient,) = torch.autograd.grad(found[name], opacity, retain_graph=True, allow_unused=True)
            assert (gradient is not None and bool(gradient.coalesce().values().any())) == moved_by_color
        assert torch.autograd.grad(found["mask"], opacity, retain_graph=True)[0].coalesce().values().any()
        for name in ("composite_l1", "flow"):
            parameters = list(model.mappings[1].parameters())
            gradients = torch.autograd.grad(found[name], parameters, retain_graph=True)
            assert all(bool(gradient.any()) for gradient in gradients)


def test_the_opacity_is_released_at_the_same_share_of_every_quality() -> None:
    config = load_planar_config("deformable_sprites")
    for quality in ("draft", "normal", "final"):
        total = count_steps(config.training, quality, 40, 100_000)
        assert scale_steps(config, total).terms.opacity_from == 0.75 * total


# --- fits -----------------------------------------------------------------------------------------------------------


def test_masks_that_are_given_are_where_the_opacity_starts() -> None:
    model, clip = begun()
    with torch.no_grad():
        shown = model.sample_frames(torch.arange(clip.frame_count), clip.size).weight[:, 0] > 0.5
    assert mask_iou(shown.numpy(), clip.masks.masks.reshape(-1)) > 0.9


def test_a_clip_without_masks_comes_apart_into_what_moves_and_what_does_not(tmp_path: Path) -> None:
    truth = make_demo_clip(12, 128, 72)
    (tmp_path / "frames").mkdir()
    for t, frame in enumerate(truth.frames):
        Image.fromarray(frame).save(tmp_path / "frames" / f"{t:03d}.png")
    overrides: dict[str, object] = {"training.steps": 12, "training.frame_pixels": 30_000}
    result = train(
        tmp_path / "frames", TrainOptions(out=tmp_path / "run", config="deformable_sprites", overrides=overrides)
    )
    model = require_planar(result.run, "the test").model
    assert model.layers == ("foreground", "background")
    with torch.no_grad():
        weight = torch.cat([model.sample_frame(t, (128, 72)).weight[:, 0] for t in range(12)])
    assert mask_iou((weight > 0.5).numpy(), truth.masks[0].reshape(-1)) > 0.6
    for name in model.layers:
        assert read_pristine(result.run.canonical, name).box == model.canonical_box(name)
