"""Refinement of masks before the training.

A mask consists of parts: its connected components, and pieces that are attached to them by a neck. Each part is tested
with the evidence of the clip (`propagation.py`): whether the masks of other frames, propagated along the flow and with
the object, contain it, and whether it moves like the object. Parts that fail are removed. This is repeated, as each
round leaves more reliable masks. Then outlines are moved to color edges (`boundaries.py`), but for those of soft masks,
which say more about an outline than its nearest edge. Masks on which all frames agree are not changed.

Masks are tested at a shorter side of at most 240 pixels. Votes and odds are log odds.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property, partial
from itertools import pairwise

import cv2
import numpy as np
from jaxtyping import UInt8

from neural_fields.core.prefetch import map_in_threads
from neural_fields.core.progress import Progress, ProgressReporter, report_nothing, report_part
from neural_fields.data.flow.compute import FlowField, resize_mask, resize_vectors
from neural_fields.data.masks.boundaries import OutlineSettings, align_outline
from neural_fields.data.masks.layer_masks import LayerMasks, is_soft
from neural_fields.data.masks.log_odds import compute_log_odds
from neural_fields.data.masks.propagation import (
    NeighborFlow,
    VoteSettings,
    compute_flow_votes,
    compute_motion_odds,
    compute_object_votes,
    fit_motion,
    measure_motion_distance,
)


@dataclass(frozen=True)
class MaskRefinementSettings:
    """Holds the settings of `refine_masks`. Lengths marked `_ref` are pixels of the size at which masks are tested."""

    work_side_px: int = 240  # shorter side of the masks that are tested; `_ref` lengths shrink with smaller clips
    motion_side_px: int = 120  # shorter side of the flow by which motion is tested
    speed_side_px: int = 240  # shorter side of the clip in whose pixels speeds are measured
    chunk_frames: int = 64  # frames that are tested together; limits the memory for long clips
    overlap_frames: int = 10  # frames before and after them that vote too
    rounds: int = 3  # iterations: each uses the masks that the one before has left
    agreement_tolerance_ref: int = 2  # by this much the masks of other frames are widened before they vote

    # The parts of a mask.
    neck_ref: int = 3  # a part that is joined by a neck narrower than twice this is tested by itself
    thin_radius_ref: float = 3.0  # thinner parts are not tested by motion: flow sees what is behind them

    # Weights of the evidence: a part is removed if the log odds of votes, motion and its prior sum to less than zero.
    object_weight: float = 0.6  # weight of the votes propagated with the transform of the object
    flow_weight: float = 0.4  # weight of the votes propagated along the flow
    motion_weight: float = 0.8  # weight of the log odds by motion
    min_vote_share: float = 0.05  # shares of votes are clipped to this and to 1 minus this
    thin_prior: float = 2.0  # log odds of a thin part before the evidence: only clearly wrong ones are removed
    attached_prior: float = 1.2  # log odds of a part that is joined by a neck, before the evidence

    votes: VoteSettings = field(default_factory=VoteSettings)
    outline: OutlineSettings = field(default_factory=OutlineSettings)


DEFAULTS = MaskRefinementSettings()


def refine_masks(
    frames: UInt8[np.ndarray, "time height width 3"],
    flow: FlowField,
    masks: LayerMasks,
    report: ProgressReporter = report_nothing,
    settings: MaskRefinementSettings = DEFAULTS,
) -> LayerMasks:
    """Removes parts of masks that do not belong to the object, and moves outlines to color edges.

    Layers are tested front to back, each where no layer in front hides it; hidden parts are not changed. A frame never
    loses its mask completely. Masks of a single frame are returned unchanged, as there is nothing to compare them with.

    Args:
        frames: RGB at the size of the masks; may be memory-mapped.
        flow: optical flow between neighboring frames, of any size; may be memory-mapped.
        masks: masks of the layers, front to back.
        report: called after each frame.
        settings: sizes, weights and priors.

    Returns:
        The refined masks with the same names; soft ones lose the shares around removed parts.
    """
    count = len(frames)
    if count < 2 or not masks.names:
        return masks
    full = (frames.shape[2], frames.shape[1])
    size, tiny = _scale_size(full, settings.work_side_px), _scale_size(full, settings.motion_side_px)
    out = np.array(masks.masks)
    shares = None if masks.shares is None else np.array(masks.shares)
    for first in range(0, count, settings.chunk_frames):
        stop = min(first + settings.chunk_frames, count)
        span = range(max(0, first - settings.overlap_frames), min(count, stop + settings.overlap_frames))

        resized = np.stack([_resize_masks(layer[span.start : span.stop], size) for layer in masks.masks])
        window = _MaskWindow(resized, flow, span, tiny, settings.speed_side_px / min(tiny), settings.votes)

        for layer in range(len(out)):
            edges = ((done / len(out) * (stop - first) + first) / count for done in (layer, layer + 0.7, layer + 1))
            to_judge, to_align = (report_part(report, "masks", *edge) for edge in pairwise(edges))
            kept, removed = _judge_layer(window, layer, to_judge, settings)
            finish = partial(_finish_mask, frames, masks, layer, out, shares, settings.outline)
            slots = slice(first - span.start, stop - span.start)
            judged = zip(range(first, stop), kept[slots], removed[slots], strict=True)
            for done, _ in enumerate(map_in_threads(finish, judged)):
                to_align(Progress("masks", done, stop - first))
        report(Progress("masks", stop, count))
    return LayerMasks(masks.names, out, shares)


def _finish_mask(
    frames: np.ndarray,
    masks: LayerMasks,
    layer: int,
    out: np.ndarray,
    shares: np.ndarray | None,
    settings: OutlineSettings,
    judged: tuple[int, np.ndarray, np.ndarray],
) -> None:
    """Writes the refined mask of a layer in a frame into `out`, and what is soft of it into `shares`.

    `judged` is the frame, and what is kept and removed of its mask at the size at which it was judged.
    """
    frame, kept, removed = judged
    given = masks.masks[layer, frame]
    left = _remove_parts(given, removed, kept)
    if shares is not None and is_soft(shares[layer, frame]):
        out[layer, frame] = left
        lost = given & ~left
        if lost.any():  # with what is nearer to a removed part of the mask than to what was kept of it
            to_kept, to_lost = (
                cv2.distanceTransform(1 - part.astype(np.uint8), cv2.DIST_L2, 5) for part in (left, lost)
            )
            shares[layer, frame][to_lost < to_kept] = 0
        return
    # What a layer in front hides stays.
    aligned = align_outline(np.asarray(frames[frame]), left, settings)
    out[layer, frame] = np.where(_unite_layers(masks.masks[:layer, frame]), left, aligned)
    if shares is not None:
        shares[layer, frame] = 255 * out[layer, frame]


@dataclass(frozen=True)
class _MaskWindow:
    """Some frames of a clip at the sizes that they are judged at; flow is read where something is to be judged."""

    masks: np.ndarray  # bool [layers, time, h, w], as given
    clip_flow: FlowField  # of the whole clip, at any size
    span: range  # the frames of the clip
    tiny: tuple[int, int]  # (width, height) at which motion is judged
    speed_unit: float  # pixels of the clip that speeds are measured in, in one pixel of `slow_flow`
    settings: VoteSettings

    @cached_property
    def flow(self) -> NeighborFlow:
        """The flow at the size of the masks."""
        height, width = self.masks.shape[2:]
        return _resize_flow(self.clip_flow, range(self.span.start, self.span.stop - 1), (width, height))

    @cached_property
    def slow_flow(self) -> NeighborFlow:
        """The flow at the size at which motion is judged."""
        return _resize_flow(self.flow, range(len(self.span) - 1), self.tiny)

    @property
    def slow_scale(self) -> float:
        """Pixels of `slow_flow` in one of `masks`."""
        return self.tiny[0] / self.masks.shape[3]

    @cached_property
    def slow_outside(self) -> np.ndarray:
        """The pixels outside the masks of all layers, at the size at which motion is judged."""
        return _resize_masks(~_unite_layers(self.masks), self.tiny)

    @cached_property
    def to_background(self) -> np.ndarray:
        """The distance of the flow from the motion of the background, in pixels of `slow_flow`."""
        background = fit_motion(self.slow_outside, self.slow_flow, "homography", self.settings)
        return measure_motion_distance(self.slow_flow, background)


def _scale_size(size: tuple[int, int], side: int) -> tuple[int, int]:
    """Shrinks a size (width, height) until its shorter side is `side`; smaller sizes stay."""
    shrink = min(1.0, side / min(size))
    return (max(1, round(size[0] * shrink)), max(1, round(size[1] * shrink)))


def _resize_flow(flow: FlowField | NeighborFlow, pairs: range, size: tuple[int, int]) -> NeighborFlow:
    forward = [resize_vectors(flow.forward[pair], size, flow.forward_ok[pair]) for pair in pairs]
    backward = [resize_vectors(flow.backward[pair], size, flow.backward_ok[pair]) for pair in pairs]
    return NeighborFlow(
        np.stack(forward, dtype=np.float32),
        np.stack(backward, dtype=np.float32),
        _resize_masks([np.asarray(flow.forward_ok[pair]) for pair in pairs], size),
        _resize_masks([np.asarray(flow.backward_ok[pair]) for pair in pairs], size),
    )


def _resize_masks(masks: np.ndarray | list[np.ndarray], size: tuple[int, int]) -> np.ndarray:
    return np.stack([resize_mask(mask, size) for mask in masks])


# --- judging --------------------------------------------------------------------------------------------------------


def _judge_layer(
    window: _MaskWindow, layer: int, report: ProgressReporter, settings: MaskRefinementSettings
) -> tuple[np.ndarray, np.ndarray]:
    """Returns what is kept of the visible masks of a layer and what is taken off, both bool [time, h, w]."""
    front = _unite_layers(window.masks[:layer])
    given = window.masks[layer] & ~front
    if not given.any():
        return given, np.zeros_like(given)
    shrink = min(given.shape[1:]) / settings.work_side_px
    neck = max(1, round(settings.neck_ref * shrink))
    thin = settings.thin_radius_ref * shrink

    kept = given
    for done in range(settings.rounds):
        report(Progress("masks", done, settings.rounds))
        # The best part of a mask stays: where no mask has two parts, nothing is to be judged.
        divided = [frame for frame, mask in enumerate(kept) if _label_parts(mask, neck).max() > 1]
        if not divided:
            break
        # The log odds of every pixel by the votes of other frames and by how it moves; the motion of the object is
        # that of its largest connected piece.
        largest = []
        for mask in kept:
            count, labels, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
            largest.append(mask if count < 3 else labels == 1 + stats[1:, cv2.CC_STAT_AREA].argmax())
        transforms = fit_motion(np.stack(largest), window.flow, "similarity", settings.votes)

        around = _make_disc(max(1, round(settings.agreement_tolerance_ref * shrink)))
        wide = np.stack([cv2.dilate(mask.astype(np.uint8), around) for mask in kept]) > 0
        by_object = compute_object_votes(wide, ~front, transforms, settings.votes)
        by_flow = compute_flow_votes(wide, ~front, window.flow, settings.votes)
        scale = np.diag([window.slow_scale, window.slow_scale, 1.0])
        slow_transforms = [scale @ matrix @ np.linalg.inv(scale) for matrix in transforms]
        height, width = kept.shape[1:]
        odds = compute_motion_odds(
            _resize_masks(kept, window.tiny),
            window.slow_outside,
            window.to_background,
            measure_motion_distance(window.slow_flow, slow_transforms),
            window.speed_unit,
            settings.votes,
        )
        before, kept = kept, kept.copy()
        for frame in divided:
            vote = settings.object_weight * compute_log_odds(by_object[frame], settings.min_vote_share)
            vote += settings.flow_weight * compute_log_odds(by_flow[frame], settings.min_vote_share)
            move = settings.motion_weight * cv2.resize(odds[frame], (width, height), interpolation=cv2.INTER_LINEAR)
            # Pieces that touch nothing else, then parts that hang on by a neck.
            mask = kept[frame]
            mask = _remove_bad_parts(mask, _label_parts(mask, 0), vote, move, 0.0, thin, settings)
            parts = _label_parts(mask, neck)
            kept[frame] = _remove_bad_parts(mask, parts, vote, move, settings.attached_prior, thin, settings)
        if np.array_equal(kept, before):  # the next round would see the same
            break
    return kept, given & ~kept


def _remove_bad_parts(
    mask: np.ndarray,
    labels: np.ndarray,
    votes: np.ndarray,
    moves: np.ndarray,
    prior: float,
    thin_radius: float,
    settings: MaskRefinementSettings,
) -> np.ndarray:
    """Takes off the parts whose evidence is against them; the best part always stays.

    Args:
        mask: mask of one frame.
        labels: labels of its parts, from 1; 0 outside.
        votes: log odds of each pixel by the votes of other frames.
        moves: log odds of each pixel by how it moves.
        prior: log odds of a part before any evidence.
        thin_radius: parts with a smaller inscribed circle, in pixels, are thin.
        settings: priors of thin parts.

    Returns:
        What is left of the mask.
    """
    count = int(labels.max()) + 1
    if count < 3:
        return mask
    inside = labels[mask]
    area = np.maximum(np.bincount(inside, minlength=count), 1)
    radius = np.zeros(count)
    np.maximum.at(radius, inside, cv2.distanceTransform(mask.astype(np.uint8), cv2.DIST_L2, 3)[mask])
    vote, move = (np.bincount(inside, values[mask], count) / area for values in (votes, moves))
    score = vote + np.where(radius < thin_radius, settings.thin_prior, prior + move)
    keep = score >= 0
    keep[1 + (score.clip(0.01) * area)[1:].argmax()] = True
    return keep[labels] & mask


def _label_parts(mask: np.ndarray, neck: int) -> np.ndarray:
    """Labels connected pieces from 1, cut at necks narrower than 2 `neck`; each pixel joins the nearest part."""
    found = np.zeros(mask.shape, np.int32)
    left, top, wide, high = cv2.boundingRect(mask.view(np.uint8))
    if not wide:
        return found
    # Only the rectangle of the mask, with room for a neck: the edge of the frame cuts nothing, that of a mask does.
    inside = slice(max(0, top - neck), top + high + neck), slice(max(0, left - neck), left + wide + neck)
    mask = np.ascontiguousarray(mask[inside])
    _, pieces = cv2.connectedComponents(mask.view(np.uint8), connectivity=8)
    if neck == 0:
        found[inside] = pieces
        return found
    cores = cv2.erode(mask.view(np.uint8), _make_disc(neck))
    has_core = np.zeros(int(pieces.max()) + 1, bool)
    has_core[np.unique(pieces[cores > 0])] = True
    cores |= (mask & ~has_core[pieces]).astype(np.uint8)  # pieces thinner than a neck stay whole
    _, labels = cv2.distanceTransformWithLabels(1 - cores, cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_CCOMP)
    found[inside] = np.where(mask, labels, 0)
    return found


# --- shapes ---------------------------------------------------------------------------------------------------------


def _remove_parts(own: np.ndarray, removed: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """Removes from a mask at full size what was removed at working size: each pixel follows the nearest one there."""
    if not removed.any():
        return own
    if removed.shape == own.shape:
        return own & ~removed
    to_kept, to_removed = (cv2.distanceTransform(1 - part.astype(np.uint8), cv2.DIST_L2, 3) for part in (kept, removed))
    size = (own.shape[1], own.shape[0])
    nearer = cv2.resize(to_kept - to_removed, size, interpolation=cv2.INTER_LINEAR)
    near = cv2.resize(to_removed, size, interpolation=cv2.INTER_LINEAR)
    return own & ~((nearer > 0) & (near < 2))


def _unite_layers(layers: np.ndarray) -> np.ndarray:
    """Returns where any of the layers is; nowhere, without layers."""
    return np.asarray(layers.any(0))


def _make_disc(radius: int) -> np.ndarray:
    return cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1,) * 2)
