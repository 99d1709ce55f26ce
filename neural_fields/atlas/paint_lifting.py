"""Paint on one frame, lifted into the canonical picture of a layer: the inverse of rendering an overlay.

Rendering an edit adds `weight * alpha * (gain * edit - observed)` to a frame. Lifting solves this for `edit`: first for
each changed pixel, then for the texels whose bilinear samples reproduce the pixels (least squares, regularized by a
membrane, which also fills the texels between pixels that are far apart in the canonical picture).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Float

from neural_fields.atlas.canonical import CanonicalImage
from neural_fields.atlas.uv_maps import Maps
from neural_fields.core import array_coords
from neural_fields.core.box import Box

LEVEL = 1 / 255


@dataclass(frozen=True)
class PaintLiftSettings:
    """Settings of lifting paint from a frame into a canonical picture. Levels are 8-bit levels of a color."""

    min_weight: float = 0.25  # least weight of the layer in a pixel that is lifted
    min_gain: float = 1e-3  # under darker light the color is unknown
    max_gap_texels: int = 8  # pixels that are farther apart in the canonical picture are not joined
    gap_percentile: float = 90.0  # percentile of the distances between neighboring pixels, in texels
    gap_slack_texels: float = 0.05  # a distance this little above a whole number is rounded down
    rim_px: int = 5  # window around the paint in which unchanged pixels fix its outline, at least
    rim_texels: float = 2.0  # and so many texels to each side, where texels are larger than pixels
    rim_percentile: float = 90.0  # percentile of the sizes of the texels under the paint
    max_rim_px: int = 41
    max_averaged_gap: int = 2  # up to this many texels between pixels, the outline is averaged instead of solved
    min_touch: float = 1e-3  # least bilinear weight of a texel that a pixel touches
    membrane_stiffness: float = 1e-3  # weight of smoothness, relative to that of one pixel
    solver_steps: int = 60  # most iterations of the solver
    solver_tolerance: float = 1e-5  # relative residual at which the solver stops
    min_alpha_levels: float = 2.0  # fainter paint is dropped
    clipped_levels: float = 8.0  # distance from the range of colors above which a texel counts as clipped


DEFAULTS = PaintLiftSettings()


@dataclass(frozen=True)
class FrameMaps:
    """Holds the baked maps of one frame into the canonical pictures, layers front to back.

    Attributes:
        names: names of the layers.
        uv: canonical coordinates, in uv units.
        weight: share of each layer in a pixel; sums to 1 over the layers.
        gain: lighting, a factor of the canonical color.
        boxes: the part of the canonical plane that each canonical picture covers.
        sizes: (width, height) of each canonical picture in texels.
    """

    names: Sequence[str]
    uv: Float[np.ndarray, "layers height width 2"]
    weight: Float[np.ndarray, "layers height width"]
    gain: Float[np.ndarray, "layers height width 3"]
    boxes: Sequence[Box]
    sizes: Sequence[tuple[int, int]]


def read_frame_maps(maps: Maps, pictures: Mapping[str, CanonicalImage], t: int, size: tuple[int, int]) -> FrameMaps:
    """Reads the maps of a frame into the canonical pictures of its layers.

    Args:
        maps: the baked maps of the run.
        pictures: the canonical picture of each layer, by name.
        t: index of the frame in the run.
        size: (width, height) in pixels at which the maps are sampled.
    """
    layers = range(len(maps.layers))
    return FrameMaps(
        names=maps.layers,
        uv=np.stack([maps.read_uv(t, i, size) for i in layers]),
        weight=maps.read_weights(t, size),
        gain=np.stack([maps.read_gain(t, i, size) for i in layers]),
        boxes=[pictures[name].box for name in maps.layers],
        sizes=[pictures[name].size for name in maps.layers],
    )


def lift_paint(
    rgba: Float[np.ndarray, "height width 4"],
    observed: Float[np.ndarray, "height width 3"],
    maps: FrameMaps,
    index: int,
    settings: PaintLiftSettings = DEFAULTS,
) -> tuple[Float[np.ndarray, "rows columns 4"], float, float]:
    """Lifts paint on a frame into the canonical picture of one layer.

    Args:
        rgba: the paint, straight RGBA in [0, 1].
        observed: the original frame, in [0, 1].
        maps: the baked maps of that frame.
        index: index of the layer in `maps`.
        settings: thresholds and solver of the lifting.

    Returns:
        The overlay (straight RGBA in [0, 1]), the share of the paint that the layer cannot show, and the share that was
        clipped.
    """
    size, box, weight = maps.sizes[index], maps.boxes[index], maps.weight[index]
    texels = array_coords.uv_to_texels(np.asarray(maps.uv[index], np.float32), box, *size)
    inside = ((texels >= 0) & (texels <= np.array(size))).all(axis=-1)
    changed = (rgba[..., 3] > 0) & inside & (weight >= settings.min_weight)
    paint = float(rgba[..., 3].sum())
    lost = 1 - float(rgba[..., 3][changed].sum()) / paint
    overlay = np.zeros((size[1], size[0], 4), np.float32)
    if not changed.any():
        return overlay, lost, 0.0
    # How many texels lie between neighboring changed pixels, rounded up.
    steps = []
    for axis in (0, 1):
        both = changed & np.roll(changed, -1, axis)
        both[(-1, slice(None)) if axis == 0 else (slice(None), -1)] = False
        steps.append(np.abs(np.roll(texels, -1, axis) - texels)[both].max(axis=-1))
    joined, gap = np.concatenate(steps), 1
    if len(joined):
        between = np.ceil(np.percentile(joined, settings.gap_percentile) - settings.gap_slack_texels)
        gap = int(np.clip(between, 1, settings.max_gap_texels))

    # Unchanged pixels around the paint hold its outline in place, as far as texels reach that paint touches.
    size_px = float(np.percentile(_measure_texel_sizes(texels)[changed], settings.rim_percentile))
    rim = max(settings.rim_px, min(settings.max_rim_px, 2 * int(np.ceil(settings.rim_texels * size_px)) + 1))
    near = cv2.dilate(changed.astype(np.uint8), np.ones((rim, rim), np.uint8)) > 0
    near &= inside & (weight >= settings.min_weight)
    grid = _TexelGrid.from_points(texels[near], size, gap, settings)
    strength = np.where(changed, rgba[..., 3], 0)[near][:, None]
    # An outline is not band-limited: solved exactly it rings, so where texels are not much finer it is averaged.
    if gap > settings.max_averaged_gap:
        alpha = grid.solve_values(texels[near], strength, weight[near], settings)
    else:
        alpha = grid.average_values(texels[near], strength, weight[near])
    alpha = np.clip(alpha, 0, 1) * grid.reach_mask(texels[changed], gap, settings)
    # The canonical color that renders as the painted one: painted = observed + weight (gain edit - observed).
    through = observed + (rgba[..., :3] - observed) / np.maximum(weight, settings.min_weight)[..., None]
    wanted = (through / np.maximum(maps.gain[index], settings.min_gain)).astype(np.float32)[changed]
    color = np.clip(wanted, 0, 1)
    clipped = float((np.abs(wanted - color).max(axis=1) > settings.clipped_levels * LEVEL).mean())
    solved = np.clip(grid.solve_values(texels[changed], color, (weight * rgba[..., 3])[changed], settings), 0, 1)
    alpha[alpha < settings.min_alpha_levels * LEVEL] = 0
    values = np.concatenate([np.where(alpha > 0, solved, 0), alpha], axis=1)
    overlay[grid.rows, grid.columns] = values.astype(np.float32)
    return overlay, lost, clipped


def _measure_texel_sizes(texels: Float[np.ndarray, "height width 2"]) -> Float[np.ndarray, "height width"]:
    """Measures how many pixels a texel covers where it is widest; less than half a pixel counts as that."""
    (a, c), (b, d) = (np.moveaxis(np.gradient(texels, axis=axis), -1, 0) for axis in (1, 0))
    squares, determinant = a * a + b * b + c * c + d * d, a * d - b * c
    smallest = (squares - np.sqrt(np.maximum(squares**2 - 4 * determinant**2, 0))) / 2  # singular value, squared
    return 1 / np.sqrt(np.clip(smallest, 1e-4, 4))


@dataclass(frozen=True)
class _TexelGrid:
    """The texels of a canonical picture that the paint can reach, numbered."""

    rows: np.ndarray
    columns: np.ndarray
    numbers: np.ndarray  # [height, width] of the whole image; -1 where the paint cannot reach

    @classmethod
    def from_points(
        cls, points: Float[np.ndarray, "points 2"], size: tuple[int, int], gap: int, settings: PaintLiftSettings
    ) -> _TexelGrid:
        """Creates the grid of the texels at and between points.

        Args:
            points: (x, y) in texels.
            size: (width, height) of the canonical picture in texels.
            gap: texels between points that still belong to the grid.
            settings: the footprint of a point.
        """
        mask = _close_gaps(_draw_footprint(points, size, settings), gap)
        rows, columns = np.nonzero(mask)
        numbers = np.full(mask.shape, -1, np.int64)
        numbers[rows, columns] = np.arange(len(rows))
        return cls(rows, columns, numbers)

    def reach_mask(
        self, points: Float[np.ndarray, "points 2"], gap: int, settings: PaintLiftSettings
    ) -> Float[np.ndarray, "texels 1"]:
        """Computes 1 for texels at or between the points, 0 for others.

        Args:
            points: (x, y) in texels.
            gap: texels between points that still count.
            settings: the footprint of a point.
        """
        height, width = self.numbers.shape
        mask = _close_gaps(_draw_footprint(points, (width, height), settings), gap)
        return mask[self.rows, self.columns].astype(np.float32)[:, None]

    def average_values(
        self,
        points: Float[np.ndarray, "points 2"],
        values: Float[np.ndarray, "points channels"],
        trust: Float[np.ndarray, " points"],
    ) -> Float[np.ndarray, "texels channels"]:
        """Averages the points around each texel with bilinear weights; texels without a point become 0.

        Args:
            points: (x, y) in texels.
            values: values of the points.
            trust: weight of each point.
        """
        shares = self._sampling_matrix(points).T
        total = shares @ trust[:, None].astype(np.float64)
        return ((shares @ (trust[:, None] * values)) / np.maximum(total, 1e-9)).astype(np.float32)

    def solve_values(
        self,
        points: Float[np.ndarray, "points 2"],
        values: Float[np.ndarray, "points channels"],
        trust: Float[np.ndarray, " points"],
        settings: PaintLiftSettings,
    ) -> Float[np.ndarray, "texels channels"]:
        """Solves for the texel values whose bilinear samples at `points` are nearest to `values`.

        A membrane regularizes the texels that no point determines.

        Args:
            points: (x, y) in texels.
            values: values of the points.
            trust: weight of each point.
            settings: stiffness of the membrane, and tolerance of the solver.
        """
        from scipy import sparse
        from scipy.sparse.linalg import LinearOperator, cg

        # The membrane: the graph Laplacian of the numbered texels.
        pairs = []
        for a, b in ((self.numbers[:, :-1], self.numbers[:, 1:]), (self.numbers[:-1], self.numbers[1:])):
            both = (a >= 0) & (b >= 0)
            pairs.append(np.stack([a[both], b[both]]))
        first, second = np.concatenate(pairs, axis=1)
        count = len(self.rows)
        edges = sparse.coo_array((np.ones(len(first)), (first, second)), shape=(count, count))
        edges = (edges + edges.T).tocsr()
        membrane = sparse.diags_array(edges.sum(axis=1)) - edges

        # The normal equations.
        sampling = self._sampling_matrix(points)
        weights = sparse.diags_array(trust.astype(np.float64))
        normal = (sampling.T @ weights @ sampling + settings.membrane_stiffness * membrane).tocsr()
        target = sampling.T @ (weights @ values.astype(np.float64))

        # Conjugate gradients, scaled by the diagonal.
        diagonal = np.maximum(normal.diagonal(), 1e-12)
        scale = LinearOperator(normal.shape, matvec=lambda vector: vector / diagonal)
        start = self.average_values(points, values, trust)
        steps, tolerance = settings.solver_steps, settings.solver_tolerance
        solved = [
            cg(normal, target[:, channel], x0=start[:, channel], rtol=tolerance, maxiter=steps, M=scale)[0]
            for channel in range(values.shape[1])
        ]
        return np.stack(solved, axis=1).astype(np.float32)

    def _sampling_matrix(self, points: Float[np.ndarray, "points 2"]):
        """Makes the sparse matrix of bilinear sampling, with replicated borders as in the renderer."""
        from scipy import sparse

        height, width = self.numbers.shape
        corner, part = _find_corners(points)
        entries = []
        for row in (0, 1):
            for column in (0, 1):
                y = np.clip(corner[:, 1] + row, 0, height - 1)
                x = np.clip(corner[:, 0] + column, 0, width - 1)
                share = np.abs(1 - column - part[:, 0]) * np.abs(1 - row - part[:, 1])
                entries.append((self.numbers[y, x], share))
        places = np.concatenate([place for place, _ in entries])
        shares = np.concatenate([share for _, share in entries])
        origin = np.tile(np.arange(len(points)), 4)
        known = places >= 0
        shape = (len(points), len(self.rows))
        return sparse.csr_array((shares[known].astype(np.float64), (origin[known], places[known])), shape=shape)


def _find_corners(points: Float[np.ndarray, "points 2"]) -> tuple[np.ndarray, np.ndarray]:
    """Finds the upper left of the four texels around each point (x, y), and the offset of the point from it."""
    shifted = points - 0.5
    corner = np.floor(shifted).astype(np.int64)
    return corner, shifted - corner


def _draw_footprint(
    points: Float[np.ndarray, "points 2"], size: tuple[int, int], settings: PaintLiftSettings
) -> np.ndarray:
    """Marks the texels that the bilinear sampling of the points touches."""
    corner, part = _find_corners(points)
    mask = np.zeros((size[1], size[0]), np.uint8)
    for row in (0, 1):
        for column in (0, 1):
            touched = (np.abs(1 - column - part[:, 0]) * np.abs(1 - row - part[:, 1])) > settings.min_touch
            y = np.clip(corner[touched, 1] + row, 0, size[1] - 1)
            x = np.clip(corner[touched, 0] + column, 0, size[0] - 1)
            mask[y, x] = 1
    return mask


def _close_gaps(mask: np.ndarray, gap: int) -> np.ndarray:
    """Closes gaps between texels; a gap of 1 means that the texels are adjacent already."""
    if gap <= 1:
        return mask
    return cv2.morphologyEx(mask, cv2.MORPH_CLOSE, np.ones((2 * gap + 1, 2 * gap + 1), np.uint8))
