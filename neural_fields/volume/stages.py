"""One step of each stage of a fit: the background first, then the person, then both together.

HOSNeRF (Liu et al. 2023), section 3.4 and its three commands, in one loop.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from neural_fields.config_volume import Stage, VolumeConfig
from neural_fields.volume import human_terms, terms
from neural_fields.volume.background import background_terms
from neural_fields.volume.batches import Pixels, RayBatch
from neural_fields.volume.scene import PERSON, Moments, Scene, Seen

# Parts of the learning rates that are left at the end of a stage, and the steps in which the background's rise.
BACKGROUND_END, PERSON_END, WARM_UP = 0.03, 0.1, 30


@dataclass(frozen=True)
class Fit:
    """What a step needs."""

    scene: Scene
    moments: Moments
    pixels: Pixels
    config: VolumeConfig
    focal: float  # of the views, in pixels


def step_terms(fit: Fit, stage: Stage, step: int, generator: torch.Generator) -> dict[str, Float[Tensor, ""]]:
    """The weighted terms of a step, by name; empty where the step drew nothing of use."""
    if stage.name == "background":
        return _background(fit, stage, step, generator)
    return _person(fit, stage, step, generator) if stage.name == "person" else _joint(fit, stage, step, generator)


def parameter_groups(scene: Scene) -> list[dict]:
    """What is trained, and how fast. What a pose changes is slower than fields, as in the paper."""
    groups = scene.background.parameter_groups()
    if scene.person is None:
        return groups
    person = scene.person
    networks = [value for name, value in person.field.named_parameters() if name != "grid.params"]
    refiner = [value for name, value in person.refiner.named_parameters() if name != "moments"]
    return [
        *groups,
        {"params": [person.field.grid.params], "lr": 2e-2, "eps": 1e-15},
        {"params": networks, "lr": 1e-2},
        {"params": list(person.skinning.parameters()), "lr": 5e-2},
        {"params": [person.refiner.moments], "lr": 3e-3},
        {"params": [*refiner, *person.offset.parameters()], "lr": 1e-3},
    ]


def rate(stage: Stage, config: VolumeConfig, step: int) -> float:
    """What all learning rates are multiplied with at a step."""
    progress = stage.progress(step)
    if stage.name == "background":
        return BACKGROUND_END ** max(0.0, (progress - 0.3) / 0.7) * min(1.0, (step - stage.first + 1) / WARM_UP)
    fallen = PERSON_END ** max(0.0, (progress - 0.2) / 0.8)
    return fallen if stage.name == "person" else config.training.joint_rate * fallen


def _background(fit: Fit, stage: Stage, step: int, generator: torch.Generator) -> dict[str, Tensor]:
    batch = fit.pixels.background(fit.config.training.rays, generator)
    if not len(batch.rays):
        return {}
    state = fit.moments.state[batch.rays.time]
    progress = stage.progress(step)
    return background_terms(fit.scene.background, batch.rays, state, batch.color, progress, generator, fit.config.terms)


def _person(fit: Fit, stage: Stage, step: int, generator: torch.Generator) -> dict[str, Tensor]:
    """The person before another solid colour every step, against the pictures cut out by the masks."""
    settings = fit.config.training
    batch = fit.pixels.person(settings.person_rays, generator)
    behind = torch.rand(3, generator=generator).to(batch.color.device)
    seen = fit.scene.look(
        batch.rays,
        fit.moments,
        parts=frozenset({PERSON}),
        behind=behind,
        generator=generator,
        opened=opening(fit, stage, step),
        corrected=stage.progress(step) >= settings.poses_from,
    )
    found = {"color": human_terms.color_term(seen.color, batch.color, batch.person, behind)}
    sure = 1.0 if stage.progress(step) < 0.5 else 0.1  # masks say where the person is; their outlines are not exact
    return found | _of_mask(fit, seen.opacity, batch, sure) | _of_person(fit, seen, batch)


def _of_mask(fit: Fit, opacity: Tensor, batch: RayBatch, sure: float) -> dict[str, Tensor]:
    weight = sure * fit.config.terms.mask
    return {"mask": weight * human_terms.mask_term(opacity, batch.person)} if weight else {}


def _of_person(fit: Fit, seen: Seen, batch: RayBatch) -> dict[str, Tensor]:
    """Flow and cycle, and what keeps corrections small."""
    weight, carried, person = fit.config.terms, seen.carried, fit.scene.person
    assert carried is not None and person is not None and seen.bones is not None, "the person was looked at"
    span = person.offset.span
    found = {}
    if weight.cycle:
        found["cycle"] = weight.cycle * human_terms.cycle_term(person.skinning, carried, seen.bones, span)
    if fit.pixels.flow is not None and seen.weights is not None:
        there, valid = fit.pixels.flow(batch.places)
        valid &= batch.person
        # Flow teaches which bone carries what. Through the weights it would only make the person transparent; through
        # the poses it would move those of moments that no view of the fit shows, by the errors of the flow.
        weights, bones = seen.weights.detach(), seen.bones.detach()
        pixels = human_terms.flow_term(person.skinning, carried, weights, there, valid, bones, fit.focal)
        found["flow"] = weight.flow * valid.float().mean() * pixels
    if weight.offset and carried.offset is not None:
        found["offset"] = weight.offset * human_terms.offset_term(carried, span)
    if weight.pose and seen.pose_change is not None:
        found["pose"] = weight.pose * seen.pose_change
    return found


def _joint(fit: Fit, stage: Stage, step: int, generator: torch.Generator) -> dict[str, Tensor]:
    batch = fit.pixels.any(fit.config.training.rays, generator)
    seen = fit.scene.look(batch.rays, fit.moments, generator=generator)
    weight, stretches, weights = fit.config.terms, seen.stretches, seen.background_weights
    assert stretches is not None and weights is not None, "the background was looked at"
    proposed = (stretches.proposed_edges, stretches.proposed_weights)
    found = {
        "color": terms.squared(seen.color, batch.color),
        "interlevel": weight.interlevel * terms.interlevel(stretches.edges, weights, *proposed),
        "distortion": weight.distortion * terms.distortion(stretches.edges, weights),
    }
    return found | _of_mask(fit, seen.person, batch, 0.1) | _of_person(fit, seen, batch)


def opening(fit: Fit, stage: Stage, step: int) -> float:
    """How much of the pose's offset counts at a step of the person's stage: `Human.march`."""
    first, full = fit.config.training.offsets_from, fit.config.training.offsets_full
    if full <= first:
        return float(stage.progress(step) >= first)
    return min(1.0, max(0.0, (stage.progress(step) - first) / (full - first)))
