"""Fuses all frames of an edited video into one picture per layer: streamed, robust, and as sharp as the frames.

Each layer's picture starts as the mean of the frames. Then the residual is added back a few times (iterative
back-projection, Irani and Peleg, 1991); a pixel weighs less the larger its residual is (Geman-McClure, with a width
that narrows: Black and Rangarajan, "On the Unification of Line Processes, Outlier Rejection, and Robust Statistics",
1996), so that a frame that disagrees with the others leaves no trace. Pixels that show several layers correct each of
them by its share.

Where the frames have nothing in common, for example where brush strokes swim, their mean is a blur. There the picture
restarts from the frames around the middle of the clip and keeps what agrees with them.

One frame is in memory at a time. Every pass reads all frames.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Bool, Float, Int

from neural_fields.atlas.paint_lifting import DEFAULTS as LIFTING
from neural_fields.atlas.uv_maps import Maps
from neural_fields.core.box import Box
from neural_fields.core.progress import Progress, ProgressReporter
from neural_fields.imaging.push_pull import pull_push


@dataclass(frozen=True)
class FusionSettings:
    """Settings of the fusion of edited frames."""

    min_weight: float = 0.02  # a pixel with less of a layer is ignored for that layer
    min_known_px: float = 0.3  # a texel that more pixels show than this has a known color
    robust_widths: tuple[float, ...] = (0.4, 0.3, 0.2)  # widths of the robust weight in units of color, per pass
    # Those of the passes after the frames that do not agree were set aside.
    restart_widths: tuple[float, ...] = (0.1, 0.1)
    middle_power: int = 6  # exponent that reduces the weight of frames far from the middle, in a restart
    # Frames agree where most of their weight is within the width, or where the picture explains most of what they show
    # around a texel; below the first figure not at all, from the second on fully.
    majority_share: tuple[float, float] = (0.6, 0.75)
    explained_share: tuple[float, float] = (0.3, 0.6)
    plain_deviation: float = 0.03  # standard deviation of colors below which there is nothing to explain
    agreement_sigma_share: float = 1 / 120  # sigma of a Gaussian, as a share of the picture's longer side
    outline_share: float = 0.03  # share of the frame's longer side within which edits often draw outlines
    outline_power: int = 4  # exponent that reduces the weight of pixels there
    middle_outline_power: int = 16  # the same in a restart from the middle, which uses few frames
    light_side_px: int = 160  # longer side of the frames on which lighting is measured
    light_frames: int = 24  # largest number of frames on which lighting is measured
    min_light_share: float = 0.35  # share of the residual of still pictures that the lighting must explain


DEFAULTS = FusionSettings()


@dataclass(frozen=True)
class FusionGrid:
    """Describes the texel grid of the fused picture of one layer.

    Attributes:
        layer: index of the layer in the maps.
        box: the part of the canonical plane that the picture covers.
        size: (width, height) of the picture in texels.
    """

    layer: int
    box: Box
    size: tuple[int, int]


@dataclass(frozen=True)
class FusedFrames:
    """Holds the fused picture of a layer.

    Attributes:
        color: RGB in [0, 1] without the layer's lighting; defined where frames show the layer, and around it.
        shared_color: the same, but averaged over all frames where they disagree: steadier and softer.
        visible_mask: texels that frames show, and the texels between them.
        agreement: the share of the visible texels on which the frames agree, in [0, 1].
    """

    color: Float[np.ndarray, "height width 3"]
    shared_color: Float[np.ndarray, "height width 3"]
    visible_mask: Bool[np.ndarray, "height width"]
    agreement: float


FrameSource = Callable[[], Iterable[Float[np.ndarray, "height width 3"]]]  # what the layers shall show, frame by frame


def fuse_frames(
    frames: FrameSource,
    maps: Maps,
    grids: Sequence[FusionGrid],
    size: tuple[int, int],
    has_light: bool,
    report: ProgressReporter,
    settings: FusionSettings = DEFAULTS,
) -> list[FusedFrames]:
    """Fuses frames into one picture per layer; together the pictures reproduce all frames as well as possible.

    Args:
        frames: returns an iterator over the frames of the run, from the first; called once per pass. RGB in [0, 1]; in
            pixels that other layers share, only the contribution of the layers of `grids`.
        maps: the baked maps of the run.
        grids: the grids of the pictures to make.
        size: (width, height) of the frames in pixels.
        has_light: whether the layers' lighting is applied to the pictures.
        report: called with the number of frames done, over all passes.
        settings: which pixels count, and when frames agree.

    Returns:
        One picture for each of `grids`.
    """
    clip = _EditedClip(frames, maps, grids, size, has_light, report, settings)

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
    """Tells whether the frames follow the layers' lighting: whether pictures under it fit the frames clearly better.

    A subset of the frames is compared at a small size. Both errors are least-squares errors in closed form, per texel.

    Args:
        frames: as for `fuse_frames`.
        maps: the baked maps of the run.
        grids: the grids of the layers' pictures.
        size: (width, height) of the frames in pixels.
        settings: the size, the number of frames, and the improvement that is required.

    Returns:
        True if they do, and also if the run has no lighting.
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
    """Samples a picture bilinearly and replicates its edges.

    Args:
        picture: the picture, float32.
        positions: (x, y) in texels; (0, 0) is the center of the first texel.
    """
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
        t: index of the frame in the run.
        layer: index of the layer in the maps.
        size: (width, height) of the frame in pixels.
        box: the part of the canonical plane that the picture covers.
        grid: (width, height) of the picture in texels.

    Returns:
        Positions (x, y) in texels; (0, 0) is the center of the first texel.
    """
    scale = np.array([grid[0] / box.width, grid[1] / box.height], np.float32)
    low = np.array([box.u0, box.v0], np.float32)
    return (maps.read_uv(t, layer, size) - low) * scale - np.float32(0.5)


@dataclass(frozen=True)
class _LayerView:
    """Holds one frame's view of one layer; arrays have a row for each pixel that shows enough of the layer.

    Attributes:
        pixels: indices of these pixels in the frame, row by row.
        places: positions of all pixels of the frame in the layer's picture, in texels.
        weight: the layer's share of each pixel.
        surroundings: the layer's share of the neighborhood of each pixel, at least 1/20.
        trust: the weight, reduced near the layer's outline, where a pixel covers many texels, and where it is dark.
        gain: the layer's lighting.
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
        """Reads the view of a layer in a frame.

        Args:
            maps: the baked maps of the run.
            t: index of the frame in the run.
            grid: the grid of the layer's picture.
            size: (width, height) of the frame in pixels.
            lit: whether the layer's lighting is applied.
            settings: which pixels count.
        """
        places = compute_texel_positions(maps, t, grid.layer, size, grid.box, grid.size)
        weight = maps.read_weights(t, size)[grid.layer]
        x, y = places[..., 0], places[..., 1]
        inside = (x > -1) & (x < grid.size[0]) & (y > -1) & (y < grid.size[1])
        pixels = np.flatnonzero((weight > settings.min_weight) & inside)
        side = 2 * max(1, round(settings.outline_share * max(size))) + 1
        around = cv2.blur((weight > 0.5).astype(np.float32), (side, side), borderType=cv2.BORDER_CONSTANT)
        own = weight.reshape(-1)[pixels]
        surroundings = np.maximum(around.reshape(-1)[pixels], 0.05)  # a layer too thin for any has its colors too
        right, down = np.gradient(places, axis=1), np.gradient(places, axis=0)
        texels_per_pixel = np.abs(right[..., 0] * down[..., 1] - right[..., 1] * down[..., 0])
        trust = own * surroundings**settings.outline_power / np.maximum(1, texels_per_pixel.reshape(-1)[pixels])
        if lit:
            gain = np.maximum(maps.read_gain(t, grid.layer, size).reshape(-1, 3)[pixels], LIFTING.min_gain)
        else:
            gain = np.ones((len(pixels), 3), np.float32)
        # A color shows as much as there is light on it.
        return cls(pixels, places, own, surroundings, trust * np.einsum("ij,ij->i", gain, gain) / 3, gain)


@dataclass(frozen=True)
class _TexelSums:
    """Sums weighted colors and weights in the texels of a picture that is padded by one texel on every side."""

    values: Float[np.ndarray, "texels 4"]
    size: tuple[int, int]

    @classmethod
    def make_all(cls, grids: Sequence[FusionGrid]) -> list[_TexelSums]:
        """Makes empty sums for each grid."""
        sizes = [grid.size for grid in grids]
        return [cls(np.zeros(((width + 2) * (height + 2), 4), np.float32), (width, height)) for width, height in sizes]

    def add(self, view: _LayerView, colors: Float[np.ndarray, "n 3"], weight: Float[np.ndarray, " n"]) -> None:
        """Splats each pixel onto the four texels around it.

        Args:
            view: the pixels and their places.
            colors: color of each pixel.
            weight: weight of each pixel.
        """
        import torch  # many times as fast as NumPy's sums by index

        places = view.places.reshape(-1, 2)[view.pixels]
        corner = np.floor(places)
        part = places - corner
        row = self.size[0] + 2
        first = torch.from_numpy(((corner[:, 1] + 1) * row + corner[:, 0] + 1).astype(np.int64))
        flat = torch.from_numpy(np.column_stack([colors * weight[:, None], weight]).astype(np.float32))
        values = torch.from_numpy(self.values)
        for below in (0, 1):
            for right in (0, 1):
                share = np.abs(1 - right - part[:, 0]) * np.abs(1 - below - part[:, 1])
                values.index_add_(0, first + (below * row + right), flat * torch.from_numpy(share)[:, None])

    @property
    def _without_margin(self) -> Float[np.ndarray, "height width 4"]:
        return self.values.reshape(self.size[1] + 2, self.size[0] + 2, 4)[1:-1, 1:-1]

    @property
    def weight(self) -> Float[np.ndarray, "height width"]:
        return self._without_margin[..., 3]

    @property
    def mean(self) -> Float[np.ndarray, "height width 3"]:
        """The weighted mean; zero where nothing was added."""
        return self._without_margin[..., :3] / np.maximum(self._without_margin[..., 3:], 1e-30)


@dataclass(frozen=True)
class _FrameViews:
    """Holds one frame, with its view of the layer of each grid.

    Attributes:
        rgb: pixels of the frame, row by row.
        views: one view per grid.
        nearness: nearness of the frame to the middle of the clip, at most 1.
        outline_power: exponent that reduces the weight of pixels near a layer's outline in the restart.
    """

    rgb: Float[np.ndarray, "pixels 3"]
    views: list[_LayerView]
    nearness: float
    outline_power: int

    def compute_residual(self, pictures: Sequence[Float[np.ndarray, "_ _ 3"]]) -> Float[np.ndarray, "pixels 3"]:
        """Computes the difference between the frame and its reproduction by pictures of the grids."""
        result = self.rgb.copy()
        for view, picture in zip(self.views, pictures, strict=True):
            shown = sample_replicated(picture, view.places).reshape(-1, 3)[view.pixels]
            result[view.pixels] -= view.weight[:, None] * view.gain * shown
        return result

    def add_robustly(self, sums: Sequence[_TexelSums], residual: Float[np.ndarray, "pixels 3"], width: float) -> None:
        """Adds a residual to the sums of each grid; larger residuals weigh less (Geman-McClure).

        Args:
            sums: the sums of each grid.
            residual: what the pictures miss of each pixel.
            width: size of a residual, in units of color, that weighs a quarter.
        """
        weight = (1 + np.einsum("ij,ij->i", residual, residual) / width**2) ** -2
        for view, one in zip(self.views, sums, strict=True):
            one.add(view, residual[view.pixels] / view.gain, view.trust * weight[view.pixels])

    def weigh_by_nearness(self, view: _LayerView) -> Float[np.ndarray, " n"]:
        """Computes the weights of pixels in the restart from the middle of the clip."""
        return view.trust * self.nearness * view.surroundings**self.outline_power


@dataclass(frozen=True)
class _EditedClip:
    """Holds the edited frames and the layers that they show; the fields are the arguments of `fuse_frames`."""

    frames: FrameSource
    maps: Maps
    grids: Sequence[FusionGrid]
    size: tuple[int, int]
    lit: bool
    report: ProgressReporter
    settings: FusionSettings

    def iterate_pass(self, number: int) -> Iterator[_FrameViews]:
        """Yields all frames for pass `number` (from 0), and reports how many are done."""
        count, settings = self.maps.frame_count, self.settings
        passes = 1 + len(settings.robust_widths) + len(settings.restart_widths)
        for t, frame in enumerate(self.frames()):
            views = [_LayerView.read(self.maps, t, grid, self.size, self.lit, settings) for grid in self.grids]
            nearness = (1.0 + abs(t - count // 2)) ** -settings.middle_power
            yield _FrameViews(frame.reshape(-1, 3), views, nearness, settings.middle_outline_power)
            self.report(Progress("fusing", number * count + t + 1, passes * count))


def _to_gray(rgb: Float[np.ndarray, "n 3"]) -> Float[np.ndarray, " n"]:
    return rgb @ np.full(3, 1 / 3, np.float32)


def _correct_pictures(
    pictures: Sequence[Float[np.ndarray, "_ _ 3"]], missing: Sequence[_TexelSums]
) -> list[Float[np.ndarray, "_ _ 3"]]:
    return [np.clip(picture + one.mean, 0, 1) for picture, one in zip(pictures, missing, strict=True)]


def _measure_agreement(
    missing: _TexelSums, grays: _TexelSums, known: Bool[np.ndarray, "h w"], settings: FusionSettings
) -> Float[np.ndarray, "h w"]:
    """Measures how well the frames agree in and around each texel, from 0 to 1.

    Args:
        missing: sums of the residual, with robust weights.
        grays: sums of the frames' gray, its square and the squared residual, with plain weights.
        known: texels that frames show.
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
