"""The written-out gradients of an atlas of tables equal those of the model that torch differentiates."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from neural_fields.data.dataset import Batch, ClipDataset
from neural_fields.data.masks.layer_masks import LayerMasks
from neural_fields.nn.adam import RectangleGradient
from neural_fields.planar.appearance.image_texture import ImageTexture
from neural_fields.planar.appearance.layer_patch import InterpolationMatrices, interpolation_matrix
from neural_fields.planar.build import build_model
from neural_fields.planar.composition.model import PlanarModel
from neural_fields.planar.config import load_planar_config
from neural_fields.planar.losses import analytic_step
from neural_fields.planar.losses.objective import accumulate_by_autograd
from neural_fields.planar.mappings.frame_grid import mean_squared_steps
from neural_fields.planar.mappings.grid import GridMapping
from neural_fields.training.initialize import initialize_model, plan_model
from tests.support.typed import as_all, as_one


def shaken(front: int, size: tuple[int, int] = (41, 27), **overrides: object) -> tuple[PlanarModel, ClipDataset]:
    """A model of a random clip with every table away from its start."""
    width, height = size
    random = np.random.default_rng(front)
    masks = np.zeros((front, 3, height, width), bool)
    for layer in range(front):
        masks[layer, :, 4 + layer : 15 + 2 * layer, 6 + 5 * layer : 20 + 5 * layer] = True
    frames = random.integers(0, 256, (3, height, width, 3), dtype=np.uint8)
    clip = ClipDataset(frames, LayerMasks(tuple(f"f{i}" for i in range(front)), masks), None)
    gain = {} if "gain.kind" in overrides else {"gain.cell": 7.0}
    config = load_planar_config("atlas", {"mapping.cell": 6.0, "terms.texture_smoothness": 0.0, **gain, **overrides})
    chosen = plan_model(config, clip)
    model = build_model(config, chosen.shape)
    initialize_model(model, chosen, clip)
    generator = torch.Generator().manual_seed(front)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            scale = 1.5 if "opacity" in name else 0.05
            parameter.add_(scale * torch.randn(parameter.shape, generator=generator))
        for number, mapping in enumerate(as_all(GridMapping, model.mappings)):
            tilt = torch.tensor([[1.1, 0.05, 0.02], [-0.03, 0.9, 0.0], [0.02 * (number + 1), 0.01, 1.0]])
            mapping.homography[1] = tilt
            mapping.homography[2] = torch.diag(torch.tensor([3.5, 1.2, 1.0]))  # far: seen from smaller pictures
    return model.train(), clip


def soften(clip: ClipDataset) -> ClipDataset:
    """Returns the clip with random shares, which overlap, inside the masks."""
    random = np.random.default_rng(5).integers(1, 256, clip.masks.masks.shape, np.uint8)
    return replace(clip, masks=replace(clip.masks, shares=np.where(clip.masks.masks, random, np.uint8(0))))


def gradients(
    model: PlanarModel, batch: Batch, general: bool, min_bands: int = 4
) -> tuple[dict[str, float], dict[str, torch.Tensor]]:
    model.zero_grad(set_to_none=True)
    terms = (
        accumulate_by_autograd(model, batch, 0)
        if general
        else analytic_step.accumulate_table_gradients(model, batch, min_bands)
    )
    if not general:
        for texture in as_all(ImageTexture, model.textures):
            texture.image.grad = torch.zeros_like(texture.image)
            for patch in texture.image.patches:  # type: ignore[attr-defined]
                patch.crop(texture.image.grad).add_(patch.gradient)
    found = {n: p.grad.to_dense().clone() for n, p in model.named_parameters() if p.grad is not None and p.numel()}
    return {name: float(value) for name, value in terms.items()}, found


@pytest.mark.parametrize(
    ("front", "soft", "overrides"),
    [
        (1, False, {}),
        (0, False, {}),
        (2, False, {}),
        (2, True, {}),
        (1, False, {"opacity.max_megapixels": 0.0005}),  # a table coarser than the frame
        (1, False, {"gain.kind": "none", "terms.gain_size": 0.0, "terms.gain_smoothness": 0.0}),
    ],
)
def test_gradients_equal_those_of_the_graph(front: int, soft: bool, overrides: dict) -> None:
    model, clip = shaken(front, **overrides)
    clip = soften(clip) if soft else clip
    assert analytic_step.supports_model(model)
    batch = Batch(clip, torch.tensor([0, 1, 2]), None)
    slow_terms, slow = gradients(model, batch, general=True)
    fast_terms, fast = gradients(model, batch, general=False)
    assert fast_terms.keys() == slow_terms.keys()
    for name, value in slow_terms.items():
        assert fast_terms[name] == pytest.approx(value, rel=2e-4, abs=1e-7), name
    assert fast.keys() == slow.keys()
    for name, gradient in slow.items():
        assert torch.allclose(fast[name], gradient, rtol=2e-3, atol=2e-4 * float(gradient.abs().max())), name


def test_a_band_more_or_less_changes_nothing() -> None:
    model, clip = shaken(1)
    batch = Batch(clip, torch.tensor([1]), None)
    _, one = gradients(model, batch, general=False)
    _, other = gradients(model, batch, general=False, min_bands=1)
    for name, gradient in one.items():
        assert torch.allclose(other[name], gradient, rtol=1e-3, atol=1e-6 + 1e-5 * float(gradient.abs().max())), name


def test_other_parts_and_terms_take_the_graph() -> None:
    model, _ = shaken(1)
    assert analytic_step.supports_model(model)
    weights = model.weights
    for changed in ({"sparsity": 1.0}, {"mask_until": 10}):  # a loss that ends is not written out
        model.weights = replace(weights, **changed)
        assert not analytic_step.supports_model(model)


def test_interpolation_matrices_are_those_of_interpolate() -> None:
    table = torch.rand(1, 2, 5, 7)
    matrices = InterpolationMatrices(interpolation_matrix(5, 23), interpolation_matrix(7, 31))
    wanted = torch.nn.functional.interpolate(table, (23, 31), mode="bilinear", align_corners=False)[0]
    assert torch.allclose(matrices.interpolate_table(table[0]), wanted, atol=1e-6)


def test_rectangles_that_overlap_are_joined_and_others_are_not() -> None:
    corners = ((0, 0), (20, 20), (2, 2), (5, 5), (0, 8))
    parts = [RectangleGradient(top, left, torch.ones(1, 4, 4)) for top, left in corners]
    groups = analytic_step._join_overlapping(parts)
    assert sorted((p.top, p.left, *p.gradient.shape[1:]) for p in groups) == [(0, 0, 9, 12), (20, 20, 4, 4)]
    total = torch.zeros(1, 30, 30)
    for part in parts:
        part.crop(total).add_(part.gradient)
    joined = torch.zeros(1, 30, 30)
    for part in groups:
        part.crop(joined).add_(part.gradient)
    assert torch.equal(joined, total)


def test_texture_smoothness_pulls_neighboring_texels_together_where_the_step_looks() -> None:
    model, clip = shaken(0)
    model.weights = replace(model.weights, texture_smoothness=3.0)
    with_it = gradients(model, Batch(clip, torch.tensor([0]), None), general=False)
    model.weights = replace(model.weights, texture_smoothness=0.0)
    without = gradients(model, Batch(clip, torch.tensor([0]), None), general=False)
    texture_image = as_one(ImageTexture, model.textures[0]).image
    (patch,) = texture_image.patches  # type: ignore[attr-defined]
    image = patch.crop(texture_image.detach()).clone().requires_grad_()
    wanted = 3.0 * mean_squared_steps(image[None])
    wanted.backward()
    difference = with_it[1]["textures.0.image"] - without[1]["textures.0.image"]
    assert with_it[0]["texture_smoothness"] == pytest.approx(float(wanted.detach()), rel=1e-4)
    assert torch.allclose(patch.crop(difference), image.grad, atol=1e-7)
