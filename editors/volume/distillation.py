"""Score distillation into a person: optimizes the person's parameters with scores of diffusion models on views.

These are the losses of DynVideo-E (Liu et al., 2024, section 3) on the person: a reference picture, a text-to-image
model (optionally with a LoRA of the subject), a novel-view model of the reference (Zero-1-to-3), and the text-to-image
model on zoomed views of parts of the body.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from editors.diffusion.backend.diffusers_model import DiffusionModel
from editors.diffusion.backend.noise_schedule import Latents, NoiseSchedule
from editors.diffusion.common.score_distillation import Score, draw_time
from editors.diffusion.methods.sds import ScoreObjective
from editors.volume.base import TunedParameters, VolumeSource
from editors.volume.body_parts import body_outline
from editors.volume.poses import Pose, PoseSampler
from editors.volume.reference_view import (
    Reference,
    ReferenceTargets,
    ReferenceWeights,
    draw_reference_rays,
    reference_loss,
)
from editors.volume.views import (
    Orbit,
    PictureTensor,
    frame_points,
    jittered_camera_rays,
    make_single_moment,
    random_direction,
    values_to_picture,
)
from editors.volume.zero123 import NovelViewModel, compute_camera_move
from neural_fields.core.progress import Progress, ProgressReporter, report_nothing
from neural_fields.data.capture.cameras import Camera
from neural_fields.data.capture.skeleton import SkeletonMotion
from neural_fields.nn.adam import Adam
from neural_fields.volume.scene import SceneRendering

WHOLE_BODY = ""  # the name that stands for the whole body among its parts


class RandomStreams:
    """Provides the random numbers of an edit; apart from samples on the device, a seed gives the same on every device.

    Args:
        seed: the seed.
        device: the device of the scene.
    """

    def __init__(self, seed: int, device: torch.device) -> None:
        self.random = np.random.default_rng(seed)
        self.noise = torch.Generator().manual_seed(seed)
        self.samples = torch.Generator(device).manual_seed(seed)


@dataclass(frozen=True)
class PersonSubject:
    """Renders the person of a scene in any pose."""

    source: VolumeSource
    motion: SkeletonMotion

    def body_outline(self, pose: Pose, joints: Sequence[int] | None = None) -> Float[np.ndarray, "points 3"]:
        """Computes points around the body, or around some of its bones.

        Args:
            pose: pose of the person.
            joints: indices of the bones to use; by default all.
        """
        return body_outline(self.motion.skeleton, pose.transforms, joints)

    def make_orbit(self, pose: Pose) -> Orbit:
        """Computes the orbit of cameras that show the entire body in a pose."""
        return Orbit.from_points(self.body_outline(pose), self.source.up_direction)

    def render_picture(self, camera: Camera, pose: Pose, gray: float, chance: RandomStreams) -> PictureTensor:
        """Renders the person on a gray background.

        Args:
            camera: camera in world coordinates.
            pose: pose of the person.
            gray: brightness of the background, from 0 (black) to 1 (white).
            chance: random numbers of the edit.
        """
        device = self.source.device
        moment = make_single_moment(pose.transforms, self.source.moments.state[pose.time], device)
        rays = jittered_camera_rays(camera, chance.noise, device)
        behind = torch.full((3,), gray, device=device)
        return values_to_picture(self.source.scene.render_person(rays, moment, behind, chance.samples).color, camera)

    def render_reference(
        self, reference: Reference, chance: RandomStreams, count: int = 1024
    ) -> tuple[SceneRendering, ReferenceTargets]:
        """Renders the person on black along random rays of the reference.

        Args:
            reference: the target appearance of the person.
            chance: random numbers of the edit.
            count: number of rays.

        Returns:
            The rendered rays, and their targets.
        """
        device = self.source.device
        rays, wanted = draw_reference_rays(reference, count, chance.random, device)
        pose = self.motion.transforms[reference.time]
        moment = make_single_moment(pose, self.source.moments.state[reference.time], device)
        return self.source.scene.render_person(rays, moment, None, chance.samples), wanted


@dataclass(frozen=True)
class DiffusionTeacher:
    """Scores pictures with a diffusion model.

    Attributes:
        encode: differentiable function from pictures in [0, 1] to latents.
        schedule: noise schedule of the model.
        score: the score of noised latents.
        size: side in pixels of the pictures that the model was trained on.
        latents: number of values in the latents of a picture.
        weight: factor of the gradient with respect to the latents; the loss sums over them, as in DreamFusion.
    """

    encode: Callable[[PictureTensor], Latents]
    schedule: NoiseSchedule
    score: Score
    size: int
    latents: int
    weight: float

    @staticmethod
    def from_model(model: DiffusionModel, score: Score, weight: float) -> DiffusionTeacher:
        """Makes a teacher from a loaded model.

        Args:
            model: the diffusion model.
            score: the score of its noised latents.
            weight: factor of the gradient with respect to the latents.
        """
        latents = model.latent_channels * (model.trained_side // model.pixels_per_latent) ** 2
        return DiffusionTeacher(model.encode_images, model.schedule, score, model.trained_side, latents, weight)

    def distillation_loss(self, picture: PictureTensor, time: int, generator: torch.Generator) -> Float[Tensor, ""]:
        """Computes a loss whose gradient with respect to the latents of a square picture is the score.

        Args:
            picture: the picture to score, RGB in [0, 1].
            time: noise level, an index into the schedule.
            generator: random generator of the noise.
        """
        if picture.shape[-1] != self.size:
            picture = torch.nn.functional.interpolate(picture, (self.size, self.size), mode="bilinear")
        mean = ScoreObjective(self.encode, self.score, self.schedule).compute_loss(picture, picture, time, generator)
        return self.weight * self.latents * mean


@dataclass(frozen=True)
class NovelViewTeacher:
    """Makes teachers from a novel-view model with its reference, and the camera of the reference.

    Attributes:
        views: the novel-view model.
        orbit: orbit of the cameras.
        place: position of the reference's camera, at the distance of the orbit's cameras, in world units.
        guidance: scale of classifier-free guidance.
        weight: factor of the gradient with respect to the latents.
    """

    views: NovelViewModel
    orbit: Orbit
    place: Float[np.ndarray, "3"]
    guidance: float
    weight: float

    def make_teacher(self, camera: Camera) -> DiffusionTeacher:
        """Makes the teacher for a camera of the orbit."""
        move = compute_camera_move(self.orbit, self.place, camera.position)
        return DiffusionTeacher.from_model(self.views.model, self.views.make_score(move, self.guidance), self.weight)


@dataclass(frozen=True)
class PersonObjective:
    """Combines all losses on a person. Losses whose model or reference is None are left out.

    Attributes:
        subject: the person.
        poses: sampler of the poses in which the person is rendered.
        side: side of the square views, in pixels.
        weights: weights of the reference's terms.
        reference: a picture with the target appearance of the person.
        words: teachers with the prompt for each part of the body, and for `WHOLE_BODY`.
        parts: indices of the joints of each part.
        novel_view: the novel-view model of the reference.
        zoom: how often a part is shown instead of the entire body, in [0, 1]; it grows over the run, details come last.
        span: range of the times that are drawn, as shares of the schedule.
        shape: whether outlines may change.
    """

    subject: PersonSubject
    poses: PoseSampler
    side: int
    weights: ReferenceWeights
    reference: Reference | None = None
    words: Mapping[str, DiffusionTeacher] | None = None
    parts: Mapping[str, tuple[int, ...]] | None = None
    novel_view: NovelViewTeacher | None = None
    zoom: float = 0.0
    span: tuple[float, float] = (0.02, 0.98)
    shape: bool = False

    def compute_loss(self, done: float, chance: RandomStreams) -> Float[Tensor, ""] | None:
        """Computes the loss of one step in a random pose; returns None if no loss applies to the pose.

        Args:
            done: share of the steps that are done, in [0, 1].
            chance: random numbers of the edit.
        """
        pose = self.poses(chance.random)
        losses = []
        if pose.kind == "reference" and self.reference is not None:
            rendered, wanted = self.subject.render_reference(self.reference, chance)
            losses.append(reference_loss(rendered, wanted, self.weights, self.shape))
            if self.novel_view is not None:  # from a random place around the person
                camera = self.novel_view.orbit.place_camera(*random_direction(chance.random), self.side)
                picture = self.subject.render_picture(
                    camera, pose, 1.0, chance
                )  # before white, as the model was trained
                losses.append(self._score_loss(self.novel_view.make_teacher(camera), picture, done, chance))
        if self.words:
            # The prompt, on a view of the whole body or of a part of it.
            part, joints = WHOLE_BODY, None
            if self.parts and chance.random.random() < 2 * self.zoom * done:
                part = str(chance.random.choice(sorted(self.parts)))
                joints = self.parts[part]
            orbit = self.subject.make_orbit(pose)
            place = orbit.place_at(*random_direction(chance.random), orbit.distance)
            camera = frame_points(self.subject.body_outline(pose, joints), place, orbit.up, self.side)
            # Before any gray: what is learnt is about the person, and no color of a background seeps into them.
            picture = self.subject.render_picture(camera, pose, float(chance.random.random()), chance)
            losses.append(self._score_loss(self.words[part], picture, done, chance))
        return torch.stack(losses).sum() if losses else None

    def _score_loss(
        self, teacher: DiffusionTeacher, picture: PictureTensor, done: float, chance: RandomStreams
    ) -> Float[Tensor, ""]:
        """Computes the loss of a teacher at a random time."""
        time = draw_time(teacher.schedule, done, True, chance.noise, self.span)
        return teacher.distillation_loss(picture, time, chance.noise)


@dataclass(frozen=True)
class AdamSettings:
    """Holds the number of steps and the learning rates of Adam (Kingma and Ba, 2015)."""

    steps: int
    rate: float
    shape_rate: float = 0.0


def optimize_parameters(
    chosen: TunedParameters,
    loss: Callable[[float], Float[Tensor, ""] | None],
    settings: AdamSettings,
    report: ProgressReporter = report_nothing,
    stage: str = "distilling",
) -> None:
    """Optimizes parameters by a stochastic loss.

    Args:
        chosen: the parameters.
        loss: computes the loss of a step from the share of the steps that are done; None skips the step.
        settings: number of steps, and learning rates.
        report: called with the progress.
        stage: name of the stage in reports.
    """
    adam = Adam(chosen.parameter_groups(settings.rate, settings.shape_rate), betas=(0.9, 0.99), eps=1e-15)
    for step in range(settings.steps):
        value = loss(step / settings.steps)
        if value is not None and value.requires_grad:
            adam.zero_grad()
            value.backward()
            adam.step()
        report(Progress(stage, step + 1, settings.steps))
