"""Compiled loops for the equations of a pass: products of their matrices with the values of knots and of texels.

What they compute is what `grid_stencil.py` and `texture_update.py` compute with torch; tests compare both. Every loop
runs along a row, so that the processor does several values at once.
"""

from __future__ import annotations

import numpy as np

from neural_fields.nn.compiled_loops import compile_loop

F = np.float32


@compile_loop
def multiply_knots(stencil, values, result):
    """Multiplies symmetric nine-point matrices with values at their knots.

    Args:
        stencil: of each knot: itself, its neighbors to the east, south, south-east and south-west
            [5, matrices, rows, columns].
        values: [matrices, rows, columns].
        result: set to the products.
    """
    count, rows, columns = values.shape
    for n in range(count):
        for p in range(rows):
            out, own, v = result[n, p], stencil[0, n, p], values[n, p]
            east = stencil[1, n, p]
            for q in range(columns):
                out[q] = own[q] * v[q]
            for q in range(columns - 1):
                out[q] += east[q] * v[q + 1]
            for q in range(1, columns):
                out[q] += east[q - 1] * v[q - 1]
            if p + 1 < rows:
                below, south, south_east, south_west = (
                    values[n, p + 1],
                    stencil[2, n, p],
                    stencil[3, n, p],
                    stencil[4, n, p],
                )
                for q in range(columns):
                    out[q] += south[q] * below[q]
                for q in range(columns - 1):
                    out[q] += south_east[q] * below[q + 1]
                for q in range(1, columns):
                    out[q] += south_west[q] * below[q - 1]
            if p > 0:
                above, north, north_west, north_east = (
                    values[n, p - 1],
                    stencil[2, n, p - 1],
                    stencil[3, n, p - 1],
                    stencil[4, n, p - 1],
                )
                for q in range(columns):
                    out[q] += north[q] * above[q]
                for q in range(1, columns):
                    out[q] += north_west[q - 1] * above[q - 1]
                for q in range(columns - 1):
                    out[q] += north_east[q + 1] * above[q + 1]


@compile_loop
def blur_texels(values, root, factor, result):
    """Multiplies texels with the matrix of their lookups, and adds what holds them where they are.

    Args:
        values: [channels, rows, columns].
        root: root of the weight of each texel [rows, columns].
        factor: of the values that are added.
        result: set to the products.
    """
    channels, rows, columns = values.shape
    scaled, line = np.empty((rows, columns), F), np.empty(columns + 2, F)
    line[0], line[columns + 1] = F(0), F(0)
    for c in range(channels):
        for p in range(rows):
            for q in range(columns):
                scaled[p, q] = values[c, p, q] * root[p, q]
        for p in range(rows):
            for q in range(columns):
                line[q + 1] = F(3 / 4) * scaled[p, q]
            if p > 0:
                for q in range(columns):
                    line[q + 1] += F(1 / 8) * scaled[p - 1, q]
            if p + 1 < rows:
                for q in range(columns):
                    line[q + 1] += F(1 / 8) * scaled[p + 1, q]
            for q in range(columns):
                mean = F(3 / 4) * line[q + 1] + F(1 / 8) * (line[q] + line[q + 2])
                result[c, p, q] = root[p, q] * mean + factor * values[c, p, q]


@compile_loop
def add_texel_steps(values, across, down, stiffness, result):
    """Adds the product of texels with the matrix of squared steps and bends.

    Args:
        values: [channels, rows, columns].
        across: weight of the step to the next texel of the row [rows, columns - 1].
        down: weight of the step to the next row [rows - 1, columns].
        stiffness: weight of a bend.
        result: added to.
    """
    channels, rows, columns = values.shape
    steps, bends = np.empty(columns, F), np.empty(columns, F)
    for c in range(channels):
        for p in range(rows):
            v, out = values[c, p], result[c, p]
            for q in range(columns - 1):
                steps[q] = across[p, q] * (v[q + 1] - v[q])
            for q in range(columns - 1):
                out[q] -= steps[q]
            for q in range(columns - 1):
                out[q + 1] += steps[q]
            for q in range(columns - 2):
                bends[q] = stiffness * (v[q] - F(2) * v[q + 1] + v[q + 2])
            for q in range(columns - 2):
                out[q] += bends[q]
            for q in range(columns - 2):
                out[q + 1] -= F(2) * bends[q]
            for q in range(columns - 2):
                out[q + 2] += bends[q]
            if p + 1 < rows:
                below, out_below = values[c, p + 1], result[c, p + 1]
                for q in range(columns):
                    step = down[p, q] * (below[q] - v[q])
                    out[q] -= step
                    out_below[q] += step
            if p + 2 < rows:
                below, last = values[c, p + 1], values[c, p + 2]
                out_below, out_last = result[c, p + 1], result[c, p + 2]
                for q in range(columns):
                    bend = stiffness * (v[q] - F(2) * below[q] + last[q])
                    out[q] += bend
                    out_below[q] -= F(2) * bend
                    out_last[q] += bend
