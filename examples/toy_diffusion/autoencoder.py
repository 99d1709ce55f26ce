"""Builds the toy's autoencoder: pictures to latents of half the side and back.

Trained from random weights, an `AutoencoderKL` this small needs hours on one core: its normalizations hide the
brightness of a flat picture. So its weights are initialized with the best linear code, which is found in seconds.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

FEATURES = 6  # channels of the linear decoder before its last convolution
STEPS = 1500  # of the linear code


class LinearCode(nn.Module):
    """Four convolutions with nothing between them, laid out as the convolutions on the straight path of the model."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.halve = nn.Conv2d(3, 12, 3, padding=1), nn.Conv2d(12, 4, 3, stride=2)
        self.spread, self.last = nn.Conv2d(4, FEATURES, 3, padding=1), nn.Conv2d(FEATURES, 3, 3, padding=1)

    def forward(self, rgb: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Latents, features before the last convolution, and the picture again."""
        latents = self.halve(nn.functional.pad(self.first(rgb), (0, 1, 0, 1)))
        features = self.spread(nn.functional.interpolate(latents, scale_factor=2.0))
        return latents, features, self.last(features)


def linear_code(rgb: Tensor, random: np.random.Generator) -> LinearCode:
    """The linear code with the smallest squared error on pictures [count, 3, height, width] in [-1, 1]."""
    code, rate = LinearCode(), 5e-3
    optimizer = torch.optim.Adam(code.parameters(), lr=rate, betas=(0.9, 0.99))
    for step in range(STEPS):
        optimizer.param_groups[0]["lr"] = rate * (1 - step / STEPS)
        batch = rgb[random.integers(0, len(rgb), 16)]
        latents, _, again = code(batch)
        loss = (again - batch).square().mean() + 0.01 * latents.mean((0, 2, 3)).square().sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():  # latents of unit spread
        spread = code(rgb)[0].std()
        code.halve.weight /= spread
        code.halve.bias /= spread
        code.spread.weight *= spread
    return code


def new_vae() -> Any:
    """An autoencoder that halves the sides of a picture and keeps four channels."""
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        sample_size=32,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(16, 32),
        latent_channels=4,
        norm_num_groups=1,
        mid_block_add_attention=False,  # or a large picture would need the square of its memory
    )


@torch.no_grad()
def start_linear(vae: Any, code: LinearCode, rgb: Tensor) -> None:
    """Writes a linear code into an autoencoder, so that it begins with the same pictures, nearly to the bit.

    Residual branches begin at zero. Each linear channel x goes with a channel -x, since silu(x) - silu(-x) = x, and
    with constant channels that outweigh it, so that the normalization divides by nearly the same number everywhere.

    Args:
        vae: the autoencoder; its weights are changed.
        code: the linear code.
        rgb: pictures [count, 3, height, width] in [-1, 1] that set the scale of the constant channels.
    """
    encoder, decoder = vae.encoder, vae.decoder
    for block in (*encoder.down_blocks, encoder.mid_block, *decoder.up_blocks, decoder.mid_block):
        for residual in block.resnets:
            _write(residual.conv2, {})
    latents, features, _ = code(rgb)
    center = torch.zeros(4, 4, 3, 3)
    center[range(4), range(4), 1, 1] = 1
    _copy(encoder.conv_in, code.first)
    _copy(encoder.down_blocks[0].downsamplers[0].conv, code.halve)
    _both_signs(encoder.down_blocks[1].resnets[0].conv_shortcut, encoder.conv_norm_out, 4, latents)
    _write(encoder.conv_out, {(0, 0): center, (0, 4): -center})
    _write(vae.quant_conv, {(0, 0): torch.eye(4)[..., None, None]})
    vae.quant_conv.bias[4:] = -6.0  # logarithm of the latents' variance: small, or the decoder sees little but noise
    _write(vae.post_quant_conv, {(0, 0): torch.eye(4)[..., None, None]})
    decoder.conv_in.weight[:4], decoder.conv_in.bias[:4] = center, 0
    _copy(decoder.up_blocks[0].upsamplers[0].conv, code.spread)
    _both_signs(decoder.up_blocks[1].resnets[0].conv_shortcut, decoder.conv_norm_out, FEATURES, features)
    _write(decoder.conv_out, {(0, 0): code.last.weight, (0, FEATURES): -code.last.weight})
    decoder.conv_out.bias.copy_(code.last.bias)


def _copy(target: Any, source: nn.Conv2d) -> None:
    """Writes a convolution into the first channels of a wider one, whose other outputs stay as they are."""
    outputs, inputs = source.weight.shape[:2]
    target.weight[:outputs] = 0
    target.weight[:outputs, :inputs] = source.weight
    target.bias[:outputs] = source.bias


def _write(target: Any, blocks: dict[tuple[int, int], Tensor]) -> None:
    """Sets a convolution to zero but for blocks of weights at (first output, first input)."""
    target.weight.zero_()
    target.bias.zero_()
    for (output, source), weight in blocks.items():
        target.weight[output : output + weight.shape[0], source : source + weight.shape[1]] = weight


def _both_signs(shortcut: Any, norm: Any, count: int, values: Tensor) -> None:
    """Makes x, -x and constants of both signs of the first channels, and the normalization after it undo itself."""
    identity = torch.eye(count)[..., None, None]
    _write(shortcut, {(0, 0): identity, (count, 0): -identity})
    constant, total = 5 * values.square().mean().sqrt(), len(shortcut.bias)
    half = min(total - 2 * count, 8) // 2
    shortcut.bias[2 * count : 2 * count + half] = constant
    shortcut.bias[2 * count + half : 2 * count + 2 * half] = -constant
    norm.weight.fill_(((2 * half * constant**2 + 2 * count * values.square().mean()) / total).sqrt())
