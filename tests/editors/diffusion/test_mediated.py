"""Keyframes: which are chosen, what becomes of them edited, and that mediated ones agree."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from editors.core.editor import EditorResult
from editors.core.source import EditSource
from editors.diffusion.backend.noise_schedule import DenoisedLatents, Latents, NoiseSchedule
from editors.diffusion.backend.sampling import denoise_latents
from editors.diffusion.common.keyframe_fusion import (
    FusedKeyframes,
    fuse_keyframes,
    make_overlays,
    render_into_keyframes,
)
from editors.diffusion.common.keyframes import (
    choose_keyframes,
    choose_keyframes_evenly,
    cover_cells,
    open_keyframes,
    parse_frame_numbers,
)
from editors.diffusion.methods.mediated import Mediated, mediate_prediction
from editors.inputs.merging import MergedFrames, TexelFootprints, sample_frames
from neural_fields.core import coords
from neural_fields.core.errors import ExitCode, UserError
from neural_fields.core.progress import report_nothing
from neural_fields.open_runs.opening import require_planar
from neural_fields.rendering.overlay_pass import OverlayPass
from neural_fields.runs.run import Run

pytestmark = pytest.mark.slow

SCHEDULES = {
    "epsilon": NoiseSchedule.from_config({"prediction_type": "epsilon"}, torch.linspace(0.999, 0.002, 100)),
    "flow": NoiseSchedule.from_config({"num_train_timesteps": 100}, None),
}


@pytest.fixture(scope="module")
def source(moving_run: Run) -> EditSource:
    return EditSource(require_planar(moving_run, "the test"), ("foreground",))


@pytest.fixture(scope="module")
def model(tiny_models: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny_models.stable_diffusion(tmp_path_factory.mktemp("models") / "plain"))


def windows(count: int = 4, side: int = 12, step: int = 3, grid: tuple[int, int] = (24, 16)) -> TexelFootprints:
    """Pictures of one canonical picture, each some whole texels further to the right."""
    texels = torch.stack([coords.pixel_centers(side, side) + torch.tensor([step * i, 2.0]) for i in range(count)])
    return TexelFootprints(texels, torch.ones(count, side, side), grid)


def gaussian(schedule: NoiseSchedule, mean: torch.Tensor, spread: float):
    """A denoiser that is right for pictures that are normally distributed around `mean`."""

    def predict(latents: Latents, time: int) -> DenoisedLatents:
        a, s = schedule.signal[time].item(), schedule.noise[time].item()
        share = a * spread**2 / (a**2 * spread**2 + s**2)
        return schedule.assume_clean(latents, mean + share * (latents - a * mean), time)

    return predict


def disagreement(values: torch.Tensor, places: TexelFootprints) -> float:
    """How far apart two pictures are at the same texels, on average."""
    step = round(float(places.texels[1, 0, 0, 0] - places.texels[0, 0, 0, 0]))
    return float(torch.stack([(a[..., step:] - b[..., :-step]).abs().mean() for a, b in pairwise(values)]).mean())


# --- agreement at every step ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", SCHEDULES)
def test_keyframes_that_are_denoised_apart_disagree_and_mediated_ones_agree(kind: str) -> None:
    schedule, places = SCHEDULES[kind], windows()
    noise = torch.randn(4, 3, 12, 12, generator=torch.Generator().manual_seed(0))
    predict, times = gaussian(schedule, torch.zeros_like(noise), 1.0), schedule.select_times(20)
    apart = denoise_latents(noise, times, schedule, predict)
    together = denoise_latents(noise, times, schedule, mediate_prediction(predict, schedule, [places]))
    assert disagreement(apart, places) > 0.5
    assert disagreement(together, places) < 0.01 * disagreement(apart, places)


def test_a_keyframe_alone_is_denoised_as_without_mediation() -> None:
    schedule, places = SCHEDULES["epsilon"], windows(1)
    noise = torch.randn(1, 3, 12, 12, generator=torch.Generator().manual_seed(1))
    predict, times = gaussian(schedule, torch.full_like(noise, 0.3), 0.5), schedule.select_times(10)
    alone = denoise_latents(noise, times, schedule, mediate_prediction(predict, schedule, [places]))
    torch.testing.assert_close(alone, denoise_latents(noise, times, schedule, predict), rtol=0, atol=1e-4)


def test_what_shows_no_layer_is_denoised_as_without_mediation() -> None:
    schedule, places = SCHEDULES["epsilon"], windows()
    places.weight[:, :6] = 0
    noise = torch.randn(4, 3, 12, 12, generator=torch.Generator().manual_seed(2))
    predict, times = gaussian(schedule, torch.zeros_like(noise), 1.0), schedule.select_times(5)
    together = denoise_latents(noise, times, schedule, mediate_prediction(predict, schedule, [places]))
    torch.testing.assert_close(together[:, :, :6], denoise_latents(noise, times, schedule, predict)[:, :, :6])


def test_mediated_keyframes_settle_on_the_mean_of_what_each_would_be() -> None:
    schedule, places = SCHEDULES["flow"], windows(2, step=0)
    wanted = torch.stack([torch.full((3, 12, 12), 0.0), torch.full((3, 12, 12), 1.0)])
    noise = torch.randn(1, 3, 12, 12, generator=torch.Generator().manual_seed(3)).expand_as(wanted)
    predict = gaussian(schedule, wanted, 1e-3)
    found = denoise_latents(noise, schedule.select_times(30), schedule, mediate_prediction(predict, schedule, [places]))
    torch.testing.assert_close(found, torch.full_like(found, 0.5), rtol=0, atol=0.02)


# --- choosing --------------------------------------------------------------------------------------------------------


def test_the_fullest_frame_is_first_and_the_others_add_what_it_does_not_show() -> None:
    shown = np.zeros((6, 100), bool)
    for frame, (start, stop) in enumerate([(0, 40), (10, 70), (60, 95), (5, 30), (90, 100), (0, 5)]):
        shown[frame, start:stop] = True
    assert cover_cells(shown, 6)[:1] == [1] and set(cover_cells(shown, 6)) == {1, 2, 0, 4}
    assert cover_cells(shown, 2) == [1, 2]
    assert cover_cells(shown, 6)[-1] == 4  # it shares nothing with the frames before the third is there


@given(st.lists(st.lists(st.booleans(), min_size=12, max_size=12), min_size=1, max_size=8), st.integers(1, 6))
def test_chosen_frames_are_different_and_no_more_than_asked_for(rows: list[list[bool]], most: int) -> None:
    found = cover_cells(np.array(rows), most)
    assert len(set(found)) == len(found) <= most and found


def test_alike_frames_are_three_far_apart_so_that_two_can_outvote_one() -> None:
    assert sorted(cover_cells(np.ones((9, 50), bool), 5)) == [0, 4, 8]


def test_keyframes_are_named_as_the_source_counts(source: EditSource) -> None:
    assert parse_frame_numbers(source, "4, 0,4") == [4, 0]
    assert choose_keyframes_evenly(source, 3) == [0, 2, 5]
    assert 1 <= len(choose_keyframes(source, 2)) <= 2


@pytest.mark.parametrize(("text", "what"), [("7", "frame 7 is not part"), ("1;2", "is no number"), ("-1", "no number")])
def test_a_keyframe_that_is_not_there_is_an_error(source: EditSource, text: str, what: str) -> None:
    with pytest.raises(UserError, match=what) as caught:
        parse_frame_numbers(source, text)
    assert caught.value.code == ExitCode.BAD_INPUT and caught.value.fix.startswith("--keyframes")


# --- there and back --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layers", [("foreground",), ("foreground", "background")])
def test_keyframes_are_cut_alike_and_show_the_layers(source: EditSource, layers: tuple[str, ...]) -> None:
    keyframes = open_keyframes(replace(source, layers=layers), [0, 3, 5], 64, 8)
    n, _, height, width = keyframes.images.shape
    assert n == 3 and max(height, width) == 64 and height % 8 == width % 8 == 0
    assert keyframes.source_frames == (0, 3, 5)
    region = keyframes.change_mask
    assert (region.amax(dim=(1, 2, 3)) > 0.99).all()
    if len(layers) == 2:
        assert float(region.mean()) > 0.97
    for part in keyframes.layers.values():
        inside = part.locate_pixels().texels[part.weight > 0.5]
        assert (inside >= -1).all() and (inside <= torch.tensor(part.canvas.size) + 1).all()


def test_a_change_of_keyframes_comes_back_in_all_frames(source: EditSource) -> None:
    keyframes = open_keyframes(source, [0, 3, 5], 64, 8)
    wanted = 1 - keyframes.images
    found = fuse_keyframes(keyframes, wanted)
    shown, known = render_into_keyframes(keyframes, found)
    sure = keyframes.change_mask > 0.99
    assert float(known[sure].mean()) > 0.98
    assert float((shown - wanted).abs().mean(dim=1, keepdim=True)[sure].mean()) < 0.03

    overlay = found["foreground"].part.canvas.make_overlay(found["foreground"].compose_picture())
    run, maps = source.run, source.maps
    pictures = run.canonicals
    renderer = OverlayPass(maps, pictures, {"foreground": overlay})
    for t in range(source.frame_count):
        frame = source.read_frame(t)
        edited, weight = renderer.render_frame(t, frame), maps.read_weights(t, (64, 36))[0]
        off = np.abs(edited.astype(float) - (255 - frame.astype(float))).mean(axis=-1)
        assert off[weight > 0.99].mean() < 16
        assert np.array_equal(edited[weight == 0], frame[weight == 0])


def test_merging_with_what_was_missed_lies_nearer_to_the_keyframes_than_the_median_alone(source: EditSource) -> None:
    keyframes = open_keyframes(source, [0, 2, 4], 64, 8)
    generator = torch.Generator().manual_seed(0)
    part = keyframes.layers["foreground"]
    sharp = (torch.rand(3, *part.canvas.size[::-1], generator=generator) > 0.5).float()
    wanted = (sample_frames(sharp, part.locate_pixels()) * part.gain).clamp(0, 1)
    sure = (keyframes.change_mask > 0.9).expand_as(wanted)

    def error(one: FusedKeyframes) -> float:
        return float((render_into_keyframes(keyframes, {"foreground": one})[0] - wanted)[sure].square().mean())

    from editors.inputs import merging

    places, colors = part.locate_pixels(), (wanted / part.gain).clamp(0, 1)
    alone = FusedKeyframes(part, merging.merge_frames(colors, places, replace(merging.DEFAULTS, rounds=0)))
    assert error(FusedKeyframes(part, merging.merge_frames(colors, places))) < 0.6 * error(alone)


# --- the editor ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("attention", ["own", "paths"])
def test_the_editor_changes_its_layer_and_nothing_else(source: EditSource, model: str, attention: Any) -> None:
    editor = Mediated(model=model, prompt="blue dots", steps=2, keyframes="0,5", attention=attention)
    result = editor.edit(source, report_nothing)
    assert set(result.overlays) == {"foreground"} and result.details["keyframes"] == [0, 5]
    assert "keyframes: 0, 5 of the source" in result.notes
    alpha = result.overlays["foreground"].rgba[..., 3]
    assert 0 < (alpha > 0).mean() < 1
    again = editor.edit(source, report_nothing).overlays["foreground"].rgba
    assert np.array_equal(result.overlays["foreground"].rgba, again)


def test_layers_are_edited_in_the_same_keyframes(source: EditSource, model: str) -> None:
    both = replace(source, layers=("foreground", "background"))
    result = Mediated(model=model, prompt="blue dots", steps=1, keyframes="0,5", strength=0.5).edit(
        both, report_nothing
    )
    assert set(result.overlays) == {"foreground", "background"}


def test_what_no_keyframe_shows_is_inpainted_and_told(source: EditSource, model: str) -> None:
    from editors.diffusion.backend.diffusers_model import load_model

    keyframes = open_keyframes(source, [0], 64, 8)
    found = fuse_keyframes(keyframes, keyframes.images)["foreground"]
    half = found.merged.weight.clone()
    half[:, : half.shape[1] // 2] = 0
    torn = FusedKeyframes(found.part, MergedFrames(found.merged.values, half, found.merged.spread))
    assert found.missing_and_conflict_shares[0] < 0.02 < 0.3 < torn.missing_and_conflict_shares[0] < 0.7
    settings = Mediated(model=model, prompt="blue dots", steps=2)
    loaded = load_model(settings.weights_source())

    def made(one: FusedKeyframes) -> EditorResult:
        with torch.no_grad():
            return make_overlays(
                loaded, loaded.encode_prompt("blue dots"), settings, keyframes, {"foreground": one}, report_nothing
            )

    whole, mended = made(found), made(torn)
    assert not any("inpainted" in note for note in whole.notes)
    assert any("is in no keyframe and was inpainted" in note for note in mended.notes)
    a, b = (result.overlays["foreground"].rgba for result in (whole, mended))
    assert np.array_equal(a[..., 3], b[..., 3])
    right = slice(a.shape[1] // 2 + 6, None)
    assert np.abs(a[:, right] - b[:, right]).max() < 0.1 < np.abs(a - b).max()


@pytest.mark.parametrize(
    ("settings", "what"),
    [({"count": 0}, "--count is 0"), ({"strength": 0.0}, "--strength"), ({"strength": 1.5}, "--strength"),
     ({"prompt": " "}, "--prompt")],
)  # fmt: skip
def test_settings_that_make_no_sense_are_errors(settings: dict[str, Any], what: str) -> None:
    with pytest.raises(UserError, match=what) as caught:
        Mediated(**{"model": "folder", "prompt": "blue dots", **settings})
    assert caught.value.code == ExitCode.USAGE


def test_keyframes_that_do_not_show_the_region_are_an_error(source: EditSource, tmp_path: Path) -> None:
    from PIL import Image

    picture, maps = source.pictures["background"], source.maps
    first, last = (float(maps.read_uv_small(t, 1)[..., 0].min()) for t in (0, 5))  # the camera moves to the right
    texel = picture.box.width / picture.size[0]
    mask = np.zeros(picture.size[::-1], np.uint8)
    mask[:, : int((last - picture.box.u0) / texel - 0.5)] = 255
    assert last - first > 2 * texel
    Image.fromarray(mask).save(tmp_path / "mask.png")
    masked = replace(source, layers=("background",), mask=tmp_path / "mask.png")
    assert open_keyframes(masked, [5, 0], 64, 8).frames == (0,)
    with pytest.raises(UserError, match="none of the keyframes shows") as caught:
        open_keyframes(masked, [5], 64, 8)
    assert "leave --keyframes out" in caught.value.fix
