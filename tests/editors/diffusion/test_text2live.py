"""The network that paints a layer does what its losses ask, and CLIP's vectors are what transformers says they are."""

from __future__ import annotations

import math
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from editors.core.source import EditSource
from editors.diffusion.backend.clip_model import (
    CLIP_PIXEL_MEAN,
    CLIP_PIXEL_STD,
    ClipModel,
    compute_self_similarity,
    load_clip,
    spherical_distance,
)
from editors.diffusion.backend.noise_schedule import DenoisedLatents, NoiseSchedule
from editors.diffusion.backend.weights import WeightsSource
from editors.diffusion.common.score_distillation import make_sds_score
from editors.diffusion.methods.sds import ScoreObjective
from editors.diffusion.methods.text2live import (
    GeneratorTraining,
    LayerGenerator,
    PaintedLayer,
    Text2Live,
    draw_views,
    make_clip_loss,
    make_score_loss,
    sparsity_loss,
    structure_loss,
    train_layer,
)
from neural_fields.atlas.canonical import CanonicalImage
from neural_fields.core.box import Box
from neural_fields.core.errors import ExitCode, UserError
from neural_fields.core.progress import Progress, report_nothing

pytestmark = pytest.mark.slow


def pictures(n: int = 1, height: int = 32, width: int = 32, seed: int = 0) -> Tensor:
    return torch.rand(n, 3, height, width, generator=torch.Generator().manual_seed(seed))


def right_half(height: int = 32, width: int = 32) -> Tensor:
    region = torch.zeros(1, 1, height, width)
    region[..., width // 2 :] = 1
    return region


@pytest.fixture(scope="module")
def folder(tiny_models: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def clip(folder: Path) -> ClipModel:
    return load_clip(WeightsSource(str(folder), "cpu"))


def test_vectors_of_pictures_and_texts_are_those_of_transformers(clip: ClipModel) -> None:
    shown = pictures(2)
    mean, spread = (torch.tensor(values)[:, None, None] for values in (CLIP_PIXEL_MEAN, CLIP_PIXEL_STD))
    words = clip.tokenizer(["blue dots", "a"], padding=True, return_tensors="pt")
    with torch.no_grad():
        expected = clip.network(pixel_values=(shown - mean) / spread, **words)
        torch.testing.assert_close(clip.encode_images(shown), expected.image_embeds)
    torch.testing.assert_close(clip.encode_texts(["blue dots", "a"]), expected.text_embeds)
    assert clip.encode_texts(["word " * 500]).shape == clip.encode_texts([""]).shape


def test_pictures_of_any_size_are_seen_by_their_middle_and_can_be_improved(clip: ClipModel) -> None:
    wide = torch.cat([torch.zeros(1, 3, 64, 40), pictures(1, 64, 64), torch.zeros(1, 3, 64, 40)], dim=-1)
    torch.testing.assert_close(clip.encode_images(wide), clip.encode_images(wide[..., 40:104]), atol=0.05, rtol=0.05)
    shown = pictures(1, 48, 20).requires_grad_(True)
    spherical_distance(clip.encode_images(shown), clip.encode_texts(["blue dots"])).sum().backward()
    assert shown.grad is not None and shown.grad.abs().max() > 0
    assert clip.encode_patches(shown).shape == (1, 16, 32)


def test_a_folder_that_is_no_clip_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(UserError, match="no CLIP") as caught:
        load_clip(WeightsSource(str(tmp_path), "cpu"))
    assert caught.value.code == ExitCode.BAD_INPUT and "bert" in caught.value.why
    with pytest.raises(UserError, match="there is no model"):
        load_clip(WeightsSource(str(tmp_path / "nowhere"), "cpu"))


def test_the_spherical_distance_is_half_the_squared_angle() -> None:
    for degrees in (1.0, 60.0, 90.0, 150.0):
        angle = math.radians(degrees)
        one, other = torch.tensor([[2.0, 0.0]]), torch.tensor([[math.cos(angle), math.sin(angle)]])
        assert spherical_distance(one, other).item() == pytest.approx(angle**2 / 2, rel=1e-3)
    same = torch.ones(1, 3, requires_grad=True)
    spherical_distance(same, torch.ones(1, 3)).sum().backward()
    assert same.grad is not None and torch.isfinite(same.grad).all()


def test_structure_is_what_tokens_have_in_common_and_not_what_they_are() -> None:
    tokens = torch.randn(1, 6, 4, generator=torch.Generator().manual_seed(0))
    turn = torch.linalg.qr(torch.randn(4, 4, generator=torch.Generator().manual_seed(1)))[0]
    assert structure_loss(tokens, 3 * tokens @ turn).item() == pytest.approx(0, abs=1e-9)
    assert structure_loss(tokens, tokens.flip(1)).item() > 0.1
    torch.testing.assert_close(compute_self_similarity(tokens).diagonal(dim1=1, dim2=2), torch.ones(1, 6))


def test_sparsity_is_zero_for_nothing_and_counts_painted_pixels() -> None:
    assert sparsity_loss(torch.zeros(1, 1, 4, 4)).item() == 0
    half = right_half(4, 4)
    full = 0.01 + 0.005 * (2 * torch.sigmoid(torch.tensor(5.0)).item() - 1)
    assert sparsity_loss(half).item() == pytest.approx(full / 2, rel=1e-4)


def test_a_layer_is_painted_over_the_picture_and_over_a_screen() -> None:
    layer = PaintedLayer(torch.ones(1, 3, 4, 4), 0.25 * right_half(4, 4), torch.zeros(1, 3, 4, 4))
    assert layer.composite_over(layer.source)[0, 0, 0].tolist() == [0, 0, 0.25, 0.25]
    green = torch.tensor([0.0, 0.8, 0.0])[None, :, None, None]
    torch.testing.assert_close(layer.composite_over(green)[0, :, 0, 3], torch.tensor([0.25, 0.85, 0.25]))


@pytest.mark.parametrize("size", [(8, 8), (20, 36), (70, 33)])
def test_the_painter_takes_pictures_of_any_size_and_starts_half_opaque(size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    rgba = LayerGenerator(min(size))(pictures(1, *size))
    assert rgba.shape == (1, 4, *size)
    assert rgba.min() > 0 and rgba.max() < 1 and abs(rgba[:, 3].mean().item() - 0.5) < 0.2


def test_views_are_crops_of_the_picture_and_the_first_shows_all_of_it() -> None:
    picture = pictures(1, 24, 40)
    seen = draw_views(torch.cat([picture, 1 - picture], dim=1), 16, torch.Generator().manual_seed(0))
    whole = torch.nn.functional.interpolate(picture, (16, 16), mode="bicubic", antialias=True).clamp(0, 1)
    torch.testing.assert_close(seen[:1, :3], whole)
    torch.testing.assert_close(seen[:, :3], 1 - seen[:, 3:], atol=1e-5, rtol=0)
    assert len({tuple(view.flatten()[:8].tolist()) for view in seen}) == len(seen)


def gaussian_score(mean: float) -> ScoreObjective:
    """Score distillation under a model of pictures near one value, with latents that are the picture itself."""
    levels = NoiseSchedule.from_config({}, torch.cumprod(1 - torch.linspace(0.001, 0.1, 100), 0))

    def outputs(latents: Tensor, time: int) -> tuple[Tensor, Tensor]:
        a, s = levels.signal[time].item(), levels.noise[time].item()
        clean = mean + a * 0.09 / (a**2 * 0.09 + s**2) * (latents - a * mean)
        said = DenoisedLatents(clean, (latents - a * clean) / s).noise
        return said, said

    return ScoreObjective(lambda picture: 2 * picture - 1, make_sds_score(outputs, levels, 1.0), levels)


def test_a_layer_trained_on_a_score_takes_the_picture_where_the_score_points_and_nothing_outside_the_region() -> None:
    image, region = pictures(), right_half()
    seen: list[Progress] = []
    terms = make_score_loss(gaussian_score(0.6), 0.0, 1.0)
    rgba = train_layer(image, region, terms, GeneratorTraining(80, 0.01, 0.0), seen.append)
    composed = PaintedLayer(rgba[:, :3], rgba[:, 3:] * region, image).composite_over(image)
    assert torch.equal(composed[..., :16], image[..., :16])
    assert (composed[..., 16:] - 0.8).abs().mean() < 0.4 * (image[..., 16:] - 0.8).abs().mean()
    assert seen[-1] == Progress("painting", 80, 80)


def test_more_sparsity_paints_less() -> None:
    image, region = pictures(), right_half()
    opacity = [
        (
            train_layer(
                image, region, make_score_loss(gaussian_score(0.0), 0.0, 1.0), GeneratorTraining(25, 0.01, weight)
            )[:, 3:]
            * region
        )
        .mean()
        .item()
        for weight in (0.0, 100.0)
    ]
    assert opacity[1] < 0.5 * opacity[0]


def test_the_same_seed_paints_the_same_and_leaves_the_callers_chance_alone() -> None:
    terms = make_score_loss(gaussian_score(0.0), 1.0, 1.0)
    torch.manual_seed(3)
    before = torch.get_rng_state()
    one, two, other = (
        train_layer(pictures(), right_half(), terms, GeneratorTraining(2, 0.01, 0.1, seed)) for seed in (1, 1, 2)
    )
    assert torch.equal(one, two) and not torch.equal(one, other)
    assert torch.equal(before, torch.get_rng_state())


def test_under_clip_the_picture_comes_nearer_to_the_prompt(clip: ClipModel) -> None:
    image, region = pictures(), right_half()
    terms = make_clip_loss(clip, "blue dots", "a cat", 0.0)
    losses = []

    def told(layer: PaintedLayer, done: float, generator: torch.Generator) -> Tensor:
        losses.append(terms(layer, done, torch.Generator().manual_seed(0)))
        return losses[-1]

    train_layer(image, region, told, GeneratorTraining(15, 0.01, 0.0))
    assert losses[-1].item() < losses[0].item() - 0.01


class Still(EditSource):
    """A source of two pictures, without a run behind it."""

    layers = ("foreground", "background")

    def __init__(self) -> None:
        """There is nothing to open."""

    @cached_property
    def pictures(self) -> dict[str, CanonicalImage]:
        rgba = torch.cat([pictures(1, 40, 48)[0], torch.ones(1, 40, 48)]).movedim(0, -1).contiguous().numpy()
        return {name: CanonicalImage(rgba, Box(-1.0, -1.0, 1.0, 1.0), name) for name in self.layers}

    def read_region(self, layer: str) -> np.ndarray:
        region = np.zeros((40, 48), np.float32)
        region[10:30, 12:40] = 1
        return region


def test_the_editor_paints_a_layer_over_each_picture_with_either_kind_of_model(
    tiny_models: ModuleType, folder: Path, tmp_path: Path
) -> None:
    model = tiny_models.stable_diffusion(tmp_path / "model")
    choices: list[dict[str, Any]] = [
        {"clip_model": str(folder)},
        {"model": str(model)},
        {"model": str(model), "variant": "dds"},
    ]
    for chosen in choices:
        result = Text2Live(prompt="blue dots", device="cpu", steps=2, **chosen).edit(Still(), report_nothing)
        assert set(result.overlays) == {"foreground", "background"}
        for overlay in result.overlays.values():
            assert np.isfinite(overlay.rgba).all() and 0 < (overlay.rgba[..., 3] > 0).mean() < 1


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"prompt": ""}, "prompt"),
        ({"model": "m"}, "clip-model"),
        ({"clip_model": ""}, "clip-model"),
        ({"structure": -1.0}, "structure"),
        ({"sparsity": math.inf}, "sparsity"),
        ({"rate": 0.0}, "rate"),
        ({"steps": 0}, "steps"),
    ],
)
def test_settings_that_cannot_work_are_refused_with_a_flag_to_try(settings: dict[str, Any], word: str) -> None:
    with pytest.raises(UserError, match=word) as caught:
        Text2Live(**({"clip_model": "c", "prompt": "blue dots"} | settings))
    assert caught.value.code == ExitCode.USAGE and caught.value.fix.startswith("--")
