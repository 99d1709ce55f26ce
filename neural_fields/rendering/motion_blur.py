"""Motion blur: how far what frames show of a layer moves while the shutter is open.

A pixel of a fast object is the mean of all that passed it while the shutter was open. Paint on the object has to be
such a mean, too, or it stands out. The maps say what passes a pixel: the change of its uv from frame to frame, times
the share of the time for which the shutter is open. That share can be estimated: blurred by it, a sharp canonical
picture comes closest to the frames.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Float, UInt8

from neural_fields.atlas.canonical import CanonicalImage
from neural_fields.atlas.placed_picture import PicturePatch
from neural_fields.atlas.uv_maps import Maps
from neural_fields.core import array_coords
from neural_fields.imaging.tiles import Part
from neural_fields.rendering.picture_lookup import Level, PictureLookup


@dataclass(frozen=True)
class MotionBlurSettings:
    """Settings of the measurement of motion, and of the estimate of the shutter."""

    most_share: float = 0.1  # of the longer side: what moves by more in a frame is a jump to another chart
    jump_ratio: float = 0.5  # steps to both neighbors that differ by more than this share of both, and ...
    jump_px: float = 2.0  # ... so many pixels more, are a motion and a jump: the shorter one counts
    shares: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75, 1.0)  # that are tried; the best one is between them
    frames: int = 5  # that are compared, those with the fastest motion
    searched_frames: int = 16  # among which these are
    least_speed_px: float = 3.0  # a pixel that moves by less in a frame says nothing of the shutter
    least_pixels: int = 500  # of a frame; with fewer it says nothing
    min_weight: float = 0.98  # a pixel with less of a layer is a mixture
    taps: int = 8  # lookups a pixel, for the estimate
    # Motion within the shutter that is shorter than this, in pixels of the maps, is no blur to speak of; along a longer
    # one there is a lookup for each so many pixels of the copy of a picture, up to a number of them.
    least_motion_px: float = 0.4
    tap_px: float = 1.0
    most_taps: int = 24


DEFAULTS = MotionBlurSettings()


def measure_motion(
    maps: Maps, t: int, layer: int, part: Part, settings: MotionBlurSettings = DEFAULTS
) -> Float[np.ndarray, "rows columns 2"]:
    """Measures the change of uv from frame to frame in a part of the rimmed maps.

    Args:
        maps: the baked maps of the run.
        t: number of the frame in the run.
        layer: number of the layer.
        part: rows and columns of the rimmed maps.
        settings: what counts as a jump.

    Returns:
        uv units a frame; zero in a clip of one frame, and where the layer changes to another chart on both sides.
    """
    here = maps.read_rimmed(t, layer)[0][part]
    pixel = 2 / max(maps.size)
    steps = []
    for other, sign in ((t - 1, -1), (t + 1, 1)):
        if 0 <= other < maps.frame_count:
            step = sign * (maps.read_rimmed(other, layer)[0][part] - here)
            length = cv2.magnitude(*(np.ascontiguousarray(plane) for plane in cv2.split(step)))
            step[length > settings.most_share * 2] = 0
            steps.append((step, length))
    if not steps:
        return np.zeros_like(here)
    if len(steps) == 1:
        return steps[0][0]
    (before, long), (after, longer) = steps
    apart = cv2.magnitude(*(np.ascontiguousarray(plane) for plane in cv2.split(after - before)))
    is_jump = apart > settings.jump_ratio * (long + longer) + settings.jump_px * pixel
    shorter = np.where((long < longer)[..., None], before, after)
    return np.where(is_jump[..., None], shorter, (before + after) / 2).astype(np.float32)


def measure_shutter_motion(
    maps: Maps, t: int, layer: int, shutter: float, settings: MotionBlurSettings = DEFAULTS
) -> tuple[Float[np.ndarray, "rows columns 2"] | None, int]:
    """Measures by how much a layer moves in a frame while the shutter is open.

    Args:
        maps: the baked maps of the run.
        t: number of the frame in the run.
        layer: number of the layer.
        shutter: share of the time between frames for which it is open.
        settings: what is too short to count.

    Returns:
        The motion in uv units in the rimmed maps, None where it is too short; and how far it reaches to each side at
        most, in pixels of the maps.
    """
    if shutter <= 0 or not (seen := maps.read_rimmed(t, layer)[1] > 0).any():
        return None, 0
    motion = np.float32(shutter) * measure_motion(maps, t, layer, (slice(None), slice(None)), settings)
    longest = float(np.abs(motion[seen]).max()) * max(maps.size) / 2
    return (motion, math.ceil(longest / 2)) if longest > settings.least_motion_px else (None, 0)


def move_places(
    patch: PicturePatch,
    lookup: PictureLookup,
    level: Level,
    at: Float[np.ndarray, "rows columns 2"],
    uv: Float[np.ndarray, "rows columns 2"],
    motion: Float[np.ndarray, "rows columns 2"] | None,
    settings: MotionBlurSettings = DEFAULTS,
) -> tuple[Float[np.ndarray, "rows columns 4"], int]:
    """Finds by how much places in a copy of a picture move while the shutter is open.

    Args:
        patch: of the picture.
        lookup: of the picture.
        level: of the copy.
        at: the places.
        uv: the points of the plane that are there.
        motion: of these points, in uv units; None: they do not move by much.
        settings: how many lookups show it.

    Returns:
        The places and their motion, and how many lookups show it.
    """
    if motion is None:
        return cv2.merge([at, at]), 1
    first, last = (lookup.scale_places(level, patch.find_places(uv + side * motion / 2)) for side in (-1, 1))
    moved = last - first
    taps = math.ceil(float(np.abs(moved).max(initial=0.0)) / settings.tap_px)
    return cv2.merge([at, moved]), min(max(taps, 1), settings.most_taps)


def estimate_shutter(
    maps: Maps,
    pictures: Sequence[CanonicalImage],
    read_frame: Callable[[int], UInt8[np.ndarray, "height width 3"]],
    settings: MotionBlurSettings = DEFAULTS,
) -> float:
    """Estimates for which share of the time between frames the shutter was open.

    Args:
        maps: the baked maps of the run.
        pictures: its canonical pictures, front to back.
        read_frame: reads a frame of the source, by its number in the run.
        settings: which frames are compared, and how.

    Returns:
        0 to 1; 0 also where nothing moves fast enough to tell.
    """
    # The frames in which most pixels move fast.
    whole: Part = (slice(1, 1 + maps.size[1]), slice(1, 1 + maps.size[0]))
    pixel, fast = 2 / max(maps.size), []
    for t in range(0, maps.frame_count, max(1, maps.frame_count // settings.searched_frames)):
        for layer in range(len(maps.layers)):
            motion = measure_motion(maps, t, layer, whole, settings)
            seen = maps.read_layer_weight_small(t, layer) >= settings.min_weight
            moving = seen & (np.linalg.norm(motion, axis=2) > settings.least_speed_px * pixel)
            if np.count_nonzero(moving) >= settings.least_pixels:
                fast.append((float(np.linalg.norm(motion, axis=2)[moving].sum()), t, layer))
    errors = np.zeros(len(settings.shares))
    for _, t, layer in sorted(fast, reverse=True)[: settings.frames]:
        motion, picture = measure_motion(maps, t, layer, whole, settings), pictures[layer]
        uv = np.asarray(maps.read_uv_small(t, layer), np.float32)
        weight = maps.read_layer_weight_small(t, layer)
        used = (weight >= settings.min_weight) & (np.linalg.norm(motion, axis=2) > settings.least_speed_px * pixel)
        frame = cv2.resize(read_frame(t), maps.size, interpolation=cv2.INTER_AREA).astype(np.float32) / 255
        texel = picture.size[0] / picture.box.width * pixel  # texels for each pixel
        shrunk = cv2.resize(
            picture.rgba, None, fx=1 / max(1.0, texel), fy=1 / max(1.0, texel), interpolation=cv2.INTER_AREA
        )
        for number, share in enumerate(settings.shares):
            shown = np.zeros_like(frame)
            for place in (np.arange(settings.taps) + 0.5) / settings.taps - 0.5:
                moved = uv + np.float32(share * place) * motion
                at = array_coords.uv_to_texels(moved, picture.box, shrunk.shape[1], shrunk.shape[0]) - np.float32(0.5)
                shown += cv2.remap(shrunk, at, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)[..., :3]
            shown *= maps.read_gain(t, layer, maps.size) / settings.taps
            # What both have in common, light and large shapes, says nothing.
            off = shown - frame
            off -= cv2.GaussianBlur(off, (0, 0), 4.0)
            errors[number] += float(np.square(off)[used].mean())
    best = int(errors.argmin())
    if not errors.any() or best == 0:
        return 0.0
    if best == len(errors) - 1:
        return 1.0
    # The lowest point of the parabola through the best one and its neighbors.
    before, here, after = errors[best - 1 : best + 2]
    step = settings.shares[best + 1] - settings.shares[best]
    return round(settings.shares[best] + step * float((before - after) / (2 * (before - 2 * here + after))), 2)
