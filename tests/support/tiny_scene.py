"""A scene of balls on bones in front of a colored sky, in closed form and differentiable: it needs no fit."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from editors.volume.base import VolumeSource
from neural_fields.data.capture.cameras import Camera, compute_look_at_pose
from neural_fields.data.capture.skeleton import NO_PARENT, Skeleton, SkeletonMotion, compose_transforms
from neural_fields.volume.color_edit import ColorPaint
from neural_fields.volume.rays import Rays
from neural_fields.volume.scene import BACKGROUND, PARTS, PERSON, Moments, Scene, SceneRendering

NAMES = ("hip", "chest", "head", "left_arm", "left_hand", "right_arm", "right_hand", "left_foot", "right_foot", "bag")
PARENTS = (NO_PARENT, 0, 1, 1, 3, 1, 5, 0, 0, 6)
REST = np.array(
    [(0, 0, 1), (0, 0, 1.4), (0, 0, 1.7), (0.3, 0, 1.4), (0.6, 0, 1.4), (-0.3, 0, 1.4), (-0.6, 0, 1.4),
     (0.15, 0, 0.6), (-0.15, 0, 0.6), (-0.8, 0, 1.4)]
)  # fmt: skip
SKELETON = Skeleton(NAMES, PARENTS, REST, object_joints=(9,))
SHARP = 4000.0  # how hard the outline of a ball is
LOW, SIDE = -1.0, 3.0  # of the box at rest


def motion(count: int = 5) -> SkeletonMotion:
    """Arms and head that turn while the body walks along x."""
    made = []
    for angle in np.linspace(-0.6, 0.6, count):
        turns, shifts = np.tile(np.eye(3), (len(NAMES), 1, 1)), np.zeros((len(NAMES), 3))
        for joint in (2, 3, 5):
            turns[joint] = [[np.cos(angle), 0, np.sin(angle)], [0, 1, 0], [-np.sin(angle), 0, np.cos(angle)]]
        shifts[0] = REST[0] + (0.5 * angle, 0, 0)
        made.append(compose_transforms(SKELETON, turns, shifts))
    return SkeletonMotion(SKELETON, np.stack(made))


class Field(nn.Module):
    """Balls: their size and a color for each bone."""

    def __init__(self, bones: int, radius: float = 0.14) -> None:
        super().__init__()
        self.color = nn.Parameter(torch.zeros(bones, 3))
        self.radius = nn.Parameter(torch.tensor(radius))
        self.paint: ColorPaint | None = None

    def colors(self, rest: Tensor, seen: Tensor) -> Tensor:
        """Colors of points of bones; black where they are not seen."""
        raw = self.color.expand(len(rest), -1, -1)[seen]
        if self.paint is not None:
            raw = raw + self.paint(((rest[seen] - LOW) / SIDE).clamp(0, 1))
        return torch.zeros_like(rest).index_put((seen,), raw.sigmoid())


class Person(nn.Module):
    def __init__(self, bones: int) -> None:
        super().__init__()
        self.field = Field(bones)
        self.register_buffer("rest", torch.tensor(REST, dtype=torch.float32))


class Sky(nn.Module):
    """A color that changes with the direction, infinitely far away."""

    def __init__(self) -> None:
        super().__init__()
        self.color = nn.Parameter(torch.tensor([[1.0, 0.2, -0.5], [0.5, 0.0, 0.4], [0.0, -1.0, 0.6]]))
        self.paint: ColorPaint | None = None

    def forward(self, direction: Tensor) -> Tensor:
        raw = direction @ self.color
        if self.paint is not None:
            raw = raw + self.paint(direction / 2 + 0.5)
        return raw.sigmoid()


class TinyScene(Scene):
    def __init__(self) -> None:
        nn.Module.__init__(self)
        self.person: Any = Person(len(NAMES))
        self.background: Any = Sky()

    def render_rays(
        self,
        rays: Rays,
        moments: Moments,
        *,
        parts: frozenset[str] = PARTS,
        behind: Tensor | None = None,
        generator: torch.Generator | None = None,
        **_: Any,
    ) -> SceneRendering:
        none = rays.origin.new_zeros(len(rays))
        color, opacity, depth = torch.zeros_like(rays.origin), none, none
        if PERSON in parts:
            color, opacity, depth = self._balls(rays, moments.transforms[rays.time])
        if BACKGROUND in parts:
            return SceneRendering(
                color + (1 - opacity)[:, None] * self.background(rays.direction), none + 1, depth, opacity
            )
        ground = rays.origin.new_zeros(3) if behind is None else behind
        return SceneRendering(color + (1 - opacity)[:, None] * ground, opacity, depth, opacity)

    def _balls(self, rays: Rays, bones: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        turns, moves = bones[..., :3, :3], bones[..., :3, 3]
        away = torch.einsum("nbij,bj->nbi", turns, self.person.rest) + moves - rays.origin[:, None]
        along = (away * rays.direction[:, None]).sum(dim=-1)
        gap = (away - along[..., None] * rays.direction[:, None]).square().sum(dim=-1)
        inner = self.person.field.radius.square() - gap
        cover = torch.sigmoid(SHARP * inner) * (along > 0)
        depth = along - inner.clamp_min(1e-8).sqrt()
        point = rays.origin[:, None] + depth[..., None] * rays.direction[:, None]
        rest = torch.einsum("nbji,nbj->nbi", turns, point - moves)
        order = depth.detach().argsort(dim=1)
        color = self.person.field.colors(rest, cover.detach() > 1e-6).gather(1, order[..., None].expand(-1, -1, 3))
        cover, depth = cover.gather(1, order), depth.gather(1, order)
        left = torch.cumprod(torch.cat([torch.ones_like(cover[:, :1]), 1 - cover], dim=1), dim=1)
        weights = cover * left[:, :-1]
        opacity = 1 - left[:, -1]
        mean = (weights * depth).sum(dim=1) / opacity.clamp_min(1e-8)
        return (weights[..., None] * color).sum(dim=1), opacity, mean


def around(count: int = 4, size: tuple[int, int] = (48, 36)) -> tuple[Camera, ...]:
    """Level cameras on a circle that look at the person."""
    width, height = size
    made = []
    for angle in np.arange(count) * 2 * np.pi / count:
        place = np.array([4 * np.cos(angle), 4 * np.sin(angle), 1.5])
        pose = compute_look_at_pose(place, np.array([0.0, 0.0, 1.2]), np.array([0.0, 0.0, 1.0]))
        made.append(Camera(width, height, (1.6 * height, 1.6 * height), (width / 2, height / 2), pose))
    return tuple(made)


def tiny_source(frames: int = 5, views: int = 4, size: tuple[int, int] = (48, 36)) -> VolumeSource:
    """A source whose views show one moment after the other."""
    walk = motion(frames)
    moments = Moments.from_motion(walk, ())
    return VolumeSource(TinyScene(), moments, around(views, size), tuple(view % frames for view in range(views)), walk)
