"""Score distillation into a person: their parameters are optimised by the scores of diffusion models on views.

The parts of DynVideo-E (Liu et al., 2024, section 3) that edit the person, each a loss on a view: a reference picture,
a text-to-image model that may know the subject (a LoRA), a model that turns the reference (Zero-1-to-3), and the
text-to-image model again on zoomed views of parts of the body.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from editors.base import Report, quiet
from editors.diffusion.distillation import Score, draw_time
from editors.diffusion.schedule import Latents, Schedule
from editors.diffusion.sds import Objective
from editors.diffusion.wrapper import DiffusionModel
from editors.volume.edit import Tuned, VolumeSource
from editors.volume.parts import outline
from editors.volume.poses import Pose, PoseSampler
from editors.volume.reference import Reference, ReferenceWeights, Wanted, drawn, reference_loss
from editors.volume.views import Orbit, Picture, as_picture, framing, one_moment, random_direction, shaken_rays
from editors.volume.zero123 import ViewModel, move_between
from neural_fields.adam import Adam
from neural_fields.data.cameras import Camera
from neural_fields.data.skeleton import Motion
from neural_fields.volume.scene import Seen

WHOLE = ""  # the name that stands for the whole body among its parts


class Chance:
    """The random numbers of an edit: the same for a seed, whatever device the scene is on but for its samples."""

    def __init__(self, seed: int, device: torch.device) -> None:
        self.random = np.random.default_rng(seed)
        self.noise = torch.Generator().manual_seed(seed)
        self.samples = torch.Generator(device).manual_seed(seed)


@dataclass(frozen=True)
class Subject:
    """The person of a scene, rendered in any pose."""

    source: VolumeSource
    motion: Motion

    def outline(self, pose: Pose, joints: Sequence[int] | None = None) -> Float[np.ndarray, "points 3"]:
        """Computes points around the body, or around some of its bones."""
        return outline(self.motion.skeleton, pose.transforms, joints)

    def orbit(self, pose: Pose) -> Orbit:
        """Computes the orbit of cameras that see all of the body."""
        return Orbit.around(self.outline(pose), self.source.up)

    def picture(self, camera: Camera, pose: Pose, grey: float, chance: Chance) -> Picture:
        """Renders the person before a grey.

        Args:
            camera: in the world.
            pose: of the person.
            grey: from black (0) to white (1).
            chance: random numbers of the edit.
        """
        device = self.source.device
        moment = one_moment(pose.transforms, self.source.moments.state[pose.time], device)
        rays = shaken_rays(camera, chance.noise, device)
        behind = torch.full((3,), grey, device=device)
        return as_picture(self.source.scene.person_look(rays, moment, behind, chance.samples).color, camera)

    def at_reference(self, reference: Reference, chance: Chance, count: int = 1024) -> tuple[Seen, Wanted]:
        """Renders the person before black along random rays of the reference.

        Args:
            reference: the person as they should become.
            chance: random numbers of the edit.
            count: of rays.

        Returns:
            The rendered rays, and what they should see.
        """
        device = self.source.device
        rays, wanted = drawn(reference, count, chance.random, device)
        pose = self.motion.transforms[reference.time]
        moment = one_moment(pose, self.source.moments.state[reference.time], device)
        return self.source.scene.person_look(rays, moment, None, chance.samples), wanted


@dataclass(frozen=True)
class Teacher:
    """A diffusion model that scores pictures.

    Attributes:
        encode: pictures in [0, 1] to latents, differentiable.
        schedule: of noise.
        score: of noised latents.
        size: side in pixels of the pictures it was trained on.
        latents: numbers of a picture's latents.
        weight: the gradient in the latents is multiplied by this; it is their sum that counts, as in DreamFusion.
    """

    encode: Callable[[Picture], Latents]
    schedule: Schedule
    score: Score
    size: int
    latents: int
    weight: float

    @staticmethod
    def of(model: DiffusionModel, score: Score, weight: float) -> Teacher:
        """Makes a teacher of a loaded model.

        Args:
            model: a diffusion model.
            score: of its noised latents.
            weight: see `weight`.
        """
        latents = model.channels * (model.size // model.scale) ** 2
        return Teacher(model.encode, model.schedule, score, model.size, latents, weight)

    def loss(self, picture: Picture, time: int, generator: torch.Generator) -> Float[Tensor, ""]:
        """Computes a loss whose gradient in the latents of a square picture is the score.

        Args:
            picture: that is scored.
            time: of the schedule.
            generator: of the noise.
        """
        if picture.shape[-1] != self.size:
            picture = torch.nn.functional.interpolate(picture, (self.size, self.size), mode="bilinear")
        mean = Objective(self.encode, self.score, self.schedule).loss(picture, picture, time, generator)
        return self.weight * self.latents * mean


@dataclass(frozen=True)
class Turned:
    """A novel-view model with its reference, and the camera of the reference.

    Attributes:
        orbit: of the cameras.
        place: of the reference's camera, at the distance of the orbit's cameras.
    """

    views: ViewModel
    orbit: Orbit
    place: Float[np.ndarray, "3"]
    guidance: float
    weight: float

    def teacher(self, camera: Camera) -> Teacher:
        """Makes the teacher of a camera of the orbit."""
        move = move_between(self.orbit, self.place, camera.position)
        return Teacher.of(self.views.model, self.views.score(move, self.guidance), self.weight)


@dataclass(frozen=True)
class Lesson:
    """All losses on a person. What is None or empty has none.

    Attributes:
        subject: the person.
        poses: in which they are rendered.
        weights: of the reference's terms.
        reference: a picture of the person as they should become.
        words: the text-to-image model's teacher for each part of the body, and for `WHOLE`.
        parts: the joints of each part.
        turned: the novel-view model of the reference.
        zoom: how often a part is shown instead of the whole body: more and more over the run, as details come last.
        side: of the square views in pixels.
        span: times that are drawn, in parts of all.
        shape: whether outlines may change.
    """

    subject: Subject
    poses: PoseSampler
    side: int
    weights: ReferenceWeights
    reference: Reference | None = None
    words: Mapping[str, Teacher] | None = None
    parts: Mapping[str, tuple[int, ...]] | None = None
    turned: Turned | None = None
    zoom: float = 0.0
    span: tuple[float, float] = (0.02, 0.98)
    shape: bool = False

    def loss(self, done: float, chance: Chance) -> Float[Tensor, ""] | None:
        """Computes the loss of one step in a random pose; None where no loss belongs to the pose that was drawn.

        Args:
            done: share of the steps that are done.
            chance: random numbers of the edit.
        """
        pose = self.poses(chance.random)
        losses = []
        if pose.kind == "reference" and self.reference is not None:
            rendered, wanted = self.subject.at_reference(self.reference, chance)
            losses.append(reference_loss(rendered, wanted, self.weights, self.shape))
            if self.turned is not None:  # from a random place around the person
                camera = self.turned.orbit.camera(*random_direction(chance.random), self.side)
                picture = self.subject.picture(camera, pose, 1.0, chance)  # before white, as the model was trained
                losses.append(self._score_loss(self.turned.teacher(camera), picture, done, chance))
        if self.words:
            # The prompt, on a view of the whole body or of a part of it.
            part, joints = WHOLE, None
            if self.parts and chance.random.random() < 2 * self.zoom * done:
                part = str(chance.random.choice(sorted(self.parts)))
                joints = self.parts[part]
            orbit = self.subject.orbit(pose)
            place = orbit.place(*random_direction(chance.random), orbit.distance)
            camera = framing(self.subject.outline(pose, joints), place, orbit.up, self.side)
            # Before any grey: what is learnt is about the person, and no colour of a background seeps into them.
            picture = self.subject.picture(camera, pose, float(chance.random.random()), chance)
            losses.append(self._score_loss(self.words[part], picture, done, chance))
        return torch.stack(losses).sum() if losses else None

    def _score_loss(self, teacher: Teacher, picture: Picture, done: float, chance: Chance) -> Float[Tensor, ""]:
        """Computes the loss of a teacher at a random time."""
        time = draw_time(teacher.schedule, done, True, chance.noise, self.span)
        return teacher.loss(picture, time, chance.noise)


@dataclass(frozen=True)
class Descent:
    """Steps and learning rates of Adam (Kingma and Ba, 2015)."""

    steps: int
    rate: float
    shape_rate: float = 0.0


def descend(
    chosen: Tuned,
    loss: Callable[[float], Float[Tensor, ""] | None],
    descent: Descent,
    report: Report = quiet,
    stage: str = "distilling",
) -> None:
    """Optimises parameters by a random loss.

    Args:
        chosen: the parameters.
        loss: of a step, by the share of the steps that are done; None leaves the step out.
        descent: steps and learning rates.
        report: called with the progress.
        stage: its name in reports.
    """
    adam = Adam(chosen.groups(descent.rate, descent.shape_rate), betas=(0.9, 0.99), eps=1e-15)
    for step in range(descent.steps):
        value = loss(step / descent.steps)
        if value is not None and value.requires_grad:
            adam.zero_grad()
            value.backward()
            adam.step()
        report(stage, step + 1, descent.steps)
