"""Compiled loops that collect the equations of shifts and gains, strip by strip.

A strip is what lies between two rows of knots: every pixel in it belongs to the knots above and below. Its sums are
kept for each column of pixels, and are brought to the knots when the strip is complete. Inner loops run along a row,
with nothing in them that keeps the processor from doing several pixels at once.
"""

from __future__ import annotations

import numpy as np

from neural_fields.nn.compiled_loops import compile_loop

F = np.float32


@compile_loop
def add_shift_row(
    count, start, rest, weight, along_x, along_y, inside_x, inside_y, scale_x, scale_y, share, products, rows
):  # fmt: skip
    """Adds a row's derivatives by both shifts, multiplied with each other and with the residual, to a strip.

    Args:
        count: pixels of the row.
        start: the first of them in the frame.
        rest: residual, in lanes.
        weight: of the layer times its gain, in lanes.
        along_x: slopes of the colors for a sample, in lanes.
        along_y: the same, down.
        inside_x: 0 where positions are held at the edge, otherwise 1.
        inside_y: the same, down.
        scale_x: samples for a pixel of shift.
        scale_y: the same, down.
        share: weight of the row of knots below the strip.
        products: room for a row of xx, xy, yy, and of both times the residual.
        rows: sums of the strip, plane by plane; added to, see `close_strip`.
    """
    xx, xy, yy, xr, yr = products[0], products[1], products[2], products[3], products[4]
    for j in range(count):
        o = j * 4
        x0, x1, x2 = along_x[o] * weight[o], along_x[o + 1] * weight[o + 1], along_x[o + 2] * weight[o + 2]
        y0, y1, y2 = along_y[o] * weight[o], along_y[o + 1] * weight[o + 1], along_y[o + 2] * weight[o + 2]
        r0, r1, r2 = rest[o], rest[o + 1], rest[o + 2]
        kx, ky = scale_x * inside_x[j], scale_y * inside_y[j]
        xx[j] = (x0 * x0 + x1 * x1 + x2 * x2) * kx * kx
        xy[j] = (x0 * y0 + x1 * y1 + x2 * y2) * kx * ky
        yy[j] = (y0 * y0 + y1 * y1 + y2 * y2) * ky * ky
        xr[j] = (x0 * r0 + x1 * r1 + x2 * r2) * kx
        yr[j] = (y0 * r0 + y1 * r1 + y2 * r2) * ky
    upper, width = F(1) - share, products.shape[1]
    for strip, factor in ((0, upper * upper), (1, upper * share), (2, share * share)):
        for m in range(3):
            line, values = rows[strip, m * width + start : m * width + start + count], products[m]
            for j in range(count):
                line[j] += factor * values[j]
    for strip, factor in ((3, upper), (4, share)):
        for m in range(2):
            line, values = rows[strip, m * width + start : m * width + start + count], products[3 + m]
            for j in range(count):
                line[j] += factor * values[j]


@compile_loop
def add_gain_row(count, start, rest, weight, color, share, products, rows):
    """Adds a row's derivatives by the logarithms of the gain, squared and times the residual, to a strip.

    Args:
        count: values of the row, four for each pixel.
        start: the first of them in the frame.
        rest: residual, in lanes.
        weight: of the layer times its gain, in lanes.
        color: of the layer without its gain, in lanes.
        share: weight of the row of knots below the strip.
        products: room for two rows, in lanes.
        rows: sums of the strip; added to, see `close_strip`.
    """
    squares, slopes = products[0], products[1]
    for j in range(count):
        slope = weight[j] * color[j]
        squares[j] = slope * slope
        slopes[j] = slope * rest[j]
    upper = F(1) - share
    for strip, factor in ((0, upper * upper), (1, upper * share), (2, share * share), (3, upper), (4, share)):
        line, values = rows[strip, start : start + count], squares if strip < 3 else slopes
        for j in range(count):
            line[j] += factor * values[j]


@compile_loop
def close_strip(p, rows, plane, step, starts, weight, matrix, right):
    """Adds the sums of a strip to the knots above and below it, and clears them.

    Args:
        p: the row of knots above the strip.
        rows: of each pixel: what belongs to the upper knots alone, to both, and to the lower ones alone; then the
            right-hand sides of the upper and the lower ones.
        plane: places from one value of a pixel to its next one.
        step: places from one pixel to the next.
        starts: the first column of pixels to the right of each knot.
        weight: of the knot to the right, for each column of pixels.
        matrix: stencils of the knots; added to.
        right: right-hand sides; added to.
    """
    for q in range(starts.shape[0] - 1):
        first, end = starts[q], starts[q + 1]
        for strip in range(3):
            line = rows[strip]
            a0, a1, a2, b0, b1, b2, c0, c1, c2 = F(0), F(0), F(0), F(0), F(0), F(0), F(0), F(0), F(0)
            for j in range(first, end):  # three values of a pixel at once
                f, k = weight[j], j * step
                e = F(1) - f
                ee, ef, ff = e * e, e * f, f * f
                v0, v1, v2 = line[k], line[k + plane], line[k + 2 * plane]
                a0, a1, a2 = a0 + ee * v0, a1 + ee * v1, a2 + ee * v2
                b0, b1, b2 = b0 + ef * v0, b1 + ef * v1, b2 + ef * v2
                c0, c1, c2 = c0 + ff * v0, c1 + ff * v1, c2 + ff * v2
            for m, a, b, c in ((0, a0, b0, c0), (1, a1, b1, c1), (2, a2, b2, c2)):
                if strip == 1:  # between both rows of knots
                    matrix[2, m, p, q] += a
                    matrix[3, m, p, q] += b
                    matrix[4, m, p, q + 1] += b
                    matrix[2, m, p, q + 1] += c
                else:
                    k = p + strip // 2
                    matrix[0, m, k, q] += a
                    matrix[1, m, k, q] += b
                    matrix[0, m, k, q + 1] += c
        for m in range(right.shape[0]):
            for strip in range(2):
                line = rows[3 + strip]
                a, c = F(0), F(0)
                for j in range(first, end):
                    a += (F(1) - weight[j]) * line[j * step + m * plane]
                    c += weight[j] * line[j * step + m * plane]
                right[m, p + strip, q] += a
                right[m, p + strip, q + 1] += c
    rows[:] = F(0)
