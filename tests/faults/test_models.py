"""What models compute is a picture, or refused: no edit is made of values that are no numbers, or of black and gray."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from editors.api import edit
from editors.core.model_pictures import check_model_picture
from editors.diffusion.backend.diffusers_model import DiffusionModel
from editors.diffusion.backend.instruction_pipelines import Instruction, run_instruction
from editors.diffusion.backend.noise_schedule import NoiseSchedule
from editors.diffusion.common.canvas import open_canvas, split_into_overlays
from editors.diffusion.methods.sds import ScoreObjective
from editors.effects.style_network import StyleNetwork, stylize_picture
from neural_fields.atlas.canonical import CanonicalImage
from neural_fields.core.box import Box
from neural_fields.core.errors import UserError
from neural_fields.open_runs.opening import require_planar
from neural_fields.runs.run import Run

VARIED = torch.rand(1, 3, 24, 32, generator=torch.Generator().manual_seed(0))


def fill(*color: float) -> torch.Tensor:
    return torch.tensor(color)[None, :, None, None].expand_as(VARIED).clone()


def break_weights(folder: Path, part: str, name: str) -> None:
    """Puts NaN into one tensor of a part of a model, as half precision does while it computes."""
    from safetensors.torch import load_file, save_file

    path = folder / part / "diffusion_pytorch_model.safetensors"
    weights = load_file(path)
    weights[name].fill_(float("nan"))
    save_file(weights, path)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("part", "name", "words"),
    [
        ("vae", "decoder.conv_in.weight", "the VAE of the model"),
        ("unet", "conv_out.weight", "the denoiser of the model"),
    ],
)
def test_f39a_nothing_is_taken_from_nan(
    moving_run: Run, tiny_models: ModuleType, tmp_path: Path, part: str, name: str, words: str
) -> None:
    shutil.copytree(moving_run.path, tmp_path / "run")
    model = tiny_models.stable_diffusion(tmp_path / "model")
    break_weights(model, part, name)
    with pytest.raises(UserError, match=words) as problem:
        edit(tmp_path / "run", editor="inpaint", model=str(model), prompt="blue dots", steps=2, side=32)
    assert "fp32" in problem.value.fix and "another VAE" in problem.value.fix
    assert not require_planar(tmp_path / "run", "the test").edits


def test_f39a_infinite_values_and_single_ones_are_no_picture_either() -> None:
    config = SimpleNamespace(block_out_channels=(1, 1), latent_channels=4, scaling_factor=1.0, sample_size=16)
    vae = SimpleNamespace(config=config, parameters=lambda: iter([torch.zeros(1)]))
    unet = SimpleNamespace(config=config)
    kept = torch.linspace(0.999, 0.1, 100)
    scheduler = SimpleNamespace(config={"prediction_type": "epsilon"}, alphas_cumprod=kept)
    model = DiffusionModel(SimpleNamespace(vae=vae, unet=unet, scheduler=scheduler), torch.device("cpu"))
    for broken in (float("nan"), float("inf")):
        picture = VARIED.clone()
        picture[0, 1, 2, 3] = broken
        vae.decode = lambda latents, picture=picture: SimpleNamespace(sample=picture)
        with pytest.raises(UserError, match="no numbers"):
            model.decode_latents(torch.zeros(1, 4, 12, 16))
        with pytest.raises(UserError, match="the denoiser"):
            model.decode_latents(torch.full((1, 4, 12, 16), broken))


@pytest.mark.parametrize("gray", [0.0, 0.5, 1.0])
def test_f39a_one_color_is_no_picture_where_there_was_one(gray: float) -> None:
    nothing = fill(gray, gray, gray) + 0.002 * torch.randn(VARIED.shape, generator=torch.Generator().manual_seed(1))
    with pytest.raises(UserError, match="of one color"):
        check_model_picture(nothing, VARIED)
    region = torch.zeros(1, 1, 24, 32)
    region[..., 6:18, 8:24] = 1
    with pytest.raises(UserError, match="a region of one color"):
        check_model_picture(VARIED * (1 - region) + nothing * region, 0.4 + 0.2 * VARIED - 0.2 * (gray == 0.5), region)


def test_f39a_one_color_is_taken_where_it_may_be_meant() -> None:
    region = torch.zeros(1, 1, 24, 32)
    region[..., 6:18, 8:24] = 1
    wall = fill(0.5, 0.5, 0.5)
    check_model_picture(wall, fill(0.2, 0.3, 0.4))  # one color before, too
    check_model_picture(wall, wall * (1 - region) + VARIED * region, region)  # something was taken off a gray wall
    flat = VARIED * (1 - region) + wall * region
    check_model_picture(VARIED * (1 - region) + 0 * region, flat, region)  # what was flat stays flat
    red = VARIED * (1 - region) + fill(0.9, 0.1, 0.1) * region
    check_model_picture(red, VARIED, region)  # a color that nobody computes by mistake
    speck = torch.zeros_like(region)
    speck[..., :5, :5] = 1
    check_model_picture(VARIED * (1 - speck), VARIED, speck)  # a few pixels


def test_f39a_an_overlay_of_a_region_is_checked_against_what_the_layer_showed() -> None:
    rgb = torch.rand(3, 40, 40, generator=torch.Generator().manual_seed(2))
    rgba = torch.cat([rgb, torch.ones(1, 40, 40)]).movedim(0, -1).contiguous().numpy()
    picture = CanonicalImage(rgba, Box(-1.0, -1.0, 1.0, 1.0), "foreground")
    canvas = open_canvas(picture, np.ones((40, 40), np.float32), 40, 8)
    assert list(split_into_overlays(canvas.image.flip(3), [canvas], 8)) == ["foreground"]
    with pytest.raises(UserError, match="#000000"):
        split_into_overlays(torch.zeros_like(canvas.image), [canvas], 8)


def test_f39a_pipelines_with_their_own_loop_are_checked_too() -> None:
    class BlackPipeline:
        def __call__(self, image: Any, prompt: str) -> Any:
            return SimpleNamespace(images=torch.full((1, 3, 24, 32), float("nan")))

        def set_progress_bar_config(self, disable: bool) -> None:
            pass

    with pytest.raises(UserError, match="no numbers"):
        run_instruction(BlackPipeline(), VARIED, Instruction("make it blue"))


def test_f39a_score_distillation_stops_where_a_model_computes_nothing_but_nan() -> None:
    schedule = NoiseSchedule.from_config({"prediction_type": "epsilon"}, torch.linspace(0.99, 0.1, 10))
    picture = VARIED.clone().requires_grad_(True)
    for share, breaks in ((1.0, True), (0.5, False)):

        def score(at: Any, share: float = share) -> torch.Tensor:
            found = torch.ones_like(at.clean)
            found.view(-1)[: int(share * found.numel())] = float("nan")
            return found

        objective = ScoreObjective(lambda pixels: 2 * pixels, score, schedule)
        if breaks:
            with pytest.raises(UserError, match="nothing but values that are no numbers"):
                objective.compute_loss(picture, VARIED, 5, torch.Generator())
        else:
            assert torch.isfinite(objective.compute_loss(picture, VARIED, 5, torch.Generator()))


def test_f39a_a_style_network_that_paints_one_gray_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    network = StyleNetwork({})
    monkeypatch.setattr(StyleNetwork, "forward", lambda self, rgb: torch.full_like(rgb, 127.5))
    with pytest.raises(UserError, match="of one color, #808080"):
        stylize_picture(network, VARIED[0].permute(1, 2, 0).numpy())
    monkeypatch.setattr(StyleNetwork, "forward", lambda self, rgb: rgb * float("nan"))
    with pytest.raises(UserError, match="no numbers"):
        stylize_picture(network, VARIED[0].permute(1, 2, 0).numpy())


@pytest.mark.slow
def test_f39a_a_function_of_the_user_that_returns_nan_makes_no_edit(moving_run: Run, tmp_path: Path) -> None:
    shutil.copytree(moving_run.path, tmp_path / "run")
    for broken in (float("nan"), float("inf")):
        with pytest.raises(UserError, match="not finite"):
            edit(tmp_path / "run", editor=lambda rgb, broken=broken: np.where(rgb > 0.4, np.float32(broken), rgb))
        with pytest.raises(UserError):
            edit(tmp_path / "run", lambda rgba, broken=broken: np.full_like(rgba, broken), layer="foreground")
    assert not require_planar(tmp_path / "run", "the test").edits
    journal = tmp_path / "run/edits/journal.jsonl"
    assert not journal.exists() or not [json.loads(line) for line in journal.read_text().splitlines()]


@pytest.mark.slow
def test_f39a_a_black_picture_of_an_upscaler_is_refused(moving_run: Run, tmp_path: Path) -> None:
    shutil.copytree(moving_run.path, tmp_path / "run")
    width, height = require_planar(tmp_path / "run", "the test").canonical("background").size
    black = np.zeros((2 * height, 2 * width, 3), np.float32)
    with pytest.raises(UserError, match="of one color, #000000") as problem:
        edit(tmp_path / "run", black, layer="background", upscaled=True)
    assert "fp32" in problem.value.fix
