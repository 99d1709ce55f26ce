"""A reference picture of the person as they should become, and the loss of the scene against it.

DynVideo-E (Liu et al., 2024), the reference reconstruction: colors in the mask, the mask, and how the depth correlates
with what a depth network says of the reference (Pearson, so that its unknown scale and shift do not matter).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from editors.inputs.sizes import check_picture_size
from editors.volume.base import VolumeSource
from editors.volume.views import Orbit, PictureTensor
from neural_fields.core.errors import bad_input
from neural_fields.data.capture.cameras import Camera, compute_look_at_pose
from neural_fields.imaging.alpha import premultiply, resize_image
from neural_fields.imaging.image_io import Picture as Painted
from neural_fields.imaging.image_io import read_picture
from neural_fields.volume.rays import Rays, camera_rays
from neural_fields.volume.scene import SceneRendering


@dataclass(frozen=True)
class ReferenceSettings:
    """Settings of a reference picture."""

    min_opacity: float = 0.5  # from which a pixel is the person's
    margin_share: float = 0.1  # of the longer side of the person's box is looked at around it
    min_pixels: int = 16  # of the person, for a correlation to mean anything


DEFAULTS = ReferenceSettings()


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

    def person_box(self, settings: ReferenceSettings = DEFAULTS) -> tuple[int, int, int, int]:
        """Computes left, top, right and bottom of the person with a margin around, in pixels."""
        rows, columns = (np.flatnonzero((self.mask >= settings.min_opacity).any(axis=axis)) for axis in (1, 0))
        low = np.array([columns[0], rows[0]])
        high = np.array([columns[-1], rows[-1]]) + 1
        around = np.ceil(settings.margin_share * (high - low).max())
        left, top = np.maximum(low - around, 0).astype(int)
        right, bottom = np.minimum(high + around, self.mask.shape[::-1]).astype(int)
        return int(left), int(top), int(right), int(bottom)

    def resample_square(self, orbit: Orbit, side: int) -> PictureTensor:
        """Resamples the person before white into a square picture, as an orbit's camera would show them from here."""
        place = self.camera.position
        distance = float(np.linalg.norm(place - orbit.center))
        focal = side / 2 / np.tan(np.arcsin(min(orbit.radius / distance, 0.99)))
        camera = Camera(
            side, side, (focal, focal), (side / 2, side / 2), compute_look_at_pose(place, orbit.center, orbit.up)
        )
        columns, rows = np.meshgrid(np.arange(side) + 0.5, np.arange(side) + 0.5)
        centers = np.stack([columns.ravel(), rows.ravel()], axis=1)
        pixels, _, _ = self.camera.project_points(place + camera.compute_ray_directions(centers))
        where = torch.from_numpy(2 * pixels / self.mask.shape[::-1] - 1).float().view(1, side, side, 2)
        inverted = 1 - self.composite_on_white()  # so that all around the picture is white too
        return 1 - torch.nn.functional.grid_sample(inverted, where, align_corners=False)

    def composite_on_white(self) -> PictureTensor:
        """Composites the person over white."""
        made = self.color + (1 - self.mask)[..., None]
        return torch.from_numpy(np.ascontiguousarray(made.transpose(2, 0, 1)))[None].float()


@dataclass(frozen=True)
class ReferenceTargets:
    """The reference at some rays; fields as those of `Reference`."""

    color: Float[Tensor, "rays 3"]
    mask: Float[Tensor, " rays"]
    nearness: Float[Tensor, " rays"] | None


@dataclass(frozen=True)
class ReferenceWeights:
    """Weights of the three loss terms."""

    rgb: float
    mask: float
    depth: float


def read_reference(
    source: VolumeSource,
    path: Path,
    view: int,
    mask: Path | None = None,
    nearness: Path | None = None,
    settings: ReferenceSettings = DEFAULTS,
) -> Reference:
    """Reads a painted picture of one of the capture's views.

    Args:
        source: the trained scene.
        path: of the picture.
        view: which of the views it shows, from the same camera at the same moment.
        mask: a picture that is bright where the person is; by default the picture's own transparency, or else the
            capture's mask of the view.
        nearness: a picture that is brighter where things are nearer.
        settings: of a reference picture.

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
    painted = _read_sized(path, size)
    rgba = resize_image(premultiply(painted.rgba), size)
    if mask is not None:
        cover = resize_image(_read_sized(mask, size).rgba[..., :3], size).mean(axis=-1)
    elif painted.had_alpha:
        cover = resize_image(painted.rgba[..., 3:], size)[..., 0]
    elif source.masks is not None:
        cover = source.masks[view].astype(np.float32)
    else:
        raise bad_input(
            f"nothing says where the person of {painted.source or 'the reference'} is",
            why="the picture has no transparency, and the scene has no masks",
            fix="--reference-mask MASK.png, white where the person is",
        )
    color: Float[np.ndarray, "h w 3"] = rgba[..., :3] if painted.had_alpha else rgba[..., :3] * cover[..., None]
    near = None if nearness is None else resize_image(_read_sized(nearness, size).rgba[..., :3], size).mean(axis=-1)
    if (cover >= settings.min_opacity).sum() < settings.min_pixels:
        raise bad_input(
            f"nobody is seen in {path}",
            where=str(mask or path),
            why="the mask is bright nowhere",
            fix="--reference-mask MASK.png, white where the person is",
        )
    return Reference(camera, source.times[view], color, cover, near)


def reference_loss(
    rendered: SceneRendering, target: ReferenceTargets, weights: ReferenceWeights, shape: bool
) -> Float[Tensor, ""]:
    """Computes the loss of rendered rays against the reference.

    Args:
        rendered: of the person alone before black.
        target: the reference at the same rays.
        weights: of the terms.
        shape: whether the mask and the depth count; colors do not depend on them.
    """
    inside = target.mask[:, None]
    loss = weights.rgb * (inside * (rendered.color - target.color)).square().mean()
    if shape:
        loss = loss + weights.mask * (rendered.opacity - target.mask).square().mean()
        if target.nearness is not None:
            # What networks for depth call nearness is the inverse of depth but for scale and shift.
            near = 1 / rendered.depth.clamp_min(1e-6)
            hit = target.mask * (rendered.depth.detach() > 0)
            loss = loss + weights.depth / 2 * (1 - weighted_correlation(near, target.nearness, hit))
    return loss


def weighted_correlation(
    one: Float[Tensor, " n"], other: Float[Tensor, " n"], weight: Float[Tensor, " n"]
) -> Float[Tensor, ""]:
    """Computes the weighted correlation of two series: 1 where one is a rising line of the other.

    Args:
        one: the first series.
        other: the second series.
        weight: of each sample, at least 0.
    """
    share = weight / weight.sum().clamp_min(1e-8)
    first, second = (values - (share * values).sum() for values in (one, other))
    spread = ((share * first.square()).sum() * (share * second.square()).sum()).clamp_min(1e-20).sqrt()
    return (share * first * second).sum() / spread


def draw_reference_rays(
    reference: Reference, count: int, random: np.random.Generator, device: torch.device
) -> tuple[Rays, ReferenceTargets]:
    """Draws random pixels of the box around the person.

    Args:
        reference: that they are of.
        count: of pixels.
        random: draws them.
        device: of the result.

    Returns:
        Their rays, and what these should see.
    """
    left, top, right, bottom = reference.person_box()
    columns, rows = random.integers(left, right, count), random.integers(top, bottom, count)
    rays = camera_rays(reference.camera, np.stack([columns, rows], axis=1) + 0.5, device=device)
    color = torch.tensor(reference.color[rows, columns], dtype=torch.float32, device=device)
    mask = torch.tensor(reference.mask[rows, columns], dtype=torch.float32, device=device)
    nearness = None
    if reference.nearness is not None:
        nearness = torch.tensor(reference.nearness[rows, columns], dtype=torch.float32, device=device)
    return rays, ReferenceTargets(color, mask, nearness)


def _read_sized(path: Path, size: tuple[int, int]) -> Painted:
    """Reads a picture that has the shape of a view of this size."""
    painted = read_picture(path, max_pixels=max(16_000_000, 16 * size[0] * size[1]))
    check_picture_size(painted, size, "the view")
    return painted
