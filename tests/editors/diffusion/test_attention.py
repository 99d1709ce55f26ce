"""Attention changed from outside equals the usual one when nothing is changed, and slow, obvious loops otherwise."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from editors.diffusion.backend.diffusers_model import DiffusionModel, EncodedPrompt, load_model
from editors.diffusion.backend.weights import WeightsSource
from editors.diffusion.common.attention import (
    AttentionProcessor,
    CrossFrameAttention,
    FeatureRecorder,
    find_canonical_paths,
    list_cross_attention,
    list_seen_frames,
    list_self_attention,
    make_cross_frame_processors,
)
from neural_fields.core.errors import ExitCode, UserError

pytestmark = pytest.mark.slow

FRAMES, SIDE, TIME = 3, 8, 500


@pytest.fixture(scope="module")
def model(tiny_models: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> DiffusionModel:
    return load_model(WeightsSource(str(tiny_models.stable_diffusion(tmp_path_factory.mktemp("model") / "sd"))))


@pytest.fixture(scope="module")
def text(model: DiffusionModel) -> EncodedPrompt:
    return model.encode_prompt("blue dots", "red")


def latents(count: int = FRAMES, seed: int = 0) -> Tensor:
    return torch.randn(count, 4, SIDE, SIDE, generator=torch.Generator().manual_seed(seed))


def heads(groups: int, tokens: int = 4, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values of `groups` times all frames, with two heads of three numbers."""
    generator = torch.Generator().manual_seed(seed)
    query, key, value = (torch.randn(groups * FRAMES, 2, tokens, 3, generator=generator) for _ in range(3))
    return query, key, value


def one_query(query: Tensor, keys: list[Tensor], values: list[Tensor]) -> Tensor:
    scores = torch.stack([(query * key).sum() / len(query) ** 0.5 for key in keys])
    return sum((share * value for share, value in zip(scores.softmax(0), values, strict=True)), torch.zeros(len(query)))


def slow(q: Tensor, k: Tensor, v: Tensor, seen: list[tuple[int, ...]]) -> Tensor:
    out = torch.empty_like(q)
    for b, h, t in np.ndindex(*q.shape[:3]):
        group, frame = b // FRAMES * FRAMES, b % FRAMES
        looked_at = [(group + f, h, s) for f in seen[frame] for s in range(q.shape[2])]
        out[b, h, t] = one_query(q[b, h, t], [k[at] for at in looked_at], [v[at] for at in looked_at])
    return out


def slow_paths(q: Tensor, k: Tensor, v: Tensor, paths: Tensor) -> Tensor:
    out = torch.empty_like(q)
    for b, h, t in np.ndindex(*q.shape[:3]):
        group, frame = b // FRAMES * FRAMES, b % FRAMES
        on_path = [(group + f, h, int(s)) for f, s in enumerate(paths[frame, t]) if s >= 0]
        out[b, h, t] = one_query(q[b, h, t], [k[at] for at in on_path], [v[at] for at in on_path])
    return out


@pytest.mark.parametrize("mode", ["own", "first", "first-previous", "all"])
@pytest.mark.parametrize("groups", [1, 2])
def test_every_mode_equals_loops_over_tokens(mode: Any, groups: int) -> None:
    q, k, v = heads(groups)
    seen = list_seen_frames(mode, FRAMES)
    torch.testing.assert_close(CrossFrameAttention(tuple(seen), {})(q, k, v, None), slow(q, k, v, seen))


def test_paths_equal_loops_over_tokens_and_follow_the_attention_between_pictures() -> None:
    q, k, v = heads(groups=2)
    paths = torch.randint(-1, 4, (FRAMES, 4, FRAMES), generator=torch.Generator().manual_seed(1))
    for frame in range(FRAMES):
        paths[frame, :, frame] = torch.arange(4)
    seen = list_seen_frames("all", FRAMES)
    expected = slow_paths(q, k, slow(q, k, v, seen), paths)
    torch.testing.assert_close(CrossFrameAttention(tuple(seen), {4: paths})(q, k, v, None), expected)
    torch.testing.assert_close(CrossFrameAttention(tuple(seen), {9: paths})(q, k, v, None), slow(q, k, v, seen))


def test_pictures_that_see_all_come_out_equal_where_their_tokens_are_equal() -> None:
    q, k, v = heads(groups=1)
    q[1, :, 2] = q[0, :, 3]
    out = CrossFrameAttention(tuple(list_seen_frames("all", FRAMES)), {})(q, k, v, None)
    torch.testing.assert_close(out[1, :, 2], out[0, :, 3])


def test_paths_follow_a_shift_and_end_where_the_point_is_not_seen() -> None:
    rows, columns = np.mgrid[:4, :6].astype(np.float64)
    places = np.stack([np.stack([columns + shift, rows], axis=-1) for shift in (0, 2)])
    seen = np.ones((2, 4, 6), bool)
    seen[1, 0] = False
    paths = find_canonical_paths(places, seen).reshape(2, 4, 6, 2)
    number = np.arange(24).reshape(4, 6)
    assert (paths[0, ..., 0].numpy() == number).all() and (paths[1, ..., 1].numpy() == number).all()
    assert (paths[0, 1:, 3:, 1].numpy() == number[1:, 1:4]).all()  # column 3 is column 1 of the other
    assert (paths[0, :, 0, 1] == -1).all() and (paths[0, 0, :, 1] == -1).all()
    assert (paths[1, 1:, :3, 0].numpy() == number[1:, 2:5]).all() and (paths[1, 0, :, 0] == -1).all()


def test_paths_join_the_nearest_tokens_however_the_pictures_lie() -> None:
    generator = np.random.default_rng(0)
    places = generator.random((3, 5, 5, 2)) * 5
    seen = generator.random((3, 5, 5)) < 0.8
    paths = find_canonical_paths(places, seen)
    flat, shown = places.reshape(3, 25, 2), seen.reshape(3, 25)
    for i, t, j in np.ndindex(3, 25, 3):
        if i != j and paths[i, t, j] >= 0:
            assert shown[i, t] and shown[j, paths[i, t, j]]
            distance = np.linalg.norm(flat[j] - flat[i, t], axis=-1)
            assert distance[paths[i, t, j]] == distance[shown[j]].min()


@torch.no_grad()
def test_processors_that_change_nothing_leave_the_denoiser_as_it_was(
    model: DiffusionModel, text: EncodedPrompt
) -> None:
    expected = model.predict_denoised(latents(), TIME, text, 3.0).clean
    assert model.unet is not None
    layers = [*list_self_attention(model.unet), *list_cross_attention(model.unet)]
    assert sorted(layers) == sorted(model.unet.attn_processors)
    features = FeatureRecorder(layers, {"mid": model.unet.mid_block.resnets[0].conv2})
    for changed in (
        model.replace_attention(dict.fromkeys(layers, AttentionProcessor())),
        model.replace_attention(make_cross_frame_processors(model.unet, list_seen_frames("own", FRAMES))),
        features.record_features(model),
    ):
        with changed:
            torch.testing.assert_close(model.predict_denoised(latents(), TIME, text, 3.0).clean, expected)
    with features.inject_features(model, features.make_replaying_processors(layers)):
        torch.testing.assert_close(model.predict_denoised(latents(), TIME, text, 3.0).clean, expected)
    assert not model.unet.mid_block.resnets[0].conv2._forward_hooks
    assert {type(processor).__name__ for processor in model.unet.attn_processors.values()} == {"AttnProcessor2_0"}
    torch.testing.assert_close(model.predict_denoised(latents(), TIME, text, 3.0).clean, expected, rtol=0, atol=0)


@torch.no_grad()
def test_a_picture_that_is_seen_by_others_changes_them_and_only_them(
    model: DiffusionModel, text: EncodedPrompt
) -> None:
    with model.replace_attention(make_cross_frame_processors(model.unet, list_seen_frames("first", FRAMES))):
        alone = model.predict_denoised(latents(), TIME, text, 3.0).clean
        other = latents()
        other[1] += 1
        after_second = model.predict_denoised(other, TIME, text, 3.0).clean
        other = latents()
        other[0] += 1
        after_first = model.predict_denoised(other, TIME, text, 3.0).clean
    torch.testing.assert_close(after_second[[0, 2]], alone[[0, 2]])
    assert (after_first[1:] - alone[1:]).abs().amax((1, 2, 3)).min() > 1e-4
    model_alone = model.predict_denoised(latents()[:1], TIME, text, 3.0).clean
    torch.testing.assert_close(alone[:1], model_alone)


@torch.no_grad()
def test_paths_are_used_in_the_layers_of_their_size(model: DiffusionModel, text: EncodedPrompt) -> None:
    number = torch.arange(SIDE * SIDE)
    own = torch.full((FRAMES, SIDE * SIDE, FRAMES), -1)
    for frame in range(FRAMES):
        own[frame, :, frame] = number
    same = number[None, :, None].expand(FRAMES, -1, FRAMES)
    expected = model.predict_denoised(latents(), TIME, text, 1.0).clean
    with model.replace_attention(
        make_cross_frame_processors(model.unet, list_seen_frames("own", FRAMES), {SIDE * SIDE: own})
    ):
        torch.testing.assert_close(model.predict_denoised(latents(), TIME, text, 1.0).clean, expected)
    with model.replace_attention(
        make_cross_frame_processors(model.unet, list_seen_frames("own", FRAMES), {SIDE * SIDE: same})
    ):
        assert (model.predict_denoised(latents(), TIME, text, 1.0).clean - expected).abs().max() > 1e-4


@torch.no_grad()
def test_what_one_run_held_is_put_into_another_window_by_window(model: DiffusionModel, text: EncodedPrompt) -> None:
    wide = torch.randn(1, 4, SIDE, 40, generator=torch.Generator().manual_seed(3))  # wider than the model: windows
    assert model.unet is not None
    layers = list_self_attention(model.unet)
    features = FeatureRecorder(layers, {"mid": model.unet.mid_block.resnets[0].conv2})
    with features.record_features(model):
        expected = model.predict_denoised(wide, TIME, text, 1.0).clean
    assert len(features.recorded["mid"]) == len(features.recorded[layers[0]]) > 1
    other = wide + torch.randn(wide.shape, generator=torch.Generator().manual_seed(4))
    with features.inject_features(model, features.make_replaying_processors(layers)):
        torch.testing.assert_close(model.predict_denoised(wide, TIME, text, 1.0).clean, expected)
        put_in = model.predict_denoised(other, TIME, text, 1.0).clean
    assert (put_in - model.predict_denoised(other, TIME, text, 1.0).clean).abs().max() > 1e-4


def test_layers_are_listed_from_fine_to_coarse_and_back(model: DiffusionModel) -> None:
    blocks = [name.split(".")[0] for name in list_self_attention(model.unet)]
    assert blocks == ["down_blocks", "mid_block", "up_blocks", "up_blocks"]


def test_a_transformer_is_refused(tiny_models: ModuleType, tmp_path: Path) -> None:
    model = load_model(WeightsSource(str(tiny_models.stable_diffusion_3(tmp_path / "sd3"))))
    with pytest.raises(UserError, match="attention cannot be changed") as caught:
        make_cross_frame_processors(model.unet, list_seen_frames("all", FRAMES))
    assert caught.value.code == ExitCode.BAD_INPUT


def test_a_batch_that_does_not_hold_the_pictures_is_an_error() -> None:
    q, k, v = heads(groups=1)
    with pytest.raises(ValueError, match="whole number"):
        CrossFrameAttention(tuple(list_seen_frames("all", 2)), {})(q, k, v, None)
