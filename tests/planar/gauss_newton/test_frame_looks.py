"""Looks at frames: the compiled ones equal those with torch, and both the gradients that autograd finds."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from neural_fields.core.box import Box
from neural_fields.data.dataset import Batch, ClipDataset
from neural_fields.data.masks.layer_masks import LayerMasks
from neural_fields.planar.appearance.pixel_opacity import PixelOpacity
from neural_fields.planar.build import build_model
from neural_fields.planar.composition.model import PlanarModel
from neural_fields.planar.config import load_planar_config
from neural_fields.planar.gauss_newton.compiled_looks import CompiledLooks
from neural_fields.planar.gauss_newton.frame_looks import OpacitySettings, TexturePicture, solve_alpha
from neural_fields.planar.gauss_newton.table_fit import DEFAULTS, TableFit
from neural_fields.planar.gauss_newton.torch_looks import TorchLooks
from neural_fields.planar.losses.objective import accumulate_gradients
from neural_fields.planar.mappings.grid import GridMapping
from neural_fields.training.initialize import initialize_model, plan_model
from tests.support.typed import as_all, as_one


def shake_model(front: int, **overrides: object) -> tuple[PlanarModel, ClipDataset]:
    """Makes a model of a random clip of three frames, with every table away from its start."""
    width, height = 41, 27
    random = np.random.default_rng(front)
    masks = np.zeros((front, 3, height, width), bool)
    for layer in range(front):
        masks[layer, :, 4 + layer : 15 + 2 * layer, 6 + 5 * layer : 20 + 5 * layer] = True
    frames = random.integers(0, 256, (3, height, width, 3), dtype=np.uint8)
    clip = ClipDataset(frames, LayerMasks(tuple(f"f{i}" for i in range(front)), masks), None)
    config = load_planar_config("atlas", {"mapping.cell": 6.0, "gain.cell": 7.0, **overrides})
    plan = plan_model(config, clip)
    model = build_model(config, plan.shape)
    initialize_model(model, plan, clip)
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


@pytest.mark.parametrize(
    ("front", "soft", "overrides"),
    [(1, False, {}), (0, False, {}), (3, False, {}), (2, True, {}), (2, False, {"opacity.max_megapixels": 0.0005})],
)
@torch.no_grad()
def test_compiled_looks_equal_those_with_torch(front: int, soft: bool, overrides: dict) -> None:
    model, clip = shake_model(front, **overrides)
    if soft:
        shares = np.random.default_rng(5).integers(1, 256, clip.masks.masks.shape, np.uint8)
        masks = LayerMasks(clip.masks.names, clip.masks.masks, np.where(clip.masks.masks, shares, np.uint8(0)))
        clip = ClipDataset(clip.frames, masks, None)
    fit = TableFit(model, clip, frames_per_step=4)
    fit._begin_pass()
    compiled = fit.looks
    assert isinstance(compiled, CompiledLooks)
    grids = fit.mappings[0].residual.shape[2:], fit.gains[0].table.shape[2:]
    reference = TorchLooks(
        clip.size, compiled.opacity, (grids[0][0], grids[0][1]), (grids[1][0], grids[1][1]), fit.device
    )
    for t in range(3):
        found = []
        for looks in (reference, compiled):
            tables = fit._read_tables(t)
            fit.buffers.sums.zero_()
            result = looks.look(tables, fit.buffers, 0, collects_maps=True, collects_texels=True)
            found.append((result, tables.alpha, fit.buffers.sums.clone()))
        (slow, slow_alpha, slow_sums), (fast, fast_alpha, fast_sums) = found
        assert fast.squared_error == pytest.approx(slow.squared_error, rel=1e-4)
        assert torch.allclose(fast_alpha, slow_alpha, atol=1e-3)
        pairs = [(fast_sums, slow_sums)]
        for fast_part, slow_part in ((fast.maps, slow.maps), (fast.opacities, slow.opacities)):
            assert (fast_part is None) == (slow_part is None)
            if fast_part is not None and slow_part is not None:
                pairs += [(getattr(fast_part, name), value) for name, value in vars(slow_part).items()]
        for one, other in pairs:
            assert torch.allclose(one, other, rtol=5e-3, atol=5e-4 * float(other.abs().max()))


@pytest.mark.parametrize(
    ("front", "coarse", "crisp"),
    [(0, False, True), (1, False, False), (2, False, False), (2, False, True), (2, True, False)],
)
def test_right_hand_sides_are_the_gradients_that_autograd_finds(front: int, coarse: bool, crisp: bool) -> None:
    others = ("mask", "residual_smoothness", "residual_anchor", "texture_smoothness", "gain_size", "gain_smoothness")
    alone: dict[str, object] = {f"terms.{name}": 0.0 for name in others}
    model, clip = shake_model(front, **alone, **({"opacity.max_megapixels": 0.0005} if coarse else {}))
    if crisp:  # every pixel shows one layer
        opacity = as_one(PixelOpacity, model.opacity).table.flat
        with torch.no_grad():
            opacity.copy_(torch.where(opacity > 0, 20.0, -20.0))
    accumulate_gradients(model, Batch(clip, torch.tensor([1]), None), 0)
    unit = 10 / (3 * 41 * 27)  # the loss for one squared residual
    with torch.no_grad():
        fit = TableFit(model, clip, 4, replace(DEFAULTS, min_mask_reach_px=99))
        fit._begin_pass()
        looks, tables = fit.looks, fit._read_tables(1)
        looks.opacity = None  # opacities as they are
        if isinstance(looks, CompiledLooks):
            found = looks.look(tables, fit.buffers, 0, collects_maps=True, collects_texels=True)
        assert found.maps is not None
    for number, (mapping, gain, texture) in enumerate(zip(fit.mappings, fit.gains, fit.textures, strict=True)):
        shift = mapping.residual.flat.grad.to_dense()[1].view_as(found.maps.shift_right[number])  # type: ignore[union-attr]
        wanted = [(found.maps.shift_right[number] / fit.pixel, shift)]
        lit = gain.table.flat.grad.to_dense()[1].view_as(found.maps.gain_right[number])  # type: ignore[union-attr]
        wanted.append((found.maps.gain_right[number], lit))
        level = fit.levels[number][1]
        if level == (0, 0) and crisp:  # mixtures count less
            sums = fit.pictures[number, 0, 0].read(fit.buffers.sums[0])[..., :3].permute(2, 0, 1)
            assert texture.image.grad is not None
            wanted.append((sums, texture.image.grad))
        for right, gradient in wanted:
            assert torch.allclose(-2 * unit * right, gradient, rtol=5e-3, atol=5e-4 * float(gradient.abs().max()))


@torch.no_grad()
def test_a_pixel_counts_in_a_texture_by_the_fourth_power_of_its_share() -> None:
    model, clip = shake_model(1)
    fit = TableFit(model, clip, 4, replace(DEFAULTS, min_mask_reach_px=99))
    fit._begin_pass()
    fit.looks.opacity = None  # opacities as they are
    weights = []
    for share in (1.0, 0.5):
        tables = fit._read_tables(0)
        tables.alpha.fill_(share)
        fit.buffers.sums.zero_()
        fit.looks.look(tables, fit.buffers, 0, collects_maps=False, collects_texels=True)
        weights.append([float(fit.pictures[n, 0, 0].read(fit.buffers.sums[0])[..., 3].sum()) for n in (0, 1)])
    assert weights[1][0] == pytest.approx(weights[0][0] / 16, rel=1e-3)
    window = fit._read_tables(0).window
    hidden = (window.bottom - window.top) * (window.right - window.left)
    assert weights[0][1] < weights[1][1] < weights[0][1] + 1.2**2 * hidden / 16


@given(
    curvature=st.floats(0, 3),
    best=st.floats(-1, 2),
    inside=st.sampled_from([0.0, 0.2, 0.9, 1.0]),
    left=st.sampled_from([0.3, 1.0]),
)
@settings(max_examples=40, deadline=None)
def test_an_opacity_minimizes_residual_and_mask_together(
    curvature: float, best: float, inside: float, left: float
) -> None:
    limits = OpacitySettings(mask_weight=0.03)
    outside = left * (1 - inside)
    grid = torch.linspace(0, 1, 4001, dtype=torch.float64)[1:-1]
    cost = curvature * grid**2 - 2 * curvature * best * grid
    cost -= 0.03 * (inside * grid.log() + outside * (1 - grid).log())
    q, p, m, o = torch.tensor([curvature, curvature * best, inside, outside], dtype=torch.float64)[:, None]
    found = solve_alpha(q, p, m, o, limits)
    place = float(found.clamp(1e-9, 1 - 1e-9))
    here = curvature * place**2 - 2 * curvature * best * place
    here -= 0.03 * (inside * np.log(place) + outside * np.log(1 - place))
    assert here <= float(cost.min()) + 1e-3


def test_a_picture_lies_where_its_box_says() -> None:
    picture = TexturePicture.place(0, 4, 8, Box(-1.0, -0.5, 1.0, 0.5))
    assert picture.scale == (4.0, 4.0)
    first_texel = (-1.0 + 0.125, -0.5 + 0.125)  # the center of the first one
    assert [u * s + o for u, s, o in zip(first_texel, picture.scale, picture.origin, strict=True)] == [0, 0]
