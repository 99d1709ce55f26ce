"""A region of one frame: the quadrilateral that `--roi` names, checked, and its place in every other frame.

Corners are in pixels of the source video while they are a text, and in xy units (see `coords`) from then on.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from jaxtyping import Bool, Float

from neural_fields.core import array_coords
from neural_fields.core.errors import UserError, bad_input

REGION_LAYER = "region"  # the name of its layer

Corners = Float[np.ndarray, "4 2"]


@dataclass(frozen=True)
class Region:
    """Marks a convex quadrilateral on a frame of the source.

    Example:
        >>> Region(12, ((10.0, 10.0), (50.0, 10.0), (50.0, 40.0), (10.0, 40.0))).roi_text
        '12:10,10 50,10 50,40 10,40'
    """

    frame: int  # counted from 0 in the source
    corners: tuple[tuple[float, float], ...]  # four corners in pixels of the source, in order around the region

    @property
    def roi_text(self) -> str:
        """The region as `--roi` takes it, always in the same form."""
        return _format_region(self.frame, self.corners)


@dataclass(frozen=True)
class RegionTrack:
    """Holds the place of a region in every frame of a clip."""

    frame: int  # number of the frame in the clip on which the region was drawn
    corners: Corners  # corners in xy units of that frame
    transforms: Float[np.ndarray, "time 3 3"]  # xy of each frame to xy of that frame; the identity there

    def compute_quad(self, t: int) -> Corners:
        """Computes the corners in frame `t`, in xy units."""
        return apply_homography(np.linalg.inv(self.transforms[t]), self.corners)


def parse_region(text: str, width: int, height: int, frames: Sequence[int], min_height_px: float = 8.0) -> Region:
    """Parses a `--roi` text.

    Args:
        text: "K:x1,y1 x2,y2 x3,y3 x4,y4": the number of a frame in the source, and four corners in pixels, in order
            around the region.
        width: width of the source in pixels.
        height: height of the source in pixels.
        frames: numbers of the frames of the source that are used.
        min_height_px: the least height of the region over each of its sides, in pixels of the source; smaller regions
            cannot be tracked.

    Returns:
        The region, a convex quadrilateral inside its frame.

    Raises:
        UserError: a malformed text, a frame that is not used, corners outside the frame, a region that is not convex,
            or one that is too small (exit 3).

    Example:
        >>> parse_region("0:10,10 50,10 50,40 10,40", 64, 48, range(5)).corners
        ((10.0, 10.0), (50.0, 10.0), (50.0, 40.0), (10.0, 40.0))
    """
    example = _format_example(width, height, frames[len(frames) // 2])
    number = r"-?\d{1,6}(?:\.\d{1,6})?"
    match = re.fullmatch(rf"\s*(\d{{1,9}})\s*:\s*({number},{number}(?:\s+{number},{number})*)\s*", text)
    pairs = match[2].split() if match else []
    if match is None or len(pairs) != 4:
        why = "expected a frame, a colon, and the four corners x,y in pixels, separated by spaces"
        raise _region_error(text, why, example)
    corners = tuple((float(x), float(y)) for x, y in (pair.split(",") for pair in pairs))
    points = np.array(corners)
    frame = int(match[1])
    if frame not in frames:
        why = f"frame {frame} is not fitted: the frames are {frames[0]} to {frames[-1]}"
        raise _region_error(text, why, _format_region(min(frames, key=lambda k: abs(k - frame)), points))

    inside = np.clip(points, 0, (width, height))
    if (inside != points).any():
        x, y = points[(inside != points).any(1)][0]
        why = f"the corner {x:g},{y:g} lies outside the frame, which is {width}x{height} pixels"
        raise _region_error(text, why, _format_region(frame, inside))
    areas = _corner_areas(points)
    if not ((areas > 1e-6).all() or (areas < -1e-6).all()):
        around = points[np.argsort(np.arctan2(*(points - points.mean(0)).T[::-1]))]
        convex = (_corner_areas(around) > 1e-6).all()
        why = "the corners must differ and follow each other around a convex region"
        raise _region_error(text, why, _format_region(frame, around) if convex else example)
    heights = np.abs(areas) / np.linalg.norm(np.roll(points, -1, 0) - points, axis=1)
    if heights.min() < min_height_px:
        why = f"the region is {heights.min():.1f} pixels wide at its thinnest; at least {min_height_px:g} are needed"
        raise _region_error(text, why, example)
    return Region(frame, corners)


def _corner_areas(points: Corners) -> Float[np.ndarray, "4"]:
    """Computes twice the signed area of the corner after each side: of one sign around a convex quadrilateral."""
    side = np.roll(points, -1, 0) - points
    after = np.roll(side, -1, 0)
    return side[:, 0] * after[:, 1] - side[:, 1] * after[:, 0]


def _format_example(width: int, height: int, frame: int) -> str:
    """Formats a region in the middle of a frame."""
    (x0, x1), (y0, y1) = ((round(side * 0.35), round(side * 0.65)) for side in (width, height))
    return _format_region(frame, [(x0, y0), (x1, y0), (x1, y1), (x0, y1)])


def _format_region(frame: int, points: object) -> str:
    return f"{frame}:" + " ".join(f"{x:g},{y:g}" for x, y in np.asarray(points, float))


def _region_error(text: str, why: str, example: str) -> UserError:
    return bad_input(f'cannot take the region "{text}"', where="--roi", why=why, fix=f'--roi "{example}"')


def missing_region_error(width: int, height: int, frames: Sequence[int]) -> UserError:
    """Makes the error for a preset that tracks a region, where none was given.

    Args:
        width: width of the source in pixels.
        height: height of the source in pixels.
        frames: frame numbers in the source that the fit uses.

    Returns:
        The error, with an example of --roi for this video.
    """
    return bad_input(
        "this preset tracks one region, and none was given",
        where="--roi",
        why="it needs four corners, in pixels, on one frame of the video",
        fix=f'--roi "{_format_example(width, height, frames[len(frames) // 2])}"',
    )


# --- on the plane ---------------------------------------------------------------------------------------------------


def convert_corners(region: Region, width: int, height: int, size: tuple[int, int]) -> Corners:
    """Converts the corners to xy units of the clip.

    Args:
        region: the region, in pixels of the source.
        width: width of the source in pixels.
        height: height of the source in pixels.
        size: (width, height) of the clip, whose aspect may differ from that of the source.

    Returns:
        The four corners.
    """
    points = np.array(region.corners, np.float64) * np.array([size[0] / width, size[1] / height], np.float32)
    return array_coords.normalize_pixels(points, *size)


def apply_homography(matrix: Float[np.ndarray, "3 3"], points: Float[np.ndarray, "*n 2"]) -> Float[np.ndarray, "*n 2"]:
    """Applies a homography to points.

    Args:
        matrix: the homography.
        points: x and y, in the unit that the homography takes.

    Returns:
        The projected points.

    Example:
        >>> apply_homography(np.diag([2.0, 2.0, 1.0]), np.array([[1.0, 3.0]])).tolist()
        [[2.0, 6.0]]
    """
    moved = points @ matrix[:, :2].T + matrix[:, 2]
    return moved[..., :2] / moved[..., 2:]


def compute_quad_area(corners: Corners, size: tuple[int, int]) -> float:
    """Computes the area of a quadrilateral in xy units, in pixels of a frame of `size`, also outside the frame."""
    x, y = corners.T
    return float(abs((x * np.roll(y, -1) - y * np.roll(x, -1)).sum()) / 2 * (max(size) / 2) ** 2)


@lru_cache(maxsize=4)
def pixel_positions(width: int, height: int) -> Float[np.ndarray, "height width 2"]:
    """Returns the xy units of every pixel center of a frame in double precision; kept, and not to be written to."""
    xy = array_coords.frame_xy(width, height).astype(np.float64)
    xy.flags.writeable = False
    return xy


def draw_quad_mask(corners: Corners, size: tuple[int, int]) -> Bool[np.ndarray, "height width"]:
    """Finds the pixels of a frame of `size` (width, height) whose centers lie in a quadrilateral given in xy units."""
    xy = pixel_positions(*size)
    sides = np.roll(corners, -1, 0) - corners
    orientation = np.sign(_corner_areas(corners).sum())
    inside = np.ones(xy.shape[:2], bool)
    for corner, (dx, dy) in zip(corners, sides, strict=True):
        inside &= orientation * (dx * (xy[..., 1] - corner[1]) - dy * (xy[..., 0] - corner[0])) >= 0
    return inside
