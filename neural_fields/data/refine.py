"""Masks that come out better than they went in, before any fit.

A mask falls into parts: its connected pieces, what hangs on them by a neck, and its regions of one colour. Each part is
judged as a whole by what the clip says about it (`votes.py`): do the masks of other frames, carried along the flow and
with the object, hold it; does it move as the object does; are its colours the object's? Parts that fail are taken off,
several times over, since every round leaves better witnesses. Then outlines go to where colours part (`edges.py`).
What all frames agree on is left alone, so sure masks stay as they are.

Masks are judged at a shorter side of at most 240 pixels; lengths are pixels of that size and shrink with smaller
clips. Votes and odds are log odds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Float, UInt8
from scipy import ndimage

from neural_fields.data.edges import align_outline
from neural_fields.data.flow import FlowField, resize_mask, resize_vectors
from neural_fields.data.masks import LayerMasks
from neural_fields.data.votes import Masks, Motion, flow_votes, motion_odds, object_motion, object_votes

WORK_SIDE, MOTION_SIDE = 240, 120  # shorter sides at which masks and motion are judged
CHUNK, OVERLAP = 64, 10  # frames judged at a time, and frames around them that vote: memory does not grow with the clip
ROUNDS = 3
TOLERANCE = 2  # pixels by which another frame's outline may be off and still agrees
NECKS = (2, 3, 5)  # pixels: what hangs on by less than twice this is a part of its own
OBJECT_WEIGHT, FLOW_WEIGHT, MOTION_WEIGHT, COLOUR_WEIGHT = 0.6, 0.4, 0.8, 0.5
THIN = 3.0  # pixels: half of the width below which flow sees what is behind; such parts need to be clearly wrong to go
THIN_PRIOR, ATTACHED_PRIOR, DETACHED_PRIOR = 2.0, 0.3, -1.0
SURE_PRIOR, FEW_STRAY = 0.9, 0.01  # more for attached parts of sure masks; the share of strays that makes them unsure
LARGE = 0.3  # of the largest piece: a piece of this size needs no more than evidence that is for it
COLOURS, LEAST_REGION = 8, 0.02  # regions of one of so many colours that fill this share of the mask are parts
AROUND = 40  # pixels around the object in which the colours of the rest are counted
LEAST_SHARE = 1e-4  # added to both shares of a colour: no colour is proof

Progress = Callable[[int, int], None]


def refine_masks(
    frames: UInt8[np.ndarray, "time height width 3"],
    flow: FlowField,
    masks: LayerMasks,
    progress: Progress | None = None,
) -> LayerMasks:
    """The masks without what does not belong to their objects, and with outlines where colours part.

    Layers are judged front to back, each where no layer in front of it hides it; hidden parts stay as they are. A frame
    never loses all of a mask. Masks of a single frame come back as they are: there is nothing to compare them with.

    Args:
        frames: RGB at the size of the masks; may be memory-mapped.
        flow: of any size; may be memory-mapped.
        progress: called with (frames done, frames in all).
    """
    count = len(frames)
    if count < 2 or not masks.names:
        return masks
    out = np.array(masks.masks)
    for first in range(0, count, CHUNK):
        stop = min(first + CHUNK, count)
        span = range(max(0, first - OVERLAP), min(count, stop + OVERLAP))
        scene = _read_scene(frames, flow, masks.masks, span)
        for layer in range(len(out)):
            kept, removed = _judge_layer(scene, layer)
            for frame in range(first, stop):
                slot = frame - span.start
                left = _without(masks.masks[layer, frame], removed[slot], kept[slot])
                out[layer, frame] = _aligned(np.asarray(frames[frame]), left, _claimed(masks.masks[:layer, frame]))
        if progress is not None:
            progress(stop, count)
    return LayerMasks(masks.names, out)


@dataclass(frozen=True)
class _Scene:
    """A stretch of the clip at the sizes that it is judged at."""

    masks: np.ndarray  # bool [layers, time, h, w], as given
    lab: np.ndarray  # uint8 [time, h, w, 3], CIELAB
    cells: np.ndarray  # int32 [time, h, w], the bin of each colour
    motion: Motion  # at the size of the masks
    slow: Motion  # at the size at which motion is judged
    unit: float  # pixels of a clip of 240 in one pixel of `slow`
    zoom: float  # pixels of `slow` in one of `masks`

    @property
    def necks(self) -> list[int]:
        """NECKS in pixels of `masks`."""
        return sorted({round(neck * self.shrink) for neck in NECKS} - {0})

    @property
    def shrink(self) -> float:
        """Pixels of `masks` in one pixel of a clip of WORK_SIDE."""
        return min(self.masks.shape[2:]) / WORK_SIDE


def _read_scene(frames: np.ndarray, flow: FlowField, masks: np.ndarray, span: range) -> _Scene:
    full = (frames.shape[2], frames.shape[1])
    size, tiny = _scaled(full, WORK_SIDE), _scaled(full, MOTION_SIDE)
    small = [cv2.resize(np.asarray(frames[t]), size, interpolation=cv2.INTER_AREA) for t in span]
    lab = np.stack([cv2.cvtColor(frame, cv2.COLOR_RGB2LAB) for frame in small])
    shrunk = np.stack([_resized(layer[span.start : span.stop], size) for layer in masks])
    pairs = range(span.start, span.stop - 1)
    motion = _motion_at(flow, pairs, size)
    slow = _motion_at(motion, range(len(pairs)), tiny)
    return _Scene(shrunk, lab, _colour_cells(lab), motion, slow, 240 / min(tiny), tiny[0] / size[0])


def _scaled(size: tuple[int, int], side: int) -> tuple[int, int]:
    shrink = min(1.0, side / min(size))
    return (max(1, round(size[0] * shrink)), max(1, round(size[1] * shrink)))


def _motion_at(flow: FlowField | Motion, pairs: range, size: tuple[int, int]) -> Motion:
    def vectors(values: np.ndarray, ok: np.ndarray) -> np.ndarray:
        found = [resize_vectors(values[pair], size, ok[pair]) for pair in pairs]
        return np.stack(found).astype(np.float32)

    def trusted(ok: np.ndarray) -> np.ndarray:
        return np.stack([resize_mask(np.asarray(ok[pair]), size) for pair in pairs])

    return Motion(
        vectors(flow.forward, flow.forward_ok),
        vectors(flow.backward, flow.backward_ok),
        trusted(flow.forward_ok),
        trusted(flow.backward_ok),
    )


def _resized(masks: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    return np.stack([resize_mask(mask, size) for mask in masks])


# --- judging --------------------------------------------------------------------------------------------------------


def _judge_layer(scene: _Scene, layer: int) -> tuple[np.ndarray, np.ndarray]:
    """What is kept of the visible masks of a layer and what is taken off, both bool [time, h, w]."""
    front = _claimed(scene.masks[:layer])
    given = scene.masks[layer] & ~front
    if not given.any():
        return given, np.zeros_like(given)
    palette = _palette(scene.lab[given])
    kept, attached = given, ATTACHED_PRIOR
    for attempt in range(ROUNDS):
        votes, moves = _evidence(scene, kept, ~front)
        whole = (DETACHED_PRIOR, THIN * scene.shrink)
        judged = [_without_bad(m, _parts(m, 0), v, o, whole) for m, v, o in zip(kept, votes, moves, strict=True)]
        if attempt == 0:  # masks without stray pieces are sure ones: their attached parts need more against them
            stray = 1 - sum(int(mask.sum()) for mask in judged) / int(given.sum())
            attached += SURE_PRIOR * float(np.exp(-stray / FEW_STRAY))
        likely = _colour_odds(scene.cells, kept)
        for t, mask in enumerate(judged):
            for neck in scene.necks:
                mask = _without_bad(mask, _parts(mask, neck), votes[t], moves[t], (attached, whole[1]))
            if attempt:  # colours are learnt from masks that have lost their worst parts
                odds = votes[t] + moves[t] + COLOUR_WEIGHT * likely[t] + attached
                mask = _without_bad_regions(mask, _regions(scene.lab[t], mask, palette), odds)
            judged[t] = mask
        kept = np.stack(judged)
    return kept, given & ~kept


def _evidence(scene: _Scene, masks: np.ndarray, known: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Log odds of every pixel by the votes of other frames, and by how it moves."""
    transforms = object_motion(np.stack([_largest(mask) for mask in masks]), scene.motion)
    wide = _dilated(masks, max(1, round(TOLERANCE * scene.shrink)))
    votes = OBJECT_WEIGHT * _logit(object_votes(wide, known, transforms))
    votes += FLOW_WEIGHT * _logit(flow_votes(wide, known, scene.motion))
    zoom = np.diag([scene.zoom, scene.zoom, 1.0])
    slow = [zoom @ matrix @ np.linalg.inv(zoom) for matrix in transforms]
    height, width = masks.shape[1:]
    tiny = (scene.slow.forward.shape[2], scene.slow.forward.shape[1])
    outside = _resized(~_claimed(scene.masks), tiny)
    odds = motion_odds(_resized(masks, tiny), outside, scene.slow, slow, scene.unit)
    moves = [cv2.resize(values, (width, height), interpolation=cv2.INTER_LINEAR) for values in odds]
    return votes, MOTION_WEIGHT * np.stack(moves)


def _without_bad(
    mask: np.ndarray, labels: np.ndarray, votes: np.ndarray, moves: np.ndarray, rule: tuple[float, float]
) -> np.ndarray:
    """The mask without the parts whose evidence is against them; the best part always stays.

    Args:
        rule: the prior odds of a part, and the radius below which it is thin.
    """
    prior, thinnest = rule
    count = int(labels.max()) + 1
    if count < 3:
        return mask
    inside = labels[mask]
    area = np.maximum(np.bincount(inside, minlength=count), 1)
    radius = np.zeros(count)
    np.maximum.at(radius, inside, cv2.distanceTransform(mask.astype(np.uint8), cv2.DIST_L2, 3)[mask])
    vote, move = (np.bincount(inside, values[mask], count) / area for values in (votes, moves))
    thin = radius < thinnest
    score = vote + np.where(thin, THIN_PRIOR, prior + move)
    keep = (score >= 0) | ((area >= LARGE * area[1:].max()) & (vote + move > 0))
    keep[1 + (score.clip(0.01) * area)[1:].argmax()] = True
    return keep[labels] & mask


def _without_bad_regions(mask: np.ndarray, labels: np.ndarray, odds: np.ndarray) -> np.ndarray:
    """The mask without the regions of one colour whose evidence is against them; small regions are not judged."""
    inside = labels[mask]
    if not len(inside):
        return mask
    area = np.bincount(inside)
    bad = (np.bincount(inside, odds[mask]) < 0) & (area >= LEAST_REGION * len(inside))
    bad[0] = False
    left = mask & ~bad[labels]
    return left if left.any() else mask


# --- parts ----------------------------------------------------------------------------------------------------------


def _parts(mask: np.ndarray, neck: int) -> np.ndarray:
    """Labels from 1: connected pieces, parted at necks narrower than 2 `neck`; each pixel joins the nearest part."""
    _, pieces = cv2.connectedComponents(mask.astype(np.uint8), connectivity=8)
    if neck == 0:
        return pieces
    cores = cv2.erode(mask.astype(np.uint8), _disc(neck))
    has_core = np.zeros(int(pieces.max()) + 1, bool)
    has_core[np.unique(pieces[cores > 0])] = True
    cores |= (mask & ~has_core[pieces]).astype(np.uint8)  # pieces thinner than a neck stay whole
    _, labels = cv2.distanceTransformWithLabels(1 - cores, cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_CCOMP)
    return np.where(mask, labels, 0)


def _regions(lab: np.ndarray, mask: np.ndarray, palette: np.ndarray) -> np.ndarray:
    """Labels from 1 of the connected regions whose colours are nearest to the same one of the palette."""
    classes = np.zeros(mask.shape, np.uint8)
    distance = ((lab[mask].astype(np.float32)[:, None] - palette) ** 2).sum(-1)
    classes[mask] = 1 + distance.argmin(1)
    classes = cv2.medianBlur(classes, 5) * mask
    labels, total = np.zeros(mask.shape, np.int32), 0
    for index in range(1, len(palette) + 1):
        count, found = cv2.connectedComponents((classes == index).astype(np.uint8), connectivity=4)
        labels += np.where(found > 0, found + total, 0)
        total += count - 1
    return labels


def _palette(colours: np.ndarray) -> Float[np.ndarray, "colours 3"]:
    """The COLOURS main colours of the object, by k-means."""
    chosen = np.random.default_rng(0).permutation(len(colours))[:4000]
    sample = colours[chosen].astype(np.float32)
    cv2.setRNGSeed(0)  # k-means starts at random places
    stop = (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_MAX_ITER, 15, 0.5)
    _, _, centres = cv2.kmeans(sample, min(COLOURS, len(sample)), None, stop, 1, cv2.KMEANS_PP_CENTERS)
    return centres


def _colour_cells(lab: np.ndarray) -> np.ndarray:
    """The bin of each colour in a histogram of 16 x 16 x 16, finer where colours are common."""
    bins = np.minimum((lab.astype(np.int32) - (0, 64, 64)) // (16, 8, 8), 15).clip(0)
    return ((bins[..., 0] * 16 + bins[..., 1]) * 16 + bins[..., 2]).astype(np.int32)


def _colour_odds(cells: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """Log odds of each pixel by its colour: how common it is in the masks, and around them."""
    counts = np.zeros((2, 16**3))
    for cell, mask in zip(cells, masks, strict=True):
        # A distance map is much faster than a dilation this wide.
        near = cv2.distanceTransform(1 - mask.astype(np.uint8), cv2.DIST_L2, 3) <= AROUND
        for side, where in enumerate((mask, near & ~mask)):
            counts[side] += np.bincount(cell[where], minlength=16**3)
    smooth = ndimage.gaussian_filter(counts.reshape(2, 16, 16, 16), (0, 1, 1, 1), mode="nearest").reshape(2, -1)
    shares = smooth / np.maximum(counts.sum(1, keepdims=True), 1) + LEAST_SHARE
    return np.log(shares[0] / shares[1]).astype(np.float32)[cells]


# --- shapes ---------------------------------------------------------------------------------------------------------


def _without(own: np.ndarray, removed: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """A mask at full size without what was taken off at the size of judgement: each pixel goes with its nearest."""
    if not removed.any():
        return own
    if removed.shape == own.shape:
        return own & ~removed
    to_kept, to_removed = (cv2.distanceTransform(1 - part.astype(np.uint8), cv2.DIST_L2, 3) for part in (kept, removed))
    size = (own.shape[1], own.shape[0])
    nearer, near = (
        cv2.resize(values, size, interpolation=cv2.INTER_LINEAR) for values in (to_kept - to_removed, to_removed)
    )
    return own & ~((nearer > 0) & (near < 2))


def _aligned(frame: np.ndarray, mask: np.ndarray, hidden: np.ndarray) -> np.ndarray:
    """The mask with its outline aligned; what a layer in front hides, and the outline along it, stays."""
    moved = align_outline(frame, mask)
    if not hidden.any():
        return moved
    beside = _dilated(hidden[None], TOLERANCE + 1)[0]
    return np.where(beside, mask, moved)


def _claimed(layers: np.ndarray) -> np.ndarray:
    """Where any of the layers is; nowhere, without layers."""
    return np.asarray(layers.any(0))


def _largest(mask: np.ndarray) -> np.ndarray:
    """The largest connected piece of a mask."""
    count, labels, facts, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    return mask if count < 3 else labels == 1 + facts[1:, cv2.CC_STAT_AREA].argmax()


def _dilated(masks: Masks, radius: int) -> Masks:
    return np.stack([cv2.dilate(mask.astype(np.uint8), _disc(radius)) for mask in masks]) > 0


def _disc(radius: int) -> np.ndarray:
    return cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1,) * 2)


def _logit(share: np.ndarray) -> np.ndarray:
    share = share.clip(0.05, 0.95)
    return np.log(share / (1 - share))
