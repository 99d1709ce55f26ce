"""The start of the lighting gains: in closed form, the factor that brings a texture nearest to the frame."""

from __future__ import annotations

import cv2
import numpy as np
import torch
from jaxtyping import Float

from neural_fields.planar.gain import GridGain
from neural_fields.planar.mapping import GridMapping
from neural_fields.planar.patches import Layer, Patch, look
from neural_fields.planar.texture import ImageTexture

DARK = 0.003  # added to squared colours: black says nothing about light
UNSEEN = 0.01  # weight of "no change" in every cell, so that a gain fades where its layer is not seen
LARGEST = 2.5  # gains beyond this, up or down, are no lighting


@torch.no_grad()
def fill_gain(
    gain: GridGain,
    mapping: GridMapping,
    texture: ImageTexture,
    t: int,
    rgb: Float[np.ndarray, "height width 3"],
    share: Float[np.ndarray, "height width"],
) -> None:
    """Sets the gain of frame `t`.

    In every cell g minimises the sum of (g texture - frame)^2 over the pixels, so g = sum(texture frame) /
    sum(texture^2).

    Args:
        rgb: the frame, 0 to 1.
        share: how much of each pixel the layer fills, 0 to 1.
    """
    rows, columns = gain.table.shape[2:]
    part = seen_part(share)
    if part.is_empty:
        gain.table.values[t].zero_()
        return
    height, width = share.shape
    step = mapping.pixel_step(torch.tensor([float(t)]))
    across, down = texture.levels(step)[0].tolist()
    found = look(Layer(mapping, texture, None, t), (across, down), (width, height), part)
    texel = found.texel.permute(1, 2, 0).numpy()
    inside = part.slices
    weight = share[inside][..., None]

    def cells(values: np.ndarray) -> np.ndarray:
        whole = np.zeros((height, width, 3), np.float32)
        whole[inside] = values * weight
        return cv2.GaussianBlur(cv2.resize(whole, (columns, rows), interpolation=cv2.INTER_AREA), (3, 3), 0.6) + UNSEEN

    factor = cells(texel * rgb[inside] + DARK) / cells(texel * texel + DARK)
    gain.table.values[t] = torch.from_numpy(np.log(factor.clip(1 / LARGEST, LARGEST))).permute(2, 0, 1)


def seen_part(share: Float[np.ndarray, "height width"]) -> Patch:
    """The rectangle in which a layer is seen."""
    rows, columns = np.flatnonzero(share.any(1)), np.flatnonzero(share.any(0))
    if not len(rows):
        return Patch(0, 0, 0, 0)
    return Patch(int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1)
