"""Instructions: the guidance of InstructPix2Pix is its equation; other instruction editors are called as they ask."""

from __future__ import annotations

from functools import cached_property
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from editors.core.source import EditSource
from editors.diffusion.backend.diffusers_model import DiffusionModel, load_pipeline
from editors.diffusion.backend.instruction_pipelines import Instruction, check_instruction_pipeline, run_instruction
from editors.diffusion.backend.noise_schedule import NoiseSchedule
from editors.diffusion.backend.weights import WeightsSource
from editors.diffusion.methods.instruct import Instruct, combine_guidance, predict_guided
from neural_fields.atlas.canonical import CanonicalImage
from neural_fields.core.box import Box
from neural_fields.core.errors import ExitCode, UserError
from neural_fields.core.progress import report_nothing

pytestmark = pytest.mark.slow


class Still(EditSource):
    """A source of one picture, without a run behind it."""

    layers = ("foreground",)

    def __init__(self) -> None:
        """There is nothing to open."""

    @cached_property
    def pictures(self) -> dict[str, CanonicalImage]:
        rgba = torch.rand(4, 32, 48, generator=torch.Generator().manual_seed(0))
        rgba[3] = 1
        pixels = rgba.movedim(0, -1).contiguous().numpy()
        return {"foreground": CanonicalImage(pixels, Box(-1.0, -1.0, 1.0, 1.0), "foreground")}

    def read_region(self, layer: str) -> np.ndarray:
        region = np.zeros((32, 48), np.float32)
        region[4:20, 6:30] = 1
        return region


@pytest.fixture(scope="module")
def folders(tiny_models: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    from tests.support import tiny_instruct as tiny

    folder = tmp_path_factory.mktemp("models")
    return {
        "pix2pix": str(tiny.pix2pix(tiny_models, folder / "pix2pix")),
        "xl": str(tiny.pix2pix_xl(tiny_models, folder / "xl")),
        "kontext": str(tiny.kontext(tiny_models, folder / "kontext")),
        "qwen": str(tiny.qwen_edit(folder / "qwen")),
        "plain": str(tiny_models.stable_diffusion(folder / "plain")),
        "inpainting": str(tiny_models.stable_diffusion(folder / "inpainting", inputs=9)),
        "sd3": str(tiny_models.stable_diffusion_3(folder / "sd3")),
    }


def edited(folder: str, **settings: Any) -> np.ndarray:
    settings = {"prompt": "make it blue", "steps": 2, **settings}
    return Instruct(model=folder, **settings).edit(Still(), report_nothing).overlays["foreground"].rgba


@pytest.mark.parametrize("kind", ["epsilon", "sample", "v_prediction", "flow"])
def test_two_guidances_are_equation_3_whatever_is_predicted(kind: Any) -> None:
    level = torch.tensor([0.4])
    schedule = NoiseSchedule((1 - level) if kind == "flow" else (1 - level**2).sqrt(), level, level, kind)
    latents, neither, image, both = torch.randn(4, 1, 2, 3, 3, generator=torch.Generator().manual_seed(0))
    found = combine_guidance(
        schedule, latents, 0, schedule.decompose_output(latents, neither, 0), image, both, (7.5, 1.5)
    )
    expected = schedule.decompose_output(latents, neither + 1.5 * (image - neither) + 7.5 * (both - image), 0)
    torch.testing.assert_close(found.clean, expected.clean, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found.noise, expected.noise, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_the_denoiser_is_asked_with_nothing_with_the_picture_and_with_both(folders: dict[str, str]) -> None:
    model = DiffusionModel(*load_pipeline(WeightsSource(folders["pix2pix"], "cpu"), lambda kind: None))
    latents, shown = torch.randn(2, 1, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    text = model.encode_prompt("make it blue", "red")
    unet = model.unet
    assert unet is not None

    def asked(picture: torch.Tensor, row: int) -> torch.Tensor:
        states = text.states[row : row + 1]
        return unet(torch.cat([latents, picture], dim=1), 500, states).sample

    neither, image, both = asked(torch.zeros_like(shown), 0), asked(shown, 0), asked(shown, 1)
    expected = neither + 2.0 * (image - neither) + 5.0 * (both - image)
    found = predict_guided(model, latents, 500, text, shown, 5.0, 2.0)
    torch.testing.assert_close(found.noise, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["pix2pix", "xl", "kontext", "qwen"])
def test_every_kind_of_model_changes_the_region_and_nothing_else(
    folders: dict[str, str], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if name == "qwen":  # it looks at every picture at a million pixels
        from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit as own

        sized = own.calculate_dimensions
        monkeypatch.setattr(own, "calculate_dimensions", lambda area, ratio: sized(128 * 128, ratio))
    rgba = edited(folders[name], side=32)
    assert np.isfinite(rgba).all() and 0.1 < (rgba[..., 3] > 0).mean() < 1
    assert (rgba[rgba[..., 3] == 0] == 0).all()
    if name != "qwen":  # a random model of its kind hardly hears what it is told
        assert (edited(folders[name], side=32) == rgba).all()
        assert not (edited(folders[name], side=32, seed=1) == rgba).all()
        assert not (edited(folders[name], side=32, prompt="make it a cat") == rgba).all()


class Fake:
    """A pipeline that shows what it is called with."""

    def set_progress_bar_config(self, disable: bool) -> None:
        self.quiet = disable


class Kontext(Fake):
    def __call__(self, image, prompt, negative_prompt=None, true_cfg_scale=1.0, height=None, width=None,
                 num_inference_steps=28, guidance_scale=3.5, generator=None, output_type="pil",
                 callback_on_step_end=None, max_area=1024**2, _auto_resize=True):  # fmt: skip
        self.got = dict(locals())
        for i in range(num_inference_steps):
            callback_on_step_end(self, i, 0, {})
        return type("Output", (), {"images": torch.full((1, 3, 2 * height, 2 * width), 0.25)})


class Qwen(Fake):
    def __call__(self, image, prompt, negative_prompt=None, true_cfg_scale=4.0, height=None, width=None,
                 num_inference_steps=50, guidance_scale=None, generator=None, output_type="pil"):  # fmt: skip
        self.got = dict(locals())
        return type("Output", (), {"images": torch.full((1, 3, height, width), 0.5)})


def test_a_pipeline_is_given_what_it_has_a_name_for_and_its_picture_comes_back_in_size() -> None:
    image = torch.zeros(1, 3, 4, 6)
    image[:, 0] = 1
    kontext, steps = Kontext(), []
    made = run_instruction(
        kontext, image, Instruction("blue", steps=3), lambda progress: steps.append((progress.done, progress.total))
    )
    assert made.shape == image.shape and (made - 0.25).abs().max() < 1e-6
    assert steps == [(1, 3), (2, 3), (3, 3)]
    got = kontext.got
    assert got["image"].size == (6, 4) and got["image"].getpixel((0, 0)) == (255, 0, 0)
    assert (got["height"], got["width"], got["max_area"]) == (4, 6, 24) and kontext.quiet
    assert (got["guidance_scale"], got["true_cfg_scale"], got["negative_prompt"]) == (3.5, 1.0, None)
    assert got["generator"].initial_seed() == 0 and got["_auto_resize"]


def test_guidance_goes_where_a_pipeline_has_it() -> None:
    image = torch.zeros(1, 3, 4, 6)
    kontext, qwen = Kontext(), Qwen()
    run_instruction(kontext, image, Instruction("blue", guidance=2.0, own_size=False))
    assert kontext.got["guidance_scale"] == 2.0 and not kontext.got["_auto_resize"]
    run_instruction(qwen, image, Instruction("blue"))
    assert qwen.got["true_cfg_scale"] == 4.0 and qwen.got["negative_prompt"] == " "
    run_instruction(qwen, image, Instruction("blue", "red", guidance=2.0))
    assert (qwen.got["true_cfg_scale"], qwen.got["guidance_scale"], qwen.got["negative_prompt"]) == (2.0, None, "red")


@pytest.mark.parametrize("name", ["plain", "inpainting", "sd3"])
def test_a_model_that_follows_no_instructions_is_refused(folders: dict[str, str], name: str) -> None:
    with pytest.raises(UserError) as caught:
        edited(folders[name])
    assert caught.value.code == ExitCode.BAD_INPUT and "instruct" in str(caught.value)
    assert caught.value.fix.startswith("--editor")


@pytest.mark.parametrize("takes", [{}, {"prompt": None}, {"image": None, "prompt": None, "strength": 0.8}])
def test_a_pipeline_without_picture_or_with_an_amount_of_noise_is_refused(takes: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="is a SomePipeline"):
        check_instruction_pipeline("folder", "SomePipeline", takes)


@pytest.mark.parametrize(
    ("settings", "word"),
    [({"image_guidance": -1.0}, "image-guidance"), ({"prompt": ""}, "prompt"), ({"steps": 0}, "steps")],
)
def test_settings_that_cannot_work_are_refused_with_a_flag_to_try(settings: dict[str, Any], word: str) -> None:
    with pytest.raises(UserError, match=word) as caught:
        Instruct(**({"model": "m", "prompt": "make it blue"} | settings))
    assert caught.value.code == ExitCode.USAGE and caught.value.fix.startswith("--")
