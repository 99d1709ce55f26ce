"""A region of one frame: the quadrilateral that `--roi` names, checked, and where it lies in every other frame.

Corners are in pixels of the source video while they are a text, and in xy units (see `coords`) from then on.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Bool, Float

from neural_fields import coords
from neural_fields.errors import UserError, bad_input

LAYER = "region"  # the name of its layer
SMALLEST = 8.0  # pixels of the source: a region needs something to be followed by
NUMBER = r"-?\d{1,6}(?:\.\d{1,6})?"
FORM = re.compile(rf"\s*(\d{{1,9}})\s*:\s*({NUMBER},{NUMBER}(?:\s+{NUMBER},{NUMBER})*)\s*")

Corners = Float[np.ndarray, "4 2"]


@dataclass(frozen=True)
class Region:
    """A convex quadrilateral on a frame of the source."""

    frame: int  # counted from 0 in the source
    corners: tuple[tuple[float, float], ...]  # four, in pixels of the source, in order around the region

    @property
    def text(self) -> str:
        """The region as `--roi` takes it, always in the same form."""
        return f"{self.frame}:" + " ".join(f"{x:g},{y:g}" for x, y in self.corners)


@dataclass(frozen=True)
class RegionTrack:
    """Where a region lies in every frame of a clip."""

    frame: int  # the frame of the clip that it was drawn on
    corners: Corners  # xy units of that frame
    transforms: Float[np.ndarray, "time 3 3"]  # xy of each frame to xy of that frame; the identity there

    def quad(self, t: int) -> Corners:
        """The corners in frame `t`, in xy units."""
        return carried(np.linalg.inv(self.transforms[t]), self.corners)


def parse_region(text: str, width: int, height: int, frames: Sequence[int]) -> Region:
    """The region that a `--roi` text names.

    Args:
        text: "K:x1,y1 x2,y2 x3,y3 x4,y4": a frame of the source, and pixels of it, in order around the region.
        width, height: of the source.
        frames: the frames of the source that are fitted.

    Raises:
        UserError: another form, a frame that is not fitted, corners outside the frame, the same twice, crossed, not
            convex, or a region too small to be followed.
    """
    example = _example(width, height, frames[len(frames) // 2])
    match = FORM.fullmatch(text)
    points = [tuple(map(float, pair.split(","))) for pair in match[2].split()] if match else []
    if match is None or len(points) != 4:
        raise _refused(text, "expected a frame, a colon, and the four corners x,y in pixels, parted by spaces", example)
    frame = int(match[1])
    if frame not in frames:
        raise _refused(
            text,
            f"frame {frame} is not fitted: the frames are {frames[0]} to {frames[-1]}",
            _text(min(frames, key=lambda k: abs(k - frame)), points),
        )
    _check_shape(text, frame, np.array(points), (width, height), example)
    return Region(frame, tuple((x, y) for x, y in points))


def _check_shape(text: str, frame: int, points: Corners, size: tuple[int, int], example: str) -> None:
    """Refuses what is no convex quadrilateral inside the frame."""
    inside = np.clip(points, 0, size)
    if (inside != points).any():
        x, y = points[(inside != points).any(1)][0]
        why = f"the corner {x:g},{y:g} lies outside the frame, which is {size[0]}x{size[1]} pixels"
        raise _refused(text, why, _text(frame, inside))
    turns = _turns(points)
    if not ((turns > 1e-6).all() or (turns < -1e-6).all()):
        around = points[np.argsort(np.arctan2(*(points - points.mean(0)).T[::-1]))]
        convex = (_turns(around) > 1e-6).all()
        why = "the corners must differ and follow each other around a convex region"
        raise _refused(text, why, _text(frame, around) if convex else example)
    heights = np.abs(turns) / np.linalg.norm(np.roll(points, -1, 0) - points, axis=1)
    if heights.min() < SMALLEST:
        why = f"the region is {heights.min():.1f} pixels wide at its thinnest; at least {SMALLEST:g} are needed"
        raise _refused(text, why, example)


def _turns(points: Corners) -> Float[np.ndarray, "4"]:
    """Twice the signed area of the corner after each side: of one sign around a convex quadrilateral."""
    side = np.roll(points, -1, 0) - points
    after = np.roll(side, -1, 0)
    return side[:, 0] * after[:, 1] - side[:, 1] * after[:, 0]


def _example(width: int, height: int, frame: int) -> str:
    """A region in the middle of a frame."""
    (x0, x1), (y0, y1) = ((round(side * 0.35), round(side * 0.65)) for side in (width, height))
    return _text(frame, [(x0, y0), (x1, y0), (x1, y1), (x0, y1)])


def _text(frame: int, points: object) -> str:
    return f"{frame}:" + " ".join(f"{x:g},{y:g}" for x, y in np.asarray(points, float))


def _refused(text: str, why: str, example: str) -> UserError:
    return bad_input(f'cannot take the region "{text}"', where="--roi", why=why, fix=f'--roi "{example}"')


def missing_region(width: int, height: int, frames: Sequence[int]) -> UserError:
    """What to say where a preset is of one region and none was given."""
    return bad_input(
        "this preset follows one region, and none was given",
        where="--roi",
        why="it needs four corners, in pixels, on one frame of the video",
        fix=f'--roi "{_example(width, height, frames[len(frames) // 2])}"',
    )


# --- on the plane ---------------------------------------------------------------------------------------------------


def corners_xy(region: Region, width: int, height: int, size: tuple[int, int]) -> Corners:
    """The corners in xy units of a fit at `size`, whose aspect may differ from that of the source."""
    points = torch.tensor(region.corners, dtype=torch.float64) * torch.tensor([size[0] / width, size[1] / height])
    return coords.normalise_pixels(points, *size).numpy()


def carried(matrix: Float[np.ndarray, "3 3"], points: Float[np.ndarray, "*n 2"]) -> Float[np.ndarray, "*n 2"]:
    """Points through a 3 x 3 transform."""
    moved = points @ matrix[:, :2].T + matrix[:, 2]
    return moved[..., :2] / moved[..., 2:]


def quad_area(corners: Corners, size: tuple[int, int]) -> float:
    """The area of a quadrilateral given in xy units, in pixels of a frame of `size`, also where it leaves the frame."""
    x, y = corners.T
    return float(abs((x * np.roll(y, -1) - y * np.roll(x, -1)).sum()) / 2 * (max(size) / 2) ** 2)


@lru_cache(maxsize=4)
def pixel_xy(width: int, height: int) -> Float[np.ndarray, "height width 2"]:
    """xy units of every pixel centre of a frame in double precision; kept, and not to be written to."""
    xy = coords.frame_xy(width, height).double().numpy()
    xy.flags.writeable = False
    return xy


def quad_mask(corners: Corners, size: tuple[int, int]) -> Bool[np.ndarray, "height width"]:
    """The pixels of a frame of `size` (width, height) whose centres lie in a quadrilateral given in xy units."""
    xy = pixel_xy(*size)
    sides = np.roll(corners, -1, 0) - corners
    turned = np.sign(_turns(corners).sum())
    inside = np.ones(xy.shape[:2], bool)
    for corner, (dx, dy) in zip(corners, sides, strict=True):
        inside &= turned * (dx * (xy[..., 1] - corner[1]) - dy * (xy[..., 0] - corner[0])) >= 0
    return inside
