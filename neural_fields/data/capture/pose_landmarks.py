"""Landmarks of a person in pictures, and their triangulation from several calibrated cameras.

The depth that a network gives is a guess, in meters around the hips; two cameras measure it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float
from scipy.ndimage import median_filter

from neural_fields.core.errors import bad_input
from neural_fields.core.files import atomic_write, write_synced
from neural_fields.data.capture.cameras import Camera
from neural_fields.data.capture.skeleton import NO_PARENT

_SIDES = ("left", "right")
LANDMARKS = (
    "nose",
    *(f"{side}_eye_{part}" for side in _SIDES for part in ("inner", "middle", "outer")),
    *(f"{side}_ear" for side in _SIDES),
    "mouth_left",
    "mouth_right",
    *(f"{side}_{joint}" for joint in ("shoulder", "elbow", "wrist", "little", "index", "thumb") for side in _SIDES),
    *(f"{side}_{joint}" for joint in ("hip", "knee", "ankle", "heel", "toe") for side in _SIDES),
)
# Joints of the skeleton that is made from the landmarks: (name, parent, landmarks whose mean it is).
_JOINTS: tuple[tuple[str, str | None, tuple[str, ...]], ...] = (
    ("pelvis", None, ("left_hip", "right_hip")),
    ("neck", "pelvis", ("left_shoulder", "right_shoulder")),
    ("head", "neck", ("left_ear", "right_ear")),
    *(
        (f"{side}_{joint}", parent if joint in ("shoulder", "hip") else f"{side}_{parent}", marks)
        for side in _SIDES
        for joint, parent, marks in (
            ("shoulder", "neck", (f"{side}_shoulder",)),
            ("elbow", "shoulder", (f"{side}_elbow",)),
            ("wrist", "elbow", (f"{side}_wrist",)),
            ("hand", "wrist", (f"{side}_little", f"{side}_index")),
            ("hip", "pelvis", (f"{side}_hip",)),
            ("knee", "hip", (f"{side}_knee",)),
            ("ankle", "knee", (f"{side}_ankle",)),
            ("toe", "ankle", (f"{side}_toe",)),
        )
    ),
)
_NAMES = tuple(name for name, _, _ in _JOINTS)
LANDMARK_SKELETON = _NAMES, tuple(NO_PARENT if parent is None else _NAMES.index(parent) for _, parent, _ in _JOINTS)


@dataclass(frozen=True)
class TriangulationSettings:
    """Settings of the triangulation of landmarks."""

    min_visibility: float = 0.5  # a landmark with a lower probability of being visible is not used
    median_moments: int = 5  # length of the median filter over time, in moments
    max_error_share: float = 0.02  # a camera whose error is a larger share of the picture's longer side can be left out


DEFAULTS = TriangulationSettings()


@dataclass(frozen=True)
class PersonDetection:
    """A person in one picture.

    Attributes:
        pixels: positions of the landmarks; none where only the outline is known.
        visibility: probability that each is in the picture and not hidden.
        world: meters around the middle of the hips, x right, y down, z away from the camera: a guess, not measured.
        mask: the pixels of the person.
    """

    pixels: Float[np.ndarray, "landmarks 2"]
    visibility: Float[np.ndarray, " landmarks"]
    world: Float[np.ndarray, "landmarks 3"]
    mask: Bool[np.ndarray, "height width"] | None


# --- triangulation --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TriangulatedLandmarks:
    """Landmarks in the world.

    Attributes:
        median_error_px: median reprojection error.
        filled_count: number of landmarks that fewer than two cameras see, interpolated from the frames around them.
    """

    points: Float[np.ndarray, "moments landmarks 3"]
    median_error_px: float
    filled_count: int


def triangulate_landmarks(
    views: Sequence[Sequence[tuple[Camera, PersonDetection | None]]], settings: TriangulationSettings = DEFAULTS
) -> TriangulatedLandmarks:
    """Computes the points nearest to the rays of the cameras, weighted by visibility.

    Left and right are swapped in a camera's view where that makes the cameras agree: networks mistake a back for a
    front. A camera that is far off the others' point, where there are at least two others, does not count. A median
    filter over time removes what lasts for one or two moments.

    Args:
        views: the detections of each camera at every moment, with the camera at that moment.
        settings: thresholds, and the filter over time.

    Raises:
        UserError: a landmark is seen by two cameras at no moment.
    """
    moments, marks = len(views[0]), len(LANDMARKS)
    points, errors = np.full((moments, marks, 3), np.nan), []
    swapped: dict[int, bool] = {}  # by camera, at the moment before
    for moment in range(moments):
        seen: dict[int, tuple[Camera, PersonDetection]] = {}
        for index, view in enumerate(views):
            camera, sighting = view[moment]
            if sighting is not None and len(sighting.pixels):
                seen[index] = camera, sighting
        if len(seen) < 2:
            continue
        rays = _Rays.from_sightings(list(seen.values()), settings)
        flags = rays.find_swapped_cameras(np.array([swapped.get(index, False) for index in seen]))
        swapped.update(zip(seen, flags.tolist(), strict=True))
        points[moment], errors_px = rays.swap_sides(flags).solve_points()
        errors += errors_px[np.isfinite(errors_px)].tolist()
    gone = np.isnan(points[..., 0])
    if gone.all(axis=0).any():
        missing = int(gone.all(axis=0).argmax())
        raise bad_input(
            f"the landmark {LANDMARKS[missing]} is seen by two cameras at no moment",
            where="--pose-model",
            fix="give bones or joints from elsewhere: --bones FILE or --joints FILE.trc",
        )
    time = np.arange(len(points))
    for mark in np.flatnonzero(gone.any(axis=0)):
        there = ~gone[:, mark]
        for axis in range(3):
            points[:, mark, axis] = np.interp(time, time[there], points[there, mark, axis])
    filtered = median_filter(points, size=(settings.median_moments, 1, 1), mode="nearest")
    return TriangulatedLandmarks(filtered, float(np.median(errors)), int(gone.sum()))


# The partner of each landmark on the other side; the landmark itself in the middle.
_OTHER_SIDE = np.array(
    [
        LANDMARKS.index(name.replace("left", "right") if "left" in name else name.replace("right", "left"))
        for name in LANDMARKS
    ]
)


@dataclass(frozen=True)
class _Rays:
    """The rays of several cameras through the landmarks of one moment."""

    cameras: tuple[Camera, ...]
    pixels: Float[np.ndarray, "cameras landmarks 2"]
    directions: Float[np.ndarray, "cameras landmarks 3"]
    weights: Float[np.ndarray, "cameras landmarks"]  # 0 where they are not visible
    settings: TriangulationSettings

    @staticmethod
    def from_sightings(seen: Sequence[tuple[Camera, PersonDetection]], settings: TriangulationSettings) -> _Rays:
        """Computes the rays of each camera from its detections."""
        least = settings.min_visibility
        return _Rays(
            tuple(camera for camera, _ in seen),
            np.stack([sighting.pixels for _, sighting in seen]),
            np.stack([camera.compute_ray_directions(sighting.pixels) for camera, sighting in seen]),
            np.stack([np.where(sighting.visibility >= least, sighting.visibility, 0) for _, sighting in seen]),
            settings,
        )

    def swap_sides(self, flags: Bool[np.ndarray, " cameras"]) -> _Rays:
        """Returns the rays with left and right swapped in the cameras of `flags`."""
        order = np.where(flags[:, None], _OTHER_SIDE, np.arange(len(_OTHER_SIDE)))
        rows = np.arange(len(flags))[:, None]
        return replace(
            self,
            pixels=self.pixels[rows, order],
            directions=self.directions[rows, order],
            weights=self.weights[rows, order],
        )

    def find_swapped_cameras(self, flags: Bool[np.ndarray, " cameras"]) -> Bool[np.ndarray, " cameras"]:
        """Finds the cameras in which left and right are swapped by trying each in turn, starting from `flags`."""
        best = self.swap_sides(flags).compute_disagreement()
        improved = True
        while improved:
            improved = False
            for index in range(len(flags)):
                tried = flags.copy()
                tried[index] = not tried[index]
                error = self.swap_sides(tried).compute_disagreement()
                if error < best:
                    best, flags, improved = error, tried, True
        return ~flags if 2 * flags.sum() > len(flags) else flags  # most cameras are right

    def compute_disagreement(self) -> float:
        """Computes the mean reprojection error in pixels."""
        return float(np.nanmean(self._compute_errors_px(self._intersect_rays(self.weights))))

    def solve_points(self) -> tuple[Float[np.ndarray, "landmarks 3"], Float[np.ndarray, "cameras landmarks"]]:
        """Solves for the points, and leaves out one camera of a point where that lowers a large error.

        Returns:
            The points, NaN where fewer than two cameras see one, and the reprojection errors in pixels.
        """
        points = self._intersect_rays(self.weights)
        errors = self._compute_errors_px(points)
        max_error_px = self.settings.max_error_share * max(self.cameras[0].width, self.cameras[0].height)
        wrong = ((self.weights > 0).sum(axis=0) > 2) & (np.nan_to_num(errors).max(axis=0) > max_error_px)
        for index in range(len(self.cameras)):
            weights = self.weights.copy()
            weights[index] = 0
            points_without = self._intersect_rays(weights)
            errors_without = np.where(weights > 0, self._compute_errors_px(points_without), np.nan)
            better = wrong & (np.nan_to_num(errors_without).max(axis=0) < np.nan_to_num(errors).max(axis=0))
            points = np.where(better[:, None], points_without, points)
            errors = np.where(better, errors_without, errors)
        return points, errors

    def _intersect_rays(self, weights: np.ndarray) -> np.ndarray:
        """Computes the points nearest to weighted rays by least squares; NaN where there are fewer than two rays."""
        across = np.eye(3) - self.directions[..., :, None] * self.directions[..., None, :]
        across = across * weights[..., None, None]
        positions = np.stack([camera.position for camera in self.cameras])
        left, right = across.sum(axis=0), np.einsum("cmij,cj->mi", across, positions)
        enough = (weights > 0).sum(axis=0) >= 2
        left[~enough] = np.eye(3)
        points = np.linalg.solve(left + 1e-9 * np.eye(3), right[..., None])[..., 0]
        points[~enough] = np.nan
        return points

    def _compute_errors_px(self, points: np.ndarray) -> np.ndarray:
        """Computes the reprojection error of each point in each camera; NaN where the camera does not see it."""
        projected = np.stack([camera.project_points(np.nan_to_num(points))[0] for camera in self.cameras])
        errors = np.linalg.norm(projected - self.pixels, axis=2)
        return np.where((self.weights > 0) & np.isfinite(points[:, 0]), errors, np.nan)


def compute_skeleton_joints(points: Float[np.ndarray, "moments landmarks 3"]) -> Float[np.ndarray, "moments joints 3"]:
    """Computes the joints of `SKELETON` from landmarks."""
    joints = []
    for _, _, marks in _JOINTS:
        joints.append(points[:, [LANDMARKS.index(mark) for mark in marks]].mean(axis=1))
    return np.stack(joints, axis=1)


# --- file -----------------------------------------------------------------------------------------------------------


def write_landmarks(
    path: Path | str, videos: Sequence[tuple[str, Sequence[int], Sequence[PersonDetection | None]]]
) -> None:
    """Writes the landmarks as JSON, atomically.

    A landmark is [x, y, probability of being visible], in pixels of the scene's pictures; "world" has the network's
    guess of [x, y, z]. Both are null where no person is visible.

    Args:
        path: the file.
        videos: name, frame numbers and detections of each video.
    """
    listed = []
    for name, numbers, sightings in videos:
        frames = []
        for number, seen in zip(numbers, sightings, strict=True):
            points = world = None
            if seen is not None:
                points = _round_values(np.concatenate([seen.pixels, seen.visibility[:, None]], axis=1))
                world = _round_values(seen.world)
            frames.append({"frame": number, "points": points, "world": world})
        listed.append({"video": name, "frames": frames})
    data = {"schema": 1, "landmarks": list(LANDMARKS), "videos": listed}
    with atomic_write(path) as part:
        write_synced(part, json.dumps(data, allow_nan=False).encode() + b"\n")


def _round_values(values: np.ndarray) -> list[list[float]]:
    """Rounds to four digits after the point."""
    return np.round(values.astype(np.float64), 4).tolist()
