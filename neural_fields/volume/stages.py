"""One step of each training stage: the background first, then the person, then both together.

HOSNeRF (Liu et al. 2023), section 3.4 and its three commands, in one loop.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from jaxtyping import Float, Int
from torch import Tensor

from neural_fields.config.training_stage import TrainingStage
from neural_fields.volume.background import BackgroundField
from neural_fields.volume.config import VolumeConfig
from neural_fields.volume.loss import SceneLossInputs, StageName
from neural_fields.volume.loss_table import compute_scene_losses
from neural_fields.volume.proposal import annealing_exponent
from neural_fields.volume.ray_batches import CapturePixels
from neural_fields.volume.rays import Rays, render_samples
from neural_fields.volume.scene import PERSON, Moments, Scene, SceneRendering


@dataclass(frozen=True)
class StageSettings:
    """Sets the learning rates of a 3D scene, and their changes during a stage."""

    background_hold: float = 0.3  # share of the background's stage after which its rates fall
    background_final_factor: float = 0.03  # of the rates at the end of the background's stage
    background_warm_up_steps: int = 30  # in which the background's rates rise
    person_hold: float = 0.2  # share of the person's and of the joint stage after which their rates fall
    person_final_factor: float = 0.1  # of the rates at the end of these stages
    person_grid_rate: float = 2e-2
    person_network_rate: float = 1e-2
    skinning_rate: float = 5e-2
    moment_rate: float = 3e-3  # of the corrections of single moments
    correction_rate: float = 1e-3  # of the networks that correct poses


DEFAULTS = StageSettings()


@dataclass(frozen=True)
class SceneTraining:
    """Holds a 3D scene with everything that its training steps need.

    Attributes:
        focal: mean focal length of the views, in pixels.
    """

    scene: Scene
    moments: Moments
    pixels: CapturePixels
    config: VolumeConfig
    focal: float


def compute_step_losses(
    training: SceneTraining, stage: TrainingStage, step: int, generator: torch.Generator, divisor: int = 1
) -> dict[str, Float[Tensor, ""]]:
    """Computes the weighted losses of a step, by name; none where the step drew no pixel of use.

    Args:
        training: the scene with its pixels.
        stage: which of the three is trained.
        step: of the whole count of steps.
        generator: of all that is random in the step.
        divisor: the number of rays is divided by it, where memory ran out.
    """
    scene, moments, pixels = training.scene, training.moments, training.pixels
    progress = stage.progress(step)
    rays = max(1, count_stage_rays(stage, training.config) // divisor)
    if stage.name == "background":
        batch = pixels.draw_background(rays, generator)
        if not len(batch.rays):
            return {}
        target = batch.color
        state = moments.state[batch.rays.time]
        rendering = render_background(scene.background, batch.rays, state, progress, generator)
    elif stage.name == "person":
        # The person before another solid color every step, against the pictures cut out by the masks: otherwise the
        # field might learn the background's colors instead of being transparent there.
        batch = pixels.draw_person(rays, generator)
        behind = torch.rand(3, generator=generator).to(batch.color.device)
        target = torch.where(batch.person[:, None], batch.color, behind)
        rendering = scene.render_rays(
            batch.rays,
            moments,
            parts=frozenset({PERSON}),
            behind=behind,
            generator=generator,
            offset_share=offset_share(training, stage, step),
            refine_poses=progress >= training.config.training.poses_from,
        )
    else:
        batch = pixels.draw_any(rays, generator)
        target = batch.color
        rendering = scene.render_rays(batch.rays, moments, generator=generator)
    flow = None
    if pixels.flow is not None and rendering.person_samples is not None:
        target_rays, valid = pixels.flow(batch.pixel_indices)
        flow = target_rays, valid & batch.person
    inputs = SceneLossInputs(
        scene,
        batch,
        moments.state[batch.rays.time],
        target,
        rendering,
        cast(StageName, stage.name),
        progress,
        generator,
        training.focal,
        flow,
    )
    return compute_scene_losses(training.config.terms, inputs)


def render_background(
    field: BackgroundField, rays: Rays, state: Int[Tensor, " rays"], progress: float, generator: torch.Generator
) -> SceneRendering:
    """Renders the background alone for a step of its stage.

    Args:
        field: the background.
        rays: of pixels that do not show the person.
        state: of the scene, for each ray.
        progress: share of the stage that is done, 0 to 1; the proposed weights count more and more.
        generator: of all that is random in the step.
    """
    exponent = annealing_exponent(min(1.0, field.settings.annealing_speed * progress))
    samples, intervals = field.march_rays(rays, state, generator, exponent)
    rendered = render_samples(samples)
    return SceneRendering(
        color=rendered.composite_over(field.render_sky(rays, state)),
        opacity=rendered.opacity,
        depth=rendered.depth,
        person_opacity=torch.zeros_like(rendered.opacity),
        background_weights=rendered.weights,
        background_intervals=intervals,
    )


def count_stage_rays(stage: TrainingStage, config: VolumeConfig) -> int:
    """Returns the number of rays of a step of a stage."""
    return config.training.person_rays if stage.name == "person" else config.training.rays


def parameter_groups(scene: Scene, settings: StageSettings = DEFAULTS) -> list[dict]:
    """Returns the trained parameters with their learning rates: those that change a pose learn slower than fields."""
    groups = scene.background.parameter_groups()
    if scene.person is None:
        return groups
    person = scene.person
    networks = [value for name, value in person.field.named_parameters() if name != "grid.params"]
    refiner = [value for name, value in person.refiner.named_parameters() if name != "moments"]
    return [
        *groups,
        {"params": [person.field.grid.params], "lr": settings.person_grid_rate, "eps": 1e-15},
        {"params": networks, "lr": settings.person_network_rate},
        {"params": list(person.skinning.parameters()), "lr": settings.skinning_rate},
        {"params": [person.refiner.moments], "lr": settings.moment_rate},
        {"params": [*refiner, *person.offset.parameters()], "lr": settings.correction_rate},
    ]


def learning_rate_factor(
    stage: TrainingStage, config: VolumeConfig, step: int, settings: StageSettings = DEFAULTS
) -> float:
    """Returns the factor of all learning rates at a step.

    Args:
        stage: that the step belongs to.
        config: the factor of the joint stage is a setting of the run.
        step: of the whole count of steps.
        settings: of the stages.
    """
    progress = stage.progress(step)
    if stage.name == "background":
        hold, end = settings.background_hold, settings.background_final_factor
        warm_up = min(1.0, (step - stage.first + 1) / settings.background_warm_up_steps)
        return end ** max(0.0, (progress - hold) / (1 - hold)) * warm_up
    hold = settings.person_hold
    factor = settings.person_final_factor ** max(0.0, (progress - hold) / (1 - hold))
    return factor if stage.name == "person" else config.training.joint_rate * factor


def offset_share(training: SceneTraining, stage: TrainingStage, step: int) -> float:
    """Returns the factor on the pose-dependent offset at a step, 0 to 1: see `PersonModel.march_rays`.

    Args:
        training: the scene with its settings.
        stage: the person's.
        step: of the whole count of steps.
    """
    first, full = training.config.training.offsets_from, training.config.training.offsets_full
    if full <= first:
        return float(stage.progress(step) >= first)
    return min(1.0, max(0.0, (stage.progress(step) - first) / (full - first)))
