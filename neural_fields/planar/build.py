"""From a config to a planar model: `plan` looks at the clip, `build` makes the parts, `fill` gives them their start."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float

from neural_fields import coords
from neural_fields.config import (
    BoundedHashTexture,
    Config,
    GridGain,
    GridMapping,
    HashGain,
    HashMapping,
    HashOpacity,
    HashTexture,
    HomographyMlpMapping,
    ImageTexture,
    MlpMapping,
    MlpOpacity,
    MlpTexture,
    PixelOpacity,
    SirenTexture,
    SplineMapping,
    WindowOpacity,
)
from neural_fields.coords import Box
from neural_fields.data.clip import Clip
from neural_fields.data.cuts import find_cuts
from neural_fields.data.memory import LET_GO_EVERY, let_go
from neural_fields.planar import gain, hash_parts, mapping, opacity, siren, spline_mapping, texture, window_opacity
from neural_fields.planar.extent import export_size
from neural_fields.planar.following import region_geometry
from neural_fields.planar.frame_table import table_size
from neural_fields.planar.homography_mlp import HomographyNetwork, SegmentMapping, segment_box, teach_homographies
from neural_fields.planar.initialise import LayerGeometry, layer_geometry
from neural_fields.planar.lighting import fill_gain, seen_part
from neural_fields.planar.model import LayerShape, ModelShape, PlanarModel
from neural_fields.planar.texture_mean import TextureMean
from neural_fields.planar.visible import Visible
from neural_fields.planar.warm_up import WarmUp, warm_up

SURE = 0.005  # of a sigmoid: away from outlines it takes steady evidence to leave what `opacity.certain` calls certain
ROOM = 0.06  # of the longer side of the frame: so far beyond its mask a layer may be found
OUTLINE = 0.7  # pixels, Gaussian: how soft the outline of a mask is taken to be


@dataclass(frozen=True)
class Plan:
    """The sizes of a model, and the geometry it starts from where its mapping takes one."""

    shape: ModelShape
    geometry: tuple[LayerGeometry, ...] | None


def plan(config: Config, clip: Clip) -> Plan:
    """Looks at the clip: sizes, canonical boxes and, for mappings that start from it, geometry."""
    geometry = _geometry(config.mapping, clip) if isinstance(config.mapping, GridMapping | SplineMapping) else None
    layers = []
    for number, name in enumerate(clip.layers):
        box = geometry[number].box if geometry else _box(config, clip.size)
        finer = geometry[number].magnification if geometry else 1 / _uv_scale(config)
        texels = _texels(config, box, finer, clip.size)
        sheets = geometry[number].sheets if geometry else ()
        layers.append(_whole_cells(LayerShape(name, box, *texels, clip.reference.get(name), sheets), config))
    return Plan(ModelShape(*clip.size, clip.frame_count, tuple(layers)), geometry)


def build(config: Config, shape: ModelShape, seed: int = 0) -> PlanarModel:
    """An untrained model of the config's composition; the same seed gives the same weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        mappings, textures = _mappings(config, shape), _textures(config, shape)
        alphas = _opacity(config, shape)
        gains = _gains(config, shape)
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
        if isinstance(part, spline_mapping.SplineMapping) and plan.geometry:
            part.place(torch.from_numpy(plan.geometry[number].homography))
        if isinstance(part, mapping.GridMapping) and plan.geometry:
            geometry = plan.geometry[number]
            part.place(torch.from_numpy(geometry.homography), torch.from_numpy(geometry.residual).permute(0, 3, 1, 2))
    if isinstance(model.mappings[0], SegmentMapping):
        teach_homographies(model.mappings[0], clip, how or WarmUp())
        if isinstance(model.textures[0], siren.SirenTexture):  # other textures keep the box they were made for
            model.shape = _seen_by_segments(model)
    if all(isinstance(part, texture.ImageTexture) for part in model.textures):
        _fill_textures(model, clip)
        _fill_gains(model, clip)


def _mappings(config: Config, shape: ModelShape) -> list[mapping.Mapping]:
    """A mapping for each layer, front to back."""
    settings, count = config.mapping, len(shape.layers)
    if isinstance(settings, MlpMapping):
        back = replace(settings, uv_scale=settings.background_uv_scale or settings.uv_scale)
        fronts = [mapping.MlpMapping(settings, settings.layers[0]) for _ in range(count - 1)]
        return [*fronts, mapping.MlpMapping(back, settings.layers[1])]
    if isinstance(settings, HashMapping):
        return [mapping.HashMapping(settings, shape.size) for _ in shape.layers]
    if isinstance(settings, HomographyMlpMapping):
        network, times = HomographyNetwork(settings), shape.frame_count
        spans = [(0, times - 1)] * count  # each layer lasts as long as the clip, unless its opacity says otherwise
        if isinstance(config.opacity, WindowOpacity):
            spans = list(_segments(config.opacity, shape).spans)
        return [SegmentMapping(settings, network, number == 0, span, times) for number, span in enumerate(spans)]
    if isinstance(settings, SplineMapping):
        return [spline_mapping.SplineMapping(settings, shape.frame_count, shape.size) for _ in shape.layers]
    return [
        mapping.GridMapping(
            settings, shape.frame_count, shape.size, layer.reference, [sheet.first for sheet in layer.sheets[1:]]
        )
        for layer in shape.layers
    ]


def _textures(config: Config, shape: ModelShape) -> list[texture.Texture]:
    """A texture for each layer, front to back."""
    settings = config.texture
    if isinstance(settings, MlpTexture):
        return list(texture.mlp_textures(settings, len(shape.layers)))
    if isinstance(settings, HashTexture):
        return [texture.HashTexture(settings, layer.box) for layer in shape.layers]
    if isinstance(settings, BoundedHashTexture):
        return [hash_parts.BoundedHashTexture(settings) for _ in shape.layers]
    if isinstance(settings, SirenTexture):
        return [siren.SirenTexture(settings) for _ in shape.layers]
    rate = settings.learning_rate
    return [texture.ImageTexture(layer.box, layer.width, layer.height, rate) for layer in shape.layers]


def _opacity(config: Config, shape: ModelShape) -> opacity.Opacity:
    """The opacity of the front layers."""
    front = len(shape.layers) - 1
    if isinstance(config.opacity, MlpOpacity):
        return opacity.MlpOpacity(config.opacity, front)
    if isinstance(config.opacity, PixelOpacity):
        return opacity.PixelOpacity(config.opacity, front, shape.frame_count, shape.size)
    if isinstance(config.opacity, HashOpacity):
        return hash_parts.HashOpacity(config.opacity, front)
    if isinstance(config.opacity, WindowOpacity):
        return window_opacity.WindowOpacity(_segments(config.opacity, shape))
    return opacity.MaskOpacity(front, shape.frame_count, shape.size)


def _gains(config: Config, shape: ModelShape) -> list[gain.Gain]:
    """A gain for each layer, front to back, or none at all."""
    if isinstance(config.gain, GridGain):
        return [gain.GridGain(config.gain, shape.frame_count, shape.size) for _ in shape.layers]
    if isinstance(config.gain, HashGain):
        return [hash_parts.HashGain(config.gain) for _ in shape.layers]
    return []


def _segments(settings: WindowOpacity, shape: ModelShape) -> window_opacity.Segments:
    """The stretch of the clip that each layer shows."""
    return window_opacity.Segments(shape.frame_count, len(shape.layers), settings.overlap)


def _seen_by_segments(model: PlanarModel) -> ModelShape:
    """The model's shape with the boxes that the homographies give the frames of each segment."""
    layers = []
    for shape, part in zip(model.shape.layers, model.mappings, strict=True):
        assert isinstance(part, SegmentMapping)
        box = segment_box(part, model.shape.size)
        layers.append(LayerShape(shape.name, box, *export_size(box)))
    return replace(model.shape, layers=tuple(layers))


def _box(config: Config, size: tuple[int, int]) -> Box:
    """The box that each canonical image covers where no geometry is known before the fit."""
    if isinstance(config.mapping, MlpMapping):
        return Box(-1.0, -1.0, 1.0, 1.0)  # all that tanh can reach; the export measures what is used
    margin = (config.texture if isinstance(config.texture, HashTexture) else HashTexture()).margin
    box, reach = coords.frame_box(*size), 1 + 2 * margin
    return Box(*(side * reach for side in box.as_tuple()))


def _uv_scale(config: Config) -> float:
    return config.mapping.uv_scale if isinstance(config.mapping, MlpMapping) else 1.0


def _geometry(settings: GridMapping | SplineMapping, clip: Clip) -> tuple[LayerGeometry, ...]:
    """The geometry of every layer, front to back."""
    size = clip.flow.size if clip.flow else clip.size
    grid = table_size(clip.size, settings.cell, clip.frame_count)
    cuts = find_cuts(clip.frames, clip.flow)
    found = []
    for number in range(len(clip.layers)):
        visible = Visible(partial(visible_share, clip, number, size=size), range(clip.frame_count), size)
        track = clip.regions.get(clip.layers[number])
        if track:
            found.append(region_geometry(clip, np.stack([visible[t] for t in range(len(visible))]), track, grid))
        else:
            found.append(layer_geometry(clip, visible, number == len(clip.layers) - 1, grid, cuts))
    return tuple(found)


def _let_go_sometimes(clip: Clip, t: int) -> None:
    """Keeps memory flat with the length of the clip."""
    if t % LET_GO_EVERY == 0:
        let_go(clip.frames)
        let_go(clip.masks.masks)


def visible_share(clip: Clip, layer: int, t: int, size: tuple[int, int]) -> Float[np.ndarray, "h w"]:
    """How much of each pixel of frame `t` a layer fills, 0 to 1, by the masks, at `size` (width, height)."""
    masks = clip.masks.masks[:, t]
    front = masks[:layer].any(0) if layer else np.zeros(clip.frames.shape[1:3], bool)
    own = masks[layer] if layer < len(masks) else np.ones_like(front)
    share = (own & ~front).astype(np.float32)
    return share if size == clip.size else cv2.resize(share, size, interpolation=cv2.INTER_AREA)


def _texels(config: Config, box: Box, finer: float, size: tuple[int, int]) -> tuple[int, int]:
    """(width, height) of a layer's canonical image."""
    if isinstance(config.texture, MlpTexture | BoundedHashTexture | SirenTexture):
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
    u1, v1 = box.u0 + box.width * width / layer.width, box.v0 + box.height * height / layer.height
    return replace(layer, box=Box(box.u0, box.v0, u1, v1), width=width, height=height)


def _fill_opacity(part: opacity.PixelOpacity, clip: Clip) -> None:
    """Logits from the masks: soft at their outlines, where masks know least, and sure elsewhere."""
    count, front, rows, columns = part.table.values.shape
    with torch.no_grad():
        for t in range(count):
            part.windows[t] = torch.tensor(_window(np.asarray(clip.masks.masks[:, t].any(0))))
            for layer in range(front):
                mask = cv2.GaussianBlur(clip.masks.masks[layer, t].astype(np.float32), (0, 0), OUTLINE)
                share = cv2.resize(mask, (columns, rows), interpolation=cv2.INTER_AREA)
                part.table.values[t, layer] = torch.logit(torch.from_numpy(share), eps=SURE)


def _window(mask: Bool[np.ndarray, "height width"]) -> tuple[int, int, int, int]:
    """The part (top, bottom, left, right) of a frame in which front layers may be seen: the mask and room around it."""
    sides = []
    for axis in (1, 0):
        used = np.flatnonzero(mask.any(axis))
        room = round(ROOM * max(mask.shape))
        sides += [max(0, used[0] - room), min(mask.shape[1 - axis], used[-1] + 1 + room)] if len(used) else [0, 0]
    return tuple(map(int, sides))  # type: ignore[return-value]


def _fill_textures(model: PlanarModel, clip: Clip) -> None:
    """Each texture as the weighted mean of the frames; pixels well inside the layer count far more than its rim."""
    for number, shape in enumerate(model.shape.layers):
        mean = TextureMean(shape.box, shape.width, shape.height)
        for t in range(clip.frame_count):
            _let_go_sometimes(clip, t)
            share = visible_share(clip, number, t, clip.size)
            inner = cv2.erode(share, np.ones((5, 5), np.uint8))
            with torch.no_grad():
                uv = model.mappings[number].frames(torch.tensor([t]), clip.frame_count, clip.size)[0]  # type: ignore[operator]
            seen = seen_part(share).slices
            rgb = torch.from_numpy(np.array(clip.frames[t][seen])).float() / 255
            if rgb.numel():
                mean.add(uv[seen], rgb, torch.from_numpy(inner + 0.01 * share)[seen])
        part = model.textures[number]
        assert isinstance(part, texture.ImageTexture)
        with torch.no_grad():
            part.image.copy_(mean.image())


def _fill_gains(model: PlanarModel, clip: Clip) -> None:
    """Each lighting gain in closed form, given the textures."""
    for number, (part, where, picture) in enumerate(zip(model.gains, model.mappings, model.textures, strict=False)):
        if not (isinstance(part, gain.GridGain) and isinstance(where, mapping.GridMapping)):
            continue
        for t in range(clip.frame_count):
            _let_go_sometimes(clip, t)
            share = cv2.erode(visible_share(clip, number, t, clip.size), np.ones((3, 3), np.uint8))
            fill_gain(part, where, picture, t, np.float32(1 / 255) * clip.frames[t], share)  # type: ignore[arg-type]
