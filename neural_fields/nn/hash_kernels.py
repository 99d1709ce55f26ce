"""Compiled loops over points for one level of a hash grid, on the CPU.

What they compute is what `hash_grid.py` computes with torch operators, one point at a time: its corners never lie in
memory, and the table of a level stays in the cache. The first two axes are written out, since short loops would cost
more than what is in them; the corners along further axes are looped over.
"""

from __future__ import annotations

import numpy as np

from neural_fields.nn.compiled_loops import compile_loop

F = np.float32


@compile_loop
def locate_on_axis(coordinate, scale, factor, is_smooth):
    """Returns the weight of the upper side of a cell, its slope, and the coordinates of both sides times a factor.

    Args:
        coordinate: of the point.
        scale: cells for a unit.
        factor: what the coordinate of the cell is multiplied with.
        is_smooth: whether the interpolation is smooth at the sides of cells.
    """
    place = coordinate * scale + F(0.5)
    floor = np.floor(place)
    inside = place - floor
    low = np.int64(floor) * factor
    if is_smooth:
        return inside * inside * (F(3) - F(2) * inside), F(6) * inside * (F(1) - inside) * scale, low, low + factor
    return inside, scale, low, low + factor


@compile_loop
def find_entry(first, second, rest, entries, is_dense):
    """Returns the entry of the table for a corner; see `hash_grid._corner_entries`.

    Args:
        first: its coordinate on the first axis, times the factor.
        second: the same on the second axis.
        rest: the same on all others, combined.
        entries: of the table.
        is_dense: whether the table holds every cell, or is hashed.
    """
    if not is_dense:
        return (first ^ second ^ rest) & (entries - 1)
    total = (first + second + rest) & np.int64(0xFFFFFFFF)
    return total if total < entries else total % entries


@compile_loop
def find_entries(left, right, top, bottom, rest, entries, is_dense):
    """Returns the entries of the four corners of a side: left top, right top, left bottom, right bottom.

    Args:
        left: see `find_entry`, also for the arguments that follow.
        right: see there.
        top: see there.
        bottom: see there.
        rest: see there.
        entries: see there.
        is_dense: see there.
    """
    return (
        find_entry(left, top, rest, entries, is_dense),
        find_entry(right, top, rest, entries, is_dense),
        find_entry(left, bottom, rest, entries, is_dense),
        find_entry(right, bottom, rest, entries, is_dense),
    )


@compile_loop
def find_rest(point, rest, scale, factors, is_dense, is_smooth):
    """Returns the coordinates on all axes but two, combined, and the weight, of a side of the cell.

    Args:
        point: its coordinates.
        rest: number of the side; its bit d says whether it is the upper one of axis d + 2.
        scale: see `locate_on_axis`.
        factors: of all axes.
        is_dense: see `find_entry`.
        is_smooth: see `locate_on_axis`.
    """
    combined, weight = np.int64(0), F(1)
    for d in range(2, len(point)):
        upper, _, low, high = locate_on_axis(point[d], scale, factors[d], is_smooth)
        is_upper = (rest >> (d - 2)) & 1
        weight *= upper if is_upper else F(1) - upper
        part = high if is_upper else low
        combined = combined + part if is_dense else combined ^ part
    return combined, weight


@compile_loop
def encode_level(x, table, scale, factors, is_dense, is_smooth, features):
    """Interpolates the table of a level at points.

    Args:
        x: points [points, axes].
        table: [entries, features].
        scale: cells for a unit.
        factors: what the cell's coordinate of each axis is multiplied with.
        is_dense: whether the table holds every cell, or is hashed.
        is_smooth: whether the interpolation is smooth at the sides of cells.
        features: set to the features [points, features].
    """
    count, axes = x.shape
    entries, width = table.shape
    for n in range(count):
        u, _, left, right = locate_on_axis(x[n, 0], scale, factors[0], is_smooth)
        v, _, top, bottom = locate_on_axis(x[n, 1], scale, factors[1], is_smooth)
        for f in range(width):
            features[n, f] = F(0)
        for rest in range(1 << (axes - 2)):
            combined, weight = find_rest(x[n], rest, scale, factors, is_dense, is_smooth)
            a, b, c, d = find_entries(left, right, top, bottom, combined, entries, is_dense)
            lower, upper = weight * (F(1) - v), weight * v
            wa, wb, wc, wd = lower * (F(1) - u), lower * u, upper * (F(1) - u), upper * u
            for f in range(width):
                features[n, f] += wa * table[a, f] + wb * table[b, f] + wc * table[c, f] + wd * table[d, f]


@compile_loop
def add_level_gradients(x, table, scale, factors, is_dense, is_smooth, grad, wants, grad_x, grad_table):
    """Adds the gradients by points and by the table of a level.

    Args:
        x: see `encode_level`, also for the arguments up to `is_smooth`.
        table: see there.
        scale: see there.
        factors: see there.
        is_dense: see there.
        is_smooth: see there.
        grad: gradient by the features [points, features].
        wants: whether the gradient by the points is wanted, and the one by the table.
        grad_x: [points, axes]; added to.
        grad_table: as `table`; added to.
    """
    count, axes = x.shape
    entries, width = table.shape
    for n in range(count):
        u, slope_u, left, right = locate_on_axis(x[n, 0], scale, factors[0], is_smooth)
        v, slope_v, top, bottom = locate_on_axis(x[n, 1], scale, factors[1], is_smooth)
        for rest in range(1 << (axes - 2)):
            combined, weight = find_rest(x[n], rest, scale, factors, is_dense, is_smooth)
            a, b, c, d = find_entries(left, right, top, bottom, combined, entries, is_dense)
            if wants[1]:
                lower, upper = weight * (F(1) - v), weight * v
                wa, wb, wc, wd = lower * (F(1) - u), lower * u, upper * (F(1) - u), upper * u
                for f in range(width):
                    grad_table[a, f] += wa * grad[n, f]
                    grad_table[b, f] += wb * grad[n, f]
                    grad_table[c, f] += wc * grad[n, f]
                    grad_table[d, f] += wd * grad[n, f]
            if wants[0]:
                da, db, dc, dd = F(0), F(0), F(0), F(0)
                for f in range(width):
                    da += table[a, f] * grad[n, f]
                    db += table[b, f] * grad[n, f]
                    dc += table[c, f] * grad[n, f]
                    dd += table[d, f] * grad[n, f]
                grad_x[n, 0] += weight * slope_u * ((F(1) - v) * (db - da) + v * (dd - dc))
                grad_x[n, 1] += weight * slope_v * ((F(1) - u) * (dc - da) + u * (dd - db))
                inside = (F(1) - v) * ((F(1) - u) * da + u * db) + v * ((F(1) - u) * dc + u * dd)
                for axis in range(2, axes):
                    part = inside
                    for other in range(2, axes):
                        w, slope, _, _ = locate_on_axis(x[n, other], scale, factors[other], is_smooth)
                        is_upper = (rest >> (other - 2)) & 1
                        if other == axis:
                            part *= slope if is_upper else -slope
                        else:
                            part *= w if is_upper else F(1) - w
                    grad_x[n, axis] += part
