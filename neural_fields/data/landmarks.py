"""Landmarks of a person in pictures, and from several calibrated cameras in space.

What a network itself says of depth is a guess, in metres around the hips; two cameras measure it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float
from scipy.ndimage import median_filter

from neural_fields.data.cameras import Camera
from neural_fields.data.skeleton import ROOT
from neural_fields.errors import bad_input
from neural_fields.files import atomic_write, write_synced

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
# Joints of the bones that are made of them: (name, parent, landmarks whose middle it is).
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
SKELETON = _NAMES, tuple(ROOT if parent is None else _NAMES.index(parent) for _, parent, _ in _JOINTS)

SEEN = 0.5  # probability from which a landmark counts as seen
_STEADY = 5  # moments
_MISFIT = 0.02  # of the picture's longer side: a camera that is farther off than this is left out, where others are


@dataclass(frozen=True)
class Sighting:
    """A person in one picture.

    Attributes:
        pixels: of the landmarks; none where only the outline is known.
        visible: probability that each is in the picture and not hidden.
        world: metres around the middle of the hips, x right, y down, z away from the camera: a guess, not measured.
        mask: which pixels are the person.
    """

    pixels: Float[np.ndarray, "landmarks 2"]
    visible: Float[np.ndarray, " landmarks"]
    world: Float[np.ndarray, "landmarks 3"]
    mask: Bool[np.ndarray, "height width"] | None


# --- points in space ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SpacePoints:
    """Landmarks in the world.

    Attributes:
        error: how far they are from where the cameras see them, the median in pixels.
        filled: landmarks that fewer than two cameras see, filled in from the frames around them.
    """

    points: Float[np.ndarray, "moments landmarks 3"]
    error: float
    filled: int


def triangulate(views: Sequence[Sequence[tuple[Camera, Sighting | None]]]) -> SpacePoints:
    """Points nearest to the rays along which the cameras see them, each as sure as it is visible.

    Left and right change places in a camera's view where that makes the cameras agree: networks mistake a back for a
    front. A camera that is far off the others' point, where there are at least two others, does not count. A median
    over five moments takes out what lasts for one or two.

    Args:
        views: for each camera, what it sees at every moment.

    Raises:
        UserError: a landmark is seen by two cameras at no moment.
    """
    moments, marks = len(views[0]), len(LANDMARKS)
    points, errors = np.full((moments, marks, 3), np.nan), []
    turned: dict[int, bool] = {}
    for moment in range(moments):
        seen = {
            index: (camera, sighting)
            for index, (camera, sighting) in enumerate(view[moment] for view in views)
            if sighting is not None and len(sighting.pixels)
        }
        if len(seen) < 2:
            continue
        rays = _Rays.of(list(seen.values()))
        flags = rays.agreed(np.array([turned.get(index, False) for index in seen]))
        turned.update(zip(seen, flags.tolist(), strict=True))
        points[moment], off = rays.turned(flags).points()
        errors += off[np.isfinite(off)].tolist()
    gone = np.isnan(points[..., 0])
    if gone.all(axis=0).any():
        mark = int(gone.all(axis=0).argmax())
        raise bad_input(
            f"the landmark {LANDMARKS[mark]} is seen by two cameras at no moment",
            where="--pose-model",
            fix="give bones or joints from elsewhere: --bones FILE or --joints FILE.trc",
        )
    return SpacePoints(_steady(points, gone), float(np.median(errors)), int(gone.sum()))


def _steady(points: np.ndarray, gone: np.ndarray) -> Float[np.ndarray, "moments landmarks 3"]:
    """The points without gaps and without what jumps away and back."""
    time = np.arange(len(points))
    for mark in np.flatnonzero(gone.any(axis=0)):
        there = ~gone[:, mark]
        for axis in range(3):
            points[:, mark, axis] = np.interp(time, time[there], points[there, mark, axis])
    return median_filter(points, size=(_STEADY, 1, 1), mode="nearest")


def _mirrored(name: str) -> str:
    """The name of a landmark's partner on the other side; its own in the middle."""
    left, found, right = name.partition("left")
    return f"{left}right{right}" if found else name.replace("right", "left")


_OTHER_SIDE = np.array([LANDMARKS.index(_mirrored(name)) for name in LANDMARKS])


@dataclass(frozen=True)
class _Rays:
    """Landmarks of one moment as several cameras see them."""

    cameras: tuple[Camera, ...]
    pixels: Float[np.ndarray, "cameras landmarks 2"]
    directions: Float[np.ndarray, "cameras landmarks 3"]
    weights: Float[np.ndarray, "cameras landmarks"]  # 0 where they are not seen

    @staticmethod
    def of(seen: Sequence[tuple[Camera, Sighting]]) -> _Rays:
        return _Rays(
            tuple(camera for camera, _ in seen),
            np.stack([sighting.pixels for _, sighting in seen]),
            np.stack([camera.directions(sighting.pixels) for camera, sighting in seen]),
            np.stack([np.where(sighting.visible >= SEEN, sighting.visible, 0) for _, sighting in seen]),
        )

    def turned(self, flags: Bool[np.ndarray, " cameras"]) -> _Rays:
        """The same with left and right swapped in some cameras."""
        order = np.where(flags[:, None], _OTHER_SIDE, np.arange(len(_OTHER_SIDE)))
        rows = np.arange(len(flags))[:, None]
        return _Rays(self.cameras, self.pixels[rows, order], self.directions[rows, order], self.weights[rows, order])

    def agreed(self, flags: Bool[np.ndarray, " cameras"]) -> Bool[np.ndarray, " cameras"]:
        """In which cameras left and right are swapped, found by trying each in turn, beginning with `flags`."""
        best = self.turned(flags).disagreement()
        improved = True
        while improved:
            improved = False
            for index in range(len(flags)):
                tried = flags.copy()
                tried[index] = not tried[index]
                error = self.turned(tried).disagreement()
                if error < 0.98 * best:
                    best, flags, improved = error, tried, True
        return ~flags if 2 * flags.sum() > len(flags) else flags  # most cameras are right

    def disagreement(self) -> float:
        """How far the cameras see the points off, in pixels; large errors count no more than medium ones."""
        off = self._off(self._nearest(self.weights))
        return float(np.nanmean(np.minimum(off, 4 * self._tolerance())))

    def points(self) -> tuple[Float[np.ndarray, "landmarks 3"], Float[np.ndarray, "cameras landmarks"]]:
        """The points, NaN where fewer than two cameras see one, and how many pixels each camera sees them off."""
        points = self._nearest(self.weights)
        off = self._off(points)
        wrong = ((self.weights > 0).sum(axis=0) > 2) & (np.nan_to_num(off).max(axis=0) > self._tolerance())
        worst = off
        for index in range(len(self.cameras)):
            weights = self.weights.copy()
            weights[index] = 0
            without = self._nearest(weights)
            rest = np.where(weights > 0, self._off(without), np.nan)
            better = wrong & (np.nan_to_num(rest).max(axis=0) < np.nan_to_num(worst).max(axis=0))
            points = np.where(better[:, None], without, points)
            worst = np.where(better, rest, worst)
        return points, worst

    def _tolerance(self) -> float:
        return _MISFIT * max(self.cameras[0].width, self.cameras[0].height)

    def _nearest(self, weights: np.ndarray) -> np.ndarray:
        """The points nearest to weighted rays."""
        across = np.eye(3) - self.directions[..., :, None] * self.directions[..., None, :]
        across = across * weights[..., None, None]
        places = np.stack([camera.position for camera in self.cameras])
        left, right = across.sum(axis=0), np.einsum("cmij,cj->mi", across, places)
        enough = (weights > 0).sum(axis=0) >= 2
        left[~enough] = np.eye(3)
        points = np.linalg.solve(left + 1e-9 * np.eye(3), right[..., None])[..., 0]
        points[~enough] = np.nan
        return points

    def _off(self, points: np.ndarray) -> np.ndarray:
        """How far each camera sees each point from where it was seen; NaN where it does not see it."""
        seen = np.stack([camera.project(np.nan_to_num(points))[0] for camera in self.cameras])
        away = np.linalg.norm(seen - self.pixels, axis=2)
        return np.where((self.weights > 0) & np.isfinite(points[:, 0]), away, np.nan)


def skeleton_joints(points: Float[np.ndarray, "moments landmarks 3"]) -> Float[np.ndarray, "moments joints 3"]:
    """The joints of `SKELETON` among landmarks."""
    picked = [[LANDMARKS.index(mark) for mark in marks] for _, _, marks in _JOINTS]
    return np.stack([points[:, some].mean(axis=1) for some in picked], axis=1)


# --- file -----------------------------------------------------------------------------------------------------------


def write_landmarks(path: Path | str, videos: Sequence[tuple[str, Sequence[int], Sequence[Sighting | None]]]) -> None:
    """Writes what was seen as JSON, atomically: of each video its name, and of each frame its number and landmarks.

    A landmark is [x, y, probability of being seen], in pixels of the scene's pictures; "world" has the network's guess
    of [x, y, z]. Where nobody is seen both are null.
    """
    listed = []
    for name, numbers, sightings in videos:
        frames = [
            {"frame": number, "points": _points(seen), "world": None if seen is None else _rounded(seen.world)}
            for number, seen in zip(numbers, sightings, strict=True)
        ]
        listed.append({"video": name, "frames": frames})
    data = {"schema": 1, "landmarks": list(LANDMARKS), "videos": listed}
    with atomic_write(path) as part:
        write_synced(part, json.dumps(data, allow_nan=False).encode() + b"\n")


def _points(seen: Sighting | None) -> list[list[float]] | None:
    return None if seen is None else _rounded(np.concatenate([seen.pixels, seen.visible[:, None]], axis=1))


def _rounded(values: np.ndarray) -> list[list[float]]:
    return np.round(values.astype(np.float64), 4).tolist()
