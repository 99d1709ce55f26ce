"""The cheapest outline: a minimum cut of the pixel graph, whose edges are cheap where colors change.

Boykov and Jolly, "Interactive Graph Cuts for Optimal Boundary & Region Segmentation of Objects in N-D Images" (ICCV
2001). The cut is computed for those pixels only whose label is not clear from the start: by a loop that numba compiles,
or by SciPy's maximum flow (Dinic's algorithm). The smallest of the best masks is one mask: both find it.
"""

from __future__ import annotations

import cv2
import numpy as np
from jaxtyping import Bool, Float, Int32, UInt8

from neural_fields.nn.compiled_loops import can_compile_loops

CAPACITY_STEPS = 64  # integer steps of the maximum flow for a difference of one in log odds
DIAGONAL = 2**-0.5  # weight of a diagonal edge, whose pixels are that much further apart
NEIGHBORS = ((-1, -1), (-1, 0), (-1, 1), (0, -1), (0, 1), (1, -1), (1, 0), (1, 1))  # rows and columns, in their order
SQUARE_RADII_PX = (1, 2, 4, 8, 16)  # of the squares that are tried for labels that are clear


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
    odds, clear = odds.astype(np.float32), np.zeros(odds.shape, np.uint8)
    for radius in SQUARE_RADII_PX:
        # A square whose odds have one sign and outweigh half of its own outline, at its full cost, keeps its middle:
        # real outlines follow colors and cost less. On the DAVIS clips, the masks are those of the whole graph.
        least, square = (1 + 2 * DIAGONAL) * smoothness / radius, np.ones((2 * radius + 1, 2 * radius + 1), np.uint8)
        for clearly in (odds > least, odds < -least):
            clear |= cv2.erode(clearly.astype(np.uint8), square)
    inside = (odds > 0) & (clear > 0)
    free = np.flatnonzero(clear == 0)
    count = len(free)
    if count == 0:
        return inside

    # Edges of the other pixels to their eight neighbors; a neighbor whose label is clear counts as odds.
    pairs = ((image[:, :-1], image[:, 1:]), (image[:-1], image[1:]))
    total = sum(cv2.norm(a, b, cv2.NORM_L2SQR) for a, b in pairs if a.size)
    straight = height * (width - 1) + (height - 1) * width
    falloff = 1 / (2 * max(1.0, total / max(1, straight)))
    center = (free // width + 1) * (width + 2) + free % width + 1
    colors = cv2.copyMakeBorder(image, 1, 1, 1, 1, cv2.BORDER_CONSTANT).reshape(-1, 3).astype(np.float32)
    label = np.pad(np.where(clear > 0, np.where(inside, 1, -1), 0).astype(np.float32), 1).ravel()
    node = np.full(label.size, -1, np.int32)
    node[center] = np.arange(count, dtype=np.int32)
    own, own_colors = odds.ravel()[free], colors[center]
    ends, capacities = np.empty((count, 8), np.int32), np.empty((count, 8), np.float32)
    for number, (down, right) in enumerate(NEIGHBORS):
        beside = center + down * (width + 2) + right
        difference = colors[beside] - own_colors
        difference = np.einsum("ij,ij->i", difference, difference)
        weight = smoothness * (DIAGONAL if down and right else 1.0)
        cost = weight * (min_contrast_share + (1 - min_contrast_share) * np.exp(-falloff * difference))
        own = own + cost * label[beside]
        ends[:, number], capacities[:, number] = node[beside], cost
    find = _find_source_side
    if can_compile_loops():
        from neural_fields.data.segmentation.cut_loop import find_source_side as find  # numba takes a second
    terminals = (CAPACITY_STEPS * own).astype(np.int32)
    inside.ravel()[free] = find(ends, (CAPACITY_STEPS * capacities).astype(np.int32), terminals)
    return inside


def _find_source_side(
    ends: Int32[np.ndarray, "nodes 8"], capacities: Int32[np.ndarray, "nodes 8"], terminals: Int32[np.ndarray, " nodes"]
) -> Bool[np.ndarray, " nodes"]:
    """Finds with SciPy what `cut_loop.find_source_side` finds."""
    from scipy.sparse import csr_matrix
    from scipy.sparse.csgraph import breadth_first_order, maximum_flow

    # The graph has an edge back for each edge, as SciPy needs it: to and from source and sink too.
    count = len(terminals)
    source, sink = count, count + 1
    all_ends = np.concatenate([ends, np.full((count, 1), source), np.full((count, 1), sink)], 1, dtype=np.int32)
    none = np.zeros(count, np.int32)
    all_capacities = np.concatenate([capacities, none[:, None], np.maximum(-terminals, 0)[:, None]], 1)
    used = all_ends >= 0
    sizes = np.concatenate([[0], used.sum(1), [count, count]])
    steps = np.concatenate([all_capacities[used], np.maximum(terminals, 0), none])
    columns = np.concatenate([all_ends[used], *2 * [np.arange(count, dtype=np.int32)]])
    starts = np.cumsum(sizes, dtype=np.int32)
    graph = csr_matrix((steps.astype(np.int32), columns, starts), shape=(count + 2, count + 2))
    flow = maximum_flow(graph, source, sink, method="dinic").flow
    graph.data = np.maximum(graph.data - flow.data, 0)
    graph.eliminate_zeros()
    reached = np.zeros(count + 2, bool)
    reached[breadth_first_order(graph, source, return_predecessors=False)] = True
    return reached[:count]
