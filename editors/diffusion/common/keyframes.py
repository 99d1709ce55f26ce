"""Keyframes: a few frames that together show the layers to edit, as pictures of the size at which a model works.

Diffusion models handle frames better than canonical pictures, which may be stretched (StableVideo, Chai et al., ICCV
2023, 3.2). So some methods edit pictures cropped from frames, all of one size, with the canonical coordinates of each
pixel. `keyframe_fusion.py` makes overlays of the edited keyframes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import avg_pool2d

from editors.core.source import EditSource
from editors.diffusion.backend.settings import DiffusionEditor
from editors.diffusion.common.attention import find_canonical_paths
from editors.diffusion.common.canvas import DEFAULTS as CANVASES
from editors.diffusion.common.canvas import Canvas, open_canvas
from editors.inputs.merging import TexelFootprints
from editors.inputs.merging_settings import DEFAULTS as MERGING
from editors.options.keyframes import KeyframeOptions
from neural_fields.core import coords
from neural_fields.core.errors import bad_input
from neural_fields.imaging.alpha import resize_image
from neural_fields.imaging.resampling import RIM, warp_part
from neural_fields.rendering.render_planar import open_passes

Cut = tuple[slice, slice]  # rows and columns


@dataclass(frozen=True)
class KeyframeSelectionSettings:
    """Settings of choosing keyframes and of cutting them out."""

    min_weight: float = 0.5  # least weight of the layer in a pixel that shows it
    max_candidates: int = 48  # largest number of frames from which keyframes are chosen
    grid_cells: int = 48  # along each side of a canonical picture; coverage is counted in such cells
    min_gain_share: float = 0.02  # least share of the region that a further keyframe must add
    min_pixel_spacing: float = 1e-4  # in units of uv, between pixels of a canvas


DEFAULTS = KeyframeSelectionSettings()


@dataclass(frozen=True, kw_only=True)
class KeyframeEditor(KeyframeOptions, DiffusionEditor):
    """Defines the base of editors that work on keyframes, with the settings that they share."""

    def choose_frames(self, source: EditSource) -> list[int]:
        """Chooses the frames to edit, or takes those that the user named.

        Args:
            source: the run, and the layers to edit.

        Returns:
            Indices of frames in the run.

        Raises:
            UserError: frames that the run does not have (exit 3).
        """
        return parse_frame_numbers(source, self.keyframes) if self.keyframes else choose_keyframes(source, self.count)


@dataclass(frozen=True)
class LayerKeyframes:
    """Holds the view of the keyframes on one layer.

    Attributes:
        canvas: the layer's region, with the pixel spacing of the keyframes.
        region: the editable region on the canvas that the video shows, in [0, 1].
        uv: canonical coordinates of the keyframes' pixels, in uv units.
        weight: the layer's share of each pixel within its region, in [0, 1].
        gain: lighting of the layer, a factor of its color.
    """

    canvas: Canvas
    region: Float[Tensor, "rows columns"]
    uv: Float[Tensor, "n height width 2"]
    weight: Float[Tensor, "n height width"]
    gain: Float[Tensor, "n 3 height width"]

    def locate_pixels(self, shrink: int = 1, settings: KeyframeSelectionSettings = DEFAULTS) -> TexelFootprints:
        """Computes the positions of the keyframes' pixels on the canvas.

        Pixels that show little of the layer have no weight.

        Args:
            shrink: side in pixels of the squares to locate instead, on a canvas that is smaller by this factor.
            settings: least weight of the layer in a pixel.
        """
        uv = avg_pool2d(self.uv.movedim(3, 1), shrink).movedim(1, 3)
        weight = avg_pool2d(self.weight[:, None], shrink)[:, 0]
        size = (self.canvas.size[0] // shrink, self.canvas.size[1] // shrink)
        texels = coords.uv_to_texels(uv, self.canvas.box, *size)
        return TexelFootprints(texels, torch.where(weight >= settings.min_weight, weight, 0.0), size)


@dataclass(frozen=True)
class Keyframes:
    """Holds pictures cropped from frames, with the canonical coordinates of each layer in them.

    Attributes:
        frames: indices of the frames in the run, 0 is the first.
        images: RGB in [0, 1], with the active edits.
        layers: the layers to edit, by name.
        canonical_positions: canonical coordinates of each pixel in the layer that it shows most, and the index of that
            layer.
        source_frames: numbers of the same frames in the source.
    """

    frames: tuple[int, ...]
    images: Float[Tensor, "n 3 height width"]
    layers: Mapping[str, LayerKeyframes]
    canonical_positions: Float[Tensor, "n height width 3"]
    source_frames: tuple[int, ...]

    def __getitem__(self, chosen: slice) -> Keyframes:
        """Selects some of the keyframes."""
        parts = {
            layer: replace(part, uv=part.uv[chosen], weight=part.weight[chosen], gain=part.gain[chosen])
            for layer, part in self.layers.items()
        }
        return Keyframes(
            self.frames[chosen],
            self.images[chosen],
            parts,
            self.canonical_positions[chosen],
            self.source_frames[chosen],
        )

    @property
    def change_mask(self) -> Float[Tensor, "n 1 height width"]:
        """The pixels that may change, in [0, 1]: those that show a layer in its region."""
        return torch.stack([part.weight for part in self.layers.values()]).sum(dim=0)[:, None].clamp(0, 1)

    def locate_pixels(self, shrink: int, device: torch.device) -> list[TexelFootprints]:
        """Computes the positions of pixels or latents on the canvas of each layer.

        Args:
            shrink: pixels per latent along a side; 1 for pixels.
            device: device of the result.
        """
        return [part.locate_pixels(shrink).to(device) for part in self.layers.values()]

    def find_token_paths(self, shrink: int) -> dict[int, Int[Tensor, "n tokens n"]]:
        """Finds the tokens that show the same point, for cross-frame attention, by the number of tokens per picture."""
        paths_by_count = {}
        height, width = self.images.shape[2:]
        for factor in (shrink, 2 * shrink, 4 * shrink, 8 * shrink):
            if height % factor == 0 and width % factor == 0:
                each = [part.locate_pixels(factor) for part in self.layers.values()]
                paths = [find_canonical_paths(p.texels.numpy(), p.weight.numpy() > 0) for p in each]
                paths_by_count[(height // factor) * (width // factor)] = torch.stack(paths).amax(dim=0)
        return paths_by_count


def open_keyframes(
    source: EditSource,
    numbers: Sequence[int],
    side: int,
    multiple: int,
    feather: float = 0.0,
    settings: KeyframeSelectionSettings = DEFAULTS,
) -> Keyframes:
    """Crops pictures of one size around the layers to edit from some frames.

    Args:
        source: the run, and the layers to edit.
        numbers: indices of frames in the run, 0 is the first. Frames that do not show the region are left out.
        side: approximate longer side of the pictures, in pixels.
        multiple: both sides are multiples of this, in pixels.
        feather: pixels over which overlays fade in.
        settings: thresholds of keyframes.

    Raises:
        UserError: none of the frames shows the region (exit 3).
    """
    source_numbers, frame_size = source.run.frames, source.run.source_size
    regions = {layer: _restrict_to_charts(source, layer, numbers) for layer in source.layers}

    # The bounding box (left, top, right, bottom) of the regions in each frame that shows some of them.
    x_scale, y_scale = frame_size[0] / source.maps.size[0], frame_size[1] / source.maps.size[1]
    boxes = {}
    for t in numbers:
        masks = [_compute_visibility(source, layer, region, t, settings) for layer, region in regions.items()]
        left, top, width, height = cv2.boundingRect(np.any(masks, axis=0).astype(np.uint8))
        if width:
            boxes[t] = (left * x_scale, top * y_scale, (left + width) * x_scale, (top + height) * y_scale)
    if not boxes:
        raise bad_input(
            "none of the keyframes shows what is to be edited",
            why=f"{', '.join(source.layers)}, where it may be edited, does not appear in them",
            fix="leave --keyframes out: frames that show it are chosen then",
        )

    whole, cuts = _plan_cuts(list(boxes.values()), frame_size, side, multiple)
    views = list(zip(boxes, cuts, strict=True))
    renderer = open_passes(source.run)
    images, tokens = [], []
    for t, cut in views:
        frame = renderer.render_frame(t, source.read_frame(t))
        pixels = frame.astype(np.float32) / 255
        if whole[0] <= frame.shape[1]:
            images.append(np.ascontiguousarray(resize_image(pixels, whole)[cut]).clip(0, 1))
        else:  # only the cut part of an enlarged frame is computed
            images.append(warp_part(pixels, (RIM, RIM), (frame.shape[1], frame.shape[0]), whole, cut))
    parts = {
        layer: _cut_layer(source, layer, region, views, whole, multiple, feather, settings)
        for layer, region in regions.items()
    }

    # The canonical coordinates of each pixel in the layer that it shows most, and the number of that layer.
    layer_numbers = range(len(source.maps.layers))
    for t, cut in views:
        weight = np.stack([source.maps.read_layer_weight(t, index, whole, cut) for index in layer_numbers])
        uv = np.stack([source.maps.read_uv_part(t, index, whole, cut) for index in layer_numbers])
        top_layer = weight.argmax(axis=0)
        top_uv = np.take_along_axis(uv, top_layer[None, ..., None], axis=0)[0]
        tokens.append(np.concatenate([top_uv, top_layer[..., None]], axis=-1).astype(np.float32))
    return Keyframes(
        tuple(boxes),
        torch.from_numpy(np.stack(images)).movedim(3, 1).contiguous(),
        parts,
        torch.from_numpy(np.stack(tokens)),
        tuple(source_numbers[t] for t in boxes),
    )


def parse_frame_numbers(source: EditSource, text: str) -> list[int]:
    """Parses a list of source frames such as "3,10,20".

    Args:
        source: the run.
        text: numbers of frames in the source, separated by commas.

    Returns:
        Indices of the frames in the run.

    Raises:
        UserError: a word that is not a number, or a frame that the run does not have (exit 3).
    """
    run_frames = source.run.frames
    indices = []
    for word in (word.strip() for word in text.split(",")):
        if not word.isdecimal():
            raise bad_input(f"{word!r} in --keyframes is no number of a frame", fix=f"--keyframes {run_frames[0]}")
        indices.append(source.run.require_frame(int(word), "--keyframes"))
    return list(dict.fromkeys(indices))


def choose_keyframes(source: EditSource, max_count: int, settings: KeyframeSelectionSettings = DEFAULTS) -> list[int]:
    """Chooses frames of the run that together show the layers' regions; see `cover_cells`.

    Args:
        source: the run, and the layers to edit.
        max_count: largest number of frames.
        settings: thresholds of keyframes.

    Returns:
        Indices of frames in the run.
    """
    candidates, cells = _find_shown_cells(source, settings)
    return [candidates[i] for i in cover_cells(cells, max_count, settings)]


def choose_keyframes_evenly(
    source: EditSource, max_count: int, settings: KeyframeSelectionSettings = DEFAULTS
) -> list[int]:
    """Chooses frames of the run, spread evenly over those that show any of the layers' regions.

    Args:
        source: the run, and the layers to edit.
        max_count: largest number of frames.
        settings: thresholds of keyframes.

    Returns:
        Indices of frames in the run, in ascending order.
    """
    candidates, cells = _find_shown_cells(source, settings)
    shown = [t for t, row in zip(candidates, cells, strict=True) if row.any()] or candidates[:1]
    return [shown[i] for i in sorted({round(i) for i in np.linspace(0, len(shown) - 1, min(max_count, len(shown)))})]


def cover_cells(
    shown: Bool[np.ndarray, "frames cells"], max_count: int, settings: KeyframeSelectionSettings = DEFAULTS
) -> list[int]:
    """Picks frames that together show most cells: first the one that shows most, then those that add most.

    If fewer frames suffice than a majority vote needs, frames are added that show many cells and are far away in time.

    Args:
        shown: which cells each frame shows.
        max_count: largest number of frames.
        settings: least gain of a further frame.

    Returns:
        Indices of frames, ordered so that each shares most cells with those before it.

    Example:
        >>> shown = np.array([[1, 1, 0, 0, 0], [1, 1, 1, 0, 0], [0, 0, 1, 1, 1], [0, 0, 0, 0, 1]], bool)
        >>> cover_cells(shown, max_count=2)
        [1, 2]
    """
    picked: list[int] = []
    covered = np.zeros(shown.shape[1], bool)
    while len(picked) < min(max_count, len(shown)):
        gains = (shown & ~covered).sum(axis=1)
        best = int(np.argmax(gains))
        if picked and gains[best] <= settings.min_gain_share * shown.any(axis=0).sum():
            if len(picked) >= MERGING.min_votes:
                break
            apart = np.abs(np.arange(len(shown))[:, None] - picked).min(axis=1)
            best = int(np.argmax(apart * shown.sum(axis=1)))
            if not apart[best]:
                break
        picked.append(best)
        covered |= shown[best]
    order, rest = picked[:1], picked[1:]
    while rest:
        before = shown[order].any(axis=0)
        rest.sort(key=lambda i: (-int((shown[i] & before).sum()), i))
        order.append(rest.pop(0))
    return order


def _sample_region(
    source: EditSource, layer: str, region: Float[np.ndarray, "rows columns"], uv: Float[np.ndarray, "h w 2"]
) -> Float[np.ndarray, "h w"]:
    """Samples a layer's region at the pixels of a frame."""
    image = torch.from_numpy(np.ascontiguousarray(region, np.float32))[None, None]
    return coords.sample_canonical(image, source.pictures[layer].box, torch.from_numpy(uv)[None], "zeros")[0, 0].numpy()


def _restrict_to_charts(source: EditSource, layer: str, numbers: Sequence[int]) -> Float[np.ndarray, "rows columns"]:
    """Restricts a layer's region to the charts of the given frames; the edit is propagated to the others later."""
    region, picture = source.read_region(layer), source.pictures[layer]
    charts = [chart for series in source.maps.charts for chart in series if chart.layer == layer]
    if not charts:
        return region
    uv = coords.texel_centers(picture.box, *picture.size).numpy()
    kept = np.zeros_like(region)
    for chart in charts:
        if any(chart.first <= t <= chart.last for t in numbers):
            box = chart.box
            kept[(uv >= [box.u0, box.v0]).all(axis=-1) & (uv <= [box.u1, box.v1]).all(axis=-1)] = 1
    return region * kept


def _compute_visibility(
    source: EditSource, layer: str, region: np.ndarray, t: int, settings: KeyframeSelectionSettings
) -> Bool[np.ndarray, "h w"]:
    """Computes which pixels of a frame show a layer's region, at the training size."""
    index = source.maps.layers.index(layer)
    uv = np.ascontiguousarray(source.maps.read_uv_small(t, index))
    shows_layer = source.maps.read_layer_weight_small(t, index) >= settings.min_weight
    return shows_layer & (_sample_region(source, layer, region, uv) >= settings.min_weight)


def _find_shown_cells(
    source: EditSource, settings: KeyframeSelectionSettings
) -> tuple[list[int], Bool[np.ndarray, "frames cells"]]:
    """Finds candidate keyframes, and the cells of the layers' canonical pictures that each of them shows."""
    count = source.maps.frame_count
    candidates = sorted({round(i) for i in np.linspace(0, count - 1, min(count, settings.max_candidates))})
    regions = {layer: source.read_region(layer) for layer in source.layers}
    n = settings.grid_cells
    shown = np.zeros((len(candidates), len(regions), n, n), bool)
    for row, t in enumerate(candidates):
        for column, (layer, region) in enumerate(regions.items()):
            box = source.pictures[layer].box
            visible = _compute_visibility(source, layer, region, t, settings)
            uv = source.maps.read_uv_small(t, source.maps.layers.index(layer))[visible]
            x = ((uv[:, 0] - box.u0) / box.width * n).astype(np.int64).clip(0, n - 1)
            y = ((uv[:, 1] - box.v0) / box.height * n).astype(np.int64).clip(0, n - 1)
            shown[row, column, y, x] = True
    return candidates, shown.reshape(len(candidates), -1)


def _plan_cuts(
    boxes: Sequence[tuple[float, float, float, float]], size: tuple[int, int], side: int, multiple: int
) -> tuple[tuple[int, int], list[Cut]]:
    """Computes the size to which frames are scaled, and the crop of each, `side` pixels long."""
    spans = [max(box[axis + 2] - box[axis] for box in boxes) for axis in (0, 1)]
    margin = 2 * CANVASES.margin_share * max(spans)  # on both sides
    spans = [min(full, span + margin) for span, full in zip(spans, size, strict=True)]
    scale = side / max(spans)
    whole = [max(multiple, multiple * round(full * scale / multiple)) for full in size]
    sides = [
        min(full, max(multiple, multiple * round(span * scale / multiple)))
        for span, full in zip(spans, whole, strict=True)
    ]
    cuts = []
    for box in boxes:
        starts = []
        for axis in (0, 1):
            center = (box[axis] + box[axis + 2]) / 2 / size[axis] * whole[axis]
            starts.append(min(max(0, round(center - sides[axis] / 2)), whole[axis] - sides[axis]))
        cuts.append((slice(starts[1], starts[1] + sides[1]), slice(starts[0], starts[0] + sides[0])))
    return (whole[0], whole[1]), cuts


def _cut_layer(
    source: EditSource,
    layer: str,
    region: Float[np.ndarray, "rows columns"],
    views: Sequence[tuple[int, Cut]],
    whole: tuple[int, int],
    multiple: int,
    feather: float,
    settings: KeyframeSelectionSettings,
) -> LayerKeyframes:
    """Crops a layer's uv maps, weights and gains from the keyframes, and opens its canvas."""
    maps, index = source.maps, source.maps.layers.index(layer)
    uv = np.stack([maps.read_uv_part(t, index, whole, cut) for t, cut in views])
    editable = np.stack([_sample_region(source, layer, region, one) for one in uv])
    weight = np.stack([maps.read_layer_weight(t, index, whole, cut) for t, cut in views]) * editable
    gain = np.stack([maps.read_gain(t, index, whole, cut) for t, cut in views])

    # A canvas around the region, with pixels as far apart in uv as neighboring pixels of the keyframes usually are.
    both = (weight[:, :, 1:] >= settings.min_weight) & (weight[:, :, :-1] >= settings.min_weight)
    steps = np.linalg.norm(np.diff(uv, axis=2), axis=-1)[both]
    spacing = max(settings.min_pixel_spacing, float(np.median(steps))) if len(steps) else 2 / uv.shape[2]
    picture = source.pictures[layer]
    extent = open_canvas(picture, region, 8 * multiple, multiple).box
    side = multiple * max(1, round(max(extent.width, extent.height) / spacing / multiple))
    canvas = open_canvas(picture, region, side, multiple, feather)
    return LayerKeyframes(
        canvas,
        canvas.crop_picture(np.ascontiguousarray(region[..., None]), picture.box)[0, 0],
        torch.from_numpy(uv),
        torch.from_numpy(weight.astype(np.float32)),
        torch.from_numpy(gain).movedim(3, 1).contiguous(),
    )
