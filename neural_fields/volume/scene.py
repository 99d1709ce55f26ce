"""A scene with a person in it: both fields along the same rays, merged by depth, and the pictures that gives.

HOSNeRF (Liu et al. 2023), section 3.3. Samples of the person come with their distance along the ray of the world, so
merging is exact: no division by a component of a direction that may be zero.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor, nn

from neural_fields.data.cameras import Camera
from neural_fields.data.capture import state_at
from neural_fields.data.skeleton import Motion
from neural_fields.volume.background import Background
from neural_fields.volume.human import Carried, Human
from neural_fields.volume.proposal import Stretches
from neural_fields.volume.rays import Marched, Rays, Shown, camera_rays, merge, render_marched

BACKGROUND, PERSON = "background", "person"
PARTS = frozenset({BACKGROUND, PERSON})
CHUNK = 1 << 13  # rays of a picture that are looked along at once
UNSEEN = 1e-3  # samples of the background that are seen less get no colour in a picture


@dataclass(frozen=True)
class Moments:
    """Poses that rays can look at: `Rays.time` are indices into them.

    Attributes:
        transforms: bones, rest to world; no bones for a scene without a person.
        state: of the carried object.
    """

    transforms: Float[Tensor, "moments bones 4 4"]
    state: Int[Tensor, " moments"]

    @staticmethod
    def of(
        motion: Motion | None, switches: tuple[int, ...], count: int = 1, device: torch.device | None = None
    ) -> Moments:
        """Every moment of a motion; `count` moments where there is none."""
        placed = np.zeros((count, 0, 4, 4)) if motion is None else motion.transforms
        states = [state_at(switches, time) for time in range(len(placed))]
        return Moments(
            torch.tensor(np.asarray(placed), dtype=torch.float32, device=device), torch.tensor(states, device=device)
        )

    def posed(self, transforms: Shaped[np.ndarray, "poses bones 4 4"]) -> Moments:
        """Other poses, with the states that these moments have; the last state goes on."""
        placed = torch.tensor(np.asarray(transforms), dtype=torch.float32, device=self.transforms.device)
        last = len(self.state) - 1
        return Moments(placed, self.state[torch.arange(len(placed), device=self.state.device).clamp_max(last)])


@dataclass(frozen=True)
class Seen:
    """What rays see of a scene.

    Attributes:
        color: what arrives at the camera.
        opacity: how much of it comes from the fields; the rest from the sky, or from what was put behind.
        depth: mean distance along the ray, 0 where nothing is hit.
        person: the share of a ray that ends on the person, after what is in front of them.
        weights, background_weights: how much each sample of the person, and each stretch of the background, is seen.
        stretches, carried, bones, pose_change: what else the terms of a fit need. All are None of a part that is not
            shown; `bones` are the corrected ones.
    """

    color: Float[Tensor, "rays 3"]
    opacity: Float[Tensor, " rays"]
    depth: Float[Tensor, " rays"]
    person: Float[Tensor, " rays"]
    weights: Float[Tensor, "rays samples"] | None = None
    background_weights: Float[Tensor, "rays stretches"] | None = None
    stretches: Stretches | None = None
    carried: Carried | None = None
    bones: Float[Tensor, "moments bones 4 4"] | None = None
    pose_change: Float[Tensor, ""] | None = None


@dataclass(frozen=True)
class ViewPictures:
    """`Seen` as pictures."""

    color: Float[Tensor, "height width 3"]
    opacity: Float[Tensor, "height width"]
    depth: Float[Tensor, "height width"]
    person: Float[Tensor, "height width"]


class Scene(nn.Module):
    """The background and, where there is one, the person with what they carry."""

    def __init__(self, background: Background, person: Human | None) -> None:
        super().__init__()
        self.background = background
        self.person = person

    @property
    def parts(self) -> frozenset[str]:
        return PARTS if self.person is not None else frozenset({BACKGROUND})

    def look(
        self,
        rays: Rays,
        moments: Moments,
        *,
        parts: frozenset[str] = PARTS,
        behind: Float[Tensor, "3"] | None = None,
        generator: torch.Generator | None = None,
        opened: float = 1.0,
        corrected: bool = True,
        exponent: float = 1.0,
        unseen: float = 0.0,
    ) -> Seen:
        """What rays see.

        Args:
            moments: the poses and states that `rays.time` names.
            parts: what is there; without the background, colours stand before `behind`.
            behind: a solid colour, black by default.
            generator: as in the fields' `march`.
            opened: how much of the pose's offset counts; see `Human.march`.
            corrected: whether poses are.
            exponent: see `proposal.annealing`.
            unseen: see `Background.march`.
        """
        state = moments.state[rays.time]
        person = background = stretches = carried = bones = change = None
        if PERSON in parts and self.person is not None:
            bones, change = moments.transforms, rays.origin.new_zeros(())
            if corrected:
                bones, change = self.person.refined(moments.transforms)
            person, carried = self.person.march(rays, bones, state, generator, opened)
        if BACKGROUND in parts:
            background, stretches = self.background.march(rays, state, generator, exponent, unseen)
        shown, from_person = _together(person, background, rays)
        color = shown.over(self._behind(rays, state, parts, behind))
        on_person = torch.where(from_person, shown.weights, 0)
        return Seen(
            color=color,
            opacity=shown.opacity,
            depth=shown.depth,
            person=on_person.sum(dim=1),
            weights=None if person is None else _unmerged(on_person, from_person, person),
            background_weights=None
            if background is None
            else _unmerged(shown.weights - on_person, ~from_person, background),
            stretches=stretches,
            carried=carried,
            bones=bones,
            pose_change=change,
        )

    def person_look(
        self,
        rays: Rays,
        moments: Moments,
        behind: Float[Tensor, "3"] | None = None,
        generator: torch.Generator | None = None,
    ) -> Seen:
        """The person alone before a solid colour."""
        return self.look(rays, moments, parts=frozenset({PERSON}), behind=behind, generator=generator)

    @torch.no_grad()
    def view(
        self,
        camera: Camera,
        time: int,
        moments: Moments,
        *,
        parts: frozenset[str] = PARTS,
        behind: Float[Tensor, "3"] | None = None,
        chunk: int = CHUNK,
    ) -> ViewPictures:
        """A whole picture at a moment, without gradients."""
        rays = camera_rays(camera, time=time, device=moments.transforms.device)
        seen = [
            self.look(rays[start : start + chunk], moments, parts=parts, behind=behind, unseen=UNSEEN)
            for start in range(0, len(rays), chunk)
        ]
        size = (camera.height, camera.width)
        return ViewPictures(
            color=torch.cat([part.color for part in seen]).clamp(0, 1).view(*size, 3),
            opacity=torch.cat([part.opacity for part in seen]).view(size),
            depth=torch.cat([part.depth for part in seen]).view(size),
            person=torch.cat([part.person for part in seen]).view(size),
        )

    def _behind(
        self, rays: Rays, state: Tensor, parts: frozenset[str], behind: Tensor | None
    ) -> Float[Tensor, "rays 3"]:
        if BACKGROUND in parts:
            return self.background.sky(rays, state)
        solid = rays.origin.new_zeros(3) if behind is None else behind
        return solid.expand(len(rays), 3)


def _together(
    person: Marched | None, background: Marched | None, rays: Rays
) -> tuple[Shown, Bool[Tensor, "rays samples"]]:
    """The fields that are there as one, and which of its samples are the person's."""
    if person is not None and background is not None:
        merged, from_person = merge(person, background)
        return render_marched(merged), from_person
    one = person if person is not None else background
    if one is None:
        none = rays.origin.new_zeros(len(rays), 1)
        one = Marched(none, none, none, none[..., None].expand(-1, -1, 3), none > 0)
    shown = render_marched(one)
    return shown, torch.full_like(shown.weights, float(person is not None)).bool()


def _unmerged(
    weights: Float[Tensor, "rays samples"], own: Bool[Tensor, "rays samples"], marched: Marched
) -> Float[Tensor, "rays own_samples"]:
    """The weights of one field's samples as it has them, from those of all in the order of their merging."""
    count = marched.depth.shape[1]
    merged = weights.gather(1, (~own).to(torch.uint8).argsort(dim=1, stable=True)[:, :count])
    # Merging puts samples that do not count behind the others.
    slot = (~marched.inside).to(torch.uint8).argsort(dim=1, stable=True)
    return torch.zeros_like(merged).scatter(1, slot, merged)
