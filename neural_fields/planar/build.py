"""Builds a planar model from a config: `plan_model` analyzes the clip, then the parts are built and initialized."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from neural_fields.atlas.chart import LayerChart
from neural_fields.data.dataset import ClipDataset
from neural_fields.planar.appearance.texture import compute_export_size
from neural_fields.planar.composition.model import PlanarModel
from neural_fields.planar.config import PlanarConfig
from neural_fields.planar.init.geometry import DEFAULTS as GEOMETRY
from neural_fields.planar.init.geometry import GeometrySettings, LayerGeometry
from neural_fields.planar.init.model_shape import LayerShape, ModelShape
from neural_fields.planar.init.warm_up import WarmUpOptions


@dataclass(frozen=True)
class ModelPlan:
    """Holds the sizes of a model, and the geometry that its mapping is initialized from, if any."""

    shape: ModelShape
    geometry: tuple[LayerGeometry, ...] | None


def plan_model(config: PlanarConfig, clip: ClipDataset, settings: GeometrySettings = GEOMETRY) -> ModelPlan:
    """Analyzes the clip: computes sizes, canonical boxes and, for mappings that are initialized from it, geometry.

    Args:
        config: the composition of the model.
        clip: frames, masks and flow.
        settings: of the geometry.
    """
    geometry = config.mapping.plan_geometry(clip, settings)
    layers = []
    for number, name in enumerate(clip.layer_names):
        # The box that the canonical image covers, and how much finer than the frame its texels are.
        charts: tuple[LayerChart, ...] = ()
        if geometry:
            box, finer, charts = geometry[number].box, geometry[number].magnification, geometry[number].charts
        else:
            box, finer = config.mapping.plan_box(clip.size, config.texture.frame_margin)
        box, width, height = config.texture.plan_image(box, finer, clip.size)
        layers.append(LayerShape(name, box, width, height, clip.reference_frames.get(name), charts))
    return ModelPlan(ModelShape(*clip.size, clip.frame_count, tuple(layers)), geometry or None)


def build_model(config: PlanarConfig, shape: ModelShape, seed: int = 0) -> PlanarModel:
    """Builds an untrained model of the config's composition; the same seed gives the same weights.

    Args:
        config: the composition of the model.
        shape: the sizes, from `plan_model` or from a checkpoint.
        seed: of the random weights, which are drawn in this order of the parts.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        mappings = config.mapping.build(shape, config.opacity.divide_clip(shape))
        textures = config.texture.build(shape)
        opacity = config.opacity.build(shape)
        gains = config.gain.build(shape)
    return PlanarModel(shape, mappings, textures, gains, opacity, config.terms)


def initialize_model(
    model: PlanarModel, plan: ModelPlan, clip: ClipDataset, options: WarmUpOptions | None = None
) -> None:
    """Initializes a new model on the CPU: opacity, geometry or warm-up of the mappings, then textures and gains.

    Args:
        model: as `build_model` returned it; changed in place.
        plan: the geometry that mappings start from.
        clip: frames and masks.
        options: seed, device and time limit of the start of mappings that are networks.
    """
    options = options or WarmUpOptions()
    model.opacity.initialize(clip)
    for number, mapping in enumerate(model.mappings):
        mapping.initialize(number, clip, plan.geometry[number] if plan.geometry else None, options)
    # The boxes of canonical images that follow from the start of the mappings.
    layers = []
    for layer, mapping, texture in zip(model.shape.layers, model.mappings, model.textures, strict=True):
        box = mapping.measure_box(model.shape.size) if texture.takes_started_box else None
        layers.append(LayerShape(layer.name, box, *compute_export_size(box)) if box else layer)
    model.shape = replace(model.shape, layers=tuple(layers))
    for number, (mapping, texture) in enumerate(zip(model.mappings, model.textures, strict=True)):
        texture.initialize(number, clip, mapping)
    for number, gain in enumerate(model.gains):
        gain.initialize(number, clip, model.mappings[number], model.textures[number])
