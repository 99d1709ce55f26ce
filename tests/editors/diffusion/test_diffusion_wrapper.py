"""The wrapper reads the folder layouts of real models and says the same as diffusers' own pipelines."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest
import torch

from editors.diffusion.backend.diffusers_model import ControlInput, DiffusionModel, load_controlnet, load_model
from editors.diffusion.backend.sampling import denoise_latents, noise_to_start
from editors.diffusion.backend.weights import WeightsSource

pytestmark = pytest.mark.slow

LAYOUTS = ("stable_diffusion", "stable_diffusion_xl", "stable_diffusion_3")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, tiny_models: ModuleType) -> dict[str, DiffusionModel]:
    folder = tmp_path_factory.mktemp("models")
    made = {name: getattr(tiny_models, name)(folder / name) for name in LAYOUTS}
    made["v"] = tiny_models.stable_diffusion(folder / "v", kind="v_prediction")
    return {name: load_model(WeightsSource(str(path), device="cpu")) for name, path in made.items()}


@pytest.fixture(scope="module")
def control(tmp_path_factory: pytest.TempPathFactory, tiny_models: ModuleType) -> Path:
    return tiny_models.controlnet(tmp_path_factory.mktemp("control"))


def picture(n: int = 1, side: int = 32) -> torch.Tensor:
    return torch.rand(n, 3, side, side, generator=torch.Generator().manual_seed(7))


@pytest.mark.parametrize("name", [*LAYOUTS, "v"])
@torch.no_grad()
def test_every_layout_encodes_denoises_and_decodes(models: dict[str, DiffusionModel], name: str) -> None:
    model = models[name]
    assert (model.trained_side, model.pixels_per_latent) == (32, 2)
    latents = model.encode_images(picture(2))
    assert latents.shape == (2, 4, 16, 16)
    text = model.encode_prompt("blue dots", "red")
    times = model.schedule.select_times(3)
    noised = noise_to_start(latents, model.draw_noise(latents, 0), times, model.schedule)
    clean = denoise_latents(noised, times, model.schedule, lambda x, t: model.predict_denoised(x, t, text, 5.0))
    shown = model.decode_latents(clean)
    assert shown.shape == (2, 3, 32, 32) and shown.isfinite().all() and 0 <= shown.min() <= shown.max() <= 1


@torch.no_grad()
def test_the_loop_makes_the_picture_that_diffusers_pipeline_makes(models: dict[str, DiffusionModel]) -> None:
    model = models["stable_diffusion"]
    noise = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(1))
    text, times = model.encode_prompt("blue dots", "red"), model.schedule.select_times(4)
    ours = denoise_latents(noise, times, model.schedule, lambda x, t: model.predict_denoised(x, t, text, 5.0))
    before = model.pipeline.scheduler
    # Our last step ends at the clean picture itself.
    model.pipeline.scheduler = type(before).from_config(before.config, set_alpha_to_one=True)
    model.pipeline.set_progress_bar_config(disable=True)
    theirs = model.pipeline(
        "blue dots",
        negative_prompt="red",
        num_inference_steps=4,
        guidance_scale=5.0,
        latents=noise,
        output_type="latent",
    ).images
    model.pipeline.scheduler = before
    # The last of their steps goes from time 1 to time -249, where there is only the picture.
    torch.testing.assert_close(ours, theirs, atol=2e-3, rtol=1e-3)


@torch.no_grad()
def test_guidance_leads_from_the_negative_prompt_to_the_prompt(models: dict[str, DiffusionModel]) -> None:
    model = models["stable_diffusion"]
    latents, text = model.draw_noise(torch.zeros(1, 4, 16, 16), 3), model.encode_prompt("blue", "red")
    without, with_text = model.run_denoiser(latents, 500, text)
    found = model.predict_denoised(latents, 500, text, 4.0).noise
    torch.testing.assert_close(found, without + 4 * (with_text - without), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(model.predict_denoised(latents, 500, text, 1.0).noise, with_text, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_controls_change_the_result_and_none_at_scale_zero(models: dict[str, DiffusionModel], control: Path) -> None:
    model = models["stable_diffusion"]
    network = load_controlnet(WeightsSource(str(control), device="cpu"), model)
    for parameter in network.parameters():  # a fresh ControlNet begins with layers of zeros
        torch.nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(0))
    latents, text = model.draw_noise(torch.zeros(2, 4, 16, 16), 3), model.encode_prompt("blue")
    plain = model.predict_denoised(latents, 500, text, 1.0).noise
    edges = picture()
    off = model.predict_denoised(latents, 500, text, 1.0, controls=[ControlInput(network, edges, 0.0)]).noise
    once = model.predict_denoised(latents, 500, text, 1.0, controls=[ControlInput(network, edges, 1.0)]).noise
    halves = [ControlInput(network, edges, 0.5), ControlInput(network, edges, 0.5)]
    torch.testing.assert_close(off, plain, atol=1e-5, rtol=1e-4)
    assert (once - plain).abs().max() > 1e-3
    torch.testing.assert_close(
        model.predict_denoised(latents, 500, text, 1.0, controls=halves).noise, once, atol=1e-4, rtol=1e-3
    )


@torch.no_grad()
def test_a_picture_larger_than_the_model_s_is_seen_in_windows(models: dict[str, DiffusionModel]) -> None:
    model = models["stable_diffusion"]
    assert model.unet is not None
    text, sides = model.encode_prompt("blue"), []
    handle = model.unet.register_forward_pre_hook(lambda module, given: sides.append(tuple(given[0].shape[-2:])))
    found = model.predict_denoised(torch.zeros(1, 4, 40, 22), 500, text, 1.0)
    handle.remove()
    assert found.clean.shape == (1, 4, 40, 22) and len(sides) > 1
    assert all(max(side) <= 16 for side in sides)


def test_encoding_passes_gradients_to_the_picture(models: dict[str, DiffusionModel]) -> None:
    shown = picture().requires_grad_()
    models["stable_diffusion"].encode_images(shown).square().sum().backward()
    assert shown.grad is not None and shown.grad.abs().sum() > 0


def test_other_attention_is_taken_back_afterwards(models: dict[str, DiffusionModel]) -> None:
    model = models["stable_diffusion"]
    assert model.unet is not None
    before = dict(model.unet.attn_processors)
    other = object.__new__(type(next(iter(before.values()))))
    with model.replace_attention({next(iter(before)): other}):
        assert next(iter(model.unet.attn_processors.values())) is other
    assert dict(model.unet.attn_processors) == before


def test_a_lora_and_a_taught_word_change_what_a_model_says(
    models: dict[str, DiffusionModel], tmp_path: Path, tiny_models: ModuleType
) -> None:
    from safetensors.torch import save_file

    folder = tiny_models.stable_diffusion(tmp_path / "sd")
    word = tmp_path / "sparkle.safetensors"
    save_file({"emb_params": torch.ones(1, tiny_models.WIDTH)}, str(word))
    style = tmp_path / "style.safetensors"
    unet = models["stable_diffusion"].unet
    assert unet is not None
    layers = [name for name, module in unet.named_modules() if name.endswith("attn2.to_v")]
    change = {}
    for name in layers:
        rows, columns = unet.get_submodule(name).weight.shape
        change[f"unet.{name}.lora_A.weight"] = torch.randn(2, columns)
        change[f"unet.{name}.lora_B.weight"] = torch.randn(rows, 2)
    save_file(change, str(style))
    with torch.no_grad():
        tuned = load_model(WeightsSource(str(folder), "cpu", loras=(f"{style}@0.5",), embeddings=(str(word),)))
        latents = torch.zeros(1, 4, 16, 16)
        plain, text = models["stable_diffusion"], tuned.encode_prompt("sparkle")
        assert (
            tuned.predict_denoised(latents, 500, text, 1.0).noise
            - plain.predict_denoised(latents, 500, text, 1.0).noise
        ).abs().max() > 1e-4
        assert (text.states - plain.encode_prompt("sparkle").states).abs().max() > 1e-3
