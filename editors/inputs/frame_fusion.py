"""Fuses all frames of an edited video into one picture a layer: streamed, robust, and as sharp as the frames.

Each layer's picture starts as a mean of the frames, and what it misses of them is put back a few times (iterative
back-projection, Irani and Peleg, 1991), each pixel with the less weight the further the picture is from it
(Geman-McClure, with a width that narrows: Black and Rangarajan, "On the Unification of Line Processes, Outlier
Rejection, and Robust Statistics", 1996): a frame that shows something else than the others leaves no trace.
Pixels that layers share correct all of them, each by its share.

Where frames have nothing in common, for example where brush strokes swim, their mean is a blur. There the picture
starts anew from the frames around the middle of the clip, and keeps what agrees with those.

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

from neural_fields.atlas.uv_maps import Maps
from neural_fields.core.coords import Box
from neural_fields.imaging.push_pull import pull_push


@dataclass(frozen=True)
class FusionSettings:
    """Settings of the fusion of edited frames."""

    min_weight: float = 0.02  # of a pixel; with less of a layer it says nothing about it
    min_known_px: float = 0.3  # a texel that was seen by more has a color of its own
    robust_widths: tuple[float, ...] = (0.4, 0.3, 0.2)  # color distances from which a pixel counts less, pass by pass
    # Those of the passes after the frames that do not agree were set aside.
    restart_widths: tuple[float, ...] = (0.1, 0.1)
    middle_power: int = 6  # by which frames count less the farther they are from the middle, in a start from there
    # Frames agree where most of their weight is within the width, or where the picture explains most of what they show
    # around a texel; below the first figure not at all, from the second on fully.
    majority_share: tuple[float, float] = (0.6, 0.75)
    explained_share: tuple[float, float] = (0.3, 0.6)
    plain_deviation: float = 0.03  # standard deviation of colors so small that there is nothing to explain
    agreement_sigma_share: float = 1 / 120  # of the picture's longer side: Gaussian over the surroundings of a texel
    outline_share: float = 0.03  # of the frame's longer side: as near to a layer's end edits often draw outlines
    outline_power: int = 4  # by which pixels there count less
    middle_outline_power: int = 16  # the same in a start from the middle, where few frames are heard
    min_surroundings: float = 0.05  # share of the layer around a pixel: less counts as this much
    min_gain: float = 0.05  # light under which it is not divided out
    light_side_px: int = 160  # longer side of the frames that light is measured on
    light_frames: int = 24  # at most, that light is measured on
    min_light_share: float = 0.35  # of what still pictures miss: so much the light must explain before it is applied


DEFAULTS = FusionSettings()


@dataclass(frozen=True)
class FusionGrid:
    """The grid of texels of the picture that one layer shall have.

    Attributes:
        layer: its number among the layers of the maps.
        box: the part of the canonical plane that the picture covers.
        size: (width, height) of the picture in texels.
    """

    layer: int
    box: Box
    size: tuple[int, int]


@dataclass(frozen=True)
class FusedFrames:
    """What all frames show of a layer.

    Attributes:
        color: without the layer's light; defined where frames show the layer, and around it.
        shared_color: the same, but with what frames have in common also where they do not agree: steadier, and softer.
        visible_mask: texels that frames show, and those between them.
        agreement: the share of what is seen on which the frames agree.
    """

    color: Float[np.ndarray, "height width 3"]
    shared_color: Float[np.ndarray, "height width 3"]
    visible_mask: Bool[np.ndarray, "height width"]
    agreement: float


FrameSource = Callable[[], Iterable[Float[np.ndarray, "height width 3"]]]  # what the layers shall show, frame by frame
ReportFrames = Callable[[int, int], None]


def fuse_frames(
    frames: FrameSource,
    maps: Maps,
    grids: Sequence[FusionGrid],
    size: tuple[int, int],
    has_light: bool,
    progress: ReportFrames,
    settings: FusionSettings = DEFAULTS,
) -> list[FusedFrames]:
    """Fuses frames into one picture a layer, which together show all frames as well as still pictures can.

    Args:
        frames: gives the frames of the run, from the first; called once a pass. RGB; in pixels that other layers share,
            only what the layers of `grids` add.
        maps: the baked maps of the run.
        grids: of the pictures to make.
        size: (width, height) of the frames.
        has_light: whether the layers' light falls on the pictures.
        progress: told how many frames of all passes are done.
        settings: which pixels count, and where frames agree.

    Returns:
        One picture for each of `grids`.
    """
    clip = _EditedClip(frames, maps, grids, size, has_light, progress, settings)

    # The first pictures: the mean of all frames, and of those around the middle of the clip.
    mean, middle, seen = (_TexelSums.make_all(grids) for _ in range(3))
    for frame in clip.iterate_pass(0):
        for number, view in enumerate(frame.views):
            colors = frame.rgb[view.pixels] / view.gain
            mean[number].add(view, colors, view.trust)
            middle[number].add(view, colors, frame.weigh_by_nearness(view))
            seen[number].add(view, np.zeros_like(colors), view.weight)
    known = [one.weight > settings.min_known_px for one in seen]
    common = [np.clip(pull_push(sums.mean, there), 0, 1) for sums, there in zip(mean, known, strict=True)]
    anew = [np.clip(pull_push(sums.mean, there), 0, 1) for sums, there in zip(middle, known, strict=True)]

    # What they miss of the frames is put back, with outliers weighted down for the mean of all.
    for number, width in enumerate(settings.robust_widths, start=1):
        missing, middle, grays = (_TexelSums.make_all(grids) for _ in range(3))
        for frame in clip.iterate_pass(number):
            off, off_anew = frame.compute_residual(common), frame.compute_residual(anew)
            frame.add_robustly(missing, off, width)
            for index, view in enumerate(frame.views):
                middle[index].add(view, off_anew[view.pixels] / view.gain, frame.weigh_by_nearness(view))
                gray, missed = _to_gray(frame.rgb[view.pixels]), _to_gray(off[view.pixels])
                grays[index].add(view, np.column_stack([gray, gray**2, missed**2]), view.trust)
        common, anew = _correct_pictures(common, missing), _correct_pictures(anew, middle)

    # Where the frames agree the common picture is kept, elsewhere that of the middle; it is corrected once more.
    agreement = [
        _measure_agreement(one, gray, there, settings) for one, gray, there in zip(missing, grays, known, strict=True)
    ]
    pictures = [new + a[..., None] * (old - new) for old, new, a in zip(common, anew, agreement, strict=True)]
    for number, width in enumerate(settings.restart_widths, start=1 + len(settings.robust_widths)):
        missing = _TexelSums.make_all(grids)
        for frame in clip.iterate_pass(number):
            frame.add_robustly(missing, frame.compute_residual(pictures), width)
        pictures = _correct_pictures(pictures, missing)

    result = []
    for picture, same, one, a, there in zip(pictures, common, seen, agreement, known, strict=True):
        # Texels that are seen, those between them and around them: what rendering may look at.
        square, visible = np.ones((5, 5), np.uint8), (one.weight > settings.min_weight).astype(np.uint8)
        closed = cv2.morphologyEx(visible, cv2.MORPH_CLOSE, square)
        agreed = float((a * there).sum() / max(1, there.sum()))
        result.append(FusedFrames(picture, same, cv2.dilate(closed, square) > 0, agreed))
    return result


def follows_light(
    frames: FrameSource,
    maps: Maps,
    grids: Sequence[FusionGrid],
    size: tuple[int, int],
    settings: FusionSettings = DEFAULTS,
) -> bool:
    """Tells whether the frames follow the layers' light: whether still pictures under it show them clearly better.

    A part of the frames is compared at a small size. Both errors are those of least squares, texel by texel, in closed
    form.

    Args:
        frames: as for `fuse_frames`.
        maps: the baked maps of the run.
        grids: of the layers' pictures.
        size: (width, height) of the frames.
        settings: how small, how many frames, and how much better.

    Returns:
        True also where the run has no light.
    """
    if not maps.has_gain:
        return True
    scale = settings.light_side_px / max(size)
    width, height = (max(1, round(side * scale)) for side in size)
    small = [FusionGrid(g.layer, g.box, (round(g.size[0] * scale) + 4, round(g.size[1] * scale) + 4)) for g in grids]
    plain, under, light = (_TexelSums.make_all(small) for _ in range(3))
    squares = 0.0
    stride = max(1, maps.frame_count // settings.light_frames)
    for t, frame in enumerate(frames()):
        if t % stride:
            continue
        shown = cv2.resize(frame, (width, height), interpolation=cv2.INTER_AREA).reshape(-1, 3)
        for number, grid in enumerate(small):
            view = _LayerView.read(maps, t, grid, (width, height), True, settings)
            colors = shown[view.pixels]
            plain[number].add(view, colors, view.trust)
            under[number].add(view, colors * view.gain, view.trust)
            light[number].add(view, view.gain**2, view.trust)
            squares += float((view.trust[:, None] * colors**2).sum())
    # sum s (o - g c)^2 = sum s o^2 - (sum s g o)^2 / sum s g^2 at its least.
    without = squares - sum(float((one.mean**2 * one.weight[..., None]).sum()) for one in plain)
    lit = squares - sum(
        float((one.mean**2 / np.maximum(all_.mean, 1e-6) * one.weight[..., None]).sum())
        for one, all_ in zip(under, light, strict=True)
    )
    return lit < (1 - settings.min_light_share) * without


def sample_replicated(
    picture: Float[np.ndarray, "rows columns 3"], positions: Float[np.ndarray, "height width 2"]
) -> Float[np.ndarray, "height width 3"]:
    """Samples a picture bilinearly at positions (0 is the center of the first texel); its edges are replicated."""
    # OpenCV samples four channels exactly, and is quickest at it.
    four = cv2.cvtColor(picture.astype(np.float32), cv2.COLOR_RGB2RGBA)
    found = cv2.remap(four, positions, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return cv2.cvtColor(found, cv2.COLOR_RGBA2RGB)


def compute_texel_positions(
    maps: Maps, t: int, layer: int, size: tuple[int, int], box: Box, grid: tuple[int, int]
) -> Float[np.ndarray, "height width 2"]:
    """Computes the positions of the pixels of a frame in a layer's picture.

    Args:
        maps: the baked maps of the run.
        t: frame of the run.
        layer: its number among the layers of the maps.
        size: (width, height) of the frame.
        box: the part of the canonical plane that the picture covers.
        grid: (width, height) of the picture.

    Returns:
        Positions in texels; zero is the center of the first texel.
    """
    scale = np.array([grid[0] / box.width, grid[1] / box.height], np.float32)
    low = np.array([box.u0, box.v0], np.float32)
    return (maps.read_uv(t, layer, size) - low) * scale - np.float32(0.5)


@dataclass(frozen=True)
class _LayerView:
    """What one frame shows of one layer; arrays have a row for each pixel with enough of the layer.

    Attributes:
        pixels: their numbers in the frame, row by row.
        places: positions of all pixels of the frame in the layer's picture, in texels.
        weight: the layer's share of them.
        surroundings: the layer's share of what is around them, at least `min_surroundings`.
        trust: weight, less near the layer's outline, where a pixel covers many texels, and where it is dark.
        gain: the layer's light.
    """

    pixels: Int[np.ndarray, " n"]
    places: Float[np.ndarray, "height width 2"]
    weight: Float[np.ndarray, " n"]
    surroundings: Float[np.ndarray, " n"]
    trust: Float[np.ndarray, " n"]
    gain: Float[np.ndarray, "n 3"]

    @classmethod
    def read(
        cls, maps: Maps, t: int, grid: FusionGrid, size: tuple[int, int], lit: bool, settings: FusionSettings
    ) -> _LayerView:
        """Reads what frame `t` shows at `size` (width, height)."""
        places = compute_texel_positions(maps, t, grid.layer, size, grid.box, grid.size)
        weight = maps.read_weights(t, size)[grid.layer]
        x, y = places[..., 0], places[..., 1]
        inside = (x > -1) & (x < grid.size[0]) & (y > -1) & (y < grid.size[1])
        pixels = np.flatnonzero((weight > settings.min_weight) & inside)
        side = 2 * max(1, round(settings.outline_share * max(size))) + 1
        around = cv2.blur((weight > 0.5).astype(np.float32), (side, side), borderType=cv2.BORDER_CONSTANT)
        own = weight.reshape(-1)[pixels]
        surroundings = np.maximum(around.reshape(-1)[pixels], settings.min_surroundings)
        right, down = np.gradient(places, axis=1), np.gradient(places, axis=0)
        texels_per_pixel = np.abs(right[..., 0] * down[..., 1] - right[..., 1] * down[..., 0])
        trust = own * surroundings**settings.outline_power / np.maximum(1, texels_per_pixel.reshape(-1)[pixels])
        if lit:
            gain = np.maximum(maps.read_gain(t, grid.layer, size).reshape(-1, 3)[pixels], settings.min_gain)
        else:
            gain = np.ones((len(pixels), 3), np.float32)
        # A color shows as much as there is light on it.
        return cls(pixels, places, own, surroundings, trust * np.einsum("ij,ij->i", gain, gain) / 3, gain)


@dataclass(frozen=True)
class _TexelSums:
    """Weighted colors and weights summed up in the texels of a picture that has one texel more on every side."""

    values: Float[Tensor, "texels 4"]
    size: tuple[int, int]

    @classmethod
    def make_all(cls, grids: Sequence[FusionGrid]) -> list[_TexelSums]:
        """Makes empty sums for each grid."""
        sizes = [grid.size for grid in grids]
        return [cls(torch.zeros((width + 2) * (height + 2), 4), (width, height)) for width, height in sizes]

    def add(self, view: _LayerView, colors: Float[np.ndarray, "n 3"], weight: Float[np.ndarray, " n"]) -> None:
        """Distributes pixels over the four texels around each."""
        places = view.places.reshape(-1, 2)[view.pixels]
        corner = np.floor(places)
        part = places - corner
        row = self.size[0] + 2
        first = torch.from_numpy(((corner[:, 1] + 1) * row + corner[:, 0] + 1).astype(np.int64))
        flat = torch.from_numpy(np.column_stack([colors * weight[:, None], weight]).astype(np.float32))
        for below in (0, 1):
            for right in (0, 1):
                share = np.abs(1 - right - part[:, 0]) * np.abs(1 - below - part[:, 1])
                self.values.index_add_(0, first + (below * row + right), flat * torch.from_numpy(share)[:, None])

    @property
    def _without_margin(self) -> Float[np.ndarray, "height width 4"]:
        return self.values.view(self.size[1] + 2, self.size[0] + 2, 4)[1:-1, 1:-1].numpy()

    @property
    def weight(self) -> Float[np.ndarray, "height width"]:
        return self._without_margin[..., 3]

    @property
    def mean(self) -> Float[np.ndarray, "height width 3"]:
        """The weighted mean; zero where nothing was added."""
        return self._without_margin[..., :3] / np.maximum(self._without_margin[..., 3:], 1e-30)


@dataclass(frozen=True)
class _FrameViews:
    """One frame, with what it shows of each grid.

    Attributes:
        rgb: its pixels, row by row.
        views: one for each grid.
        nearness: to the middle of the clip, at most 1.
        outline_power: by which pixels near a layer's outline count less in a picture of the middle of the clip.
    """

    rgb: Float[np.ndarray, "pixels 3"]
    views: list[_LayerView]
    nearness: float
    outline_power: int

    def compute_residual(self, pictures: Sequence[Float[np.ndarray, "_ _ 3"]]) -> Float[np.ndarray, "pixels 3"]:
        """Computes what pictures of the grids miss of the frame."""
        result = self.rgb.copy()
        for view, picture in zip(self.views, pictures, strict=True):
            shown = sample_replicated(picture, view.places).reshape(-1, 3)[view.pixels]
            result[view.pixels] -= view.weight[:, None] * view.gain * shown
        return result

    def add_robustly(self, sums: Sequence[_TexelSums], residual: Float[np.ndarray, "pixels 3"], width: float) -> None:
        """Adds a residual to the sums of each grid, pixels the less the larger it is (Geman-McClure)."""
        weight = (1 + np.einsum("ij,ij->i", residual, residual) / width**2) ** -2
        for view, one in zip(self.views, sums, strict=True):
            one.add(view, residual[view.pixels] / view.gain, view.trust * weight[view.pixels])

    def weigh_by_nearness(self, view: _LayerView) -> Float[np.ndarray, " n"]:
        """Computes the weight of pixels in a picture of the middle of the clip."""
        return view.trust * self.nearness * view.surroundings**self.outline_power


@dataclass(frozen=True)
class _EditedClip:
    """The edited frames and the layers that they show; fields are the arguments of `fuse_frames`."""

    frames: FrameSource
    maps: Maps
    grids: Sequence[FusionGrid]
    size: tuple[int, int]
    lit: bool
    progress: ReportFrames
    settings: FusionSettings

    def iterate_pass(self, number: int) -> Iterator[_FrameViews]:
        """Yields all frames for pass `number` (from 0), and reports how many are done."""
        count, settings = self.maps.frame_count, self.settings
        passes = 1 + len(settings.robust_widths) + len(settings.restart_widths)
        for t, frame in enumerate(self.frames()):
            views = [_LayerView.read(self.maps, t, grid, self.size, self.lit, settings) for grid in self.grids]
            nearness = (1.0 + abs(t - count // 2)) ** -settings.middle_power
            yield _FrameViews(frame.reshape(-1, 3), views, nearness, settings.middle_outline_power)
            self.progress(number * count + t + 1, passes * count)


def _to_gray(rgb: Float[np.ndarray, "n 3"]) -> Float[np.ndarray, " n"]:
    return rgb @ np.full(3, 1 / 3, np.float32)


def _correct_pictures(
    pictures: Sequence[Float[np.ndarray, "_ _ 3"]], missing: Sequence[_TexelSums]
) -> list[Float[np.ndarray, "_ _ 3"]]:
    return [np.clip(picture + one.mean, 0, 1) for picture, one in zip(pictures, missing, strict=True)]


def _measure_agreement(
    missing: _TexelSums, grays: _TexelSums, known: Bool[np.ndarray, "h w"], settings: FusionSettings
) -> Float[np.ndarray, "h w"]:
    """Measures how far frames agree in a texel and around it, 0 to 1.

    Args:
        missing: what the picture misses, by how much pixels are within the width.
        grays: the frames' gray, its square, and the square of what is missing, by how much pixels count at all.
        known: texels with a color of their own.
        settings: when frames agree.
    """
    there, sigma = known.astype(np.float32)[..., None], settings.agreement_sigma_share * max(known.shape)
    share = (missing.weight / np.maximum(grays.weight, 1e-30))[..., None]
    blurred = cv2.GaussianBlur(np.concatenate([share * there, grays.mean * there, there], axis=-1), (0, 0), sigma)
    share, gray, square, off = np.moveaxis(blurred[..., :4] / np.maximum(blurred[..., 4:], 1e-6), -1, 0)
    explained = 1 - off / (np.maximum(square - gray**2, 0) + settings.plain_deviation**2)
    return np.maximum(_ramp_up(share, settings.majority_share), _ramp_up(explained, settings.explained_share))


def _ramp_up(values: Float[np.ndarray, "h w"], ends: tuple[float, float]) -> Float[np.ndarray, "h w"]:
    return np.clip((values - ends[0]) / (ends[1] - ends[0]), 0, 1).astype(np.float32)
