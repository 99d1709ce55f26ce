"""uv-space (texture-space) rendering: it resamples the pixels of a layer in a frame to its canonical plane.

The maps give the uv of a pixel; this module inverts them. A coarse grid of the plane is solved with the map that is
extrapolated smoothly beyond the visible pixels (`uv_extrapolation.py`), and every texel from there by Newton's method
with the maps that rendering reads.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Bool, Float, UInt8

from neural_fields.atlas.uv_extrapolation import DEFAULTS as EXTRAPOLATION
from neural_fields.atlas.uv_extrapolation import extrapolate_uv
from neural_fields.atlas.uv_maps import Maps, gain_size
from neural_fields.core.box import Box
from neural_fields.imaging.resampling import RIM, copy_first_channels
from neural_fields.imaging.tiles import Part


@dataclass(frozen=True)
class UnwrappingSettings:
    """Settings of texture-space rendering."""

    min_visible_weight: float = 0.5 / 255  # less weight of the layer counts as 0
    grid_side: int = 160  # least samples along the longer side of a map that the grid is solved from
    grid_samples: int = 2000  # samples of the layer that the grid is solved from, if it has that many
    cell_texels: int = 12  # texels from one point of the grid to the next
    newton_rounds: int = 2  # steps of Newton's method for each texel
    max_step_px: float = 8.0  # longest of these steps, in pixels of the maps
    max_error_texels: float = 1.0  # a position with a larger error, in texels, was not found
    samples_per_texel: float = 1.6  # starting positions along each side of a texel
    max_pixels_per_texel: float = 1.25  # a frame with more pixels along a texel is averaged before it is sampled


DEFAULTS = UnwrappingSettings()


@dataclass(frozen=True)
class UnwrappedFrame:
    """What one frame shows of a layer, on its canonical plane.

    Attributes:
        color: colors in the frame, under its light; black where the layer is not visible.
        visibility: the share of the layer that the frame shows, in [0, 1].
        gain: the light of the frame: a canonical color times this is what the frame shows.
    """

    color: UInt8[np.ndarray, "height width 3"]
    visibility: Float[np.ndarray, "height width"]
    gain: Float[np.ndarray, "height width 3"]


@dataclass(frozen=True)
class CanonicalPlane:
    """The canonical plane of one layer of a run as a picture of some size.

    Attributes:
        maps, layer: the layer, by its number.
        box, size: what the picture covers, and its (width, height).
        settings: thresholds and steps of inverting the maps.
    """

    maps: Maps
    layer: int
    box: Box
    size: tuple[int, int]
    settings: UnwrappingSettings = DEFAULTS

    def unwrap_frame(self, t: int, frame: UInt8[np.ndarray, "rows columns 3"]) -> UnwrappedFrame:
        """Resamples a frame to the plane. Nothing is visible where it shows too little of the layer to invert its map.

        Args:
            t: number of the frame in the run.
            frame: the frame, of any size.

        Returns:
            Colors, visibility and gain at the size of the plane.
        """
        width, height = self.size
        color, seen = np.zeros((height, width, 3), np.uint8), np.zeros((height, width), np.float32)
        grid = self._solve_grid(t)
        if grid is None:
            return UnwrappedFrame(color, seen, np.ones((height, width, 3), np.float32))
        places = cv2.resize(grid.places, self.size, interpolation=cv2.INTER_LINEAR)

        # The rows and columns of the texels that lie in the frame, or near enough to it that they may.
        near = _inside_mask(places, self.maps.size, self.settings.max_step_px)
        left, top, columns, rows = cv2.boundingRect(near.view(np.uint8))
        if columns:
            part = (slice(top, top + rows), slice(left, left + columns))
            places[part], known = self._refine_positions(t, places[part], grid, part)
            seen[part] = self._weight_at(t, places[part]) * known
            seen[seen < self.settings.min_visible_weight] = 0

            # Averaged first where a texel holds several pixels of the frame.
            frame_height, frame_width = frame.shape[:2]
            step = grid.step * frame_width / self.maps.size[0]
            if step > self.settings.max_pixels_per_texel:
                frame_width, frame_height = (max(1, round(side / step)) for side in (frame_width, frame_height))
                frame = cv2.resize(frame, (frame_width, frame_height), interpolation=cv2.INTER_AREA)
            scale = np.array([frame_width, frame_height], np.float32) / np.array(self.maps.size, np.float32)
            samples = places[part] * scale - np.float32(0.5)
            shown = cv2.remap(frame, samples, None, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)
            color[part] = cv2.bitwise_and(shown, shown, mask=cv2.compare(seen[part], 0, cv2.CMP_GT))

        # The light at these positions; beyond the frame, that at its edge.
        small = gain_size(self.maps.size)
        scale = np.array(small, np.float32) / np.array(self.maps.size, np.float32)
        return UnwrappedFrame(color, seen, _sample_linear(self.maps.read_gain(t, self.layer, small), places * scale, 0))

    def _solve_grid(self, t: int) -> _Grid | None:
        """Finds the points of a coarse grid of the plane in the frame; None if too little of the layer is visible."""
        # The map at every `stride`-th pixel of the frame, extrapolated.
        settings = self.settings
        weight = self.maps.read_layer_weight_small(t, self.layer)
        count = int((weight >= EXTRAPOLATION.min_map_weight).sum())
        max_stride = max(1, -(-max(weight.shape) // settings.grid_side))
        stride = int(np.clip(np.sqrt(count / settings.grid_samples), 1, max_stride))
        every = (slice(stride // 2, None, stride),) * 2
        small_uv = np.ascontiguousarray(self.maps.read_uv_small(t, self.layer)[every])
        found = extrapolate_uv(small_uv, weight[every] >= EXTRAPOLATION.min_map_weight)
        if found is None:
            return None

        # The inverse of that map at the points of the grid, from an affine start.
        columns, rows = (max(2, -(-side // settings.cell_texels)) for side in self.size)
        uv = _texel_centers(self.box, (columns, rows), (slice(0, rows), slice(0, columns))).reshape(-1, 2)
        y, x = np.mgrid[: found.uv.shape[0], : found.uv.shape[1]]
        pixels, there = np.stack([x, y], axis=-1).reshape(-1, 2) + 0.5, found.uv.reshape(-1, 2)
        back = np.linalg.lstsq(np.column_stack([there, np.ones(len(there))]), pixels, rcond=None)[0]
        places, off = found.solve_positions(uv, np.column_stack([uv, np.ones(len(uv))]) @ back)

        inverse = np.linalg.inv(found.sample_jacobian(places).astype(np.float64)) * stride
        area = np.abs(np.linalg.det(inverse)) * np.prod(self._texel_size)
        inside = _inside_mask(places[None].astype(np.float32), found.uv.shape[1::-1])[0]
        shape = (rows, columns)
        return _Grid(
            places=((places - 0.5) * stride + stride // 2 + 0.5).reshape(*shape, 2).astype(np.float32),
            inverse=inverse.reshape(*shape, 4).astype(np.float32),
            off=(off * stride).reshape(shape).clip(0, 1e3).astype(np.float32),
            step=float(np.sqrt(np.median(area[inside]))) if inside.any() else 1.0,
        )

    def _refine_positions(
        self, t: int, start: Float[np.ndarray, "rows columns 2"], grid: _Grid, part: Part
    ) -> tuple[Float[np.ndarray, "rows columns 2"], Bool[np.ndarray, "rows columns"]]:
        """Computes positions that show the texels of a part of the plane, and whether they were found."""
        settings = self.settings

        # Where the maps are rough Newton's method alone would miss texels that rendering reads. So it starts from a
        # pixel of the frame, or a part of one, whose uv is within the texel, and from the grid only where none is.
        finer = int(np.clip(np.ceil(settings.samples_per_texel / max(grid.step, 1e-3)), 1, 4))
        size = (self.maps.size[0] * finer, self.maps.size[1] * finer)
        rows, columns = part
        low = np.array([self.box.u0, self.box.v0]) + np.array([columns.start, rows.start]) * self._texel_size
        scale = np.diag(1 / np.array(self._texel_size))
        texels = cv2.transform(self.maps.read_uv(t, self.layer, size), np.column_stack([scale, -scale @ low]))
        texels = texels.astype(np.int32)
        height, width = start.shape[:2]
        inside = cv2.inRange(texels, (0, 0), (width - 1, height - 1))
        seen = cv2.compare(self.maps.read_layer_weight(t, self.layer, size), EXTRAPOLATION.min_map_weight, cv2.CMP_GE)
        number = np.flatnonzero(cv2.bitwise_and(inside, seen))
        x, y = texels.reshape(-1, 2)[number].T
        row, column = np.divmod(number, size[0])
        places = start.copy()
        places[y, x] = (np.stack([column, row], axis=-1) + 0.5) / finer

        # Newton's method, which keeps the best position of each texel.
        uv = self.maps.read_rimmed(t, self.layer)[0]
        doubled = cv2.merge([uv, uv])  # OpenCV looks up four channels exactly
        wanted = _texel_centers(self.box, self.size, part)
        inverse = cv2.resize(grid.inverse, self.size, interpolation=cv2.INTER_LINEAR)[part]
        best = places
        least = np.full(start.shape[:2], np.inf, np.float32)
        for round_number in range(settings.newton_rounds + 1):
            rest = wanted - copy_first_channels(_sample_linear(doubled, places, RIM), 2)
            off = np.maximum(*(np.abs(rest[..., axis]) / self._texel_size[axis] for axis in (0, 1)))
            better = off < least
            best, least = np.where(better[..., None], places, best), np.where(better, off, least)
            if round_number < settings.newton_rounds:
                steps = [inverse[..., i] * rest[..., 0] + inverse[..., i + 1] * rest[..., 1] for i in (0, 2)]
                places = places + np.clip(cv2.merge(steps), -settings.max_step_px, settings.max_step_px)
        found = least <= settings.max_error_texels
        # Beside a silhouette the maps are rough, and the grid is better.
        edge = ~found & (self._weight_at(t, start) < EXTRAPOLATION.min_map_weight)
        grid_error = cv2.resize(grid.off, self.size, interpolation=cv2.INTER_LINEAR)[part]
        edge &= grid_error < EXTRAPOLATION.max_error_px
        places = np.where(found[..., None], best, start)
        return places, (found | edge) & _inside_mask(places, self.maps.size)

    @property
    def _texel_size(self) -> tuple[float, float]:
        """Width and height of a texel in uv units."""
        return self.box.width / self.size[0], self.box.height / self.size[1]

    def _weight_at(self, t: int, places: Float[np.ndarray, "rows columns 2"]) -> Float[np.ndarray, "rows columns"]:
        """Samples the weight of the layer at positions in the frame."""
        return _sample_linear(self.maps.read_rimmed(t, self.layer)[1].astype(np.float32) / 255, places, RIM)


@dataclass(frozen=True)
class _Grid:
    """The points of a coarse grid of the plane in a frame, in pixels of the maps."""

    places: Float[np.ndarray, "rows columns 2"]
    inverse: Float[np.ndarray, "rows columns 4"]  # d(pixel) / d(uv)
    off: Float[np.ndarray, "rows columns"]  # their errors
    step: float  # pixels per texel


def _texel_centers(box: Box, size: tuple[int, int], part: Part) -> Float[np.ndarray, "rows columns 2"]:
    """Returns the uv of the texel centers in a part of a picture of `size` (width, height) that covers a box."""
    rows, columns = part
    u = box.u0 + (np.arange(columns.start, columns.stop) + 0.5) * box.width / size[0]
    v = box.v0 + (np.arange(rows.start, rows.stop) + 0.5) * box.height / size[1]
    return np.stack(np.meshgrid(u, v), axis=-1).astype(np.float32)


def _inside_mask(
    places: Float[np.ndarray, "rows columns 2"], size: tuple[int, ...], margin: float = 0.0
) -> Bool[np.ndarray, "rows columns"]:
    """Returns which positions lie in a frame of `size` (width, height) widened by a margin."""
    return cv2.inRange(places, (-margin, -margin), (size[0] + margin, size[1] + margin)) > 0


def _sample_linear(image: np.ndarray, places: Float[np.ndarray, "rows columns 2"], rim: int) -> np.ndarray:
    """Samples an image with a rim at positions in pixels by linear interpolation; beyond its edges they continue."""
    return cv2.remap(image, places + np.float32(rim - 0.5), None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
