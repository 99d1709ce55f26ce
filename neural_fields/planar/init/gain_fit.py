"""The start of the lighting gains: in closed form, the factor that brings a texture nearest to the frame."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import torch
from jaxtyping import Float

from neural_fields.planar.appearance.gain import GridGain
from neural_fields.planar.appearance.texture import ImageTexture
from neural_fields.planar.losses.analytic_layer import FramePatch, LayerTables, render_patch
from neural_fields.planar.mappings.mapping import GridMapping


@dataclass(frozen=True)
class LightingSettings:
    """Settings of the closed-form lighting gains. Colors are in [0, 1]."""

    dark_offset: float = 0.003  # added to squared colors: black says nothing about light
    rest_weight: float = 0.01  # of "no change" in every cell, so that a gain fades where its layer is not seen
    max_gain: float = 2.5  # gains beyond this factor, up or down, are no lighting
    blur_sigma_cells: float = 0.6  # Gaussian over 3 x 3 cells


DEFAULTS = LightingSettings()


@torch.no_grad()
def fit_gain(
    gain: GridGain,
    mapping: GridMapping,
    texture: ImageTexture,
    t: int,
    rgb: Float[np.ndarray, "height width 3"],
    share: Float[np.ndarray, "height width"],
    settings: LightingSettings = DEFAULTS,
) -> None:
    """Sets the gain of frame `t`.

    In every cell g minimizes the sum of (g texture - frame)^2 over the pixels, so g = sum(texture frame) /
    sum(texture^2).

    Args:
        gain: the table to set.
        mapping: of the same layer.
        texture: of the same layer.
        t: the frame.
        rgb: the frame, 0 to 1.
        share: how much of each pixel the layer fills, 0 to 1.
        settings: regularization and limit of the gains.
    """
    rows, columns = gain.table.shape[2:]
    part = find_visible_rectangle(share)
    if part.is_empty:
        gain.table.values[t].zero_()
        return
    height, width = share.shape
    step = mapping.uv_per_pixel(torch.tensor([float(t)]))
    across, down = texture.choose_levels(step)[0].tolist()
    found = render_patch(LayerTables(mapping, texture, None, t), (across, down), (width, height), part)
    texel = found.texel.permute(1, 2, 0).numpy()
    inside = part.slices
    sums = []
    for products in (texel * rgb[inside] + settings.dark_offset, texel * texel + settings.dark_offset):
        whole = np.zeros((height, width, 3), np.float32)
        whole[inside] = products * share[inside][..., None]
        cells = cv2.resize(whole, (columns, rows), interpolation=cv2.INTER_AREA)
        sums.append(cv2.GaussianBlur(cells, (3, 3), settings.blur_sigma_cells) + settings.rest_weight)
    factor = (sums[0] / sums[1]).clip(1 / settings.max_gain, settings.max_gain)
    gain.table.values[t] = torch.from_numpy(np.log(factor)).permute(2, 0, 1)


def find_visible_rectangle(share: Float[np.ndarray, "height width"]) -> FramePatch:
    """Returns the rectangle in which a layer is seen; an empty one where it is not."""
    rows, columns = np.flatnonzero(share.any(1)), np.flatnonzero(share.any(0))
    if not len(rows):
        return FramePatch(0, 0, 0, 0)
    return FramePatch(int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1)
