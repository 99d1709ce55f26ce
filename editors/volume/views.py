"""Cameras around a subject, and views of a scene for losses on pictures.

Angles are in radians. The azimuth grows as a camera moves to its right, around the up direction of the world; the
elevation is 0 at the height of the subject and grows upwards.
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
    filled_share: float = 0.9  # share of a picture's side that the framed subject fills
    min_elevation_deg: float = -10.0  # of random views
    max_elevation_deg: float = 45.0
    top_weight: float = 0.01  # weight of the pictures' up directions against level horizons


DEFAULTS = ViewSettings()


def estimate_up_direction(cameras: Sequence[Camera], settings: ViewSettings = DEFAULTS) -> Float[np.ndarray, "3"]:
    """Estimates the up direction. Cameras are usually held level: it is orthogonal to the pictures' horizontal axes.

    If the cameras do not determine it, for example cameras in a row, it is the mean up direction of the pictures.

    Args:
        cameras: the cameras of the capture.
        settings: weight of the pictures' up directions.

    Returns:
        A unit vector in world coordinates.
    """
    across = np.stack([camera.pose[:3, 0] for camera in cameras])
    tops = -np.stack([camera.pose[:3, 1] for camera in cameras]).mean(axis=0)
    level = across.T @ across / len(across) + settings.top_weight * np.eye(3)
    up = np.linalg.solve(level, tops)
    return up / np.linalg.norm(up)


@dataclass(frozen=True)
class Orbit:
    """Describes positions around a subject by azimuth, elevation and distance.

    Attributes:
        center: center of the sphere around the subject, in world units.
        radius: radius of the sphere, in world units.
        up: up direction of the world, a unit vector.
        settings: field of view and framing of the cameras.
    """

    center: Float[np.ndarray, "3"]
    radius: float
    up: Float[np.ndarray, "3"]
    settings: ViewSettings = DEFAULTS

    @staticmethod
    def from_points(points: Float[np.ndarray, "points 3"], up: Float[np.ndarray, "3"]) -> Orbit:
        """Computes the sphere around points.

        Args:
            points: points of the subject, in world units.
            up: up direction of the world, a unit vector.
        """
        center = (points.min(axis=0) + points.max(axis=0)) / 2
        return Orbit(center, float(np.linalg.norm(points - center, axis=1).max()), up)

    @property
    def distance(self) -> float:
        """The distance at which the sphere just fills the field of view."""
        return self.radius / math.sin(math.radians(self.settings.field_of_view_deg) / 2)

    def place_at(self, azimuth: float, elevation: float, distance: float) -> Float[np.ndarray, "3"]:
        """Computes a position in the world.

        Args:
            azimuth: angle about the up direction, in radians.
            elevation: angle above the horizontal plane, in radians.
            distance: distance from the center, in world units.

        Example:
            >>> orbit = Orbit(np.zeros(3, np.float32), 1.0, np.array([0, 0, 1], np.float32))
            >>> position = orbit.place_at(azimuth=0.3, elevation=0.5, distance=2.0)
            >>> [round(float(value), 4) for value in orbit.direction_of(position)]
            [0.3, 0.5, 2.0]
        """
        ahead, aside = self._level_axes()
        out = math.cos(elevation) * (math.cos(azimuth) * ahead + math.sin(azimuth) * aside)
        return self.center + distance * (out + math.sin(elevation) * self.up)

    def direction_of(self, place: Shaped[np.ndarray, "3"]) -> tuple[float, float, float]:
        """Computes azimuth, elevation and distance of a position: the inverse of `place_at`."""
        ahead, aside = self._level_axes()
        away = np.asarray(place, np.float64) - self.center
        distance = float(np.linalg.norm(away))
        return (
            math.atan2(float(away @ aside), float(away @ ahead)),
            math.asin(float(np.clip(away @ self.up / max(distance, 1e-12), -1, 1))),
            distance,
        )

    def place_camera(self, azimuth: float, elevation: float, side: int, distance: float | None = None) -> Camera:
        """Places a camera with the sphere in the center of a square picture.

        Args:
            azimuth: angle about the up direction, in radians.
            elevation: angle above the horizontal plane, in radians.
            side: side of the picture, in pixels.
            distance: distance from the center, in world units; by default `distance`, where the sphere fills the view.
        """
        place = self.place_at(azimuth, elevation, self.distance if distance is None else distance)
        focal = side / 2 / math.tan(math.radians(self.settings.field_of_view_deg) / 2)
        return Camera(
            side, side, (focal, focal), (side / 2, side / 2), compute_look_at_pose(place, self.center, self.up)
        )

    def _level_axes(self) -> tuple[Float[np.ndarray, "3"], Float[np.ndarray, "3"]]:
        """Returns two horizontal directions; with the up direction they form a right-handed system."""
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
    """Aims and zooms a camera so that points fill its square picture.

    It zooms instead of moving closer, so that the perspective is that of `place` for every part of the subject.

    Args:
        points: points in world units.
        place: position of the camera in world units.
        up: up direction of the world, a unit vector.
        side: side of the picture, in pixels.
        settings: the share of the side that the points fill.

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
    """Draws a random view direction, as people look at people: rarely from below, never from the top.

    Args:
        random: random generator.
        settings: range of the elevation.

    Returns:
        Azimuth and elevation, in radians.
    """
    low, high = math.radians(settings.min_elevation_deg), math.radians(settings.max_elevation_deg)
    return float(random.uniform(-math.pi, math.pi)), float(random.uniform(low, high))


def jittered_camera_rays(camera: Camera, generator: torch.Generator, device: torch.device) -> Rays:
    """Makes one ray per pixel at a random position within the pixel, which anti-aliases the mean over steps.

    Args:
        camera: camera in world coordinates.
        generator: random generator of the positions.
        device: device of the rays.
    """
    columns, rows = np.meshgrid(np.arange(camera.width), np.arange(camera.height))
    corner = np.stack([columns.ravel(), rows.ravel()], axis=1)
    inside = torch.rand(len(corner), 2, generator=generator).numpy()
    return camera_rays(camera, (corner + inside).astype(np.float64), device=device)


def values_to_picture(values: Float[Tensor, "pixels channels"], camera: Camera) -> PictureTensor:
    """Reshapes the values of all pixels to a picture.

    Args:
        values: values of the pixels, row by row.
        camera: the camera, which has the size of the picture.
    """
    return values.t().reshape(1, -1, camera.height, camera.width)


def make_single_moment(
    transforms: Float[np.ndarray, "bones 4 4"], state: Int[Tensor, ""], device: torch.device
) -> Moments:
    """Makes the moments of a single pose, for rays of time 0.

    Args:
        transforms: a matrix per bone, from rest to world.
        state: index of the carried object's state.
        device: device of the moments.
    """
    return Moments(torch.tensor(transforms, dtype=torch.float32, device=device)[None], state.to(device)[None])
