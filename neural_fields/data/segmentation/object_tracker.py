"""Follows one object from a frame where its mask is known, frame by frame, without a network.

Color and texture (learned from hinted frames only), motion against the background, the mask of the frame before
carried along the optical flow, and the mask of the hinted frame itself are added up as log odds; the outline is the
cheapest cut through color edges. Where another object is known to be in front, what it hides is carried on by the
object's own motion, so that it is there when it comes out. Lengths are pixels of frames whose shorter side is 240.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

import cv2
import numpy as np
from jaxtyping import Bool, Float, Int8, UInt8

from neural_fields.data.flow.compute import FlowField
from neural_fields.data.masks.log_odds import compute_log_odds
from neural_fields.data.segmentation.appearance_model import AppearanceModel, AppearanceSettings
from neural_fields.data.segmentation.color_features import ColorFeatureSettings, compute_color_features
from neural_fields.data.segmentation.graph_cut import cut_graph
from neural_fields.data.segmentation.hint_registration import HintRegistration, RegistrationSettings
from neural_fields.data.segmentation.mask_confidence import MaskConfidenceSettings, measure_confidence
from neural_fields.data.segmentation.motion_evidence import (
    WHOLE,
    MotionEvidenceSettings,
    Window,
    WindowShare,
    compute_trust,
    fit_affine_motion,
    read_flow,
    transform_flow,
    warp_backward,
    weigh_motion,
)

Mask = Bool[np.ndarray, "height width"]
Share = Float[np.ndarray, "height width"]
Features = Float[np.ndarray, "rows columns features"]


@dataclass(frozen=True)
class ObjectTrackerSettings:
    """Holds the settings of `ObjectTracker`. Weights are those of log odds."""

    window_margin: float = 0.5  # around the expected mask where the object is looked for, in object sizes
    min_window_margin_px: int = 16
    carried_weight: float = 0.5  # of the mask of the frame before
    untrusted_weight: float = 0.25  # share of that weight that remains where flow is not trusted
    reach: float = 0.175  # distance from the carried mask at which a pixel loses one, in object sizes
    min_reach_px: float = 4.0
    usual_frames: int = 20  # whose median is the usual area of the object; half hidden, it is expected to come back
    appearance_weight: float = 4.0
    rigid_appearance_weight: float = 1.5  # for a rigid object, whose motion says more
    rigid_shares: tuple[float, float] = (0.6, 0.9)  # rigidity from which, and with which, that weight counts
    rigidity_frames: int = 5  # over which rigidity is averaged
    background_weight: float = 6.0  # of moving with the background, against pixels outside the carried mask
    kept_background_weight: float = 0.9  # the same against pixels inside it: a leg that stands still stays
    object_weight: float = 3.0  # of moving with the object, for pixels inside the carried mask
    hint_weight: float = 2.0  # of the hinted mask itself, where it can be trusted
    enclosed_hint_weight: float = 4.0  # the same between two hinted frames, whose masks are two independent proofs
    hinted_appearance_share: float = 0.3  # share of the appearance's weight that remains there
    max_odds: float = 8.0  # log odds are clipped to this and to minus this where two directions are joined
    max_open_odds: float = 3.0  # a pixel that is surer, whatever its appearance, is not asked for its appearance
    smoothness: float = 6.0  # cost of the outline in `cut_graph`
    min_share: float = 0.02  # shares are clipped to this and to 1 minus this before log odds are taken
    min_area_px: int = 10  # a smaller mask counts as lost
    lost_share: float = 0.15  # of the hinted area: with less, the object is looked for in the whole frame
    min_found_share: float = 0.3  # of the hinted area that a part found there must have, ...
    max_found_share: float = 3.0  # ... and may have at most
    min_found_score: float = 0.5  # its mean score by appearance
    cut_share: float = 0.5  # of the mask that is carried on: the cut, and for the rest the odds
    cut_sigma_px: float = 0.7  # Gaussian of the cut that is carried on
    cover_margin_px: int = 4  # around what is in front, where flow is that of what is in front as well
    min_seen_share: float = 0.4  # of the usual area that must be seen for the motion of hidden parts to be fitted anew
    features: ColorFeatureSettings = field(default_factory=ColorFeatureSettings)
    appearance: AppearanceSettings = field(default_factory=AppearanceSettings)
    motion: MotionEvidenceSettings = field(default_factory=MotionEvidenceSettings)
    registration: RegistrationSettings = field(default_factory=RegistrationSettings)
    confidence: MaskConfidenceSettings = field(default_factory=MaskConfidenceSettings)


DEFAULTS = ObjectTrackerSettings()
FAR_ODDS = 30.0  # log odds against an object outside its window


@dataclass(frozen=True)
class FollowedFrame:
    """Holds what is seen of an object in one frame.

    Attributes:
        mask: the object.
        share: its share of each pixel, 0 to 255.
        confidence: about the IoU that the mask can be expected to have, 0 to 1; 0 where the object is lost.
        odds: log odds in each pixel, before the outline was cut; None but between two hinted frames.
        hint_trust: how far the mask of the hinted frame can be trusted in this one, 0 to 1; None like the odds.
    """

    mask: Mask
    share: UInt8[np.ndarray, "height width"]
    confidence: float
    odds: Float[np.ndarray, "height width"] | None = None
    hint_trust: Float[np.ndarray, "height width"] | None = None


@dataclass
class ObjectCourse:
    """Holds where an object is in the frame that was reached, and what is known of its way there.

    Attributes:
        number: of the frame.
        seen: the mask of what is seen of it.
        whole: its share of each pixel, 0 to 1, parts that are hidden included.
        registration: the mask of the hinted frame from which it came.
        motion: affine transform of its pixels to those of the frame before.
        rigidities: of the frames so far, 0 to 1.
        areas_px: in the frames so far.
        is_enclosed: whether it leads to another frame whose mask is known.
    """

    number: int
    seen: Mask
    whole: Share
    registration: HintRegistration
    motion: Float[np.ndarray, "3 3"]
    rigidities: list[float]
    areas_px: list[int]
    is_enclosed: bool


@dataclass(frozen=True)
class ObjectOdds:
    """Holds what speaks for an object in the next frame.

    Attributes:
        number: of the frame.
        carried: the share of each pixel that is expected, 0 to 1.
        window: rows and columns of the frame in which it is looked for.
        odds: log odds in the window.
        hint_trust: how far the mask of the hinted frame can be trusted there, 0 to 1.
        features: of the window.
    """

    number: int
    carried: Share
    window: tuple[slice, slice]
    odds: Float[np.ndarray, "rows columns"]
    hint_trust: Float[np.ndarray, "rows columns"]
    features: Float[np.ndarray, "down across features"]

    @property
    def everywhere(self) -> Share:
        """The log odds of the whole frame."""
        odds = np.full(self.carried.shape, -FAR_ODDS, np.float32)
        odds[self.window] = self.odds
        return odds


def find_window(mask: Mask, margin: float, min_margin_px: int) -> tuple[slice, slice]:
    """Returns the rows and columns of a mask and its surroundings; the whole frame for an empty mask.

    Args:
        mask: what is inside.
        margin: width of the surroundings, in square roots of the area of the mask.
        min_margin_px: their least width.
    """
    height, width = mask.shape
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return slice(0, height), slice(0, width)
    room = int(max(min_margin_px, margin * np.sqrt(mask.sum())))
    top, left = (max(0, int(first) - room) // 2 * 2 for first in (rows[0], columns[0]))  # even, like the stride
    return slice(top, min(height, int(rows[-1]) + 1 + room)), slice(left, min(width, int(columns[-1]) + 1 + room))


class ObjectTracker:
    """Follows an object through a clip.

    Args:
        frames: RGB; the shorter side is about 240.
        flow: between neighboring frames, at the size of the frames.
        labels: of the hinted frames: 1 the object, -1 the background, 0 not known.
        settings: weights.
        rivals: where other objects are in the hinted frames, which it must be told from even if they are far away.
    """

    def __init__(
        self,
        frames: UInt8[np.ndarray, "time height width 3"],
        flow: FlowField,
        labels: Mapping[int, Int8[np.ndarray, "height width"]],
        settings: ObjectTrackerSettings = DEFAULTS,
        rivals: Mapping[int, Mask] | None = None,
    ) -> None:
        self.frames, self.flow, self.settings = frames, flow, settings
        step = settings.features.stride_px
        features, near = {}, {}
        for number, label in labels.items():
            features[number] = compute_color_features(frames[number], settings.features)
            around = np.zeros(label.shape, bool)
            around[find_window(label > 0, settings.window_margin, settings.min_window_margin_px)] = True
            if rivals is not None:
                around |= rivals[number]
            near[number] = around[::step, ::step]
        small = {number: label[::step, ::step] for number, label in labels.items()}
        self.appearance = AppearanceModel(features, small, near, settings.appearance)
        self._area_px = float(np.median([(label > 0).sum() for label in labels.values()]))

    def follow(self, start: int, mask: Mask, stop: int) -> Iterator[tuple[int, FollowedFrame]]:
        """Follows the object, if it is the only one, from a frame to its neighbor and on.

        Args:
            start: number of the frame whose mask is known.
            mask: the object in that frame.
            stop: first frame that is not asked for: beyond the last frame, or before the first one.

        Yields:
            Number of the frame, and the object in it.
        """
        direction = 1 if stop > start else -1
        course = self.begin(start, mask)
        for number in range(start + direction, stop, direction):
            yield number, self.settle(course, self.weigh(course, direction))

    def begin(self, number: int, mask: Mask, is_enclosed: bool = False) -> ObjectCourse:
        """Begins to follow the object.

        Args:
            number: of a frame whose mask is known.
            mask: the object in that frame.
            is_enclosed: whether its way leads to another frame whose mask is known.
        """
        share = mask.astype(np.float32)
        registration = HintRegistration(self.frames[number], share, self.settings.registration)
        return ObjectCourse(number, mask, share, registration, np.eye(3), [], [int(mask.sum())], is_enclosed)

    def weigh(
        self, course: ObjectCourse, direction: int, cover_before: Mask | None = None, cover: Mask | None = None
    ) -> ObjectOdds:
        """Weighs what speaks for the object in the next frame, and brings its course there.

        Args:
            course: where it is.
            direction: 1 for the frame after that, -1 for the one before.
            cover_before: what is in front of it where it is; None where nothing is known to be.
            cover: what is expected to be in front of it in the next frame.
        """
        settings, number = self.settings, course.number + direction
        frame = np.ascontiguousarray(self.frames[number])
        usual_area = float(np.median(course.areas_px[-settings.usual_frames :]))
        back, reverse = read_flow(self.flow, number, -direction)
        carried = warp_backward(course.whole, back)
        window = find_window(carried > 0.3, settings.window_margin, settings.min_window_margin_px)
        trust = compute_trust(back, reverse, settings.motion, window)
        hidden: Mask | None = None
        if cover_before is not None and cover is not None:
            # What is hidden, and what has just come out, has no flow of its own: it moves as what is seen does.
            box = np.ones(2 * (2 * settings.cover_margin_px + 1,), np.uint8)
            wide = [cv2.dilate(part.astype(np.float32), box) for part in (cover_before, cover)]
            hidden = np.maximum(warp_backward(wide[0], back), wide[1]) > 0.5
            chosen = np.zeros(hidden.shape, bool)
            chosen[window] = (carried[window] > 0.5) & (trust > 0.3) & ~hidden[window]
            own = fit_affine_motion(chosen, back, settings.motion)
            if own is not None and chosen.sum() > settings.min_seen_share * usual_area:
                course.motion = own
            height, width = hidden.shape
            moved = transform_flow(course.motion, (slice(0, height), slice(0, width)))
            hidden |= warp_backward(wide[0], moved) > 0.5
            back = np.where(hidden[..., None], moved, back)
            carried = warp_backward(course.whole, back)
            window = find_window(carried > 0.3, settings.window_margin, settings.min_window_margin_px)
            trust = np.where(hidden[window], 0, compute_trust(back, reverse, settings.motion, window))
        expected = carried[window]
        inside = expected > 0.5
        distance = cv2.distanceTransform((~inside).astype(np.uint8), cv2.DIST_L2, 3)
        reach = max(settings.min_reach_px, settings.reach * float(np.sqrt(max(inside.sum(), usual_area))))
        trusted = settings.untrusted_weight + (1 - settings.untrusted_weight) * trust
        if hidden is not None:
            trusted = np.where(hidden[window], 1, trusted)
        odds = settings.carried_weight * trusted * compute_log_odds(expected, settings.min_share)
        odds -= np.square(np.minimum(distance, 1e3) / reach)

        # Motion, and the hinted mask itself.
        flows = [(back, trust)]
        if 0 <= number + direction < len(self.frames):
            ahead, reverse = read_flow(self.flow, number, direction)
            trust_ahead = compute_trust(ahead, reverse, settings.motion, window)
            flows.append((ahead, trust_ahead if cover is None else trust_ahead * ~cover[window]))
        motion = weigh_motion(flows, carried, window, settings.motion)
        outside_weight = settings.background_weight - settings.kept_background_weight
        odds -= motion.background * (settings.kept_background_weight + outside_weight * (1 - expected))
        hinted = course.registration.advance(frame, back, trust, carried, window)
        sure = np.zeros_like(expected)
        if hinted is not None:
            share, sure = hinted
            hint_weight = settings.enclosed_hint_weight if course.is_enclosed else settings.hint_weight
            odds += hint_weight * sure * compute_log_odds(share, settings.min_share)
        odds += settings.object_weight * motion.object * np.clip(2 * expected - 1, 0, 1) * (1 - sure)

        # Appearance, with less weight where the object is rigid, and where the hinted mask is sure.
        course.rigidities.append(motion.rigidity)
        lowest, highest = settings.rigid_shares
        rigid = 0.0
        if motion.is_moving:
            recent = float(np.mean(course.rigidities[-settings.rigidity_frames :]))
            rigid = float(np.clip((recent - lowest) / (highest - lowest), 0, 1))
        weight = settings.appearance_weight + rigid * (settings.rigid_appearance_weight - settings.appearance_weight)
        features = compute_color_features(frame, settings.features, window)
        weights = weight * (1 - (1 - settings.hinted_appearance_share) * sure)
        is_open = np.abs(odds) < settings.max_open_odds + settings.appearance.max_score * weights
        odds += weights * self._score_appearance(features, is_open)

        course.number = number
        return ObjectOdds(number, carried, window, odds.astype(np.float32), sure.astype(np.float32), features)

    def settle(
        self, course: ObjectCourse, weighed: ObjectOdds, cover: Mask | None = None, rivals: Share | None = None
    ) -> FollowedFrame:
        """Decides where the object is in a frame.

        Args:
            course: where it was; then where it is.
            weighed: what speaks for it.
            cover: what is in front of it; None where nothing is known to be.
            rivals: log odds of other objects that are not in front of it.
        """
        settings, window, carried = self.settings, weighed.window, weighed.carried
        frame, odds = np.ascontiguousarray(self.frames[weighed.number]), weighed.odds
        if rivals is not None:
            odds = odds - np.maximum(rivals[window], 0)
        if cover is not None:
            odds = np.where(cover[window], compute_log_odds(carried[window], settings.min_share), odds)
        odds = odds.astype(np.float32)
        mask = np.zeros(carried.shape, bool)
        mask[window] = cut_graph(odds, frame[window], settings.smoothness)
        if mask.sum() < settings.min_area_px:
            mask[window] = carried[window] > 0.5
        mask = _keep_own_parts(mask, carried)
        soft = np.zeros(mask.shape, np.float32)
        soft[window] = 1 / (1 + np.exp(-odds.clip(-30, 30)))
        around = cv2.dilate(mask.astype(np.uint8), np.ones((5, 5), np.uint8)) > 0
        soft *= np.where(around, 1, 0.3)
        cut = cv2.GaussianBlur(mask.astype(np.float32), (0, 0), settings.cut_sigma_px)
        whole = settings.cut_share * cut + (1 - settings.cut_share) * soft
        seen, area = mask, int(mask.sum())
        if cover is not None:
            whole, seen = np.where(cover, carried, whole), mask & ~cover
            odds = np.where(cover[window], np.float32(-settings.max_odds), odds)  # from here on of what is seen
        confidence = self._measure_confidence(weighed.number, seen, odds, window)
        if seen.sum() < settings.lost_share * self._area_px:
            confidence = 0.0
            part, appearance_odds = self._find_again(frame, np.zeros_like(seen) if cover is None else cover)
            if part is not None:
                seen, whole, area = part, part.astype(np.float32), int(part.sum())
                confidence = self._measure_confidence(weighed.number, part, appearance_odds) / 2
        course.seen, course.whole = seen, whole.astype(np.float32)
        course.areas_px.append(area)
        shown = course.whole if cover is None else np.where(cover, 0, course.whole)
        found = FollowedFrame(seen, np.rint(255 * shown).astype(np.uint8), confidence)
        if not course.is_enclosed:
            return found
        all_odds, trust = np.full(mask.shape, -settings.max_odds, np.float16), np.zeros(mask.shape, np.float16)
        all_odds[window] = odds.clip(-settings.max_odds, settings.max_odds)
        trust[window] = weighed.hint_trust
        return replace(found, odds=all_odds, hint_trust=trust)

    def _find_again(self, frame: np.ndarray, cover: Mask) -> tuple[Mask | None, Share]:
        """Looks for the object by its appearance alone, anywhere in a frame; None where nothing fits. And the odds."""
        settings = self.settings
        features = compute_color_features(frame, settings.features)
        score = self._score_appearance(features, np.ones(frame.shape[:2], bool))
        score[cover] = -settings.appearance.max_score
        odds = (settings.appearance_weight * score).astype(np.float32)
        cut = cut_graph(odds, frame, settings.smoothness)
        count, labels, stats, _ = cv2.connectedComponentsWithStats(cut.astype(np.uint8), connectivity=8)
        total = np.bincount(labels.ravel(), score.ravel(), count)
        total[0] = -np.inf
        best = int(total.argmax())
        area = stats[best, cv2.CC_STAT_AREA]
        fits = settings.min_found_share * self._area_px <= area <= settings.max_found_share * self._area_px
        is_found = best > 0 and fits and total[best] >= settings.min_found_score * area
        return (labels == best if is_found else None), odds

    def _measure_confidence(self, number: int, mask: Mask, odds: WindowShare, window: Window = WHOLE) -> float:
        vectors = self.flow.backward[number - 1] if number else self.flow.forward[0]
        part = np.asarray(vectors[window], np.float32)
        frame = np.ascontiguousarray(self.frames[number][window])
        return measure_confidence(mask[window], odds, frame, part, self.settings.confidence)

    def _score_appearance(self, features: Features, asked: Mask) -> Share:
        """Scores the pixels of a window by their features; 0 where they are not asked for."""
        step = self.settings.features.stride_px
        wanted = cv2.dilate(asked[::step, ::step].astype(np.uint8), np.ones((3, 3), np.uint8)) > 0
        score = np.zeros(wanted.shape, np.float32)
        score[wanted] = self.appearance.score(features[wanted])
        height, width = asked.shape
        large = cv2.resize(score, (score.shape[1] * step, score.shape[0] * step), interpolation=cv2.INTER_LINEAR)
        return large[:height, :width]


def _keep_own_parts(mask: Mask, carried: Share) -> Mask:
    """Removes parts that did not come from the object; the largest stays, and others that are near it."""
    count, labels, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    if count <= 2:
        return mask
    origin = np.bincount(labels.ravel(), (carried * (carried > 0.5)).ravel(), count)
    origin[0] = 0
    area, largest = stats[:, cv2.CC_STAT_AREA].astype(float), int(origin.argmax())
    away = cv2.distanceTransform((labels != largest).astype(np.uint8), cv2.DIST_L2, 3)
    kept = np.arange(count) == largest
    for part in range(1, count):
        gap = away[labels == part].min()
        came = origin[part] > 0.5 * area[part] and area[part] > 0.03 * area[largest]
        kept[part] |= came and gap < 0.5 * np.sqrt(area[largest])
        kept[part] |= gap < 6 and area[part] >= 8
    kept[0] = False
    return kept[labels]
