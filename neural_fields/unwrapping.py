"""Frames laid flat: what a frame shows of a layer, on the canonical plane of that layer.

The maps say where a pixel lies on the plane; here they are followed backward. A coarse grid of the plane is solved with
the map that goes on smoothly where nothing is seen (`extended_map.py`), and every texel from there by Newton's method
with the maps as they are, which are those that rendering reads.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Bool, Float, UInt8

from neural_fields.baking import Maps, gain_size
from neural_fields.coords import Box
from neural_fields.extended_map import LEAST, ExtendedMap, extend
from neural_fields.lookup import RIM, first_channels
from neural_fields.reshaping import LOST, SEEN

COARSE = 160  # samples of a map along its longer side by which the grid is solved
ENOUGH = 2000  # samples of the layer by which it is solved, if it has so many
CELL = 12  # texels from one point of the grid to the next
ROUNDS = 2  # of Newton's method for every texel
FARTHEST = 8.0  # pixels of the fit: the longest step of a round
CLOSE = 1.0  # texels; what is farther off was not found
DENSE = 1.6  # positions that are tried along each side of a texel
SMALLER = 1.25  # pixels of the frame to a texel from which the frame is averaged first
VISIBLE = 0.5 / 255  # less of a layer than this is not seen

Part = tuple[slice, slice]


@dataclass(frozen=True)
class Flat:
    """What one frame shows of a layer, on its canonical plane.

    Attributes:
        colour: as the frame shows it, under its light; black where the layer is not seen.
        seen: how much of the layer the frame shows there, in [0, 1].
        gain: the light of the frame: a canonical colour times this is what the frame shows.
    """

    colour: UInt8[np.ndarray, "height width 3"]
    seen: Float[np.ndarray, "height width"]
    gain: Float[np.ndarray, "height width 3"]


@dataclass(frozen=True)
class Plane:
    """The canonical plane of one layer of a run as a picture of some size.

    Attributes:
        maps, layer: the layer, by its number.
        box, size: what the picture covers, and its (width, height).
    """

    maps: Maps
    layer: int
    box: Box
    size: tuple[int, int]

    def flat(self, t: int, frame: UInt8[np.ndarray, "rows columns 3"]) -> Flat:
        """A frame laid flat. Nothing is seen where it does not show the layer, or too little of it to tell where.

        Args:
            t: its index in the run.
            frame: the frame at any size.
        """
        width, height = self.size
        colour, seen = np.zeros((height, width, 3), np.uint8), np.zeros((height, width), np.float32)
        found = self._extended(t)
        if found is None:
            return Flat(colour, seen, np.ones((height, width, 3), np.float32))
        grid = self._grid(*found)
        places = cv2.resize(grid.places, self.size, interpolation=cv2.INTER_LINEAR)
        part = _window(places, self.maps.size)
        if part is not None:
            places[part], known = self._refined(t, places[part], grid, part)
            seen[part] = self._weight(t, places[part]) * known
            seen[seen < VISIBLE] = 0
            shown = _looked_up(frame, places[part], self.maps.size, grid.step)
            colour[part] = cv2.bitwise_and(shown, shown, mask=cv2.compare(seen[part], 0, cv2.CMP_GT))
        return Flat(colour, seen, self._gain(t, places))

    def _extended(self, t: int) -> tuple[ExtendedMap, int] | None:
        """The map of a frame from every so many pixels of it, and how many."""
        weight = self.maps.layer_weight_small(t, self.layer)
        count = int((weight >= SEEN).sum())
        stride = int(np.clip(np.sqrt(count / ENOUGH), 1, max(1, -(-max(weight.shape) // COARSE))))
        if count < LEAST:
            return None
        every = (slice(stride // 2, None, stride),) * 2
        found = extend(np.ascontiguousarray(self.maps.uv_small(t, self.layer)[every]), weight[every] >= SEEN)
        return None if found is None else (found, stride)

    def _grid(self, found: ExtendedMap, stride: int) -> _Grid:
        """Where the points of a coarse grid of the plane lie in the frame."""
        columns, rows = (max(2, -(-side // CELL)) for side in self.size)
        uv = _centres(self.box, (columns, rows), (slice(0, rows), slice(0, columns))).reshape(-1, 2)
        y, x = np.mgrid[: found.uv.shape[0], : found.uv.shape[1]]
        pixels, there = np.stack([x, y], axis=-1).reshape(-1, 2) + 0.5, found.uv.reshape(-1, 2)
        some = slice(None, None, max(1, len(there) // 2000))
        back = np.linalg.lstsq(np.column_stack([there, np.ones(len(there))])[some], pixels[some], rcond=None)[0]
        places, off = found.solve(uv, np.column_stack([uv, np.ones(len(uv))]) @ back)
        inverse = np.linalg.inv(found.slope_at(places).astype(np.float64)) * stride
        shape = (rows, columns)
        area = np.abs(np.linalg.det(inverse)) * np.prod(self._texel)
        inside = _inside(places[None].astype(np.float32), found.uv.shape[1::-1])[0]
        return _Grid(
            places=((places - 0.5) * stride + stride // 2 + 0.5).reshape(*shape, 2).astype(np.float32),
            inverse=inverse.reshape(*shape, 4).astype(np.float32),
            off=(off * stride).reshape(shape).clip(0, 1e3).astype(np.float32),
            step=float(np.sqrt(np.median(area[inside]))) if inside.any() else 1.0,
        )

    def _refined(
        self, t: int, start: Float[np.ndarray, "rows columns 2"], grid: _Grid, part: Part
    ) -> tuple[Float[np.ndarray, "rows columns 2"], Bool[np.ndarray, "rows columns"]]:
        """Positions that show the texels of a part of the plane, and whether they were found."""
        uv = self.maps.rimmed(t, self.layer)[0]
        doubled = cv2.merge([uv, uv])  # OpenCV looks up four channels exactly
        wanted = _centres(self.box, self.size, part)
        inverse = cv2.resize(grid.inverse, self.size, interpolation=cv2.INTER_LINEAR)[part]
        places = best = self._hit(t, start, grid.step, part)
        least = np.full(start.shape[:2], np.inf, np.float32)
        for last in (*[False] * ROUNDS, True):
            rest = wanted - first_channels(_at(doubled, places, RIM), 2)
            off = np.maximum(*(np.abs(rest[..., axis]) / self._texel[axis] for axis in (0, 1)))
            better = off < least
            best, least = np.where(better[..., None], places, best), np.where(better, off, least)
            if not last:
                steps = [inverse[..., i] * rest[..., 0] + inverse[..., i + 1] * rest[..., 1] for i in (0, 2)]
                places = places + np.clip(cv2.merge(steps), -FARTHEST, FARTHEST)
        found = least <= CLOSE
        # Beside a silhouette the maps are rough, and the grid knows better.
        edge = ~found & (self._weight(t, start) < SEEN)
        edge &= cv2.resize(grid.off, self.size, interpolation=cv2.INTER_LINEAR)[part] < LOST
        places = np.where(found[..., None], best, start)
        return places, (found | edge) & _inside(places, self.maps.size)

    def _hit(
        self, t: int, start: Float[np.ndarray, "rows columns 2"], step: float, part: Part
    ) -> Float[np.ndarray, "rows columns 2"]:
        """Positions that lie within the texels, as far as pixels of the frame do; elsewhere those of the grid.

        Where the maps are rough Newton's method alone would miss texels that rendering reads.
        """
        finer = int(np.clip(np.ceil(DENSE / max(step, 1e-3)), 1, 4))
        size = (self.maps.size[0] * finer, self.maps.size[1] * finer)
        rows, columns = part
        low = np.array([self.box.u0, self.box.v0]) + np.array([columns.start, rows.start]) * self._texel
        scale = np.diag(1 / np.array(self._texel))
        uv = self.maps.uv(t, self.layer, size)
        texels = cv2.transform(uv, np.column_stack([scale, -scale @ low])).astype(np.int32)
        height, width = start.shape[:2]
        inside = cv2.inRange(texels, (0, 0), (width - 1, height - 1))
        seen = cv2.compare(self.maps.layer_weight(t, self.layer, size), SEEN, cv2.CMP_GE)
        number = np.flatnonzero(cv2.bitwise_and(inside, seen))
        x, y = texels.reshape(-1, 2)[number].T
        result = start.copy()
        row, column = np.divmod(number, size[0])
        result[y, x] = (np.stack([column, row], axis=-1) + 0.5) / finer
        return result

    @property
    def _texel(self) -> tuple[float, float]:
        """Width and height of a texel in uv units."""
        return self.box.width / self.size[0], self.box.height / self.size[1]

    def _weight(self, t: int, places: Float[np.ndarray, "rows columns 2"]) -> Float[np.ndarray, "rows columns"]:
        """How much of the layer is seen at positions in the frame."""
        return _at(self.maps.rimmed(t, self.layer)[1].astype(np.float32) / 255, places, RIM)

    def _gain(self, t: int, places: Float[np.ndarray, "rows columns 2"]) -> Float[np.ndarray, "rows columns 3"]:
        """The light at positions in the frame; beyond it, that at its edge."""
        small = gain_size(self.maps.size)
        gain = self.maps.gain(t, self.layer, small)
        return _at(gain, places * (np.array(small, np.float32) / np.array(self.maps.size, np.float32)), 0)


@dataclass(frozen=True)
class _Grid:
    """The points of a coarse grid of the plane in a frame, in pixels of the fit."""

    places: Float[np.ndarray, "rows columns 2"]
    inverse: Float[np.ndarray, "rows columns 4"]  # d(pixel) / d(uv)
    off: Float[np.ndarray, "rows columns"]  # by how many pixels they were missed
    step: float  # pixels to a texel


def _centres(box: Box, size: tuple[int, int], part: Part) -> Float[np.ndarray, "rows columns 2"]:
    """uv of the texel centres in a part of a picture of `size` (width, height) that covers a box."""
    rows, columns = part
    u = box.u0 + (np.arange(columns.start, columns.stop) + 0.5) * box.width / size[0]
    v = box.v0 + (np.arange(rows.start, rows.stop) + 0.5) * box.height / size[1]
    return np.stack(np.meshgrid(u, v), axis=-1).astype(np.float32)


def _inside(
    places: Float[np.ndarray, "rows columns 2"], size: tuple[int, ...], margin: float = 0.0
) -> Bool[np.ndarray, "rows columns"]:
    """Whether positions lie in a frame of `size` (width, height)."""
    return cv2.inRange(places, (-margin, -margin), (size[0] + margin, size[1] + margin)) > 0


def _window(places: Float[np.ndarray, "height width 2"], size: tuple[int, int]) -> Part | None:
    """The rows and columns of the texels that lie in the frame, or near enough to it that they may; None: none does."""
    near = _inside(places, size, FARTHEST)
    left, top, width, height = cv2.boundingRect(near.view(np.uint8))
    return (slice(top, top + height), slice(left, left + width)) if width else None


def _at(image: np.ndarray, places: Float[np.ndarray, "rows columns 2"], rim: int) -> np.ndarray:
    """Linear lookup of an image with a rim at positions in pixels; beyond its edges they go on."""
    return cv2.remap(image, places + np.float32(rim - 0.5), None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)


def _looked_up(
    frame: UInt8[np.ndarray, "h w 3"], places: Float[np.ndarray, "rows columns 2"], size: tuple[int, int], step: float
) -> UInt8[np.ndarray, "rows columns 3"]:
    """The frame at positions in pixels of `size`; averaged first where a texel holds several of its pixels."""
    height, width = frame.shape[:2]
    step *= width / size[0]
    if step > SMALLER:
        width, height = (max(1, round(side / step)) for side in (width, height))
        frame = cv2.resize(frame, (width, height), interpolation=cv2.INTER_AREA)
    own = places * (np.array([width, height], np.float32) / np.array(size, np.float32)) - np.float32(0.5)
    return cv2.remap(frame, own, None, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)
