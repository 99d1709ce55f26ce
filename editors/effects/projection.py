"""Draws a picture onto the canonical plane, so that one frame shows it at given corners.

Each texel is located in the frame and takes the mean of the part of the picture that it covers: several samples, in a
copy of the picture that was halved until neighboring samples leave no gap, as in Williams, "Pyramidal Parametrics"
(SIGGRAPH 1983).
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Float

from editors.effects.shape import LayerInFrame
from neural_fields.atlas.inverse_uv import solve_positions
from neural_fields.atlas.uv_extrapolation import DEFAULTS as EXTRAPOLATION
from neural_fields.atlas.uv_maps import Maps
from neural_fields.core import array_coords
from neural_fields.core.box import Box
from neural_fields.imaging.alpha import premultiply, unpremultiply
from neural_fields.imaging.resampling import RIM, enlarge_map, sample_bilinear
from neural_fields.planar.init.frame_registration import apply_transform


@dataclass(frozen=True)
class ProjectionSettings:
    """Settings of how fine the texels of a drawn picture are, and how they are sampled."""

    max_doublings: float = 2.5  # largest resolution: doublings of one texel per pixel of the frame
    scale_doubt: float = 1.03  # factor by which the texels for a pixel may be misjudged
    max_scale_frames: int = 24  # largest number of frames from which the scale is measured
    max_texels: int = 16_000_000
    max_side_texels: int = 16_000
    max_nodes: int = 250_000  # largest number of positions for which the map is inverted; linear in between
    outline_points: int = 33  # points along a side of the picture, to find the area that it covers
    samples_per_side: int = 4  # samples along a side of a texel
    # A sample between texels blurs them, its variance is 1/6 of a texel; this takes 2/16 of that back.
    sharpening: float = 1 / 16


DEFAULTS = ProjectionSettings()

Quad = Float[np.ndarray, "4 2"]  # corners of a picture: top left, top right, bottom right, bottom left


@dataclass(frozen=True)
class PlacementArea:
    """Describes the part of the canonical plane that a picture covers.

    Attributes:
        box: bounds of the part, in uv units.
        pixel_size: uv units along u and v that one pixel of the frame at the training size spans.
        size: (width, height) in texels.
        resolution_share: texels along a side as a share of the ideal number; below 1 if that would be too many.
    """

    box: Box
    pixel_size: tuple[float, float]
    size: tuple[int, int]
    resolution_share: float


def compute_homography(size: tuple[int, int], quad: Quad) -> Float[np.ndarray, "3 3"]:
    """Computes the homography that maps the corners of a picture to the corners of a quad in a frame.

    Args:
        size: (width, height) of the picture in pixels.
        quad: the four corners (x, y) in the frame, top left first, clockwise, in pixels.

    Returns:
        A matrix that maps homogeneous pixel positions (x, y, 1) of the picture to those of the frame.

    Example:
        >>> quad = np.array([[10.0, 20.0], [30.0, 20.0], [30.0, 30.0], [10.0, 30.0]])
        >>> (compute_homography((2, 1), quad) @ [1, 0.5, 1]).round(6).tolist()
        [20.0, 25.0, 1.0]
    """
    width, height = size
    rows, values = [], []
    for (x, y), (u, v) in zip([(0, 0), (1, 0), (1, 1), (0, 1)], quad, strict=True):
        rows += [[x, y, 1, 0, 0, 0, -u * x, -u * y], [0, 0, 0, x, y, 1, -v * x, -v * y]]
        values += [u, v]
    unit = np.append(np.linalg.solve(np.array(rows, np.float64), np.array(values, np.float64)), 1).reshape(3, 3)
    return unit @ np.diag([1 / width, 1 / height, 1])


def find_placement_area(
    maps: Maps, t: int, here: LayerInFrame, quad: Quad, limit: Box, settings: ProjectionSettings = DEFAULTS
) -> PlacementArea | None:
    """Finds the area of the plane for a picture whose corners lie at `quad` in frame `t`.

    Args:
        maps: the baked maps of the run.
        t: index of the frame in the run.
        here: the layer in that frame.
        quad: the corners (x, y) in pixels at the training size.
        limit: the part of the plane that belongs to the layer in that frame.
        settings: resolution of the texels.

    Returns:
        The area; None if the picture does not touch the layer.
    """
    side = np.linspace(0, 1, settings.outline_points)
    points = apply_transform(
        compute_homography((1, 1), quad), np.stack(np.meshgrid(side, side), axis=-1).reshape(-1, 2)
    )
    uv, slope = here.uv_map.sample_uv(points), here.uv_map.sample_jacobian(points)
    pixel = np.median(np.linalg.norm(slope, axis=-1), axis=0).astype(np.float64)
    low = np.maximum(uv.min(axis=0) - 2 * pixel, [limit.u0, limit.v0])
    high = np.minimum(uv.max(axis=0) + 2 * pixel, [limit.u1, limit.v1])
    if (high - low < 2 * pixel).any():
        return None
    box = Box(*(float(value) for value in (*low, *high)))
    source_pixel = np.median(np.linalg.norm(slope * here.scale, axis=-1), axis=0)

    # How many texels to have for a pixel of the frame, along a side. Rendering halves an overlay until a pixel is
    # nearest to one texel wide; with 1.4 of them it looks sharp, with 0.7 blurred. So the number is chosen that leaves
    # the frames, which show the place larger and smaller, least blurred.
    layer, every = maps.layers.index(here.layer), max(1, maps.frame_count // settings.max_scale_frames)
    own = _measure_pixel_step(maps, t, box, layer)
    steps = [_measure_pixel_step(maps, other, box, layer) for other in range(0, maps.frame_count, every)]
    larger = np.array([own / step for step in [own, *steps] if own and step] or [1.0])
    choices = 2 ** np.arange(0, settings.max_doublings, 1 / 16)
    # The size of texels, squared and in pixels, when they are sampled: the mean of frames, the worse of two guesses.
    blurs = []
    for doubt in (1 / settings.scale_doubt, settings.scale_doubt):
        texels = (choices * doubt)[:, None] / larger
        halvings = np.maximum(0, np.rint(np.log2(texels)))  # as `rendering` has it
        blurs.append(((2**halvings / texels) ** 2).mean(axis=1))
    blur = np.stack(blurs).max(axis=0)
    fineness = float(choices[blur <= 1.05 * blur.min()][0])

    wanted = (high - low) / source_pixel * fineness
    share = min(1.0, (settings.max_texels / wanted.prod()) ** 0.5, settings.max_side_texels / wanted.max())
    width, height = (max(3, round(float(side))) for side in share * wanted)
    return PlacementArea(box, (float(pixel[0]), float(pixel[1])), (width, height), share)


def _measure_pixel_step(maps: Maps, t: int, box: Box, layer: int) -> float:
    """Measures the uv distance of neighboring pixels of frame `t` in a box; returns 0 if the frame does not show it."""
    uv, weight = maps.read_uv_small(t, layer), maps.read_layer_weight_small(t, layer)
    u, v = uv[..., 0], uv[..., 1]
    inside = (weight >= EXTRAPOLATION.min_map_weight) & (u > box.u0) & (u < box.u1) & (v > box.v0) & (v < box.v1)
    here = inside[:, 1:]
    if not here.any():
        return 0.0
    return float(np.median(np.linalg.norm(uv[:, 1:][here] - uv[:, :-1][here], axis=-1)))


def find_texel_positions(
    here: LayerInFrame, area: PlacementArea, settings: ProjectionSettings = DEFAULTS
) -> Float[np.ndarray, "height width 3"]:
    """Computes the position of each texel in the frame.

    Args:
        here: the layer in the frame.
        area: the part of the canonical plane whose texels are located.
        settings: largest number of positions that are solved exactly; between them the map is interpolated.

    Returns:
        x and y in pixels at the training size, and 1 where they are known, else 0.
    """
    sides = np.array([area.box.width, area.box.height]) / area.pixel_size
    columns, rows = (max(2, int(n)) for n in np.ceil(sides * min(1.0, (settings.max_nodes / sides.prod()) ** 0.5)))
    box, rim = area.box, (RIM * area.box.width / columns, RIM * area.box.height / rows)
    around = Box(box.u0 - rim[0], box.v0 - rim[1], box.u1 + rim[0], box.v1 + rim[1])
    uv = array_coords.texel_centers(around, columns + 2 * RIM, rows + 2 * RIM).astype(np.float64)
    pixels, error = solve_positions(here.uv_map, uv.reshape(-1, 2), here.visible_mask)
    nodes = np.column_stack([pixels, error < EXTRAPOLATION.max_error_px]).reshape(*uv.shape[:2], 3)
    return enlarge_map(nodes.astype(np.float32), (columns, rows), area.size)


def draw_picture(
    rgba: Float[np.ndarray, "h w 4"],
    quad: Quad,
    positions: Float[np.ndarray, "height width 3"],
    settings: ProjectionSettings = DEFAULTS,
) -> Float[np.ndarray, "height width 4"]:
    """Draws a picture with its corners at `quad` into texels with known positions in the frame.

    Args:
        rgba: the picture, straight RGBA in [0, 1].
        quad: the corners (x, y) in pixels of the frame.
        positions: positions of the texels in the frame, as `find_texel_positions` returns them.
        settings: sampling of the texels.

    Returns:
        Straight RGBA of the texels, in [0, 1].
    """
    levels = [premultiply(rgba)]
    while max(levels[-1].shape[:2]) > 1:
        height, width = levels[-1].shape[:2]
        levels.append(cv2.resize(levels[-1], ((width + 1) // 2, (height + 1) // 2), interpolation=cv2.INTER_AREA))
    back = np.linalg.inv(compute_homography((rgba.shape[1], rgba.shape[0]), quad))
    result = np.zeros((*positions.shape[:2], 4), np.float32)
    rows_at_a_time = 256  # bounds the memory
    for first in range(0, len(positions), rows_at_a_time):
        last = min(len(positions), first + rows_at_a_time)
        points, known = positions[first:last, :, :2], positions[first:last, :, 2] > 1 - 1e-3

        # How positions change by a texel to the right and one down (last axis).
        start, stop = max(0, first - 1), min(len(positions), last + 1)
        down, right = np.gradient(positions[start:stop, :, :2], axis=(0, 1))
        slope = np.stack([right, down], axis=-1)[first - start : last - start]

        # How much of each texel lies inside the corners: a ramp as wide as a texel across each side.
        cover = np.ones(points.shape[:2], np.float32)
        for corner, after in zip(quad, np.roll(quad, -1, axis=0), strict=True):
            along = (after - corner) / np.linalg.norm(after - corner)
            inward = np.array([-along[1], along[0]], np.float32)  # corners run clockwise, y is down
            distance = (points - corner.astype(np.float32)) @ inward
            texel = np.linalg.norm(np.einsum("i,...ij->...j", inward, slope), axis=-1)
            cover *= np.clip(0.5 + distance / np.maximum(texel, 1e-6), 0, 1)
        cover = cover * known

        here = cover > 0
        means = _average_footprints(levels, back, points[here], slope[here], settings.samples_per_side)
        result[first:last][here] = means * cover[here][:, None]
    kernel = np.array([[0, -1, 0], [-1, 4, -1], [0, -1, 0]]) * settings.sharpening
    kernel[1, 1] += 1
    return unpremultiply(cv2.filter2D(result, -1, kernel))


def _average_footprints(
    levels: list[np.ndarray],
    back: Float[np.ndarray, "3 3"],
    points: Float[np.ndarray, "n 2"],
    slope: Float[np.ndarray, "n 2 2"],
    samples_per_side: int,
) -> Float[np.ndarray, "n 4"]:
    """Computes the mean of the part of a picture that each texel covers, premultiplied.

    Args:
        levels: the picture and its halved copies.
        back: homography from the frame to the picture.
        points: positions of texels in the frame.
        slope: change of these positions from one texel to the next, to the right and down.
        samples_per_side: number of samples along a side of a texel.
    """
    size = np.array(levels[0].shape[1::-1])
    points = points.astype(np.float64)
    there, depth = apply_transform(back, points), points @ back[2, :2] + back[2, 2]
    change = (back[:2, :2] - there[:, :, None] * back[2, :2]) / depth[:, None, None] @ slope
    # The larger singular value of a matrix of two rows, by the squares of its entries and its determinant.
    half, area = (change**2).sum(axis=(1, 2)) / 2, np.linalg.det(change)
    largest = np.sqrt(half + np.sqrt(np.maximum(0, half**2 - area**2)))
    level = np.ceil(np.log2(np.maximum(largest / samples_per_side, 1e-9))).clip(0, len(levels) - 1).astype(int)
    result = np.zeros((len(points), 4), np.float32)
    offsets = (np.arange(samples_per_side) + 0.5) / samples_per_side - 0.5
    for number in np.unique(level):
        chosen, image = level == number, levels[number]
        scale = np.array(image.shape[1::-1]) / size
        at, by = there[chosen] * scale - 0.5, change[chosen] * scale[:, None]
        total = np.zeros((len(at), 4), np.float32)
        for right in offsets:
            for down in offsets:
                x, y = (at + by[..., 0] * right + by[..., 1] * down).T.astype(np.float32)
                total += sample_bilinear(image, np.ascontiguousarray(x), np.ascontiguousarray(y))
        result[chosen] = total / samples_per_side**2
    return result
