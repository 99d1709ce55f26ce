"""Masks of a person without a network: from a static background, and from bones where they are known.

(1) Bones are drawn into the picture as a core that is surely the person, a body as thick as bodies are, and a reach
beyond which nothing of the person is. (2) Of a camera that stands still, the background is the median of what lies
outside the reach: a person who hardly moves is not in it, and what the person never uncovers is not known. (3) Pixels
that differ from it by less than its noise are background, others probably not. (4) GrabCut (Rother et al. 2004)
decides what is left open, from colors around it. Of a moving camera, steps (1) and (4) alone are used.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Bool, Float, UInt8

from neural_fields.core.memmap import RELEASE_INTERVAL, allocate_zeros, release_memory
from neural_fields.core.progress import Progress, ProgressReporter, report_nothing
from neural_fields.data.capture.cameras import Camera
from neural_fields.data.capture.skeleton import NO_PARENT, Skeleton, SkeletonMotion

Region = Bool[np.ndarray, "height width"]


@dataclass(frozen=True)
class PersonMaskSettings:
    """Settings of `segment_person`. Lengths marked `_rel` are in lengths of the skeleton (`measure_skeleton`)."""

    # The background.
    background_samples: int = 96  # number of frames, spread over the clip, from which the background is learned
    min_noise: float = 1.5  # least standard deviation of a pixel, in 8-bit levels: rounding, and what codecs leave out
    same_difference: float = 2.5  # a pixel that differs less, in units of its noise, is background
    other_difference: float = 6.0  # a pixel that differs more, in units of its noise, is probably not background
    # A pixel that differs more, in units of its noise, is neither background nor a shadow on it.
    clear_difference: float = 10.0
    shadow_range: tuple[float, float] = (0.5, 1.0)  # brightness of a shadow relative to the surface that it falls on

    # Bodies, around the bones.
    trunk_radius_rel: float = 0.065  # radius of the body around bones of the trunk
    limb_radius_rel: float = 0.032  # radius of the body around bones of limbs
    min_limb_length_rel: float = 0.2  # shorter branches of the skeleton, such as fingers and toes, are not limbs
    core_scale: float = 0.5  # times the radius of the body: what surely shows the person
    flesh_scale: float = 1.2  # times the radius of the body: what probably shows the person
    reach_scale: float = 2.2  # times the radius of the body: nothing beyond shows the person
    end_reach_rel: float = 0.14  # radius around head, hands, feet and other ends beyond which nothing shows the person
    object_radius_rel: float = 0.05  # radius around the joint of a carried object that probably shows the object
    object_reach_rel: float = 0.16  # radius around the joint of a carried object beyond which nothing shows the object
    circles_per_bone: int = 12  # number of circles that are drawn along a bone

    # GrabCut, and what is kept of it.
    cut_rounds: int = 3  # iterations of GrabCut
    # A connected component is kept if it surely shows the person, or if its area is at least this share of the largest
    # one's, ...
    min_component_ratio: float = 0.3
    min_component_area: float = 0.0005  # ... and at least this share of the frame


DEFAULTS = PersonMaskSettings()


@dataclass(frozen=True)
class StaticBackground:
    """Holds the background of a static camera, behind the person.

    Attributes:
        color: RGB from 0 to 255; where it is unknown, the median of all frames.
        noise: standard deviation of each channel, in the same unit.
        known: where at least one of the sampled frames shows it.
    """

    color: Float[np.ndarray, "height width 3"]
    noise: Float[np.ndarray, "height width 3"]
    known: Bool[np.ndarray, "height width"]

    def measure_difference(
        self, frame: UInt8[np.ndarray, "height width 3"], shadow_range: tuple[float, float] = DEFAULTS.shadow_range
    ) -> tuple[Float[np.ndarray, "height width"], Float[np.ndarray, "height width"]]:
        """Computes how far each pixel is from the background, and from a shadow on it, in units of its noise.

        Of the three channels the one that is farthest off counts. `shadow_range` is the brightness of shadows against
        what they fall on.
        """
        shade = (frame * self.color).sum(axis=-1) / np.maximum(np.square(self.color).sum(axis=-1), 1.0)
        shadow = self.color * shade.clip(*shadow_range)[..., None]
        to_background = (np.abs(frame - self.color) / self.noise).max(axis=-1)
        return to_background, (np.abs(frame - shadow) / self.noise).max(axis=-1)


@dataclass(frozen=True)
class BodyViews:
    """Bones as cameras see them, one camera a frame. The skeleton's own size says how thick a body is."""

    cameras: tuple[Camera, ...]
    motion: SkeletonMotion  # one moment for each camera

    def draw_regions(self, frame: int, settings: PersonMaskSettings = DEFAULTS) -> tuple[Region, Region, Region]:
        """Draws core, flesh and reach in a frame, each within the next."""
        skeleton, places = self.motion.skeleton, self.motion.compute_joint_positions(frame)
        trunk, size = find_trunk_joints(skeleton, settings), measure_skeleton(skeleton)

        # Balls along the bones, at their ends and around what is carried: centers, and radii in the three regions.
        along = np.linspace(0, 1, settings.circles_per_bone)[:, None]
        found, radii = [], []
        for bone, parent in enumerate(skeleton.parents):
            if bone in skeleton.object_joints:
                found.append(places[bone : bone + 1])
                radii.append((0.0, settings.object_radius_rel, settings.object_reach_rel))
                continue
            if parent != NO_PARENT:
                thick = settings.trunk_radius_rel if {bone, parent} <= trunk else settings.limb_radius_rel
                found.append(places[parent] * (1 - along) + places[bone] * along)
                radii.append((settings.core_scale * thick, settings.flesh_scale * thick, settings.reach_scale * thick))
            if not set(skeleton.find_children(bone)) - set(skeleton.object_joints):
                found.append(places[bone : bone + 1])
                radii.append((0.0, settings.limb_radius_rel, settings.end_reach_rel))
        centers = np.concatenate(found)
        sizes = size * np.repeat(np.array(radii), [len(balls) for balls in found], axis=0)

        # The balls of each region as the camera sees them; those of no radius are left out.
        camera = self.cameras[frame]
        pixels, depth, _ = camera.project_points(centers)
        focal, far = sum(camera.focal) / 2, 4 * max(camera.width, camera.height)
        regions = []
        for column in range(3):
            picture = np.zeros((camera.height, camera.width), np.uint8)
            balls = zip(pixels.tolist(), depth.tolist(), sizes[:, column].tolist(), strict=True)
            for (x, y), away, radius in balls:
                if radius == 0 or away <= radius or abs(x) > far or abs(y) > far:
                    continue
                # Fixed-point positions of 1/16 pixel; OpenCV has the center of the first pixel at 0.
                center = round(16 * (x - 0.5)), round(16 * (y - 0.5))
                cv2.circle(picture, center, max(round(16 * focal * radius / away), 8), 1, -1, shift=4)
            regions.append(picture > 0)
        core, flesh, reach = regions
        return core, flesh | core, reach | flesh | core


def measure_skeleton(skeleton: Skeleton) -> float:
    """Returns the longest side of the box around a body at rest, without what it carries: its height, or its span."""
    body = [bone for bone in range(skeleton.bone_count) if bone not in skeleton.object_joints]
    return float(np.ptp(skeleton.rest_positions[body], axis=0).max())


def find_trunk_joints(skeleton: Skeleton, settings: PersonMaskSettings = DEFAULTS) -> frozenset[int]:
    """Finds the joints from which at least two limbs leave, and those between them and the root."""
    size = measure_skeleton(skeleton)
    length = np.zeros(skeleton.bone_count)  # of the longest way from a joint to an end
    limbs = np.zeros(skeleton.bone_count, int)
    for bone in reversed(range(skeleton.bone_count)):
        parent = skeleton.parents[bone]
        if parent == NO_PARENT or bone in skeleton.object_joints:
            continue
        way = length[bone] + float(np.linalg.norm(skeleton.rest_positions[bone] - skeleton.rest_positions[parent]))
        length[parent] = max(length[parent], way)
        limbs[parent] += way > settings.min_limb_length_rel * size
    trunk = {bone for bone in range(skeleton.bone_count) if limbs[bone] >= 2}
    for bone in reversed(range(skeleton.bone_count)):
        if bone in trunk and skeleton.parents[bone] != NO_PARENT:
            trunk.add(skeleton.parents[bone])
    return frozenset(trunk)


def learn_background(
    frames: UInt8[np.ndarray, "time height width 3"],
    covered: Callable[[int], Region] | None = None,
    settings: PersonMaskSettings = DEFAULTS,
) -> StaticBackground:
    """Learns the background of a static camera.

    Args:
        frames: RGB, 0 to 255; may be memory-mapped.
        covered: pixels of a frame that may show the person; without it the median takes everything, and a person who
            stays in one place for half of the clip is background.
        settings: number of samples, and the least noise.

    Returns:
        The background, at the size of the frames.
    """
    count = len(frames)
    samples = min(settings.background_samples, count)
    chosen = np.unique(np.linspace(0, count - 1, samples).round().astype(int))
    hidden = None if covered is None else np.stack([covered(int(index)) for index in chosen])
    height, width = frames.shape[1:3]
    color = np.empty((height, width, 3), np.float32)
    noise, known = np.empty_like(color), np.ones((height, width), bool)
    rows = max(1, (16 << 20) // (len(chosen) * width * 12))  # bands of 16 MiB: memory does not grow with the frame
    for top in range(0, height, rows):
        part = np.s_[top : top + rows]
        values = np.stack([frames[index, part] for index in chosen]).astype(np.int16)
        uncovered = np.ones(values.shape[:3], bool) if hidden is None else ~hidden[:, part]
        known[part] = uncovered.any(axis=0)
        uncovered |= ~known[part]
        color[part] = _compute_median(values, uncovered)
        off = np.abs(values - color[part]).astype(np.int16)
        # 1.4826 times the median absolute deviation is the standard deviation of a normal distribution.
        noise[part] = np.maximum(1.4826 * _compute_median(off, uncovered), settings.min_noise)
    release_memory(frames)
    return StaticBackground(color, noise, known)


def _compute_median(values: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """Computes the median along the first axis of the values that are chosen, at least one of each pixel."""
    order = np.sort(np.where(chosen[..., None], values, np.iinfo(np.int16).max), axis=0)
    count = chosen.sum(axis=0)[None, ..., None]
    low, high = (np.take_along_axis(order, index, axis=0)[0] for index in ((count - 1) // 2, count // 2))
    return (low.astype(np.float32) + high) / 2


def segment_person(
    frames: UInt8[np.ndarray, "time height width 3"],
    body: BodyViews | None,
    still: bool,
    report: ProgressReporter = report_nothing,
    settings: PersonMaskSettings = DEFAULTS,
) -> Bool[np.ndarray, "time height width"] | None:
    """Segments the person in each frame.

    Args:
        frames: RGB, 0 to 255; may be memory-mapped.
        body: bones, if they are known; they are needed where the camera moves.
        still: whether the camera is static.
        report: called after each frame.
        settings: thresholds and the thickness of bodies.

    Returns:
        The masks; None where nothing differs from the background.

    Raises:
        ValueError: neither bones nor a static camera.
    """
    if body is None and not still:
        raise ValueError("a person in front of a moving camera is found by bones, or by motion")
    background = None
    if still and len(frames) > 1:
        covered = None if body is None else lambda index: body.draw_regions(index, settings)[2]
        background = learn_background(frames, covered, settings)
    out = allocate_zeros(frames.shape[:3], bool)
    for index in range(len(frames)):
        frame = np.ascontiguousarray(frames[index])
        if body is not None:
            # What GrabCut starts from: core, flesh and reach of the bones, and the background where it is known.
            core, flesh, reach = body.draw_regions(index, settings)
            labels = np.where(flesh, cv2.GC_PR_FGD, cv2.GC_PR_BGD).astype(np.uint8)
            labels[core] = cv2.GC_FGD
            if background is not None:
                off, unlike = background.measure_difference(frame, settings.shadow_range)
                known, same = background.known, background.known & (off < settings.same_difference)
                labels[known] = np.where(off > settings.other_difference, cv2.GC_PR_FGD, cv2.GC_PR_BGD)[known]
                labels[known & core & ~same] = cv2.GC_PR_FGD
                labels[(known & (unlike > settings.clear_difference)) | (core & ~known)] = cv2.GC_FGD
                labels[same & ~core] = cv2.GC_BGD  # but bones are off by a little, and clothes may match the wall
            labels[~reach] = cv2.GC_BGD
            sure = labels == cv2.GC_FGD
            out[index] = _remove_specks(_cut_person(frame, labels, settings), sure, settings)
        elif background is not None:
            # The difference from the background alone.
            off, unlike = background.measure_difference(frame, settings.shadow_range)
            labels = np.where(off > settings.other_difference, cv2.GC_PR_FGD, cv2.GC_PR_BGD).astype(np.uint8)
            labels[off < settings.same_difference] = cv2.GC_BGD
            labels[unlike > settings.clear_difference] = cv2.GC_FGD
            if (labels == cv2.GC_FGD).any():
                out[index] = _remove_specks(_cut_person(frame, labels, settings), None, settings)
        if index % RELEASE_INTERVAL == RELEASE_INTERVAL - 1:
            release_memory(frames)
            release_memory(out)
        report(Progress("masks", index + 1, len(frames)))
    return out if out.any() else None


# --- labels and cuts ------------------------------------------------------------------------------------------------


def _cut_person(frame: np.ndarray, labels: np.ndarray, settings: PersonMaskSettings) -> Region:
    """Runs GrabCut around what may be the person."""
    out = np.zeros(labels.shape, bool)
    x, y, width, height = cv2.boundingRect(np.uint8(labels != cv2.GC_BGD))
    margin = 2 + max(width, height) // 8
    window = np.s_[max(y - margin, 0) : y + height + margin, max(x - margin, 0) : x + width + margin]
    part = np.ascontiguousarray(labels[window])
    inner = (part == cv2.GC_FGD) | (part == cv2.GC_PR_FGD)
    if inner.any() and not inner.all():
        colors = np.ascontiguousarray(frame[window])
        models = np.zeros((1, 65)), np.zeros((1, 65))
        cv2.setRNGSeed(0)  # GrabCut starts its color clusters at random places.
        cv2.grabCut(colors, part, None, *models, settings.cut_rounds, cv2.GC_INIT_WITH_MASK)
        inner = (part == cv2.GC_FGD) | (part == cv2.GC_PR_FGD)
    out[window] = inner
    return out


def _remove_specks(mask: Region, sure: Region | None, settings: PersonMaskSettings) -> Region:
    """Keeps the components that hold what is sure, or are large, and closes pinholes in them."""
    smooth = cv2.medianBlur(np.uint8(mask), 3)
    _, parts, stats, _ = cv2.connectedComponentsWithStats(smooth, connectivity=8)
    areas = stats[:, cv2.CC_STAT_AREA].astype(float)
    areas[0] = 0
    kept = areas >= max(settings.min_component_ratio * areas.max(), settings.min_component_area * mask.size)
    if sure is not None:
        kept[parts[sure]] = True
        kept[0] = False
    return kept[parts]
