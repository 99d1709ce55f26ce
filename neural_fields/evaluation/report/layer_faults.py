"""Measures what is wrong with the layers themselves: they jump, grow, miss a part, vanish, or an object has none.

A point that stays visible belongs to one object, so it should stay in one layer. Points are followed along the optical
flow, where forward and backward flow agree: whatever is occluded, leaves the frame, or appears takes no part, so a
surfer behind a wave or a car that drives out of the frame is no fault. Places are measured on small frames, and points
near an outline do not count: there the flow mixes both sides.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from neural_fields.atlas.canonical import CanonicalImage
from neural_fields.atlas.uv_maps import Maps
from neural_fields.core.progress import Progress, ProgressReporter, report_nothing
from neural_fields.data.flow.compute import FlowField

Region = Bool[np.ndarray, "height width"]


@dataclass(frozen=True)
class LayerFaultSettings:
    """Settings of the measurements. Lengths are pixels of frames whose shorter side is `side_px`."""

    side_px: int = 160
    min_weight: float = 0.5  # a pixel belongs to the layer that has at least this weight
    min_front_weight: float = 0.2  # layers in front with more weight hide a place
    max_pairs: int = 400  # pairs of neighboring frames that are compared; longer clips are sampled
    min_region_px: int = 80  # regions that are smaller say nothing
    # Distances from the outline within which a point may change its layer: outlines flicker by about this much, and the
    # flow is wrong by as much after `span_frames`.
    pair_rim_px: int = 2
    span_rim_px: int = 3
    span_frames: int = 8  # over which points are followed for slow changes; the errors of longer chains are too large
    part_frames: int = 6  # over which motion is compared to find parts that are missing
    starts: int = 16  # frames in which these points start
    min_seen: float = 0.4  # share of a region that must be followed, or else the span says nothing
    min_spans: float = 0.5  # share of the spans that must say something
    # A part that is missing moves like the layer: its error is at most this share of the difference between the motions
    # of the layer and what is around it, ...
    max_own_error: float = 0.3
    min_other_error: float = 0.6  # ... and its error against the motion around is at least this share of it, ...
    min_difference_px: float = 3.0  # ... where the difference is large enough to be measured.
    around: float = 0.7  # how far from the layer parts are looked for, in square roots of its area
    # Across the outline where a part is cut off colors do not change: the least change that counts, in 8-bit CIELAB.
    edge_levels: float = 10.0
    min_flat_share: float = 0.15  # of the outline between layer and part; a shadow or a reflection has less
    contact_px: int = 6  # how far from the missing part its outline with the layer may be
    # What no layer holds is reconstructed wrongly even when blurred: softness of texture is no sign of an object.
    blur_px: float = 2.0
    error_levels: float = 12.0  # least error of the blurred colors, in 8-bit levels
    join_px: int = 3  # gaps in an object, which is wrong at its edges above all
    # Share of a frame that is wrong: 0.005 in the broken reflection of a swan, 0.015 where a person has no layer.
    min_unheld_area: float = 0.007
    min_unheld_share: float = 0.3  # of all that is wrong in the background: ripples are wrong in many places
    motion_frames: int = 3  # the background is followed over so many frames, ...
    min_followed: float = 0.5  # ... and where less of it can be followed, as on water, nothing can be told
    min_unheld_frames: float = 0.6  # share of the sampled frames that show it
    min_left_share: float = 0.05  # of its usual area; a layer with less is not seen
    min_sudden_share: float = 0.3  # of its usual area: a layer that goes away behind something has less before
    beside_px: int = 6  # this close to a layer it may be a shadow or reflection


DEFAULTS = LayerFaultSettings()


@dataclass(frozen=True)
class FrameBox:
    """Holds a box on a frame: frame of the run, and box (left, top, width, height) in shares of the frame."""

    t: int
    box: tuple[float, float, float, float]


@dataclass(frozen=True)
class Jump:
    """Holds a sudden change of a layer between frame `t` and the next."""

    t: int
    lost: float  # share of the layer that is in another layer in the next frame, though it stays visible
    gained: float  # share of the layer in the next frame that was in another layer
    after: FrameBox  # where the object should be after the jump

    @property
    def share(self) -> float:
        """The larger of the shares lost and gained."""
        return max(self.lost, self.gained)


@dataclass(frozen=True)
class MissingPart:
    """Holds a part of the object that another layer has."""

    share: float  # median of its area, as a share of the layer's area
    enclosed: bool  # whether it is a hole
    whole: FrameBox  # the layer and the part together


@dataclass(frozen=True)
class LayerFaults:
    """Holds what is wrong with one layer; empty where nothing is."""

    jumps: tuple[Jump, ...] = ()  # the largest first
    growth: float = 0.0  # of what is visible from start to end, by points that change their layer, as a share
    astray: float = 0.0  # least of the shares of points that enter and that leave the layer over a span
    largest: FrameBox | None = None  # where the layer is largest
    missing: MissingPart | None = None
    empty_frames: tuple[int, ...] = ()  # frames of the run without the layer, although it did not leave the frame
    last_box: tuple[float, float, float, float] = (0.0, 0.0, 1.0, 1.0)  # of the layer before (or after) the first
    area: float = 1.0  # median share of a frame that it fills, where it is seen

    def list_jumps(self, min_share: float) -> list[Jump]:
        """Lists the jumps of at least this share of the layer, the largest first."""
        return [jump for jump in self.jumps if jump.share >= min_share]


NO_FAULTS = LayerFaults()


@dataclass(frozen=True)
class UnheldObject:
    """Holds something that no layer holds."""

    area: float  # median share of a frame
    frames: float  # share of the sampled frames that show it
    place: FrameBox  # where it is shown clearly; with the layer that it is beside
    beside: str | None = None  # name of that layer: it may be a part of it, its shadow or its reflection


class SmallClip:
    """Reads regions, colors and motion of a trained clip at a small size.

    Args:
        frames: RGB of the run; may be memory-mapped.
        maps: baked maps of the run.
        flow: flow between all frames of the run.
        settings: size, and weights of regions.
    """

    def __init__(
        self,
        frames: UInt8[np.ndarray, "time rows columns 3"],
        maps: Maps,
        flow: FlowField,
        settings: LayerFaultSettings = DEFAULTS,
    ) -> None:
        shrink = min(1.0, settings.side_px / min(maps.size))
        self.size = (max(1, round(maps.size[0] * shrink)), max(1, round(maps.size[1] * shrink)))
        self.count, self.layers = maps.frame_count, maps.layers
        self._frames, self._maps, self._flow, self._settings = frames, maps, flow, settings
        self._columns, self._rows = np.meshgrid(*(np.arange(side, dtype=np.float32) for side in self.size))
        self.grid = np.stack([self._columns, self._rows], axis=-1)
        self.read_weights = lru_cache(settings.span_frames + 2)(self._read_weights)
        self.read_motion = lru_cache(settings.span_frames + 2)(self._read_motion)

    def _read_weights(self, t: int) -> Float[np.ndarray, "layers height width"]:
        planes = [self._maps.read_layer_weight_small(t, layer) for layer in range(len(self.layers))]
        return np.stack([cv2.resize(plane, self.size, interpolation=cv2.INTER_AREA) for plane in planes])

    def _read_motion(self, t: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        scale = (np.array(self.size) / self._flow.size).astype(np.float32)
        forward, ok = (np.asarray(part[t], np.float32) for part in (self._flow.forward, self._flow.forward_ok))
        vectors = cv2.resize(forward, self.size, interpolation=cv2.INTER_AREA) * scale
        trusted = (cv2.resize(ok, self.size, interpolation=cv2.INTER_AREA) > 0.9).astype(np.float32)
        return *cv2.split(vectors), trusted

    def read_region(self, t: int, layer: int) -> Region:
        """Returns the pixels of frame `t` that show a layer."""
        return self.read_weights(t)[layer] >= self._settings.min_weight

    def read_hidden(self, t: int, layer: int) -> Region:
        """Returns the pixels of frame `t` in which layers in front of a layer are seen."""
        return self.read_weights(t)[:layer].sum(0) >= self._settings.min_front_weight

    def read_frame(self, t: int) -> UInt8[np.ndarray, "height width 3"]:
        """Returns the colors of frame `t`."""
        return cv2.resize(np.ascontiguousarray(self._frames[t]), self.size, interpolation=cv2.INTER_AREA)

    def read_picture(self, t: int, layer: int, canonical: CanonicalImage) -> Float[np.ndarray, "height width 3"]:
        """Returns what a layer shows in every pixel of a frame, in 8-bit levels.

        Args:
            t: place of the frame in the clip.
            layer: number of the layer, front to back.
            canonical: the canonical picture of the layer.
        """
        uv = cv2.resize(
            np.ascontiguousarray(self._maps.read_uv_small(t, layer)), self.size, interpolation=cv2.INTER_AREA
        )
        rgb = canonical.sample_rgba(uv)[..., :3]
        gain = self._maps.read_gain(t, layer, self._maps.size)
        return 255 * rgb * cv2.resize(np.ascontiguousarray(gain), self.size, interpolation=cv2.INTER_AREA)

    def follow(self, t: int, span: int) -> tuple[Float[np.ndarray, "height width 2"], Region]:
        """Follows all pixels of frame `t` over `span` frames.

        Returns:
            Where they are then, and which could be followed.
        """
        x, y, alive = self._columns, self._rows, np.ones(self.grid.shape[:2], bool)
        right, bottom = (np.float32(side - 2) for side in self.size)
        for frame in range(t, t + span):
            # Plane by plane, which is many times faster than with both coordinates side by side.
            dx, dy, trusted = (cv2.remap(part, x, y, cv2.INTER_LINEAR) for part in self.read_motion(frame))
            x, y = x + dx, y + dy
            alive &= (trusted > 0.99) & (x >= 1) & (y >= 1) & (x <= right) & (y <= bottom)
        return np.stack([x, y], axis=-1), alive


def measure_layer_faults(
    clip: SmallClip,
    layer: int,
    shots: tuple[range, ...],
    report: ProgressReporter = report_nothing,
    settings: LayerFaultSettings = DEFAULTS,
) -> LayerFaults:
    """Measures what is wrong with a front layer.

    Args:
        clip: the trained clip.
        layer: number of the layer, front to back.
        shots: frames between cuts; nothing is followed from one to another.
        report: called after each check, as the stage "report".
        settings: sizes and limits.
    """
    areas = np.array([int(clip.read_region(t, layer).sum()) for t in range(clip.count)])
    if not areas.any():
        return LayerFaults()
    largest = int(areas.argmax())
    growth, astray = measure_growth(clip, layer, shots, settings)
    report(Progress("report", 1, 3))
    seen = areas > 0
    empty = find_empty_frames(clip, layer, areas, settings)
    nearest = min(np.flatnonzero(seen).tolist(), key=lambda t: abs(t - empty[0])) if empty else largest
    jumps = sorted(find_jumps(clip, layer, shots, settings), key=lambda jump: -jump.share)
    report(Progress("report", 2, 3))
    return LayerFaults(
        jumps=tuple(jumps),
        growth=growth,
        astray=astray,
        largest=_find_place(clip, largest, clip.read_region(largest, layer)),
        missing=find_missing_part(clip, layer, shots, settings),
        empty_frames=empty,
        last_box=_find_place(clip, nearest, clip.read_region(nearest, layer)).box,
        area=float(np.median(areas[seen])) / (clip.size[0] * clip.size[1]),
    )


def find_jumps(clip: SmallClip, layer: int, shots: tuple[range, ...], settings: LayerFaultSettings) -> Iterator[Jump]:
    """Compares neighboring frames: the largest connected part that changes its layer at once.

    Args:
        clip: the clip at the size of the checks.
        layer: number of the layer, front to back.
        shots: the frames between cuts.
        settings: limits.
    """
    pairs = [t for shot in shots for t in shot[:-1]]
    rim = settings.pair_rim_px
    for t in pairs[:: max(1, -(-len(pairs) // settings.max_pairs))]:
        here, there = clip.read_region(t, layer), clip.read_region(t + 1, layer)
        if max(here.sum(), there.sum()) < settings.min_region_px:
            continue
        at, alive = clip.follow(t, 1)
        alive &= ~clip.read_hidden(t, layer) & ~_carry(clip.read_hidden(t + 1, layer), at)
        lost = _shrink(here, rim) & ~_carry(_grow(there, rim), at) & alive
        gained = ~_grow(here, rim) & _carry(_shrink(there, rim), at) & alive
        shares = [
            max((float(part.sum()) for part in _split_parts(changed, 1)), default=0.0) / max(1, int(region.sum()))
            for changed, region in ((lost, here), (gained, there))
        ]
        if max(shares) > 0:
            moved = here if shares[0] >= shares[1] else gained | (here & alive)
            points = at[moved & alive] if (moved & alive).any() else at[here]
            yield Jump(t, shares[0], shares[1], FrameBox(t + 1, _box_of_points(clip, points)))


def measure_growth(
    clip: SmallClip, layer: int, shots: tuple[range, ...], settings: LayerFaultSettings
) -> tuple[float, float]:
    """Measures how much the layer gains from and loses to others among points that stay visible.

    Args:
        clip: the clip at the size of the checks.
        layer: number of the layer, front to back.
        shots: the frames between cuts.
        settings: limits.
    """
    span, rim = settings.span_frames, settings.span_rim_px
    lost: list[tuple[int, int]] = []  # pairs of changed and followed points
    gained: list[tuple[int, int]] = []
    starts = _spread_starts(shots, span, settings.starts)
    for t in starts:
        here, there = clip.read_region(t, layer), clip.read_region(t + span, layer)
        at, alive = clip.follow(t, span)
        alive &= ~clip.read_hidden(t, layer) & ~_carry(clip.read_hidden(t + span, layer), at)
        inner, later = _shrink(here, rim), _carry(_shrink(there, rim), at)
        whole = int(_shrink(there, rim).sum())
        for counts, base, changed, total in (
            (lost, inner & alive, ~_carry(_grow(there, rim), at), int(inner.sum())),
            (gained, later & alive, ~_grow(here, rim), whole),
        ):
            followed = int(base.sum())
            if followed >= max(settings.min_seen * total, settings.min_region_px / 2):
                counts.append((int((base & changed).sum()), followed))
    least = max(1, settings.min_spans * len(starts))
    if len(lost) < least or len(gained) < least:
        return 0.0, 0.0
    out, into = (sum(part for part, _ in counts) / sum(whole for _, whole in counts) for counts in (lost, gained))
    return (into - out) * clip.count / span, min(into, out)


def find_missing_part(
    clip: SmallClip, layer: int, shots: tuple[range, ...], settings: LayerFaultSettings
) -> MissingPart | None:
    """Finds a part of the background that moves like the layer, and is cut off where no colors change, or enclosed.

    Args:
        clip: the clip at the size of the checks.
        layer: number of the layer, front to back.
        shots: the frames between cuts.
        settings: limits.
    """
    found: list[tuple[float, bool, FrameBox | None]] = []
    for t in _spread_starts(shots, settings.part_frames, settings.starts):
        region, background = clip.read_region(t, layer), clip.read_region(t, len(clip.layers) - 1)
        if region.sum() < settings.min_region_px:
            continue
        at, alive = clip.follow(t, settings.part_frames)
        alive &= ~clip.read_hidden(t, layer)
        rows, columns = np.nonzero(region)
        reach = int(settings.around * np.sqrt(len(rows))) + settings.contact_px
        near = np.zeros_like(region)
        near[max(0, rows.min() - reach) : rows.max() + reach, max(0, columns.min() - reach) : columns.max() + reach] = 1
        rim = settings.span_rim_px
        motions = [
            _fit_motion(clip.grid[part], at[part])
            for part in (_shrink(region, 2) & alive, background & ~_grow(region, rim + 1) & alive & near)
        ]
        if motions[0] is None or motions[1] is None:
            continue
        own, other = (clip.grid @ motion[:, :2].T + motion[:, 2] for motion in motions if motion is not None)
        apart = np.linalg.norm(own - other, axis=-1)
        if np.median(apart[_grow(region, rim)]) < settings.min_difference_px:
            continue  # both move alike: nothing can be told apart
        candidate = alive & background & ~_grow(region, rim) & near & (apart > settings.min_difference_px)
        candidate &= np.linalg.norm(at - own, axis=-1) < settings.max_own_error * apart
        candidate &= np.linalg.norm(at - other, axis=-1) > settings.min_other_error * apart
        outlines, _ = cv2.findContours(region.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
        filled = cv2.drawContours(np.zeros(region.shape, np.uint8), outlines, -1, 1, cv2.FILLED) > 0
        best: tuple[float, bool, FrameBox | None] = (0.0, False, None)
        for part in _split_parts(candidate, settings.min_region_px // 4):
            enclosed = bool(filled[part].all())
            share = float(part.sum() / region.sum())
            if share > best[0] and (enclosed or is_cut_off(clip, t, region, part, settings)):
                best = (share, enclosed, _find_place(clip, t, region | part))
        found.append(best)
    if not found:
        return None
    shares = [share for share, _, _ in found]
    named = [one for one in found if one[2] is not None]
    if not named or np.median(shares) == 0:
        return None
    middle = min(named, key=lambda one: abs(one[0] - float(np.median(shares))))
    enclosed = sum(one[1] for one in named) > len(named) / 2
    assert middle[2] is not None
    return MissingPart(float(np.median(shares)), enclosed, middle[2])


def is_cut_off(clip: SmallClip, t: int, region: Region, part: Region, settings: LayerFaultSettings) -> bool:
    """Whether a fair share of the outline between a region and a part beside it is at no edge of color.

    Args:
        clip: the clip at the size of the checks.
        t: place of the frame in the clip.
        region: pixels of the layer.
        part: pixels of the part beside it.
        settings: limits.
    """
    outline = region & ~_shrink(region, 1) & _grow(part, settings.contact_px)
    outline[:4] = outline[-4:] = False
    outline[:, :4] = outline[:, -4:] = False
    rows, columns = np.nonzero(outline)
    if len(rows) < settings.contact_px:
        return False
    colors = cv2.cvtColor(clip.read_frame(t), cv2.COLOR_RGB2LAB)
    colors = cv2.GaussianBlur(colors, (0, 0), 1.0).astype(np.float32)
    inside, outside = (cv2.distanceTransform(side.astype(np.uint8), cv2.DIST_L2, 5) for side in (region, ~region))
    slope = np.stack(np.gradient(cv2.GaussianBlur(inside - outside, (0, 0), 1.5))[::-1], axis=-1)[outline]
    normal = slope / (np.linalg.norm(slope, axis=-1, keepdims=True) + 1e-6)
    points = np.stack([columns, rows], axis=-1)

    def sample(offset: float | int) -> np.ndarray:
        x, y = (points + offset * normal).astype(np.float32).T[:, None]
        return cv2.remap(colors, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)[0]

    steps = [np.linalg.norm(sample(offset + 1) - sample(offset - 1), axis=-1) for offset in (-1, 0, 1)]
    return float((np.max(steps, axis=0) < settings.edge_levels).mean()) >= settings.min_flat_share


def find_empty_frames(
    clip: SmallClip, layer: int, areas: Int[np.ndarray, " time"], settings: LayerFaultSettings = DEFAULTS
) -> tuple[int, ...]:
    """Finds frames without a layer that neither left the frame nor shrank before.

    Whatever goes behind something else becomes smaller first.

    Args:
        clip: the trained clip.
        layer: number of the layer.
        areas: pixels of the layer in each frame.
        settings: what a sudden end is.
    """
    seen = areas >= max(1.0, settings.min_left_share * float(np.median(areas[areas > 0])))
    changes = np.flatnonzero(np.diff(seen.astype(np.int8), prepend=1, append=1))
    found: list[int] = []
    for first, stop in changes.reshape(-1, 2).tolist():
        ends = [t for t in (first - 1, stop) if 0 <= t < len(areas)]
        for t in ends:
            region = clip.read_region(t, layer)
            rim = np.ones_like(region)
            rim[settings.span_rim_px : -settings.span_rim_px, settings.span_rim_px : -settings.span_rim_px] = False
            is_sudden = areas[t] >= settings.min_sudden_share * np.median(areas[seen])
            if is_sudden and not (region & rim).any() and not (_grow(region, 2) & clip.read_hidden(t, layer)).any():
                found += range(first, stop)
                break
    return tuple(found)


def find_unheld_objects(
    clip: SmallClip,
    canonical: CanonicalImage,
    report: ProgressReporter = report_nothing,
    settings: LayerFaultSettings = DEFAULTS,
) -> tuple[UnheldObject, ...]:
    """Finds what no layer holds: parts of the background that its picture shows wrongly in most frames.

    Args:
        clip: the trained clip.
        canonical: the canonical picture of the background.
        report: called before each frame, as the stage "report".
        settings: what is wrong, and how large it must be.

    Returns:
        At most two: the largest by itself, and the largest beside a layer.
    """
    back = len(clip.layers) - 1
    times = np.unique(np.linspace(0, clip.count - 1, settings.starts).round().astype(int)).tolist()
    found: dict[bool, list[tuple[float, FrameBox, str | None]]] = {
        False: [],
        True: [],
    }  # by whether it is beside a layer
    for done, t in enumerate(times):
        report(Progress("report", done, len(times)))
        background = clip.read_region(t, back)
        start = max(0, min(t, clip.count - 1 - settings.motion_frames))
        _, alive = clip.follow(start, min(settings.motion_frames, clip.count - 1))
        if not background.any() or alive[background].mean() < settings.min_followed:
            continue
        inner = _shrink(background, settings.span_rim_px).astype(np.float32)
        apart = (clip.read_picture(t, back, canonical) - clip.read_frame(t)) * inner[..., None]
        blurred = [cv2.GaussianBlur(part.astype(np.float32), (0, 0), settings.blur_px) for part in (apart, inner)]
        error = np.linalg.norm(blurred[0], axis=-1) / np.sqrt(3) / np.maximum(blurred[1], 1e-3)
        is_wrong = (error > settings.error_levels) & (inner > 0)
        joined = _shrink(_grow(is_wrong, settings.join_px), settings.join_px)
        layers = [clip.read_region(t, layer) for layer in range(back)]
        best: dict[bool, tuple[int, Region]] = {}
        for part in _split_parts(joined, settings.min_region_px // 2):
            wrong = int((part & is_wrong).sum())
            near = _grow(part, settings.beside_px)
            is_beside = any((near & region).any() for region in layers)
            if wrong > best.get(is_beside, (0, part))[0] and wrong >= settings.min_unheld_share * is_wrong.sum():
                best[is_beside] = (wrong, part)
        for is_beside, (wrong, part) in best.items():
            near = _grow(part, settings.beside_px)
            owner = max(range(back), key=lambda layer: int((near & layers[layer]).sum())) if is_beside else None
            whole = part if owner is None else part | layers[owner]
            name = None if owner is None else clip.layers[owner]
            found[is_beside].append((wrong / is_wrong.size, _find_place(clip, t, whole), name))
    objects = []
    for seen in found.values():
        clear = [one for one in seen if one[0] >= settings.min_unheld_area]
        if clear and len(clear) >= settings.min_unheld_frames * len(times):
            area = float(np.median([one[0] for one in clear]))
            # Where it is shown clearly, with the smallest box: in other frames it may be one with what is beside it.
            _, place, name = min(
                (one for one in clear if one[0] >= area), key=lambda one: one[1].box[2] * one[1].box[3]
            )
            objects.append(UnheldObject(area, len(clear) / len(times), place, name))
    return tuple(objects)


def _grow(region: Region, radius: int) -> Region:
    return cv2.dilate(region.astype(np.uint8), _disk(radius)) > 0


def _shrink(region: Region, radius: int) -> Region:
    """Shrinks a region; where it leaves the frame it goes on outside."""
    return cv2.erode(region.astype(np.uint8), _disk(radius), borderValue=1) > 0


def _disk(radius: int) -> UInt8[np.ndarray, "side side"]:
    return cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))


def _carry(region: Region, at: Float[np.ndarray, "height width 2"]) -> Region:
    """Looks up a region of a later frame at the places of the points of an earlier one."""
    x, y = np.ascontiguousarray(at[..., 0]), np.ascontiguousarray(at[..., 1])
    return cv2.remap(region.astype(np.uint8), x, y, cv2.INTER_NEAREST) > 0


def _split_parts(region: Region, min_px: int) -> list[Region]:
    """Splits a region into its connected parts of at least `min_px` pixels, the largest first."""
    _, labels, stats, _ = cv2.connectedComponentsWithStats(region.astype(np.uint8), connectivity=8)
    order = 1 + np.argsort(-stats[1:, cv2.CC_STAT_AREA])
    return [labels == number for number in order.tolist() if stats[number, cv2.CC_STAT_AREA] >= max(1, min_px)]


def _fit_motion(start: Float[np.ndarray, "n 2"], end: Float[np.ndarray, "n 2"]) -> Float[np.ndarray, "2 3"] | None:
    """Fits the affine motion of most of the points; None with too few of them."""
    if len(start) < 40:
        return None
    chosen = np.linspace(0, len(start) - 1, min(len(start), 1500)).astype(int)
    motion, _ = cv2.estimateAffine2D(
        start[chosen], end[chosen], method=cv2.RANSAC, ransacReprojThreshold=1.0, confidence=0.99, maxIters=500
    )
    return motion


def _spread_starts(shots: tuple[range, ...], span: int, count: int) -> list[int]:
    """Chooses frames, spread evenly, after which `span` more frames of the same shot follow."""
    starts = [t for shot in shots for t in shot[: max(0, len(shot) - span)]]
    chosen = np.unique(np.linspace(0, len(starts) - 1, min(count, len(starts))).round().astype(int))
    return [starts[place] for place in chosen]


def _find_place(clip: SmallClip, t: int, region: Region) -> FrameBox:
    rows, columns = np.nonzero(region)
    return FrameBox(t, _box_of_points(clip, np.stack([columns, rows], axis=-1)))


def _box_of_points(clip: SmallClip, points: np.ndarray) -> tuple[float, float, float, float]:
    """Returns the box around points of the small frame, in shares of the frame."""
    low = np.maximum(points.min(0), 0) / clip.size
    high = np.minimum(points.max(0) + 1, clip.size) / clip.size
    return (float(low[0]), float(low[1]), float(high[0] - low[0]), float(high[1] - low[1]))
