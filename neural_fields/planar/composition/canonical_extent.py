"""The extent of the canonical plane that a trained model uses: the box of each canonical picture that is exported."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from neural_fields.core import coords
from neural_fields.core.box import Box
from neural_fields.planar.appearance.opacity import compute_layer_weights
from neural_fields.planar.appearance.texture import compute_export_size
from neural_fields.planar.composition.model import PlanarModel
from neural_fields.planar.init.model_shape import LayerShape, ModelShape


@dataclass(frozen=True)
class ExtentSettings:
    """Settings of the measurement of canonical boxes after training."""

    min_weight: float = 0.5  # of a layer at a point that shows it
    lattice_points: int = 160  # along the longer side of the frame


DEFAULTS = ExtentSettings()


@torch.no_grad()
def measure_shape(model: PlanarModel, settings: ExtentSettings = DEFAULTS) -> ModelShape:
    """Returns the model's shape with the boxes that its layers fill after training.

    Textures that cover a box of their own (images, hash grids) keep it; a texture that is a network is defined
    everywhere, and is exported where the frames show it. A layer that is never seen keeps its box too.
    """
    if not all(texture.is_unbounded for texture in model.textures):
        return model.shape
    # A lattice of points from edge to edge of the frame, in xy units.
    shape = model.shape
    width, height = shape.size
    scale = min(1.0, settings.lattice_points / max(width, height))
    columns, rows = (max(2, round(side * scale) + 1) for side in (width, height))
    axes = (torch.linspace(0, height, rows), torch.linspace(0, width, columns))
    xy = coords.normalize_pixels(torch.cartesian_prod(*axes).flip(1), width, height)
    xy = xy.to(next(model.parameters()).device)
    # The lowest and the highest uv at which each layer is seen in each frame.
    corners: list[list[Tensor]] = [[] for _ in model.layers]
    for t in range(shape.frame_count):
        time = float(coords.normalize_time(float(t), shape.frame_count))
        xyt = torch.cat([xy, xy.new_full((len(xy), 1), time)], dim=1)
        weight = compute_layer_weights(model.opacity(xyt))
        for number, mapping in enumerate(model.mappings):
            uv = mapping(xyt)[weight[:, number] >= settings.min_weight]
            if len(uv):
                corners[number].append(torch.cat([uv.amin(0), -uv.amax(0)]))
    # The boxes around them, with a rim of a lattice step.
    rim = 2 / settings.lattice_points
    layers = []
    for layer, parts in zip(shape.layers, corners, strict=True):
        if parts:
            u0, v0, u1, v1 = (torch.stack(parts).amin(0) - rim).tolist()
            box = Box(u0, v0, -u1, -v1)
            layers.append(LayerShape(layer.name, box, *compute_export_size(box)))
        else:
            layers.append(layer)
    return replace(shape, layers=tuple(layers))
