"""One step of each training stage: the background first, then the person, then both together.

HOSNeRF (Liu et al. 2023), section 3.4 and its three commands, in one loop.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from neural_fields.config.training_stage import TrainingStage
from neural_fields.config.volume import VolumeConfig
from neural_fields.volume import human_losses, losses
from neural_fields.volume.background import background_terms
from neural_fields.volume.ray_batches import CapturePixels, RayBatch
from neural_fields.volume.scene import PERSON, Moments, Scene, SceneRendering


@dataclass(frozen=True)
class StageSettings:
    """Sets the learning rates of a 3D scene, and the changes during a stage."""

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
    sure_mask_share: float = 0.5  # of the person's stage in which masks count in full
    late_mask_factor: float = 0.1  # of the masks' weight after that: their outlines are not exact


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


def compute_step_terms(
    training: SceneTraining,
    stage: TrainingStage,
    step: int,
    generator: torch.Generator,
    divisor: int = 1,
    settings: StageSettings = DEFAULTS,
) -> dict[str, Float[Tensor, ""]]:
    """Computes the weighted loss terms of a step, by name; none where the step drew no pixel of use.

    Args:
        training: the scene with its pixels.
        stage: which of the three is trained.
        step: of the whole count of steps.
        generator: of all that is random in the step.
        divisor: the number of rays is divided by it, where memory ran out.
        settings: of the stages.
    """
    options, weight = training.config.training, training.config.terms
    progress = stage.progress(step)
    rays = max(1, count_stage_rays(stage, training.config) // divisor)

    if stage.name == "background":
        batch = training.pixels.draw_background(rays, generator)
        if not len(batch.rays):
            return {}
        state = training.moments.state[batch.rays.time]
        return background_terms(training.scene.background, batch.rays, state, batch.color, progress, generator, weight)

    if stage.name == "person":
        # The person before another solid color every step, against the pictures cut out by the masks.
        batch = training.pixels.draw_person(rays, generator)
        behind = torch.rand(3, generator=generator).to(batch.color.device)
        rendered = training.scene.render_rays(
            batch.rays,
            training.moments,
            parts=frozenset({PERSON}),
            behind=behind,
            generator=generator,
            offset_share=offset_share(training, stage, step),
            refine_poses=progress >= options.poses_from,
        )
        terms_by_name = {"color": human_losses.color_term(rendered.color, batch.color, batch.person, behind)}
        mask_weight = (1.0 if progress < settings.sure_mask_share else settings.late_mask_factor) * weight.mask
        opacity = rendered.opacity
    else:
        batch = training.pixels.draw_any(rays, generator)
        rendered = training.scene.render_rays(batch.rays, training.moments, generator=generator)
        intervals, weights = rendered.background_intervals, rendered.background_weights
        assert intervals is not None and weights is not None, "the background was rendered"
        proposed = (intervals.proposed_edges, intervals.proposed_weights)
        terms_by_name = {
            "color": losses.squared_error(rendered.color, batch.color),
            "interlevel": weight.interlevel * losses.interlevel_loss(intervals.edges, weights, *proposed),
            "distortion": weight.distortion * losses.distortion_loss(intervals.edges, weights),
        }
        mask_weight = settings.late_mask_factor * weight.mask
        opacity = rendered.person_opacity

    if mask_weight:
        terms_by_name["mask"] = mask_weight * human_losses.mask_term(opacity, batch.person)
    return terms_by_name | _person_terms(training, rendered, batch)


def count_stage_rays(stage: TrainingStage, config: VolumeConfig) -> int:
    """Returns the number of rays of a step of a stage."""
    return config.training.person_rays if stage.name == "person" else config.training.rays


def _person_terms(training: SceneTraining, rendered: SceneRendering, batch: RayBatch) -> dict[str, Tensor]:
    """Computes the weighted terms of flow and cycle, and those that keep corrections small."""
    weight, samples, person = training.config.terms, rendered.person_samples, training.scene.person
    assert samples is not None and person is not None and rendered.bones is not None, "the person was rendered"
    span = person.offset.span
    terms_by_name = {}
    if weight.cycle:
        terms_by_name["cycle"] = weight.cycle * human_losses.cycle_term(person.skinning, samples, rendered.bones, span)
    if training.pixels.flow is not None and rendered.weights is not None:
        target_rays, valid = training.pixels.flow(batch.pixel_indices)
        valid &= batch.person
        # Flow teaches which bone carries what. Through the weights it would only make the person transparent; through
        # the poses it would move those of moments that no training view shows, by the errors of the flow.
        weights, bones = rendered.weights.detach(), rendered.bones.detach()
        distance = human_losses.flow_term(person.skinning, samples, weights, target_rays, valid, bones, training.focal)
        terms_by_name["flow"] = weight.flow * valid.float().mean() * distance
    if weight.offset and samples.offset is not None:
        terms_by_name["offset"] = weight.offset * human_losses.offset_term(samples, span)
    if weight.pose and rendered.pose_change is not None:
        terms_by_name["pose"] = weight.pose * rendered.pose_change
    return terms_by_name


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
