"""Loops that put paint and grades on a part of a frame in one go, pixel by pixel, from bytes to bytes.

They do what `overlay_pass` and `grade_pass` do with OpenCV, a step after the other, in a fraction of the time: nothing
is written in between. numba compiles them.
"""

from __future__ import annotations

import numpy as np

from neural_fields.nn.compiled_loops import compile_loop


@compile_loop
def _find_sample(pixel: int, step: float, start: float, count: int) -> tuple[int, int, np.float32]:
    """Finds the two samples around the center of a pixel, and the share of the second; the edge goes on outside."""
    place = min(max((pixel + 0.5) * step + start, 0.0), count - 1.0)
    first = min(int(place), max(count - 2, 0))
    return first, min(first + 1, count - 1), np.float32(place - first)


@compile_loop
def _find_columns(left: int, right: int, step: float, start: float, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Finds the samples around the pixels of a row: the first one, and the share of the second."""
    first, share = np.empty(right - left, np.int32), np.empty(right - left, np.float32)
    for x in range(left, right):
        first[x - left], _, share[x - left] = _find_sample(x, step, start, count)
    return first, share


@compile_loop
def _look_up(image: np.ndarray, x: np.float32, y: np.float32) -> tuple[np.float32, np.float32, np.float32, np.float32]:
    """Looks four channels up bilinearly; zero outside."""
    high, wide = image.shape[:2]
    red = green = blue = alpha = np.float32(0)
    if not (x > -1 and y > -1 and x < wide and y < high):
        return red, green, blue, alpha
    i, j = int(np.floor(y)), int(np.floor(x))
    tx, ty = x - np.float32(j), y - np.float32(i)
    for di in range(2):
        for dj in range(2):
            if 0 <= i + di < high and 0 <= j + dj < wide:
                share = (ty if di else np.float32(1) - ty) * (tx if dj else np.float32(1) - tx)
                red += share * image[i + di, j + dj, 0]
                green += share * image[i + di, j + dj, 1]
                blue += share * image[i + di, j + dj, 2]
                alpha += share * image[i + di, j + dj, 3]
    return red, green, blue, alpha


@compile_loop
def _refine_row(
    changes: np.ndarray,
    outlines: np.ndarray,
    spans: np.ndarray,
    factors: np.ndarray,
    shift: np.ndarray,
    shares: np.ndarray,
    frame: np.ndarray,
    y: int,
    left: int,
    row: int,
    down: np.float32,
    first: np.ndarray,
    across: np.ndarray,
) -> None:
    """Finds for a row of pixels by how much the edges of the frame change the weight of a layer, and that of others.

    Args:
        changes: float32 [2, columns], set to these factors; one where the layer shares nothing.
        outlines: as for `put_paint`.
        spans: as for `put_paint`.
        factors: as for `put_paint`.
        shift: as for `put_paint`.
        shares: as for `put_paint`.
        frame: as for `put_paint`.
        y: row of the frame.
        left: first column of the frame.
        row: sample above the row.
        down: share of the sample below it.
        first: as `_find_columns` returns it.
        across: as `_find_columns` returns it.
    """
    zero, half, one, full_weight = np.float32(0), np.float32(0.5), np.float32(1), np.float32(shares[1])
    changes[:] = one
    i, high, wide = row + shift[0], factors.shape[0] - 2, factors.shape[1] - 2
    if not 0 <= i < outlines.shape[0] - 1:
        return
    start, end = min(spans[i, 0], spans[i + 1, 0]) - 1, max(spans[i, 1], spans[i + 1, 1])
    for number in range(changes.shape[1]):
        j, tx = first[number] + shift[1], across[number]
        if not start <= j <= end:
            continue
        above = outlines[i, j, 0] + tx * (outlines[i, j + 1, 0] - outlines[i, j, 0])
        below = outlines[i + 1, j, 0] + tx * (outlines[i + 1, j + 1, 0] - outlines[i + 1, j, 0])
        coarse = above + down * (below - above)
        if not zero < coarse < full_weight:
            continue
        above = outlines[i, j, 1] + tx * (outlines[i, j + 1, 1] - outlines[i, j, 1])
        below = outlines[i + 1, j, 1] + tx * (outlines[i + 1, j + 1, 1] - outlines[i + 1, j, 1])
        steepness, x = above + down * (below - above), left + number
        found = _look_up(
            factors,
            np.float32((x + 0.5) * wide / frame.shape[1] + 0.5),
            np.float32((y + 0.5) * high / frame.shape[0] + 0.5),
        )
        guided = found[3] + found[0] * np.float32(frame[y, x, 0])
        guided += found[1] * np.float32(frame[y, x, 1]) + found[2] * np.float32(frame[y, x, 2])
        share = np.float32(shares[0])
        mixed = (one - share) * coarse + share * min(max(guided, zero), one)
        fine = min(max((mixed - half) * steepness + half, zero), one)
        changes[0, number], changes[1, number] = fine / coarse, (one - fine) / (one - coarse)


@compile_loop
def _look_up_along(
    image: np.ndarray, x: np.float32, y: np.float32, across: np.float32, down: np.float32, taps: int
) -> tuple[np.float32, np.float32, np.float32, np.float32]:
    """Takes the mean of lookups along a motion through a place."""
    if taps == 1:
        return _look_up(image, x, y)
    red = green = blue = alpha = np.float32(0)
    for k in range(taps):
        moment = np.float32((k + 0.5) / taps - 0.5)
        found = _look_up(image, x + moment * across, y + moment * down)
        red += found[0] / np.float32(taps)
        green += found[1] / np.float32(taps)
        blue += found[2] / np.float32(taps)
        alpha += found[3] / np.float32(taps)
    return red, green, blue, alpha


@compile_loop
def _look_up_excess(
    excess: np.ndarray, start: np.ndarray, steps: np.ndarray, x: int, y: int
) -> tuple[np.float32, np.float32, np.float32, np.float32]:
    """Looks up the colors of a layer less those of a pixel."""
    return _look_up(excess, np.float32((x + 0.5) * steps[0] + start[0]), np.float32((y + 0.5) * steps[1] + start[1]))


@compile_loop
def _fill_line(
    line: np.ndarray, start: int, values: np.ndarray, row: int, below: int, down: np.float32, columns: np.ndarray
) -> None:
    """Fills channels of a line of samples with the four channels of values between two rows."""
    for column in range(columns[0], min(columns[-1] + 2, line.shape[0])):
        for k in range(4):
            above = values[row, column, k]
            line[column, start + k] = above + down * (values[below, column, k] - above)


@compile_loop
def _mix_channels(
    matrix: np.ndarray, red: np.float32, green: np.float32, blue: np.float32
) -> tuple[np.float32, np.float32, np.float32]:
    """Multiplies a color by a matrix; the result is cut to 0 to 255."""
    zero, full = np.float32(0), np.float32(255)
    mixed = matrix[0, 0] * red + matrix[0, 1] * green + matrix[0, 2] * blue
    other = matrix[1, 0] * red + matrix[1, 1] * green + matrix[1, 2] * blue
    last = matrix[2, 0] * red + matrix[2, 1] * green + matrix[2, 2] * blue
    return min(max(mixed, zero), full), min(max(other, zero), full), min(max(last, zero), full)


@compile_loop
def _to_byte(value: np.float32) -> np.uint8:
    """Rounds a number to a byte."""
    return np.uint8(min(max(value, np.float32(0)), np.float32(255)) + np.float32(0.5))


@compile_loop
def put_paint(
    source: np.ndarray,
    result: np.ndarray,
    part: np.ndarray,
    steps: np.ndarray,
    places: np.ndarray,
    light: np.ndarray,
    image: np.ndarray,
    excess: np.ndarray,
    excess_start: np.ndarray,
    frame: np.ndarray,
    outlines: np.ndarray,
    spans: np.ndarray,
    factors: np.ndarray,
    shift: np.ndarray,
    shares: np.ndarray,
    taps: int,
) -> int:
    """Looks paint up for a part of a frame, and blends it.

    Args:
        source: uint8 [height, width, 3], the frame.
        result: uint8 [height, width, 3], of which the changed pixels are set.
        part: top, bottom, left and right of the part.
        steps: samples of the maps for a pixel across and down, and where the edges of the frame lie among them.
        places: float32 [rows, columns, 4], positions in the picture, and by how much they move within the shutter.
        light: float32 [rows, columns, 4], weight times gain, and the weight.
        image: float32 [h, w, 4], the picture, premultiplied, with colors up to 255.
        excess: float32 [rows, columns, 4], colors of the layer less those of the pixel; no rows where there is none.
        excess_start: where the edges of the frame lie in `excess`, across and down.
        frame: uint8 [height, width, 3], the frame before all edits, whose edges refine the weights.
        outlines: float32 [rows, columns, 2], of the `WeightGuide` of the layer; no rows where there is none.
        spans: int64 [rows, 2], of the `WeightGuide`.
        factors: float32 [rows, columns, 4], of the `WeightGuide`.
        shift: rows and columns by which `places` begins after `outlines`.
        shares: that of the guided weight, and the weight from which on a layer shares nothing.
        taps: lookups for each pixel along its motion.

    Returns:
        The number of pixels with paint.
    """
    (top, bottom, left, right), (rows, columns), count = part, places.shape[:2], 0
    first, across = _find_columns(left, right, steps[0], steps[2], columns)
    line, changes = np.empty((columns, 8), np.float32), np.empty((2, right - left), np.float32)
    for y in range(top, bottom):
        row, below, down = _find_sample(y, steps[1], steps[3], rows)
        _fill_line(line, 0, places, row, below, down, first)
        _fill_line(line, 4, light, row, below, down, first)
        _refine_row(changes, outlines, spans, factors, shift, shares, frame, y, left, row, down, first, across)
        for x in range(left, right):
            one, share = first[x - left], across[x - left]
            other = min(one + 1, columns - 1)
            px = line[one, 0] + share * (line[other, 0] - line[one, 0])
            py = line[one, 1] + share * (line[other, 1] - line[one, 1])
            along = line[one, 2] + share * (line[other, 2] - line[one, 2])
            down_by = line[one, 3] + share * (line[other, 3] - line[one, 3])
            red, green, blue, alpha = _look_up_along(image, px, py, along, down_by, taps)
            weight = line[one, 7] + share * (line[other, 7] - line[one, 7])
            finer, rest = changes[0, x - left], changes[1, x - left]
            hidden = alpha * weight * finer
            if hidden <= 0:
                continue
            count += 1
            red *= finer * (line[one, 4] + share * (line[other, 4] - line[one, 4]))
            green *= finer * (line[one, 5] + share * (line[other, 5] - line[one, 5]))
            blue *= finer * (line[one, 6] + share * (line[other, 6] - line[one, 6]))
            if excess.shape[0] > 0:
                more = _look_up_excess(excess, excess_start, steps, x, y)
                red -= hidden * rest * more[0]
                green -= hidden * rest * more[1]
                blue -= hidden * rest * more[2]
            kept = np.float32(1) - hidden
            result[y, x, 0] = _to_byte(kept * np.float32(source[y, x, 0]) + red)
            result[y, x, 1] = _to_byte(kept * np.float32(source[y, x, 1]) + green)
            result[y, x, 2] = _to_byte(kept * np.float32(source[y, x, 2]) + blue)
    return count


@compile_loop
def _read_tone(table: np.ndarray, channel: int, value: np.float32) -> np.float32:
    """Reads a table of a channel at any value from 0 to 255."""
    value = min(max(value, np.float32(0)), np.float32(255))
    step = min(int(value), 254)
    return table[step, channel] + (value - np.float32(step)) * (table[step + 1, channel] - table[step, channel])


@compile_loop
def _round_table(table: np.ndarray) -> np.ndarray:
    """Rounds a table of values to bytes."""
    in_bytes = np.empty(table.shape, np.uint8)
    for value in range(table.shape[0]):
        for k in range(table.shape[1]):
            in_bytes[value, k] = _to_byte(table[value, k])
    return in_bytes


@compile_loop
def put_grade(
    source: np.ndarray,
    result: np.ndarray,
    part: np.ndarray,
    steps: np.ndarray,
    weight: np.ndarray,
    table: np.ndarray,
    mixes_channels: bool,
    matrix: np.ndarray,
    excess: np.ndarray,
    excess_start: np.ndarray,
    frame: np.ndarray,
    outlines: np.ndarray,
    spans: np.ndarray,
    factors: np.ndarray,
    shift: np.ndarray,
    shares: np.ndarray,
) -> int:
    """Grades what a part of a frame shows of a layer.

    Args:
        source: as for `put_paint`.
        result: as for `put_paint`.
        part: as for `put_paint`.
        steps: as for `put_paint`.
        weight: float32 [rows, columns], the share of each pixel that is graded.
        table: float32 [256, 3], what becomes of each value of a channel, 0 to 255.
        mixes_channels: whether there is a matrix.
        matrix: float32 [3, 3], from colors to colors.
        excess: as for `put_paint`.
        excess_start: as for `put_paint`.
        frame: as for `put_paint`.
        outlines: as for `put_paint`.
        spans: as for `put_paint`.
        factors: as for `put_paint`.
        shift: as for `put_paint`.
        shares: as for `put_paint`.

    Returns:
        The number of pixels that are graded.
    """
    (top, bottom, left, right), (rows, columns), count = part, weight.shape, 0
    zero, one, in_bytes = np.float32(0), np.float32(1), _round_table(table)
    first, across = _find_columns(left, right, steps[0], steps[2], columns)
    line, changes = np.empty(columns, np.float32), np.empty((2, right - left), np.float32)
    for y in range(top, bottom):
        row, below, down = _find_sample(y, steps[1], steps[3], rows)
        for column in range(first[0], min(first[-1] + 2, columns)):
            line[column] = weight[row, column] + down * (weight[below, column] - weight[row, column])
        _refine_row(changes, outlines, spans, factors, shift, shares, frame, y, left, row, down, first, across)
        for x in range(left, right):
            column = first[x - left]
            share = line[column] + across[x - left] * (line[min(column + 1, columns - 1)] - line[column])
            share *= changes[0, x - left]
            if share <= 0:
                continue
            count += 1
            r, g, b = source[y, x, 0], source[y, x, 1], source[y, x, 2]
            if share >= one and not mixes_channels:  # all of the pixel is the layer's
                result[y, x, 0], result[y, x, 1], result[y, x, 2] = in_bytes[r, 0], in_bytes[g, 1], in_bytes[b, 2]
                continue
            more = (zero, zero, zero, zero)
            red, green, blue = table[r, 0], table[g, 1], table[b, 2]
            if excess.shape[0] > 0:
                more = _look_up_excess(excess, excess_start, steps, x, y)
                rest = changes[1, x - left]
                more = (rest * more[0], rest * more[1], rest * more[2], zero)
                if more[0] != 0 or more[1] != 0 or more[2] != 0:
                    red = _read_tone(table, 0, np.float32(r) + more[0])
                    green = _read_tone(table, 1, np.float32(g) + more[1])
                    blue = _read_tone(table, 2, np.float32(b) + more[2])
            if mixes_channels:
                red, green, blue = _mix_channels(matrix, red, green, blue)
            result[y, x, 0] = _to_byte(np.float32(r) + share * (red - np.float32(r) - more[0]))
            result[y, x, 1] = _to_byte(np.float32(g) + share * (green - np.float32(g) - more[1]))
            result[y, x, 2] = _to_byte(np.float32(b) + share * (blue - np.float32(b) - more[2]))
    return count


def compile_blends() -> None:
    """Has numba compile the loops, or load them from the disk, by work on a tiny frame."""
    frame, part, steps = np.zeros((2, 2, 3), np.uint8), np.array([0, 2, 0, 2]), np.array([1.0, 1.0, 0.5, 0.5])
    plane = np.zeros((4, 4, 4), np.float32)
    guide = (frame, plane[..., :2].copy(), np.zeros((4, 2), int), plane, np.zeros(2, int), np.zeros(2))
    put_paint(frame, frame.copy(), part, steps, plane, plane, plane, plane, np.zeros(2), *guide, 1)
    table, matrix = np.zeros((256, 3), np.float32), np.eye(3, dtype=np.float32)
    put_grade(frame, frame.copy(), part, steps, plane[..., 0].copy(), table, True, matrix, plane, np.zeros(2), *guide)
