"""Editors that repaint a region (inpaint, img2img, controlnet, videdit), what they follow, and regions from words."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from editors.cli.main import main
from editors.core.editor import EditorResult
from editors.core.source import EditSource
from editors.diffusion.backend.diffusers_model import load_model
from editors.diffusion.backend.noise_schedule import DenoisedLatents, Latents, NoiseSchedule
from editors.diffusion.backend.weights import WeightsSource
from editors.diffusion.common import control_images, region
from editors.diffusion.common.canvas import open_canvas
from editors.diffusion.methods.controlnet import ControlNet
from editors.diffusion.methods.img2img import Img2Img
from editors.diffusion.methods.inpaint import Inpaint, repaint_regions
from editors.diffusion.methods.videdit import VidEdit
from editors.options.controls import ControlRequest, parse_control
from neural_fields.atlas import canonical
from neural_fields.atlas.canonical import CanonicalImage
from neural_fields.atlas.placed_picture import draw_paint
from neural_fields.core import coords
from neural_fields.core.box import Box
from neural_fields.core.errors import ExitCode, UserError
from neural_fields.core.progress import Progress, report_nothing
from neural_fields.open_runs.opening import require_planar
from neural_fields.planar.build import build_model
from neural_fields.planar.config import PlanarConfig
from neural_fields.planar.init.model_shape import LayerShape, ModelShape
from neural_fields.runs.run import Run, write_run_yaml
from neural_fields.training.bake import bake_maps

pytestmark = pytest.mark.slow

SIZES = {"foreground": (36, 28), "background": (60, 40)}
BOXES = {"foreground": Box(-0.6, -0.4, 0.6, 0.5), "background": Box(-1.2, -0.8, 1.2, 0.8)}
FEW: dict[str, Any] = {"prompt": "blue dots", "steps": 2}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> EditSource:
    """A run of two layers; the foreground is a disc."""
    run = Run.create(tmp_path_factory.mktemp("inpaint") / "run")
    layers = tuple(LayerShape(name, BOXES[name], *SIZES[name]) for name in SIZES)
    bake_maps(run, build_model(PlanarConfig(), ModelShape(48, 32, 2, layers)).eval(), 1)
    generator = torch.Generator().manual_seed(0)
    for name, (width, height) in SIZES.items():
        coarse = torch.rand(1, 3, 5, 7, generator=generator)
        rgb = torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear")[0]
        uv = coords.texel_centers(BOXES[name], width, height)
        seen = (uv.norm(dim=-1) < 0.38).float() if name == "foreground" else torch.ones(height, width)
        rgba = torch.cat([rgb, seen[None]]).movedim(0, -1).contiguous().numpy()
        canonical.export_canonical(run.canonical, CanonicalImage(rgba, BOXES[name], name))
    write_run_yaml(run, {})
    return EditSource(require_planar(run, "the test"), ("foreground",))


@pytest.fixture(scope="module")
def models(tiny_models: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    """Folders of tiny models by name, made when they are first asked for."""
    folder = tmp_path_factory.mktemp("models")
    makers: dict[str, Callable[[Path], Any]] = {
        "plain": tiny_models.stable_diffusion,
        "inpainting": lambda path: tiny_models.stable_diffusion(path, inputs=9),
        "instructions": lambda path: tiny_models.stable_diffusion(path, inputs=8),
        "xl": tiny_models.stable_diffusion_xl,
        "flow": tiny_models.stable_diffusion_3,
        "control": tiny_models.controlnet,
        "clipseg": lambda path: clipseg(tiny_models, path),
        "depth": depth_anything,
    }

    def made(name: str) -> str:
        if not (folder / name).exists():
            makers[name](folder / name)
        return str(folder / name)

    return made


def clipseg(tiny_models: ModuleType, folder: Path) -> None:
    from transformers import CLIPSegConfig, CLIPSegForImageSegmentation

    torch.manual_seed(0)
    text: dict[str, Any] = {"vocab_size": 514, "max_position_embeddings": 77, "eos_token_id": 513}
    text |= {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    vision: dict[str, Any] = {"image_size": 32, "patch_size": 8, "hidden_size": 16, "intermediate_size": 32}
    vision |= {"num_hidden_layers": 2, "num_attention_heads": 2}
    more: dict[str, Any] = {
        "extract_layers": [0, 1],
        "reduce_dim": 8,
        "decoder_num_attention_heads": 2,
        "decoder_intermediate_size": 16,
    }
    config = CLIPSegConfig(text_config=text, vision_config=vision, projection_dim=16, **more)
    CLIPSegForImageSegmentation(config).save_pretrained(folder)
    tiny_models.tokenizer(folder / "vocabulary").save_pretrained(folder)


def depth_anything(folder: Path) -> None:
    from transformers import DepthAnythingConfig, DepthAnythingForDepthEstimation, Dinov2Config, DPTImageProcessor

    torch.manual_seed(0)
    stages: dict[str, Any] = {"out_indices": [1, 2, 3, 4]}
    backbone = Dinov2Config(
        image_size=28, patch_size=14, hidden_size=16, num_hidden_layers=4, num_attention_heads=2,
        reshape_hidden_states=False, **stages,
    )  # fmt: skip
    config = DepthAnythingConfig(
        backbone_config=backbone, patch_size=14, reassemble_hidden_size=16, neck_hidden_sizes=[4, 4, 4, 4],
        fusion_hidden_size=8, head_hidden_size=4,
    )  # fmt: skip
    DepthAnythingForDepthEstimation(config).save_pretrained(folder)
    DPTImageProcessor(size={"height": 28, "width": 28}, ensure_multiple_of=14).save_pretrained(folder)


def on_picture(result: EditorResult, source: EditSource, layer: str = "foreground") -> np.ndarray:
    picture = source.pictures[layer]
    return draw_paint(result.overlays[layer], picture.size, picture.box)


def refusal(make: Callable[[], object]) -> UserError:
    with pytest.raises(UserError) as caught:
        make()
    return caught.value


def masked(source: EditSource, path: Path) -> EditSource:
    """The left half of the foreground."""
    width, height = SIZES["foreground"]
    mask = np.zeros((height, width), np.uint8)
    mask[:, : width // 2] = 255
    Image.fromarray(mask).save(path)
    return replace(source, mask=path)


# --- editors --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["plain", "inpainting", "xl", "flow"])
def test_every_kind_of_model_repaints_the_region_and_nothing_else(
    model: str, source: EditSource, models: Callable[..., str], tmp_path: Path
) -> None:
    half = masked(source, tmp_path / "mask.png")
    result = Inpaint(model=models(model), **FEW).edit(half, report_nothing)
    overlay = on_picture(result, half)
    inside = half.read_region("foreground") > 0
    seen = source.read_region("foreground") > 0
    assert set(result.overlays) == {"foreground"}
    assert overlay[..., 3][seen & ~inside].max() < 1e-3 and overlay[..., 3][inside].min() > 0.4
    assert np.abs(overlay - half.pictures["foreground"].rgba)[..., :3][inside].mean() > 0.05


def test_a_seed_gives_the_same_picture_again_and_another_seed_another(
    source: EditSource, models: Callable[..., str]
) -> None:
    first, again, other = (
        on_picture(Inpaint(model=models("plain"), seed=seed, **FEW).edit(source, report_nothing), source)
        for seed in (0, 0, 1)
    )
    assert np.array_equal(first, again) and np.abs(first - other).mean() > 0.01


def test_weaker_image_to_image_stays_nearer_to_the_picture(source: EditSource, models: Callable[..., str]) -> None:
    def distance(strength: float) -> float:
        settings: dict[str, Any] = {"model": models("plain"), "prompt": "blue dots", "steps": 10, "guidance": 1.0}
        result = Img2Img(strength=strength, **settings).edit(source, report_nothing)
        assert isinstance(result, EditorResult)
        kept = Img2Img(strength=0.1, **settings).edit(source, report_nothing)
        return float(np.abs(on_picture(result, source) - on_picture(kept, source)).mean())

    assert distance(0.1) == 0 < distance(0.3) < distance(1.0)


def test_with_all_of_the_noise_nothing_of_the_region_is_left(source: EditSource, models: Callable[..., str]) -> None:
    """Two pictures that differ in the region only give the same edit."""
    model = load_model(WeightsSource(models("plain"), "cpu"))
    picture = source.pictures["foreground"]
    rgba = np.concatenate([1 - picture.rgba[..., :3], picture.rgba[..., 3:]], axis=-1)
    edited = CanonicalImage(rgba, picture.box, picture.layer)
    made = []
    for one in (picture, edited):
        region_all = np.ones(picture.size[::-1], np.float32)
        canvas = open_canvas(one, region_all, 32, model.side_multiple)
        settings = Inpaint(model="-", **FEW)
        made.append(repaint_regions(model, [canvas], settings, report_nothing).overlays["foreground"].rgba)
    np.testing.assert_array_equal(made[0], made[1])


def test_several_layers_are_made_in_one_picture(source: EditSource, models: Callable[..., str]) -> None:
    said: list[Progress] = []
    both = replace(source, layers=("foreground", "background"))
    result = Inpaint(model=models("plain"), **FEW).edit(both, said.append)
    assert set(result.overlays) == {"foreground", "background"}
    assert said[0] == Progress("loading the model", 0, 1)
    assert said[1:] == [Progress("denoising", 1, 2), Progress("denoising", 2, 2)]


def test_a_model_that_follows_instructions_is_sent_to_its_own_editor(
    source: EditSource, models: Callable[..., str]
) -> None:
    error = refusal(lambda: Inpaint(model=models("instructions"), **FEW).edit(source, report_nothing))
    assert error.code == ExitCode.BAD_INPUT and "--editor instruct" in error.fix


@pytest.mark.parametrize(
    ("settings", "flag"),
    [
        ({"prompt": "  "}, "--prompt"),
        ({"steps": 0}, "--steps"),
        ({"strength": 0.0}, "--strength"),
        ({"strength": 1.5}, "--strength"),
        ({"guidance": -1.0}, "--guidance"),
        ({"guidance": float("nan")}, "--guidance"),
        ({"side": 0}, "--side"),
        ({"feather": -2.0}, "--feather"),
        ({"region": "a car", "region_threshold": 1.0}, "--region-threshold"),
        ({"region_model": "clipseg"}, "--region"),
    ],
)
def test_settings_that_cannot_be_used_are_refused_by_name(settings: dict[str, Any], flag: str) -> None:
    error = refusal(lambda: Inpaint(**({"model": "-", "prompt": "blue dots"} | settings)))
    assert error.code == ExitCode.USAGE and error.what.startswith(flag) and error.fix


def test_the_command_line_takes_every_setting_and_the_edit_remembers_them(
    source: EditSource, models: Callable[..., str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = shutil.copytree(source.run.path, tmp_path / "run")
    folder = models("control")
    words = ["edit", str(run), "--editor", "controlnet", "--model", models("inpainting"), "--prompt", "blue dots"]
    words += ["--control", f"edges={folder}@0.5", "--control", f"soft-edges={folder}", "--edge-thresholds", "50", "90"]
    words += ["--layer", "foreground", "--steps", "1", "--side", "64", "--feather", "2", "--json"]  # windows of 32
    assert main(words) == ExitCode.OK, capsys.readouterr().err
    written = json.loads((run / "edits" / "0001-controlnet" / "edit.json").read_text())
    assert written["origin"]["editor"] == "controlnet" and list(written["overlays"]) == ["foreground"]
    chosen = written["origin"]["settings"]
    assert chosen["edge_thresholds"] == [50, 90] and len(chosen["control"]) == 2
    assert main([*words, "--strength", "2"]) == ExitCode.USAGE
    assert "--strength is 2.0" in capsys.readouterr().err


# --- what is followed -----------------------------------------------------------------------------------------------


def test_controls_are_followed_in_the_region_as_strongly_as_their_scale_says(
    source: EditSource, models: Callable[..., str]
) -> None:
    def made(*control: str) -> np.ndarray:
        return on_picture(
            ControlNet(model=models("plain"), control=control, **FEW).edit(source, report_nothing), source
        )

    plain = on_picture(Inpaint(model=models("plain"), **FEW).edit(source, report_nothing), source)
    folder = models("control")
    np.testing.assert_array_equal(made(f"edges={folder}@0"), plain)
    np.testing.assert_array_equal(  # a ControlNet that was never trained adds zeros
        made(f"edges={folder}", f"soft-edges={folder}@0.5"), plain
    )


def test_a_trained_controlnet_changes_the_result(
    source: EditSource, models: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    load = control_images.load_controlnet

    def trained(*args: Any) -> Any:
        network = load(*args)
        with torch.no_grad():
            for name, values in network.named_parameters():
                if "controlnet" in name:
                    values.add_(0.2)
        return network

    monkeypatch.setattr(control_images, load.__name__, trained)
    settings: dict[str, Any] = {"model": models("plain"), **FEW}
    folder = models("control")
    plain = on_picture(Inpaint(**settings, strength=0.8).edit(source, report_nothing), source)
    for editor in (
        VidEdit(**settings | {"steps": 2}, control=folder, feather=0.0),
        ControlNet(**settings, control=(f"depth={folder}",), depth_model=models("depth"), strength=0.8),
    ):
        result = editor.edit(source, report_nothing)
        assert np.abs(on_picture(result, source) - plain).mean() > 0.01


def test_edges_are_lines_and_soft_edges_fall_off_beside_them() -> None:
    image = torch.zeros(1, 3, 32, 40)
    image[..., 20:] = 1
    lines, soft = control_images.detect_edges(image), control_images.detect_soft_edges(image)
    assert set(lines.unique().tolist()) == {0.0, 1.0}
    assert lines[0, 0, 5:-5].sum(dim=1).unique().tolist() == [1.0]
    row = soft[0, 0, 16]
    assert row.argmax() in (19, 20) and row.max() == 1 and row[5] < 0.01 > row[35]
    assert (row[20:26].diff() <= 0).all() and 0 < row[24] < 1
    assert not control_images.detect_soft_edges(torch.full((1, 3, 16, 16), 0.4)).any()


def test_depth_of_a_network_is_bright_where_it_is_near(models: Callable[..., str]) -> None:
    images = torch.rand(2, 3, 24, 36, generator=torch.Generator().manual_seed(0))
    depth = control_images.load_depth_estimator(WeightsSource(models("depth"), "cpu"))(images)
    assert depth.shape == images.shape
    assert depth.amin(dim=(1, 2, 3)).tolist() == [0, 0] and depth.amax(dim=(1, 2, 3)).tolist() == [1, 1]


def test_a_picture_of_the_users_is_followed_where_the_canvas_lies(source: EditSource, tmp_path: Path) -> None:
    picture = source.pictures["background"]
    drawn = np.zeros((80, 120, 4), np.uint8)  # twice the canonical picture's size
    drawn[20:60, 30:90] = (200, 100, 50, 255)
    Image.fromarray(drawn).save(tmp_path / "pose.png")
    region_there = np.zeros(picture.size[::-1], np.float32)
    region_there[12:28, 18:42] = 1
    canvas = open_canvas(picture, region_there, 32, 4)
    shown = control_images.read_control_picture(tmp_path / "pose.png", source, canvas)
    assert shown.shape == canvas.image.shape
    inside = torch.from_numpy(canvas.region.numpy()[0, 0] > 0.99)
    expected = torch.tensor([200.0, 100.0, 50.0]) / 255
    torch.testing.assert_close(shown[0, :, inside].mean(dim=1), expected, atol=0.01, rtol=0)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({}, "nothing to follow"),
        ({"control": ("edges",)}, "KIND=FOLDER"),
        ({"control": ("lines=folder",)}, "the kinds are"),
        ({"control": ("edges=folder@-1",)}, "0 or more"),
        ({"control": ("pose=folder",)}, "no pose to follow"),
        ({"control": ("depth=folder",)}, "--depth-model"),
        ({"control": ("edges=folder",), "control_picture": ("pose=file",)}, "no ControlNet follows it"),
        ({"control": ("edges=folder",), "edge_thresholds": (200, 100)}, "not above the second"),
    ],
)
def test_controls_that_cannot_be_used_are_refused_with_what_to_try(settings: dict, words: str) -> None:
    error = refusal(lambda: ControlNet(model="-", prompt="blue dots", **settings))
    assert error.code == ExitCode.USAGE and words in str(error) and error.fix


def test_a_folder_may_have_an_at_sign_in_its_name() -> None:
    assert parse_control("edges=/models/me@home") == ControlRequest("edges", "/models/me@home")
    assert parse_control("pose=a=b@0.5") == ControlRequest("pose", "a=b", 0.5)


def test_a_controlnet_for_a_transformer_or_another_model_is_refused(
    source: EditSource, models: Callable[..., str]
) -> None:
    for model in ("flow", "xl"):
        editor = ControlNet(model=models(model), control=(f"edges={models('control')}",), **FEW)
        assert refusal(lambda: editor.edit(source, report_nothing)).code == ExitCode.BAD_INPUT  # noqa: B023 - called at once


# --- regions from words ---------------------------------------------------------------------------------------------


def test_two_prompts_disagree_where_the_pictures_they_ask_for_differ() -> None:
    """Models that know one picture each: the noise they predict differs by the difference of the pictures."""
    schedule = NoiseSchedule.from_config({"num_train_timesteps": 1000, "shift": 1.0}, None)
    there = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    wanted = there.clone()
    wanted[..., 2:5, 3:7] += 0.5

    def knows(picture: Latents) -> Callable[[Latents, int], DenoisedLatents]:
        return lambda latents, time: schedule.assume_clean(latents, picture, time)

    noises = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    found = region.measure_disagreement(there, schedule, knows(there), knows(wanted), noises, 0.5)
    expected = torch.zeros(1, 1, 8, 8)
    expected[..., 2:5, 3:7] = 0.5 * schedule.signal[499] / schedule.noise[499]
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    inside = torch.ones(1, 1, 8, 8)
    assert torch.equal(region.scale_differences(found, inside) > 0.5, expected > 0)
    assert region.scale_differences(10 * found, inside).max() == 1
    assert not region.scale_differences(found, (expected == 0).float()).gt(0.5).any()


@pytest.mark.parametrize("share", [0.02, 0.1, 0.4, 0.7, 1.0])
def test_the_part_that_differs_is_found_however_large_it_is(share: float) -> None:
    generator = torch.Generator().manual_seed(0)
    side = round(64 * share**0.5)
    values = 0.02 * torch.rand(1, 1, 64, 64, generator=generator)
    values[..., :side, :side] += 0.2 + 0.1 * torch.rand(1, 1, side, side, generator=generator)
    truth = torch.zeros(1, 1, 64, 64)
    truth[..., :side, :side] = 1
    found = (region.scale_differences(values, torch.ones(1, 1, 64, 64)) > 0.5).float()
    assert (found * truth).sum() / (found + truth).clamp(max=1).sum() > 0.95


@pytest.mark.parametrize("finder", ["", "clipseg"])
def test_a_region_from_words_stays_inside_the_mask(
    finder: str, source: EditSource, models: Callable[..., str], tmp_path: Path
) -> None:
    half = masked(source, tmp_path / "mask.png")
    settings: dict[str, Any] = {"region_model": models(finder)} if finder else {}
    editor = Inpaint(model=models("plain"), region="a disc + a car", region_threshold=0.4, **settings, **FEW)
    result = editor.edit(half, report_nothing)
    overlay, seen = on_picture(result, half), source.read_region("foreground") > 0
    assert overlay[..., 3][seen & (half.read_region("foreground") == 0)].max() < 1e-3
    assert (overlay[..., 3] > 0.5).any()
    assert any("the region found on foreground is" in note for note in result.notes)


def test_words_that_nothing_is_found_for_are_said(
    source: EditSource, models: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        region, region.load_segmenter.__name__, lambda weights, words: lambda images: torch.zeros_like(images[:, :1])
    )
    editor = Inpaint(model=models("plain"), region="a boat", region_model="any", **FEW)
    error = refusal(lambda: editor.edit(source, report_nothing))
    assert error.code == ExitCode.BAD_INPUT and "a boat" in error.what and "--region-threshold 0.25" in error.fix


def test_a_folder_of_another_network_is_no_region_model(source: EditSource, models: Callable[..., str]) -> None:
    editor = Inpaint(model=models("plain"), region="a car", region_model=models("depth"), **FEW)
    assert "no CLIPSeg" in refusal(lambda: editor.edit(source, report_nothing)).what
