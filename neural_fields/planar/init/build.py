"""From a config to a planar model: `plan` looks at the clip, `build` makes the parts, `fill` initializes them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

import cv2
import numpy as np
import torch
from jaxtyping import Float

from neural_fields.atlas.chart import LayerChart
from neural_fields.config.planar import (
    BoundedHashTextureConfig,
    GridGainConfig,
    GridMappingConfig,
    HashGainConfig,
    HashMappingConfig,
    HashOpacityConfig,
    HashTextureConfig,
    HomographyMlpMappingConfig,
    ImageTextureConfig,
    MlpMappingConfig,
    MlpOpacityConfig,
    MlpTextureConfig,
    PixelOpacityConfig,
    PlanarConfig,
    SirenTextureConfig,
    SplineMappingConfig,
    WindowOpacityConfig,
)
from neural_fields.core import coords
from neural_fields.core.coords import Box
from neural_fields.core.memmap import RELEASE_INTERVAL, release_memory
from neural_fields.data.dataset import ClipDataset
from neural_fields.data.flow.shot_detection import find_cuts
from neural_fields.planar.appearance import gain, hash_fields, opacity, siren, texture, window_opacity
from neural_fields.planar.init.canonical_extent import compute_export_size
from neural_fields.planar.init.gain_fit import find_visible_rectangle, fit_gain
from neural_fields.planar.init.geometry import DEFAULTS as GEOMETRY
from neural_fields.planar.init.geometry import GeometrySettings, LayerGeometry, compute_layer_geometry
from neural_fields.planar.init.homography_pretraining import compute_chart_box, pretrain_homographies
from neural_fields.planar.init.region_tracking import RegionTrackingSettings, compute_region_geometry
from neural_fields.planar.init.texture_splatting import TextureMean
from neural_fields.planar.init.visibility import LayerVisibility
from neural_fields.planar.init.warm_up import WarmUpOptions, warm_up
from neural_fields.planar.mappings import mapping, spline
from neural_fields.planar.mappings.frame_grid import compute_table_size
from neural_fields.planar.mappings.homography_mlp import ChartMapping, HomographyNetwork
from neural_fields.planar.model import LayerShape, ModelShape, PlanarModel


@dataclass(frozen=True)
class InitializationSettings:
    """Settings of the closed-form start of opacities, textures and gains."""

    min_opacity: float = 0.005  # and its complement the largest; what is certain takes steady evidence to change
    outline_sigma_px: float = 0.7  # Gaussian: how soft the outline of a mask is taken to be
    mask_margin: float = 0.06  # share of the longer side of the frame: so far beyond its mask a layer may be found
    rim_px: int = 2  # of a layer, whose pixels hardly count in its texture
    rim_weight: float = 0.01  # of these pixels; that of the others is one more
    gain_rim_px: int = 1  # of a layer, whose pixels do not count in its lighting gain


DEFAULTS = InitializationSettings()


@dataclass(frozen=True)
class ModelPlan:
    """The sizes of a model, and the geometry it starts from where its mapping takes one."""

    shape: ModelShape
    geometry: tuple[LayerGeometry, ...] | None


def plan_model(config: PlanarConfig, clip: ClipDataset, settings: GeometrySettings = GEOMETRY) -> ModelPlan:
    """Looks at the clip: computes sizes, canonical boxes and, for mappings that start from it, geometry.

    Args:
        config: the composition of the model.
        clip: frames, masks and flow.
        settings: of the geometry.
    """
    # The geometry of every layer, front to back.
    geometry: list[LayerGeometry] = []
    if isinstance(config.mapping, GridMappingConfig | SplineMappingConfig):
        size = clip.flow.size if clip.flow else clip.size
        grid = compute_table_size(clip.size, config.mapping.cell, clip.frame_count)
        cuts = find_cuts(clip.frames, clip.flow)
        for number, name in enumerate(clip.layer_names):
            visible = LayerVisibility(
                partial(compute_visible_share, clip, number, size=size), range(clip.frame_count), size
            )
            track = clip.regions.get(name)
            if track:
                all_visible = np.stack([visible[t] for t in range(len(visible))])
                tracking = RegionTrackingSettings(geometry=settings)
                geometry.append(compute_region_geometry(clip, all_visible, track, grid, tracking))
            else:
                is_background = number == len(clip.layer_names) - 1
                geometry.append(compute_layer_geometry(clip, visible, is_background, grid, cuts, settings))

    layers = []
    for number, name in enumerate(clip.layer_names):
        # The box that the canonical image covers, and how much finer than the frame its texels are.
        charts: tuple[LayerChart, ...] = ()
        if geometry:
            box, finer, charts = geometry[number].box, geometry[number].magnification, geometry[number].charts
        elif isinstance(config.mapping, MlpMappingConfig):
            # All that tanh can reach; the export measures what is used.
            box, finer = Box(-1.0, -1.0, 1.0, 1.0), 1 / config.mapping.uv_scale
        else:
            margin = (config.texture if isinstance(config.texture, HashTextureConfig) else HashTextureConfig()).margin
            reach = 1 + 2 * margin
            box, finer = Box(*(side * reach for side in coords.frame_box(*clip.size).as_tuple())), 1.0
        # Its size in texels.
        if isinstance(config.texture, MlpTextureConfig | BoundedHashTextureConfig | SirenTextureConfig):
            width, height = compute_export_size(box)
        else:
            image = config.texture if isinstance(config.texture, ImageTextureConfig) else None
            per_unit = (image.density if image else 1.0) * finer * max(clip.size) / 2
            limit = (image or ImageTextureConfig()).max_megatexels * 1e6
            per_unit *= min(1.0, limit / (box.width * box.height * per_unit**2)) ** 0.5
            width, height = max(2, round(box.width * per_unit)), max(2, round(box.height * per_unit))
        if isinstance(config.texture, ImageTextureConfig):
            # The box grows until its sides can be halved evenly as often as an image texture does.
            cell = 2**texture.DEFAULTS.max_halvings
            columns, rows = -(-width // cell) * cell, -(-height // cell) * cell
            u1, v1 = box.u0 + box.width * columns / width, box.v0 + box.height * rows / height
            box, width, height = Box(box.u0, box.v0, u1, v1), columns, rows
        layers.append(LayerShape(name, box, width, height, clip.reference_frames.get(name), charts))
    return ModelPlan(ModelShape(*clip.size, clip.frame_count, tuple(layers)), tuple(geometry) or None)


def compute_visible_share(clip: ClipDataset, layer: int, t: int, size: tuple[int, int]) -> Float[np.ndarray, "h w"]:
    """Computes how much of each pixel of a frame a layer fills, 0 to 1, by the masks.

    Args:
        clip: frames and masks.
        layer: number of the layer, front to back.
        t: the frame.
        size: (width, height) of the result.
    """
    masks = clip.masks.masks[:, t]
    front = masks[:layer].any(0) if layer else np.zeros(clip.frames.shape[1:3], bool)
    own = masks[layer] if layer < len(masks) else np.ones_like(front)
    share = (own & ~front).astype(np.float32)
    return share if size == clip.size else cv2.resize(share, size, interpolation=cv2.INTER_AREA)


def build_model(config: PlanarConfig, shape: ModelShape, seed: int = 0) -> PlanarModel:
    """Builds an untrained model of the config's composition; the same seed gives the same weights."""
    count, front = len(shape.layers), len(shape.layers) - 1
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        mappings: list[mapping.Mapping]
        if isinstance(config.mapping, MlpMappingConfig):
            uv_scale = config.mapping.background_uv_scale or config.mapping.uv_scale
            mappings = [mapping.MlpMapping(config.mapping, config.mapping.layers[0]) for _ in range(front)]
            background = replace(config.mapping, uv_scale=uv_scale)
            mappings.append(mapping.MlpMapping(background, config.mapping.layers[1]))
        elif isinstance(config.mapping, HashMappingConfig):
            mappings = [mapping.HashMapping(config.mapping, shape.size) for _ in shape.layers]
        elif isinstance(config.mapping, HomographyMlpMappingConfig):
            network, times = HomographyNetwork(config.mapping), shape.frame_count
            spans = [(0, times - 1)] * count  # each layer lasts as long as the clip, unless its opacity says otherwise
            if isinstance(config.opacity, WindowOpacityConfig):
                spans = list(_divide_clip(config.opacity, shape).spans)
            mappings = [
                ChartMapping(config.mapping, network, number == 0, span, times) for number, span in enumerate(spans)
            ]
        elif isinstance(config.mapping, SplineMappingConfig):
            mappings = [spline.SplineMapping(config.mapping, shape.frame_count, shape.size) for _ in shape.layers]
        else:
            mappings = []
            for layer in shape.layers:
                starts = [chart.first for chart in layer.sheets[1:]]
                mappings.append(
                    mapping.GridMapping(config.mapping, shape.frame_count, shape.size, layer.reference, starts)
                )

        textures: list[texture.Texture]
        if isinstance(config.texture, MlpTextureConfig):
            textures = list(texture.make_mlp_textures(config.texture, count))
        elif isinstance(config.texture, HashTextureConfig):
            textures = [texture.HashTexture(config.texture, layer.box) for layer in shape.layers]
        elif isinstance(config.texture, BoundedHashTextureConfig):
            textures = [hash_fields.BoundedHashTexture(config.texture) for _ in shape.layers]
        elif isinstance(config.texture, SirenTextureConfig):
            textures = [siren.SirenTexture(config.texture) for _ in shape.layers]
        else:
            rate = config.texture.learning_rate
            textures = [texture.ImageTexture(layer.box, layer.width, layer.height, rate) for layer in shape.layers]

        alphas: opacity.Opacity
        if isinstance(config.opacity, MlpOpacityConfig):
            alphas = opacity.MlpOpacity(config.opacity, front)
        elif isinstance(config.opacity, PixelOpacityConfig):
            alphas = opacity.PixelOpacity(config.opacity, front, shape.frame_count, shape.size)
        elif isinstance(config.opacity, HashOpacityConfig):
            alphas = hash_fields.HashOpacity(config.opacity, front)
        elif isinstance(config.opacity, WindowOpacityConfig):
            alphas = window_opacity.WindowOpacity(_divide_clip(config.opacity, shape))
        else:
            alphas = opacity.MaskOpacity(front, shape.frame_count, shape.size)

        gains: list[gain.Gain] = []
        if isinstance(config.gain, GridGainConfig):
            gains = [gain.GridGain(config.gain, shape.frame_count, shape.size) for _ in shape.layers]
        elif isinstance(config.gain, HashGainConfig):
            gains = [hash_fields.HashGain(config.gain) for _ in shape.layers]
    return PlanarModel(shape, mappings, textures, gains, alphas, config.terms)


def _divide_clip(settings: WindowOpacityConfig, shape: ModelShape) -> window_opacity.ChartSpans:
    """Divides the clip into the intervals of frames that the layers show."""
    return window_opacity.ChartSpans(shape.frame_count, len(shape.layers), settings.overlap)


def initialize_model(
    model: PlanarModel,
    plan: ModelPlan,
    clip: ClipDataset,
    warm_up_options: WarmUpOptions | None = None,
    settings: InitializationSettings = DEFAULTS,
) -> None:
    """Initializes a new model on the CPU: opacity, geometry or warm-up of the mappings, then explicit textures.

    Args:
        model: as `build` returned it; changed in place.
        plan: the geometry that mappings start from.
        clip: frames and masks.
        warm_up_options: seed, device and time limit of the warm-up of mappings that are networks.
        settings: of the parts that are initialized in closed form.
    """
    if isinstance(model.opacity, opacity.PixelOpacity):
        _fill_opacity(model.opacity, clip, settings)
    if isinstance(model.opacity, opacity.MaskOpacity):
        model.opacity.masks.copy_(torch.from_numpy(np.array(clip.masks.masks)))
    for number, part in enumerate(model.mappings):
        if isinstance(part, mapping.MlpMapping):
            warm_up(
                part,
                clip.frame_count,
                clip.size,
                (warm_up_options or WarmUpOptions()).for_layer(number, len(model.layers)),
            )
        if isinstance(part, spline.SplineMapping) and plan.geometry:
            part.start_from_homographies(torch.from_numpy(plan.geometry[number].homography))
        if isinstance(part, mapping.GridMapping) and plan.geometry:
            geometry = plan.geometry[number]
            part.start_from_geometry(
                torch.from_numpy(geometry.homography), torch.from_numpy(geometry.residual).permute(0, 3, 1, 2)
            )
    if isinstance(model.mappings[0], ChartMapping):
        pretrain_homographies(model.mappings[0], clip, warm_up_options or WarmUpOptions())
        if isinstance(model.textures[0], siren.SirenTexture):  # other textures keep the box they were made for
            layers = []
            for shape, segment in zip(model.shape.layers, model.mappings, strict=True):
                assert isinstance(segment, ChartMapping)
                box = compute_chart_box(segment, model.shape.size)
                layers.append(LayerShape(shape.name, box, *compute_export_size(box)))
            model.shape = replace(model.shape, layers=tuple(layers))
    if not all(isinstance(part, texture.ImageTexture) for part in model.textures):
        return

    # Each texture is the weighted mean of the frames.
    for number, shape in enumerate(model.shape.layers):
        mean = TextureMean(shape.box, shape.width, shape.height)
        for t in range(clip.frame_count):
            _release_memory(clip, t)
            share = compute_visible_share(clip, number, t, clip.size)
            inner = _erode(share, settings.rim_px)
            with torch.no_grad():
                uv = model.mappings[number].map_frames(torch.tensor([t]), clip.frame_count, clip.size)[0]
            seen = find_visible_rectangle(share).slices
            rgb = torch.from_numpy(np.array(clip.frames[t][seen])).float() / 255
            if rgb.numel():
                mean.add_frame(uv[seen], rgb, torch.from_numpy(inner + settings.rim_weight * share)[seen])
        image = model.textures[number]
        assert isinstance(image, texture.ImageTexture)
        with torch.no_grad():
            image.image.copy_(mean.compute_image())

    # Then each lighting gain in closed form.
    for number, (light, where, picture) in enumerate(zip(model.gains, model.mappings, model.textures, strict=False)):
        if not (isinstance(light, gain.GridGain) and isinstance(where, mapping.GridMapping)):
            continue
        for t in range(clip.frame_count):
            _release_memory(clip, t)
            share = _erode(compute_visible_share(clip, number, t, clip.size), settings.gain_rim_px)
            fit_gain(light, where, picture, t, np.float32(1 / 255) * clip.frames[t], share)  # type: ignore[arg-type]


def _fill_opacity(part: opacity.PixelOpacity, clip: ClipDataset, settings: InitializationSettings) -> None:
    """Sets logits from the masks: soft at their outlines, where masks know least, and certain elsewhere."""
    count, front, rows, columns = part.table.values.shape
    with torch.no_grad():
        for t in range(count):
            # The window (top, bottom, left, right) in which front layers may be seen: the masks and room around them.
            masks = np.asarray(clip.masks.masks[:, t].any(0))
            room = round(settings.mask_margin * max(masks.shape))
            window = []
            for axis in (1, 0):
                used = np.flatnonzero(masks.any(axis))
                if len(used):
                    window += [max(0, used[0] - room), min(masks.shape[1 - axis], used[-1] + 1 + room)]
                else:
                    window += [0, 0]
            part.windows[t] = torch.tensor([int(side) for side in window])
            for layer in range(front):
                mask = clip.masks.masks[layer, t].astype(np.float32)
                mask = cv2.GaussianBlur(mask, (0, 0), settings.outline_sigma_px)
                share = cv2.resize(mask, (columns, rows), interpolation=cv2.INTER_AREA)
                part.table.values[t, layer] = torch.logit(torch.from_numpy(share), eps=settings.min_opacity)


def _release_memory(clip: ClipDataset, t: int) -> None:
    """Keeps memory flat with the length of the clip: lets go, now and then, of what was read of it."""
    if t % RELEASE_INTERVAL == 0:
        release_memory(clip.frames)
        release_memory(clip.masks.masks)


def _erode(share: Float[np.ndarray, "h w"], radius: int) -> Float[np.ndarray, "h w"]:
    """Erodes by a square of `radius` pixels."""
    return cv2.erode(share, np.ones((2 * radius + 1, 2 * radius + 1), np.uint8))
