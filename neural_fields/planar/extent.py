"""How much of the canonical plane a fitted model uses: the box of each canonical image that is exported."""

from __future__ import annotations

from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from neural_fields import coords
from neural_fields.coords import Box
from neural_fields.planar.hash_parts import BoundedHashTexture
from neural_fields.planar.model import LayerShape, ModelShape, PlanarModel
from neural_fields.planar.opacity import layer_weights
from neural_fields.planar.texture import MlpTexture

EXPORT_SIDE = 1000  # texels on the longer side, as Layered Neural Atlases exports its atlases
SEEN = 0.5  # a point shows a layer that has at least this weight
LATTICE = 160  # points along the longer side of the frame


@torch.no_grad()
def measured_shape(model: PlanarModel) -> ModelShape:
    """The model's shape with the boxes that its layers fill after the fit.

    Textures that cover a box of their own (pictures, hash grids) keep it; a texture that is a network is defined
    everywhere, and is exported where the frames show it. A layer that is never seen keeps its box too.
    """
    if not all(isinstance(texture, MlpTexture | BoundedHashTexture) for texture in model.textures):
        return model.shape
    boxes = _seen_boxes(model)
    layers = [_with_box(layer, box) if box else layer for layer, box in zip(model.shape.layers, boxes, strict=True)]
    return replace(model.shape, layers=tuple(layers))


def export_size(box: Box) -> tuple[int, int]:
    """(width, height) in texels of the exported picture of a box."""
    density = EXPORT_SIDE / max(box.width, box.height)
    return (max(2, round(box.width * density)), max(2, round(box.height * density)))


def _with_box(layer: LayerShape, box: Box) -> LayerShape:
    width, height = export_size(box)
    return LayerShape(layer.name, box, width, height)


def _seen_boxes(model: PlanarModel) -> list[Box | None]:
    """The box around the canonical points at which each layer is seen in any frame, with a rim of a lattice step."""
    shape = model.shape
    xy = _lattice(*shape.size).to(next(model.parameters()).device)
    corners: list[list[Tensor]] = [[] for _ in model.layers]
    for t in range(shape.frame_count):
        time = float(coords.normalise_time(float(t), shape.frame_count))
        xyt = torch.cat([xy, xy.new_full((len(xy), 1), time)], dim=1)
        weight = layer_weights(model.opacity(xyt))
        for number, mapping in enumerate(model.mappings):
            uv = mapping(xyt)[weight[:, number] >= SEEN]
            if len(uv):
                corners[number].append(torch.cat([uv.amin(0), -uv.amax(0)]))
    rim = 2 / LATTICE
    found: list[Box | None] = []
    for parts in corners:
        if not parts:
            found.append(None)
            continue
        u0, v0, u1, v1 = (torch.stack(parts).amin(0) - rim).tolist()
        found.append(Box(u0, v0, -u1, -v1))
    return found


def _lattice(width: int, height: int) -> Float[Tensor, "n 2"]:
    """xy units of a lattice from edge to edge of the frame."""
    scale = min(1.0, LATTICE / max(width, height))
    columns, rows = (max(2, round(side * scale) + 1) for side in (width, height))
    axes = (torch.linspace(0, height, rows), torch.linspace(0, width, columns))
    return coords.normalise_pixels(torch.cartesian_prod(*axes).flip(1), width, height)
