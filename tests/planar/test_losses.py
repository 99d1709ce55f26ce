"""The loss terms: what each is worth where it can be computed by hand, and that no axis is treated unlike the other."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import replace
from types import ModuleType
from typing import get_type_hints

import jaxtyping
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from neural_fields.core import coords
from neural_fields.core.box import Box
from neural_fields.data.dataset import Batch, ClipDataset
from neural_fields.data.flow.compute import FlowField
from neural_fields.data.masks.layer_masks import LayerMasks
from neural_fields.data.synthetic.planar_clips import make_translation_clip
from neural_fields.planar.appearance.opacity import Opacity
from neural_fields.planar.appearance.texture import Texture
from neural_fields.planar.composition.model import PlanarModel
from neural_fields.planar.init.model_shape import LayerShape, ModelShape
from neural_fields.planar.losses import (
    codef,
    deformable_sprites,
    hashing_nvd,
    layered_neural_atlases,
    narcan,
    objective,
    tables,
)
from neural_fields.planar.losses.layered_neural_atlases import measure_departure_from_rotation
from neural_fields.planar.losses.objective import compute_losses, sample_batch
from neural_fields.planar.losses.table import LossWeights
from neural_fields.planar.mappings.mapping import Mapping

ASPECTS = [(32, 18), (24, 24), (18, 32)]
Function = Callable[[Tensor], Tensor]


class Affine(Mapping):
    """uv = matrix @ (x, y) + drift * t."""

    def __init__(
        self, matrix: list[list[float]], drift: tuple[float, float] = (0.0, 0.0), uv_scale: float = 1.0
    ) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.tensor(matrix))
        self.drift = nn.Parameter(torch.tensor(drift))
        self.uv_scale = uv_scale

    def forward(self, xyt: Tensor) -> Tensor:
        return xyt[:, :2] @ self.matrix.T + self.drift * xyt[:, 2:]

    def param_groups(self) -> list[dict]:
        return []


class Painted(Texture):
    """The color is a function of uv."""

    def __init__(self, function: Function) -> None:
        super().__init__()
        self.function = function

    def forward(self, uv: Tensor) -> Tensor:
        return self.function(uv.reshape(-1, 2)).view(*uv.shape[:-1], 3)

    def param_groups(self) -> list[dict]:
        return []


class Shaped(Opacity):
    """The alpha of the one front layer is a function of xyt."""

    def __init__(self, function: Function | None) -> None:
        super().__init__()
        self.function = function

    def forward(self, xyt: Tensor) -> Tensor:
        return xyt.new_ones(len(xyt), 0) if self.function is None else self.function(xyt)[:, None]

    def param_groups(self) -> list[dict]:
        return []


def flat(*rgb: float) -> Painted:
    return Painted(lambda uv: uv.new_tensor(rgb).expand(len(uv), 3))


def constant(value: float) -> Function:
    return lambda xyt: xyt.new_full((len(xyt),), value)


def make_clip(
    frames: np.ndarray, masks: np.ndarray | None = None, velocity: tuple[float, float] | None = None
) -> ClipDataset:
    """A clip of these frames; every pixel moves by `velocity` pixels a frame."""
    count, height, width, _ = frames.shape
    names = () if masks is None else ("foreground",)
    layers = LayerMasks(names, np.zeros((0, count, height, width), bool) if masks is None else masks)
    if velocity is None:
        return ClipDataset(frames, layers, None)
    there = np.broadcast_to(np.array(velocity, np.float32), (count - 1, height, width, 2))
    ok = np.ones((count - 1, height, width), bool)
    return ClipDataset(frames, layers, FlowField(there, -there, ok, ok))


def model_of(
    clip: ClipDataset,
    weights: LossWeights,
    mappings: list[Mapping],
    textures: list[Texture],
    alpha: Function | None = None,
) -> PlanarModel:
    layers = tuple(LayerShape(name, Box(-1.0, -1.0, 1.0, 1.0), 8, 8) for name in clip.layer_names)
    shape = ModelShape(*clip.size, clip.frame_count, layers)
    return PlanarModel(shape, list(mappings), list(textures), [], Shaped(alpha), weights)


def term(model: PlanarModel, batch: Batch, name: str, step: int = 0) -> float:
    return float(compute_losses(model, batch, sample_batch(model, batch), step)[name].detach())


def whole(clip: ClipDataset) -> Batch:
    return Batch(clip, torch.arange(clip.frame_count), None)


def gray(width: int = 12, height: int = 8, count: int = 3, value: int = 51) -> np.ndarray:
    return np.full((count, height, width, 3), value, np.uint8)


IDENTITY = [[1.0, 0.0], [0.0, 1.0]]


# --- one value each, by hand ----------------------------------------------------------------------------------------


def test_color_is_the_mean_square_over_points_and_channels() -> None:
    clip = make_clip(gray(value=51))
    model = model_of(clip, LossWeights(color=2.0), [Affine(IDENTITY)], [flat(0.5, 0.2, 0.2)])
    assert term(model, whole(clip), "color") == pytest.approx(2 * 0.09 / 3, rel=1e-5)


def test_gradient_is_the_squared_slope_that_the_model_lacks() -> None:
    frames = gray(width=9, height=7)
    frames += (np.arange(9, dtype=np.uint8) * 10)[:, None] + (np.arange(7, dtype=np.uint8) * 5)[:, None, None]
    clip = make_clip(frames)
    index = torch.cartesian_prod(torch.arange(3), torch.arange(6), torch.arange(8))  # none on the last row or column
    batch = Batch(clip, index[:, 0].unique(), index)
    model = model_of(clip, LossWeights(gradient=1.0), [Affine(IDENTITY)], [flat(0.3, 0.3, 0.3)])
    assert term(model, batch, "gradient") == pytest.approx((10 / 255) ** 2 + (5 / 255) ** 2, rel=1e-4)
    long = 9 / 2  # the color of the frames as a function of uv: exact slopes leave nothing

    def ramp(uv: Tensor) -> Tensor:
        value = 51 + 10 * (uv[:, 0] * long + 4) + 5 * (uv[:, 1] * long + 3)
        return (value / 255)[:, None].expand(-1, 3)

    exact = model_of(clip, LossWeights(gradient=1.0), [Affine(IDENTITY)], [Painted(ramp)])
    assert term(exact, batch, "gradient") < 1e-10


def test_sobel_of_a_ramp_is_eight_slopes_where_the_layer_is_seen() -> None:
    frames = gray(width=10, height=10, count=1)
    frames += (np.arange(10, dtype=np.uint8) * 10)[:, None]
    clip = make_clip(frames, np.zeros((1, 1, 10, 10), bool))

    def ramp(uv: Tensor) -> Tensor:
        return ((51 + 10 * (uv[:, 0] * 5 + 4.5)) / 255)[:, None].expand(-1, 3)

    def inner(xyt: Tensor) -> Tensor:
        return (xyt[:, :2].abs().amax(1) < 0.6).float()  # the 6 x 6 pixels in the middle

    textures: list[Texture] = [flat(0.5, 0.5, 0.5), Painted(ramp)]
    model = model_of(clip, LossWeights(sobel=1.0), [Affine(IDENTITY), Affine(IDENTITY)], textures, inner)
    # x and y are averaged, and the layer fills 36 of 100 pixels.
    assert term(model, whole(clip), "sobel") == pytest.approx(0.36 * 8 * 10 / 255 / 2, rel=1e-4)


def test_mask_is_the_cross_entropy_of_the_opacity() -> None:
    masks = np.zeros((1, 3, 8, 12), bool)
    masks[:, :, :4] = True
    clip = make_clip(gray(), masks)
    model = model_of(clip, LossWeights(mask=1.0), [Affine(IDENTITY)] * 2, [flat(0, 0, 0)] * 2, constant(0.8))
    expected = -(math.log(0.8) + math.log(0.2)) / 2
    assert term(model, whole(clip), "mask") == pytest.approx(expected, rel=1e-4)


def test_sparsity_is_the_squared_color_that_light_passes() -> None:
    clip = make_clip(gray(), np.zeros((1, 3, 8, 12), bool))
    textures: list[Texture] = [flat(0.5, 0.5, 0.5), flat(1, 1, 1)]
    model = model_of(clip, LossWeights(sparsity=1.0), [Affine(IDENTITY)] * 2, textures, constant(0.25))
    assert term(model, whole(clip), "sparsity") == pytest.approx((0.5 * 0.75) ** 2, rel=1e-5)


def test_background_color_looks_only_where_a_layer_is_hidden() -> None:
    clip = make_clip(gray(value=51), np.zeros((1, 3, 8, 12), bool))
    textures: list[Texture] = [flat(0.6, 0.6, 0.6), flat(0.4, 0.4, 0.4)]

    def left_half(xyt: Tensor) -> Tensor:
        return (xyt[:, 0] < 0).float()

    model = model_of(clip, LossWeights(background_color=1.0), [Affine(IDENTITY)] * 2, textures, left_half)
    assert term(model, whole(clip), "background_color") == pytest.approx(0.5 * 0.4**2 + 0.5 * 0.2**2, rel=1e-4)


@pytest.mark.parametrize("angle", [0.0, 0.7, 2.5])
def test_rigidity_is_two_root_two_where_the_mapping_only_turns(angle: float) -> None:
    scale = 0.8
    turn = [[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]
    clip = make_clip(gray())
    mapping = Affine([[scale * x for x in row] for row in turn], uv_scale=scale)
    weights = LossWeights(rigidity=1.0, global_rigidity=(0.0, 3.0))
    model = model_of(clip, weights, [mapping], [flat(0, 0, 0)])
    # The offset of the inverse, as the paper's code has it, takes 0.1 % off its half of the value.
    assert term(model, whole(clip), "rigidity") == pytest.approx(2 * math.sqrt(2), rel=1e-3)
    assert term(model, whole(clip), "global_rigidity") == pytest.approx(6 * math.sqrt(2), rel=1e-3)


def test_rigidity_of_a_stretch_adds_both_norms() -> None:
    jacobian = torch.tensor([[[2.0, 0.0], [0.0, 1.0]]])
    expected = math.hypot(4, 1) + math.hypot(0.25, 1)
    assert float(measure_departure_from_rotation(jacobian)) == pytest.approx(expected, rel=1e-3)


def test_global_rigidity_weighs_front_layers_and_background_apart() -> None:
    clip = make_clip(gray(), np.zeros((1, 3, 8, 12), bool))
    mappings: list[Mapping] = [Affine(IDENTITY), Affine([[2.0, 0.0], [0.0, 1.0]])]
    model = model_of(clip, LossWeights(global_rigidity=(5.0, 50.0)), mappings, [flat(0, 0, 0)] * 2, constant(0.5))
    stretched = math.hypot(4, 1) + math.hypot(0.25, 1)
    expected = 5 * 2 * math.sqrt(2) + 50 * stretched
    assert term(model, whole(clip), "global_rigidity") == pytest.approx(expected, rel=1e-3)


def test_alpha_flow_is_the_change_of_opacity_along_the_flow() -> None:
    clip = make_clip(gray(width=16, height=10), np.zeros((1, 3, 10, 16), bool), (2.0, 0.0))

    def slope(xyt: Tensor) -> Tensor:
        return 0.5 + 0.2 * xyt[:, 0]

    model = model_of(clip, LossWeights(alpha_flow=1.0), [Affine(IDENTITY)] * 2, [flat(0, 0, 0)] * 2, slope)
    assert term(model, whole(clip), "alpha_flow") == pytest.approx(0.2 * 2 * 2 / 16, rel=1e-4)


# --- flow at every aspect -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", ASPECTS)
def test_flow_terms_vanish_for_the_true_mapping_of_a_translation(size: tuple[int, int]) -> None:
    """Neither axis is scaled by the other's length: the bug of two of the papers' programs."""
    truth = make_translation_clip(4, *size, velocity=(2.0, -1.0))
    flow = FlowField(truth.forward_flow, truth.backward_flow, truth.forward_visible, truth.backward_visible)
    clip = ClipDataset(truth.frames, LayerMasks((), np.zeros((0, *truth.frames.shape[:3]), bool)), flow)
    one_frame = 2 / 4  # in units of the time coordinate
    drift = tuple(-v * 2 / max(size) / one_frame for v in (2.0, -1.0))
    weights = LossWeights(flow=1.0, flow_l1=1.0)
    model = model_of(clip, weights, [Affine(IDENTITY, (drift[0], drift[1]))], [flat(0, 0, 0)])
    assert term(model, whole(clip), "flow") < 1e-4
    assert term(model, whole(clip), "flow_l1") < 1e-6
    still = model_of(clip, weights, [Affine(IDENTITY)], [flat(0, 0, 0)])
    assert term(still, whole(clip), "flow") == pytest.approx(math.sqrt(5), rel=1e-3)  # pixels
    assert term(still, whole(clip), "flow_l1") == pytest.approx((2 / size[0] + 1 / size[1]) / 2, rel=1e-3)


def test_flow_weighs_each_layer_by_what_is_seen_of_it() -> None:
    clip = make_clip(gray(), np.zeros((1, 3, 8, 12), bool), (3.0, 0.0))
    drift = -3.0 * 2 / 12 / (2 / 3)
    mappings: list[Mapping] = [Affine(IDENTITY), Affine(IDENTITY, (drift, 0.0))]  # the background follows the flow
    model = model_of(clip, LossWeights(flow=1.0), mappings, [flat(0, 0, 0)] * 2, constant(0.25))
    assert term(model, whole(clip), "flow") == pytest.approx(3 * 0.25, rel=1e-4)


def test_flow_of_another_size_than_the_frames_is_scaled_to_them() -> None:
    half = np.broadcast_to(np.array([1.0, 0.5], np.float32), (2, 4, 6, 2))
    ok = np.ones((2, 4, 6), bool)
    clip = make_clip(gray(width=12, height=8))
    clip = ClipDataset(clip.frames, clip.masks, FlowField(half, -half, ok, ok))
    model = model_of(clip, LossWeights(flow=1.0), [Affine(IDENTITY)], [flat(0, 0, 0)])
    assert term(model, whole(clip), "flow") == pytest.approx(math.hypot(2, 1), rel=1e-4)


def test_flow_that_is_not_trusted_does_not_count() -> None:
    clip = make_clip(gray(), velocity=(3.0, 0.0))
    assert clip.flow is not None
    none = np.zeros_like(clip.flow.forward_ok)
    clip = ClipDataset(clip.frames, clip.masks, FlowField(clip.flow.forward, clip.flow.backward, none, none))
    model = model_of(clip, LossWeights(flow=1.0, flow_l1=1.0), [Affine(IDENTITY)], [flat(0, 0, 0)])
    assert term(model, whole(clip), "flow") == 0
    assert term(model, whole(clip), "flow_l1") == 0


# --- both axes alike, schedules, gradients --------------------------------------------------------------------------


def wavy(uv: Tensor) -> Tensor:
    u, v = uv[:, :1], uv[:, 1:]
    return 0.5 + 0.3 * torch.cat([torch.sin(3 * u + v), torch.cos(2 * v), torch.sin(u - 4 * v)], dim=1)


def swap(function: Function) -> Function:
    return lambda points: function(torch.cat([points[:, [1, 0]], points[:, 2:]], dim=1))


def tilted(xyt: Tensor) -> Tensor:
    return torch.sigmoid(2 * xyt[:, 0] - xyt[:, 1] + 0.3 * xyt[:, 2])


def sine_clip(width: int, height: int) -> ClipDataset:
    xy = coords.frame_xy(width, height).reshape(-1, 2)
    frames = [wavy(xy + 0.1 * t).mul(255).view(height, width, 3).to(torch.uint8).numpy() for t in range(3)]
    masks = (tilted(torch.cat([xy, xy[:, :1] * 0], 1)) > 0.5).view(1, 1, height, width).expand(1, 3, -1, -1).numpy()
    return make_clip(np.stack(frames), masks, (1.5, -0.5))


def transposed(clip: ClipDataset) -> ClipDataset:
    flow = clip.flow
    assert flow is not None
    vectors = [np.swapaxes(field, 1, 2)[..., ::-1].copy() for field in (flow.forward, flow.backward)]
    ok = [np.swapaxes(field, 1, 2).copy() for field in (flow.forward_ok, flow.backward_ok)]
    masks = LayerMasks(clip.masks.names, np.swapaxes(clip.masks.masks, 2, 3).copy())
    return ClipDataset(np.swapaxes(clip.frames, 1, 2).copy(), masks, FlowField(*vectors, *ok))


EVERYTHING = LossWeights(
    color=1.0, gradient=1.0, sobel=1.0, mask=1.0, sparsity=1.0, rigidity=1.0, global_rigidity=(1.0, 1.0), flow=1.0,
    flow_l1=1.0, alpha_flow=1.0, background_color=1.0,
)  # fmt: skip


def wavy_model(clip: ClipDataset, swapped: bool) -> PlanarModel:
    matrices = [[[1.1, 0.2], [-0.1, 0.9]], [[0.8, 0.0], [0.3, 1.0]]]
    drifts = [(0.3, -0.2), (0.1, 0.05)]
    if swapped:
        matrices = [[row[::-1] for row in matrix[::-1]] for matrix in matrices]
        drifts = [(y, x) for x, y in drifts]
    mappings: list[Mapping] = [Affine(matrix, drift) for matrix, drift in zip(matrices, drifts, strict=True)]
    paint, alpha = (swap(wavy), swap(tilted)) if swapped else (wavy, tilted)
    return model_of(clip, EVERYTHING, mappings, [Painted(paint), Painted(lambda uv: 0.9 * paint(uv))], alpha)


@pytest.mark.parametrize("size", ASPECTS)
def test_transposing_the_clip_changes_no_term(size: tuple[int, int]) -> None:
    """Both axes are measured by the same length: a term that divides by the width fails here."""
    clip = sine_clip(*size)
    other = transposed(clip)
    index = torch.stack([torch.arange(60) % 3, torch.arange(60) * 7 % size[1], torch.arange(60) * 5 % size[0]], 1)
    batches = [(whole(clip), whole(other))]
    batches.append((Batch(clip, torch.arange(3), index), Batch(other, torch.arange(3), index[:, [0, 2, 1]])))
    for upright, turned in batches:
        weights = EVERYTHING if upright.pixel_index is None else replace(EVERYTHING, sobel=0.0)
        found = []
        for batch, swapped in ((upright, False), (turned, True)):
            model = wavy_model(batch.clip, swapped)
            model.weights = weights
            losses = compute_losses(model, batch, sample_batch(model, batch), 0)
            found.append({name: float(value.detach()) for name, value in losses.items()})
        assert found[0] == pytest.approx(found[1], rel=2e-4)
        assert all(value > 1e-4 for value in found[0].values()), found[0]


def test_terms_end_when_their_schedule_says_so() -> None:
    clip = sine_clip(18, 12)
    model = wavy_model(clip, False)
    model.weights = LossWeights(
        mask=1.0, mask_until=10, global_rigidity=(5.0, 50.0), global_rigidity_until=4, color=1.0
    )
    batch = whole(clip)
    active = {step: set(compute_losses(model, batch, sample_batch(model, batch), step)) for step in (3, 4, 9, 10)}
    assert active == {
        3: {"color", "mask", "global_rigidity"},
        4: {"color", "mask"},
        9: {"color", "mask"},
        10: {"color"},
    }


def test_every_term_that_looks_at_a_mapping_pulls_on_it() -> None:
    clip = sine_clip(18, 12)
    model = wavy_model(clip, False)
    batch = whole(clip)
    found = compute_losses(model, batch, sample_batch(model, batch), 0)
    parameters = [p for mapping in model.mappings for p in mapping.parameters()]
    for name in ("color", "gradient", "sobel", "sparsity", "rigidity", "global_rigidity", "flow", "flow_l1"):
        gradients = torch.autograd.grad(found[name], parameters, retain_graph=True, allow_unused=True)
        assert sum(float(g.abs().sum()) for g in gradients if g is not None) > 0, name


def test_one_layer_has_no_terms_of_front_layers() -> None:
    clip = make_clip(gray(), velocity=(1.0, 0.0))
    model = model_of(clip, EVERYTHING, [Affine(IDENTITY)], [flat(0.5, 0.5, 0.5)])
    found = compute_losses(model, whole(clip), sample_batch(model, whole(clip)), 0)
    assert not {"mask", "sparsity", "alpha_flow", "background_color"} & set(found)
    assert {"color", "flow", "rigidity", "sobel"} <= set(found)


@pytest.mark.parametrize(
    "module",
    [
        layered_neural_atlases,
        codef,
        narcan,
        tables,
        hashing_nvd,
        deformable_sprites,
        objective,
    ],
)
def test_losses_refuse_arguments_of_other_types(module: ModuleType) -> None:
    """A hint that cannot be resolved is not checked, in silence: names in hints are imported for real."""
    found = 0
    for name, function in vars(module).items():
        if inspect.isfunction(function) and function.__module__ == module.__name__:
            get_type_hints(function)
            if not name.startswith("_"):
                needed = [p for p in inspect.signature(function).parameters.values() if p.default is p.empty]
                with pytest.raises(jaxtyping.TypeCheckError):
                    function(*[object()] * len(needed))
                found += 1
    assert found


def test_a_number_is_no_sample() -> None:
    with pytest.raises(jaxtyping.TypeCheckError):
        layered_neural_atlases.sparsity_loss(123)  # type: ignore[arg-type]
