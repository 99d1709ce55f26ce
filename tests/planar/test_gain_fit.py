"""The closed-form start of the gains, the windows of opacities, and tables that stay bounded."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from neural_fields.core import coords
from neural_fields.planar.appearance import grid_gain
from neural_fields.planar.appearance.grid_gain import GridGain, GridGainConfig, fit_gain
from neural_fields.planar.appearance.image_texture import ImageTexture
from neural_fields.planar.appearance.pixel_opacity import PixelOpacity, PixelOpacityConfig
from neural_fields.planar.mappings.frame_grid import compute_table_size
from neural_fields.planar.mappings.grid import GridMapping, GridMappingConfig

SIZE = (64, 36)


def scene() -> tuple[GridMapping, ImageTexture, GridGain, np.ndarray]:
    """A mapping that shows a random texture as it is, a gain, and the texture as a picture."""
    mapping = GridMapping(GridMappingConfig(), 2, SIZE)
    texture = ImageTexture(coords.frame_box(*SIZE), *SIZE, 0.01)
    picture = np.random.default_rng(0).uniform(0.3, 0.7, (SIZE[1], SIZE[0], 3)).astype(np.float32)
    with torch.no_grad():
        texture.image.copy_(torch.from_numpy(picture).permute(2, 0, 1))
    return mapping, texture, GridGain(GridGainConfig(cell=8.0), 2, SIZE), picture


def test_the_light_on_a_texture_is_found_in_closed_form() -> None:
    mapping, texture, gain, picture = scene()
    light = np.linspace(0.7, 1.3, SIZE[0], dtype=np.float32)[None, :, None] * np.array([1.0, 0.9, 1.1], np.float32)
    fit_gain(gain, mapping, texture, 1, picture * light, np.ones(SIZE[::-1], np.float32))
    found = gain.sample_frames(torch.tensor([1]), 2, SIZE)[0].detach().numpy()
    assert np.abs(found - light)[4:-4, 6:-6].max() < 0.06
    assert float(gain.table.values[0].detach().abs().max()) == 0.0


def test_no_light_is_found_where_a_layer_is_not_seen() -> None:
    mapping, texture, gain, picture = scene()
    share = np.zeros(SIZE[::-1], np.float32)
    share[:, :20] = 1
    fit_gain(gain, mapping, texture, 1, 1.3 * picture, share)
    found = gain.sample_frames(torch.tensor([1]), 2, SIZE)[0].detach().numpy()
    assert np.abs(found[:, :12] - 1.3).max() < 0.05 and np.abs(found[:, 34:] - 1).max() < 1e-3
    fit_gain(gain, mapping, texture, 1, 1.3 * picture, np.zeros_like(share))
    assert float(gain.table.values[1].detach().abs().max()) == 0.0


def test_compiled_gains_equal_those_of_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("numba")
    mapping, texture, gain, picture = scene()
    share = np.random.default_rng(1).uniform(0, 1, SIZE[::-1]).astype(np.float32)
    share[:4], share[:, 50:] = 0, 0
    with torch.no_grad():
        mapping.homography[0, 0, 2] = 0.31  # some pixels look beyond the picture
        mapping.residual.values[1].uniform_(-0.1, 0.1)
    found = []
    for is_compiled in (True, False):
        monkeypatch.setattr(grid_gain, "can_compile_loops", lambda found=is_compiled: found)
        for t in range(2):
            fit_gain(gain, mapping, texture, t, picture**2, share)
        found.append(gain.table.values.detach().clone())
    assert found[0].abs().mean() > 0.1 and torch.allclose(found[0], found[1], atol=1e-4)


def test_what_is_darker_than_any_shade_is_no_light() -> None:
    mapping, texture, gain, picture = scene()
    fit_gain(gain, mapping, texture, 1, 0.05 * picture, np.ones(SIZE[::-1], np.float32))
    assert float(gain.table.values[1].detach().exp().min()) == pytest.approx(1 / 2.5)


def test_a_front_layer_is_seen_only_inside_its_window() -> None:
    opacity = PixelOpacity(PixelOpacityConfig(), 1, 2, SIZE)
    with torch.no_grad():
        opacity.table.values.fill_(9.0)
        opacity.windows[1] = torch.tensor([10, 20, 30, 50])
    whole, part = opacity.sample_frames(torch.tensor([0, 1]), 2, SIZE)[..., 0]
    assert bool((whole > 0.99).all()) and int((part > 0.99).sum()) == 10 * 20 == int((part > 0).sum())
    xyt = torch.cat([coords.frame_xy(*SIZE).view(-1, 2), torch.full((SIZE[0] * SIZE[1], 1), 0.5)], dim=1)
    assert torch.equal(opacity(xyt)[:, 0].view(SIZE[1], SIZE[0]) > 0, part > 0)


@pytest.mark.parametrize("count", [10, 1000, 100_000])
def test_tables_of_long_clips_stay_bounded(count: int) -> None:
    columns, rows = compute_table_size((854, 480), 6.0, count, max_cells=1.6e6)
    assert columns * rows * count < 1.3 * 1.6e6 + 4 * count * (columns + rows)
    assert compute_table_size((854, 480), 6.0) == (143, 81)
