"""The parts of the planar model and what they add up to: the same answer by every way of asking."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from neural_fields.core import coords
from neural_fields.core.box import Box
from neural_fields.core.errors import UserError
from neural_fields.data.dataset import ClipDataset
from neural_fields.data.flow.compute import FlowField
from neural_fields.data.masks.layer_masks import LayerMasks
from neural_fields.data.synthetic.planar_clips import make_demo_clip
from neural_fields.nn.hash_grid import compute_release_weights
from neural_fields.nn.mlp import MLP
from neural_fields.planar.appearance.mask_opacity import MaskOpacity
from neural_fields.planar.appearance.mlp_opacity import MlpOpacity
from neural_fields.planar.appearance.mlp_texture import MlpTexture
from neural_fields.planar.appearance.opacity import compute_layer_weights
from neural_fields.planar.build import build_model
from neural_fields.planar.composition.canonical_extent import measure_shape
from neural_fields.planar.composition.model import PlanarModel
from neural_fields.planar.composition.samples import composite_layers
from neural_fields.planar.config import PlanarConfig, load_planar_config, scale_steps
from neural_fields.planar.init.warm_up import WarmUpOptions
from neural_fields.planar.mappings.frame_points import evaluate_in_parts
from neural_fields.planar.mappings.hash_deformation import HashMapping, HashMappingConfig
from neural_fields.planar.mappings.mapping import Mapping
from neural_fields.planar.mappings.mlp import MlpMapping, MlpMappingConfig, warm_up
from neural_fields.training.initialize import initialize_model, plan_model
from tests.support.typed import as_one

pytestmark = pytest.mark.slow

TINY: dict[str, dict[str, object]] = {
    "atlas": {"mapping.cell": 6.0},
    "lna": {
        "mapping.layers": [3, 3], "mapping.width": 16, "mapping.warm_up": 2, "texture.layers": 3, "texture.width": 16,
        "texture.octaves": 3, "texture.skips": [1], "opacity.layers": 3, "opacity.width": 16, "opacity.octaves": 2,
        "training.pixels": 200,
    },
    "codef": {
        "mapping.levels": 4, "mapping.log2_table": 8, "mapping.width": 8, "mapping.hidden_layers": 2,
        "mapping.release": [2, 6], "texture.levels": 4, "texture.log2_table": 9, "texture.width": 16,
    },
}  # fmt: skip


def tiny(preset: str) -> PlanarConfig:
    return load_planar_config(preset, TINY[preset])


def small_clip(width: int = 32, height: int = 18, frames: int = 4, fronts: int = 1) -> ClipDataset:
    """The turtle clip with its true flow; more than one front layer is the turtle cut into upright strips."""
    truth = make_demo_clip(frames, width, height)
    strips = np.arange(width) * fronts // width
    masks = np.concatenate([truth.masks & (strips == number) for number in range(fronts)] or [truth.masks[:0]])
    names = tuple(f"foreground{number + 1}" if fronts > 1 else "foreground" for number in range(fronts))
    flow = FlowField(truth.forward_flow, truth.backward_flow, truth.forward_visible, truth.backward_visible)
    return ClipDataset(truth.frames, LayerMasks(names, masks), flow)


def started(preset: str, clip: ClipDataset, seed: int = 0) -> PlanarModel:
    """A model of the preset's tiny variant with its start, and its parts moved off it where they are all alike."""
    config = tiny(preset)
    start = plan_model(config, clip)
    model = build_model(config, start.shape, seed)
    initialize_model(model, start, clip, WarmUpOptions(seed))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
    model.begin_step(4)  # half of the hash levels are released
    return model.eval()


@pytest.mark.parametrize(("fitted", "size"), [((32, 18), (32, 18)), ((32, 18), (48, 27)), ((18, 32), (27, 48))])
@pytest.mark.parametrize("preset", TINY)
def test_whole_frames_agree_with_their_points_at_any_size(
    preset: str, fitted: tuple[int, int], size: tuple[int, int]
) -> None:
    model = started(preset, small_clip(*fitted))
    xy = coords.frame_xy(*size).view(-1, 2)
    for t in (0, 3):
        time = float(coords.normalize_time(float(t), 4))
        points = torch.cat([xy, torch.full((len(xy), 1), time)], 1)
        with torch.no_grad():
            whole, single = model.sample_frame(t, size), model(points)
        assert whole.uv is not None and single.uv is not None
        assert torch.allclose(whole.uv, single.uv, atol=2e-5)
        assert torch.allclose(whole.weight, single.weight, atol=1e-4)
        assert torch.allclose(composite_layers(whole), composite_layers(single), atol=1e-3)
        assert torch.allclose(whole.weight.sum(1), torch.ones(len(xy)), atol=1e-5)


@pytest.mark.parametrize("fronts", [0, 3])
@pytest.mark.parametrize("preset", TINY)
def test_any_number_of_layers_fits(preset: str, fronts: int) -> None:
    model = started(preset, small_clip(fronts=fronts))
    with torch.no_grad():
        samples = model.sample_frame(1, (16, 9))
    assert samples.color.shape == (144, fronts + 1, 3)
    assert torch.allclose(samples.weight.sum(1), torch.ones(144), atol=1e-5)


def test_a_network_is_evaluated_alike_whole_and_in_parts() -> None:
    points = torch.rand(250, 3, generator=torch.Generator().manual_seed(0))
    sizes = []

    def network(part: torch.Tensor) -> torch.Tensor:
        sizes.append(len(part))
        return part.sum(dim=1, keepdim=True)

    with torch.no_grad():
        assert torch.equal(evaluate_in_parts(network, points, max_points=100), network(points))
    assert sizes == [100, 100, 50, 250]
    assert torch.equal(evaluate_in_parts(network, points, max_points=100), network(points))
    assert sizes[4:] == [250, 250]  # a graph needs all of them at once


def test_the_same_seed_builds_and_fills_the_same_model() -> None:
    clip = small_clip()
    for preset in ("lna", "codef"):
        first, again, other = (started(preset, clip, seed).state_dict() for seed in (1, 1, 2))
        assert all(torch.equal(first[name], again[name]) for name in first)
        assert not all(torch.equal(first[name], other[name]) for name in first)


# --- parts of Layered Neural Atlases --------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(48, 27), (27, 48)])
def test_warm_up_teaches_a_scaled_identity_on_both_axes_alike(size: tuple[int, int]) -> None:
    model = build_model(
        replace(tiny("lna"), mapping=MlpMappingConfig(layers=(4, 3), width=32)),
        plan_model(tiny("lna"), small_clip()).shape,
    )
    mapping = as_one(MlpMapping, model.mappings[0])
    mapping.settings = replace(mapping.settings, warm_up=100, learning_rate=3e-3)
    assert warm_up(mapping, 3, size, WarmUpOptions()) < 0.05
    xy = coords.frame_xy(*size).view(-1, 2)
    with torch.no_grad():
        uv = mapping(torch.cat([xy, torch.zeros(len(xy), 1)], 1))
    assert float((uv - 0.8 * xy).abs().mean()) < 0.05


def test_a_warm_up_ends_when_it_is_told_to() -> None:
    model = build_model(tiny("lna"), plan_model(tiny("lna"), small_clip()).shape)
    mapping = as_one(MlpMapping, model.mappings[0])
    before = [parameter.clone() for parameter in mapping.parameters()]
    warm_up(mapping, 3, (32, 18), WarmUpOptions(stop=lambda: True))
    warm_up(mapping, 3, (32, 18), WarmUpOptions(seconds=-1.0))
    assert all(torch.equal(old, new) for old, new in zip(before, mapping.parameters(), strict=True))
    seen: list[tuple[int, int]] = []
    warm_up(mapping, 3, (32, 18), WarmUpOptions(report=lambda progress: seen.append((progress.done, progress.total))))
    assert seen == [(0, 6)]


def test_layers_of_a_shared_texture_have_a_square_each_and_one_network() -> None:
    model = started("lna", small_clip())
    front, back = model.textures
    assert isinstance(front, MlpTexture) and isinstance(back, MlpTexture)
    assert (front.center, front.half_side) == ((0.5, 0.5), 0.5)  # 0.5 uv + 0.5
    assert (back.center, back.half_side) == ((-0.5, -0.5), 0.5)  # 0.5 uv - 0.5
    assert {name.split(".")[1] for name in model.state_dict() if name.startswith("textures")} == {"0"}
    squares = [
        texture.center
        for texture in build_model(tiny("lna"), plan_model(tiny("lna"), small_clip(fronts=5)).shape).textures
    ]
    assert len(set(squares)) == 6
    uv = torch.rand(5, 2) * 2 - 1
    with torch.no_grad():
        front_network = front.network(uv * 0.5 + 0.5)
        assert torch.allclose(front(uv), (front_network + 1) / 2)
        assert torch.allclose(back(uv), (front.network(uv * 0.5 - 0.5) + 1) / 2)


def test_alphas_of_a_network_stay_away_from_nothing_and_everything() -> None:
    model = started("lna", small_clip())
    with torch.no_grad():
        for parameter in model.opacity.parameters():
            parameter.mul_(1000)
        alphas = model.opacity(torch.rand(500, 3) * 2 - 1)
    assert float(alphas.min()) == pytest.approx(0.001, abs=1e-5)
    assert float(alphas.max()) == pytest.approx(0.991, abs=1e-5)


def test_the_exported_box_is_what_the_frames_show() -> None:
    model = started("lna", small_clip())

    class Shrunk(Mapping):
        def forward(self, xyt: torch.Tensor) -> torch.Tensor:
            return 0.5 * xyt[:, :2] + torch.tensor([0.1, 0.2]) * xyt[:, 2:]

        def param_groups(self) -> list[dict]:
            return []

    as_one(torch.nn.ModuleList, model.mappings)[1] = Shrunk()
    with torch.no_grad():
        for parameter in model.opacity.parameters():
            parameter.zero_()
        network = as_one(torch.nn.Sequential, as_one(MlpOpacity, model.opacity).network)
        last = as_one(torch.nn.Linear, as_one(MLP, network[1]).layers[-1])
        last.bias.fill_(-5.0)  # the front layer is nowhere
    front, back = measure_shape(model).layers
    assert front == model.shape.layers[0]  # never seen: as it was
    drift = 0.75  # times of the first and the last of four frames
    expected = (-0.5 - 0.1 * drift, -0.5 * 9 / 16 - 0.2 * drift, 0.5 + 0.1 * drift, 0.5 * 9 / 16 + 0.2 * drift)
    assert back.box.as_tuple() == pytest.approx(expected, abs=0.02)
    assert max(back.width, back.height) == 1000
    assert back.width / back.height == pytest.approx(back.box.width / back.box.height, rel=0.01)
    codef = started("codef", small_clip())
    assert measure_shape(codef) == codef.shape


# --- parts of CoDeF -------------------------------------------------------------------------------------------------


def test_levels_are_released_by_step_and_the_release_travels_with_the_weights() -> None:
    clip = small_clip()
    model = started("codef", clip)
    mapping = as_one(HashMapping, model.mappings[0])
    points = torch.rand(50, 3) * 2 - 1
    shown = []
    for step in (0, 2, 4, 6, 9):
        model.begin_step(step)
        shown.append(float(mapping.released))
    assert shown == [0, 0, 0.5, 1, 1]
    model.begin_step(4)
    other = build_model(tiny("codef"), model.shape, seed=5)
    other.load_state_dict(model.state_dict())
    with torch.no_grad():
        assert torch.equal(other.mappings[0](points), mapping(points))
        mapping.begin_step(0)
        shut = mapping(points)
        mapping.grid.params.zero_()
        mapping.begin_step(9)
        assert torch.allclose(mapping(points), shut, atol=1e-6)  # shut levels are levels of zeros
    assert compute_release_weights(4, 0.5).tolist() == pytest.approx([1, 1, 0, 0])


@pytest.mark.parametrize("size", [(32, 18), (18, 32)])
def test_displacements_are_shares_of_the_frame_and_the_canonical_reaches_a_margin_beyond(size: tuple[int, int]) -> None:
    model = build_model(tiny("codef"), plan_model(tiny("codef"), small_clip(*size)).shape)
    mapping = as_one(HashMapping, model.mappings[0])
    with torch.no_grad():
        for parameter in mapping.network.parameters():
            parameter.zero_()
        as_one(torch.nn.Linear, mapping.network.layers[-1]).bias.copy_(torch.tensor([0.5, -0.25]))
        xyt = torch.rand(20, 3) * 2 - 1
        moved = mapping(xyt) - xyt[:, :2]
    frame = coords.frame_box(*size)
    assert torch.allclose(moved, torch.tensor([0.1 * frame.width, -0.05 * frame.height]).expand(20, 2), atol=1e-6)
    reach = tuple(1.6 * side for side in frame.as_tuple())
    assert model.canonical_box("foreground").as_tuple() == pytest.approx(reach)
    assert (model.shape.layers[0].width, model.shape.layers[0].height) == (round(size[0] * 1.6), round(size[1] * 1.6))


def test_hard_masks_are_shown_as_they_are_at_any_size() -> None:
    clip = small_clip()
    model = build_model(tiny("codef"), plan_model(tiny("codef"), clip).shape)
    initialize_model(model, plan_model(tiny("codef"), clip), clip)
    assert isinstance(model.opacity, MaskOpacity)
    assert model.opacity.masks.dtype == torch.bool
    for t in range(4):
        same = model.opacity.sample_frames(torch.tensor([t]), 4, (32, 18))[0, ..., 0].numpy()
        assert np.array_equal(same, clip.masks.masks[0, t])
        double = model.opacity.sample_frames(torch.tensor([t]), 4, (64, 36))[0, ..., 0].numpy()
        assert np.array_equal(double, clip.masks.masks[0, t].repeat(2, 0).repeat(2, 1))


# --- weights, shapes, contradictions --------------------------------------------------------------------------------


def test_a_layer_shows_through_what_those_in_front_leave() -> None:
    weights = compute_layer_weights(torch.tensor([[0.25, 0.5], [1.0, 0.7], [0.0, 0.0]]))
    assert weights.tolist() == [[0.25, 0.375, 0.375], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]


def test_the_start_box_of_a_network_is_all_that_it_can_reach() -> None:
    model = started("lna", small_clip())
    assert model.canonical_box("background") == Box(-1.0, -1.0, 1.0, 1.0)
    with torch.no_grad():
        uv = model.mappings[1](torch.randn(200, 3) * 50)
    assert float(uv.abs().max()) <= 1


def test_schedules_fit_into_fewer_steps_and_never_turn_endless() -> None:
    for total, expected in ((100_000, (10_000, 5000)), (20_000, (5000, 5000)), (1, (1, 1))):  # 0 would mean: to the end
        lna = scale_steps(load_planar_config("lna"), total).terms
        assert (lna.mask_until, lna.global_rigidity_until) == expected
    codef = scale_steps(load_planar_config("codef"), 1000).mapping
    assert isinstance(codef, HashMappingConfig) and codef.release == (400, 800)


@pytest.mark.parametrize(
    ("preset", "overrides", "words"),
    [
        ("atlas", {"terms.flow": 1.0}, "terms.flow needs mapping kind spline, mlp, hash or homography_mlp"),
        ("atlas", {"terms.rigidity": 1.0}, "terms.rigidity needs mapping kind spline, mlp, hash or homography_mlp"),
        ("atlas", {"terms.alpha_flow": 1.0}, "terms.alpha_flow needs opacity kind mlp, mask, hash or window"),
        ("atlas", {"training.batch": "pixels"}, "needs training.batch: frames"),
        ("atlas", {"texture.kind": "mlp"}, "texture kind mlp needs mapping kind mlp"),
        ("lna", {"terms.sobel": 1.0}, "terms.sobel needs training.batch: frames"),
        ("lna", {"terms.residual_smoothness": 1.0}, "needs mapping kind grid"),
        ("lna", {"terms.residual_anchor": 1.0}, "terms.residual_anchor needs mapping kind grid"),
        ("lna", {"terms.texture_smoothness": 1.0}, "terms.texture_smoothness needs texture kind image"),
        ("lna", {"mapping.layers": [4]}, "layers takes two numbers"),
        ("lna", {"texture.skips": [8]}, "skips must lie between 1 and 7"),
        ("codef", {"mapping.release": [8, 2]}, "release takes two steps"),
        ("codef", {"texture.kind": "mlp"}, "texture kind mlp needs mapping kind mlp"),
    ],
)
def test_parts_and_terms_that_do_not_go_together_are_named(
    preset: str, overrides: dict[str, object], words: str
) -> None:
    with pytest.raises(UserError) as caught:
        load_planar_config(preset, overrides)
    assert words in str(caught.value)
