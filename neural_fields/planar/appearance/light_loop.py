"""The compiled loop of the closed-form gains; what it computes is what `fit_gain` computes with torch and OpenCV."""

from __future__ import annotations

import numpy as np

from neural_fields.nn.compiled_loops import compile_loop

F = np.float32


@compile_loop
def sum_light_products(u, v, rgb, share, picture, places, across, down, offset, sums):
    """Sums up texture times frame, and squared texture, over the cells of a grid that spans the frame.

    Args:
        u: canonical positions, float32 [rows, columns] of a rectangle of the frame.
        v: the same along the other axis.
        rgb: the frame there, 0 to 1, float32 [rows, columns, 3].
        share: the share of each pixel that counts, float32 [rows, columns].
        picture: of the layer, float32 [3, height, width]; its edge is repeated.
        places: texels for a unit of u, the texel at u = 0, and the same for v; float32 [4].
        across: of each column the first cell that it touches, int64, and its share of that, float32.
        down: the same of each row.
        offset: added to every product.
        sums: products and squares, float32 [2, 3, rows and columns of cells]; added to.
    """
    last_row, last_column, width = picture.shape[1] - 1, picture.shape[2] - 1, sums.shape[3]
    limit_x, limit_y = F(last_column), F(last_row)
    row_sums = np.zeros((2, 3, width), np.float32)
    for i in range(u.shape[0]):
        row_sums[:] = F(0)
        for j in range(u.shape[1]):
            s = share[i, j]
            if s == F(0):
                continue
            x = min(max(u[i, j] * places[0] + places[1], F(0)), limit_x)
            y = min(max(v[i, j] * places[2] + places[3], F(0)), limit_y)
            column, row = np.int64(x), np.int64(y)
            right, lower = x - F(column), y - F(row)
            next_column, next_row = min(column + 1, last_column), min(row + 1, last_row)
            cell, first = across[0][j], across[1][j] * s
            for k in range(3):
                top, bottom = picture[k, row, column], picture[k, next_row, column]
                top += right * (picture[k, row, next_column] - top)
                bottom += right * (picture[k, next_row, next_column] - bottom)
                texel = top + lower * (bottom - top)
                product = texel * rgb[i, j, k] + offset
                square = texel * texel + offset
                row_sums[0, k, cell] += first * product
                row_sums[1, k, cell] += first * square
                if first < s:
                    row_sums[0, k, cell + 1] += (s - first) * product
                    row_sums[1, k, cell + 1] += (s - first) * square
        cell, first = down[0][i], down[1][i]
        for n in range(2):
            for k in range(3):
                for q in range(width):
                    sums[n, k, cell, q] += first * row_sums[n, k, q]
                    if first < F(1):
                        sums[n, k, cell + 1, q] += (F(1) - first) * row_sums[n, k, q]
