"""Several pictures and one canonical picture: what goes there comes back, and one wrong picture leaves no trace."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from editors.inputs.merging import (
    DEFAULTS,
    TexelFootprints,
    compute_weighted_median,
    fit_canonical,
    merge_frames,
    project_to_canonical,
    sample_frames,
    splat_each_frame,
    splat_frames,
)
from neural_fields.core import coords

WIDTH, HEIGHT = 40, 30
GRID = (36, 28)
SMOOTH = 1 / 255


def places(count: int = 5, grid: tuple[int, int] = GRID, turn: float = 0.1, weight: float = 1.0) -> TexelFootprints:
    """Frames that look at the canonical picture turned, and from ever further to the right."""
    pixels = coords.pixel_centers(WIDTH, HEIGHT) - torch.tensor([WIDTH / 2, HEIGHT / 2])
    texels = []
    for t in range(count):
        c, s = 0.6 * math.cos(turn * t), 0.6 * math.sin(turn * t)
        matrix = torch.tensor([[c, -s], [s, c]])
        texels.append(pixels @ matrix.T + torch.tensor([grid[0] / 2 + 0.7 * t, grid[1] / 2 + 0.31 * t]))
    return TexelFootprints(torch.stack(texels), torch.full((count, HEIGHT, WIDTH), weight), grid)


def smooth(grid: tuple[int, int] = GRID) -> torch.Tensor:
    x, y = coords.pixel_centers(*grid).unbind(-1)
    return torch.stack([0.5 + 0.4 * torch.sin(x / 3), 0.5 + 0.3 * torch.cos(y / 4), 0.01 * (x + y)])


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def pushed_slowly(values: torch.Tensor, where: TexelFootprints) -> tuple[torch.Tensor, torch.Tensor]:
    width, height = where.size
    total, weight = torch.zeros(values.shape[1], height, width), torch.zeros(height, width)
    for i in range(values.shape[0]):
        for r in range(values.shape[2]):
            for c in range(values.shape[3]):
                x, y = (float(v) - 0.5 for v in where.texels[i, r, c])
                for row in (math.floor(y), math.floor(y) + 1):
                    for column in (math.floor(x), math.floor(x) + 1):
                        if 0 <= row < height and 0 <= column < width:
                            share = (1 - abs(x - column)) * (1 - abs(y - row)) * float(where.weight[i, r, c])
                            total[:, row, column] += share * values[i, :, r, c]
                            weight[row, column] += share
    return torch.where(weight > 0, total / weight.clamp(min=1e-9), 0), weight


def test_pushing_is_the_mean_that_a_loop_over_pixels_finds() -> None:
    where = TexelFootprints(40 * noise(2, 6, 8, 2) - 4, noise(2, 6, 8, seed=1), (30, 25))
    values = noise(2, 3, 6, 8, seed=2)
    mean, weight = pushed_slowly(values, where)
    found = splat_frames(values, where)
    close = weight > 0.05
    torch.testing.assert_close(found.values[:, close], mean[:, close], rtol=0, atol=1e-4)
    torch.testing.assert_close(found.weight[close], weight[close], rtol=0, atol=3e-3)


@pytest.mark.parametrize("back", ["merge", "fit"])
def test_what_was_pulled_from_a_canonical_picture_comes_back_where_it_was_seen(back: str) -> None:
    where, canonical = places(), smooth()
    values = sample_frames(canonical, where)
    found = merge_frames(values, where).values if back == "merge" else fit_canonical(values, where)
    inside = splat_frames(values, where).weight > 1
    assert inside.float().mean() > 0.4
    assert (found - canonical)[:, inside].abs().quantile(0.98) < 1.2 * SMOOTH


def test_what_aligns_with_the_texels_comes_back_at_once_and_exactly() -> None:
    texels = torch.stack([coords.pixel_centers(20, 16) + shift for shift in (3, 5)])
    where, canonical = TexelFootprints(texels, torch.ones(2, 16, 20), (30, 28)), noise(3, 28, 30)
    found = splat_frames(sample_frames(canonical, where), where)
    torch.testing.assert_close(found.values[:, found.seen_mask], canonical[:, found.seen_mask])
    assert found.spread.max() < 1e-6
    assert torch.equal(found.weight > 0, found.weight >= 1) and int(found.seen_mask.sum()) == 2 * 320 - 14 * 18


def test_texels_that_no_frame_shows_stay_empty() -> None:
    where = places()
    for found in (splat_frames(noise(5, 3, HEIGHT, WIDTH), where), merge_frames(noise(5, 3, HEIGHT, WIDTH), where)):
        assert 0 < int(found.seen_mask.sum()) < found.seen_mask.numel()
        assert (found.values[:, ~found.seen_mask] == 0).all() and (found.weight[~found.seen_mask] == 0).all()


def test_a_pixel_without_weight_changes_nothing() -> None:
    where = places(2)
    where.weight[:, :, 25:] = 0
    values = noise(2, 3, HEIGHT, WIDTH)
    other = torch.where(where.weight[:, None] > 0, values, 7.0)
    assert torch.equal(merge_frames(values, where).values, merge_frames(other, where).values)


def test_one_wrong_frame_of_five_leaves_no_trace_and_is_told() -> None:
    where, canonical = places(), smooth()
    right = sample_frames(canonical, where)
    wrong = right.clone()
    wrong[2] = noise(3, HEIGHT, WIDTH)
    inside = (splat_each_frame(right, where)[1] > 1).all(dim=0)
    assert int(inside.sum()) > 100
    found = merge_frames(wrong, where)
    assert (found.values - merge_frames(right, where).values)[:, inside].abs().mean() < SMOOTH
    assert (found.values - canonical)[:, inside].abs().max() < 0.05
    assert (fit_canonical(wrong, where) - canonical)[:, inside].abs().mean() > 0.05  # squares do not forget it
    assert found.find_conflicts(0.05)[inside].float().mean() > 0.7
    assert not merge_frames(right, where).find_conflicts(0.05)[inside].any()


@given(st.lists(st.tuples(st.floats(0, 1), st.integers(0, 4)), min_size=3, max_size=7))
def test_the_weighted_median_has_half_of_the_weight_on_either_side(pairs: list[tuple[float, int]]) -> None:
    values = torch.tensor([value for value, _ in pairs]).view(-1, 1, 1, 1)
    weight = torch.tensor([float(w) for _, w in pairs]).view(-1, 1, 1)
    if (weight > 0).sum() < 3:
        return
    found = float(compute_weighted_median(values, weight))
    half = float(weight.sum()) / 2
    assert float(weight[values[:, 0] < found].sum()) <= half
    assert float(weight[values[:, 0] > found].sum()) <= half


def test_two_frames_have_no_majority_and_are_averaged() -> None:
    values = torch.tensor([0.0, 1.0]).view(2, 1, 1, 1)
    assert compute_weighted_median(values, torch.tensor([3.0, 1.0]).view(2, 1, 1)).item() == pytest.approx(0.25)


def test_back_projection_lowers_what_the_merged_picture_misses_of_sharp_frames() -> None:
    where = places()
    sharp = sample_frames((noise(3, GRID[1], GRID[0]) > 0.5).float(), where)
    errors = []
    for rounds in (0, 1, 6):
        merged = merge_frames(sharp, where, replace(DEFAULTS, rounds=rounds))
        errors.append(float((sample_frames(merged.values, where) - sharp).square().mean()))
    assert errors[1] < 0.6 * errors[0] and errors[2] < 0.25 * errors[0]


def test_merging_brings_no_colors_much_stronger_than_those_that_were_there() -> None:
    where = places()
    where.weight[:, :, ::3] = 0.01
    found = merge_frames(0.2 + 0.5 * noise(5, 3, HEIGHT, WIDTH), where, replace(DEFAULTS, rounds=20))
    assert found.values[:, found.seen_mask].min() >= 0.07 and found.values.max() <= 0.83


def test_agreement_is_a_projection_that_leaves_other_pixels_alone() -> None:
    where = places(4, turn=0.05)
    where.weight[:, :10] = 0
    values = noise(4, 3, HEIGHT, WIDTH)
    many = replace(DEFAULTS, rounds=60)
    once = project_to_canonical(values, where, many)
    assert torch.equal(once[:, :, :10], values[:, :, :10])
    assert (project_to_canonical(once, where, many) - once).abs().quantile(0.98) < 4 * SMOOTH
    shown = sample_frames(smooth(), where)
    assert (project_to_canonical(shown, where) - shown).abs().quantile(0.98) < SMOOTH
