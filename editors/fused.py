"""All frames of an edited video made one picture a layer: streamed, robust, and as sharp as the frames.

Each layer's picture starts as a mean of the frames, and what it misses of them is put back a few times (iterative
back-projection, Irani and Peleg, 1991), each pixel with the less weight the further the picture is from it
(Geman-McClure, with a width that narrows: Black and Rangarajan, "On the Unification of Line Processes, Outlier
Rejection, and Robust Statistics", 1996): a frame that shows something else than the others ends without a trace.
Pixels that layers share tell all of them what is missing, each by its share.

Where frames have nothing in common, as strokes that swim have not, their mean is a blur. There the picture starts anew
from the frames around the middle of the clip, and keeps what agrees with those.

One frame is in memory at a time. Every pass goes over all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from neural_fields.baking import Maps
from neural_fields.coords import Box
from neural_fields.planar.placement import pull_push

LEAST = 0.02  # of a pixel; with less of a layer it says nothing about it
KNOWN = 0.3  # pixels; a texel that was seen by more has a colour of its own
WIDTHS = (0.4, 0.3, 0.2)  # distances of colours from which a pixel counts less, pass by pass
ANEW = (0.1, 0.1)  # those of the passes after frames that do not agree were set aside
NEAREST = 6  # power by which frames count less that are farther from the middle, in a start from those around it
# Frames agree where most of their weight is within the width, or where the picture explains most of what they show
# around a texel; below the first figure not at all, from the second on fully.
MAJORITY = (0.6, 0.75)
EXPLAINED = (0.3, 0.6)
PLAIN = 0.03  # standard deviation of colours so small that there is nothing to explain
SMOOTH = 1 / 120  # of the picture's longer side, Gaussian: what lies around a texel
RIM = 0.03  # of the frame's longer side: so far from where a layer ends, edits often draw outlines that are not its own
CLEAR = 4  # power by which pixels there count less; CLEARER: in a start from the middle, where few frames are heard
CLEARER = 16
DARKEST = 0.05  # gain under which light is not divided out
GREY = np.full(3, 1 / 3, np.float32)
COARSE = 160  # pixels along the longer side at which light is looked at
GAINED = 0.35  # of what still pictures miss: so much the light must explain before it is put on
GLANCES = 24  # frames that are looked at for it


@dataclass(frozen=True)
class Ground:
    """The picture that one layer shall have.

    Attributes:
        layer: its number among the layers of the maps.
        box, size: what the picture covers, and its (width, height).
    """

    layer: int
    box: Box
    size: tuple[int, int]


@dataclass(frozen=True)
class Fused:
    """What all frames show of a layer.

    Attributes:
        colour: without the layer's light; where nothing is seen, as around it.
        common: the same, but what frames have in common also where they do not agree: steadier, and softer.
        seen: texels that frames show, and those between them.
        agreed: of what is seen, the share on which the frames agree.
    """

    colour: Float[np.ndarray, "height width 3"]
    common: Float[np.ndarray, "height width 3"]
    seen: Bool[np.ndarray, "height width"]
    agreed: float


Frames = Callable[[], Iterable[Float[np.ndarray, "height width 3"]]]  # what the layers shall show, frame by frame
Progress = Callable[[int, int], None]


def fuse(
    frames: Frames, maps: Maps, grounds: Sequence[Ground], size: tuple[int, int], lit: bool, progress: Progress
) -> list[Fused]:
    """One picture for each ground, so that together they show all frames as well as still pictures can.

    Args:
        frames: gives the frames of the run, from the first; called once a pass. RGB; in pixels that other layers share,
            only what the layers of `grounds` add.
        size: (width, height) of the frames.
        lit: whether the layers' light falls on the pictures.
        progress: told how many frames of all passes are done.
    """
    passes = 1 + len(WIDTHS) + len(ANEW)
    done, total = 0, passes * maps.frame_count

    def shots() -> Iterator[_Shot]:
        nonlocal done
        for t, frame in enumerate(frames()):
            views = [_View.of(maps, t, ground, size, lit) for ground in grounds]
            yield _Shot(frame.reshape(-1, 3), views, (1.0 + abs(t - maps.frame_count // 2)) ** -NEAREST)
            done += 1
            progress(done, total)

    mean, middle, seen = (_Sums.for_all(grounds) for _ in range(3))
    for shot in shots():
        for number, view in enumerate(shot.views):
            colours = shot.frame[view.pixels] / view.gain
            mean[number].add(view, colours, view.trust)
            middle[number].add(view, colours, shot.nearness(view))
            seen[number].add(view, np.zeros_like(colours), view.weight)
    known = [one.weight > KNOWN for one in seen]
    common, anew = ([_filled(s.mean, there) for s, there in zip(sums, known, strict=True)] for sums in (mean, middle))
    for width in WIDTHS:
        missing, middle, rests = (_Sums.for_all(grounds) for _ in range(3))
        for shot in shots():
            off, less = shot.rest(common), shot.rest(anew)
            for number, view in enumerate(shot.views):
                missing[number].add(view, off[view.pixels] / view.gain, view.trust * _within(off, width)[view.pixels])
                middle[number].add(view, less[view.pixels] / view.gain, shot.nearness(view))
                grey, gone = shot.frame[view.pixels] @ GREY, off[view.pixels] @ GREY
                rests[number].add(view, np.column_stack([grey, grey**2, gone**2]), view.trust)
        common, anew = _added(common, missing), _added(anew, middle)
    agree = [_agreement(one, rest, there) for one, rest, there in zip(missing, rests, known, strict=True)]
    pictures = [new + a[..., None] * (old - new) for old, new, a in zip(common, anew, agree, strict=True)]
    for width in ANEW:
        missing = _Sums.for_all(grounds)
        for shot in shots():
            off = shot.rest(pictures)
            for number, view in enumerate(shot.views):
                missing[number].add(view, off[view.pixels] / view.gain, view.trust * _within(off, width)[view.pixels])
        pictures = _added(pictures, missing)
    return [
        Fused(picture, same, _joined(one.weight > LEAST), float((a * there).sum() / max(1, there.sum())))
        for picture, same, one, a, there in zip(pictures, common, seen, agree, known, strict=True)
    ]


def follows_light(frames: Frames, maps: Maps, grounds: Sequence[Ground], size: tuple[int, int]) -> bool:
    """Whether the frames follow the layers' light: whether still pictures under it show them better than without it.

    Every so many frames are looked at small. Both errors are those of least squares, texel by texel, in closed form.
    """
    if not maps.has_gain:
        return True
    scale = COARSE / max(size)
    width, height = (max(1, round(side * scale)) for side in size)
    small = [Ground(g.layer, g.box, (round(g.size[0] * scale) + 4, round(g.size[1] * scale) + 4)) for g in grounds]
    plain, under, light = (_Sums.for_all(small) for _ in range(3))
    squares = 0.0
    stride = max(1, maps.frame_count // GLANCES)
    for t, frame in enumerate(frames()):
        if t % stride:
            continue
        shown = cv2.resize(frame, (width, height), interpolation=cv2.INTER_AREA).reshape(-1, 3)
        for number, ground in enumerate(small):
            view = _View.of(maps, t, ground, (width, height), lit=True)
            colours = shown[view.pixels]
            plain[number].add(view, colours, view.trust)
            under[number].add(view, colours * view.gain, view.trust)
            light[number].add(view, view.gain**2, view.trust)
            squares += float((view.trust[:, None] * colours**2).sum())
    # sum s (o - g c)^2 = sum s o^2 - (sum s g o)^2 / sum s g^2 at its least.
    without = squares - sum(float((one.mean**2 * one.weight[..., None]).sum()) for one in plain)
    lit = squares - sum(
        float((one.mean**2 / np.maximum(all_.mean, 1e-6) * one.weight[..., None]).sum())
        for one, all_ in zip(under, light, strict=True)
    )
    return lit < (1 - GAINED) * without


def looked_up(
    picture: Float[np.ndarray, "rows columns 3"], places: Float[np.ndarray, "height width 2"]
) -> Float[np.ndarray, "height width 3"]:
    """A picture at places (0 is the centre of the first texel); beyond its edges they go on."""
    # OpenCV looks up four channels exactly, and is quickest at it.
    four = cv2.cvtColor(picture.astype(np.float32), cv2.COLOR_RGB2RGBA)
    found = cv2.remap(four, places, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return cv2.cvtColor(found, cv2.COLOR_RGBA2RGB)


def places_of(
    maps: Maps, t: int, layer: int, size: tuple[int, int], box: Box, grid: tuple[int, int]
) -> Float[np.ndarray, "height width 2"]:
    """Where the pixels of a frame lie in a layer's picture of `grid` (width, height) that covers a box.

    Zero is the centre of the first texel.
    """
    scale = np.array([grid[0] / box.width, grid[1] / box.height], np.float32)
    low = np.array([box.u0, box.v0], np.float32)
    return (maps.uv(t, layer, size) - low) * scale - np.float32(0.5)


@dataclass(frozen=True)
class _View:
    """What one frame shows of one layer; arrays have a row for each pixel with enough of the layer.

    Attributes:
        pixels: their numbers in the frame, row by row.
        places: where all pixels of the frame lie in the layer's picture.
        weight: how much of the layer they show.
        clear: how much of the layer is around them, at least 0.05.
        trust: weight, less near the layer's outline, where a pixel covers many texels, and where it is dark.
        gain: the layer's light.
    """

    pixels: Int[np.ndarray, " n"]
    places: Float[np.ndarray, "height width 2"]
    weight: Float[np.ndarray, " n"]
    clear: Float[np.ndarray, " n"]
    trust: Float[np.ndarray, " n"]
    gain: Float[np.ndarray, "n 3"]

    @classmethod
    def of(cls, maps: Maps, t: int, ground: Ground, size: tuple[int, int], lit: bool) -> _View:
        """Frame `t` at `size`."""
        places = places_of(maps, t, ground.layer, size, ground.box, ground.size)
        weight = maps.weight(t, size)[ground.layer]
        x, y = places[..., 0], places[..., 1]
        inside = (x > -1) & (x < ground.size[0]) & (y > -1) & (y < ground.size[1])
        pixels = np.flatnonzero((weight > LEAST) & inside)
        side = 2 * max(1, round(RIM * max(size))) + 1
        around = cv2.blur((weight > 0.5).astype(np.float32), (side, side), borderType=cv2.BORDER_CONSTANT)
        own, clear = weight.reshape(-1)[pixels], np.maximum(around.reshape(-1)[pixels], 0.05)
        trust = own * clear**CLEAR / np.maximum(1, _texels_a_pixel(places).reshape(-1)[pixels])
        if lit:
            gain = np.maximum(maps.gain(t, ground.layer, size).reshape(-1, 3)[pixels], DARKEST)
        else:
            gain = np.ones((len(pixels), 3), np.float32)
        # A colour shows as much as there is light on it.
        return cls(pixels, places, own, clear, trust * np.einsum("ij,ij->i", gain, gain) / 3, gain)


@dataclass(frozen=True)
class _Sums:
    """Weighted colours and weights added up in the texels of a picture that has one texel more on every side."""

    values: Float[Tensor, "texels 4"]
    size: tuple[int, int]

    @classmethod
    def for_all(cls, grounds: Sequence[Ground]) -> list[_Sums]:
        """Nothing yet, for each ground."""
        sizes = [ground.size for ground in grounds]
        return [cls(torch.zeros((width + 2) * (height + 2), 4), (width, height)) for width, height in sizes]

    def add(self, view: _View, colours: Float[np.ndarray, "n 3"], weight: Float[np.ndarray, " n"]) -> None:
        """Spreads pixels over the four texels around each."""
        places = view.places.reshape(-1, 2)[view.pixels]
        corner = np.floor(places)
        part = places - corner
        row = self.size[0] + 2
        first = torch.from_numpy(((corner[:, 1] + 1) * row + corner[:, 0] + 1).astype(np.int64))
        flat = torch.from_numpy(np.column_stack([colours * weight[:, None], weight]).astype(np.float32))
        for below in (0, 1):
            for right in (0, 1):
                share = np.abs(1 - right - part[:, 0]) * np.abs(1 - below - part[:, 1])
                self.values.index_add_(0, first + (below * row + right), flat * torch.from_numpy(share)[:, None])

    @property
    def _inner(self) -> Float[np.ndarray, "height width 4"]:
        return self.values.view(self.size[1] + 2, self.size[0] + 2, 4)[1:-1, 1:-1].numpy()

    @property
    def weight(self) -> Float[np.ndarray, "height width"]:
        return self._inner[..., 3]

    @property
    def mean(self) -> Float[np.ndarray, "height width 3"]:
        """Zero where nothing was added."""
        return self._inner[..., :3] / np.maximum(self._inner[..., 3:], 1e-30)


@dataclass(frozen=True)
class _Shot:
    """One frame, with what it shows of each ground; `near`: how near it is to the middle of the clip, at most 1."""

    frame: Float[np.ndarray, "pixels 3"]
    views: list[_View]
    near: float

    def rest(self, pictures: Sequence[Float[np.ndarray, "_ _ 3"]]) -> Float[np.ndarray, "pixels 3"]:
        """What pictures of the grounds miss of the frame."""
        result = self.frame.copy()
        for view, picture in zip(self.views, pictures, strict=True):
            shown = looked_up(picture, view.places).reshape(-1, 3)[view.pixels]
            result[view.pixels] -= view.weight[:, None] * view.gain * shown
        return result

    def nearness(self, view: _View) -> Float[np.ndarray, " n"]:
        """The weight of pixels in a picture of the middle of the clip."""
        return view.trust * self.near * view.clear**CLEARER


def _within(rest: Float[np.ndarray, "pixels 3"], width: float) -> Float[np.ndarray, " pixels"]:
    """How much pixels count that are off by so much."""
    return (1 + np.einsum("ij,ij->i", rest, rest) / width**2) ** -2


def _added(
    pictures: Sequence[Float[np.ndarray, "_ _ 3"]], missing: Sequence[_Sums]
) -> list[Float[np.ndarray, "_ _ 3"]]:
    return [np.clip(picture + one.mean, 0, 1) for picture, one in zip(pictures, missing, strict=True)]


def _agreement(missing: _Sums, rests: _Sums, known: Bool[np.ndarray, "h w"]) -> Float[np.ndarray, "h w"]:
    """How far frames agree in a texel and around it, 0 to 1.

    Args:
        missing: what the picture misses, by how much pixels are within the width.
        rests: the frames' grey, its square, and the square of what is missing, by how much pixels count at all.
    """
    there, sigma = known.astype(np.float32)[..., None], SMOOTH * max(known.shape)
    share = (missing.weight / np.maximum(rests.weight, 1e-30))[..., None]
    blurred = cv2.GaussianBlur(np.concatenate([share * there, rests.mean * there, there], axis=-1), (0, 0), sigma)
    share, grey, square, off = np.moveaxis(blurred[..., :4] / np.maximum(blurred[..., 4:], 1e-6), -1, 0)
    explained = 1 - off / (np.maximum(square - grey**2, 0) + PLAIN**2)
    return np.maximum(_ramp(share, MAJORITY), _ramp(explained, EXPLAINED))


def _ramp(values: Float[np.ndarray, "h w"], ends: tuple[float, float]) -> Float[np.ndarray, "h w"]:
    return np.clip((values - ends[0]) / (ends[1] - ends[0]), 0, 1).astype(np.float32)


def _filled(mean: Float[np.ndarray, "h w 3"], known: Bool[np.ndarray, "h w"]) -> Float[np.ndarray, "h w 3"]:
    return np.clip(pull_push(mean, known), 0, 1)


def _joined(seen: Bool[np.ndarray, "h w"]) -> Bool[np.ndarray, "h w"]:
    """Texels that are seen, those between them and around them: what rendering may look at."""
    closed = cv2.morphologyEx(seen.astype(np.uint8), cv2.MORPH_CLOSE, np.ones((5, 5), np.uint8))
    return cv2.dilate(closed, np.ones((5, 5), np.uint8)) > 0


def _texels_a_pixel(places: Float[np.ndarray, "height width 2"]) -> Float[np.ndarray, "height width"]:
    """The area of pixels in texels."""
    right, down = np.gradient(places, axis=1), np.gradient(places, axis=0)
    return np.abs(right[..., 0] * down[..., 1] - right[..., 1] * down[..., 0])
