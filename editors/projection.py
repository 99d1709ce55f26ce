"""A picture as one frame shows it, put on the canonical plane: where each texel lies in it, and what it covers there.

A texel takes the mean of what it covers of the picture: several lookups, in a copy of the picture that was halved until
neighbouring lookups leave nothing out, as in Williams, "Pyramidal Parametrics" (SIGGRAPH 1983).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Float

from editors.shape import LayerInFrame
from neural_fields import coords
from neural_fields.baking import Maps
from neural_fields.coords import Box
from neural_fields.inverse_map import solve_all
from neural_fields.lookup import RIM, enlarge, scattered
from neural_fields.pictures import premultiplied, straight
from neural_fields.planar.placement import project
from neural_fields.reshaping import LOST, SEEN

FINEST = 2.5  # doublings, at most, of one texel for a pixel of the frame
DOUBT = 1.03  # by which the texels for a pixel may be misjudged
LOOKED_AT = 24  # frames, at most, to find out how large they show a place
SHARPEN = 1 / 16  # a lookup between texels blurs them, its variance is 1/6 of a texel; this takes 2/16 of that back
FEWEST = 12  # pixels of a frame that tell how large it shows the place
MOST_TEXELS = 16_000_000
LONGEST = 16_000  # texels along a side
NODES = 250_000  # at most: places for which the map is inverted; between them it is linear
LATTICE = 33  # points along a side of the picture, to find the room that it takes
SAMPLES = 4  # lookups along each side of a texel
BAND = 256  # rows of texels that are worked on at a time

Quad = Float[np.ndarray, "4 2"]  # corners of a picture: top left, top right, bottom right, bottom left


@dataclass(frozen=True)
class Room:
    """The part of the plane that a picture takes.

    Attributes:
        box: in uv units.
        pixel: uv units along u and v that one pixel of the frame at the size of the fit goes across.
        size: (width, height) in texels.
        share: how many of the texels along a side that it should have; below one where there are too many.
    """

    box: Box
    pixel: tuple[float, float]
    size: tuple[int, int]
    share: float


def homography(size: tuple[int, int], quad: Quad) -> Float[np.ndarray, "3 3"]:
    """What takes positions in a picture of `size` (width, height) to a frame, its corners to those of `quad`."""
    width, height = size
    rows, values = [], []
    for (x, y), (u, v) in zip([(0, 0), (1, 0), (1, 1), (0, 1)], quad, strict=True):
        rows += [[x, y, 1, 0, 0, 0, -u * x, -u * y], [0, 0, 0, x, y, 1, -v * x, -v * y]]
        values += [u, v]
    unit = np.append(np.linalg.solve(np.array(rows, np.float64), np.array(values, np.float64)), 1).reshape(3, 3)
    return unit @ np.diag([1 / width, 1 / height, 1])


def room_for(maps: Maps, t: int, here: LayerInFrame, quad: Quad, limit: Box) -> Room | None:
    """The room on the plane for a picture whose corners lie at `quad` in frame `t`; None where there is none.

    Args:
        quad: in pixels of the fit.
        limit: the part of the plane that is the layer's in that frame.
    """
    side = np.linspace(0, 1, LATTICE)
    points = project(homography((1, 1), quad), np.stack(np.meshgrid(side, side), axis=-1).reshape(-1, 2))
    uv, slope = here.found.at(points), here.found.slope_at(points)
    pixel = np.median(np.linalg.norm(slope, axis=-1), axis=0).astype(np.float64)
    low = np.maximum(uv.min(axis=0) - 2 * pixel, [limit.u0, limit.v0])
    high = np.minimum(uv.max(axis=0) + 2 * pixel, [limit.u1, limit.v1])
    if (high - low < 2 * pixel).any():
        return None
    box = Box(*(float(value) for value in (*low, *high)))
    source_pixel = np.median(np.linalg.norm(slope * here.scale, axis=-1), axis=0)
    wanted = (high - low) / source_pixel * _fineness(maps, t, here, box)
    share = min(1.0, (MOST_TEXELS / wanted.prod()) ** 0.5, LONGEST / wanted.max())
    width, height = (max(3, round(float(side))) for side in share * wanted)
    return Room(box, (float(pixel[0]), float(pixel[1])), (width, height), share)


def _fineness(maps: Maps, t: int, here: LayerInFrame, box: Box) -> float:
    """How many texels of a box to have for a pixel of frame `t`, along a side.

    Rendering halves an overlay until a pixel is nearest to one texel wide; with 1.4 of them it is seen sharp, with 0.7
    blurred. So there are as many as leave the frames, which show the place larger and smaller, least blurred.
    """
    layer, every = maps.layers.index(here.layer), max(1, maps.frame_count // LOOKED_AT)
    own = _step(maps, t, box, layer)
    steps = [_step(maps, other, box, layer) for other in range(0, maps.frame_count, every)]
    larger = np.array([own / step for step in [own, *steps] if own and step] or [1.0])
    choices = 2 ** np.arange(0, FINEST, 1 / 16)
    blur = np.stack([_blur(choices * side, larger) for side in (1 / DOUBT, DOUBT)]).max(axis=0)
    return float(choices[blur <= 1.05 * blur.min()][0])


def _blur(fineness: Float[np.ndarray, " n"], larger: Float[np.ndarray, " frames"]) -> Float[np.ndarray, " n"]:
    """How large texels are, squared and in pixels, when they are looked up; the mean of frames.

    Args:
        fineness: texels for a pixel of one frame.
        larger: how much larger than that one each frame shows them.
    """
    texels = fineness[:, None] / larger
    halvings = np.maximum(0, np.rint(np.log2(texels)))  # as `rendering` has it
    return ((2**halvings / texels) ** 2).mean(axis=1)


def places_of(here: LayerInFrame, room: Room) -> Float[np.ndarray, "height width 3"]:
    """Where each texel lies in the frame, in pixels of the fit (x, y), and one where that is known, else zero."""
    sides = np.array([room.box.width, room.box.height]) / room.pixel
    columns, rows = (max(2, int(n)) for n in np.ceil(sides * min(1.0, (NODES / sides.prod()) ** 0.5)))
    box, rim = room.box, (RIM * room.box.width / columns, RIM * room.box.height / rows)
    around = Box(box.u0 - rim[0], box.v0 - rim[1], box.u1 + rim[0], box.v1 + rim[1])
    uv = coords.texel_centres(around, columns + 2 * RIM, rows + 2 * RIM).double().numpy()
    pixels, error = solve_all(here.found, uv.reshape(-1, 2), here.seen)
    nodes = np.column_stack([pixels, error < LOST]).reshape(*uv.shape[:2], 3)
    return enlarge(nodes.astype(np.float32), (columns, rows), room.size)


def drawn(
    rgba: Float[np.ndarray, "h w 4"], quad: Quad, places: Float[np.ndarray, "height width 3"]
) -> Float[np.ndarray, "height width 4"]:
    """A picture (straight RGBA) with its corners at `quad`, as texels at some places of the frame show it."""
    levels = _halved(premultiplied(rgba))
    back = np.linalg.inv(homography((rgba.shape[1], rgba.shape[0]), quad))
    result = np.zeros((*places.shape[:2], 4), np.float32)
    for rows, part, slope in _bands(places):
        cover = _cover(quad, part[..., :2], slope) * (part[..., 2] > 1 - 1e-3)
        here = cover > 0
        result[rows][here] = _seen(levels, back, part[here][:, :2], slope[here]) * cover[here][:, None]
    kernel = np.array([[0, -1, 0], [-1, 4, -1], [0, -1, 0]]) * SHARPEN
    kernel[1, 1] += 1
    return straight(cv2.filter2D(result, -1, kernel))


def _step(maps: Maps, t: int, box: Box, layer: int) -> float:
    """How far neighbouring pixels are apart on a part of the plane that frame `t` shows; 0 if it does not show it."""
    uv, weight = maps.uv_small(t, layer), maps.layer_weight_small(t, layer)
    u, v = uv[..., 0], uv[..., 1]
    inside = (weight >= SEEN) & (u > box.u0) & (u < box.u1) & (v > box.v0) & (v < box.v1)
    if inside.sum() < FEWEST:
        return 0.0
    here = inside[:, 1:]
    return float(np.median(np.linalg.norm(uv[:, 1:][here] - uv[:, :-1][here], axis=-1)))


def _halved(image: Float[np.ndarray, "h w 4"]) -> list[np.ndarray]:
    """A picture and copies of it, each half as large as the one before."""
    levels = [image]
    while max(levels[-1].shape[:2]) > 1:
        height, width = levels[-1].shape[:2]
        levels.append(cv2.resize(levels[-1], ((width + 1) // 2, (height + 1) // 2), interpolation=cv2.INTER_AREA))
    return levels


def _bands(
    places: Float[np.ndarray, "height width 3"],
) -> Iterator[tuple[slice, Float[np.ndarray, "rows width 3"], Float[np.ndarray, "rows width 2 2"]]]:
    """Rows of texels: which, their places, and how these change by a texel to the right and one down (last axis)."""
    height = len(places)
    for first in range(0, height, BAND):
        last = min(height, first + BAND)
        start, stop = max(0, first - 1), min(height, last + 1)
        down, right = np.gradient(places[start:stop, :, :2], axis=(0, 1))
        slope = np.stack([right, down], axis=-1)[first - start : last - start]
        yield slice(first, last), places[first:last], slope


def _cover(
    quad: Quad, points: Float[np.ndarray, "rows width 2"], slope: Float[np.ndarray, "rows width 2 2"]
) -> Float[np.ndarray, "rows width"]:
    """How much of each texel lies inside the corners: a ramp as wide as a texel across each side."""
    cover = np.ones(points.shape[:2], np.float32)
    for corner, after in zip(quad, np.roll(quad, -1, axis=0), strict=True):
        along = (after - corner) / np.linalg.norm(after - corner)
        inward = np.array([-along[1], along[0]], np.float32)  # corners run clockwise, y is down
        distance = (points - corner.astype(np.float32)) @ inward
        texel = np.linalg.norm(np.einsum("i,...ij->...j", inward, slope), axis=-1)
        cover *= np.clip(0.5 + distance / np.maximum(texel, 1e-6), 0, 1)
    return cover


def _seen(
    levels: list[np.ndarray],
    back: Float[np.ndarray, "3 3"],
    points: Float[np.ndarray, "n 2"],
    slope: Float[np.ndarray, "n 2 2"],
) -> Float[np.ndarray, "n 4"]:
    """The mean of what texels cover of a picture, premultiplied.

    Args:
        levels: the picture and its halved copies.
        back: from the frame to positions in the picture.
        points: places of texels in the frame; slope: how they change by a texel to the right and one down.
    """
    size = np.array(levels[0].shape[1::-1])
    points = points.astype(np.float64)
    there, depth = project(back, points), points @ back[2, :2] + back[2, 2]
    change = (back[:2, :2] - there[:, :, None] * back[2, :2]) / depth[:, None, None] @ slope
    # The larger singular value of a matrix of two rows, by the squares of its entries and its determinant.
    half, area = (change**2).sum(axis=(1, 2)) / 2, np.linalg.det(change)
    largest = np.sqrt(half + np.sqrt(np.maximum(0, half**2 - area**2)))
    level = np.ceil(np.log2(np.maximum(largest / SAMPLES, 1e-9))).clip(0, len(levels) - 1).astype(int)
    result = np.zeros((len(points), 4), np.float32)
    offsets = (np.arange(SAMPLES) + 0.5) / SAMPLES - 0.5
    for number in np.unique(level):
        chosen, image = level == number, levels[number]
        scale = np.array(image.shape[1::-1]) / size
        at, by = there[chosen] * scale - 0.5, change[chosen] * scale[:, None]
        total = np.zeros((len(at), 4), np.float32)
        for right in offsets:
            for down in offsets:
                x, y = (at + by[..., 0] * right + by[..., 1] * down).T.astype(np.float32)
                total += scattered(image, np.ascontiguousarray(x), np.ascontiguousarray(y))
        result[chosen] = total / SAMPLES**2
    return result
