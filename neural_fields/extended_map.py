"""The uv map of a layer in one frame, made to go on smoothly where the layer is not seen, and its inverse.

A fit says nothing of a mapping where no pixel shows the layer, and a deformed object reaches just there. So outside of
what is seen an affine map fitted to the seen pixels around takes over (moving least squares), far away the one that is
fitted to all of them. What the pixels of the silhouette have beyond it fades out around them.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Bool, Float

from neural_fields.lookup import scattered
from neural_fields.planar.placement import pull_push

COARSE = 128  # samples along the longer side; local affine maps are smoother than that
NEAR = 0.5  # of the radius of a disc as large as what is seen: how far around a pixel the map is fitted
PRIOR = 1e-3  # share of the fit to all pixels in every local one
FLAT = 0.05  # of the area of the fit to all pixels: a local one that shrinks more is not believed
ROUNDS = 12
EXACT = 1e-3  # pixels: nearer than that is the place itself
FARTHEST = 0.25  # of the longer side: the longest step of a round
LEAST = 12  # pixels that must show the layer


@dataclass(frozen=True)
class ExtendedMap:
    """uv at every pixel centre of a frame, and a smooth derivative of it. Positions are pixels, (0.5, 0.5) the first.

    Attributes:
        uv: uv units.
        slope: d(uv) / d(pixel), never singular; the last axis is x, y.
    """

    uv: Float[np.ndarray, "height width 2"]
    slope: Float[np.ndarray, "height width 2 2"]

    def at(self, points: Float[np.ndarray, "n 2"]) -> Float[np.ndarray, "n 2"]:
        """uv of any positions; beyond the frame it goes on with the slope at its edge."""
        return self._with_slope(points)[0]

    def slope_at(self, points: Float[np.ndarray, "n 2"]) -> Float[np.ndarray, "n 2 2"]:
        """The smooth derivative at any positions."""
        flat = self.slope.reshape(*self.slope.shape[:2], 4)
        return _look_up(flat, self._inside(points)).reshape(-1, 2, 2)

    def solve(
        self, uv: Float[np.ndarray, "n 2"], start: Float[np.ndarray, "n 2"]
    ) -> tuple[Float[np.ndarray, "n 2"], Float[np.ndarray, " n"]]:
        """Positions that show some uv, and how many pixels they are off.

        Newton's method with the smooth derivative: what is seen may be rough.
        """
        points, best = start.astype(np.float64), start.astype(np.float64)
        least = np.full(len(points), np.inf)
        longest = FARTHEST * max(self.uv.shape[:2])
        left = np.arange(len(points))
        for _ in range(ROUNDS):
            here = points[left]
            found, slope = self._with_slope(here)
            step = divided(uv[left] - found, slope)
            error = np.linalg.norm(step, axis=1)
            better = error < least[left]
            best[left[better]], least[left[better]] = here[better], error[better]
            points[left] = here + step * np.minimum(1, longest / np.maximum(error, 1e-9))[:, None]
            left = left[least[left] >= EXACT]
            if not len(left):
                break
        return best, least

    def _with_slope(
        self, points: Float[np.ndarray, "n 2"]
    ) -> tuple[Float[np.ndarray, "n 2"], Float[np.ndarray, "n 2 2"]]:
        inside = self._inside(points)
        slope = self.slope_at(inside)
        x, y = (points - inside).T
        beyond = np.stack([slope[:, i, 0] * x + slope[:, i, 1] * y for i in (0, 1)], axis=-1)
        return _look_up(self.uv, inside) + beyond, slope

    def _inside(self, points: Float[np.ndarray, "n 2"]) -> Float[np.ndarray, "n 2"]:
        height, width = self.uv.shape[:2]
        return np.clip(points, 0.5, np.array([width - 0.5, height - 0.5]))


def divided(values: Float[np.ndarray, "n 2"], slope: Float[np.ndarray, "n 2 2"]) -> Float[np.ndarray, "n 2"]:
    """The x with slope @ x = values."""
    (a, b), (c, d) = np.moveaxis(slope.astype(np.float64), 0, -1)
    u, v = values.T
    area = a * d - b * c
    return np.stack([d * u - b * v, a * v - c * u], axis=-1) / np.where(area == 0, 1e-12, area)[:, None]


def extend(uv: Float[np.ndarray, "height width 2"], seen: Bool[np.ndarray, "height width"]) -> ExtendedMap | None:
    """The map of a frame from its uv where the layer is seen; None where too little of it is seen to tell."""
    if seen.sum() < LEAST:
        return None
    height, width = seen.shape
    y, x = (np.mgrid[:height, :width] + 0.5).astype(np.float32)
    radius = np.sqrt(seen.sum() / np.pi)
    x0, y0 = float(x[seen].mean()), float(y[seen].mean())
    x, y = (x - x0) / radius, (y - y0) / radius
    affine = _affine(_moments(x, y, uv)[seen].mean(axis=0)[None])
    if affine is None:
        return None
    rest = np.where(seen[..., None], uv - _apply(affine[0], x, y), 0).astype(np.float32)
    local = _local(x, y, rest, seen, radius)
    both = _sound(affine[0] + local)
    smooth = _apply(both, x, y)
    missed = pull_push((uv - smooth).astype(np.float32), seen)
    # Rows of an affine map are x, y and one; a slope has uv first, and is by pixels.
    slope = np.moveaxis(both[..., :2, :], -2, -1) / radius
    return ExtendedMap((smooth + missed).astype(np.float32), np.ascontiguousarray(slope, np.float32))


def _local(
    x: Float[np.ndarray, "h w"],
    y: Float[np.ndarray, "h w"],
    rest: Float[np.ndarray, "h w 2"],
    seen: Bool[np.ndarray, "h w"],
    radius: float,
) -> Float[np.ndarray, "h w 3 2"]:
    """What an affine map around each pixel adds to the one of all pixels, with which nothing is left on average."""
    height, width = seen.shape
    scale = min(1.0, COARSE / max(height, width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    moments = _moments(x, y, rest) * seen[..., None]
    small = _resized(moments, size, cv2.INTER_AREA)
    spread = max(1.0, NEAR * radius * scale)
    near = cv2.GaussianBlur(small, (0, 0), spread, borderType=cv2.BORDER_CONSTANT)
    total = moments.reshape(-1, moments.shape[-1]).sum(axis=0) / seen.sum()
    found = _affine((near + PRIOR * total).reshape(-1, len(total)))
    if found is None:
        return np.zeros((height, width, 3, 2))
    plane = found.reshape(size[1], size[0], 6).astype(np.float32)
    return _resized(plane, (width, height), cv2.INTER_LINEAR).reshape(height, width, 3, 2)


def _moments(
    x: Float[np.ndarray, "h w"], y: Float[np.ndarray, "h w"], values: Float[np.ndarray, "h w 2"]
) -> Float[np.ndarray, "h w 12"]:
    """What the normal equations of an affine map are sums of."""
    rows = np.stack([x, y, np.ones_like(x)], axis=-1)
    pairs = [rows[..., i] * rows[..., j] for i in range(3) for j in range(i, 3)]
    products = [rows[..., i] * values[..., c] for i in range(3) for c in range(2)]
    return np.stack(pairs + products, axis=-1).astype(np.float32)


def _affine(moments: Float[np.ndarray, "n 12"]) -> Float[np.ndarray, "n 3 2"] | None:
    """The affine maps of some sums; None if the pixels lie on a line."""
    values = moments.astype(np.float64)
    normal = values[:, [0, 1, 2, 1, 3, 4, 2, 4, 5]].reshape(-1, 3, 3)
    trace = np.trace(normal, axis1=1, axis2=2)
    normal = normal + 1e-9 * trace[:, None, None] * np.eye(3)
    least, _, most = np.linalg.eigvalsh(normal).T
    if (most > 1e8 * least).any():
        return None
    return np.linalg.solve(normal, values[:, 6:].reshape(-1, 3, 2))


def _apply(
    affine: Float[np.ndarray, "*n 3 2"], x: Float[np.ndarray, "h w"], y: Float[np.ndarray, "h w"]
) -> Float[np.ndarray, "h w 2"]:
    return x[..., None] * affine[..., 0, :] + y[..., None] * affine[..., 1, :] + affine[..., 2, :]


def _sound(affine: Float[np.ndarray, "h w 3 2"]) -> Float[np.ndarray, "h w 3 2"]:
    """The maps with the slope of their mean in place of slopes that are as good as singular, or mirror it."""
    area = np.linalg.det(affine[..., :2, :])
    usual = np.median(area)
    bad = area * np.sign(usual) < FLAT * abs(usual)
    mean = np.median(affine[..., :2, :], axis=(0, 1))
    slope = np.where(bad[..., None, None], mean, affine[..., :2, :])
    return np.concatenate([slope, affine[..., 2:, :]], axis=-2)


def _resized(image: Float[np.ndarray, "h w c"], size: tuple[int, int], how: int) -> Float[np.ndarray, "hh ww c"]:
    """An image of any number of channels at another size (width, height); OpenCV takes four."""
    planes = [cv2.resize(np.ascontiguousarray(image[..., c]), size, interpolation=how) for c in range(image.shape[2])]
    return np.stack(planes, axis=-1)


def _look_up(image: Float[np.ndarray, "h w c"], points: Float[np.ndarray, "n 2"]) -> Float[np.ndarray, "n c"]:
    x, y = (np.ascontiguousarray(points[:, axis] - 0.5, np.float32) for axis in (0, 1))
    return scattered(image, x, y)
