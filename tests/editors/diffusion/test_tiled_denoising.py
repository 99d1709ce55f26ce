"""Windows of large latents."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from editors.diffusion.backend.tiled_denoising import DEFAULTS, divide_into_windows, run_in_windows


@given(length=st.integers(1, 400), side=st.sampled_from([8, 16, 64]), multiple=st.sampled_from([1, 2, 8]))
def test_windows_cover_every_latent_and_overlap(length: int, side: int, multiple: int) -> None:
    length = multiple * -(-length // multiple)
    found = divide_into_windows(length, side, multiple)
    assert found[0].start == 0 and found[-1].stop == length
    for before, after in pairwise(found):
        assert after.start > before.start
        assert before.stop - after.start >= DEFAULTS.min_overlap * side - 2 * multiple
        assert after.start % multiple == 0


@pytest.mark.parametrize(("height", "width"), [(16, 16), (18, 20), (16, 50), (70, 41), (33, 16)])
def test_what_is_the_same_in_every_window_comes_back_as_it_was(height: int, width: int) -> None:
    latents = torch.randn(2, 4, height, width, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(run_in_windows(latents, 16, 1, lambda part, window: 3 * part), 3 * latents)


def test_windows_see_their_own_part_and_none_is_larger_than_the_model_s() -> None:
    latents = torch.arange(40 * 40.0).reshape(1, 1, 40, 40)

    def run(part: torch.Tensor, window: tuple[slice, slice]) -> torch.Tensor:
        assert part.shape[-2:] == (16, 16)
        torch.testing.assert_close(part, latents[..., window[0], window[1]])
        return part

    run_in_windows(latents, 16, 2, run)


def test_where_windows_disagree_the_result_goes_smoothly_from_one_to_the_other() -> None:
    latents = torch.zeros(1, 1, 16, 64)
    joined = run_in_windows(latents, 16, 1, lambda part, window: part + window[1].start)
    assert (joined[..., 1:] - joined[..., :-1]).abs().max() < 8
