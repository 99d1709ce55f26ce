"""The start of a planar training: the clip is analyzed, and a model is built and initialized from it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from neural_fields.atlas.chart import LayerChart
from neural_fields.config.loader import from_mapping
from neural_fields.core.memmap import return_freed_memory
from neural_fields.core.progress import ProgressReporter, report_nothing, report_part
from neural_fields.data.dataset import ClipDataset
from neural_fields.planar.appearance.texture import compute_export_size
from neural_fields.planar.build import build_model
from neural_fields.planar.composition.model import PlanarModel
from neural_fields.planar.config import PlanarConfig
from neural_fields.planar.init.clip_geometry import compute_clip_geometry
from neural_fields.planar.init.color_pretraining import pretrain_with_colors
from neural_fields.planar.init.geometry import DEFAULTS as GEOMETRY
from neural_fields.planar.init.geometry import GeometrySettings, LayerGeometry
from neural_fields.planar.init.model_shape import LayerShape, ModelShape
from neural_fields.planar.init.warm_up import WarmUpOptions
from neural_fields.runs.checkpoints import Checkpoint


@dataclass(frozen=True)
class ModelPlan:
    """Holds the sizes of a model, and the geometry that its mapping is initialized from, if any."""

    shape: ModelShape
    geometry: tuple[LayerGeometry, ...] | None


def make_planar_model(
    config: PlanarConfig,
    clip: ClipDataset,
    checkpoint: Checkpoint | None,
    options: WarmUpOptions | None = None,
    show: Callable[[ModelPlan, range], None] | None = None,
) -> PlanarModel:
    """Makes an initialized model, or one of the checkpoint's shape whose weights are loaded later; on the CPU.

    Args:
        config: the parts of the model.
        clip: frames, masks, flow and cuts that a new model is initialized from.
        checkpoint: the one to continue from, or None.
        options: seed of the weights; device and time limit of the warm-up that mappings which are networks begin with.
        show: as for `plan_model`.
    """
    options = options or WarmUpOptions()
    if checkpoint is not None:
        return build_model(config, from_mapping(ModelShape, checkpoint.metadata["shape"]))
    plan = plan_model(config, clip, report=options.report, show=show)
    model = build_model(config, plan.shape, options.seed)
    initialize_model(model, plan, clip, options)
    return_freed_memory()
    return model


def plan_model(
    config: PlanarConfig,
    clip: ClipDataset,
    report: ProgressReporter = report_nothing,
    settings: GeometrySettings = GEOMETRY,
    show: Callable[[ModelPlan, range], None] | None = None,
) -> ModelPlan:
    """Analyzes the clip: computes sizes, canonical boxes and, for mappings that are initialized from it, geometry.

    Args:
        config: the composition of the model.
        clip: frames, masks, flow and cuts.
        report: called with the progress, as the stage "geometry".
        settings: of the geometry.
        show: called with the plan of a model of the frames that are placed first, and their numbers, as soon as it is
            there; not called where no frames come first.
    """
    grid = config.mapping.geometry_grid(clip.size, clip.frame_count)
    if not grid:
        return _plan_shape(config, clip, None, clip.frame_count)

    def show_plan(geometry: tuple[LayerGeometry, ...], early: range) -> None:
        if show and config.mapping.geometry_grid(clip.size, len(early)) == grid:
            show(_plan_shape(config, clip, geometry, len(early)), early)

    return _plan_shape(config, clip, compute_clip_geometry(clip, grid, report, settings, show_plan), clip.frame_count)


def _plan_shape(
    config: PlanarConfig, clip: ClipDataset, geometry: tuple[LayerGeometry, ...] | None, frame_count: int
) -> ModelPlan:
    """Plans the sizes of a model of some frames of a clip."""
    layers = []
    for number, name in enumerate(clip.layer_names):
        # The box that the canonical picture covers, and how much finer than the frame its texels are.
        charts: tuple[LayerChart, ...] = ()
        if geometry:
            box, finer, charts = geometry[number].box, geometry[number].magnification, geometry[number].charts
        else:
            box, finer = config.mapping.plan_box(clip.size, config.texture.frame_margin)
        box, width, height = config.texture.plan_image(box, finer, clip.size)
        layers.append(LayerShape(name, box, width, height, clip.reference_frames.get(name), charts))
    return ModelPlan(ModelShape(*clip.size, frame_count, tuple(layers)), geometry)


def initialize_model(
    model: PlanarModel,
    plan: ModelPlan,
    clip: ClipDataset,
    options: WarmUpOptions | None = None,
    has_light: bool = True,
) -> None:
    """Initializes a new model on the CPU: geometry or warm-up of the mappings, then opacity, textures and gains.

    Args:
        model: as `build_model` returned it; changed in place.
        plan: the geometry that mappings start from.
        clip: frames and masks.
        options: seed, device and time limit of the start of mappings that are networks; what receives the progress.
        has_light: whether gains are initialized; canonical pictures alone do without.
    """
    options = options or WarmUpOptions()
    for number, mapping in enumerate(model.mappings):
        mapping.initialize(number, plan.shape, plan.geometry[number] if plan.geometry else None, options)
        if pretraining := mapping.plan_pretraining():
            pretrain_with_colors(pretraining, clip, options)
    # The boxes of canonical pictures that follow from the start of the mappings.
    layers = []
    for layer, mapping, texture in zip(model.shape.layers, model.mappings, model.textures, strict=True):
        box = mapping.measure_box(model.shape.size) if texture.takes_started_box else None
        layers.append(LayerShape(layer.name, box, *compute_export_size(box)) if box else layer)
    model.shape = replace(model.shape, layers=tuple(layers))
    gains = model.gains if has_light else ()
    edges = np.linspace(0, 1, 2 + len(model.textures) + len(gains)).tolist()
    parts = (report_part(options.report, "textures", first, last) for first, last in pairwise(edges))
    model.opacity.initialize(clip, next(parts))
    for number, (mapping, texture) in enumerate(zip(model.mappings, model.textures, strict=True)):
        texture.initialize(number, clip, mapping, next(parts))
    for number, gain in enumerate(gains):
        gain.initialize(number, clip, model.mappings[number], model.textures[number], next(parts))
