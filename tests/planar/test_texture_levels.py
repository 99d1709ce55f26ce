"""Image textures seen small: fewer texels, no dots, and the same answer for points and for whole frames."""

from __future__ import annotations

import torch

from neural_fields.core.box import Box
from neural_fields.core.coords import frame_xy
from neural_fields.planar.appearance.image_texture import ImageTexture
from neural_fields.planar.appearance.pixel_opacity import snap_alphas

BOX = Box(-1.0, -0.5, 1.0, 0.5)


def make(width: int = 64, height: int = 32) -> ImageTexture:
    torch.manual_seed(0)
    texture = ImageTexture(BOX, width, height, 0.01)
    with torch.no_grad():
        texture.image.copy_(torch.rand(3, height, width))
    return texture


def test_pixels_as_dense_as_texels_see_the_picture_itself() -> None:
    texture, uv = make(), torch.rand(50, 2) - 0.5
    step = torch.full((50, 2), 2 / 64)
    assert torch.equal(texture.sample_filtered(uv, step), texture(uv))


def test_pixels_four_texels_apart_see_means_of_sixteen_texels() -> None:
    texture = make()
    uv = torch.tensor([[-1 + 4 / 64, -0.5 + 4 / 64]])  # the center of the first cell of 4 x 4 texels
    seen = texture.sample_filtered(uv, torch.full((1, 2), 4 * 2 / 64))
    torch.testing.assert_close(seen[0], texture.image[:, :4, :4].mean((1, 2)))


def test_each_axis_has_its_own_level() -> None:
    texture = make()
    uv = torch.tensor([[-1 + 4 / 64, -0.5 + 1 / 64]])
    seen = texture.sample_filtered(uv, torch.tensor([[4 * 2 / 64, 2 / 64]]))
    torch.testing.assert_close(seen[0], texture.image[:, 0, :4].mean(1))


def test_every_texel_of_a_picture_seen_small_gets_the_same_gradient() -> None:
    texture = make()
    uv = frame_xy(16, 8)[None]  # a pixel every four texels
    texture.sample_filtered(uv, torch.full((1, 2), 4 * 2 / 64)).sum().backward()
    gradient = texture.image.grad
    assert gradient is not None
    torch.testing.assert_close(gradient, gradient.mean().expand_as(gradient), rtol=1e-4, atol=1e-6)


def test_frames_and_points_of_mixed_levels_agree() -> None:
    texture = make()
    uv = torch.stack([frame_xy(8, 4), frame_xy(8, 4) * 0.5])
    steps = torch.tensor([[8 * 2 / 64, 8 * 2 / 64], [2 / 64, 2 / 64]])
    frames = texture.sample_filtered(uv, steps)
    points = texture.sample_filtered(uv.view(-1, 2), steps.repeat_interleave(32, dim=0))
    torch.testing.assert_close(frames.reshape(-1, 3), points)


def test_there_is_a_smallest_level() -> None:
    texture = make()
    seen = texture.sample_filtered(torch.zeros(1, 2), torch.full((1, 2), 100.0))
    assert torch.isfinite(seen).all()
    assert texture.image.shape[1] % 2**texture.settings.max_halvings == 0


def test_nearly_certain_opacities_become_exact_and_can_still_be_mended() -> None:
    alpha = torch.tensor([0.001, 0.02, 0.5, 0.98, 0.999], requires_grad=True)
    stretched = snap_alphas(alpha)
    assert stretched.detach().tolist()[:2] == [0.0, 0.0]
    assert stretched.detach().tolist()[3:] == [1.0, 1.0]
    assert stretched[2].item() == 0.5
    stretched.sum().backward()
    assert alpha.grad is not None and bool((alpha.grad > 1).all())
