"""Paints the pictures of the synthetic clips: a turtle and a sea floor, the same for a seed at any resolution.

Everything is a function of uv. Lengths are in uv units unless a name says otherwise; the turtle's own coordinates are
(ahead, aside), in units of half the length of its shell.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from neural_fields.core import coords
from neural_fields.core.box import Box

Plane = Float[ndarray, "h w"]
Picture = Float[ndarray, "h w 3"]


def _compute_noise(uv: Float[ndarray, "h w 2"], cell: float, octaves: int, seed: int) -> Plane:
    """Computes smooth noise of about unit variance: cubic B-splines over random lattices of `cell`, `cell`/2, ..."""
    rng = np.random.default_rng(seed)
    result = np.zeros(uv.shape[:2])
    for octave in range(octaves):
        size = cell / 2**octave
        u, v = uv[0, :, 0] / size, uv[:, 0, 1] / size
        # The lattice repeats after 256 steps. All of it is drawn, so that a point gets the same value in any box.
        table = rng.standard_normal((256, 256))
        rows = np.arange(np.floor(v.min()) - 1, np.ceil(v.max()) + 2).astype(int)
        columns = np.arange(np.floor(u.min()) - 1, np.ceil(u.max()) + 2).astype(int)
        values = table[np.ix_(rows % 256, columns % 256)]
        surface = _spline_weights(v - rows[0], len(rows)) @ values @ _spline_weights(u - columns[0], len(columns)).T
        result += 0.6**octave * surface
    return (result * 1.7).astype(np.float32)


def _spline_weights(position: Float[ndarray, " n"], count: int) -> Float[ndarray, "n count"]:
    """Computes the weight of each of `count` lattice points at each position (the uniform cubic B-spline)."""
    x = np.abs(position[:, None] - np.arange(count)[None])
    return np.where(x < 1, 2 / 3 - x**2 + x**3 / 2, np.where(x < 2, (2 - x) ** 3 / 6, 0.0))


def _compute_cells(uv: Float[ndarray, "h w 2"], cell: float, seed: int) -> tuple[Plane, Plane, Plane]:
    """Computes a Voronoi pattern.

    Returns:
        Distance to the nearest seed point and to the border, both in cells, and a random number of each cell.
    """
    rng = np.random.default_rng(seed)
    jitter = rng.random((64, 64, 3))
    position = uv / cell
    corner = np.floor(position).astype(int)
    best = np.full(uv.shape[:2], np.inf)
    second, value = best.copy(), np.zeros_like(best)
    for di in (-1, 0, 1):
        for dj in (-1, 0, 1):
            index = corner + np.array((dj, di))
            own = jitter[index[..., 1] % 64, index[..., 0] % 64]
            away = np.hypot(*np.moveaxis(index + 0.15 + 0.7 * own[..., :2] - position, -1, 0))
            nearer = away < best
            second = np.where(nearer, best, np.minimum(second, away))
            value = np.where(nearer, own[..., 2], value)
            best = np.minimum(best, away)
    return best, (second - best) / 2, value


def paint_sea_floor(box: Box, width: int, height: int, seed: int) -> Picture:
    """Paints a sea floor from above: rippled sand, fields of pebbles, weed and starfish.

    Args:
        box: the part of the plane, in uv units.
        width: width of the picture in texels.
        height: height of the picture in texels.
        seed: seed of the pattern.

    Returns:
        RGB in [0, 1].
    """
    uv = coords.texel_centers(box, width, height).numpy().astype(np.float64)
    seed = seed * 1000
    depth = _smooth_step(_compute_noise(uv, 0.9, 2, seed + 1), -1.4, 1.6)
    sand = _mix_colors((0.80, 0.69, 0.47), (0.36, 0.60, 0.56), depth)
    ripple = np.sin(55 * uv[..., 1] + 14 * uv[..., 0] + 2.6 * _compute_noise(uv, 0.30, 2, seed + 2))
    grain = _compute_noise(uv, 0.05, 2, seed + 3)
    sand = sand * (0.95 + 0.10 * ripple + 0.09 * grain)[..., None]

    # Pebbles: cells, each with a color of its own.
    places = uv + 0.012 * _compute_noise(uv, 0.1, 2, seed + 4)[..., None]
    near, border, value = _compute_cells(places, 0.115, seed + 104)
    colors = np.array(
        [[0.62, 0.66, 0.68], [0.40, 0.47, 0.52], [0.74, 0.62, 0.52], [0.55, 0.44, 0.42], [0.78, 0.77, 0.70]]
    )
    stone = colors[(value * 997).astype(int) % len(colors)] * (0.8 + 0.35 * value)[..., None]
    stone = stone * (1.12 - 0.55 * near**2 + 0.09 * _compute_noise(uv, 0.045, 2, seed + 204))[..., None]
    gaps = np.full_like(stone, 0.2) * (0.9, 1.1, 1.1)
    pebble_cover = _smooth_step(_compute_noise(uv, 0.55, 3, seed + 5), 0.2, 0.35)
    sand = _blend_over(sand, _blend_over(gaps, stone, _smooth_step(border, 0.03, 0.1)), pebble_cover)

    # Sea grass: how bright a blade is at each point, 0 between the blades.
    bend = _compute_noise(uv, 0.25, 2, seed + 6)
    fine = _compute_noise(uv * (1.0, 0.35), 0.035, 2, seed + 7)
    blades = _smooth_step(np.sin(80 * uv[..., 0] + 25 * uv[..., 1] + 6 * bend) + 0.7 * fine, -1.5, 1.6)
    grass_cover = _smooth_step(_compute_noise(uv, 0.5, 4, seed + 7) + blades, 1.25, 1.45)
    sand = _blend_over(sand, _mix_colors((0.05, 0.24, 0.23), (0.45, 0.64, 0.28), blades), grass_cover)

    # About one starfish in a cell of the size `cell`.
    cell = 0.55
    for i in range(int(np.floor(box.v0 / cell)), int(np.ceil(box.v1 / cell))):
        for j in range(int(np.floor(box.u0 / cell)), int(np.ceil(box.u1 / cell))):
            a, b, c, d, e = np.random.default_rng([seed + 8, i + 1000, j + 1000]).random(5)
            if e >= 0.75:
                continue
            u, v, size, turn = (j + 0.2 + 0.6 * a) * cell, (i + 0.2 + 0.6 * b) * cell, 0.05 + 0.045 * c, 6.28 * d
            columns = slice(*np.searchsorted(uv[0, :, 0], (u - 1.4 * size, u + 1.4 * size)))
            rows = slice(*np.searchsorted(uv[:, 0, 1], (v - 1.4 * size, v + 1.4 * size)))
            du, dv = uv[rows, columns, 0] - u, uv[rows, columns, 1] - v
            radius, angle = np.hypot(du, dv) / size, np.arctan2(dv, du) + turn
            outline = 0.62 + 0.36 * np.cos(5 * angle)
            warm = _mix_colors((0.80, 0.33, 0.22), (0.84, 0.62, 0.30), np.full_like(radius, (turn * 7) % 1))
            dots = 1 + 0.22 * np.cos(22 * radius) * np.cos(2.5 * angle) ** 2 - 0.25 * radius
            shadow = 0.9 * outline - np.hypot(du - 0.14 * size, dv - 0.18 * size) / size
            shaded = sand[rows, columns] * (1 - 0.4 * _smooth_step(shadow, -0.15, 0.1))[..., None]
            cover = _smooth_step(outline - radius, -0.02, 0.05)
            sand[rows, columns] = _blend_over(shaded, warm * dots[..., None], cover)
    return sand.clip(0.03, 0.84).astype(np.float32)


def paint_turtle(
    box: Box, width: int, height: int, radius: float, seed: int, upright: bool = False
) -> tuple[Picture, Plane]:
    """Paints a turtle from above in the middle of a box.

    The skin continues outside the outline, so that no sample meets a border.

    Args:
        box: the part of the plane to paint, in uv units.
        width: width of the picture in pixels.
        height: height of the picture in pixels.
        radius: half the length of the shell in uv units.
        seed: seed of the pattern.
        upright: whether it looks up; otherwise it looks right.

    Returns:
        RGB in [0, 1], and the signed distance to the outline in uv units.
    """
    uv = coords.texel_centers(box, width, height).numpy().astype(np.float64)
    center = np.array([box.u0 + box.u1, box.v0 + box.v1]) / 2
    x, y = np.moveaxis((uv - center) / radius, -1, 0)
    ahead, aside = (-y, x) if upright else (x, y)
    seed = seed * 1000 + 500
    here = (uv - center) / radius

    # Green skin with pale-rimmed scales.
    places = here + 0.02 * _compute_noise(here, 0.2, 1, seed + 4)[..., None]
    _, border, value = _compute_cells(places, 0.15, seed + 3)
    scale = (
        _mix_colors((0.10, 0.34, 0.26), (0.30, 0.55, 0.32), value)
        * (1 + 0.1 * _compute_noise(here, 0.08, 2, seed + 5))[..., None]
    )
    skin = _blend_over(np.ones_like(scale) * (0.62, 0.74, 0.50), scale, _smooth_step(border, 0.04, 0.13))

    # The shell over it, by the distance to an ellipse, to first order around that.
    dx, dy = (ahead + 0.05) / 0.98, aside / 0.80
    level = np.hypot(dx, dy)
    shell = level * (level - 1) / np.hypot(dx / 0.98, dy / 0.80).clip(1e-3)
    shell_cover = _smooth_step(-shell, -0.012, 0.012)
    picture = _blend_over(skin, _paint_shell(ahead, aside, here, seed), shell_cover)

    # Eyes: a pale ring and a dark pupil.
    eye = np.hypot(ahead - 1.25, np.abs(aside) - 0.14)
    picture = _blend_over(picture, np.ones_like(picture) * (0.83, 0.80, 0.62), _smooth_step(-eye, -0.075, -0.055))
    picture = _blend_over(picture, np.ones_like(picture) * (0.05, 0.06, 0.08), _smooth_step(-eye, -0.05, -0.03))

    # The distance to the whole animal: shell, head, tail and four flippers, blended by a smooth minimum.
    side = np.abs(aside)
    limbs = [
        _capsule_distance(ahead, aside, (0.8, 0.0), (1.2, 0.0), 0.17, 0.21),
        _capsule_distance(ahead, aside, (-0.9, 0.0), (-1.25, 0.0), 0.10, 0.03),
        _capsule_distance(ahead, side, (0.55, 0.55), (0.38, 1.14), 0.20, 0.17),
        _capsule_distance(ahead, side, (0.38, 1.14), (0.02, 1.36), 0.17, 0.07),
        _capsule_distance(ahead, side, (-0.66, 0.5), (-1.08, 0.86), 0.18, 0.11),
    ]
    outline, blend = shell, 0.10
    for limb in limbs:
        mix = (0.5 + 0.5 * (limb - outline) / blend).clip(0, 1)
        outline = limb + (outline - limb) * mix - blend * mix * (1 - mix)

    distance = outline * radius
    slope = np.hypot(*np.gradient(distance, box.height / height, box.width / width))
    return picture.clip(0.03, 0.84).astype(np.float32), (distance / slope.clip(0.5)).astype(np.float32)


def _paint_shell(ahead: Plane, aside: Plane, here: Float[ndarray, "h w 2"], seed: int) -> Picture:
    """Paints scutes: each is a cell with growth rings, its own color and a pale seam; darker towards the rim."""
    rng = np.random.default_rng(seed)
    spine = [(a, 0.0) for a in (-0.80, -0.42, -0.03, 0.36, 0.72)]
    ribs = [(a, s * 0.42) for a in (-0.62, -0.23, 0.17, 0.54) for s in (-1, 1)]
    turn = np.linspace(0, 2 * np.pi, 24, endpoint=False) + 0.13
    rim = [(-0.05 + 0.92 * np.cos(a), 0.74 * np.sin(a)) for a in turn]
    centers = np.array(spine + ribs + rim)
    wobble = 0.02 * _compute_noise(here, 0.3, 2, seed + 1)
    away = np.stack([np.hypot(ahead - a + wobble, aside - b + wobble) for a, b in centers])
    nearest = away.argmin(axis=0)
    near, second = np.partition(away, 1, axis=0)[:2]
    hue = rng.random(len(centers))[nearest]
    color = _mix_colors((0.45, 0.24, 0.10), (0.80, 0.60, 0.20), hue)
    rings = 0.10 * np.sin(44 * near + 6.28 * hue) + 0.15 * _compute_noise(here, 0.20, 3, seed + 2)
    rays = 0.08 * np.cos(9 * np.arctan2(aside, ahead + 0.05) + 5 * hue)
    dome = 1.12 - 0.38 * (ahead**2 + (1.2 * aside) ** 2)
    color = color * (dome * (1 + rings + rays))[..., None]
    seam = _smooth_step((second - near) / 2, 0.012, 0.035)
    return _blend_over(np.ones_like(color) * (0.20, 0.17, 0.09), color, seam)


def _capsule_distance(
    x: Plane, y: Plane, start: tuple[float, float], end: tuple[float, float], thick: float, thin: float
) -> Plane:
    """Computes the distance to a stroke from `start` to `end` whose half width goes from `thick` to `thin`."""
    ax, ay = end[0] - start[0], end[1] - start[1]
    along = (((x - start[0]) * ax + (y - start[1]) * ay) / (ax * ax + ay * ay)).clip(0, 1)
    return np.hypot(x - start[0] - along * ax, y - start[1] - along * ay) - (thick + (thin - thick) * along)


def _smooth_step(x: Plane, low: float, high: float) -> Plane:
    """Returns 0 below `low`, 1 above `high`, smooth between (a smoothstep)."""
    t = ((x - low) / (high - low)).clip(0, 1)
    return t * t * (3 - 2 * t)


def _mix_colors(a: tuple[float, float, float], b: tuple[float, float, float], weight: Plane) -> Picture:
    """Interpolates between two colors."""
    return np.array(a) + weight[..., None] * (np.array(b) - np.array(a))


def _blend_over(below: Picture, above: Picture, cover: Plane) -> Picture:
    """Blends one picture over another."""
    return below + cover[..., None] * (above - below)
