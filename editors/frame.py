"""Edit by frame: the changed pixels of one painted frame are lifted into the canonical image of a layer.

The render of an edit adds `weight * alpha * (gain * edit - observed)` to a frame. Lifting solves this for `edit`: first
for each changed pixel, then for the texels whose bilinear lookup gives the pixels back (least squares, regularised by a
membrane, which also fills the texels between pixels that lie far apart in the canonical image).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from jaxtyping import Float, UInt8

from editors.image import LEVEL, check_size, find_change, no_change
from neural_fields import coords
from neural_fields.baking import Maps
from neural_fields.canonical import CanonicalImage, Overlay
from neural_fields.coords import Box
from neural_fields.errors import bad_input
from neural_fields.pictures import Picture, premultiplied, resize, straight

MIN_WEIGHT = 0.25  # a pixel that shows less of the layer says too little about it
MAX_SPREAD = 8  # texels; pixels that lie further apart in the canonical image are not joined
MEMBRANE = 1e-3  # stiffness of the membrane against one pixel
SOLVER_STEPS = 60


@dataclass(frozen=True)
class FrameMaps:
    """Where one frame lies in the canonical images: the baked maps of frame t, layers front to back.

    Attributes:
        names: the layers' names.
        uv: uv units; weight: sums to one over the layers; gain: lighting that multiplies the canonical colour.
        boxes, sizes: box and (width, height) of each canonical image.
    """

    names: Sequence[str]
    uv: Float[np.ndarray, "layers height width 2"]
    weight: Float[np.ndarray, "layers height width"]
    gain: Float[np.ndarray, "layers height width 3"]
    boxes: Sequence[Box]
    sizes: Sequence[tuple[int, int]]


def frame_maps(maps: Maps, pictures: Mapping[str, CanonicalImage], t: int, size: tuple[int, int]) -> FrameMaps:
    """Where frame `t` of a run lies in the canonical pictures of its layers, at `size` (width, height)."""
    layers = range(len(maps.layers))
    return FrameMaps(
        names=maps.layers,
        uv=np.stack([maps.uv(t, i, size) for i in layers]),
        weight=maps.weight(t, size),
        gain=np.stack([maps.gain(t, i, size) for i in layers]),
        boxes=[pictures[name].box for name in maps.layers],
        sizes=[pictures[name].size for name in maps.layers],
    )


def lift_frame(
    painted: Picture,
    source_frame: UInt8[np.ndarray, "height width 3"],
    maps: FrameMaps,
    layer: str | None = None,
) -> Mapping[str, Overlay]:
    """The change a user made to one frame, as an overlay of one layer.

    Args:
        painted: the painted frame, of the frame's aspect.
        source_frame: the frame as it was.
        maps: the baked maps of that frame.
        layer: the layer that takes the change; by default the one that shows most under it.

    Raises:
        UserError: another aspect, no change found, unknown layer, or a layer that is not seen there (exit 3).
    """
    height, width = source_frame.shape[:2]
    check_size(painted, (width, height), "the frame")
    observed = source_frame.astype(np.float32) / 255
    opaque = np.concatenate([observed, np.ones_like(observed[..., :1])], axis=-1)
    change = find_change(painted, opaque)
    if change.is_empty:
        raise no_change(painted, "the frame of the video", change.notes)
    rgba = straight(resize(premultiplied(change.rgba), (width, height)))
    index, shares = _choose_layer(rgba[..., 3], maps, layer)
    overlay, lost, clipped = lift(rgba, observed, maps, index)
    notes = [*painted.notes, *change.notes]
    if layer is None and len(maps.names) > 1:
        notes.append(f"lifted into {maps.names[index]}, which makes up {shares[index]:.0%} of what is under the paint")
    if lost > 0.01:
        notes.append(f"{lost:.0%} of the paint does not lie on {maps.names[index]} and was left out")
    if clipped > 0.01:
        notes.append(f"{clipped:.0%} of the paint would need a brighter or darker colour than there is: clipped")
    return {maps.names[index]: Overlay(overlay, maps.boxes[index], tuple(notes))}


def _choose_layer(
    alpha: Float[np.ndarray, "height width"], maps: FrameMaps, layer: str | None
) -> tuple[int, list[float]]:
    """The layer's index, and each layer's share of what is under the paint."""
    sums = (maps.weight * alpha).sum(axis=(1, 2), dtype=np.float64)
    shares = list(sums / max(sums.sum(), 1e-12))
    names = list(maps.names)
    if layer is None:
        return int(np.argmax(sums)), shares
    if layer not in names:
        raise bad_input(f"there is no layer {layer!r}", why=f"the layers are: {', '.join(names)}")
    if not ((maps.weight[names.index(layer)] >= MIN_WEIGHT) & (alpha > 0)).any():
        best = names[int(np.argmax(sums))]
        raise bad_input(
            f"the layer {layer} is not seen under the paint",
            why=f"there the frame shows {best}",
            fix=f"--layer {best}",
        )
    return names.index(layer), shares


def lift(
    rgba: Float[np.ndarray, "height width 4"],
    observed: Float[np.ndarray, "height width 3"],
    maps: FrameMaps,
    index: int,
) -> tuple[Float[np.ndarray, "rows columns 4"], float, float]:
    """The overlay of one layer, the share of the paint that the layer could not take, and the share it clipped."""
    size, box, weight = maps.sizes[index], maps.boxes[index], maps.weight[index]
    texels = coords.uv_to_texels(torch.from_numpy(np.asarray(maps.uv[index], np.float32)), box, *size).numpy()
    inside = ((texels >= 0) & (texels <= np.array(size))).all(axis=-1)
    changed = (rgba[..., 3] > 0) & inside & (weight >= MIN_WEIGHT)
    paint = float(rgba[..., 3].sum())
    lost = 1 - float(rgba[..., 3][changed].sum()) / paint
    overlay = np.zeros((size[1], size[0], 4), np.float32)
    if not changed.any():
        return overlay, lost, 0.0
    # Unchanged pixels around the paint hold its outline in place.
    spread = _spread(texels, changed)
    reach = np.ones((5, 5), np.uint8)
    near = (cv2.dilate(changed.astype(np.uint8), reach) > 0) & inside & (weight >= MIN_WEIGHT)
    grid = _Texels.around(texels[near], size, spread)
    strength = np.where(changed, rgba[..., 3], 0)[near][:, None]
    # An outline is not band-limited: solved exactly it rings, so where texels are not much finer it is averaged.
    outline = grid.solve if spread > 2 else grid.average
    alpha = outline(texels[near], strength, weight[near])
    alpha = np.clip(alpha, 0, 1) * grid.reached(texels[changed], spread)
    wanted = _edit_colour(rgba, observed, weight, maps.gain[index])[changed]
    colour = np.clip(wanted, 0, 1)
    clipped = float((np.abs(wanted - colour).max(axis=1) > 8 * LEVEL).mean())
    solved = np.clip(grid.solve(texels[changed], colour, (weight * rgba[..., 3])[changed]), 0, 1)
    alpha[alpha < 2 * LEVEL] = 0
    values = np.concatenate([np.where(alpha > 0, solved, 0), alpha], axis=1)
    overlay[grid.rows, grid.columns] = values.astype(np.float32)
    return overlay, lost, clipped


def _edit_colour(
    rgba: Float[np.ndarray, "height width 4"],
    observed: Float[np.ndarray, "height width 3"],
    weight: Float[np.ndarray, "height width"],
    gain: Float[np.ndarray, "height width 3"],
) -> Float[np.ndarray, "height width 3"]:
    """The canonical colour that renders as the painted one: painted = observed + weight (gain edit - observed)."""
    through = observed + (rgba[..., :3] - observed) / np.maximum(weight, MIN_WEIGHT)[..., None]
    return (through / np.maximum(gain, 1e-3)).astype(np.float32)


def _spread(texels: Float[np.ndarray, "height width 2"], changed: np.ndarray) -> int:
    """How many texels lie between neighbouring changed pixels, rounded up (1 to MAX_SPREAD)."""
    steps = []
    for axis in (0, 1):
        both = changed & np.roll(changed, -1, axis)
        both[(-1, slice(None)) if axis == 0 else (slice(None), -1)] = False
        steps.append(np.abs(np.roll(texels, -1, axis) - texels)[both].max(axis=-1))
    joined = np.concatenate(steps)
    return int(np.clip(np.ceil(np.percentile(joined, 90) - 0.05), 1, MAX_SPREAD)) if len(joined) else 1


@dataclass(frozen=True)
class _Texels:
    """The texels of a canonical image that the paint can reach, numbered."""

    rows: np.ndarray
    columns: np.ndarray
    numbers: np.ndarray  # [height, width] of the whole image; -1 where the paint cannot reach

    @classmethod
    def around(cls, points: Float[np.ndarray, "points 2"], size: tuple[int, int], spread: int) -> _Texels:
        """The texels under the points and between them."""
        mask = _footprint(points, size)
        mask = _close(mask, spread)
        rows, columns = np.nonzero(mask)
        numbers = np.full(mask.shape, -1, np.int64)
        numbers[rows, columns] = np.arange(len(rows))
        return cls(rows, columns, numbers)

    def reached(self, points: Float[np.ndarray, "points 2"], spread: int) -> Float[np.ndarray, "texels 1"]:
        """One for texels under or between the points."""
        height, width = self.numbers.shape
        mask = _footprint(points, (width, height))
        mask = _close(mask, spread)
        return mask[self.rows, self.columns].astype(np.float32)[:, None]

    def average(
        self,
        points: Float[np.ndarray, "points 2"],
        values: Float[np.ndarray, "points channels"],
        trust: Float[np.ndarray, "points"],
    ) -> Float[np.ndarray, "texels channels"]:
        """Texel values as the mean of the points around, each with its bilinear share; zero without a point."""
        shares = self._lookup(points).T
        total = shares @ trust[:, None].astype(np.float64)
        return ((shares @ (trust[:, None] * values)) / np.maximum(total, 1e-9)).astype(np.float32)

    def solve(
        self,
        points: Float[np.ndarray, "points 2"],
        values: Float[np.ndarray, "points channels"],
        trust: Float[np.ndarray, "points"],
    ) -> Float[np.ndarray, "texels channels"]:
        """Texel values whose bilinear lookup at `points` is nearest to `values`, smooth where no point tells."""
        from scipy import sparse
        from scipy.sparse.linalg import LinearOperator, cg

        lookup = self._lookup(points)
        weights = sparse.diags_array(np.maximum(trust, 1e-3).astype(np.float64))
        normal = (lookup.T @ weights @ lookup + MEMBRANE * self._membrane()).tocsr()
        diagonal = np.maximum(normal.diagonal(), 1e-12)
        scale = LinearOperator(normal.shape, matvec=lambda vector: vector / diagonal)
        target = lookup.T @ (weights @ values.astype(np.float64))
        start = self.average(points, values, np.maximum(trust, 1e-3))
        solved = [
            cg(normal, target[:, channel], x0=start[:, channel], rtol=1e-5, maxiter=SOLVER_STEPS, M=scale)[0]
            for channel in range(values.shape[1])
        ]
        return np.stack(solved, axis=1).astype(np.float32)

    def _lookup(self, points: Float[np.ndarray, "points 2"]):
        """The sparse matrix of the bilinear lookup, with the border repeated as the renderer does."""
        from scipy import sparse

        height, width = self.numbers.shape
        corner, part = _corners(points)
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

    def _membrane(self):
        """The graph Laplacian of the numbered texels."""
        from scipy import sparse

        pairs = []
        for a, b in ((self.numbers[:, :-1], self.numbers[:, 1:]), (self.numbers[:-1], self.numbers[1:])):
            both = (a >= 0) & (b >= 0)
            pairs.append(np.stack([a[both], b[both]]))
        first, second = np.concatenate(pairs, axis=1)
        ones = np.ones(len(first))
        count = len(self.rows)
        edges = sparse.coo_array((ones, (first, second)), shape=(count, count))
        edges = (edges + edges.T).tocsr()
        return sparse.diags_array(edges.sum(axis=1)) - edges


def _corners(points: Float[np.ndarray, "points 2"]) -> tuple[np.ndarray, np.ndarray]:
    """The upper left of the four texels around each point (x, y), and where in between the point lies (0 to 1)."""
    shifted = points - 0.5
    corner = np.floor(shifted).astype(np.int64)
    return corner, shifted - corner


def _footprint(points: Float[np.ndarray, "points 2"], size: tuple[int, int]) -> np.ndarray:
    """The texels that the bilinear lookup of the points touches."""
    corner, part = _corners(points)
    mask = np.zeros((size[1], size[0]), np.uint8)
    for row in (0, 1):
        for column in (0, 1):
            touched = (np.abs(1 - column - part[:, 0]) * np.abs(1 - row - part[:, 1])) > 1e-3
            y = np.clip(corner[touched, 1] + row, 0, size[1] - 1)
            x = np.clip(corner[touched, 0] + column, 0, size[0] - 1)
            mask[y, x] = 1
    return mask


def _close(mask: np.ndarray, spread: int) -> np.ndarray:
    """Joins texels over gaps; up to a spread of one there are none."""
    if spread <= 1:
        return mask
    return cv2.morphologyEx(mask, cv2.MORPH_CLOSE, np.ones((2 * spread + 1, 2 * spread + 1), np.uint8))
