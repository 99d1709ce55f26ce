"""The compiled loop of texture splatting; what it computes is what `TextureMean` computes with torch."""

from __future__ import annotations

import numpy as np

from neural_fields.nn.compiled_loops import compile_loop

F = np.float32


@compile_loop
def splat_pixels(u, v, rgb, weight, places, total):
    """Adds each pixel, times its weight, to the four texels around its place.

    Args:
        u: canonical positions, float32 [rows, columns].
        v: the same along the other axis.
        rgb: colors, float32 [rows, columns, 3].
        weight: of each pixel, float32 [rows, columns].
        places: texels for a unit of u, the texel at u = 0, and the same for v; float32 [4].
        total: sums of weighted colors and of weights, float32 [height, width, 4]; added to.
    """
    height, width = total.shape[0], total.shape[1]
    right, bottom = F(width), F(height)
    for i in range(u.shape[0]):
        for j in range(u.shape[1]):
            w = weight[i, j]
            x, y = u[i, j] * places[0] + places[1], v[i, j] * places[2] + places[3]
            if w == F(0) or not (x > F(-1) and y > F(-1) and x < right and y < bottom):
                continue
            column, row = np.int64(np.floor(x)), np.int64(np.floor(y))
            across, down = x - F(column), y - F(row)
            for below in range(2):
                for beside in range(2):
                    p, q = row + below, column + beside
                    if 0 <= p < height and 0 <= q < width:
                        part = (down if below else F(1) - down) * (across if beside else F(1) - across) * w
                        total[p, q, 0] += part * rgb[i, j, 0]
                        total[p, q, 1] += part * rgb[i, j, 1]
                        total[p, q, 2] += part * rgb[i, j, 2]
                        total[p, q, 3] += part
