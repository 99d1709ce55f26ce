"""The cheapest outline: a minimum cut of the pixel graph, whose edges are cheap where colors change.

Boykov and Jolly, "Interactive Graph Cuts for Optimal Boundary & Region Segmentation of Objects in N-D Images" (ICCV
2001). The maximum flow is SciPy's (Dinic's algorithm), on those pixels only whose label is not certain from the start.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float, UInt8
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import breadth_first_order, maximum_flow

CAPACITY_STEPS = 64  # integer steps of SciPy's maximum flow for a difference of one in log odds
DIAGONAL = 2**-0.5  # weight of a diagonal edge, whose pixels are that much further apart


def cut_graph(
    odds: Float[np.ndarray, "height width"],
    image: UInt8[np.ndarray, "height width 3"],
    smoothness: float,
    min_contrast_share: float = 0.05,
) -> Bool[np.ndarray, "height width"]:
    """Finds the mask with the largest sum of log odds inside, less the cost of its outline.

    Each pixel has eight neighbors. An edge between two of them costs `smoothness` where their colors are equal, and
    less where they differ, relative to the mean difference in the image.

    Args:
        odds: log odds that a pixel belongs to the object.
        image: RGB, 0 to 255.
        smoothness: cost of an edge between equal colors, in log odds.
        min_contrast_share: share of that cost that remains between the most different colors.

    Returns:
        The mask. Of several best masks, the smallest.

    Example:
        >>> black = np.zeros((1, 5, 3), np.uint8)
        >>> cut_graph(np.float32([[3, -1, 3, -3, -3]]), black, smoothness=1.0).tolist()
        [[True, True, True, False, False]]
    """
    height, width = odds.shape
    ids = np.arange(height * width).reshape(height, width)
    neighbors = [
        (ids[:, :-1], ids[:, 1:], 1.0),
        (ids[:-1], ids[1:], 1.0),
        (ids[:-1, :-1], ids[1:, 1:], DIAGONAL),
        (ids[:-1, 1:], ids[1:, :-1], DIAGONAL),
    ]
    colors = image.reshape(-1, 3).astype(np.float32)
    differences = [np.square(colors[a.ravel()] - colors[b.ravel()]).sum(1) for a, b, _ in neighbors]
    straight = np.concatenate([*differences[:2], [0.0] if height * width == 1 else []])
    falloff = 1 / (2 * max(1.0, float(straight.mean())))
    first = np.concatenate([a.ravel() for a, _, _ in neighbors])
    second = np.concatenate([b.ravel() for _, b, _ in neighbors])
    cost = np.concatenate(
        [
            smoothness * weight * (min_contrast_share + (1 - min_contrast_share) * np.exp(-falloff * difference))
            for (_, _, weight), difference in zip(neighbors, differences, strict=True)
        ]
    )

    # A pixel whose own odds outweigh all its edges keeps its label; only the others become nodes of the graph.
    own = odds.ravel().astype(np.float64)
    around = np.bincount(first, cost, own.size) + np.bincount(second, cost, own.size)
    inside = own >= around
    free = ~inside & (own > -around)
    count = int(free.sum())
    if count == 0:
        return (own > 0).reshape(height, width)
    node = np.cumsum(free) - 1
    for a, b in ((first, second), (second, first)):
        beside = free[a] & ~free[b]
        own += np.bincount(a[beside], np.where(inside[b[beside]], cost[beside], -cost[beside]), own.size)
    both = free[first] & free[second]
    start, end, capacity = node[first[both]], node[second[both]], cost[both]
    value = own[free]
    source, sink, gains, losses = count, count + 1, np.flatnonzero(value > 0), np.flatnonzero(value < 0)
    graph = csr_matrix(
        (
            (CAPACITY_STEPS * np.concatenate([capacity, capacity, value[gains], -value[losses]])).astype(np.int32),
            (
                np.concatenate([start, end, np.full(len(gains), source), losses]),
                np.concatenate([end, start, gains, np.full(len(losses), sink)]),
            ),
        ),
        shape=(count + 2, count + 2),
    )
    remaining = graph - maximum_flow(graph, source, sink, method="dinic").flow
    remaining.data = np.maximum(remaining.data, 0)
    remaining.eliminate_zeros()
    reached = np.zeros(count + 2, bool)
    reached[breadth_first_order(remaining, source, return_predecessors=False)] = True
    inside[free] = reached[:count]
    return inside.reshape(height, width)
