"""StableVideo and TokenFlow: each keyframe from those before it, and frames that share the tokens of keyframes."""

from __future__ import annotations

from dataclasses import replace
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from editors.core.source import EditSource
from editors.diffusion.backend.noise_schedule import DenoisedLatents, Latents, NoiseSchedule
from editors.diffusion.backend.sampling import denoise_latents
from editors.diffusion.common.keyframe_fusion import fuse_keyframes, render_into_keyframes
from editors.diffusion.common.keyframes import open_keyframes
from editors.diffusion.methods.stablevideo import StableVideo, keep_known_latents
from editors.diffusion.methods.tokenflow import (
    TokenFlow,
    TokenFlowAttention,
    TokenFlowState,
    TokenMatches,
    predict_by_token_flow,
    predict_in_blocks,
)
from neural_fields.core.errors import ExitCode, UserError
from neural_fields.core.progress import report_nothing
from neural_fields.open_runs.opening import require_planar
from neural_fields.runs.run import Run

pytestmark = pytest.mark.slow

SCHEDULE = NoiseSchedule.from_config({"prediction_type": "epsilon"}, torch.linspace(0.999, 0.002, 100))


@pytest.fixture(scope="module")
def source(moving_run: Run) -> EditSource:
    return EditSource(require_planar(moving_run, "the test"), ("foreground",))


@pytest.fixture(scope="module")
def models(tiny_models: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("models")
    return {
        "plain": str(tiny_models.stable_diffusion(folder / "plain")),
        "inpainting": str(tiny_models.stable_diffusion(folder / "inpainting", inputs=9)),
        "flow": str(tiny_models.stable_diffusion_3(folder / "flow")),
        "control": str(tiny_models.controlnet(folder / "control")),
    }


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def towards(picture: torch.Tensor):
    """A denoiser that is sure of a picture."""
    return lambda latents, time: SCHEDULE.assume_clean(latents, picture.expand_as(latents), time)


# --- StableVideo -----------------------------------------------------------------------------------------------------


def test_what_is_known_stays_for_some_times_as_if_it_had_been_noised_and_the_rest_is_made_beside_it() -> None:
    times, known = SCHEDULE.select_times(10), torch.zeros(1, 1, 4, 4)
    known[..., :2] = 1
    before, start = noise(1, 3, 4, 4, seed=1), noise(1, 3, 4, 4)
    seen: dict[int, Latents] = {}

    def predict(latents: Latents, time: int) -> DenoisedLatents:
        seen[time] = latents
        return towards(torch.zeros(1, 3, 4, 4))(latents, time)

    found = denoise_latents(start, times, SCHEDULE, keep_known_latents(predict, SCHEDULE, before, known, times[:4]))
    assert found.abs().max() < 1e-5  # it is made anew from there, as the model wants
    # The noise that is left at the first free time is what the start had beyond the known picture.
    left = SCHEDULE.assume_clean(start, before, times[0]).noise
    expected = SCHEDULE.add_noise(before, left, times[4])
    torch.testing.assert_close(seen[times[4]][..., :2], expected[..., :2], rtol=1e-4, atol=1e-4)


def test_times_that_hold_to_the_end_bring_back_what_is_known() -> None:
    times, before = SCHEDULE.select_times(10), noise(1, 3, 4, 4, seed=1)
    held = keep_known_latents(towards(torch.zeros(1)), SCHEDULE, before, torch.ones(1, 1, 4, 4), times)
    torch.testing.assert_close(denoise_latents(noise(1, 3, 4, 4), times, SCHEDULE, held), before)


def test_a_keyframe_starts_from_the_edits_before_it_where_they_are_seen(source: EditSource) -> None:
    keyframes = open_keyframes(source, [0, 3], 64, 8)
    red = torch.tensor([0.8, 0.1, 0.1]).view(1, 3, 1, 1)
    first = keyframes[:1]
    found = fuse_keyframes(first, red * first.layers["foreground"].gain)
    start, known = render_into_keyframes(keyframes[1:], found)
    sure, outside = keyframes[1:].change_mask > 0.99, keyframes[1:].change_mask == 0
    assert float(known[sure].mean()) > 0.9
    color = red * keyframes[1:].layers["foreground"].gain
    assert float((start - color).abs().mean(dim=1, keepdim=True)[sure & (known > 0.99)].max()) < 0.02
    assert torch.equal(start[outside.expand_as(start)], keyframes[1:].images[outside.expand_as(start)])


@pytest.mark.parametrize("kind", ["plain", "inpainting", "flow"])
def test_stablevideo_edits_a_layer_with_any_kind_of_model(
    source: EditSource, models: dict[str, str], kind: str
) -> None:
    editor = StableVideo(model=models[kind], prompt="blue dots", steps=2, keyframes="0,5")
    result = editor.edit(source, report_nothing)
    rgba = result.overlays["foreground"].rgba
    assert set(result.overlays) == {"foreground"} and result.details["keyframes"] == [0, 5]
    assert np.isfinite(rgba).all() and 0 < (rgba[..., 3] > 0).mean() < 1


def test_the_edges_of_the_frames_are_followed(source: EditSource, models: dict[str, str]) -> None:
    def made(control: str) -> np.ndarray:
        editor = StableVideo(model=models["plain"], prompt="blue dots", steps=1, keyframes="0,5", control=control)
        return editor.edit(source, report_nothing).overlays["foreground"].rgba

    without, with_none = made(""), made(f"edges={models['control']}@0")
    np.testing.assert_allclose(without, with_none, atol=1e-4)
    assert np.isfinite(made(f"soft-edges={models['control']}")).all()


@pytest.mark.parametrize(
    ("settings", "what"),
    [
        ({"follow": 0.0}, "--follow is 0"),
        ({"follow": 1.1}, "--follow is 1.1"),
        ({"control": "depth=folder"}, "--control is 'depth=folder'"),
        ({"control": "folder"}, "--control is 'folder'"),
        ({"strength": -1.0}, "--strength"),
    ],
)
def test_settings_of_stablevideo_that_make_no_sense_are_errors(settings: dict[str, Any], what: str) -> None:
    with pytest.raises(UserError, match=what) as caught:
        StableVideo(**{"model": "folder", "prompt": "blue dots", **settings})
    assert caught.value.code == ExitCode.USAGE


# --- TokenFlow -------------------------------------------------------------------------------------------------------


def shifted(frames: int = 5, side: int = 6) -> TokenMatches:
    """Frames that look at one plane, each a token further to the right."""
    y, x = np.mgrid[:side, :side].astype(np.float32)
    tokens = np.stack([np.stack([x + t, y, 0 * x], -1).reshape(-1, 3) for t in range(frames)])
    return TokenMatches({side * side: tokens}, {side * side: 0.8})


def heads(frames: int, seed: int, side: int = 6) -> torch.Tensor:
    """Queries, keys or values of two heads for guidance's two prompts."""
    return noise(2 * frames, 2, side * side, 4, seed=seed)


@given(st.lists(st.integers(0, 11), min_size=1, max_size=5, unique=True), st.integers(0, 11))
def test_the_two_nearest_keyframes_share_a_frame_by_their_distance(keys: list[int], frame: int) -> None:
    flow = TokenFlowState(None, keys=sorted(keys))
    around = [(flow.keys[place], share) for place, share in flow.find_neighbor_keyframes(frame)]
    assert sum(share for _, share in around) == pytest.approx(1)
    before, after = [k for k in keys if k <= frame], [k for k in keys if k > frame]
    if before and after:
        assert sum(key * share for key, share in around) == pytest.approx(frame)  # linear in time
        assert [key for key, _ in around] == [max(before), min(after)]
    else:
        assert around == [(max(before) if before else min(after), 1.0)]


def test_a_frame_takes_the_tokens_of_keyframes_that_show_the_same_points() -> None:
    flow = TokenFlowState(shifted())
    layer = TokenFlowAttention(flow)
    with flow.run_pass("keyframes", [0, 4], [0, 4]):
        kept = layer(heads(2, 0), heads(2, 1), heads(2, 2), None).unflatten(0, (2, 2)).unflatten(3, (6, 6))
    with flow.run_pass("others", [0, 4], [1, 2]):
        taken = layer(heads(2, 3), heads(2, 4), heads(2, 5), None).unflatten(0, (2, 2)).unflatten(3, (6, 6))
    first, last = kept[:, 0], kept[:, 1]
    # Column c of frame 1 is column c + 1 of frame 0 and column c - 3 of frame 4.
    torch.testing.assert_close(taken[:, 0, ..., 3:5, :], 0.75 * first[..., 4:6, :] + 0.25 * last[..., :2, :])
    torch.testing.assert_close(taken[:, 0, ..., 5, :], last[..., 2, :])
    # What frame 4 does not show comes from frame 0 alone.
    torch.testing.assert_close(taken[:, 0, ..., :2, :], first[..., 1:3, :])


def test_features_of_the_source_find_the_same_tokens_as_the_maps_do() -> None:
    plane = noise(2, 6, 12, 4, seed=7)  # of which every frame shows six columns
    keys = torch.stack([plane[:, :, t : t + 6].flatten(1, 2) for t in range(5)])
    by_maps, by_features = TokenFlowAttention(TokenFlowState(shifted())), TokenFlowAttention(TokenFlowState(None))
    with by_features.state.run_pass("source", (), range(5)):
        by_features(keys, keys, keys, None)
    found = []
    for layer in (by_maps, by_features):
        with layer.state.run_pass("keyframes", [0, 2], [0, 2]):
            layer(heads(2, 0), heads(2, 1), heads(2, 2), None)
        found.append([layer._match_tokens(1, key) for key in (0, 2)])
    for (one, shown), (other, _) in zip(*found, strict=True):
        assert torch.equal(one[shown > 0], other[shown > 0]) and int((shown > 0).sum()) == 30


def test_outside_its_passes_the_layer_attends_as_usual() -> None:
    query, key, value = (heads(3, seed) for seed in (0, 1, 2))
    expected = torch.nn.functional.scaled_dot_product_attention(query, key, value)
    torch.testing.assert_close(TokenFlowAttention(TokenFlowState(shifted()))(query, key, value, None), expected)


def test_every_frame_is_predicted_once_a_step_and_keyframes_are_drawn_from_their_blocks() -> None:
    asked: list[tuple[str, list[int]]] = []
    flow = TokenFlowState(shifted(7))

    def predict(latents: Latents, time: int, chosen: Any, plainly: bool = False) -> DenoisedLatents:
        asked.append((flow.stage, list(chosen)))
        return DenoisedLatents(latents + 1, latents)

    latents = noise(7, 1, 2, 2)
    predicted = predict_by_token_flow(flow, predict, 3, 0, {})
    drawn = set()
    for _ in range(8):
        asked.clear()
        torch.testing.assert_close(predicted(latents, 5).clean, latents + 1)
        keys = asked[0][1]
        assert [stage for stage, _ in asked] == ["keyframes", "others", "others"]
        assert sorted(i for _, chosen in asked for i in chosen) == list(range(7))
        assert [key // 3 for key in keys] == [0, 1, 2]
        drawn.add(tuple(keys))
    assert len(drawn) > 1
    torch.testing.assert_close(predict_in_blocks(predict, 3)(latents, 5).clean, latents + 1)


@pytest.mark.parametrize("correspondences", ["maps", "features"])
def test_tokenflow_edits_a_layer(source: EditSource, models: dict[str, str], correspondences: Any) -> None:
    editor = TokenFlow(model=models["plain"], prompt="blue dots", steps=2, count=4, block=2)
    result = replace(editor, correspondences=correspondences).edit(source, report_nothing)
    rgba = result.overlays["foreground"].rgba
    assert result.details["keyframes"] == [0, 2, 3, 5]
    assert np.isfinite(rgba).all() and 0 < (rgba[..., 3] > 0).mean() < 1


def test_what_tokenflow_cannot_do_is_said(source: EditSource, models: dict[str, str]) -> None:
    with pytest.raises(UserError, match="--block is 0"):
        TokenFlow(model="folder", prompt="blue dots", block=0)
    with pytest.raises(UserError, match="--side is 80"):
        TokenFlow(model=models["plain"], prompt="blue dots", side=80, keyframes="5,0").edit(source, report_nothing)
    with pytest.raises(UserError, match="attention cannot be changed"):
        TokenFlow(model=models["flow"], prompt="blue dots").edit(source, report_nothing)
