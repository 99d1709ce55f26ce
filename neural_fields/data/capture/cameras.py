"""Cameras: the ray of a pixel and the projection of a point. Every file format is converted to this one.

World axes are those of the user's files; lengths are in their unit. A camera looks along its own z: x right, y down,
z forward, as in OpenCV. `pose` takes points of the camera to the world. Pixels are those of `coords`: the center of
pixel (row i, column j) is (j + 0.5, i + 0.5).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import cv2
import numpy as np
from jaxtyping import Bool, Float, Shaped

Lens = Literal["perspective", "fisheye"]


@dataclass(frozen=True)
class Camera:
    """The size, lens and pose of one view.

    Attributes:
        width, height: of the picture in pixels.
        focal, center: (x, y) in pixels.
        pose: camera to world, rigid.
        distortion: OpenCV's distortion coefficients: k1 k2 p1 p2 [k3 [k4 k5 k6]], or k1 k2 k3 k4 of a fisheye; empty
            for none.
        lens: the model that the coefficients belong to.
    """

    width: int
    height: int
    focal: tuple[float, float]
    center: tuple[float, float]
    pose: Float[np.ndarray, "4 4"]
    distortion: tuple[float, ...] = ()
    lens: Lens = "perspective"

    @property
    def intrinsic_matrix(self) -> Float[np.ndarray, "3 3"]:
        """Returns the intrinsic matrix."""
        (fx, fy), (cx, cy) = self.focal, self.center
        return np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]], np.float64)

    @property
    def position(self) -> Float[np.ndarray, "3"]:
        """Returns the position of the camera in the world."""
        return self.pose[:3, 3]

    def resize(self, width: int, height: int) -> Camera:
        """Returns the same view on a picture of another size in pixels."""
        x, y = width / self.width, height / self.height
        focal = self.focal[0] * x, self.focal[1] * y
        center = self.center[0] * x, self.center[1] * y
        return replace(self, width=width, height=height, focal=focal, center=center)

    def with_pose(self, pose: Float[np.ndarray, "4 4"]) -> Camera:
        """Returns the same camera with another pose, camera to world."""
        return replace(self, pose=np.asarray(pose, np.float64))

    def compute_ray_directions(self, pixels: Shaped[np.ndarray, "n 2"]) -> Float[np.ndarray, "n 3"]:
        """Computes the directions of the rays through pixel positions, as unit vectors in the world."""
        distorted = np.ascontiguousarray(pixels, np.float64).reshape(-1, 1, 2)
        if self.lens == "fisheye":
            flat = cv2.fisheye.undistortPoints(
                distorted, self.intrinsic_matrix, np.array(self.distortion or (0.0,) * 4)
            )
        else:
            flat = cv2.undistortPoints(distorted, self.intrinsic_matrix, np.array(self.distortion or (0.0,) * 4))
        local = np.concatenate([flat.reshape(-1, 2), np.ones((len(pixels), 1))], axis=1)
        local /= np.linalg.norm(local, axis=1, keepdims=True)
        return local @ self.pose[:3, :3].T

    def project_points(
        self, points: Shaped[np.ndarray, "n 3"]
    ) -> tuple[Float[np.ndarray, "n 2"], Float[np.ndarray, " n"], Bool[np.ndarray, " n"]]:
        """Projects points of the world into the picture.

        Returns:
            Pixel positions, depths along the camera's z, and which points are in front of it and in the picture.
        """
        local = (np.asarray(points, np.float64) - self.position) @ self.pose[:3, :3]
        ahead = local[:, 2] > 1e-9
        safe = np.ascontiguousarray(np.where(ahead[:, None], local, (0.0, 0.0, 1.0))).reshape(-1, 1, 3)
        call = cv2.fisheye.projectPoints if self.lens == "fisheye" else cv2.projectPoints
        projected, _ = call(
            safe, np.zeros(3), np.zeros(3), self.intrinsic_matrix, np.array(self.distortion or (0.0,) * 4)
        )
        pixels = projected.reshape(-1, 2)
        inside = ahead & np.all((pixels >= 0) & (pixels < (self.width, self.height)), axis=1)
        return pixels, local[:, 2], inside


def compute_look_at_pose(
    position: Shaped[np.ndarray, "3"], target: Shaped[np.ndarray, "3"], up: Shaped[np.ndarray, "3"]
) -> Float[np.ndarray, "4 4"]:
    """Computes the pose of a camera that looks from one point at another.

    Args:
        position: position of the camera in the world.
        target: the point in the middle of the picture.
        up: the direction in the world that the top of the picture points to; any length.

    Returns:
        Camera to world.

    Raises:
        ValueError: target and position are one point, or `up` is the direction of view.
    """
    forward = np.asarray(target, np.float64) - np.asarray(position, np.float64)
    right = np.cross(forward, np.asarray(up, np.float64))
    lengths = np.linalg.norm(forward), np.linalg.norm(right)
    if min(lengths) < 1e-9:
        raise ValueError("a view needs a target away from the camera, and an up that is not the direction of view")
    forward, right = forward / lengths[0], right / lengths[1]
    pose = np.eye(4)
    pose[:3, :3] = np.stack([right, np.cross(forward, right), forward], axis=1)
    pose[:3, 3] = position
    return pose
