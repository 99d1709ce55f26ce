"""Keyframes: a few frames that together show the layers to edit, as pictures of the size that a model works at.

Diffusion models know frames better than canonical pictures, which may be stretched (StableVideo, Chai et al., ICCV
2023, 3.2). So methods here edit pictures cut from frames, all of one size, of which each pixel knows where it lies in
the canonical pictures of the layers. `fusing.py` makes overlays of the edited ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor
from torch.nn.functional import avg_pool2d

from editors.base import Source
from editors.diffusion.attention import canonical_paths
from editors.diffusion.canvas import MARGIN, Canvas, open_canvas
from editors.diffusion.settings import Prompted, wrong_setting
from editors.lift import ROBUST, Places
from neural_fields import coords
from neural_fields.coords import Box
from neural_fields.errors import bad_input
from neural_fields.lookup import RIM, warped
from neural_fields.output import open_renderer, source_facts
from neural_fields.pictures import resize

SHOWN = 0.5  # a pixel with less of the layer shows something else: it says nothing of the layer's texels
CANDIDATES = 48  # frames that keyframes are chosen from
COARSE = 48  # cells along each side of a canonical picture, by which is counted what frames show
ENOUGH = 0.02  # of the region: a further keyframe that adds no more than this is not worth its time

Cut = tuple[slice, slice]  # rows and columns


@dataclass(frozen=True, kw_only=True)
class Keyed(Prompted):
    """What editors share that work on keyframes."""

    keyframes: str = ""
    """Frames of the source to edit, such as 3,10,20 (default: frames that together show what is to be edited)."""
    count: int = 4
    """How many frames are chosen at most where none are named."""
    strength: float = 1.0
    """How much of the picture is lost to noise first, in (0, 1]; 1 keeps nothing of it."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.count < 1:
            raise wrong_setting("count", self.count, "at least one keyframe is needed", "--count 4")
        if not 0 < self.strength <= 1:
            raise wrong_setting("strength", self.strength, "it is above 0 and at most 1", "--strength 0.8")

    def numbers(self, source: Source) -> list[int]:
        """The frames of the run to edit: those named, or chosen ones.

        Raises:
            UserError: frames that the run does not have (exit 3).
        """
        return frame_numbers(source, self.keyframes) if self.keyframes else choose(source, self.count)


@dataclass(frozen=True)
class Part:
    """One layer as the keyframes show it.

    Attributes:
        canvas: the layer's region, with pixels as far apart as those of the keyframes.
        region: where the edit may go on the canvas, in [0, 1], of what the video shows.
        uv: canonical coordinates of the keyframes' pixels.
        weight: how much of each pixel the layer fills, within its region.
        gain: the lighting of the layer.
    """

    canvas: Canvas
    region: Float[Tensor, "rows columns"]
    uv: Float[Tensor, "n height width 2"]
    weight: Float[Tensor, "n height width"]
    gain: Float[Tensor, "n 3 height width"]

    def places(self, shrink: int = 1) -> Places:
        """Where the pixels lie on the canvas; or, with `shrink`, squares of pixels on a canvas that is as much smaller.

        Pixels that show little of the layer have no weight.
        """
        uv = avg_pool2d(self.uv.movedim(3, 1), shrink).movedim(1, 3)
        weight = avg_pool2d(self.weight[:, None], shrink)[:, 0]
        size = (self.canvas.size[0] // shrink, self.canvas.size[1] // shrink)
        texels = coords.uv_to_texels(uv, self.canvas.box, *size)
        return Places(texels, torch.where(weight >= SHOWN, weight, 0.0), size)


@dataclass(frozen=True)
class Keyframes:
    """Pictures cut from frames, and where each layer lies in them.

    Attributes:
        frames: the frames of the run they are from, 0 is its first.
        images: RGB in [0, 1], with the edits that there are.
        parts: the layers to edit, by name.
        tokens: canonical coordinates of all pixels in whatever layer they show, and the number of that layer.
        numbers: the same frames, as the source counts.
    """

    frames: tuple[int, ...]
    images: Float[Tensor, "n 3 height width"]
    parts: Mapping[str, Part]
    tokens: Float[Tensor, "n height width 3"]
    numbers: tuple[int, ...]

    def __getitem__(self, chosen: slice) -> Keyframes:
        """Only some of them."""
        parts = {
            layer: replace(part, uv=part.uv[chosen], weight=part.weight[chosen], gain=part.gain[chosen])
            for layer, part in self.parts.items()
        }
        return Keyframes(self.frames[chosen], self.images[chosen], parts, self.tokens[chosen], self.numbers[chosen])

    @property
    def region(self) -> Float[Tensor, "n 1 height width"]:
        """Where the pictures may change, in [0, 1]: what shows a layer in its region."""
        return torch.stack([part.weight for part in self.parts.values()]).sum(dim=0)[:, None].clamp(0, 1)

    def places(self, shrink: int, device: torch.device) -> list[Places]:
        """Where the pixels, or latents of `shrink` pixels, lie in each layer."""
        return [part.places(shrink).to(device) for part in self.parts.values()]

    def paths(self, shrink: int) -> dict[int, Int[Tensor, "n tokens n"]]:
        """For `attention.cross_frame`: which tokens show the same point, by how many there are of a picture."""
        found = {}
        height, width = self.images.shape[2:]
        for factor in (shrink, 2 * shrink, 4 * shrink, 8 * shrink):
            if height % factor == 0 and width % factor == 0:
                each = [part.places(factor) for part in self.parts.values()]
                paths = [canonical_paths(p.texels.numpy(), p.weight.numpy() > 0) for p in each]
                found[(height // factor) * (width // factor)] = torch.stack(paths).amax(dim=0)
        return found


def open_keyframes(source: Source, numbers: Sequence[int], side: int, multiple: int, feather: float = 0.0) -> Keyframes:
    """The pictures of some frames around the layers to edit, all of one size, the longer side about `side` pixels.

    Args:
        numbers: frames of the run, 0 is its first. Those that do not show the region are left out.
        multiple: both sides in pixels are multiples of this.
        feather: pixels over which overlays fade in.

    Raises:
        UserError: none of the frames shows any of the region (exit 3).
    """
    facts, chosen = source_facts(source.run)
    regions = {layer: _on_charts(source, layer, numbers) for layer in source.layers}
    boxes = {t: box for t in numbers if (box := _around(source, regions, t, (facts.width, facts.height))) is not None}
    if not boxes:
        raise bad_input(
            "none of the keyframes shows what is to be edited",
            why=f"{', '.join(source.layers)}, where it may be edited, does not appear in them",
            fix="leave --keyframes out: frames that show it are chosen then",
        )
    frames = tuple(boxes)
    whole, cuts = _cuts(list(boxes.values()), (facts.width, facts.height), side, multiple)
    renderer = open_renderer(source.run, source.maps)
    shown = (renderer.render_frame(t, source.frame(t)) for t in frames)
    images = np.stack([_cut(frame, whole, cut) for frame, cut in zip(shown, cuts, strict=True)])
    views = list(zip(frames, cuts, strict=True))
    parts = {layer: _part(source, layer, regions[layer], views, whole, multiple, feather) for layer in regions}
    tokens = torch.from_numpy(np.stack([_tokens(source, t, whole, cut) for t, cut in views]))
    pixels = torch.from_numpy(images).movedim(3, 1).contiguous()
    return Keyframes(frames, pixels, parts, tokens, tuple(chosen[t] for t in frames))


def frame_numbers(source: Source, text: str) -> list[int]:
    """The frames of the run that a user's list of source frames names, such as "3,10,20".

    Raises:
        UserError: what is not a number, or is no frame of the run (exit 3).
    """
    _, chosen = source_facts(source.run)
    found = []
    for word in (word.strip() for word in text.split(",")):
        if not word.isdecimal():
            raise bad_input(f"{word!r} in --keyframes is no number of a frame", fix=f"--keyframes {chosen[0]}")
        if int(word) not in chosen:
            every = f", every {chosen.step}th" if chosen.step > 1 else ""
            raise bad_input(
                f"frame {word} is not part of this run",
                why=f"it was fitted to frames {chosen[0]} to {chosen[-1]}{every}",
                fix=f"--keyframes {min(chosen, key=lambda k: abs(k - int(word)))}",
            )
        found.append(chosen.index(int(word)))
    return list(dict.fromkeys(found))


def choose(source: Source, most: int) -> list[int]:
    """Frames of the run that together show the layers' regions, at most so many; see `cover`."""
    candidates, cells = _shown_cells(source)
    return [candidates[i] for i in cover(cells, most)]


def choose_evenly(source: Source, most: int) -> list[int]:
    """Frames of the run spread evenly over those that show any of the layers' regions, at most so many, in time."""
    candidates, cells = _shown_cells(source)
    shown = [t for t, row in zip(candidates, cells, strict=True) if row.any()] or candidates[:1]
    return [shown[i] for i in sorted({round(i) for i in np.linspace(0, len(shown) - 1, min(most, len(shown)))})]


def cover(shown: Bool[np.ndarray, "frames cells"], most: int) -> list[int]:
    """At most `most` rows that together are true in most columns: the fullest, and then what adds most to it.

    Where fewer than a majority needs do, others are added that are full and far away. They come in the order in which
    each shares most with those before it.
    """
    picked: list[int] = []
    seen = np.zeros(shown.shape[1], bool)
    while len(picked) < min(most, len(shown)):
        gains = (shown & ~seen).sum(axis=1)
        best = int(np.argmax(gains))
        if picked and gains[best] <= ENOUGH * shown.any(axis=0).sum():
            if len(picked) >= ROBUST:
                break
            apart = np.abs(np.arange(len(shown))[:, None] - picked).min(axis=1)
            best = int(np.argmax(apart * shown.sum(axis=1)))
            if not apart[best]:
                break
        picked.append(best)
        seen |= shown[best]
    order, rest = picked[:1], picked[1:]
    while rest:
        before = shown[order].any(axis=0)
        rest.sort(key=lambda i: (-int((shown[i] & before).sum()), i))
        order.append(rest.pop(0))
    return order


def _allowed(
    source: Source, layer: str, region: Float[np.ndarray, "rows columns"], uv: Float[np.ndarray, "h w 2"]
) -> Float[np.ndarray, "h w"]:
    """A layer's region as pixels see it."""
    image = torch.from_numpy(np.ascontiguousarray(region, np.float32))[None, None]
    return coords.sample(image, source.pictures[layer].box, torch.from_numpy(uv)[None], "zeros")[0, 0].numpy()


def _on_charts(source: Source, layer: str, numbers: Sequence[int]) -> Float[np.ndarray, "rows columns"]:
    """A layer's region without the sheets that none of the frames is on: the edit is carried there afterwards."""
    region, picture = source.region(layer), source.pictures[layer]
    charts = [chart for series in source.maps.charts for chart in series if chart.layer == layer]
    if not charts:
        return region
    uv = coords.texel_centres(picture.box, *picture.size).numpy()
    kept = np.zeros_like(region)
    for chart in charts:
        if any(chart.first <= t <= chart.last for t in numbers):
            box = chart.box
            kept[(uv >= [box.u0, box.v0]).all(axis=-1) & (uv <= [box.u1, box.v1]).all(axis=-1)] = 1
    return region * kept


def _shown_small(source: Source, layer: str, region: np.ndarray, t: int) -> Bool[np.ndarray, "h w"]:
    """Which pixels of a frame show a layer's region, at the size of the fit."""
    index = source.maps.layers.index(layer)
    uv = np.ascontiguousarray(source.maps.uv_small(t, index))
    return (source.maps.layer_weight_small(t, index) >= SHOWN) & (_allowed(source, layer, region, uv) >= SHOWN)


def _shown_cells(source: Source) -> tuple[list[int], Bool[np.ndarray, "frames cells"]]:
    """Frames that may become keyframes, and which cells of the layers' canonical pictures each shows."""
    count = source.maps.frame_count
    candidates = sorted({round(i) for i in np.linspace(0, count - 1, min(count, CANDIDATES))})
    regions = {layer: source.region(layer) for layer in source.layers}
    cells = [np.concatenate([_cells(source, layer, regions[layer], t) for layer in regions]) for t in candidates]
    return candidates, np.stack(cells)


def _cells(source: Source, layer: str, region: np.ndarray, t: int) -> Bool[np.ndarray, " cells"]:
    """Which cells of a layer's canonical picture a frame shows, of those in its region."""
    box = source.pictures[layer].box
    uv = source.maps.uv_small(t, source.maps.layers.index(layer))[_shown_small(source, layer, region, t)]
    columns = ((uv[:, 0] - box.u0) / box.width * COARSE).astype(np.int64).clip(0, COARSE - 1)
    rows = ((uv[:, 1] - box.v0) / box.height * COARSE).astype(np.int64).clip(0, COARSE - 1)
    hit = np.zeros((COARSE, COARSE), bool)
    hit[rows, columns] = True
    return hit.ravel()


def _around(
    source: Source, regions: Mapping[str, np.ndarray], t: int, size: tuple[int, int]
) -> tuple[float, float, float, float] | None:
    """Left, top, right and bottom in the source's pixels of what a frame shows of the regions; None for nothing."""
    shown = np.any([_shown_small(source, layer, region, t) for layer, region in regions.items()], axis=0)
    left, top, width, height = cv2.boundingRect(shown.astype(np.uint8))
    if not width:
        return None
    x, y = size[0] / source.maps.size[0], size[1] / source.maps.size[1]
    return left * x, top * y, (left + width) * x, (top + height) * y


def _cuts(
    boxes: Sequence[tuple[float, float, float, float]], size: tuple[int, int], side: int, multiple: int
) -> tuple[tuple[int, int], list[Cut]]:
    """The size frames are brought to, and the part of each that is cut out: all of one size, `side` pixels long."""
    spans = [max(box[axis + 2] - box[axis] for box in boxes) for axis in (0, 1)]
    margin = 2 * MARGIN * max(spans)
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
            centre = (box[axis] + box[axis + 2]) / 2 / size[axis] * whole[axis]
            starts.append(min(max(0, round(centre - sides[axis] / 2)), whole[axis] - sides[axis]))
        cuts.append((slice(starts[1], starts[1] + sides[1]), slice(starts[0], starts[0] + sides[0])))
    return (whole[0], whole[1]), cuts


def _cut(
    frame: UInt8[np.ndarray, "height width 3"], whole: tuple[int, int], cut: Cut
) -> Float[np.ndarray, "rows columns 3"]:
    """A part of a frame brought to a size; only that part of a large one is made."""
    pixels = frame.astype(np.float32) / 255
    if whole[0] <= frame.shape[1]:
        return np.ascontiguousarray(resize(pixels, whole)[cut]).clip(0, 1)
    return warped(pixels, (RIM, RIM), (frame.shape[1], frame.shape[0]), whole, cut)


def _part(
    source: Source,
    layer: str,
    region: Float[np.ndarray, "rows columns"],
    views: Sequence[tuple[int, Cut]],
    whole: tuple[int, int],
    multiple: int,
    feather: float,
) -> Part:
    """A layer as keyframes show it."""
    maps, index = source.maps, source.maps.layers.index(layer)
    uv = np.stack([maps.uv_part(t, index, whole, cut) for t, cut in views])
    allowed = np.stack([_allowed(source, layer, region, one) for one in uv])
    weight = np.stack([maps.layer_weight(t, index, whole, cut) for t, cut in views]) * allowed
    gain = np.stack([maps.gain(t, index, whole, cut) for t, cut in views])
    canvas = _canvas_like(source, layer, region, _step(uv, weight), multiple, feather)
    return Part(
        canvas,
        canvas.part_of(np.ascontiguousarray(region[..., None]), source.pictures[layer].box)[0, 0],
        torch.from_numpy(uv),
        torch.from_numpy(weight.astype(np.float32)),
        torch.from_numpy(gain).movedim(3, 1).contiguous(),
    )


def _canvas_like(source: Source, layer: str, region: np.ndarray, step: float, multiple: int, feather: float) -> Canvas:
    """A canvas around a layer's region with pixels `step` units of uv apart."""
    picture = source.pictures[layer]
    extent: Box = open_canvas(picture, region, 8 * multiple, multiple).box
    side = multiple * max(1, round(max(extent.width, extent.height) / step / multiple))
    return open_canvas(picture, region, side, multiple, feather)


def _step(uv: Float[np.ndarray, "n h w 2"], weight: Float[np.ndarray, "n h w"]) -> float:
    """How far apart neighbouring pixels of the keyframes usually lie in the canonical picture, in units of uv."""
    both = (weight[:, :, 1:] >= SHOWN) & (weight[:, :, :-1] >= SHOWN)
    steps = np.linalg.norm(np.diff(uv, axis=2), axis=-1)[both]
    return max(1e-4, float(np.median(steps))) if len(steps) else 2 / uv.shape[2]


def _tokens(source: Source, t: int, whole: tuple[int, int], cut: Cut) -> Float[np.ndarray, "h w 3"]:
    """Canonical coordinates of pixels in the layer that shows most in each, and its number."""
    maps, count = source.maps, len(source.maps.layers)
    weight = np.stack([maps.layer_weight(t, index, whole, cut) for index in range(count)])
    uv = np.stack([maps.uv_part(t, index, whole, cut) for index in range(count)])
    most = weight.argmax(axis=0)
    chosen = np.take_along_axis(uv, most[None, ..., None], axis=0)[0]
    return np.concatenate([chosen, most[..., None]], axis=-1).astype(np.float32)
