"""Compiled loops over the rows of a frame: layers looked up, composited, compared, and their equations collected.

What they compute is what `torch_looks.py` computes with whole frames; a test compares both. A row stays in the cache
from the lookup to the last sum, which is why this is several times faster. numba compiles the functions when they are
first called, which takes 20 seconds of a processor once on a machine, and keeps the result on disk.

Values of pixels lie in rows of four lanes (red, green, blue and one that is not used), which the processor handles at
once. Each function is called from one place: numba would otherwise compile it again for each.
"""

from __future__ import annotations

import numpy as np

from neural_fields.nn.compiled_loops import compile_loop
from neural_fields.planar.gauss_newton.strip_kernels import add_gain_row, add_shift_row, close_strip

F = np.float32
U = np.uint32


@compile_loop
def place_row(count, line, steps, box, shift_u, shift_u_below, shift_v, shift_v_below, share, xs, x, y):
    """Computes where the pixels of a row lie in the picture of a layer, in samples.

    Args:
        count: pixels of the row.
        line: u, v and depth of the homography at x = 0, in this row.
        steps: their change for a unit of x.
        box: samples for a unit of u, origin, the same for v.
        shift_u: of the row of knots above, for each pixel, in units.
        shift_u_below: of the row of knots below.
        shift_v: the same for v.
        shift_v_below: see above.
        share: weight of the row of knots below.
        xs: x of the pixels, in units.
        x: set to the positions across.
        y: set to the positions down.
    """
    for j in range(count):
        depth = F(1) / (line[2] + steps[2] * xs[j])
        u = (line[0] + steps[0] * xs[j]) * depth + shift_u[j] + share * (shift_u_below[j] - shift_u[j])
        v = (line[1] + steps[1] * xs[j]) * depth + shift_v[j] + share * (shift_v_below[j] - shift_v[j])
        x[j] = u * box[0] + box[1]
        y[j] = v * box[2] + box[3]


@compile_loop
def find_corners(count, x, y, offset, height, width, corner, inside_x, inside_y):
    """Splits positions into the texel above and to the left, and the way from there; beyond the edge they are held.

    Args:
        count: pixels of the row.
        x: positions across; set to the way from the texel.
        y: the same, down.
        offset: of the picture in the buffer.
        height: of the picture, in samples.
        width: of the picture, in samples.
        corner: set to the place of the texel in the buffer.
        inside_x: set to 0 where positions are held, otherwise to 1.
        inside_y: the same, down.
    """
    highest_x, highest_y = F(width) - F(1.001), F(height) - F(1.001)
    for j in range(count):
        inside_x[j] = F(1) if x[j] > F(0) and x[j] < highest_x else F(0)
        inside_y[j] = F(1) if y[j] > F(0) and y[j] < highest_y else F(0)
        held_x = min(max(x[j], F(0)), highest_x)
        held_y = min(max(y[j], F(0)), highest_y)
        column, row = np.int32(held_x), np.int32(held_y)
        x[j] = held_x - F(column)
        y[j] = held_y - F(row)
        corner[j] = offset + (row * np.int32(width) + column) * np.int32(4)


@compile_loop
def look_up_row(count, x, y, corner, texels, width, with_slopes, color, along_x, along_y):
    """Reads bilinear colors and their slopes along both axes, for a step of one sample.

    Args:
        count: pixels of the row.
        x: way from the texel to the left, 0 to 1.
        y: way from the texel above.
        corner: place of that texel in the buffer.
        texels: the buffer.
        width: of the picture, in samples.
        with_slopes: whether slopes are wanted.
        color: set to the colors, in lanes.
        along_x: set to the slopes across, in lanes.
        along_y: set to the slopes down, in lanes.
    """
    row = U(width * 4)
    for j in range(count):
        right, below, k, o = x[j], y[j], U(corner[j]), U(j * 4)
        for lane in range(4):
            first = texels[k + U(lane)]
            upper_step = texels[k + U(4 + lane)] - first
            third = texels[k + row + U(lane)]
            lower_step = texels[k + row + U(4 + lane)] - third
            upper = first + right * upper_step
            fall = third + right * lower_step - upper
            color[o + U(lane)] = upper + below * fall
            if with_slopes:
                along_x[o + U(lane)] = upper_step + below * (lower_step - upper_step)
                along_y[o + U(lane)] = fall


@compile_loop
def light_row(count, table, table_below, share, gain):
    """Computes gains from their logarithms in two rows of the table; exp is the eighth power of a polynomial.

    Args:
        count: values of the row, four for each pixel.
        table: of the row of knots above.
        table_below: of the row of knots below.
        share: weight of the row below.
        gain: set to the gains, in lanes.
    """
    for j in range(count):
        y = (table[j] + share * (table_below[j] - table[j])) * F(0.125)
        power = F(1) + y * (F(1) + y * (F(0.5) + y * (F(1 / 6) + y * (F(1 / 24) + y * F(1 / 120)))))
        power = power * power
        power = power * power
        gain[j] = power * power


@compile_loop
def expand_shifts(table, index, weight, rows):
    """Interpolates a table of two planes across, to all columns of pixels.

    Args:
        table: [planes, rows, columns].
        index: of each column of pixels, the knot to its left.
        weight: of the knot to its right.
        rows: set to [planes, rows, columns of pixels].
    """
    for plane in range(2):
        for p in range(table.shape[1]):
            for j in range(index.shape[0]):
                q, f = index[j], weight[j]
                rows[plane, p, j] = table[plane, p, q] * (F(1) - f) + table[plane, p, q + 1] * f


@compile_loop
def expand_gains(table, index, weight, rows):
    """The same with three planes, which become lanes.

    Args:
        table: [planes, rows, columns].
        index: of each column of pixels, the knot to its left.
        weight: of the knot to its right.
        rows: set to [rows, four values for each column of pixels].
    """
    for p in range(table.shape[1]):
        for j in range(index.shape[0]):
            q, f = index[j], weight[j]
            for lane in range(3):
                rows[p, j * 4 + lane] = table[lane, p, q] * (F(1) - f) + table[lane, p, q + 1] * f


@compile_loop
def solve_alpha(curvature, slope, inside, outside, mask_weight, halvings):
    """Minimizes curvature a^2 - 2 slope a - mask_weight (inside log a + outside log(1 - a)) over a in [0, 1].

    Args:
        curvature: see `frame_looks.solve_alpha`, also for those that follow.
        slope: see there.
        inside: see there.
        outside: see there.
        mask_weight: see there.
        halvings: of the interval that holds the opacity, where masks are soft.
    """
    curvature = curvature + F(1e-7)
    if outside == F(0) and inside > F(0):
        root = np.sqrt(slope * slope + F(2) * mask_weight * inside * curvature)
        return min(max((slope + root) / (F(2) * curvature), F(0)), F(1))
    if inside == F(0):
        linear = curvature - slope
        root = np.sqrt(linear * linear + F(2) * mask_weight * outside * curvature)
        return F(1) - min(max((linear + root) / (F(2) * curvature), F(0)), F(1))
    a, step, half = F(0.5), F(0.25), mask_weight * F(0.5)
    for _ in range(halvings):
        if curvature * a - slope - half * (inside / a - outside / (F(1) - a)) > F(0):
            a -= step
        else:
            a += step
        step *= F(0.5)
    return a


@compile_loop
def composite_row(
    count, start, lit, gain, alpha, visible, reachable, solves, limits, rest, weights, passing, below,
    curvatures, slopes,
):  # fmt: skip
    """Puts the front layers of a row over the background, and solves for their opacities, front to back.

    `rest` comes as the frame less the background, and `passing` as 1; they leave as the frame less all layers, and as
    the light that reaches the background.

    Args:
        count: pixels of the row that front layers can be seen in.
        start: the first of them.
        lit: colors of all layers with their gain, in lanes; of the last layer for the whole row.
        gain: of the layers, in lanes.
        alpha: opacities of the front layers; changed where they are solved.
        visible: shares by the masks, 0 to 255.
        reachable: whether a layer may be seen.
        solves: whether opacities are solved here.
        limits: see `look_at_frame`.
        rest: residual of the whole row, in lanes.
        weights: set to the gain times what reaches the eye of each front layer, in lanes; the last one has no gain.
        passing: the light that reaches the background.
        below: room for the picture behind each layer.
        curvatures: set to the curvature by each opacity, where it is not solved here.
        slopes: the same for the slope.
    """
    front = alpha.shape[0]
    mask_weight, max_move, snap, halvings = limits[0], limits[1], limits[2], np.int64(limits[3])
    for j in range(count):
        o = j * 4
        # The picture behind each front layer, from the back.
        for lane in range(3):
            below[front - 1, lane] = lit[front, o + start * 4 + lane]
        for n in range(front - 1, 0, -1):
            for lane in range(3):
                below[n - 1, lane] = below[n, lane] + alpha[n, j] * (lit[n, o + lane] - below[n, lane])
        r = start * 4 + o
        r0 = rest[r] + below[front - 1, 0] - below[0, 0] - alpha[0, j] * (lit[0, o] - below[0, 0])
        r1 = rest[r + 1] + below[front - 1, 1] - below[0, 1] - alpha[0, j] * (lit[0, o + 1] - below[0, 1])
        r2 = rest[r + 2] + below[front - 1, 2] - below[0, 2] - alpha[0, j] * (lit[0, o + 2] - below[0, 2])
        left = F(1)
        for n in range(front):
            d0 = (lit[n, o] - below[n, 0]) * left
            d1 = (lit[n, o + 1] - below[n, 1]) * left
            d2 = (lit[n, o + 2] - below[n, 2]) * left
            old = alpha[n, j]
            curvature = d0 * d0 + d1 * d1 + d2 * d2
            slope = r0 * d0 + r1 * d1 + r2 * d2 + curvature * old
            new = old
            if solves and not reachable[n, j]:
                new = F(0)
                alpha[n, j] = new
            elif solves:
                inside = F(visible[n, j]) * F(1 / 255)
                solved = solve_alpha(curvature, slope, inside, left * (F(1) - inside), mask_weight, halvings)
                new = old + min(max(solved - old, -max_move), max_move)
                if new < snap:
                    new = F(0)
                elif new > F(1) - snap:
                    new = F(1)
                alpha[n, j] = new
            else:
                curvatures[n, j] = curvature
                slopes[n, j] = slope
            moved = old - new
            r0 += moved * d0
            r1 += moved * d1
            r2 += moved * d2
            for lane in range(3):
                weights[n, o + lane] = gain[n, o + lane] * (left * new)
            weights[n, o + 3] = left * new
            left = left * (F(1) - new)
        rest[r], rest[r + 1], rest[r + 2] = r0, r1, r2
        passing[start + j] = left


@compile_loop
def scatter_row(count, x, y, corner, rest, weight, width, sums):
    """Adds the gradient of a row's colors, and squared weights, to the texels that show them.

    Pixels that show the layer in part are mixtures, which say little about it: they count by the square of their share
    once more. Otherwise what the opacities explain wrongly gathers in texels that no frame shows well.

    Args:
        count: pixels of the row.
        x: way from the texel to the left, 0 to 1.
        y: way from the texel above.
        corner: place of that texel in the buffer.
        rest: residual, in lanes.
        weight: of the layer times its gain, in lanes, and in the last one without its gain.
        width: of the picture, in samples.
        sums: the buffer of the sums; added to.
    """
    row = U(width * 4)
    for j in range(count):
        right, below, k, o = x[j], y[j], U(corner[j]), U(j * 4)
        w0, w1, w2 = weight[o], weight[o + U(1)], weight[o + U(2)]
        v0, v1, v2 = rest[o] * w0, rest[o + U(1)] * w1, rest[o + U(2)] * w2
        v3 = (w0 * w0 + w1 * w1 + w2 * w2) * F(1 / 3)
        purity = weight[o + U(3)] * weight[o + U(3)]
        v0, v1, v2, v3 = v0 * purity, v1 * purity, v2 * purity, v3 * purity
        lower_right = right * below
        for number in range(4):
            if number == 0:
                share, at = F(1) - right - below + lower_right, k
            elif number == 1:
                share, at = right - lower_right, k + U(4)
            elif number == 2:
                share, at = below - lower_right, k + row
            else:
                share, at = lower_right, k + row + U(4)
            sums[at] += share * v0
            sums[at + U(1)] += share * v1
            sums[at + U(2)] += share * v2
            sums[at + U(3)] += share * v3


@compile_loop
def expand_tables(shifts, gains, axes, width):
    """Interpolates the tables of all layers across, to all columns of pixels.

    Args:
        shifts: [layers, 2, rows, columns].
        gains: [layers, 3, rows, columns].
        axes: see `look_at_frame`.
        width: of the frame.
    """
    shift_lines = np.empty((shifts.shape[0], 2, shifts.shape[2], width), np.float32)
    gain_lines = np.zeros((gains.shape[0], gains.shape[2], width * 4), np.float32)
    for n in range(shifts.shape[0]):
        expand_shifts(shifts[n], axes[0][0], axes[0][1], shift_lines[n])
        expand_gains(gains[n], axes[1][0], axes[1][1], gain_lines[n])
    return shift_lines, gain_lines


@compile_loop
def look_up_layer_row(n, i, start, end, sides, layers, lines, axes, texels, with_slopes, row):
    """Computes the positions, colors, slopes and gains of a layer in the pixels from `start` to `end` of row i.

    Args:
        n: number of the layer.
        i: the row.
        start: first pixel.
        end: the pixel after the last one.
        sides: height and width of the frame.
        layers: see `look_at_frame`, also for `axes` and `texels`.
        lines: the tables, as `expand_tables` returns them.
        axes: see there.
        texels: see there.
        with_slopes: whether slopes are wanted.
        row: arrays [layers, width] or in lanes, which are set.
    """
    places, homographies, boxes = layers[0], layers[1], layers[2]
    x, y, inside_x, inside_y, corner, color, along_x, along_y, gain, lit = row
    height, width = sides
    down = F(2 * i + 1 - height) / F(max(width, height))
    line, steps, xs = np.empty(3, np.float32), np.empty(3, np.float32), np.empty(end - start, np.float32)
    for j in range(start, end):
        xs[j - start] = F(2 * j + 1 - width) / F(max(width, height))
    for k in range(3):
        line[k] = homographies[n, k, 1] * down + homographies[n, k, 2]
        steps[k] = homographies[n, k, 0]
    count, p, g = end - start, axes[0][3][i], axes[1][3][i]
    shift_u, shift_u_below = lines[0][n, 0, p, start:end], lines[0][n, 0, p + 1, start:end]
    shift_v, shift_v_below = lines[0][n, 1, p, start:end], lines[0][n, 1, p + 1, start:end]
    share = axes[0][4][i]
    place_row(count, line, steps, boxes[n], shift_u, shift_u_below, shift_v, shift_v_below, share, xs, x[n], y[n])
    offset, rows, columns = places[n, 0], places[n, 1], places[n, 2]
    find_corners(count, x[n], y[n], offset, rows, columns, corner[n], inside_x[n], inside_y[n])
    look_up_row(count, x[n], y[n], corner[n], texels, columns, with_slopes, color[n], along_x[n], along_y[n])
    table, below = lines[1][n, g, start * 4 : end * 4], lines[1][n, g + 1, start * 4 : end * 4]
    light_row(count * 4, table, below, axes[1][4][i], gain[n])
    for j in range(count * 4):
        lit[n, j] = color[n, j] * gain[n, j]


@compile_loop
def subtract_background(values, lit, rest):
    """Computes a row of the frame less the background.

    Args:
        values: of the frame, uint8 [width, 3].
        lit: the background, in lanes.
        rest: set to the difference, in lanes.
    """
    for j in range(values.shape[0]):
        for lane in range(3):
            rest[j * 4 + lane] = F(values[j, lane]) * F(1 / 255) - lit[j * 4 + lane]


@compile_loop
def sum_squares(width, rest, gain, passing, weight):
    """Returns the sum of a row's squared residuals, and computes the weight of the background.

    Args:
        width: of the frame.
        rest: residual, in lanes.
        gain: of the background, in lanes.
        passing: the light that reaches it.
        weight: set to the product of both, in lanes; the last one has no gain.
    """
    squared = F(0)
    for j in range(width):
        o = j * 4
        squared += rest[o] * rest[o] + rest[o + 1] * rest[o + 1] + rest[o + 2] * rest[o + 2]
        for lane in range(3):
            weight[o + lane] = gain[o + lane] * passing[j]
        weight[o + 3] = passing[j]
    return squared


@compile_loop
def look_at_frame(frame, masks, layers, axes, texels, solving, wanted, equations, sums):
    """Looks at a frame once, from its first row to its last. Arrays are float32 where nothing else is said.

    Args:
        frame: uint8 [height, width, 3].
        masks: shares of pixels by the masks, uint8 [front, height and width of the window]; opacities of the same
            shape, which are changed where they are solved; where layers may be seen, bool of the same shape; top,
            bottom, left, right of the window.
        layers: of each layer's picture its offset in `texels`, height, width [layers, 3]; homographies [layers, 3, 3];
            samples for a unit of u, origin, the same for v, a pixel in units [layers, 5]; shifts [layers, 2, rows,
            columns], in units; logarithms of gains [layers, 3, rows, columns].
        axes: for shifts, then for gains: of each column of pixels the knot to its left, and the weight of the next one;
            the first column to the right of each knot; of each row of pixels the knot above, and the weight of the one
            below.
        texels: all pictures, in four lanes.
        solving: whether opacities are solved here; weight of the masks, largest move, snap, halvings; where they are
            not, curvature and slope of the residuals by the opacities.
        wanted: whether the equations of shifts and gains are collected, and the gradient of the texels.
        equations: matrix and right-hand side of shifts [layers, 5, 3, rows, columns], [layers, 2, rows, columns], and
            of gains [layers, 5, 3, rows, columns], [layers, 3, rows, columns]; added to.
        sums: of the texels, as `texels`; added to.

    Returns:
        The sum of squared residuals, after opacities are solved.
    """
    visible, alpha, reachable, window = masks
    solves, limits, curvatures, slopes = solving
    (_, shift_weight, shift_starts, shift_row, shift_share), (_, gain_weight, gain_starts, gain_row, gain_share) = axes
    places, boxes, back = layers[0], layers[2], layers[0].shape[0] - 1
    height, width = frame.shape[:2]
    top, bottom, left, right = window[0], window[1], window[2], window[3]
    has_front = back > 0 and bottom > top and right > left
    lines = expand_tables(layers[3], layers[4], axes, width)
    one, four = (back + 1, width), (back + 1, width * 4)
    x, y, inside_x, inside_y = np.empty(one, F), np.empty(one, F), np.empty(one, F), np.empty(one, F)
    corner, color, along_x, along_y = np.empty(one, np.int32), np.empty(four, F), np.empty(four, F), np.empty(four, F)
    gain, lit, weights = np.zeros(four, F), np.empty(four, F), np.zeros(four, F)
    row = (x, y, inside_x, inside_y, corner, color, along_x, along_y, gain, lit)
    rest, passing, below = np.zeros(width * 4, F), np.empty(width, F), np.empty((back + 1, 3), F)
    products, lit_products = np.empty((5, width), F), np.empty((2, width * 4), F)
    shift_sums, gain_sums = np.zeros((back + 1, 5, width * 4), F), np.zeros((back + 1, 5, width * 4), F)
    error = 0.0
    for i in range(height):
        row_has_front = has_front and top <= i < bottom
        first = 0 if row_has_front else back
        for n in range(first, back + 1):
            start, end = (0, width) if n == back else (left, right)
            look_up_layer_row(n, i, start, end, (height, width), layers, lines, axes, texels, wanted[0], row)
        subtract_background(frame[i], lit[back], rest)
        passing[:] = F(1)
        if row_has_front:
            k, count = i - top, right - left
            curvature, slope = curvatures[:, k], slopes[:, k]
            composite_row(
                count, left, lit, gain, alpha[:, k], visible[:, k], reachable[:, k], solves, limits, rest, weights,
                passing, below, curvature, slope,
            )  # fmt: skip
        error += sum_squares(width, rest, gain[back], passing, weights[back])
        for n in range(first, back + 1):
            start, end = (0, width) if n == back else (left, right)
            count, part, weight = end - start, rest[start * 4 : end * 4], weights[n]
            if wanted[0]:
                kx, ky = boxes[n, 0] * boxes[n, 4], boxes[n, 2] * boxes[n, 4]
                add_shift_row(
                    count, start, part, weight, along_x[n], along_y[n], inside_x[n], inside_y[n], kx, ky,
                    shift_share[i], products, shift_sums[n],
                )  # fmt: skip
                share = gain_share[i]
                add_gain_row(count * 4, start * 4, part, weight, color[n], share, lit_products, gain_sums[n])
            if wanted[1]:
                scatter_row(count, x[n], y[n], corner[n], part, weight, places[n, 2], sums)
        # A strip between two rows of knots is complete when the next one begins.
        for n in range(0 if has_front else back, back + 1 if wanted[0] else 0):
            p, g, is_last = shift_row[i], gain_row[i], i == height - 1
            if is_last or shift_row[i + 1] != p:
                close_strip(p, shift_sums[n], width, 1, shift_starts, shift_weight, equations[0][n], equations[1][n])
            if is_last or gain_row[i + 1] != g:
                close_strip(g, gain_sums[n], 1, 4, gain_starts, gain_weight, equations[2][n], equations[3][n])
    return error
