"""Cameras around a subject, and pictures of a scene from them, for losses on pictures.

Angles are in radians. The azimuth grows as a camera moves to its own right, around the way up of the world; the
elevation is 0 level with the subject and grows upwards.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from neural_fields.data.capture.cameras import Camera, compute_look_at_pose
from neural_fields.volume.rays import Rays, camera_rays
from neural_fields.volume.scene import Moments

PictureTensor = Float[Tensor, "1 channels height width"]


@dataclass(frozen=True)
class ViewSettings:
    """Settings of cameras around a subject."""

    field_of_view_deg: float = 49.1  # of the pictures that Zero-1-to-3 was trained with
    filled_share: float = 0.9  # of a picture's side is taken by what a camera frames
    min_elevation_deg: float = -10.0  # of random views
    max_elevation_deg: float = 45.0
    top_weight: float = 0.01  # of pictures' tops against level horizons, in finding the up direction


DEFAULTS = ViewSettings()


def estimate_up_direction(cameras: Sequence[Camera], settings: ViewSettings = DEFAULTS) -> Float[np.ndarray, "3"]:
    """Estimates the up direction: people hold cameras level, so pictures' horizontal axes are at right angles to it.

    Where they leave it open, as cameras in a row do, it is the mean of where the pictures' tops point.
    """
    across = np.stack([camera.pose[:3, 0] for camera in cameras])
    tops = -np.stack([camera.pose[:3, 1] for camera in cameras]).mean(axis=0)
    level = across.T @ across / len(across) + settings.top_weight * np.eye(3)
    up = np.linalg.solve(level, tops)
    return up / np.linalg.norm(up)


@dataclass(frozen=True)
class Orbit:
    """A ball around a subject and the way up: places around it are an azimuth, an elevation and a distance."""

    center: Float[np.ndarray, "3"]
    radius: float
    up: Float[np.ndarray, "3"]
    settings: ViewSettings = DEFAULTS

    @staticmethod
    def from_points(points: Float[np.ndarray, "points 3"], up: Float[np.ndarray, "3"]) -> Orbit:
        """Computes the ball around the middle of points."""
        center = (points.min(axis=0) + points.max(axis=0)) / 2
        return Orbit(center, float(np.linalg.norm(points - center, axis=1).max()), up)

    @property
    def distance(self) -> float:
        """The distance at which the ball just fits into the field of view."""
        return self.radius / math.sin(math.radians(self.settings.field_of_view_deg) / 2)

    def place_at(self, azimuth: float, elevation: float, distance: float) -> Float[np.ndarray, "3"]:
        """Computes the point of the world in a direction from the center.

        Args:
            azimuth: angle about the up direction, in radians.
            elevation: angle above the level, in radians.
            distance: from the center, in world units.
        """
        ahead, aside = self._level_axes()
        out = math.cos(elevation) * (math.cos(azimuth) * ahead + math.sin(azimuth) * aside)
        return self.center + distance * (out + math.sin(elevation) * self.up)

    def direction_of(self, place: Shaped[np.ndarray, "3"]) -> tuple[float, float, float]:
        """Computes azimuth, elevation and distance of a place: the inverse of `place`."""
        ahead, aside = self._level_axes()
        away = np.asarray(place, np.float64) - self.center
        distance = float(np.linalg.norm(away))
        return (
            math.atan2(float(away @ aside), float(away @ ahead)),
            math.asin(float(np.clip(away @ self.up / max(distance, 1e-12), -1, 1))),
            distance,
        )

    def place_camera(self, azimuth: float, elevation: float, side: int, distance: float | None = None) -> Camera:
        """Places a camera with the ball in the middle of a square picture.

        Args:
            azimuth: angle about the up direction, in radians.
            elevation: angle above the level, in radians.
            side: of the picture, in pixels.
            distance: from the center, in world units; by default as far away as the ball fits.
        """
        place = self.place_at(azimuth, elevation, self.distance if distance is None else distance)
        focal = side / 2 / math.tan(math.radians(self.settings.field_of_view_deg) / 2)
        return Camera(
            side, side, (focal, focal), (side / 2, side / 2), compute_look_at_pose(place, self.center, self.up)
        )

    def _level_axes(self) -> tuple[Float[np.ndarray, "3"], Float[np.ndarray, "3"]]:
        """Returns two level directions; with the up direction they are right-handed."""
        axis = np.eye(3)[int(np.argmin(np.abs(self.up)))]
        ahead = axis - (axis @ self.up) * self.up
        ahead /= np.linalg.norm(ahead)
        return ahead, np.cross(self.up, ahead)


def frame_points(
    points: Float[np.ndarray, "points 3"],
    place: Float[np.ndarray, "3"],
    up: Float[np.ndarray, "3"],
    side: int,
    settings: ViewSettings = DEFAULTS,
) -> Camera:
    """Aims and zooms a camera at a place so that points fill its square picture.

    It zooms rather than steps nearer: the subject is seen as from `place`, whichever part of it fills the picture.

    Args:
        points: in the world.
        place: of the camera.
        up: direction of the world.
        side: of the picture, in pixels.
        settings: how much of the side the points take.

    Raises:
        ValueError: a point is behind the camera.
    """
    pose = compute_look_at_pose(place, (points.min(axis=0) + points.max(axis=0)) / 2, up)
    local = (points - place) @ pose[:3, :3]
    if local[:, 2].min() <= 0:
        raise ValueError("a camera frames what is in front of it")
    flat = local[:, :2] / local[:, 2:]
    low, high = flat.min(axis=0), flat.max(axis=0)
    focal = settings.filled_share * side / max(float((high - low).max()), 1e-9)
    center = side / 2 - focal * (low + high) / 2
    return Camera(side, side, (focal, focal), (float(center[0]), float(center[1])), pose)


def random_direction(random: np.random.Generator, settings: ViewSettings = DEFAULTS) -> tuple[float, float]:
    """Draws azimuth and elevation from all around, as people look at people: seldom from below, never from the top."""
    low, high = math.radians(settings.min_elevation_deg), math.radians(settings.max_elevation_deg)
    return float(random.uniform(-math.pi, math.pi)), float(random.uniform(low, high))


def jittered_camera_rays(camera: Camera, generator: torch.Generator, device: torch.device) -> Rays:
    """Makes the rays of all pixels, each at a random place in its pixel: the mean over steps is anti-aliased.

    Args:
        camera: in the world.
        generator: of the places.
        device: of the rays.
    """
    columns, rows = np.meshgrid(np.arange(camera.width), np.arange(camera.height))
    corner = np.stack([columns.ravel(), rows.ravel()], axis=1)
    inside = torch.rand(len(corner), 2, generator=generator).numpy()
    return camera_rays(camera, (corner + inside).astype(np.float64), device=device)


def values_to_picture(values: Float[Tensor, "pixels channels"], camera: Camera) -> PictureTensor:
    """Turns values of all pixels, row by row, into a picture."""
    return values.t().reshape(1, -1, camera.height, camera.width)


def make_single_moment(
    transforms: Float[np.ndarray, "bones 4 4"], state: Int[Tensor, ""], device: torch.device
) -> Moments:
    """Makes the moments of a single pose, for rays of time 0.

    Args:
        transforms: bones, rest to world.
        state: of the carried object.
        device: of the moments.
    """
    return Moments(torch.tensor(transforms, dtype=torch.float32, device=device)[None], state.to(device)[None])
