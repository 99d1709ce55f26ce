"""The preset `hashing_nvd`: light that multiplies, opacities that decide, terms as the code of its paper has them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar, cast

import cv2
import numpy as np
import pytest
import torch
from jaxtyping import Float
from torch import Tensor

from neural_fields.atlas.canonical import Overlay
from neural_fields.atlas.uv_maps import gain_size
from neural_fields.core import coords
from neural_fields.core.errors import UserError
from neural_fields.data.dataset import ClipDataset
from neural_fields.data.flow.compute import FlowField
from neural_fields.data.masks.layer_masks import LayerMasks
from neural_fields.data.synthetic.planar_clips import SyntheticLighting, make_demo_clip, make_translation_clip
from neural_fields.planar.appearance.bounded_hash_texture import BoundedHashTexture, BoundedHashTextureConfig
from neural_fields.planar.appearance.hash_gain import HashGain, HashGainConfig
from neural_fields.planar.appearance.hash_network import HashNetwork
from neural_fields.planar.appearance.hash_opacity import HashOpacity, HashOpacityConfig
from neural_fields.planar.build import build_model
from neural_fields.planar.composition.model import PlanarModel
from neural_fields.planar.composition.samples import LayerSamples, composite_layers
from neural_fields.planar.config import PlanarConfig, load_planar_config
from neural_fields.planar.losses import hashing_nvd
from neural_fields.planar.losses.objective import compute_losses, sample_batch
from neural_fields.planar.mappings.mapping import Mapping
from neural_fields.planar.mappings.mlp import MlpMapping, MlpMappingConfig
from neural_fields.rendering.overlay_pass import OverlayPass
from neural_fields.runs.run import Run
from neural_fields.training.bake import bake_maps
from neural_fields.training.export_canonical import make_canonical_images
from neural_fields.training.initialize import initialize_model, plan_model
from neural_fields.training.loop import train_steps
from neural_fields.training.planar_task import PlanarTask, draw_batch
from tests.support.typed import as_all, as_one

pytestmark = pytest.mark.slow

SMALL: dict[str, object] = {
    "mapping.layers": [3, 3], "mapping.width": 16, "mapping.warm_up": 2,
    "texture.levels": 6, "texture.log2_table": 11, "texture.growth": 1.5, "texture.width": 16, "texture.layers": 2,
    "opacity.levels": 4, "opacity.log2_table": 10, "opacity.width": 16,
    "gain.levels": 3, "gain.log2_table": 9, "gain.base_resolution": 4, "gain.width": 16, "gain.layers": 2,
    "training.pixels": 400,
}  # fmt: skip


def small(**changes: object) -> PlanarConfig:
    return load_planar_config(
        "hashing_nvd", {**SMALL, **{key.replace("__", "."): value for key, value in changes.items()}}
    )


def turtle(frames: int = 4, fronts: int = 1) -> ClipDataset:
    """The turtle with its true flow; more than one front layer is the turtle cut into upright strips."""
    truth = make_demo_clip(frames, 32, 18)
    strips = np.arange(32) * fronts // 32
    masks = np.concatenate([truth.masks & (strips == number) for number in range(fronts)])
    flow = FlowField(truth.forward_flow, truth.backward_flow, truth.forward_visible, truth.backward_visible)
    return ClipDataset(truth.frames, LayerMasks(tuple(f"object{number + 1}" for number in range(fronts)), masks), flow)


def shaken(clip: ClipDataset, config: PlanarConfig, scale: float = 0.1) -> PlanarModel:
    """A model with its start, moved off it so that nothing is flat."""
    begun = plan_model(config, clip)
    model = build_model(config, begun.shape)
    initialize_model(model, begun, clip)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(scale * torch.randn(parameter.shape, generator=generator))
    return model


Module = TypeVar("Module", bound=torch.nn.Module)


def modules(parts: list[Module]) -> Sequence[Module]:
    """A list of modules, typed as the model has it."""
    return cast("Sequence[Module]", torch.nn.ModuleList(parts))


class Drifting(Mapping):
    """uv = uv_scale * (xy - t * velocity): known in closed form."""

    def __init__(self, velocity: tuple[float, float], uv_scale: float = 0.5) -> None:
        super().__init__()
        self.velocity, self.uv_scale = velocity, uv_scale

    def forward(self, xyt: Float[Tensor, "n 3"]) -> Float[Tensor, "n 2"]:
        return self.uv_scale * (xyt[:, :2] - xyt[:, 2:] * xyt.new_tensor(self.velocity))

    def param_groups(self) -> list[dict]:
        return []


# --- parts ----------------------------------------------------------------------------------------------------------


def test_the_networks_are_those_of_the_paper() -> None:
    model = build_model(
        load_planar_config("hashing_nvd"), plan_model(load_planar_config("hashing_nvd"), turtle(fronts=2)).shape
    )
    assert model.layers == ("object1", "object2", "background")
    for network, inputs, outputs in (
        *((texture.colors, 2, 3) for texture in as_all(BoundedHashTexture, model.textures)),
        *((gain.light, 3, 3) for gain in as_all(HashGain, model.gains)),
        (as_one(HashNetwork, as_one(HashOpacity, model.opacity).alphas), 3, 2),
    ):
        assert (network.grid.in_dim, network.grid.out_dim) == (inputs, 32)
        assert [layer.out_features for layer in as_all(torch.nn.Linear, network.network.layers)] == [
            64,
            64,
            64,
            outputs,
        ]
        assert len(network.grid.params) <= 16 * 2 * 2**15
    assert [len(mapping.network.layers) for mapping in as_all(MlpMapping, model.mappings)] == [4, 4, 4]
    assert [mapping.uv_scale for mapping in as_all(MlpMapping, model.mappings)] == [0.9, 0.9, 0.6]
    rates = {group["lr"] for group in model.param_groups()}
    assert rates == {1e-4, 1e-2}


def test_values_stay_in_their_ranges_however_far_the_tables_go() -> None:
    torch.manual_seed(0)
    points = torch.rand(300, 3) * 2 - 1
    parts = (
        (BoundedHashTexture(BoundedHashTextureConfig(levels=3, log2_table=8)), points[:, :2]),
        (HashOpacity(HashOpacityConfig(levels=3, log2_table=8), 2), points),
    )
    with torch.no_grad():
        for part, at in parts:
            for parameter in part.parameters():
                parameter.mul_(100)
                parameter.add_(torch.randn(parameter.shape))
            values = part(at)
            assert float(values.min()) >= 0 and float(values.max()) <= 1
        # The last ones are opacities.
        assert float(values.min()) == pytest.approx(1e-5) and float(values.max()) == pytest.approx(
            1 - 1e-5
        )  # of the opacity
        gain = HashGain(HashGainConfig(levels=3, log2_table=8))
        start = gain(points, points[:, :2])
    assert float(start.min()) > 0 and float((start - math.log(2)).abs().max()) < 0.2  # softplus near 0


def test_light_does_not_move_the_mapping() -> None:
    model, clip = shaken(turtle(), small()), turtle()
    batch = draw_batch(clip, small().training, 0, 0)
    samples = sample_batch(model, batch)
    assert samples.gain is not None
    found = torch.autograd.grad(samples.gain.sum(), list(model.parameters()), allow_unused=True)
    moved = {name.split(".")[0] for (name, _), g in zip(model.named_parameters(), found, strict=True) if g is not None}
    assert moved == {"gains"}


def test_the_background_is_taught_a_scale_of_its_own() -> None:
    clip = turtle()
    config = small(mapping__warm_up=60, mapping__learning_rate=5e-3)
    begun = plan_model(config, clip)
    model = build_model(config, begun.shape)
    initialize_model(model, begun, clip)
    xy = coords.frame_xy(32, 18).view(-1, 2)
    for mapping, scale in zip(model.mappings, (0.9, 0.6), strict=True):
        with torch.no_grad():
            uv = mapping(torch.cat([xy, torch.zeros(len(xy), 1)], 1))
        assert float((uv - scale * xy).abs().mean()) < 0.06
    assert MlpMappingConfig().background_uv_scale == 0  # which is: as all layers


# --- terms ----------------------------------------------------------------------------------------------------------


def test_every_term_has_the_value_of_the_papers_code() -> None:
    """The formulas of losses.py for two layers, written out; those of Layered Neural Atlases have their own tests."""
    clip, config = turtle(), small()
    model = shaken(clip, config)
    batch = draw_batch(clip, config.training, 0, 0)
    samples = sample_batch(model, batch)
    found = {name: float(value.detach()) for name, value in compute_losses(model, batch, samples, 0).items()}
    assert set(found) == {
        "color", "gradient", "sparsity", "mask", "decisive_opacity", "alpha_flow", "flow", "rigidity",
        "global_rigidity", "gain_deviation", "gain_consistency",
    }  # fmt: skip
    assert samples.gain is not None and batch.layer_masks is not None
    texture, alpha, residual = samples.color.detach(), samples.weight.detach(), samples.gain.detach()
    rgb = (texture * residual * alpha[..., None]).sum(1)
    masks = torch.cat([batch.layer_masks, 1 - batch.layer_masks], 1)
    expected = {
        "color": 5 * (rgb - batch.rgb).norm(dim=1).square().mean(),
        "sparsity": (texture[:, 0] * (1 - alpha[:, :1])).norm(dim=1).square().mean(),
        "mask": 2 * torch.nn.functional.binary_cross_entropy(alpha.clamp(1e-5, 1 - 1e-5), masks),
        "decisive_opacity": 0.1 * -torch.log(alpha.amax(dim=1)).mean(),
        "gain_deviation": 0.5 * (residual - 1).square().mean(dim=(0, 2)).sum(),
    }
    for name, value in expected.items():
        assert found[name] == pytest.approx(float(value), rel=2e-3), name


def test_every_term_reaches_parameters_and_those_of_light_only_the_gain() -> None:
    clip, config = turtle(), small(training__pixels=2700)  # 20 patches
    model = shaken(clip, config)
    batch = draw_batch(clip, config.training, 0, 0)
    for name, value in compute_losses(model, batch, sample_batch(model, batch), 0).items():
        gradients = torch.autograd.grad(value, list(model.parameters()), retain_graph=True, allow_unused=True)
        named = zip(model.named_parameters(), gradients, strict=True)
        parts = {part.split(".")[0] for (part, _), g in named if g is not None and float(g.abs().sum()) > 0}
        assert parts, name
        if name in ("gain_deviation", "gain_consistency"):
            assert parts == {"gains"}


def test_a_point_that_belongs_to_one_layer_is_decided() -> None:
    weight = torch.tensor([[1.0, 0.0, 0.0], [0.25, 0.5, 0.25], [0.0, 0.0, 1.0]])
    samples = LayerSamples(torch.zeros(3, 3, 3), weight, None, None)
    assert float(hashing_nvd.decisive_opacity_loss(samples)) == pytest.approx(math.log(2) / 3)


class Light(HashGain):
    """A gain that is a plain function of (u, v) and time."""

    def __init__(self, formula: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__(HashGainConfig(levels=3, log2_table=8))
        self.formula = formula

    def sample_canonical(self, uv: Tensor, time: Tensor) -> Tensor:
        return self.formula(uv, time)[:, None].expand(-1, 3)


def consistency(
    formula: Callable[[Tensor, Tensor], Tensor], velocity: tuple[float, float], pixels: int = 5400
) -> float:
    """The term of one layer that drifts, for a light in closed form."""
    clip = turtle(6)
    model = build_model(small(), plan_model(small(), clip).shape)
    model.mappings = modules([Drifting(velocity)])
    model.gains = modules([Light(formula)])
    return float(
        hashing_nvd.gain_consistency_loss(model, draw_batch(clip, small(training__pixels=pixels).training, 0, 0))
    )


def test_light_out_of_view_keeps_its_pattern_and_is_flat() -> None:
    def slope(uv: Tensor) -> Tensor:
        return 0.3 * uv[:, 0] + 0.2 * uv[:, 1]

    pixel = 0.5 * 2 / 32  # in uv units
    variance = (0.3**2 + 0.2**2) * pixel**2 * 6 / 8  # of a slope over 3 x 3 pixels
    kept = consistency(lambda uv, time: 1 + slope(uv) + time, (0.7, 0.4))  # brighter, with the same pattern
    assert kept == pytest.approx(16 * variance, rel=1e-3)
    turned = consistency(lambda uv, time: 1 + slope(uv) * torch.where(time < 0, -1.0, 1.0), (0.7, 0.4))
    assert 0.3 < turned - 16 * variance < 1.7  # 1 less a correlation of -1 for about half of the pairs
    assert consistency(lambda uv, time: torch.ones(len(uv)), (0.7, 0.4)) == pytest.approx(1, abs=1e-3)


def test_nothing_is_asked_of_light_while_nothing_leaves_the_view() -> None:
    assert consistency(lambda uv, time: 1 + time * uv[:, 0], (0.0, 0.0)) == 0


def test_points_have_left_where_the_rim_has_moved_past_them() -> None:
    clip = turtle(6)
    batch = draw_batch(clip, small().training, 0, 0)
    rim = hashing_nvd._draw_rim(batch, 40, 15, torch.Generator().manual_seed(3))
    mapping = Drifting((-0.5, 0.0))  # the view moves to the right: what is lost is lost at the left
    xyt = batch.normalize_positions(rim.pixel + 0.5, rim.frame)
    left = hashing_nvd._has_left_view(mapping, batch, rim, mapping(xyt))
    later = rim.other_frame > rim.frame
    earlier = rim.other_frame < rim.frame
    assert torch.equal(left[:, rim.side == 0], later[:, rim.side == 0])
    assert torch.equal(left[:, rim.side == 1], earlier[:, rim.side == 1])
    assert not left[:, rim.side >= 2].any()
    column, row = rim.pixel.T
    assert ((column == 1) | (column == 30) | (row == 1) | (row == 16)).all()
    assert (rim.pixel >= 1).all() and (column <= 30).all() and (row <= 16).all()


# --- from the fit to the picture ------------------------------------------------------------------------------------


def test_exported_texels_are_the_texture_at_their_centers_up_to_the_last_one(tmp_path: Path) -> None:
    """The paper's export has 999 intervals where its lookup has 1000, and the last texel is black."""
    clip = turtle()
    model = shaken(clip, small())
    with torch.no_grad():
        maps = bake_maps(Run.create(tmp_path / "run"), model, 1)
        image = next(image for image, _ in make_canonical_images(model, maps))
        assert image.size == (1000, 1000)
        for row, column in ((0, 0), (999, 999), (0, 999), (411, 702)):
            uv = torch.tensor([[(column + 0.5) / 500 - 1, (row + 0.5) / 500 - 1]])
            texel = torch.from_numpy(image.rgba[row, column, :3])
            assert torch.allclose(texel, model.sample_canonical("object1", uv)[0], atol=1e-5)
            assert float(texel.min()) > 0
            rgb = torch.from_numpy(image.rgba[..., :3]).movedim(-1, 0)[None]
            looked_up = coords.sample_canonical(rgb, image.box, uv[None, None])[0, :, 0, 0]
            assert torch.allclose(looked_up, texel, atol=1e-3)


def test_light_with_detail_is_baked_as_the_mean_of_its_surroundings(tmp_path: Path) -> None:
    clip = turtle()
    model = shaken(clip, small(), scale=0.3).eval()
    with torch.no_grad():
        maps = bake_maps(Run.create(tmp_path / "run"), model, 1)
        samples = model.sample_frame(2, clip.size)
    assert samples.gain is not None
    for layer in range(2):
        fine = samples.gain[:, layer].reshape(18, 32, 3).numpy()
        mean = cv2.resize(fine, gain_size(clip.size), interpolation=cv2.INTER_AREA)
        assert np.allclose(maps.read_gain(2, layer, gain_size(clip.size)), mean, atol=2e-3)


def test_an_edit_takes_the_light_of_its_place_and_time(tmp_path: Path) -> None:
    """One layer, its motion given: texture and light are fitted, and the edit must look as if it had been filmed."""
    truth = make_translation_clip(6, 48, 28, velocity=(1.0, 0.0))
    truth = replace(truth, lighting=SyntheticLighting(strength=0.5, period=8.0))
    clip = ClipDataset(truth.frames, LayerMasks((), np.zeros((0, 6, 28, 48), bool)), None)
    changes: dict[str, object] = {
        "training.pixels": 1000, "gain.base_resolution": 6, "gain.levels": 1, "gain.learning_rate": 1e-2,
        "gain.table_learning_rate": 3e-2, "texture.learning_rate": 3e-3, "terms.rigidity": 0,
        "terms.global_rigidity": [0, 0], "terms.flow": 0, "terms.gain_deviation": 0.02, "terms.gain_consistency": 0,
    }  # fmt: skip
    config = load_planar_config("hashing_nvd", {**SMALL, **changes})
    model = build_model(config, plan_model(config, clip).shape)
    # A pixel is 2 / 48 in xy units, a frame 2 / 6 in time.
    model.mappings = modules([Drifting((6 / 48, 0.0))])
    run = Run.create(tmp_path / "run")
    list(train_steps(PlanarTask(model, clip, config.training, 120), run))
    with torch.no_grad():
        shown = composite_layers(model.sample_frames(torch.arange(6), clip.size)).view(clip.frames.shape)
        assert float((shown - torch.from_numpy(clip.frames) / 255).square().mean()) < 10 ** (-2.4)
        maps = bake_maps(run, model.eval(), 1)
        canonicals = {image.layer: image for image, _ in make_canonical_images(model, maps)}
    box = model.canonical_box("background")
    white = np.zeros((200, 200, 4), np.float32)
    middle = coords.texel_centers(box, 200, 200).numpy()
    white[(np.abs(middle) < 0.15).all(-1)] = (0.6, 0.6, 0.6, 1)
    renderer = OverlayPass(maps, canonicals, {"background": Overlay(white, box)})
    seen_colors, true_colors = [], []
    for t in range(6):
        edited = renderer.render_frame(t, clip.frames[t])
        uv = maps.read_uv(t, 0, (48, 28))
        inside = (np.abs(uv) < 0.13).all(-1)
        seen_colors.append(edited[inside].mean(0) / 255)
        true_colors.append(0.6 * truth.gain[t][inside].mean(0))
    seen, true = np.array(seen_colors), np.array(true_colors)
    assert true.std(0).max() > 0.05  # the light changes a lot
    # Texture and light share one factor, which no pixel tells: it is the same in all frames.
    factor = (seen / true).mean(0)
    assert np.abs(seen / factor - true).max() < 0.25 * (true.max(0) - true.min(0)).max()


# --- config ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("preset", "overrides", "words"),
    [
        ("hashing_nvd", {"mapping.kind": "hash"}, "texture kind bounded_hash needs mapping kind mlp"),
        ("hashing_nvd", {"gain.kind": "none"}, "terms.gain_deviation needs gain kind grid or hash"),
        ("hashing_nvd", {"terms.gain_size": 1.0}, "terms.gain_size needs gain kind grid or none"),
        ("atlas", {"terms.gain_consistency": 1.0}, "terms.gain_consistency needs gain kind hash"),
        ("lna", {"gain.kind": "grid", "training.batch": "frames"}, "terms.gradient needs gain kind hash or none"),
        ("hashing_nvd", {"mapping.background_uv_scale": 1.5}, "background_uv_scale must lie between 0 and 1"),
        ("hashing_nvd", {"gain.layers": 0}, "width and layers must be at least 1"),
    ],
)
def test_parts_and_terms_that_do_not_go_together_are_named(
    preset: str, overrides: dict[str, object], words: str
) -> None:
    with pytest.raises(UserError) as caught:
        load_planar_config(preset, overrides)
    assert words in str(caught.value)
