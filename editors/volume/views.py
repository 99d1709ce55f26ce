"""Cameras around a subject, and the pictures they take of a scene: what losses on pictures look at.

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

from neural_fields.data.cameras import Camera, look_at
from neural_fields.volume.rays import Rays, camera_rays
from neural_fields.volume.scene import Moments

FIELD_OF_VIEW = math.radians(49.1)  # of the pictures that Zero-1-to-3 was trained with
FILLED = 0.9  # of a picture's side is taken by what a camera frames
DOWN, UP = math.radians(-10), math.radians(45)  # elevations of random views
_FAINT = 0.01  # how much pictures' tops count against level horizons in finding what is up

Picture = Float[Tensor, "1 channels height width"]


def upwards(cameras: Sequence[Camera]) -> Float[np.ndarray, "3"]:
    """Which way is up: people hold cameras level, so that pictures' horizontal axes are at right angles to it.

    Where they leave it open, as cameras in a row do, it is the mean of where the pictures' tops point.
    """
    across = np.stack([camera.pose[:3, 0] for camera in cameras])
    tops = -np.stack([camera.pose[:3, 1] for camera in cameras]).mean(axis=0)
    level = across.T @ across / len(across) + _FAINT * np.eye(3)
    found = np.linalg.solve(level, tops)
    return found / np.linalg.norm(found)


@dataclass(frozen=True)
class Orbit:
    """A ball around a subject and the way up: places around it are an azimuth, an elevation and a distance."""

    centre: Float[np.ndarray, "3"]
    radius: float
    up: Float[np.ndarray, "3"]

    @staticmethod
    def around(points: Float[np.ndarray, "points 3"], up: Float[np.ndarray, "3"]) -> Orbit:
        """The ball around the middle of points."""
        centre = (points.min(axis=0) + points.max(axis=0)) / 2
        return Orbit(centre, float(np.linalg.norm(points - centre, axis=1).max()), up)

    @property
    def distance(self) -> float:
        """From where the ball just fits into `FIELD_OF_VIEW`."""
        return self.radius / math.sin(FIELD_OF_VIEW / 2)

    def place(self, azimuth: float, elevation: float, distance: float) -> Float[np.ndarray, "3"]:
        """The point of the world in a direction from the centre."""
        ahead, aside = self._level()
        out = math.cos(elevation) * (math.cos(azimuth) * ahead + math.sin(azimuth) * aside)
        return self.centre + distance * (out + math.sin(elevation) * self.up)

    def direction(self, place: Shaped[np.ndarray, "3"]) -> tuple[float, float, float]:
        """Azimuth, elevation and distance of a place: `place` the other way round."""
        ahead, aside = self._level()
        away = np.asarray(place, np.float64) - self.centre
        distance = float(np.linalg.norm(away))
        return (
            math.atan2(float(away @ aside), float(away @ ahead)),
            math.asin(float(np.clip(away @ self.up / max(distance, 1e-12), -1, 1))),
            distance,
        )

    def camera(self, azimuth: float, elevation: float, side: int, distance: float | None = None) -> Camera:
        """A camera with the ball in the middle of a square picture; by default as far away as the ball fits."""
        place = self.place(azimuth, elevation, self.distance if distance is None else distance)
        focal = side / 2 / math.tan(FIELD_OF_VIEW / 2)
        return Camera(side, side, (focal, focal), (side / 2, side / 2), look_at(place, self.centre, self.up))

    def _level(self) -> tuple[Float[np.ndarray, "3"], Float[np.ndarray, "3"]]:
        """Two level directions; with the way up they are right-handed."""
        axis = np.eye(3)[int(np.argmin(np.abs(self.up)))]
        ahead = axis - (axis @ self.up) * self.up
        ahead /= np.linalg.norm(ahead)
        return ahead, np.cross(self.up, ahead)


def framing(
    points: Float[np.ndarray, "points 3"], place: Float[np.ndarray, "3"], up: Float[np.ndarray, "3"], side: int
) -> Camera:
    """A camera at a place whose square picture holds points as large as it can, in its middle.

    It zooms rather than steps nearer: the subject is seen as from `place`, whichever part of it fills the picture.

    Raises:
        ValueError: a point is behind the camera.
    """
    pose = look_at(place, (points.min(axis=0) + points.max(axis=0)) / 2, up)
    local = (points - place) @ pose[:3, :3]
    if local[:, 2].min() <= 0:
        raise ValueError("a camera frames what is in front of it")
    flat = local[:, :2] / local[:, 2:]
    low, high = flat.min(axis=0), flat.max(axis=0)
    focal = FILLED * side / max(float((high - low).max()), 1e-9)
    centre = side / 2 - focal * (low + high) / 2
    return Camera(side, side, (focal, focal), (float(centre[0]), float(centre[1])), pose)


def random_direction(random: np.random.Generator) -> tuple[float, float]:
    """Azimuth and elevation from all around, as people look at people: seldom from below, never from the top."""
    return float(random.uniform(-math.pi, math.pi)), float(random.uniform(DOWN, UP))


def shaken_rays(camera: Camera, generator: torch.Generator, device: torch.device) -> Rays:
    """The rays of all pixels, each at a random place in its pixel: the mean over steps has no stairs at outlines."""
    columns, rows = np.meshgrid(np.arange(camera.width), np.arange(camera.height))
    corner = np.stack([columns.ravel(), rows.ravel()], axis=1)
    inside = torch.rand(len(corner), 2, generator=generator).numpy()
    return camera_rays(camera, (corner + inside).astype(np.float64), device=device)


def as_picture(values: Float[Tensor, "pixels channels"], camera: Camera) -> Picture:
    """Values of all pixels row by row as a picture."""
    return values.t().reshape(1, -1, camera.height, camera.width)


def one_moment(transforms: Float[np.ndarray, "bones 4 4"], state: Int[Tensor, ""], device: torch.device) -> Moments:
    """A single pose, which rays of time 0 look at."""
    return Moments(torch.tensor(transforms, dtype=torch.float32, device=device)[None], state.to(device)[None])
