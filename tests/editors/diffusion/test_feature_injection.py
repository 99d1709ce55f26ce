"""Editors that put features or attention of the original into the edit; where the prompt is its own, it comes back."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from editors.core.editor import EditorResult
from editors.core.source import EditSource
from editors.diffusion.backend.diffusers_model import DiffusionModel, load_model
from editors.diffusion.backend.noise_schedule import DenoisedLatents, Latents, NoiseSchedule
from editors.diffusion.backend.sampling import invert_latents
from editors.diffusion.backend.weights import WeightsSource
from editors.diffusion.methods.p2p import (
    LocalBlendMask,
    PromptToPrompt,
    WordExchange,
    compute_attention_maps,
    find_word_tokens,
)
from editors.diffusion.methods.pnp import PlugAndPlay, denoise_along_path, select_decoder_features
from neural_fields.atlas.canonical import CanonicalImage
from neural_fields.core.box import Box
from neural_fields.core.errors import ExitCode, UserError
from neural_fields.core.progress import report_nothing

pytestmark = pytest.mark.slow

STEPS = 4


class Still(EditSource):
    """A source of one picture, without a run behind it."""

    layers = ("foreground",)

    def __init__(self) -> None:
        """There is nothing to open."""

    @cached_property
    def pictures(self) -> dict[str, CanonicalImage]:
        rgba = torch.rand(4, 32, 32, generator=torch.Generator().manual_seed(0))
        rgba[3] = 1
        pixels = rgba.movedim(0, -1).contiguous().numpy()
        return {"foreground": CanonicalImage(pixels, Box(-1.0, -1.0, 1.0, 1.0), "foreground")}

    def read_region(self, layer: str) -> np.ndarray:
        region = np.zeros((32, 32), np.float32)
        region[2:30, 2:30] = 1
        return region


@pytest.fixture(scope="module")
def folders(tiny_models: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("models")
    return {
        "epsilon": str(tiny_models.stable_diffusion(folder / "epsilon")),
        "v": str(tiny_models.stable_diffusion(folder / "v", kind="v_prediction")),
        "xl": str(tiny_models.stable_diffusion_xl(folder / "xl")),
        "flow": str(tiny_models.stable_diffusion_3(folder / "flow")),
    }


@pytest.fixture(scope="module")
def calm(folders: dict[str, str]) -> dict[str, str]:
    """The same models with small answers: those of a random denoiser jump too much to be run backwards."""
    from diffusers import UNet2DConditionModel

    for name in ("epsilon", "v", "xl"):
        unet = UNet2DConditionModel.from_pretrained(folders[name], subfolder="unet")
        with torch.no_grad():
            unet.conv_out.weight *= 0.03
        unet.save_pretrained(f"{folders[name]}-calm/unet")
        for part in Path(folders[name]).iterdir():
            if part.name != "unet":
                Path(f"{folders[name]}-calm", part.name).symlink_to(part)
    return {name: f"{folders[name]}-calm" for name in ("epsilon", "v", "xl")}


@pytest.fixture(scope="module")
def model(folders: dict[str, str]) -> DiffusionModel:
    return load_model(WeightsSource(folders["epsilon"], "cpu"))


def shown(result: EditorResult) -> Tensor:
    return torch.from_numpy(result.overlays["foreground"].rgba)


# The way to noise and back


def schedule(kind: str) -> NoiseSchedule:
    level = torch.linspace(0.01, 0.99, 100)
    if kind == "flow":
        return NoiseSchedule(1 - level, level, 100 * level, "flow", "trailing")
    return NoiseSchedule((1 - level).sqrt(), level.sqrt(), 100 * level, "epsilon")


def gaussian(schedule: NoiseSchedule, mean: float) -> Any:
    """The exact denoiser of pictures whose pixels are Gaussian with this mean and a deviation of 0.5."""

    def predict(latents: Latents, time: int) -> DenoisedLatents:
        signal, noise = schedule.signal[time].item(), schedule.noise[time].item()
        gain = signal * 0.25 / (signal**2 * 0.25 + noise**2)
        return schedule.assume_clean(latents, mean + gain * (latents - signal * mean), time)

    return predict


@pytest.mark.parametrize("kind", ["epsilon", "flow"])
def test_the_way_back_ends_at_the_original_and_elsewhere_at_the_edit(kind: str) -> None:
    noises = schedule(kind)
    times = noises.select_times(20)
    original = torch.rand(1, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    same, other = gaussian(noises, 0.0), gaussian(noises, 2.0)
    path = invert_latents(original, times, noises, same, refinements=30)
    inside = torch.zeros(1, 1, 4, 4)
    inside[..., :2] = 1

    def back(predict: Any, region: Tensor) -> Latents:
        redo = lambda latents, source, done: predict(latents, times[done])  # noqa: E731
        return denoise_along_path(path, times, noises, redo, original=original, region=lambda: region)

    torch.testing.assert_close(back(same, torch.ones(1, 1, 4, 4)), original, atol=1e-4, rtol=1e-4)
    edited = back(other, inside)
    assert torch.equal(edited[..., 2:], original[..., 2:])
    assert (edited - original)[..., :2].min() > 0.5


@pytest.mark.parametrize(
    ("kind", "name"),
    [(PlugAndPlay, "epsilon"), (PlugAndPlay, "v"), (PromptToPrompt, "epsilon"), (PromptToPrompt, "xl")],
)
def test_the_prompt_of_the_original_gives_the_original_back(calm: dict[str, str], name: str, kind: Any) -> None:
    common = {"model": calm[name], "steps": 20, "strength": 0.2, "refine": 6, "source_prompt": "red stripes"}
    with torch.no_grad():
        model, source = load_model(WeightsSource(calm[name], "cpu")), Still()
        image = torch.from_numpy(source.pictures["foreground"].rgba[..., :3]).permute(2, 0, 1)[None].contiguous()
        expected = model.decode_latents(model.encode_images(image))[0].permute(1, 2, 0)[8:24, 8:24]
    same = shown(kind(prompt="red stripes", guidance=1.0, **common).edit(source, report_nothing))
    torch.testing.assert_close(same[8:24, 8:24, :3], expected, atol=0.02, rtol=0)
    other = shown(kind(prompt="blue dots", guidance=20.0, **common).edit(source, report_nothing))
    assert (other - same)[..., :3].abs().max() > (same[8:24, 8:24, :3] - expected).abs().max()
    assert (same[0, :, 3] == 0).all() and (same[8:24, 8:24, 3] == 1).all()


# Plug-and-play


def test_features_are_taken_a_third_into_the_decoder_which_is_layer_4_of_stable_diffusion(
    tiny_models: ModuleType,
) -> None:
    from diffusers import UNet2DConditionModel

    unet = UNet2DConditionModel(
        block_out_channels=(8,) * 4, cross_attention_dim=8, attention_head_dim=4, norm_num_groups=4
    )
    kept = select_decoder_features(unet)
    assert list(kept.convolutions) == ["up_blocks.1.resnets.1.conv2"]
    parts = [name.split(".transformer")[0] for name in kept.layers]
    assert parts == [f"up_blocks.{b}.attentions.{i}" for b in (1, 2, 3) for i in range(3)][1:]


def test_each_feature_is_used_for_its_share_of_the_steps(
    folders: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from editors.diffusion.common.attention import FeatureRecorder

    used: list[tuple[bool, bool]] = []
    injecting = FeatureRecorder.inject_features

    def watch(self: FeatureRecorder, model: Any, processors: Any, outputs: bool = True) -> Any:
        used.append((bool(processors), outputs))
        return injecting(self, model, processors, outputs)

    monkeypatch.setattr(FeatureRecorder, FeatureRecorder.inject_features.__name__, watch)
    PlugAndPlay(model=folders["epsilon"], prompt="blue dots", steps=10, refine=0).edit(Still(), report_nothing)
    assert used == [(True, True)] * 5 + [(False, True)] * 3


# Prompt-to-prompt


def exchange(model: DiffusionModel, before: str, after: str, **factors: float) -> WordExchange:
    return WordExchange.align_prompts(model.pipeline.tokenizer, before, after, factors, 77)


@pytest.mark.parametrize("prompt", ["A red car, don't move!", "two  cats (1977) on a mat", "blue-dots", "z" * 99])
def test_words_know_their_tokens(model: DiffusionModel, prompt: str) -> None:
    tokenizer = model.pipeline.tokenizer
    whole = tokenizer(prompt, padding="max_length", max_length=77, truncation=True).input_ids
    for word in ("car", "don't", "cats", "mat", "blue-dots"):
        numbers = find_word_tokens(tokenizer, prompt, [word.upper()])
        assert bool(numbers) == (word in prompt)
        assert [whole[n] for n in numbers] == (
            tokenizer(word, add_special_tokens=False).input_ids if word in prompt else []
        )
    assert max(find_word_tokens(tokenizer, prompt, prompt.split()), default=0) <= 75


def test_equal_prompts_exchange_all_maps_for_their_own(model: DiffusionModel) -> None:
    found = exchange(model, "a red car", "a red car")
    assert torch.equal(found.column_weights, torch.eye(77)) and torch.equal(found.original_share, torch.ones(77))


def test_a_swapped_word_takes_the_place_of_the_other_and_the_rest_moves_along(model: DiffusionModel) -> None:
    found = exchange(model, "a cat sat", "a horse sat")  # each letter is a token here: "a" is 1, "cat" 2 to 4
    assert torch.equal(found.column_weights[2:5, 2:7], torch.full((3, 5), 1 / 5)) and found.original_share.min() == 1
    assert (
        torch.equal(found.column_weights[5:8, 7:10], torch.eye(3)) and found.column_weights[8, 10] == 1
    )  # "sat", the end
    swapped = exchange(model, "a cat sat", "a dog sat")
    assert torch.equal(swapped.column_weights, torch.eye(77))


def test_an_added_word_has_maps_of_its_own(model: DiffusionModel) -> None:
    found = exchange(model, "a car", "a red car", red=2.0)
    assert torch.equal(found.original_share[:10], torch.tensor([1, 1, 0, 0, 0, 1, 1, 1, 1, 1.0]))
    assert torch.equal(found.column_weights[2:5, 5:8], torch.eye(3))
    assert torch.equal(found.word_factors[:8], torch.tensor([1, 1, 2, 2, 2, 1, 1, 1.0]))


def test_maps_are_mixed_as_loops_over_words_say() -> None:
    generator = torch.Generator().manual_seed(0)
    held = (torch.randn(1, 2, 3, 4, generator=generator), torch.randn(1, 2, 5, 4, generator=generator))
    query, key, value = (torch.randn(2, 2, n, 4, generator=generator) for n in (3, 5, 5))
    taken = torch.zeros(5, 5)
    taken[0, 0] = taken[2, 1] = taken[4, 4] = 1
    taken[1:3, 3] = 0.5
    some = WordExchange(taken, torch.tensor([1, 1, 0, 1, 1.0]), torch.tensor([1, 1, 2, 0.5, 1]))
    old, new = compute_attention_maps(*held), compute_attention_maps(query[1:], key[1:])
    torch.testing.assert_close(old.sum(-1), torch.ones(1, 2, 3))
    expected = torch.zeros(1, 2, 3, 4)
    for h, p, w in np.ndindex(2, 3, 5):
        column = sum(taken[x, w] * old[0, h, p, x] for x in range(5)) if some.original_share[w] else new[0, h, p, w]
        expected[0, h, p] += some.word_factors[w] * column * value[1, h, w]
    mixed = some.attend(True, None, held, query, key, value)
    torch.testing.assert_close(mixed[1:], expected)
    torch.testing.assert_close(
        mixed[:1], compute_attention_maps(query[:1], key[:1]) @ value[:1]
    )  # what sees no prompt stays
    nothing = WordExchange(torch.eye(5), torch.ones(5), torch.ones(5))
    torch.testing.assert_close(
        nothing.attend(False, None, held, query, key, value),
        compute_attention_maps(query, key) @ value,
        atol=1e-5,
        rtol=1e-5,
    )


def test_a_picture_changes_only_where_its_words_show() -> None:
    places = LocalBlendMask([1], [2], _size=(8, 16), _settled=True)
    old, new = torch.zeros(1, 2, 32, 3), torch.zeros(1, 2, 32, 3)  # 4 rows, 8 columns
    old[..., 0, 1] = 1  # in the first corner
    new[..., 31, 2] = 1  # in the last
    places.accumulate_maps(old, new)
    mask = places.compute_mask()
    assert mask.shape == (1, 1, 8, 16) and mask[0, 0, 0, 0] == mask[0, 0, -1, -1] == 1
    assert mask[0, 0, -1, 0] == mask[0, 0, 0, -1] == mask[0, 0, 4, 8] == 0


def test_words_can_be_weighted_and_bound_to_their_place(folders: dict[str, str]) -> None:
    common: dict[str, Any] = {
        "model": folders["epsilon"],
        "steps": STEPS,
        "refine": 0,
        "source_prompt": "red dots",
        "prompt": "blue dots",
    }
    alike = shown(PromptToPrompt(**common).edit(Still(), report_nothing))
    stronger = shown(PromptToPrompt(**common, weight=("Blue=5",)).edit(Still(), report_nothing))
    bound = shown(PromptToPrompt(**common, local_blend=("dots",)).edit(Still(), report_nothing))
    assert (stronger - alike).abs().max() > 1e-3 and torch.isfinite(bound).all()
    with pytest.raises(UserError, match="blend"):
        PromptToPrompt(**common, local_blend=("dots",), side=64).edit(Still(), report_nothing)


# What users get wrong


@pytest.mark.parametrize(
    ("kind", "settings", "word"),
    [
        (PlugAndPlay, {"features": 1.5}, "features"),
        (PlugAndPlay, {"attention": -0.1}, "attention"),
        (PlugAndPlay, {"strength": 0.0}, "strength"),
        (PlugAndPlay, {"refine": -1}, "refine"),
        (PromptToPrompt, {"source_prompt": " "}, "source-prompt"),
        (PromptToPrompt, {"cross": 2.0}, "cross"),
        (PromptToPrompt, {"weight": ("dots",)}, "weight"),
        (PromptToPrompt, {"weight": ("dots=much",)}, "weight"),
        (PromptToPrompt, {"weight": ("stripes=2",)}, "no word of the prompt|weight"),
        (PromptToPrompt, {"local_blend": ("stripes",)}, "blend"),
    ],
)
def test_settings_that_cannot_work_are_refused_with_a_flag_to_try(kind: Any, settings: Any, word: str) -> None:
    with pytest.raises(UserError, match=word) as caught:
        kind(**({"model": "m", "prompt": "blue dots", "source_prompt": "red dots"} | settings))
    assert caught.value.code == ExitCode.USAGE and caught.value.fix.startswith("--")


@pytest.mark.parametrize("kind", [PlugAndPlay, PromptToPrompt])
def test_a_transformer_is_refused(folders: dict[str, str], kind: Any) -> None:
    with pytest.raises(UserError, match="attention cannot be changed"):
        kind(model=folders["flow"], prompt="blue dots", source_prompt="red dots").edit(Still(), report_nothing)


def test_a_picture_larger_than_the_model_is_edited_window_by_window(folders: dict[str, str]) -> None:
    result = PlugAndPlay(model=folders["epsilon"], prompt="blue dots", steps=2, refine=0, side=64).edit(
        Still(), report_nothing
    )
    assert max(result.overlays["foreground"].size) == 64 and np.isfinite(result.overlays["foreground"].rgba).all()
