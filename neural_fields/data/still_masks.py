"""Masks of a person without a network: from a background that stands still, and from bones where they are known.

(1) Bones are drawn into the picture as a core that is surely the person, a body as thick as bodies are, and a reach
beyond which nothing of the person is. (2) Of a camera that stands still, the background is the median of what lies
outside the reach: a person who hardly moves is not in it, and what the person never uncovers is not known. (3) Pixels
that differ from it by less than its noise are background, others probably not. (4) GrabCut (Rother et al. 2004)
decides what is left open, from colours around it. Of a moving camera, steps (1) and (4) alone are used.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Bool, Float, UInt8

from neural_fields.data.cameras import Camera
from neural_fields.data.memory import LET_GO_EVERY, let_go, zeros
from neural_fields.data.skeleton import ROOT, Motion, Skeleton

SAMPLES = 96  # frames that the background is learnt from
LEAST_SEEN = 6  # frames in which a pixel must be uncovered for its background to be known, in a clip of many
LEAST_NOISE = 1.5  # codes of 255: rounding, and what codecs leave out
SAME, OTHER = 2.5, 6.0  # in units of the noise: below it is the background, above it is probably not
CLEAR = 10.0  # surely neither the background nor a shadow on it
SHADOW = 0.5, 1.0  # brightness of shadows against what they fall on
ROUNDS = 3  # of GrabCut
KEEP = 0.3  # a component counts if it has this share of the largest one's area
LEAST_AREA = 0.0005  # of the picture
TRUNK, LIMB = 0.065, 0.032  # half the thickness of bodies, in lengths of the skeleton
BRANCH = 0.2  # limbs are at least so long, in lengths of the skeleton: fingers and toes are none
CORE, FLESH, REACH = 0.5, 1.2, 2.2  # thickness of the three regions against that of bodies
HEAD, END = 0.14, 0.1  # radius of the reach around the head and around other ends, in lengths of the skeleton
CARRIED = 0.05, 0.16  # radius of what is probably carried, and of the reach around it
STEPS = 12  # circles a bone

Progress = Callable[[int, int], None]
Region = Bool[np.ndarray, "height width"]


@dataclass(frozen=True)
class Background:
    """What a camera sees behind the person.

    Attributes:
        colour: RGB from 0 to 255; where it is not known, the median of everything.
        noise: standard deviation of each channel, in the same unit.
        known: where enough frames show it.
    """

    colour: Float[np.ndarray, "height width 3"]
    noise: Float[np.ndarray, "height width 3"]
    known: Bool[np.ndarray, "height width"]

    def difference(
        self, frame: UInt8[np.ndarray, "height width 3"]
    ) -> tuple[Float[np.ndarray, "height width"], Float[np.ndarray, "height width"]]:
        """How far each pixel is from the background, and from a shadow on it, in units of its noise.

        Of the three channels the one that is farthest off counts.
        """
        shade = (frame * self.colour).sum(axis=-1) / np.maximum(np.square(self.colour).sum(axis=-1), 1.0)
        found = []
        for colour in (self.colour, self.colour * shade.clip(*SHADOW)[..., None]):
            found.append((np.abs(frame - colour) / self.noise).max(axis=-1))
        return found[0], found[1]


@dataclass(frozen=True)
class BodyViews:
    """Bones as cameras see them, one camera a frame. The skeleton's own size says how thick a body is."""

    cameras: tuple[Camera, ...]
    motion: Motion  # one moment a camera

    def regions(self, frame: int) -> tuple[Region, Region, Region]:
        """Core, flesh and reach in a frame, each within the next."""
        places, radii = _balls(self.motion.skeleton, self.motion.joints(frame))
        core, flesh, reach = (_drawn(self.cameras[frame], places, radii[:, column]) for column in range(3))
        return core, flesh | core, reach | flesh | core


def skeleton_size(skeleton: Skeleton) -> float:
    """The longest side of the box around a body at rest, without what it carries: its height, or its span."""
    body = [bone for bone in range(skeleton.count) if bone not in skeleton.objects]
    return float(np.ptp(skeleton.rest[body], axis=0).max())


def trunk_joints(skeleton: Skeleton) -> frozenset[int]:
    """Joints from which at least two limbs leave, and those between them and the root."""
    size = skeleton_size(skeleton)
    length = np.zeros(skeleton.count)  # of the longest way from a joint to an end
    limbs = np.zeros(skeleton.count, int)
    for bone in reversed(range(skeleton.count)):
        parent = skeleton.parents[bone]
        if parent == ROOT or bone in skeleton.objects:
            continue
        way = length[bone] + float(np.linalg.norm(skeleton.rest[bone] - skeleton.rest[parent]))
        length[parent] = max(length[parent], way)
        limbs[parent] += way > BRANCH * size
    trunk = {bone for bone in range(skeleton.count) if limbs[bone] >= 2}
    for bone in reversed(range(skeleton.count)):
        if bone in trunk and skeleton.parents[bone] != ROOT:
            trunk.add(skeleton.parents[bone])
    return frozenset(trunk)


def background_of(
    frames: UInt8[np.ndarray, "time height width 3"], covered: Callable[[int], Region] | None = None
) -> Background:
    """The background of a camera that stands still.

    Args:
        covered: pixels of a frame that may show the person; without it the median takes everything, and a person who
            stays in one place for half of the clip is background.
    """
    chosen = np.unique(np.linspace(0, len(frames) - 1, min(SAMPLES, len(frames))).round().astype(int))
    hidden = None if covered is None else np.stack([covered(int(index)) for index in chosen])
    height, width = frames.shape[1:3]
    colour = np.empty((height, width, 3), np.float32)
    noise, known = np.empty_like(colour), np.ones((height, width), bool)
    rows = max(1, (16 << 20) // (len(chosen) * width * 12))
    for top in range(0, height, rows):
        part = np.s_[top : top + rows]
        values = np.stack([frames[index, part] for index in chosen]).astype(np.int16)
        open_ = np.ones(values.shape[:3], bool) if hidden is None else ~hidden[:, part]
        known[part] = open_.sum(axis=0) >= min(LEAST_SEEN, max(1, len(chosen) // 4))
        open_ |= ~known[part]
        colour[part] = _median(values, open_)
        off = np.abs(values - colour[part]).astype(np.int16)
        noise[part] = np.maximum(1.4826 * _median(off, open_), LEAST_NOISE)
    let_go(frames)
    return Background(colour, noise, known)


def person_masks(
    frames: UInt8[np.ndarray, "time height width 3"],
    body: BodyViews | None,
    still: bool,
    progress: Progress | None = None,
) -> Bool[np.ndarray, "time height width"] | None:
    """Where the person is in each frame; None where nothing differs from the background.

    Args:
        body: bones, if they are known; they are needed where the camera moves.
        still: whether the camera stands still.
        progress: called with (frames done, frames in all).

    Raises:
        ValueError: neither bones nor a camera that stands still.
    """
    if body is None and not still:
        raise ValueError("a person in front of a moving camera is found by bones, or by motion")
    background = None
    if still and len(frames) > 1:
        background = background_of(frames, None if body is None else lambda index: body.regions(index)[2])
    out = zeros(frames.shape[:3], bool)
    for index in range(len(frames)):
        frame = np.ascontiguousarray(frames[index])
        labels = _moved(frame, background) if body is None else _posed(frame, body.regions(index), background)
        if labels is not None:
            sure = labels == cv2.GC_FGD
            out[index] = _whole(_cut(frame, labels), None if body is None else sure)
        if index % LET_GO_EVERY == LET_GO_EVERY - 1:
            let_go(frames)
            let_go(out)
        if progress is not None:
            progress(index + 1, len(frames))
    return out if out.any() else None


# --- bones ----------------------------------------------------------------------------------------------------------


def _balls(
    skeleton: Skeleton, places: Float[np.ndarray, "bones 3"]
) -> tuple[Float[np.ndarray, "balls 3"], Float[np.ndarray, "balls 3"]]:
    """Balls along the bones, at their ends and around what is carried: places, and radii in the three regions."""
    trunk, size = trunk_joints(skeleton), skeleton_size(skeleton)
    along = np.linspace(0, 1, STEPS)[:, None]
    found, radii = [], []
    for bone, parent in enumerate(skeleton.parents):
        if bone in skeleton.objects:
            found.append(places[bone : bone + 1])
            radii.append((0.0, *CARRIED))
            continue
        if parent != ROOT:
            thick = TRUNK if {bone, parent} <= trunk else LIMB
            found.append(places[parent] * (1 - along) + places[bone] * along)
            radii.append((CORE * thick, FLESH * thick, REACH * thick))
        if not set(skeleton.children(bone)) - set(skeleton.objects):
            found.append(places[bone : bone + 1])
            radii.append((0.0, LIMB, HEAD if parent in trunk else END))
    counts = [len(balls) for balls in found]
    return np.concatenate(found), size * np.repeat(np.array(radii), counts, axis=0)


def _drawn(camera: Camera, places: Float[np.ndarray, "balls 3"], radii: Float[np.ndarray, " balls"]) -> Region:
    """The picture of balls; those of no radius are left out."""
    picture = np.zeros((camera.height, camera.width), np.uint8)
    pixels, depth, _ = camera.project(places)
    focal, far = sum(camera.focal) / 2, 4 * max(camera.width, camera.height)
    for (x, y), away, radius in zip(pixels.tolist(), depth.tolist(), radii.tolist(), strict=True):
        if radius == 0 or away <= radius or abs(x) > far or abs(y) > far:
            continue
        # Fixed-point positions of 1/16 pixel; OpenCV has the centre of the first pixel at 0.
        centre = round(16 * (x - 0.5)), round(16 * (y - 0.5))
        cv2.circle(picture, centre, max(round(16 * focal * radius / away), 8), 1, -1, shift=4)
    return picture > 0


# --- labels and cuts ------------------------------------------------------------------------------------------------


def _median(values: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """The median along the first axis of the values that are chosen, at least one of each pixel."""
    order = np.sort(np.where(chosen[..., None], values, np.iinfo(np.int16).max), axis=0)
    count = chosen.sum(axis=0)[None, ..., None]
    low, high = (np.take_along_axis(order, index, axis=0)[0] for index in ((count - 1) // 2, count // 2))
    return (low.astype(np.float32) + high) / 2


def _posed(frame: np.ndarray, regions: tuple[Region, Region, Region], background: Background | None) -> np.ndarray:
    """What is known of each pixel, in the words of GrabCut, where there are bones."""
    core, flesh, reach = regions
    labels = np.where(flesh, cv2.GC_PR_FGD, cv2.GC_PR_BGD).astype(np.uint8)
    labels[core] = cv2.GC_FGD
    if background is not None:
        off, unlike = background.difference(frame)
        known, same = background.known, background.known & (off < SAME)
        labels[known] = np.where(off > OTHER, cv2.GC_PR_FGD, cv2.GC_PR_BGD)[known]
        labels[known & core & ~same] = cv2.GC_PR_FGD
        labels[(known & (unlike > CLEAR)) | (core & ~known)] = cv2.GC_FGD
        labels[same & ~core] = cv2.GC_BGD  # but bones are off by a little, and clothes may be of the wall's colour
    labels[~reach] = cv2.GC_BGD
    return labels


def _moved(frame: np.ndarray, background: Background | None) -> np.ndarray | None:
    """The same where there is only the background; None where all of the frame is background."""
    if background is None:
        return None
    off, unlike = background.difference(frame)
    labels = np.where(off > OTHER, cv2.GC_PR_FGD, cv2.GC_PR_BGD).astype(np.uint8)
    labels[off < SAME] = cv2.GC_BGD
    labels[unlike > CLEAR] = cv2.GC_FGD
    return labels if (labels == cv2.GC_FGD).any() else None


def _cut(frame: np.ndarray, labels: np.ndarray) -> Region:
    """GrabCut around what may be the person."""
    out = np.zeros(labels.shape, bool)
    x, y, width, height = cv2.boundingRect(np.uint8(labels != cv2.GC_BGD))
    margin = 2 + max(width, height) // 8
    window = np.s_[max(y - margin, 0) : y + height + margin, max(x - margin, 0) : x + width + margin]
    part = np.ascontiguousarray(labels[window])
    inner = (part == cv2.GC_FGD) | (part == cv2.GC_PR_FGD)
    if min(np.count_nonzero(inner), np.count_nonzero(~inner)) >= 20:  # its models need some pixels of both
        colours = np.ascontiguousarray(frame[window])
        cv2.setRNGSeed(0)  # GrabCut starts its colour clusters at random places.
        cv2.grabCut(colours, part, None, np.zeros((1, 65)), np.zeros((1, 65)), ROUNDS, cv2.GC_INIT_WITH_MASK)
        inner = (part == cv2.GC_FGD) | (part == cv2.GC_PR_FGD)
    out[window] = inner
    return out


def _whole(mask: Region, sure: Region | None) -> Region:
    """The mask without specks: the components that hold what is sure, or are large, and no pinholes in them."""
    smooth = cv2.medianBlur(np.uint8(mask), 3)
    count, parts, stats, _ = cv2.connectedComponentsWithStats(smooth, connectivity=8)
    areas = stats[:, cv2.CC_STAT_AREA].astype(float)
    areas[0] = 0
    kept = areas >= max(KEEP * areas.max(), LEAST_AREA * mask.size)
    if sure is not None:
        held = np.bincount(parts[sure], minlength=count)
        kept |= held > 0.1 * areas.clip(1)
        kept[0] = False
    return kept[parts]
