"""Clips that one canonical picture cannot explain are divided into charts."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch

from neural_fields.core import coords
from neural_fields.core.box import Box
from neural_fields.data.flow.shot_detection import find_cuts
from neural_fields.data.synthetic.planar_clips import make_translation_clip
from neural_fields.planar.init.charts import SpanGeometry, divide_into_charts, lay_out_charts
from neural_fields.planar.init.geometry import estimate_magnification
from neural_fields.planar.mappings.grid import GridMapping
from neural_fields.planar.mappings.grid import GridMappingConfig as GridSettings

pytestmark = pytest.mark.slow

PLANE = Box(-1.0, -0.5, 1.0, 0.5)


def geometry(first: int, count: int, box: Box = PLANE) -> SpanGeometry:
    return SpanGeometry(first, np.tile(np.eye(3), (count, 1, 1)), np.zeros((count, 2, 2, 2)), box)


def test_a_cut_is_found_and_a_pan_a_flash_and_a_fade_are_not() -> None:
    def shot(seed: int) -> np.ndarray:
        clip = make_translation_clip(8, 96, 54, velocity=(9, 3), seed=seed)
        frames = clip.frames
        return np.roll(frames, seed, axis=-1)  # other colors

    pan = shot(0)
    assert find_cuts(pan, None) == ()
    assert find_cuts(np.concatenate([pan, shot(1), shot(2)]), None) == (8, 16)
    flash = pan.copy()
    flash[4] = 255 - (255 - flash[4]) // 4
    assert find_cuts(flash, None) == ()
    fade = np.concatenate([pan, pan]) * np.linspace(1, 0.2, 16)[:, None, None, None]
    assert find_cuts(fade.astype(np.uint8), None) == ()


@pytest.mark.parametrize(
    ("errors", "spans"),
    [
        ({100: 1e-3}, [(0, 99)]),  # 30 dB: explained
        ({100: 1e-2, 25: 8e-3}, [(0, 99)]),  # dividing would not help
        ({100: 1e-2, 25: 2e-3, 50: 6e-3}, [(0, 24), (25, 49), (50, 74), (75, 99)]),
        ({100: 1e-2, 25: 2e-3, 50: 2.1e-3}, [(0, 49), (50, 99)]),  # as good with fewer
    ],
)
def test_a_shot_is_divided_as_far_as_that_explains_it_better(errors: dict, spans: list) -> None:
    def place(span: tuple[int, int]) -> SpanGeometry:
        return geometry(span[0], span[1] - span[0] + 1)

    assert divide_into_charts([(0, 99)], place, place, lambda part: errors[len(part.homography)]) == spans


def test_a_shot_that_one_image_explains_is_placed_once() -> None:
    placed: list[str] = []

    def place(how: str, span: tuple[int, int]) -> SpanGeometry:
        placed.append(how)
        return geometry(span[0], span[1] - span[0] + 1)

    places = partial(place, "for good"), partial(place, "coarsely")
    assert divide_into_charts([(0, 59)], *places, lambda part: 1e-3) == [(0, 59)] and placed == ["for good"]
    assert divide_into_charts([(0, 99)], *places, lambda part: 1e-3) == [(0, 99)] and placed[1:] == ["coarsely"]


def test_a_short_shot_is_never_divided_and_shots_are_kept_apart() -> None:
    place = lambda span: geometry(span[0], span[1] - span[0] + 1)  # noqa: E731
    assert divide_into_charts([(0, 30), (31, 40)], place, place, lambda part: 1.0) == [(0, 30), (31, 40)]


def test_one_plane_stays_where_its_reference_frame_shows_itself() -> None:
    (same,), (chart,), box = lay_out_charts([geometry(0, 3)], [2.0], 0.1)
    assert np.array_equal(same.homography, geometry(0, 3).homography)
    assert chart.box == box == Box(-1.0, -0.5, 1.0, 0.5)


def test_charts_lie_apart_and_hold_what_their_frames_show() -> None:
    parts = [geometry(0, 4), geometry(4, 4, Box(-2.0, -0.5, 1.0, 0.9)), geometry(8, 2), geometry(10, 9)]
    moved, found, whole = lay_out_charts(parts, [1.0, 1.5, 1.0, 2.0], 0.1)
    assert [(s.first, s.last) for s in found] == [(0, 3), (4, 7), (8, 9), (10, 18)]
    for one in found:
        assert whole.u0 <= one.box.u0 and one.box.u1 <= whole.u1 and whole.v0 <= one.box.v0 and one.box.v1 <= whole.v1
        for other in found:
            apart = one.box.u1 + 0.05 < other.box.u0 or one.box.v1 + 0.05 < other.box.v0
            assert one is other or apart or other.box.u1 + 0.05 < one.box.u0 or other.box.v1 + 0.05 < one.box.v0
    for before, after, chart, scale in zip(parts, moved, found, [1.0, 1.5, 1.0, 2.0], strict=True):
        corner = after.homography[0] @ np.array([before.box.u0, before.box.v0, 1.0])
        assert corner[:2] / corner[2] == pytest.approx([chart.box.u0, chart.box.v0])
        assert chart.box.width == pytest.approx(scale * before.box.width)


@pytest.mark.parametrize("far", [0.0, 3.0, 8.0])
def test_how_finely_a_frame_reads_its_chart_does_not_depend_on_where_the_chart_lies(far: float) -> None:
    tilted = torch.tensor([[0.5, 0.05, 0.1], [-0.02, 0.5, 0.1], [0.15, -0.1, 1.0]])
    aside = torch.eye(3)
    aside[0, 2], aside[1, 2] = far, 0.7 * far
    mapping = GridMapping(GridSettings(), 2, (64, 36))
    mapping.start_from_geometry((aside @ tilted).repeat(2, 1, 1), torch.zeros(2, 2, *mapping.residual.shape[2:]))
    uv = mapping.map_frames(torch.tensor([1]), 2, (64, 36))[0].detach()
    between = torch.stack([uv[17:19, 32] - uv[17:19, 31], uv[18, 31:33] - uv[17, 31:33]]).mean(1)  # across, down
    along = mapping.uv_per_pixel(torch.tensor([1.0]))[0]
    torch.testing.assert_close(along, between.T.norm(dim=1), rtol=1e-3, atol=1e-6)
    pixel = 2 / 64
    area = float(torch.linalg.det(between)) / pixel**2
    assert estimate_magnification(mapping.homography.numpy()) == pytest.approx(area**-0.5, rel=1e-3)


def test_nothing_is_blended_across_two_charts() -> None:
    mapping = GridMapping(GridSettings(), 4, (32, 18), starts=[2])
    shift = torch.eye(3).repeat(4, 1, 1)
    shift[2:, 0, 2] = 10.0
    mapping.start_from_geometry(shift, torch.zeros(4, 2, *mapping.residual.shape[2:]))
    times = torch.tensor([0.5, 1.4, 1.6, 2.5])
    xyt = torch.stack([torch.zeros(4), torch.zeros(4), torch.as_tensor(coords.normalize_time(times, 4))], dim=1)
    assert mapping(xyt)[:, 0].tolist() == pytest.approx([0.0, 0.0, 10.0, 10.0])
