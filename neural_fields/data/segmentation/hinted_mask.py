"""The mask of one frame in which the user pointed at an object, from a box, points and strokes, without a network.

Colors inside the box are told from those around it, and learned again from the surer part of each result; what moves
otherwise than the background is rather the object. A point without a box is tried as the middle of boxes of several
sizes, and as a part of what moves; the result with the clearest outline counts. Rother et al., "GrabCut" (SIGGRAPH
2004), with motion and a regression instead of mixtures of colors. Lengths are pixels of frames whose shorter side is
240.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import cv2
import numpy as np
from jaxtyping import Bool, Float, Int8, UInt8

from neural_fields.core.errors import bad_input
from neural_fields.data.flow.compute import FlowField
from neural_fields.data.segmentation.appearance_model import AppearanceModel, AppearanceSettings
from neural_fields.data.segmentation.color_features import ColorFeatureSettings, compute_color_features
from neural_fields.data.segmentation.graph_cut import cut_graph
from neural_fields.data.segmentation.motion_evidence import MotionEvidenceSettings, measure_departure, read_trusted_flow
from neural_fields.data.segmentation.segmenter import FrameHints

Mask = Bool[np.ndarray, "height width"]
Share = Float[np.ndarray, "height width"]
Box = tuple[int, int, int, int]

COLORS = (0, 1, 2, 3, 4, 5)  # features that do not reach beyond an outline: colors, and finely blurred ones
CERTAIN = 30.0  # log odds of what the user said


@dataclass(frozen=True)
class HintedMaskSettings:
    """Holds the settings of `find_hinted_mask`. Weights are those of log odds."""

    ring_share: float = 0.5  # width of the background around a box that is compared with its inside, in longer sides
    min_ring_px: int = 6  # added to that
    # Rounds of learning and cutting; of each, the share of the object found so far, the surest part, that is learned.
    learned_shares: tuple[float, ...] = (1.0, 0.7, 0.7, 0.7, 0.9)
    appearance_weight: float = 4.0
    center_weight: float = 0.5  # of being near the middle of the box
    motion_weight: float = 2.0  # of moving surely otherwise than the background
    motion_frames: int = 3  # before and after the frame, over which motion is measured
    away_errors: float = 1.5  # a vector so many errors away from the background's motion is surely not the background's
    mark_weight: float = 6.0  # of a mark for pixels of its color near it
    mark_reach: float = 0.25  # distance from a mark at which that falls to 1/e, in diagonals of the box
    mark_color_levels: float = 12.0  # difference of color, in 8-bit CIELAB, at which it falls to 1/e
    smoothness: float = 6.0  # cost of the outline in `cut_graph`
    # A box fits its object. Where a side of it stays empty, a head or legs are missing: they are taken with less proof.
    empty_side_share: float = 0.12  # of the box that may be empty at each of its sides
    filling_odds: tuple[float, ...] = (0.5, 1.0, 1.5, 2.0, 2.5, 3.0)  # added in the whole box, one after the other
    min_filling_contrast: float = 0.8  # share of the contrast that must remain; otherwise the background was taken
    min_area_px: int = 20  # a smaller object counts as not found, ...
    min_contrast: float = 0.3  # ... and so does one whose colors score less above those around the box, of 2
    max_fine_box_px: int = 10_000  # area of a box up to which every pixel has features of its own
    features: ColorFeatureSettings = field(default_factory=ColorFeatureSettings)
    motion: MotionEvidenceSettings = field(default_factory=MotionEvidenceSettings)
    appearance: AppearanceSettings = field(
        default_factory=lambda: AppearanceSettings(feature_sets=(COLORS,), regressions=1, max_samples=6000, ridge=3e-2)
    )
    # Points without a box: several boxes are tried at half the size, and their results are compared.
    point_boxes_px: tuple[int, ...] = (40, 70, 120, 200)  # what each is larger than all marks of the object
    moving_share: float = 0.5  # from which a pixel that is not the background's counts as moving
    point_rounds: int = 2  # of learning and cutting, for each box
    point_cosine_features: int = 96  # of the regression, for each box
    box_margin_px: int = 3  # around a result, for the box with which it is found again
    compared_again: int = 2  # best results that are found again and compared
    outline_weight: float = 4.0  # of the share of the outline on edges, beside the contrast of motion, 0 to 1
    edge_levels: float = 15.0  # difference of color, in 8-bit CIELAB, from which that share rises
    contrast_weight: float = 0.25  # of the difference of log odds to the pixels around, beside both
    contrast_reach: float = 0.15  # width of what is around, in object sizes


DEFAULTS = HintedMaskSettings()


@dataclass(frozen=True)
class HintedMask:
    """Holds an object in a frame where the user pointed at it.

    Attributes:
        mask: the object.
        confidence: how clearly its colors differ from those around it, 0 to 1; 1 for a mask that the user gave.
    """

    mask: Mask
    confidence: float


def find_hinted_mask(
    frames: UInt8[np.ndarray, "time height width 3"],
    flow: FlowField,
    number: int,
    hints: FrameHints,
    settings: HintedMaskSettings = DEFAULTS,
) -> HintedMask:
    """Finds an object in a frame where the user pointed at it.

    Args:
        frames: RGB; the shorter side is about 240.
        flow: between neighboring frames, at the size of the frames.
        number: of the frame that the hints are of.
        hints: what the user said.
        settings: weights.

    Raises:
        UserError: the hints contradict each other, say nothing about the object, or nothing is found with them.
    """
    where, shape, sure = f"frame {number}", hints.labels.shape, hints.labels > 0
    if hints.mask is not None:
        mask = hints.marked_mask
        if not mask.any():
            raise bad_input("the mask is empty", where=where, why="it must show the object")
        return HintedMask(mask, 1.0)
    frame = np.ascontiguousarray(frames[number])
    if hints.box is None:
        if not sure.any():
            raise bad_input(
                "the hints do not say where the object is",
                where=where,
                why="only what is not the object was marked",
                fix="add --point x,y on the object, or --box x,y,w,h around it",
            )
        away = _measure_motion(flow, number, np.ones(shape, bool), settings)
        box = _find_box(frame, away, hints.labels, settings)
    else:
        box = left, top, right, bottom = _clip_box(hints.box, shape)
        if right - left < 2 or bottom - top < 2:
            raise bad_input(
                f"the box {hints.box} is empty or outside the frame",
                where=where,
                why=f"a frame has {shape[1]} x {shape[0]} pixels at the size it is segmented at",
                fix="give left, top, width and height of a box in the frame: --box x,y,w,h",
            )
        inside = _fill_box(box, shape)
        if (sure & ~inside).any():
            raise bad_input(
                "a mark of the object is outside its box",
                where=where,
                why="a box holds the whole object",
                fix="make the box larger, or take back the point or stroke",
            )
        if (hints.labels[inside] < 0).all():
            raise bad_input(
                "all of the box is marked as not the object",
                where=where,
                why="the object must be inside the box",
                fix="take back the stroke, or draw the box around the object",
            )
        away = _measure_motion(flow, number, ~inside, settings)
    mask, _, contrast = _segment_box(frame, away, box, hints.labels, settings)
    if hints.box is None:
        mask = _keep_marked(mask, hints.labels)
    elif not _fills_sides(mask, box, settings):
        wider, _, other_contrast = _segment_box(frame, away, box, hints.labels, settings, is_filled=True)
        if other_contrast >= settings.min_filling_contrast * contrast:
            mask, contrast = wider, other_contrast
    if (mask.sum() < settings.min_area_px or contrast < settings.min_contrast) and not sure.any():
        raise bad_input(
            "nothing in the box differs from what is around it",
            where=where,
            why="the object must be inside the box, with some of the background around it",
            fix="draw the box closer around the object, or add --point x,y on it",
        )
    # Scores differ by 2 at most. What the user pointed at is never lost.
    return HintedMask(mask, float(np.clip(contrast / 2, 0.01, 1)))


def _clip_box(box: Box, shape: tuple[int, ...]) -> Box:
    left, top, right, bottom = box
    return max(0, left), max(0, top), min(shape[1], right), min(shape[0], bottom)


def _fill_box(box: Box, shape: tuple[int, ...]) -> Mask:
    left, top, right, bottom = box
    mask = np.zeros(shape, bool)
    mask[top:bottom, left:right] = True
    return mask


def _bound(mask: Mask, margin: int) -> Box:
    """Returns the box around a mask, and a margin."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    box = int(columns[0]) - margin, int(rows[0]) - margin, int(columns[-1]) + 1 + margin, int(rows[-1]) + 1 + margin
    return _clip_box(box, mask.shape)


def _fills_sides(mask: Mask, box: Box, settings: HintedMaskSettings) -> bool:
    """Tells whether a mask comes near all four sides of a box; an empty one cannot be told to."""
    if not mask.any():
        return True
    left, top, right, bottom = _bound(mask, 0)
    across, down = (settings.empty_side_share * size for size in (box[2] - box[0], box[3] - box[1]))
    is_wide = left - box[0] <= across and box[2] - right <= across
    return is_wide and top - box[1] <= down and box[3] - bottom <= down


def _measure_motion(flow: FlowField, number: int, beyond: Mask, settings: HintedMaskSettings) -> Share:
    """Measures how surely each pixel of a frame moves otherwise than the background, over the frames around it.

    Args:
        flow: between neighboring frames.
        number: of the frame.
        beyond: where the background's motion is fitted.
        settings: tolerances.
    """
    height, width = beyond.shape
    away, weight = np.zeros(beyond.shape, np.float32), np.full(beyond.shape, 1e-6, np.float32)
    x, y = np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32)[:, None]
    for to in (1, -1):
        total, trust = np.zeros((height, width, 2), np.float32), np.ones(beyond.shape, np.float32)
        for at in range(number, number + to * settings.motion_frames, to):
            if not 0 <= at + to <= len(flow.forward):
                break
            vectors, sure = read_trusted_flow(flow, at, to, settings.motion)
            there = x + total[..., 0], y + total[..., 1]
            total = total + cv2.remap(vectors, *there, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
            trust = trust * cv2.remap(sure, *there, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
            departure = measure_departure(total, beyond, settings.motion)
            if departure is None:
                continue
            noise = 1 + 2 * np.median(departure[0])  # water, leaves: all moves
            away += (trust + 0.05) * (1 - np.exp(-np.square(departure[0] / noise / settings.away_errors)))
            weight += trust + 0.05
    return away / weight


def _segment_box(
    frame: np.ndarray,
    away: Share,
    box: Box,
    labels: Int8[np.ndarray, "height width"],
    settings: HintedMaskSettings,
    is_filled: bool = False,
) -> tuple[Mask, Share, float]:
    """Finds the object in a box.

    Args:
        frame: RGB.
        away: how surely each pixel moves otherwise than the background.
        box: left, top, right, bottom.
        labels: what the user marked.
        settings: weights.
        is_filled: whether pixels are taken with less proof until the object fills the box from side to side.

    Returns:
        Mask, log odds of the object without bias (0 far from the box), and the difference of the scores of colors
        between the object and what is around the box, 0 to 2.
    """
    left, top, right, bottom = box
    inside = _fill_box(box, labels.shape)
    step = 1 if (right - left) * (bottom - top) <= settings.max_fine_box_px else settings.features.stride_px
    room = int(settings.ring_share * max(right - left, bottom - top)) + settings.min_ring_px
    window = tuple(
        slice(max(0, first - room) // 2 * 2, min(size, last + room))
        for first, last, size in zip((top, left), (bottom, right), labels.shape, strict=True)
    )
    near = _fill_box((window[1].start, window[0].start, window[1].stop, window[0].stop), labels.shape)
    around = near & ~inside
    features = compute_color_features(frame, replace(settings.features, stride_px=step))[..., COLORS]
    rows, columns = (slice(part.start // step, (part.stop + step - 1) // step) for part in window)
    height, width = (part.stop - part.start for part in window)

    # Where the object may be before its colors are known: in the middle, and where something moves by itself.
    y, x = np.mgrid[: labels.shape[0], : labels.shape[1]]
    off_y, off_x = (2 * y + 1 - top - bottom) / (bottom - top), (2 * x + 1 - left - right) / (right - left)
    prior = settings.center_weight * np.clip(1.2 - 1.92 * (off_x**2 + off_y**2), -3, 1.2)
    fastest, beside = np.percentile(away[inside], 95), away[around].mean() if around.any() else 0.0
    clear = float(np.clip(2 * (fastest - beside), 0, 1))  # nothing follows from motion if all around moves too
    prior += settings.motion_weight * clear * np.clip(2 * (away - (fastest + beside) / 2), -1, 1)
    prior += _spread_marks(frame, labels, settings.mark_reach * float(np.hypot(right - left, bottom - top)), settings)
    prior = np.where(labels == 0, np.where(inside, prior, -CERTAIN), CERTAIN * labels)[window].astype(np.float32)

    odds, found, large = prior, prior > 0, np.zeros_like(prior)
    mask, out = np.zeros(labels.shape, bool), np.zeros(labels.shape, np.float32)
    for learned in settings.learned_shares:
        mask[window] = found
        state = np.where(mask, 1, -1).astype(np.int8)
        if around.any():  # and otherwise there is no other background to learn from
            state[inside & ~mask] = 0
        if found.any():
            state[window][found & (odds < np.quantile(odds[found], 1 - learned))] = 0
        state[labels != 0] = labels[labels != 0]
        if not (state > 0).any():
            break
        part = np.s_[::step, ::step]
        model = AppearanceModel({0: features}, {0: state[part]}, {0: near[part]}, settings.appearance)
        score = model.score(features[rows, columns]).astype(np.float32)
        large = cv2.resize(score, (score.shape[1] * step, score.shape[0] * step), interpolation=cv2.INTER_LINEAR)
        large = large[:height, :width]
        odds = prior + settings.appearance_weight * large
        found = cut_graph(odds, frame[window], settings.smoothness)
        if is_filled:
            for more in settings.filling_odds:
                mask[window] = cut_graph(
                    odds + np.float32(more) * (inside & (labels == 0))[window], frame[window], settings.smoothness
                )
                if _fills_sides(mask, box, settings):
                    found = mask[window].copy()
                    break
    mask[window], out[window] = found, odds
    outer = around[window]
    contrast = float(large[found].mean() - large[outer].mean()) if found.any() and outer.any() else 2.0
    return mask, out, contrast


def _spread_marks(
    frame: np.ndarray, labels: Int8[np.ndarray, "height width"], reach_px: float, settings: HintedMaskSettings
) -> Float[np.ndarray, "height width"]:
    """Computes the log odds that marks lend to pixels of their color near them."""
    odds = np.zeros(labels.shape, np.float32)
    colors = cv2.GaussianBlur(cv2.cvtColor(frame, cv2.COLOR_RGB2LAB), (0, 0), 1.0).astype(np.float32)
    for sign in (1, -1):
        marked = labels == sign
        if not marked.any():
            continue
        # Each pixel is compared with the nearest marked one.
        distance, nearest = cv2.distanceTransformWithLabels(
            (~marked).astype(np.uint8), cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL
        )
        table = np.zeros((int(nearest.max()) + 1, 3), np.float32)
        table[nearest[marked]] = colors[marked]
        difference = np.linalg.norm(colors - table[nearest], axis=-1) / settings.mark_color_levels
        odds += sign * settings.mark_weight * np.exp(-np.square(difference) - distance / reach_px)
    return odds


def _find_box(
    frame: np.ndarray, away: Share, labels: Int8[np.ndarray, "height width"], settings: HintedMaskSettings
) -> Box:
    """Finds the box of the object that the user marked: of several, that whose object has the clearest outline."""
    # At half the size, where each try takes a quarter of the time.
    size = ((labels.shape[1] + 1) // 2, (labels.shape[0] + 1) // 2)
    small, slow = cv2.resize(frame, size, interpolation=cv2.INTER_AREA), cv2.resize(away, size)
    square = np.ones((2, 2), np.uint8)
    sure, other = (cv2.dilate((labels == sign).astype(np.uint8), square)[::2, ::2] > 0 for sign in (1, -1))
    marks = np.where(sure, 1, np.where(other, -1, 0)).astype(np.int8)
    quick = replace(
        settings,
        learned_shares=settings.learned_shares[: settings.point_rounds],
        appearance=replace(settings.appearance, cosine_features=settings.point_cosine_features, max_samples=3000),
    )

    # Boxes that may hold the object: around what moves there, and of several sizes.
    moving = _keep_marked((slow > settings.moving_share) & (marks >= 0) | (marks > 0), marks)
    boxes = [_bound(moving, 2)] if moving.sum() > 2 * (marks > 0).sum() else []
    left, top, right, bottom = _bound(marks > 0, 0)
    for grow in (side // 4 for side in settings.point_boxes_px):  # on each side, at half the size
        boxes.append(_clip_box((left - grow, top - grow, right + grow, bottom + grow), marks.shape))

    # All of them are tried, then the boxes of the best results. A good result has an outline on edges of the picture,
    # and colors and motion that differ from those around it.
    colors = cv2.GaussianBlur(cv2.cvtColor(small, cv2.COLOR_RGB2LAB), (0, 0), 1.0).astype(np.float32)
    for _ in range(2):
        rated: list[tuple[float, Box]] = []
        for box in boxes:
            mask, odds, _ = _segment_box(small, slow, box, marks, quick)
            mask = _keep_marked(mask, marks)
            found = _bound(mask, (settings.box_margin_px + 1) // 2)
            inside = _fill_box(box, mask.shape)
            side = 2 * max(2, round(settings.contrast_reach * float(np.sqrt(mask.sum())))) + 1
            ring = (cv2.dilate(mask.astype(np.uint8), np.ones((side, side), np.uint8)) > 0) & ~mask
            beside = ring & inside
            if not beside.any():
                rated.append((-np.inf, found))
                continue
            edges, length = 0.0, 0
            for a, b in ((np.s_[:, :-2], np.s_[:, 2:]), (np.s_[:-2], np.s_[2:])):
                outline = mask[a] != mask[b]
                difference = np.linalg.norm(colors[a] - colors[b], axis=-1)[outline]
                free = (inside[a] & inside[b])[outline]  # where only the box ends the object, there is no edge
                edges += float(((1 - np.exp(-difference / settings.edge_levels)) * free).sum())
                length += len(difference)
            contrast = settings.contrast_weight * float(odds[mask].mean() - odds[beside].mean())
            motion = float(slow[mask].mean() - slow[ring].mean())
            rated.append((settings.outline_weight * edges / max(1, length) + contrast + motion, found))
        rated.sort(reverse=True)
        boxes = [box for _, box in rated[: settings.compared_again]]
    left, top, right, bottom = boxes[0]
    return _clip_box((2 * left, 2 * top, 2 * right, 2 * bottom), labels.shape)


def _keep_marked(mask: Mask, labels: Int8[np.ndarray, "height width"]) -> Mask:
    """Keeps the parts of a mask that contain marks of the object."""
    _, parts = cv2.connectedComponents((mask | (labels > 0)).astype(np.uint8), connectivity=8)
    return np.isin(parts, np.unique(parts[labels > 0]))
