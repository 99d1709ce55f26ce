"""A 3D scene with a person in it: both fields along the same rays, merged by depth, and rendered.

HOSNeRF (Liu et al. 2023), section 3.3. Samples of the person come with their distance along the ray of the world, so
merging is exact: no division by a component of a direction that may be zero.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor, nn

from neural_fields.data.capture.cameras import Camera
from neural_fields.data.capture.capture import find_object_state
from neural_fields.data.capture.skeleton import SkeletonMotion
from neural_fields.volume.background import BackgroundField
from neural_fields.volume.human import PersonModel, PersonSamples
from neural_fields.volume.proposal import RayIntervals
from neural_fields.volume.rays import Rays, RaySamples, camera_rays, merge_samples, render_samples

BACKGROUND, PERSON = "background", "person"
PARTS = frozenset({BACKGROUND, PERSON})


@dataclass(frozen=True)
class Moments:
    """Holds the poses and states of a scene, by moment: `Rays.time` are indices into them.

    Attributes:
        transforms: bones, rest to world; no bones for a scene without a person.
        state: of the carried object.
    """

    transforms: Float[Tensor, "moments bones 4 4"]
    state: Int[Tensor, " moments"]

    @staticmethod
    def from_motion(
        motion: SkeletonMotion | None, switches: tuple[int, ...], count: int = 1, device: torch.device | None = None
    ) -> Moments:
        """Takes every moment of a motion.

        Args:
            motion: None for a scene without a person.
            switches: moments at which the carried object changes its state.
            count: of moments where there is no motion.
            device: of the tensors.
        """
        transforms = np.zeros((count, 0, 4, 4)) if motion is None else motion.transforms
        states = [find_object_state(switches, time) for time in range(len(transforms))]
        return Moments(
            torch.tensor(np.asarray(transforms), dtype=torch.float32, device=device),
            torch.tensor(states, device=device),
        )

    def with_poses(self, transforms: Shaped[np.ndarray, "poses bones 4 4"]) -> Moments:
        """Replaces the poses and keeps the states of these moments; the last state continues."""
        poses = torch.tensor(np.asarray(transforms), dtype=torch.float32, device=self.transforms.device)
        last = len(self.state) - 1
        return Moments(poses, self.state[torch.arange(len(poses), device=self.state.device).clamp_max(last)])


@dataclass(frozen=True)
class SceneRendering:
    """Holds rendered rays of a scene, and the values that the losses need.

    Attributes:
        color: RGB that arrives at the camera.
        opacity: the share of it from the fields; the rest is from the sky, or from the color behind.
        depth: mean distance along the ray, 0 where nothing is hit.
        person_opacity: the share of a ray that ends on the person, behind everything in front of them.
        weights, background_weights: rendering weights of the samples of the person, and of the background.
        background_intervals, person_samples, bones, pose_change: what else the loss terms need. All are None of a part
            that is not rendered; `bones` are the corrected ones.
    """

    color: Float[Tensor, "rays 3"]
    opacity: Float[Tensor, " rays"]
    depth: Float[Tensor, " rays"]
    person_opacity: Float[Tensor, " rays"]
    weights: Float[Tensor, "rays samples"] | None = None
    background_weights: Float[Tensor, "rays intervals"] | None = None
    background_intervals: RayIntervals | None = None
    person_samples: PersonSamples | None = None
    bones: Float[Tensor, "moments bones 4 4"] | None = None
    pose_change: Float[Tensor, ""] | None = None


@dataclass(frozen=True)
class RenderedView:
    """Holds the first four fields of `SceneRendering` as pictures."""

    color: Float[Tensor, "height width 3"]
    opacity: Float[Tensor, "height width"]
    depth: Float[Tensor, "height width"]
    person_opacity: Float[Tensor, "height width"]


class Scene(nn.Module):
    """Combines the background and, where there is one, the person with carried objects."""

    def __init__(self, background: BackgroundField, person: PersonModel | None) -> None:
        super().__init__()
        self.background = background
        self.person = person

    @property
    def parts(self) -> frozenset[str]:
        """The parts that the scene has."""
        return PARTS if self.person is not None else frozenset({BACKGROUND})

    def render_rays(
        self,
        rays: Rays,
        moments: Moments,
        *,
        parts: frozenset[str] = PARTS,
        behind: Float[Tensor, "3"] | None = None,
        generator: torch.Generator | None = None,
        offset_share: float = 1.0,
        refine_poses: bool = True,
        min_weight: float = 0.0,
    ) -> SceneRendering:
        """Renders rays.

        Args:
            rays: in the world.
            moments: the poses and states that `rays.time` names.
            parts: that are rendered; without the background, colors stand before `behind`.
            behind: a solid color, black by default.
            generator: as in the fields' `march_rays`.
            offset_share: factor on the pose-dependent offset; see `PersonModel.march_rays`.
            refine_poses: whether poses are corrected.
            min_weight: see `Background.march_rays`.
        """
        state = moments.state[rays.time]
        person = background = intervals = samples = bones = pose_change = None
        if PERSON in parts and self.person is not None:
            bones, pose_change = moments.transforms, rays.origin.new_zeros(())
            if refine_poses:
                bones, pose_change = self.person.refine_poses(moments.transforms)
            person, samples = self.person.march_rays(rays, bones, state, generator, offset_share)
        if BACKGROUND in parts:
            background, intervals = self.background.march_rays(rays, state, generator, min_weight=min_weight)
        if person is not None and background is not None:
            merged, from_person = merge_samples(person, background)
        else:
            none = rays.origin.new_zeros(len(rays), 1)  # where nothing is rendered: a sample of no density for each ray
            empty = RaySamples(none, none, none, none[..., None].expand(-1, -1, 3), none > 0)
            merged = person or background or empty
            from_person = torch.full_like(merged.depth, float(person is not None)).bool()
        rendered = render_samples(merged)
        if BACKGROUND in parts:
            color_behind = self.background.render_sky(rays, state)
        else:
            color_behind = (rays.origin.new_zeros(3) if behind is None else behind).expand(len(rays), 3)
        on_person = torch.where(from_person, rendered.weights, 0)
        weights = background_weights = None
        if person is not None:
            weights = _unmerge_weights(on_person, from_person, person)
        if background is not None:
            background_weights = _unmerge_weights(rendered.weights - on_person, ~from_person, background)
        return SceneRendering(
            color=rendered.composite_over(color_behind),
            opacity=rendered.opacity,
            depth=rendered.depth,
            person_opacity=on_person.sum(dim=1),
            weights=weights,
            background_weights=background_weights,
            background_intervals=intervals,
            person_samples=samples,
            bones=bones,
            pose_change=pose_change,
        )

    def render_person(
        self,
        rays: Rays,
        moments: Moments,
        behind: Float[Tensor, "3"] | None = None,
        generator: torch.Generator | None = None,
    ) -> SceneRendering:
        """Renders the person alone.

        Args:
            rays: in the world.
            moments: the poses and states that `rays.time` names.
            behind: a solid color, black by default.
            generator: as in the fields' `march_rays`.
        """
        return self.render_rays(rays, moments, parts=frozenset({PERSON}), behind=behind, generator=generator)

    @torch.no_grad()
    def render_view(
        self,
        camera: Camera,
        time: int,
        moments: Moments,
        *,
        parts: frozenset[str] = PARTS,
        behind: Float[Tensor, "3"] | None = None,
        chunk: int = 1 << 13,
    ) -> RenderedView:
        """Renders a picture at a moment, without gradients.

        Samples of the background with a rendering weight up to 0.001 get no color: it is invisible.

        Args:
            camera: in the world.
            time: an index into the moments.
            moments: poses and states.
            parts: that are rendered; without the background, colors stand before `behind`.
            behind: a solid color, black by default.
            chunk: rays that are rendered at once.
        """
        rays = camera_rays(camera, time=time, device=moments.transforms.device)
        rendered = [
            self.render_rays(rays[start : start + chunk], moments, parts=parts, behind=behind, min_weight=1e-3)
            for start in range(0, len(rays), chunk)
        ]
        size = (camera.height, camera.width)
        return RenderedView(
            color=torch.cat([part.color for part in rendered]).clamp(0, 1).view(*size, 3),
            opacity=torch.cat([part.opacity for part in rendered]).view(size),
            depth=torch.cat([part.depth for part in rendered]).view(size),
            person_opacity=torch.cat([part.person_opacity for part in rendered]).view(size),
        )


def _unmerge_weights(
    weights: Float[Tensor, "rays samples"], own: Bool[Tensor, "rays samples"], marched: RaySamples
) -> Float[Tensor, "rays own_samples"]:
    """Returns the weights of one field's samples in its own order, from those of all samples after merging."""
    count = marched.depth.shape[1]
    merged = weights.gather(1, (~own).to(torch.uint8).argsort(dim=1, stable=True)[:, :count])
    # Merging puts samples that do not count behind the others.
    slot = (~marched.inside).to(torch.uint8).argsort(dim=1, stable=True)
    return torch.zeros_like(merged).scatter(1, slot, merged)
