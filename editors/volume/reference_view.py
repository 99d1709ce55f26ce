"""A reference picture with the target appearance of the person, and the loss of the scene against it.

This is the reference reconstruction of DynVideo-E (Liu et al., 2024): colors within the mask, the mask, and Pearson's
correlation of the depth with a depth network's estimate for the reference, whose scale and shift are unknown.
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

    min_opacity: float = 0.5  # least opacity of a pixel of the person
    margin_share: float = 0.1  # margin around the person's box, as a share of its longer side
    min_pixels: int = 16  # least number of pixels of the person for a correlation


DEFAULTS = ReferenceSettings()


@dataclass(frozen=True)
class Reference:
    """Holds the target appearance of the person from one camera at one moment, at the camera's size.

    Attributes:
        camera: the camera of the picture.
        time: the moment whose pose the picture shows.
        color: RGB in [0, 1], premultiplied by the mask.
        mask: share of the person in each pixel, in [0, 1].
        nearness: inverse depth of any scale, larger where it is nearer; None if unknown.
    """

    camera: Camera
    time: int
    color: Float[np.ndarray, "height width 3"]
    mask: Float[np.ndarray, "height width"]
    nearness: Float[np.ndarray, "height width"] | None = None

    def person_box(self, settings: ReferenceSettings = DEFAULTS) -> tuple[int, int, int, int]:
        """Computes left, top, right and bottom of the person with a margin, in pixels."""
        rows, columns = (np.flatnonzero((self.mask >= settings.min_opacity).any(axis=axis)) for axis in (1, 0))
        low = np.array([columns[0], rows[0]])
        high = np.array([columns[-1], rows[-1]]) + 1
        around = np.ceil(settings.margin_share * (high - low).max())
        left, top = np.maximum(low - around, 0).astype(int)
        right, bottom = np.minimum(high + around, self.mask.shape[::-1]).astype(int)
        return int(left), int(top), int(right), int(bottom)

    def resample_square(self, orbit: Orbit, side: int) -> PictureTensor:
        """Resamples the person on white into a square picture, as a camera of an orbit would show it from here.

        Args:
            orbit: the orbit around the person.
            side: side of the picture in pixels.
        """
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
    """Holds the reference at some rays; the fields are those of `Reference`."""

    color: Float[Tensor, "rays 3"]
    mask: Float[Tensor, " rays"]
    nearness: Float[Tensor, " rays"] | None


@dataclass(frozen=True)
class ReferenceWeights:
    """Holds the weights of the three loss terms."""

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
    """Reads an edited picture of one of the capture's views.

    Args:
        source: the trained scene.
        path: path of the picture.
        view: number of the view that it shows, 0 is the first.
        mask: path of a picture that is bright on the person; by default the alpha channel of the picture, or else the
            capture's mask of the view.
        nearness: path of a picture that is brighter where it is nearer.
        settings: thresholds of a reference picture.

    Raises:
        UserError: an unknown view, a file that cannot be read or has the wrong shape, or no mask of the person.
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
        rendered: the rendered person on black.
        target: the reference at the same rays.
        weights: weights of the terms.
        shape: whether the mask and the depth count; an edit of colors cannot change them.
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
    """Computes the weighted Pearson correlation of two series.

    Args:
        one: the first series.
        other: the second series.
        weight: weight of each sample, at least 0.

    Returns:
        The correlation in [-1, 1]; 1 if one series is a linear, increasing function of the other.

    Example:
        >>> one = torch.tensor([1.0, 2.0, 3.0, 9.0])
        >>> round(weighted_correlation(one, 5 - 2 * one, torch.tensor([1.0, 1.0, 1.0, 0.0])).item(), 4)
        -1.0
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
        reference: the reference.
        count: number of pixels.
        random: random generator of the pixels.
        device: device of the result.

    Returns:
        The rays of the pixels, and their targets.
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
    """Reads a picture with the aspect ratio of a view, at `size` (width, height)."""
    painted = read_picture(path, max_pixels=max(16_000_000, 16 * size[0] * size[1]))
    check_picture_size(painted, size, "the view")
    return painted
