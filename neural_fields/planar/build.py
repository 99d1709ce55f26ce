"""From a config to a planar model: `plan` looks at the clip, `build` makes the parts, `fill` gives them their start."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import torch
from jaxtyping import Float

from neural_fields import coords
from neural_fields.config import (
    Config,
    GridGain,
    GridMapping,
    HashMapping,
    HashTexture,
    ImageTexture,
    MlpMapping,
    MlpOpacity,
    MlpTexture,
    PixelOpacity,
)
from neural_fields.coords import Box
from neural_fields.data.clip import Clip
from neural_fields.planar import gain, mapping, opacity, texture
from neural_fields.planar.extent import export_size
from neural_fields.planar.frame_table import table_size
from neural_fields.planar.initialise import LayerGeometry, TextureMean, layer_geometry
from neural_fields.planar.model import LayerShape, ModelShape, PlanarModel
from neural_fields.planar.warm_up import WarmUp, warm_up

SURE = 0.005  # of a sigmoid: away from outlines it takes steady evidence to leave what `opacity.certain` calls certain
OUTLINE = 0.7  # pixels, Gaussian: how soft the outline of a mask is taken to be


@dataclass(frozen=True)
class Plan:
    """The sizes of a model, and the geometry it starts from where its mapping takes one."""

    shape: ModelShape
    geometry: tuple[LayerGeometry, ...] | None


def plan(config: Config, clip: Clip) -> Plan:
    """Looks at the clip: sizes, canonical boxes and, for mappings that start from it, geometry."""
    geometry = _geometry(config.mapping, clip) if isinstance(config.mapping, GridMapping) else None
    layers = []
    for number, name in enumerate(clip.layers):
        box = geometry[number].box if geometry else _box(config, clip.size)
        finer = geometry[number].magnification if geometry else 1 / _uv_scale(config)
        layers.append(_whole_cells(LayerShape(name, box, *_texels(config, box, finer, clip.size)), config))
    return Plan(ModelShape(*clip.size, clip.frame_count, tuple(layers)), geometry)


def build(config: Config, shape: ModelShape, seed: int = 0) -> PlanarModel:
    """An untrained model of the config's composition; the same seed gives the same weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        mappings, textures = _mappings(config, shape), _textures(config, shape)
        alphas = _opacity(config, shape)
    gains = []
    if isinstance(config.gain, GridGain):
        gains = [gain.GridGain(config.gain, shape.frame_count, shape.size) for _ in shape.layers]
    return PlanarModel(shape, mappings, textures, gains, alphas, config.terms)


def fill(model: PlanarModel, plan: Plan, clip: Clip, how: WarmUp | None = None) -> None:
    """Gives the parts of a new model, on the CPU, their start: opacity, geometry or warm-up, then explicit textures.

    Args:
        how: seed, device and patience of the warm-up of mappings that are networks.
    """
    if isinstance(model.opacity, opacity.PixelOpacity):
        _fill_opacity(model.opacity, clip)
    if isinstance(model.opacity, opacity.MaskOpacity):
        model.opacity.masks.copy_(torch.from_numpy(np.array(clip.masks.masks)))
    for number, part in enumerate(model.mappings):
        if isinstance(part, mapping.MlpMapping):
            warm_up(part, clip.frame_count, clip.size, (how or WarmUp()).for_layer(number, len(model.layers)))
        if isinstance(part, mapping.GridMapping) and plan.geometry:
            geometry = plan.geometry[number]
            part.place(torch.from_numpy(geometry.homography), torch.from_numpy(geometry.residual).permute(0, 3, 1, 2))
    if all(isinstance(part, texture.ImageTexture) for part in model.textures):
        _fill_textures(model, clip)


def _mappings(config: Config, shape: ModelShape) -> list[mapping.Mapping]:
    """A mapping for each layer, front to back."""
    settings, count = config.mapping, len(shape.layers)
    if isinstance(settings, MlpMapping):
        return [mapping.MlpMapping(settings, settings.layers[number == count - 1]) for number in range(count)]
    if isinstance(settings, HashMapping):
        return [mapping.HashMapping(settings, shape.size) for _ in shape.layers]
    return [mapping.GridMapping(settings, shape.frame_count, shape.size) for _ in shape.layers]


def _textures(config: Config, shape: ModelShape) -> list[texture.Texture]:
    """A texture for each layer, front to back."""
    settings = config.texture
    if isinstance(settings, MlpTexture):
        return list(texture.mlp_textures(settings, len(shape.layers)))
    if isinstance(settings, HashTexture):
        return [texture.HashTexture(settings, layer.box) for layer in shape.layers]
    rate = settings.learning_rate
    return [texture.ImageTexture(layer.box, layer.width, layer.height, rate) for layer in shape.layers]


def _opacity(config: Config, shape: ModelShape) -> opacity.Opacity:
    """The opacity of the front layers."""
    front = len(shape.layers) - 1
    if isinstance(config.opacity, MlpOpacity):
        return opacity.MlpOpacity(config.opacity, front)
    if isinstance(config.opacity, PixelOpacity):
        return opacity.PixelOpacity(config.opacity, front, shape.frame_count, shape.size)
    return opacity.MaskOpacity(front, shape.frame_count, shape.size)


def _box(config: Config, size: tuple[int, int]) -> Box:
    """The box that each canonical image covers where no geometry is known before the fit."""
    if isinstance(config.mapping, MlpMapping):
        return Box(-1.0, -1.0, 1.0, 1.0)  # all that tanh can reach; the export measures what is used
    margin = (config.texture if isinstance(config.texture, HashTexture) else HashTexture()).margin
    box, reach = coords.frame_box(*size), 1 + 2 * margin
    return Box(*(side * reach for side in box.as_tuple()))


def _uv_scale(config: Config) -> float:
    return config.mapping.uv_scale if isinstance(config.mapping, MlpMapping) else 1.0


def _geometry(settings: GridMapping, clip: Clip) -> tuple[LayerGeometry, ...]:
    """The geometry of every layer, front to back."""
    size = clip.flow.size if clip.flow else clip.size
    grid = table_size(clip.size, settings.cell)
    found = []
    for number in range(len(clip.layers)):
        visible = np.stack([visible_share(clip, number, t, size) for t in range(clip.frame_count)])
        found.append(layer_geometry(clip, visible, number == len(clip.layers) - 1, grid))
    return tuple(found)


def visible_share(clip: Clip, layer: int, t: int, size: tuple[int, int]) -> Float[np.ndarray, "h w"]:
    """How much of each pixel of frame `t` a layer fills, 0 to 1, by the masks, at `size` (width, height)."""
    masks = clip.masks.masks[:, t]
    front = masks[:layer].any(0) if layer else np.zeros(clip.frames.shape[1:3], bool)
    own = masks[layer] if layer < len(masks) else np.ones_like(front)
    share = (own & ~front).astype(np.float32)
    return share if size == clip.size else cv2.resize(share, size, interpolation=cv2.INTER_AREA)


def _texels(config: Config, box: Box, finer: float, size: tuple[int, int]) -> tuple[int, int]:
    """(width, height) of a layer's canonical image."""
    if isinstance(config.texture, MlpTexture):
        return export_size(box)
    density = config.texture.density if isinstance(config.texture, ImageTexture) else 1.0
    limit = (config.texture if isinstance(config.texture, ImageTexture) else ImageTexture()).max_megatexels * 1e6
    per_unit = density * finer * max(size) / 2
    texels = box.width * box.height * per_unit**2
    per_unit *= min(1.0, limit / texels) ** 0.5
    return (max(2, round(box.width * per_unit)), max(2, round(box.height * per_unit)))


def _whole_cells(layer: LayerShape, config: Config) -> LayerShape:
    """The layer with its box enlarged until its sides can be halved evenly as often as an image texture does."""
    if not isinstance(config.texture, ImageTexture):
        return layer
    cell = 2**texture.LEVELS
    width, height = (-(-side // cell) * cell for side in (layer.width, layer.height))
    box = layer.box
    return LayerShape(
        layer.name,
        Box(box.u0, box.v0, box.u0 + box.width * width / layer.width, box.v0 + box.height * height / layer.height),
        width,
        height,
    )


def _fill_opacity(part: opacity.PixelOpacity, clip: Clip) -> None:
    """Logits from the masks: soft at their outlines, where masks know least, and sure elsewhere."""
    count, front, rows, columns = part.table.values.shape
    with torch.no_grad():
        for t in range(count):
            for layer in range(front):
                mask = cv2.GaussianBlur(clip.masks.masks[layer, t].astype(np.float32), (0, 0), OUTLINE)
                share = cv2.resize(mask, (columns, rows), interpolation=cv2.INTER_AREA)
                part.table.values[t, layer] = torch.logit(torch.from_numpy(share), eps=SURE)


def _fill_textures(model: PlanarModel, clip: Clip) -> None:
    """Each texture as the weighted mean of the frames; pixels well inside the layer count far more than its rim."""
    for number, shape in enumerate(model.shape.layers):
        mean = TextureMean(shape.box, shape.width, shape.height)
        for t in range(clip.frame_count):
            share = visible_share(clip, number, t, clip.size)
            inner = cv2.erode(share, np.ones((5, 5), np.uint8))
            with torch.no_grad():
                uv = model.mappings[number].frames(torch.tensor([t]), clip.frame_count, clip.size)[0]  # type: ignore[operator]
            mean.add(
                uv, torch.from_numpy(np.array(clip.frames[t])).float() / 255, torch.from_numpy(inner + 0.01 * share)
            )
        part = model.textures[number]
        assert isinstance(part, texture.ImageTexture)
        with torch.no_grad():
            part.image.copy_(mean.image())
