"""Score distillation is checked against denoisers whose scores are known, then run through every kind of model."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any, get_args

import numpy as np
import pytest
import torch
from torch import Tensor

from editors.core.editor import EditorResult
from editors.core.source import EditSource
from editors.diffusion.backend.noise_schedule import DenoisedLatents, NoiseSchedule
from editors.diffusion.common.score_distillation import (
    DistillationPrompts,
    NoisedSample,
    Score,
    compute_time_weight,
    draw_time,
    gradient_loss,
    make_csd_score,
    make_dds_score,
    make_nfsd_score,
    make_score,
    make_sds_score,
)
from editors.diffusion.methods.sds import PyramidTexture, ScoreObjective, Sds, TextureOptimization, optimize_texture
from editors.options.distillation import SdsOptions, Variant
from neural_fields.atlas.canonical import CanonicalImage
from neural_fields.core.box import Box
from neural_fields.core.errors import ExitCode, UserError
from neural_fields.core.progress import report_nothing

pytestmark = pytest.mark.slow

KINDS = ("epsilon", "v_prediction", "sample", "flow")
TIMES = (1, 13, 40, 71, 97)


def schedule(kind: str = "epsilon") -> NoiseSchedule:
    if kind == "flow":
        return NoiseSchedule.from_config({"num_train_timesteps": 100, "shift": 3.0}, None)
    return NoiseSchedule.from_config({"prediction_type": kind}, torch.cumprod(1 - torch.linspace(0.001, 0.1, 100), 0))


def raw(denoised: DenoisedLatents, levels: NoiseSchedule, time: int) -> Tensor:
    """What a network of the schedule's kind would say for a clean picture and noise."""
    if levels.kind == "sample":
        return denoised.clean
    if levels.kind == "epsilon":
        return denoised.noise
    a, s = (1.0, 1.0) if levels.kind == "flow" else (levels.signal[time].item(), levels.noise[time].item())
    return a * denoised.noise - s * denoised.clean


def gaussian(levels: NoiseSchedule, mean: float, spread: float) -> Callable[[Tensor, int], Tensor]:
    """The exact denoiser of pictures whose every value is drawn from N(mean, spread^2): the posterior's mean."""

    def output(latents: Tensor, time: int) -> Tensor:
        a, s = levels.signal[time].item(), levels.noise[time].item()
        clean = mean + a * spread**2 / (a**2 * spread**2 + s**2) * (latents - a * mean)
        return raw(levels.assume_clean(latents, clean, time), levels, time)

    return output


def pair(without: Callable, prompted: Callable) -> Callable[[Tensor, int], tuple[Tensor, Tensor]]:
    return lambda latents, time: (without(latents, time), prompted(latents, time))


def at(time: int, seed: int = 0, noise: Tensor | None = None) -> NoisedSample:
    generator = torch.Generator().manual_seed(seed)
    clean, source, drawn = torch.randn(3, 2, 3, 4, 4, generator=generator)
    return NoisedSample(clean, time, drawn if noise is None else noise, source)


@pytest.mark.parametrize("kind", KINDS)
def test_the_expected_gradient_of_sds_on_gaussian_pictures_has_its_closed_form(kind: str) -> None:
    levels, mean, spread = schedule(kind), 0.7, 0.4
    score = make_sds_score(pair(gaussian(levels, 9, 1), gaussian(levels, mean, spread)), levels, 1.0)
    for time in TIMES:
        a, s = levels.signal[time].item(), levels.noise[time].item()
        sample = at(time)
        # The gradient is linear in the noise: the mean over one and its opposite is the mean over all.
        both = (score(sample) + score(at(time, noise=-sample.noise))) / 2
        expected = compute_time_weight(levels, time) * s * a * (sample.clean - mean) / (a**2 * spread**2 + s**2)
        torch.testing.assert_close(both, expected, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_models_of_every_kind_give_the_gradient_that_their_pictures_ask_for(kind: str) -> None:
    """The same pictures under the same noise levels: what the network was trained to say makes no difference."""
    levels = schedule(kind)
    said = NoiseSchedule(levels.signal, levels.noise, levels.network_time, "epsilon")
    for time, guidance in itertools.product((13, 71), (1.0, 7.5)):
        one, other = (
            make_sds_score(pair(gaussian(own, -0.5, 1.0), gaussian(own, 0.7, 0.4)), own, guidance)(at(time))
            for own in (levels, said)
        )
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


def test_descent_along_sds_ends_at_the_mode() -> None:
    levels = schedule()
    score = make_sds_score(pair(gaussian(levels, 0, 1), gaussian(levels, 0.7, 0.4)), levels, 1.0)
    picture = at(0).clean
    for step in range(400):
        sample = at(TIMES[step % 5], seed=step)
        for sign in (1, -1):
            picture = picture - 0.2 * score(NoisedSample(picture, sample.time, sign * sample.noise))
    assert (picture - 0.7).abs().max() < 0.02


def test_the_classifier_score_is_the_gradient_of_the_probability_of_the_prompt() -> None:
    """Two equally likely Gaussian sets of pictures, one of them the prompt's: c - u = -s d/dx_t log p(prompt | x_t)."""
    levels = schedule()
    first, second = gaussian(levels, 0.7, 0.4), gaussian(levels, -0.6, 0.8)

    def log_odds(latents: Tensor, time: int) -> Tensor:
        a, s = levels.signal[time].item(), levels.noise[time].item()
        both = [(m, (a**2 * d**2 + s**2) ** 0.5) for m, d in ((0.7, 0.4), (-0.6, 0.8))]
        density = [torch.distributions.Normal(a * m, d).log_prob(latents).sum((1, 2, 3)) for m, d in both]
        return density[0] - density[1]

    def mixed(latents: Tensor, time: int) -> Tensor:
        share = log_odds(latents, time).sigmoid()[:, None, None, None]
        return share * first(latents, time) + (1 - share) * second(latents, time)

    score = make_csd_score(pair(mixed, first), levels, 3.0)
    for time in TIMES:
        sample = at(time)
        noised = levels.add_noise(sample.clean, sample.noise, time).requires_grad_(True)
        (expected,) = torch.autograd.grad(torch.nn.functional.logsigmoid(log_odds(noised, time)).sum(), noised)
        s = levels.noise[time].item()
        torch.testing.assert_close(score(sample), -3.0 * s**3 * expected, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_guidance_adds_the_classifier_score(kind: str) -> None:
    levels = schedule(kind)
    both = pair(gaussian(levels, -0.5, 1.0), gaussian(levels, 0.7, 0.4))
    plain, guided = (make_sds_score(both, levels, g)(at(40)) for g in (1.0, 30.0))
    torch.testing.assert_close(guided - plain, make_csd_score(both, levels, 29.0)(at(40)), atol=1e-3, rtol=1e-4)


def test_noise_free_distillation_leads_away_from_bad_pictures_only_where_there_is_much_noise() -> None:
    levels = schedule()
    none, good, bad = (gaussian(levels, mean, 0.5) for mean in (0.0, 1.0, -1.0))
    score = make_nfsd_score(pair(none, good), pair(none, bad), levels, 7.5)
    for time, leads_away in ((19, False), (20, True)):
        sample = at(time)
        noised = levels.add_noise(sample.clean, sample.noise, time)
        u, c, b = (said(noised, time) for said in (none, good, bad))
        expected = u - b * leads_away + 7.5 * (c - u)
        torch.testing.assert_close(score(sample), compute_time_weight(levels, time) * expected, atol=1e-5, rtol=1e-4)


def test_the_delta_score_of_the_source_under_its_own_prompt_is_zero_and_the_noise_drops_out() -> None:
    levels = schedule()
    none, cat, dog = (gaussian(levels, mean, 0.5) for mean in (0.0, 1.0, -1.0))
    same = make_dds_score(pair(none, cat), pair(none, cat), levels, 7.5)
    other = make_dds_score(pair(none, dog), pair(none, cat), levels, 7.5)
    source = at(40).source
    assert source is not None
    assert same(NoisedSample(source, 40, at(40).noise, source)).count_nonzero() == 0
    one, two = (other(NoisedSample(source, 40, at(40, seed=seed).noise, source)) for seed in (1, 2))
    torch.testing.assert_close(one, two, atol=1e-4, rtol=1e-4)


def test_the_weight_is_the_share_of_noise_in_the_variance() -> None:
    for kind in KINDS:
        levels = schedule(kind)
        shares = [compute_time_weight(levels, time) for time in range(100)]
        assert shares == sorted(shares) and shares[0] >= 0 and shares[-1] <= 1
    levels = schedule()
    assert compute_time_weight(levels, 40) == pytest.approx(1 - levels.signal[40].item() ** 2, abs=1e-6)


def test_times_are_drawn_from_the_published_span_and_fall_when_annealed() -> None:
    generator = torch.Generator().manual_seed(0)
    drawn = {done: [draw_time(schedule(), done, True, generator) for _ in range(300)] for done in (0.0, 1.0)}
    assert 2 <= min(drawn[0.0]) <= 4 and 95 <= max(drawn[0.0]) <= 97
    assert 47 <= max(drawn[1.0]) <= 49
    assert max(draw_time(schedule(), 1.0, False, generator) for _ in range(300)) >= 95


def test_pulling_moves_values_by_the_gradient_and_not_by_what_is_no_number() -> None:
    values = torch.zeros(4, requires_grad=True)
    gradient_loss(values, torch.tensor([1.0, float("nan"), float("inf"), -2.0])).backward()
    assert values.grad is not None and values.grad.tolist() == [1, 0, 0, -2]


def test_the_loss_on_a_picture_is_the_gradient_taken_back_through_the_encoder() -> None:
    picture = torch.rand(1, 3, 4, 4, generator=torch.Generator().manual_seed(0)).requires_grad_(True)
    mixed = torch.randn(3, 3, generator=torch.Generator().manual_seed(1))
    target = torch.randn(1, 3, 4, 4, generator=torch.Generator().manual_seed(2))

    def encode(images: Tensor) -> Tensor:
        return torch.einsum("cd,ndhw->nchw", mixed, images).tanh()

    objective = ScoreObjective(encode, lambda at: at.clean - target, schedule())
    objective.compute_loss(picture, picture, 10, torch.Generator()).backward()
    (expected,) = torch.autograd.grad((encode(picture) - target).square().mean() / 2, picture)
    torch.testing.assert_close(picture.grad, expected)


def towards(mean: float) -> Score:
    levels = schedule()
    return make_sds_score(pair(gaussian(levels, 0, 1), gaussian(levels, mean, 0.3)), levels, 1.0)


def half_free() -> PyramidTexture:
    original = torch.rand(1, 3, 16, 24, generator=torch.Generator().manual_seed(0))
    region = torch.zeros(1, 1, 16, 24)
    region[..., 8:] = 1
    return PyramidTexture(original, region)


@pytest.mark.parametrize("window", [None, 8])
def test_a_texture_goes_where_the_score_points_in_its_region_and_stays_as_it_was_elsewhere(window: int | None) -> None:
    texture = half_free()
    torch.testing.assert_close(
        texture(), texture.original.clamp(0.02, 0.98) * texture.region + texture.original * (1 - texture.region)
    )
    objective = ScoreObjective(lambda picture: 2 * picture - 1, towards(0.4), schedule())
    colors = optimize_texture(texture, objective, TextureOptimization(120, 0.4), window=window, multiple=2)
    made = texture().detach()
    assert torch.equal(made[..., 8:], colors[..., 8:]) and torch.equal(made[..., :8], texture.original[..., :8])
    assert (made[..., 8:].mean() - 0.7).abs() < 0.03
    assert (made[..., 8:] - 0.7).abs().mean() < 0.5 * (texture.original[..., 8:] - 0.7).abs().mean()


def test_what_is_to_be_kept_stays_nearer_to_the_source() -> None:
    objective = ScoreObjective(lambda picture: 2 * picture - 1, towards(0.4), schedule())
    moved = []
    for keep in (0.0, 0.1, 1.0):
        texture = half_free()
        moved.append(
            (optimize_texture(texture, objective, TextureOptimization(60, 0.4, keep)) - texture.original)
            .abs()
            .mean()
            .item()
        )
    assert moved[0] > 1.3 * moved[1] > 1.3 * moved[2]


def test_the_same_seed_makes_the_same_texture() -> None:
    objective = ScoreObjective(lambda picture: 2 * picture - 1, towards(0.4), schedule())
    one, two, other = (
        optimize_texture(half_free(), objective, TextureOptimization(5, 0.05, seed=seed)) for seed in (1, 1, 2)
    )
    assert torch.equal(one, two) and not torch.equal(one, other)


class Still(EditSource):
    """A source of one picture, without a run behind it."""

    layers = ("foreground",)

    def __init__(self) -> None:
        """There is nothing to open."""

    @cached_property
    def pictures(self) -> dict[str, CanonicalImage]:
        rgba = torch.rand(4, 40, 48, generator=torch.Generator().manual_seed(0))
        rgba[3] = 1
        pixels = rgba.movedim(0, -1).contiguous().numpy()
        return {"foreground": CanonicalImage(pixels, Box(-1.0, -1.0, 1.0, 1.0), "foreground")}

    def read_region(self, layer: str) -> np.ndarray:
        region = np.zeros((40, 48), np.float32)
        region[10:30, 12:40] = 1
        return region


@pytest.fixture(scope="module")
def models(tiny_models: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    return {
        "epsilon": tiny_models.stable_diffusion(folder / "epsilon"),
        "v": tiny_models.stable_diffusion(folder / "v", kind="v_prediction"),
        "flow": tiny_models.stable_diffusion_3(folder / "flow"),
    }


def test_every_variant_runs_on_every_kind_of_model(models: dict[str, Path]) -> None:
    for name, model in models.items():
        for variant in get_args(Variant) if name == "epsilon" else ("sds",):
            editor = Sds(model=str(model), prompt="blue dots", variant=variant, steps=2, source_prompt="a cat")
            result = editor.edit(Still(), report_nothing)
            assert isinstance(result, EditorResult)
            rgba = result.overlays["foreground"].rgba
            assert rgba.shape[2] == 4 and np.isfinite(rgba).all() and 0 < (rgba[..., 3] > 0).mean() < 1


def test_a_canvas_larger_than_the_model_is_optimized_window_by_window(models: dict[str, Path]) -> None:
    result = Sds(model=str(models["epsilon"]), prompt="blue dots", side=64, steps=3).edit(Still(), report_nothing)
    assert max(result.overlays["foreground"].size) >= 64


def test_the_gradient_of_a_model_is_that_of_its_outputs(models: dict[str, Path]) -> None:
    from editors.diffusion.backend.diffusers_model import load_model
    from editors.diffusion.backend.weights import WeightsSource

    model = load_model(WeightsSource(str(models["epsilon"]), "cpu"))
    latents = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    sample = NoisedSample(latents, 400, model.draw_noise(latents, 1), 0.5 * latents)
    text = model.encode_prompt("blue dots", "red")
    with torch.no_grad():
        noised = model.schedule.add_noise(latents, sample.noise, 400)
        guided = model.predict_denoised(noised, 400, text, 9.0).noise
        found = make_score(model, "sds", DistillationPrompts("blue dots", "red"), 9.0)(sample)
    torch.testing.assert_close(
        found, compute_time_weight(model.schedule, 400) * (guided - sample.noise), atol=1e-5, rtol=1e-4
    )


@pytest.mark.parametrize(
    ("settings", "word"),
    [({"prompt": " "}, "prompt"), ({"steps": 0}, "steps"), ({"rate": 0.0}, "rate"), ({"keep": -1.0}, "keep")],
)
def test_settings_that_cannot_work_are_refused_with_a_flag_to_try(settings: dict[str, Any], word: str) -> None:
    with pytest.raises(UserError, match=word) as caught:
        Sds(**({"model": "m", "prompt": "blue dots"} | settings))
    assert caught.value.code == ExitCode.USAGE and caught.value.fix.startswith("--")


def test_every_setting_says_what_it_is() -> None:
    source = inspect.getsource(SdsOptions)
    for name in ("variant", "source_prompt", "steps", "keep", "rate", "anneal"):
        assert f"    {name}: " in source and source.split(f"    {name}: ")[1].splitlines()[1].startswith('    """')
