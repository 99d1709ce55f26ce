"""Canonical pictures at the source's size: detail from the source's own pixels, light and color from the fit.

The texture of a fit has the resolution of the fit, and is the mean of what many frames show. The source is often
larger, and a single sharp frame shows more than a mean. So each part of a canonical picture takes its detail from one
frame that shows it well: sharp, not hidden, and as the other frames show it. All that is coarser than a few texels of
the fit stays the fit's, which evens the light; finer bands are blended the more narrowly the finer they are (Burt and
Adelson, "A Multiresolution Spline With Application to Image Mosaics", 1983).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from neural_fields.atlas.canonical import CanonicalImage, find_texel_positions
from neural_fields.atlas.uv_maps import Maps
from neural_fields.core.box import Box
from neural_fields.core.prefetch import map_in_threads
from neural_fields.core.progress import Progress, ProgressReporter, report_nothing
from neural_fields.imaging.push_pull import pull_push
from neural_fields.imaging.resampling import RIM, copy_first_channels, warp_part
from neural_fields.imaging.tiles import Part, bounding_part, to_global_range, to_local_range

Image = Float[np.ndarray, "rows columns 3"]
Plane = Float[np.ndarray, "rows columns"]
Frames = Mapping[int, UInt8[np.ndarray, "rows columns 3"]]


@dataclass(frozen=True)
class DetailSettings:
    """Settings of the choice of frames, and of their blending. A cell is a square of texels of the fit."""

    cell_texels: int = 4  # side of a cell
    most_frames: int = 32  # frames that are looked at, evenly spread over the clip
    most_bytes: int = 400 << 20  # of those that are kept in memory
    most_texels: int = 16_000_000  # of a result
    min_weight: float = 0.97  # a pixel with less of a layer is a mixture, and no source of detail
    margin_cells: int = 4  # around the cells that a frame shows, up to which they are looked for
    newton_steps: int = 8  # steps of the search for cells in frames
    max_error_cells: float = 0.005  # a cell that was not found more closely is not taken
    # A frame whose color, blurred over some pixels of the fit, differs from the fit by so much counts half, ...
    usual_difference: float = 4 / 255
    difference_px: float = 2.0
    most_difference: float = 12 / 255  # ... and by more than this not at all.
    most_steepness: float = 1.5  # gradients count up to so many times their median over the frames
    coherence_cells: float = 2.0  # blur of the score of a frame: neighbors come from the same one, ...
    least_gain: float = 1.25  # ... and from few: another must be better by this factor
    least_share: float = 0.005  # of all scores that another frame must gain
    tile_cells: int = 64  # side of the squares that are blended one after the other
    # Detail is what is finer than this; its finest part is blended over `narrow_texels`.
    detail_texels: float = 2.0
    narrow_texels: float = 0.5


DEFAULTS = DetailSettings()


@dataclass(frozen=True)
class FoundCells:
    """Holds where a frame shows the cells of a canonical picture.

    Attributes:
        place: column and row in the maps of the frame, in pixels; 0 is the center of the first one. They continue
            smoothly beyond what the frame shows.
        seen: where the frame shows the layer alone.
        pixels: pixels of the maps for each cell, along one axis.
    """

    place: Float[np.ndarray, "height width 2"]
    seen: Bool[np.ndarray, "height width"]
    pixels: Float[np.ndarray, "height width"]


def choose_detail_frames(frame_count: int, size: tuple[int, int], settings: DetailSettings = DEFAULTS) -> range:
    """Chooses the frames of a run that detail may come from: as many as memory has room for, evenly spread.

    Args:
        frame_count: number of frames of the run.
        size: (width, height) of the source in pixels.
        settings: number of frames and memory.

    Example:
        >>> list(choose_detail_frames(8, (1920, 1080), DetailSettings(most_frames=3)))
        [1, 4, 7]
    """
    most = min(settings.most_frames, max(2, settings.most_bytes // (3 * size[0] * size[1])))
    step = -(-frame_count // most)
    return range((step - 1) // 2, frame_count, step)


def compute_detail_size(
    texels: tuple[int, int], trained: tuple[int, int], wanted: tuple[int, int], settings: DetailSettings = DEFAULTS
) -> tuple[int, int]:
    """Computes the size of a canonical picture for frames of another size than that of the training.

    Args:
        texels: (width, height) of the picture of the training.
        trained: (width, height) of frames in the training.
        wanted: (width, height) of frames.
        settings: the most texels.

    Returns:
        (width, height), at least that of the picture of the training.

    Example:
        >>> compute_detail_size((500, 300), (427, 240), (1920, 1080))
        (2250, 1350)
    """
    most = math.sqrt(settings.most_texels / (texels[0] * texels[1]))
    scale = max(1.0, min(wanted[1] / trained[1], most))
    return round(texels[0] * scale), round(texels[1] * scale)


def sharpen_canonical(
    image: CanonicalImage,
    maps: Maps,
    frames: Frames,
    size: tuple[int, int],
    report: ProgressReporter = report_nothing,
    settings: DetailSettings = DEFAULTS,
) -> CanonicalImage:
    """Gives a canonical picture another size and the detail of the source.

    Args:
        image: the picture at the size of the fit.
        maps: the baked maps of the run.
        frames: frames of the source, by their number in the run.
        size: (width, height) of the result in texels, at least that of the picture.
        report: called after each frame, as the stage "baking".
        settings: choice and blending of frames.

    Returns:
        The picture, of the same box.
    """
    layer = maps.layers.index(image.layer)
    base = cv2.resize(image.rgba, size, interpolation=cv2.INTER_CUBIC).clip(0, 1)
    numbers = [t for t in frames if (maps.read_layer_weight_small(t, layer) >= settings.min_weight).any()]
    grid = (-(-image.size[0] // settings.cell_texels), -(-image.size[1] // settings.cell_texels))

    def look(t: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        found = find_cells(maps, t, layer, image.box, grid, settings)
        return found.place, *measure_cells(maps, t, layer, image, frames[t], found, settings)

    looks = []
    for done, found in enumerate(map_in_threads(look, numbers), start=1):
        looks.append(found)
        report(Progress("baking", done, 2 * len(numbers)))
    if not numbers:
        return CanonicalImage(base, image.box, image.layer)
    sources = choose_sources(np.stack([one[1] for one in looks]), np.stack([one[2] for one in looks]), settings)
    places = {t: one[0] for t, one in zip(numbers, looks, strict=True)}
    rgb = np.ascontiguousarray(base[..., :3])
    base[..., :3] = blend_details(rgb, maps, layer, frames, places, sources, report, settings)
    return CanonicalImage(base, image.box, image.layer)


def find_cells(
    maps: Maps,
    t: int,
    layer: int,
    box: Box,
    grid: tuple[int, int],
    settings: DetailSettings = DEFAULTS,
) -> FoundCells:
    """Finds where a frame shows the cells of a canonical picture, by Newton's method on the map of the frame.

    Args:
        maps: the baked maps of the run.
        t: number of the frame in the run.
        layer: number of the layer.
        box: that the picture covers, in uv units.
        grid: (columns, rows) of cells.
        settings: steps, and what counts as found.
    """
    (columns, rows), (width, height) = maps.size, grid
    cells = find_texel_positions(maps.read_uv_small(t, layer), box, grid)
    weight = maps.read_layer_weight_small(t, layer)

    # Each pixel says of the cell that it is in where it is; gaps between them are filled.
    every = (slice(None, None, 2),) * 2
    column, row = (np.rint(plane[every]).astype(np.int32) for plane in cv2.split(cells))
    y, x = np.nonzero((column >= 0) & (row >= 0) & (column < width) & (row < height) & (weight[every] > 0.5))
    column, row = column[y, x], row[y, x]
    found = FoundCells(
        np.zeros((height, width, 2), np.float32), np.zeros((height, width), bool), np.ones((height, width), np.float32)
    )
    if not len(x):
        return found
    left, top = max(0, int(column.min()) - settings.margin_cells), max(0, int(row.min()) - settings.margin_cells)
    part = (
        slice(top, min(height, int(row.max()) + 1 + settings.margin_cells)),
        slice(left, min(width, int(column.max()) + 1 + settings.margin_cells)),
    )
    shape = part[0].stop - top, part[1].stop - left
    spots = (row - top) * shape[1] + column - left
    counts = np.bincount(spots, minlength=shape[0] * shape[1]).reshape(shape)
    sums = [np.bincount(spots, 2.0 * values, shape[0] * shape[1]).reshape(shape) for values in (x, y)]
    hit = counts > 0
    place = pull_push(cv2.merge([(total / np.maximum(counts, 1)).astype(np.float32) for total in sums]), hit)

    # Newton's method, with differences of the map as its derivatives.
    right, down = (cv2.Sobel(cells, cv2.CV_32F, *axis, ksize=1, scale=0.5) for axis in ((1, 0), (0, 1)))
    slopes = cv2.merge([*cv2.split(right), *cv2.split(down)])
    x, y = cv2.split(place)
    target_x, target_y = (
        plane.astype(np.float32) for plane in np.meshgrid(*(np.arange(p.start, p.stop) for p in part[::-1]))
    )
    for step in range(settings.newton_steps + 1):
        here_x, here_y = cv2.split(_sample(cells, cv2.merge([x, y])))
        off_x, off_y = target_x - here_x, target_y - here_y
        if step == settings.newton_steps:
            break
        right_x, right_y, down_x, down_y = cv2.split(_sample(slopes, cv2.merge([x, y])))
        area = right_x * down_y - right_y * down_x
        area[np.abs(area) < 1e-6] = np.inf
        x += ((down_y * off_x - down_x * off_y) / area).clip(-8, 8)
        y += ((right_x * off_y - right_y * off_x) / area).clip(-8, 8)
        np.clip(x, -2, columns + 1, out=x)
        np.clip(y, -2, rows + 1, out=y)
    found.place[part] = place = cv2.merge([x, y])
    seen = (x >= 0) & (y >= 0) & (x <= columns - 1) & (y <= rows - 1)
    seen &= np.maximum(np.abs(off_x), np.abs(off_y)) < settings.max_error_cells
    seen &= _sample(weight, place) >= settings.min_weight
    found.seen[part] = seen & (cv2.dilate(hit.astype(np.uint8), np.ones((3, 3), np.uint8)) > 0)
    found.pixels[part] = np.sqrt(1 / np.maximum(np.abs(area), 1e-3))
    return found


def measure_cells(
    maps: Maps,
    t: int,
    layer: int,
    image: CanonicalImage,
    frame: UInt8[np.ndarray, "rows columns 3"],
    found: FoundCells,
    settings: DetailSettings = DEFAULTS,
) -> tuple[Float[np.ndarray, "height width"], Float[np.ndarray, "height width"]]:
    """Measures how steep the gradients of a frame are in each cell, and how far its colors are from those of the fit.

    Args:
        maps: the baked maps of the run.
        t: number of the frame in the run.
        layer: number of the layer.
        image: its picture, at the size of the fit.
        frame: the frame of the source.
        found: where the frame shows the cells.
        settings: the blur of colors.

    Returns:
        Gradients for each texel, and differences, 0 to 1; both not a number where the frame does not show the cell.
    """
    gray = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)
    steep = cv2.magnitude(cv2.Sobel(gray, cv2.CV_32F, 1, 0), cv2.Sobel(gray, cv2.CV_32F, 0, 1))
    steep = cv2.resize(steep, maps.size, interpolation=cv2.INTER_AREA)
    small = cv2.resize(frame, maps.size, interpolation=cv2.INTER_AREA).astype(np.float32) / 255
    at = find_texel_positions(maps.read_uv_small(t, layer), image.box, image.size)
    off = small - _sample(image.rgba, at)[..., :3] * maps.read_gain(t, layer, maps.size)
    red, green, blue = cv2.split(np.abs(cv2.GaussianBlur(off, (0, 0), settings.difference_px)))
    off = cv2.max(cv2.max(red, green), blue)
    off = cv2.dilate(off, np.ones((3, 3), np.uint8))
    values = _sample(cv2.merge([steep, off, steep, off]), found.place)
    unseen = ~found.seen
    steep, off = values[..., 0] * found.pixels, values[..., 1].copy()
    steep[unseen] = off[unseen] = np.nan
    return steep.astype(np.float16), off.astype(np.float16)


def choose_sources(
    steep: Float[np.ndarray, "frames height width"],
    off: Float[np.ndarray, "frames height width"],
    settings: DetailSettings = DEFAULTS,
) -> Int[np.ndarray, "height width"]:
    """Chooses for each cell the frame that its detail comes from.

    Args:
        steep: gradients; not a number where a frame does not show a cell.
        off: differences from the fit.
        settings: what makes a frame a good source.

    Returns:
        Numbers of frames, counted in the first axis; -1 where no frame is a good source.
    """
    height, width = steep.shape[1:]
    shown, usual = np.isfinite(steep).any(axis=0), np.zeros((height, width), np.float32)
    usual[shown] = np.nanmedian(steep[:, shown], axis=0)
    sources, best = np.full((height, width), -1), np.zeros((height, width), np.float32)
    scores = np.zeros(steep.shape, np.float32)
    for number in range(len(steep)):
        far = off[number].astype(np.float32)
        known = np.isfinite(far) & (far < settings.most_difference)
        score = np.minimum(steep[number].astype(np.float32), settings.most_steepness * usual) + 0.1
        score = np.where(known, score / (1 + (far / settings.usual_difference) ** 2), 0)
        sums, shares = (
            cv2.GaussianBlur(values, (0, 0), settings.coherence_cells) for values in (score, known.astype(np.float32))
        )
        scores[number] = sums / np.maximum(shares, 1e-3) * known
    # One frame after the other is taken, the one that gains most, until that is little.
    for _ in range(len(scores)):
        better = scores > settings.least_gain * best
        gains = np.where(better, scores - best, 0).sum(axis=(1, 2))
        number = int(gains.argmax())
        if gains[number] <= settings.least_share * best.sum():
            break
        here = better[number]
        sources[here], best[here] = number, scores[number][here]
    # What is alone among others becomes one of them.
    shares = [
        cv2.GaussianBlur((sources == n).astype(np.float32), (0, 0), settings.coherence_cells)
        for n in range(len(scores))
    ]
    return np.where(sources >= 0, (np.stack(shares) * (scores > 0)).argmax(axis=0), -1)


def blend_details(
    base: Float[np.ndarray, "tall wide 3"],
    maps: Maps,
    layer: int,
    frames: Frames,
    places: Mapping[int, Float[np.ndarray, "height width 2"]],
    sources: Int[np.ndarray, "height width"],
    report: ProgressReporter = report_nothing,
    settings: DetailSettings = DEFAULTS,
) -> Float[np.ndarray, "tall wide 3"]:
    """Puts the detail of frames into an enlarged canonical picture.

    Args:
        base: the enlarged picture.
        maps: the baked maps of the run.
        layer: number of the layer.
        frames: frames of the source.
        places: where those that were looked at show the cells, by their number.
        sources: of each cell the one of them that its detail comes from, by its place among them; -1 for none.
        report: called after each frame, as the stage "baking".
        settings: widths of the bands.

    Returns:
        RGB in [0, 1].
    """
    (height, width), (tall, wide) = sources.shape, base.shape[:2]
    across, along = wide / width, tall / height  # texels of the result for each cell, ...
    texel = across / settings.cell_texels  # ... and for each texel of the fit
    narrow, wider = max(0.8, settings.narrow_texels * texel), settings.detail_texels * texel / 2
    margin = int(np.ceil(3 * settings.detail_texels / settings.cell_texels)) + 1
    used = [int(number) for number in np.unique(sources) if number >= 0]

    numbers, lights = list(places), {}
    for number in used:
        gain, weight = (read(numbers[number], layer, maps.size) for read in (maps.read_gain, maps.read_layer_weight))
        lights[number] = cv2.merge([*cv2.split(gain), weight])

    def make_tile(corner: tuple[int, int]) -> tuple[Part, Image]:
        """Returns a tile of the result, which is made with some cells around it."""
        inner = [slice(first, first + settings.tile_cells) for first in corner]
        rows, columns = (
            slice(max(0, cells.start - margin), min(count, cells.stop + margin))
            for cells, count in zip(inner, (height, width), strict=True)
        )
        part = (_find_texels(rows, along, tall), _find_texels(columns, across, wide))
        to = (_find_texels(inner[0], along, tall), _find_texels(inner[1], across, wide))
        here = [int(number) for number in np.unique(sources[rows, columns]) if number >= 0]
        if not here:
            return to, base[to]
        plain = base[part]
        blurred, low = cv2.GaussianBlur(plain, (0, 0), narrow), _keep_coarse(plain, texel, settings)
        result, left = low.copy(), [np.ones(plain.shape[:2], np.float32) for _ in range(2)]
        for number in here:
            mine = bounding_part((sources[rows, columns] == number).astype(np.uint8), margin)
            assert mine is not None, "it has cells here"
            cells = to_global_range(mine[0], rows), to_global_range(mine[1], columns)
            own = (_find_texels(cells[0], along, tall), _find_texels(cells[1], across, wide))
            at = to_local_range(own[0], part[0]), to_local_range(own[1], part[1])
            share = (sources[cells] == number).astype(np.float32)
            place = cv2.merge([*cv2.split(places[numbers[number]][cells]), share, share])
            # `warp_part` counts on a rim.
            place = warp_part(place, (cells[0].start + RIM, cells[1].start + RIM), (width, height), (wide, tall), own)
            share, place = np.ascontiguousarray(place[..., 2]), copy_first_channels(place, 2)
            color = _look_up_color(frames[numbers[number]], lights[number], place, plain[at], settings)
            soft = cv2.GaussianBlur(color, (0, 0), narrow)
            bands = color - soft, soft - _keep_coarse(color, texel, settings)
            for band, sigma, unfilled in zip(bands, (narrow, wider), left, strict=True):
                blended = cv2.GaussianBlur(share, (0, 0), sigma)
                cv2.accumulateProduct(band, cv2.merge([blended] * 3), result[at])
                unfilled[at] -= blended
        for band, unfilled in zip((plain - blurred, blurred - low), left, strict=True):
            cv2.accumulateProduct(band, cv2.merge([unfilled.clip(0)] * 3), result)
        return to, result[to_local_range(to[0], part[0]), to_local_range(to[1], part[1])].clip(0, 1)

    result = np.empty_like(base)
    corners = [(y, x) for y in range(0, height, settings.tile_cells) for x in range(0, width, settings.tile_cells)]
    for done, (to, tile) in enumerate(map_in_threads(make_tile, corners), start=1):
        result[to] = tile
        report(Progress("baking", len(corners) + done, 2 * len(corners)))
    return result


def _find_texels(cells: slice, per_cell: float, count: int) -> slice:
    """Returns the texels that some cells cover, of `count`."""
    return slice(int(cells.start * per_cell), min(count, int(np.ceil(cells.stop * per_cell))))


def _look_up_color(
    frame: UInt8[np.ndarray, "height width 3"],
    light: Float[np.ndarray, "h w 4"],
    place: Float[np.ndarray, "rows columns 2"],
    plain: Image,
    settings: DetailSettings,
) -> Image:
    """Looks up colors of a frame at places in its maps, and divides the gain out.

    Args:
        frame: of the source.
        light: gain and weight of the layer, at the size of the maps.
        place: columns and rows in the maps.
        plain: the colors where the frame mixes layers.
        settings: the least weight of what is no mixture.
    """
    to_source = np.array([frame.shape[1] / light.shape[1], frame.shape[0] / light.shape[0]], np.float32)
    spots = (place + np.float32(0.5)) * to_source - np.float32(0.5)
    color = cv2.remap(frame, spots, None, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT).astype(np.float32)
    here = _sample(light, place)
    gain, mixed = copy_first_channels(here, 3), cv2.compare(here[..., 3].copy(), settings.min_weight, cv2.CMP_LE)
    color = cv2.divide(color, np.maximum(gain, np.float32(0.05), out=gain), scale=1 / 255)
    return cv2.copyTo(plain, mixed, color)


def _keep_coarse(image: Image, texel: float, settings: DetailSettings) -> Image:
    """Returns what of a picture is coarser than some texels of the fit."""
    size = (image.shape[1], image.shape[0])
    small = (max(1, round(size[0] / texel)), max(1, round(size[1] / texel)))
    coarse = cv2.GaussianBlur(cv2.resize(image, small, interpolation=cv2.INTER_AREA), (0, 0), settings.detail_texels)
    return cv2.resize(coarse, size, interpolation=cv2.INTER_LINEAR)


def _sample(values: np.ndarray, place: Float[np.ndarray, "height width 2"]) -> np.ndarray:
    """Samples an image bilinearly; the edge is repeated outside."""
    channels = values.shape[2:]
    if channels != (4,):  # OpenCV (5) samples four channels exactly
        planes = cv2.split(np.asarray(values, np.float32))
        values = cv2.merge([planes[min(number, len(planes) - 1)] for number in range(4)])
    found = cv2.remap(values, place, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return found if channels == (4,) else found[..., : channels[0]].copy() if channels else found[..., 0].copy()
