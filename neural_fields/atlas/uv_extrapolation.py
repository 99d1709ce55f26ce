"""uv extrapolation: it continues the uv map of a layer in a frame beyond the visible pixels, and inverts it.

A trained model does not determine the mapping where no pixel shows the layer, but deformed objects extend beyond it. So
outside the visible pixels, the map is an affine one fitted to the visible pixels nearby (moving least squares), and far
away the one fitted to all of them. The residual at the silhouette fades out around it.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Bool, Float

from neural_fields.atlas.uv_maps import Maps
from neural_fields.imaging.push_pull import pull_push
from neural_fields.imaging.resampling import sample_bilinear


@dataclass(frozen=True)
class ExtrapolationSettings:
    """Settings of the extrapolation of a uv map, and of its inversion by Newton's method."""

    min_px: int = 12  # pixels that must show the layer; with fewer there is no map
    grid_side: int = 128  # samples along the longer side at which affine maps are fitted; enough, as they are smooth
    # Standard deviation of the window of a fit, in radii of a disc as large as the visible part.
    window_radius: float = 0.5
    global_weight: float = 1e-3  # weight of all visible pixels in the fit around each pixel
    # A local map that scales areas by less than this share of the usual factor is replaced.
    min_area_ratio: float = 0.05
    newton_steps: int = 12  # most steps of Newton's method
    tolerance_px: float = 1e-3  # the search ends when the error is smaller than this, in pixels
    max_step: float = 0.25  # longest step of Newton's method, as a share of the longer side
    min_map_weight: float = 0.5  # the map is used where the layer has at least this weight
    max_error_px: float = 1.0  # a position with a larger error, in pixels, was not found


DEFAULTS = ExtrapolationSettings()


@dataclass(frozen=True)
class ExtrapolatedMap:
    """Holds the uv at every pixel center of a frame, and its smooth Jacobian. The first pixel center is (0.5, 0.5).

    Attributes:
        uv: uv units.
        jacobian: d(uv) / d(pixel), never singular; the last axis is x, y.
    """

    uv: Float[np.ndarray, "height width 2"]
    jacobian: Float[np.ndarray, "height width 2 2"]

    def sample_uv(self, points: Float[np.ndarray, "n 2"]) -> Float[np.ndarray, "n 2"]:
        """Returns the uv of any positions; beyond the frame, the map continues with the Jacobian at its edge."""
        return self._sample_with_slope(points)[0]

    def sample_jacobian(self, points: Float[np.ndarray, "n 2"]) -> Float[np.ndarray, "n 2 2"]:
        """Returns the smooth Jacobian at any positions."""
        flat = self.jacobian.reshape(*self.jacobian.shape[:2], 4)
        return _sample_pixels(flat, self._clip_to_frame(points)).reshape(-1, 2, 2)

    def solve_positions(
        self,
        uv: Float[np.ndarray, "n 2"],
        start: Float[np.ndarray, "n 2"],
        settings: ExtrapolationSettings = DEFAULTS,
    ) -> tuple[Float[np.ndarray, "n 2"], Float[np.ndarray, " n"]]:
        """Finds the positions of uv points by Newton's method with the smooth Jacobian; the visible map may be rough.

        Args:
            uv: any points.
            start: positions to start from, in pixels.
            settings: steps and tolerance.

        Returns:
            The positions, and their errors in pixels.
        """
        points, best = start.astype(np.float64), start.astype(np.float64)
        least = np.full(len(points), np.inf)
        longest = settings.max_step * max(self.uv.shape[:2])
        left = np.arange(len(points))
        for _ in range(settings.newton_steps):
            here = points[left]
            found, slope = self._sample_with_slope(here)
            step = solve_2x2(uv[left] - found, slope)
            error = np.linalg.norm(step, axis=1)
            better = error < least[left]
            best[left[better]], least[left[better]] = here[better], error[better]
            points[left] = here + step * np.minimum(1, longest / np.maximum(error, 1e-9))[:, None]
            left = left[least[left] >= settings.tolerance_px]
            if not len(left):
                break
        return best, least

    def _sample_with_slope(
        self, points: Float[np.ndarray, "n 2"]
    ) -> tuple[Float[np.ndarray, "n 2"], Float[np.ndarray, "n 2 2"]]:
        inside = self._clip_to_frame(points)
        slope = self.sample_jacobian(inside)
        x, y = (points - inside).T
        beyond = np.stack([slope[:, i, 0] * x + slope[:, i, 1] * y for i in (0, 1)], axis=-1)
        return _sample_pixels(self.uv, inside) + beyond, slope

    def _clip_to_frame(self, points: Float[np.ndarray, "n 2"]) -> Float[np.ndarray, "n 2"]:
        height, width = self.uv.shape[:2]
        return np.clip(points, 0.5, np.array([width - 0.5, height - 0.5]))


def solve_2x2(values: Float[np.ndarray, "n 2"], slope: Float[np.ndarray, "n 2 2"]) -> Float[np.ndarray, "n 2"]:
    """Solves slope @ x = values for x.

    Example:
        >>> solve_2x2(np.array([[2.0, 3.0]]), np.diag([2.0, 1.0])[None]).tolist()
        [[1.0, 3.0]]
    """
    (a, b), (c, d) = np.moveaxis(slope.astype(np.float64), 0, -1)
    u, v = values.T
    area = a * d - b * c
    return np.stack([d * u - b * v, a * v - c * u], axis=-1) / np.where(area == 0, 1e-12, area)[:, None]


def extrapolate_uv(
    uv: Float[np.ndarray, "height width 2"],
    seen: Bool[np.ndarray, "height width"],
    settings: ExtrapolationSettings = DEFAULTS,
) -> ExtrapolatedMap | None:
    """Extrapolates the uv map of a frame.

    Args:
        uv: uv units; counts where the layer is seen.
        seen: the pixels that show the layer.
        settings: window and limits of the local fits.

    Returns:
        The map; None where too little of the layer is visible.
    """
    if seen.sum() < settings.min_px:
        return None
    height, width = seen.shape
    y, x = (np.mgrid[:height, :width] + 0.5).astype(np.float32)
    radius = np.sqrt(seen.sum() / np.pi)
    x0, y0 = float(x[seen].mean()), float(y[seen].mean())
    x, y = (x - x0) / radius, (y - y0) / radius
    affine = _solve_affine(_compute_moments(x, y, uv)[seen].mean(axis=0)[None])
    if affine is None:
        return None
    # What an affine map around each pixel adds to that of all pixels, which leaves nothing on average.
    rest = np.where(seen[..., None], uv - _apply_affine(affine[0], x, y), 0).astype(np.float32)
    scale = min(1.0, settings.grid_side / max(height, width))
    grid = (max(1, round(width * scale)), max(1, round(height * scale)))
    moments = _compute_moments(x, y, rest) * seen[..., None]
    sigma = max(1.0, settings.window_radius * radius * scale)
    small = _resize_channels(moments, grid, cv2.INTER_AREA)
    near = cv2.GaussianBlur(small, (0, 0), sigma, borderType=cv2.BORDER_CONSTANT)
    total = moments.reshape(-1, moments.shape[-1]).sum(axis=0) / seen.sum()
    found = _solve_affine((near + settings.global_weight * total).reshape(-1, len(total)))
    if found is None:
        local = np.zeros((height, width, 3, 2))
    else:
        plane = found.reshape(grid[1], grid[0], 6).astype(np.float32)
        local = _resize_channels(plane, (width, height), cv2.INTER_LINEAR).reshape(height, width, 3, 2)
    both = affine[0] + local
    # Slopes that are nearly singular, or mirrored, are replaced by the median.
    area = np.linalg.det(both[..., :2, :])
    usual = np.median(area)
    is_bad = area * np.sign(usual) < settings.min_area_ratio * abs(usual)
    median = np.median(both[..., :2, :], axis=(0, 1))
    linear = np.where(is_bad[..., None, None], median, both[..., :2, :])
    both = np.concatenate([linear, both[..., 2:, :]], axis=-2)
    # What the smooth map misses of the seen pixels fades out around them.
    smooth = _apply_affine(both, x, y)
    missed = pull_push((uv - smooth).astype(np.float32), seen)
    # Rows of an affine map are x, y and one; a slope has uv first, and is by pixels.
    slope = np.moveaxis(both[..., :2, :], -2, -1) / radius
    return ExtrapolatedMap((smooth + missed).astype(np.float32), np.ascontiguousarray(slope, np.float32))


def _compute_moments(
    x: Float[np.ndarray, "h w"], y: Float[np.ndarray, "h w"], values: Float[np.ndarray, "h w 2"]
) -> Float[np.ndarray, "h w 12"]:
    """Computes the products whose sums are the normal equations of an affine map."""
    rows = np.stack([x, y, np.ones_like(x)], axis=-1)
    pairs = [rows[..., i] * rows[..., j] for i in range(3) for j in range(i, 3)]
    products = [rows[..., i] * values[..., c] for i in range(3) for c in range(2)]
    return np.stack(pairs + products, axis=-1).astype(np.float32)


def _solve_affine(moments: Float[np.ndarray, "n 12"]) -> Float[np.ndarray, "n 3 2"] | None:
    """Solves the normal equations of affine maps; returns None if the pixels lie on a line."""
    values = moments.astype(np.float64)
    normal = values[:, [0, 1, 2, 1, 3, 4, 2, 4, 5]].reshape(-1, 3, 3)
    trace = np.trace(normal, axis1=1, axis2=2)
    normal = normal + 1e-9 * trace[:, None, None] * np.eye(3)
    least, _, most = np.linalg.eigvalsh(normal).T
    if (most > 1e8 * least).any():
        return None
    return np.linalg.solve(normal, values[:, 6:].reshape(-1, 3, 2))


def _apply_affine(
    affine: Float[np.ndarray, "*n 3 2"], x: Float[np.ndarray, "h w"], y: Float[np.ndarray, "h w"]
) -> Float[np.ndarray, "h w 2"]:
    return x[..., None] * affine[..., 0, :] + y[..., None] * affine[..., 1, :] + affine[..., 2, :]


def _resize_channels(
    image: Float[np.ndarray, "h w c"], size: tuple[int, int], interpolation: int
) -> Float[np.ndarray, "hh ww c"]:
    """Resizes an image of any number of channels to (width, height); OpenCV takes four."""
    planes = []
    for channel in range(image.shape[2]):
        planes.append(cv2.resize(np.ascontiguousarray(image[..., channel]), size, interpolation=interpolation))
    return np.stack(planes, axis=-1)


def _sample_pixels(image: Float[np.ndarray, "h w c"], points: Float[np.ndarray, "n 2"]) -> Float[np.ndarray, "n c"]:
    x, y = (np.ascontiguousarray(points[:, axis] - 0.5, np.float32) for axis in (0, 1))
    return sample_bilinear(image, x, y)


def extrapolate_frame_map(
    maps: Maps, t: int, layer: int, settings: ExtrapolationSettings = DEFAULTS
) -> ExtrapolatedMap | None:
    """Returns the uv map of a layer in frame `t`, extrapolated beyond its visible pixels; None if too few are visible.

    Args:
        maps: the baked maps of the run.
        t: frame of the run.
        layer: number of the layer.
        settings: least weight of a visible pixel.
    """
    return extrapolate_uv(
        maps.read_uv_small(t, layer), maps.read_layer_weight_small(t, layer) >= settings.min_map_weight
    )
