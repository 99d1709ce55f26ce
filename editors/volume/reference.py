"""A reference picture of the person as they should become, and how far the scene is from it.

DynVideo-E (Liu et al., 2024), the reference reconstruction: colours in the mask, the mask, and how the depth correlates
with what a depth network says of the reference (Pearson, so that its unknown scale and shift do not matter).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from editors.image import check_size
from editors.volume.edit import VolumeSource
from editors.volume.views import Orbit, Picture
from neural_fields.data.cameras import Camera, look_at
from neural_fields.errors import bad_input
from neural_fields.pictures import Picture as Painted
from neural_fields.pictures import premultiplied, read_picture, resize
from neural_fields.volume.rays import Rays, camera_rays
from neural_fields.volume.scene import Seen

COVERED = 0.5  # opacity from which a pixel is the person's
AROUND = 0.1  # of the person's box is looked at around it
LEAST_PIXELS = 16  # of the person, for a correlation to mean anything


@dataclass(frozen=True)
class Reference:
    """The person as they should look from one camera at one moment. Everything is of the camera's size.

    Attributes:
        time: the moment; its pose is that of the picture.
        color: premultiplied by the mask.
        mask: how much of a pixel is the person.
        nearness: larger where things are nearer, in any unit; None where nothing is known of depth.
    """

    camera: Camera
    time: int
    color: Float[np.ndarray, "height width 3"]
    mask: Float[np.ndarray, "height width"]
    nearness: Float[np.ndarray, "height width"] | None = None

    def box(self) -> tuple[int, int, int, int]:
        """Left, top, right and bottom of the person with a little around, in pixels."""
        rows, columns = (np.flatnonzero((self.mask >= COVERED).any(axis=axis)) for axis in (1, 0))
        low = np.array([columns[0], rows[0]])
        high = np.array([columns[-1], rows[-1]]) + 1
        around = np.ceil(AROUND * (high - low).max())
        left, top = np.maximum(low - around, 0).astype(int)
        right, bottom = np.minimum(high + around, self.mask.shape[::-1]).astype(int)
        return int(left), int(top), int(right), int(bottom)

    def square(self, orbit: Orbit, side: int) -> Picture:
        """The person before white in a square picture, as an orbit's camera would show them from this direction."""
        place = self.camera.position
        distance = float(np.linalg.norm(place - orbit.centre))
        focal = side / 2 / np.tan(np.arcsin(min(orbit.radius / distance, 0.99)))
        turned = Camera(side, side, (focal, focal), (side / 2, side / 2), look_at(place, orbit.centre, orbit.up))
        columns, rows = np.meshgrid(np.arange(side) + 0.5, np.arange(side) + 0.5)
        centres = np.stack([columns.ravel(), rows.ravel()], axis=1)
        pixels, _, _ = self.camera.project(place + turned.directions(centres))
        where = torch.from_numpy(2 * pixels / self.mask.shape[::-1] - 1).float().view(1, side, side, 2)
        dark = 1 - self.on_white()  # so that all around the picture is white too
        return 1 - torch.nn.functional.grid_sample(dark, where, align_corners=False)

    def on_white(self) -> Picture:
        """The person before white."""
        made = self.color + (1 - self.mask)[..., None]
        return torch.from_numpy(np.ascontiguousarray(made.transpose(2, 0, 1)))[None].float()


@dataclass(frozen=True)
class Wanted:
    """What some rays should see; fields as those of `Reference`."""

    color: Float[Tensor, "rays 3"]
    mask: Float[Tensor, " rays"]
    nearness: Float[Tensor, " rays"] | None


@dataclass(frozen=True)
class ReferenceWeights:
    """Weights of the three terms."""

    rgb: float
    mask: float
    depth: float


def read_reference(
    source: VolumeSource, path: Path, view: int, mask: Path | None = None, nearness: Path | None = None
) -> Reference:
    """A painted picture of one of the capture's views.

    Args:
        view: which of the views it shows, from the same camera at the same moment.
        mask: a picture that is bright where the person is; by default the picture's own transparency, or else the
            capture's mask of the view.
        nearness: a picture that is brighter where things are nearer.

    Raises:
        UserError: no such view, a file that cannot be read or has another shape, or nothing says where the person is.
    """
    if not 0 <= view < len(source.cameras):
        raise bad_input(
            f"there is no view {view}",
            why=f"the capture has views 0 to {len(source.cameras) - 1}",
            fix="--reference-view 0",
        )
    camera = source.cameras[view]
    size = (camera.width, camera.height)
    painted = _of_size(path, size)
    rgba = resize(premultiplied(painted.rgba), size)
    cover = _cover(source, view, painted, mask, size)
    color: Float[np.ndarray, "h w 3"] = rgba[..., :3] if painted.had_alpha else rgba[..., :3] * cover[..., None]
    near = None if nearness is None else resize(_of_size(nearness, size).rgba[..., :3], size).mean(axis=-1)
    if (cover >= COVERED).sum() < LEAST_PIXELS:
        raise bad_input(
            f"nobody is seen in {path}",
            where=str(mask or path),
            why="the mask is bright nowhere",
            fix="--reference-mask MASK.png, white where the person is",
        )
    return Reference(camera, source.times[view], color, cover, near)


def reference_loss(seen: Seen, wanted: Wanted, weights: ReferenceWeights, shape: bool) -> Float[Tensor, ""]:
    """How far rays are from what they should see.

    Args:
        seen: of the person alone before black.
        shape: whether the mask and the depth count; they say nothing to colours.
    """
    inside = wanted.mask[:, None]
    loss = weights.rgb * (inside * (seen.color - wanted.color)).square().mean()
    if shape:
        loss = loss + weights.mask * (seen.opacity - wanted.mask).square().mean()
        if wanted.nearness is not None:
            # What networks for depth call nearness is the inverse of depth but for scale and shift.
            near = 1 / seen.depth.clamp_min(1e-6)
            hit = wanted.mask * (seen.depth.detach() > 0)
            loss = loss + weights.depth / 2 * (1 - pearson(near, wanted.nearness, hit))
    return loss


def pearson(one: Float[Tensor, " n"], other: Float[Tensor, " n"], weight: Float[Tensor, " n"]) -> Float[Tensor, ""]:
    """The correlation of two series, each sample counting by its weight: 1 where one is a rising line of the other."""
    share = weight / weight.sum().clamp_min(1e-8)
    first, second = (values - (share * values).sum() for values in (one, other))
    spread = ((share * first.square()).sum() * (share * second.square()).sum()).clamp_min(1e-20).sqrt()
    return (share * first * second).sum() / spread


def drawn(reference: Reference, count: int, random: np.random.Generator, device: torch.device) -> tuple[Rays, Wanted]:
    """Random pixels of the box around the person, and what their rays should see."""
    left, top, right, bottom = reference.box()
    columns, rows = random.integers(left, right, count), random.integers(top, bottom, count)
    rays = camera_rays(reference.camera, np.stack([columns, rows], axis=1) + 0.5, device=device)

    def at(picture: Float[np.ndarray, "height width *channels"]) -> Tensor:
        return torch.tensor(picture[rows, columns], dtype=torch.float32, device=device)

    near = None if reference.nearness is None else at(reference.nearness)
    return rays, Wanted(at(reference.color), at(reference.mask), near)


def _of_size(path: Path, size: tuple[int, int]) -> Painted:
    painted = read_picture(path, max_pixels=max(16_000_000, 16 * size[0] * size[1]))
    check_size(painted, size, "the view")
    return painted


def _cover(
    source: VolumeSource, view: int, painted: Painted, mask: Path | None, size: tuple[int, int]
) -> Float[np.ndarray, "height width"]:
    """Where the person of a reference is, in [0, 1]."""
    if mask is not None:
        return resize(_of_size(mask, size).rgba[..., :3], size).mean(axis=-1)
    if painted.had_alpha:
        return resize(painted.rgba[..., 3:], size)[..., 0]
    if source.masks is not None:
        return source.masks[view].astype(np.float32)
    raise bad_input(
        f"nothing says where the person of {painted.source or 'the reference'} is",
        why="the picture has no transparency, and the scene has no masks",
        fix="--reference-mask MASK.png, white where the person is",
    )
